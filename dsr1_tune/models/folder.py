"""A model's folder, read once: what is refused before any weights are loaded, and what its files say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dsr1_tune.data.encode.end_tokens import end_tokens
from dsr1_tune.errors import ModelError
from dsr1_tune.models import embedded
from dsr1_tune.models.ref import Adapter, ModelRef, RewardModel, copy_command
from dsr1_tune.models.tiktoken_files import FILE as TIKTOKEN
from dsr1_tune.models.tiktoken_files import read_tiktoken, tiktoken_file
from dsr1_tune.models.tokenizer_files import legacy_template
from dsr1_tune.models.weights.checkpoint import Checkpoint
from dsr1_tune.models.weights.dequantized import num_parameters as count_quantized
from dsr1_tune.models.weights.index import COPY_AGAIN, INDEX, ONE_FILE, gist, read_json, weight_files
from dsr1_tune.models.weights.quantized import is_scaled_otherwise
from dsr1_tune.models.weights.stored_format import StoredFormat, quant_method
from dsr1_tune.quant import w4a16

EXAMPLE = (
    "a folder with config.json, tokenizer and *.safetensors, or a Hub id such as deepseek-ai/DeepSeek-V2-Lite-Chat"
)
PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
CONVERT = "convert it to safetensors: pickled weights can run code when they are opened"
# GPTQ and AWQ, compressed-tensors, bitsandbytes, FP8: what tensors are called that only quantized weights come with.
_ONLY_QUANTIZED = (".qweight", ".weight_packed", ".weight.absmax", ".weight_scale", ".weight_scale_inv", "_proj_blocks")


@dataclass(frozen=True)
class ModelFolder:
    """A folder in transformers' layout; each of its files is read when it is first needed, and once."""

    path: Path
    name: str
    """What messages call it: the path or the Hub id that the user gave."""

    def check(self, may_score: bool = False) -> None:
        """Refuse what is no model folder, and what is a reward model unless it `may_score`. Raises ModelError."""
        folder, name = self.path, self.name
        if not folder.is_dir():
            is_gguf = folder.suffix == ".gguf"
            kind = "a GGUF file: llama.cpp runs those, but they cannot be trained" if is_gguf else "not a folder"
            raise ModelError(f"{name}: is {kind}", hint=f"give {EXAMPLE}")
        found = ModelRef.resolve(folder)
        if isinstance(found, RewardModel) and not may_score:
            RewardModel(name, found.path).refuse()
        if (folder / "config.json").is_file():
            return
        if isinstance(found, Adapter):
            base = found.base.model or embedded.NAME
            raise ModelError(f"{name}: is an adapter, not a base model", hint=f"its base is {base}")
        if (folder / "manifest.json").is_file():
            command = read_json(folder / "manifest.json").get("command", "lora")
            raise ModelError(
                f"{name}: is an unfinished run", hint=f"go on with it: dsr1-tune {command} --resume {name}"
            )
        files = sorted(entry.name for entry in folder.iterdir())
        holds = ", ".join(files[:8]) + (", ..." if len(files) > 8 else "") if files else "nothing"
        raise ModelError(f"{name}: has no config.json; it holds {holds}", hint=f"give {EXAMPLE}")

    @cached_property
    def config_json(self) -> dict[str, Any]:
        """The object in config.json. Raises ModelError."""
        return read_json(self.path / "config.json")

    @cached_property
    def stored_format(self) -> StoredFormat:
        """How its weights are stored: as config.json declares, but for scales that are not called as DeepSeek-V3's."""
        declared = StoredFormat.of(self.config_json)
        if declared is StoredFormat.BLOCK_FP8 and all((self.path / file).is_file() for file in self.weight_files):
            return StoredFormat.FP8 if is_scaled_otherwise(self.checkpoint) else declared
        return declared

    @property
    def architecture(self) -> str:
        """The class that config.json names first; empty where it names none."""
        named = self.config_json.get("architectures")
        return str(named[0]) if isinstance(named, list) and named else ""

    @cached_property
    def weight_files(self) -> list[str]:
        """The names of its safetensors files, those that its index lists or the only one."""
        return weight_files(self.path)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Its tensors, of which the headers are read. Raises ModelError for files that are missing or damaged."""
        return Checkpoint(self.path)

    @property
    def file_bytes(self) -> int:
        """What its safetensors files take on disk."""
        return sum(file.stat().st_size for file in self.path.glob("*.safetensors"))

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer's vocabulary is there."""
        return any(
            (self.path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", TIKTOKEN)
        )

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template, in a file of its own or in tokenizer_config.json."""
        file = self.path / "tokenizer_config.json"
        settings = read_json(file) if file.is_file() else {}
        return (self.path / "chat_template.jinja").is_file() or bool(settings.get("chat_template"))

    def read_config(self) -> Any:
        """The model's config, if transformers itself knows its architecture as a causal language model.

        Of a model of text and pictures it is that of the text model, which is what is loaded.
        """
        from transformers import AutoConfig
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

        file = self.path / "config.json"
        if "model_type" not in self.config_json:
            raise ModelError(f"{file}: names no model_type", hint="copy the model's config.json again")
        if str(self.config_json["model_type"]) not in CONFIG_MAPPING:
            raise self._unknown_family()
        try:
            config = AutoConfig.from_pretrained(self.path, trust_remote_code=False)
        except Exception as error:  # its values reach validators of many kinds
            raise ModelError(
                f"{file}: transformers cannot use it: {gist(error)}",
                hint="correct the file, or copy it again",
            ) from error
        text = config.get_text_config(decoder=True)
        if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ModelError(
                f"{self.name}: is a {config.model_type}, which is no causal language model",
                hint=f"give {EXAMPLE}",
            )
        if self.stored_format is StoredFormat.UNKNOWN:
            raise ModelError(
                f"{self.name}: its weights are stored quantized ({quant_method(self.config_json)}) in a way not "
                "read while loading",
                hint=f"make a 16-bit copy, where its tensors are of a kind that is known: {copy_command(self.name)}",
            )
        if text is not config and (quantized := getattr(config, "quantization_config", None)):
            text.quantization_config = quantized
        self.correct(text)
        return text

    def correct(self, config: Any) -> None:
        """Have a config say how the weights are stored, which are known only once all of them are there."""
        if self.stored_format is StoredFormat.FP8:
            config.quantization_config.pop("weight_block_size", None)  # which says that its scales are DeepSeek-V3's

    def _unknown_family(self) -> ModelError:
        """Of a model whose family transformers has no code for."""
        from transformers import __version__

        family = ", ".join(filter(None, (str(self.config_json["model_type"]), self.architecture)))
        own = " The Python that came with it is not run." if self.config_json.get("auto_map") else ""
        return ModelError(
            f"{self.name}: is of a family ({family}) that transformers {__version__} does not know.{own}",
            hint="a newer transformers may know it (pip install --upgrade dsr1-tune transformers); "
            "else choose a model of a family that transformers knows by itself",
        )

    def check_weights(self) -> int:
        """The number of parameters in the safetensors files, from their headers; refuses missing and truncated ones."""
        folder, name = self.path, self.name
        again = "build it anew: dsr1-tune base --rebuild" if name == embedded.NAME else COPY_AGAIN
        files = self.weight_files
        if files == [ONE_FILE] and not (folder / ONE_FILE).is_file():
            kinds = {entry.suffix for entry in folder.iterdir()}
            if kinds & PICKLES:
                raise ModelError(f"{name}: has its weights only as {', '.join(sorted(kinds & PICKLES))}", hint=CONVERT)
            if ".gguf" in kinds:
                raise ModelError(
                    f"{name}: has its weights only as .gguf, which cannot be trained", hint=f"give {EXAMPLE}"
                )
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
                        if key.endswith(_ONLY_QUANTIZED) and self.stored_format is StoredFormat.PLAIN:
                            raise ModelError(
                                f"{name}: its weights are stored quantized ({key}), but its config.json has no "
                                "quantization_config that says how",
                                hint=f"make a 16-bit copy of it: {copy_command(self.name)}",
                            )
                        num_parameters += math.prod(weights.get_slice(key).get_shape()) * w4a16.per_number(key)
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{folder / file}: is damaged: {gist(error)}", hint=again) from error
        return count_quantized(folder) if self.stored_format.is_multiplied_out else num_parameters

    def read_tokenizer(self) -> Any:
        """The tokenizer, with a chat template and a padding token."""
        from transformers import AutoTokenizer

        try:
            if file := tiktoken_file(self.path):
                tokenizer = read_tiktoken(file, self.name)
            else:
                tokenizer = AutoTokenizer.from_pretrained(self.path, trust_remote_code=False)
        except ModelError:
            raise
        except Exception as error:  # a missing or damaged tokenizer shows in many ways, down to the Rust library's
            raise ModelError(
                f"{self.name}: has no tokenizer that can be read: {gist(error)}",
                hint="copy tokenizer.json and tokenizer_config.json of the model into the folder",
            ) from error
        if not tokenizer.chat_template:
            tokenizer.chat_template = legacy_template(self.path)
        if not tokenizer.chat_template:
            raise ModelError(
                f"{self.name}: its tokenizer has no chat template, so questions and answers cannot be told apart",
                hint="choose the model's chat or instruct variant, or put its chat_template.jinja into the folder",
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or end_tokens(tokenizer).answer
        return tokenizer
