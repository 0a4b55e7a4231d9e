"""What came of quantizing: per part of the model how many tensors, in how many bits, how far off; and the proof."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dsr1_tune.errors import ModelError
from dsr1_tune.export.weights.progress import names_of
from dsr1_tune.models.weights.layout import Layout
from dsr1_tune.moe.anatomy import PARTS, Part

if TYPE_CHECKING:
    from dsr1_tune.export.weights.source import Source

_MAX_ERROR = 0.5
_LAYERS = {"routed_experts", "shared_experts", "attention", "dense_ffn"}


@dataclass(frozen=True)
class Group:
    """What was done to the matrices of one part of the model."""

    part: Part
    num_tensors: int
    """Its matrices, as they are stored."""
    num_quantized: int
    num_weights: int
    """Numbers in the quantized ones."""
    num_bytes: int
    """What the quantized ones take, scales included."""
    relative_error: float
    """|W - W'| / |W| over all quantized ones together (Frobenius norms)."""
    worst_error: float = 0.0
    """The same of the worst matrix."""

    @property
    def bits(self) -> float:
        """Bits a weight of the quantized ones, scales included."""
        return 8 * self.num_bytes / self.num_weights if self.num_weights else 0.0

    @property
    def share(self) -> float:
        """Share of the part's matrices that are quantized."""
        return self.num_quantized / self.num_tensors if self.num_tensors else 0.0


@dataclass(frozen=True)
class Quantized:
    """What a format made of a model."""

    groups: tuple[Group, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For lineage.json, in JSON's types: the library and its version, the group size, the file's name, ..."""


class Counting:
    """Notes every matrix that is quantized while a format writes them; `groups()` at the end."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._seen: dict[str, tuple[int, int, float, float]] = {}

    def add(self, name: str, num_weights: int, num_bytes: int, error: float, size: float) -> None:
        """The matrix stored as `name`: its numbers, what it takes now, |W - W'| and |W| (Frobenius norms).

        Raises ModelError if it does not come back as anything like it, as one that holds NaN.
        """
        if not error <= _MAX_ERROR * size:
            off = f"{error / size:.0%} off" if size else "as something else than zeros"
            raise ModelError(
                f"{name}: comes back {off}, so its numbers are not usable",
                hint="the model may be damaged: try it with `dsr1-tune chat`, or copy it again",
            )
        self._seen[name] = (num_weights, num_bytes, error, size)

    def compare(self, name: str, weight: Tensor, back: Tensor, num_bytes: int) -> None:
        """The same from the matrix itself and what it comes back as."""
        exact = weight.float()
        error, size = float((back.float() - exact).norm()), float(exact.norm())
        self.add(name, weight.numel(), num_bytes, error, size)

    @property
    def names(self) -> Iterable[str]:
        """Of the matrices noted so far."""
        return self._seen.keys()

    def groups(self) -> tuple[Group, ...]:
        """A line for each part that has matrices."""
        matrices: dict[Part, list[str]] = {}
        for name in self.layout.pieces:
            if self.layout.is_matrix(name):
                matrices.setdefault(self.layout.part(name), []).append(name)
        return tuple(self._group(part, matrices[part]) for part in PARTS if part in matrices)

    def _group(self, part: Part, names: list[str]) -> Group:
        done = [self._seen[name] for name in names if name in self._seen]
        size = sum(size**2 for *_, size in done) ** 0.5
        error = sum(error**2 for *_, error, _ in done) ** 0.5
        worst = max((error / size if size else 0.0 for *_, error, size in done), default=0.0)
        num_weights, num_bytes = sum(num for num, *_ in done), sum(num for _, num, *_ in done)
        return Group(part, len(names), len(done), num_weights, num_bytes, error / size if size else 0.0, worst)


def chosen(layout: Layout, everything: bool) -> frozenset[str]:
    """The stored names of the matrices to quantize: of the routed experts, and with `everything` of all layers.

    Router, embeddings, norms and the output head are never among them.
    """
    parts = _LAYERS if everything else {"routed_experts"}
    return frozenset(name for name in layout.pieces if layout.is_matrix(name) and layout.part(name) in parts)


def check_all(wanted: Iterable[str], done: Iterable[str]) -> None:
    """Raise ModelError, naming some, if matrices that were to be quantized are not."""
    if left := sorted(set(wanted) - set(done)):
        raise ModelError(
            f"{len(left)} matrices that were to be quantized are not, such as {', '.join(left[:3])}",
            hint="please report it with the model's name",
        )


def skipped_modules(source: Source, quantized: Collection[str]) -> list[str]:
    """The stored names of the modules whose matrices stay in 16 bits, as `quantization_config` lists them.

    Router, output head and, of the layers that transformers does not load, every matrix are among them.
    """
    kept = []
    for name in names_of(source.weights):
        is_matrix = name.endswith(".weight") and len(source.weights.spec(name).shape) >= 2
        if is_matrix and name not in quantized and not name.endswith("embed_tokens.weight"):
            kept.append(name.removesuffix(".weight"))
    if "lm_head" not in kept:  # it is the embeddings, where they are tied
        kept.append("lm_head")
    return sorted(kept)
