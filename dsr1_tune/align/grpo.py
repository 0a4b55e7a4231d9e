"""`grpo`: the model answers every prompt several times, and learns which of its answers were better than the others.

Group-relative policy optimisation (arXiv 2402.03300), R1's own recipe, through TRL: there is no value model; an
answer's advantage is its reward relative to those of its group. Answers are generated and scored as in PPO.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from transformers import TrainerCallback
from trl import GRPOConfig

from dsr1_tune.align.online.grpo_trainer import GrpoTrainer
from dsr1_tune.align.online.session import RolloutSession
from dsr1_tune.align.train_policy import train_policy
from dsr1_tune.config import GrpoRun
from dsr1_tune.models.trained.start import ReferencePolicy
from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.folder import RunFolder, step_of
from dsr1_tune.runs.open_session import open_session
from dsr1_tune.runs.trainer.arguments import as_arguments, compute_dtype


def run(config: GrpoRun, resume: Path | None = None, console: Console | None = None) -> RunFolder:
    """Train as `config` says, or resume the run in `resume`; returns its folder. Raises as `open_session` does."""
    with open_session(config, "grpo", resume, console, kind=GrpoSession) as session:
        session.check_rewards()
        train_policy(session)
    return session.folder


class GrpoSession(RolloutSession[GrpoRun]):
    """A run that compares several answers to the same prompt."""

    reference: ReferencePolicy | None = None
    """The reference policy of the KL penalty, where there is one."""

    def take_steps(self, model: Any) -> int:
        """Take the steps with TRL's trainer, with a KL penalty against the model as it begins where grpo.beta asks."""
        checkpoint = group.from_main(self.folder.latest_checkpoint)
        self.errors.resume(step_of(checkpoint) if checkpoint else 0)
        self.reference = ReferencePolicy.of(model) if self.config.grpo.beta else None
        num_steps = super().take_steps(model)
        self.reference = None
        return num_steps

    def trainer(self, model: Any, callbacks: list[TrainerCallback]) -> GrpoTrainer:
        """TRL's trainer, whose answers are generated and scored by this session."""
        grpo, rollout = self.config.grpo, self.config.rollout
        arguments = as_arguments(
            GRPOConfig,
            self.config,
            self.folder,
            compute_dtype(model),
            # The reference, which beta is for, is our own.
            **grpo.model_dump(exclude={"beta"}) | {"epsilon_high": grpo.epsilon_high or None},
            max_completion_length=rollout.max_new_tokens,
            temperature=rollout.temperature,
            # Answers must be sampled from the distribution that is trained.
            disable_dropout=True,
            # Frozen routers want no auxiliary loss.
            router_aux_loss_coef=0.0,
        )
        # TRL gets the number of each prompt, which is encoded already.
        rows = Dataset.from_dict({"prompt": list(range(len(self.data.train)))})
        own = {"session": self, "reference": self.reference}
        return self.build_trainer(GrpoTrainer, model, callbacks, arguments, rows, **own)
