"""Unrecognised files, which are no data set: what do they look like, and what was probably meant?"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from dsr1_tune.data.read.formats import listed, shown

ROWS = 'write one object a line, such as {"input": "the question", "output": "the answer"}'
MAX_LINES = 40

_REGISTRY = {"file_name", "hf_hub_url", "ms_hub_url", "script_url", "cloud_file_name"}
_PACKAGE = {"version", "dependencies", "devDependencies", "scripts"}


def unrecognised_object(value: dict[str, Any]) -> tuple[str, str]:
    """(what it is, the fix) for a file that holds this one object and no rows."""
    for is_one, what, fix in _OBJECTS:
        if is_one(value):
            return what, fix
    if what := unrecognised_rows([value]):
        return what, ROWS
    for name, inside in value.items():
        if isinstance(inside, list) and inside and all(isinstance(item, dict) for item in inside):
            what = f"one object, in which {shown(name)!r} holds a list of {len(inside):,}"
            return what, "if these are the rows, write that list alone into a file"
    return (
        f"one object with {listed(value) or 'no fields'}: settings, perhaps, but no rows",
        f"{ROWS}; or name its columns with --map",
    )


def _is_registry(value: dict[str, Any]) -> bool:
    """A list of data sets by name, as LLaMA-Factory's dataset_info.json."""
    return bool(value) and all(isinstance(entry, dict) and entry.keys() & _REGISTRY for entry in value.values())


_OBJECTS: tuple[tuple[Callable[[dict[str, Any]], bool], str, str], ...] = (
    (
        _is_registry,
        "a registry that names data sets (such as dataset_info.json), not the data",
        "give the files that it names (file_name)",
    ),
    (lambda value: {"cells", "nbformat"} <= value.keys(), "a Jupyter notebook", ROWS),
    (lambda value: str(value.get("type")) in ("FeatureCollection", "Feature", "Topology"), "GeoJSON, a map", ROWS),
    (
        lambda value: "log_history" in value,
        "a trainer's state (trainer_state.json)",
        "give the file that it was trained on",
    ),
    (
        lambda value: "tokenizer_class" in value or {"added_tokens", "model"} <= value.keys(),
        "part of a tokenizer",
        "give the data, not the model",
    ),
    (lambda value: "weight_map" in value, "the index of a model's weights", "give the data, not the model"),
    (
        lambda value: bool(value.keys() & {"architectures", "model_type", "peft_type"}),
        "a model's settings (config.json)",
        "give the data, not the model",
    ),
    (
        lambda value: "_fingerprint" in value or {"features", "splits"} <= value.keys(),
        "a description that the datasets library writes beside the data",
        "give the data: JSON lines or Parquet, for example from datasets' to_json or to_parquet",
    ),
    (
        lambda value: "lockfileVersion" in value or ("name" in value and bool(value.keys() & _PACKAGE)),
        "a software package's description (package.json)",
        ROWS,
    ),
    (lambda value: bool(value.keys() & {"openapi", "swagger"}), "an OpenAPI description", ROWS),
    (lambda value: "$schema" in value and "properties" in value, "a JSON schema", ROWS),
    (lambda value: {"images", "annotations"} <= value.keys(), "annotations of images (COCO)", ROWS),
)


def unrecognised_rows(rows: Sequence[Any]) -> str:
    """What a file is whose rows are all like these, or "" where that is not known."""
    fields = [row.keys() for row in rows if isinstance(row, dict)]
    if not fields or len(fields) < len(rows):
        return ""
    if sum(has_progress(row) for row in fields) > len(rows) / 2:
        return "a training log: its rows hold a loss and steps"
    if all({"geometry", "type"} <= row for row in fields):
        return "GeoJSON, a map"
    if all(row & {"level", "levelname", "severity"} and row & {"message", "msg", "event"} for row in fields):
        return "a program's log"
    return ""


def unrecognised_lines(texts: Sequence[str]) -> str:
    """What a file is whose lines look like JSON but are none, or "" where that is not known."""
    what = unrecognised_text("\n".join(texts[:MAX_LINES]), "")
    return what if what.endswith("log") else ""


def has_progress(fields: Any) -> bool:
    """Whether these fields report the progress of a training."""
    return any("loss" in str(name) for name in fields) and bool(
        {"step", "epoch", "learning_rate", "lr", "iter", "iteration", "global_step", "current_steps"} & set(fields)
    )


def unrecognised_text(text: str, ending: str) -> str:
    """What a text is that is neither JSON nor a table, or "" where it looks like nothing known."""
    lines = [line for line in text.split("\n")[:MAX_LINES] if line.strip()]
    for what, pattern, share in _LINES:
        if lines and sum(pattern.match(line) is not None for line in lines) >= share * len(lines):
            return what
    first = lines[0].strip() if lines else ""
    if ending in (".md", ".markdown", ".rst") or re.match(r"#{1,6} \S|```|---$", first):
        return "Markdown"
    if ending in (".py", ".sh", ".js", ".c", ".sql") or re.match(
        r"#!|import |from \w+ import|def |create table", first
    ):
        return "source code"
    if ending in (".yaml", ".yml", ".toml", ".ini", ".cfg"):
        return "a settings file"
    if re.search(r'"\s*[:,]\s*["\[{]|[}\]]\s*,\s*[{\[]', text[:2000]):
        return "a piece of JSON, of which the beginning is missing"
    if re.search(r"[.!?。！？…]", text) and len(re.findall(r"\w\s+\w|[\u4e00-\u9fff]{4}", text[:2000])) > 4:
        return "prose"
    return ""


_LINES = (
    (
        "a program's log",
        re.compile(
            r"\[?\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d|\[?\d\d:\d\d:\d\d"
            r"|\W?(?:DEBUG|INFO|WARN(?:ING)?|ERROR|CRITICAL|FATAL)\b"
        ),
        0.6,
    ),
    (
        "a training log",
        re.compile(r".*(?:\bloss\W+\d.*\b(?:epoch|step|lr)\b|\b(?:epoch|step|iter)\b.*\bloss\W+\d)", re.IGNORECASE),
        0.6,
    ),
    ("SQL", re.compile(r"(?:insert into|create table|drop table|select .* from)\b", re.IGNORECASE), 0.3),
    ("a settings file", re.compile(r"\[[\w.\"' -]+\]\s*$|[\w.-]+ ?= ?\S|\s*#"), 0.8),
    ("YAML, a settings file", re.compile(r"\s*(?:- )?[\w./-]+:(?:\s|$)|\s*- \S|\s*#|---"), 0.9),
)
