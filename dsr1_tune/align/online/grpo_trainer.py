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
from torch import Tensor
from torch.utils.data import Sampler
from transformers import TrainerCallback
from trl import GRPOTrainer

from dsr1_tune.align.online.generate import Answers, generate
from dsr1_tune.align.online.session import PromptExample, RolloutSession, reward_values
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

_PER_ANSWER = ("grpo", "dr_grpo")
"""The losses that TRL divides by the number of answers."""
_LEFT_OUT = ("rewards/", "clip_ratio/", "completions/", "step_time")
"""TRL's other metrics, which repeat these."""


class GrpoTrainer(Resumable, GRPOTrainer):
    """GRPOTrainer whose answers the session generates and scores; its data order depends on seed and epoch alone.

    An answer that could not be scored is left out of its group and of the loss: TRL would still count its tokens.

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

    def _calculate_rewards(
        self, inputs: Any, prompts: list[int], completions: Any, completion_ids_list: list[list[int]]
    ) -> Tensor:
        """(N, 1) rewards of the answers of all processes, NaN where scoring failed; TRL would warn of each of those."""
        mine = torch.tensor(self._score(prompts, completion_ids_list), device=self.accelerator.device)
        rewards_N: Tensor = self.accelerator.gather(mine)
        self._metrics["train"]["reward/failed"].append(float(rewards_N.isnan().sum()))
        self._is_left_out_N = left_out(rewards_N, self.num_generations)
        return rewards_N.unsqueeze(1)

    def _score(self, prompts: list[int], completion_ids: list[list[int]], **_: Any) -> list[float]:
        """The rewards of B answers, NaN for one that could not be scored; every layer and component is logged."""
        ids = tuple(map(tuple, completion_ids))
        answers = Answers(ids, tuple(answer[-1] in self._ends for answer in ids))
        step = self.state.global_step + 1
        results = self._session.score([self._examples[number] for number in prompts], answers, step)
        for name, values in reward_metrics(results, answers).items():
            for value in values:  # one by one, as processes may have scored different numbers of answers
                self._log_metric(name, value)
        return [result.total if result.is_scored else math.nan for result in results]

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        self._is_flat = not processes.any_of(bool(output["advantages"].any()))
        if self._is_left_out_N.any():
            self._leave_out(output)
        return output

    def _leave_out(self, output: dict[str, Any]) -> None:
        """Let no token count of the answers that are left out: in the policy's loss, the KL penalty, or their means."""
        mask_BT, first = output["completion_mask"], self.args.process_index * len(output["completion_mask"])
        counts_B = ~self._is_left_out_N[first : first + len(mask_BT)]
        # What TRL masks the results of tools with: the model still sees the tokens.
        output["tool_mask"] = torch.ones_like(mask_BT) * counts_B.unsqueeze(1)
        output["num_items_in_batch"] = self.accelerator.gather((mask_BT * output["tool_mask"]).sum()).sum()
        output["share_learned"] = (~self._is_left_out_N).float().mean()

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loss: Tensor = super()._compute_loss(model, inputs)
        if "share_learned" in inputs and self.loss_type in _PER_ANSWER:
            loss = loss / inputs["share_learned"].clamp(min=torch.finfo(loss.dtype).eps)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log TRL's metrics by the names that PPO has for them."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name in list(metrics):
            if all(map(math.isnan, metrics[name])):
                del metrics[name]  # such as the deviation of a single reward; TRL would log null
            elif name in NAMES:
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


def left_out(rewards_N: Tensor, group: int) -> Tensor:
    """Which answers (N, group by group) nothing is learned from: those without a reward (NaN), and one that has nobody
    to be compared with, as it alone of its group has one."""
    has_reward = ~rewards_N.isnan().view(-1, group)
    is_compared = has_reward.sum(1, keepdim=True) > 1
    return ~(has_reward & is_compared).view(-1)


def reward_metrics(results: Sequence[RewardResult], answers: Answers) -> dict[str, list[float]]:
    """What is averaged over the answers of a batch: rewards by layer and component, errors, and whether they ended."""
    return {
        **reward_values(results),
        "reward/errors": [float(len(result.errors)) for result in results],
        "answer/ended": [float(ended) for ended in answers.have_ended],
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
