"""What DPO, KTO, GRPO and PPO share: load the policy, train it in a session, save it and check what was saved."""

from __future__ import annotations

from typing import Any

from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.trained.attach import attach_adapter
from dsr1_tune.models.trained.full import enable_full_training, save_model
from dsr1_tune.models.trained.lora import load_plain_adapter, save_adapter
from dsr1_tune.models.trained.start import begin_adapter, check_begin
from dsr1_tune.runs.session import Session


def train_policy(session: Session[Any]) -> None:
    """Train the policy by config.method (lora, qlora or full) and check what was saved; raises ModelError."""
    config, folder = session.config, session.folder
    if config.method == "full":
        # What cannot be trained is refused before weights are loaded.
        enable_full_training(meta_model(session.base.config), config.train.only)
        _train_full(session)
        session.check(lambda saved: saved.model, whole=folder.model)
        return
    check_begin(config, session.base.config)
    _train_adapter(session)
    if config.method == "qlora":
        session.check(lambda base: attach_adapter(base, folder.adapter))
    else:
        # What any other user of the adapter gets.
        session.check(lambda base: load_plain_adapter(base.model, folder.adapter), how=" with plain PEFT")


def _train_full(session: Session[Any]) -> None:
    model = session.load().model
    enable_full_training(model, session.config.train.only)
    session.run(model, save=lambda: save_model(model, session.base, session.folder.model))


def _train_adapter(session: Session[Any]) -> None:
    loaded = session.load()
    if session.quantized:
        session.audit_bits(loaded.model)
    model = begin_adapter(loaded, session.config)
    session.run(model, save=lambda: save_adapter(model, session.base, session.folder.adapter))
