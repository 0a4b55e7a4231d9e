"""GRPO: runs that are whole, that go on as if never broken off, and that learn; what TRL is not left to do."""

from __future__ import annotations

import io
import json
import os
import signal
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from safetensors.torch import load_file
from trl import GRPOTrainer

from dsr1_tune.align import grpo
from dsr1_tune.align.online.grpo_trainer import GrpoTrainer
from dsr1_tune.align.online.session import RolloutSession
from dsr1_tune.align.rewards.layered import RewardResult
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

def moody(answer):
    number = sum(map(ord, answer))
    if number % 3:
        return letters(answer)
    return broken(answer) if number % 9 == 0 else None if number % 9 == 3 else float("nan")
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
    names.add("reward/failed")
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


def test_grpo_learns_nothing_where_all_answers_are_alike(asked: Callable[..., GrpoRun], material: Path) -> None:
    alike = material / "alike.yaml"
    alike.write_text("layers: [{name: form, components: [{type: length, max_chars: 10000}]}]")
    with pytest.raises(ModelError, match="training has changed nothing"):
        begin(asked("alike", rewards=str(alike), schedule={"max_steps": 1}, samples=0))
    folder = RunFolder(material / "alike")
    line = read_log(folder)[0]
    assert line["reward/mean"] == 1 and line["reward/errors"] == line["reward/failed"] == 0 and "grad_norm" not in line
    assert folder.manifest()["status"] == "failed" and not folder.adapter.exists()


def compared(totals: list[float | None]) -> list[float | None]:
    """The advantages of a group by hand; None for an answer that takes no part."""
    known = [total for total in totals if total is not None]
    if len(known) < 2:
        return [None] * len(totals)
    mean, deviation = statistics.mean(known), statistics.stdev(known)
    return [None if total is None else (total - mean) / (deviation + 1e-4) for total in totals]


@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
def test_grpo_leaves_answers_without_a_score_out(
    asked: Callable[..., GrpoRun], material: Path, monkeypatch: pytest.MonkeyPatch, loss_type: str
) -> None:
    """Baseline, deviation, tokens and logged rewards are of the answers that were scored, by hand."""
    moody = material / "moody.yaml"
    moody.write_text(REWARDS.replace("own.py:letters", "own.py:moody"))
    scored: list[list[RewardResult]] = []
    outputs: list[dict[str, torch.Tensor]] = []
    score, complete = RolloutSession.score, GrpoTrainer._generate_and_score_completions
    ours, theirs = GrpoTrainer._compute_loss, GRPOTrainer._compute_loss

    def noted_score(self: Any, examples: Any, answers: Any, step: int | None = None) -> list[RewardResult]:
        results = score(self, examples, answers, step)
        scored.extend([results] if step else [])
        return results

    def noted_output(self: Any, inputs: Any) -> dict[str, torch.Tensor]:
        outputs.append(complete(self, inputs))
        return outputs[-1]

    def checked_loss(self: Any, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        loss = ours(self, model, inputs)
        if "tool_mask" in inputs:
            out_B1 = (inputs["tool_mask"].sum(1) == 0).unsqueeze(1)
            changed = inputs | {
                "advantages": inputs["advantages"] + 9.0 * out_B1.squeeze(1),
                "ref_per_token_logps": inputs["ref_per_token_logps"] - 2.0 * out_B1,
            }
            assert torch.equal(ours(self, model, changed), loss), "what is left out has no part in the loss"
            share = inputs["share_learned"] if loss_type == "grpo" else 1.0
            torch.testing.assert_close(loss, theirs(self, model, inputs) / share)
        return loss

    monkeypatch.setattr(RolloutSession, "score", noted_score)
    monkeypatch.setattr(GrpoTrainer, "_generate_and_score_completions", noted_output)
    monkeypatch.setattr(GrpoTrainer, "_compute_loss", checked_loss)
    own = {"num_generations": 4, "beta": 0.05, "loss_type": loss_type}
    folder = begin(asked(f"moody-{loss_type}", rewards=str(moody), grpo=own, samples=0))
    lines = read_log(folder)
    assert len(scored) == len(outputs) == len(lines) == 4
    num_failed = []
    for results, output, line in zip(scored, outputs, lines, strict=True):
        totals = [result.total if not result.errors else None for result in results]
        known = [total for total in totals if total is not None]
        wanted = [one for first in range(0, len(totals), 4) for one in compared(totals[first : first + 4])]
        assert output["advantages"].tolist() == pytest.approx([one or 0.0 for one in wanted], abs=1e-4)
        mask_BT, counts = output["completion_mask"], [one is not None for one in wanted]
        assert output["num_items_in_batch"] == mask_BT[counts].sum()
        if None in totals:
            assert output["tool_mask"].any(1).tolist() == counts
            assert float(output["share_learned"]) == sum(counts) / len(counts)
        assert line["reward/mean"] == pytest.approx(statistics.mean(known))
        assert line["reward/std"] == pytest.approx(statistics.stdev(known))
        assert line["reward/failed"] == totals.count(None) and line["reward/form"] + 2 * line["reward/task"] > 0
        num_failed.append(totals.count(None))
    assert 0 < sum(num_failed) < 8 * len(num_failed)
    errors = [json.loads(line) for line in (folder.path / "reward_errors.jsonl").read_text().splitlines()]
    assert len([line for line in errors if "step" in line]) == sum(num_failed)


def test_grpo_ends_where_no_answer_can_be_scored_and_goes_on_when_it_can(
    asked: Callable[..., GrpoRun], material: Path
) -> None:
    """Also where another layer gives every answer its score: a total without the task says nothing."""
    mended = material / "mended.yaml"
    mended.write_text(REWARDS.replace("own.py:letters", "own.py:broken"))
    config = asked("mended", rewards=str(mended), on_reward_error="zero", schedule={"max_steps": 1}, samples=0)
    with pytest.raises(RunError, match="of the 8 answers of update 1 none could be scored; reward task/letters") as end:
        begin(config)
    assert end.value.exit_code == 2 and "--resume" in end.value.hint
    folder = RunFolder(config.out)
    assert folder.manifest()["status"] == "failed"
    mended.write_text(REWARDS)
    begin(GrpoRun(), folder.path)
    assert folder.manifest()["status"] == "finished" and len(read_log(folder)) == 1
    assert folder.evaluation()["after"]["num_failed"] == 0


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
