"""`kto`: learn from single answers that people liked or did not like (arXiv 2402.01306)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainerCallback
from trl import KTOConfig, KTOTrainer

from dsr1_tune.align.preference.encode import as_feedback_rows, encode_feedback
from dsr1_tune.align.preference.metrics import HeldOutFeedback, measure_feedback
from dsr1_tune.align.preference.reference import PrecomputedReference
from dsr1_tune.align.preference.session import PreferenceSession, learn
from dsr1_tune.config import KtoRun
from dsr1_tune.data.prepared import Prepared
from dsr1_tune.data.record import Feedback
from dsr1_tune.runs.data import RunData
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.session import compute_dtype, open_session
from dsr1_tune.runs.trainer.arguments import as_arguments


def run(config: KtoRun, resume: Path | None = None, console: Console | None = None) -> RunFolder:
    """Train by KTO as `config` says, or go on with the run in `resume`; returns its folder.

    The reference is the model as it begins: the base, or the base with the adapter in `config.start`. Raises
    TuneError for everything the user can mend, and KeyboardInterrupt after a Ctrl-C, when a checkpoint has been saved.
    """
    with open_session(config, "kto", resume, console, kind=KtoSession) as session:
        learn(session)
    return session.folder


@dataclass
class KtoSession(PreferenceSession):
    """A session that learns from answers with a label."""

    learns = Feedback
    told_as = HeldOutFeedback

    @classmethod
    def encode(cls, prepared: Prepared, tokenizer: Any, config: Any) -> RunData:
        """The answers as the model sees them."""
        return encode_feedback(prepared, tokenizer, config)

    def measure(self, model: Any) -> HeldOutFeedback:
        """How likely the model finds each held-out answer."""
        with self.narrator.counting("evaluating", len(self.data.eval_subset)) as advance:
            return measure_feedback(model, self.data.eval_subset, self.base.tokenizer.pad_token_id, advance)

    def trainer(self, model: Any, callbacks: list[TrainerCallback]) -> KtoTrainer:
        """TRL's KTOTrainer over the answers, in which what the reference finds is written already."""
        rows = as_feedback_rows(self.data.train, self.config.schedule.max_tokens)
        asked = [*zip(rows["prompt_ids"], rows["completion_ids"], strict=True)]
        asked += zip(rows["prompt_ids"], rows["KL_completion_ids"], strict=True)
        reference = self.reference_log_probs(model, asked)
        rows = rows.add_column("ref_logps", reference[: len(rows)])
        return KtoTrainer(
            model=model,
            config=self.config,
            quantized=self.quantized,
            args=to_arguments(self.config, self.folder, compute_dtype(model)),
            train_dataset=rows.add_column("ref_KL_logps", reference[len(rows) :]),
            processing_class=self.base.tokenizer,
            callbacks=callbacks,
        )


class KtoTrainer(PrecomputedReference, KTOTrainer):
    """TRL's KTO, resumable, with a reference that was asked before."""

    def lengths(self, rows: Any) -> list[int]:
        """The tokens of prompt and answer."""
        both = zip(rows["prompt_ids"], rows["completion_ids"], strict=True)
        return [len(prompt) + len(answer) for prompt, answer in both]


def to_arguments(config: KtoRun, folder: RunFolder, dtype: Any) -> KTOConfig:
    """TRL's KTOConfig for `config`, for a model that computes in `dtype`."""
    return as_arguments(
        KTOConfig,
        config,
        folder,
        dtype,
        beta=config.kto.beta,
        desirable_weight=config.kto.desirable_weight,
        undesirable_weight=config.kto.undesirable_weight,
        # Answers come encoded; none is truncated.
        max_length=None,
        router_aux_loss_coef=0.0,
        # TRL would take out the adapter's dropout, too.
        disable_dropout=not config.adapter.dropout,
    )
