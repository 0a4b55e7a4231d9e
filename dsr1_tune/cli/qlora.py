"""`dsr1-tune qlora`: train low-rank adapters over a base held in 4 bits."""

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


def qlora(
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
    """Like `lora`, over a base whose experts and linear layers are held in 4 bits.

    `dsr1-tune settings` lists everything that --config and --set can say.
    """
    start("qlora", data, model, out, map_, epochs, on_alarm, processes, config, sets, resume)
