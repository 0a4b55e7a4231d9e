"""Prompts encoded and split for learning from rewards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dsr1_tune.align.online.session import encode_prompts
from dsr1_tune.data.prepare import prepare
from dsr1_tune.data.record import Prompt
from tests.align.online.conftest import PpoConfig
from tests.conftest import TinyModel


def test_encode_prompts_keeps_rows_of_one_prompt_on_one_side(
    tiny_model: TinyModel, ppo_run: PpoConfig, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    file = tmp_path / "twice.jsonl"
    rows = [{"prompt": f"say {n % 6}", "ground_truth": str(n)} for n in range(24)]
    file.write_text("\n".join(map(json.dumps, rows)))
    config = ppo_run(tiny_model("qwen3_moe"), data={"files": [str(file)], "eval_share": 0.3})
    data = encode_prompts(prepare(config.data, Prompt), tiny_tokenizer, config)
    learned, held_out = ({one.input_ids for one in side} for side in (data.train, data.held_out))
    assert len(data.train) + len(data.held_out) == 24
    assert held_out and learned and not learned & held_out
