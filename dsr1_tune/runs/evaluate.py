"""How good a model is on records that it never trained on: loss, perplexity, and answers to look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from dsr1_tune.config import Encoding
from dsr1_tune.data.encode.chat import USUAL
from dsr1_tune.data.encode.end_tokens import end_tokens
from dsr1_tune.data.encode.example import IGNORED, Example, prompt_ids
from dsr1_tune.data.record import Record
from dsr1_tune.models.head import logits_in_pieces

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
    """The mean loss of `examples` under `model`, every learned token weighing the same; `advance` counts records."""
    was_training = model.training
    model.eval()
    total, num_tokens = 0.0, 0
    for numbers in like_lengths([len(example.input_ids) for example in examples]):
        batch = [examples[number] for number in numbers]
        wanted_BT = pad_sequence([torch.tensor([*example.labels[1:], IGNORED]) for example in batch], True, IGNORED)
        losses_N = token_losses(model, [example.input_ids for example in batch], wanted_BT, pad_token)
        total += float(losses_N.double().sum())
        num_tokens += len(losses_N)
        advance(len(batch))
    model.train(was_training)
    return HeldOut(total / num_tokens, num_tokens, len(examples))


@torch.no_grad()
def token_losses(model: Any, rows: Sequence[Sequence[int]], wanted_BT: Tensor, pad_token: int) -> Tensor:
    """The loss (N,) of every token that is wanted behind another one, in their order; IGNORED stands for none."""
    ids_BT = pad_sequence([torch.tensor(row) for row in rows], True, pad_token).to(model.device)
    mask_BT = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], True).to(model.device)
    wanted_S = wanted_BT.flatten()
    places_N = (wanted_S != IGNORED).nonzero().squeeze(1)
    wanted_N, losses = wanted_S[places_N], list[Tensor]()
    for logits_CV in logits_in_pieces(model, places_N, input_ids=ids_BT, attention_mask=mask_BT):
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
) -> list[Sample]:
    """The model's greedy answer to each record's last question, with the earlier turns before it."""
    was_training = model.training
    model.eval()
    # Caching is off in training; an answer without it would take a full pass per token.
    use_cache, model.config.use_cache = model.config.use_cache, True
    samples = []
    for record in records:
        ids_BT = torch.tensor([prompt_ids(record, tokenizer, encoding)], device=model.device)
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        inputs = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
        output = model.generate(**inputs, **greedy, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id)
        ends = end_tokens(tokenizer, model.generation_config.eos_token_id).ids  # of which not all are special tokens
        said = [token for token in output[0, ids_BT.shape[1] :].tolist() if token not in ends]
        answer = tokenizer.decode(said, skip_special_tokens=True)
        samples.append(Sample(record.question, answer.strip(), record.answer))
        advance(1)
    model.config.use_cache = use_cache
    model.train(was_training)
    return samples


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
