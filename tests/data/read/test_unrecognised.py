"""A file that is no data set is refused at once, by what it looks like and with what to do instead."""

from __future__ import annotations

import json

import pytest

from dsr1_tune.data.read.read import open_files, read
from dsr1_tune.data.record import Drop, Record
from dsr1_tune.errors import DataError

LOG = "".join(f"2024-05-01 12:00:{number:02d},123 INFO trainer: step {number} done\n" for number in range(20))
PROSE = "It was a dark, stormy night. The rain fell in torrents, and the wind howled.\nNobody was in the streets.\n"
CODE = 'import os\n\n\ndef main():\n    print("hello, world")\n'
NOTEBOOK = {"cells": [{"cell_type": "code", "source": []}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
MARKDOWN = "# My data\n\nThis data set, made by us, holds questions.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"

# what it is, file name, content, what the message says, what the hint says
STRANGERS = [
    (
        "LLaMA-Factory's registry",
        "dataset_info.json",
        {"alpaca": {"file_name": "alpaca.json"}, "other": {"hf_hub_url": "x/y", "formatting": "sharegpt"}},
        "is a registry that names data sets",
        "give the files that it names",
    ),
    ("a package", "package.json", {"name": "x", "version": "1", "scripts": {}}, "a software package", "one object"),
    ("a lock file", "lock.json", {"lockfileVersion": 3, "packages": {}}, "a software package", "one object"),
    ("a model's config", "config.json", {"architectures": ["L"], "model_type": "llama"}, "model's settings", "data"),
    (
        "a tokenizer",
        "tokenizer.json",
        {"version": "1", "added_tokens": [], "model": {"vocab": {}}},
        "tokenizer",
        "data",
    ),
    ("a tokenizer's config", "t.json", {"tokenizer_class": "X"}, "tokenizer", "give the data"),
    ("a weight index", "i.json", {"metadata": {}, "weight_map": {}}, "index of a model's weights", "give the data"),
    ("a trainer's state", "s.json", {"log_history": [{"loss": 1}], "epoch": 1}, "trainer_state.json", "trained on"),
    ("GeoJSON", "a.geojson", {"type": "FeatureCollection", "features": [{}]}, "GeoJSON", "one object a line"),
    ("GeoJSON lines", "a.jsonl", [{"type": "Feature", "geometry": {}}] * 3, "GeoJSON", "one object a line"),
    ("a notebook", "a.ipynb", NOTEBOOK, "a Jupyter notebook", "one object a line"),
    ("datasets' description", "d.json", {"features": {}, "splits": {}}, "beside the data", "to_parquet"),
    ("a schema", "s.json", {"$schema": "x", "properties": {}}, "a JSON schema", "one object"),
    ("OpenAPI", "o.json", {"openapi": "3.0", "paths": {}}, "an OpenAPI description", "one object"),
    ("COCO", "c.json", {"images": [{}], "annotations": [{}]}, "annotations of images", "one object"),
    ("other settings", "a.json", {"lr": 1e-4, "epochs": 3}, "one object with lr, epochs: settings, perhaps", "--map"),
    ("an empty object", "a.json", {}, "one object with no fields", "--map"),
    (
        "rows under an unknown name",
        "a.json",
        {"about": "x", "train": [{"input": "Q", "output": "A"}] * 3},
        "in which 'train' holds a list of 3",
        "write that list alone",
    ),
    (
        "a training log",
        "log.jsonl",
        [{"loss": 1.5, "step": number} for number in range(9)],
        "training log",
        "one object",
    ),
    ("a trainer's log", "a.json", [{"train_loss": 1.5, "epoch": 0.1}] * 3, "training log", "one object"),
    ("printed losses", "a.log", "{'loss': 1.5, 'epoch': 0.1}\n{'loss': 1.4, 'epoch': 0.2}\n", "training log", "one"),
    ("a structured log", "a.jsonl", [{"level": "info", "msg": "x", "time": 1}] * 3, "a program's log", "one object"),
    ("a log", "a.log", LOG, "looks like a program's log", "one object a line"),
    ("a log in brackets", "a.txt", "[INFO] started\n[WARNING] odd\n[ERROR] failed\n", "a program's log", "one object"),
    ("a dated log", "a.txt", "[2024-05-01 12:00:01] a\n[2024-05-01 12:00:02] b\n", "a program's log", "one object"),
    ("progress in a log", "a.txt", "epoch 1 step 5 loss: 1.23 lr: 1e-4\n" * 5, "a training log", "one object"),
    ("prose", "a.txt", PROSE, "looks like prose", "are read"),
    (
        "Chinese prose",
        "a.txt",
        "今天天气很好，我们去公园散步。\n公园里有很多人，他们都很高兴。\n" * 3,
        "looks like prose",
        "JSON",
    ),
    ("Markdown", "README.md", MARKDOWN, "looks like Markdown", "one object a line"),
    ("Markdown with settings", "card.txt", "---\nlicense: mit\n---\n# Data\n\nText, more text.\n", "Markdown", "one"),
    ("Python", "a.py", CODE, "looks like source code", "one object a line"),
    ("a script", "a.txt", "#!/bin/sh\necho a, b\n", "looks like source code", "one object a line"),
    ("YAML", "run.yaml", "base:\n  model: x\ndata:\n  files:\n    - a.json\n", "YAML, a settings file", "one object"),
    ("TOML", "pyproject.toml", '[project]\nname = "x"\nversion = "1"\n', "a settings file", "one object a line"),
    ("INI without its name", "a.txt", "[main]\nkey = value\nother = 1\n", "a settings file", "one object a line"),
    ("SQL", "a.txt", "INSERT INTO t VALUES (1, 2);\nINSERT INTO t VALUES (3, 4);\n", "looks like SQL", "one object"),
    ("RTF", "a.txt", "{\\rtf1\\ansi hello}", "an RTF document", "are read"),
]


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"), [stranger[1:] for stranger in STRANGERS], ids=[s[0] for s in STRANGERS]
)
def test_unrecognised_strangers(write, name, content, message, hint):
    path = write(name, content)
    with pytest.raises(DataError) as caught:
        next(iter(open_files([path])))
    assert name in caught.value.message
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}),
        ("a.json", {"question": "Q", "answer": "A", "name": "x", "version": 1}),
        ("a.json", {"name": "x", "version": 1, "data": [{"input": "Q", "output": "A"}]}),
        ("a.json", [{"input": "loss", "output": "A", "loss": 1.5, "step": 2}]),
        ("a.txt", '[\n{"input": "Q",\n"output": "A"}\n]'),
        ("a.md", '{"input": "Q", "output": "A"}\n{"input": "Q", "output": "A"}\n'),
        ("a.yaml", [{"input": "Q", "output": "A"}]),
        ("a.txt", "question,answer\nwhat is 2024-01-01 12:00?,a day\n"),
        ("a.txt", "question\tanswer\nimport x\tcode\n"),
        ("a.csv", "question,answer\n# not Markdown,a\n"),
        ("a.txt", "instruction,output\n" + "INFO: a,ERROR: b\n"),
    ],
)
def test_unrecognised_data_is_no_stranger(write, name, content):
    assert any(isinstance(row, Record) for row in read([write(name, content)]))


def test_unrecognised_an_object_that_is_nearly_a_row_is_told_what_it_lacks(write):
    (drop,) = read([write("a.json", {"input": "Q"})])
    assert isinstance(drop, Drop)
    assert drop.code == "missing_field"
    (drop,) = read([write("b.json", '{"input": "Q", "outp')])
    assert drop.code == "json_truncated"


def test_unrecognised_a_list_with_a_strange_row_is_read(write):
    """Only a file of which nothing can be used is refused as a whole."""
    rows = [{"loss": 1, "step": 1}, {"input": "Q", "output": "A"}]
    assert len(list(read([write("a.json", rows)]))) == 2
    (drop,) = read([write("b.json", [{"foo": 1, "bar": 2}])])
    assert (drop.code, drop.detail) == ("unknown_fields", "its fields are foo, bar")


def test_unrecognised_a_registry_of_many_is_refused_without_listing_it(write):
    registry = {f"set{number}": {"file_name": f"{number}.json"} for number in range(500)}
    with pytest.raises(DataError, match="registry") as caught:
        list(read([write("a.json", json.dumps(registry))]))
    assert len(str(caught.value)) < 500
