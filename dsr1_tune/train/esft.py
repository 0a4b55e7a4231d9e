"""`esft`: train only the experts that the data uses (arXiv 2407.01906), their weights or low-rank updates on them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.console import Console

from dsr1_tune.config import Adapter, EsftRun
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
    """Train the experts that `config` chooses, or resume the run in `resume`; returns the folder with the experts.

    Raises TuneError for everything the user can fix, before weights are loaded where that is possible, and
    KeyboardInterrupt after a Ctrl-C, when a checkpoint has been saved.
    """
    if config.esft.experts:
        Choice.read(config.esft.experts)  # before anything is written
        config = _with_absolute_path(config, config.esft.experts)
    with open_session(config, "esft", resume, console) as session:
        choice = _already_chosen(session)
        _check(session, choice)
        _train(session, choice)
        session.check(lambda base: attach_experts(base, session.folder.experts))
    return session.folder


def _with_absolute_path(config: EsftRun, experts: Path) -> EsftRun:
    """The config with an absolute path: the run may be resumed from another working directory."""
    return config.model_copy(update={"esft": config.esft.model_copy(update={"experts": experts.absolute()})})


def _already_chosen(session: Session[EsftRun]) -> Choice | None:
    """The experts that the run began with, or those of esft.experts; None where the data decides."""
    earlier = session.folder.choice_file
    file = earlier if earlier.exists() else session.config.esft.experts
    return Choice.read(file) if file else None


def _check(session: Session[EsftRun], choice: Choice | None) -> None:
    """Refuse what the model does not have before its weights are loaded."""
    model = meta_model(session.base.config)
    if choice:
        choice.check(model, session.config.esft.experts or session.folder.choice_file)
    check_chosen(model, choice.chosen if choice else None)
    check_routers(model, session.config.router.mode)


def _train(session: Session[EsftRun], choice: Choice | None) -> None:
    """Load the base, choose its experts, train and save them."""
    model = session.load().model
    choice = _choose(session, model, choice)
    _make_trainable(session.config, model, choice)
    session.run(model, save=lambda: save_experts(model, session.base, session.folder.experts))


def _choose(session: Session[EsftRun], model: Any, choice: Choice | None) -> Choice:
    """Show which experts are trained, and record them: a resumed run trains the same ones."""
    session.narrator.stage("Experts")
    if choice is None:
        with session.timed("profile"):
            choice = group.from_main(lambda: _choose_for(session, model))
    show_choice(choice, session.narrator.console)
    if session.is_main:
        choice.write(session.folder.choice_file)
    session.facts["experts"] = {"chosen": choice.num_chosen, "of": choice.num_experts}
    return choice


def _choose_for(session: Session[EsftRun], model: Any) -> Choice:
    return choose_for(session.config, model, session.base, session.data.train, session.narrator)[0]


def _make_trainable(config: EsftRun, model: Any, choice: Choice) -> None:
    if config.esft.method == "weights":
        train_weights(model, choice.chosen)
    else:
        rank, scale = _rank_and_scale(config.adapter)
        train_lora(model, choice.chosen, rank, scale)
    open_routers(model, config.router.mode)


def _rank_and_scale(adapter: Adapter) -> tuple[int, float]:
    """LoRA's rank and scale for routed experts."""
    rank = adapter.ranks.get("routed_experts", adapter.rank)
    alpha = adapter.alphas.get("routed_experts", adapter.alpha)
    return rank, alpha / (math.sqrt(rank) if adapter.rslora else rank)
