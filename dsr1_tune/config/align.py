"""What the ways of alignment are asked to do: reward model, DPO, KTO, PPO and GRPO."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from dsr1_tune.config.sections import Adapter, ConfigSection, Count, Schedule, Sequences, Share
from dsr1_tune.config.training import Train, TuneRun, refuse_float16

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
REWARD_NUMBERS = ("mean", "std", "errors", "with_penalty")
"""What the log of a run has under reward/ beside the layers; no layer may be called so."""


class Start(ConfigSection):
    """The trained adapter that alignment begins with."""

    run: Path | None = None
    """The LoRA run or adapter folder to begin with; --model takes it too, and without either it is the base alone."""
    adapter: Literal["keep", "continue"] = "keep"
    """keep leaves it as it is and trains adapter.rank more ranks beside it, saved together as one adapter; continue
    trains its own ranks. The reference is in both cases the model as it begins."""


class GentleSchedule(Schedule):
    """The schedule of methods that change a model little by little."""

    learning_rate: Positive = 2e-5
    """Peak learning rate; it falls along a cosine."""


class AlignRun(TuneRun):
    """What every way of alignment needs to know."""

    method: Literal["lora", "qlora", "full"] = "lora"
    """Train an adapter, an adapter over a base in 4 bits, or the base's own weights."""
    start: Start = Start()
    adapter: Adapter = Adapter()
    train: Train = Train()
    """Which weights, for method=full."""
    schedule: GentleSchedule = GentleSchedule()

    @model_validator(mode="after")
    def _method_fits(self) -> AlignRun:
        if self.sequences.packing:
            raise ValueError("sequences.packing is for supervised training: here answers are compared one by one")
        if self.sequences.longer == "split":
            raise ValueError("sequences.longer=split would part an answer from its rival; use drop or truncate")
        if self.sequences.think == "mask":
            raise ValueError("sequences.think=mask: an answer is judged as a whole; keep its thoughts, or strip them")
        if self.sequences.learn != ("assistant",):
            raise ValueError("sequences.learn is for supervised training: here only the last answer is learned")
        if self.router.mode != "frozen":
            raise ValueError(f"router.mode={self.router.mode}: alignment leaves the routers as they are; use frozen")
        if self.parallel.strategy != "ddp":
            raise ValueError(f"parallel.strategy={self.parallel.strategy}: alignment shares no weights out; use ddp")
        if self.adapter.init in ("pissa", "olora"):
            raise ValueError(f"adapter.init={self.adapter.init} changes the base that is the reference; use kaiming")
        if self.method == "full":
            refuse_float16(self.base)
            if self.adapter != Adapter():
                raise ValueError("adapter is for method=lora and qlora; method=full trains the base's own weights")
        elif self.train != Train():
            raise ValueError(f"train is for method=full; method={self.method} trains an adapter")
        if self.method == "qlora" and self.adapter.dora:
            raise ValueError("adapter.dora needs the norms of the base weights, which qlora holds in 4 bits; use lora")
        if self.start.run and self.method == "full":
            raise ValueError("method=full trains a base: merge the adapter first with dsr1-tune merge, and start there")
        return self


class RewardSchedule(GentleSchedule):
    """The schedule of a reward model."""

    learning_rate: Positive = 1e-4
    """Peak learning rate; it falls along a cosine."""


class Reward(ConfigSection):
    """How answers are scored."""

    renamed: ClassVar[Mapping[str, str]] = {
        "center": "center_rewards_coefficient",
    }

    center_rewards_coefficient: NotNegative = 0.01
    """Weight of the loss that keeps a pair's scores around 0 (arXiv 2312.09244); 0 leaves it out."""


class RewardRun(AlignRun):
    """Everything `dsr1-tune reward` needs to know."""

    schedule: RewardSchedule = RewardSchedule()
    reward: Reward = Reward()
    samples: Annotated[int, Field(ge=0, le=0)] = 0
    """None: a reward model writes no answers."""


# TRL's but for discopop: at a margin of 0, where all training begins, its slope is the wrong way.
DpoLoss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "sft", "sigmoid_norm",
]  # fmt: skip


class Dpo(ConfigSection):
    """Direct preference optimisation (arXiv 2305.18290)."""

    renamed: ClassVar[Mapping[str, str]] = {
        "loss": "loss_type",
        "weights": "loss_weights",
    }

    beta: Positive = 0.1
    """How dear it is to leave the reference; higher stays closer."""
    loss_type: tuple[DpoLoss, ...] = ("sigmoid",)
    """One of TRL's losses, or several that are added up: sigmoid,sft."""
    loss_weights: tuple[Positive, ...] = ()
    """The weight of each loss; without it 1 each."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs that may be the wrong way round, for robust, exo_pair, aot and aot_unpaired."""

    @model_validator(mode="after")
    def _works_together(self) -> Dpo:
        if not self.loss_type:
            raise ValueError("dpo.loss_type: name at least one, such as sigmoid")
        if self.loss_weights and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(f"dpo.loss_weights: {len(self.loss_weights)} weights for {len(self.loss_type)} losses")
        if self.loss_type == ("sft",):
            raise ValueError(
                "dpo.loss_type=sft alone learns nothing of the rejected answers; add it to another: sigmoid,sft"
            )
        if self.label_smoothing and not {"robust", "exo_pair", "aot", "aot_unpaired"} & set(self.loss_type):
            raise ValueError(
                f"dpo.label_smoothing changes nothing of {', '.join(self.loss_type)}; robust is sigmoid with it"
            )
        if "exo_pair" in self.loss_type and not self.label_smoothing:
            raise ValueError("dpo.loss_type=exo_pair takes the logarithm of dpo.label_smoothing; the paper's is 0.001")
        return self


class DpoRun(AlignRun):
    """Everything `dsr1-tune dpo` needs to know."""

    dpo: Dpo = Dpo()


class Kto(ConfigSection):
    """Kahneman-Tversky optimisation of unpaired feedback (arXiv 2402.01306)."""

    beta: Positive = 0.1
    """How dear it is to leave the reference; higher stays closer."""
    desirable_weight: Positive = 1.0
    """Weight of the answers that are good."""
    undesirable_weight: Positive = 1.0
    """Weight of the answers that are bad."""


class KtoRun(AlignRun):
    """Everything `dsr1-tune kto` needs to know."""

    kto: Kto = Kto()

    @model_validator(mode="after")
    def _some_others(self) -> KtoRun:
        if self.schedule.batch_size < 2:
            raise ValueError("schedule.batch_size=1: kto compares with the mean KL of a batch; use 2 or more")
        return self


class Rollout(ConfigSection):
    """How the model answers while it learns from its own answers."""

    max_new_tokens: Count = 256
    """Longest answer, in tokens."""
    temperature: Positive = 1.0
    """Answers are drawn from softmax(logits / temperature); the update uses the same."""
    batch_size: Count = 16
    """Answers generated at a time; more is faster and takes more memory."""


class RolloutSchedule(GentleSchedule):
    """The schedule of methods that learn from their own answers."""

    learning_rate: Positive = 1e-5
    """Peak learning rate; it falls along a cosine."""
    save_steps: Count = 100
    """A checkpoint every so many updates, the last two are kept."""


class RolloutRun(AlignRun):
    """What the ways of learning from rewarded answers need to know."""

    rewards: Path | None = None
    """The YAML file of layered rewards."""
    on_reward_error: Literal["stop", "zero"] = "zero"
    """What a reward that fails, or is no number, does: end the run, or count as 0, be reported and counted."""
    rollout: Rollout = Rollout()
    schedule: RolloutSchedule = RolloutSchedule()

    @model_validator(mode="before")
    @classmethod
    def _absolute(cls, value: Any) -> Any:
        """A run goes on from any folder."""
        if isinstance(value, dict) and value.get("rewards"):
            return {**value, "rewards": Path(value["rewards"]).expanduser().absolute()}
        return value

    @model_validator(mode="after")
    def _prompts_alone(self) -> RolloutRun:
        if self.sequences != Sequences():
            raise ValueError(
                "sequences says how answers are learned from; here rows are prompts, and long ones fall out"
            )
        return self


class Ppo(ConfigSection):
    """Proximal policy optimisation (arXiv 1707.06347)."""

    answers: Count = 32
    """Answers per update, over all processes."""
    epochs: Count = 4
    """Passes over the answers of an update."""
    minibatches: Count = 4
    """Optimizer steps per pass; each takes its share of the answers, schedule.batch_size at a time."""
    kl: NotNegative = 0.1
    """Weight of the KL penalty on every token, against the model as it began."""
    kl_target: NotNegative = 0.0
    """Move the weight so that an answer's KL comes to so many nats (arXiv 1909.08593); 0 keeps the weight."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount of later rewards, per token."""
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    """λ of the advantages (GAE, arXiv 1506.02438)."""
    clip: Positive = 0.2
    """The ratio of new to old probability counts only between 1 - clip and 1 + clip."""
    value_clip: Positive = 0.2
    """Values may move so far from the old ones in an update."""
    value_weight: NotNegative = 0.1
    """Weight of the value loss."""
    entropy: NotNegative = 0.0
    """Weight of the entropy bonus."""
    stop_kl: NotNegative = 0.0
    """An update ends early when the new policy is so many nats per token from the one that answered; 0 never."""
    value_learning_rate: Positive = 1e-3
    """Learning rate of the value head itself, which begins at zero."""
    missing_eos: NotNegative = 1.0
    """Taken off the reward of an answer that did not end within rollout.max_new_tokens."""
    whiten_rewards: bool = False
    """Scale the rewards of an update to variance 1 before advantages are taken."""
    value: Literal["shared", "own"] = "shared"
    """The value head reads the policy's last layer, and its gradient trains the policy's adapter too (shared), or the
    trunk with an adapter of its own (own)."""
    routing_replay: bool = False
    """In a mixture of experts, send every token in the update to the experts that it went to in the rollout."""


class PpoRun(RolloutRun):
    """Everything `dsr1-tune ppo` needs to know."""

    ppo: Ppo = Ppo()

    @model_validator(mode="after")
    def _works_together(self) -> PpoRun:
        if self.method == "full":
            raise ValueError("method=full: the reference of ppo is had by putting an adapter back; use lora or qlora")
        if self.base.dtype == "float16":
            raise ValueError("base.dtype=float16 is too narrow for ppo's ratios; use bfloat16 or float32")
        if self.watch.on_alarm == "rollback":
            raise ValueError("watch.on_alarm=rollback is not for ppo, whose loss says little; use stop")
        if self.watch.eval_steps:
            raise ValueError("watch.eval_steps measures a loss, which ppo has not; rewards are logged every update")
        if self.schedule.gradient_accumulation_steps != 1:
            raise ValueError(
                "schedule.gradient_accumulation_steps: ppo.answers, ppo.minibatches and schedule.batch_size say it all"
            )
        if self.parallel.powersgd_rank:
            raise ValueError("parallel.powersgd_rank is for DDP's gradients; ppo sums an adapter's whole")
        if self.ppo.kl_target and not self.ppo.kl:
            raise ValueError("ppo.kl_target moves ppo.kl, which at 0 stays 0; begin with another, such as 0.1")
        if self.schedule.neftune_noise_alpha:
            raise ValueError("schedule.neftune_noise_alpha is for supervised training; leave it at 0")
        if self.adapter.dropout:
            raise ValueError("adapter.dropout would change the answers' probabilities between rollout and update")
        if self.ppo.minibatches * self.parallel.processes > self.ppo.answers:
            raise ValueError(
                f"ppo.minibatches={self.ppo.minibatches}: each needs an answer of every process, and there are "
                f"{self.ppo.answers} ppo.answers for {self.parallel.processes} processes"
            )
        return self


class Grpo(ConfigSection):
    """Group-relative policy optimisation (arXiv 2402.03300)."""

    renamed: ClassVar[Mapping[str, str]] = {
        "group": "num_generations",
        "iterations": "num_iterations",
        "kl": "beta",
        "clip": "epsilon",
        "clip_higher": "epsilon_high",
        "loss": "loss_type",
        "scale": "scale_rewards",
    }

    num_generations: Annotated[int, Field(ge=2)] = 8
    """Answers to each prompt, judged against one another; it divides batch_size ×
    gradient_accumulation_steps × processes."""
    num_iterations: Count = 1
    """Updates that learn from the same answers; the clip works from the second on."""
    beta: NotNegative = 0.0
    """Weight of the KL penalty against the model as it began; 0 leaves it out, as R1-Zero's followers do."""
    epsilon: Positive = 0.2
    """The ratio of new to old probability counts only between 1 - epsilon and 1 + epsilon_high."""
    epsilon_high: NotNegative = 0.0
    """Another upper bound (DAPO, arXiv 2503.14476); 0 takes epsilon."""
    loss_type: Literal["grpo", "dapo", "dr_grpo", "bnpo"] = "dapo"
    """How tokens are weighed: per answer, over the batch, or without the bias to length."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Advantages are divided by the standard deviation of the group's rewards, of the batch's, or not."""


class GrpoSchedule(RolloutSchedule):
    """The schedule of grpo: batch_size × gradient_accumulation_steps answers per update, of 4 prompts."""

    gradient_accumulation_steps: Count = 4
    """Forward passes per optimizer step."""
    warmup_share: Share = 0.0
    """Share of the steps in which the rate rises; its first step has a rate of 0, and its answers are lost."""


class GrpoRun(RolloutRun):
    """Everything `dsr1-tune grpo` needs to know."""

    schedule: GrpoSchedule = GrpoSchedule()
    grpo: Grpo = Grpo()

    @model_validator(mode="after")
    def _works_together(self) -> GrpoRun:
        sizes = self.schedule.batch_size, self.schedule.gradient_accumulation_steps, self.parallel.processes
        if math.prod(sizes) % self.grpo.num_generations:
            raise ValueError(
                f"grpo.num_generations={self.grpo.num_generations} does not divide the answers of an update: "
                f"schedule.batch_size {sizes[0]} × schedule.gradient_accumulation_steps {sizes[1]} × "
                f"parallel.processes {sizes[2]} = {math.prod(sizes)}"
            )
        if self.schedule.neftune_noise_alpha:
            raise ValueError("schedule.neftune_noise_alpha is for supervised training; leave it at 0")
        if self.adapter.dropout:
            raise ValueError("adapter.dropout would change the answers' probabilities between rollout and update")
        if self.grpo.num_iterations == 1 and (self.grpo.epsilon, self.grpo.epsilon_high) != (0.2, 0.0):
            raise ValueError(
                "grpo.epsilon: with grpo.num_iterations=1 every ratio is 1 and nothing is clipped; take 2 or more"
            )
        return self


class Score(ConfigSection):
    """How rows are scored by a reward model."""

    batch_size: Count = 8
    """Rows per forward pass."""
    max_tokens: Annotated[int, Field(ge=16)] = 2048
    """Longer rows are not scored, and said so."""
    margin: NotNegative = 0.0
    """Pairs whose scores differ by less count as ties."""


class ScoreRun(ConfigSection):
    """What `dsr1-tune score` needs to know besides the model and the file."""

    score: Score = Score()
