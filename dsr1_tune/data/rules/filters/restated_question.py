"""The rules about answers that repeat the question or restate it in other words."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dsr1_tune.config import Count
from dsr1_tune.data.phrase_table import PhraseTable
from dsr1_tune.data.record import Drop, Row
from dsr1_tune.data.rules.rule import Meaning, Rule, RuleSettings
from dsr1_tune.data.rules.text_features import HAN_RUN, WORD, Text, bare, holds, quoted, view

_TABLE = PhraseTable(__file__)
_GREETINGS = frozenset(_TABLE["greetings"])
_QUOTES = " \t\r\n“\"'‘「《"
_LEADING = frozenset("好嗯明我收没当您你用提题问感谢让")
_LEADING_WITH = frozenset("这该此本多先换也")
_SPEAKING_OF_QUESTIONS = tuple(word.encode() for word in _TABLE["speaking_of_questions"])
# An answer with more new words says something, however long the question is that it takes up.
_MOST_NEW = 8
_STOP = frozenset(_TABLE["stop"])


class AnswerRepeatsQuestion(RuleSettings):
    """Answers that are the question, or its first line, again."""

    min_chars: Count = 4
    """Answers with fewer letters are not looked at."""


class AnswerRestatesQuestion(RuleSettings):
    """Answers that say the question in other words and nothing more."""

    max_new_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    """An answer that says "you ask ..." with a larger share of words not in the question says something new."""


def answer_repeats_question(row: Row, settings: AnswerRepeatsQuestion) -> Row | Drop:
    """Drop an answer that is the whole question again, or its first line, the instruction.

    To give back only the text that was asked about is fine: there may have been nothing to correct.
    """
    seen = view(row)
    asked, answer = seen.question, seen.answer
    if asked is None or answer is None or len(answer.content) > 2 * len(asked.content) + 20:
        return row
    low, fourth = answer.low, len(answer.low) // 4
    samples = (low[fourth : fourth + 12], low[2 * fourth : 2 * fourth + 12], low[3 * fourth - 12 : 3 * fourth])
    low = asked.low
    known = (samples[0] in low) + (samples[1] in low)
    is_known = known == 2 or (known == 1 and samples[2] in low)
    is_full_width = answer.shape.count(b"f") * 2 > len(answer.shape)
    if not is_known and (answer.num_han or answer.num_latin * 2 > len(answer.shape) or not is_full_width):
        return row
    said = bare(answer.content)
    if len(said) < settings.min_chars or said in _GREETINGS:
        return row
    first, _, rest = asked.content.strip().partition("\n")
    whole = bare(asked.content)
    if said in (whole, whole * 2) or (said == bare(first) and not _TABLE.echo.search(rest)):
        fix = "write the answer, or remove the row"
        detail = f"the answer is the question: {quoted(answer.content)}"
        return Drop("answer_repeats_question", detail, fix, answer.message.path)
    return row


def answer_restates_question(row: Row, settings: AnswerRestatesQuestion) -> Row | Drop:
    """Drop an answer that only says what is asked: `You want to know how to cook rice.`, `How to cook rice.`"""
    seen = view(row)
    asked, answer = seen.question, seen.answer
    if asked is None or answer is None or len(answer.data) > 2 * len(asked.data) + 150:
        return row
    if len(answer.data) > max(1000, len(asked.data) + 150) or seen.has_tools:
        return row
    if len(asked.content) > 600 and len(answer.content) * 5 < len(asked.content) * 3:
        return row  # a short answer in the words of a passage
    is_as_long = len(asked.data) <= 2 * len(answer.data) and len(answer.data) <= len(asked.data) + 24
    if (_may_take_up(answer) and _only_takes_up(asked.content, answer, settings)) or (
        is_as_long and (not answer.num_han or answer.content[:4] in asked.content) and _is_the_stem(asked, answer)
    ):
        detail = f"it only says what is asked: {quoted(answer.content)}"
        fix = "write an answer, or raise answer_restates_question.max_new_share"
        return Drop("answer_restates_question", detail, fix, answer.message.path)
    return row


def _may_take_up(answer: Text) -> bool:
    """A quick look: how such answers begin, or what they say at the end."""
    content = answer.content
    if answer.num_han > answer.num_latin:
        begins = content[:16].lstrip(_QUOTES)
        if "题" in content[-24:] or begins[:1] in _LEADING:
            return True
        return begins[:1] in _LEADING_WITH and ("题" in begins or "问" in begins or "关" in begins or "换" in begins)
    low = answer.low
    return holds(low if len(low) < 240 else low[:120] + low[-120:], _SPEAKING_OF_QUESTIONS)


def _only_takes_up(asked: str, text: Text, settings: AnswerRestatesQuestion) -> bool:
    """Whether the answer speaks of the question, and but for that has hardly a word of its own."""
    answer = text.content
    in_han, in_latin = (_TABLE.lead_zh, _TABLE.remark_zh), (_TABLE.lead, _TABLE.remark)
    pairs = (in_han, in_latin) if text.num_han else (in_latin,)
    start, num_leads, num_remarks = 0, 0, 0
    for lead, remark in pairs:
        while num_leads < 4 and (found := lead.match(answer, start)):
            start, num_leads = found.end(), num_leads + 1
        num_remarks += remark.search(answer[-60:]) is not None
    if not num_leads and not num_remarks:
        return False
    said = answer[start:]
    for _, remark in pairs:
        said = remark.sub(" ", said)
    new, num = _new_grams(said, asked)
    if new > min(settings.max_new_share * num, _MOST_NEW) or (not num_leads and num < 2):
        return False
    return not _TABLE.yes_or_no.search(answer) or _TABLE.yes_or_no.search(asked) is not None


def _is_the_stem(asked: Text, answer: Text) -> bool:
    """Whether the answer is the question without its question word: `How can I sleep?`, `How to sleep.`"""
    if answer.num_han:
        content = answer.content.strip()
        fourth = len(content) // 4
        samples = (content[:4], content[fourth : fourth + 4], content[2 * fourth : 2 * fourth + 4])
        if not all(sample in asked.content for sample in samples) or not _TABLE.asks_zh.search(asked.content):
            return False
        stem, of_answer = _TABLE.asks_zh.sub("", asked.content), _TABLE.asks_zh.sub("", answer.content)
    else:
        found = _TABLE.asks_en.match(asked.content)
        if not found:
            return False
        stem, of_answer = asked.content[found.end() :], _TABLE.asks_en.sub("", answer.content, count=1)
    stem = bare(stem)
    return len(stem) > 4 and stem == bare(of_answer)


def _new_grams(said: str, asked: str) -> tuple[int, int]:
    """(how many of the Han bigrams and words said were not asked, how many there are)."""
    known = set(_grams(asked))
    grams = _grams(said)
    return sum(gram not in known for gram in grams), len(grams)


def _grams(text: str) -> list[str]:
    text = text.lower()
    grams = [run[i : i + 2] for run in HAN_RUN.findall(text) for i in range(len(run) - 1)]
    return grams + [word for word in WORD.findall(HAN_RUN.sub(" ", text)) if word not in _STOP]


ANSWER_REPEATS_QUESTION = Rule(
    "answer_repeats_question",
    answer_repeats_question,
    Meaning("the answer is the question again", "回答只是照抄问题"),
    AnswerRepeatsQuestion,
)
ANSWER_RESTATES_QUESTION = Rule(
    "answer_restates_question",
    answer_restates_question,
    Meaning("the answer says the question in other words, and nothing more", "回答只是换种说法复述问题"),
    AnswerRestatesQuestion,
)
