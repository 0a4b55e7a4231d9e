"""The rule about answers that break off."""

from __future__ import annotations

import re

from dsr1_tune.data.record import Drop, Row
from dsr1_tune.data.rules_facts import LONG, Text, looks_like_code, phrases, quoted, view
from dsr1_tune.data.rules_settings import TruncatedAnswer


def truncated_answer(row: Row, rule: TruncatedAnswer) -> Row | Drop:
    """Drop a final answer that breaks off; lists, titles, names, code and single sentences need no full stop."""
    text = view(row).answer
    if text is None or len(text.content) < rule.min_chars:
        return row
    content = text.content.rstrip()
    if not content:
        return row
    last = content[-1]
    if not last.isalpha() and last not in _OPENS and b"`" not in text.signs and content[0] not in "{[":
        return row
    why = _breaks_off(content, text, rule)
    if not why:
        return row
    detail = f"{why}: … {quoted(content[-40:])}"
    return Drop("truncated_answer", detail, "complete the answer, or remove the row", text.message.path)


_OPENS = frozenset(",，、:：([{（【《“‘「『<")


def _breaks_off(content: str, text: Text, rule: TruncatedAnswer) -> str:
    """What shows that the answer breaks off, or nothing."""
    last = content[-1]
    if content.count("```") % 2:
        return "a block of code is not closed"
    if _JSON.match(content):
        return "JSON is not closed" if last not in "]}" and not _closes_json(content) else ""
    if not last.isalpha() and last not in _OPENS:
        return ""
    lines = [line for line in map(str.strip, content[-LONG:].split("\n")) if line]
    line = lines[-1]
    if last in _OPENS:
        return f"it ends with {last}"
    if b"```" in text.data or looks_like_code(text):
        return ""
    if _unclosed(line):
        return "a bracket is not closed"
    if _ends_with_small_word(line):
        return "it ends with a word that needs another"
    if not rule.unended or _is_signature(lines) or _is_careless(line) or _TAG.search(line):
        return ""
    tail = _after_last_sentence(line)
    if tail:
        return "" if _CLOSING.match(tail) and len(tail) < 40 else "the last sentence has no end"
    if len(lines) > 1 and _others_end(lines):
        return "the last line has no end"
    if _LONG_SENTENCE.match(line) and not _ITEM.match(line):
        return "the sentence has no end"
    return ""


# `#PuppyLove` and `- C. S. Lewis` end without a full stop.
_TAG = re.compile(r"#\w+$|[-—–~] ?[A-Z][\w. ]{2,40}$")
# A sentence of twelve words and more is no title.
_LONG_SENTENCE = re.compile(r"[A-Z\"'“](?:\S+ ){11,}\S+$")


_JSON = re.compile(r"\{\s*[\"']\w|\[\s*[\"{]")


def _closes_json(content: str) -> bool:
    """Whether the brackets are balanced: prose follows JSON, or comes from a list such as [name]."""
    return content.count("{") <= content.count("}") and content.count("[") <= content.count("]")


def _unclosed(line: str) -> bool:
    """Whether a bracket is opened in the line and never closed."""
    return any(
        line.count(opens) > line.count(closes) and line.rfind(opens) > line.rfind(closes)
        for opens, closes in ("()", "（）", "【】", "《》", "「」", "“”")
    )


# Words and characters after which something must follow.
_SMALL_WORDS = frozenset(
    phrases(
        """a|an|the|of|to|and|or|with|for|from|by|into|onto|than|that|which|whose|because|although|while|whereas|as|at
        is|are|was|were|be|been|being|has|have|had|will|would|should|could|can|may|might|must|such|including|like
        their|your|our|my|its|his|every|each|very|between|through|about|if|when|but|not|also|more|most|both|in|on"""
    )
)
_FEW_MAY_END = frozenset(
    phrases("in|on|of|to|for|with|from|by|about|like|be|is|are|was|have|can|will|not|more|most|that|both")
)
_SMALL_HAN = frozenset("和与或及以从由将并而但因把被向比使让给跟且其该这那每某各于为在是对")


def _ends_with_small_word(line: str) -> bool:
    last = line[-1]
    if last in _SMALL_HAN:
        return len(line) > 12
    words = line.lower().split()
    if not words or not last.isascii() or len(words) < 6:
        return False
    return words[-1] in _SMALL_WORDS and (words[-1] not in _FEW_MAY_END or len(words) > 8)


def _is_signature(lines: list[str]) -> bool:
    """`Best regards,` and a name."""
    return len(lines[-1]) < 60 and any(_REGARDS.search(line) for line in lines[-4:-1])


_REGARDS = re.compile(
    r"^\W*(?:(?:best|kind|warm|many|with)\b.{0,20}|sincerely|yours|regards|love|cheers|respectfully|thank|"
    r"signed|cordially|此致|敬礼|"
    r"祝|谢谢|署名|落款|您的|你的|[-–—~～])",
    re.I,
)


def _is_careless(line: str) -> bool:
    """Whether a Chinese writer strings clauses together without full stops, or types half-width commas."""
    tail = _HAN_END.split(line)[-1]
    return (len(tail) > 80 and tail.count("，") > 3) or _HALF_COMMA.search(line) is not None


_HAN_END = re.compile(r"[。！？]")
_HALF_COMMA = re.compile(r"[\u4e00-\u9fff],[\u4e00-\u9fff]")
# The end of a sentence within a line: not after 1. or Dr. or U.S.
_SENTENCE_END = re.compile(
    r"[。！？!?][”’」』)）\"]?|(?<=[a-z\d)\"'”]{3})\.[\"'”)]?\s+(?=[A-Z\"'“(\[])|(?<=[a-z]{3})\.\d*\s+(?=[A-Z])"
)
_CLOSING = re.compile(
    r"\W*(?:祝|希望|期望|谢谢|感谢|愿|加油|再见|以上|供您参考|仅供参考|#|https?:|--?|—|source|hope|thank|"
    r"good luck|cheers)",
    re.I,
)


def _after_last_sentence(line: str) -> str:
    """What follows the last finished sentence of the line; nothing where it holds no finished sentence."""
    tail_from = 0
    for found in _SENTENCE_END.finditer(line):
        tail_from = found.end()
    tail = line[tail_from:].strip() if tail_from else ""
    return tail if any(map(str.isalpha, tail)) else ""


def _others_end(lines: list[str]) -> bool:
    """Whether the lines before the last are sentences like it, and end with full stops."""
    last = lines[-1]
    alike = [line for line in lines[:-1] if bool(_ITEM.match(line)) == bool(_ITEM.match(last)) and len(line) > 15]
    if len(last) * 3 < 12 or not alike:
        return False
    num_ended = sum(line[-1] in _FULL_STOPS for line in alike)
    is_sentence = bool(_ITEM.match(last)) or len(last.split()) > 4 or len(HAN.findall(last)) > 6
    enough = 1 if len(last.split()) > 11 else 2
    return is_sentence and num_ended >= enough and num_ended * 10 >= len(alike) * 9


HAN = re.compile(r"[\u4e00-\u9fff]")
_ITEM = re.compile(r"(?:\d+[.)、．]|[-*•·]|[（(]\d+[)）]|[①-⑳]|[a-zA-Z][.)]|第?[一二三四五六七八九十]+[、.])\s*")
_FULL_STOPS = frozenset('.。!！?？;；"”’」』)）')
