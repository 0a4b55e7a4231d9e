"""Bases that there is no room for: refused, with what helps the command that asked, and nothing that does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dsr1_tune.config import DpoRun, EsftRun, FullRun, LoraRun, Parallel, QloraRun
from dsr1_tune.errors import ModelError
from dsr1_tune.models.memory import GIB, main_memory
from dsr1_tune.models.room import Base, Holding, check_room, refuse_more_than
from tests.conftest import tiny_config

GPU = torch.device("cuda")


def base_of(billions: float, number: torch.dtype = torch.bfloat16, **changes: Any) -> Base:
    """A base nearly all of whose weights are those of routed experts, said to have so many in all."""
    config = tiny_config("qwen3_moe", num_experts=64, moe_intermediate_size=512, **changes)
    return Base("base", config, round(billions * 1e9), number)


def refused(have: float, base: Base, holding: Holding, device: torch.device = GPU) -> ModelError:
    with pytest.raises(ModelError) as raised:
        refuse_more_than(have * GIB, base, holding, device)
    return raised.value


def test_a_base_that_fits_is_let_through() -> None:
    refuse_more_than(60 * GIB, base_of(30), Holding(), GPU)
    refuse_more_than(16 * GIB, base_of(30), Holding(quantized=True), GPU)


def test_lora_is_told_of_4_bits_only_where_they_would_fit() -> None:
    lora = Holding(parallel=Parallel(), may_share_experts=True, in_4_bits="train it with qlora")
    assert refused(40, base_of(30), lora).hint.startswith("train it with qlora, or ")
    assert "qlora" not in refused(10, base_of(30), lora).hint
    assert "need 55.9 GiB as bfloat16, cuda has 10.0 GiB free" in refused(10, base_of(30), lora).message


def test_qlora_is_not_told_to_try_qlora_but_of_several_gpus() -> None:
    qlora = Holding(quantized=True, parallel=Parallel(), may_share_experts=True, in_4_bits="train it with qlora")
    hint = refused(80, base_of(671), qlora).hint
    assert "qlora" not in hint
    assert "--processes 6 --set parallel.strategy=experts, on 6 GPUs" in hint


def test_several_gpus_are_not_advised_to_what_cannot_share_experts_nor_on_a_cpu() -> None:
    assert "experts" not in refused(80, base_of(671), Holding(parallel=Parallel())).hint
    shares = Holding(quantized=True, parallel=Parallel(), may_share_experts=True)
    assert "experts" not in refused(80, base_of(671), shares, torch.device("cpu")).hint


@pytest.mark.parametrize(
    ("changes", "may"),
    [
        ({}, True),
        ({"watch": {"on_alarm": "rollback"}}, False),
        ({"schedule": {"optimizer": "adafactor"}}, False),
        ({"base": {"dtype": "float16"}}, False),
        ({"parallel": {"processes": 2, "powersgd_rank": 2}}, False),
    ],
)
def test_sharing_experts_is_advised_only_to_a_run_that_would_begin_so(changes: dict[str, Any], may: bool) -> None:
    for run in (LoraRun, QloraRun):
        assert run.model_validate(changes).may_share_experts == may
    assert not FullRun().may_share_experts and not EsftRun().may_share_experts and not DpoRun().may_share_experts


def test_float32_is_told_of_16_bits_where_they_would_fit() -> None:
    assert "base.dtype=bfloat16" in refused(70, base_of(30, torch.float32), Holding()).hint
    assert "base.dtype=bfloat16" not in refused(30, base_of(30, torch.float32), Holding()).hint


def test_a_process_that_has_a_part_of_the_experts_needs_its_part() -> None:
    def among(processes: int) -> Holding:
        return Holding(True, Parallel(processes=processes, strategy="experts"), True)

    assert "in each of 2 processes" in refused(80, base_of(671), among(2)).message
    refuse_more_than(80 * GIB, base_of(671), among(8), GPU)
    # The rest of a dense base is in every process.
    with pytest.raises(ModelError):
        refuse_more_than(40 * GIB, Base("dense", tiny_config("llama"), 10**11, torch.bfloat16), among(8), GPU)


def test_processes_of_one_machine_share_its_memory_and_the_first_asks_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    base = base_of(main_memory().free / 4 / 3 / 1e9, torch.float32)  # a third of it, so one process is well off
    check_room(base, Holding(), cpu)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ModelError, match="for each of 4 processes"):
        check_room(base, Holding(), cpu)
    monkeypatch.setenv("LOCAL_RANK", "1")
    check_room(base, Holding(), cpu)


def test_what_is_held_as_it_is_stored_needs_what_it_takes_there(tiny_base: Path) -> None:
    size = (tiny_base / "model.safetensors").stat().st_size
    base = Base("stored", tiny_config("deepseek_v3"), 10**12, torch.float32, held=tiny_base)
    refuse_more_than(1.01 * size, base, Holding(), GPU)
    assert "as they are stored" in refused(size / 2 / GIB, base, Holding()).message
