"""The rule about answers that break off in the middle of a sentence."""

from __future__ import annotations

import re

from dsr1_tune.config import Count
from dsr1_tune.data.phrase_table import PhraseTable
from dsr1_tune.data.record import Drop, Row
from dsr1_tune.data.rules.rule import Meaning, Rule, RuleSettings
from dsr1_tune.data.rules.text_features import LONG, Text, View, looks_like_code, phrases, quoted, view

_TABLE = PhraseTable(__file__)


class TruncatedAnswer(RuleSettings):
    """Answers that break off in the middle of a sentence."""

    min_chars: Count = 10
    """Shorter answers are not looked at."""
    unended: bool = True
    """Also where the last sentence only lacks its full stop, though those before it have one; false for forum text."""


def truncated_answer(row: Row, settings: TruncatedAnswer) -> Row | Drop:
    """Drop a final answer that breaks off; lists, titles, names, code and single sentences need no full stop."""
    seen = view(row)
    text = seen.answer
    if text is None or len(text.content) < settings.min_chars:
        return row
    content = text.content.rstrip()
    if not content:
        return row
    last = content[-1]
    if not last.isalpha() and last not in _OPENS and b"`" not in text.signs and content[0] not in "{[":
        is_bare = (last in _AFTER_NUMBERS and content[-2].isdigit()) or last in _BULLETS
        why = "a list ends with a bare number" if is_bare and _ends_with_bare_number(content) else ""
    else:
        why = _breaks_off(content, text, settings, seen)
    if not why:
        return row
    detail = f"{why}: … {quoted(content[-40:])}"
    return Drop("truncated_answer", detail, "complete the answer, or remove the row", text.message.path)


_OPENS = frozenset(",，、:：([{（【《“‘「『<")
_AFTER_NUMBERS = frozenset(".)、．）")
_BULLETS = frozenset("*-•·")
_BARE_NUMBER = re.compile(r"(?:[\n。；;!?！？]|\.[ \t])[ \t]*[(（]?(\d{1,3})[.)、．）]$")


def _ends_with_bare_number(content: str) -> bool:
    """Whether the last item of a list is only its number or bullet."""
    found = _BARE_NUMBER.search(content[-12:])
    if found:
        before = int(found[1]) - 1
        return (
            before > 0 and re.search(rf"(?:^|[\n。；;.!?！？])[ \t]*[(（]?{before}[.)、．）]\s*\S", content) is not None
        )
    bullet = content[-1]
    if bullet not in _BULLETS or not content[-3:-1].endswith("\n"):
        return False
    return re.search(rf"^[ \t]*{re.escape(bullet)} ?[^\W_]", content[-LONG:], re.M) is not None


def _breaks_off(content: str, text: Text, settings: TruncatedAnswer, seen: View) -> str:
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
    if len(lines) > 1 and line.lower() in _LONE:
        return "the last line breaks off after its first word"
    if (b"```" in text.data or looks_like_code(text)) and not _reads_as_prose(line):
        return ""
    if _unclosed(line):
        return "a bracket is not closed"
    finished = len(lines) > 1 and lines[-2][-1] in _FULL_STOPS
    if _ends_with_small_word(line, finished) and not (last == "的" and _is_careless(line)):
        return "it ends with a word that needs another"
    if finished and _is_a_shred(line, content):
        return "the last line breaks off in its first word"
    if not settings.unended or _is_signature(lines) or _is_careless(line) or _TAG.search(line):
        return ""
    tail = _after_last_sentence(_GREETING.sub("", line))
    if tail and not (_STATUTE.search(line) and _QUOTES_LAW.search(content)):
        return "" if _CLOSING.match(tail) and len(tail) < 40 else "the last sentence has no end"
    if len(lines) > 1 and _others_end(lines):
        return "the last line has no end"
    if (
        _LONG_SENTENCE.match(line)
        and not line[-2:].startswith(" ")
        and not _ITEM.match(line)
        and not _is_phrase(line, seen)
    ):
        return "the sentence has no end"
    return ""


def _reads_as_prose(line: str) -> bool:
    """Whether a line that follows code or formulas is a sentence of its own."""
    if _CODE_IN_LINE.search(line):
        return False
    return len(HAN.findall(line)) > 20 or len(re.findall(r"(?<![\w.])[a-z]{2,}(?![\w.])", line)) > 9


_CODE_IN_LINE = re.compile(r"[=<>{}\\|;`$#@\[\]]|\w\(|\)\w")
# Statutes are quoted as far as they are needed.
_STATUTE = re.compile(r"第[一二三四五六七八九十百千零〇\d]+条")
_QUOTES_LAW = re.compile(r"法律依据|法条|条文|依据[:：]|规定[:：]")
_GREETING = re.compile(r"^(?:您好|你好|hi|hello|hey)[^。！!.，,\n]{0,8}[。！!.，,]\s*", re.I)


def _is_phrase(line: str, seen: View) -> bool:
    """Whether the line is a title, a slogan or another phrase, which needs no full stop: it has no verb."""
    words = [word for word in re.findall(r"[^\W\d_]+", line) if len(word) > 3]
    if not _VERB.search(line) or sum(word[0].isupper() for word in words) * 10 > 6 * len(words):
        return True
    return _ASKS_FOR_PHRASE.search(seen.asked) is not None


_VERB = _TABLE.pattern("verb", re.I)
_ASKS_FOR_PHRASE = _TABLE.pattern("asks_for_phrase")
_TAG = _TABLE.pattern("tag")
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


_SMALL_WORDS = frozenset(_TABLE["small_words"])
_FEW_MAY_END = frozenset(_TABLE["few_may_end"])
_LONE = frozenset(phrases("the|this|these|however|therefore|in|to|for|and|so|if|when|as|it|but|by|with|on|at|from|of"))
_BEGINNERS = frozenset(_TABLE["beginners"])
_SMALL_HAN = frozenset(_TABLE.text("small_han"))
_WHOLE_PAIRS = frozenset(_TABLE["whole_pairs"])
_WHOLE_DE = _TABLE.pattern("whole_de")
_WHOLE_LAI = _TABLE.pattern("whole_lai")
_NEEDS_MORE = _TABLE.pattern("needs_more")
# The last of several items in a list is a single character, the others are not.
_CUT_ITEM = re.compile(r"[\u4e00-\u9fff]{2,}、[\u4e00-\u9fff]{2,}、[\u4e00-\u9fff]$")


def _ends_with_small_word(line: str, finished: bool = False) -> bool:
    """Whether the line ends with a word that cannot be the last; `finished` says that the line before has its end."""
    last = line[-1]
    if last >= "\u3400":
        if len(line) <= 12 and not finished:
            return False
        if _NEEDS_MORE.search(line[-6:]):
            return True
        if last in _SMALL_HAN:
            return line[-2:] not in _WHOLE_PAIRS
        if last == "的":
            return not _WHOLE_DE.search(line)
        return (last == "来" and not _WHOLE_LAI.search(line)) or _CUT_ITEM.search(line) is not None
    words = line.lower().split()
    if not words or not last.isascii() or (len(words) < 6 and not finished):
        return False
    word = words[-1]
    if finished and len(words) < 4 and word in _BEGINNERS:
        return True
    return word in _SMALL_WORDS and (word not in _FEW_MAY_END or len(words) > 8 or finished)


def _is_a_shred(line: str, content: str) -> bool:
    """Whether the last line is hardly more than a letter that stands nowhere else: `Therefore, t`."""
    words = line.split()
    word = words[-1]
    if len(word) > 1 or len(words) > 4 or word in "aABCDEI" or not word.isalpha():
        return False
    return word >= "\u3400" or re.search(rf"(?<!\w){word}(?!\w)", content[: -len(line)]) is None


def _is_signature(lines: list[str]) -> bool:
    """`Best regards,` and a name."""
    return len(lines[-1]) < 60 and any(_REGARDS.search(line) for line in lines[-4:-1])


_REGARDS = _TABLE.pattern("regards", re.I)


def _is_careless(line: str) -> bool:
    """Whether a Chinese writer strings clauses together without full stops, or types half-width commas."""
    tail = _HAN_END.split(line)[-1]
    return (len(tail) > 80 and tail.count("，") > 3) or _HALF_COMMA.search(line) is not None


_HAN_END = re.compile(r"[。！？]")
_HALF_COMMA = re.compile(r"[\u4e00-\u9fff],[\u4e00-\u9fff]")
_SENTENCE_END = _TABLE.pattern("sentence_end")
_CLOSING = _TABLE.pattern("closing", re.I)


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


TRUNCATED_ANSWER = Rule(
    "truncated_answer",
    truncated_answer,
    Meaning("the answer breaks off in the middle of a sentence", "回答在句中被截断"),
    TruncatedAnswer,
)
