"""The nouns that flow through the data stage: Message, Record, Preference, Feedback, Prompt, and Drop."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]

CODES: dict[str, str] = {
    # reading
    "not_an_object": "the row is a number, a text or a list, not an object with named fields",
    "unknown_fields": "none of the row's fields is a question or an answer",
    "missing_field": "a field that the row needs is not there",
    "ambiguous_fields": "several fields could be the question, or the answer",
    "null_value": "a field that the row needs is null",
    "wrong_type": "a field holds something else than text, or than a list of turns",
    "unknown_role": "a turn is said by a role that is not known",
    "turn_order": "the turns do not alternate as a conversation does",
    "no_assistant": "the conversation does not end with the assistant's answer",
    "unknown_label": "the label says neither good nor bad",
    "bad_encoding": "the text holds bytes or characters that are no text",
    "too_large": "a field is far longer than anything that can be learned from",
    "nested_too_deep": "lists and objects are nested too deeply to be read",
    "json_malformed": "the line is not JSON; the lines around it are read",
    "json_damaged": "the JSON array is broken at this element",
    "json_truncated": "the file ends in the middle of a row, or before its closing bracket",
    "csv_malformed": "the line has other columns than the header, or misplaced quotes",
    "csv_truncated": "a quote is opened here and never closed; it swallows the rest of the file",
    # rules
    "empty_question": "a question is blank",
    "empty_answer": "an answer is blank",
    "question_too_short": "the question is shorter than min_question_chars",
    "answer_too_short": "the answer is shorter than min_answer_chars",
    "question_too_long": "the question is longer than max_chars",
    "answer_too_long": "the answer is longer than max_chars",
    "placeholder_answer": "the answer is a stand-in such as TODO, N/A or 无",
    "answer_repeats_question": "the answer is the question again",
    "answer_restates_question": "the answer says the question in other words, and nothing more",
    "repeated_text": "the text goes round in circles",
    "repeated_lines": "the same lines stand again and again",
    "repeated_turn": "the same question gets the same answer twice in a row",
    "odd_characters": "the text is mostly signs that are no language, code or formula",
    "mojibake": "the text was decoded in a wrong encoding, and cannot be mended",
    "replacement_character": "the text holds U+FFFD, where characters were lost",
    "html_markup": "the text holds the markup of a web page",
    "boilerplate": "the answer is a web page's navigation, cookie or copyright text",
    "refusal": "the answer refuses, or speaks as an AI language model",
    "truncated_answer": "the answer breaks off in the middle of a sentence",
    "wrong_language": "the answer is in another language than the question, which asks for none",
    "advertisement": "the answer advertises: links, contact numbers, calls to buy",
    "equal_answers": "chosen and rejected are the same answer",
    "blocked_word": "the row holds a word of your list",
    "custom_rule": "a rule of your own objects",
    # said of rows that are kept
    "template_placeholder": "the text holds a placeholder such as {{name}}",
    "flattened_turns": "several turns stood in one text with tags such as <user>: and <bot>:, and were told apart",
    "uneven_lengths": "one of the two answers is several times as long as the other",
    "scores_disagree": "by the row's own scores the chosen answer is not the better one",
    # personal data
    "personal_data": "the row holds personal data",
    # duplicates
    "exact_duplicate": "the same conversation stands elsewhere",
    "near_duplicate": "nearly the same conversation stands elsewhere",
    "contradictory_answer": "the same question has another short answer elsewhere",
    "contradictory_preference": "elsewhere the same two answers are preferred the other way round",
    "contradictory_label": "elsewhere the same answer has the other label",
    "contaminated": "the row holds a row of the evaluation files",
    # judge
    "not_fluent": "a small language model finds the answer no natural text",
    "unhelped_answer": "the question makes the answer no likelier to a small language model",
    "answer_does_not_fit": "a small model finds that the answer belongs to another question",
    # selection and encoding
    "not_drawn": "the file counts for less than 1, and this row was not drawn",
    "not_supervised": "a preference, feedback or prompt-only row, where a question with its answer is needed",
    "not_of_this_kind": "a row of another kind than this way of training learns from",
    "template_refused": "the model's chat template refuses the conversation",
    "nothing_to_learn": "the model's chat template leaves nothing of the answer",
    "too_long": "the conversation has more tokens than max_tokens",
}
"""Every code a Drop can carry, and what it means. Codes are stable: scripts may rely on them."""

DAMAGE = frozenset({"json_damaged", "json_truncated", "csv_truncated"})
"""Codes after which a file holds an unknown number of further rows that nobody could read."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row stands: its file, the line on which it starts (from 1) and its index among the rows (from 0).

    Parquet has no lines; there the line is the number of the row, from 1.
    """

    file: str
    line: int
    index: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `path` is where its text stands in the row it was read from."""

    role: Role
    content: str
    path: str = field(default="$", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Record:
    """A conversation to learn from; its last message is the assistant's.

    `tools` is the JSON text of the functions the assistant may call, if any; `row` is the row as it was read; `notes`
    say what is odd about a row that can be used all the same.
    """

    messages: tuple[Message, ...]
    place: Place
    tools: str = ""
    row: Any = field(default=None, compare=False, repr=False)
    notes: tuple[Drop, ...] = field(default=(), compare=False, repr=False)

    @property
    def question(self) -> str:
        """The last thing the user said before the final answer."""
        return next((m.content for m in reversed(self.messages[:-1]) if m.role == "user"), "")

    @property
    def answer(self) -> str:
        """The final answer."""
        return self.messages[-1].content


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt with a better and a worse answer, for reward models and DPO."""

    prompt: tuple[Message, ...]
    chosen: Message
    rejected: Message
    place: Place
    tools: str = ""
    row: Any = field(default=None, compare=False, repr=False)
    notes: tuple[Drop, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Feedback:
    """A prompt with one answer and whether people liked it, for KTO."""

    prompt: tuple[Message, ...]
    completion: Message
    is_good: bool
    place: Place
    tools: str = ""
    row: Any = field(default=None, compare=False, repr=False)
    notes: tuple[Drop, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt without an answer to learn, for PPO and GRPO; `answer` is the checkable result where there is one."""

    messages: tuple[Message, ...]
    answer: str | None
    place: Place
    tools: str = ""
    row: Any = field(default=None, compare=False, repr=False)
    notes: tuple[Drop, ...] = field(default=(), compare=False, repr=False)


Row = Record | Preference | Feedback | Prompt


def messages_of(row: Row) -> tuple[Message, ...]:
    """All that is said in a row, its answers last; a prompt's checkable answer is not said."""
    match row:
        case Preference():
            return (*row.prompt, row.chosen, row.rejected)
        case Feedback():
            return (*row.prompt, row.completion)
        case Prompt() | Record():
            return row.messages


def prompt_of(row: Row) -> tuple[Message, ...]:
    """All that is said before the answer."""
    match row:
        case Preference() | Feedback():
            return row.prompt
        case Prompt():
            return row.messages
        case Record():
            return row.messages[:-1]


@dataclass(frozen=True, slots=True)
class Drop:
    """A row that cannot be used, and how to mend it.

    `code` is one of CODES; `path` is the JSON path inside the row (`$.messages[1].content`); `row` is the row as it
    was read, or its raw text where it could not be parsed. A rule fills in what is wrong; the pipeline adds where
    with `at`.
    """

    code: str
    detail: str
    fix: str = ""
    path: str = "$"
    stage: str = ""
    place: Place | None = None
    row: Any = None

    def at(self, place: Place, stage: str, row: Any) -> Drop:
        """The same drop, with where it happened and what fell out."""
        return replace(self, place=place, stage=stage, row=row)

    def as_json(self) -> dict[str, Any]:
        """What is wrong and where, without the row, as plain JSON values."""
        place = self.place
        return {
            "file": place.file if place else None,
            "line": place.line if place else None,
            "index": place.index if place else None,
            "stage": self.stage,
            "code": self.code,
            "path": self.path,
            "detail": self.detail,
            "fix": self.fix,
        }


@dataclass(frozen=True, slots=True)
class Checked:
    """What became of a row in one step: the row, perhaps mended, or a Drop; and what is odd about a row that is kept.

    `notes` are remarks in the form of Drops; `mended` names what was repaired, such as "encoding".
    """

    row: Row | Drop
    notes: tuple[Drop, ...] = ()
    mended: tuple[str, ...] = ()
