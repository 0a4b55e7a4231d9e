"""TRL's GRPO trainer with this project's generation, rewards, reference policy and resumable checkpoints.

Letters: B answers of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback
from trl import GRPOTrainer

from dsr1_tune.align.online.generate import Answers, generate
from dsr1_tune.align.online.session import PromptExample, RolloutSession, mean, reward_means
from dsr1_tune.align.rewards.layered import RewardResult
from dsr1_tune.config import GrpoRun
from dsr1_tune.models.trained.start import ReferencePolicy
from dsr1_tune.runs.distributed import group as processes
from dsr1_tune.runs.trainer.callbacks import GradientCheck
from dsr1_tune.runs.trainer.trainer import Resumable

NAMES = {
    "reward": "reward/mean",
    "reward_std": "reward/std",
    "kl": "policy/kl",
    "entropy": "policy/entropy",
    "clip_ratio/region_mean": "policy/clip_fraction",
    "completions/mean_length": "answer/tokens",
    "completions/min_length": "answer/tokens_min",
    "completions/max_length": "answer/tokens_max",
    "frac_reward_zero_std": "groups/alike",
}
"""TRL's name of a metric, and its name in PPO's log and the report."""

_LEFT_OUT = ("rewards/", "clip_ratio/", "completions/", "step_time")
"""TRL's other metrics, which repeat these."""


class GrpoTrainer(Resumable, GRPOTrainer):
    """GRPOTrainer whose answers the session generates and scores; its data order depends on seed and epoch alone.

    The reference of the KL penalty is the model with its trained parameters as they began: TRL would add a second
    adapter, or load the base again.
    """

    def __init__(self, *, session: RolloutSession[GrpoRun], reference: ReferencePolicy | None, **given: Any) -> None:
        """`reference` is the reference policy of the KL penalty, whose weight is grpo.beta."""
        self._session = session
        self._is_flat = False
        for callback in given["callbacks"]:
            if isinstance(callback, GradientCheck):
                callback.is_due = lambda: not self._is_flat
        self._examples: list[PromptExample] = session.data.train
        super().__init__(reward_funcs=[self._score], **given | {"callbacks": [*given["callbacks"], _CountFromHere()]})
        self._ends = session.base.ends.ids
        if reference is not None:

            @reference.active()
            def as_it_began(**inputs: Any) -> Any:
                return given["model"](**inputs)

            self.beta, self.ref_model = session.config.grpo.beta, as_it_began

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        group, args = self.num_generations, self.args
        return GroupOrder(
            len(self._examples),
            num_prompts=args.generation_batch_size // group,
            group=group,
            repeats=self.num_iterations * args.steps_per_generation,
            seed=args.seed,
        )

    def _tokenize_prompts(self, prompts: list[int]) -> Any:
        return [list(self._examples[number].input_ids) for number in prompts], None, {}

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
        model = self.accelerator.unwrap_model(self.model)
        answers = generate(model, prompt_ids, self._session.base.tokenizer, self._session.config.rollout)
        return [list(ids) for ids in answers.ids], None

    def _score(self, prompts: list[int], completion_ids: list[list[int]], log_metric: Any, **_: Any) -> list[float]:
        """The rewards of B answers; every layer and component is logged."""
        ids = tuple(map(tuple, completion_ids))
        answers = Answers(ids, tuple(answer[-1] in self._ends for answer in ids))
        step = self.state.global_step + 1
        results = self._session.score([self._examples[number] for number in prompts], answers, step)
        for name, value in reward_metrics(results, answers).items():
            log_metric(name, value)
        return [result.total for result in results]

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        self._is_flat = not processes.any_of(bool(output["advantages"].any()))
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log TRL's metrics by the names that PPO has for them."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name in list(metrics):
            if name in NAMES:
                metrics[NAMES[name]] = metrics.pop(name)
            elif name.startswith(_LEFT_OUT):
                del metrics[name]
        # TRL logs it only at the updates that begin with new answers.
        metrics["num_tokens"] = [self.state.num_input_tokens_seen]
        if self._is_flat and not self.beta:
            # Where the rewards within every group are equal there is nothing to learn: a norm of 0 is no fault then.
            logs.pop("grad_norm", None)
        super().log(logs, start_time)

    @property
    def _answers_file(self) -> str:
        return f"answers_{self.args.process_index}.pt"

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Also save the answers that further iterations learn from."""
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.num_iterations > 1:
            torch.save(self._buffered_inputs, folder / self._answers_file)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self._step = self.state.global_step * self.args.gradient_accumulation_steps
        file = Path(checkpoint) / self._answers_file
        if file.exists():
            self._buffered_inputs = torch.load(file, map_location=self.accelerator.device, weights_only=True)


def reward_metrics(results: Sequence[RewardResult], answers: Answers) -> dict[str, float]:
    """Mean rewards of a batch by layer and component, errors per answer, and the share of answers that ended."""
    return {
        **reward_means(results),
        "reward/errors": mean([float(len(result.errors)) for result in results]),
        "answer/ended": mean([float(ended) for ended in answers.have_ended]),
    }


class _CountFromHere(TrainerCallback):
    """TRL counts a run's tokens in the state of the trainer, which checkpoints keep; the watcher adds up itself."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin at 0."""
        state.num_input_tokens_seen = 0


@dataclass(eq=False)
class GroupOrder(Sampler[int]):
    """Every prompt `group` times in a row, in an order that depends on seed and epoch alone.

    An update takes `num_prompts` prompts, `repeats` times over for TRL, which answers them the first time. The last
    update of an epoch is filled up with prompts of its beginning.
    """

    size: int
    num_prompts: int
    group: int
    repeats: int
    seed: int
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer when an epoch begins."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.size / self.num_prompts) * self.num_prompts * self.group * self.repeats

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.size, generator=generator).tolist()
        for first in range(0, self.size, self.num_prompts):
            places = range(first, first + self.num_prompts)
            yield from [order[place % self.size] for place in places for _ in range(self.group)] * self.repeats
