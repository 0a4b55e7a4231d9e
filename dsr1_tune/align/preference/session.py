"""What the ways of alignment have in common, from the base to a checked run; and what DPO and KTO have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dsr1_tune.align.preference.log_probs import Asked, shared_log_probs
from dsr1_tune.align.preference.metrics import HeldOutFeedback, HeldOutPairs, as_table, compared
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.trained.attach import attach_adapter
from dsr1_tune.models.trained.full import enable_full_training, save_model
from dsr1_tune.models.trained.lora import load_plain_adapter, save_adapter
from dsr1_tune.models.trained.start import begin_adapter, check_begin
from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.session import Session


def learn(session: Session[Any]) -> None:
    """Load, look, train, save, look again, check what was saved."""
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


def _train_adapter(session: Session[Any]) -> None:
    loaded = session.load()
    if session.quantized:
        session.audit_bits(loaded.model)
    model = begin_adapter(loaded, session.config)
    session.audit(model)
    session.evaluate_before(model)
    session.fit(model)
    session.save(lambda: save_adapter(model, session.base, session.folder.adapter))
    session.evaluate_after(model)


def _train_full(session: Session[Any]) -> None:
    model = session.load().model
    enable_full_training(model, session.config.train.only)
    session.audit(model)
    session.evaluate_before(model)
    session.fit(model)
    session.save(lambda: save_model(model, session.base, session.folder.model))
    session.evaluate_after(model)


@dataclass
class PreferenceSession(Session[Any]):
    """A session that compares answers with how the reference, the model as it began, found them.

    Its kinds say what they are `told_as` and what is measured.
    """

    told_as: ClassVar[type[HeldOutPairs] | type[HeldOutFeedback]]
    reference: list[float] | None = None
    """log p(answer | prompt) under the reference, of every answer that is learned from."""

    @property
    def beta(self) -> float:
        """How dear it is to leave the reference; every method has its own in the settings of its name."""
        return float(getattr(self.config, self.command).beta)

    def reference_log_probs(self, model: Any, asked: Sequence[Asked]) -> list[float]:
        """What the model as it begins makes of the answers; a run that is rolled back is told the same again."""
        if self.reference is None:
            with self.narrator.counting("asking the reference", len(asked)) as advance, self.timed("reference"):
                self.reference = shared_log_probs(model, asked, self.base.tokenizer.pad_token_id, advance)
        return self.reference

    def measured(self, told: dict[str, Any]) -> Any:
        """What `measure` gave, from its JSON."""
        return self.told_as.from_json(told)

    def watched_loss(self, model: Any) -> float:
        """The method's own loss on the held-out rows: that of the good answers alone may well rise."""
        before = self.measured(group.from_main(self.folder.evaluation)["before"])
        return float(self.measure(model).preference_loss(before, self.beta))

    def evaluate_after(self, model: Any) -> None:
        """As always; eval.json also tells how far good answers were told from bad ones."""
        super().evaluate_after(model)
        if not self.is_main:
            return
        told = self.folder.evaluation()
        before, after = self.measured(told["before"]), self.measured(told["after"])
        self.folder.write_evaluation(preferences={**compared(before, after, self.beta), "beta": self.beta})

    def metrics(self, before: Any, after: Any) -> dict[str, Any]:
        """Losses and accuracies."""
        return super().metrics(before, after) | compared(before, after, self.beta)

    def show(self, before: Any, after: Any) -> None:
        """The accuracies before and after, beside that of length alone."""
        self.narrator.console.print(as_table(before, after, self.beta, are_held_out=bool(self.data.held_out)))
