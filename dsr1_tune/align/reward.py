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
from dsr1_tune.align.preference.encode import PairExample, differs_in, encode_pairs
from dsr1_tune.align.train_policy import check_trainable, load_trainable
from dsr1_tune.config import RewardRun
from dsr1_tune.data.record import Preference
from dsr1_tune.models.trained.reward_model import (
    RewardFacts,
    ScalarModel,
    attach_reward_head,
    save_scalar,
    template_hash,
)
from dsr1_tune.runs.console import plain_table
from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.evaluate import in_order
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.open_session import open_session
from dsr1_tune.runs.session import Session
from dsr1_tune.runs.trainer.arguments import as_arguments, compute_dtype
from dsr1_tune.runs.trainer.trainer import Resumable

PLOT = "calibration.png"


def run(config: RewardRun, resume: Path | None = None, console: Console | None = None) -> RunFolder:
    """Train a reward model as `config` says, or go on with `resume`; returns its folder. Raises as `open_session` does.

    Its loss is that of Bradley and Terry: -log sigmoid(score of the chosen answer - score of the rejected one), and
    config.reward.center_rewards_coefficient keeps the scores around 0.
    """
    with open_session(config, "reward", resume, console, kind=RewardSession) as session:
        check_trainable(session)
        _train(session)
        whole = session.output if session.config.method == "full" else None
        session.check(lambda saved: attach_reward_head(saved, session.output), whole=whole)
    return session.folder


def _train(session: RewardSession) -> None:
    base = session.base
    model = ScalarModel(load_trainable(session), base.tokenizer)
    facts = RewardFacts(
        base=base.name,
        revision=base.revision if base.repo_id else None,
        is_quantized=session.quantized,
        think=session.config.sequences.think,
        max_tokens=session.config.schedule.max_tokens,
        chat_template_sha256=template_hash(base.tokenizer),
        template=session.config.template.model_dump(),
        special_tokens=session.config.data.special_tokens,
    )
    session.run(model, save=lambda: save_scalar(model, base, session.output, facts))


class RewardSession(Session[RewardRun]):
    """A session that learns from preference pairs to score answers."""

    learns = Preference
    encode = staticmethod(encode_pairs)
    result_type = PairScores

    @property
    def output(self) -> Path:
        """Where the reward model is saved."""
        return self.folder.model if self.config.method == "full" else self.folder.adapter

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
        what = "Held-out pairs" if self.data.held_out else "Training pairs"
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
        # TRL's reward trainer takes prompt and answer together.
        chosen, rejected = zip(*(pair.conversations for pair in self.data.train), strict=True)
        rows = Dataset.from_dict({"chosen_ids": list(chosen), "rejected_ids": list(rejected)})
        return self.build_trainer(ResumableRewardTrainer, model, callbacks, arguments, rows)


def score_pairs(model: ScalarModel, pairs: Sequence[PairExample], advance: Any = lambda count: None) -> PairScores:
    """Score both answers of every pair; of several processes each takes its share."""
    chosen, rejected = zip(*(pair.conversations for pair in pairs), strict=True)
    every, size = [*chosen, *rejected], group.world_size()
    mine = range(group.rank(), len(every), size)
    found = model.score([every[number] for number in mine], advance=lambda count: advance(count * size))
    scores = in_order(dict(zip(mine, found.tolist(), strict=True)))
    lengths = [(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs]
    differs = [differs_in(pair.preference.row) or None for pair in pairs]
    return calibration.compare(scores[: len(pairs)], scores[len(pairs) :], lengths, differs)


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
