"""PPO reaches a known optimum: a tiny mixture of experts with random weights learns what it is asked to say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dsr1_tune.align import ppo
from dsr1_tune.config import PpoRun
from dsr1_tune.runs.folder import RunFolder
from tests.conftest import save_tiny

NUM_TOKENS = 8
TASK = f'''
def digits(answer):
    """Share of the {NUM_TOKENS} tokens that are digits: 10 words of 258."""
    return sum(character in "0123456789" for character in answer) / {NUM_TOKENS}


def one_letter(answer):
    """Share of the {NUM_TOKENS} tokens that are an x: one word of 258."""
    return answer.count("x") / {NUM_TOKENS}
'''


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A tiny DeepSeek-V3 whose states are large enough to make any word all but certain."""
    from torch.nn.init import ones_
    from transformers import AutoModelForCausalLM

    folder = save_tiny(tmp_path_factory.mktemp("learns") / "model", tiny_tokenizer, "deepseek_v3")
    model = AutoModelForCausalLM.from_pretrained(folder)
    for name, weight in model.named_parameters():
        if "norm" in name:
            ones_(weight)
    model.save_pretrained(folder)
    return folder


def _learn(base: Path, folder: Path, console: Console, task: str, seed: int, **ppo_settings: Any) -> RunFolder:
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": str(n)}) + "\n" for n in range(20)))
    (folder / "task.py").write_text(TASK)
    rewards = folder / "rewards.yaml"
    rewards.write_text(f"layers: [{{name: task, components: [{{type: function, call: 'task.py:{task}'}}]}}]")
    config = PpoRun.model_validate(
        {
            "data": {"files": [folder / "prompts.jsonl"]},
            "base": {"model": str(base)},
            "rewards": rewards,
            "rollout": {"max_new_tokens": NUM_TOKENS, "batch_size": 64},
            "ppo": {"answers": 32, "epochs": 4, "minibatches": 2, "missing_eos": 0, "kl": 0.001, **ppo_settings},
            "schedule": {
                "max_steps": 40,
                "learning_rate": 0.005,
                "batch_size": 16,
                "gradient_checkpointing": False,
                "seed": seed,
            },
            "watch": {"trackers": []},
            "samples": 0,
            "out": folder / "run",
        }
    )
    return ppo.run(config, console=console)
