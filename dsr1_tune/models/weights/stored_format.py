"""In which number format a model folder stores its weights; one that is loaded as it is stored is listed here."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from dsr1_tune.models.weights.index import read_json
from dsr1_tune.quant import fp8, w4a16

NF4 = "dsr1_nf4"
"""The `quant_method` of what is stored in our own NF4 layout."""
NF4_BYTES = 4.13 / 8
"""Bytes a weight in 4 bits takes, its scales included."""


class StoredFormat(Enum):
    """How weights are stored, as `quantization_config` in config.json says; the value is its name for people."""

    PLAIN = "16 or 32 bits"
    BLOCK_FP8 = "block-FP8"
    """DeepSeek's: float8 with a scale for each block."""
    NF4 = "nf4"
    """Our own layout: experts and linear layers in NF4."""
    BNB_NF4 = "bitsandbytes nf4"
    BNB_INT8 = "bitsandbytes int8"
    W4A16 = "w4a16"
    """compressed-tensors' "pack-quantized": symmetric 4-bit integers in groups."""
    MXFP4 = "mxfp4"
    NVFP4 = "nvfp4"
    FP8 = "fp8"
    """Float8 with a scale for each tensor or row."""
    AWQ = "awq"
    GPTQ = "gptq"
    COMPRESSED = "compressed-tensors"
    """Any other of that library's layouts."""
    GGUF = "gguf"
    UNKNOWN = "unknown"
    """Quantized in a way that is not read here."""

    @classmethod
    def of(cls, config: Any) -> StoredFormat:
        """The format that a config (config.json's object, or transformers' config) declares."""
        stored_as = quantization(config)
        if not stored_as:
            return cls.PLAIN
        method = quant_method(config)
        if method == NF4:
            return cls.NF4
        if method == "bitsandbytes":
            if stored_as.get("load_in_8bit"):
                return cls.BNB_INT8
            return cls.BNB_NF4 if stored_as.get("bnb_4bit_quant_type") == "nf4" else cls.UNKNOWN
        if fp8.is_block_fp8(stored_as):
            return cls.BLOCK_FP8
        if w4a16.is_w4a16(stored_as):
            return cls.W4A16
        algorithm = str(stored_as.get("quant_algo")).lower() if isinstance(stored_as, Mapping) else ""
        return _BY_NAME.get(algorithm if method == "modelopt" else method, cls.UNKNOWN)

    @classmethod
    def in_folder(cls, folder: Path) -> StoredFormat:
        """The format of a model folder, or of a .gguf file. Raises ModelError for a damaged config.json."""
        if folder.suffix == ".gguf" or (any(folder.glob("*.gguf")) and not any(folder.glob("*.safetensors"))):
            return cls.GGUF
        return cls.of(read_json(folder / "config.json"))

    @property
    def is_4bit(self) -> bool:
        """Whether weights are loaded as the NF4 that they are stored in, so that qlora can train over them."""
        return self in (StoredFormat.NF4, StoredFormat.BNB_NF4)

    @property
    def is_multiplied_out(self) -> bool:
        """Whether it is one of others' formats, of which each weight is multiplied out as it is loaded."""
        return self in _BY_NAME.values()

    @property
    def bytes_per_weight(self) -> float | None:
        """About how many a weight takes on disk, scales included; None where the format does not say."""
        if self in (StoredFormat.BLOCK_FP8, StoredFormat.FP8, StoredFormat.BNB_INT8):
            return 1.0
        fours = (StoredFormat.W4A16, StoredFormat.MXFP4, StoredFormat.NVFP4, StoredFormat.AWQ, StoredFormat.GPTQ)
        return NF4_BYTES if self in fours or self.is_4bit else None

    @property
    def is_bitsandbytes(self) -> bool:
        """Whether it is one of the layouts of bitsandbytes that are read."""
        return self in (StoredFormat.BNB_NF4, StoredFormat.BNB_INT8)


_BY_NAME = {
    "mxfp4": StoredFormat.MXFP4,
    "nvfp4": StoredFormat.NVFP4,
    "fp8": StoredFormat.FP8,
    "fbgemm_fp8": StoredFormat.FP8,
    "awq": StoredFormat.AWQ,
    "gptq": StoredFormat.GPTQ,
    "compressed-tensors": StoredFormat.COMPRESSED,
}


def quant_method(config: Any) -> str:
    """What a config's `quantization_config` calls its method; "unknown" where it does not say."""
    stored_as = quantization(config)
    return str(stored_as.get("quant_method", "unknown")) if isinstance(stored_as, Mapping) else "unknown"


def quantization(config: Any) -> Any:
    """What a config, or that of its text model, says of how its weights are quantized; None where it says nothing."""
    if isinstance(config, Mapping):
        text = config.get("text_config")
        inside = text.get("quantization_config") if isinstance(text, Mapping) else None
        return config.get("quantization_config") or inside
    return getattr(config, "quantization_config", None)
