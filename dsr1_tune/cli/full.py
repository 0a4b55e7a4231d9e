"""`dsr1-tune full`: train every weight, or chosen parts."""

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


def full(
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
    """Train the base's own weights: all of them, or with --set train.only=[...] experts, attention, the last layers.

    `dsr1-tune settings` lists everything that --config and --set can say.
    """
    start("full", data, model, out, map_, epochs, on_alarm, processes, config, sets, resume)
