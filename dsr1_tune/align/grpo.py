"""`grpo`: the model answers every prompt several times, and learns which of its answers were better than the others.

Group-relative policy optimisation (arXiv 2402.03300), R1's own recipe, through TRL: there is no value model; an
answer's advantage is its reward beside those of its group. Answers are drawn and judged as in PPO.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainerCallback
from trl import GRPOConfig

from dsr1_tune.align.online.grpo_trainer import GroupTrainer
from dsr1_tune.align.online.session import RolloutSession
from dsr1_tune.align.preference.session import learn
from dsr1_tune.config import GrpoRun
from dsr1_tune.models.trained.start import Beginning
from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.folder import RunFolder, step_of
from dsr1_tune.runs.session import compute_dtype, open_session
from dsr1_tune.runs.trainer.arguments import as_arguments


def run(config: GrpoRun, resume: Path | None = None, console: Console | None = None) -> RunFolder:
    """Train as `config` says, or go on with the run in `resume`; returns its folder.

    Raises TuneError for everything the user can mend, before weights are loaded where that is possible, and
    KeyboardInterrupt after a Ctrl-C, when a checkpoint has been saved.
    """
    with open_session(config, "grpo", resume, console, kind=GrpoSession) as session:
        session.check_rewards()
        learn(session)
    return session.folder


class GrpoSession(RolloutSession[GrpoRun]):
    """A run that compares several answers to the same prompt."""

    beginning: Beginning | None = None
    """What the KL penalty holds the model to."""

    def fit(self, model: Any) -> None:
        """Run TRL's trainer against the model as it begins, where the KL penalty asks for that."""
        checkpoint = group.from_main(self.folder.latest_checkpoint)
        self.errors.resume(step_of(checkpoint) if checkpoint else 0)
        self.beginning = Beginning.of(model) if self.config.grpo.beta else None
        super().fit(model)
        self.beginning = None

    def trainer(self, model: Any, callbacks: list[TrainerCallback]) -> GroupTrainer:
        """TRL's trainer, whose answers are drawn and judged by this session."""
        grpo, rollout = self.config.grpo, self.config.rollout
        arguments = as_arguments(
            GRPOConfig,
            self.config,
            self.folder,
            compute_dtype(model),
            num_generations=grpo.num_generations,
            num_iterations=grpo.num_iterations,
            max_completion_length=rollout.max_new_tokens,
            temperature=rollout.temperature,
            epsilon=grpo.epsilon,
            epsilon_high=grpo.epsilon_high or None,
            loss_type=grpo.loss_type,
            scale_rewards=grpo.scale_rewards,
            # What an answer is drawn from must be what is learned.
            disable_dropout=True,
            # Frozen routers want no auxiliary loss.
            router_aux_loss_coef=0.0,
        )
        return GroupTrainer(session=self, beginning=self.beginning, model=model, args=arguments, callbacks=callbacks)
