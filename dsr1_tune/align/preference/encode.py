"""Preference pairs and feedback as the model sees them: the prompt's tokens, and those of each answer behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any

from datasets import Dataset

from dsr1_tune.config import AlignRun, Encoding
from dsr1_tune.data.encode.chat import thinks, without_thought
from dsr1_tune.data.encode.chat_template import render_answer
from dsr1_tune.data.encode.example import cut_by_template, refused_by_template
from dsr1_tune.data.encode.template import TEMPLATE_ERRORS
from dsr1_tune.data.encode.tokens import IGNORED, Tokens
from dsr1_tune.data.prepared import Prepared
from dsr1_tune.data.record import Drop, Feedback, Message, Preference, Record
from dsr1_tune.errors import DataError
from dsr1_tune.runs.data import RunData, as_asked, divide
from dsr1_tune.text.amount import amount

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PairExample:
    """A pair as the model sees it: `prompt_ids + chosen_ids` and `prompt_ids + rejected_ids`.

    An answer's ids end with its end-of-turn token, unless `num_cut` tokens, of both together, were cut off. `record`
    is the prompt with the chosen answer.
    """

    preference: Preference
    record: Record
    prompt_ids: Ids
    chosen_ids: Ids
    rejected_ids: Ids
    num_cut: int = 0
    moves_system: bool = False
    """Whether system turns stand elsewhere: see `Rendered.moves_system`."""

    @property
    def answers(self) -> tuple[tuple[Ids, Ids], tuple[Ids, Ids]]:
        """The chosen and the rejected answer, each behind the prompt."""
        return (self.prompt_ids, self.chosen_ids), (self.prompt_ids, self.rejected_ids)

    @property
    def conversations(self) -> tuple[Ids, Ids]:
        """The prompt with the chosen answer, and with the rejected one."""
        return self.prompt_ids + self.chosen_ids, self.prompt_ids + self.rejected_ids

    @property
    def input_ids(self) -> Ids:
        """The longer of the two conversations."""
        return max(self.conversations, key=len)


def differs_in(row: Any) -> str:
    """What a row says in a field "differs" about its two answers, such as safety or tone, or nothing."""
    named = row.get("differs") if isinstance(row, dict) else None
    return named if isinstance(named, str) else ""


@dataclass(frozen=True, slots=True)
class FeedbackExample:
    """An answer that people liked or not, as the model sees it: `prompt_ids + completion_ids`."""

    feedback: Feedback
    record: Record
    prompt_ids: Ids
    completion_ids: Ids
    num_cut: int = 0
    moves_system: bool = False
    """Whether system turns stand elsewhere: see `Rendered.moves_system`."""

    @property
    def input_ids(self) -> Ids:
        """The whole conversation."""
        return self.prompt_ids + self.completion_ids


@dataclass(frozen=True)
class FeedbackData(RunData):
    """Feedback, of which good answers alone are examples of how to answer."""

    def asked(self, number: int) -> list[Record]:
        """So many prompts of the probe, each with a good answer."""
        good = [example for example in self.eval_subset if example.feedback.is_good and not example.num_cut]
        return [example.record for example in good][:number]


def encode_pairs(prepared: Prepared, tokenizer: Any, config: AlignRun) -> RunData:
    """The preference rows encoded and split. Raises DataError unless two are left: one to learn and one to measure."""
    data = encode_all(prepared, lambda row: encode_pair(row, tokenizer, config), tokenizer, config)
    if len(data.prepared.rows) < 2:
        raise DataError(
            f"{data.prepared.rows[0].place}: only this one pair can be trained on, and none is left to measure on",
            hint="give at least two pairs; some hundreds teach something",
        )
    return data


def encode_feedback(prepared: Prepared, tokenizer: Any, config: AlignRun) -> RunData:
    """The feedback rows encoded and split. Raises DataError unless good and bad answers are left to learn from."""
    data = encode_all(prepared, lambda row: encode_one(row, tokenizer, config), tokenizer, config)
    num_good = sum(example.feedback.is_good for example in data.train)
    num_bad = len(data.train) - num_good
    if not num_good or not num_bad:
        raise DataError(
            f"all {len(data.train)} answers to learn from are labelled {'good' if num_good else 'bad'}",
            hint="kto learns from the difference: add answers of the other kind; good ones alone are for lora",
        )
    if len({example.prompt_ids for example in data.train}) < 2:
        raise DataError(
            "all answers to learn from are to one prompt",
            hint="kto measures how far it has moved on answers to other prompts: add rows with another prompt",
        )
    remark = f"{num_good:,} good and {num_bad:,} bad answers to learn from"
    return FeedbackData(**{**vars(data), "remarks": (*data.remarks, remark)})


def as_rows(examples: Sequence[PairExample]) -> Dataset:
    """The pairs in the columns of TRL's preference trainers."""
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return Dataset.from_dict({name: [getattr(example, name) for example in examples] for name in names})


def as_feedback_rows(examples: Sequence[FeedbackExample], max_tokens: int) -> Dataset:
    """The feedback in the columns of TRL's KTO trainer.

    KTO measures how far the model has moved on answers that belong to other prompts (`KL_completion_ids`). TRL takes
    those of a fixed batch, where rows of the same prompt may stand side by side; here it is the next row's with
    another prompt, cut where both together exceed `max_tokens`.
    """
    prompts = [example.prompt_ids for example in examples]
    others = zip(prompts, _answers_of_others(examples), strict=True)
    return Dataset.from_dict(
        {
            "prompt_ids": prompts,
            "completion_ids": [example.completion_ids for example in examples],
            "label": [example.feedback.is_good for example in examples],
            "KL_completion_ids": [other[: max(1, max_tokens - len(prompt))] for prompt, other in others],
        }
    )


def _answers_of_others(examples: Sequence[FeedbackExample]) -> list[Ids]:
    """For each row the answer of the next one, from the first again behind the last, that has another prompt."""
    others: list[Ids] = [()] * len(examples)
    following = examples[0]
    # Backwards and twice round: whichever comes next with another prompt has been seen.
    for number in [*reversed(range(len(examples)))] * 2:
        after = examples[(number + 1) % len(examples)]
        if after.prompt_ids != examples[number].prompt_ids:
            following = after
        others[number] = following.completion_ids
    return others


def encode_all(prepared: Prepared, encode: Callable[[Any], Any], tokenizer: Any, config: AlignRun) -> RunData:
    """Every row encoded and split; those that cannot be are dropped, with their place. Raises DataError if all are."""
    examples, drops = [], []
    for row in prepared.rows:
        outcome = encode(row)
        if isinstance(outcome, Drop):
            drops.append(outcome.at(row.place, "encode", row.row))
        else:
            examples.append(outcome)
    cut, limit = [example.num_cut for example in examples if example.num_cut], config.schedule.max_tokens
    cut_rows = amount(len(cut), "row has", "rows have")
    remark = f"{cut_rows} an answer cut at {limit:,} tokens; left out: {amount(sum(cut), 'token')}"
    data = divide(prepared, examples, drops, config, (remark,) if cut else ())
    return as_asked(data, examples, tokenizer, config)


def encode_pair(row: Preference, tokenizer: Any, config: AlignRun) -> PairExample | Drop:
    """One pair as token ids, or why it cannot be used."""
    # Both answers are given in one mode: a thought in either is one in both.
    is_thinking = any(thinks((*row.prompt, answer)) for answer in (row.chosen, row.rejected))
    chosen = _tokens(row, row.chosen, tokenizer, config.encoding, is_thinking)
    if isinstance(chosen, Drop):
        return chosen
    rejected = _tokens(row, row.rejected, tokenizer, config.encoding, is_thinking)
    if isinstance(rejected, Drop):
        return rejected
    # A template may show the turns before an answer otherwise for the one than for the other.
    same = takewhile(lambda both: both[0] == both[1], zip(chosen.ids, rejected.ids, strict=False))
    num_prompt = min(chosen.first, rejected.first, len(list(same)))
    max_tokens = config.schedule.max_tokens
    longest = max(chosen, rejected, key=lambda one: len(one.ids))
    if drop := _too_long(longest, num_prompt, config):
        return drop
    prompt = chosen.ids[:num_prompt]
    chosen_ids, rejected_ids = chosen.ids[num_prompt:max_tokens], rejected.ids[num_prompt:max_tokens]
    num_cut = sum(max(0, len(one.ids) - max_tokens) for one in (chosen, rejected))
    if chosen_ids == rejected_ids and num_cut:
        detail = f"the two answers differ only behind the first {max_tokens:,} tokens"
        return Drop("too_long", detail, "raise schedule.max_tokens", row.chosen.path)
    if chosen_ids == rejected_ids:
        fix = "a pair needs answers that differ in what the model is shown"
        return Drop("nothing_to_learn", "the two answers are the same tokens to the model", fix, row.chosen.path)
    return PairExample(row, chosen.record, prompt, chosen_ids, rejected_ids, num_cut, chosen.moves_system)


def encode_one(row: Feedback, tokenizer: Any, config: AlignRun) -> FeedbackExample | Drop:
    """One answer with its label as token ids, or why it cannot be used."""
    answered = _tokens(row, row.completion, tokenizer, config.encoding)
    if isinstance(answered, Drop):
        return answered
    if drop := _too_long(answered, answered.first, config):
        return drop
    ids, first = answered.ids[: config.schedule.max_tokens], answered.first
    num_cut = len(answered.ids) - len(ids)
    return FeedbackExample(row, answered.record, ids[:first], ids[first:], num_cut, answered.moves_system)


@dataclass(frozen=True, slots=True)
class _Answered:
    """A conversation as tokens, up to the last answer's end-of-turn token; that answer begins at `first`."""

    record: Record
    ids: Ids
    first: int
    moves_system: bool


def _tokens(
    row: Preference | Feedback, answer: Message, tokenizer: Any, encoding: Encoding, is_thinking: bool | None = None
) -> _Answered | Drop:
    """The prompt with one of its answers through the model's chat template, or why it cannot be used."""
    messages = (*row.prompt, answer)
    if encoding.sequences.think == "strip":
        messages = tuple(map(without_thought, messages))
    if drop := cut_by_template(messages, tokenizer, encoding):
        return drop
    record = Record(messages, row.place, row.tools, row.row)
    try:
        tokens = Tokens.of(record, tokenizer, encoding, partial(render_answer, is_thinking=is_thinking))
    except TEMPLATE_ERRORS as error:
        return refused_by_template(
            error,
            messages,
            lambda some: render_answer(replace(record, messages=some), tokenizer, encoding, is_thinking=is_thinking),
        )
    labels = tokens.labels(tokens.rendered.spans)
    said = [number for number, label in enumerate(labels) if label != IGNORED]
    if not said or not said[0]:
        fix = "look at the answer as the template shows it; it may hold only what the template removes"
        return Drop("nothing_to_learn", "the model is shown nothing of the answer", fix, answer.path)
    return _Answered(record, tuple(tokens.ids[: said[-1] + 1]), said[0], tokens.rendered.moves_system)


def _too_long(answered: _Answered, num_prompt: int, config: AlignRun) -> Drop | None:
    """Why a conversation does not fit into schedule.max_tokens, neither whole nor, where that is allowed, cut."""
    num_tokens, max_tokens = len(answered.ids), config.schedule.max_tokens
    path = answered.record.messages[-1].path
    if num_tokens > max_tokens and config.sequences.longer != "truncate":
        fix = "shorten it, raise schedule.max_tokens, or cut its answers with sequences.longer=truncate"
        return Drop("too_long", f"{num_tokens:,} tokens, {max_tokens:,} are allowed", fix, path=path)
    if num_prompt >= max_tokens:
        detail = f"the prompt alone has {num_prompt:,} tokens, {max_tokens:,} are allowed with the answer"
        return Drop("too_long", detail, fix="shorten the prompt, or raise schedule.max_tokens", path=path)
    return None
