"""How good a model is on records that it never trained on: loss, perplexity, and answers to look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from dsr1_tune.config import Encoding
from dsr1_tune.data.encode.chat import USUAL
from dsr1_tune.data.encode.end_tokens import end_tokens
from dsr1_tune.data.encode.example import IGNORED, Example, prompt_ids
from dsr1_tune.data.record import Record
from dsr1_tune.models.head import logits_in_pieces, num_pieces
from dsr1_tune.moe.monitor import uncounted
from dsr1_tune.runs.distributed import group

Share = TypeVar("Share")
Value = TypeVar("Value")

MAX_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class HeldOut:
    """Mean loss over the tokens that assistants say in the held-out records, in nats per token."""

    loss: float
    num_tokens: int
    num_records: int

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> HeldOut:
        """The inverse of `as_json`."""
        return cls(value["loss"], value["num_tokens"], value["num_records"])

    @property
    def perplexity(self) -> float:
        """e to the loss; infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def __str__(self) -> str:
        return f"loss {self.loss:.4f} (perplexity {self.perplexity:.2f})"

    def as_json(self) -> dict[str, Any]:
        """For eval.json."""
        return {**asdict(self), "perplexity": self.perplexity}


@dataclass(frozen=True)
class Sample:
    """A held-out question, what the model says, and what the record says."""

    question: str
    answer: str
    reference: str


@torch.no_grad()
def held_out_loss(
    model: Any, examples: Sequence[Example], pad_token: int, advance: Callable[[int], None] = lambda count: None
) -> HeldOut:
    """The mean loss of `examples` under `model`, every learned token weighing the same; `advance` counts records.

    Of several processes each computes its share of the batches, and all get the mean over all of them.
    """
    rows = [example.input_ids for example in examples]
    wanted = [torch.tensor([*example.labels[1:], IGNORED]) for example in examples]
    sums = torch.zeros(2, dtype=torch.float64)
    for _, losses_N in losses_of_batches(model, rows, wanted, pad_token, advance):
        sums += torch.tensor([float(losses_N.double().sum()), len(losses_N)], dtype=torch.float64)
    total, num_tokens = group.all_reduce(sums).tolist()
    return HeldOut(total / num_tokens, int(num_tokens), len(examples))


@torch.no_grad()
def losses_of_batches(
    model: Any, rows: Sequence[Sequence[int]], wanted: Sequence[Tensor], pad_token: int, advance: Callable[[int], None]
) -> Iterator[tuple[list[int], Tensor]]:
    """The numbers of rows that share a batch, and their tokens' losses: of the batches that this process computes.

    Of each row `wanted` says what is to follow each token; `advance` counts the rows of all processes.
    """
    was_training = model.training
    model.eval()
    for mine, together in rounds(list(like_lengths([len(row) for row in rows]))):
        counts = [sum(int((wanted[number] != IGNORED).sum()) for number in batch) for batch in together]
        pieces = max(num_pieces(model, count) for count in counts)
        if mine is None:
            with uncounted():
                short = rows[together[0][0]][:2]
                token_losses(model, [short], torch.full((1, len(short)), IGNORED), pad_token, pieces)
        else:
            wanted_BT = pad_sequence([wanted[number] for number in mine], True, IGNORED)
            yield mine, token_losses(model, [rows[number] for number in mine], wanted_BT, pad_token, pieces)
        advance(sum(map(len, together)))
    model.train(was_training)


def rounds(shares: Sequence[Share]) -> Iterator[tuple[Share | None, Sequence[Share]]]:
    """The shares of some work, as many at a time as there are processes: this process's one, and those of all.

    It is None where there is none left for this process. Where the processes must call the model equally often, since
    each holds a part of it, it then has to call it for nothing.
    """
    for start in range(0, len(shares), group.world_size()):
        together = shares[start : start + group.world_size()]
        yield (together[group.rank()] if group.rank() < len(together) else None), together


def in_order(mine: dict[int, Value]) -> list[Value]:
    """What all processes have found together, each some numbers' values, by these numbers."""
    return [value for _, value in sorted(group.all_gather(list(mine.items())), key=itemgetter(0))]


@torch.no_grad()
def token_losses(
    model: Any, rows: Sequence[Sequence[int]], wanted_BT: Tensor, pad_token: int, at_least: int = 1
) -> Tensor:
    """The loss (N,) of every token that is wanted behind another one, in their order; IGNORED stands for none.

    The model's head is called `at_least` so often.
    """
    ids_BT = pad_sequence([torch.tensor(row) for row in rows], True, pad_token).to(model.device)
    mask_BT = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], True).to(model.device)
    wanted_S = wanted_BT.flatten()
    places_N = (wanted_S != IGNORED).nonzero().squeeze(1)
    wanted_N, losses = wanted_S[places_N], list[Tensor]()
    for logits_CV in logits_in_pieces(model, places_N, 0, at_least, input_ids=ids_BT, attention_mask=mask_BT):
        start = sum(map(len, losses))
        wanted_C = wanted_N[start : start + len(logits_CV)].to(logits_CV.device)
        losses.append(cross_entropy(logits_CV.float(), wanted_C, reduction="none").cpu())
    return torch.cat(losses) if losses else torch.zeros(0)


@torch.no_grad()
def sample_answers(
    model: Any,
    tokenizer: Any,
    records: Sequence[Record],
    max_new_tokens: int,
    advance: Callable[[int], None] = lambda count: None,
    encoding: Encoding = USUAL,
    is_in_step: bool = False,
) -> list[Sample]:
    """The model's greedy answer to each record's last question, with the earlier turns before it.

    Of several processes each answers its share, and all get all answers. With `is_in_step` they call the model equally
    often, as they must where each holds a part of it.
    """
    was_training = model.training
    model.eval()
    # Caching is off in training; an answer without it would take a full pass per token.
    use_cache, model.config.use_cache = model.config.use_cache, True
    is_in_step = is_in_step and group.world_size() > 1
    answers: dict[int, str] = {}
    for mine, together in rounds(range(len(records))):
        if mine is not None or is_in_step:
            ids = prompt_ids(records[together[0] if mine is None else mine], tokenizer, encoding)
            said = _greedy(model, tokenizer, ids, 1 if mine is None else max_new_tokens, is_in_step)
            if mine is not None:
                answers[mine] = said
        advance(len(together))
    model.config.use_cache = use_cache
    model.train(was_training)
    return [Sample(one.question, said, one.answer) for one, said in zip(records, in_order(answers), strict=True)]


def _greedy(model: Any, tokenizer: Any, ids: Sequence[int], max_new_tokens: int, is_in_step: bool) -> str:
    ids_BT = torch.tensor([list(ids)], device=model.device)
    output = model.generate(
        input_ids=ids_BT,
        attention_mask=torch.ones_like(ids_BT),
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        synced_gpus=is_in_step,
    )
    ends = end_tokens(tokenizer, model.generation_config.eos_token_id).ids  # of which not all are special tokens
    said = [token for token in output[0, ids_BT.shape[1] :].tolist() if token not in ends]
    text: str = tokenizer.decode(said, skip_special_tokens=True)
    return text.strip()


def like_lengths(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of like length together, at most MAX_BATCH_TOKENS a batch with padding (or one)."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[number] > MAX_BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
