"""`lora`, `qlora`, `full` and `esft`: supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Callable

from dsr1_tune.cli.options import ConfigFile, DataFiles, Epochs, Map, ModelName, OnAlarm, Out, Processes, Resume, Sets
from dsr1_tune.cli.start import Given, start

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
        start(name, Given(data, model, out, map_, epochs, on_alarm, processes, config, sets, resume))

    train.__doc__ = f"{TRAINS[name]}\n\n`dsr1-tune settings` lists everything that --config and --set can say."
    return train
