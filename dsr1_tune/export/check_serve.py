"""`check-serve`: whether an engine's released version loads a model, an adapter or a GGUF file, and what it does load.

The facts are in engines.yaml, with the release and the source file that each was read in.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from packaging.version import InvalidVersion, Version

from dsr1_tune.errors import ConfigError
from dsr1_tune.export import lineage
from dsr1_tune.models import artifact as artifacts
from dsr1_tune.models.artifact import Artifact, command_for

TABLE = Path(__file__).with_name("check_serve.yaml")


@dataclass(frozen=True)
class RewardResult:
    """What an engine makes of an artifact."""

    engine: str
    title: str
    version: str
    """The release that the facts are of."""
    artifact: Artifact
    problems: tuple[str, ...]
    """Why it is not loaded, or would be served wrongly; empty if all is well."""
    remarks: tuple[str, ...]
    command: str | None
    """What serves it, if it is loaded."""
    instead: tuple[str, ...] = ()
    """If not, the commands that make something of it that the engine does load."""
    sources: tuple[str, ...] = ()

    @property
    def loads(self) -> bool:
        """Whether it can be served."""
        return not self.problems


def run(place: Path | str | Artifact, engine: str, version: str | None = None) -> RewardResult:
    """Hold what is at `place`, or has been looked at already, against what the engine loads.

    Raises ConfigError for an unknown engine or version, and ModelError for what is no artifact.
    """
    table = engines()
    if engine not in table:
        raise ConfigError(f"--engine: {engine} is unknown", hint=f"it is one of {', '.join(table)}")
    release, remark = _release(table[engine], engine, version)
    artifact = place if isinstance(place, Artifact) else artifacts.of(place)
    problems = tuple(_problems(artifact, release, str(table[engine]["title"])))
    remarks = tuple(note for note in (remark, *_remarks(artifact, release)) if note)
    command = None if problems else shlex.join(command_for(artifact, engine))
    instead = _instead(artifact, release, engine) if problems else ()
    title, known = str(table[engine]["title"]), str(release["version"])
    return RewardResult(engine, title, known, artifact, problems, remarks, command, instead, tuple(release["sources"]))


@lru_cache
def engines() -> Mapping[str, Any]:
    """The table of facts."""
    tree: dict[str, Any] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return tree


def _release(facts: Mapping[str, Any], engine: str, version: str | None) -> tuple[Mapping[str, Any], str]:
    """The release of which facts are known that is nearest to `version`, and what is to be said of that."""
    newest: Mapping[str, Any] = facts["releases"][0]
    if version is None or version == newest["version"]:
        return newest, ""
    wanted = _number(version)
    older = next((one for one in facts["releases"] if _number(one["version"]) <= wanted), None)
    known = (older or facts["releases"][-1])["version"]
    if older is None:
        return facts["releases"][-1], f"nothing is known here of {version}: the oldest release looked at is {known}"
    return older, "" if known == version else f"{version} was not looked at; what follows is of {known}"


def _number(version: str) -> Version:
    """Comparable; llama.cpp counts its builds as b11549. Raises ConfigError for what is no version."""
    try:
        return Version(re.sub(r"^[bv](?=\d)", "", version))
    except InvalidVersion:
        raise ConfigError(f"--engine-version: {version} is no version", hint="for example 0.33.0 or b11549") from None


# --- what is wrong ---------------------------------------------------------------------------------------------------


def _problems(artifact: Artifact, release: Mapping[str, Any], title: str) -> Iterator[str]:
    if artifact.kind == "adapter":
        yield from _adapter_problems(artifact, release, title)
        return
    if not release["formats"].get(artifact.format):
        why = release["refused"].get(artifact.format) or f"it reads only {', '.join(release['formats'])}"
        what = "in 16 or 32 bits" if artifact.format == "none" else f"as {artifact.format}"
        yield f"the model is stored {what}, which {title} does not read: {why}"
    if artifact.kind == "gguf":
        yield from _gguf_problems(artifact, release, title)
        return
    known = release["architectures"]
    if known != "any" and artifact.architecture not in known:
        named = artifact.architecture or "not named in config.json"
        yield f"its architecture, {named}, is none that {title} is known for"
    if known == "any" and not _is_known_to_transformers(artifact):
        yield f"transformers does not know its model_type, {artifact.config.get('model_type')}"
    if not artifact.has_tokenizer:
        yield "it has no tokenizer: copy tokenizer.json and tokenizer_config.json of the base into the folder"
    for check in (_topk_method, *_OF_SHAPE, _router_is_quantized, _group_size, _block_size):
        yield from check(artifact, release, title)


def _is_known_to_transformers(artifact: Artifact) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return artifact.config.get("model_type") in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _topk_method(artifact: Artifact, release: Mapping[str, Any], title: str) -> Iterator[str]:
    """transformers leaves out of the configs that it makes what other engines pick the router by."""
    if artifact.architecture not in release.get("wants_topk_method", ()):
        return
    needed = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"} if "V3" in artifact.architecture else {}
    needed = needed or {"topk_method": "greedy", "scoring_func": "softmax"}
    if absent := [name for name in needed if name not in artifact.config]:
        words = ", ".join(f'"{name}": "{needed[name]}"' for name in absent)
        yield (
            f"its config.json lacks {' and '.join(absent)}, so that {title} would take another router than the model "
            f"was trained with, or none: add {words}"
        )


def _attention_bias(artifact: Artifact, release: Mapping[str, Any], title: str) -> Iterator[str]:
    is_biased = any(re.search(r"self_attn\.\w+\.bias$", name) for name in artifact.names)
    if artifact.architecture in release.get("no_attention_bias", ()) and is_biased:
        yield f"its attention has biases, as the embedded base's has, and {title} has no place for them"


def _rope(artifact: Artifact, release: Mapping[str, Any], title: str) -> Iterator[str]:
    known = (release.get("ropes") or {}).get(artifact.architecture)
    rope = artifact.config.get("rope_parameters") or artifact.config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if known and kind not in known:
        yield f"its rope is of type {kind}; {title} computes only {' and '.join(known)} for this architecture"


def _whole_queries(artifact: Artifact, release: Mapping[str, Any], title: str) -> Iterator[str]:
    """llama.cpp tells V2-Lite, the one DeepSeek that it reads without low-rank queries, by its number of layers."""
    config = artifact.config
    if "gguf_architectures" not in release or not artifact.architecture.startswith(("DeepseekV2", "DeepseekV3")):
        return
    if config.get("q_lora_rank") is None and config.get("num_hidden_layers") not in _LITE_LAYERS:
        yield f"it has no q_lora_rank, which {title} reads of V2-Lite with its 27 layers only"


_OF_SHAPE = (_attention_bias, _rope, _whole_queries)
"""What no other format of the same model mends."""


def _router_is_quantized(artifact: Artifact, release: Mapping[str, Any], title: str) -> Iterator[str]:
    """Engines take every linear layer that is not listed for quantized, and routers are not."""
    if artifact.format != "compressed-tensors":
        return
    ignored = [str(entry) for entry in artifact.config["quantization_config"].get("ignore") or ()]
    routers = {match[1] for name in artifact.names if (match := re.fullmatch(r"(.*\.(gate|router))\.weight", name))}
    if left := [name for name in sorted(routers) if not any(_means(entry, name) for entry in ignored)]:
        yield f"{len(left)} routers, such as {left[0]}, are not in quantization_config.ignore, so {title} fails on them"


def _means(entry: str, name: str) -> bool:
    """compressed-tensors' way of naming layers: a full name, or re: and a regular expression."""
    return bool(re.match(entry[3:], name)) if entry.startswith("re:") else entry == name


def _group_size(artifact: Artifact, release: Mapping[str, Any], title: str) -> Iterator[str]:
    if artifact.format != "compressed-tensors" or "group_sizes" not in release:
        return
    for group in artifact.config["quantization_config"].get("config_groups", {}).values():
        size = (group.get("weights") or {}).get("group_size") or -1
        if size not in release["group_sizes"]:
            yield f"its groups have {size} weights; {title} has kernels for {release['group_sizes'][1:]}"


def _block_size(artifact: Artifact, release: Mapping[str, Any], title: str) -> Iterator[str]:
    block = (artifact.config.get("quantization_config") or {}).get("weight_block_size")
    size = artifact.config.get(release.get("block_divides", "")) or artifact.config.get("intermediate_size")
    if artifact.format == "fp8" and block and "block_divides" in release and size and size % block[0]:
        yield f"its experts are {size} wide, which {title}'s blocks of {block[0]} do not divide"


def _gguf_problems(artifact: Artifact, release: Mapping[str, Any], title: str) -> Iterator[str]:
    if artifact.format not in release["formats"]:
        return
    known, name = release["gguf_architectures"], artifact.architecture
    if name not in known:
        yield f"its architecture, {name or 'not named'}, is none that {title} is known for"
    if name != "deepseek2":
        return
    gating = artifact.config.get("deepseek2.expert_gating_func")
    if any("exp_probs_b" in tensor for tensor in artifact.names) and gating != _SIGMOID:
        yield f"it says that its router is a softmax, but it has V3's: {title} would answer wrongly; write it again"
    if "deepseek2.attention.q_lora_rank" not in artifact.config:
        num_layers = artifact.config.get("deepseek2.block_count")
        if num_layers not in _LITE_LAYERS:
            yield f"a DeepSeek without q_lora_rank is taken for V2-Lite, with 27 layers, but it has {num_layers}"


_SIGMOID = 2
_LITE_LAYERS = (26, 27)


def _adapter_problems(artifact: Artifact, release: Mapping[str, Any], title: str) -> Iterator[str]:
    facts = release["adapters"]
    known = release["architectures"]
    if known != "any" and artifact.architecture and artifact.architecture not in known:
        yield f"its base's architecture, {artifact.architecture}, is none that {title} is known for"
    if not facts["forms"]:
        yield f"{title} does not read adapters in this format"
        return
    if artifact.form not in facts["forms"]:
        hint = facts["fused_hint"] or "its library fuses the experts, and does not know this adapter's names"
        yield f"the adapter is {artifact.form}: {hint}"
    for setting in (*facts["refuses"], *facts.get("ignores", ())):
        if artifact.config.get(setting):
            verb = "refuses" if setting in facts["refuses"] else "leaves out, without a word, what is meant by"
            yield f"{title} {verb} {setting}, which the adapter has"
    if facts.get("needs_all_projections") and artifact.form == "per-expert":
        found = {match[1] for name in artifact.names if (match := re.search(r"\.experts\.\d+\.(\w+)\.lora_A", name))}
        if len(found) < 3:
            yield f"it has factors on {' and '.join(sorted(found))} of the experts only; {title} wants all three"


def _remarks(artifact: Artifact, release: Mapping[str, Any]) -> Iterator[str]:
    if not artifact.has_template:
        yield "it has no chat template: the engine will refuse /v1/chat/completions"
    if artifact.kind == "adapter" and not artifact.architecture:
        yield f"its base, {artifact.base}, is not on this machine, so that its architecture was not looked at"
    if package := (release.get("packages") or {}).get(artifact.format):
        yield f"it needs pip install {package}, and holds the experts in 16 bits"


# --- what it does load ------------------------------------------------------------------------------------------------


def _instead(artifact: Artifact, release: Mapping[str, Any], engine: str) -> tuple[str, ...]:
    """Commands of ours after which the engine has something that it loads; none if it has no place for the model."""
    known = release["architectures"]
    is_known = known == "any" or not artifact.architecture or artifact.architecture in known
    if artifact.kind == "adapter":
        return _instead_of_adapter(artifact, release, engine) if is_known else ()
    if artifact.kind == "gguf" or artifact.format not in ("none", "fp8"):
        source = _made_of(artifact)
    else:
        source = str(artifact.path)
    has_place = is_known and not any(problem for check in _OF_SHAPE for problem in check(artifact, release, ""))
    if artifact.kind != "gguf" and not has_place:
        return ()
    if engine == "llama.cpp" and artifact.kind == "model":
        return (f"dsr1-tune quantize {source} --to gguf --out {source}-gguf",)
    if artifact.format in release["formats"]:
        return ()  # the format is not what is wrong: the reasons say what to mend
    if engine == "transformers":
        if source == _UNKNOWN:  # a plain model, which nothing is merged into
            return (f"dsr1-tune serve {source} --engine transformers",)
        return (f"dsr1-tune merge {source} --out {source}-merged",)
    return (f"dsr1-tune quantize {source} --to w4a16 --out {source}-w4a16",)


def _instead_of_adapter(artifact: Artifact, release: Mapping[str, Any], engine: str) -> tuple[str, ...]:
    """Converted where only its form is at fault, otherwise merged; what is taken apart must be put together first."""
    facts, path = release["adapters"], artifact.path
    is_refused = any(artifact.config.get(name) for name in (*facts.get("refuses", ()), *facts.get("ignores", ())))
    run = path.parent if (path.parent / "manifest.json").is_file() else path
    if facts["forms"] and artifact.form not in facts["forms"] and not is_refused:
        form = "peft-fused" if "peft-fused" in facts["forms"] else "per-expert"
        return (f"dsr1-tune convert-adapter {run} --to {form} --out {run}-{form}",)
    steps = []
    if artifact.form == "per-expert":
        steps = [f"dsr1-tune convert-adapter {run} --to peft-fused --out {run}-peft-fused"]
        run = run.with_name(f"{run.name}-peft-fused")
    steps.append(f"dsr1-tune merge {run} --out {run}-merged")
    if engine == "llama.cpp":
        steps.append(f"dsr1-tune quantize {run}-merged --to gguf --out {run}-gguf")
    return tuple(steps)


def _made_of(artifact: Artifact) -> str:
    """The 16-bit model or run that a quantized one was made of, as far as lineage.json knows."""
    folder = artifact.path if artifact.path.is_dir() else artifact.path.parent
    known = lineage.read(folder)
    train = known.stage("train") if known else None
    return str(train.facts["run"]) if train and "run" in train.facts else _UNKNOWN


_UNKNOWN = "MODEL_IN_16_BITS"
