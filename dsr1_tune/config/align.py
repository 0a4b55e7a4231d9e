"""Settings of alignment: reward model, DPO, KTO, PPO and GRPO."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from dsr1_tune.config.sections import Adapter, ConfigSection, Count, Encoding, Schedule, Sequences, Share
from dsr1_tune.config.training import Train, TuneRun, refuse_float16

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
REWARD_NUMBERS = ("mean", "std", "errors", "with_penalty")
"""Metrics that are logged under reward/ beside the layers; no layer may have such a name."""


class Start(ConfigSection):
    """The trained adapter that alignment starts from."""

    run: Path | None = None
    """The LoRA run or adapter folder to start from; --model takes it too. Without either it is the base."""
    adapter: Literal["keep", "continue"] = "keep"
    """keep freezes it and trains adapter.rank more ranks beside it, saved as one adapter; continue trains its own
    ranks. In both cases the reference policy is the model as it begins."""


class GentleSchedule(Schedule):
    """The training schedule of alignment methods, whose learning rate is low."""

    learning_rate: Positive = 2e-5
    """Peak learning rate of the cosine schedule."""


class AlignRun(TuneRun):
    """Settings of all alignment methods."""

    method: Literal["lora", "qlora", "full"] = "lora"
    """lora trains an adapter, qlora an adapter over a base in 4 bits, full the base's own weights."""
    start: Start = Start()
    adapter: Adapter = Adapter()
    train: Train = Train()
    """Which weights are trained with method=full."""
    schedule: GentleSchedule = GentleSchedule()

    def _check(self) -> None:
        super()._check()
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


class RewardSchedule(GentleSchedule):
    """The training schedule of a reward model."""

    learning_rate: Positive = 1e-4
    """Peak learning rate of the cosine schedule."""


class Reward(ConfigSection):
    """Training of the reward model."""

    renamed: ClassVar[Mapping[str, str]] = {"center": "center_rewards_coefficient"}

    center_rewards_coefficient: NotNegative = 0.01
    """Weight of the auxiliary loss that centers a pair's rewards around 0 (arXiv 2312.09244); 0 turns it off."""


class RewardRun(AlignRun):
    """Settings of `dsr1-tune reward`."""

    schedule: RewardSchedule = RewardSchedule()
    reward: Reward = Reward()
    samples: Annotated[int, Field(ge=0, le=0)] = 0
    """Always 0: a reward model generates no answers."""

    @property
    def encoding(self) -> Encoding:
        """How rows become tokens: both answers of a pair, and later any answer, behind the same prompt."""
        return replace(super().encoding, by_thought=False)


# TRL's but for discopop: at a margin of 0, where all training begins, its slope is the wrong way.
DpoLoss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "sft", "sigmoid_norm",
]  # fmt: skip


class Dpo(ConfigSection):
    """Direct preference optimisation (arXiv 2305.18290)."""

    renamed: ClassVar[Mapping[str, str]] = {"loss": "loss_type", "weights": "loss_weights"}

    beta: Positive = 0.1
    """KL regularisation strength; higher stays closer to the reference model."""
    loss_type: tuple[DpoLoss, ...] = ("sigmoid",)
    """Loss type: one of TRL's DPO losses, or several whose weighted sum is trained: sigmoid,sft."""
    loss_weights: tuple[Positive, ...] = ()
    """Weight of each loss in the sum; 1 each where not given."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Label smoothing: the share of pairs whose labels may be flipped, for robust, exo_pair, aot and aot_unpaired."""

    def _check(self) -> None:
        if not self.loss_type:
            raise ValueError("dpo.loss_type: name at least one, such as sigmoid")
        if self.loss_weights and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(f"dpo.loss_weights: {len(self.loss_weights)} weights for {len(self.loss_type)} losses")
        if self.loss_type == ("sft",):
            said = "dpo.loss_type=sft alone learns nothing of the rejected answers; add it to another: sigmoid,sft"
            raise ValueError(said)
        if self.label_smoothing and not {"robust", "exo_pair", "aot", "aot_unpaired"} & set(self.loss_type):
            given = ", ".join(self.loss_type)
            raise ValueError(f"dpo.label_smoothing changes nothing of {given}; robust is sigmoid with it")
        if "exo_pair" in self.loss_type and not self.label_smoothing:
            raise ValueError("dpo.loss_type=exo_pair takes the logarithm of dpo.label_smoothing; the paper's is 0.001")


class DpoRun(AlignRun):
    """Settings of `dsr1-tune dpo`."""

    dpo: Dpo = Dpo()


class Kto(ConfigSection):
    """Kahneman-Tversky optimisation of unpaired feedback (arXiv 2402.01306)."""

    beta: Positive = 0.1
    """KL regularisation strength; higher stays closer to the reference model."""
    desirable_weight: Positive = 1.0
    """Loss weight of desirable (good) answers."""
    undesirable_weight: Positive = 1.0
    """Loss weight of undesirable (bad) answers."""


class KtoRun(AlignRun):
    """Settings of `dsr1-tune kto`."""

    kto: Kto = Kto()

    def _check(self) -> None:
        super()._check()
        if self.schedule.batch_size < 2:
            raise ValueError("schedule.batch_size=1: kto compares with the mean KL of a batch; use 2 or more")


class Rollout(ConfigSection):
    """How PPO and GRPO generate the answers that they learn from."""

    max_new_tokens: Count = 256
    """Maximum number of tokens generated per answer."""
    temperature: Positive = 1.0
    """Sampling temperature: answers are sampled from softmax(logits / temperature), and the update uses the same."""
    batch_size: Count = 16
    """Answers generated in one batch; more is faster and takes more memory."""


class RolloutSchedule(GentleSchedule):
    """The training schedule of PPO and GRPO."""

    learning_rate: Positive = 1e-5
    """Peak learning rate of the cosine schedule."""
    save_steps: Count = 100
    """Save a checkpoint every so many updates; the last two are kept."""


class RolloutRun(AlignRun):
    """Settings that PPO and GRPO share."""

    rewards: Path | None = None
    """The YAML file of layered rewards."""
    on_reward_error: Literal["stop", "zero"] = "zero"
    """Where a reward fails or is not a number, stop ends the run; zero leaves the answer out (its advantage is 0),
    reports it and counts it. Where none of an update's answers could be scored, the run ends either way."""
    rollout: Rollout = Rollout()
    schedule: RolloutSchedule = RolloutSchedule()

    @property
    def encoding(self) -> Encoding:
        """How rows become tokens: what an expected answer thought says nothing of how it is asked for."""
        return replace(super().encoding, by_thought=False)

    @model_validator(mode="before")
    @classmethod
    def _absolute(cls, value: Any) -> Any:
        """Make the path absolute: a run may be resumed from another working directory."""
        if isinstance(value, dict) and value.get("rewards"):
            return {**value, "rewards": Path(value["rewards"]).expanduser().absolute()}
        return value

    def _check(self) -> None:
        super()._check()
        if self.sequences != Sequences():
            raise ValueError(
                "sequences says how answers are learned from; here rows are prompts, and long ones fall out"
            )


class Ppo(ConfigSection):
    """Proximal policy optimisation (arXiv 1707.06347)."""

    answers: Count = 32
    """Rollout size: answers generated per update, over all processes."""
    epochs: Count = 4
    """PPO epochs: passes over the answers of an update."""
    minibatches: Count = 4
    """Minibatches (optimizer steps) per epoch, each in micro-batches of schedule.batch_size answers."""
    kl: NotNegative = 0.1
    """KL coefficient: weight of the per-token KL penalty against the reference policy."""
    kl_target: NotNegative = 0.0
    """Target of the adaptive KL controller, in nats per answer (arXiv 1909.08593); 0 keeps the coefficient fixed."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount factor of rewards, per token."""
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    """λ of generalised advantage estimation (GAE, arXiv 1506.02438)."""
    clip: Positive = 0.2
    """Clip range of the policy loss: the probability ratio is clipped to 1 - clip and 1 + clip."""
    value_clip: Positive = 0.2
    """Clip range of the value loss: how far a value may move from the old one in an update."""
    value_weight: NotNegative = 0.1
    """Value loss coefficient."""
    entropy: NotNegative = 0.0
    """Entropy bonus coefficient."""
    stop_kl: NotNegative = 0.0
    """Early stopping: end an update when the policy's approximate KL reaches so many nats per token; 0 never."""
    value_learning_rate: Positive = 1e-3
    """Learning rate of the value head, which is initialised to zero."""
    missing_eos: NotNegative = 1.0
    """Missing-EOS penalty: subtracted from the reward of an answer that did not end within rollout.max_new_tokens."""
    whiten_rewards: bool = False
    """Whiten rewards: scale the rewards of an update to variance 1 before advantages are computed."""
    value: Literal["shared", "own"] = "shared"
    """Value model: shared puts the value head on the policy's last hidden states, and its gradient trains the policy's
    adapter too; own gives it an adapter of its own on the same base."""
    routing_replay: bool = False
    """Routing replay: in a mixture of experts, route every token in the update to the experts of its rollout."""


class PpoRun(RolloutRun):
    """Settings of `dsr1-tune ppo`."""

    ppo: Ppo = Ppo()

    def _check(self) -> None:
        super()._check()
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
    """Group size: answers generated per prompt; it must divide batch_size × gradient_accumulation_steps × processes."""
    num_iterations: Count = 1
    """Optimizer updates per batch of generated answers; clipping takes effect from the second on."""
    beta: NotNegative = 0.0
    """KL coefficient: weight of the KL penalty against the reference policy; 0 turns it off."""
    epsilon: Positive = 0.2
    """Clip range of the policy loss: the probability ratio is clipped to 1 - epsilon and 1 + epsilon_high."""
    epsilon_high: NotNegative = 0.0
    """Upper clip range where it differs (clip-higher of DAPO, arXiv 2503.14476); 0 takes epsilon."""
    loss_type: Literal["grpo", "dapo", "dr_grpo", "bnpo"] = "dapo"
    """Loss aggregation: per answer (grpo), over the batch's tokens (dapo, bnpo), or without length bias (dr_grpo)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Advantage normalisation: divide by the standard deviation of the group's rewards, of the batch's, or not."""


class GrpoSchedule(RolloutSchedule):
    """The training schedule of GRPO: batch_size × gradient_accumulation_steps answers per update, of 4 prompts."""

    gradient_accumulation_steps: Count = 4
    """Gradient accumulation: micro-batches per optimizer step."""
    warmup_share: Share = 0.0
    """Warm-up: share of the steps over which the learning rate rises linearly; none, as answers are dear."""


class GrpoRun(RolloutRun):
    """Settings of `dsr1-tune grpo`."""

    schedule: GrpoSchedule = GrpoSchedule()
    grpo: Grpo = Grpo()

    def _check(self) -> None:
        super()._check()
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


class Score(ConfigSection):
    """Scoring of rows by a reward model."""

    batch_size: Count = 8
    """Rows per forward pass."""
    max_tokens: Annotated[int, Field(ge=16)] = 2048
    """Maximum length of a row in tokens; longer rows are reported and not scored."""
    margin: NotNegative = 0.0
    """Pairs whose scores differ by less count as ties."""


class ScoreRun(ConfigSection):
    """Settings of `dsr1-tune score` besides the model and the file."""

    score: Score = Score()
