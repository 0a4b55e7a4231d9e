"""The proof that a merge lost nothing: every tensor looked at, and the outputs of both sides compared."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsr1_tune.errors import ModelError
from dsr1_tune.export.weights.merged import Merged, MergedWeights, is_changed, owner_of
from dsr1_tune.export.weights.progress import names_of
from dsr1_tune.export.weights.source import OpenBase
from dsr1_tune.export.weights.updates import LowRank, SomeExperts, Update
from dsr1_tune.models.weights.checkpoint import Checkpoint
from dsr1_tune.models.weights.layout import Layout
from dsr1_tune.moe.anatomy import find_experts
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.watch.expert_tables import ExpertTables

_REPORT = "do not use it, and please report it with the model's name"
_TOO_LITTLE = "train longer or with a higher schedule.learning_rate, or serve the base with the adapter"
_TRAIN_AGAIN = "the adapter is not what the run trained: copy the run's folder again, or train it again"


CHANGED, EQUAL, NEVER, ROUNDED, NOT_TRAINED = "changed", "equal", "never reached", "rounded away", "not trained"


class NotCertified(ModelError):
    """A merge that is not what it should be."""


@dataclass(frozen=True)
class TensorCheck:
    """What became of every tensor of the base."""

    num_tensors: int
    num_targeted: int
    num_changed: int
    num_equal: int
    """Byte-equal to the base, as all that is not targeted must be."""
    changed_by_part: Mapping[str, int]
    """Weights in changed tensors, by part."""
    trained_by_part: Mapping[str, int] | None
    """What the run's coverage audit counted; None where there is no run."""
    never_reached: tuple[str, ...] = ()
    """Targeted tensors of experts that training never reached; they have stayed as they were."""
    rounded_away: tuple[str, ...] = ()
    """Small tensors whose update is less than the base's number format can tell."""


@dataclass(frozen=True)
class OutputCheck:
    """Base with update beside it and added to it, both computed in float32 on the same rows; and what is stored."""

    num_rows: int
    num_tokens: int
    max_difference: float
    """Largest absolute difference of any logit, before the sum is rounded to what the base stores."""
    num_beyond: int
    """Tokens with a difference beyond the bound."""
    bound: float
    largest_logit: float
    mean_kl: float
    """Kullback-Leibler divergence, in nats, of the next-token distributions of what was stored: what rounding costs."""
    top1_agreement: float
    """Of what was stored."""
    streamed: bool


@dataclass(frozen=True)
class LossCheck:
    """The merged model's loss on the run's held-out records against what the run measured at its end."""

    merged: float
    run: float
    tolerance: float


@dataclass(frozen=True)
class Certificate:
    """All that was proved of a merge."""

    tensors: TensorCheck
    outputs: OutputCheck
    loss: LossCheck | None
    dtype: str
    """What most of the merged weights are stored in."""


# --- tensors ---------------------------------------------------------------------------------------------------------


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
        raise NotCertified(f"{written.folder}: has not the tensors of the base", hint=_REPORT)
    is_as_saved = check_saved(run)
    unreached = _unreached(base, run)

    def look(name: str) -> str:
        if name not in merged.updates.by_name:
            return _look_at_the_rest(name, merged, weights, written)
        return _look_at_a_target(name, merged, weights, written, base.layout, unreached, is_as_saved)

    found: dict[str, str] = {}
    with ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for name, state in zip(names, pool.map(look, names), strict=True):
                found[name] = state
                advance(before.spec(name).num_bytes)
        finally:
            pool.shutdown(cancel_futures=True)
    targets = [name for name in names if name in merged.updates.by_name]
    of = {state: [name for name in targets if found[name] == state] for state in (CHANGED, NEVER, ROUNDED)}
    if not of[CHANGED] and any(merged.updates.by_name[name].must_change for name in targets):
        raise NotCertified(
            f"{written.folder.name}: with what was trained added to it, every tensor is still the base's", _TOO_LITTLE
        )
    # A weight that is another's is stored twice and was trained once.
    twice = dict(getattr(base.meta_model, "all_tied_weights_keys", None) or {})
    once = [name for name in targets if base.layout.pieces[name].parameter not in twice]
    stayed = [name for name in once if found[name] != CHANGED]
    counted = _changed_by_part([name for name in once if found[name] == CHANGED], merged, base.layout)
    return TensorCheck(
        num_tensors=len(names),
        num_targeted=sum(map(len, of.values())),
        num_changed=len(of[CHANGED]),
        num_equal=sum(state != CHANGED for state in found.values()),
        changed_by_part=counted,
        trained_by_part=_check_coverage(counted, stayed, merged, base.layout, run),
        never_reached=tuple(of[NEVER]),
        rounded_away=tuple(of[ROUNDED]),
    )


def _look_at_the_rest(name: str, merged: Merged, weights: MergedWeights, written: Checkpoint) -> str:
    """A tensor that no update reaches must be the base's, byte by byte; the FP8 scales of one must belong to it."""
    if owner_of(name, written) in merged.updates.by_name:
        if is_changed(written, name, weights):
            raise NotCertified(f"{name}: are not the scales of the merged weight", hint=_REPORT)
        return CHANGED
    if is_changed(written, name, weights.base):
        raise NotCertified(f"{name}: nothing was trained there, but it is not the base's any more", hint=_REPORT)
    return EQUAL


def _look_at_a_target(
    name: str,
    merged: Merged,
    weights: MergedWeights,
    written: Checkpoint,
    layout: Layout,
    unreached: set[tuple[str, int]],
    is_as_saved: bool,
) -> str:
    """A tensor that an update reaches must be base and update, rounded once, and another one than the base's."""
    exact, was = merged.exact(name), merged.base.exact(name).to(torch.float32)
    stored = written.read(name)
    is_plain = stored.dtype not in (torch.float8_e4m3fn, torch.float8_e5m2)
    if not torch.equal(stored, exact.to(stored.dtype)) if is_plain else is_changed(written, name, weights):
        raise NotCertified(f"{name}: is not base and update", hint=_REPORT)
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
        is_lost = is_plain and torch.equal(stored, was.to(stored.dtype))
        if is_lost and layout.is_matrix(name):
            raise NotCertified(
                f"{name}: its whole update is less than {written.spec(name).dtype} can tell, and is lost in the merge",
                hint=_TOO_LITTLE,
            )
        return ROUNDED if is_lost else CHANGED
    if not update.must_change:
        return NOT_TRAINED if idle == experts else CHANGED
    block = piece.parameter.rpartition(".")[0]
    for expert in idle:
        # Tokens may come to an expert without a gradient: in the last layer those that nothing is learned from.
        if expert is None or not (is_as_saved or (block, expert) in unreached):
            what = name if expert is None or piece.expert is not None else f"{name}, expert {expert}"
            said = f"{what}: was to be trained, but its update is"
            if isinstance(update, LowRank) and not update.is_zero(expert):
                raise NotCertified(f"{said} less than even float32 can tell, and is lost in the merge", _TOO_LITTLE)
            raise NotCertified(f"{said} zero: the merged tensor is the base's", hint=_TRAIN_AGAIN)
    return NEVER if idle == experts else CHANGED


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
        raise NotCertified(f"{run.path / changed[0]}: is not what the run saved", hint=_TRAIN_AGAIN)
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
                hint=_TRAIN_AGAIN,
            )
    return trained


# --- outputs ---------------------------------------------------------------------------------------------------------


def logits_of(model: Any, rows: list[list[int]], pad_token: int, together: bool) -> Iterator[Tensor]:
    """The logits (T, V) of each row of token ids, in float32 on the CPU; `together` takes them in one forward pass."""
    for batch in [rows] if together else [[row] for row in rows]:
        length = max(map(len, batch))
        ids = torch.tensor([row + [pad_token] * (length - len(row)) for row in batch], device=model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in batch], device=model.device)
        with torch.no_grad():
            logits_BTV = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for row, logits_TV in zip(batch, logits_BTV, strict=True):
            yield logits_TV[: len(row)].float().cpu()


def compare_outputs(adapted: list[Tensor], exact: Iterator[Tensor], stored: Iterator[Tensor] | None) -> OutputCheck:
    """Hold the logits of base and update added up in float32 against those of the base with the update beside it.

    `stored` are those of the model as it was written, where that is rounded. All are (T, V), row by row.
    """
    differences: list[float] = []
    largest = divergence = 0.0
    same = 0
    rows: list[Tensor] = []
    for one_TV, other_TV in zip(adapted, exact, strict=True):
        largest = max(largest, float(one_TV.abs().max()))
        differences += (one_TV - other_TV).abs().amax(-1).tolist()
        if stored is None:
            rows.append(other_TV)
    for one_TV, other_TV in zip(adapted, rows if stored is None else stored, strict=True):
        one, other = one_TV.log_softmax(-1), other_TV.log_softmax(-1)
        divergence += float((one.exp() * (one - other)).sum())
        same += int((one_TV.argmax(-1) == other_TV.argmax(-1)).sum())
    num_tokens = len(differences)
    return OutputCheck(
        num_rows=len(adapted),
        num_tokens=num_tokens,
        max_difference=max(differences),
        num_beyond=sum(difference > bound(largest) for difference in differences),
        bound=bound(largest),
        largest_logit=largest,
        mean_kl=max(0.0, divergence / num_tokens),
        top1_agreement=same / num_tokens,
        streamed=False,
    )


def bound(largest_logit: float) -> float:
    """How far logits may be apart in float32, where only the order of additions differs."""
    return 1e-4 * max(1.0, largest_logit / 10)


def check_outputs(found: OutputCheck) -> None:
    """Raise NotCertified if the outputs are further apart than they may be.

    Where two experts score all but alike, the order of additions may decide which one a token goes to: one token in a
    hundred may be beyond the bound.
    """
    if not found.num_beyond <= found.num_tokens / 100:
        raise NotCertified(
            f"the merged model's logits differ from those of the base with its update by up to "
            f"{found.max_difference:.3g}, in {found.num_beyond} of {found.num_tokens} tokens by more than "
            f"{found.bound:.3g}",
            hint=_REPORT,
        )


def check_loss(found: LossCheck) -> None:
    """Raise NotCertified if the merged model is not as good as the run's own was."""
    if not found.merged - found.run <= found.tolerance:
        raise NotCertified(
            f"the merged model's held-out loss is {found.merged:.4f}, the trained model had {found.run:.4f} "
            f"(tolerance {found.tolerance:.4f})",
            hint=_TRAIN_AGAIN,
        )
