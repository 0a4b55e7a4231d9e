"""Runs of `dpo` on a tiny DeepSeek-V3: fixtures and helpers for tests of preference learning."""

from __future__ import annotations

import gc
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from dsr1_tune.align import dpo
from dsr1_tune.config import DpoRun
from dsr1_tune.runs.folder import RunFolder

PAIRS = [
    {"prompt": f"what is {a} times {b}?", "chosen": f"it is {a * b % 10}", "rejected": f"no idea {b}"}
    for a in range(5)
    for b in range(6)
]

ConfigureDpo = Callable[..., DpoRun]


@pytest.fixture(scope="session")
def dpo_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty pairs; three of them are held out."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, PAIRS)))
    return path


@pytest.fixture(scope="session")
def configure_dpo(tiny_base: Path, dpo_pairs: Path) -> ConfigureDpo:
    """configure_dpo(out, method="full", schedule={"seed": 1}) is a run of eight steps."""

    def configure_(out: Path | None, base: Path = tiny_base, data: Path = dpo_pairs, **changes: Any) -> DpoRun:
        schedule = {"epochs": 2, "learning_rate": 1e-2, "batch_size": 8, "save_steps": 100, "max_tokens": 128}
        tree: dict[str, Any] = {
            "data": {"files": [str(data)]},
            "base": {"model": str(base)},
            "schedule": {**schedule, "gradient_checkpointing": False, **changes.pop("schedule", {})},
            "watch": {"trackers": []},
            "samples": 0,
            "out": out and str(out),
        }
        return DpoRun.model_validate({**tree, **changes})

    return configure_


def go(config: DpoRun, resume: Path | None = None) -> RunFolder:
    return dpo.run(config, resume, Console(file=io.StringIO(), width=200))


def log_of(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.log_file.read_text().splitlines()]


def num_living() -> int:
    """The numbers in all parameters that are alive, whoever holds them; those of one memory count once."""
    gc.collect()
    living = [thing for thing in gc.get_objects() if isinstance(thing, nn.Parameter)]
    return sum(sizes.numel() for sizes in {one.data_ptr(): one for one in living}.values())


@dataclass
class Seen:
    """What was looked at in the middle of a run."""

    given: list[torch.Tensor]
    """The reference's log-probabilities in the rows of a batch, chosen then rejected."""
    base: list[torch.Tensor]
    """Those of the model with its adapter off."""
    trained: list[torch.Tensor]
    num_living: int
    num_own: int
    names: list[str]


def look(seen: list[Seen], at: int) -> Callable[..., Any]:
    """A training step that first looks, at one step, at the model and at its batch."""
    step = dpo.DPOTrainer.training_step

    def looking(self: Any, model: Any, inputs: dict[str, torch.Tensor], *rest: Any) -> Any:
        if self.state.global_step == at:
            assert self.ref_model is None
            is_adapted = hasattr(model, "disable_adapter")
            with torch.no_grad():
                trained = plain(model, inputs)
                base = trained
                if is_adapted:
                    with model.disable_adapter():
                        base = plain(model, inputs)
            names = list(model.peft_config) if is_adapted else []
            given = [inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]]
            own = sum(parameter.numel() for parameter in model.parameters())
            seen.append(Seen(given, base, trained, num_living(), own, names))
        return step(self, model, inputs, *rest)

    return looking


def plain(model: Any, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """log p of the answers in a batch by the formula, chosen then rejected."""
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    told = logits[:, :-1].log_softmax(-1).gather(2, inputs["input_ids"][:, 1:, None])[..., 0]
    return list((told * inputs["completion_mask"][:, 1:]).sum(1).chunk(2))


@dataclass
class Done:
    """A finished run, and what was seen in its sixth step."""

    folder: RunFolder
    seen: Seen
    num_before: int


def watched(config: DpoRun, at: int = 5) -> Done:
    seen: list[Seen] = []
    num_before = num_living()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpo.DPOTrainer, "training_step", look(seen, at))
        folder = go(config)
    return Done(folder, seen[0], num_before)


@pytest.fixture(scope="session")
def dpo_run(configure_dpo: ConfigureDpo, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """One unbroken run, for all tests that only look at it."""
    return watched(configure_dpo(tmp_path_factory.mktemp("runs") / "done", watch={"trackers": [], "eval_steps": 4}))
