"""What every way of training shares: from a config to a base and its data, and from a trained model to a checked run.

A method's file tells its story over a Session: load, choose what is trained, look, fit, save, look again, check.
"""

from __future__ import annotations

import gc
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from rich.console import Console
from transformers import PrinterCallback, TrainerCallback, set_seed

from dsr1_tune.atomic import is_disk_full
from dsr1_tune.config import AlignRun, Base, TuneRun
from dsr1_tune.data.prepare import prepare, write
from dsr1_tune.data.prepared import Prepared
from dsr1_tune.data.record import Record, Row
from dsr1_tune.errors import ModelError, RunError, TuneError
from dsr1_tune.models import embedded
from dsr1_tune.models.context import check_length
from dsr1_tune.models.load import Loaded, Located, load_located, locate, pick_device
from dsr1_tune.models.trained.attach import was_quantized
from dsr1_tune.models.trained.lora import audit
from dsr1_tune.models.trained.start import with_start
from dsr1_tune.models.weights.stored_format import is_nf4, prequantized_kind
from dsr1_tune.moe.quantized_experts import audit_bits, memory_of
from dsr1_tune.runs.console import Narrator, quiet_libraries
from dsr1_tune.runs.data import RunData, encode_and_split, training_set
from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.distributed.unshard import number_formats, unshard
from dsr1_tune.runs.environment import machine, package_versions
from dsr1_tune.runs.evaluate import HeldOut, Sample, held_out_loss, sample_answers
from dsr1_tune.runs.folder import FAILED, FINISHED, INTERRUPTED, RUNNING, RunFolder, hash_files, step_of
from dsr1_tune.runs.report.page import write_report
from dsr1_tune.runs.trainer.arguments import to_arguments
from dsr1_tune.runs.trainer.callbacks import GracefulStop, GradientCheck, ProgressBar, TrainLog, WholeCheckpoints
from dsr1_tune.runs.trainer.optimizers import check_optimizer
from dsr1_tune.runs.trainer.packing_check import use_packing
from dsr1_tune.runs.trainer.trainer import Resumable, ResumableTrainer
from dsr1_tune.runs.watch.rollback import STOPPED, RollBack, StoppedByAlarm, roll_back, set_suspects_aside
from dsr1_tune.runs.watch.trackers import check_trackers, open_trackers
from dsr1_tune.runs.watch.watcher import Watcher, noting_routing

# In 16 bits plain PEFT rounds the sum of weight and update, which the grouped products never form.
RELOAD_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-2, torch.float16: 1e-2}

Run = TypeVar("Run", bound=TuneRun)


@contextmanager
def open_session(
    config: Run,
    command: str,
    resume: Path | None = None,
    console: Console | None = None,
    quantized: bool = False,
    kind: type[Session[Any]] | None = None,
) -> Iterator[Any]:
    """Everything before weights are loaded; at the end, however it comes, the manifest says how the run stands.

    `quantized` loads the base with its experts and linear layers in 4 bits; `kind` is the session's class, where rows
    are something else than answers to learn. Raises TuneError for everything the user
    can mend, and KeyboardInterrupt after a Ctrl-C, when a checkpoint has been saved.
    """
    quiet_libraries()
    group.join(config.parallel)
    narrator = Narrator(console or Console(), is_heard=group.is_main())
    session_kind: type[Any] = kind or Session
    config = with_start(config)
    folder, config, hashes = group.from_main(lambda: _open_folder(config, command, resume))
    folder = replace(folder, is_written_here=group.is_main())
    config = group.as_launched(config, bool(resume), narrator.say)
    # The config of a run that goes on, not the one given, says how its base is held.
    quantized = quantized or (isinstance(config, AlignRun) and config.method == "qlora")
    check_optimizer(config.schedule, pick_device())
    check_trackers(config.watch)
    # Before the base, which may first have to be built: it is what most often needs mending.
    prepared = group.from_main(lambda: prepare(config.data, session_kind.learns))
    starts = group.from_main(lambda: _start_hashes(config))
    if resume:
        group.from_main(lambda: folder.check_start(starts))
    elif isinstance(config, AlignRun) and config.start.run and was_quantized(config.start.run) and not quantized:
        narrator.say(
            f"{config.start.run}: was trained over a base in 4 bits, which is held in 16 or 32 here; --method qlora "
            "holds it as it was."
        )
    if config.base.model is None:
        narrator.say(f"No --model given: this is {embedded.DESCRIPTION}.")
    base = group.main_first(lambda: locate(config.base, narrator.say, quantized=quantized))
    stored_as: Any = getattr(base.config, "quantization_config", None)
    if prequantized_kind(stored_as) == "int8":
        raise ModelError(f"{base.name}: is stored in 8 bits, for use only", hint="train its 16-bit original")
    if not quantized and (is_nf4(stored_as) or prequantized_kind(stored_as)):
        raise ModelError(f"{base.name}: is stored in 4 bits", hint=f"train it with qlora instead of {command}")
    if resume:
        group.from_main(lambda: folder.check_base(base.name, base.revision))
    data = group.from_main(lambda: session_kind.encode(prepared, base.tokenizer, config))
    check_length(base.config, data.longest + session_kind.num_further(config), base.name)
    if not resume:
        folder.begin(_pinned(config, base), command)
    session = session_kind(config, command, folder, narrator, base, data, quantized)
    with _accounted(session):
        folder.update(
            status=RUNNING,
            ended=None,
            error=None,
            data_sha256=hashes,
            start_sha256=starts or None,
            base={"name": base.name, "revision": base.revision, "folder": str(base.folder.absolute())},
            versions=package_versions(),
            machine=machine(),
            seed=config.schedule.seed,
            processes=group.world_size(),
            global_batch=group.global_batch(config),
        )
        narrator.stage("Data")
        narrator.data(data.prepared, len(data.train), len(data.held_out))
        for remark in data.remarks:
            narrator.say(remark)
        if session.is_main:
            write(data.prepared, folder.data, data.held_out_records)
        yield session
        if session.is_main:
            session.finish()
    group.leave()


def _open_folder(config: Any, command: str, resume: Path | None) -> tuple[RunFolder, Any, dict[str, str]]:
    """The run's folder, its config and its data files' hashes: a new one's, or those that it began with."""
    if not resume:
        return RunFolder.vacant(config, command), config, hash_files(config.data.all_files)
    folder = RunFolder.reopen(resume, command)
    config = folder.config(type(config))
    hashes = hash_files(config.data.all_files)
    folder.check_data(hashes)
    return folder, config, hashes


def _start_hashes(config: TuneRun) -> dict[str, str]:
    """Of the adapter that an alignment begins with, and so of its reference."""
    if not isinstance(config, AlignRun) or config.start.run is None:
        return {}
    return hash_files((config.start.run / "adapter_model.safetensors",))


@dataclass
class Session(Generic[Run]):
    """One run under way: what is fixed, and what it has come to so far (`facts`, for the manifest).

    Alignment derives its own kinds: what rows it `learns` from, how they are encoded, what is measured before and
    after, and which trainer fits.
    """

    learns: ClassVar[type[Row]] = Record
    judges_loss: ClassVar[bool] = True
    """Whether the training loss tells by its size how the run goes."""

    config: Run
    command: str
    folder: RunFolder
    narrator: Narrator
    base: Located
    data: RunData
    quantized: bool
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def num_further(cls, config: Any) -> int:
        """Tokens that the model itself may write behind what is encoded."""
        return 0

    @classmethod
    def encode(cls, prepared: Prepared, tokenizer: Any, config: Any) -> RunData:
        """The prepared rows as the model sees them, split into those to train on and those held out."""
        return encode_and_split(prepared, tokenizer, config)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one, of several, that writes and speaks."""
        return self.folder.is_written_here

    def load(self) -> Loaded:
        """The base, ready for training, everything random seeded."""
        self.narrator.stage("Model")
        with self.timed("load"):
            loaded = load_located(self.base, self.config.base.dtype, for_training=True, quantized=self.quantized)
        set_seed(self.config.schedule.seed)
        return loaded

    def audit(self, model: Any) -> None:
        """Show what is trained and what is not."""
        coverage = audit(model)
        self.narrator.coverage(coverage)
        self.facts["coverage"] = [asdict(line) for line in coverage]

    def audit_bits(self, model: Any) -> None:
        """Show what is held in 4 bits. Raises ModelError if experts are not."""
        bits = audit_bits(model)
        self.narrator.bits(bits, memory_of(model))
        self.facts["bits"] = [asdict(line) | {"bits": round(line.bits, 3)} for line in bits]
        self.facts["weights_bytes"] = memory_of(model)

    def evaluate_before(self, model: Any) -> None:
        """Held-out loss and answers before training; a resumed run keeps those from when it began."""
        self.narrator.stage("Before training")
        earlier = group.from_main(self.folder.evaluation)
        if "before" in earlier:
            self.narrator.say(f"{self.measured(earlier['before'])}, as measured when the run began")
            return
        with self.timed("evaluate_before"):
            before, answers = self._look(model, "before")
        self.folder.write_evaluation(
            on=self.data.probe_name, before=before.as_json(), answers_before=[asdict(s) for s in answers]
        )

    def evaluate_after(self, model: Any) -> None:
        """The same after training. Raises ModelError if the loss is not a number."""
        self.narrator.stage("After training")
        with self.timed("evaluate_after"):
            after, answers = self._look(model, "after")
        self.folder.write_evaluation(after=after.as_json(), answers_after=[asdict(s) for s in answers])
        if not math.isfinite(after.loss):
            raise ModelError(
                "the trained model's held-out loss is not a number",
                hint=f"lower schedule.learning_rate; {self.folder.log_file} shows where the loss went wrong",
            )

    def _look(self, model: Any, stage: str) -> tuple[Any, list[Sample]]:
        """What is measured on the held-out rows and the experts that it used, and answers to a few of them."""
        with noting_routing(model, self.folder, stage):
            held_out = self.measure(model)
        self.narrator.say(f"{held_out} on {self.data.probe_name}")
        asked = self.data.asked(self.config.samples)
        with self.narrator.counting("answering", len(asked)) as advance:
            answers = sample_answers(model, self.base.tokenizer, asked, self.config.sample_tokens, advance)
        return held_out, answers

    def measure(self, model: Any) -> Any:
        """What is told of the model before and after: has a `loss`, `as_json()` and, for people, a text."""
        with self.narrator.counting("evaluating", len(self.data.eval_subset)) as advance:
            return held_out_loss(model, self.data.eval_subset, self.base.tokenizer.pad_token_id, advance)

    def measured(self, told: dict[str, Any]) -> Any:
        """What `measure` gave, from its JSON."""
        return HeldOut.from_json(told)

    def fit(self, model: Any) -> None:
        """Run TRL's trainer, from the latest checkpoint where there is one."""
        self.narrator.stage("Training")
        formats = number_formats(model)
        with self.timed("train"):
            try:
                self.facts["num_steps"] = self._fit(model)
            except RollBack as fault:
                unshard(model, formats)
                self.narrator.say(roll_back(model, self.folder, fault))
                self.facts["num_steps"] = self._fit(model)
            unshard(model, formats)

    def save(self, write: Callable[[], None]) -> None:
        """Write what came of the training; of several processes one does, the others wait."""
        group.from_main(write)

    def _fit(self, model: Any) -> int:
        stop = GracefulStop(self.narrator.say)
        bar = ProgressBar(self.narrator.console)
        set_suspects_aside(self.folder)
        checkpoint = group.from_main(self.folder.latest_checkpoint)
        watcher = Watcher(model, self.folder, self.config.watch, self.narrator.say, self.watched_loss, self.judges_loss)
        trackers = open_trackers(self.config, self.folder, first_step=step_of(checkpoint) + 1 if checkpoint else 0)
        trainer = self.trainer(
            model,
            callbacks=[
                GradientCheck(),
                watcher,
                stop,
                WholeCheckpoints(self.folder),
                bar,
                *([TrainLog(self.folder, watcher.beside)] if self.is_main else []),
                *trackers,
            ],
        )
        trainer.before_clipping = watcher.before_clipping
        trainer.remove_callback(PrinterCallback)
        if checkpoint:
            self.narrator.say(f"going on from {checkpoint}")
        try:
            with within_memory(
                "lower schedule.batch_size (and raise schedule.gradient_accumulation_steps), schedule.max_tokens or "
                "adapter.rank"
            ):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            bar.close()
            stop.give_back()
            watcher.close()
            trainer.close()
            for tracker in trackers:
                tracker.close()
        watcher.raise_if_stopped()
        if stop.was_asked:
            raise KeyboardInterrupt
        num_steps = int(trainer.state.global_step)
        trainer.accelerator.free_memory()
        # accelerate leaves its mixed precision around forward; the model is looked at after as it was before.
        for name in ("forward", "_original_forward"):
            vars(model).pop(name, None)
        return num_steps

    def watched_loss(self, model: Any) -> float:
        """What is measured every watch.eval_steps, and must not rise."""
        return float(self.measure(model).loss)

    def trainer(self, model: Any, callbacks: list[TrainerCallback]) -> Resumable:
        """TRL's trainer of what this session learns, made resumable."""
        learned = training_set(self.data, self.config, self.base.tokenizer.pad_token_id)
        if learned.collator:
            self.narrator.say(learned.remark)
            use_packing(model, self.base.tokenizer.pad_token_id)
        return ResumableTrainer(
            model=model,
            config=self.config,
            quantized=self.quantized,
            args=to_arguments(self.config, self.folder, compute_dtype(model)),
            train_dataset=learned.rows,
            data_collator=learned.collator,
            processing_class=self.base.tokenizer,
            callbacks=callbacks,
        )

    def check(self, reload: Callable[[Loaded], Any], how: str = "", whole: Path | None = None) -> None:
        """Load base and output afresh; raises ModelError unless the loss is that of the trained model.

        `reload` puts what the run saved onto the fresh base, `how` says by what means; a `whole` model that was saved
        is loaded in place of the base. Call it when the trained model is gone: only then is there room for another.
        """
        gc.collect()
        group.from_main(lambda: self._check(reload, how, whole))

    def _check(self, reload: Callable[[Loaded], Any], how: str, whole: Path | None) -> None:
        self.narrator.stage("Checking what was saved")
        with self.timed("check"):
            saved = Base(model=str(whole), dtype=self.config.base.dtype)
            base = locate(saved, may_score=True) if whole else self.base
            loaded = load_located(base, self.config.base.dtype, quantized=self.quantized)
            tolerance = RELOAD_TOLERANCE[compute_dtype(loaded.model)]
            loss = self.reloaded_loss(reload(loaded))
        after = self.measured(self.folder.evaluation()["after"])
        if not abs(loss - after.loss) <= tolerance:
            raise ModelError(
                f"{self.folder.path}: loaded afresh, what the run saved gives the held-out loss {loss:.4f}, "
                f"but the trained model had {after.loss:.4f}",
                hint="do not use it, and please report it with the model's name",
            )
        self.facts["reloaded_loss"] = loss
        self.narrator.say(
            f"Loaded afresh{how}, what was saved gives the loss {loss:.4f} (difference {abs(loss - after.loss):.1e})."
        )

    def reloaded_loss(self, model: Any) -> float:
        """What must be the loss of the trained model again; `model` is what was saved, loaded afresh."""
        return float(self.measure(model).loss)

    def finish(self) -> None:
        """Close the manifest and show what came of it."""
        told = self.folder.evaluation()
        before, after = self.measured(told["before"]), self.measured(told["after"])
        metrics = self.metrics(before, after) | self.facts
        self.folder.close(FINISHED, metrics=metrics, output_sha256=self.folder.hash_outputs())
        self.narrator.stage("Result")
        self.show(before, after)
        self.narrator.answers(
            [Sample(**sample) for sample in told["answers_before"]],
            [Sample(**sample) for sample in told["answers_after"]],
        )
        self.where()

    def where(self) -> None:
        """What to do with the run."""
        self.narrator.where(self.folder)

    def metrics(self, before: Any, after: Any) -> dict[str, Any]:
        """What the manifest tells first."""
        return {"loss_before": before.loss, "loss_after": after.loss}

    def show(self, before: Any, after: Any) -> None:
        """What came of it, as a table."""
        self.narrator.before_and_after(before, after, are_held_out=bool(self.data.held_out))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note in the manifest how many seconds a stage took, over all the times that the run went on."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.is_main:
                seconds = self.folder.manifest().get("seconds", {})
                seconds = {**seconds, stage: round(seconds.get(stage, 0) + time.perf_counter() - start, 3)}
                self.folder.update(seconds=seconds)


@contextmanager
def within_memory(hint: str) -> Iterator[None]:
    """Around training steps: where the GPU's memory is not enough for one, what to do is said."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError("the GPU's memory is not enough for a training step", hint=hint) from error


def compute_dtype(model: Any) -> torch.dtype:
    """The number format of what is not quantized, in which the products are computed."""
    return next(weight.dtype for weight in model.get_input_embeddings().parameters())


def _pinned(config: Run, base: Located) -> Run:
    """The config with the commit that a Hub id stood for: its branch may have moved on when the run is resumed."""
    if base.repo_id is None:
        return config
    return config.model_copy(update={"base": config.base.model_copy(update={"revision": base.revision})})


@contextmanager
def _accounted(session: Session[Any]) -> Iterator[None]:
    """However the run ends, its manifest says so; an interrupted one tells how to go on."""
    folder, go_on = session.folder, f"dsr1-tune {session.command} --resume {session.folder.path}"
    try:
        yield
    except KeyboardInterrupt:
        folder.close(INTERRUPTED, metrics=session.facts)
        session.narrator.say(f"\nStopped. Go on with: {go_on}")
        raise
    except StoppedByAlarm as error:
        folder.close(STOPPED, error=str(error.alarm), metrics=session.facts)
        raise
    except Exception as error:
        if isinstance(error, TuneError) and session.is_main and not folder.holds_work():
            shutil.rmtree(folder.path, ignore_errors=True)  # refused: the same --out is free for the next try
            raise
        with suppress(OSError):  # a full disk must not hide what went wrong
            folder.close(FAILED, error=f"{type(error).__name__}: {error}", metrics=session.facts)
        if is_disk_full(error):
            raise RunError(
                f"{folder.path}: no room is left on its disk", hint=f"free some space and go on with: {go_on}"
            ) from error
        raise
    finally:
        _report(session)


def _report(session: Session[Any]) -> None:
    """However far the run has come; that it cannot be shown must not make a good run a bad one."""
    if not session.is_main or not session.folder.manifest_file.exists():
        return
    try:
        file = write_report(session.folder, session.config.watch.language)
        session.narrator.say(f"All of it on one page: {file}")
    except Exception as error:
        session.narrator.say(f"{session.folder.path}: the report could not be written: {type(error).__name__}: {error}")
