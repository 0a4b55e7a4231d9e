"""`dsr1-tune esft`: train only the experts that a domain uses."""

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


def esft(
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
    """Train only the experts that the data uses (ESFT); `dsr1-tune experts` shows which those are.

    `dsr1-tune settings` lists everything that --config and --set can say.
    """
    start("esft", data, model, out, map_, epochs, on_alarm, processes, config, sets, resume)
