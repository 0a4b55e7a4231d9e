"""A base model from a name: what can be refused is refused before any weights are read, the rest is loaded once."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from dsr1_tune.config import Base
from dsr1_tune.data.encode.end_tokens import EndTokens
from dsr1_tune.errors import ModelError
from dsr1_tune.models import embedded, hub
from dsr1_tune.models.attention import with_attention
from dsr1_tune.models.context import with_context
from dsr1_tune.models.folder import CONVERT, EXAMPLE, PICKLES, ModelFolder
from dsr1_tune.models.memory import GIB, main_memory
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.ref import Hub, Missing, ModelRef, local_path
from dsr1_tune.models.tokenizer_files import ends_in
from dsr1_tune.models.weights.apart import put_together
from dsr1_tune.models.weights.checkpoint import Checkpoint
from dsr1_tune.models.weights.converted import LazyTensor, open_fp8, open_w4a16
from dsr1_tune.models.weights.dequantized import open_quantized
from dsr1_tune.models.weights.index import COPY_AGAIN, gist, weight_files
from dsr1_tune.models.weights.layout import Layout, stores_fused
from dsr1_tune.models.weights.shard import OwnPart, holding_own
from dsr1_tune.models.weights.stored_format import NF4_BYTES, StoredFormat
from dsr1_tune.moe.expert_lora import BY_ROWS
from dsr1_tune.moe.expert_shard import ExpertParallel
from dsr1_tune.moe.llama4 import adopt, compute_by

_log = logging.getLogger(__name__)
_IN_LARGER = {r"^model\.language_model\.": "model.", r"^language_model\.": ""}
"""What names of a text model begin with in a checkpoint that has a tower for pictures too, and what by themselves."""
_NOT_AHEAD = "HF_DEACTIVATE_ASYNC_LOAD"
_SMALLER = "try qlora, or --set base.dtype=bfloat16, choose a smaller model, or use a machine with more memory"


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

    @property
    def ends(self) -> EndTokens:
        """What ends its answers. Raises ModelError where nothing does."""
        return ends_in(self.folder, self.tokenizer)


@dataclass(frozen=True)
class Loaded:
    """A model on its device with its tokenizer; `name` and `revision` say again where it came from."""

    model: Any
    tokenizer: Any
    name: str
    revision: str | None


def load(
    base: Base,
    progress: Callable[[str], None] | None = None,
    quantized: bool = False,
    check: Callable[[Any], None] | None = None,
) -> Loaded:
    """Locate and load `base`; see `locate` and `load_located` for what can go wrong.

    `check` is given the tokenizer in between.
    """
    located = locate(base, progress, quantized)
    if check:
        check(located.tokenizer)
    return load_located(located, base.dtype, quantized=quantized)


def locate(
    base: Base,
    progress: Callable[[str], None] | None = None,
    quantized: bool = False,
    is_loaded: bool = True,
    may_score: bool = False,
) -> Located:
    """Find `base` and check all that can be checked without its weights; builds the embedded base if it is asked for.

    Raises ModelError, saying where and what to do, for anything that is not a causal language model in safetensors
    with a tokenizer that has a chat template. Code that comes with a model is never run. One that `is_loaded` must fit
    into the memory; weights can also be read one by one. A reward model's trunk is refused unless it `may_score`.
    """
    repo_id = None
    if base.model in (None, embedded.NAME):
        folder = embedded.ensure(progress)
        name, revision = embedded.NAME, folder.name
    elif isinstance(ref := ModelRef.resolve(base.model), Missing):
        raise ModelError(f"{base.model}: there is no such folder", hint=f"give {EXAMPLE}")
    elif isinstance(ref, Hub):
        folder, revision = hub.fetch(base.model, base.revision)
        name = repo_id = base.model
    else:
        folder = local_path(base.model)
        name, revision = str(folder), None
    files = ModelFolder(folder, name)
    files.check(may_score)
    config = with_context(files.read_config(), base.context, name)
    if is_loaded:
        config = with_attention(config, base.attention, base.dtype, name)
    if all((folder / file).is_file() for file in files.weight_files) or repo_id is None:
        num_parameters = files.check_weights()
    else:
        num_parameters = _check_remote_weights(folder, repo_id, str(revision), config)
    if is_loaded:
        stored = files.stored_format
        stays_as_stored = (stored.is_4bit or stored.is_bitsandbytes) and repo_id is None
        _check_room(num_parameters, name, base.dtype, quantized, folder if stays_as_stored else None)
    located = Located(folder, name, revision, files.read_tokenizer(), config, repo_id)
    if (remark := located.ends.remark) and progress:
        progress(f"{name}: {remark}")
    return located


def load_located(
    located: Located,
    dtype: str = "auto",
    for_training: bool = False,
    quantized: bool = False,
    expert_parallel: ExpertParallel | None = None,
) -> Loaded:
    """Load the weights of a located base, in `dtype` (see config.Base), onto this process's GPU or the CPU.

    `quantized` holds experts and linear layers in 4 bits, see moe.quantized_experts. With `expert_parallel` the model
    holds this process's share of every layer's experts, and others are not read: see moe.expert_shard. For training the
    model is left in train mode without a key-value cache, otherwise in eval mode. Its generation config names every
    token that ends an answer, so whatever generates with it stops there. Raises ModelError when weights are missing,
    damaged, of other shapes than the config says, or more than the memory holds, and where experts cannot be shared.
    """

    folder = with_weights(located)
    device = pick_device()
    try:
        with _quiet():
            number = pick_dtype(dtype, device, quantized)
            model, report = _read_model(located, folder, number, device, quantized, expert_parallel)
    except torch.OutOfMemoryError as error:
        raise ModelError(f"{located.name}: does not fit on {device}", hint=_SMALLER) from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        # Experts are stored one by one and stacked while loading; what that said is a traceback, in a log.
        said = "those of some experts are missing or of other shapes" if "conversion" in str(error) else gist(error)
        raise ModelError(f"{located.name}: its weights cannot be loaded: {said}", hint=COPY_AGAIN) from error
    _check_report(report, located.name)
    adopt(model)
    if expert_parallel:
        compute_by(model, BY_ROWS)
    _forget_larger(model)
    model.train(for_training)
    model.config.use_cache = not for_training
    model.generation_config.eos_token_id = sorted(located.ends.ids)
    return Loaded(model, located.tokenizer, located.name, located.revision)


def _read_model(
    located: Located,
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    quantized: bool,
    parallel: ExpertParallel | None,
) -> tuple[Any, dict[str, Any]]:
    """transformers' loader, in 4 bits where that is asked for; float8 weights are dequantized one by one."""
    from transformers import AutoModelForCausalLM

    from dsr1_tune.models.weights.load_nf4 import Nf4Config

    config = deepcopy(located.config)
    ModelFolder(folder, located.name).correct(config)
    settings: dict[str, Any] = {"config": config, "dtype": dtype, "device_map": {"": device}}
    settings |= {"trust_remote_code": False, "ignore_mismatched_sizes": True, "output_loading_info": True}
    settings["key_mapping"] = _IN_LARGER
    stored = StoredFormat.of(config)
    part = OwnPart.of(folder, config, parallel) if parallel else None
    if stored.is_bitsandbytes:
        from dsr1_tune.models.weights.load_bnb import open_prequantized

        settings["quantization_config"], weights = open_prequantized(folder, config, located.name, part)
        return _from_tensors(folder, weights, settings, parallel)
    if quantized and stored is not StoredFormat.NF4:
        settings["quantization_config"] = Nf4Config()
    if part is None and stored in (StoredFormat.PLAIN, StoredFormat.NF4):
        return AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **settings)
    weights = _opened(folder, config, dtype, part.checkpoint if part else Checkpoint(folder))
    if part or stores_fused(model := meta_model(located.config)):
        weights = put_together(weights, part.layout if part else Layout.of(model, weights))
    return _from_tensors(folder, weights, settings, parallel)


def _opened(folder: Path, config: Any, dtype: torch.dtype, checkpoint: Checkpoint) -> dict[str, LazyTensor]:
    """The weights of a folder, or of a part of it, in 16 or 32 bits by the names they have there; our NF4 as it is."""
    stored = StoredFormat.of(config)
    if stored is StoredFormat.W4A16:
        return open_w4a16(checkpoint)
    if stored.is_multiplied_out:
        return open_quantized(folder, dtype, checkpoint)
    if stored is StoredFormat.BLOCK_FP8:
        rows, cols = config.quantization_config["weight_block_size"]
        return open_fp8(checkpoint, (rows, cols))
    return {name: LazyTensor.as_stored(checkpoint, name) for name in checkpoint.names}


def _from_tensors(
    folder: Path, weights: Any, settings: dict[str, Any], parallel: ExpertParallel | None = None
) -> tuple[Any, dict[str, Any]]:
    """transformers' loader, given tensors that are read when they are indexed in place of files."""
    from transformers import GenerationConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config = settings["config"]
    if StoredFormat.of(config) not in (StoredFormat.PLAIN, StoredFormat.NF4):
        del config.quantization_config
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    made = holding_own(kind, parallel) if parallel else kind
    with _in_turn() if parallel else nullcontext():
        model, report = made.from_pretrained(None, state_dict=weights, **settings)
    model.__class__ = kind
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, report


@contextmanager
def _in_turn() -> Iterator[None]:
    """Have transformers read each tensor when its turn comes; its threads would read ahead by half of the model."""
    before = os.environ.get(_NOT_AHEAD)
    os.environ[_NOT_AHEAD] = "1"
    try:
        yield
    finally:
        del os.environ[_NOT_AHEAD]
        if before is not None:
            os.environ[_NOT_AHEAD] = before


def load_tensors(located: Located, weights: Mapping[str, LazyTensor]) -> Any:
    """The model of a quantized folder in float32, of other tensors than its own, by transformers' own conversion."""
    settings: dict[str, Any] = {"config": deepcopy(located.config), "dtype": torch.float32, "output_loading_info": True}
    settings |= {"device_map": {"": pick_device()}, "key_mapping": _IN_LARGER}
    with _quiet():
        model, report = _from_tensors(located.folder, weights, settings)
    _check_report(report, located.name)
    adopt(model)
    return model.eval()


def _forget_larger(model: Any) -> None:
    """Have a text model that was a part of a larger one saved under its own names, which go with its own config."""
    from transformers.core_model_loading import PrefixChange

    model._weight_conversions = [
        one
        for one in model._weight_conversions
        if not isinstance(one, PrefixChange) and not set(one.source_patterns) & _IN_LARGER.keys()
    ]


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
            hint=COPY_AGAIN,
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{name}: {len(missing)} weights are missing, such as {missing[0]}", hint=COPY_AGAIN)
    if astray := sorted(report["unexpected_keys"]):
        _log.warning("%s: %d stored weights have no place in the model, such as %s", name, len(astray), astray[0])


def pick_device() -> torch.device:
    """This process's GPU (LOCAL_RANK tells which, when several processes train together), else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))


def free_room() -> int:
    """Bytes that a model may take where it is loaded: on a GPU, the less of what is free there and here."""
    device, free = pick_device(), main_memory().free
    return min(free, torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free


def pick_dtype(dtype: str, device: torch.device, quantized: bool = False) -> torch.dtype:
    """What `dtype` means on `device`: "auto" is bfloat16 on a GPU that computes in it, else float32.

    Over a base in 4 bits it is bfloat16 everywhere: what is left is to take 16 bits.
    """
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    if quantized:
        return torch.bfloat16
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


def _check_room(num_parameters: int, name: str, dtype: str, quantized: bool, held: Path | None) -> None:
    """Refuse what cannot fit: the kernel would end the process without a word. `held` is a folder of low precision."""
    device = pick_device()
    number = pick_dtype(dtype, device, quantized and held is not None)
    need = num_parameters * (NF4_BYTES if quantized else number.itemsize)
    as_what = "in 4 bits" if quantized else f"as {str(number).removeprefix('torch.')}"
    if held:
        checkpoint, as_what = Checkpoint(held), "as they are stored"
        specs = [checkpoint.spec(name) for name in checkpoint.names]
        wide = ("F32", "F16", "BF16")  # these become `number`, what is quantized stays as it is
        need = sum(spec.num_elements * (number.itemsize if spec.dtype in wide else 1) for spec in specs)
    have = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else main_memory().free
    if need > have:
        raise ModelError(
            f"{name}: its {num_parameters / 1e9:.1f} B weights need {need / GIB:.1f} GiB {as_what}, "
            f"{device} has {have / GIB:.1f} GiB free",
            hint=_SMALLER,
        )


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
        pickles = any(Path(file).suffix in PICKLES for file in on_hub)
        raise ModelError(
            f"{repo_id}: has no {absent[0]} on the Hub" + (", only pickled weights" if pickles else ""),
            hint=CONVERT if pickles else f"give {EXAMPLE}",
        )
    stored_as = config.dtype if isinstance(config.dtype, torch.dtype) else torch.bfloat16
    return int(sum(on_hub[file] for file in files) / (StoredFormat.of(config).bytes_per_weight or stored_as.itemsize))


def with_weights(located: Located) -> Path:
    """The folder with the weights, downloaded if they are only on the Hub."""
    if located.repo_id is None:
        return located.folder
    wanted = [*hub.DESCRIPTIVE, *weight_files(located.folder)]
    folder, _ = hub.fetch(located.repo_id, located.revision, wanted)
    ModelFolder(folder, located.name).check_weights()
    return folder
