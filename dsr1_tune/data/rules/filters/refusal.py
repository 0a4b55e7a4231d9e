"""The rule about answers that refuse, or speak as an AI language model."""

from __future__ import annotations

from collections.abc import Sequence

from dsr1_tune.config import Count
from dsr1_tune.data.phrase_table import PhraseTable
from dsr1_tune.data.record import Drop, Row
from dsr1_tune.data.rules.rule import Meaning, Rule, RuleSettings, Words
from dsr1_tune.data.rules.text_features import Text, View, hints, phrases, quoted, view, watch

_TABLE = PhraseTable(__file__)
_SELF = (b"i ", b"i'", b"my ", b"it would", b"it is not", b"this request", b"your request", b"that request")
_REFUSING = watch(word.encode() for word in _TABLE["refusing"])
_BEING_ZH = tuple(phrases("作为|身为|我是|我只是|我作为|作為|身為"))
_NAMES_OF_AI = (" ai", " a.i", "artificial", "model", "bot", "assistant", "program", "llm")
_WORKED_OUT = ("determin", "find", "identify", "see")
# In longer texts such words are what a story or report tells.
_LONGEST_REQUEST = 400


class Refusal(RuleSettings):
    """Answers that refuse, or speak as an AI language model."""

    max_chars: Count = 500
    """Longer answers that begin with an apology also help, and are kept."""
    phrases: Words = ()
    """Further beginnings of answers, of your own."""


def refusal(row: Row, settings: Refusal) -> Row | Drop:
    """Drop an answer that begins with a refusal, or speaks as an AI language model.

    Later in an answer, or in quotation marks, a refusal is something that is talked about. Where the assistant has
    tools, to say that none fits is right.
    """
    seen = view(row)
    for text in seen.answers:
        if not (_may_refuse(text) or settings.phrases):
            continue
        head = text.content[:300].lower().replace("’", "'").lstrip()
        found = _refuses(head, text, len(text.content) <= settings.max_chars)
        if not found and settings.phrases:
            found = next((phrase for phrase in settings.phrases if head.startswith(phrase.lower())), "")
        if found and not seen.has_tools and not _asked_for(found, seen):
            fix = "write the answer, or set refusal to warn"
            return Drop("refusal", f"the answer refuses: {quoted(found)}", fix, text.message.path)
    return row


def _may_refuse(text: Text) -> bool:
    """A quick look, before the regular expressions; single rare characters are found fastest."""
    if text.num_han:
        head = text.content[:150]
        first = head[:16]
        if (
            ("歉" in head or "憾" in head or "模" in head or "智" in head or "無" in head or "恕" in head)
            or ("无法" in head or "拒绝" in head[:20] or "截止" in head[:40] or "敏感" in head or "超出" in head[:40])
            or ("不能" in first or "不会" in first or "不便" in first or "没有" in first or "对不起" in first)
            or ("不好意思" in first or "機" in head or "AI" in head or "程序" in head[:30] or "机器" in head[:40])
        ):
            return True
    if text.num_latin < (10 if text.num_han else 2):
        return False
    return text.low.startswith(_SELF) or not hints(text).isdisjoint(_REFUSING)


def _refuses(head: str, text: Text, short: bool) -> str:
    """The words that refuse, or nothing."""
    in_latin, in_han = text.num_latin > text.num_han, text.num_han > 3
    found = None
    if in_han and _has(head, _BEING_ZH):
        found = _TABLE.as_ai_zh.search(head)
    if found is None and in_latin and _has(head, _NAMES_OF_AI):
        found = _TABLE.as_ai_en.search(head)
    if found is None and _has(head, _TABLE["of_knowledge"]):
        found = _TABLE.knows_until.search(head)
    if found and not _in_quotes(head, found.start()):
        return found[0]
    if not short:
        return ""
    found = None
    if in_latin:
        found = _TABLE.sorry_en.match(head) or _TABLE.cannot_help_en.match(head) or _TABLE.declines_en.match(head)
        if found and found[0].endswith(_WORKED_OUT) and _TABLE.goes_on.search(head, found.end()):
            return ""  # it cannot be determined, and why
    if found is None and in_han:
        declines = _has(head[:60], _TABLE["declining_zh"])
        found = _TABLE.sorry_zh.match(head) or (_TABLE.declines_zh.match(head) if declines else None)
    return found[0] if found else ""


def _has(text: str, parts: Sequence[str]) -> bool:
    """Whether one of the parts stands there; for texts what `holds` is for bytes."""
    for part in parts:  # noqa: SIM110
        if part in text:
            return True
    return False


def _in_quotes(head: str, at: int) -> bool:
    before = head[:at]
    return before.count('"') % 2 == 1 or any(before.count(o) > before.count(c) for o, c in ("“”", "「」", "『』"))


def _asked_for(found: str, seen: View) -> bool:
    """Whether the refusal is right: asked for, or the answer to a request for harm; or who speaks is the question."""
    if len(seen.asked) < _LONGEST_REQUEST and _TABLE.harm.search(seen.asked):
        return True
    if "ai" in found or "model" in found or "人工" in found or "模型" in found or "机器人" in found:
        return _TABLE.about_ai.search(seen.asked) is not None
    return _TABLE.how_to_refuse.search(seen.asked) is not None


REFUSAL = Rule(
    "refusal",
    refusal,
    Meaning("the answer refuses, or speaks as an AI language model", "回答拒绝作答，或自称是 AI 语言模型"),
    Refusal,
)
