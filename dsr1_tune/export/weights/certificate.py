"""The proof that a merge lost nothing: every tensor looked at; `outputs` compares what both sides compute."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dsr1_tune.export.weights.loss import LossCheck
from dsr1_tune.export.weights.merged import Kept, Merged, MergedFp8, MergedWeights, Plain, is_changed, owner_of
from dsr1_tune.export.weights.outputs import REPORT, TRAIN_AGAIN, NotCertified, OutputCheck
from dsr1_tune.export.weights.progress import names_of
from dsr1_tune.export.weights.source import OpenBase
from dsr1_tune.export.weights.updates import LowRank, SomeExperts, Update
from dsr1_tune.models.weights.checkpoint import Checkpoint
from dsr1_tune.models.weights.layout import Layout
from dsr1_tune.moe.anatomy import find_experts
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.watch.expert_tables import ExpertTables

_TOO_LITTLE = "train longer or with a higher schedule.learning_rate, or serve the base with the adapter"
_TOO_COARSE = "float8 is too coarse for what was learned: --set merge.fp8=bfloat16 keeps it"

_CHANGED_FROM = 0.5
"""A tensor counts as changed where at least this share of its update is still there once the sum was rounded."""

CHANGED, EQUAL, NEVER, ROUNDED, NOT_TRAINED = "changed", "equal", "never reached", "rounded away", "not trained"


@dataclass(frozen=True)
class TensorCheck:
    """What became of every tensor of the base."""

    num_tensors: int
    num_targeted: int
    num_changed: int
    """Of which at least half of the update is still there once the sum was rounded."""
    num_equal: int
    """Byte-equal to the base, as all that is not targeted must be."""
    changed_by_part: Mapping[str, int]
    """Weights in changed tensors, by part."""
    trained_by_part: Mapping[str, int] | None
    """What the run's coverage audit counted; None where there is no run."""
    never_reached: tuple[str, ...] = ()
    """Targeted tensors of experts that training never reached; they have stayed as they were."""
    rounded_away: tuple[str, ...] = ()
    """Targeted tensors that lost most of their update, or all of it, in rounding."""
    kept_by_part: Mapping[str, float] = field(default_factory=dict)
    """The share of the updates that is still there once the sums were rounded, by part."""


@dataclass(frozen=True)
class Certificate:
    """All that was proved of a merge."""

    tensors: TensorCheck
    outputs: OutputCheck
    loss: LossCheck | None
    dtype: str
    """What most of the merged weights are stored in."""


@dataclass(frozen=True)
class _Look:
    """What one tensor is found to be."""

    state: str
    is_equal: bool
    """Whether it is still the base's."""
    kept: Kept = field(default_factory=Kept)


def check_tensors(
    base: OpenBase,
    merged: Merged,
    weights: MergedWeights,
    written: Checkpoint,
    run: RunFolder | None,
    advance: Callable[[int], None],
) -> TensorCheck:
    """Look at every tensor of what was `written`: what an update reaches must be base and update, all else the base.

    `weights` are what was to be written. Raises NotCertified, naming a tensor.
    """
    before = weights.base
    names = names_of(before)
    if set(names) != set(written.names):
        raise NotCertified(f"{written.folder}: has not the tensors of the base", hint=REPORT)
    is_as_saved = check_saved(run)
    unreached = _unreached(base, run)

    stored = Plain(written, weights.block_size if isinstance(weights, MergedFp8) else None)

    def look(name: str) -> _Look:
        if name not in merged.updates.by_name:
            return _look_at_the_rest(name, merged, weights, written)
        return _look_at_a_target(name, merged, weights, stored, base.layout, unreached, is_as_saved)

    found: dict[str, _Look] = {}
    with ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for name, seen in zip(names, pool.map(look, names), strict=True):
                found[name] = seen
                advance(before.spec(name).num_bytes)
        finally:
            pool.shutdown(cancel_futures=True)
    targets = [name for name in names if name in merged.updates.by_name]
    of = {state: [name for name in targets if found[name].state == state] for state in (CHANGED, NEVER, ROUNDED)}
    if not of[CHANGED] and (of[ROUNDED] or any(merged.updates.by_name[name].must_change for name in targets)):
        lost = "has lost most of that in rounding" if of[ROUNDED] else "is still the base's"
        raise NotCertified(
            f"{written.folder.name}: with what was trained added to it, every tensor {lost}", too_coarse_for(weights)
        )
    # A weight that is another's is stored twice and was trained once.
    twice = dict(getattr(base.meta_model, "all_tied_weights_keys", None) or {})
    once = [name for name in targets if base.layout.pieces[name].parameter not in twice]
    stayed = [name for name in once if found[name].state != CHANGED]
    counted = _changed_by_part([name for name in once if found[name].state == CHANGED], merged, base.layout)
    return TensorCheck(
        num_tensors=len(names),
        num_targeted=sum(map(len, of.values())),
        num_changed=len(of[CHANGED]),
        num_equal=sum(seen.is_equal for seen in found.values()),
        changed_by_part=counted,
        trained_by_part=_check_coverage(counted, stayed, merged, base.layout, run),
        never_reached=tuple(of[NEVER]),
        rounded_away=tuple(of[ROUNDED]),
        kept_by_part=_shares({name: found[name].kept for name in once}, base.layout),
    )


def _shares(kept: Mapping[str, Kept], layout: Layout) -> dict[str, float]:
    return {part: one.share for part, one in kept_by_part(kept, layout).items() if one.squares}


def kept_by_part(kept: Mapping[str, Kept], layout: Layout) -> dict[str, Kept]:
    """What tensors keep of their updates, added up part by part."""
    parts: defaultdict[str, Kept] = defaultdict(Kept)
    for name, one in kept.items():
        parts[layout.part(name)] += one
    return dict(sorted(parts.items()))


def too_coarse_for(weights: MergedWeights) -> str:
    """What to do where these lose in rounding what was learned."""
    return _TOO_COARSE if isinstance(weights, MergedFp8) else _TOO_LITTLE


def _look_at_the_rest(name: str, merged: Merged, weights: MergedWeights, written: Checkpoint) -> _Look:
    """A tensor that no update reaches must be the base's, byte by byte; the FP8 scales of one must belong to it."""
    if owner_of(name, written) in merged.updates.by_name:
        if is_changed(written, name, weights):
            raise NotCertified(f"{name}: are not the scales of the merged weight", hint=REPORT)
        return _Look(CHANGED, is_equal=not is_changed(written, name, weights.base))
    if is_changed(written, name, weights.base):
        raise NotCertified(f"{name}: nothing was trained there, but it is not the base's any more", hint=REPORT)
    return _Look(EQUAL, is_equal=True)


def _look_at_a_target(
    name: str,
    merged: Merged,
    weights: MergedWeights,
    written: Plain,
    layout: Layout,
    unreached: set[tuple[str, int]],
    is_as_saved: bool,
) -> _Look:
    """A tensor that an update reaches must be base and update, rounded once, and another one than the base's."""
    exact, was = merged.exact(name), merged.base.exact(name).to(torch.float32)
    dtype = written.base.spec(name).dtype
    stored = written.exact(name)
    is_float8 = dtype.startswith("F8")
    if is_changed(written.base, name, weights) if is_float8 else not torch.equal(stored, exact.to(stored.dtype)):
        raise NotCertified(f"{name}: is not base and update", hint=REPORT)
    kept = Kept.of(stored, exact, was)
    state = ROUNDED if kept.share < _CHANGED_FROM else CHANGED
    is_equal = torch.equal(stored, was.to(stored.dtype))
    update, piece = merged.updates.by_name[name], layout.pieces[name]
    # By value, not by bytes: 0 and -0 are the same, and FP8 may be encoded anew without any update.
    experts = {piece.expert} if piece.expert is not None else _rows_of(update, exact)
    is_fused = piece.expert is None  # a tensor that holds all of a layer's
    idle = {
        expert
        for expert in experts
        if (torch.equal(exact, was) if expert is None or not is_fused else torch.equal(exact[expert], was[expert]))
    }
    if not idle:
        if is_equal and layout.is_matrix(name):
            raise NotCertified(
                f"{name}: its whole update is less than {dtype} can tell, and is lost in the merge",
                too_coarse_for(weights),
            )
        return _Look(state, is_equal, kept)
    if not update.must_change:
        return _Look(NOT_TRAINED if idle == experts else state, is_equal, kept)
    block = piece.parameter.rpartition(".")[0]
    for expert in idle:
        # Tokens may come to an expert without a gradient: in the last layer those that nothing is learned from.
        if expert is None or not (is_as_saved or (block, expert) in unreached):
            what = name if expert is None or piece.expert is not None else f"{name}, expert {expert}"
            said = f"{what}: was to be trained, but its update is"
            if isinstance(update, LowRank) and not update.is_zero(expert):
                raise NotCertified(f"{said} less than even float32 can tell, and is lost in the merge", _TOO_LITTLE)
            raise NotCertified(f"{said} zero: the merged tensor is the base's", hint=TRAIN_AGAIN)
    return _Look(NEVER if idle == experts else state, is_equal, kept)


def _rows_of(update: Update, exact: Tensor) -> set[int | None]:
    """The experts in a stored tensor that holds all of a layer's; None where there are no experts."""
    if isinstance(update, SomeExperts):
        return set(update.rows)
    if exact.dim() != 3 or not isinstance(update, LowRank):
        return {None}
    return set(update.experts if update.experts is not None else range(len(exact)))


def check_saved(run: RunFolder | None) -> bool:
    """Whether what the run saved is still what it saved; False where it kept no hashes. Raises NotCertified if not."""
    changed = run.changed_outputs() if run else None
    if run and changed:
        raise NotCertified(f"{run.path / changed[0]}: is not what the run saved", hint=TRAIN_AGAIN)
    return changed is not None


def _unreached(base: OpenBase, run: RunFolder | None) -> set[tuple[str, int]]:
    """(name of the experts' module, number) of the experts that no training token reached, as the run counted."""
    if run is None or (seen := ExpertTables.read(run.path).training) is None:
        return set()
    blocks = find_experts(base.meta_model)
    if len(blocks) != len(seen.load_LE):
        return set()
    return {
        (block.name, number)
        for block, load_E in zip(blocks, seen.load_LE, strict=True)
        for number in (load_E == 0).nonzero().flatten().tolist()
    }


def _changed_by_part(names: list[str], merged: Merged, layout: Layout) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for name in names:
        if merged.updates.by_name[name].must_change or layout.part(name) != "router":
            counted[layout.part(name)] += merged.updates.num_elements(name, merged.spec(name))
    return dict(counted)


def _check_coverage(
    changed: Mapping[str, int], stayed: list[str], merged: Merged, layout: Layout, run: RunFolder | None
) -> dict[str, int] | None:
    """What the run's audit counted as trained, part by part; what changed must be that, but for what rightly stayed."""
    audit = run.manifest().get("metrics", {}).get("coverage") if run else None
    if not audit:
        return None
    trained = {line["part"]: line["num_adapted"] for line in audit}
    may_stay: defaultdict[str, int] = defaultdict(int)
    for name in stayed:
        may_stay[layout.part(name)] += merged.updates.num_elements(name, merged.spec(name))
    for part, expected in trained.items():
        have = changed.get(part, 0)
        if not expected - may_stay[part] <= have <= expected:
            raise NotCertified(
                f"the run trained updates to {expected:,} weights of its {part}, the merge changed {have:,}",
                hint=TRAIN_AGAIN,
            )
    return trained
