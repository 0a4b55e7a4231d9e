"""What a run trained, as updates to the tensors of its base: each is read when its turn comes.

PEFT itself says, on a model without weights, where its factors belong and how they are scaled; their numbers are read
layer by layer from the adapter's file, which for a large mixture is larger than the memory that merging may take.

Letters: E experts, R rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import Tensor, nn

from dsr1_tune.errors import ModelError
from dsr1_tune.export.adapter import FILE, RIGHT_BASE, AdapterFile
from dsr1_tune.models.trained.experts import WEIGHTS, ExpertsConfig
from dsr1_tune.models.trained.lora import quiet_patterns
from dsr1_tune.models.weights.checkpoint import Checkpoint, Spec
from dsr1_tune.models.weights.layout import Layout, Piece
from dsr1_tune.moe.anatomy import find_experts, is_balancing_bias, plain_name

_FACTORS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
_FUSE_FIRST = "it is in the layout of servers: first dsr1-tune convert-adapter ADAPTER --to peft-fused --out FUSED"
_PER_EXPERT = re.compile(r"\.experts\.\d+\.")
_LOCK = Lock()

Factors = Callable[[], tuple[Tensor, Tensor]]
"""A (E, R, in) and B (E, out, R) in float32; E is 1 for a linear layer."""


@dataclass(frozen=True)
class LowRank:
    """`W + s B A`, or with DoRA's magnitudes m `m (W + s B A) / |W + s B A|`, for a stored tensor."""

    piece: Piece
    factors: Factors
    scale: float
    experts: tuple[int, ...] | None = None
    """Which experts the factors are for; None where there is one pair for each, or no experts."""
    is_transposed: bool = False
    """Whether the model holds (in, out) matrices."""
    magnitude: Callable[[], Tensor] | None = None
    must_change: bool = True

    def __call__(self, weight: Tensor) -> Tensor:
        """The updated tensor, from the stored one in float32, which is written over."""
        a_ERI, b_EOR = self.factors()
        if self.piece.expert is not None:
            number = self.experts.index(self.piece.expert) if self.experts else self.piece.expert
            return weight.add_(self._delta(a_ERI[number], b_EOR[number]))
        if weight.dim() == 3:
            for place, number in enumerate(self.experts or range(len(weight))):
                weight[number].add_(self._delta(a_ERI[place], b_EOR[place]))
            return weight
        weight.add_(self._delta(a_ERI[0], b_EOR[0]))
        if self.magnitude is None:
            return weight
        magnitude = self.piece.rows_of(self.magnitude())
        return weight.mul_((magnitude / torch.linalg.norm(weight, dim=1)).unsqueeze(1))

    def is_zero(self, expert: int | None) -> bool:
        """Whether the factors for an expert (None: for a linear layer) are zero, and not only too small to tell."""
        a_ERI, b_EOR = self.factors()
        number = expert or 0
        place = self.experts.index(number) if self.experts else number
        left, right = self._in_order(a_ERI[place], b_EOR[place])
        return not (self.piece.rows_of(left).any() and right.any())

    def _delta(self, a_RI: Tensor, b_OR: Tensor) -> Tensor:
        """The update of the part that is stored, in PEFT's order of operations."""
        left, right = self._in_order(a_RI, b_OR)
        delta = self.piece.rows_of(left) @ right
        return (delta.T if self.piece.is_transposed else delta) * self.scale

    def _in_order(self, a_RI: Tensor, b_OR: Tensor) -> tuple[Tensor, Tensor]:
        """The factors whose product is shaped as the model's matrix."""
        return (a_RI.T, b_OR.T) if self.is_transposed else (b_OR, a_RI)


@dataclass(frozen=True)
class Replaced:
    """Another tensor in the place of the stored one, or of some experts in it."""

    read: Callable[[], Tensor]
    must_change: bool = True

    def __call__(self, weight: Tensor) -> Tensor:
        """The tensor that was trained. Raises ModelError if it is of another shape."""
        trained = self.read()
        if trained.shape != weight.shape:
            raise ModelError(
                f"a trained tensor is {tuple(trained.shape)} in place of {tuple(weight.shape)}", hint=RIGHT_BASE
            )
        return trained


@dataclass(frozen=True)
class SomeExperts:
    """Trained rows in a tensor that holds all experts of a layer."""

    rows: dict[int, Callable[[], Tensor]]
    must_change: bool = True

    def __call__(self, weight: Tensor) -> Tensor:
        """The tensor with those rows in it."""
        for number, read in self.rows.items():
            weight[number].copy_(read())
        return weight


Update = LowRank | Replaced | SomeExperts


@dataclass(frozen=True)
class Updates:
    """By stored name what becomes of the base's tensors; those that are not named stay as they are."""

    by_name: dict[str, Update]

    def num_elements(self, name: str, spec: Spec) -> int:
        """How many numbers of a stored tensor its update reaches."""
        update = self.by_name[name]
        some: Collection[int] | None = update.rows if isinstance(update, SomeExperts) else None
        if isinstance(update, LowRank) and update.piece.expert is None:
            some = update.experts
        return spec.num_elements if some is None else spec.num_elements // spec.shape[0] * len(some)


class _File(AdapterFile):
    """A safetensors file whose tensors are read one by one, in float32."""

    def read(self, name: str) -> Tensor:
        return super().read(name).float()


# --- a PEFT adapter --------------------------------------------------------------------------------------------------


def of_adapter(folder: Path, model: nn.Module, layout: Layout, routers_move: bool = False) -> Updates:
    """Those of a PEFT adapter; `model` is its base without weights, and is wrapped in place.

    `routers_move` says that copies which PEFT keeps of whole modules were trained, not only kept.

    Raises ModelError if the adapter does not fit the base, has tensors that belong nowhere, or is of a kind that
    cannot be merged so.
    """
    file = _File(folder / FILE)
    peft_model = _wrapped(model, folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(peft_model).items()}
    _check_names(file, shapes, folder)
    expected = set(shapes)
    updates: dict[str, Update] = {}
    used: set[str] = set()
    for name, module in peft_model.named_modules():
        if isinstance(module, LoraLayer) and "default" in module.lora_A:
            updates |= _of_layer(name, module, file, layout, folder)
            used |= {f"{name}.{factor}" for factor in _FACTORS}
    # PEFT keeps a copy of embeddings that it adapts, which is the base's.
    saved = {key: key.removeprefix("base_model.model.") for key in expected - used if ".base_layer." not in key}
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    for key, parameter in saved.items():
        if ".lora_" in key:
            raise ModelError(
                f"{folder}: {key} is of a kind of LoRA that cannot be merged here",
                hint="leave embeddings and convolutions out of the adapter's targets",
            )
        if parameter in {*tied, *tied.values()}:  # a copy of embeddings and the output head would no longer be one
            raise ModelError(
                f"{folder}: replaces {parameter}, which the base has tied to another weight",
                hint="train embeddings with full, or leave them out of modules_to_save",
            )
        must_change = routers_move and not is_balancing_bias(parameter)
        for piece in _pieces(layout, parameter, folder):
            updates[piece.stored] = Replaced(_reader(file, key, piece), must_change)
    return Updates(updates)


def _wrapped(model: nn.Module, folder: Path) -> Any:
    """The model with PEFT's layers around it, all without numbers."""
    try:
        config = LoraConfig.from_pretrained(str(folder))
        if config.peft_type != "LORA" or config.bias != "none" or config.lora_bias:
            raise ValueError("only LoRA without biases can be merged")
        # How the factors began does not matter any more, and some ways need the base's numbers.
        config.init_lora_weights = True
        config.inference_mode = False
        with torch.device("meta"), quiet_patterns():
            return get_peft_model(model, config)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        said = " ".join(str(error).split())
        raise ModelError(f"{folder}: does not go onto its base: {said}", hint=RIGHT_BASE) from error


def _check_names(file: _File, expected: dict[str, tuple[int, ...]], folder: Path) -> None:
    if astray := sorted(set(file.names) - expected.keys()):
        raise ModelError(
            f"{folder}: {len(astray)} tensors of the adapter have no place in the base, such as {astray[0]}",
            hint=_FUSE_FIRST if any(_PER_EXPERT.search(name) for name in astray) else RIGHT_BASE,
        )
    if missing := sorted(expected.keys() - set(file.names)):
        raise ModelError(
            f"{folder}: {len(missing)} tensors of the adapter are missing, such as {missing[0]}",
            hint="copy the adapter again; its adapter_config.json names more than its file holds",
        )
    for name, shape in expected.items():
        stored = file.spec(name).shape
        if stored != shape:
            raise ModelError(f"{folder}: {name} is {stored}, but belongs to {shape}", hint=RIGHT_BASE)


def _of_layer(name: str, layer: LoraLayer, file: _File, layout: Layout, folder: Path) -> dict[str, Update]:
    """The updates that come of one LoRA layer, to one stored tensor or to those of every expert."""
    is_parameter = isinstance(layer, ParamWrapper)
    parameter = f"{plain_name(name)}.{layer.parameter_name if is_parameter else 'weight'}"
    base = layer.get_base_layer()
    if not is_parameter and not isinstance(base, nn.Linear):
        raise ModelError(
            f"{folder}: {parameter} is a {type(base).__name__}, whose update cannot be merged here",
            hint="leave it out of the adapter's targets",
        )
    num_experts = layer.num_experts if is_parameter else 1
    factors = _one_at_a_time(partial(_unpacked, file, name, num_experts))
    magnitude = f"{name}.lora_magnitude_vector"
    return {
        piece.stored: LowRank(
            piece,
            factors,
            layer.scaling["default"],
            is_transposed=is_parameter and num_experts > 1 and not layer._did_swap_in_out_features,
            magnitude=partial(file.read, magnitude) if magnitude in file else None,
        )
        for piece in _pieces(layout, parameter, folder)
    }


def _one_at_a_time(read: Factors) -> Factors:
    """The same behind a lock: else every thread would read what is cached in a moment."""

    def locked() -> tuple[Tensor, Tensor]:
        with _LOCK:
            return read()

    return locked


@lru_cache(maxsize=2)
def _unpacked(file: _File, name: str, num_experts: int) -> tuple[Tensor, Tensor]:
    """A layer's factors as PEFT packs them: A expert by expert, B rank by rank."""
    a, b = file.read(f"{name}.lora_A.weight"), file.read(f"{name}.lora_B.weight")
    a_ERI = a.reshape(num_experts, -1, a.shape[-1])
    b_EOR = b.reshape(b.shape[0], -1, num_experts).permute(2, 0, 1).contiguous()
    return a_ERI, b_EOR


def _pieces(layout: Layout, parameter: str, folder: Path) -> tuple[Piece, ...]:
    pieces = layout.pieces_of(parameter)
    if not pieces:
        raise ModelError(f"{folder}: the base stores no {parameter}", hint=RIGHT_BASE)
    return pieces


def _reader(file: _File, key: str, piece: Piece) -> Callable[[], Tensor]:
    return lambda: piece.of(file.read(key))


# --- trained experts, and whole models -------------------------------------------------------------------------------


def of_experts(folder: Path, model: nn.Module, layout: Layout) -> Updates:
    """Those of a folder of trained experts, as `esft` leaves it. Raises ModelError if it does not fit the base."""
    config, file = ExpertsConfig.read(folder), _File(folder / WEIGHTS)
    blocks = {block.name: block for block in find_experts(model)}
    updates: dict[str, Update] = {}
    used: set[str] = set()
    for name, layer in config.layers.items():
        if name not in blocks or blocks[name].num_experts != layer.num_experts:
            raise ModelError(f"{folder}: the base has no {layer.num_experts} experts called {name}", hint=RIGHT_BASE)
        is_transposed = blocks[name].is_transposed
        for parameter, keys in _keys_of(config, name, layer.chosen, blocks[name].module):
            used |= set(keys)
            if missing := [key for key in keys if key not in file]:
                raise ModelError(f"{folder / WEIGHTS}: has no {missing[0]}", hint="copy the folder again")
            for piece in _pieces(layout, f"{name}.{parameter}", folder):
                if update := _of_chosen(piece, keys, layer.chosen, config, file, is_transposed):
                    updates[piece.stored] = update
    for key in set(file.names) - used:
        for piece in _pieces(layout, key, folder):
            updates[piece.stored] = Replaced(_reader(file, key, piece), must_change=not is_balancing_bias(key))
    return Updates(updates)


def _keys_of(
    config: ExpertsConfig, name: str, chosen: tuple[int, ...], experts: nn.Module
) -> Iterator[tuple[str, list[str]]]:
    """For each fused parameter that was trained the names of its tensors in the file."""
    parameters = {parameter for parameter, _ in experts.named_parameters(recurse=False)}
    for parameter in sorted(parameters):
        if config.method == "weights":
            yield parameter, [f"{name}.{number}.{parameter}" for number in chosen]
        elif not parameter.endswith("_bias"):
            yield parameter, [f"{name}.lora_A.{parameter}", f"{name}.lora_B.{parameter}"]


def _of_chosen(
    piece: Piece, keys: list[str], chosen: tuple[int, ...], config: ExpertsConfig, file: _File, is_transposed: bool
) -> Update | None:
    """The update of one stored tensor; None for an expert that was not trained."""
    if piece.expert is not None and piece.expert not in chosen:
        return None
    if config.method == "lora":
        factors = _one_at_a_time(partial(_pair, file, keys[0], keys[1]))
        return LowRank(piece, factors, config.scale, experts=chosen, is_transposed=is_transposed)
    if piece.expert is None:
        return SomeExperts(
            {number: partial(_expert, file, key, piece) for number, key in zip(chosen, keys, strict=True)}
        )
    return Replaced(partial(_expert, file, keys[chosen.index(piece.expert)], piece))


def _expert(file: _File, key: str, piece: Piece) -> Tensor:
    return piece.of_expert(file.read(key))


@lru_cache(maxsize=2)
def _pair(file: _File, a: str, b: str) -> tuple[Tensor, Tensor]:
    return file.read(a), file.read(b)


class Stored(Protocol):
    """The names of a base's tensors, and what each is."""

    def __contains__(self, name: object) -> bool: ...

    def spec(self, name: str) -> Spec:
        """Number format and shape."""


def _places(trained: Checkpoint, base: Stored, layout: Layout, model: Any) -> dict[str, str]:
    """By the name of each trained tensor that of the base's it takes the place of, which may be in a larger model."""
    if all(name in base for name in trained.names):
        return {name: name for name in trained.names}
    in_base = {replace(piece, stored=""): name for name, piece in layout.pieces.items()}
    own = Layout.of(model, trained.names).pieces
    return {name: in_base.get(replace(own[name], stored=""), name) if name in own else name for name in trained.names}


def of_model(folder: Path, base: Stored, layout: Layout, model: Any) -> Updates:
    """Those of a whole model that `full` trained. Raises ModelError if it is not of the base's shape."""
    trained = Checkpoint(folder)
    updates: dict[str, Update] = {}
    for name, place in _places(trained, base, layout, model).items():
        if place not in base and place not in layout.pieces:
            raise ModelError(f"{folder}: {name} has no place in the base", hint="give a run its own base")
        if trained.spec(name).shape != base.spec(place).shape:
            raise ModelError(
                f"{folder}: {name} is {trained.spec(name).shape}, in the base {base.spec(place).shape}",
                hint="give a run its own base",
            )
        updates[place] = Replaced(_whole(trained, name), must_change=False)
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    for name in layout.pieces.keys() - updates.keys():
        other = tied.get(layout.pieces[name].parameter, "")
        for piece in layout.pieces_of(other):  # stored twice in the base, once by the run
            updates[name] = updates[piece.stored]
    if missing := sorted(layout.pieces.keys() - updates.keys()):
        raise ModelError(f"{folder}: has no {missing[0]}", hint="copy the run's folder again")
    return Updates(updates)


def _whole(trained: Checkpoint, name: str) -> Callable[[], Tensor]:
    return lambda: trained.read(name).float()
