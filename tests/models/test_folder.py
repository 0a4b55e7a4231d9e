"""What a model's folder says of itself; refusals by whole commands are in test_load.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError
from dsr1_tune.models import load
from dsr1_tune.models.folder import ModelFolder
from dsr1_tune.models.tokenizer_files import copy_tokenizer
from dsr1_tune.models.weights.stored_format import StoredFormat


def test_model_folder_says_what_its_files_hold(tiny_base: Path) -> None:
    files = ModelFolder(tiny_base, "tiny")
    files.check()
    config = files.read_config()
    assert files.architecture == "DeepseekV3ForCausalLM" and config.model_type == "deepseek_v3"
    assert files.stored_format is StoredFormat.PLAIN
    assert files.has_tokenizer and files.has_template
    assert files.file_bytes == sum(file.stat().st_size for file in tiny_base.glob("*.safetensors"))
    assert 0 < files.file_bytes - files.checkpoint.num_bytes < 100_000  # the header
    assert files.check_weights() == sum(files.checkpoint.spec(name).num_elements for name in files.checkpoint.names)


def test_model_folder_reads_config_json_once(tiny_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_base, folder)
    files = ModelFolder(folder, "copy")
    before = files.config_json
    (folder / "config.json").write_text("{}")
    assert files.config_json is before and ModelFolder(folder, "copy").config_json == {}


def test_model_folder_without_tokenizer_or_template_says_so(tmp_path: Path) -> None:
    files = ModelFolder(tmp_path, "bare")
    assert not files.has_tokenizer and not files.has_template
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert files.has_template
    with pytest.raises(ModelError, match="bare: has no tokenizer that can be read"):
        files.read_tokenizer()


def test_model_folder_reads_a_template_that_lies_in_json(tiny_base: Path, tmp_path: Path) -> None:
    """As some models are published; what is written for it has the template where everyone looks."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "legacy"))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert ModelFolder(folder, "legacy").read_tokenizer().chat_template == template
    (tmp_path / "out").mkdir()
    copy_tokenizer(folder, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == template


def test_model_folder_refuses_a_format_that_is_not_read(tiny_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "aqlm"
    shutil.copytree(tiny_base, folder)
    tree = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(tree | {"quantization_config": {"quant_method": "aqlm"}}))
    with pytest.raises(ModelError, match=r"its weights are stored quantized \(aqlm\)"):
        ModelFolder(folder, "named").read_config()


def test_model_folder_check_names_what_is_there_instead(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ModelError, match=r"named: has no config\.json; it holds notes\.txt"):
        ModelFolder(tmp_path, "named").check()
    with pytest.raises(ModelError, match="named: is not a folder"):
        ModelFolder(tmp_path / "nothing", "named").check()


def test_model_folder_check_refuses_an_adapter_with_its_base(adapter_run: tuple[Path, torch.Tensor]) -> None:
    folder, _ = adapter_run
    for place in (folder, folder / "adapter"):
        with pytest.raises(ModelError, match="is an adapter, not a base model") as caught:
            ModelFolder(place, str(place)).check()
        assert str(folder.parent / "model") in caught.value.hint


@pytest.mark.parametrize(
    "stored_as",
    [{"quant_method": "quark"}, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}],
)
def test_model_folder_refuses_other_quantized_checkpoints(tiny_model: Any, stored_as: dict[str, Any]) -> None:
    folder = tiny_model("deepseek_v3")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": stored_as}))
    with pytest.raises(ModelError, match=rf"stored quantized \({stored_as['quant_method']}\)"):
        load.locate(Base(model=str(folder)))
