"""Generate answers to prompts: in batches, with a key-value cache, the same answers for the same seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from dsr1_tune.config import Rollout
from dsr1_tune.data.encode.end_tokens import end_tokens
from dsr1_tune.moe.monitor import uncounted
from dsr1_tune.moe.replay import RoutingReplay, as_sequences
from dsr1_tune.runs.evaluate import in_order, rounds

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Answers:
    """Token ids of answers, in the order of their prompts, each with its end-of-turn token if it has one."""

    ids: tuple[Ids, ...]
    have_ended: tuple[bool, ...]
    routing: tuple[Tensor, ...] = ()
    """Where a replay was given, the experts that each token of prompt and answer went to: (L, S, K) for each answer."""


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    tokenizer: Any,
    rollout: Rollout,
    is_greedy: bool = False,
    advance: Callable[[int], None] = lambda count: None,
    replay: RoutingReplay | None = None,
) -> Answers:
    """Generate an answer to each prompt, sampled from softmax(logits / temperature), or greedily.

    Prompts of like length share a batch of `rollout.batch_size`. Sampling uses torch's global generator. With `replay`
    the experts that tokens are routed to are recorded.
    """
    ends = end_tokens(tokenizer, model.generation_config.eos_token_id).ids
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    found: dict[int, Ids] = {}
    routing: dict[int, Tensor] = {}
    with _answering(model), uncounted():
        for first in range(0, len(order), rollout.batch_size):
            batch = order[first : first + rollout.batch_size]
            batch_prompts = [prompts[number] for number in batch]
            with replay.noting() if replay else nullcontext() as noted:
                written = _generate_ids(model, batch_prompts, ends, tokenizer, rollout, is_greedy)
            answers = [_cut(ids, ends) for ids in written]
            found |= zip(batch, answers, strict=True)
            if noted is not None:
                lengths = [(len(prompt), len(answer)) for prompt, answer in zip(batch_prompts, answers, strict=True)]
                together = as_sequences(noted, lengths)
                routing |= {number: together[:, row, : sum(lengths[row])] for row, number in enumerate(batch)}
            advance(len(batch))
    ids = tuple(found[number] for number in range(len(prompts)))
    return Answers(ids, tuple(answer[-1] in ends for answer in ids), tuple(routing[n] for n in sorted(routing)))


def shared_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    tokenizer: Any,
    rollout: Rollout,
    advance: Callable[[int], None] = lambda count: None,
) -> Answers:
    """The greedy answer to each prompt, in the batches of one process; of several, each generates its share."""
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    batches = [order[first : first + rollout.batch_size] for first in range(0, len(order), rollout.batch_size)]
    found: dict[int, tuple[Ids, bool]] = {}
    for mine, together in rounds(batches):
        if mine is not None:
            batch = [prompts[number] for number in mine]
            answers = generate(model, batch, tokenizer, rollout, is_greedy=True)
            found |= zip(mine, zip(answers.ids, answers.have_ended, strict=True), strict=True)
        advance(sum(map(len, together)))
    ids, have_ended = zip(*in_order(found), strict=True)
    return Answers(ids, have_ended)


@contextmanager
def _answering(model: Any) -> Iterator[None]:
    """Inside, the model has a key-value cache, no dropout, and no generation config, from which unset fields come."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    was_training = {module: module.training for module in model.modules()}
    use_cache, model.config.use_cache = model.config.use_cache, True
    own, bare.generation_config = bare.generation_config, GenerationConfig()
    model.eval()
    try:
        yield
    finally:
        bare.generation_config = own
        model.config.use_cache = use_cache
        for module, training in was_training.items():
            module.training = training


def _generate_ids(
    model: Any,
    prompts: Sequence[Sequence[int]],
    ends: frozenset[int],
    tokenizer: Any,
    rollout: Rollout,
    is_greedy: bool,
) -> list[list[int]]:
    """The token ids generated after each prompt; prompts are left-padded, so that all answers begin in one column."""
    pad = tokenizer.pad_token_id
    padded = partial(pad_sequence, batch_first=True, padding_side="left")
    ids_BT = padded([torch.tensor(ids) for ids in prompts], padding_value=pad).to(model.device)
    mask_BT = padded([torch.ones(len(ids), dtype=torch.long) for ids in prompts]).to(model.device)
    sampling = {"do_sample": True, "temperature": rollout.temperature, "top_k": 0, "top_p": 1.0}
    # No settings of the model's own: penalties and filters would sample from another distribution than is trained.
    plain = GenerationConfig(
        max_new_tokens=rollout.max_new_tokens,
        pad_token_id=pad,
        eos_token_id=sorted(ends),
        **({"do_sample": False} if is_greedy else sampling),
    )
    output_BT = model.generate(input_ids=ids_BT, attention_mask=mask_BT, generation_config=plain)
    return output_BT[:, ids_BT.shape[1] :].tolist()


def _cut(ids: list[int], ends: frozenset[int]) -> Ids:
    """The ids up to and including the first token that ends the turn."""
    last = next((place for place, token in enumerate(ids) if token in ends), len(ids) - 1)
    return tuple(ids[: last + 1])
