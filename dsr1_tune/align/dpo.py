"""`dpo`: learn from pairs of a better and a worse answer, without a reward model (arXiv 2305.18290)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from trl import DPOConfig, DPOTrainer

from dsr1_tune.align.preference.encode import as_rows, encode_pairs
from dsr1_tune.align.preference.metrics import HeldOutPairs, measure_pairs
from dsr1_tune.align.preference.session import PrecomputedReference, PreferenceSession
from dsr1_tune.align.train_policy import train_policy
from dsr1_tune.config import DpoRun
from dsr1_tune.data.record import Preference
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.open_session import open_session


def run(config: DpoRun, resume: Path | None = None, console: Console | None = None) -> RunFolder:
    """Train by DPO as `config` says, or go on with `resume`; returns its folder. Raises as `open_session` does."""
    with open_session(config, "dpo", resume, console, kind=DpoSession) as session:
        train_policy(session)
    return session.folder


class DpoTrainer(PrecomputedReference, DPOTrainer):
    """TRL's DPO trainer, resumable, with precomputed reference log-probabilities."""

    answer_columns = ("chosen_ids", "rejected_ids")


class DpoSession(PreferenceSession):
    """A session that learns from preference pairs."""

    learns = Preference
    encode = staticmethod(encode_pairs)
    result_type = HeldOutPairs
    measure = staticmethod(measure_pairs)
    answers_per_row = 2
    trainer_type = DpoTrainer
    arguments_type = DPOConfig

    def training_rows(self, model: Any) -> Dataset:
        """The pairs with the reference's log-probability of either answer."""
        reference = self.reference_log_probs(model, [answer for one in self.data.train for answer in one.answers])
        rows = as_rows(self.data.train).add_column("ref_chosen_logps", reference[::2])
        return rows.add_column("ref_rejected_logps", reference[1::2])

    def loss_arguments(self) -> dict[str, Any]:
        """Each loss weighs 1 where nothing is said."""
        return super().loss_arguments() | {"loss_weights": list(self.config.dpo.loss_weights) or None}
