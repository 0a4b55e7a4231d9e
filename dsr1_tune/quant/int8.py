"""Weights held in 8 bits, for use without training: LLM.int8's rows (arXiv 2208.07339), a scale for each row.

A row's largest number becomes 127. Products are taken with the dequantized matrix, in the model's own format, so
that activations stay as they are. Letters: E matrices (experts; 1 for a linear layer) of rows × cols.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

LARGEST = 127
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Int8:
    """E matrices in 8 bits, which stand for a tensor (E, rows, cols), or (E, cols, rows) if `is_flipped`.

    packed (E, rows, cols) int8 · scale (E, rows) float32, each row's largest magnitude.
    """

    packed: Tensor
    scale: Tensor
    dtype: torch.dtype
    """The number format that matrices come back in."""
    is_flipped: bool = False

    @property
    def rows(self) -> int:
        """Of each matrix as it is held."""
        return self.packed.shape[1]

    @property
    def cols(self) -> int:
        """Of each matrix as it is held."""
        return self.packed.shape[2]

    @property
    def shape(self) -> tuple[int, int, int]:
        """As of the tensor that it stands for."""
        rows, cols = (self.cols, self.rows) if self.is_flipped else (self.rows, self.cols)
        return self.packed.shape[0], rows, cols

    @property
    def num_bytes(self) -> int:
        """What it takes in memory."""
        return self.packed.numel() + 4 * self.scale.numel()

    def element_size(self) -> int:
        """Bytes of a number as it comes back."""
        return self.dtype.itemsize

    def transpose(self, one: int, other: int) -> Int8:
        """A view with rows and columns exchanged, as of a 3-D tensor."""
        assert {one, other} == {1, 2}
        return replace(self, is_flipped=not self.is_flipped)

    def __getitem__(self, index: int) -> Tensor:
        """One matrix, dequantized."""
        return self.matrices(slice(index, index + 1))[0]

    def matrices(self, index: slice | Sequence[int] | Tensor) -> Tensor:
        """Some of the matrices, dequantized: (N, rows, cols), or a view (N, cols, rows) if flipped."""
        if not isinstance(index, slice):
            index = torch.as_tensor(index, device=self.packed.device)
        # In the order in which bitsandbytes multiplies, to the last bit; its product of mixed formats is slower.
        exact = self.packed[index].float().mul_(self.scale[index].unsqueeze(2)).mul_(1 / LARGEST)
        matrices = exact.to(self.dtype)
        return matrices.transpose(1, 2) if self.is_flipped else matrices


def sizes(num_matrices: int, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of each of Int8's tensors, and of `error`, by name."""
    return {
        "packed": ((num_matrices, rows, cols), torch.int8),
        "scale": ((num_matrices, rows), torch.float32),
        "error": ((num_matrices,), torch.float32),
    }


def quantize(weight: Tensor) -> dict[str, Tensor]:
    """(E, rows, cols) → the tensors that `sizes` names; `error` is |W - W'| / |W| of each matrix (Frobenius norms).

    Rounded in float32: bitsandbytes' own quantizer takes float16, which would round the weights first.
    """
    exact = weight.float()
    scale = exact.abs().amax(dim=2)
    # Divided first: the inverse of a tiny scale is no number.
    packed = (exact / scale.clamp(min=_TINY).unsqueeze(2)).mul_(LARGEST).round_().to(torch.int8)
    back = Int8(packed, scale, torch.float32).matrices(slice(None))
    norm = exact.flatten(1).norm(dim=1)
    error = back.sub_(exact).flatten(1).norm(dim=1) / norm.clamp(min=_TINY)
    return {"packed": packed, "scale": scale, "error": error}
