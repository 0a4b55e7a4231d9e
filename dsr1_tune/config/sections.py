"""The sections that commands share, with their defaults: data, base model, sequences, chat template, adapter (LoRA),
schedule (learning rate, optimizer, batch size), router, watch (alarms, trackers) and parallel (processes).
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from dsr1_tune.config.pairs import json_or_text, no_argument
from dsr1_tune.errors import ConfigError

Group = Literal["attention", "dense_ffn", "shared_experts", "routed_experts"]
GROUPS: tuple[Group, ...] = ("attention", "dense_ffn", "shared_experts", "routed_experts")

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1)]


class ConfigSection(BaseModel):
    """A frozen group of settings; unknown names are errors and docstrings are the help texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
    renamed: ClassVar[Mapping[str, str]] = {}
    """Settings by the names that they had in an earlier version: old name, present name."""

    @model_validator(mode="before")
    @classmethod
    def _as_meant(cls, value: Any) -> Any:
        """What a section may look like: lines that are all commented out, old names, `groups=attention,dense_ffn`."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            return value
        value = _read_lists(cls, value)
        for old, new in cls.renamed.items():
            if old in value:
                if new in value:
                    raise ValueError(f"{old} is the old name of {new}; give {new} alone")
                value = {new if name == old else name: given for name, given in value.items()}
        for name, field in cls.model_fields.items():
            if isinstance(field.default, ConfigSection) and isinstance(value.get(name), dict):
                # `gates.min_agreement=0.9` leaves the other gate as this command has it.
                value = {**value, name: {**field.default.model_dump(exclude_unset=True), **value[name]}}
        return value

    @model_validator(mode="after")
    def _checked(self) -> Self:
        for name, value in self:
            _refuse_no_text(name, value)
        self._check()
        return self

    def _check(self) -> None:
        """Raise ValueError where settings cannot be, or do not go together."""


def _refuse_no_text(name: str, value: Any) -> None:
    """Raise ConfigError for a path that this system's encoding makes no text of: no JSON could tell of it."""
    for one in value if isinstance(value, tuple) else (value,):
        if isinstance(one, (str, Path)):
            try:
                str(one).encode()
            except UnicodeEncodeError:
                shown = str(one).encode(errors="backslashreplace").decode()
                raise ConfigError(
                    f"{name}: {shown} is no text in this system's encoding, {sys.getfilesystemencoding()}",
                    hint="rename it, or set LC_ALL to the encoding of its name, such as C.UTF-8",
                ) from None


class Data(ConfigSection):
    """What to learn from, and which rows are worth it."""

    files: tuple[Path, ...] = ()
    """Data files: JSON, JSONL (also .gz), Parquet or CSV; a.json:0.7 also gives it a weight."""
    eval_files: tuple[Path, ...] = ()
    """Files of the rows to evaluate on, in place of a share of the others; training rows that ask or say nearly the
    same are dropped. A folder that `data clean` wrote, named among the files, brings its own."""
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
    special_tokens: Literal["text", "keep"] = "text"
    """What the base's control tokens, such as <|im_end|>, are where a text holds them: text like any other, or keep
    them as tokens that end and begin turns."""

    @model_validator(mode="before")
    @classmethod
    def _weights_from_names(cls, value: Any) -> Any:
        """`files: [a.json:0.7]` is `files: [a.json]` and `weights: {a.json: 0.7}`, unless a file has that very name."""
        value = _read_lists(cls, value)
        if not isinstance(value, dict) or not isinstance(value.get("files"), (list, tuple)):
            return value
        given = value.get("weights") or {}
        files, weights = [], {str(Path(str(file))): weight for file, weight in dict(given).items()}
        for said in map(str, value["files"]):
            name, colon, weight = said.rpartition(":")
            with suppress(ValueError):  # what is behind a colon is no number
                number = float(weight)
                if colon and not Path(said).exists():
                    weights[str(Path(name))], said = number, name
            files.append(said)
        return _with_cleaned_folders({**value, "files": files, "weights": weights})

    def _check(self) -> None:
        if unknown := set(self.weights) - {str(file) for file in self.files}:
            raise ValueError(f"a weight is given for {', '.join(sorted(unknown))}, which is none of the files")

    @property
    def all_files(self) -> tuple[Path, ...]:
        """The files to train on, then those to evaluate on."""
        return (*self.files, *self.eval_files)

    @property
    def name(self) -> str:
        """What is made of these files is named after the first of them, or after its cleaned folder."""
        first = self.files[0]
        is_cleaned = first.name == _TRAIN and first.with_name(_EVAL) in self.eval_files
        return first.absolute().parent.name if is_cleaned else first.name

    def weight(self, file: str) -> float:
        """How often the rows of a file count; 1 where nothing is said."""
        return self.weights.get(file, 1.0)


_TRAIN, _EVAL = "train.jsonl", "eval.jsonl"


def _with_cleaned_folders(value: dict[str, Any]) -> dict[str, Any]:
    """A folder with training and held-out rows, as `data clean` and runs leave it, is trained and evaluated on.

    Where it holds nothing out, nothing is held out, unless a share is asked for.
    """
    files, evaluated, weights = [], list(value.get("eval_files") or ()), value["weights"]
    for file in map(Path, value["files"]):
        # isdir, as a name that is too long for a file is none.
        if os.path.isdir(file) and (file / _TRAIN).is_file() and (file / _EVAL).is_file():  # noqa: PTH112
            if (file / _EVAL).stat().st_size:
                evaluated.append(file / _EVAL)
            else:
                value = {"eval_share": 0.0, **value}
            weights = {str(file / _TRAIN) if name == str(file) else name: of for name, of in weights.items()}
            file = file / _TRAIN
        files.append(file)
    return {**value, "files": files, "eval_files": evaluated, "weights": weights}


def _read_lists(kind: type[ConfigSection], value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    for name, field in kind.model_fields.items():
        said, shape = value.get(name), get_origin(field.annotation)
        if isinstance(said, str) and shape is dict and said.lstrip().startswith("{"):
            value = {**value, name: json_or_text(said)}
        elif isinstance(said, str) and shape is dict and "=" in said:
            pairs = (part.rpartition("=") for part in said.split(","))
            value = {**value, name: {key.strip(): number.strip() for key, _, number in pairs}}
        elif isinstance(said, str) and shape is tuple and get_args(field.annotation)[0] is not Path:
            value = {**value, name: tuple(part.strip() for part in said.split(","))}
    return value


class Base(ConfigSection):
    """The model to start from."""

    model: str | None = None
    """A Hub id or a folder; without it the embedded base is used."""
    revision: str | None = None
    """A branch, tag or commit of a Hub id."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights (for qlora, of what is not in 4 bits); auto is bfloat16 on a GPU that has it and for
    qlora, else float32."""
    context: Annotated[int, Field(ge=0)] = 0
    """Stretch the context to so many tokens with YaRN (arXiv 2309.00071), where the rope allows it; 0 leaves it."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "auto"
    """What computes attention; flash_attention_2 and 3 need a GPU and their package, auto is transformers' choice."""


class Sequences(ConfigSection):
    """How records become sequences of tokens."""

    longer: Literal["drop", "truncate", "split"] = "drop"
    """What to do with records of more than schedule.max_tokens: drop and report them, cut their end off, or split
    them between turns into several, each with the system prompt."""
    packing: bool = False
    """Put several records into one sequence of schedule.max_tokens; none of them sees another."""
    learn: tuple[Literal["assistant", "user", "system", "tool"], ...] = ("assistant",)
    """The roles whose words are learned."""
    think: Literal["keep", "strip", "mask"] = "keep"
    """Thoughts in <think>...</think>: learn them, take them out, or show them without learning them."""

    def _check(self) -> None:
        if not self.learn:
            raise ValueError("sequences.learn: name at least one role, such as assistant")


class Template(ConfigSection):
    """How the base's chat template is asked: for training, evaluation, rollouts, chat and serve alike."""

    switches: ClassVar[tuple[str, ...]] = ("enable_thinking", "thinking")
    """Arguments by which templates turn thinking on and off."""

    thinking: Literal["auto", "on", "off"] = "auto"
    """The mode of templates that can think or not (Qwen3, DeepSeek-V3.1, GLM-4.5): on, off, or auto, where a row with
    a thought is rendered in the one and a row without in the other; off takes thoughts out."""
    tools: Literal["template", "text"] = "template"
    """How tools and their calls are written: as the template does, else the row is refused; or as text in the form of
    Hermes and Qwen, <tool_call>{"name": ..., "arguments": ...}</tool_call>, for templates that know no tools."""
    kwargs: dict[str, Any] = {}
    """Further arguments of the template: reasoning_effort=high."""

    @field_validator("thinking", mode="before")
    @classmethod
    def _read_as_yaml(cls, value: Any) -> Any:
        """To YAML on and off are true and false."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @field_validator("kwargs", mode="before")
    @classmethod
    def _typed(cls, value: Any) -> Any:
        """`{"low": "true"}`, as `kwargs=low=true` is read, is `{"low": True}`."""
        wrong = [name for name in value if not str(name).isidentifier()] if isinstance(value, dict) else [value]
        if wrong and value is not None:
            raise ValueError(no_argument(value, wrong[0]))
        return {name: json_or_text(given) for name, given in value.items()} if isinstance(value, dict) else value

    def _check(self) -> None:
        if taken := {"messages", "tools", "documents", "add_generation_prompt", "chat_template"} & self.kwargs.keys():
            raise ValueError(f"template.kwargs: {', '.join(sorted(taken))} is not for you to set")
        given = {name: self.kwargs[name] for name in self.switches if name in self.kwargs}
        for name, value in given.items() if self.thinking != "auto" else ():
            if bool(value) != (self.thinking == "on"):
                said = f"template.thinking={self.thinking} and template.kwargs.{name}={json.dumps(value)}"
                raise ValueError(f"{said} contradict each other; give one of them")


@dataclasses.dataclass(frozen=True)
class Encoding:
    """All settings by which conversations become tokens."""

    sequences: Sequences = dataclasses.field(default_factory=Sequences)
    template: Template = dataclasses.field(default_factory=Template)
    special_tokens: Literal["text", "keep"] = "text"
    by_thought: bool = True
    """Whether template.thinking=auto goes by a row's thought; a reward model asks as the template does by itself."""


Init = Literal["kaiming", "gaussian", "orthogonal", "pissa", "olora"]


class Adapter(ConfigSection):
    """The low-rank update (LoRA, arXiv 2106.09685)."""

    rank: Count = 8
    """Rank of the update, for each linear layer and for each expert."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The update is scaled by alpha / rank."""
    groups: tuple[Group, ...] = GROUPS
    """Which parts get an update; the router never does."""
    ranks: dict[Group, Count] = {}
    """Another rank for a group: routed_experts=4,attention=16."""
    alphas: dict[Group, Annotated[float, Field(gt=0)]] = {}
    """Another alpha for a group."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (rsLoRA, arXiv 2312.03732)."""
    dora: bool = False
    """Train the magnitudes of the linear layers too (DoRA, arXiv 2402.09353); in a mixture of experts PEFT can do so
    for attention alone: adapter.groups=[attention]."""
    dropout: Share = 0.0
    """LoRA dropout on the input of the linear layers' updates; the routed experts have none."""
    lora_plus: Annotated[float, Field(ge=1)] = 1.0
    """Learning rate of LoRA B as a multiple of LoRA A's (LoRA+, arXiv 2402.12354); the paper uses 16."""
    init: Init = "kaiming"
    """Initialisation of the linear layers' LoRA A and B; routed experts always start from kaiming and zero."""

    def _check(self) -> None:
        if not self.groups:
            raise ValueError(f"name at least one of {', '.join(GROUPS)}")
        for name, given in (("ranks", self.ranks), ("alphas", self.alphas)):
            if idle := [group for group in given if group not in self.groups]:
                raise ValueError(f"adapter.{name} names {', '.join(idle)}, which adapter.groups leaves out")
        linears = [group for group in self.groups if group != "routed_experts"]
        for name in ("dora", "dropout", "init"):
            if not linears and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"adapter.{name} is for linear layers, but adapter.groups has only routed_experts")
        if self.dora and self.init in ("pissa", "olora"):
            raise ValueError(f"adapter.dora and adapter.init={self.init} both change the base weight; choose one")


class Schedule(ConfigSection):
    """The training schedule: duration, learning rate, batch size and optimizer."""

    renamed: ClassVar[Mapping[str, str]] = {
        "accumulate": "gradient_accumulation_steps",
        "neftune": "neftune_noise_alpha",
    }

    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Training epochs: passes over the training records."""
    max_steps: Annotated[int, Field(ge=0)] = 0
    """Maximum number of optimizer steps; 0 follows epochs."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Peak learning rate of the cosine schedule."""
    warmup_share: Share = 0.05
    """Warm-up: share of the steps over which the learning rate rises linearly; the first already learns."""
    optimizer: Literal["auto", "adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor"] = "auto"
    """auto is AdamW, and for qlora on a GPU paged 8-bit AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradient clipping: maximum norm of the gradient."""
    batch_size: Count = 8
    """Micro-batch size: sequences per device and forward pass."""
    gradient_accumulation_steps: Count = 1
    """Gradient accumulation: forward passes per optimizer step."""
    max_tokens: Annotated[int, Field(ge=16)] = 1024
    """Maximum sequence length in tokens; sequences.longer says what is done with longer records."""
    neftune_noise_alpha: Annotated[float, Field(ge=0)] = 0.0
    """Noise alpha on the embeddings while training (NEFTune, arXiv 2310.05914); the paper uses 5, 0 adds none."""
    gradient_checkpointing: bool = True
    """Gradient (activation) checkpointing: recompute activations in the backward pass to save memory."""
    save_steps: Count = 50
    """Save a checkpoint every so many optimizer steps; the last two are kept."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Random seed of the data split, the data order, the adapter's initialisation and all sampling."""


class Router(ConfigSection):
    """Whether and how the routers of a mixture of experts are trained."""

    mode: Literal["frozen", "train", "aux_loss", "bias"] = "frozen"
    """frozen; train: train the router weights; aux_loss: train them with an auxiliary load-balancing loss (softmax
    routers); bias: freeze them and move the balancing bias by DeepSeek-V3's rule (sigmoid routers)."""
    aux_loss: Annotated[float, Field(gt=0)] = 0.001
    """Weight of the auxiliary load-balancing loss; too high a weight hurts quality."""
    bias_rate: Annotated[float, Field(gt=0)] = 0.001
    """Update rate of the balancing bias: b += rate * sign(mean load - load)."""


class Watch(ConfigSection):
    """Monitoring of training: alarms, held-out evaluation and experiment trackers."""

    renamed: ClassVar[Mapping[str, str]] = {"evaluate_steps": "eval_steps"}

    on_alarm: Literal["warn", "stop", "rollback"] = "warn"
    """warn prints a warning; stop saves a checkpoint and ends the run; rollback resumes once from the last good
    checkpoint with half the learning rate."""
    eval_steps: Annotated[int, Field(ge=0)] = 0
    """Evaluate the held-out loss every so many optimizer steps; 0 evaluates only before and after training."""
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ("tensorboard",)
    """Experiment trackers, besides train_log.jsonl; trackio and wandb need the extra of that name."""
    language: Literal["auto", "en", "zh"] = "auto"
    """Language of report.html; auto takes the language of most records."""


def _not_zero3(strategy: Any) -> Any:
    if strategy in ("zero3", "deepspeed"):
        raise ValueError("DeepSpeed is not used; fsdp2 shards all weights, experts those of routed experts alone")
    return strategy


class Parallel(ConfigSection):
    """Distributed training in several processes."""

    processes: Count = 1
    """World size: processes to start on this machine, one per GPU; `accelerate launch` starts them itself."""
    strategy: Annotated[Literal["ddp", "fsdp2", "experts"], BeforeValidator(_not_zero3)] = "ddp"
    """ddp replicates the model in every process; fsdp2 shards its weights; experts (expert parallelism) gives
    every process a part of each layer's routed experts, to which tokens travel, and replicates the rest."""
    powersgd_rank: Annotated[int, Field(ge=0)] = 0
    """Gradient compression with ddp: rank of PowerSGD's products (arXiv 1905.13727); 0 sends gradients whole."""

    def _check(self) -> None:
        if self.powersgd_rank and self.strategy != "ddp":
            raise ValueError(f"parallel.powersgd_rank works with ddp, not with {self.strategy}")
