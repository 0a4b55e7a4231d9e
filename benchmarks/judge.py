"""How well the small-model judge tells answers that fit from answers of other questions, on real files.

Every answer is scored under its own question and under another one of the same file. The blend is fitted on one half
of the rows and measured on the other. What the models say is kept in --cache: a second run is quick.

    python benchmarks/judge.py                            # AUC of every score (an hour on 2 cores, once)
    python benchmarks/judge.py --cuts                     # the whole judge with its default cut-offs, faults injected
    python benchmarks/judge.py --scores FILE OUT.jsonl    # every row's scores, one line a row
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import orjson

from dsr1_tune.config import Judge
from dsr1_tune.data.judge import embedder as judge_embed
from dsr1_tune.data.judge import language_model, lexical
from dsr1_tune.data.judge.bench import PARTS, as_good
from dsr1_tune.data.judge.judge import Models, judge
from dsr1_tune.data.judge.negatives import shuffle_characters, shuffle_words
from dsr1_tune.data.judge.score_cache import Memo, Pair
from dsr1_tune.data.judge.scores import Cosines
from dsr1_tune.data.judge.thresholds import Blend, auc
from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Record

DATA = Path(__file__).parents[1].parent / "shared" / "data"
FILES = {
    "alpaca_en_demo": ("en", "LLaMA-Factory/alpaca_en_demo.json", 330),
    "v1_sft_demo": ("en", "LLaMA-Factory/v1_sft_demo.jsonl", 180),
    "alpaca_zh_demo": ("zh", "LLaMA-Factory/alpaca_zh_demo.json", 200),
    "llama_data": ("zh", "Huatuo/llama_data.json", 130),
    "CMtMedQA_test": ("zh", "Zhongjing/CMtMedQA_test.json", 90),
    "DISC-LawLLM": ("zh", "DISC-LawLLM/qa_short_answer.json", 90),
}
"""Language, place, and how many rows the language model looks at; the other scores see up to MAX_ROWS."""
MAX_ROWS = 1000
CUT_ROWS = 600
"""Rows of each file on which the default cut-offs are tried."""
SALAD_ROWS = 60
"""Answers of each file whose words are shuffled."""
SHOWN = ("overlap", "cosine", "ifd", "ifd_perplexity", "contrast", "no LM", "all")


def main() -> None:
    """Print the table asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", action="store_true", help="run the judge with default cut-offs on injected faults")
    parser.add_argument("--lm", action="store_true", help="with --cuts: the language model too")
    parser.add_argument("--minutes", type=float, default=60.0, help="with --cuts: the judge's budget")
    parser.add_argument("--scores", nargs=2, metavar=("FILE", "OUT"), help="write every row's scores as JSON lines")
    parser.add_argument("--rows", type=int, default=0, help="only so many rows of each file")
    parser.add_argument("--file", choices=FILES, action="append", help="only this file (may be repeated)")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "dsr1-tune-judge-benchmark")
    args = parser.parse_args()
    chosen = {name: FILES[name] for name in args.file or FILES}
    if args.scores:
        write_scores(Path(args.scores[0]), Path(args.scores[1]), args.rows, args.cache)
    elif args.cuts:
        print_cuts(chosen, args.cache, args.lm, args.minutes)
    else:
        print_aucs(chosen, args.rows, args.cache)


def pairs_of(file: Path, rows: int = 0) -> list[Pair]:
    """(all before the answer, the answer) of the file's records."""
    records = [record for record in read([file]) if isinstance(record, Record)]
    found = [("\n".join(message.content for message in r.messages[:-1]), r.answer) for r in records]
    return found[:rows] if rows else found


# --- AUC ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """Scores by name of the rows under their own (true) and under other questions (wrong), and of shuffled answers."""

    true: dict[str, np.ndarray]
    wrong: dict[str, np.ndarray]


def score_all(pairs: Sequence[Pair], cache: Path, lm_rows: int) -> Scored:
    """Every score of every row, the language model's of the first `lm_rows`."""
    number = len(pairs)
    wrong, wrong_too = (other_questions(pairs, step) for step in (0, 1))
    counts = lexical.Counts()
    numbers = np.arange(number)
    counts.add(pairs, numbers)
    true = {"overlap": lexical.overlap(pairs, counts)}
    false = {"overlap": lexical.overlap(wrong, counts)}
    found, sizes = lexical.bits(pairs, counts, numbers)
    usual = found.sum(axis=0) / np.maximum(sizes.sum(axis=0), 1)
    rng = np.random.default_rng(0)
    mash = [(question, shuffle_characters(answer, rng)) for question, answer in pairs]
    true["surprise"] = lexical.surprise(found, sizes, usual)
    false["surprise"] = lexical.surprise(*lexical.bits(mash, counts, numbers), usual)
    with Memo(cache / "cosine.jsonl") as memo:
        cosines = Cosines(judge_embed.load(None))
        true["cosine"] = memo.scores(pairs, cosines)[:, 0]
        false["cosine"] = memo.scores(wrong, cosines)[:, 0]
    with Memo(cache / "loss.jsonl") as memo:
        model = language_model.load(None)

        def losses(asked: Sequence[Pair], rows: int) -> np.ndarray:
            rows = min(rows, number)
            parts = [memo.scores(asked[n : min(n + 32, rows)], model.losses)[:, 0] for n in range(0, rows, 32)]
            return np.concatenate([*parts, np.full(number - rows, np.nan)])

        alone = losses([("", answer) for _, answer in pairs], lm_rows)
        asked, other, other_too = (losses(of, lm_rows) for of in (pairs, wrong, wrong_too))
        mixed = losses([("", shuffle_words(answer, rng)) for _, answer in pairs], min(lm_rows, SALAD_ROWS))
    true |= {"ifd": asked / alone, "ifd_perplexity": np.exp(asked - alone), "contrast": other / asked}
    false |= {"ifd": other / alone, "ifd_perplexity": np.exp(other - alone), "contrast": other_too / other}
    true["perplexity"], false["perplexity"] = np.exp(alone), np.exp(mixed)
    return Scored(true, false)


def other_questions(pairs: Sequence[Pair], step: int) -> list[Pair]:
    """The answers, each under the question of a row some way further on, whose question and answer are others."""
    found = []
    for place, (question, answer) in enumerate(pairs):
        further = (pairs[(place + skip) % len(pairs)] for skip in range(137 * (step + 1), 137 * (step + 1) + 100))
        found.append((next(other for other, its in further if other != question and its != answer), answer))
    return found


def print_aucs(files: dict[str, tuple[str, str, int]], rows: int, cache: Path) -> None:
    """A row of the table for each file, and each language's mean, weighted by rows."""
    print(f"| file | language | pairs | {' | '.join(SHOWN)} | surprise (mash) | perplexity (word salad) |")
    print("|---" * (len(SHOWN) + 5) + "|", flush=True)
    of_language: dict[str, list[tuple[int, list[float]]]] = {}
    for name, (language, place, lm_rows) in files.items():
        pairs = pairs_of(DATA / place)[: rows or MAX_ROWS]
        scored = score_all(pairs, cache, min(lm_rows, len(pairs)))
        values = [*(auc_of(scored, score) for score in SHOWN), *(auc_of(scored, s) for s in ("surprise", "perplexity"))]
        print(f"| {name} | {language} | {len(pairs):,} / {lm_rows} | {cells(values)} |", flush=True)
        of_language.setdefault(language, []).append((lm_rows, values))
    for language, lines in of_language.items():
        weights = [number for number, _ in lines]
        means = np.average(np.array([values for _, values in lines]), axis=0, weights=weights).tolist()
        print(f"| **all** | **{language}** | {sum(weights)} | {cells(means)} |")


def auc_of(scored: Scored, score: str) -> float:
    """AUC of a score, or of a blend that was fitted on the other half of the rows."""
    blends = {"no LM": ("overlap", "cosine"), "all": PARTS}
    if score not in blends:
        return auc(as_good(score, scored.true[score]), as_good(score, scored.wrong[score]))
    true, wrong = columns(scored.true, blends[score]), columns(scored.wrong, blends[score])
    whole = ~np.isnan(np.hstack([true, wrong])).any(axis=1)
    true, wrong = true[whole], wrong[whole]
    halves = []
    for half in (0, 1):
        blend = Blend.fit(true[half::2], wrong[half::2])
        halves.append(auc(blend(true[1 - half :: 2]), blend(wrong[1 - half :: 2])))
    return float(np.mean(halves))


def columns(scores: dict[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """[N, S] the scores as a blend takes them."""
    return np.stack([as_good(name, scores[name]) for name in names], axis=1)


def cells(values: Sequence[float]) -> str:
    """Numbers for a Markdown table."""
    return " | ".join(f"{value:.3f}" for value in values)


# --- default cut-offs -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listed:
    """Pairs in memory, as the judge asks for them."""

    pairs: Sequence[Pair]
    language: str

    def __len__(self) -> int:
        return len(self.pairs)

    def texts(self, indices: Sequence[int], /) -> list[Pair]:
        """The pairs with these numbers."""
        return [self.pairs[index] for index in indices]

    def languages(self) -> Sequence[str]:
        """One language."""
        return [self.language] * len(self.pairs)


class Remembering:
    """An embedding model that sees every text once, however often a file is judged."""

    def __init__(self, model: judge_embed.Embedder) -> None:
        self.name = model.name
        self._model = model
        self._known: dict[tuple[str, str], np.ndarray] = {}

    def questions(self, texts: Sequence[str], /) -> np.ndarray:
        """Unit vectors [N, D]."""
        return self._look_up("questions", texts)

    def answers(self, texts: Sequence[str], /) -> np.ndarray:
        """Unit vectors [N, D]."""
        return self._look_up("answers", texts)

    def _look_up(self, side: str, texts: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if (side, text) not in self._known]
        for text, vector in zip(new, getattr(self._model, side)(new) if new else (), strict=True):
            self._known[side, text] = vector
        return np.stack([self._known[side, text] for text in texts])


def print_cuts(files: dict[str, tuple[str, str, int]], cache: Path, with_lm: bool, minutes: float) -> None:
    """What the judge drops of a file as it is, and of one with 5 % wrong answers and 1 % mash."""
    print("| file | wrong answers in it | found | good rows | lost | mash found |")
    print("|---|---|---|---|---|---|", flush=True)
    config = Judge(minutes=minutes, lm=None if with_lm else "none")
    models = Models(lambda name: embedder, language_model.load)
    for name, (language, place, _) in files.items():
        embedder = Remembering(judge_embed.load(None))
        for share in (0.0, 0.05, 0.2):
            pairs, wrong, mash = inject(pairs_of(DATA / place)[:CUT_ROWS], share)
            found = set(judge(Listed(pairs, language), config, cache / "cuts", seed=0, models=models).drops)
            num_good = len(pairs) - len(wrong) - len(mash)
            lost = len(found - wrong - mash)
            print(
                f"| {name} | {len(wrong)} | {part(len(found & wrong), len(wrong))} | {num_good:,} | "
                f"{part(lost, num_good)} | {part(len(found & mash), len(mash))} |",
                flush=True,
            )


def inject(pairs: Sequence[Pair], share: float) -> tuple[list[Pair], set[int], set[int]]:
    """The pairs with `share` of the answers passed round and a fifth as many shuffled, and which those are."""
    rng = np.random.default_rng(1)
    order = rng.permutation(len(pairs)).tolist()
    wrong, mash = order[: round(len(pairs) * share)], order[round(len(pairs) * share) : round(len(pairs) * share * 1.2)]
    found = list(pairs)
    for place, row in enumerate(wrong):
        found[row] = (pairs[row][0], pairs[wrong[place - 1]][1])
    for row in mash:
        found[row] = (pairs[row][0], shuffle_characters(pairs[row][1], rng))
    return found, set(wrong), set(mash)


def part(number: int, of: int) -> str:
    """3 of 40 → 3 (7.5 %)."""
    return f"{number} ({number / of:.1%})" if of else "–"


# --- every row's scores ---------------------------------------------------------------------------------------------


def write_scores(file: Path, out: Path, rows: int, cache: Path) -> None:
    """A line for every record: its number in the file, its scores, and `combined`, the blend of them (log-odds)."""
    pairs = pairs_of(file, rows)
    scored = score_all(pairs, cache, len(pairs))
    blend = Blend.fit(columns(scored.true, PARTS), columns(scored.wrong, PARTS))
    combined = blend(columns(scored.true, PARTS))
    with out.open("wb") as stream:
        for index in range(len(pairs)):
            values = {name: float(of[index]) for name, of in ({"combined": combined} | scored.true).items()}
            known = {name: None if np.isnan(value) else round(value, 4) for name, value in values.items()}
            stream.write(orjson.dumps({"index": index, **known}) + b"\n")
    print(f"{len(pairs):,} rows → {out}")


if __name__ == "__main__":
    main()
