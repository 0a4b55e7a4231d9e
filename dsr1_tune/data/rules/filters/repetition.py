"""The rules about repetition: the same phrases, lines or turns again and again."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import Annotated

from pydantic import Field

from dsr1_tune.config import Count
from dsr1_tune.data.phrase_table import PhraseTable
from dsr1_tune.data.record import Drop, Row
from dsr1_tune.data.rules.rule import Meaning, Part, Rule, RuleSettings
from dsr1_tune.data.rules.text_features import WORD, Text, View, bare, ends, looks_like_code, quoted, view, without_code

_TABLE = PhraseTable(__file__)
_LONGEST_UNIT = 300
_MARKERS = "0123456789.)、．）:： \t-*•·"
_SENTENCE = 24


class RepeatedText(RuleSettings):
    """Answers that go round in circles: n-grams of characters in Chinese, of words elsewhere."""

    max_share: Part = 0.5
    """Largest share of n-grams that stood there before."""
    max_run: Count = 5
    """So many times the same phrase in a row is too often, where that makes up a fifth of the text."""
    min_chars: Annotated[int, Field(ge=20)] = 20
    """Shorter answers are not looked at."""


class RepeatedLines(RuleSettings):
    """Answers in which the same lines stand again and again."""

    max_share: Part = 0.5
    """Largest share of the text that is in lines which were there before."""
    max_run: Count = 4
    """So many times the same line in a row is too often."""


class RepeatedTurn(RuleSettings):
    """Conversations in which the same question gets the same answer twice in a row."""


def repeated_text(row: Row, settings: RepeatedText) -> Row | Drop:
    """Drop an answer that goes round in circles; of very long answers, beginning and end are looked at."""
    seen = view(row)
    for text in seen.answers:
        if len(text.content) < settings.min_chars:
            continue
        content = ends(without_code(text))
        if len(content) < settings.min_chars:
            continue
        why = _said_twice(content) if settings.max_share < 1 else ""
        why = why or _goes_in_circles(content, text, settings, seen)
        if why:
            fix = "cut the repetition, or raise repeated_text.max_share or max_run"
            return Drop("repeated_text", why, fix, text.message.path)
    return row


def _said_twice(content: str) -> str:
    again = content.find(content[:16], len(content) // 2 - 2)
    half = content[:again]
    if again < 10 or bare(half) != bare(content[again:]) or 3 * sum(map(str.isalpha, half)) < again:
        return ""
    return f"all of it stands there twice: {quoted(half)}"


def _goes_in_circles(content: str, text: Text, settings: RepeatedText, seen: View) -> str:
    """Why the answer is too repetitive, or nothing.

    Samples from four places are looked for: a text in circles cannot hide from them. Only where some stand there
    again and again is the whole text looked at.
    """
    width = _width(text.is_han)
    length = len(content)
    samples = (length - width - 2, length * 3 // 4, length // 2, length // 4)
    often = [at for at in samples if at >= 0 and content.count(content[at : at + width]) > 2]
    if not often:
        return ""
    why = _why_in_circles(content, often, text, settings, seen)
    end = content[length - width - 2 : length - 2]
    if not why and often[0] == length - width - 2 and b"2" in text.data and content.count(end) >= settings.max_run:
        # The last of `1. So it is. 2. So it is.` came back, and only its number is new.
        unnumbered = _TABLE.number.sub(" ", content)
        if len(unnumbered) + settings.max_run < len(content):
            places = [max(0, len(unnumbered) * part // 4 - width - 2) for part in (1, 2, 3, 4)]
            why = _why_in_circles(unnumbered, places, text, settings, seen)
    return why


def _why_in_circles(content: str, often: list[int], text: Text, settings: RepeatedText, seen: View) -> str:
    """Why the text is too repetitive, whose samples at these places come back, or nothing."""
    width = _width(text.is_han)
    length = len(content)
    unit, num_times = max((_run(content, at, width) for at in often), key=lambda run: len(run[0]) * run[1])
    why = ""
    if num_times >= settings.max_run and _is_much(unit, num_times, length):
        why = f"{quoted(unit)} {num_times} times in a row"
    share = 0.0
    if why or len(often) > 2:
        share, gram, count = _share_said_before(content, text.is_han)
        if share > settings.max_share:
            why = why or f"{share:.0%} of it stood there before, {quoted(gram)} {count} times"
    if not why:
        return ""
    # A dozen times the same in a row, within one line, is no program either.
    is_stuck = num_times > 11 and "\n" not in unit and sum(map(str.isalpha, unit)) > 2
    if not is_stuck and not _is_prose(unit or content[:200]) and looks_like_code(text):
        return ""
    stays_in_bounds = share < 0.85 and (num_times < 2 * settings.max_run or len(unit) < 8)
    return "" if stays_in_bounds and _TABLE.repeats_by_nature.search(seen.asked) else why


def _width(is_han: bool) -> int:
    """The length of a sample that says something."""
    return 6 if is_han else 12


def _is_much(unit: str, num_times: int, length: int) -> bool:
    """Whether a run is of words, and of whole phrases or a fifth of the text."""
    num_letters = sum(map(str.isalpha, unit))
    return num_letters > 1 and (num_letters > 7 or 5 * len(unit) * num_times > length)


def _run(content: str, at: int, width: int) -> tuple[str, int]:
    """The unit that begins with the sample at that place, and how often it stands there in a row."""
    sample = content[at : at + width]
    before = content.rfind(sample, 0, at + width - 1)
    after = content.find(sample, at + 1)
    period = min(at - before if before >= 0 else _LONGEST_UNIT, after - at if after >= 0 else _LONGEST_UNIT)
    unit = content[at - period : at] if before == at - period else content[at : at + period]
    if not 0 < period < _LONGEST_UNIT:
        return "", 0
    num_times, here = 0, at
    while content.startswith(unit, here):
        num_times, here = num_times + 1, here + period
    here = at - period
    while here >= 0 and content.startswith(unit, here):
        num_times, here = num_times + 1, here - period
    return unit, num_times


def _share_said_before(content: str, is_han: bool) -> tuple[float, str, int]:
    """(share of n-grams that stood there before, the commonest, how often); 8 Han characters or 4 words each."""
    if is_han:
        joined = "".join(WORD.findall(content))
        grams = [joined[i : i + 8] for i in range(len(joined) - 7)]
    else:
        words = WORD.findall(content.lower())
        grams = [" ".join(words[i : i + 4]) for i in range(len(words) - 3)]
    if not grams:
        return 0.0, "", 0
    times = Counter(grams)
    gram, count = times.most_common(1)[0]
    return 1 - len(times) / len(grams), gram, count


def _is_prose(text: str) -> bool:
    """Whether the text is words rather than code, a formula or a row of a table."""
    if "{{" in text:  # {{name}} stands for a word
        text = text.replace("{{", "").replace("}}", "")
    return 10 * sum(map(str.isalpha, text)) > 5 * len(text) and not _TABLE.code_sign.search(text)


def repeated_lines(row: Row, settings: RepeatedLines) -> Row | Drop:
    """Drop an answer in which lines of prose stand again and again; code, tables and choruses are fine."""
    seen = view(row)
    for text in seen.answers:
        if text.data.count(b"\n") < settings.max_run - 1:
            continue
        lines = without_code(text).split("\n")
        if len(lines) - len({line[-10:] for line in lines}) - lines.count("") < 2:  # a quick look, at the lines' ends
            continue
        lines = list(filter(_is_prose, map(_without_marker, lines)))
        why = _again_and_again(lines, settings, _TABLE.repeats_by_nature.search(seen.asked) is not None)
        if why:
            fix = "cut the repetition, or raise repeated_lines.max_share"
            return Drop("repeated_lines", why, fix, text.message.path)
    return row


def _without_marker(line: str) -> str:
    """The line without `- ` or `3. ` before it, if it is a sentence: many items may have the same short answer."""
    line = line.strip()
    said = line.lstrip(_MARKERS)
    return said if len(said) > _SENTENCE or (len(said) * 3 > _SENTENCE and not said.isascii()) else line


def _again_and_again(lines: list[str], settings: RepeatedLines, creative: bool) -> str:
    """Why the lines are too repetitive, or nothing."""
    times = Counter(lines)
    again = sum((count - 1) * len(line) for line, count in times.items())
    if again > (0.8 if creative else settings.max_share) * sum(map(len, lines)) and len(lines) - len(times) > 1:
        line, count = times.most_common(1)[0]
        return f"{quoted(line)} stands there {count} times"
    for line, same in groupby(lines):
        num_same = sum(1 for _ in same)
        if num_same >= (2 * settings.max_run if creative else settings.max_run):
            return f"{quoted(line)} {num_same} times in a row"
    return ""


def repeated_turn(row: Row, settings: RepeatedTurn) -> Row | Drop:
    """Drop a conversation in which the same question gets the same answer twice in a row."""
    texts = view(row).texts
    for i in range(len(texts) - 3):  # a question, its answer, and both again
        question, answer = texts[i].message, texts[i + 1].message
        if question.role == "user" and question == texts[i + 2].message and answer == texts[i + 3].message:
            fix = "remove one of the two turns"
            return Drop("repeated_turn", f"said twice: {quoted(question.content)}", fix, texts[i + 2].message.path)
    return row


REPEATED_TURN = Rule(
    "repeated_turn",
    repeated_turn,
    Meaning("the same question gets the same answer twice in a row", "同一问题接连两次得到同样的回答"),
    RepeatedTurn,
)
REPEATED_LINES = Rule(
    "repeated_lines", repeated_lines, Meaning("the same lines stand again and again", "同样的行一再出现"), RepeatedLines
)
REPEATED_TEXT = Rule(
    "repeated_text", repeated_text, Meaning("the text goes round in circles", "文本反复循环"), RepeatedText
)
