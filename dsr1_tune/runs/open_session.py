"""`open_session`: everything before the weights are loaded, and a manifest that records how the run ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from dsr1_tune.atomic import is_disk_full
from dsr1_tune.config import AlignRun, LoraRun, TuneRun
from dsr1_tune.data.encode.template import check_arguments
from dsr1_tune.data.prepare import prepare
from dsr1_tune.errors import ModelError, RunError, TuneError
from dsr1_tune.models import embedded
from dsr1_tune.models.context import check_length
from dsr1_tune.models.load import Located, locate, pick_device
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.ref import beside, copy_command
from dsr1_tune.models.room import Holding
from dsr1_tune.models.trained.attach import was_quantized
from dsr1_tune.models.trained.start import with_start
from dsr1_tune.models.weights.layout import check_conversions
from dsr1_tune.models.weights.stored_format import StoredFormat
from dsr1_tune.runs.console import Narrator, quiet_libraries
from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.folder import FAILED, INTERRUPTED, RunFolder, hash_files
from dsr1_tune.runs.report.page import write_report
from dsr1_tune.runs.session import Session
from dsr1_tune.runs.trainer.optimizers import check_optimizer
from dsr1_tune.runs.watch.rollback import STOPPED, StoppedByAlarm
from dsr1_tune.runs.watch.trackers import check_trackers

Run = TypeVar("Run", bound=TuneRun)


@contextmanager
def open_session(
    config: Run,
    command: str,
    resume: Path | None = None,
    console: Console | None = None,
    quantized: bool = False,
    kind: type[Session[Any]] = Session,
) -> Iterator[Any]:
    """Do everything that comes before the weights are loaded; the manifest records how the run ends, however it does.

    `quantized` loads the base with its experts and linear layers in 4 bits; `kind` is the session's class, for methods
    that learn from other rows than supervised fine-tuning does. Raises TuneError for everything the user can fix, and
    KeyboardInterrupt after a Ctrl-C, when a checkpoint has been saved.
    """
    quiet_libraries()
    group.join(config.parallel)
    narrator = Narrator(console or Console(), is_heard=group.is_main())
    config = with_start(config)
    with ExitStack() as holding:
        folder, config, hashes = group.from_main(lambda: _take_folder(config, command, resume, holding))
        folder = replace(folder, is_written_here=group.is_main())
        starts = group.from_main(lambda: _hash_start(config))
        if resume:
            group.from_main(lambda: folder.check_start(starts))
        session = _prepare(kind, config, command, folder, narrator, bool(resume), quantized)
        if not resume:
            folder.begin(_pinned(session.config, session.base), command)
        with _recorded(session):
            session.begin(data_sha256=hashes, start_sha256=starts or None)
            yield session
            if session.is_main:
                session.finish()
    group.leave()


def _take_folder(
    config: Any, command: str, resume: Path | None, holding: ExitStack
) -> tuple[RunFolder, Any, dict[str, str]]:
    """The run's folder, its config and its data files' hashes: those of a new run, or those of the resumed one.

    `holding` keeps the folder from other processes until it is closed.
    """
    if not resume:
        return holding.enter_context(RunFolder.new(config, command)), config, hash_files(config.data.all_files)
    folder = holding.enter_context(RunFolder.reopened(resume, command))
    config = folder.config(type(config))
    hashes = hash_files(config.data.all_files)
    folder.check_data(hashes)
    return folder, config, hashes


def _hash_start(config: TuneRun) -> dict[str, str]:
    """Of the adapter that alignment starts from, and with it the reference policy."""
    start = config.start.run if isinstance(config, AlignRun) else None
    return hash_files((start / "adapter_model.safetensors",)) if start else {}


def _prepare(
    kind: type[Session[Any]],
    config: Any,
    command: str,
    folder: RunFolder,
    narrator: Narrator,
    is_resumed: bool,
    quantized: bool,
) -> Session[Any]:
    """A session with its base and its data, before anything is written; raises TuneError for what does not fit."""
    config = group.as_launched(config, is_resumed, narrator.say)
    # A resumed run's own config, not the one given, says how its base is stored in memory.
    quantized = quantized or (isinstance(config, AlignRun) and config.method == "qlora")
    check_optimizer(config.schedule, pick_device())
    check_trackers(config.watch)
    # Before the base, which may first have to be built: the data is what most often needs fixing.
    prepared = group.from_main(lambda: prepare(config.data, kind.learns))
    start = config.start.run if isinstance(config, AlignRun) else None
    if start and not is_resumed and was_quantized(start) and not quantized:
        narrator.say(
            f"{start}: was trained over a base in 4 bits, which is held in 16 or 32 here; --method qlora "
            "holds it as it was."
        )
    base = _locate_base(config, command, quantized, narrator)
    if is_resumed:
        group.from_main(lambda: folder.check_base(base.name, base.revision))
    else:
        check_arguments(base.tokenizer, config.template.kwargs)
    data = group.from_main(lambda: kind.encode(prepared, base.tokenizer, config))
    if is_resumed and folder.encodes_otherwise(data.sha256):
        narrator.say(
            f"warning: {folder.path}: the rows are other tokens or labels now than when the run began, in another "
            "version or with another chat template: from here on it learns otherwise than before"
        )
    check_length(base.config, data.longest + kind.num_further(config), base.name)
    return kind(config, command, folder, narrator, base, data, quantized)


def _locate_base(config: TuneRun, command: str, quantized: bool, narrator: Narrator) -> Located:
    """The base model's folder, config and tokenizer. Raises ModelError where it is stored in a format not trained."""
    if config.base.model is None:
        narrator.say(f"No --model given: this is {embedded.DESCRIPTION}.")
    has_qlora = isinstance(config, LoraRun)
    in_4_bits = "train it with qlora" if has_qlora else "--method qlora" if isinstance(config, AlignRun) else ""
    holding = Holding(quantized, config.parallel, config.may_share_experts, in_4_bits)
    base = group.main_first(lambda: locate(config.base, narrator.say, quantized=quantized, holding=holding))
    stored = StoredFormat.of(base.config)
    if stored is StoredFormat.BNB_INT8:
        raise ModelError(
            f"{base.name}: is stored in 8 bits, for use only",
            hint=f"train its 16-bit original, or a 16-bit copy: {copy_command(base.name)}",
        )
    if not quantized and stored.is_4bit:
        raise ModelError(
            f"{base.name}: is stored in 4 bits",
            hint=f"train it with qlora instead of {command}, or train a 16-bit copy: {copy_command(base.name)}",
        )
    if stored not in (StoredFormat.PLAIN, StoredFormat.BLOCK_FP8):
        narrator.say(
            f"{base.name}: is stored in {stored.value}: what is trained over it can be used beside it, but not merged "
            f"into it, only into a 16-bit copy of it: {copy_command(base.name)}, then dsr1-tune merge RUN --base "
            f"{beside(base.name, 'bf16')}."
        )
    model = meta_model(base.config)
    try:
        check_conversions(model)
    except ModelError as error:
        narrator.say(f"{error.message}; {error.hint}.")
    return base


def _pinned(config: Run, base: Located) -> Run:
    """The config with the commit of a Hub id: its branch may have moved on when the run is resumed."""
    if base.repo_id is None:
        return config
    return config.model_copy(update={"base": config.base.model_copy(update={"revision": base.revision})})


@contextmanager
def _recorded(session: Session[Any]) -> Iterator[None]:
    """Record in the manifest how the run ends, and print how to resume an interrupted one."""
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
            folder.clear()  # refused: the same --out is free for the next try
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
    """Write report.html, however far the run has come; a report that fails must not fail a good run."""
    if not session.is_main or not session.folder.manifest_file.exists():
        return
    try:
        file = write_report(session.folder, session.config.watch.language)
        session.narrator.say(f"All of it on one page: {file}")
    except Exception as error:
        session.narrator.say(f"{session.folder.path}: the report could not be written: {type(error).__name__}: {error}")
