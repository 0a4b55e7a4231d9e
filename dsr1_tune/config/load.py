"""Compose a config from defaults, a YAML file, flags and `--set`, and list every problem at once."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import ValidationError

from dsr1_tune.config.sections import ConfigSection
from dsr1_tune.errors import ConfigError

Config = TypeVar("Config", bound=ConfigSection)


def load_config(
    kind: type[Config], file: Path | None = None, flags: Mapping[str, Any] | None = None, sets: Sequence[str] = ()
) -> Config:
    """Compose a config: defaults, then the YAML `file`, then `flags` (dotted names), then `sets` (`adapter.rank=32`).

    Raises ConfigError that lists every problem at once.
    """
    tree = _present_names(kind, _read_yaml(file)) if file else {}
    for dotted, value in (flags or {}).items():
        if value is not None:
            _put(tree, _present_name(kind, dotted), value, said=dotted)
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set {text}: not of the form name=value", hint="for example: --set adapter.rank=32")
        _put(tree, _present_name(kind, name.strip()), _parse_value(value), said=f"--set {text}")
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_all_problems(error, file), hint=_known_names(kind, error)) from None


def kind_of(file: Path, kinds: Sequence[type[Config]]) -> type[Config]:
    """That of `kinds` which knows the most sections of a YAML file; of several the first."""
    names = _read_yaml(file).keys()
    return max(kinds, key=lambda kind: len(names & (kind.model_fields.keys() | kind.renamed.keys())))


def _present_names(kind: type[ConfigSection], tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`tree` with every setting under its present name; one line says so of each that had an old one."""
    renamed: dict[str, Any] = {}
    for name, value in tree.items():
        new = kind.renamed.get(name, name)
        if new != name:
            if new in tree:
                raise ConfigError(f"{prefix}{name} is the old name of {prefix}{new}", hint=f"give {prefix}{new} alone")
            said = f"note: {prefix}{name} is called {prefix}{new} now; the old name works in this version only"
            print(said, file=sys.stderr)
        if isinstance(value, dict) and (section := _section(kind, new)):
            value = _present_names(section, value, f"{prefix}{new}.")
        renamed[new] = value
    return renamed


def _section(kind: type[ConfigSection], name: str) -> type[ConfigSection] | None:
    """The section of that name, where a setting is one."""
    annotation = kind.model_fields[name].annotation if name in kind.model_fields else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, ConfigSection) else None


def _present_name(kind: type[ConfigSection], dotted: str) -> str:
    tree: dict[str, Any] = {}
    _put(tree, dotted, None, said=dotted)
    tree, names = _present_names(kind, tree), []
    while tree:
        ((name, tree),) = tree.items()
        names.append(name)
    return ".".join(names)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}", hint="give --config an existing YAML file")
    except _NOT_YAML as error:
        raise ConfigError(f"{file}: is not YAML: {error}", hint="see examples/medical/lora.yaml") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: holds no settings", hint="see examples/medical/lora.yaml")
    return tree


# ValueError: bytes that are no text, or a date such as 2024-13-45.
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)


def _put(tree: dict[str, Any], dotted: str, value: Any, said: str) -> None:
    *groups, leaf = dotted.split(".")
    for group in groups:
        if tree.get(group) is None:
            tree[group] = {}
        tree = tree[group]
        if not isinstance(tree, dict):
            raise ConfigError(f"{said}: {group} is a value, it has no {leaf}", hint=_SEE_SETTINGS)
    tree[leaf] = value


def _parse_value(text: str) -> Any:
    """`32` → 32, `'32'` → a text, `[a, b]` → a list, `2e-4` → 0.0002: YAML, and the floats YAML 1.1 misses."""
    try:
        value = yaml.safe_load(text)
    except _NOT_YAML:
        return text
    if value == text.strip():  # not in quotes
        with suppress(ValueError):
            return float(value)
    return value


def _all_problems(error: ValidationError, file: Path | None) -> str:
    where = f"{file}: " if file else ""
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"]) or "settings"
        said = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            said = "there is no such setting"
        # Where settings do not go together, the message names them; the input would be all there are.
        elif not isinstance(problem["input"], (dict, ConfigSection)):
            said += f" (given: {problem['input']!r})"
        lines.append(f"{name}: {said}")
    return where + "; ".join(lines)


_SEE_SETTINGS = "`dsr1-tune settings` lists names, meanings and defaults"


def _known_names(kind: type[ConfigSection], error: ValidationError) -> str:
    unknown = [problem["loc"] for problem in error.errors() if problem["type"] == "extra_forbidden"]
    if not unknown:
        return f"correct the value; {_SEE_SETTINGS}"
    *groups, _ = unknown[0]
    for group in groups:
        section = _section(kind, str(group))
        if section is None:
            break
        kind = section
    return f"known here: {', '.join(kind.model_fields)}"


def describe(kind: type[ConfigSection], prefix: str = "") -> list[tuple[str, str, str]]:
    """(dotted name, default, meaning) of every setting of `kind`, for help and documentation."""
    rows: list[tuple[str, str, str]] = []
    for name, field in kind.model_fields.items():
        if section := _section(kind, name):
            rows += describe(section, f"{prefix}{name}.")
        else:
            meaning = " ".join((field.description or "").split())
            if values := _values(field.annotation):
                meaning += f" One of: {', '.join(values)}."
            rows.append((prefix + name, str(field.default), meaning))
    return rows


def _values(annotation: Any) -> list[str]:
    """What a setting may be, where that is a list of words, also inside a tuple or as the names of a dict."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [value for part in get_args(annotation)[:1] for value in _values(part)]
