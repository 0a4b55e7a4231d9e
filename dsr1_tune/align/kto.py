"""`kto`: learn from single answers that people liked or did not like (arXiv 2402.01306)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from trl import KTOConfig, KTOTrainer

from dsr1_tune.align.preference.encode import as_feedback_rows, encode_feedback
from dsr1_tune.align.preference.metrics import HeldOutFeedback, measure_feedback
from dsr1_tune.align.preference.session import PrecomputedReference, PreferenceSession
from dsr1_tune.align.train_policy import train_policy
from dsr1_tune.config import KtoRun
from dsr1_tune.data.record import Feedback
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.open_session import open_session


def run(config: KtoRun, resume: Path | None = None, console: Console | None = None) -> RunFolder:
    """Train by KTO as `config` says, or go on with `resume`; returns its folder. Raises as `open_session` does."""
    with open_session(config, "kto", resume, console, kind=KtoSession) as session:
        train_policy(session)
    return session.folder


class KtoTrainer(PrecomputedReference, KTOTrainer):
    """TRL's KTO trainer, resumable, with precomputed reference log-probabilities."""

    answer_columns = ("completion_ids",)


class KtoSession(PreferenceSession):
    """A session that learns from answers with a label."""

    learns = Feedback
    encode = staticmethod(encode_feedback)
    result_type = HeldOutFeedback
    measure = staticmethod(measure_feedback)
    trainer_type = KtoTrainer
    arguments_type = KTOConfig

    def training_rows(self, model: Any) -> Dataset:
        """The answers with the reference's log-probability of each, and of another prompt's answer to its prompt."""
        rows = as_feedback_rows(self.data.train, self.config.schedule.max_tokens)
        answers = [*zip(rows["prompt_ids"], rows["completion_ids"], strict=True)]
        answers += zip(rows["prompt_ids"], rows["KL_completion_ids"], strict=True)
        reference = self.reference_log_probs(model, answers)
        rows = rows.add_column("ref_logps", reference[: len(rows)])
        return rows.add_column("ref_KL_logps", reference[len(rows) :])
