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


def _learn(base: Path, folder: Path, console: Console, seed: int, **ppo_settings: Any) -> RunFolder:
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": str(n)}) + "\n" for n in range(20)))
    (folder / "task.py").write_text(TASK)
    rewards = folder / "rewards.yaml"
    rewards.write_text("layers: [{name: task, components: [{type: function, call: 'task.py:digits'}]}]")
    config = PpoRun.model_validate(
        {
            "data": {"files": [folder / "prompts.jsonl"]},
            "base": {"model": str(base)},
            "rewards": rewards,
            "rollout": {"max_new_tokens": NUM_TOKENS, "batch_size": 64},
            # The optimum is tens of nats away, which the usual KL penalty would not allow.
            "ppo": {"answers": 64, "missing_eos": 0, "kl": 0.001, "entropy": 0.005, **ppo_settings},
            "schedule": {
                "max_steps": 80,
                "learning_rate": 0.004,
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


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_ppo_reaches_the_known_optimum(base: Path, tmp_path: Path, quiet: Console, seed: int) -> None:
    """From less than a tenth of the possible reward to nearly all of it, of answers drawn and of the likeliest."""
    _is_learned(_learn(base, tmp_path, quiet, seed))


@pytest.mark.slow
def test_ppo_reaches_the_optimum_with_its_own_value_trunk(base: Path, tmp_path: Path, quiet: Console) -> None:
    _is_learned(_learn(base, tmp_path, quiet, 0, value="own"))


def _is_learned(folder: RunFolder) -> None:
    """The reward is 1 at best."""
    rewards = _rewards(folder)
    assert sum(rewards[:2]) / 2 < 0.10
    assert sum(rewards[-3:]) / 3 >= 0.95
    assert folder.evaluation()["after"]["reward"] >= 0.95


def _rewards(folder: RunFolder) -> list[float]:
    """Mean reward of the answers that were drawn, update by update."""
    return [json.loads(line)["reward/mean"] for line in folder.log_file.read_text().splitlines()]
