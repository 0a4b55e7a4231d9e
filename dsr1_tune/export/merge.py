"""`merge`: what a run trained, put into its base tensor by tensor; and a certificate that nothing was lost."""

from __future__ import annotations

import gc
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from dsr1_tune import __version__
from dsr1_tune.atomic import new_folder
from dsr1_tune.config import Base, Merge
from dsr1_tune.data.encode.example import Example
from dsr1_tune.errors import ModelError, RunError
from dsr1_tune.export import lineage
from dsr1_tune.export.lineage import Stage
from dsr1_tune.export.weights.certificate import Certificate, check_tensors, kept_by_part, too_coarse_for
from dsr1_tune.export.weights.load_streamed import load_streamed
from dsr1_tune.export.weights.loss import LossCheck, Losses, Recorded, check_loss, with_other_digits
from dsr1_tune.export.weights.merged import Merged, MergedFp8, MergedWeights, Together, kept_of
from dsr1_tune.export.weights.outputs import OutputCheck, check_outputs, compare_outputs, logits_of
from dsr1_tune.export.weights.progress import counted
from dsr1_tune.export.weights.sidecars import copy_sidecars
from dsr1_tune.export.weights.source import OpenBase, Trained, find_trained, open_base, open_trained, stages_of
from dsr1_tune.models.load import Loaded, Located, free_room, load_located, locate
from dsr1_tune.models.memory import give_back
from dsr1_tune.models.trained.attach import attach_adapter
from dsr1_tune.models.trained.experts import attach_experts
from dsr1_tune.models.weights.checkpoint import Checkpoint, write_weights
from dsr1_tune.quant.fp8 import SCALE
from dsr1_tune.runs.console import Narrator, quiet_libraries
from dsr1_tune.runs.evaluate import held_out_loss
from dsr1_tune.runs.kept_rows import eval_subset_examples
from dsr1_tune.text.amount import amount

USUAL = Merge()
MAX_TOKENS = 1024
"""Of all rows on which logits are compared."""
TOLD_TENSORS = 8
"""Of each part, that are looked at to say what float8 will keep."""
_ROUNDED_BEFORE = (
    "Trained over a base in 4 bits, merged into the same base in 16 bits: rounding to 4 bits once more "
    "after the merge would lose the update's finer part. Quantize the merged model instead."
)


def run(trained: Path, out: Path, merge: Merge = USUAL, console: Console | None = None) -> Path:
    """Merge what the run (or adapter) in `trained` left into its base, certify it, and leave the model in `out`.

    Memory: the largest tensor in float32 with its update, and what Python itself takes. Raises TuneError for what the
    user can mend, and certificate.NotCertified, leaving nothing, if the merge is not what it should be.
    """
    quiet_libraries()
    narrator = Narrator(console or Console())
    found = find_trained(trained)
    if found is None:
        raise RunError(f"{trained}: is no finished run and no adapter", hint="give the folder that training left")
    narrator.stage("Merge")
    base, updates = open_trained(found, narrator.say, merge.base)
    if found.is_qlora:
        narrator.say(_ROUNDED_BEFORE)
    merged = Merged(base.plain, updates)
    size = base.plain.block_size
    if merge.fp8 == "keep" and isinstance(base.plain, Together):
        raise ModelError(
            f"{base.located.name}: {base.config.get('model_type')} stores the experts of a layer in one tensor, and "
            "this base's, which are in block-FP8 one by one, are put together when they are merged into",
            hint="leave out merge.fp8=keep, and make block-FP8 of the merged model: dsr1-tune quantize MERGED --to fp8",
        )
    weights: MergedWeights = MergedFp8(merged, size) if size and merge.fp8 == "keep" else merged
    if isinstance(weights, MergedFp8):
        _tell_what_float8_keeps(weights, base, narrator)
    elif size:
        narrator.say("The base is in block-FP8, too coarse for most of what is learned; the model becomes bfloat16.")
    with new_folder(out) as part:
        started = time.perf_counter()
        with counted(narrator, weights) as advance:
            write_weights(weights, part, advance, num_threads=torch.get_num_threads())
        copy_sidecars(base, part, _config(base, weights), narrator.say)
        seconds = {"merge": time.perf_counter() - started}
        certificate = _certify(found, base, merged, weights, part, merge, narrator)
        seconds["certify"] = time.perf_counter() - started - seconds["merge"]
        _say(certificate, narrator)
        facts = {"certificate": asdict(certificate), "seconds": seconds, "dsr1_tune": __version__}
        facts |= {"settings": merge.model_dump(mode="json")} | ({"remark": _ROUNDED_BEFORE} if found.is_qlora else {})
        lineage.write(part, (*stages_of(found), Stage("merge", facts)))
    return out


def _tell_what_float8_keeps(weights: MergedFp8, base: OpenBase, narrator: Narrator) -> None:
    """Say what rounding to block-FP8 will leave of the updates, before anything is written: of some tensors a part."""
    by_part: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(weights.merged.updates.by_name):
        if name + SCALE in weights.base:
            by_part[base.layout.part(name)].append(name)
    some = [name for names in by_part.values() for name in names[:: -(-len(names) // TOLD_TENSORS)]]
    if not some:
        return
    found = kept_by_part({name: kept_of(weights.merged, weights, name) for name in some}, base.layout)
    narrator.say(
        f"Block-FP8 will keep, rounding up or down by chance (of {amount(len(some), 'tensor')} that was looked at):"
    )
    for part, kept in found.items():
        narrator.say(
            f"  {part}: {kept.share:.1%} of the update, which is {kept.size:.2%} of the weights, with noise of "
            f"{kept.noise:.2%} of the weights"
        )
    narrator.say("Without --set merge.fp8=keep the model becomes bfloat16, which keeps all of it in twice the space.")


def _config(base: OpenBase, weights: MergedWeights) -> dict[str, Any]:
    tree = dict(base.config)
    if isinstance(weights, MergedFp8):
        tree["quantization_config"] = base.stored_config["quantization_config"]
    elif base.plain.block_size:
        tree["torch_dtype" if "torch_dtype" in tree else "dtype"] = "bfloat16"
    return tree


# --- the certificate -------------------------------------------------------------------------------------------------


def _certify(
    found: Trained, base: OpenBase, merged: Merged, weights: MergedWeights, part: Path, merge: Merge, narrator: Narrator
) -> Certificate:
    """Look at every tensor, then run both sides. Raises NotCertified."""
    narrator.stage("Certificate")
    written = Checkpoint(part)
    with counted(narrator, written, "MiB compared") as advance:
        tensors = check_tensors(base, merged, weights, written, found.run, advance)
    dtypes: Counter[str] = Counter()
    for name in written.names:
        dtypes[written.spec(name).dtype] += written.spec(name).num_elements
    dtype = dtypes.most_common(1)[0][0]
    outputs, loss = _compare(found, base, merged, weights, part, merge, dtype, narrator)
    return Certificate(tensors, outputs, loss, dtype)


def _compare(
    found: Trained,
    base: OpenBase,
    merged: Merged,
    weights: MergedWeights,
    part: Path,
    merge: Merge,
    dtype: str,
    narrator: Narrator,
) -> tuple[OutputCheck, LossCheck | None]:
    """Base with update, their sum, and the merged model on the same rows, one after the other, all in float32."""
    num_bytes = 4 * sum(spec.num_elements for spec in map(base.plain.spec, base.layout.pieces))
    streamed = merge.streamed == "yes" or (merge.streamed == "auto" and num_bytes * 1.3 > free_room())
    if streamed:
        narrator.say("The models are read layer by layer; in float32 one does not fit into the memory.")
    examples = eval_subset_examples(found.run, base.located.tokenizer) if found.run else []
    rows = _rows(examples, merge.rows, base.located)
    pad_token = base.located.tokenizer.pad_token_id

    def logits(model: Any) -> list[Tensor]:
        return logits_of(model, rows, pad_token)

    adapted = logits(_adapted(found, base, merged, streamed))
    _let_go()
    added_up = logits(load_streamed(base.located, merged.exact, base.layout).model)
    noisy = load_streamed(base.located, with_other_digits(merged.exact, torch.float32), base.layout).model
    noise = logits(noisy)
    _let_go()
    model = _load(part, streamed).model
    outputs = compare_outputs(adapted, added_up, noise, None if dtype == "F32" else logits(model))
    check_outputs(outputs)
    outputs = replace(outputs, streamed=streamed)
    del adapted
    evaluation = found.run.evaluation() if found.run else {}
    if not examples or "loss" not in evaluation.get("after", {}):  # what learned from its own answers has no loss
        return outputs, None
    with narrator.counting("evaluating", len(examples)) as advance:
        loss = held_out_loss(model, examples, pad_token, advance).loss
    del model
    _let_go()
    before, after = (float(evaluation[when]["loss"]) for when in ("before", "after"))
    recorded = Recorded(before, after, _computed_in(found), found.is_qlora, merge.base is not None)

    def loss_of(read: Callable[[str], Tensor]) -> float:
        return held_out_loss(load_streamed(base.located, read, base.layout).model, examples, pad_token).loss

    losses = Losses(loss_of, base.plain.exact, merged.exact, is_rounded=dtype != "F32")
    return outputs, check_loss(recorded, loss, losses, too_coarse_for(weights))


def _computed_in(found: Trained) -> torch.dtype:
    """What the run computed in; earlier versions did not say."""
    told = found.run.manifest().get("metrics", {}).get("dtype") if found.run else None
    return torch.float32 if told == "float32" else torch.bfloat16


def _let_go() -> None:
    """Make room for the next model."""
    gc.collect()
    give_back()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _rows(examples: list[Example], number: int, base: Located) -> list[list[int]]:
    """Token ids to compare on: of held-out records, or a made-up row where there is no run."""
    if not examples:
        generator = torch.Generator().manual_seed(0)
        vocabulary = min(len(base.tokenizer), base.config.vocab_size)
        return [torch.randint(0, vocabulary, (64,), generator=generator).tolist()]
    rows = [list(example.input_ids) for example in examples[:number]]
    share = max(16, MAX_TOKENS // len(rows))
    return [row[:share] for row in rows]


def _adapted(found: Trained, base: OpenBase, merged: Merged, streamed: bool) -> Any:
    """The base with what was trained on it, unmerged."""
    if found.kind == "model":
        return _load(found.folder, streamed).model
    if not streamed:
        put = attach_adapter if found.kind == "adapter" else attach_experts
        return put(load_located(base.located, "float32"), found.folder)
    if found.kind == "experts":
        # They are rows of weights that are never all there: the update is added while reading, before any rounding.
        return load_streamed(base.located, merged.exact, base.layout).model
    return attach_adapter(load_streamed(base.located, base.plain.read, base.layout), found.folder)


def _load(folder: Path, streamed: bool) -> Loaded:
    """A whole model in float32."""
    located = locate(Base(model=str(folder), dtype="float32"), is_loaded=not streamed)
    if not streamed:
        return load_located(located, "float32")
    base = open_base(located)
    return load_streamed(located, base.plain.read, base.layout)


def _say(certificate: Certificate, narrator: Narrator) -> None:
    tensors, outputs = certificate.tensors, certificate.outputs
    narrator.say(
        f"{tensors.num_changed:,} of {amount(tensors.num_targeted, 'trained tensor')} changed; "
        f"the base's byte by byte: {tensors.num_equal:,}."
    )
    if tensors.never_reached:
        narrator.say(f"Of experts that training never reached: {amount(len(tensors.never_reached), 'tensor')}.")
    if tensors.rounded_away:
        narrator.say(
            f"Most of the update is too small for {certificate.dtype} to tell in "
            f"{amount(len(tensors.rounded_away), 'tensor')}, such as {tensors.rounded_away[0]}."
        )
    if certificate.dtype != "F32" and tensors.kept_by_part:
        kept = ", ".join(f"{part} {share:.1%}" for part, share in tensors.kept_by_part.items())
        narrator.say(f"Of what was trained rounding keeps: {kept}.")
    narrator.say(
        f"On {amount(outputs.num_tokens, 'token')} the logits are those of base and update to "
        f"{outputs.max_difference:.1e} (bound {outputs.bound:.1e})."
    )
    if certificate.dtype != "F32":
        narrator.say(
            f"Rounded once to {certificate.dtype}: KL {outputs.mean_kl:.1e} nats, likeliest token the same in "
            f"{outputs.top1_agreement:.2%}."
        )
    if certificate.loss:
        loss = certificate.loss
        narrator.say(f"Held-out loss {loss.merged:.4f}; the run measured {loss.run:.4f}, and {loss.before:.4f} before.")
