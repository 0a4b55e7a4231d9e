"""GRPO: runs that are whole, that go on as if never broken off, and that learn; what TRL is not left to do."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from safetensors.torch import load_file

from dsr1_tune.align import grpo
from dsr1_tune.align.online.grpo_trainer import GrpoTrainer
from dsr1_tune.config import GrpoRun
from dsr1_tune.errors import ModelError, RunError
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.trainer.callbacks import read_log
from tests.conftest import save_tiny
from tests.lora_runs import in_asyncio

CODE = """\
def letters(answer):
    return sum(character.isalpha() for character in answer) / max(len(answer), 1)

def digits(answer):
    return sum(character in "0123456789" for character in answer) / 6

def broken(answer):
    raise ValueError("no idea")
"""
REWARDS = """\
layers:
  - name: form
    gate: none
    components:
      - {type: length, max_tokens: 4}
  - name: task
    weight: 2
    components:
      - {type: function, name: letters, call: "own.py:letters"}
"""


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts of different lengths, and rewards: letters are good."""
    folder = tmp_path_factory.mktemp("grpo")
    rows = [{"prompt": f"say it {'again ' * (n % 4)}{n}"} for n in range(11)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.py").write_text(CODE)
    (folder / "rewards.yaml").write_text(REWARDS)
    (folder / "broken.yaml").write_text(REWARDS.replace("own.py:letters", "own.py:broken"))
    return folder


@pytest.fixture(scope="module")
def asked(material: Path, tiny_base: Path) -> Callable[..., GrpoRun]:
    """asked("name", grpo={"num_generations": 2}): what a short run is asked to do."""

    def config(name: str, **changes: Any) -> GrpoRun:
        tree: dict[str, Any] = {
            "data": {"files": [str(material / "prompts.jsonl")], "eval_share": 0.2},
            "base": {"model": str(tiny_base)},
            "rewards": str(material / "rewards.yaml"),
            "rollout": {"max_new_tokens": 5, "batch_size": 6},
            "schedule": {
                "max_steps": 4, "learning_rate": 0.01, "batch_size": 4, "gradient_accumulation_steps": 2,
                "max_tokens": 128,
                "gradient_checkpointing": False, "warmup_share": 0,
            },
            "grpo": {"num_generations": 4},
            "watch": {"trackers": []},
            "samples": 1,
            "sample_tokens": 4,
            "out": str(material / name),
        }  # fmt: skip
        for key, value in changes.items():
            tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
        return GrpoRun.model_validate(tree)

    return config


def begin(config: GrpoRun, resume: Path | None = None) -> RunFolder:
    return grpo.run(config, resume, Console(file=io.StringIO(), width=200))


@pytest.fixture(scope="module")
def whole(asked: Callable[..., GrpoRun]) -> Iterator[SimpleNamespace]:
    """A run over all that has a state: two updates on the same answers, a reference, and accumulated gradients."""
    seen = SimpleNamespace()
    close = GrpoTrainer.close

    def look(trainer: GrpoTrainer) -> None:
        model: Any = trainer.model
        seen.adapters = list(model.peft_config)
        seen.ids = torch.arange(2, 14).view(2, 6)
        asks = (seen.ids, torch.ones_like(seen.ids), 5)
        with torch.no_grad():
            seen.now = trainer._get_per_token_logps_and_entropies(model, *asks)[0]
            seen.reference = trainer._get_per_token_logps_and_entropies(trainer.ref_model, *asks)[0]
            with model.disable_adapter():
                seen.off = trainer._get_per_token_logps_and_entropies(model, *asks)[0]
        close(trainer)
        seen.is_clean = "forward" not in vars(model.get_base_model())

    patch = pytest.MonkeyPatch()
    patch.setattr(GrpoTrainer, "close", look)
    seen.folder = begin(asked("whole", grpo={"num_generations": 4, "num_iterations": 2, "beta": 0.05, "epsilon": 0.1}))
    patch.undo()
    yield seen


def test_grpo_runs_in_a_thread(asked: Callable[..., GrpoRun]) -> None:
    folder = in_asyncio(lambda: begin(asked("threaded", schedule={"max_steps": 2})))
    assert folder.manifest()["status"] == "finished"


def test_grpo_logs_rewards_by_layer_and_component(whole: SimpleNamespace) -> None:
    first, again = read_log(whole.folder)[:2]
    names = {"reward/mean", "reward/std", "reward/form", "reward/form/length", "reward/task", "reward/task/letters"}
    names |= {"policy/kl", "policy/entropy", "policy/clip_fraction", "answer/tokens", "answer/ended", "reward/errors"}
    assert names <= set(first)
    assert not any(name.startswith(("rewards/", "completions/")) for name in first)
    assert first["reward/mean"] == pytest.approx(first["reward/form"] + 2 * first["reward/task"])
    assert "reward/mean" not in again and again["num_tokens"] == first["num_tokens"] > 0
    told = whole.folder.evaluation()
    assert set(told["after"]["components"]) == {"form/length", "task/letters"} and told["answers_after"]
    assert whole.folder.manifest()["metrics"]["reward_errors"] == {}


def test_grpo_reference_is_the_model_as_it_began_and_no_copy(whole: SimpleNamespace) -> None:
    assert whole.adapters == ["default"] and whole.is_clean
    assert torch.allclose(whole.reference, whole.off, atol=1e-5)
    assert not torch.allclose(whole.now, whole.off, atol=1e-3)
    assert read_log(whole.folder)[0]["policy/kl"] == 0 < read_log(whole.folder)[-1]["policy/kl"]


def computed(line: dict[str, Any]) -> dict[str, Any]:
    """A line of the log without clocks, memory, and the experts' window, which begins anew."""
    told = ("seconds", "tokens_per_second", "memory/", "experts/")
    return {name: value for name, value in line.items() if not name.startswith(told)}


@pytest.mark.parametrize("step", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_grpo_resumed_run_ends_as_an_unbroken_one(
    whole: SimpleNamespace, asked: Callable[..., GrpoRun], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """After the first update the answers of the checkpoint are used again, after the second new ones are drawn."""
    train = GrpoTrainer.training_step

    def disturbed(self: Any, *given: Any) -> Any:
        if self._step == 2 * (step - 1):
            os.kill(os.getpid(), signal.SIGINT)
        return train(self, *given)

    name = f"broken-{step}"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(GrpoTrainer, "training_step", disturbed)
        begin(asked(name, grpo={"num_generations": 4, "num_iterations": 2, "beta": 0.05, "epsilon": 0.1}))
    broken = RunFolder(whole.folder.path.with_name(name))
    assert read_log(broken)[-1]["step"] == step
    begin(GrpoRun(), broken.path)
    for ours, theirs in zip(read_log(broken), read_log(whole.folder), strict=True):
        assert computed(ours) == computed(theirs)
    ours, theirs = (load_file(one.adapter / "adapter_model.safetensors") for one in (broken, whole.folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_grpo_learns_nothing_from_failed_rewards_and_says_so(asked: Callable[..., GrpoRun], material: Path) -> None:
    only_broken = material / "only.yaml"
    only_broken.write_text('layers: [{name: task, components: [{type: function, call: "own.py:broken"}]}]')
    config = asked("zero", rewards=str(only_broken), schedule={"max_steps": 2}, samples=0)
    with pytest.raises(ModelError, match="training has changed nothing") as caught:
        begin(config)
    assert caught.value.hint.startswith("no step had a gradient; rewards that fail")
    folder = RunFolder(material / "zero")
    lines, told = read_log(folder), folder.manifest()
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0]["reward/mean"] == 0 and lines[0]["reward/errors"] == 1 and "grad_norm" not in lines[0]
    assert told["status"] == "failed" and not told.get("alarms") and not folder.adapter.exists()


def test_grpo_can_end_the_run_at_a_failed_reward(asked: Callable[..., GrpoRun], material: Path) -> None:
    with pytest.raises(RunError, match="no idea"):
        begin(asked("stop", rewards=str(material / "broken.yaml"), on_reward_error="stop"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"grpo": {"num_generations": 3}}, "does not divide"),
        ({"grpo": {"epsilon": 0.3}}, "num_iterations=1"),
        ({"schedule": {"neftune_noise_alpha": 5}}, "neftune_noise_alpha"),
        ({"adapter": {"dropout": 0.1}}, "dropout"),
    ],
)
def test_grpo_refuses_settings_that_cannot_work(asked: Callable[..., GrpoRun], changes: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        asked("refused", **changes)


@pytest.fixture(scope="module")
def able(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A tiny DeepSeek-V3 whose states are large enough to make any word all but certain."""
    from transformers import AutoModelForCausalLM

    folder = save_tiny(tmp_path_factory.mktemp("able") / "model", tiny_tokenizer, "deepseek_v3")
    model = AutoModelForCausalLM.from_pretrained(folder)
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.ones_(weight)
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_grpo_learns_what_is_rewarded(asked: Callable[..., GrpoRun], material: Path, able: Path) -> None:
    """From a tenth of the possible reward to nearly all of it, on prompts that it never trained on."""
    rewards = material / "digits.yaml"
    rewards.write_text("layers: [{name: task, components: [{type: function, call: 'own.py:digits'}]}]")
    folder = begin(
        asked(
            "learns",
            base={"model": str(able)},
            rewards=str(rewards),
            schedule={"max_steps": 160, "learning_rate": 0.003, "batch_size": 64, "gradient_accumulation_steps": 1},
            rollout={"max_new_tokens": 6, "batch_size": 64},
            grpo={"num_generations": 16, "num_iterations": 2},
            samples=0,
        )
    )
    drawn = [line["reward/mean"] for line in read_log(folder) if "reward/mean" in line]
    assert sum(drawn[:2]) / 2 < 0.1 and sum(drawn[-3:]) / 3 > 0.9
    assert folder.evaluation()["after"]["reward"] > 0.9
