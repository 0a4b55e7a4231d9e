"""W4A16 by GPTQ (arXiv 2210.17323): what is rounded is chosen so that the layers' outputs on real rows stay the same.

A library calibrates in a process of its own, on the training rows of the run as our chat template renders them. What
it returns is checked: every matrix is compared with what it was, experts that no row reached are named,
and the loss on held-out rows is set beside that of plain rounding.
"""

from __future__ import annotations

import gc
import random
import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from dsr1_tune.config import Base, TuneRun
from dsr1_tune.config.export import Quantize
from dsr1_tune.data.encode.example import Example, encode_all
from dsr1_tune.errors import ModelError, RunError
from dsr1_tune.export.formats.encoding import distance
from dsr1_tune.export.formats.gptq_process import Job
from dsr1_tune.export.formats.rounding import Rounded, pick_group_size, round_to_nearest, write_rounded
from dsr1_tune.export.weights.accounting import Counting, Quantized, chosen
from dsr1_tune.export.weights.progress import names_of
from dsr1_tune.export.weights.sidecars import copy_sidecars
from dsr1_tune.export.weights.source import Source
from dsr1_tune.models import isolated_env
from dsr1_tune.models.folder import ModelFolder
from dsr1_tune.models.load import load
from dsr1_tune.models.weights.checkpoint import Checkpoint, write_weights
from dsr1_tune.models.weights.layout import Piece
from dsr1_tune.moe.monitor import Routing, RoutingMonitor
from dsr1_tune.quant.w4a16 import PACKED, SCALE, dequantize, unpack
from dsr1_tune.runs.console import Narrator
from dsr1_tune.runs.evaluate import held_out_loss
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.kept_rows import eval_subset_examples, kept_records

TOOL = "llmcompressor"
MAX_HELD_OUT = 64
_MAX_LAYERS_TOLD = 8
_MAX_TIMES = 3  # GPTQ trades distance of the weights for that of the outputs: 1.1 to 2 times rounding's is usual


def write(source: Source, folder: Path, settings: Quantize, narrator: Narrator) -> Quantized:
    """Write the model to `folder` in W4A16, calibrated on its run's training rows.

    Raises RunError if no rows are known, and ModelError if no group size divides a matrix, the library fails or its
    result is not whole.
    """
    apart = source.taken_apart(narrator.say)
    group_size = pick_group_size(apart, chosen(apart.layout, settings.all), settings.group_size)
    run = source.run
    if run is None:
        raise RunError(
            f"{source.name}: the run that it came from is not known, so there are no rows to calibrate on",
            hint="quantize the run itself, or choose --method rtn",
        )
    tokenizer = ModelFolder(source.folder, source.name).read_tokenizer()
    rows = _calibration_rows(run, tokenizer, settings.calibration_rows)
    held_out = eval_subset_examples(run, tokenizer)[:MAX_HELD_OUT]
    environment = isolated_env.ensure(TOOL, narrator.say)
    # Inside the folder that is cleared away if we are killed.
    with TemporaryDirectory(prefix=".work", dir=folder, ignore_cleanup_errors=True) as name:
        work = Path(name)
        plain = _in_16_bits(source, work, narrator)
        narrator.stage("Looking at the 16-bit model")
        try:
            before = _look(plain, held_out, rows)
        except ModelError as error:
            raise ModelError(
                f"GPTQ needs the whole model in memory: {error.message}",
                hint="choose --method rtn, which reads it matrix by matrix, or a machine with more memory",
            ) from error
        unreached = _unreached(before.routing)
        _tell_reach(rows, before.routing, unreached, narrator, are_all=len(rows) < settings.calibration_rows)
        narrator.stage(f"Calibrating with GPTQ on {len(rows):,} training rows, in groups of {group_size}")
        made = _calibrate(environment, plain, work, apart, rows, settings, group_size, narrator)
        taken = _Taken(made, group_size)
        quantized = write_rounded(apart, folder, settings, group_size, narrator, taken)
        taken.tell(narrator)
        rtn = work / "rtn"
        rtn.mkdir()
        write_rounded(apart, rtn, settings, group_size, Narrator(Console(quiet=True)))
        losses = {"16 bits": before.loss, "rtn": _look(rtn, held_out).loss, "gptq": _look(folder, held_out).loss}
    _tell_losses(losses, len(held_out), narrator)
    facts = {
        **quantized.facts,
        "method": "gptq",
        "library": list(isolated_env.TOOLS[TOOL].packages),
        "calibration": {
            "rows": len(rows),
            "tokens": sum(map(len, rows)),
            "experts": before.routing.load_LE.numel(),
            "experts_without_tokens": unreached,
        },
        "rounded_to_nearest": sorted(taken.refused),
        "held_out_loss": losses,
    }
    return Quantized(quantized.groups, facts)


# --- rows ------------------------------------------------------------------------------------------------------------


def _calibration_rows(run: RunFolder, tokenizer: Any, num: int) -> list[tuple[int, ...]]:
    """Token ids of training rows, drawn at random, as the run saw them."""
    config = TuneRun.model_validate({k: v for k, v in run.manifest()["config"].items() if k in TuneRun.model_fields})
    records = kept_records(run, "train")
    random.Random(0).shuffle(records)
    # Some may not be encoded: those that were too long are among the kept ones.
    examples = encode_all(records[: 2 * num], tokenizer, config.schedule.max_tokens, config.encoding).examples
    if not examples:
        raise RunError(f"{run.path}: left no rows to calibrate on", hint="choose --method rtn")
    return [example.input_ids for example in examples[:num]]


# --- the model around ------------------------------------------------------------------------------------------------


def _in_16_bits(source: Source, work: Path, narrator: Narrator) -> Path:
    """A folder that holds the model as it is to be calibrated: the source's own, or one that it is merged into."""
    stored = [source.weights.stored(name) for name in names_of(source.weights)]
    if all(place and place.file.parent == source.folder for place in stored):
        return source.folder
    narrator.stage("Writing the merged model in 16 bits, for calibration")
    plain = work / "plain"
    plain.mkdir()
    write_weights(source.weights, plain)
    copy_sidecars(source, plain)
    return plain


class _Seen(NamedTuple):
    """What was seen of a model: its loss on held-out rows, and what its routers chose on others."""

    loss: float
    routing: Routing


@torch.no_grad()
def _look(folder: Path, held_out: Sequence[Example], rows: Sequence[Sequence[int]] = ()) -> _Seen:
    """Load a model, run it, and let it go."""
    loaded = load(Base(model=str(folder)))
    model = loaded.model.eval()
    loss = held_out_loss(model, held_out, loaded.tokenizer.pad_token_id).loss
    monitor = RoutingMonitor(model)
    for row in rows:
        model(input_ids=torch.tensor([row], device=model.device), use_cache=False)
    routing = monitor.take()
    monitor.close()
    del loaded, model, monitor
    gc.collect()
    return _Seen(loss, routing)


def _unreached(routing: Routing) -> dict[str, list[int]]:
    """By layer the experts that no token reached."""
    dead = {layer: row.nonzero().flatten().tolist() for layer, row in zip(routing.layers, routing.dead_LE, strict=True)}
    return {layer: experts for layer, experts in dead.items() if experts}


def _tell_reach(
    rows: Sequence[Sequence[int]], routing: Routing, unreached: dict[str, list[int]], narrator: Narrator, are_all: bool
) -> None:
    """`are_all` of the run's rows that there are."""
    num_tokens, num_experts = sum(map(len, rows)), routing.load_LE.numel()
    if not num_experts:
        return
    num_dead = sum(map(len, unreached.values()))
    fewest = f"{int(routing.load_LE.min()):,} of {num_tokens:,} tokens reach the least used expert"
    if not num_dead:
        narrator.say(f"every one of {num_experts:,} experts is reached; {fewest}")
        return
    narrator.say(
        f"experts that none of the rows' {num_tokens:,} tokens reach: {num_dead:,} of {num_experts:,}; they are "
        "calibrated on tokens meant for others"
        + ("" if are_all else f"; more rows may reach them: --set quantize.calibration_rows={4 * len(rows)}")
    )
    for layer, experts in list(unreached.items())[:_MAX_LAYERS_TOLD]:
        narrator.say(f"  {layer}: {', '.join(map(str, experts))}")
    if (more := len(unreached) - _MAX_LAYERS_TOLD) > 0:
        narrator.say(f"  and in {more} further layers; lineage.json lists them all")


# --- calibrating -----------------------------------------------------------------------------------------------------


def _calibrate(
    environment: isolated_env.ToolEnvironment,
    plain: Path,
    work: Path,
    source: Source,
    rows: Sequence[tuple[int, ...]],
    settings: Quantize,
    group_size: int,
    narrator: Narrator,
) -> Checkpoint:
    """What the library makes of the model in the folder `plain`."""
    pieces = [source.layout.pieces[name] for name in chosen(source.layout, settings.all)]
    linears = sorted(piece.parameter.removesuffix(".weight") for piece in pieces if piece.expert is None)
    job, out = work / "job.json", work / "gptq"
    Job(str(plain.absolute()), str(out.absolute()), tuple(rows), group_size, tuple(linears)).save(job)
    with narrator.counting("calibrating, matrices", len(pieces)) as advance:

        def hear(line: str) -> None:
            if done := re.search(r"Quantizing (\d+) module", line):
                advance(int(done[1]))

        environment.run(["-m", "dsr1_tune.export.formats.gptq_process", job], hear)
    return Checkpoint(out)


class _Taken:
    """The library's integers and scales, taken where they are fit, called as `write_rounded` does.

    A matrix whose inputs were all zero in calibration comes back as zeros: GPTQ takes such columns for unneeded. It is
    rounded to nearest in their place, like any that comes back much further off than rounding does.
    """

    def __init__(self, made: Checkpoint, group_size: int) -> None:
        self._made, self._group_size = made, group_size
        self.refused: list[str] = []

    def __call__(self, name: str, weight_NK: Tensor, counting: Counting) -> Rounded:
        own = _library_s_name(counting.layout.pieces[name])
        if own + PACKED not in self._made or own + SCALE not in self._made:
            raise ModelError(
                f"{name}: {TOOL} left it in 16 bits", hint="choose --method rtn; please report it with the model's name"
            )
        q_NK, scale_NG = unpack(self._made.read(own + PACKED)), self._made.read(own + SCALE).to(weight_NK.dtype)
        rounded = round_to_nearest(weight_NK, self._group_size)
        if q_NK.shape != weight_NK.shape or scale_NG.shape != rounded[1].shape:
            raise ModelError(
                f"{name}: {TOOL} made it {tuple(q_NK.shape)} in place of {tuple(weight_NK.shape)}",
                hint="choose --method rtn; please report it with the model's name",
            )
        off, usual = (distance(weight_NK, dequantize(*found)) for found in ((q_NK, scale_NG), rounded))
        if off <= _MAX_TIMES * usual:
            return q_NK, scale_NG
        self.refused.append(name)
        return rounded

    def tell(self, narrator: Narrator) -> None:
        """Which matrices were not taken."""
        if self.refused:
            narrator.say(
                f"{len(self.refused)} matrices came back from calibration more than {_MAX_TIMES} times as far off as "
                f"rounding leaves them, such as {self.refused[0]}; they are rounded to nearest"
            )


def _library_s_name(piece: Piece) -> str:
    """The weight's name in a model whose experts are linear layers: gate, up and down, whatever they are on disk."""
    if piece.expert is None:
        return piece.parameter
    block, _, leaf = piece.parameter.rpartition(".")
    if leaf == "gate_up_proj" and piece.rows:
        leaf = "gate_proj" if piece.rows[0] == 0 else "up_proj"
    return f"{block}.{piece.expert}.{leaf}.weight"


def _tell_losses(losses: dict[str, float], num_rows: int, narrator: Narrator) -> None:
    told = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
    narrator.say(f"loss on {num_rows:,} held-out rows: {told}")
    if losses["gptq"] > losses["rtn"]:
        narrator.say("GPTQ did worse than rounding here: --method rtn is the better choice, or more calibration rows")
    else:
        narrator.say("GPTQ did better than rounding here")
