"""`dsr1-tune lora`: train low-rank adapters."""

from __future__ import annotations

from dsr1_tune.cli.training import (
    ConfigFile,
    DataFiles,
    Epochs,
    Map,
    ModelName,
    OnAlarm,
    Out,
    Processes,
    Resume,
    Sets,
    start,
)


def lora(
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
    """Check data, clean it, and train LoRA on attention, dense layers, shared and routed experts.

    `dsr1-tune settings` lists everything that --config and --set can say.
    """
    start("lora", data, model, out, map_, epochs, on_alarm, processes, config, sets, resume)
