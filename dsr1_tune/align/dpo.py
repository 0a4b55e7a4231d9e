"""`dpo`: learn from pairs of a better and a worse answer, without a reward model (arXiv 2305.18290)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from dsr1_tune.align.preference.encode import as_rows, encode_pairs
from dsr1_tune.align.preference.metrics import HeldOutPairs, measure_pairs
from dsr1_tune.align.preference.reference import PrecomputedReference
from dsr1_tune.align.preference.session import PreferenceSession, learn
from dsr1_tune.config import DpoRun
from dsr1_tune.data.prepared import Prepared
from dsr1_tune.data.record import Preference
from dsr1_tune.runs.data import RunData
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.session import compute_dtype, open_session
from dsr1_tune.runs.trainer.arguments import as_arguments


def run(config: DpoRun, resume: Path | None = None, console: Console | None = None) -> RunFolder:
    """Train by DPO as `config` says, or go on with the run in `resume`; returns its folder.

    The reference is the model as it begins: the base, or the base with the adapter in `config.start`. Raises
    TuneError for everything the user can mend, and KeyboardInterrupt after a Ctrl-C, when a checkpoint has been saved.
    """
    with open_session(config, "dpo", resume, console, kind=DpoSession) as session:
        learn(session)
    return session.folder


@dataclass
class DpoSession(PreferenceSession):
    """A session that learns from preference pairs."""

    learns = Preference
    told_as = HeldOutPairs

    @classmethod
    def encode(cls, prepared: Prepared, tokenizer: Any, config: Any) -> RunData:
        """The pairs as the model sees them."""
        return encode_pairs(prepared, tokenizer, config)

    def measure(self, model: Any) -> HeldOutPairs:
        """Which answer of each held-out pair the model finds likelier."""
        with self.narrator.counting("evaluating", 2 * len(self.data.eval_subset)) as advance:
            return measure_pairs(model, self.data.eval_subset, self.base.tokenizer.pad_token_id, advance)

    def trainer(self, model: Any, callbacks: list[TrainerCallback]) -> DpoTrainer:
        """TRL's DPOTrainer over the pairs, in which what the reference finds is written already."""
        both = [(one.prompt_ids, answer) for one in self.data.train for answer in (one.chosen_ids, one.rejected_ids)]
        reference = self.reference_log_probs(model, both)
        rows = as_rows(self.data.train).add_column("ref_chosen_logps", reference[::2])
        return DpoTrainer(
            model=model,
            config=self.config,
            quantized=self.quantized,
            args=to_arguments(self.config, self.folder, compute_dtype(model)),
            train_dataset=rows.add_column("ref_rejected_logps", reference[1::2]),
            processing_class=self.base.tokenizer,
            callbacks=callbacks,
        )


class DpoTrainer(PrecomputedReference, DPOTrainer):
    """TRL's DPO, resumable, with a reference that was asked before."""

    def lengths(self, rows: Any) -> list[int]:
        """A pair is as long as the longer of its answers: both are padded to it."""
        both = zip(rows["prompt_ids"], rows["chosen_ids"], rows["rejected_ids"], strict=True)
        return [len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in both]


def to_arguments(config: DpoRun, folder: RunFolder, dtype: Any) -> DPOConfig:
    """TRL's DPOConfig for `config`, for a model that computes in `dtype`."""
    return as_arguments(
        DPOConfig,
        config,
        folder,
        dtype,
        beta=config.dpo.beta,
        loss_type=list(config.dpo.loss_type),
        loss_weights=list(config.dpo.loss_weights) or None,
        label_smoothing=config.dpo.label_smoothing,
        # Pairs come encoded; none is truncated.
        max_length=None,
        router_aux_loss_coef=0.0,
        # TRL would take out the adapter's dropout, too.
        disable_dropout=not config.adapter.dropout,
    )
