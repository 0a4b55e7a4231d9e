"""The proof that a merge lost nothing: every tensor looked at, and the outputs of both sides compared."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from dsr1_tune.errors import ModelError
from dsr1_tune.export.merged import Merged, is_changed
from dsr1_tune.export.source import OpenBase
from dsr1_tune.models.checkpoint import Checkpoint, Weights
from dsr1_tune.models.layout import Layout
from dsr1_tune.moe.anatomy import find_experts
from dsr1_tune.runs.expert_tables import ExpertTables
from dsr1_tune.runs.folder import RunFolder

_REPORT = "do not use it, and please report it with the model's name"
_TRAIN_AGAIN = "the adapter is not what the run trained: copy the run's folder again, or train it again"


NEVER, ROUNDED, NOT_TRAINED = "never reached", "rounded away", "not trained"


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
    """Base with update and merged model, both computed in float32, on the same rows."""

    num_rows: int
    num_tokens: int
    max_difference: float
    """Largest absolute difference of any logit."""
    usual_difference: float
    """The same, but for the twentieth of the tokens where it is largest."""
    bound: float
    """For the largest difference in float32, for the usual one in 16 bits."""
    largest_logit: float
    mean_kl: float
    """Kullback-Leibler divergence of the next-token distributions, in nats."""
    kl_bound: float
    top1_agreement: float
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
    remarks: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """For lineage.json."""
        return asdict(self)


# --- tensors ---------------------------------------------------------------------------------------------------------


def check_tensors(
    base: OpenBase,
    merged: Merged,
    written: Checkpoint,
    before: Weights,
    run: RunFolder | None,
    advance: Callable[[int], None],
) -> TensorCheck:
    """Look at every tensor of what was `written`: what an update reaches must differ from `before`, all else not.

    `before` is the base in the format that was written. Raises NotCertified, naming a tensor.
    """
    is_as_saved = check_saved(run)
    unreached = _unreached(base, run)
    changed: list[str] = []
    stayed: list[str] = []
    equal = 0
    names = [name for shard in before.shards.values() for name in shard]
    if set(names) != set(written.names):
        raise NotCertified(f"{written.folder}: has not the tensors of the base", hint=_REPORT)
    for name in names:
        update = merged.updates.by_name.get(_owner(name, written))
        is_other = is_changed(written, name, before)
        if update is None and is_other:
            raise NotCertified(f"{name}: nothing was trained there, but it is not the base's any more", hint=_REPORT)
        if update is not None and name in merged.updates.by_name:
            (changed if is_other else stayed).append(name)
        equal += not is_other
        advance(before.spec(name).num_bytes)
    reasons = {name: _why_it_stayed(name, merged, base.layout, unreached, is_as_saved) for name in stayed}
    never, rounded = ([name for name in stayed if reasons[name] == reason] for reason in (NEVER, ROUNDED))
    counted = _changed_by_part(changed, merged, base.layout)
    return TensorCheck(
        len(names),
        len(changed) + len(never) + len(rounded),
        len(changed),
        equal,
        counted,
        _check_coverage(counted, stayed, merged, base.layout, run),
        tuple(never),
        tuple(rounded),
    )


def _owner(name: str, weights: Checkpoint) -> str:
    """The weight whose FP8 scales a tensor is, or the tensor itself."""
    owner = name.removesuffix("_scale_inv")
    return owner if owner in weights else name


def check_saved(run: RunFolder | None) -> bool:
    """Whether what the run saved is still what it saved; False where it kept no hashes.

    Raises NotCertified, naming a file, if it is not.
    """
    known = run.manifest().get("output_sha256") if run else None
    if run is None or not known:
        return False
    found = run.hash_outputs()
    for name, digest in known.items():
        if found.get(name) != digest:
            what = "is not what the run saved" if name in found else "is no longer there"
            raise NotCertified(f"{run.path / name}: {what}", hint=_TRAIN_AGAIN)
    return True


def _why_it_stayed(
    name: str, merged: Merged, layout: Layout, unreached: set[tuple[str, int]], is_as_saved: bool
) -> str:
    """Why a targeted tensor is the base's still. Raises NotCertified if it has no right to."""
    piece = layout.pieces[name]
    if piece.expert is not None and (piece.parameter.rpartition(".")[0], piece.expert) in unreached:
        return NEVER
    if torch.equal(merged.exact(name), merged.base.exact(name).to(torch.float32)):
        if not merged.updates.by_name[name].must_change:
            return NOT_TRAINED
        # Tokens may come to an expert without a gradient: in the last layer those that nothing is learned from.
        if piece.expert is not None and is_as_saved:
            return NEVER
        raise NotCertified(
            f"{name}: was to be trained, but its update is zero: the merged tensor is the base's", hint=_TRAIN_AGAIN
        )
    if layout.is_matrix(name):
        raise NotCertified(
            f"{name}: its whole update is less than {merged.spec(name).dtype} can tell, and is lost in the merge",
            hint="train longer or with a higher learning rate, or serve the base with the adapter",
        )
    return ROUNDED


def _unreached(base: OpenBase, run: RunFolder | None) -> set[tuple[str, int]]:
    """(name of the experts' module, number) of the experts that no training token reached, as the run counted."""
    if run is None or (seen := ExpertTables.read(run.path).training) is None:
        return set()
    blocks = find_experts(base.skeleton)
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


def compare_outputs(adapted: list[Tensor], merged: Iterator[Tensor], dtype: str, streamed: bool) -> OutputCheck:
    """Hold the merged model's logits against those of the base with its update, row by row.

    `dtype` is what most merged weights are stored in, as safetensors names it; what is allowed follows from it.
    """
    largest = divergence = 0.0
    differences: list[float] = []
    same = num_tokens = 0
    for one_TV, other_TV in zip(adapted, merged, strict=True):
        largest = max(largest, float(one_TV.abs().max()))
        differences += (one_TV - other_TV).abs().amax(-1).tolist()
        one, other = one_TV.log_softmax(-1), other_TV.log_softmax(-1)
        divergence += float((one.exp() * (one - other)).sum())
        same += int((one_TV.argmax(-1) == other_TV.argmax(-1)).sum())
        num_tokens += len(one_TV)
    usual = sorted(differences)[max(0, int(0.95 * num_tokens) - 1)]
    bound, kl_bound = bounds(largest, dtype)
    return OutputCheck(
        num_rows=len(adapted),
        num_tokens=num_tokens,
        max_difference=max(differences),
        usual_difference=usual,
        bound=bound,
        largest_logit=largest,
        mean_kl=divergence / num_tokens,
        kl_bound=kl_bound,
        top1_agreement=same / num_tokens,
        streamed=streamed,
    )


def bounds(largest_logit: float, dtype: str) -> tuple[float, float]:
    """How far logits may be apart, and how far distributions (nats), where weights are stored in `dtype`.

    In float32 only the order of additions differs. Elsewhere every merged weight is rounded once, to 8 binary digits
    in bfloat16 and 4 in float8, which carries through all layers; and now and then it sends a token to another expert,
    so there the bound is for 95 % of the tokens.
    """
    if dtype == "F32":
        return 1e-4 * max(1.0, largest_logit / 10), 1e-6
    return 2.0 ** (2 - _DIGITS[dtype]) * max(1.0, largest_logit), 2e-2 if _DIGITS[dtype] < 8 else 1e-3


_DIGITS = {"BF16": 8, "F16": 11, "F8_E4M3": 4, "F8_E5M2": 3}


def check_outputs(found: OutputCheck, dtype: str) -> None:
    """Raise NotCertified if the outputs are further apart than they may be."""
    difference = found.max_difference if dtype == "F32" else found.usual_difference
    if not (difference <= found.bound and found.mean_kl <= found.kl_bound):
        raise NotCertified(
            f"the merged model's logits differ from those of the base with its update by {difference:.3g} "
            f"(bound {found.bound:.3g}), its distributions by {found.mean_kl:.3g} nats (bound {found.kl_bound:.3g})",
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
