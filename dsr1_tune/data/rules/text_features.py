"""What the rules ask about a row's texts, computed once: bytes, classes of characters, who said what."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import replace

from dsr1_tune.data.phrase_table import PhraseTable
from dsr1_tune.data.record import Feedback, Message, Preference, Prompt, Row, messages_of, with_messages
from dsr1_tune.text.composed import composed

# Expensive checks look at the beginning and the end of a text that is longer than twice this.
_TABLE = PhraseTable(__file__)
LONG = 10_000
MARGIN = 120
"""So many bytes are looked at on either side of a longer text."""
# Refusals stand within so many bytes.
_HEAD = 200
TO_WORDS = bytes(byte if chr(byte).isalnum() and byte < 0x80 else 0x20 for byte in range(256))
"""Turns all but ASCII letters and digits into spaces, to split a text into words."""
_watched: set[bytes] = set()
WORD = re.compile(r"[^\W_]+")
HAN_RUN = re.compile(r"[\u3400-\u9fff]+")
# Characters that print nothing and that str.strip leaves: zero width, fillers, selectors, blank Braille.
_HIDDEN_RANGES = (
    (0x180B, 0x180F), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0xFE00, 0xFE0F), (0xFFF0, 0xFFFB),
    (0xE0000, 0xE007F), (0xE0100, 0xE01EF),
)  # fmt: skip
_HIDDEN = "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u2800\u3164\ufeff\uffa0"
_HIDDEN += "".join(chr(code) for first, last in _HIDDEN_RANGES for code in range(first, last + 1))
_INVISIBLE = frozenset(_HIDDEN)
# What str.strip takes away, too: with characters to strip, it strips only those.
_SPACES = "".join(
    map(chr, (*range(9, 14), *range(0x1C, 0x21), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029))
)
_AROUND_TEXT = _HIDDEN + _SPACES + "\u202f\u205f\u3000"
_WITHIN_TEXT = {ord(char): None for char in "\u00ad\u200b\u200c\u200d\u2060\ufeff"}
_CONTINUATION = bytes(range(0x80, 0xC0))


def _classes() -> bytes:
    """The class of every byte that begins a character in UTF-8; ASCII signs stand for themselves."""
    table = bytearray(range(256))
    for codes, mark in (
        (range(0x20), b"\x01"),  # control characters
        (b"\t\n\r\x0b\x0c", b" "),
        (b"\x7f", b"\x01"),
        (b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", b"a"),
        (b"0123456789", b"0"),
        (b"\xc2\xe2\xee\xf1\xf2\xf3\xf4", b"s"),  # ©, “, arrows, mathematics, private use
        (range(0xC3, 0xCC), b"l"),  # Latin with accents
        (b"\xcc\xcd\xce\xcf", b"g"),  # Greek
        (range(0xD0, 0xD4), b"c"),  # Cyrillic
        (range(0xD4, 0xE2), b"o"),  # Hebrew, Arabic, Indic, Thai, Georgian, Amharic, Cherokee, Vietnamese, ...
        (b"\xe2", b"s"),
        (b"\xe3", b"k"),  # kana, and the Chinese full stop
        (range(0xE4, 0xEA), b"h"),  # Han
        (range(0xEA, 0xEE), b"y"),  # Hangul, Yi
        (b"\xef", b"f"),  # full-width signs
        (b"\xf0", b"e"),  # emoji, rare Han
    ):
        for code in codes:
            table[code] = mark[0]
    return bytes(table)


_CLASSES = _classes()
_NO_SIGNS = b"a0 lgcokhy"


def phrases(text: str) -> list[str]:
    """The phrases of a list written with | and line breaks."""
    return [phrase.strip() for line in text.splitlines() for phrase in line.split("|") if phrase.strip()]


class Text:
    """One message's text in the forms that are quick to search.

    `content` is the message's with its accents composed, as what is looked for is written. `data` is its UTF-8, `low`
    the same with small ASCII letters. `shape` has a byte per character: a Latin letter, 0 digit, h Han, k kana or
    Chinese full stop, y Hangul, c Cyrillic, g Greek, l accented Latin, o other scripts, s f e signs, \\x01 control,
    ASCII signs themselves; `signs` is the shape without letters, digits and spaces. `hints` are words that rules keep
    an eye on, once one has looked for them.
    """

    __slots__ = ("content", "data", "hints", "low", "message", "num_han", "num_latin", "shape", "signs")

    def __init__(self, message: Message) -> None:
        self.message = message
        self.content = content = composed(message.content)
        self.data = data = content.encode("utf-8", "surrogatepass")
        self.low = data.lower()
        # Deleting takes four times as long as translating alone.
        is_ascii = len(data) == len(content)
        self.shape = shape = data.translate(_CLASSES) if is_ascii else data.translate(_CLASSES, _CONTINUATION)
        self.signs = shape.translate(None, _NO_SIGNS)
        self.num_han = 0 if is_ascii else shape.count(b"h")
        self.num_latin = shape.count(b"a")
        self.hints: frozenset[bytes] | None = None

    @property
    def is_han(self) -> bool:
        """Whether most letters are Han, which has no spaces between words."""
        return self.num_han * 4 > self.num_latin


def watch(words: Iterable[bytes]) -> frozenset[bytes]:
    """Let `hints` report these words from now on; a rule calls it when its module is imported."""
    watched = frozenset(words)
    _watched.update(watched)
    return watched


def hints(text: Text) -> frozenset[bytes]:
    """Which of the watched words stand near the beginning or the end of the text."""
    if text.hints is None:
        low = text.low
        if len(low) > _HEAD + MARGIN:
            low = low[:_HEAD] + b" " + low[-MARGIN:]
        text.hints = frozenset(_watched.intersection(low.translate(TO_WORDS).split()))
    return text.hints


def holds(text: bytes, needles: tuple[bytes, ...]) -> bool:
    """Whether one of the needles stands there: far quicker than a regular expression with alternatives."""
    for needle in needles:  # noqa: SIM110 - any() over a generator takes twice as long
        if needle in text:
            return True
    return False


class View:
    """A row as the rules see it: the last question, and the assistant's answers with the final one last.

    Of a preference, the answer is the chosen one; a prompt has none, nor has feedback on a bad answer. `checked` are
    questions and answers, without instructions and the results of tools.
    """

    __slots__ = ("_asked", "answer", "answers", "checked", "question", "row", "texts")

    def __init__(self, row: Row) -> None:
        self.row = row
        messages = exemplary(row)
        self.texts = texts = [Text(message) for message in messages]
        is_plain = len(texts) == 2 and messages[0].role == "user" and messages[1].role == "assistant"
        if is_plain and not messages[1].calls:
            self.question: Text | None = texts[0]
            self.answers, self.checked = texts[1:], texts
        else:
            # A turn that only calls functions says nothing that a rule could judge.
            self.checked = [
                text
                for text in texts
                if text.message.role in ("user", "assistant") and (text.content or not text.message.calls)
            ]
            self.answers = [text for text in self.checked if text.message.role == "assistant"]
            self.question = next((text for text in reversed(texts) if text.message.role == "user"), None)
        has_words = self.answers and self.answers[-1] is texts[-1]
        self.answer = self.answers[-1] if has_words and not lacks_answer(row) else None
        self._asked: str | None = None

    @property
    def asked(self) -> str:
        """All that user and system say, in lower case: what the conversation is about."""
        if self._asked is None:
            said = (text.content for text in self.texts if text.message.role in ("user", "system"))
            self._asked = "\n".join(said).lower()
        return self._asked

    @property
    def has_tools(self) -> bool:
        """Whether the assistant may call functions."""
        row = self.row
        return bool(row.tools) or any(text.message.role == "tool" or text.message.calls for text in self.texts)


def lacks_answer(row: Row) -> bool:
    """Whether the row has no answer that should be a good one."""
    return isinstance(row, Prompt) or (isinstance(row, Feedback) and not row.is_good)


def exemplary(row: Row) -> tuple[Message, ...]:
    """All that is said in the row and should be good: a worse answer, the last, may be as bad as it likes."""
    messages = messages_of(row)
    return messages[:-1] if has_bad_answer(row) else messages


def has_bad_answer(row: Row) -> bool:
    """Whether the last thing said in the row is an answer that should not be learned."""
    return isinstance(row, Preference) or (isinstance(row, Feedback) and not row.is_good)


_last: View | None = None


def view(row: Row) -> View:
    """The row's view. One row goes through rule after rule, so the last view is kept until another row comes."""
    global _last
    last = _last
    if last is None or last.row is not row:
        _last = last = View(row)
    return last


def with_texts(row: Row, contents: list[str]) -> Row:
    """The same row with other texts, in the order of the view's texts; a rejected or bad answer stays."""
    messages = messages_of(row)
    changed = [
        message if message.content == content else replace(message, content=content)
        for message, content in zip(exemplary(row), contents, strict=True)
    ]
    return with_messages(row, (*changed, *messages[len(changed) :]))


def visible(text: str) -> str:
    """The text without spaces and invisible characters around it."""
    text = text.strip()
    if text and (text[0] in _INVISIBLE or text[-1] in _INVISIBLE):
        return text.strip(_AROUND_TEXT)
    return text


def folded(text: str) -> str:
    """The text in lower case and half width, without invisible characters, with single spaces between words."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_WITHIN_TEXT))
    return " ".join(text.lower().split())


def quoted(text: str, most: int = 60) -> str:
    """The text as short evidence: on one line, its middle left out where it is long."""
    if len(text) > 4 * most:
        text = text[: 2 * most] + text[-2 * most :]
    text = " ".join(text.split())
    if len(text) > most:
        text = f"{text[: most * 2 // 3]} … {text[-most // 3 :]}"
    return repr(text)


def ends(content: str) -> str:
    """A long text's beginning and end, a short text itself."""
    return content if len(content) <= 2 * LONG else f"{content[:LONG]}\n{content[-LONG:]}"


def bare(text: str) -> str:
    """The text without case, width, labels such as `Q:`, punctuation and spaces: equal where only those differ."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    label = _TABLE.label.match(text)
    start, end = label.end() if label else 0, text[-16:]
    label = _TABLE.label_at_end.search(end) if ":" in end or "：" in end else None
    stop = len(text) - len(end) + label.start() if label else len(text)
    return _TABLE.wordless.sub("", text[start:stop].casefold())


def without_code(text: Text) -> str:
    """The text without its blocks of code."""
    return _TABLE.fenced.sub("\n", text.content) if b"`" in text.signs else text.content


def looks_like_code(text: Text) -> bool:
    """Whether the text is a program, a formula or data rather than prose."""
    head = text.content.lstrip()[:1]
    if b"```" in text.data or head in "{[<" or b"\\frac" in text.data or b"\\begin" in text.data:
        return True
    code_signs = len(text.signs.translate(None, b"!\"'(),-.:?sfe%&*#_")) - 4 * text.data.count(b"{{")
    if code_signs * 25 > len(text.shape):
        return True
    return len(_TABLE.code_line.findall(text.content[:LONG])) >= 2
