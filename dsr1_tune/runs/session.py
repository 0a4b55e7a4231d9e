"""What all training methods share: from a config to a base model and its data, from a trained model to a checked run.

A method's file drives a `Session`: open it, load the base, choose what is trained, run it, check what was saved.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from transformers import TrainerCallback, set_seed

from dsr1_tune.config import AlignRun, Base, Group, LoraRun, TuneRun
from dsr1_tune.data.prepare import write
from dsr1_tune.data.prepared import Prepared
from dsr1_tune.data.record import Record, Row
from dsr1_tune.errors import ModelError
from dsr1_tune.models.attention import is_flash
from dsr1_tune.models.load import Loaded, Located, load_located, locate
from dsr1_tune.models.trained.lora import audit, not_adapted, not_reached
from dsr1_tune.models.trained.reach import as_lines
from dsr1_tune.models.trained.untrained import take_out
from dsr1_tune.moe.anatomy import plain_name
from dsr1_tune.moe.quantized_experts import audit_bits, memory_of
from dsr1_tune.moe.shared_factors import whole_factors
from dsr1_tune.runs.console import Narrator
from dsr1_tune.runs.data import RunData, encode_and_split, training_set
from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.environment import machine, package_versions
from dsr1_tune.runs.evaluate import HeldOut, Sample, held_out_loss, sample_answers
from dsr1_tune.runs.folder import FINISHED, RUNNING, RunFolder
from dsr1_tune.runs.loop import Loop
from dsr1_tune.runs.noise import NOISE_DEVIATIONS, loss_noise
from dsr1_tune.runs.trainer.arguments import compute_dtype, to_arguments
from dsr1_tune.runs.trainer.collate import PackedCollator, use_packing
from dsr1_tune.runs.trainer.trainer import Resumable, ResumableTrainer
from dsr1_tune.runs.update import Beginning, check_changed
from dsr1_tune.runs.watch.watcher import noting_routing

# Beyond this the noise is measured: in 16 bits plain PEFT rounds the sum of weight and update, which the grouped
# products never form, and what that does depends on the model and on the number of tokens.
SURELY_NOISE = {torch.float32: 1e-4, torch.bfloat16: 1e-3, torch.float16: 1e-3}

Run = TypeVar("Run", bound=TuneRun)
Trainer = TypeVar("Trainer", bound=Resumable)


@dataclass
class Session(Generic[Run]):
    """One run in progress: its fixed parts, and the results so far (`facts`, for the manifest).

    Subclasses only state what differs for a method: the rows it learns from, how they are encoded, what is evaluated
    before and after, and which trainer takes the steps.
    """

    learns: ClassVar[type[Row]] = Record
    result_type: ClassVar[type[Any]] = HeldOut
    """What `evaluate` returns."""
    watches_loss: ClassVar[bool] = True
    """Whether the size of the training loss says how the run is going."""

    config: Run
    command: str
    folder: RunFolder
    narrator: Narrator
    base: Located
    data: RunData
    quantized: bool
    facts: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def encode(prepared: Prepared, tokenizer: Any, config: Any) -> RunData:
        """Turn the prepared rows into token ids, split into training and held-out rows."""
        return encode_and_split(prepared, tokenizer, config)

    @classmethod
    def num_further(cls, config: Any) -> int:
        """Tokens that the model may generate after those that are encoded."""
        return 0

    @property
    def is_main(self) -> bool:
        """Whether this process is the one, of several, that writes files and prints."""
        return self.folder.is_written_here

    @property
    def shares_experts(self) -> bool:
        """Whether each process holds a part of the experts alone, so that all compute whenever one does."""
        return self.config.parallel.strategy == "experts"

    @property
    def loop(self) -> Loop:
        """The training loop's surroundings."""
        return Loop(self.config, self.folder, self.narrator, self.watches_loss)

    def begin(self, **inputs: Any) -> None:
        """Record in the manifest what the run starts from (`inputs` and more), show its data and write it there."""
        base = self.base
        first_encoded = group.from_main(self.folder.encoded_sha256)  # of a run that goes on: what it began with
        self.folder.update(
            status=RUNNING,
            ended=None,
            error=None,
            **inputs,
            base={"name": base.name, "revision": base.revision, "folder": str(base.folder.absolute())},
            versions=package_versions(),
            machine=machine(),
            seed=self.config.schedule.seed,
            processes=group.world_size(),
            global_batch=group.global_batch(self.config),
            template_kwargs=dict(self.data.template_kwargs) or None,
            encoded_sha256=first_encoded or self.data.sha256,
        )
        self.narrator.stage("Data")
        self.narrator.data(self.data.prepared, len(self.data.train), len(self.data.held_out))
        for remark in self.data.remarks:
            self.narrator.say(remark)
        if self.is_main:
            write(self.data.prepared, self.folder.data, self.data.held_out_records)

    def load(self) -> Loaded:
        """Load the base for training and seed all random generators."""
        self.narrator.stage("Model")
        with self.timed("load"):
            loaded = self._load_weights(self.base, for_training=True)
        set_seed(self.config.schedule.seed)
        return loaded

    def _load_weights(self, base: Located, for_training: bool = False) -> Loaded:
        parallel = group.expert_parallel(self.config.parallel)
        dtype, quantized = self.config.base.dtype, self.quantized
        return group.together(lambda: load_located(base, dtype, for_training, quantized, parallel))

    def run(self, model: Any, save: Callable[[], None]) -> None:
        """Audit, evaluate, train, save and evaluate again; of several processes one calls `save`, the others wait.

        Raises ModelError where training has changed nothing.
        """
        self.audit(model)
        self.evaluate_before(model)
        beginning = Beginning.of(model)
        self.train(model)
        check_changed(model, beginning, self.folder)
        self.take_untrained_out(model, beginning)
        with whole_factors(model):
            group.from_main(save)
        self.evaluate_after(model)

    def audit(self, model: Any) -> None:
        """Show which parameters are trained and which are frozen, and which layers get no update though asked for."""
        coverage = audit(model)
        self.narrator.coverage(coverage)
        self.facts["coverage"] = [asdict(line) for line in coverage]
        groups = _new_adapter_groups(self.config)
        without = as_lines(not_adapted(model, groups))
        for line in [*without, *not_reached(coverage, groups)]:
            self.narrator.say(line)
        self.facts["left_out"] = without

    def take_untrained_out(self, model: Any, beginning: Beginning) -> None:
        """Take the layers of an adapter out of it that no gradient has come to, and name them."""
        if names := beginning.untrained(model):
            take_out(model, names)
            lines = as_lines(dict.fromkeys(map(plain_name, names), "no gradient came to it in all of the training"))
            for line in lines:
                self.narrator.say(line)
            self.facts["left_out"] += lines
            self.facts["coverage"] = [asdict(line) for line in audit(model)]

    def audit_bits(self, model: Any) -> None:
        """Show which weights are stored in 4 bits. Raises ModelError if the experts are not."""
        bits = group.together(lambda: audit_bits(model))
        for line in bits:
            line.worst_error = max(group.all_gather([line.worst_error]))
        held = memory_of(model)
        self.narrator.bits(bits, sum(line.num_bytes for line in bits) if self.shares_experts else held)
        if self.shares_experts:
            self.narrator.say(f"this process, of {group.world_size()}, holds {held / 2**20:,.1f} MiB of them")
        self.facts["bits"] = [asdict(line) | {"bits": round(line.bits, 3)} for line in bits]
        self.facts["weights_bytes"] = held

    def evaluate_before(self, model: Any) -> None:
        """Evaluate the held-out rows and sample answers before training; a resumed run keeps its first evaluation."""
        self.narrator.stage("Before training")
        earlier = group.from_main(self.folder.evaluation)
        if "before" in earlier:
            before = self.result_type.from_json(earlier["before"])
            self.narrator.say(f"{before}, as measured when the run began")
            return
        with self.timed("evaluate_before"):
            before, answers = self._evaluate_and_answer(model, "before")
        self.folder.write_evaluation(
            on=self.data.probe_name, before=before.as_json(), answers_before=[asdict(s) for s in answers]
        )

    def evaluate_after(self, model: Any) -> None:
        """Evaluate the same after training. Raises ModelError if the loss is not a number."""
        self.narrator.stage("After training")
        with self.timed("evaluate_after"):
            after, answers = self._evaluate_and_answer(model, "after")
        self.folder.write_evaluation(after=after.as_json(), answers_after=[asdict(s) for s in answers])
        if not math.isfinite(after.loss):
            raise ModelError(
                "the trained model's held-out loss is not a number",
                hint=f"lower schedule.learning_rate; {self.folder.log_file} shows where the loss went wrong",
            )

    def _evaluate_and_answer(self, model: Any, stage: str) -> tuple[Any, list[Sample]]:
        """The result on the held-out rows, whose expert routing is recorded, and answers to a few of them."""
        with noting_routing(model, self.folder, stage):
            held_out = self.evaluate(model)
        self.narrator.say(f"{held_out} on {self.data.probe_name}")
        questions = self.data.asked(self.config.samples)
        with self.narrator.counting("answering", len(questions)) as advance:
            answers = sample_answers(
                model,
                self.base.tokenizer,
                questions,
                self.config.sample_tokens,
                advance,
                self.config.encoding,
                is_in_step=self.shares_experts,
            )
        return held_out, answers

    def evaluate(self, model: Any) -> Any:
        """Evaluate the held-out rows; returns a `result_type`, which has a `loss`, `as_json()` and a text."""
        with self.narrator.counting("evaluating", len(self.data.eval_subset)) as advance:
            return held_out_loss(model, self.data.eval_subset, self.base.tokenizer.pad_token_id, advance)

    def train(self, model: Any) -> None:
        """Take all training steps, from the latest checkpoint where there is one."""
        self.narrator.stage("Training")
        with self.timed("train"):
            self.facts["num_steps"] = self.take_steps(model)

    def take_steps(self, model: Any) -> int:
        """Take the steps with TRL's trainer; returns how many the run has."""
        return self.loop.train(model, partial(self.trainer, model), self.watched_loss)

    def watched_loss(self, model: Any) -> float:
        """The held-out loss that is measured every watch.eval_steps, and must not rise."""
        return float(self.evaluate(model).loss)

    def trainer(self, model: Any, callbacks: list[TrainerCallback]) -> Resumable:
        """The trainer for the rows that this session learns from."""
        (rows, remark), pad_token = training_set(self.data, self.config), self.base.tokenizer.pad_token_id
        is_packed = self.config.sequences.packing
        collator = PackedCollator(pad_token, is_flash(model)) if is_packed else None  # None leaves it to TRL
        if collator:
            self.narrator.say(remark)
            use_packing(model, pad_token)
        args = to_arguments(self.config, self.folder, compute_dtype(model))
        return self.build_trainer(ResumableTrainer, model, callbacks, args, rows, data_collator=collator)

    def build_trainer(
        self, kind: type[Trainer], model: Any, callbacks: list[TrainerCallback], args: Any, rows: Any, **more: Any
    ) -> Trainer:
        """A trainer of this type, with what the session knows filled in."""
        return kind(
            model=model,
            config=self.config,
            quantized=self.quantized,
            args=args,
            train_dataset=rows,
            processing_class=self.base.tokenizer,
            callbacks=callbacks,
            **more,
        )

    def check(self, reload: Callable[[Loaded], Any], how: str = "", whole: Path | None = None) -> None:
        """Load base and output afresh; raises ModelError unless the loss is that of the trained model.

        `reload` puts what the run saved onto the fresh base and `how` names the means; a `whole` model that was saved
        is loaded in place of the base. The trained model must be freed before, to leave memory for another.
        """
        gc.collect()
        if self.shares_experts:  # no process has them all
            self._check(reload, how, whole)
        else:
            group.from_main(lambda: self._check(reload, how, whole))

    def _check(self, reload: Callable[[Loaded], Any], how: str, whole: Path | None) -> None:
        self.narrator.stage("Checking what was saved")
        with self.timed("check"):
            saved = Base(model=str(whole), dtype=self.config.base.dtype, attention=self.config.base.attention)
            base = locate(saved, may_score=True) if whole else self.base
            loaded = self._load_weights(base)
            dtype = compute_dtype(loaded.model)
            model = reload(loaded)
            loss = self.reloaded_loss(model)
            after = self.result_type.from_json(self.folder.evaluation()["after"])
            tolerance = SURELY_NOISE[dtype]
            if group.any_of(not abs(loss - after.loss) <= tolerance):
                noise = loss_noise(model, lambda: self.reloaded_loss(model), dtype, loss)
                tolerance = max(tolerance, NOISE_DEVIATIONS * noise)
        if group.any_of(not abs(loss - after.loss) <= tolerance):
            raise ModelError(
                f"{self.folder.path}: loaded afresh, what the run saved gives the held-out loss {loss:.4f}, but the "
                f"trained model had {after.loss:.4f}; rounding explains a difference of {tolerance:.4f} at most",
                hint="do not use it, and please report it with the model's name",
            )
        together = ", each process with its own experts" if self.shares_experts else ""
        self.facts |= {"dtype": str(dtype).removeprefix("torch."), "reloaded_loss": loss}
        self.narrator.say(
            f"Loaded afresh{how}{together}, what was saved gives the loss {loss:.4f} "
            f"(difference {abs(loss - after.loss):.1e})."
        )

    def reloaded_loss(self, model: Any) -> float:
        """The loss of what was saved, loaded afresh; it must be that of the trained model."""
        return float(self.evaluate(model).loss)

    def finish(self) -> None:
        """Close the manifest and show the results."""
        evaluation = self.folder.evaluation()
        before, after = (self.result_type.from_json(evaluation[stage]) for stage in ("before", "after"))
        metrics = self.metrics(before, after) | self.facts
        self.folder.close(FINISHED, metrics=metrics, output_sha256=self.folder.hash_outputs())
        self.narrator.stage("Result")
        self.show(before, after)
        self.narrator.answers(
            [Sample(**sample) for sample in evaluation["answers_before"]],
            [Sample(**sample) for sample in evaluation["answers_after"]],
        )
        self.where()

    def where(self) -> None:
        """Print where the output is and how to use it."""
        self.narrator.where(self.folder)

    def metrics(self, before: Any, after: Any) -> dict[str, Any]:
        """The metrics that come first in the manifest."""
        return {"loss_before": before.loss, "loss_after": after.loss}

    def show(self, before: Any, after: Any) -> None:
        """Print the results before and after training as a table."""
        self.narrator.before_and_after(before, after, are_held_out=bool(self.data.held_out))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Record in the manifest how many seconds a stage took, summed over all resumptions of the run."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.is_main:
                seconds = self.folder.manifest().get("seconds", {})
                seconds = {**seconds, stage: round(seconds.get(stage, 0) + time.perf_counter() - start, 3)}
                self.folder.update(seconds=seconds)


def _new_adapter_groups(config: TuneRun) -> tuple[Group, ...]:
    """The groups that a new adapter is to reach; none where there is no adapter, or another run's is trained on."""
    if isinstance(config, LoraRun):
        return config.adapter.groups
    if isinstance(config, AlignRun) and config.method != "full" and config.start.run is None:
        return config.adapter.groups
    return ()
