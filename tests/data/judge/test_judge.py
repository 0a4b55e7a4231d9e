"""The cascade: fitting answers stay, others' answers and mash go, and nothing is decided without grounds."""

from __future__ import annotations

import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from dsr1_tune.config import Judge
from dsr1_tune.data.judge.bench import SCORES
from dsr1_tune.data.judge.judge import DROP_CODES, Judgement, Models, judge
from dsr1_tune.data.judge.negatives import shuffle_characters
from dsr1_tune.data.judge.score_cache import Memo, Pair
from dsr1_tune.data.judge.scores import CHUNK_ROWS
from dsr1_tune.data.rules.codes import MEANINGS
from dsr1_tune.errors import ModelError

ROWS = 400
_SYLLABLES = ("ka", "lo", "mi", "ren", "sta", "tu", "vel", "dor", "an", "ish", "per", "gol")


@dataclass
class Listed:
    """Pairs in memory; remembers how many were asked for at once."""

    pairs: list[Pair]
    language: Sequence[str] | str = "latin"
    most_at_once: int = 0

    def __len__(self) -> int:
        return len(self.pairs)

    def texts(self, indices: Sequence[int], /) -> list[Pair]:
        self.most_at_once = max(self.most_at_once, len(indices))
        return [self.pairs[index] for index in indices]

    def languages(self) -> Sequence[str]:
        return [self.language] * len(self.pairs) if isinstance(self.language, str) else self.language


def words(rng: np.random.Generator, count: int) -> list[str]:
    return ["".join(rng.choice(_SYLLABLES, 3)) for _ in range(count)]


def corpus(
    rows: int = ROWS, wrong: int = 0, mash: int = 0, seed: int = 0, shared: float = 1.0
) -> tuple[Listed, set[int], set[int]]:
    """Rows whose question and answer share up to two rare words; the first `wrong` answers belong to other rows."""
    rng = np.random.default_rng(seed)
    common = words(rng, 30)
    pairs = []
    for _ in range(rows):
        topic = ["x" + word for word in words(rng, 4)]
        question = " ".join([*rng.choice(common, 6), *topic])
        said = [word for word in topic[:2] if rng.random() < shared]
        pairs.append((question, " ".join(rng.permutation([*rng.choice(common, 20), *said]))))
    for row in range(wrong):
        pairs[row] = (pairs[row][0], pairs[row + wrong][1])
    for row in range(rows - mash, rows):
        pairs[row] = (pairs[row][0], shuffle_characters(pairs[row][1], rng))
    return Listed(pairs), set(range(wrong)), set(range(rows - mash, rows))


@dataclass
class Clock:
    """Time that passes only where work is done."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeEmbedder:
    """Texts are alike that share rare words; every text takes `seconds`. A blind one sees no words."""

    clock: Clock = field(default_factory=Clock)
    seconds: float = 0.01
    name: str = "fake embedder"
    asked: list[str] = field(default_factory=list)
    blind: bool = False

    def questions(self, texts: Sequence[str], /) -> np.ndarray:
        self.clock.now += self.seconds * len(texts)
        self.asked += texts
        return np.stack([self._vector(text) for text in texts])

    answers = questions

    def _vector(self, text: str) -> np.ndarray:
        vector = np.zeros(512)
        for word in [text] if self.blind else text.split():
            vector[zlib.crc32(word.encode("utf-8", "replace")) % 512] += 1.0 if word.startswith("x") else 0.1
        return vector / max(np.linalg.norm(vector), 1e-9)


@dataclass
class FakeLM:
    """Rare words that stand in the question cost little."""

    clock: Clock = field(default_factory=Clock)
    seconds: float = 0.01
    name: str = "fake LM"
    asked: list[Pair] = field(default_factory=list)

    def losses(self, pairs: Sequence[Pair], /) -> np.ndarray:
        self.clock.now += self.seconds * len(pairs)
        self.asked += pairs
        found = []
        for question, answer in pairs:
            said = answer.split()
            known = set(question.split())
            costs = [1.0 if word in known and word.startswith("x") else 3.0 for word in said]
            found.append((np.mean(costs) if costs else np.nan, len(said)))
        return np.array(found)


def models(embedder: Any = None, lm: Any = None) -> Models:
    """These two; where one is not given, it is not installed."""

    def load(model: Any) -> Callable[[str | None], Any]:
        def load_(name: str | None) -> Any:
            if model is None:
                raise ModelError(f"{name or 'the default model'} is not installed", hint="pip install it")
            return model

        return load_

    return Models(load(embedder), load(lm))


def run(source: Listed, tmp_path: Path, with_models: Models | None = None, clock: Any = None, **settings: Any) -> Any:
    said: list[str] = []
    config = Judge(**settings)
    judgement = judge(source, config, tmp_path, 7, said.append, with_models or models(), clock or Clock())
    return judgement, said


def facts(judgement: Judgement, score: str, language: str = "latin") -> dict[str, Any]:
    return judgement.facts["scores"][score][language]


def test_judge_answers_of_other_questions_go_and_the_others_stay(tmp_path: Path) -> None:
    source, wrong, _ = corpus(wrong=30)
    judgement, _ = run(source, tmp_path, models(FakeEmbedder(), FakeLM()))
    found = set(judgement.drops)
    assert len(found & wrong) >= 24
    assert len(found - wrong) <= 0.01 * ROWS
    drop = judgement.drops[min(found & wrong)]
    assert drop.code in ("answer_does_not_fit", "unhelped_answer")
    assert "fit -" in drop.detail and "cut-off" in drop.detail and "cosine" in drop.detail
    assert "judge.cuts.fit" in drop.fix


def test_judge_clean_rows_stay(tmp_path: Path) -> None:
    source, _, _ = corpus()
    judgement, _ = run(source, tmp_path, models(FakeEmbedder(), FakeLM()))
    assert len(judgement.drops) <= 0.01 * ROWS


def test_judge_mash_goes_without_any_model(tmp_path: Path) -> None:
    source, _, mash = corpus(rows=1000, mash=50)
    judgement, said = run(source, tmp_path)
    found = {row for row, drop in judgement.drops.items() if drop.code == "not_fluent"}
    assert len(found & mash) >= 45
    assert len(found - mash) <= 5
    assert "surprise" in judgement.drops[min(found)].detail
    assert any("pip install it" in line for line in said)


def test_judge_every_code_is_a_known_one() -> None:
    assert {*DROP_CODES.values(), "unhelped_answer"} <= set(MEANINGS)


def test_judge_too_few_rows_are_scored_but_none_is_dropped(tmp_path: Path) -> None:
    source, _, _ = corpus(rows=60, wrong=10, mash=5)
    embedder = FakeEmbedder()
    judgement, _ = run(source, tmp_path, models(embedder, FakeLM()))
    assert judgement.drops == {}
    assert not np.isnan(judgement.scores["overlap"]).any()
    assert facts(judgement, "overlap")["switched_off"] == "only 60 rows to try it on, 100 are needed"
    assert embedder.asked == []
    assert any("no language has 100 rows" in note for note in judgement.facts["notes"])


def test_judge_a_score_that_tells_nothing_is_switched_off_and_says_so(tmp_path: Path) -> None:
    source, _, _ = corpus(wrong=30)
    judgement, said = run(source, tmp_path, models(FakeEmbedder(blind=True)), lm="none")
    assert "no better than chance: AUC 0." in facts(judgement, "cosine")["switched_off"]
    assert any("cosine is not used on latin" in line for line in said)
    # Nothing but shared words is left then, and they condemn nobody.
    assert facts(judgement, "overlap")["switched_off"] is None
    assert "answer_does_not_fit" not in {drop.code for drop in judgement.drops.values()}


def test_judge_each_language_is_calibrated_by_itself(tmp_path: Path) -> None:
    related, _, _ = corpus(rows=300, wrong=40)
    unrelated, _, _ = corpus(rows=300, wrong=150, seed=1)
    pairs = [
        *related.pairs,
        *((question, unrelated.pairs[i - 1][1]) for i, (question, _) in enumerate(unrelated.pairs)),
    ]
    source = Listed(pairs, ["latin"] * 300 + ["other"] * 300)
    judgement, _ = run(source, tmp_path, models(FakeEmbedder()), lm="none")
    assert facts(judgement, "cosine", "latin")["switched_off"] is None
    assert facts(judgement, "cosine", "other")["switched_off"]
    assert {row for row in judgement.drops if row >= 300} == set()
    assert len(judgement.drops) > 10


def test_judge_short_exact_answers_are_neither_mash_nor_unfit(tmp_path: Path) -> None:
    source, _, _ = corpus(rows=600, wrong=40, mash=30)
    for row, answer in enumerate(("B", "42", "是", "42 km", "")):
        source.pairs[row] = (source.pairs[row][0], answer)
    judgement, _ = run(source, tmp_path, models(FakeEmbedder(), FakeLM()))
    assert np.isnan(judgement.scores["surprise"][:5]).all()
    assert (judgement.scores["fit"][:5] < 0).any()
    assert len(judgement.drops) > 20 and not set(range(5)) & set(judgement.drops)


# --- the budget -------------------------------------------------------------------------------------------------------


def test_judge_without_time_no_model_is_loaded(tmp_path: Path) -> None:
    source, _, _ = corpus()
    embedder = FakeEmbedder()
    judgement, said = run(source, tmp_path, models(embedder, FakeLM()), minutes=0)
    assert embedder.asked == [] and not any("loading" in line for line in said)
    assert np.isnan(judgement.scores["cosine"]).all()
    assert judgement.facts["models"] == {"embedder": None, "lm": None}


def test_judge_the_most_doubtful_rows_come_first_while_the_time_lasts(tmp_path: Path) -> None:
    source, wrong, _ = corpus(rows=1500, wrong=40, shared=0.6)
    clock = Clock()
    judgement, _ = run(source, tmp_path, models(FakeEmbedder(clock, 0.1)), clock, minutes=3, lm="none")
    looked = ~np.isnan(judgement.scores["cosine"])
    assert 400 < looked.sum() < 1000
    assert clock.now < 3 * 60 + 20
    assert looked[list(wrong)].mean() > 0.9
    assert facts(judgement, "cosine")["num_unscored"] == 1500 - looked.sum()
    # Rows that no model has looked at are not condemned for the words they share.
    assert all(looked[row] for row, drop in judgement.drops.items() if drop.code == "answer_does_not_fit")


def test_judge_rows_beyond_doubt_are_not_looked_at(tmp_path: Path) -> None:
    source, _, _ = corpus(rows=1500)
    judgement, _ = run(source, tmp_path, models(FakeEmbedder()), lm="none")
    assert facts(judgement, "cosine")["num_unscored"] > 500
    overlap, cosine = judgement.scores["overlap"], judgement.scores["cosine"]
    assert np.isnan(cosine[overlap == overlap.max()]).any()


def test_judge_a_model_too_slow_to_be_tried_is_given_up_early(tmp_path: Path) -> None:
    source, _, _ = corpus()
    clock = Clock()
    embedder = FakeEmbedder(clock, 10.0)
    judgement, _ = run(source, tmp_path, models(embedder), clock, minutes=10, lm="none")
    assert len(embedder.asked) < 100
    assert "are needed" in facts(judgement, "cosine")["switched_off"]
    assert any("of 400 rows were looked at in the time given" in note for note in judgement.facts["notes"])


def test_judge_progress_names_rate_and_time_to_go(tmp_path: Path) -> None:
    source, _, _ = corpus()
    clock = Clock()
    _, said = run(source, tmp_path, models(FakeEmbedder(clock, 0.1)), clock, lm="none")
    assert any("cosine on latin, 16 of" in line and "a second" in line and "to go" in line for line in said)


# --- the cache --------------------------------------------------------------------------------------------------------


def test_judge_what_a_model_said_is_not_asked_again(tmp_path: Path) -> None:
    source, _, _ = corpus(wrong=30)
    first, _ = run(source, tmp_path, models(FakeEmbedder(), FakeLM()))
    embedder, lm = FakeEmbedder(), FakeLM()
    again, _ = run(source, tmp_path, models(embedder, lm))
    assert embedder.asked == [] and lm.asked == []
    assert again.drops == first.drops and again.facts == first.facts
    for name, values in first.scores.items():
        np.testing.assert_array_equal(values, again.scores[name])


def test_judge_a_rerun_ends_where_the_first_run_did_even_on_a_faster_machine(tmp_path: Path) -> None:
    source, _, _ = corpus(rows=1500, wrong=40, shared=0.6)
    slow, fast = Clock(), Clock()
    first, _ = run(source, tmp_path, models(FakeEmbedder(slow, 0.1)), slow, minutes=3, lm="none")
    again, _ = run(source, tmp_path, models(FakeEmbedder(fast, 0.0001)), fast, minutes=3, lm="none")
    assert again.facts == first.facts
    assert facts(first, "cosine")["num_unscored"] > 500
    longer, _ = run(source, tmp_path, models(FakeEmbedder(fast, 0.0001)), fast, minutes=30, lm="none")
    assert facts(longer, "cosine")["num_scored"] > facts(first, "cosine")["num_scored"]


def test_judge_a_run_killed_in_the_middle_goes_on_and_gives_the_same(tmp_path: Path) -> None:
    source, _, _ = corpus(wrong=30)
    whole, _ = run(source, tmp_path / "whole", models(FakeEmbedder()), lm="none")
    run(source, tmp_path / "killed", models(FakeEmbedder()), lm="none")
    (file,) = (tmp_path / "killed").glob("cosine-*.jsonl")
    lines = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join(lines[:300])[:-9])
    embedder = FakeEmbedder()
    again, _ = run(source, tmp_path / "killed", models(embedder), lm="none")
    assert again.facts == whole.facts and again.drops == whole.drops
    assert 0 < len(embedder.asked) < 2 * ROWS


def test_judge_a_cut_off_line_is_scored_again_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "memo.jsonl"
    with Memo(path) as memo:
        memo.scores([("q", "a"), ("q", "b")], lambda pairs: np.array([[1.0], [np.nan]]))
    path.write_bytes(path.read_bytes()[:-5])
    asked: list[Pair] = []

    def compute(pairs: list[Pair]) -> np.ndarray:
        asked.extend(pairs)
        return np.full((len(pairs), 1), 2.0)

    with Memo(path) as memo:
        found = memo.scores([("q", "a"), ("q", "b"), ("q", "b")], compute)
    assert found.tolist() == [[1.0], [2.0], [2.0]] and asked == [("q", "b")]
    with Memo(path) as memo:
        assert memo.scores([("q", "b")], compute).tolist() == [[2.0]] and len(asked) == 1


def test_judge_question_and_answer_are_told_apart_in_the_cache(tmp_path: Path) -> None:
    with Memo(tmp_path / "memo.jsonl") as memo:
        found = memo.scores([("ab", "c"), ("a", "bc")], lambda pairs: np.array([[float(len(q))] for q, _ in pairs]))
    assert found.tolist() == [[2.0], [1.0]]


# --- models and settings ----------------------------------------------------------------------------------------------


def test_judge_a_model_that_was_named_must_be_there(tmp_path: Path) -> None:
    source, _, _ = corpus()
    with pytest.raises(ModelError, match="mine is not installed"):
        run(source, tmp_path, models(), embedder="mine")


def test_judge_without_the_default_models_it_goes_on_and_tells_how_to_get_them(tmp_path: Path) -> None:
    source, _, _ = corpus()
    judgement, _ = run(source, tmp_path, models())
    assert sum("goes on without the" in note and "pip install it" in note for note in judgement.facts["notes"]) == 2
    assert judgement.facts["models"] == {"embedder": None, "lm": None}


def test_judge_a_sample_is_drawn_at_random_and_only_it_is_read(tmp_path: Path) -> None:
    source, _, _ = corpus(rows=1500)
    judgement, _ = run(source, tmp_path, models(FakeEmbedder()), sample=0.2, lm="none")
    scored = np.flatnonzero(~np.isnan(judgement.scores["overlap"]))
    assert len(scored) == 300 and scored.max() > 1200
    assert (judgement.facts["num_rows"], judgement.facts["num_looked_at"]) == (1500, 300)


def test_judge_a_cut_off_of_your_own_holds_even_where_nothing_is_calibrated(tmp_path: Path) -> None:
    source, _, _ = corpus(rows=60)
    judgement, _ = run(source, tmp_path, cuts={"overlap": 0.05})
    expected = set(np.flatnonzero(np.nan_to_num(judgement.scores["overlap"]) < 0.05).tolist())
    assert set(judgement.drops) == expected
    judgement, _ = run(source, tmp_path, cuts={"overlap": 0.9})
    assert len(judgement.drops) > 30
    assert "cut-off 0.90" in next(iter(judgement.drops.values())).detail


def test_judge_ifd_of_your_own_is_an_upper_limit_with_its_own_code(tmp_path: Path) -> None:
    source, _, _ = corpus(wrong=30)
    judgement, _ = run(source, tmp_path, models(lm=FakeLM()), embedder="none", cuts={"ifd": 0.98, "fit": -99})
    dropped = [row for row, drop in judgement.drops.items() if drop.code == "unhelped_answer"]
    assert dropped
    assert (judgement.scores["ifd"][dropped] > 0.98).all()


def test_judge_drop_worst_takes_that_share(tmp_path: Path) -> None:
    source, wrong, _ = corpus(wrong=30)
    judgement, _ = run(source, tmp_path, models(FakeEmbedder()), lm="none", drop_worst=0.1)
    fit_drops = {row for row, drop in judgement.drops.items() if drop.code == "answer_does_not_fit"}
    assert abs(len(fit_drops) - 0.1 * ROWS) <= 2
    assert len(fit_drops & wrong) >= 25


def test_judge_the_two_kinds_of_ifd_are_the_ratios_of_losses_and_of_perplexities(tmp_path: Path) -> None:
    source, _, _ = corpus()
    lm = FakeLM()
    judgement, _ = run(source, tmp_path, models(lm=lm), embedder="none")
    row = int(np.flatnonzero(~np.isnan(judgement.scores["ifd"]))[0])
    question, answer = source.pairs[row]
    (asked, _), (alone, _) = lm.losses([(question, answer), ("", answer)])
    assert judgement.scores["ifd"][row] == pytest.approx(asked / alone, rel=1e-3)
    assert judgement.scores["ifd_perplexity"][row] == pytest.approx(np.exp(asked - alone), rel=1e-3)
    assert judgement.scores["perplexity"][row] == pytest.approx(np.exp(alone), rel=1e-3)


def test_judge_facts_are_plain_json_with_both_histograms(tmp_path: Path) -> None:
    source, _, _ = corpus(wrong=30)
    judgement, _ = run(source, tmp_path, models(FakeEmbedder(), FakeLM()))
    assert orjson.loads(orjson.dumps(judgement.facts)) == judgement.facts
    assert set(judgement.facts["scores"]) <= set(SCORES)
    for languages in judgement.facts["scores"].values():
        for of in languages.values():
            assert of["num_scored"] + of["num_unscored"] == ROWS
            histogram = of["histogram"]
            assert len(histogram["true"]) == len(histogram["shuffled"]) == len(histogram["edges"]) - 1
            assert sum(histogram["true"]) == of["num_scored"]
    expected = facts(judgement, "fit")["expected"]
    assert expected["lost"] <= 0.005 and 0.04 < expected["share_bad"] < 0.12


def test_judge_rows_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    source, _, _ = corpus(rows=CHUNK_ROWS * 2 + 5)
    judgement, _ = run(source, tmp_path, minutes=0)
    assert source.most_at_once == CHUNK_ROWS
    assert not np.isnan(judgement.scores["overlap"]).any()


def test_judge_no_rows_at_all(tmp_path: Path) -> None:
    judgement, _ = run(Listed([]), tmp_path, models(FakeEmbedder(), FakeLM()))
    assert judgement.drops == {} and judgement.facts["num_rows"] == 0


def test_judge_the_same_question_everywhere_is_survived(tmp_path: Path) -> None:
    source, _, _ = corpus()
    source.pairs = [("the same", answer) for _, answer in source.pairs]
    judgement, _ = run(source, tmp_path, models(FakeEmbedder(), FakeLM()))
    assert judgement.drops == {}


def test_judge_odd_texts_are_survived(tmp_path: Path) -> None:
    source, _, _ = corpus()
    odd = ["", " ", "\0\0", "\ud800 lone", "\u2028", "ﬁ" * 9000, "👩‍👩‍👧", "İİ", "{{name}}", "1" * 50]
    source.pairs[: len(odd)] = [(text, text) for text in odd]
    judgement, _ = run(source, tmp_path, models(FakeEmbedder()), lm="none")
    assert len(judgement.scores["overlap"]) == ROWS


def test_importing_the_judge_brings_no_torch() -> None:
    code = "import sys, dsr1_tune.data.judge.judge; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
