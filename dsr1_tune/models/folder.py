"""A model's folder as it lies on disk: what is refused before any weights are read, and what its files say."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError
from dsr1_tune.models import embedded
from dsr1_tune.models.weights.index import COPY_AGAIN, INDEX, ONE_FILE, gist, read_json, weight_files
from dsr1_tune.models.weights.stored_format import is_nf4, prequantized_kind
from dsr1_tune.quant import fp8, w4a16

REWARD_CONFIG = "reward_config.json"
"""It lies beside the weights of a reward model, which writes no answers."""
EXAMPLE = (
    "a folder with config.json, tokenizer and *.safetensors, or a Hub id such as deepseek-ai/DeepSeek-V2-Lite-Chat"
)


def local_path(name: str) -> Path:
    """`name` as a path here, ~ meaning home; one that names an unknown user (~nobody) stays as it is."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 - pathlib's raises for an unknown user


PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
CONVERT = "convert it to safetensors: pickled weights can run code when they are opened"


def check_folder(folder: Path, name: str, may_score: bool = False) -> None:
    """Refuse what is no model folder, and what is a reward model unless it `may_score`. Raises ModelError."""
    if not folder.is_dir():
        kind = "a GGUF file: llama.cpp runs those, but they cannot be trained" if _is_gguf(folder) else "not a folder"
        raise ModelError(f"{name}: is {kind}", hint=f"give {EXAMPLE}")
    if not may_score:
        _refuse_reward(folder, name)
    if (folder / "config.json").is_file():
        return
    if (adapter := find_adapter(folder)) is not None:
        raise ModelError(
            f"{name}: is an adapter, not a base model", hint=f"its base is {base_of(adapter).model or embedded.NAME}"
        )
    if (folder / "manifest.json").is_file():
        command = read_json(folder / "manifest.json").get("command", "lora")
        raise ModelError(f"{name}: is an unfinished run", hint=f"go on with it: dsr1-tune {command} --resume {name}")
    files = sorted(entry.name for entry in folder.iterdir())
    holds = ", ".join(files[:8]) + (", ..." if len(files) > 8 else "") if files else "nothing"
    raise ModelError(f"{name}: has no config.json; it holds {holds}", hint=f"give {EXAMPLE}")


def _is_gguf(file: Path) -> bool:
    return file.suffix == ".gguf"


def read_config(folder: Path, name: str) -> Any:
    """The model's config, if transformers itself knows its architecture as a causal language model."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    file = folder / "config.json"
    tree = read_json(file)
    if "model_type" not in tree:
        raise ModelError(f"{file}: names no model_type", hint="copy the model's config.json again")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # its values reach validators of many kinds
        raise ModelError(
            f"{file}: transformers cannot use it: {gist(error)}",
            hint="correct the file, or choose a model that transformers knows without the code that comes with it",
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{name}: is a {config.model_type}, which is no causal language model",
            hint=f"give {EXAMPLE}",
        )
    quantized = tree.get("quantization_config")
    is_known = (
        fp8.is_block_fp8(quantized) or is_nf4(quantized) or prequantized_kind(quantized) or w4a16.is_w4a16(quantized)
    )
    if quantized and not is_known:
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else "unknown"
        raise ModelError(
            f"{name}: its weights are stored quantized ({method})", hint="give its copy in bfloat16, float16 or float32"
        )
    return config


def check_weights(folder: Path, name: str) -> int:
    """The number of parameters in the safetensors files, from their headers; refuses missing and truncated ones."""
    again = "build it anew: dsr1-tune base --rebuild" if name == embedded.NAME else COPY_AGAIN
    files = weight_files(folder)
    if files == [ONE_FILE] and not (folder / ONE_FILE).is_file():
        kinds = {entry.suffix for entry in folder.iterdir()}
        if kinds & PICKLES:
            raise ModelError(f"{name}: has its weights only as {', '.join(sorted(kinds & PICKLES))}", hint=CONVERT)
        if ".gguf" in kinds:
            raise ModelError(f"{name}: has its weights only as .gguf, which cannot be trained", hint=f"give {EXAMPLE}")
        raise ModelError(f"{name}: has no weights, neither {ONE_FILE} nor {INDEX}", hint=f"give {EXAMPLE}")
    if absent := [file for file in files if not (folder / file).is_file()]:
        raise ModelError(
            f"{name}: {len(absent)} of {len(files)} weight files are missing, such as {absent[0]}", hint=again
        )
    num_parameters = 0
    for file in files:
        try:
            with safe_open(folder / file, framework="pt") as weights:
                for key in weights.keys():  # noqa: SIM118 - a safetensors file is no mapping
                    num_parameters += math.prod(weights.get_slice(key).get_shape()) * w4a16.per_number(key)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{folder / file}: is damaged: {gist(error)}", hint=again) from error
    return num_parameters


def read_tokenizer(folder: Path, name: str) -> Any:
    """The tokenizer, with a chat template and a padding token."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a missing or damaged tokenizer shows in many ways, down to the Rust library's
        raise ModelError(
            f"{name}: has no tokenizer that can be read: {gist(error)}",
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


def find_adapter(path: str | Path | None) -> Path | None:
    """The PEFT adapter folder that `path` is, or holds as a run folder does under adapter/; else None.

    Raises ModelError for a reward model: its adapter without its head would write answers that it never learned.
    """
    if path is None:
        return None
    folder = local_path(str(path))
    _refuse_reward(folder, str(path))
    return next((place for place in (folder, folder / "adapter") if (place / "adapter_config.json").is_file()), None)


def find_reward(path: str | Path) -> Path | None:
    """The folder of a reward model that `path` is, or holds as a run folder does; else None."""
    folder = local_path(str(path))
    places = (folder, folder / "adapter", folder / "model")
    return next((place for place in places if (place / REWARD_CONFIG).is_file()), None)


def _refuse_reward(folder: Path, name: str) -> None:
    if find_reward(folder):
        raise ModelError(
            f"{name}: is a reward model: it scores answers, and writes none",
            hint=f"score rows with it: dsr1-tune score {name} rows.jsonl",
        )


def base_of(adapter: Path) -> Base:
    """The base that an adapter, or experts, were trained on: as the run's manifest says, else as their config does."""
    manifest = adapter.parent / "manifest.json"
    if manifest.is_file():
        base = read_json(manifest).get("base")
        if isinstance(base, dict) and isinstance(base.get("name"), str):
            # A folder has no revision, and may have been named from another working directory.
            name = base["name"] if base.get("revision") else str(base.get("folder") or base["name"])
            return _base(name, base.get("revision"), **_settings_in(manifest))
    own = (adapter / name for name in ("adapter_config.json", "experts_config.json"))
    config = next((read_json(file) for file in own if file.is_file()), {})
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelError(f"{adapter}: does not say which base it belongs to", hint="train it again, or name its base")
    return _base(name, config.get("revision"))


def _settings_in(manifest: Path) -> dict[str, Any]:
    """How a run held its base: the number format and the context, where the manifest says so."""
    config = read_json(manifest).get("config")
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
