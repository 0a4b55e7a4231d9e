"""Which of a deep model's layers stand for all."""

from __future__ import annotations

import pytest

from dsr1_tune.models.memory_plan.layers import alike_at_first, few_and_more, layer_kinds, with_layers
from dsr1_tune.models.meta import meta_model
from tests.conftest import tiny_config


@pytest.mark.parametrize(
    ("kinds", "few", "more"),
    [
        ("a" * 20, 2, 3),
        ("d" + "a" * 20, 2, 3),
        ("ddd" + "a" * 20, 4, 5),
        ("ab" * 10, 2, 4),
        ("d" + "aab" * 8, 4, 7),
        ("aaaaab" * 6, 3, 6),  # a long period: what its second half has more than its first
    ],
)
def test_few_layers_and_more_differ_as_the_others_do(kinds: str, few: int, more: int) -> None:
    assert few_and_more(kinds) == (few, more)


def test_layers_in_no_order_are_taken_as_they_come() -> None:
    assert few_and_more("abacabbbacbabbaaabcb") == (4, 6)


def test_kinds_of_layers_are_told_by_what_they_are_made_of() -> None:
    kinds = layer_kinds(meta_model(tiny_config("deepseek_v3", num_hidden_layers=5, first_k_dense_replace=2)))
    assert kinds[0] == kinds[1] != kinds[2] == kinds[4]
    sliding = layer_kinds(meta_model(tiny_config("gpt_oss", num_hidden_layers=4)))
    assert sliding[0] == sliding[2] != sliding[1]  # of the same weights, but another attention


def test_a_shorter_config_may_leave_out_dense_layers() -> None:
    config = tiny_config("deepseek_v3", num_hidden_layers=9, first_k_dense_replace=3)
    kinds = layer_kinds(meta_model(config))
    assert alike_at_first(config, kinds) == 2
    short = with_layers(config, 3, left_out=2)
    assert layer_kinds(meta_model(short)) == kinds[2:5]
    assert config.num_hidden_layers == 9 and config.first_k_dense_replace == 3
