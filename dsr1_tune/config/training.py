"""Settings of supervised fine-tuning: LoRA, QLoRA, full fine-tuning and ESFT."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from dsr1_tune.config.sections import (
    GROUPS,
    Adapter,
    Base,
    ConfigSection,
    Count,
    Data,
    Encoding,
    Parallel,
    Router,
    Schedule,
    Sequences,
    Template,
    Watch,
)


class TuneRun(ConfigSection):
    """Settings of all training methods."""

    data: Data = Data()
    base: Base = Base()
    sequences: Sequences = Sequences()
    template: Template = Template()
    schedule: Schedule = Schedule()
    router: Router = Router()
    watch: Watch = Watch()
    parallel: Parallel = Parallel()
    out: Path | None = None
    """The run folder; without it runs/<data file>-<date>."""
    samples: Annotated[int, Field(ge=0)] = 2
    """Sample answers: held-out questions answered before and after training."""
    sample_tokens: Count = 80
    """Maximum length of a sample answer in tokens."""

    @property
    def encoding(self) -> Encoding:
        """How rows become tokens."""
        return Encoding(self.sequences, self.template, self.data.special_tokens)

    @property
    def may_share_experts(self) -> bool:
        """Whether the same run could begin with parallel.strategy=experts."""
        parallel = self.parallel.model_dump() | {"strategy": "experts"}
        try:
            type(self).model_validate(self.model_dump() | {"parallel": parallel})
        except ValidationError:
            return False
        return True

    def _check(self) -> None:
        if self.router.mode in ("train", "aux_loss"):
            refuse_float16(self.base)
        optimizer, strategy = self.schedule.optimizer, self.parallel.strategy
        if (strategy == "fsdp2" and "8bit" in optimizer) or (strategy != "ddp" and optimizer == "adafactor"):
            raise ValueError(
                f"schedule.optimizer={optimizer} needs whole weights, which {strategy} shares out; use adamw"
            )
        if strategy == "experts" and self.base.dtype == "float16":
            raise ValueError("parallel.strategy=experts scales no losses, as base.dtype=float16 needs it; use bfloat16")
        if strategy != "ddp" and self.watch.on_alarm == "rollback":
            raise ValueError(f"watch.on_alarm=rollback cannot put back weights that {strategy} shares out; use stop")


class LoraRun(TuneRun):
    """Settings of `dsr1-tune lora`."""

    adapter: Adapter = Adapter()


class QloraRun(LoraRun):
    """Settings of `dsr1-tune qlora`."""

    def _check(self) -> None:
        super()._check()
        if self.adapter.init in ("pissa", "olora"):
            raise ValueError(
                f"adapter.init={self.adapter.init} changes the base weights, which qlora holds in 4 bits; use lora"
            )
        if self.adapter.dora:
            raise ValueError("adapter.dora needs the norms of the base weights, which qlora holds in 4 bits; use lora")
        if self.parallel.strategy not in ("ddp", "experts"):
            raise ValueError(f"qlora's 4-bit weights cannot be shared out by {self.parallel.strategy}; use experts")


class Train(ConfigSection):
    """Which weights full fine-tuning trains."""

    only: tuple[str, ...] = ()
    """Groups (attention, dense_ffn, shared_experts, routed_experts, embeddings, norms) and last:N for the last N
    layers, where given together a weight must be in both; without it every weight but the router's."""
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    """How AdamW rounds updates into bfloat16 weights; its state is float32 either way."""

    def _check(self) -> None:
        known = (*GROUPS, "embeddings", "norms")
        for name in self.only:
            kind, _, number = name.partition(":")
            if name not in known and not (kind == "last" and number.isdigit() and int(number) > 0):
                raise ValueError(f"train.only: {name} is none of {', '.join(known)}, last:N")


class FullRun(TuneRun):
    """Settings of `dsr1-tune full`."""

    train: Train = Train()

    def _check(self) -> None:
        super()._check()
        refuse_float16(self.base)
        if self.parallel.strategy == "experts":
            raise ValueError("parallel.strategy=experts shares out frozen experts, which full trains; use fsdp2")


def refuse_float16(base: Base) -> None:
    """Refuse float16 for weights that are trained: their gradients cannot be unscaled. Raises ValueError."""
    if base.dtype == "float16":
        raise ValueError("base.dtype=float16 is too narrow for weights that are trained; use bfloat16 or float32")


class Esft(ConfigSection):
    """Expert-specialised fine-tuning: which experts are trained (ESFT, arXiv 2407.01906)."""

    experts: Path | None = None
    """An experts.json that `dsr1-tune experts` wrote; without it the training data is profiled first."""
    score: Literal["gate", "tokens"] = "gate"
    """Expert relevance score: gate is an expert's share of the gate weights, tokens its share of the tokens."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Relevance threshold: the fewest experts of each layer are chosen whose scores sum to this share."""
    sample_tokens: Count = 131_072
    """Tokens of the data to profile."""
    method: Literal["weights", "lora"] = "weights"
    """Train the chosen experts' weights, or low-rank updates on them."""


class EsftRun(TuneRun):
    """Settings of `dsr1-tune esft`."""

    esft: Esft = Esft()
    adapter: Adapter = Adapter(groups=("routed_experts",))
    """Rank and alpha for esft.method=lora."""
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    """How AdamW rounds updates into bfloat16 weights; its state is float32 either way."""

    def _check(self) -> None:
        super()._check()
        plain = Adapter(groups=("routed_experts",))
        if self.esft.method == "weights":
            refuse_float16(self.base)
            if self.adapter != plain:
                raise ValueError("adapter is for esft.method=lora; the experts' own weights are trained here")
        elif self.adapter.groups != ("routed_experts",):
            raise ValueError("esft trains routed experts alone: leave adapter.groups as it is, or use lora")
        if self.parallel.strategy != "ddp":
            raise ValueError(f"esft's experts cannot be shared out by {self.parallel.strategy}; use ddp")
