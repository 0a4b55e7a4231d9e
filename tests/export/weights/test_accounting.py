"""What came of quantizing: counted by part, and refused where matrices were left out or come back as something else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dsr1_tune.errors import ModelError
from dsr1_tune.export.weights.accounting import Counting, check_all, chosen, skipped_modules
from dsr1_tune.export.weights.source import Source, open_source

FIRST, SECOND = (f"model.layers.1.mlp.experts.{number}.up_proj.weight" for number in (0, 1))


@pytest.fixture(scope="module")
def source(tiny_base: Path) -> Source:
    return open_source(tiny_base)


def test_counting_sums_what_was_quantized_by_part(source: Source) -> None:
    counting = Counting(source.layout)
    weight = torch.ones(4, 8)
    counting.compare(FIRST, weight, weight * 1.1, num_bytes=16)
    counting.compare(SECOND, weight * 2, weight * 2, num_bytes=16)
    assert list(counting.names) == [FIRST, SECOND]
    (group,) = [group for group in counting.groups() if group.num_quantized]
    assert (group.part, group.num_quantized, group.num_weights, group.num_bytes) == ("routed_experts", 2, 64, 32)
    assert group.num_tensors == 12 and group.share == pytest.approx(1 / 6) and group.bits == 4.0
    assert group.worst_error == pytest.approx(0.1) and group.relative_error == pytest.approx(0.1 / 5**0.5)
    others = [group for group in counting.groups() if not group.num_quantized]
    assert others and all(group.bits == group.share == 0 for group in others)


@pytest.mark.parametrize(
    ("weight", "back", "said"),
    [(1.0, 0.4, "60% off"), (1.0, float("nan"), "nan% off"), (0.0, 1.0, "as something else than zeros")],
)
def test_counting_refuses_a_matrix_that_comes_back_as_something_else(
    source: Source, weight: float, back: float, said: str
) -> None:
    with pytest.raises(ModelError, match=f"{FIRST}: comes back {said}"):
        Counting(source.layout).compare(FIRST, torch.full((2, 2), weight), torch.full((2, 2), back), 1)


def test_chosen_matrices_are_those_of_experts_or_of_all_layers(source: Source) -> None:
    experts, layers = chosen(source.layout, False), chosen(source.layout, True)
    assert len(experts) == 12 and experts < layers and all(".experts." in name for name in experts)
    assert not any(word in name for name in layers for word in ("mlp.gate.", "embed", "norm", "lm_head"))


def test_check_all_names_what_was_left_out() -> None:
    check_all(["a", "b"], ["b", "a"])
    with pytest.raises(ModelError, match="1 matrices that were to be quantized are not, such as b"):
        check_all(["a", "b"], ["a"])


def test_skipped_modules_are_all_that_stay_in_16_bits(source: Source) -> None:
    names = chosen(source.layout, True)
    skipped = skipped_modules(source, names)
    assert {"lm_head", "model.layers.1.mlp.gate"} <= set(skipped) and skipped == sorted(skipped)
    assert not any(f"{name}.weight" in names or "embed_tokens" in name or "norm" in name for name in skipped)
