"""What becomes of every row, and the files that say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsr1_tune.config import Data


def test_cleaned_preferences_and_prompts_come_out_as_they_are(
    tmp_path: Path, rows: Any, write_lines: Any, run: Any
) -> None:
    from dsr1_tune.data.prepare import examine

    some = [{"prompt": r["instruction"], "chosen": r["output"], "rejected": r["output"][::-1]} for r in rows(20)]
    folder, facts = run(tmp_path, write_lines(tmp_path / "p.jsonl", some), eval_share=0.0)
    assert facts["kinds"] == {"preference": 20}
    again = examine(Data(files=(folder / "train.jsonl",)))
    assert [(r.prompt[0].content, r.chosen.content, r.rejected.content) for r in again.rows] == [
        (s["prompt"], s["chosen"], s["rejected"]) for s in some
    ]
    prompts = [{"prompt": r["instruction"], "ground_truth": "42"} for r in rows(20)]
    folder, facts = run(tmp_path, write_lines(tmp_path / "q.jsonl", prompts), name="q", eval_share=0.0)
    assert facts["kinds"] == {"prompt": 20}
    assert [row.answer for row in examine(Data(files=(folder / "train.jsonl",))).rows] == ["42"] * 20
