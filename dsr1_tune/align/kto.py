"""`kto`: learn from single answers that people liked or did not like (arXiv 2402.01306)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from trl import KTOConfig, KTOTrainer

from dsr1_tune.align.preference.encode import as_feedback_rows, encode_feedback
from dsr1_tune.align.preference.metrics import HeldOutFeedback, measure_feedback
from dsr1_tune.align.preference.reference import PrecomputedReference
from dsr1_tune.align.preference.session import PreferenceSession
from dsr1_tune.align.train_policy import train_policy
from dsr1_tune.config import KtoRun
from dsr1_tune.data.record import Feedback
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.open_session import open_session


def run(config: KtoRun, resume: Path | None = None, console: Console | None = None) -> RunFolder:
    """Train by KTO as `config` says, or resume the run in `resume`; returns its folder.

    The reference policy is the model as it begins: the base, or the base with the adapter in `config.start`. Raises
    TuneError for everything the user can fix, and KeyboardInterrupt after a Ctrl-C, when a checkpoint has been saved.
    """
    with open_session(config, "kto", resume, console, kind=KtoSession) as session:
        train_policy(session)
    return session.folder


class KtoTrainer(PrecomputedReference, KTOTrainer):
    """TRL's KTO trainer, resumable, with precomputed reference log-probabilities."""

    def lengths(self, rows: Any) -> list[int]:
        """The tokens of prompt and answer."""
        both = zip(rows["prompt_ids"], rows["completion_ids"], strict=True)
        return [len(prompt) + len(answer) for prompt, answer in both]


class KtoSession(PreferenceSession):
    """A session that learns from answers with a label."""

    learns = Feedback
    encode = staticmethod(encode_feedback)
    result_type = HeldOutFeedback
    trainer_type = KtoTrainer
    arguments_type = KTOConfig

    def evaluate(self, model: Any) -> HeldOutFeedback:
        """Evaluate how likely the model finds each held-out answer."""
        with self.narrator.counting("evaluating", len(self.data.eval_subset)) as advance:
            return measure_feedback(model, self.data.eval_subset, self.base.tokenizer.pad_token_id, advance)

    def training_rows(self, model: Any) -> Dataset:
        """The answers with the reference's log-probability of each, and of another prompt's answer to its prompt."""
        rows = as_feedback_rows(self.data.train, self.config.schedule.max_tokens)
        answers = [*zip(rows["prompt_ids"], rows["completion_ids"], strict=True)]
        answers += zip(rows["prompt_ids"], rows["KL_completion_ids"], strict=True)
        reference = self.reference_log_probs(model, answers)
        rows = rows.add_column("ref_logps", reference[: len(rows)])
        return rows.add_column("ref_KL_logps", reference[len(rows) :])

    def loss_arguments(self) -> dict[str, Any]:
        """Beta, and the weights of good and bad answers."""
        kto = self.config.kto
        return {
            "beta": kto.beta,
            "desirable_weight": kto.desirable_weight,
            "undesirable_weight": kto.undesirable_weight,
        }
