"""TRL's trainer of groups of answers, made to answer, judge, refer back and go on as our runs do.

Letters: B answers of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import Sampler
from transformers import TrainerCallback
from trl import GRPOTrainer

from dsr1_tune.align.online.generate import Answers, draw, end_tokens
from dsr1_tune.align.online.session import PromptExample, RolloutSession, mean, means
from dsr1_tune.align.rewards.layered import RewardResult
from dsr1_tune.config import GrpoRun
from dsr1_tune.models.trained.start import Beginning
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
"""What TRL calls a number, and what PPO's log and the report do."""

_LEFT_OUT = ("rewards/", "clip_ratio/", "completions/", "step_time")
"""TRL's other numbers, which say the same again."""


class GroupTrainer(Resumable, GRPOTrainer):
    """GRPOTrainer whose answers are drawn and judged by the session, and whose order depends on seed and epoch alone.

    The reference of the KL penalty is the model with its trained parameters as they began: TRL would add a second
    adapter, or load the base again.
    """

    def __init__(
        self,
        *,
        session: RolloutSession[GrpoRun],
        beginning: Beginning | None,
        model: Any,
        args: Any,
        callbacks: list[TrainerCallback],
    ) -> None:
        """`beginning` is what the weight grpo.beta holds the model to."""
        self._session = session
        self._is_flat = False
        for callback in callbacks:
            if isinstance(callback, GradientCheck):
                callback.is_due = lambda: not self._is_flat
        self._examples: list[PromptExample] = session.data.train
        self._patched = model.get_base_model() if isinstance(model, PeftModel) else model
        self._forward = vars(self._patched).get("forward")
        super().__init__(
            config=session.config,
            quantized=session.quantized,
            model=model,
            args=args,
            # A prompt is known by its number: it is encoded already.
            train_dataset=Dataset.from_dict({"prompt": list(range(len(self._examples)))}),
            processing_class=session.base.tokenizer,
            reward_funcs=[self._judge],
            callbacks=[*callbacks, _CountFromHere()],
        )
        self._ends = end_tokens(model, session.base.tokenizer)
        if beginning is not None:
            self.beta = session.config.grpo.beta
            self.ref_model = _AsItBegan(model, beginning)

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
        answers = draw(model, prompt_ids, self._session.base.tokenizer, self._session.config.rollout)
        return [list(ids) for ids in answers.ids], None

    def _judge(self, prompts: list[int], completion_ids: list[list[int]], log_metric: Any, **_: Any) -> list[float]:
        """The rewards of B answers; every layer and component goes into the step's numbers."""
        ids = tuple(map(tuple, completion_ids))
        answers = Answers(ids, tuple(answer[-1] in self._ends for answer in ids))
        step = self.state.global_step + 1
        verdicts = self._session.judge([self._examples[number] for number in prompts], answers, step)
        for name, value in numbers_of(verdicts, answers).items():
            log_metric(name, value)
        return [verdict.total for verdict in verdicts]

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        self._is_flat = not processes.any_of(bool(output["advantages"].any()))
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's numbers by the names that PPO has for them."""
        told = self._metrics["train" if self.model.training else "eval"]
        for name in list(told):
            if name in NAMES:
                told[NAMES[name]] = told.pop(name)
            elif name.startswith(_LEFT_OUT):
                del told[name]
        # TRL tells it at the updates that begin with new answers.
        told["num_tokens"] = [self.state.num_input_tokens_seen]
        if self._is_flat and not self.beta:
            # Where every group's answers are worth the same there is nothing to learn: a norm of 0 is no fault then.
            logs.pop("grad_norm", None)
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Also the answers that further iterations learn from."""
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.num_iterations > 1:
            torch.save(self._buffered_inputs, folder / _answers_file(self.args.process_index))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self._step = self.state.global_step * self.args.gradient_accumulation_steps
        file = Path(checkpoint) / _answers_file(self.args.process_index)
        if file.exists():
            self._buffered_inputs = torch.load(file, map_location=self.accelerator.device, weights_only=True)

    def close(self) -> None:
        """Take TRL's forward off the model, too."""
        super().close()
        vars(self._patched).pop("forward", None)
        if self._forward is not None:
            self._patched.forward = self._forward


def numbers_of(verdicts: Sequence[RewardResult], answers: Answers) -> dict[str, float]:
    """What a batch of verdicts comes to: the means of layers and components, and what failed."""
    layers, components = means([v.layers for v in verdicts]), means([v.components for v in verdicts])
    return {
        **{f"reward/{name}": value for name, value in (*layers.items(), *components.items())},
        "reward/errors": mean([float(len(verdict.errors)) for verdict in verdicts]),
        "answer/ended": mean([float(ended) for ended in answers.have_ended]),
    }


def _answers_file(process: int) -> str:
    return f"answers_{process}.pt"


class _CountFromHere(TrainerCallback):
    """TRL counts a run's tokens in the state of the trainer, which checkpoints keep; the watcher adds up itself."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin at 0."""
        state.num_input_tokens_seen = 0


class _AsItBegan:
    """A model to TRL's eyes: the one that is trained, with its trained parameters as they began."""

    def __init__(self, model: Any, beginning: Beginning) -> None:
        self._model = model
        self._beginning = beginning

    def __call__(self, **inputs: Any) -> Any:
        with self._beginning.put_back():
            return self._model(**inputs)


class GroupOrder(Sampler[int]):
    """Every prompt `group` times in a row, in an order that depends on seed and epoch alone.

    An update takes `num_prompts` prompts, `repeats` times over for TRL, which answers them the first time. The last
    update of an epoch is filled up with prompts of its beginning.
    """

    def __init__(self, size: int, num_prompts: int, group: int, repeats: int, seed: int) -> None:
        self._size = size
        self._num_prompts = num_prompts
        self._group = group
        self._repeats = repeats
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer when an epoch begins."""
        self._epoch = epoch

    @property
    def _num_updates(self) -> int:
        return -(-self._size // self._num_prompts)

    def __len__(self) -> int:
        return self._num_updates * self._num_prompts * self._group * self._repeats

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(self._size, generator=generator).tolist()
        for update in range(self._num_updates):
            places = range(update * self._num_prompts, (update + 1) * self._num_prompts)
            block = [order[place % self._size] for place in places for _ in range(self._group)]
            for _ in range(self._repeats):
                yield from block
