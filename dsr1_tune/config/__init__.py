"""Settings: frozen sections with their defaults, and one config per command that is composed of them."""

from __future__ import annotations

from dsr1_tune.config.adapt import AdaptRun, PlanRun, as_run
from dsr1_tune.config.align import (
    REWARD_NUMBERS,
    AlignRun,
    Dpo,
    DpoRun,
    Grpo,
    GrpoRun,
    Kto,
    KtoRun,
    Ppo,
    PpoRun,
    Reward,
    RewardRun,
    Rollout,
    RolloutRun,
    Score,
    ScoreRun,
    Start,
)
from dsr1_tune.config.clean import CleanRun, Dedup, Judge, JudgeScore, Privacy
from dsr1_tune.config.export import Compare, CompareRun, ExportRun, Gates, Merge, Quantize
from dsr1_tune.config.sections import (
    GROUPS,
    Adapter,
    Base,
    ConfigSection,
    Count,
    Data,
    Encoding,
    Group,
    Init,
    Parallel,
    Router,
    Schedule,
    Sequences,
    Share,
    Template,
    Watch,
)
from dsr1_tune.config.training import Esft, EsftRun, FullRun, LoraRun, QloraRun, Train, TuneRun

RUNS: dict[str, type[TuneRun]] = {
    "lora": LoraRun,
    "qlora": QloraRun,
    "full": FullRun,
    "esft": EsftRun,
    "reward": RewardRun,
    "dpo": DpoRun,
    "kto": KtoRun,
    "ppo": PpoRun,
    "grpo": GrpoRun,
}
"""The config of every way of training and alignment."""
