"""Packs of rules: which rules look at a row, how strictly, and what of the user's own; ours are rule_packs/*.yaml."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from dsr1_tune.config import ConfigSection
from dsr1_tune.data.record import Record
from dsr1_tune.data.rules.codes import register
from dsr1_tune.data.rules.registry import RULES, Rules
from dsr1_tune.data.rules.rule import YAML_OFF, Action, Rule, RuleSettings
from dsr1_tune.errors import ConfigError

SHIPPED = Path(__file__).with_name("rule_packs")


class Custom(ConfigSection):
    """A rule of the user's own: a Rule, or a function that takes the Record."""

    call: str = Field(pattern=r"^[^:]+(?::[^:]+)*:[A-Za-z_]\w*$")
    """`module:name` of the Rule or function, or `./file.py:name` beside the pack."""
    action: Action = "drop"
    """drop removes the row, warn keeps it with a remark, off does not look; without one, a Rule's own."""
    name: str = ""
    """What to call it in reports; without one, the name of the Rule or function."""
    settings: dict[str, Any] = {}
    """The settings of a Rule; a function takes none."""

    @property
    def title(self) -> str:
        """Its name, or the function's."""
        return self.name or self.call.rpartition(":")[2]

    def settings_of(self, rule: Rule) -> RuleSettings:
        """The settings for the Rule that `call` names. Raises ValidationError where they do not fit."""
        action = {"action": self.action} if "action" in self.model_fields_set else {}
        return rule.settings.model_validate(action | self.settings)


class Pack(ConfigSection):
    """Rules for a kind of data. It holds all it needs, so that it can travel to other processes."""

    name: str = "general"
    """The pack's name, or its file."""
    description: str = ""
    """What kind of data it is for."""
    rules: Rules = Rules()
    """The rules and their settings."""
    privacy: Annotated[Literal["count", "redact", "drop", "off"] | None, YAML_OFF] = None
    """What to do about personal data, where the run does not say."""
    custom: tuple[Custom, ...] = ()
    """Rules of the user's own, after all others."""


def shipped_packs() -> tuple[str, ...]:
    """The names of the packs that come with the toolkit, `general` first."""
    names = sorted(file.stem for file in SHIPPED.glob("*.yaml"))
    return ("general", *(name for name in names if name != "general"))


def load_pack(name_or_path: str | Path) -> Pack:
    """A shipped pack by its name, or one of the user's own from a YAML file.

    A pack changes what it says and takes the rest from the one it `extends`, `general` if it names none. Raises
    ConfigError that lists every problem of the file, of those it extends and of the functions and lists it names.
    """
    file = _file_of(str(name_or_path), Path())
    problems: list[str] = []
    tree = _composed(file, problems, ())
    pack: Pack | None = None
    try:
        pack = Pack.model_validate(tree)
    except ValidationError as error:
        problems += _described(error)
    calls = tree.get("custom")
    for number, entry in enumerate(calls if isinstance(calls, list) else ()):
        problems += [f"custom.{number}.{problem}" for problem in _problems_of_custom(entry)]
    if problems or pack is None:
        hint = f"the rules are {', '.join(RULES)}; {SHIPPED / 'general.yaml'} shows their settings"
        raise ConfigError("\n".join(f"{file}: {problem}" for problem in problems), hint=hint)
    return pack


def _problems_of_custom(entry: Any) -> list[str]:
    """Why the Rule or function of an entry cannot be used; what the entry's form lacks is named elsewhere."""
    try:
        custom = Custom.model_validate(entry)
    except ValidationError:
        custom = None
    call = custom.call if custom else entry.get("call") if isinstance(entry, dict) else None
    if not isinstance(call, str) or ":" not in call:
        return []
    try:
        rule = rule_of(call)
    except ConfigError as error:
        return [f"call: {error.message}"]
    if custom is None:
        return []
    if not isinstance(rule, Rule):
        return ["settings: a function takes none; only a Rule does"] if custom.settings else []
    try:
        custom.settings_of(rule)
    except ValidationError as error:
        return [f"settings.{problem}" for problem in _described(error, lambda _: tuple(rule.settings.model_fields))]
    return []


def _file_of(name: str, folder: Path) -> Path:
    """The file of a pack: a shipped one by its name, else a path, seen from `folder`."""
    if name in shipped_packs():
        return SHIPPED / f"{name}.yaml"
    path = folder / Path(name).expanduser()
    if path.is_file():
        return path
    if "/" in name or path.suffix in (".yaml", ".yml"):
        raise ConfigError(f"{path}: there is no such pack of rules", hint="give --rules a pack's name or its YAML file")
    near = _near(name, shipped_packs())
    raise ConfigError(
        f"there is no pack of rules {name!r}{near}",
        hint=f"the packs are {', '.join(shipped_packs())}; or give the path of a YAML file",
    )


def _composed(file: Path, problems: list[str], above: tuple[Path, ...]) -> dict[str, Any]:
    """The pack's settings laid over those of the pack it extends; what is wrong is added to `problems`."""
    where = f"extends: {file}: " if above else ""
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"{where}cannot be read: {error.strerror}")
        return {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problems.append(f"{where}is not YAML: {' '.join(str(error).split())}")
        return {}
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        problems.append(f"{where}is {type(tree).__name__}, no settings by name")
        return {}
    tree = {key: value for key, value in tree.items() if value is not None}
    is_root = file == SHIPPED / "general.yaml"
    parent = tree.pop("extends", None if is_root else "general")
    _resolve(tree, file.parent, problems)
    base = _parent(parent, file, problems, above) if parent is not None else {}
    return {**_laid_over(base, tree), "name": tree.get("name", file.stem if file.parent == SHIPPED else str(file))}


def _parent(parent: Any, file: Path, problems: list[str], above: tuple[Path, ...]) -> dict[str, Any]:
    if not isinstance(parent, str):
        problems.append(f"extends: {parent!r} is not the name of a pack")
        return {}
    try:
        parent_file = _file_of(parent, file.parent)
    except ConfigError as error:
        problems.append(f"extends: {error.message}")
        return {}
    chain = (*above, file.resolve())
    if parent_file.resolve() in chain:
        problems.append(f"extends: goes round in circles, back to {parent_file}")
        return {}
    return _composed(parent_file, problems, chain)


def _resolve(tree: dict[str, Any], folder: Path, problems: list[str]) -> None:
    """Turn names of files beside the pack into what they hold, or into absolute paths."""
    custom = tree.get("custom")
    if isinstance(custom, list):
        tree["custom"] = [_with_absolute_call(entry, folder) for entry in custom]
    given = tree.get("rules")
    if given in ("off", False):  # short for every rule off
        given = dict.fromkeys(RULES, "off")
    if not isinstance(given, dict):
        return
    # `refusal: warn` is short for `refusal: {action: warn}`, and YAML reads a bare off as false.
    given = {name: {"action": value} if isinstance(value, (str, bool)) else value for name, value in given.items()}
    tree["rules"] = given
    for name in RULES.keys() & given.keys():
        if isinstance(given[name], dict):
            found: list[str] = []
            given[name] = RULES[name].settings.resolve(given[name], folder, found)
            problems += [f"rules.{name}.{problem}" for problem in found]


def _with_absolute_call(entry: Any, folder: Path) -> Any:
    """A custom rule whose file stands beside the pack, by its whole path: other processes have other folders."""
    if isinstance(entry, str):
        entry = {"call": entry}
    if isinstance(entry, dict) and isinstance(entry.get("call"), str):
        file, colon, function = entry["call"].rpartition(":")
        if file.endswith(".py"):
            return {**entry, "call": f"{(folder / file).resolve()}{colon}{function}"}
    return entry


def _laid_over(base: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    """`tree` over `base`: settings of a rule replace one by one, custom rules come after those of the base."""
    merged = {**base, **tree}
    mine, theirs = tree.get("rules"), base.get("rules")
    if isinstance(mine, dict) and isinstance(theirs, dict):
        merged["rules"] = {**theirs, **mine}
        for name in mine.keys() & theirs.keys():
            if isinstance(mine[name], dict) and isinstance(theirs[name], dict):
                merged["rules"][name] = {**theirs[name], **mine[name]}
    if isinstance(tree.get("custom"), list) and isinstance(base.get("custom"), list):
        merged["custom"] = [*base["custom"], *tree["custom"]]
    return merged


def _described(error: ValidationError, known_at: Callable[[list[str]], tuple[str, ...]] | None = None) -> list[str]:
    """Every wrong setting by its dotted name, with the nearest one that exists."""
    lines = []
    for problem in error.errors():
        loc = [str(part) for part in problem["loc"]]
        name = ".".join(loc) or "settings"
        if problem["type"] == "extra_forbidden":
            what = "rule" if len(loc) == 2 and loc[0] == "rules" else "setting"
            lines.append(f"{name}: there is no such {what}{_near(loc[-1], (known_at or _known_at)(loc[:-1]))}")
        else:
            said = problem["msg"].removeprefix("Value error, ")
            quotes = "; put it in quotes" if problem["type"] == "string_type" else ""
            lines.append(f"{name}: {said} (given: {problem['input']!r}){quotes}")
    return lines


def _known_at(loc: list[str]) -> tuple[str, ...]:
    if not loc:
        return (*Pack.model_fields, "extends")
    if loc[0] == "custom":
        return tuple(Custom.model_fields)
    if len(loc) == 1:
        return tuple(RULES)
    return tuple(RULES[loc[1]].settings.model_fields) if loc[1] in RULES else ()


def _near(name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known are {', '.join(known)}" if 0 < len(known) < 8 else ""


def rule_of(call: str) -> Rule | Callable[[Record], Any]:
    """The Rule or the function of a custom rule; a Rule's codes become known to reports.

    Raises ConfigError where it cannot be imported, or where a code of the Rule is one of the toolkit's own.
    """
    found = _imported(call)
    if not isinstance(found, Rule):
        return function_of(call)
    register(found)
    return found


def function_of(call: str) -> Callable[..., Any]:
    """The function that `module:function` or `file.py:function` names. Raises ConfigError where there is none."""
    function = _imported(call)
    if not callable(function):
        where, _, name = call.rpartition(":")
        known = (key for key, value in vars(_module(where)).items() if callable(value) and not key.startswith("_"))
        raise ConfigError(
            f"{where} has no function {name!r}{_near(name, tuple(known))}", hint="correct the function's name"
        )
    return function


def _imported(call: str) -> Any:
    where, _, name = call.rpartition(":")
    return getattr(_module(where), name, None)


def _module(where: str) -> ModuleType:
    try:
        return _module_in(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except (Exception, SystemExit) as error:  # whatever the user's file does when it is imported
        hint = "name it as module:function, or as ./file.py:function beside the pack"
        raise ConfigError(f"{where} cannot be imported: {type(error).__name__}: {error}", hint=hint) from None


def _module_in(file: Path) -> ModuleType:
    """The module of a file beside a pack, imported once."""
    name = f"_rules_of_{abs(hash(file)):x}_{file.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
