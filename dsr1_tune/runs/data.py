"""What a run learns from and what it is measured on: its records encoded, split, and packed where that is asked for."""

from __future__ import annotations

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from datasets import Dataset

from dsr1_tune.config import Template, TuneRun
from dsr1_tune.data.encode import thinking
from dsr1_tune.data.encode.chat import thinks
from dsr1_tune.data.encode.end_tokens import end_tokens
from dsr1_tune.data.encode.example import IGNORED, Encoded, Example, encode_all
from dsr1_tune.data.encode.packing import pack
from dsr1_tune.data.encode.template import arguments, needless_mode, thinking_switch, thinks_unasked
from dsr1_tune.data.prepare import repeat
from dsr1_tune.data.prepared import Prepared
from dsr1_tune.data.record import Drop, Record, Row
from dsr1_tune.data.split import split_rows
from dsr1_tune.errors import DataError, ModelError
from dsr1_tune.runs.trainer.collate import as_dataset
from dsr1_tune.text.amount import amount


@dataclass(frozen=True)
class RunData:
    """The cleaned and encoded rows, split; a split record's parts are all on one side.

    What is encoded has `input_ids`, `num_cut` and the `record` whose last question can be asked.
    """

    prepared: Prepared
    train: list[Any]
    held_out: list[Any]
    held_out_records: tuple[Any, ...]
    remarks: tuple[str, ...] = ()
    """What was done to records so that they could be learned, in words."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """The chat template's arguments with which most rows are asked, and so the trained model should be."""

    @property
    def eval_subset(self) -> list[Any]:
        """What the trained model is checked on: the held-out records, or a few others where none are held out."""
        return self.held_out or self.train[:8]

    @property
    def probe_name(self) -> str:
        """What the probe is, for people."""
        if self.held_out:
            return amount(len(self.held_out_records), "held-out record")
        return f"{len(self.eval_subset):,} of the training records, as none are held out"

    def asked(self, number: int) -> list[Record]:
        """So many of the probe's records to be answered; of one that was cut the last question may be out of reach."""
        return [example.record for example in self.eval_subset if not example.num_cut][:number]

    @property
    def sha256(self) -> str:
        """Of the tokens and labels to train on: whether a run that goes on learns what it learned before."""
        digest = hashlib.sha256()
        for example in self.train:
            for name in ("input_ids", "labels", "prompt_ids", "chosen_ids", "rejected_ids"):
                ids = array("q", getattr(example, name, ()))
                digest.update(len(ids).to_bytes(8) + ids.tobytes())
        return digest.hexdigest()

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return max(len(example.input_ids) for example in [*self.train, *self.held_out])


def encode_and_split(prepared: Prepared, tokenizer: Any, config: TuneRun) -> RunData:
    """What is to be trained on, and what is held out. Raises DataError if nothing is left."""
    encoded = encode_all(prepared.records, tokenizer, config.schedule.max_tokens, config.encoding)
    check_ends(encoded.examples, tokenizer, config)
    remarks = (*_remarks_on_length(encoded, config), *_remarks_on_tokens(encoded.examples, config))
    data = divide(prepared, encoded.examples, encoded.drops, config, remarks)
    return as_asked(data, encoded.examples, tokenizer, config)


def check_ends(examples: Sequence[Example], tokenizer: Any, config: TuneRun) -> None:
    """Prove that the last thing learned of every whole record is a token at which generation stops.

    Raises ModelError: a model that never learns to stop would be found out only when it is used.
    """
    ends = end_tokens(tokenizer, settings=arguments(tokenizer, config.template)).ids
    for example in examples:
        last = example.record.messages[-1]
        is_said = bool(thinking.strip(last.content).strip() or last.calls)
        is_whole = last.role == "assistant" and last.is_learned and is_said and not example.num_cut
        if not is_whole or "assistant" not in config.sequences.learn:
            continue
        token = next(label for label in reversed(example.labels) if label != IGNORED)
        if token not in ends:
            raise ModelError(
                f"{example.record.place}: what is learned of it ends with {tokenizer.decode([token])!r}, at which no "
                f"answer ends; these do: {', '.join(tokenizer.convert_ids_to_tokens(sorted(ends)))}",
                hint="look at the base's chat template and at eos_token in its tokenizer_config.json",
            )


def as_asked(data: RunData, examples: Sequence[Any], tokenizer: Any, config: TuneRun) -> RunData:
    """The data with the arguments by which most of the examples are asked, and what the template does to them."""
    template, remarks = config.template, []
    num_thinking = sum(thinks(example.record.messages) for example in examples)
    mostly = num_thinking * 2 > len(examples) if config.encoding.by_thought else None
    asked = arguments(tokenizer, template, mostly)
    if moved := sum(example.moves_system for example in examples):
        remarks.append(
            f"{amount(moved, 'record has', 'records have')} system turns that the chat template cannot show in their "
            "places: they stand in the first, or before the user's next words, and are learned as these are"
        )
    if needless := needless_mode(tokenizer, template):
        remarks.append(needless)
    elif config.encoding.by_thought:
        remarks += _remarks_on_modes(num_thinking, len(examples) - num_thinking, asked, tokenizer, template)
    return replace(data, template_kwargs=asked, remarks=(*data.remarks, *remarks))


def _remarks_on_modes(
    num_thinking: int, num_others: int, asked: Mapping[str, Any], tokenizer: Any, template: Template
) -> list[str]:
    """In which modes the rows are shown, unless all are in the one in which the template asks by itself."""
    switch = thinking_switch(tokenizer, template.kwargs)
    if not switch or (template.thinking == "auto" and switch in template.kwargs):
        return []
    have = f"{amount(num_thinking, 'record has', 'records have')} a thought"
    lack = f"{amount(num_others, 'has', 'have')} none"
    if template.thinking == "on":
        return [f"{have}, {lack}: all are shown with {switch}=true, with an empty thought where there is none"]
    if template.thinking == "off":
        return [f"{have}, {lack}: all are shown with {switch}=false, and thoughts are left out"]
    is_mixed = num_thinking > 0 < num_others
    if not is_mixed and asked[switch] == thinks_unasked(tokenizer, template.kwargs, switch):
        return []
    return [f"{have}, shown with {switch}=true; {lack}, shown with {switch}=false: ask in the same mode"]


def divide(
    prepared: Prepared, examples: Sequence[Any], drops: Sequence[Drop], config: TuneRun, remarks: tuple[str, ...] = ()
) -> RunData:
    """Encoded rows of any kind, split into those to train on and those held out. Raises DataError if there is none.

    `drops` are the rows of which no example came; `example.record.place` says of which row an example is. Rows that
    ask the same or are near copies are all on one side. Where there are evaluation files, they are what is held out.
    """
    if not examples:
        drop = drops[0]
        raise DataError(
            f"of {amount(len(drops), 'record')} none can be trained on; the first: {drop.place}: {drop.detail}",
            hint=drop.fix,
        )
    prepared = prepared.with_drops(drops)
    rows, evaluated = prepared.rows, prepared.eval_files
    if evaluated:
        is_held_out = [row.place.file in evaluated for row in rows]
        _must_have_both(is_held_out, prepared)
    else:
        is_held_out = split_rows(rows, config.data.eval_share, config.schedule.seed).is_held_out.tolist()
    train = tuple(row for row, is_held in zip(rows, is_held_out, strict=True) if not is_held)
    held_out = tuple(row for row, is_held in zip(rows, is_held_out, strict=True) if is_held)
    by_place = defaultdict(list)
    for example in examples:
        by_place[example.record.place].append(example)

    def examples_of(rows: Iterable[Row]) -> list[Any]:
        return [example for row in rows for example in by_place[row.place]]

    train = repeat(train, config.data.weights, config.schedule.seed)
    return RunData(prepared, examples_of(train), examples_of(held_out), held_out, remarks)


def _must_have_both(is_held_out: Sequence[bool], prepared: Prepared) -> None:
    """DataError where nothing is left of the files to train on, or of those to evaluate on."""
    for is_eval, purpose in ((False, "train on"), (True, "evaluate on")):
        if is_eval not in is_held_out:
            files = [file.file for file in prepared.files if file.is_eval == is_eval]
            drop = next(drop for drop in prepared.drops if drop.place and drop.place.file in files)
            message = f"{', '.join(files)}: no row is left to {purpose}; the first: {drop.place}: {drop.detail}"
            raise DataError(message, hint=drop.fix)


def _remarks_on_tokens(examples: Sequence[Example], config: TuneRun) -> list[str]:
    """What is tokenised, or learned, otherwise than it stands in the rows."""
    remarks = []
    if config.data.special_tokens == "text" and (num_rows := sum(example.num_control > 0 for example in examples)):
        total = sum(example.num_control for example in examples)
        remarks.append(
            f"{amount(num_rows, 'record holds', 'records hold')} control tokens of the base in the text, {total:,} in "
            "all, learned as text; data.special_tokens=keep makes them end and begin turns"
        )
    if apart := sum(len(example.apart) for example in examples):
        remarks.append(
            f"{amount(apart, 'call is', 'calls are')} shown otherwise once the result is known, and learned as the end "
            "of a conversation apart"
        )
    return remarks


def _remarks_on_length(encoded: Encoded, config: TuneRun) -> list[str]:
    """What was done to records of more than max_tokens."""
    limit = f"{config.schedule.max_tokens:,} tokens"
    remarks = []
    if encoded.num_truncated:
        num_cut = sum(example.num_cut for example in encoded.examples)
        cut = amount(encoded.num_truncated, "record was", "records were")
        remarks.append(f"{cut} cut at {limit}; left out: {amount(num_cut, 'token')}")
    if encoded.num_split:
        remarks.append(
            f"{amount(encoded.num_split, 'record was', 'records were')} split between turns, being of more than "
            f"{limit}; each part counts as one here"
        )
    if lost := encoded.lost_parts:
        remarks.append(
            f"{amount(len(lost), 'part of a record', 'parts of records')} left out; the first: {lost[0].place}: "
            f"{lost[0].path}: {lost[0].detail}"
        )
    return remarks


def training_set(data: RunData, config: TuneRun) -> tuple[Dataset, str]:
    """The training examples as they are, or packed, and how full the sequences are then."""
    if not config.sequences.packing:
        columns = {"input_ids": [e.input_ids for e in data.train], "labels": [e.labels for e in data.train]}
        return Dataset.from_dict(columns), ""
    sequences = pack(data.train, config.schedule.max_tokens, config.schedule.seed)
    filled = sum(len(one.input_ids) for one in sequences) / (len(sequences) * config.schedule.max_tokens)
    remark = f"{amount(len(data.train), 'record')} packed into {amount(len(sequences), 'sequence')}, {filled:.0%} full"
    return as_dataset(sequences), remark
