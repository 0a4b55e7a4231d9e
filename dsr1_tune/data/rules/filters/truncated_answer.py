"""The rule about answers that break off in the middle of a sentence."""

from __future__ import annotations

import re

from dsr1_tune.config import Count
from dsr1_tune.data.phrase_table import PhraseTable
from dsr1_tune.data.record import Drop, Row
from dsr1_tune.data.rules.rule import Meaning, Rule, RuleSettings
from dsr1_tune.data.rules.text_features import LONG, Text, View, looks_like_code, phrases, quoted, view

_TABLE = PhraseTable(__file__)
_OPENS = frozenset(",，、:：([{（【《“‘「『<")
_AFTER_NUMBERS = frozenset(".)、．）")
_BULLETS = frozenset("*-•·")
_FULL_STOPS = frozenset('.。!！?？;；"”’」』)）')
_SMALL_WORDS = frozenset(_TABLE["small_words"])
_FEW_MAY_END = frozenset(_TABLE["few_may_end"])
_LONE = frozenset(phrases("the|this|these|however|therefore|in|to|for|and|so|if|when|as|it|but|by|with|on|at|from|of"))
_BEGINNERS = frozenset(_TABLE["beginners"])
_SMALL_HAN = frozenset(_TABLE.text("small_han"))
_WHOLE_PAIRS = frozenset(_TABLE["whole_pairs"])


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


def _ends_with_bare_number(content: str) -> bool:
    found = _TABLE.bare_number.search(content[-12:])
    if found:
        before = int(found[1]) - 1
        item = rf"(?:^|[\n。；;.!?！？])[ \t]*[(（]?{before}[.)、．）]\s*\S"
        return before > 0 and re.search(item, content) is not None
    bullet = content[-1]
    if bullet not in _BULLETS or not content[-3:-1].endswith("\n"):
        return False
    return re.search(rf"^[ \t]*{re.escape(bullet)} ?[^\W_]", content[-LONG:], re.M) is not None


def _breaks_off(content: str, text: Text, settings: TruncatedAnswer, seen: View) -> str:
    """What shows that the answer breaks off, or nothing."""
    last = content[-1]
    if content.count("```") % 2:
        return "a block of code is not closed"
    if _TABLE.json.match(content):
        # Prose follows JSON, or comes from a list such as [name].
        is_closed = all(content.count(opens) <= content.count(closes) for opens, closes in ("{}", "[]"))
        return "" if last in "]}" or is_closed else "JSON is not closed"
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
    if not settings.unended or _is_signature(lines) or _is_careless(line) or _TABLE.tag.search(line):
        return ""
    tail = _after_last_sentence(_TABLE.greeting.sub("", line))
    if tail and not (_TABLE.statute.search(line) and _TABLE.quotes_law.search(content)):
        return "" if _TABLE.closing.match(tail) and len(tail) < 40 else "the last sentence has no end"
    if len(lines) > 1 and _others_end(lines):
        return "the last line has no end"
    is_whole = line[-2:].startswith(" ") or _TABLE.item.match(line) or _is_phrase(line, seen)
    return "the sentence has no end" if _TABLE.long_sentence.match(line) and not is_whole else ""


def _reads_as_prose(line: str) -> bool:
    """Whether a line that follows code or formulas is a sentence of its own."""
    if _TABLE.code_in_line.search(line):
        return False
    return len(_TABLE.han.findall(line)) > 20 or len(re.findall(r"(?<![\w.])[a-z]{2,}(?![\w.])", line)) > 9


def _is_phrase(line: str, seen: View) -> bool:
    """Whether the line is a title, a slogan or another phrase, which needs no full stop: it has no verb."""
    words = [word for word in re.findall(r"[^\W\d_]+", line) if len(word) > 3]
    if not _TABLE.verb.search(line) or sum(word[0].isupper() for word in words) * 10 > 6 * len(words):
        return True
    return _TABLE.asks_for_phrase.search(seen.asked) is not None


def _unclosed(line: str) -> bool:
    return any(
        line.count(opens) > line.count(closes) and line.rfind(opens) > line.rfind(closes)
        for opens, closes in ("()", "（）", "【】", "《》", "「」", "“”")
    )


def _ends_with_small_word(line: str, finished: bool = False) -> bool:
    """Whether the line ends with a word that cannot be the last; `finished` says that the line before has its end."""
    last = line[-1]
    if last >= "\u3400":
        if len(line) <= 12 and not finished:
            return False
        if _TABLE.needs_more.search(line[-6:]):
            return True
        if last in _SMALL_HAN:
            return line[-2:] not in _WHOLE_PAIRS
        if last == "的":
            return not _TABLE.whole_de.search(line)
        return (last == "来" and not _TABLE.whole_lai.search(line)) or _TABLE.cut_item.search(line) is not None
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
    return len(lines[-1]) < 60 and any(_TABLE.regards.search(line) for line in lines[-4:-1])


def _is_careless(line: str) -> bool:
    """Whether a Chinese writer strings clauses together without full stops, or types half-width commas."""
    tail = _TABLE.han_end.split(line)[-1]
    return (len(tail) > 80 and tail.count("，") > 3) or _TABLE.half_comma.search(line) is not None


def _after_last_sentence(line: str) -> str:
    """What follows the last finished sentence of the line; nothing where it holds no finished sentence."""
    tail_from = 0
    for found in _TABLE.sentence_end.finditer(line):
        tail_from = found.end()
    tail = line[tail_from:].strip() if tail_from else ""
    return tail if any(map(str.isalpha, tail)) else ""


def _others_end(lines: list[str]) -> bool:
    """Whether the lines before the last are sentences like it, and end with full stops."""
    last = lines[-1]
    is_item = bool(_TABLE.item.match(last))
    alike = [line for line in lines[:-1] if bool(_TABLE.item.match(line)) == is_item and len(line) > 15]
    if len(last) * 3 < 12 or not alike:
        return False
    num_ended = sum(line[-1] in _FULL_STOPS for line in alike)
    is_sentence = is_item or len(last.split()) > 4 or len(_TABLE.han.findall(last)) > 6
    enough = 1 if len(last.split()) > 11 else 2
    return is_sentence and num_ended >= enough and num_ended * 10 >= len(alike) * 9


TRUNCATED_ANSWER = Rule(
    "truncated_answer",
    truncated_answer,
    Meaning("the answer breaks off in the middle of a sentence", "回答在句中被截断"),
    TruncatedAnswer,
)
