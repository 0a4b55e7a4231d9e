"""`full`: train the base's own weights, all of them or those that train.only names; routers only where asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from dsr1_tune.config import FullRun
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.trained.full import enable_full_training, save_model
from dsr1_tune.moe.routing import open_routers
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.open_session import open_session
from dsr1_tune.runs.session import Session


def run(config: FullRun, resume: Path | None = None, console: Console | None = None) -> RunFolder:
    """Train the weights that `config` names, or go on with `resume`; returns its folder. Raises as `open_session`."""
    with open_session(config, "full", resume, console) as session:
        # What cannot be trained is refused before weights are loaded.
        _make_trainable(meta_model(session.base.config), session.config)
        _train(session)
        session.check(lambda saved: saved.model, whole=session.folder.model)
    return session.folder


def _train(session: Session[FullRun]) -> None:
    model = session.load().model
    _make_trainable(model, session.config)
    session.run(model, save=lambda: save_model(model, session.base, session.folder.model))


def _make_trainable(model: Any, config: FullRun) -> None:
    enable_full_training(model, config.train.only)
    open_routers(model, config.router.mode)
