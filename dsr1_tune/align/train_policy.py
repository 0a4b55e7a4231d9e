"""What alignment methods share: load what is trained; train a policy in a session, save it and check what was saved."""

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
    check_trainable(session)
    _train(session)
    if config.method == "full":
        session.check(lambda saved: saved.model, whole=folder.model)
    elif config.method == "qlora":
        session.check(lambda base: attach_adapter(base, folder.adapter))
    else:
        # What any other user of the adapter gets.
        session.check(lambda base: load_plain_adapter(base.model, folder.adapter), how=" with plain PEFT")


def _train(session: Session[Any]) -> None:
    model, folder = load_trainable(session), session.folder
    save, output = (save_model, folder.model) if session.config.method == "full" else (save_adapter, folder.adapter)
    session.run(model, save=lambda: save(model, session.base, output))


def check_trainable(session: Session[Any]) -> None:
    """Refuse what cannot be trained before weights are loaded. Raises ModelError."""
    config, base_config = session.config, session.base.config
    if config.method == "full":
        enable_full_training(meta_model(base_config), config.train.only)
    check_begin(config, base_config)


def load_trainable(session: Session[Any]) -> Any:
    """The base, its own weights or an adapter on it trainable, as config.method says. Raises ModelError."""
    config, loaded = session.config, session.load()
    if config.method == "full":
        enable_full_training(loaded.model, config.train.only)
        return loaded.model
    if session.quantized:
        session.audit_bits(loaded.model)
    return begin_adapter(loaded, config)
