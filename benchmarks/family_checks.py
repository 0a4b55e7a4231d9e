"""Look at what the commands made of one tiny model, with transformers and PEFT alone: nothing of the package is used.

    python benchmarks/family_checks.py FOLDER        # as benchmarks/families.py keeps: base, lora, nf4 ...

Prints one JSON object, a line for each thing that was there: {"lora-merged": {"ok": true, "difference": 1e-6}, ...}.

- an adapter: every B has moved, but for experts; PEFT loads it whole;
- a merged folder: its logits are those of the base with the adapter (or of the run's own model) in float32, no further
  apart than 1e-4 or 4 times what other orders of summation and other last digits make; the router is the base's;
- a quantized folder: read by the few lines below, each matrix is as near to the merged one as its format must be, and
  the logits of the two are as near as those matrices make them;
- a converted adapter: what each pair of factors adds is what PEFT adds with the adapter that it was made of; and one
  that was converted back is that adapter, bit for bit.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import create_dynamic_map
from peft import PeftModel
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

# Largest error of a matrix of Gaussian weights, |W - W'| / |W|, as the format must have it, with room for small ones.
ERRORS = {"nf4": 0.13, "int8": 0.03, "w4a16": 0.16, "fp8": 0.05}
NF4 = torch.tensor([
    -1.0, -0.6961928, -0.52507305, -0.39491748, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
])  # fmt: skip
Check = Callable[[Path], dict[str, Any]]


def main() -> None:
    """Check every result in the folder."""
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    ids = _rows(folder / "base")
    found: dict[str, Any] = {}
    for name, check in _checks(folder, ids).items():
        try:
            found[name] = check(folder / name)
        except Exception as error:
            found[name] = {"ok": False, "why": f"{type(error).__name__}: {error}"[:300]}
    print(json.dumps(found))


def _checks(folder: Path, ids: Tensor) -> dict[str, Check]:
    """What there is to look at, by name."""
    checks: dict[str, Check] = {}

    def merge_of(run: str) -> Check:
        return lambda merged: _merged(folder, folder / run, merged, ids)

    def format_of(kind: str) -> Check:
        return lambda quantized: _quantized(folder / "lora-merged", quantized, kind, ids)

    for method in ("lora", "qlora", "dpo", "ppo", "grpo"):
        if (folder / method / "adapter").is_dir():
            checks[method] = _adapter
    for run in ("lora", "qlora", "dpo", "full", "esft"):
        if (folder / f"{run}-merged").is_dir():
            checks[f"{run}-merged"] = merge_of(run)
    for kind in ERRORS:
        if (folder / kind).is_dir():
            checks[kind] = format_of(kind)
    if (folder / "convert-adapter").is_dir():
        checks["convert-adapter"] = lambda converted: _converted(folder, converted)
    if (folder / "convert-back").is_dir():
        checks["convert-back"] = lambda back: _same(folder / "lora" / "adapter", back)
    return checks


def _rows(base: Path) -> Tensor:
    """Three rows of 40 tokens, no two alike."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = ["What helps with case 3? Rest and water, for 5 days.", "A fox, a dog; and then?", "12 of 19 had a fever."]
    rows = [(tokenizer(text).input_ids * 3)[:40] for text in texts]
    return torch.tensor(rows)


def _load(folder: Path) -> Any:
    whole = AutoConfig.from_pretrained(folder)
    config = whole.get_text_config(decoder=True)  # of text and pictures, the text model
    settings = {
        "dtype": torch.float32,
        "output_loading_info": True,
        "key_mapping": {r"^model\.language_model\.": "model."},
    }
    model, told = AutoModelForCausalLM.from_pretrained(folder, config=config, **settings)
    for what in ("missing_keys", "mismatched_keys", *(["unexpected_keys"] if config is whole else [])):
        if told[what]:
            raise ValueError(f"{what}: {sorted(map(str, told[what]))[:3]}")
    return model.eval()


@torch.no_grad()
def _logits(model: Any, ids: Tensor, apart: bool = False) -> Tensor:
    """(rows, tokens, vocabulary), all rows in one pass, or each apart: other orders of summation."""
    if apart:
        return torch.cat([_logits(model, row[None]) for row in ids])
    return model(input_ids=ids, use_cache=False).logits.float()


def _adapter(run: Path) -> dict[str, Any]:
    """Whether every B has moved, of experts one at least; and what is trained."""
    weights = load_file(run / "adapter" / "adapter_model.safetensors")
    still = [name for name, weight in weights.items() if "lora_B" in name and not weight.any()]
    still = [name for name in still if "experts" not in name or "shared_expert" in name]
    has_experts = any("experts" in name and "shared_expert" not in name for name in weights)
    ok = not still and has_experts
    return {
        "ok": ok,
        "num": len(weights),
        **({} if ok else {"why": f"never moved: {still[:3]}; experts: {has_experts}"}),
    }


def _merged(folder: Path, run: Path, merged: Path, ids: Tensor) -> dict[str, Any]:
    """Whether the merged model is what was trained, on the base in float32; and is another than the base."""
    base = _load(folder / "base")
    router = {name: one.clone() for name, one in base.state_dict().items() if _is_router(name)}
    of_base = _logits(base, ids)
    noise = max(float((of_base - other).abs().max()) for other in (_logits(base, ids, apart=True), _nudged(base, ids)))
    if (run / "adapter").is_dir():
        trained = PeftModel.from_pretrained(base, str(run / "adapter")).eval()
    elif (run / "model").is_dir():
        trained, router = _load(run / "model"), {}
    else:
        trained = _with_experts(base, run / "experts")
    expected = _logits(trained, ids)
    model = _load(merged)
    logits = _logits(model, ids)
    per_token = (logits - expected).abs().amax(-1)
    bound = max(1e-4 * max(1.0, float(expected.abs().max()) / 10), 4 * noise)
    moved = float((expected - of_base).abs().max())
    changed = [
        name for name, one in model.state_dict().items() if name in router and not torch.equal(one, router[name])
    ]
    ok = float((per_token > bound).float().mean()) <= 0.01 and moved > 20 * bound and not changed
    found = {"ok": ok, "difference": float(per_token.max()), "bound": bound, "moved": moved}
    return found if ok else {**found, "why": f"differs by {float(per_token.max()):.2g} (bound {bound:.2g}); the update "
                             f"moves logits by {moved:.2g}; changed routers: {changed[:2]}"}  # fmt: skip


@torch.no_grad()
def _nudged(model: Any, ids: Tensor) -> Tensor:
    """The logits of the same weights with other last digits, as adding up and rounding once give them."""
    kept = {name: one.clone() for name, one in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for one in model.parameters():
        one.mul_(1 + torch.finfo(torch.float32).eps * (torch.rand(one.shape, generator=generator) - 0.5))
    logits = _logits(model, ids)
    for name, one in model.named_parameters():
        one.copy_(kept[name])
    return logits


def _is_router(name: str) -> bool:
    """By name, as families call it; the gate of gate and up is none."""
    return any(f".{word}." in name for word in ("gate", "router", "moe_gate", "wg"))


def _with_experts(base: Any, folder: Path) -> Any:
    """The base with the trained experts in place of its own: each is named block.NUMBER.weight."""
    own = {**dict(base.named_parameters()), **dict(base.named_buffers())}
    for name, weight in load_file(folder / "experts.safetensors").items():
        block, number, parameter = name.rsplit(".", 2)
        if number.isdigit():
            own[f"{block}.{parameter}"].data[int(number)] = weight.float()
        else:
            own[name].data.copy_(weight)
    return base


# --- adapters in another form ----------------------------------------------------------------------------------------


def _converted(folder: Path, converted: Path) -> dict[str, Any]:
    """Whether what each expert's pairs add is what PEFT adds with the adapter that they were made of."""
    adapter = PeftModel.from_pretrained(_load(folder / "base"), str(folder / "lora" / "adapter"))
    wanted = {
        f"{re.sub(r'^base_model[.]model[.]|[.]base_layer', '', name)}.{layer.parameter_name}": layer.get_delta_weight(
            "default"
        ).detach()
        for name, layer in adapter.named_modules()
        if isinstance(layer, ParamWrapper) and layer.lora_A and layer.get_param().dim() == 3
    }
    told = json.loads((converted / "adapter_config.json").read_text())
    factors = load_file(converted / "adapter_model.safetensors")
    adds = {}
    for key, a in factors.items():
        if key.endswith(".lora_A.weight"):
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            alpha = next((value for pattern, value in told["alpha_pattern"].items()
                          if re.match(rf"(.*\.)?({pattern})$", name)), told["lora_alpha"])  # fmt: skip
            scale = alpha / (len(a) ** 0.5 if told["use_rslora"] else len(a))
            adds[f"{name}.weight"] = scale * factors[key.replace("lora_A", "lora_B")].float() @ a.float()
    found = _put_together(adds, _load(folder / "base"))
    worst = max((float((found[name] - one).abs().max() / one.abs().max().clamp(min=1e-6)) if name in found else 9.0
                 for name, one in wanted.items()), default=9.0)  # fmt: skip
    ok = worst < 1e-4
    return {"ok": ok, "worst": worst, "num": len(wanted)} | ({} if ok else {"why": f"an update is off by {worst:.1%}"})


def _same(adapter: Path, back: Path) -> dict[str, Any]:
    """Whether two adapters are the same, bit for bit."""
    mine, theirs = (load_file(place / "adapter_model.safetensors") for place in (adapter, back))
    other = [name for name in mine.keys() | theirs.keys()
             if name not in mine or name not in theirs or not torch.equal(mine[name], theirs[name])]  # fmt: skip
    return {"ok": not other, "num": len(mine)} | ({"why": f"not the same: {sorted(other)[:2]}"} if other else {})


# --- quantized folders -----------------------------------------------------------------------------------------------


def _quantized(merged: Path, folder: Path, kind: str, ids: Tensor) -> dict[str, Any]:
    """Whether the folder's matrices are near to the merged ones, and its logits as near as those make them."""
    original, stored = _tensors(merged), _tensors(folder)
    reference = _load(merged)
    theirs = reference.state_dict()
    # Experts that alternate on disk are written in the model's own order, under its own name.
    own = {name: theirs[name] for name in stored if name not in original and name in theirs}
    original |= own
    dense = {"nf4": _nf4, "int8": _int8, "w4a16": _w4a16, "fp8": _fp8}[kind](stored, original)
    apart = {name: dense[name] for name in dense.keys() - original.keys()}
    put = _put_together(apart, reference) if kind in ("w4a16", "fp8") else {}
    is_quantized = {name for name in dense if name not in stored or stored[name].shape != dense[name].shape
                    or stored[name].dtype != dense[name].dtype}  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        for file in merged.iterdir():
            if file.suffix in (".json", ".jinja") and "index" not in file.name:
                (place / file.name).write_bytes(file.read_bytes())
        # What is not under the merged model's own names is put into the model itself.
        kept = {name: dense.get(name, original[name]) for name in (original.keys() - own.keys() if put else dense)}
        save_file({name: one.contiguous() for name, one in kept.items()}, place / "model.safetensors", {"format": "pt"})
        model = _load(place)
    for name in own:
        model.state_dict()[name].copy_(dense[name])
    for name, one in put.items():
        model.state_dict()[name].copy_(one)
    expected = _logits(reference, ids)
    apart = float((_logits(model, ids) - expected).norm() / (expected - expected.mean(-1, keepdim=True)).norm())
    worst, what = 0.0, ""
    for name, one in model.state_dict().items():
        if one.dim() > 1 and one.is_floating_point() and float(theirs[name].norm()) > 0:
            error = float((one - theirs[name]).norm() / theirs[name].norm())
            worst, what = max((worst, what), (error, name))
    ok = 0 < worst <= ERRORS[kind] and bool(is_quantized) and apart <= 8 * ERRORS[kind]
    found = {"ok": ok, "worst": worst, "logits": apart, "num": len(is_quantized), "of": len(original)}
    return found if ok else {**found, "why": f"{what} is off by {worst:.1%}, the logits by {apart:.1%}"}


def _put_together(apart: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Matrices (and biases) of single experts as the model holds them: all of a layer's in one tensor."""
    found = {}
    for block, module in model.named_modules():
        is_llama4 = type(module).__name__ == "Llama4TextExperts"  # which do not say how they lie
        if not (is_llama4 or hasattr(module, "is_transposed")) or not hasattr(module, "down_proj"):
            continue
        number = re.search(r"\.\d+\.", block)  # of the layer; around it the names on disk may be others
        place = re.escape(number[0]) + r"(?:\w+\.)*?experts" if number else re.escape(block)
        for kind in ("weight", "bias"):
            parts = {
                part: {int(match[1]): one for name, one in apart.items()
                       if (match := re.search(rf"{place}\.(\d+)\.(?:{part}_proj|{short})\.{kind}$", name))}
                for part, short in (("gate", "w1"), ("up", "w3"), ("down", "w2"))
            }  # fmt: skip
            stacked = {part: torch.stack([one[n] for n in range(len(one))]) for part, one in parts.items() if one}
            if "gate" in stacked:
                gate, up = stacked.pop("gate"), stacked.pop("up")
                both = (
                    torch.cat([gate, up], 1)
                    if is_llama4 or module.is_concatenated
                    else torch.stack([gate, up], 2).flatten(1, 2)
                )
                stacked = {"gate_up": both, **stacked}
            for part, one in stacked.items():
                turned = one.mT if (is_llama4 or module.is_transposed) and kind == "weight" else one
                found[f"{block}.{part}_proj" + ("_bias" if kind == "bias" else "")] = turned
    return found


def _tensors(folder: Path) -> dict[str, Tensor]:
    return {name: one for file in sorted(folder.glob("*.safetensors")) for name, one in load_file(file).items()}


def _nf4(stored: dict[str, Tensor], original: dict[str, Tensor]) -> dict[str, Tensor]:
    """bitsandbytes' NF4: 64 weights a scale, high half of a byte first; 256 scales a scale, about an offset."""
    dense = {}
    for name, one in stored.items():
        state = stored.get(f"{name}.quant_state.bitsandbytes__nf4")
        if state is not None:
            told = json.loads(bytes(state.tolist()).decode())
            absmax = stored[f"{name}.nested_quant_map"][stored[f"{name}.absmax"].long()]
            nested = stored[f"{name}.nested_absmax"].repeat_interleave(told["nested_blocksize"])
            absmax = absmax * nested[: len(absmax)] + told["nested_offset"]
            codes = torch.stack([one.flatten() >> 4, one.flatten() & 15], -1).flatten().long()
            shape = told["shape"]
            flat = NF4[codes] * absmax.repeat_interleave(told["blocksize"])[: len(codes)]
            dense[name] = flat[: torch.Size(shape).numel()].reshape(shape)
        elif f"{name}.offset" in stored:  # several matrices in one tensor, each with its own scales
            scale = stored[f"{name}.scale"].repeat_interleave(256, 1)[:, : stored[f"{name}.absmax"].shape[1]]
            absmax = create_dynamic_map()[stored[f"{name}.absmax"].long()] * scale + stored[f"{name}.offset"][:, None]
            codes = torch.stack([one >> 4, one & 15], -1).flatten(1).long()
            dense[name] = (NF4[codes] * absmax.repeat_interleave(64, 1)[:, : codes.shape[1]]).view(original[name].shape)
        elif name in original:
            dense[name] = one
    return dense


def _int8(stored: dict[str, Tensor], original: dict[str, Tensor]) -> dict[str, Tensor]:
    """LLM.int8's rows: a row's largest is 127, and SCB."""
    dense = {}
    for name, one in stored.items():
        if one.dtype == torch.int8 and f"{name}.scale" in stored:  # several matrices in one tensor
            dense[name] = one.view(original[name].shape).float() * stored[f"{name}.scale"][..., None] / 127
        elif one.dtype == torch.int8:
            dense[name] = one.float() * stored[f"{name.removesuffix('weight')}SCB"][:, None] / 127
        elif name in original:
            dense[name] = one
    return dense


def _w4a16(stored: dict[str, Tensor], original: dict[str, Tensor]) -> dict[str, Tensor]:
    """compressed-tensors' pack-quantized: eight numbers in an int32, the first in the lowest bits, less 8."""
    dense = {}
    for name, one in stored.items():
        if name.endswith("_packed"):
            weight = name.removesuffix("_packed")
            _, cols = stored[f"{weight}_shape"].tolist()
            numbers = torch.stack([(one >> (4 * place)) & 15 for place in range(8)], -1).flatten(1)[:, :cols] - 8
            scale = stored[f"{weight}_scale"].float()
            dense[weight] = numbers.float() * scale.repeat_interleave(cols // scale.shape[1], 1)
        elif f"{name.rpartition('_')[0]}_packed" not in stored:
            dense[name] = one
    return dense


def _fp8(stored: dict[str, Tensor], original: dict[str, Tensor]) -> dict[str, Tensor]:
    """DeepSeek's: float8, and a factor for each block of 128 × 128."""
    dense = {}
    for name, one in stored.items():
        if one.dtype == torch.float8_e4m3fn:
            scale = stored[f"{name}_scale_inv"].repeat_interleave(128, -2).repeat_interleave(128, -1)
            dense[name] = one.float() * scale[..., : one.shape[-2], : one.shape[-1]]
        elif not name.endswith("_scale_inv"):
            dense[name] = one
    return dense


if __name__ == "__main__":
    main()
