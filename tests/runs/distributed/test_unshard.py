"""A model that FSDP2 has sharded is as it was once it is unsharded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from dsr1_tune.runs.distributed.unshard import number_formats, unshard, whole_tensor


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def build() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6, bias=False)).to(torch.bfloat16)
    model[2].weight = model[0].weight  # tied
    model[0].bias.requires_grad_(False)
    return model


@pytest.mark.usefixtures("one_process")
def test_unshard_gives_back_weights_formats_ties_and_classes() -> None:
    model, untouched = build(), build()
    formats = number_formats(model)
    model.float()  # as accelerate does
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    assert isinstance(model, FSDPModule) and all(isinstance(weight, DTensor) for weight in model.parameters())
    assert torch.equal(whole_tensor(model[0].weight.detach()), untouched[0].weight.float())
    unshard(model, formats)
    assert type(model) is nn.Sequential and not isinstance(model, FSDPModule)
    for name, weight in untouched.named_parameters():
        found = model.get_parameter(name)
        assert not isinstance(found, DTensor) and found.dtype == torch.bfloat16
        assert torch.equal(found, weight) and found.requires_grad == weight.requires_grad
    assert model[2].weight is model[0].weight
    x = torch.randn(3, 6, dtype=torch.bfloat16)
    assert torch.equal(model(x), untouched(x))


def test_unshard_leaves_a_whole_model_alone() -> None:
    model = build()
    before = dict(model.named_parameters())
    unshard(model, {})
    assert all(before[name] is weight for name, weight in model.named_parameters())
    assert whole_tensor(before["0.weight"]) is before["0.weight"]
