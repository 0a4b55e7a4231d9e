"""Integers packed into 32-bit words, as GPTQ, AWQ and compressed-tensors store them, and the weights that they are.

Letters: N rows of a weight, its outputs; K columns, its inputs; G groups of columns that share a scale and a zero.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

WORD = 32
"""Bits."""
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word AWQ's kernels have the columns: the second is in the fifth place."""


def unpack(words: Tensor, bits: int) -> Tensor:
    """int32 (rows, words) → uint8 (rows, words · 32 / bits), the lowest bits first; 3 bits may lie in two words."""
    assert bits in (2, 3, 4, 8)
    octets = words.contiguous().view(torch.uint8)
    if bits == 3:
        stream = np.unpackbits(octets.numpy(), axis=1, bitorder="little")
        whole = stream[:, : stream.shape[1] // 3 * 3].reshape(len(stream), -1, 3)
        return torch.from_numpy(whole[..., 0] | whole[..., 1] << 1 | whole[..., 2] << 2)
    parts = [octets >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)]
    return torch.stack(parts, dim=-1).flatten(1)


def gptq(q_KN: Tensor, zeros_GN: Tensor, scales_GN: Tensor, group_of_K: Tensor) -> Tensor:
    """(q - zero) · scale as (N, K) in float32, with the zero and the scale of each column's group.

    As GPTQModel's and AutoGPTQ's `dequantize_weight` compute it (github.com/ModelCloud/GPTQModel), there (K, N).
    """
    return _scaled(q_KN.T, zeros_GN.T, scales_GN.T, group_of_K)


def gptq_zeros(stored: Tensor, is_one_less: bool) -> Tensor:
    """Zeros as GPTQ's first format stores them, one less than they are, or as they are.

    The largest number becomes one more than itself, and not 0, as in AutoGPTQ's, ExLlama's and vLLM's kernels.
    """
    return stored.to(torch.int16) + is_one_less


def awq(qweight: Tensor, qzeros: Tensor, scales_GN: Tensor) -> Tensor:
    """int32 (K, N / 8), int32 (G, N / 8) and scales → (N, K) in float32.

    As `dequantize_gemm` of AutoAWQ does it (awq/utils/packing_utils.py, github.com/casper-hansen/AutoAWQ).
    """
    q_KN, zeros_GN = (_in_order(words) for words in (qweight, qzeros))
    group_of_K = torch.arange(len(q_KN)) // (len(q_KN) // len(zeros_GN))
    return _scaled(q_KN.T, zeros_GN.T, scales_GN.T, group_of_K)


def _in_order(words: Tensor) -> Tensor:
    return unpack(words, 4).unflatten(1, (-1, 8))[..., list(AWQ_ORDER)].flatten(1)


def compressed(q_NK: Tensor, bits: int, scales_NG: Tensor, zeros_NG: Tensor | None, group_of_K: Tensor) -> Tensor:
    """compressed-tensors' "pack-quantized": (q - zero) · scale, both q and zero stored with half their range added.

    As `PackedQuantizationCompressor.decompress` does it (github.com/vllm-project/compressed-tensors).
    """
    middle = 1 << bits - 1
    zeros = torch.full(scales_NG.shape, middle, dtype=torch.uint8) if zeros_NG is None else zeros_NG
    return _scaled(q_NK, zeros, scales_NG, group_of_K)


def _scaled(q_NK: Tensor, zeros_NG: Tensor, scales_NG: Tensor, group_of_K: Tensor) -> Tensor:
    weight = q_NK.contiguous().float()
    weight.sub_(zeros_NG.contiguous()[:, group_of_K])
    return weight.mul_(scales_NG.float().contiguous()[:, group_of_K])
