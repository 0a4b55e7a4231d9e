"""What DPO and KTO share: a session that compares the model with its reference policy, which is the model as it begins.

It begins as the base, or the base with the adapter in `config.start`. Its log-probabilities of all answers are computed
before step 1 and stand in the rows, so that no step pays for a second forward pass, and no second model, nor a second
adapter, is ever in memory: it is the same for lora, qlora, full and a start adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from datasets import Dataset
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from dsr1_tune.align.preference.log_probs import PromptAndAnswer, log_probs
from dsr1_tune.align.preference.metrics import as_table, compared
from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.session import Session
from dsr1_tune.runs.trainer.arguments import as_arguments, compute_dtype
from dsr1_tune.runs.trainer.trainer import Resumable


class PrecomputedReference(Resumable):
    """A TRL trainer that learns from encoded rows with precomputed reference log-probabilities."""

    answer_columns: ClassVar[tuple[str, ...]]

    def __init__(self, **given: Any) -> None:
        """As Resumable. TRL copies the adapter of a PEFT model as its reference, unless it is given one."""
        placeholder: Any = nn.Module()  # never called
        placeholder.config = given["model"].config
        super().__init__(ref_model=placeholder, **given)
        self.ref_model: Any = None
        self.precompute_ref_logps = True

    def lengths(self, rows: Any) -> list[int]:
        """A row is as long as its prompt with the longest of its answers: all are padded to it."""
        parts = zip(rows["prompt_ids"], *(rows[column] for column in self.answer_columns), strict=True)
        return [len(prompt) + max(map(len, answers)) for prompt, *answers in parts]

    def _prepare_dataset(self, dataset: Any, *given: Any) -> Any:
        return dataset


@dataclass
class PreferenceSession(Session[Any]):
    """A session whose loss compares the policy with the reference policy: the model as it was before training.

    Subclasses state the rows, the result and how it is measured, the trainer and its own arguments.
    """

    measure: ClassVar[Callable[..., Any]]
    answers_per_row: ClassVar[int] = 1
    trainer_type: ClassVar[type[PrecomputedReference]]
    arguments_type: ClassVar[type[TrainingArguments]]
    reference: list[float] | None = None
    """log p(answer | prompt) under the reference policy, of every answer that is learned from."""

    def loss_arguments(self) -> dict[str, Any]:
        """The trainer's arguments that set the method's loss: its own settings, by the same names."""
        return dict(getattr(self.config, self.command).model_dump(mode="json"))

    def training_rows(self, model: Any) -> Dataset:
        """The training rows in the trainer's columns, with the reference's log-probabilities."""
        raise NotImplementedError

    @property
    def beta(self) -> float:
        """KL regularisation strength: the `beta` of the method's own settings; higher stays closer to the reference."""
        return float(getattr(self.config, self.command).beta)

    def evaluate(self, model: Any) -> Any:
        """Evaluate how likely the model finds the answers of the held-out rows."""
        rows = self.data.eval_subset
        with self.narrator.counting("evaluating", self.answers_per_row * len(rows)) as advance:
            return type(self).measure(model, rows, self.base.tokenizer.pad_token_id, advance)

    def reference_log_probs(self, model: Any, answers: Sequence[PromptAndAnswer]) -> list[float]:
        """The answers' log-probabilities under the model as it begins, computed once, also for a run rolled back."""
        if self.reference is None:
            with self.narrator.counting("asking the reference", len(answers)) as advance, self.timed("reference"):
                self.reference = log_probs(model, answers, self.base.tokenizer.pad_token_id, advance)
        return self.reference

    def trainer(self, model: Any, callbacks: list[TrainerCallback]) -> PrecomputedReference:
        """The method's TRL trainer, over rows that hold the reference's log-probabilities already."""
        rows = self.training_rows(model)
        args = as_arguments(
            self.arguments_type,
            self.config,
            self.folder,
            compute_dtype(model),
            # Rows come encoded; none is truncated.
            max_length=None,
            router_aux_loss_coef=0.0,
            # TRL would turn off the adapter's dropout, too.
            disable_dropout=not self.config.adapter.dropout,
            **self.loss_arguments(),
        )
        return self.build_trainer(self.trainer_type, model, callbacks, args, rows)

    def watched_loss(self, model: Any) -> float:
        """The method's own loss on the held-out rows: that of the good answers alone may well rise."""
        before = self.result_type.from_json(group.from_main(self.folder.evaluation)["before"])
        return float(self.evaluate(model).preference_loss(before, self.beta))

    def evaluate_after(self, model: Any) -> None:
        """Also record in eval.json how well good and bad answers are told apart."""
        super().evaluate_after(model)
        if not self.is_main:
            return
        evaluation = self.folder.evaluation()
        before, after = (self.result_type.from_json(evaluation[stage]) for stage in ("before", "after"))
        self.folder.write_evaluation(preferences={**compared(before, after, self.beta), "beta": self.beta})

    def metrics(self, before: Any, after: Any) -> dict[str, Any]:
        """Losses and accuracies."""
        return super().metrics(before, after) | compared(before, after, self.beta)

    def show(self, before: Any, after: Any) -> None:
        """The accuracies before and after, next to that of length alone."""
        self.narrator.console.print(as_table(before, after, self.beta, are_held_out=bool(self.data.held_out)))
