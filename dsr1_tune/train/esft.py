"""`esft`: train only the experts that the data uses (arXiv 2407.01906), their weights or low-rank updates on them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.console import Console

from dsr1_tune.config import EsftRun
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.trained.experts import attach_experts, save_experts
from dsr1_tune.moe.routing import check_routers, open_routers
from dsr1_tune.moe.select import Choice
from dsr1_tune.moe.selected_experts import check_chosen, train_lora, train_weights
from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.expert_profile import choose_for, show_choice
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.open_session import open_session
from dsr1_tune.runs.session import Session


def run(config: EsftRun, resume: Path | None = None, console: Console | None = None) -> RunFolder:
    """Train the experts that `config` chooses, or go on with `resume`; returns its folder. Raises as `open_session`."""
    if config.esft.experts:
        Choice.read(config.esft.experts)  # before anything is written
        # Absolute: the run may be resumed from another working directory.
        esft = config.esft.model_copy(update={"experts": config.esft.experts.absolute()})
        config = config.model_copy(update={"esft": esft})
    with open_session(config, "esft", resume, console) as session:
        choice = _checked_choice(session)
        _train(session, choice)
        session.check(lambda base: attach_experts(base, session.folder.experts))
    return session.folder


def _checked_choice(session: Session[EsftRun]) -> Choice | None:
    """The experts that the run began with, or those of esft.experts, if the model has them; None: the data decides."""
    earlier, model = session.folder.choice_file, meta_model(session.base.config)
    file = earlier if earlier.exists() else session.config.esft.experts
    choice = Choice.read(file) if file else None
    if choice:
        choice.check(model, session.config.esft.experts or earlier)
    check_chosen(model, choice.chosen if choice else None)
    check_routers(model, session.config.router.mode)
    return choice


def _train(session: Session[EsftRun], choice: Choice | None) -> None:
    model = session.load().model
    choice = _choose(session, model, choice)
    if session.config.esft.method == "weights":
        train_weights(model, choice.chosen)
    else:
        adapter = session.config.adapter
        rank = adapter.ranks.get("routed_experts", adapter.rank)
        alpha = adapter.alphas.get("routed_experts", adapter.alpha)
        train_lora(model, choice.chosen, rank, alpha / (math.sqrt(rank) if adapter.rslora else rank))
    open_routers(model, session.config.router.mode)
    session.run(model, save=lambda: save_experts(model, session.base, session.folder.experts))


def _choose(session: Session[EsftRun], model: Any, choice: Choice | None) -> Choice:
    """Show which experts are trained, and record them: a resumed run trains the same ones."""
    session.narrator.stage("Experts")
    if choice is None:
        with session.timed("profile"):
            sources = model, session.base, session.data.train, session.narrator
            choice = group.from_main(lambda: choose_for(session.config, *sources)[0])
    show_choice(choice, session.narrator.console)
    if session.is_main:
        choice.write(session.folder.choice_file)
    session.facts["experts"] = {"chosen": choice.num_chosen, "of": choice.num_experts}
    return choice
