"""Which files hold the weights, and the gist of an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsr1_tune.errors import ModelError
from dsr1_tune.models.weights.index import gist, read_json, weight_files


def test_weight_files_are_those_of_the_index_or_the_one(tmp_path: Path) -> None:
    assert weight_files(tmp_path) == ["model.safetensors"]
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"}}))
    assert weight_files(tmp_path) == ["1.safetensors", "2.safetensors"]
    for broken in ({}, {"weight_map": {}}, {"weight_map": ["a"]}):
        index.write_text(json.dumps(broken))
        with pytest.raises(ModelError, match="lists no weights"):
            weight_files(tmp_path)


@pytest.mark.parametrize(("text", "said"), [("{", "cannot be read"), ("[1]", "holds no JSON object")])
def test_read_json_names_a_file_that_is_no_object(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ModelError, match=rf"x\.json: {said}"):
        read_json(tmp_path / "x.json")
    with pytest.raises(ModelError, match="cannot be read"):
        read_json(tmp_path / "nothing.json")


def test_gist_is_the_first_line_that_says_something() -> None:
    assert gist(ValueError("\n  boom  \nmore")) == "boom"
    assert gist(ValueError("it failed:\n because\n of")) == "it failed: because"
    assert gist(ValueError()) == "ValueError"
