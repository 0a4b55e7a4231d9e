"""`convert-adapter`: LoRA A and B of fused experts unfused into a pair for each expert, and fused again.

PEFT keeps one A (R·E, in), expert by expert, and one B (out, R·E), rank by rank, for all experts of a layer, and gate
and up share an A. vLLM, SGLang and older versions of PEFT want a pair for each expert's gate, up and down projection,
under the names that the base has on disk, or that its experts have once they are taken apart where it stores them as
one tensor. Unfused and fused again is the same file, bit for bit.

Letters: E experts, R rank, I inputs, O outputs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from dsr1_tune.atomic import new_folder
from dsr1_tune.errors import ModelError
from dsr1_tune.export.adapter import (
    FILE,
    PREFIX,
    RIGHT_BASE,
    Adapter,
    AdapterFile,
    Names,
    Scale,
    fused_config,
    per_expert_config,
    scale_of,
)
from dsr1_tune.models.load import locate
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.ref import find_adapter
from dsr1_tune.models.tokenizer_files import copy_tokenizer
from dsr1_tune.models.trained.lora import REWRITTEN
from dsr1_tune.models.weights.checkpoint import DTYPES, NAMES, Spec, write_weights
from dsr1_tune.models.weights.index import INDEX
from dsr1_tune.models.weights.layout import Piece
from dsr1_tune.runs.console import Narrator, quiet_libraries
from dsr1_tune.text.amount import amount

Form = Literal["peft-fused", "per-expert"]
Tensors = dict[str, tuple[Spec, Callable[[], Tensor]]]
"""Number format and shape of each, and what computes it when it is written."""


@dataclass(frozen=True)
class Converted:
    """An adapter in its new form."""

    tensors: Tensors
    config: dict[str, Any]
    notes: tuple[str, ...] = ()
    """What its user has to know."""

    @property
    def shards(self) -> Mapping[str, tuple[str, ...]]:
        """One file, as everybody expects of an adapter, in the order in which safetensors itself would write it."""
        return {FILE: tuple(sorted(self.tensors, key=lambda name: (-DTYPES[self.spec(name).dtype].itemsize, name)))}

    def spec(self, name: str) -> Spec:
        """Number format and shape."""
        return self.tensors[name][0]

    def read(self, name: str) -> Tensor:
        """The tensor."""
        return self.tensors[name][1]().contiguous()

    def stored(self, name: str) -> None:
        """They are all yet to be computed."""


def run(adapter: Path, to: Form, out: Path, console: Console | None = None) -> Path:
    """Write the adapter, which a run folder may hold, in the other form to the new folder `out`.

    Raises ModelError for an adapter that is in that form already, does not belong to its base, or cannot be said so.
    """
    quiet_libraries()
    narrator = Narrator(console or Console())
    found = find_adapter(adapter)
    if found is None:
        raise ModelError(f"{adapter}: holds no adapter (no adapter_config.json)", hint="give a run of lora or qlora")
    base = locate(found.base, narrator.say, is_loaded=False)
    names = Names.of(meta_model(base.config))
    with new_folder(out) as part:
        done = convert(Adapter.read(found.path), to, names)
        for file in sorted(found.path.iterdir()):
            if file.is_file() and file.suffix not in (".safetensors", ".bin") and not file.name.startswith("."):
                (part / file.name).write_bytes(file.read_bytes())
        copy_tokenizer(found.path, part)
        write_weights(done, part)
        (part / INDEX).unlink()  # of one file nobody asks where its tensors are
        text = json.dumps(done.config, indent=2, sort_keys=True, ensure_ascii=False)
        (part / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    for note in done.notes:
        narrator.say(note)
    narrator.say(f"{amount(len(done.tensors), 'tensor')} for {base.name} in {out}, {to}")
    return out


def convert(adapter: Adapter, to: Form, names: Names) -> Converted:
    """The adapter in the other form. Raises ModelError as `run` does."""
    fused = [module for module in adapter.layers if names.block_of(module)]
    single = [
        module
        for module in adapter.layers
        if (piece := names.layout.pieces.get(f"{module}.weight")) is not None and piece.expert is not None
    ]
    if not fused and not single:
        raise ModelError(
            "this adapter has no factors on routed experts of its base",
            hint="there is nothing to convert: every engine reads it as it is",
        )
    if not (fused if to == "per-expert" else single):
        raise ModelError(f"this adapter is {to} already", hint="use it as it is")
    return unfuse(adapter, names) if to == "per-expert" else fuse(adapter, names)


def unfuse(adapter: Adapter, names: Names) -> Converted:
    """From fused experts to a pair for each expert's every matrix."""
    tensors: Tensors = {}
    scales: dict[str, Scale] = {}
    for module in adapter.layers:
        if block := names.block_of(module):
            _unfuse_block(adapter, names, module, block, tensors, scales)
        else:
            stored = names.on_disk(f"{module}.weight").removesuffix(".weight")
            scales[stored] = scale_of(adapter.config, module, adapter.rank(module))
            for what, key in adapter.layers[module].items():
                tensors[f"{PREFIX}{stored}.{what}"] = _as_it_is(adapter, key)
    for parameter, key in adapter.saved.items():
        tensors[PREFIX + names.on_disk(parameter)] = _as_it_is(adapter, key)
    layers = {name.removesuffix(".weight") for name in names.layout.pieces if name.endswith(".weight")}
    return Converted(tensors, per_expert_config(adapter.config, scales, layers), _notes(adapter))


def _unfuse_block(
    adapter: Adapter, names: Names, module: str, block: str, tensors: Tensors, scales: dict[str, Scale]
) -> None:
    _refuse_swapped(names, block)
    key_a, key_b = adapter.pair(module)
    spec_a, spec_b = adapter.file.spec(key_a), adapter.file.spec(key_b)
    found = names.parameter_of(block, spec_a.shape[1], spec_b.shape[0], module.count(".base_layer"))
    if found is None:
        raise ModelError(f"{module}: its factors are {spec_a.shape} and {spec_b.shape}", hint=RIGHT_BASE)
    parameter, num_experts = found
    if spec_a.shape[0] % num_experts or spec_a.shape[0] != spec_b.shape[1]:
        raise ModelError(
            f"{module}: factors of {spec_a.shape[0]} rows for {amount(num_experts, 'expert')}", hint=RIGHT_BASE
        )
    rank = spec_a.shape[0] // num_experts
    for piece in names.layout.pieces_of(parameter):
        if piece.expert is None or piece.is_transposed:
            raise ModelError(
                f"{parameter}: how {names.family} stores the matrices of its experts is not known here",
                hint="use the adapter as it is, or merge it: dsr1-tune merge",
            )
        stored = piece.stored.removesuffix(".weight")
        scales[stored] = scale_of(adapter.config, parameter, rank)
        num_out = spec_b.shape[0] // (piece.rows[2] if piece.rows else 1)
        tensors[f"{PREFIX}{stored}.lora_A.weight"] = (
            Spec(spec_a.dtype, (rank, spec_a.shape[1])),
            partial(_a_of, adapter.file, key_a, num_experts, piece),
        )
        tensors[f"{PREFIX}{stored}.lora_B.weight"] = (
            Spec(spec_b.dtype, (num_out, rank)),
            partial(_b_of, adapter.file, key_b, num_experts, piece),
        )


def _refuse_swapped(names: Names, block: str) -> None:
    if block in names.swapped:
        raise ModelError(
            f"{names.family}: PEFT puts A at the outputs of its experts and B at their inputs, and no engine is "
            "known to read that of single experts",
            hint="use the adapter as it is, or merge it: dsr1-tune merge",
        )


def _a_of(file: AdapterFile, key: str, num_experts: int, piece: Piece) -> Tensor:
    a = _kept(file, key)
    return a.reshape(num_experts, -1, a.shape[1])[piece.expert]


def _b_of(file: AdapterFile, key: str, num_experts: int, piece: Piece) -> Tensor:
    b = _kept(file, key)
    return piece.rows_of(b.reshape(b.shape[0], -1, num_experts)[:, :, piece.expert])


@lru_cache(maxsize=4)
def _kept(file: AdapterFile, key: str) -> Tensor:
    """A layer's factors are asked for once for every expert."""
    return file.read(key)


def _as_it_is(adapter: Adapter, key: str) -> tuple[Spec, Callable[[], Tensor]]:
    return adapter.file.spec(key), lambda: adapter.file.read(key)


def fuse(adapter: Adapter, names: Names) -> Converted:
    """From a pair for each expert's every matrix to fused experts."""
    tensors: Tensors = {}
    modules: dict[str, Scale] = {}
    parameters: dict[str, Scale] = {}
    experts: dict[str, dict[Piece, str]] = {}
    for module, parts in adapter.layers.items():
        piece = names.in_memory(f"{module}.weight")
        if piece.expert is not None:
            _refuse_swapped(names, piece.parameter.rpartition(".")[0])
            experts.setdefault(piece.parameter, {})[piece] = module
            continue
        name = piece.parameter.removesuffix(".weight")
        scale = scale_of(adapter.config, module, adapter.rank(module))
        # PEFT would take a linear layer of such a name for the fused experts; by its weight it reaches it.
        if name.rpartition(".")[2] in REWRITTEN:
            parameters[piece.parameter] = scale
        else:
            modules[name] = scale
        for what, key in parts.items():
            tensors[f"{PREFIX}{name}.{what}"] = _as_it_is(adapter, key)
    notes = list(_notes(adapter))
    for block, order in names.blocks.items():
        adapted = [parameter for parameter in order if f"{block}.{parameter}" in experts]
        for place, parameter in enumerate(adapted):
            fused = _Fused.of(adapter, names, f"{block}.{parameter}", experts[f"{block}.{parameter}"])
            parameters[fused.parameter] = fused.scale
            notes += [note for note in fused.notes if note not in notes]
            wrapper = block + ".base_layer" * (len(adapted) - 1 - place)
            tensors[f"{PREFIX}{wrapper}.lora_A.weight"] = (fused.spec_a, fused.a)
            tensors[f"{PREFIX}{wrapper}.lora_B.weight"] = (fused.spec_b, fused.b)
    for stored, key in adapter.saved.items():
        tensors[PREFIX + names.in_memory(stored).parameter] = _as_it_is(adapter, key)
    layers = {name.removesuffix(".weight") for name in names.layout.shapes} | names.layout.shapes.keys()
    return Converted(tensors, fused_config(adapter.config, modules, parameters, layers), tuple(notes))


@dataclass(frozen=True)
class _Fused:
    """One fused parameter's factors, made of those of its experts."""

    adapter: Adapter
    parameter: str
    pieces: Mapping[Piece, str]
    """Which module of the adapter is which part of it."""
    shape: tuple[int, int, int]
    """Of the parameter: E, O, I."""
    dtype: torch.dtype
    scale: Scale
    is_shared: bool
    """Whether the parts of an expert share their A, so that B's rows need only be put below one another."""
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, adapter: Adapter, names: Names, parameter: str, pieces: Mapping[Piece, str]) -> _Fused:
        num_experts, num_out, num_in = names.layout.shapes[parameter]
        if parameter.rpartition(".")[0] in names.transposed:
            num_out, num_in = num_in, num_out
        shape = (num_experts, num_out, num_in)
        scales, dtype = {}, None
        for piece, module in pieces.items():
            key_a, key_b = adapter.pair(module)
            (rank, num_in), (num_out, rank_b) = adapter.file.spec(key_a).shape, adapter.file.spec(key_b).shape
            if (rank, num_in, num_out) != (rank_b, shape[2], shape[1] // (piece.rows[2] if piece.rows else 1)):
                raise ModelError(f"{module}: its factors do not fit {shape}", hint=RIGHT_BASE)
            scales[piece] = scale_of(adapter.config, module, rank)
            own = DTYPES[adapter.file.spec(key_a).dtype]
            dtype = own if dtype is None else torch.promote_types(dtype, own)
        scale = next(iter(scales.values()))
        made = cls(adapter, parameter, pieces, shape, dtype or torch.float32, scale, is_shared=False)
        parts = len(names.layout.pieces_of(parameter))
        if len(pieces) == parts and len(set(scales.values())) == 1 and made._share_their_a():
            return replace(made, is_shared=True)
        return made._stacked(scales, parts)

    def _share_their_a(self) -> bool:
        """Whether all that an expert has here begins with the same A, bit for bit."""
        known: dict[int | None, Tensor] = {}
        for piece, module in sorted(self.pieces.items(), key=lambda item: item[0].expert or 0):
            a = self.adapter.file.read(self.adapter.pair(module)[0])
            if piece.expert in known:
                if known[piece.expert].dtype != a.dtype or not torch.equal(known[piece.expert], a):
                    return False
            else:
                known = {piece.expert: a}
        return True

    def _stacked(self, scales: Mapping[Piece, Scale], num_parts: int) -> _Fused:
        """With every part's factors in rank of their own, zeros where an expert has fewer."""
        is_rs = self.adapter.is_rs
        per_expert = Counter[int | None]()
        for piece, scale in scales.items():
            per_expert[piece.expert] += scale.rank
        rank = max(per_expert.values())
        numbers = {scale.times(is_rs) for scale in scales.values()}
        notes = [f"Gate and up, or the experts, differ in A: fused they take rank {rank}, and mean the same."]
        if len(self.pieces) < num_parts:
            lacking = num_parts - len(self.pieces)
            notes.append(
                f"Without factors of {self.parameter}: {amount(lacking, 'matrix', 'matrices')}; zeros stand there."
            )
        if len(numbers) > 1:
            notes.append("Factors that are scaled differently take on one scale, which rounds their B.")
        return replace(self, scale=self.scale.at_rank(rank, is_rs), notes=tuple(notes))

    @property
    def spec_a(self) -> Spec:
        """Of A (R·E, I)."""
        return Spec(NAMES[self.dtype], (self.shape[0] * self.scale.rank, self.shape[2]))

    @property
    def spec_b(self) -> Spec:
        """Of B (O, R·E)."""
        return Spec(NAMES[self.dtype], (self.shape[1], self.scale.rank * self.shape[0]))

    def a(self) -> Tensor:
        """A as PEFT packs it."""
        a_ERI = torch.zeros(self.shape[0], self.scale.rank, self.shape[2], dtype=self.dtype)
        for piece, module, begin in self._in_turn():
            part = self.adapter.file.read(self.adapter.pair(module)[0])
            a_ERI[piece.expert, begin : begin + len(part)] = part
        return a_ERI.flatten(0, 1)

    def b(self) -> Tensor:
        """B as PEFT packs it."""
        b_ORE = torch.zeros(self.shape[1], self.scale.rank, self.shape[0], dtype=self.dtype)
        is_rs = self.adapter.is_rs
        for piece, module, begin in self._in_turn():
            part = self.adapter.file.read(self.adapter.pair(module)[1])
            own = scale_of(self.adapter.config, module, part.shape[1]).times(is_rs)
            if own != self.scale.times(is_rs):
                part = part.float() * (own / self.scale.times(is_rs))
            piece.rows_of(b_ORE[:, begin : begin + part.shape[1], piece.expert]).copy_(part)
        return b_ORE.flatten(1)

    def _in_turn(self) -> Iterable[tuple[Piece, str, int]]:
        """Every part with the rank at which its factors begin."""
        begins = Counter[int | None]()
        for piece, module in sorted(self.pieces.items(), key=lambda item: (item[0].expert or 0, item[0].rows or ())):
            yield piece, module, 0 if self.is_shared else begins[piece.expert]
            begins[piece.expert] += self.adapter.rank(module)


def _notes(adapter: Adapter) -> tuple[str, ...]:
    """What goes along, and what engines make of it."""
    notes = []
    if adapter.saved:
        notes.append(
            f"{len(adapter.saved)} whole weights, such as {min(adapter.saved)}, go along; vLLM refuses adapters with "
            "them: merge those for serving."
        )
    if adapter.config.get("use_dora"):
        notes.append("DoRA's magnitudes go along; vLLM and SGLang refuse them: merge those for serving.")
    return tuple(notes)
