"""`score`: answers of every kind of row scored by a trained reward model."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from dsr1_tune.align import score
from dsr1_tune.align.rewards.component import NoScore
from dsr1_tune.align.rewards.scoring import score_conversations
from dsr1_tune.config import Score
from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Message
from dsr1_tune.errors import DataError, ModelError, RunError
from dsr1_tune.models.trained.reward_model import load_scalar
from dsr1_tune.runs.console import Narrator
from dsr1_tune.runs.folder import RunFolder
from tests.align.conftest import QUIET


def scored(scorer: RunFolder, file: Path, out: Path, **settings: Any) -> tuple[list[dict[str, Any]], str]:
    told = Console(file=io.StringIO(), width=200)
    score.run(scorer.path, file, out, Score(**settings), console=told)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    return lines, told.file.getvalue()  # type: ignore[attr-defined]


def written(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_score_of_pairs(scorer: RunFolder, zebras: Path, tmp_path: Path) -> None:
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


def test_score_of_records_and_feedback(scorer: RunFolder, tmp_path: Path) -> None:
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


def test_score_lists_rows_that_cannot_be_scored(scorer: RunFolder, tmp_path: Path) -> None:
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
    assert "without a score: 3 of 4 rows" in told
    assert f"{file}:2: " in told


def test_score_that_is_no_number_does_not_lose_the_others(scorer: RunFolder, tmp_path: Path) -> None:
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
def test_score_of_a_file_without_answers_writes_nothing(
    scorer: RunFolder, tmp_path: Path, text: str, said: str
) -> None:
    file, out = tmp_path / "pairs.json", tmp_path / "out.jsonl"
    file.write_text(text)
    with pytest.raises(DataError, match=said):
        score.run(scorer.path, file, out, Score(), console=QUIET)
    assert not out.exists()


def test_score_overwrites_nothing(scorer: RunFolder, zebras: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(RunError, match="is already there"):
        score.run(scorer.path, zebras, out, Score(), console=QUIET)
    assert out.read_text() == "mine"


def test_score_refuses_a_model_that_is_no_reward_model(tiny_base: Path, zebras: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no reward model"):
        score.run(tiny_base, zebras, tmp_path / "out.jsonl", Score(), console=QUIET)
