"""Logits of a merge: their bound is what last digits explain, which right ones keep and wrong ones do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dsr1_tune.export.weights.load_streamed import load_streamed
from dsr1_tune.export.weights.loss import with_other_digits
from dsr1_tune.export.weights.merged import Merged
from dsr1_tune.export.weights.outputs import NotCertified, check_outputs, compare_outputs, logits_of
from dsr1_tune.export.weights.source import find_trained, open_trained
from dsr1_tune.models.load import load_located
from dsr1_tune.models.trained.attach import attach_adapter
from dsr1_tune.runs.folder import RunFolder
from tests.export.conftest import TinyRun

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
DEEP = {"hidden_size": 128, "num_hidden_layers": 3, "rope_parameters": YARN}
"""Adding up in another order moves its logits by more than 1e-4 of ten."""

Read = Callable[[str], Tensor]


@pytest.fixture(scope="module", params=["qwen3_moe", "deepseek_v3"])
def compare(request: pytest.FixtureRequest, tiny_run: TinyRun) -> Callable[[Callable[[Merged], Read]], None]:
    """compare(change) holds what `change` makes of a merge against the base with its adapter beside it."""
    run = tiny_run(request.param, changes=DEEP if request.param == "deepseek_v3" else None)
    return comparer(run)


def comparer(run: RunFolder) -> Callable[[Callable[[Merged], Read]], None]:
    trained = find_trained(run.path)
    assert trained is not None
    base, updates = open_trained(trained)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 258, (64,), generator=generator).tolist() for _ in range(4)]

    def logits(model: Any) -> list[Tensor]:
        return logits_of(model, rows, 1)

    def streamed(read: Read) -> list[Tensor]:
        return logits(load_streamed(base.located, read, base.layout).model)

    adapted = logits(attach_adapter(load_located(base.located, "float32"), trained.folder))

    def compare(change: Callable[[Merged], Read]) -> None:
        read = change(Merged(base.plain, updates))
        noise = streamed(with_other_digits(read, torch.float32))
        check_outputs(compare_outputs(adapted, streamed(read), noise, None))

    return compare


def right(merged: Merged) -> Read:
    return merged.exact


def scaled(merged: Merged) -> Read:
    """The whole update one per cent too large."""
    return lambda name: merged.base.exact(name) + 1.01 * (merged.exact(name) - merged.base.exact(name))


def without_one(merged: Merged) -> Read:
    left_out = next(name for name in merged.updates.by_name if "layers.1" in name and "o_proj" in name)
    return lambda name: merged.base.exact(name) if name == left_out else merged.exact(name)


def one_scaled(merged: Merged) -> Read:
    one = next(name for name in merged.updates.by_name if "layers.1" in name and "o_proj" in name)
    return lambda name: scaled(merged)(name) if name == one else merged.exact(name)


def swapped(merged: Merged) -> Read:
    """The updates of two experts' matrices, each added to the other's."""
    one, other = (f"model.layers.1.mlp.experts.{number}.down_proj.weight" for number in (1, 2))
    gives = {one: other, other: one}

    def read(name: str) -> Tensor:
        giver = gives.get(name, name)
        return merged.base.exact(name) + (merged.exact(giver) - merged.base.exact(giver))

    return read


def test_outputs_of_a_right_merge_are_within_their_noise(compare: Callable[..., None]) -> None:
    compare(right)


@pytest.mark.parametrize("change", [scaled, without_one, one_scaled, swapped])
def test_outputs_of_a_wrong_merge_are_not(compare: Callable[..., None], change: Callable[[Merged], Read]) -> None:
    with pytest.raises(NotCertified, match="logits differ"):
        compare(change)
