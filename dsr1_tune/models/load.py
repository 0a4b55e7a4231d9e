"""A base model from a name: what can be refused is refused before any weights are read, the rest is loaded once."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError
from dsr1_tune.models import embedded, fp8, hub
from dsr1_tune.models.context import with_context
from dsr1_tune.models.memory import GIB, main_memory

_log = logging.getLogger(__name__)
NF4 = "dsr1_nf4"
"""The `quant_method` of what is stored in our 4 bits."""
NF4_BYTES = 4.13 / 8
"""Bytes a weight in 4 bits takes, its scales included."""
_EXAMPLE = (
    "a folder with config.json, tokenizer and *.safetensors, or a Hub id such as deepseek-ai/DeepSeek-V2-Lite-Chat"
)


@dataclass(frozen=True)
class Located:
    """A base that passed every check that needs no weights; its tokenizer is ready, so data can be prepared.

    `folder` holds config and tokenizer. Weights of a model on the Hub (`repo_id`) are downloaded when it is loaded.
    """

    folder: Path
    name: str
    revision: str | None
    tokenizer: Any
    config: Any
    repo_id: str | None = None


@dataclass(frozen=True)
class Loaded:
    """A model on its device with its tokenizer; `name` and `revision` say again where it came from."""

    model: Any
    tokenizer: Any
    name: str
    revision: str | None


def load(base: Base, progress: Callable[[str], None] | None = None, quantised: bool = False) -> Loaded:
    """Locate and load `base`; see `locate` and `load_located` for what can go wrong."""
    return load_located(locate(base, progress, quantised), base.dtype, quantised=quantised)


def locate(base: Base, progress: Callable[[str], None] | None = None, quantised: bool = False) -> Located:
    """Find `base` and check all that can be checked without its weights; builds the embedded base if it is asked for.

    Raises ModelError, saying where and what to do, for anything that is not a causal language model in safetensors
    with a tokenizer that has a chat template. Code that comes with a model is never run.
    """
    repo_id = None
    if base.model in (None, embedded.NAME):
        folder = embedded.ensure(progress)
        name, revision = embedded.NAME, folder.name
    elif local_path(base.model).exists():
        folder = local_path(base.model)
        name, revision = str(folder), None
    elif _is_path(base.model):
        raise ModelError(f"{base.model}: there is no such folder", hint=f"give {_EXAMPLE}")
    else:
        folder, revision = hub.fetch(base.model, base.revision)
        name = repo_id = base.model
    check_folder(folder, name)
    config = with_context(_read_config(folder, name), base.context, name)
    if all((folder / file).is_file() for file in weight_files(folder)) or repo_id is None:
        num_parameters = _check_weights(folder, name)
    else:
        num_parameters = _check_remote_weights(folder, repo_id, str(revision), config)
    _check_room(num_parameters, name, base.dtype, quantised)
    return Located(folder, name, revision, _read_tokenizer(folder, name), config, repo_id)


def load_located(located: Located, dtype: str = "auto", for_training: bool = False, quantised: bool = False) -> Loaded:
    """Load the weights of a located base, in `dtype` (see config.Base), onto this process's GPU or the CPU.

    `quantised` holds experts and linear layers in 4 bits, see moe.experts4bit. For training the model is left in
    train mode without a key-value cache, otherwise in eval mode. Raises ModelError
    when weights are missing, damaged, of other shapes than the config says, or more than the memory holds.
    """

    folder = _with_weights(located)
    device = pick_device()
    try:
        with _quiet():
            model, report = _read_model(located, folder, pick_dtype(dtype, device, quantised), device, quantised)
    except torch.OutOfMemoryError as error:
        raise ModelError(f"{located.name}: does not fit on {device}", hint=_SMALLER) from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        # Experts are stored one by one and stacked while loading; what that said is a traceback, in a log.
        said = "those of some experts are missing or of other shapes" if "conversion" in str(error) else _gist(error)
        raise ModelError(f"{located.name}: its weights cannot be loaded: {said}", hint=_COPY_AGAIN) from error
    _check_report(report, located.name)
    model.train(for_training)
    model.config.use_cache = not for_training
    return Loaded(model, located.tokenizer, located.name, located.revision)


def _read_model(
    located: Located, folder: Path, dtype: torch.dtype, device: torch.device, quantised: bool
) -> tuple[Any, dict[str, Any]]:
    """transformers' loader, in 4 bits where that is asked for; float8 weights are multiplied out one by one."""
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    from dsr1_tune.models.quantise import Nf4Config

    config = deepcopy(located.config)
    settings: dict[str, Any] = {
        "config": config,
        "dtype": dtype,
        "device_map": {"": device},
        "trust_remote_code": False,
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
    }
    stored_as: Any = getattr(config, "quantization_config", None)
    if quantised and not is_nf4(stored_as):
        settings["quantization_config"] = Nf4Config()
    if not fp8.is_block_fp8(stored_as):
        return AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **settings)
    del config.quantization_config
    rows, cols = stored_as["weight_block_size"]
    weights = fp8.open_weights(folder, weight_files(folder), (rows, cols))
    model, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(None, state_dict=weights, **settings)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, report


def is_nf4(quantisation: Any) -> bool:
    """Whether a config's `quantization_config` says that the weights are stored in our 4 bits."""
    return isinstance(quantisation, dict) and quantisation.get("quant_method") == NF4


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing its report on the loading, which is given on by `_check_report`."""
    from transformers.utils import logging as upstream

    before = upstream.get_verbosity()
    upstream.set_verbosity_error()
    try:
        yield
    finally:
        upstream.set_verbosity(before)


def _check_report(report: dict[str, Any], name: str) -> None:
    """Refuse a model whose checkpoint does not match its config: transformers fills the gaps with random numbers."""
    if wrong := sorted(report["mismatched_keys"]):
        key, stored, wanted = wrong[0]
        raise ModelError(
            f"{name}: {len(wrong)} weights are of other shapes than its config.json says, such as {key}: "
            f"{tuple(stored)} in place of {tuple(wanted)}",
            hint=_COPY_AGAIN,
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{name}: {len(missing)} weights are missing, such as {missing[0]}", hint=_COPY_AGAIN)
    if astray := sorted(report["unexpected_keys"]):
        _log.warning("%s: %d stored weights have no place in the model, such as %s", name, len(astray), astray[0])


def load_with_adapter(path: str | Path | None, progress: Callable[[str], None] | None = None) -> Loaded:
    """For using a model: a run folder, a PEFT adapter folder, a folder of trained experts, or any base.

    Raises ModelError as `locate` and `load_located` do, and for an adapter or experts that do not fit their base.
    """
    from dsr1_tune.models.trained_experts import find_trained_experts, put_experts_on

    if adapter := find_adapter(path):
        loaded = load(base_of(adapter), progress, quantised=_was_quantised(adapter))
        return Loaded(put_adapter_on(loaded, adapter), loaded.tokenizer, f"{path} over {loaded.name}", loaded.revision)
    if experts := find_trained_experts(path):
        loaded = load(base_of(experts), progress=progress)
        return Loaded(put_experts_on(loaded, experts), loaded.tokenizer, f"{path} over {loaded.name}", loaded.revision)
    return load(Base(model=None if path is None else str(_whole_model(path))), progress=progress)


def _whole_model(path: str | Path) -> str | Path:
    """The model that a run of `full` left in its folder, if `path` is one; else `path` itself."""
    folder = local_path(str(path))
    is_run = (folder / "manifest.json").is_file() and (folder / "model" / "config.json").is_file()
    return folder / "model" if is_run else path


# --- where to put it, and in which numbers ---------------------------------------------------------------------------


def local_path(name: str) -> Path:
    """`name` as a path here, ~ meaning home; one that names an unknown user (~nobody) stays as it is."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 - pathlib's raises for an unknown user


def pick_device() -> torch.device:
    """This process's GPU (LOCAL_RANK tells which, when several processes train together), else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))


def pick_dtype(dtype: str, device: torch.device, quantised: bool = False) -> torch.dtype:
    """What `dtype` means on `device`: "auto" is bfloat16 on a GPU that computes in it, else float32.

    Over a base in 4 bits it is bfloat16 everywhere: what is left is to take 16 bits.
    """
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    if quantised:
        return torch.bfloat16
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


_SMALLER = "try qlora, or --set base.dtype=bfloat16, choose a smaller model, or use a machine with more memory"


def _check_room(num_parameters: int, name: str, dtype: str, quantised: bool) -> None:
    """Refuse what cannot fit: the kernel would end the process without a word."""
    device = pick_device()
    number = pick_dtype(dtype, device)
    need = num_parameters * (NF4_BYTES if quantised else number.itemsize)
    have = _free_bytes(device)
    if need > have:
        held = "in 4 bits" if quantised else f"as {str(number).removeprefix('torch.')}"
        raise ModelError(
            f"{name}: its {num_parameters / 1e9:.1f} B weights need {need / GIB:.1f} GiB {held}, "
            f"{device} has {have / GIB:.1f} GiB free",
            hint=_SMALLER,
        )


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return main_memory().free


# --- the folder ------------------------------------------------------------------------------------------------------


def _is_path(name: str) -> bool:
    """Whether a name that is no existing file can only be meant as a path."""
    return name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or not _HUB_ID.fullmatch(name)


_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def check_folder(folder: Path, name: str) -> None:
    """Refuse what is no model folder, saying what it is. Raises ModelError."""
    if not folder.is_dir():
        kind = "a GGUF file: llama.cpp runs those, but they cannot be trained" if _is_gguf(folder) else "not a folder"
        raise ModelError(f"{name}: is {kind}", hint=f"give {_EXAMPLE}")
    if (folder / "config.json").is_file():
        return
    if (adapter := find_adapter(folder)) is not None:
        raise ModelError(
            f"{name}: is an adapter, not a base model", hint=f"its base is {base_of(adapter).model or embedded.NAME}"
        )
    if (folder / "manifest.json").is_file():
        command = _read_json(folder / "manifest.json").get("command", "lora")
        raise ModelError(f"{name}: is an unfinished run", hint=f"go on with it: dsr1-tune {command} --resume {name}")
    files = sorted(entry.name for entry in folder.iterdir())
    holds = ", ".join(files[:8]) + (", ..." if len(files) > 8 else "") if files else "nothing"
    raise ModelError(f"{name}: has no config.json; it holds {holds}", hint=f"give {_EXAMPLE}")


def _is_gguf(file: Path) -> bool:
    return file.suffix == ".gguf"


def _read_config(folder: Path, name: str) -> Any:
    """The model's config, if transformers itself knows its architecture as a causal language model."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    file = folder / "config.json"
    tree = _read_json(file)
    if "model_type" not in tree:
        raise ModelError(f"{file}: names no model_type", hint="copy the model's config.json again")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # its values reach validators of many kinds
        raise ModelError(
            f"{file}: transformers cannot use it: {_gist(error)}",
            hint="correct the file, or choose a model that transformers knows without the code that comes with it",
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{name}: is a {config.model_type}, which is no causal language model",
            hint=f"give {_EXAMPLE}",
        )
    quantised = tree.get("quantization_config")
    if quantised and not fp8.is_block_fp8(quantised) and not is_nf4(quantised):
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "unknown"
        raise ModelError(
            f"{name}: its weights are stored quantised ({method})", hint="give its copy in bfloat16, float16 or float32"
        )
    return config


def _read_json(file: Path) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{file}: cannot be read: {_gist(error)}", hint="copy the file again") from error
    if not isinstance(tree, dict):
        raise ModelError(f"{file}: holds no JSON object", hint="copy the file again")
    return tree


_ONE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
_CONVERT = "convert it to safetensors: pickled weights can run code when they are opened"
_COPY_AGAIN = "copy or download the model again; the weights do not belong to its config.json or are damaged"


def weight_files(folder: Path) -> list[str]:
    """The names of the model's safetensors files, those that its index lists or the only one."""
    if (folder / _INDEX).is_file():
        listed = _read_json(folder / _INDEX).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise ModelError(f"{folder / _INDEX}: lists no weights", hint="copy the file again")
        return sorted(set(map(str, listed.values())))
    return [_ONE_FILE]


def _check_weights(folder: Path, name: str) -> int:
    """The number of parameters in the safetensors files, from their headers; refuses missing and truncated ones."""
    again = "build it anew: dsr1-tune base --rebuild" if name == embedded.NAME else _COPY_AGAIN
    files = weight_files(folder)
    if files == [_ONE_FILE] and not (folder / _ONE_FILE).is_file():
        kinds = {entry.suffix for entry in folder.iterdir()}
        if kinds & _PICKLES:
            raise ModelError(f"{name}: has its weights only as {', '.join(sorted(kinds & _PICKLES))}", hint=_CONVERT)
        if ".gguf" in kinds:
            raise ModelError(f"{name}: has its weights only as .gguf, which cannot be trained", hint=f"give {_EXAMPLE}")
        raise ModelError(f"{name}: has no weights, neither {_ONE_FILE} nor {_INDEX}", hint=f"give {_EXAMPLE}")
    if absent := [file for file in files if not (folder / file).is_file()]:
        raise ModelError(
            f"{name}: {len(absent)} of {len(files)} weight files are missing, such as {absent[0]}", hint=again
        )
    num_parameters = 0
    for file in files:
        try:
            with safe_open(folder / file, framework="pt") as weights:
                for key in weights.keys():  # noqa: SIM118 - a safetensors file is no mapping
                    num_parameters += math.prod(weights.get_slice(key).get_shape())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{folder / file}: is damaged: {_gist(error)}", hint=again) from error
    return num_parameters


def _check_remote_weights(folder: Path, repo_id: str, commit: str, config: Any) -> int:
    """About the number of parameters of a model on the Hub; refuses it if it has no safetensors."""
    on_hub = hub.file_sizes(repo_id, commit)
    if on_hub is None:
        raise ModelError(
            f"{repo_id}: its weights are not in the local cache, and the Hub cannot be reached",
            hint="connect to the internet, check HF_HUB_OFFLINE, or give a folder that holds the model",
        )
    files = weight_files(folder)
    if absent := [file for file in files if file not in on_hub]:
        pickles = any(Path(file).suffix in _PICKLES for file in on_hub)
        raise ModelError(
            f"{repo_id}: has no {absent[0]} on the Hub" + (", only pickled weights" if pickles else ""),
            hint=_CONVERT if pickles else f"give {_EXAMPLE}",
        )
    stored_as = config.dtype if isinstance(config.dtype, torch.dtype) else torch.bfloat16
    if fp8.is_block_fp8(getattr(config, "quantization_config", None)):
        stored_as = torch.float8_e4m3fn
    return sum(on_hub[file] for file in files) // stored_as.itemsize


def _with_weights(located: Located) -> Path:
    """The folder with the weights, downloaded if they are only on the Hub."""
    if located.repo_id is None:
        return located.folder
    wanted = [*hub.DESCRIPTIVE, *weight_files(located.folder)]
    folder, _ = hub.fetch(located.repo_id, located.revision, wanted)
    _check_weights(folder, located.name)
    return folder


def _read_tokenizer(folder: Path, name: str) -> Any:
    """The tokenizer, with a chat template and a padding token."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a missing or damaged tokenizer shows in many ways, down to the Rust library's
        raise ModelError(
            f"{name}: has no tokenizer that can be read: {_gist(error)}",
            hint="copy tokenizer.json and tokenizer_config.json of the model into the folder",
        ) from error
    if not tokenizer.chat_template:
        raise ModelError(
            f"{name}: its tokenizer has no chat template, so questions and answers cannot be told apart",
            hint="choose the model's chat or instruct variant, or put its chat_template.jinja into the folder",
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


# --- adapters --------------------------------------------------------------------------------------------------------


def find_adapter(path: str | Path | None) -> Path | None:
    """The PEFT adapter folder that `path` is, or holds as a run folder does under adapter/; else None."""
    if path is None:
        return None
    folder = local_path(str(path))
    return next((place for place in (folder, folder / "adapter") if (place / "adapter_config.json").is_file()), None)


def put_adapter_on(loaded: Loaded, adapter: Path) -> Any:
    """The loaded model with the adapter on it; every weight of the adapter must have found its place."""
    from peft import PeftModel, get_peft_model_state_dict

    from dsr1_tune.moe.expert_lora import use_grouped_products

    file = adapter / "adapter_model.safetensors"
    if not file.is_file():
        raise ModelError(
            f"{adapter}: has no {file.name}", hint="copy the adapter again; pickled weights are not opened"
        )
    try:
        with safe_open(file, framework="pt") as weights:
            in_file = set(weights.keys())
        with warnings.catch_warnings():  # of missing weights, which are refused below
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", RuntimeWarning)  # of ranks of single groups, which it does not ignore
            model = PeftModel.from_pretrained(loaded.model, str(adapter))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"{adapter}: does not go onto {loaded.name}: {_gist(error)}", hint=_RIGHT_BASE) from error
    # PEFT only warns of weights that the file lacks, and says nothing of those that the model has no place for.
    if astray := sorted(in_file ^ set(get_peft_model_state_dict(model))):
        raise ModelError(
            f"{adapter}: does not go onto {loaded.name}: {len(astray)} weights do not match, such as {astray[0]}",
            hint=_RIGHT_BASE,
        )
    use_grouped_products(model)
    return model.eval()


_RIGHT_BASE = "give an adapter together with the base that it was trained on"


def base_of(adapter: Path) -> Base:
    """The base that an adapter, or experts, were trained on: as the run's manifest says, else as their config does."""
    manifest = adapter.parent / "manifest.json"
    if manifest.is_file():
        base = _read_json(manifest).get("base")
        if isinstance(base, dict) and isinstance(base.get("name"), str):
            # A folder has no revision, and may have been named from another working directory.
            name = base["name"] if base.get("revision") else str(base.get("folder") or base["name"])
            return _base(name, base.get("revision"), **_settings_in(manifest))
    own = (adapter / name for name in ("adapter_config.json", "experts_config.json"))
    config = next((_read_json(file) for file in own if file.is_file()), {})
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelError(f"{adapter}: does not say which base it belongs to", hint="train it again, or name its base")
    return _base(name, config.get("revision"))


def _was_quantised(adapter: Path) -> bool:
    """Whether an adapter was trained over a base in 4 bits, as its run's manifest says."""
    manifest = adapter.parent / "manifest.json"
    return manifest.is_file() and _read_json(manifest).get("command") == "qlora"


def _settings_in(manifest: Path) -> dict[str, Any]:
    """How a run held its base: the number format and the context, where the manifest says so."""
    config = _read_json(manifest).get("config")
    base = config.get("base") if isinstance(config, dict) else None
    if not isinstance(base, dict):
        return {}
    dtype, context = base.get("dtype"), base.get("context")
    settings: dict[str, Any] = {"dtype": dtype} if dtype in ("float32", "bfloat16", "float16") else {}
    return settings | ({"context": context} if isinstance(context, int) and context > 0 else {})


def _base(name: str, revision: str | None, **settings: Any) -> Base:
    """A base by the name it was recorded under; the embedded base may lie in another cache by now."""
    if Path(name).name.startswith(embedded.FOLDER_PREFIX) or name == embedded.NAME:
        return Base(**settings)
    return Base(model=name, revision=None if Path(name).exists() else revision, **settings)


def _gist(error: BaseException) -> str:
    """The first line of an error that says something, with the next where it only announces that."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])
