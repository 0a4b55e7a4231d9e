"""Tests of `reward` and `score`: a preference is learned, kept, told from other models, and applied to files."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from dsr1_tune.align import reward, score
from dsr1_tune.align.preference import calibration
from dsr1_tune.align.preference.encode import encode_pairs
from dsr1_tune.align.rewards.component import NoScore
from dsr1_tune.align.rewards.scoring import score_conversations
from dsr1_tune.config import LoraRun, RewardRun, Score
from dsr1_tune.config.load import load_config
from dsr1_tune.data.prepare import prepare
from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Message, Preference
from dsr1_tune.errors import ConfigError, DataError, ModelError, RunError
from dsr1_tune.export.weights.source import find_trained
from dsr1_tune.models.trained.attach import load_with_adapter
from dsr1_tune.models.trained.reward_model import load_scalar
from dsr1_tune.runs.console import Narrator
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.train import lora

QUIET = Console(file=io.StringIO())
WORDS = ["apple", "river", "stone", "cloud", "green", "table", "light", "paper"]


@pytest.fixture(scope="session")
def zebras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty pairs; the chosen answer holds a zebra, and is as long as the other."""
    draw = random.Random(0)
    rows = []
    for number in range(80):
        bad, good = ([draw.choice(WORDS) for _ in range(3)] for _ in range(2))
        good[draw.randrange(3)] = "zebra"
        differs = ["safety", "tone"][number % 2]
        rows.append(
            {"prompt": f"say {number}", "chosen": " ".join(good), "rejected": " ".join(bad), "differs": differs}
        )
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def config_for(data: Path, base: Path, out: Path, steps: int = 24, **settings: Any) -> RewardRun:
    tree = {
        "data": {"files": [str(data)], "eval_share": 0.25},
        "base": {"model": str(base)},
        "schedule": {"max_steps": steps, "learning_rate": 0.015, "max_tokens": 128},
        "watch": {"trackers": []},
        "out": str(out),
    }
    return RewardRun.model_validate({**tree, **settings})


@pytest.fixture(scope="session")
def scorer(tmp_path_factory: pytest.TempPathFactory, zebras: Path, tiny_base: Path) -> RunFolder:
    """A finished reward run that knows zebras."""
    out = tmp_path_factory.mktemp("scorer") / "run"
    return reward.run(config_for(zebras, tiny_base, out), console=QUIET)


def test_it_learns_what_is_preferred(scorer: RunFolder) -> None:
    told = scorer.evaluation()
    before, after = told["before"], told["after"]
    assert after["accuracy"] > 0.9 > before["accuracy"]
    assert after["length_only"] == 0.5
    assert after["num_pairs"] == len(after["margins"]) == sum(one["num_pairs"] for one in after["bins"]) == 20
    assert set(after["differs"]) == {"safety", "tone"}
    assert told["answers_after"] == []
    metrics = scorer.manifest()["metrics"]
    assert metrics["accuracy_after"] == after["accuracy"]
    assert metrics["reloaded_loss"] == pytest.approx(after["loss"], abs=1e-3)
    assert (scorer.path / "calibration.png").stat().st_size > 5_000
    line = json.loads(scorer.log_file.read_text().splitlines()[-1])
    assert line["accuracy"] > 0.9
    assert line["grad_norm/other"] > 0  # the head's


@pytest.mark.parametrize("place", ["", "adapter"])
def test_what_was_saved_scores_alike(scorer: RunFolder, zebras: Path, place: str) -> None:
    model = load_scalar(scorer.path / place)
    config = config_for(zebras, Path(), Path())
    data = encode_pairs(prepare(config.data, Preference), model.tokenizer, config)
    found = reward.score_pairs(model, data.held_out)
    after = calibration.PairScores.from_json(scorer.evaluation()["after"])
    assert found.loss == pytest.approx(after.loss, abs=1e-4)
    assert found.margins == pytest.approx(after.margins, abs=1e-3)


def test_it_is_not_taken_for_a_model_that_answers(scorer: RunFolder, zebras: Path, tmp_path: Path) -> None:
    wanted = "is a reward model: it scores answers"
    for place in (scorer.path, scorer.adapter):
        for use in (load_with_adapter, find_trained):
            with pytest.raises(ModelError, match=wanted) as told:
                use(place)
            assert "dsr1-tune score" in told.value.hint
    with pytest.raises(ModelError, match=wanted):
        reward.run(config_for(zebras, scorer.path, tmp_path / "run"), console=QUIET)
    row = tmp_path / "rows.json"
    row.write_text(json.dumps([{"question": "what is this?", "answer": "it is that"}]))
    config = LoraRun.model_validate({"data": {"files": [str(row)]}, "base": {"model": str(scorer.path)}})
    with pytest.raises(ModelError, match=wanted):
        lora.run(config, console=QUIET)
    with pytest.raises(RunError, match="this run is finished") as finished:
        reward.run(RewardRun(), resume=scorer.path, console=QUIET)
    assert "dsr1-tune score" in finished.value.hint


def test_a_folder_that_does_not_fit_is_refused(scorer: RunFolder, tmp_path: Path, tiny_base: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(scorer.adapter, folder)
    (folder / "reward_head.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"reward_head\.safetensors: cannot be read"):
        load_scalar(folder)
    told = json.loads((folder / "reward_config.json").read_text())
    (folder / "reward_config.json").write_text(json.dumps({**told, "chat_template_sha256": "another"}))
    with pytest.raises(ModelError, match="was trained over another chat template"):
        load_scalar(folder)
    (folder / "reward_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"reward_config\.json: has no 'base'"):
        load_scalar(folder)


def test_it_writes_no_samples() -> None:
    with pytest.raises(ConfigError, match="samples"):
        load_config(RewardRun, None, {}, ["samples=2"])


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], Any]], None]:
    """stopped(3, go) runs go() and presses Ctrl-C in the middle of the third step."""

    def stop(step: int, go: Callable[[], Any]) -> None:
        train = reward.RewardTrainer.training_step

        def disturbed(self: Any, *given: Any) -> Any:
            if self.state.global_step == step - 1:
                os.kill(os.getpid(), signal.SIGINT)
            return train(self, *given)

        with monkeypatch.context() as patch:
            patch.setattr(reward.RewardTrainer, "training_step", disturbed)
            with pytest.raises(KeyboardInterrupt):
                go()

    return stop


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    zebras: Path, tiny_base: Path, tmp_path: Path, stopped: Callable[..., None]
) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(zebras.read_text().splitlines()[:16]))
    # 12 pairs to train on: a second epoch begins behind the checkpoint, with its rows in another order.
    schedule = {"max_steps": 5, "learning_rate": 0.01, "batch_size": 4, "gradient_checkpointing": False}
    unbroken = reward.run(config_for(few, tiny_base, tmp_path / "one", schedule=schedule), console=QUIET)
    broken = config_for(few, tiny_base, tmp_path / "two", schedule=schedule)
    stopped(2, lambda: reward.run(broken, console=QUIET))
    with pytest.raises(ModelError, match=r"is a reward run that is not finished \(interrupted\)"):
        load_scalar(tmp_path / "two")
    resumed = reward.run(RewardRun(), resume=tmp_path / "two", console=QUIET)
    for name in ("reward_head.safetensors", "adapter_model.safetensors"):
        one, two = (load_file(folder.adapter / name) for folder in (unbroken, resumed))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    losses = [[json.loads(line)["loss"] for line in f.log_file.read_text().splitlines()] for f in (unbroken, resumed)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 5


@pytest.mark.slow
@pytest.mark.parametrize("method", ["qlora", "full"])
def test_other_methods_learn_too(method: str, zebras: Path, tiny_base: Path, tmp_path: Path) -> None:
    told = io.StringIO()
    config = config_for(zebras, tiny_base, tmp_path / "run", steps=24, method=method)
    run = reward.run(config, console=Console(file=told, width=200))
    assert run.evaluation()["after"]["accuracy"] > 0.9
    assert ("What is in 4 bits" in told.getvalue()) == (method == "qlora")
    found = score_conversations(load_scalar(run.path), [([Message("user", "say 3")], "a zebra river")])
    assert len(found) == 1
    with pytest.raises(ModelError, match="is a reward model"):
        load_with_adapter(run.path)
    if method == "full":
        with pytest.raises(ModelError, match="is a reward model"):
            load_with_adapter(run.model)
        # Only what is trained: a base in 4 bits, or the whole model, would be many times as large.
    (checkpoint,) = run.checkpoints.glob("checkpoint-*/model.safetensors")
    weights = load_file(checkpoint)
    assert "head.weight" in weights
    assert not any(name.endswith("lm_head.weight") for name in weights)
    assert method == "full" or all(".lora_" in name or name == "head.weight" for name in weights)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["keep", "continue"])
def test_it_begins_with_a_trained_adapter(adapter: str, zebras: Path, tiny_base: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"question": f"what is {n}?", "answer": f"it is number {n}"} for n in range(12)]))
    first = LoraRun.model_validate(
        {
            "data": {"files": [str(rows)]},
            "base": {"model": str(tiny_base)},
            "schedule": {"max_steps": 2, "learning_rate": 0.02},
            "samples": 0,
            "out": str(tmp_path / "sft"),
        }
    )
    begun = lora.run(first, console=QUIET)
    config = config_for(zebras, begun.path, tmp_path / "run", start={"adapter": adapter})
    run = reward.run(config, console=QUIET)
    assert run.evaluation()["after"]["accuracy"] > 0.75
    assert load_scalar(run.path).facts.base == str(tiny_base)


# --- score ------------------------------------------------------------------------------------------------------------


def scored(scorer: RunFolder, file: Path, out: Path, **settings: Any) -> tuple[list[dict[str, Any]], str]:
    told = Console(file=io.StringIO(), width=200)
    score.run(scorer.path, file, out, Score(**settings), console=told)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    return lines, told.file.getvalue()  # type: ignore[attr-defined]


def written(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_pairs_are_scored(scorer: RunFolder, zebras: Path, tmp_path: Path) -> None:
    lines, told = scored(scorer, zebras, tmp_path / "out.jsonl")
    assert len(lines) == 80
    assert (lines[3]["line"], lines[3]["question"], lines[3]["kind"]) == (4, "say 3", "preference")
    assert all(line["margin"] == pytest.approx(line["chosen_score"] - line["rejected_score"]) for line in lines)
    right = sum(line["margin"] > 0 for line in lines) / 80
    assert right > 0.9
    assert f"80 pairs: accuracy {right:.1%} (the longer answer: 50.0%)" in told
    assert "safety:" in told
    _, told = scored(scorer, zebras, tmp_path / "ties.jsonl", margin=1e6)
    assert "accuracy 50.0%" in told


def test_records_and_feedback_are_scored(scorer: RunFolder, tmp_path: Path) -> None:
    good, bad = "river zebra stone", "river light stone"
    records = [{"question": "say 1", "answer": good}, {"question": "say 1", "answer": bad}]
    lines, told = scored(scorer, written(tmp_path / "records.jsonl", *records), tmp_path / "records.out")
    assert lines[0]["score"] > lines[1]["score"]
    assert (lines[0]["answer"], lines[0]["kind"]) == (good, "record")
    assert "answers" in told
    labelled = [
        {"prompt": "say 1", "completion": good, "label": True},
        {"prompt": "say 1", "completion": bad, "label": False},
    ]
    marked, told = scored(scorer, written(tmp_path / "feedback.jsonl", *labelled), tmp_path / "feedback.out")
    assert [line["kind"] for line in marked] == ["feedback", "feedback"]
    assert [line["label"] for line in marked] == [True, False]
    assert [line["score"] for line in marked] == pytest.approx([line["score"] for line in lines], abs=1e-5)
    assert "labelled good" in told
    prompt = [Message("user", "say 1")]
    found = score_conversations(load_scalar(scorer.path), [(prompt, good), (prompt, bad), (prompt, " ")])
    assert found[:2] == pytest.approx([line["score"] for line in lines], abs=1e-5)
    assert isinstance(found[2], NoScore) and "shown nothing of the answer" in str(found[2])


def test_rows_that_cannot_be_scored_are_listed(scorer: RunFolder, tmp_path: Path) -> None:
    rows = [
        {"question": "say 1", "answer": "river zebra stone"},
        {"question": "say 2", "answer": "stone " * 100},
        {"question": "say 3"},
        {"number": 3},
    ]
    file = written(tmp_path / "rows.jsonl", *rows)
    lines, told = scored(scorer, file, tmp_path / "out.jsonl", max_tokens=100)
    assert [line["line"] for line in lines] == [1, 2, 3, 4]
    assert lines[0]["score"] is not None
    assert lines[1]["problem"]["code"] == "too_long"
    assert lines[1]["score"] is None
    assert [line["kind"] for line in lines[2:]] == ["unreadable", "unreadable"]
    assert "3 of 4 rows have no score:" in told
    assert f"{file}:2: " in told


def test_an_answer_whose_score_is_no_number_does_not_lose_the_others(scorer: RunFolder, tmp_path: Path) -> None:
    model = load_scalar(scorer.path)
    zebra, light = (set(model.tokenizer(f"a {word} river say 12")["input_ids"]) for word in ("zebra", "light stone"))
    with torch.no_grad():
        model.get_input_embeddings().weight[list(zebra - light)] = float("nan")
    pairs = [
        {"prompt": "say 1", "chosen": "a zebra river", "rejected": "a light river"},
        {"prompt": "say 2", "chosen": "a stone river", "rejected": "a light river"},
    ]
    rows = list(read([written(tmp_path / "pairs.jsonl", *pairs)]))
    told = [row.as_json() for row in score.score_rows(model, rows, Score(), Narrator(QUIET)).rows]
    assert told[0]["chosen_score"] is None and told[0]["rejected_score"] is not None and told[0]["margin"] is None
    assert told[0]["problem"]["code"] == "no_score" and "chosen: " in told[0]["problem"]["detail"]
    assert told[1]["margin"] is not None and "problem" not in told[1]
    found = score_conversations(model, [([Message("user", "say 1")], "a zebra river")])
    assert isinstance(found[0], NoScore) and "no finite score" in str(found[0])
    records = list(read([written(tmp_path / "records.jsonl", {"question": "say 1", "answer": "a zebra river"})]))
    with pytest.raises(ModelError, match="no answer a finite score"):
        score.score_rows(model, records, Score(), Narrator(QUIET))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "say 1"}\n{"prompt": "say 2"}', "holds 2 prompts and no answer to score"),
        ('[{"question": "a", "answer": "b"}, {"quest', "pairs.json:1: "),
        ('{"question": "say 1", "answer": "' + "stone " * 400 + '"}', "no answer can be scored"),
    ],
)
def test_a_file_without_a_score_leaves_nothing(scorer: RunFolder, tmp_path: Path, text: str, said: str) -> None:
    file, out = tmp_path / "pairs.json", tmp_path / "out.jsonl"
    file.write_text(text)
    with pytest.raises(DataError, match=said):
        score.run(scorer.path, file, out, Score(), console=QUIET)
    assert not out.exists()


def test_nothing_is_overwritten(scorer: RunFolder, zebras: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(RunError, match="is already there"):
        score.run(scorer.path, zebras, out, Score(), console=QUIET)
    assert out.read_text() == "mine"


def test_a_model_of_another_kind_scores_nothing(tiny_base: Path, zebras: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no reward model"):
        score.run(tiny_base, zebras, tmp_path / "out.jsonl", Score(), console=QUIET)


# --- calibration ------------------------------------------------------------------------------------------------------


def test_the_numbers_are_these() -> None:
    # Margins log 4 (sure of 0.8) three times right and once wrong, and one tie.
    sure = 1.3862943611198906
    chosen, rejected = [sure, 0.0, 0.0, 0.0, 2.0], [0.0, -sure, -sure, sure, 2.0]
    lengths = [(3, 2), (2, 3), (2, 2), (4, 3), (4, 3)]
    found = calibration.compare(chosen, rejected, lengths, ["a", "a", "b", "b", None])
    assert found.accuracy == 0.7
    assert found.margin == pytest.approx(2 * sure / 5)
    assert found.length_only == 0.7
    losses = [-torch.nn.functional.logsigmoid(torch.tensor(c - r)) for c, r in zip(chosen, rejected, strict=True)]
    assert found.loss == pytest.approx(float(sum(losses)) / 5)
    tie, likely = found.bins
    assert (tie.begin, tie.num_pairs, tie.sure, tie.right) == (0.5, 1, 0.5, 0.5)
    assert (likely.num_pairs, likely.right) == (4, 0.75)
    assert likely.sure == pytest.approx(0.8)
    assert found.calibration_error == pytest.approx(4 / 5 * 0.05)
    assert {name: bucket.accuracy for name, bucket in found.differs.items()} == {"a": 1.0, "b": 0.5}
    assert calibration.PairScores.from_json(json.loads(json.dumps(found.as_json()))) == found


def test_huge_margins_are_numbers_too() -> None:
    found = calibration.compare([5000.0, -5000.0], [0.0, 0.0], [(1, 2), (1, 2)], [None, None])
    assert (found.loss, found.accuracy) == (2500.0, 0.5)
