"""`lora`: train low-rank updates on attention, dense layers, shared and routed experts of a frozen base."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from dsr1_tune.config import LoraRun
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.trained.lora import add_lora, check_adapter, load_plain_adapter, save_adapter
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.open_session import open_session
from dsr1_tune.runs.session import Session


def run(config: LoraRun, resume: Path | None = None, console: Console | None = None) -> RunFolder:
    """Train LoRA as `config` says, or resume the run in `resume`; returns its folder. Raises as `open_session` does."""
    with open_session(config, "lora", resume, console) as session:
        # What the model does not have is refused before its weights are loaded.
        check_adapter(meta_model(session.base.config), session.config.adapter, session.config.router)
        _train(session)
        # What any other user of the adapter gets.
        session.check(lambda base: load_plain_adapter(base.model, session.folder.adapter), how=" with plain PEFT")
    return session.folder


def _train(session: Session[LoraRun]) -> None:
    model = add_lora(session.load().model, session.config.adapter, session.config.router)
    session.run(model, save=lambda: save_adapter(model, session.base, session.folder.adapter))
