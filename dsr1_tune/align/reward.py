"""`reward`: train a model that says in one number how good an answer is, from pairs of a better and a worse one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from safetensors.torch import save_file
from transformers import TrainerCallback
from transformers.utils import SAFE_WEIGHTS_NAME
from trl import RewardConfig, RewardTrainer

from dsr1_tune.align.preference import calibration
from dsr1_tune.align.preference.calibration import PairScores
from dsr1_tune.align.preference.encode import PairExample, encode_pairs
from dsr1_tune.config import RewardRun
from dsr1_tune.data.record import Preference
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.trained.full import enable_full_training
from dsr1_tune.models.trained.reward_model import (
    RewardFacts,
    ScalarModel,
    attach_reward_head,
    save_scalar,
    template_hash,
)
from dsr1_tune.models.trained.start import begin_adapter, check_begin
from dsr1_tune.moe.routing import open_routers
from dsr1_tune.runs.console import plain_table
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.open_session import open_session
from dsr1_tune.runs.session import Session
from dsr1_tune.runs.trainer.arguments import as_arguments, compute_dtype
from dsr1_tune.runs.trainer.trainer import Resumable

PLOT = "calibration.png"


def run(config: RewardRun, resume: Path | None = None, console: Console | None = None) -> RunFolder:
    """Train a reward model as `config` says, or resume the run in `resume`; returns its folder.

    Its loss is that of Bradley and Terry: -log sigmoid(score of the chosen answer - score of the rejected one), and
    config.reward.center_rewards_coefficient keeps the scores around 0. Raises TuneError for everything the user can
    fix, before weights are loaded where that is possible, and KeyboardInterrupt after a Ctrl-C, when a checkpoint has
    been saved.
    """
    is_quantized = config.method == "qlora"
    with open_session(config, "reward", resume, console, quantized=is_quantized, kind=RewardSession) as session:
        # What cannot be trained is refused before weights are loaded.
        if session.config.method == "full":
            _make_trainable(meta_model(session.base.config), session.config)
        check_begin(session.config, session.base.config)
        _train(session)
        session.check(lambda saved: attach_reward_head(saved, session.output), whole=session.whole)
    return session.folder


def _train(session: RewardSession) -> None:
    """Load the base, add the scalar head, train and save both."""
    model = ScalarModel(_load_trunk(session), session.base.tokenizer)
    session.run(model, save=lambda: save_scalar(model, session.base, session.output, session.reward_facts))


def _load_trunk(session: RewardSession) -> Any:
    """The base without its output layer's use: its own weights or an adapter on it are trainable."""
    loaded = session.load()
    if session.config.method == "full":
        _make_trainable(loaded.model, session.config)
        return loaded.model
    if session.quantized:
        session.audit_bits(loaded.model)
    return begin_adapter(loaded, session.config)


def _make_trainable(model: Any, config: RewardRun) -> None:
    enable_full_training(model, config.train.only)
    open_routers(model, config.router.mode)


class RewardSession(Session[RewardRun]):
    """A session that learns from preference pairs to score answers."""

    learns = Preference
    encode = staticmethod(encode_pairs)
    result_type = PairScores

    @property
    def output(self) -> Path:
        """Where the reward model is saved."""
        return self.folder.model if self.config.method == "full" else self.folder.adapter

    @property
    def whole(self) -> Path | None:
        """The model that is loaded in place of the base, where all of it was trained."""
        return self.output if self.config.method == "full" else None

    @property
    def reward_facts(self) -> RewardFacts:
        """What is needed to load the reward model: its base, and how answers are encoded."""
        return RewardFacts(
            base=self.base.name,
            revision=self.base.revision if self.base.repo_id else None,
            is_quantized=self.quantized,
            think=self.config.sequences.think,
            max_tokens=self.config.schedule.max_tokens,
            chat_template_sha256=template_hash(self.base.tokenizer),
        )

    def evaluate(self, model: ScalarModel) -> PairScores:
        """Evaluate how the model ranks the held-out pairs."""
        with self.narrator.counting("evaluating", 2 * len(self.data.eval_subset)) as advance:
            return score_pairs(model, self.data.eval_subset, advance)

    def metrics(self, before: PairScores, after: PairScores) -> dict[str, Any]:
        """Loss, accuracy, margin and calibration error before and after, and the accuracy of length alone."""
        names, stages = ("loss", "accuracy", "margin", "calibration_error"), {"before": before, "after": after}
        numbers = {f"{name}_{stage}": getattr(scores, name) for name in names for stage, scores in stages.items()}
        return numbers | {"length_only": after.length_only}

    def evaluate_after(self, model: ScalarModel) -> None:
        """Also plot how well the model is calibrated."""
        super().evaluate_after(model)
        if self.is_main:
            scores = PairScores.from_json(self.folder.evaluation()["after"])
            calibration.plot(scores, self.folder.path / PLOT)

    def show(self, before: PairScores, after: PairScores) -> None:
        """Print accuracy, margin, loss and calibration before and after, and the accuracy of length alone."""
        are_held_out = bool(self.data.held_out)
        what = "Held-out pairs" if are_held_out else "Training pairs"
        table = plain_table(f"{what} ({after.num_pairs:,})", "", "before", "after")
        table.add_row("accuracy", f"{before.accuracy:.1%}", f"{after.accuracy:.1%}")
        table.add_row("accuracy of the longer answer", "", f"{after.length_only:.1%}", style="dim")
        for name, bucket in after.differs.items():
            earlier = before.differs[name].accuracy
            table.add_row(f"  {name} ({bucket.num_pairs:,})", f"{earlier:.1%}", f"{bucket.accuracy:.1%}")
        table.add_row("mean margin", f"{before.margin:+.3f}", f"{after.margin:+.3f}")
        table.add_row("loss", f"{before.loss:.4f}", f"{after.loss:.4f}")
        table.add_row("calibration error", f"{before.calibration_error:.3f}", f"{after.calibration_error:.3f}")
        self.narrator.console.print(table)

    def where(self) -> None:
        """Print where the reward model is and how to score answers with it."""
        path = self.folder.path
        self.narrator.say(f"\nThe reward model is in {self.output}; {path / PLOT} shows how far it can be trusted.")
        self.narrator.say(f"Score answers with: dsr1-tune score {path} rows.jsonl")

    def trainer(self, model: ScalarModel, callbacks: list[TrainerCallback]) -> ResumableRewardTrainer:
        """TRL's reward trainer, made resumable."""
        arguments = as_arguments(
            RewardConfig,
            self.config,
            self.folder,
            compute_dtype(model),
            center_rewards_coefficient=self.config.reward.center_rewards_coefficient or None,
            # The pairs come encoded; none is filtered out. Dropout is as the adapter's settings say.
            max_length=None,
            disable_dropout=False,
        )
        rows = as_conversations(self.data.train)
        return self.build_trainer(ResumableRewardTrainer, model, callbacks, arguments, rows)


def score_pairs(model: ScalarModel, pairs: Sequence[PairExample], advance: Any = lambda count: None) -> PairScores:
    """Score both answers of every pair."""
    chosen = [pair.prompt_ids + pair.chosen_ids for pair in pairs]
    rejected = [pair.prompt_ids + pair.rejected_ids for pair in pairs]
    scores = model.score([*chosen, *rejected], advance=advance).tolist()
    lengths = [(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs]
    differs = [pair.differs or None for pair in pairs]
    return calibration.compare(scores[: len(pairs)], scores[len(pairs) :], lengths, differs)


def as_conversations(pairs: Sequence[PairExample]) -> Dataset:
    """The pairs in the columns of TRL's reward trainer, which takes prompt and answer together."""
    return Dataset.from_dict(
        {
            "chosen_ids": [pair.prompt_ids + pair.chosen_ids for pair in pairs],
            "rejected_ids": [pair.prompt_ids + pair.rejected_ids for pair in pairs],
        }
    )


class ResumableRewardTrainer(Resumable, RewardTrainer):
    """TRL's reward trainer with pairs of like length in a batch, and the scalar head in every checkpoint."""

    def lengths(self, rows: Any) -> list[int]:
        """The longer of the two."""
        return [max(len(c), len(r)) for c, r in zip(rows["chosen_ids"], rows["rejected_ids"], strict=True)]

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save head and adapter alone, by their names in memory: a base in 4 bits would be saved as buffers too."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model)
        trained = {name: w.detach().contiguous() for name, w in model.named_parameters() if w.requires_grad}
        save_file(trained, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
