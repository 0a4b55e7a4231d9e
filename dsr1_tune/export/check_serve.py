"""`check-serve`: whether an engine's released version loads a model, an adapter or a GGUF file, and what it does load.

There are three answers: what is not looked up here may load all the same, and is not said to fail. Which
formats it loads stands with each format in formats/, the other facts of an engine in check_serve.yaml.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.version import InvalidVersion, Version

from dsr1_tune.errors import ConfigError, ModelError
from dsr1_tune.export import check_experts as experts
from dsr1_tune.export import lineage
from dsr1_tune.export.engine_table import Engine, engines, format_of, table
from dsr1_tune.export.formats.registry import formats
from dsr1_tune.export.gguf.source import unsupported
from dsr1_tune.models import artifact as artifacts
from dsr1_tune.models.artifact import Artifact, command_for
from dsr1_tune.models.folder import ModelFolder
from dsr1_tune.models.llama_cpp import client
from dsr1_tune.models.tokenizer_files import GENERATION, unnamed_ends
from dsr1_tune.text.amount import amount

_LATENT = ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM")
_SIGMOID = 2
_LITE_LAYERS = (26, 27)
_UNKNOWN = "MODEL_IN_16_BITS"
_NO_ADAPTERS = {
    "llama.cpp": "it is a PEFT adapter, and llama.cpp reads models, merged and as GGUF",
    "transformers": "it is a PEFT adapter, and `transformers serve` reads whole models, merged",
}


@dataclass(frozen=True)
class ServeCheck:
    """Whether an engine loads an artifact."""

    engine: str
    title: str
    version: str
    """The release that the facts are of."""
    artifact: Artifact
    problems: tuple[str, ...]
    """Why it is not loaded, or would be served wrongly; empty if nothing is known to be wrong."""
    unknown: tuple[str, ...]
    """What is not known here, so that it may load or not."""
    remarks: tuple[str, ...]
    command: str | None
    """What serves it, if it is loaded; what tries to, if that is not known."""
    instead: tuple[str, ...] = ()
    """If not, the commands that make something of it that the engine does load."""

    @property
    def loads(self) -> bool:
        """Whether it is known to be served."""
        return self.answer == "loads"

    @property
    def answer(self) -> Literal["loads", "does not load", "not known"]:
        """What is said of it; what is wrong for sure outweighs what is not known."""
        if self.problems:
            return "does not load"
        return "not known" if self.unknown else "loads"


def run(place: Path | str | Artifact, engine: str, version: str | None = None) -> ServeCheck:
    """Check what is at `place`, or has been looked at already, against what the engine loads.

    Raises ConfigError for an unknown engine or version, and ModelError for what is no artifact.
    """
    if engine not in engines():
        raise ConfigError(f"--engine: {engine} is unknown", hint=f"it is one of {', '.join(engines())}")
    known = engines()[engine]
    artifact = place if isinstance(place, Artifact) else artifacts.of(place)
    remarks = (*_version_remarks(known, version), *_remarks(artifact, known))
    problems, unknown = tuple(_problems(artifact, known)), tuple(_not_known(artifact, known))
    command = None if problems else shlex.join(command_for(artifact, engine))
    instead = _instead(artifact, known) if problems else ()
    return ServeCheck(engine, known.title, known.version, artifact, problems, unknown, remarks, command, instead)


def _version_remarks(engine: Engine, version: str | None) -> Iterator[str]:
    """What there is to say where another release is meant than the one that is known."""
    if version is None or version == engine.version:
        return
    if _number(version) < _number(engine.version):
        yield f"nothing is known here of {version}: the oldest release looked at is {engine.version}"
    elif _number(version) > _number(engine.version):
        yield f"{version} was not looked at; what follows is of {engine.version}"


def _number(version: str) -> Version:
    """Comparable; llama.cpp counts its builds as b11549. Raises ConfigError for what is no version."""
    try:
        return Version(re.sub(r"^[bv](?=\d)", "", version))
    except InvalidVersion:
        raise ConfigError(f"--engine-version: {version} is no version", hint="for example 0.33.0 or b11549") from None


# --- what is wrong ---------------------------------------------------------------------------------------------------


def _problems(artifact: Artifact, engine: Engine) -> Iterator[str]:
    title = engine.title
    if artifact.kind == "adapter":
        yield from _adapter_problems(artifact, engine)
        return
    if not engine.reads(artifact):
        form = format_of(artifact)
        what = "in 16 or 32 bits" if artifact.format == "none" else f"as {form.name if form else artifact.format}"
        read = sorted({*engine.formats, *(one.name for one in formats().values() if engine.name in one.loads_in)})
        why = (form and form.refused_by.get(engine.name)) or f"it reads only {', '.join(read)}"
        yield f"the model is stored {what}, which {title} does not read: {why}"
    if artifact.kind == "gguf":
        yield from _gguf_problems(artifact, engine)
        return
    if engine.is_own and not artifact.architecture:
        yield f"its config.json names no architecture, by which {title} chooses the code that runs it"
    if not engine.is_own:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        model_type = artifact.config.get("model_type")
        if model_type not in CONFIG_MAPPING_NAMES:
            yield f"transformers does not know its model_type, {model_type}"
    if not artifact.has_tokenizer:
        yield "it has no tokenizer: copy tokenizer.json and tokenizer_config.json of the base into the folder"
    for check in (_topk_method, _shape, _arithmetic, _router_is_quantized, _group_size, _block_size, experts.problems):
        yield from check(artifact, engine)


def _topk_method(artifact: Artifact, engine: Engine) -> Iterator[str]:
    """transformers leaves out of the configs that it makes what other engines pick the router by."""
    if artifact.architecture not in engine.wants_topk_method:
        return
    needed = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"} if "V3" in artifact.architecture else {}
    needed = needed or {"topk_method": "greedy", "scoring_func": "softmax"}
    if absent := [name for name in needed if name not in artifact.config]:
        words = ", ".join(f'"{name}": "{needed[name]}"' for name in absent)
        yield (
            f"its config.json lacks {' and '.join(absent)}, so that {engine.title} would take another router than the "
            f"model was trained with, or none: add {words}"
        )


def _shape(artifact: Artifact, engine: Engine) -> Iterator[str]:
    """What no other format of the same model mends."""
    if not engine.is_own or artifact.architecture not in _LATENT:
        return
    config = artifact.config
    if any(re.search(r"self_attn\.\w+\.bias$", name) for name in artifact.names):
        yield f"its attention has biases, as the embedded base's has, and {engine.title} has no place for them"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "yarn"):
        yield f"its rope is of type {kind}; {engine.title} computes only default and yarn for this architecture"
    # llama.cpp tells V2-Lite, the one DeepSeek that it reads without low-rank queries, by its number of layers.
    is_lite = config.get("q_lora_rank") is not None or config.get("num_hidden_layers") in _LITE_LAYERS
    if engine.name == "llama.cpp" and not is_lite:
        yield f"it has no q_lora_rank, which {engine.title} reads of V2-Lite with its 27 layers only"


def _arithmetic(artifact: Artifact, engine: Engine) -> Iterator[str]:
    """What llama.cpp would compute in another way than the model was trained with, for which no GGUF is written."""
    if engine.name == "llama.cpp" and artifact.kind != "gguf" and (config := experts.own_config(artifact)) is not None:
        yield from (f"it has {what}, which {engine.title} does not compute" for what in unsupported(config))


def _router_is_quantized(artifact: Artifact, engine: Engine) -> Iterator[str]:
    """Engines take every linear layer that is not listed for quantized, and routers are not."""
    if artifact.format != "compressed-tensors":
        return
    # compressed-tensors names layers by a full name, or by re: and a regular expression.
    entries = [str(entry) for entry in artifact.config["quantization_config"].get("ignore") or ()]
    ignored = [entry[3:] if entry.startswith("re:") else f"{re.escape(entry)}$" for entry in entries]
    routers = {match[1] for name in artifact.names if (match := re.fullmatch(r"(.*\.(gate|router))\.weight", name))}
    if left := [name for name in sorted(routers) if not any(re.match(entry, name) for entry in ignored)]:
        told = f"{amount(len(left), 'router is', 'routers are')} not in quantization_config.ignore, such as {left[0]}"
        yield f"{told}, and {engine.title} fails on that"


def _group_size(artifact: Artifact, engine: Engine) -> Iterator[str]:
    if artifact.format != "compressed-tensors" or engine.name not in ("vllm", "sglang"):
        return
    for group in artifact.config["quantization_config"].get("config_groups", {}).values():
        size = (group.get("weights") or {}).get("group_size") or -1
        if size not in (-1, 32, 64, 128):
            yield f"its groups have {amount(size, 'weight')}; {engine.title} has kernels for [32, 64, 128]"


def _block_size(artifact: Artifact, engine: Engine) -> Iterator[str]:
    """A block must not straddle two experts' gate and up projections."""
    block = (artifact.config.get("quantization_config") or {}).get("weight_block_size")
    size = artifact.config.get("moe_intermediate_size") or artifact.config.get("intermediate_size")
    if artifact.format == "fp8" and block and engine.name in ("vllm", "sglang") and size and size % block[0]:
        yield f"its experts are {size} wide, which {engine.title}'s blocks of {block[0]} do not divide"


def _gguf_problems(artifact: Artifact, engine: Engine) -> Iterator[str]:
    if not engine.reads(artifact):
        return
    name = artifact.architecture
    if not name:
        yield "the file does not name its architecture"
    elif _knows_gguf(artifact) is False:
        yield f"its architecture, {name}, is unknown to the {engine.title} that is installed here ({client.version()})"
    if name != "deepseek2":
        return
    gating = artifact.config.get("deepseek2.expert_gating_func")
    if any("exp_probs_b" in tensor for tensor in artifact.names) and gating != _SIGMOID:
        would = f"{engine.title} would answer wrongly"
        yield f"it says that its router is a softmax, but it has V3's: {would}; write it again"
    if "deepseek2.attention.q_lora_rank" not in artifact.config:
        num_layers = artifact.config.get("deepseek2.block_count")
        if num_layers not in _LITE_LAYERS:
            yield f"a DeepSeek without q_lora_rank is taken for V2-Lite, with 27 layers, but it has {num_layers}"


def _adapter_problems(artifact: Artifact, engine: Engine) -> Iterator[str]:
    facts, title = engine.adapters, engine.title
    if (kind := str(artifact.config.get("peft_type") or "LORA")) != "LORA":
        yield f"it is a PEFT adapter of the kind {kind}, and {title} and `merge` take LoRA alone"
    yield from _arithmetic(artifact, engine)
    if not facts["forms"]:
        yield _NO_ADAPTERS[engine.name]
        return
    if artifact.form not in facts["forms"] and not experts.may_take_fused(artifact, engine):
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


# --- what is not known -----------------------------------------------------------------------------------------------


def _not_known(artifact: Artifact, engine: Engine) -> Iterator[str]:
    """Why it may load or not: an architecture that was not looked up for the engine."""
    name, title = artifact.architecture, engine.title
    if artifact.kind == "gguf":
        if engine.is_llama_cpp and name and _knows_gguf(artifact) is None:
            yield f"its architecture, {name}, was not looked up; {client.INSTALL} asks {title} itself"
    elif name and not engine.knows(name):
        whose = "its base's" if artifact.kind == "adapter" else "its"
        further = "" if engine.is_llama_cpp else f"; {title} may run it through transformers, or not"
        yield f"{whose} architecture, {name}, is none of those that were looked up for {title}{further}"
    elif engine.is_own:
        yield from experts.not_known(artifact, engine)
    elif artifact.kind == "model":
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        model_type = artifact.config.get("model_type")
        if model_type in CONFIG_MAPPING_NAMES and model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            yield f"its model_type, {model_type}, is more than a language model, and was not tried"


def _knows_gguf(artifact: Artifact) -> bool | None:
    """Whether llama.cpp has code for what is in a GGUF file: looked up, noted when it was written, or asked here."""
    named = {facts.get("gguf") for facts in table()["architectures"].values()} | set(table()["further_gguf"])
    known = lineage.read(artifact.path.parent)
    stage = known.stage("quantize") if known else None
    if artifact.architecture in named or (stage and stage.facts.get("loaded_by")):
        return True
    return client.knows(artifact.architecture)


def _remarks(artifact: Artifact, engine: Engine) -> Iterator[str]:
    if not artifact.has_template:
        yield "it has no chat template: the engine will refuse /v1/chat/completions"
    if unnamed := _unnamed_ends(artifact):
        yield f"{unnamed} ends its answers, but is not named in its {GENERATION}: add its id to eos_token_id there"
    if artifact.kind == "adapter" and not artifact.architecture:
        yield f"its base, {artifact.base}, is not on this machine, so that its architecture was not looked at"
    if engine.name == "transformers" and artifact.format == "compressed-tensors":
        yield "it needs pip install compressed-tensors, and holds the experts in 16 bits"


def _unnamed_ends(artifact: Artifact) -> str:
    """What ends a model's answers without an engine's knowing; those of our merge and quantize say it."""
    if artifact.kind != "model" or not (artifact.has_tokenizer and artifact.has_template):
        return ""
    try:
        tokenizer = ModelFolder(artifact.path, str(artifact.path)).read_tokenizer()
    except ModelError:  # the engine will say so
        return ""
    return ", ".join(unnamed_ends(artifact.path, tokenizer))


# --- what it does load ------------------------------------------------------------------------------------------------


def _instead(artifact: Artifact, engine: Engine) -> tuple[str, ...]:
    """Commands of ours after which the engine has something that it loads; none if it has no place for the model."""
    is_known = not artifact.architecture or engine.knows(artifact.architecture)
    if artifact.kind == "adapter":
        return _instead_of_adapter(artifact, engine) if is_known and not any(_arithmetic(artifact, engine)) else ()
    if artifact.kind == "gguf" or artifact.format not in ("none", "fp8"):
        source = _made_of(artifact)
    else:
        source = str(artifact.path)
    has_place = is_known and not any(_shape(artifact, engine)) and not any(_arithmetic(artifact, engine))
    if artifact.kind != "gguf" and not has_place:
        return ()
    if engine.name == "llama.cpp" and artifact.kind == "model":
        return (f"dsr1-tune quantize {source} --to gguf --out {source}-gguf",)
    if engine.reads(artifact):
        return ()  # the format is not what is wrong: the reasons say what to mend
    if engine.name == "transformers":
        if source == _UNKNOWN:  # a plain model, which nothing is merged into
            return (f"dsr1-tune serve {source} --engine transformers",)
        return (f"dsr1-tune merge {source} --out {source}-merged",)
    return (f"dsr1-tune quantize {source} --to w4a16 --out {source}-w4a16",)


def _instead_of_adapter(artifact: Artifact, engine: Engine) -> tuple[str, ...]:
    """Converted where only its form is at fault, otherwise merged; a per-expert one must be fused first."""
    facts, path = engine.adapters, artifact.path
    if artifact.config.get("peft_type") not in (None, "LORA"):
        return ()
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
    if engine.name == "llama.cpp":
        steps.append(f"dsr1-tune quantize {run}-merged --to gguf --out {run}-gguf")
    return tuple(steps)


def _made_of(artifact: Artifact) -> str:
    """The 16-bit model or run that a quantized one was made of, as far as lineage.json knows."""
    folder = artifact.path if artifact.path.is_dir() else artifact.path.parent
    known = lineage.read(folder)
    train = known.stage("train") if known else None
    return str(train.facts["run"]) if train and "run" in train.facts else _UNKNOWN
