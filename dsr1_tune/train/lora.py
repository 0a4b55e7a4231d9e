"""`lora`: train low-rank updates on attention, dense layers, shared and routed experts of a frozen base."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter
from transformers import PrinterCallback, set_seed
from transformers.integrations import TensorBoardCallback

from dsr1_tune.config import LoraRun, Schedule
from dsr1_tune.data.encode import Example, encode_all
from dsr1_tune.data.pipeline import Prepared, prepare, repeat, split, write
from dsr1_tune.errors import DataError, ModelError, RunError
from dsr1_tune.models import embedded
from dsr1_tune.models.adapters import PartCoverage, add_lora, audit, load_plain_adapter
from dsr1_tune.models.load import Loaded, Located, load_located, locate
from dsr1_tune.runs.arguments import to_arguments
from dsr1_tune.runs.callbacks import GracefulStop, GradientCheck, ProgressBar, TrainLog, WholeCheckpoints
from dsr1_tune.runs.environment import package_versions
from dsr1_tune.runs.evaluate import HeldOut, Sample, held_out_loss, sample_answers
from dsr1_tune.runs.folder import FAILED, FINISHED, INTERRUPTED, RUNNING, RunFolder, hash_files, step_of
from dsr1_tune.runs.narrator import Narrator, quiet_libraries
from dsr1_tune.runs.trainer import ResumableTrainer
from dsr1_tune.whole import is_disk_full, whole_folder

# In 16 bits plain PEFT rounds the sum of weight and update, which the grouped products never form.
RELOAD_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def run(config: LoraRun, resume: Path | None = None, console: Console | None = None) -> RunFolder:
    """Train LoRA as `config` says, or go on with the run in `resume`; returns the folder with adapter and reports.

    Raises TuneError for everything the user can mend, before weights are loaded where that is possible, and
    KeyboardInterrupt after a Ctrl-C, when a checkpoint has been saved.
    """
    quiet_libraries()
    narrator = Narrator(console or Console())
    folder = RunFolder.reopen(resume) if resume else RunFolder.vacant(config, "lora")
    config = folder.config() if resume else config
    hashes = hash_files(config.data.files)
    if resume:
        folder.check_data(hashes)
    # Before the base, which may first have to be built: it is what most often needs mending.
    prepared = prepare(config.data)
    if config.base.model is None:
        narrator.say(f"No --model given: this is {embedded.DESCRIPTION}.")
    base = locate(config.base, narrator.say)
    if resume:
        folder.check_base(base.name, base.revision)
    data = _encode_and_split(prepared, base.tokenizer, config)
    if not resume:
        folder.begin(_pinned(config, base), "lora")
    with _accounted(folder, narrator):
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
        result = _train(config, base, data, folder, narrator)
        # Only now, with the trained model gone, is there room for a second copy of the base.
        gc.collect()
        narrator.stage("Checking the saved adapter")
        with _timed(folder, "check_adapter"):
            reloaded = _check_adapter(config, base, data, folder, result, narrator)
        folder.close(FINISHED, metrics=result.as_json() | {"reloaded_loss": reloaded})
    narrator.stage("Result")
    narrator.before_and_after(result.before, result.after, are_held_out=bool(data.held_out))
    narrator.answers(result.answers_before, result.answers_after)
    gap = abs(reloaded - result.after.loss)
    narrator.say(f"\nLoaded afresh with plain PEFT, the adapter gives the loss {reloaded:.4f} (difference {gap:.1e}).")
    narrator.where(folder.path)
    return folder


def _pinned(config: LoraRun, base: Located) -> LoraRun:
    """The config with the commit that a Hub id stood for: its branch may have moved on when the run is resumed."""
    if base.repo_id is None:
        return config
    return config.model_copy(update={"base": config.base.model_copy(update={"revision": base.revision})})


@dataclass(frozen=True)
class _Data:
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


def _encode_and_split(prepared: Prepared, tokenizer: Any, config: LoraRun) -> _Data:
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
    return _Data(prepared, [by_place[r.place] for r in train], [by_place[r.place] for r in held_out])


@dataclass(frozen=True)
class _Result:
    """What the run came to."""

    before: HeldOut
    after: HeldOut
    answers_before: list[Sample]
    answers_after: list[Sample]
    coverage: list[PartCoverage]
    num_steps: int

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "loss_before": self.before.loss,
            "loss_after": self.after.loss,
            "num_steps": self.num_steps,
            "coverage": [asdict(line) for line in self.coverage],
        }


def _train(config: LoraRun, base: Located, data: _Data, folder: RunFolder, narrator: Narrator) -> _Result:
    """Load, look, train, save, look again."""
    narrator.stage("Model")
    with _timed(folder, "load"):
        loaded = load_located(base, config.base.dtype, for_training=True)
    set_seed(config.schedule.seed)
    model = add_lora(loaded.model, config.adapter)
    coverage = audit(model)
    narrator.coverage(coverage)

    narrator.stage("Before training")
    earlier = folder.evaluation()
    if "before" in earlier:
        before = HeldOut.from_json(earlier["before"])
        answers_before = [Sample(**sample) for sample in earlier["answers_before"]]
        narrator.say(f"loss {before.loss:.4f}, as measured when the run began")
    else:
        with _timed(folder, "evaluate_before"):
            before, answers_before = _evaluate(model, loaded, data, config, narrator)
        folder.write_evaluation(
            on=data.probe_name, before=before.as_json(), answers_before=[asdict(s) for s in answers_before]
        )

    narrator.stage("Training")
    with _timed(folder, "train"):
        num_steps = _fit(model, loaded, data.train, config.schedule, folder, narrator)
    # By the name that others know it by: the cache folder it was loaded from is this machine's alone.
    model.active_peft_config.base_model_name_or_path = base.name
    model.active_peft_config.revision = base.revision if base.repo_id else None
    with whole_folder(folder.adapter) as part:
        model.save_pretrained(str(part), save_embedding_layers=False)
        loaded.tokenizer.save_pretrained(str(part))

    narrator.stage("After training")
    with _timed(folder, "evaluate_after"):
        after, answers_after = _evaluate(model, loaded, data, config, narrator)
    folder.write_evaluation(after=after.as_json(), answers_after=[asdict(s) for s in answers_after])
    if not math.isfinite(after.loss):
        raise ModelError(
            "the trained model's held-out loss is not a number",
            hint=f"lower schedule.learning_rate; {folder.log_file} shows where the loss went wrong",
        )
    return _Result(before, after, answers_before, answers_after, coverage, num_steps)


def _evaluate(
    model: PeftModel, loaded: Loaded, data: _Data, config: LoraRun, narrator: Narrator
) -> tuple[HeldOut, list[Sample]]:
    """Held-out loss, and answers to a few held-out questions."""
    with narrator.counting("evaluating", len(data.probe)) as advance:
        held_out = held_out_loss(model, data.probe, loaded.tokenizer.pad_token_id, advance)
    narrator.say(f"loss {held_out.loss:.4f} (perplexity {held_out.perplexity:.2f}) on {data.probe_name}")
    asked = [example.record for example in data.probe[: config.samples]]
    with narrator.counting("answering", len(asked)) as advance:
        answers = sample_answers(model, loaded.tokenizer, asked, config.sample_tokens, advance)
    return held_out, answers


def _fit(
    model: PeftModel,
    loaded: Loaded,
    train: Sequence[Example],
    schedule: Schedule,
    folder: RunFolder,
    narrator: Narrator,
) -> int:
    """Run TRL's SFTTrainer, from the latest checkpoint where there is one; returns the number of optimizer steps."""
    stop = GracefulStop(narrator.say)
    bar = ProgressBar(narrator.console)
    checkpoint = folder.latest_checkpoint()
    # TensorBoard forgets the steps that are done again.
    writer = SummaryWriter(str(folder.tensorboard), purge_step=step_of(checkpoint) + 1 if checkpoint else 0)
    trainer = ResumableTrainer(
        model=model,
        args=to_arguments(schedule, folder, loaded.model.dtype),
        train_dataset=Dataset.from_dict(
            {"input_ids": [e.input_ids for e in train], "labels": [e.labels for e in train]}
        ),
        processing_class=loaded.tokenizer,
        callbacks=[
            GradientCheck(),
            TrainLog(folder),
            stop,
            WholeCheckpoints(folder),
            bar,
            TensorBoardCallback(writer),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    if checkpoint:
        narrator.say(f"going on from {checkpoint}")
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


def _check_adapter(
    config: LoraRun, base: Located, data: _Data, folder: RunFolder, result: _Result, narrator: Narrator
) -> float:
    """The loss of base and saved adapter, both loaded afresh, by PEFT alone; raises ModelError if it is another."""
    loaded = load_located(base, config.base.dtype)
    tolerance = RELOAD_TOLERANCE[loaded.model.dtype]
    model = load_plain_adapter(loaded.model, folder.adapter)
    with narrator.counting("evaluating", len(data.probe)) as advance:
        loss = held_out_loss(model, data.probe, loaded.tokenizer.pad_token_id, advance).loss
    if not abs(loss - result.after.loss) <= tolerance:
        raise ModelError(
            f"{folder.adapter}: loaded afresh, the adapter gives the held-out loss {loss:.4f}, "
            f"but the trained model had {result.after.loss:.4f}",
            hint="do not use this adapter, and please report it with the model's name",
        )
    return loss


@contextmanager
def _timed(folder: RunFolder, stage: str) -> Iterator[None]:
    """Note in the manifest how many seconds a stage took, over all the times that the run went on."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds = folder.manifest().get("seconds", {})
        folder.update(seconds={**seconds, stage: round(seconds.get(stage, 0) + time.perf_counter() - start, 3)})


@contextmanager
def _accounted(folder: RunFolder, narrator: Narrator) -> Iterator[None]:
    """However the run ends, its manifest says so; an interrupted one tells how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        folder.close(INTERRUPTED)
        narrator.say(f"\nStopped. Go on with: dsr1-tune lora --resume {folder.path}")
        raise
    except Exception as error:
        with suppress(OSError):  # a full disk must not hide what went wrong
            folder.close(FAILED, error=f"{type(error).__name__}: {error}")
        if is_disk_full(error):
            raise RunError(
                f"{folder.path}: no room is left on its disk",
                hint=f"free some space and go on with: dsr1-tune lora --resume {folder.path}",
            ) from error
        raise
