"""`qlora`: train low-rank updates over a base whose matrices are held in 4 bits (NF4; QLoRA, arXiv 2305.14314)."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from dsr1_tune.config import QloraRun
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.trained.attach import attach_adapter
from dsr1_tune.models.trained.lora import add_lora, check_adapter, save_adapter
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.open_session import open_session
from dsr1_tune.runs.session import Session


def run(config: QloraRun, resume: Path | None = None, console: Console | None = None) -> RunFolder:
    """Train QLoRA as `config` says, or go on with `resume`; returns its folder. Raises as `open_session` does."""
    with open_session(config, "qlora", resume, console, quantized=True) as session:
        # What the model does not have is refused before its weights are loaded.
        check_adapter(meta_model(session.base.config), session.config.adapter, session.config.router)
        _train(session)
        session.check(lambda base: attach_adapter(base, session.folder.adapter))
    return session.folder


def _train(session: Session[QloraRun]) -> None:
    loaded = session.load()
    session.audit_bits(loaded.model)
    model = add_lora(loaded.model, session.config.adapter, session.config.router)
    session.run(model, save=lambda: save_adapter(model, session.base, session.folder.adapter))
