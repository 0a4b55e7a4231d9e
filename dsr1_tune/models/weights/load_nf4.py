"""Quantize while loading: transformers' loader hands over one tensor at a time, and keeps only its 4 bits.

`from_pretrained(folder, quantization_config=Nf4Config())` loads 16-bit and 32-bit checkpoints so; what is saved with
`save_pretrained` is in 4 bits, says so in its config.json, and loads again exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from dsr1_tune.models.memory import give_back
from dsr1_tune.models.weights.stored_format import NF4
from dsr1_tune.moe.quantized_experts import finish_nf4, reserve_nf4
from dsr1_tune.quant.nf4 import as_buffers, put_placeholder


@register_quantization_config(NF4)
@dataclass
class Nf4Config(QuantizationConfigMixin):
    """Experts and linear layers in NF4 with doubly quantized scales; there is nothing to choose."""

    quant_method: str = NF4


@register_quantizer(NF4)
class Nf4Quantizer(HfQuantizer):
    """transformers' steps around the loading of weights, for NF4."""

    requires_calibration = False

    def __init__(self, quantization_config: Any, **more: Any) -> None:
        super().__init__(quantization_config, **more)
        self._names: set[str] = set()

    @property
    def quantized_element_size(self) -> float:
        """Nothing for the weight itself: the buffers that hold it are counted beside it."""
        return 0.0

    def _process_model_before_weight_loading(self, model: Any, **more: Any) -> None:
        self._names = reserve_nf4(model)
        if self.pre_quantized:
            for name in self._names:
                owner, _, leaf = name.rpartition(".")
                # Stored are only the 4 bits; `finish_nf4` puts the placeholder where they were loaded to.
                put_placeholder(model.get_submodule(owner), leaf)

    def _process_model_after_weight_loading(self, model: Any, **more: Any) -> None:
        finish_nf4(model)

    def param_needs_quantization(self, model: Any, param_name: str, **more: Any) -> bool:
        """Whether a weight, by its full name, goes into NF4."""
        return param_name in self._names

    def get_quantize_ops(self) -> ConversionOps:
        """What a weight goes through when it has been read."""
        return _ToNf4()

    def is_serializable(self) -> bool:
        """Whether what was quantized can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether adapters can be trained over it."""
        return True


class _ToNf4(ConversionOps):
    """One whole weight → what its module holds."""

    def convert(self, input_dict: dict[str, Any], **more: Any) -> dict[str, Tensor]:
        """{full name: weight, or a list of the one} → all buffers and the placeholder, by full names."""
        held: dict[str, Tensor] = {}
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            owner, _, leaf = name.rpartition(".")
            held |= {f"{owner}.{part}": tensor for part, tensor in as_buffers(leaf, weight, owner).items()}
            give_back()
        return held
