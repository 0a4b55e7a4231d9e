"""W4A16 on disk: eight 4-bit integers in a word, and what is taken for it."""

from __future__ import annotations

import torch

from dsr1_tune.quant.w4a16 import is_w4a16, pack, quantization_config, unpack


def test_pack_puts_eight_weights_into_a_word_the_first_lowest() -> None:
    q_NK = torch.tensor([[-8, -7, 0, 1, 2, 3, 6, 7]], dtype=torch.int8)
    word = sum((int(q) + 8) << (4 * place) for place, q in enumerate(q_NK[0]))
    assert int(pack(q_NK)[0, 0]) % 2**32 == word
    assert torch.equal(unpack(pack(q_NK)), q_NK)


def test_unpack_gives_every_integer_back() -> None:
    q_NK = torch.randint(-8, 8, (5, 96), dtype=torch.int8)
    assert pack(q_NK).shape == (5, 12)
    assert torch.equal(unpack(pack(q_NK)), q_NK)


def test_is_w4a16_takes_only_this_format() -> None:
    config = quantization_config(64, ["lm_head"])
    assert is_w4a16(config)
    for change in ({"num_bits": 8}, {"symmetric": False}, {"strategy": "channel"}, {"actorder": "group"}):
        other = quantization_config(64, [])
        other["config_groups"]["group_0"]["weights"] |= change
        assert not is_w4a16(other), change
    assert not is_w4a16({**config, "format": "float-quantized"})
    assert not is_w4a16(None)
