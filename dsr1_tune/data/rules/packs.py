"""Packs of rules: which rules look at a row, how strictly, and what of the user's own."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from dsr1_tune.config import ConfigSection
from dsr1_tune.data.record import Record
from dsr1_tune.data.rules import settings
from dsr1_tune.errors import ConfigError

SHIPPED = Path(__file__).with_name("rule_packs")


class Rules(ConfigSection):
    """Every rule with its settings, in the order in which they run: mending first, then the cheap ones."""

    encoding: settings.Encoding = settings.Encoding()
    lengths: settings.Lengths = settings.Lengths()
    placeholder_answer: settings.PlaceholderAnswer = settings.PlaceholderAnswer()
    replacement_character: settings.ReplacementCharacter = settings.ReplacementCharacter()
    repeated_turn: settings.RepeatedTurn = settings.RepeatedTurn()
    html_markup: settings.HtmlMarkup = settings.HtmlMarkup()
    odd_characters: settings.OddCharacters = settings.OddCharacters()
    answer_repeats_question: settings.AnswerRepeatsQuestion = settings.AnswerRepeatsQuestion()
    refusal: settings.Refusal = settings.Refusal()
    answer_restates_question: settings.AnswerRestatesQuestion = settings.AnswerRestatesQuestion()
    repeated_lines: settings.RepeatedLines = settings.RepeatedLines()
    repeated_text: settings.RepeatedText = settings.RepeatedText()
    wrong_language: settings.WrongLanguage = settings.WrongLanguage()
    advertisement: settings.Advertisement = settings.Advertisement()
    boilerplate: settings.Boilerplate = settings.Boilerplate()
    truncated_answer: settings.TruncatedAnswer = settings.TruncatedAnswer()
    blocked_word: settings.BlockedWord = settings.BlockedWord()
    template_placeholder: settings.TemplatePlaceholder = settings.TemplatePlaceholder()


class Custom(ConfigSection):
    """A rule of the user's own: a function that takes the Record."""

    call: str = Field(pattern=r"^[^:]+(?::[^:]+)*:[A-Za-z_]\w*$")
    """`module:function`, or `./file.py:function` beside the pack."""
    action: settings.Action = "drop"
    """drop removes the row, warn keeps it with a remark, off does not look."""
    name: str = ""
    """What to call it in reports; without one, the function's name."""

    @field_validator("action", mode="before")
    @classmethod
    def _yaml_off(cls, value: Any) -> Any:
        """YAML reads a bare `off` as false."""
        return "off" if value is False else value

    @property
    def title(self) -> str:
        """Its name, or the function's."""
        return self.name or self.call.rpartition(":")[2]


class Pack(ConfigSection):
    """Rules for a kind of data. It holds all it needs, so that it can travel to other processes."""

    name: str = "general"
    """The pack's name, or its file."""
    description: str = ""
    """What kind of data it is for."""
    rules: Rules = Rules()
    """The rules and their settings."""
    privacy: Literal["count", "redact", "drop", "off"] | None = None
    """What to do about personal data, where the run does not say."""
    custom: tuple[Custom, ...] = ()
    """Rules of the user's own, after all others."""

    @field_validator("privacy", mode="before")
    @classmethod
    def _yaml_off(cls, value: Any) -> Any:
        """YAML reads a bare `off` as false."""
        return "off" if value is False else value


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
        call = entry.get("call") if isinstance(entry, dict) else None
        if isinstance(call, str) and ":" in call:  # any other is a problem that is named already
            try:
                function_of(call)
            except ConfigError as error:
                problems.append(f"custom.{number}.call: {error.message}")
    if problems or pack is None:
        hint = f"the rules are {', '.join(Rules.model_fields)}; {SHIPPED / 'general.yaml'} shows their settings"
        raise ConfigError("\n".join(f"{file}: {problem}" for problem in problems), hint=hint)
    return pack


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
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"{_seen_from(above, file)}cannot be read: {error.strerror}")
        return {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problems.append(f"{_seen_from(above, file)}is not YAML: {' '.join(str(error).split())}")
        return {}
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        problems.append(f"{_seen_from(above, file)}is {type(tree).__name__}, no settings by name")
        return {}
    tree = {key: value for key, value in tree.items() if value is not None}
    is_root = file == SHIPPED / "general.yaml"
    parent = tree.pop("extends", None if is_root else "general")
    _resolve(tree, file.parent, problems)
    base: dict[str, Any] = {}
    if parent is not None:
        base = _parent(parent, file, problems, above)
    return {**_laid_over(base, tree), "name": tree.get("name", file.stem if file.parent == SHIPPED else str(file))}


def _parent(parent: Any, file: Path, problems: list[str], above: tuple[Path, ...]) -> dict[str, Any]:
    """The settings of the pack that the file extends."""
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


def _seen_from(above: tuple[Path, ...], file: Path) -> str:
    return f"extends: {file}: " if above else ""


def _resolve(tree: dict[str, Any], folder: Path, problems: list[str]) -> None:
    """Turn names of files beside the pack into what they hold, or into absolute paths."""
    custom = tree.get("custom")
    if isinstance(custom, list):
        tree["custom"] = [_with_absolute_call(entry, folder) for entry in custom]
    given = tree.get("rules")
    if not isinstance(given, dict):
        return
    # `refusal: warn` is short for `refusal: {action: warn}`, and YAML reads a bare off as false.
    given = {name: {"action": value} if isinstance(value, (str, bool)) else value for name, value in given.items()}
    tree["rules"] = given
    blocked = given.get("blocked_word")
    if not isinstance(blocked, dict) or not isinstance(blocked.get("files"), list):
        return
    words = list(blocked.get("words") or []) if isinstance(blocked.get("words") or [], list) else []
    for number, name in enumerate(blocked["files"]):
        try:
            words += _listed_words(folder / str(name))
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            problems.append(f"rules.blocked_word.files.{number}: {folder / str(name)} cannot be read: {why}")
    given["blocked_word"] = {**blocked, "words": words}


def _with_absolute_call(entry: Any, folder: Path) -> Any:
    """A custom rule whose file stands beside the pack, by its whole path: other processes have other folders."""
    if isinstance(entry, str):
        entry = {"call": entry}
    if isinstance(entry, dict) and isinstance(entry.get("call"), str):
        file, colon, function = entry["call"].rpartition(":")
        if file.endswith(".py"):
            return {**entry, "call": f"{(folder / file).resolve()}{colon}{function}"}
    return entry


def _listed_words(file: Path) -> list[str]:
    lines = file.read_text(encoding="utf-8-sig").split("\n")
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


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


def _described(error: ValidationError) -> list[str]:
    """Every wrong setting by its dotted name, with the nearest one that exists."""
    lines = []
    for problem in error.errors():
        loc = [str(part) for part in problem["loc"]]
        name = ".".join(loc) or "settings"
        if problem["type"] == "extra_forbidden":
            what = "rule" if len(loc) == 2 and loc[0] == "rules" else "setting"
            lines.append(f"{name}: there is no such {what}{_near(loc[-1], _known_at(loc[:-1]))}")
        else:
            said = problem["msg"].removeprefix("Value error, ")
            quotes = "; put it in quotes" if problem["type"] == "string_type" else ""
            lines.append(f"{name}: {said} (given: {problem['input']!r}){quotes}")
    return lines


def _known_at(loc: list[str]) -> tuple[str, ...]:
    """The names that may stand at that place of a pack."""
    if not loc:
        return (*Pack.model_fields, "extends")
    if loc[0] == "custom":
        return tuple(Custom.model_fields)
    if len(loc) == 1:
        return tuple(Rules.model_fields)
    kind = type(getattr(Rules(), loc[1], None))
    return tuple(kind.model_fields) if issubclass(kind, ConfigSection) else ()


def _near(name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known are {', '.join(known)}" if 0 < len(known) < 8 else ""


def function_of(call: str) -> Callable[[Record], Any]:
    """The function of a custom rule. Raises ConfigError where it cannot be imported."""
    where, _, name = call.rpartition(":")
    try:
        module = _module_in(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except (Exception, SystemExit) as error:  # whatever the user's file does when it is imported
        hint = "name it as module:function, or as ./file.py:function beside the pack"
        raise ConfigError(f"{where} cannot be imported: {type(error).__name__}: {error}", hint=hint) from None
    function = getattr(module, name, None)
    if not callable(function):
        known = tuple(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise ConfigError(f"{where} has no function {name!r}{_near(name, known)}", hint="correct the function's name")
    return function


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
