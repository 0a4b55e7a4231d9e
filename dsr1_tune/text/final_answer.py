"""The final answer of a text: in a box, behind "answer:" or at the end; as text and as a number."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property

from dsr1_tune.text.numbers import Number, numbers_in, on_one_line

MAX_MARKS, MAX_CHARS = 20, 500
"""A model that has gone astray writes "####" ten thousand times; the last marks, and what is near them, will do."""


@dataclass(frozen=True)
class FinalAnswer:
    """What an answer comes down to."""

    text: str
    is_marked: bool
    """Whether the answer marks it, with a box or "the answer is"; else it is all of the answer."""
    around: str = ""
    """All of an answer with a mark that is no box: its numbers count where there is none behind the mark."""

    @cached_property
    def number(self) -> Number | None:
        """Its number: what a mark is followed by, else the last one; None where there is none."""
        if self.is_marked and ((number := _number_of_part(self.text)) or not self.around):
            return number
        text = self.around or self.text
        found = numbers_in(_LAYOUT.sub("", text)) or numbers_in(text)
        return found[-1] if found else None


def final_answer(text: str) -> FinalAnswer:
    """What an answer comes down to.

    The last \\boxed{...} counts first, then what follows the last "answer:", "the answer is", "答案：", "####" on its
    line, else it is all of the text.
    """
    if boxed := _boxed(text):
        return FinalAnswer(boxed[-1], True)
    for mark in reversed(_marks(text)):
        rest = text[mark.end() : mark.end() + MAX_CHARS].lstrip("*_ \t\n")
        line = rest.split("\n", 1)[0].strip().strip("*_").strip()
        if line:
            return FinalAnswer(line, True, "" if _FORMULA.search(line) else text)
    return FinalAnswer(text.strip(), False)


def final_numbers(text: str) -> list[Number]:
    """The number behind every "the answer is" and 答案 and in every box; none of an answer with parts (a), (b)."""
    if _HAS_PARTS.search(text):
        return []
    behind = [text[mark.end() : mark.end() + MAX_CHARS] for mark in _marks(text) if _is_last_word(mark)]
    parts = [part.lstrip("*_ \t").split("\n", 1)[0] for part in behind]
    parts = [part for part in parts if "boxed" not in part] + _boxed(text)
    return [number for part in parts if (number := _number_of_part(part)) is not None]


# --- where it is ----------------------------------------------------------------------------------------------------

_MARK = re.compile(
    r"(?:\b(?P<word>(?:final[ \t]{1,9}|the[ \t]{1,9})?answer|result)\b[ \t]{0,9}(?:\*{1,2}|_{1,2})?[ \t]{0,9}"
    r"(?P<says>is\b|are\b|=|:|：)[\s:：=]{0,9}"
    # A heading is no result: behind #### nothing but a number.
    r"|####[ \t]{0,9}(?=[-+−]?[$€¥]?[ \t]?[\d.,/]{1,40}[ \t]{0,2}[^\s\d]{0,8}[ \t]{0,9}(?:\n|\Z))"
    r"|(?P<han>(?:最终|正确)?(?:答案|结果|得数))[ \t]{0,9}(?:\*{1,2})?[ \t]{0,9}"
    r"(?:为|是|等于|=|:|：)[\s:：=为是]{0,9})",
    re.I,
)
_BOX = re.compile(r"\\f?boxed\s*\{")
_HAS_PARTS = re.compile(
    r"[（(](?:[a-hA-H]|[ivx]{1,3}|[1-9]|[一二三四五六])[)）]|[①-⑩]|第[一二三四五六七八九十\d]{1,3}[问题步种]"
    r"|\b(?:part|question|problem|case|step|example|exercise|method)\s?[\dA-Z]\b|^[ \t]{0,9}\d{1,2}[.)、]",
    re.I | re.M,
)


def _marks(text: str) -> list[re.Match[str]]:
    return list(_MARK.finditer(text))[-MAX_MARKS:]


def _is_last_word(mark: re.Match[str]) -> bool:
    """Whether a mark says "the answer is", "final answer" or 答案; a result may be that of one step."""
    word, says = (mark["word"] or "").lower(), (mark["says"] or "").lower()
    return (word.startswith("the") and says == "is") or word.startswith("final") or "答案" in (mark["han"] or "")


def _boxed(text: str) -> list[str]:
    """What stands in the last \\boxed{...} and \\fbox{...} that are closed; their braces may be nested."""
    found = []
    for box in list(_BOX.finditer(text))[-MAX_MARKS:]:
        depth = 1
        for at in range(box.end(), min(len(text), box.end() + MAX_CHARS)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if not depth:
                found.append(text[box.end() : at].strip())
                break
    return found


# --- its number -----------------------------------------------------------------------------------------------------

# Headings with something below them, and the numbers and bullets of a list.
_LAYOUT = re.compile(r"^#{1,6}[ \t].*\n|(?<=\n)[ \t]{0,9}(?:\d{1,2}[.)、][ \t]+|[-+*•][ \t]+)(?=\S)", re.M)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s|[。！？；;]")
_FORMULA = re.compile(r"\\(?:sqrt|pi|infty|log|ln|sin|cos|tan|pm|cup)(?![a-zA-Z])")
_LEADS_IN = re.compile(
    r"(?:[^\w]|\\[a-zA-Z]{1,12}|(?:about|around|roughly|approximately|exactly|only|just|therefore|the|a total of)\b"
    r"|[a-zA-Z]{1,3}\s?=|US|USD|RMB|约|大约|共|一共|总共|第){0,12}",
    re.I,
)


def _number_of_part(part: str) -> Number | None:
    """The number of a result: the one behind the last equals sign, the first if it comes at once, else the last.

    "3 + 4 = 7" is 7, "12 = 3 * 4" is 12, "12 apples (3 bags of 4)" is 12, "the sum of 3 and 4: 7" is 7.
    """
    part = on_one_line(part)
    if _FORMULA.search(part):
        return None
    sentence = _SENTENCE_END.split(part, maxsplit=1)[0]
    part = sentence if numbers_in(sentence, is_marked=True) else part
    behind = numbers_in(re.split(r"[=≈]", part)[-1]) if re.search("[=≈]", part) else []
    if len(behind) == 1:
        return behind[0]
    found = numbers_in(part, is_marked=True)
    if not found:
        return None
    start = found[0].start
    return found[0] if start < MAX_CHARS and _LEADS_IN.fullmatch(part[:start]) else found[-1]


# --- as text --------------------------------------------------------------------------------------------------------


def same_text(text: str) -> str:
    """A text without what makes no difference: case, width, blanks, markup, a full stop or quotes around it."""
    text = unicodedata.normalize("NFKC", text.replace("！", "。")).casefold()
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s?\{([^{}]{0,500})\}", r"\1", text).replace("$", "")
    text = re.sub(r"\s+", " ", text)
    before = None
    while text != before:  # one pair around it after another
        before = text
        text = _EMPHASIS.sub(r"\2", text.strip().lstrip("\"'“‘”’,;:。"))
        text = re.sub(r"(?<![\d)\]!])!$", "", text.rstrip("\"'“”‘’ .。?,;:"))
        if _IN_BRACKETS.fullmatch(text) and not ("," in text and text[0] == "["):
            text = text[1:-1]
    return text[0] if re.fullmatch(r"[a-z]\)", text) else text


_EMPHASIS = re.compile(r"(?<!\w)(\*{1,3}|_{1,3}|`{1,3})(?=\S)([^*_`]{1,200})(?<=\S)\1(?!\w)")
_IN_BRACKETS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|「[^「」]*」|『[^『』]*』|《[^《》]*》")
