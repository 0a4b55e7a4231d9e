"""A quantized base that a command cannot use is refused before anything else, with the command that makes a copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsr1_tune import cli
from dsr1_tune.config.export import Quantize
from dsr1_tune.export.quantize import run as quantize
from tests import quantized_folders as packed

TRAINS = ("lora", "qlora", "full", "esft", "dpo")
READS = ("experts", "chat", "quantize", "compare")


def said(command: str, model: Path, data: Path, capsys: Any, out: Path) -> tuple[int, str]:
    """The exit code of a command over a model, and what it printed as an error."""
    arguments = {
        "experts": [str(data), "--model", str(model)],
        "chat": [str(model)],
        "quantize": [str(model), "--out", str(out)],
        "compare": [str(model), str(model), "--data", str(data)],
        "plan": ["--model", str(model)],
    }
    given = arguments.get(command, ["--data", str(data), "--model", str(model), "--out", str(out)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["dsr1-tune", command, *given])
        with pytest.raises(SystemExit) as left:
            cli.main()
    code = left.value.code
    return code if isinstance(code, int) else 0, capsys.readouterr().err


def refuses(command: str, model: Path, tmp_path: Path, capsys: Any) -> str:
    """What a command says that refuses a model; it must name the copy's command, and leave nothing."""
    data = tmp_path / "rows.json"
    row = {"prompt": "a?", "chosen": "b", "rejected": "c"} if command == "dpo" else {"input": "a?", "output": "b"}
    data.write_text(json.dumps([row] * 20))
    code, error = said(command, model, data, capsys, tmp_path / "out")
    assert code == 2
    assert f"dsr1-tune dequantize {model} --out {model}-bf16" in error
    assert not (tmp_path / "out").exists()
    return error


@pytest.mark.parametrize("command", [*TRAINS, *READS, "plan"])
def test_a_format_that_is_not_read(command: str, tiny_model: Any, tmp_path: Path, capsys: Any) -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    packed.requantize(model, packed.gptq, {"quant_method": "auto-round"})
    assert "stored quantized (auto-round)" in refuses(command, model, tmp_path, capsys)


@pytest.mark.parametrize("command", [*TRAINS, *READS])
def test_gptq_without_its_entry(command: str, tiny_model: Any, tmp_path: Path, capsys: Any) -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    packed.requantize(model, packed.gptq, None)
    assert ".qweight), but its config.json has no quantization_config" in refuses(command, model, tmp_path, capsys)


@pytest.mark.parametrize(("to", "command"), [("int8", "lora"), ("int8", "qlora"), ("nf4", "lora"), ("nf4", "quantize")])
def test_what_quantize_wrote(to: str, command: str, tiny_model: Any, tmp_path: Path, capsys: Any) -> None:
    model = quantize(tiny_model("qwen3_moe", num_hidden_layers=1), tmp_path / "base", Quantize(to=to))
    capsys.readouterr()
    refuses(command, model, tmp_path, capsys)


def test_quantizing_what_can_be_read_but_not_written(tiny_model: Any, tmp_path: Path, capsys: Any) -> None:
    model = tiny_model("gpt_oss", num_hidden_layers=1)
    packed.as_published_gpt_oss(model)
    assert "is quantized already (mxfp4)" in refuses("quantize", model, tmp_path, capsys)
