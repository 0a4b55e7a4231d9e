"""`dpo`: learn from pairs of a better and a worse answer, without a reward model (arXiv 2305.18290)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from trl import DPOConfig, DPOTrainer

from dsr1_tune.align.preference.encode import as_rows, encode_pairs
from dsr1_tune.align.preference.metrics import HeldOutPairs, measure_pairs
from dsr1_tune.align.preference.reference import PrecomputedReference
from dsr1_tune.align.preference.session import PreferenceSession
from dsr1_tune.align.train_policy import train_policy
from dsr1_tune.config import DpoRun
from dsr1_tune.data.record import Preference
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.open_session import open_session


def run(config: DpoRun, resume: Path | None = None, console: Console | None = None) -> RunFolder:
    """Train by DPO as `config` says, or resume the run in `resume`; returns its folder.

    The reference policy is the model as it begins: the base, or the base with the adapter in `config.start`. Raises
    TuneError for everything the user can fix, and KeyboardInterrupt after a Ctrl-C, when a checkpoint has been saved.
    """
    with open_session(config, "dpo", resume, console, kind=DpoSession) as session:
        train_policy(session)
    return session.folder


class DpoTrainer(PrecomputedReference, DPOTrainer):
    """TRL's DPO trainer, resumable, with precomputed reference log-probabilities."""

    def lengths(self, rows: Any) -> list[int]:
        """A pair is as long as the longer of its answers: both are padded to it."""
        both = zip(rows["prompt_ids"], rows["chosen_ids"], rows["rejected_ids"], strict=True)
        return [len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in both]


class DpoSession(PreferenceSession):
    """A session that learns from preference pairs."""

    learns = Preference
    encode = staticmethod(encode_pairs)
    result_type = HeldOutPairs
    trainer_type = DpoTrainer
    arguments_type = DPOConfig

    def evaluate(self, model: Any) -> HeldOutPairs:
        """Evaluate which answer of each held-out pair the model finds likelier."""
        with self.narrator.counting("evaluating", 2 * len(self.data.eval_subset)) as advance:
            return measure_pairs(model, self.data.eval_subset, self.base.tokenizer.pad_token_id, advance)

    def training_rows(self, model: Any) -> Dataset:
        """The pairs with the reference's log-probability of either answer."""
        both = [(one.prompt_ids, answer) for one in self.data.train for answer in (one.chosen_ids, one.rejected_ids)]
        reference = self.reference_log_probs(model, both)
        rows = as_rows(self.data.train).add_column("ref_chosen_logps", reference[::2])
        return rows.add_column("ref_rejected_logps", reference[1::2])

    def loss_arguments(self) -> dict[str, Any]:
        """Beta, the losses with their weights, and label smoothing."""
        dpo = self.config.dpo
        return {
            "beta": dpo.beta,
            "loss_type": list(dpo.loss_type),
            "loss_weights": list(dpo.loss_weights) or None,
            "label_smoothing": dpo.label_smoothing,
        }
