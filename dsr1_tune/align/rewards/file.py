"""Read the YAML file of a layered reward and check it before any model is loaded; holds the list of components."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import Field, ValidationError, model_validator

from dsr1_tune.align.rewards.component import Component, Positive
from dsr1_tune.align.rewards.form import Form
from dsr1_tune.align.rewards.logic import Logic
from dsr1_tune.align.rewards.task import Task
from dsr1_tune.config import REWARD_NUMBERS, ConfigSection
from dsr1_tune.errors import ConfigError

AnyComponent = Annotated[Form | Logic | Task, Field(discriminator="type")]
KINDS: dict[str, type[Component]] = {
    get_args(kind.model_fields["type"].annotation)[0]: kind for part in (Form, Logic, Task) for kind in get_args(part)
}
Threshold = Annotated[float, Field(gt=0, le=1)]


class Gate(ConfigSection):
    """How far a layer must be met for the layers above it to count."""

    hard: Threshold | None = None
    """They count whole where the layer's score is at least this, else not at all."""
    soft: Threshold | None = None
    """They count in proportion to the layer's score, whole from this on."""

    @model_validator(mode="before")
    @classmethod
    def _by_word(cls, value: Any) -> Any:
        """`gate: none`, `gate: hard` (at 1) and `gate: soft` (at 1)."""
        words = {"none": {"hard": None, "soft": None}, "hard": {"hard": 1.0}, "soft": {"soft": 1.0}}
        if isinstance(value, str) and value in words:
            return words[value]
        if not isinstance(value, (dict, Gate)):
            raise ValueError("give none, hard, soft, or a threshold such as {soft: 0.8}")
        return value

    def _check(self) -> None:
        if self.hard is not None and self.soft is not None:
            raise ValueError("give hard or soft, not both")

    def passed(self, score: float) -> float:
        """How far, from 0 to 1, a layer with that score is met."""
        if self.hard is not None:
            return float(score >= self.hard - 1e-9)  # 0.1 + 0.2 is 0.3
        if self.soft is not None:
            return min(1.0, max(0.0, score / self.soft))
        return 1.0


class Layer(ConfigSection):
    """Some components, and what they must give before the next layer counts."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """What it is called in logs and tables: form, logic, task, ..."""
    weight: Positive = 1.0
    """How much it counts in the total."""
    gate: Gate | None = None
    """Without one it is soft: 1."""
    components: tuple[AnyComponent, ...] = Field(min_length=1)
    """What is looked at."""


class RewardFile(ConfigSection):
    """A layered reward."""

    description: str = ""
    """What it rewards."""
    layers: tuple[Layer, ...] = Field(min_length=1)
    """From the lowest to the highest."""


def read_file(file: Path) -> RewardFile:
    """The layers that a file describes. Raises ConfigError that lists every problem of it with its place."""
    tree = _tree_of(file)
    problems: list[str] = []
    found: RewardFile | None = None
    try:
        found = RewardFile.model_validate(tree, context={"folder": file.absolute().parent})
    except ValidationError as error:
        problems += _described(error)
    problems += _across(tree)
    if problems or found is None:
        hint = f"components are {', '.join(KINDS)}; docs/alignment.md, Layered rewards, has their settings"
        raise ConfigError("\n".join(f"{file}: {problem}" for problem in problems), hint=hint)
    return found


def _tree_of(file: Path) -> dict[str, Any]:
    """What the YAML says, with `- not_empty` written out as `- type: not_empty`, and one component as a list of one."""
    hint = "give a YAML file with layers, such as examples/medical-alignment/rewards.yaml"
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}", hint=hint) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: is not YAML: {' '.join(str(error).split())}", hint=hint) from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: holds no layers", hint=hint)
    for layer in _dicts(tree.get("layers")):
        components = layer.get("components")
        if isinstance(components, (str, dict)):
            components = [components]
        if isinstance(components, list):
            layer["components"] = [{"type": one} if isinstance(one, str) else one for one in components]
    return tree


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    return (one for one in value if isinstance(one, dict)) if isinstance(value, list) else iter(())


def _described(error: ValidationError) -> list[str]:
    """Every problem with its place, and the nearest name that exists where one does not."""
    lines = []
    for problem in error.errors():
        if problem["type"] == "too_short" and problem["input"]:
            continue  # its parts are wrong, and named already
        loc, kind = _without_tags(problem["loc"])
        place = _spelled(loc)
        said = _PLAINER.get(problem["type"], problem["msg"].removeprefix("Value error, "))
        given = "" if isinstance(problem["input"], (dict, list, ConfigSection)) else f" (given: {problem['input']!r})"
        if problem["type"] == "extra_forbidden":
            lines.append(f"{place}: there is no such setting{_near(str(loc[-1]), _known_at(loc, kind))}")
        elif problem["type"] == "union_tag_invalid":
            named = str(problem["input"].get("type"))
            lines.append(f"{place}.type: there is no component {named!r}{_near(named, tuple(KINDS))}")
        elif problem["type"] == "union_tag_not_found":
            lines.append(f"{place}: has no type")
        else:
            lines.append(f"{place}: {said[:1].lower() + said[1:]}{given}")
    return lines


_PLAINER = {
    "tuple_type": "give a list",
    "too_short": "is empty",
    "model_type": "give names with values, such as {soft: 0.8}",
    "model_attributes_type": "give names with values, such as {type: length, max_chars: 400}",
    "missing": "is missing",
}


def _without_tags(loc: tuple[int | str, ...]) -> tuple[list[int | str], type[ConfigSection] | None]:
    """A place without the name of the component's type, which pydantic puts behind its number; and that type."""
    parts = list(loc)
    if len(parts) > 4 and parts[2] == "components" and parts[4] in KINDS:
        return parts[:4] + parts[5:], KINDS[str(parts[4])]
    return parts, None


def _spelled(loc: list[int | str]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".") or "the file"


def _known_at(loc: list[int | str], kind: type[ConfigSection] | None) -> tuple[str, ...]:
    if kind is not None:
        return tuple(kind.model_fields)
    return tuple((RewardFile if len(loc) == 1 else Layer if len(loc) == 3 else Gate).model_fields)


def _near(name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"


def _across(tree: dict[str, Any]) -> list[str]:
    """What only shows where layers and components are seen together: names given twice, gates that cannot work."""
    layers = tree.get("layers")
    if not isinstance(layers, list):
        return []
    problems = _twice("layers", layers)
    for number, layer in enumerate(layers):
        if not isinstance(layer, dict):
            continue
        place, is_last = f"layers[{number}]", number == len(layers) - 1
        if layer.get("name") in REWARD_NUMBERS:
            problems.append(f"{place}.name: {layer['name']!r} is a number of the log; choose another")
        problems += _twice(f"{place}.components", layer.get("components"), otherwise="type")
        gate = layer.get("gate")
        if "gate" in layer and gate is None:
            problems.append(f"{place}.gate: is empty; give none, hard, soft, or a threshold such as {{soft: 0.8}}")
        if is_last and gate not in (None, "none"):
            problems.append(f"{place}.gate: nothing stands above the last layer; leave it out")
        components = _dicts(layer.get("components"))
        unbounded = [str(one.get("name") or one.get("type")) for one in components if one.get("unbounded") is True]
        if unbounded and not is_last and gate != "none":
            problems.append(
                f"{place}.gate: {', '.join(unbounded)} is unbounded, so that no gate can be measured by it; "
                "map it with scale or sigmoid, or set gate: none"
            )
    return problems


def _twice(place: str, value: Any, otherwise: str = "") -> list[str]:
    """Those parts of a list whose name, or what they go by otherwise, is that of another part too."""
    parts = enumerate(value) if isinstance(value, list) else ()
    named = [(i, name) for i, one in parts if isinstance(one, dict) and (name := one.get("name") or one.get(otherwise))]
    times = Counter(str(name) for _, name in named)
    return [
        f"{place}[{i}].name: {name!r} is there {times[str(name)]} times; give each a name of its own"
        for i, name in named
        if times[str(name)] > 1
    ]
