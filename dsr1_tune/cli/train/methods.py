"""The options that all ways of training and alignment share, and how each composes its config and starts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

DataFiles = Annotated[
    list[Path] | None,
    typer.Option("--data", help="JSON, JSONL, CSV, Parquet, or a cleaned folder; may be repeated.", show_default=False),
]
ModelName = Annotated[
    str | None, typer.Option("--model", help="A Hub id or a folder. [default: embedded base]", show_default=False)
]
Out = Annotated[
    Path | None, typer.Option("--out", help="The run folder. [default: runs/<data>-<date>]", show_default=False)
]
Map = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="NAME=COLUMN", help="Column names: question=title,answer=reply", show_default=False),
]
Epochs = Annotated[
    float | None, typer.Option("--epochs", help="Passes over the data. [default: 1]", show_default=False)
]
OnAlarm = Annotated[
    str | None,
    typer.Option("--on-alarm", metavar="warn|stop|rollback", help="What an alarm does.", show_default=False),
]
Processes = Annotated[
    int | None, typer.Option("--processes", help="Processes that share the work. [default: 1]", show_default=False)
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A YAML file of settings.", show_default=False)]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other setting, such as adapter.rank=32.", show_default=False),
]
Resume = Annotated[Path | None, typer.Option("--resume", help="Go on with the run in this folder.", show_default=False)]


TRAINS = {
    "lora": "Check data, clean it, and train LoRA on attention, dense layers, shared and routed experts.",
    "qlora": "Like `lora`, over a base whose experts and linear layers are held in 4 bits.",
    "full": "Train the base's own weights: all of them, or with --set train.only=[...] experts, attention, the last "
    "layers.",
    "esft": "Train only the experts that the data uses (ESFT); `dsr1-tune experts` shows which those are.",
}


def command(name: str) -> Callable[..., None]:
    """The verb `name`: all ways of training take the same options."""

    def train(
        data: DataFiles = None,
        model: ModelName = None,
        out: Out = None,
        map_: Map = None,
        epochs: Epochs = None,
        on_alarm: OnAlarm = None,
        processes: Processes = None,
        config: ConfigFile = None,
        sets: Sets = None,
        resume: Resume = None,
    ) -> None:
        start(name, data, model, out, map_, epochs, on_alarm, processes, config, sets, resume)

    train.__doc__ = f"{TRAINS[name]}\n\n`dsr1-tune settings` lists everything that --config and --set can say."
    return train


def start(
    command: str,
    data: list[Path] | None,
    model: str | None,
    out: Path | None,
    map_: list[str] | None,
    epochs: float | None,
    on_alarm: str | None,
    processes: int | None,
    config: Path | None,
    sets: list[str] | None,
    resume: Path | None,
    **own: Any,
) -> None:
    """Compose the config of `command` from what was given and hand it to the method's run().

    `own` are the flags that only it has, by the names of their settings.
    """
    from dsr1_tune import config as configs
    from dsr1_tune.config.load import load_config
    from dsr1_tune.data.read.formats import parse_mapping
    from dsr1_tune.errors import ConfigError
    from dsr1_tune.runs.distributed.launch import is_launched, processes_of, run_in_processes

    kinds: dict[str, type[configs.TuneRun]] = {
        "lora": configs.LoraRun,
        "qlora": configs.QloraRun,
        "full": configs.FullRun,
        "esft": configs.EsftRun,
        "reward": configs.RewardRun,
        "dpo": configs.DpoRun,
        "kto": configs.KtoRun,
        "ppo": configs.PpoRun,
        "grpo": configs.GrpoRun,
    }
    flags: dict[str, Any] = {
        "data.files": [str(file) for file in data] if data else None,
        "data.map": parse_mapping(map_) if map_ else None,
        "base.model": model,
        "schedule.epochs": epochs,
        "watch.on_alarm": on_alarm,
        "parallel.processes": processes,
        "out": str(out) if out else None,
        **{name: str(value) if isinstance(value, Path) else value for name, value in own.items()},
    }
    changes = [value for name, value in flags.items() if name != "parallel.processes"]
    if resume and (config or sets or any(value is not None for value in changes)):
        raise ConfigError(
            "--resume goes on with the run's own settings; no others can be given",
            hint=f"dsr1-tune {command} --resume {resume}",
        )
    settings = load_config(kinds[command], config, flags, sets or ())
    if not resume and isinstance(settings, configs.RolloutRun) and not settings.rewards:
        raise ConfigError(
            "no rewards are given: nothing says what a good answer is",
            hint=f"dsr1-tune {command} --data {_EXAMPLES[command]}",
        )
    if not resume and not settings.data.files:
        raise ConfigError(
            "no data is given", hint=f"dsr1-tune {command} --data {_EXAMPLES.get(command, 'medical.json')}"
        )
    wanted = processes or (processes_of(resume) if resume else settings.parallel.processes)
    if wanted > 1 and not is_launched():
        raise typer.Exit(run_in_processes(sys.argv[1:], wanted))
    room = "align" if issubclass(kinds[command], configs.AlignRun) else "train"
    import_module(f"dsr1_tune.{room}.{command}").run(settings, resume)


_EXAMPLES = {
    "reward": "preferences.jsonl",
    "dpo": "preferences.jsonl",
    "kto": "feedback.jsonl",
    "ppo": "prompts.jsonl --rewards rewards.yaml",
    "grpo": "prompts.jsonl --rewards rewards.yaml",
}
