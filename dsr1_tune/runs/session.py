"""What every way of training shares: from a config to a base and its data, and from a trained model to a checked run.

A method's file tells its story over a Session: load, choose what is trained, look, fit, save, look again, check.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from datasets import Dataset
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter
from transformers import PrinterCallback, set_seed
from transformers.integrations import TensorBoardCallback

from dsr1_tune.config import TuneRun
from dsr1_tune.data.encode import Example, encode_all
from dsr1_tune.data.pipeline import Prepared, prepare, repeat, split, write
from dsr1_tune.errors import DataError, ModelError, RunError
from dsr1_tune.models import embedded
from dsr1_tune.models.adapters import audit
from dsr1_tune.models.load import Loaded, Located, load_located, locate
from dsr1_tune.moe.experts4bit import audit_bits, memory_of
from dsr1_tune.runs.arguments import to_arguments
from dsr1_tune.runs.callbacks import GracefulStop, GradientCheck, ProgressBar, TrainLog, WholeCheckpoints
from dsr1_tune.runs.environment import package_versions
from dsr1_tune.runs.evaluate import HeldOut, Sample, held_out_loss, sample_answers
from dsr1_tune.runs.folder import FAILED, FINISHED, INTERRUPTED, RUNNING, RunFolder, hash_files, step_of
from dsr1_tune.runs.narrator import Narrator, quiet_libraries
from dsr1_tune.runs.trainer import ResumableTrainer
from dsr1_tune.whole import is_disk_full

# In 16 bits plain PEFT rounds the sum of weight and update, which the grouped products never form.
RELOAD_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-2, torch.float16: 1e-2}

Run = TypeVar("Run", bound=TuneRun)


@contextmanager
def open_session(
    config: Run, command: str, resume: Path | None = None, console: Console | None = None, quantised: bool = False
) -> Iterator[Session[Run]]:
    """Everything before weights are loaded; at the end, however it comes, the manifest says how the run stands.

    `quantised` loads the base with its experts and linear layers in 4 bits. Raises TuneError for everything the user
    can mend, and KeyboardInterrupt after a Ctrl-C, when a checkpoint has been saved.
    """
    quiet_libraries()
    narrator = Narrator(console or Console())
    folder = RunFolder.reopen(resume, command) if resume else RunFolder.vacant(config, command)
    config = folder.config(type(config)) if resume else config
    hashes = hash_files(config.data.files)
    if resume:
        folder.check_data(hashes)
    # Before the base, which may first have to be built: it is what most often needs mending.
    prepared = prepare(config.data)
    if config.base.model is None:
        narrator.say(f"No --model given: this is {embedded.DESCRIPTION}.")
    base = locate(config.base, narrator.say, quantised=quantised)
    if resume:
        folder.check_base(base.name, base.revision)
    data = _encode_and_split(prepared, base.tokenizer, config)
    if not resume:
        folder.begin(_pinned(config, base), command)
    session = Session(config, command, folder, narrator, base, data, quantised)
    with _accounted(session):
        folder.update(
            status=RUNNING,
            ended=None,
            error=None,
            data_sha256=hashes,
            base={"name": base.name, "revision": base.revision, "folder": str(base.folder.absolute())},
            versions=package_versions(),
            seed=config.schedule.seed,
        )
        narrator.stage("Data")
        narrator.data(data.prepared, len(data.train), len(data.held_out))
        write(data.prepared, folder.data, [example.record for example in data.held_out])
        yield session
        session.finish()


@dataclass
class Session(Generic[Run]):
    """One run under way: what is fixed, and what it has come to so far (`facts`, for the manifest)."""

    config: Run
    command: str
    folder: RunFolder
    narrator: Narrator
    base: Located
    data: RunData
    quantised: bool
    facts: dict[str, Any] = field(default_factory=dict)

    def load(self) -> Loaded:
        """The base, ready for training, everything random seeded."""
        self.narrator.stage("Model")
        with self.timed("load"):
            loaded = load_located(self.base, self.config.base.dtype, for_training=True, quantised=self.quantised)
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

    def look_before(self, model: Any) -> None:
        """Held-out loss and answers before training; a resumed run keeps those from when it began."""
        self.narrator.stage("Before training")
        earlier = self.folder.evaluation()
        if "before" in earlier:
            before = HeldOut.from_json(earlier["before"])
            self.narrator.say(f"loss {before.loss:.4f}, as measured when the run began")
            return
        with self.timed("evaluate_before"):
            before, answers = self._look(model)
        self.folder.write_evaluation(
            on=self.data.probe_name, before=before.as_json(), answers_before=[asdict(s) for s in answers]
        )

    def look_after(self, model: Any) -> None:
        """The same after training. Raises ModelError if the loss is not a number."""
        self.narrator.stage("After training")
        with self.timed("evaluate_after"):
            after, answers = self._look(model)
        self.folder.write_evaluation(after=after.as_json(), answers_after=[asdict(s) for s in answers])
        if not math.isfinite(after.loss):
            raise ModelError(
                "the trained model's held-out loss is not a number",
                hint=f"lower schedule.learning_rate; {self.folder.log_file} shows where the loss went wrong",
            )

    def _look(self, model: Any) -> tuple[HeldOut, list[Sample]]:
        """Held-out loss, and answers to a few held-out questions."""
        held_out = self._loss_of(model)
        self.narrator.say(f"loss {held_out.loss:.4f} (perplexity {held_out.perplexity:.2f}) on {self.data.probe_name}")
        asked = [example.record for example in self.data.probe[: self.config.samples]]
        with self.narrator.counting("answering", len(asked)) as advance:
            answers = sample_answers(model, self.base.tokenizer, asked, self.config.sample_tokens, advance)
        return held_out, answers

    def _loss_of(self, model: Any) -> HeldOut:
        with self.narrator.counting("evaluating", len(self.data.probe)) as advance:
            return held_out_loss(model, self.data.probe, self.base.tokenizer.pad_token_id, advance)

    def fit(self, model: Any) -> None:
        """Run TRL's SFTTrainer, from the latest checkpoint where there is one."""
        self.narrator.stage("Training")
        with self.timed("train"):
            self.facts["num_steps"] = self._fit(model)

    def _fit(self, model: Any) -> int:
        stop = GracefulStop(self.narrator.say)
        bar = ProgressBar(self.narrator.console)
        checkpoint = self.folder.latest_checkpoint()
        # TensorBoard forgets the steps that are done again.
        writer = SummaryWriter(str(self.folder.tensorboard), purge_step=step_of(checkpoint) + 1 if checkpoint else 0)
        trainer = ResumableTrainer(
            model=model,
            args=to_arguments(self.config, self.folder, _compute_dtype(model)),
            train_dataset=_as_dataset(self.data.train),
            processing_class=self.base.tokenizer,
            callbacks=[
                GradientCheck(),
                TrainLog(self.folder),
                stop,
                WholeCheckpoints(self.folder),
                bar,
                TensorBoardCallback(writer),
            ],
        )
        trainer.remove_callback(PrinterCallback)
        if checkpoint:
            self.narrator.say(f"going on from {checkpoint}")
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                "the GPU's memory is not enough for a training step",
                hint="lower schedule.batch_size (and raise schedule.accumulate), schedule.max_tokens or adapter.rank",
            ) from error
        finally:
            bar.close()
            stop.give_back()
            writer.close()
        if stop.was_asked:
            raise KeyboardInterrupt
        num_steps = int(trainer.state.global_step)
        trainer.accelerator.free_memory()
        return num_steps

    def check(self, reload: Callable[[Loaded], Any], how: str = "") -> None:
        """Load base and output afresh; raises ModelError unless the loss is that of the trained model.

        `reload` puts what the run saved onto the fresh base, `how` says by what means. Call it when the trained model
        is gone: only then is there room for another.
        """
        gc.collect()
        self.narrator.stage("Checking what was saved")
        with self.timed("check"):
            loaded = load_located(self.base, self.config.base.dtype, quantised=self.quantised)
            tolerance = RELOAD_TOLERANCE[_compute_dtype(loaded.model)]
            loss = self._loss_of(reload(loaded)).loss
        after = HeldOut.from_json(self.folder.evaluation()["after"])
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

    def finish(self) -> None:
        """Close the manifest and show what came of it."""
        told = self.folder.evaluation()
        before, after = HeldOut.from_json(told["before"]), HeldOut.from_json(told["after"])
        self.folder.close(FINISHED, metrics={"loss_before": before.loss, "loss_after": after.loss} | self.facts)
        self.narrator.stage("Result")
        self.narrator.before_and_after(before, after, are_held_out=bool(self.data.held_out))
        self.narrator.answers(
            [Sample(**sample) for sample in told["answers_before"]],
            [Sample(**sample) for sample in told["answers_after"]],
        )
        self.narrator.where(self.folder)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note in the manifest how many seconds a stage took, over all the times that the run went on."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = self.folder.manifest().get("seconds", {})
            seconds = {**seconds, stage: round(seconds.get(stage, 0) + time.perf_counter() - start, 3)}
            self.folder.update(seconds=seconds)


def _compute_dtype(model: Any) -> torch.dtype:
    """The number format of what is not quantised, in which the products are computed."""
    return next(weight.dtype for weight in model.get_input_embeddings().parameters())


def _as_dataset(train: Sequence[Example]) -> Dataset:
    return Dataset.from_dict({"input_ids": [e.input_ids for e in train], "labels": [e.labels for e in train]})


@dataclass(frozen=True)
class RunData:
    """The cleaned and encoded records, split."""

    prepared: Prepared
    train: list[Example]
    held_out: list[Example]

    @property
    def probe(self) -> list[Example]:
        """What the trained model is checked on: the held-out records, or a few others where none are held out."""
        return self.held_out or self.train[:8]

    @property
    def probe_name(self) -> str:
        """What the probe is, for people."""
        if self.held_out:
            return f"{len(self.held_out):,} held-out records"
        return f"{len(self.probe):,} of the training records, as none are held out"


def _encode_and_split(prepared: Prepared, tokenizer: Any, config: TuneRun) -> RunData:
    """What is to be trained on, and what is held out. Raises DataError if nothing is left."""
    examples, drops = encode_all(prepared.records, tokenizer, config.schedule.max_tokens)
    if not examples:
        raise DataError(
            f"none of the {len(drops)} records can be trained on; the first: {drops[0].place}: {drops[0].detail}",
            hint=drops[0].fix,
        )
    prepared = prepared.with_drops(drops)
    train, held_out = split(prepared.records, config.data.eval_share, config.schedule.seed)
    by_place = {example.record.place: example for example in examples}
    train = repeat(train, config.data.weights, config.schedule.seed)
    return RunData(prepared, [by_place[r.place] for r in train], [by_place[r.place] for r in held_out])


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
        folder.close(INTERRUPTED)
        session.narrator.say(f"\nStopped. Go on with: {go_on}")
        raise
    except Exception as error:
        with suppress(OSError):  # a full disk must not hide what went wrong
            folder.close(FAILED, error=f"{type(error).__name__}: {error}")
        if is_disk_full(error):
            raise RunError(
                f"{folder.path}: no room is left on its disk", hint=f"free some space and go on with: {go_on}"
            ) from error
        raise
