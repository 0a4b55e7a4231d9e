"""GPTQ by llmcompressor, in a process of its own: `python -m dsr1_tune.export.formats.gptq_process JOB`, a JSON file.

It loads the 16-bit model with its experts as linear layers, lets the library calibrate them one layer of the model at
a time, and saves what became of these. All of a layer's experts see all tokens while it is calibrated, so that no
expert is rounded by what it never saw.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Job:
    """What is calibrated on what: folders, token ids of each row, and the linear layers besides the experts."""

    model: str
    out: str
    rows: tuple[tuple[int, ...], ...]
    group_size: int
    linears: tuple[str, ...]

    def save(self, file: Path) -> None:
        """For `of`."""
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def of(cls, file: Path) -> Job:
        """What was saved."""
        tree = json.loads(file.read_text(encoding="utf-8"))
        rows = tuple(tuple(row) for row in tree.pop("rows"))
        return cls(**{**tree, "rows": rows, "linears": tuple(tree["linears"])})


def main(job: Job) -> None:
    """Calibrate and save."""
    from llmcompressor import oneshot
    from llmcompressor.modeling.moe.linearize import load_quantizable_moe
    from llmcompressor.modifiers.gptq import GPTQModifier
    from transformers import AutoModelForCausalLM

    with load_quantizable_moe():
        model = AutoModelForCausalLM.from_pretrained(job.model, dtype="auto", trust_remote_code=False)
    targets = _targets(model, job.linears)
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": job.group_size}
    # "static" takes the columns in the order of their weight and leaves the groups where they are.
    recipe = GPTQModifier(config_groups={"group_0": {"targets": targets, "weights": weights}}, actorder="static")
    oneshot(
        model=model,
        dataset=torch.utils.data.DataLoader(_Rows(job.rows), batch_size=1),
        recipe=recipe,
        pipeline="sequential",
        moe_calibrate_all_experts=True,
        num_calibration_samples=len(job.rows),
    )
    _save(model, Path(job.out))


def _targets(model: nn.Module, linears: tuple[str, ...]) -> list[str]:
    """What the library is to find the layers by; thousands of names would take it long, so one expression."""
    from llmcompressor.modeling.moe.linearize import get_linearized_moes

    blocks = [re.escape(name) for name, _ in get_linearized_moes(model)]
    experts = [rf"(?:{'|'.join(blocks)})\.\d+\.\w+"] if blocks else []
    return [f"re:^(?:{'|'.join([*experts, *map(re.escape, linears)])})$"]


def _save(model: nn.Module, folder: Path) -> None:
    """What was quantized, packed by the library, under the names of the model's modules.

    Its own saving renames experts back only in part: Mixtral's would lie under names that nobody reads.
    """
    from compressed_tensors import align_module_device
    from compressed_tensors.compressors import BaseCompressor
    from safetensors.torch import save_file

    compress = BaseCompressor.get_value_from_registry("pack-quantized").compress
    packed: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None:
            continue
        with align_module_device(module), torch.no_grad():
            parts = compress({"weight": module.weight.data, "weight_scale": module.weight_scale.data}, scheme)
            packed |= {f"{name}.{part}": tensor.cpu().contiguous() for part, tensor in parts.items()}
    folder.mkdir()
    save_file(packed, folder / "model.safetensors")


class _Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """One row at a time, so nothing is padded."""

    def __init__(self, rows: tuple[tuple[int, ...], ...]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = torch.tensor(self.rows[index])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _end_with_parent() -> None:
    """Leave when the process that started us is gone: if that was killed, nobody waits for what we make."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    _end_with_parent()
    main(Job.of(Path(sys.argv[1])))
