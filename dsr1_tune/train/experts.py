"""`experts`: profile which experts the data uses: a table, experts.json for `esft`, and a picture."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from dsr1_tune.config import EsftRun
from dsr1_tune.data.prepare import prepare
from dsr1_tune.models.load import load_located, locate
from dsr1_tune.models.meta import meta_model
from dsr1_tune.moe.select import Choice
from dsr1_tune.moe.selected_experts import check_chosen
from dsr1_tune.runs.console import Narrator, quiet_libraries
from dsr1_tune.runs.data import encode_and_split
from dsr1_tune.runs.expert_profile import choose_for, show_choice
from dsr1_tune.runs.report.expert_map import heat_map


def run(config: EsftRun, out: Path, console: Console | None = None) -> Choice:
    """Profile the training part of the data, and write the choice to `out` and a picture beside it.

    The same config gives the choice that `esft` itself would make. Raises TuneError for everything the user can fix.
    """
    quiet_libraries()
    narrator = Narrator(console or Console())
    prepared = prepare(config.data)
    base = locate(config.base, narrator.say)
    check_chosen(meta_model(base.config))
    data = encode_and_split(prepared, base.tokenizer, config)
    narrator.data(data.prepared, len(data.train), len(data.held_out))
    for remark in data.remarks:
        narrator.say(remark)
    loaded = load_located(base, config.base.dtype)
    choice, routing = choose_for(config, loaded.model, base, data.train, narrator)
    show_choice(choice, narrator.console)
    choice.write(out)
    picture = out.with_suffix(".png")
    heat_map(routing, picture, f"{base.name} on {', '.join(file.name for file in config.data.files)}")
    narrator.say(f"Written: {out} and {picture}. Train them with: dsr1-tune esft --set esft.experts={out} --data ...")
    return choice
