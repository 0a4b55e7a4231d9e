"""Faults that are put into good rows on purpose, by kind and variant, in English and Chinese.

Nothing here knows how the rules find them: the texts are written after what scraped, generated and hand-made data sets
hold. A variant gives None where a row does not suit it, and the caller goes on to the next row.
"""

from __future__ import annotations

import html
import random
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache


@dataclass(frozen=True)
class Talk:
    """A conversation as (role, text) pairs that ends with the assistant's answer; `source` is where it was drawn."""

    turns: tuple[tuple[str, str], ...]
    language: str
    source: str
    tools: str = ""

    @property
    def question(self) -> str:
        """The last thing that the user said."""
        return next((text for role, text in reversed(self.turns[:-1]) if role == "user"), "")

    @property
    def answer(self) -> str:
        """The last turn's text."""
        return self.turns[-1][1]

    @property
    def text(self) -> str:
        """Everything that is said."""
        return "\n".join(text for _, text in self.turns)

    def answering(self, answer: str) -> Talk:
        """The same conversation with another answer."""
        return replace(self, turns=(*self.turns[:-1], (self.turns[-1][0], answer)))

    def asking(self, question: str) -> Talk:
        """The same conversation with another last question."""
        at = max(i for i, (role, _) in enumerate(self.turns[:-1]) if role == "user")
        return replace(self, turns=(*self.turns[:at], ("user", question), *self.turns[at + 1 :]))


Variant = Callable[[Talk, random.Random], Talk | None]

_THANKS = re.compile(r"thank|谢|明白了|好的，", re.I)


@dataclass(frozen=True)
class Kind:
    """A fault: the codes that name it rightly, and its variants in each language.

    `mend` says that a row counts as found, too, if it is kept with the fault mended.
    """

    codes: frozenset[str]
    en: tuple[Variant, ...]
    zh: tuple[Variant, ...]
    mend: bool = False
    floor: bool = True


# Small makers of variants -------------------------------------------------------------------------------------------


def say(*answers: str) -> tuple[Variant, ...]:
    """One variant for each text, which takes the place of the answer; {q} is the question without its final mark.

    {d} is a random digit, {w} a random word of the true answer.
    """

    def variant(template: str) -> Variant:
        def put(talk: Talk, rng: random.Random) -> Talk | None:
            question = talk.question.strip().rstrip("?？.。!！:：")
            if "{q}" in template and (not 8 <= len(question) <= 160 or "\n" in question or _THANKS.search(question)):
                return None
            answer = template.replace("{q}", question)
            answer = re.sub(r"\{d\}", lambda _: str(rng.randrange(10)), answer)
            answer = re.sub(r"\{w\}", lambda _: rng.choice(words(talk)), answer)
            return talk.answering(answer)

        return put

    return tuple(variant(answer) for answer in answers)


def around(*frames: str) -> tuple[Variant, ...]:
    """One variant for each frame; {a} is where the true answer goes."""

    def variant(frame: str) -> Variant:
        return lambda talk, rng: talk.answering(
            re.sub(r"\{d\}", lambda _: str(rng.randrange(10)), frame).replace("{a}", talk.answer.strip())
        )

    return tuple(variant(frame) for frame in frames)


def change(*edits: Callable[[str, random.Random], str | None], where: str = "answer") -> tuple[Variant, ...]:
    """One variant for each edit of the answer, or of the question."""

    def variant(edit: Callable[[str, random.Random], str | None]) -> Variant:
        def put(talk: Talk, rng: random.Random) -> Talk | None:
            text = edit(talk.answer if where == "answer" else talk.question, rng)
            if text is None:
                return None
            return talk.answering(text) if where == "answer" else talk.asking(text)

        return put

    return tuple(variant(edit) for edit in edits)


def words(talk: Talk) -> list[str]:
    """Some words of the answer: by spaces, or two characters each."""
    if talk.language == "en":
        found = re.findall(r"[A-Za-z]{4,}", talk.answer)
    else:
        found = re.findall(r"[\u4e00-\u9fff]{2}", talk.answer)
    return found or (["health"] if talk.language == "en" else ["健康"])


def sentences(text: str) -> list[str]:
    """The text cut after each sentence's end; nothing is lost."""
    return [part for part in re.split(r"(?<=[。！？])|(?<=[.!?]) (?=[A-Z])", text) if part and part.strip()]


def is_prose(text: str) -> bool:
    """Plain sentences: no list, table, code or markup, and a full stop at the end."""
    ends = text.rstrip().endswith((".", "。", "！", "!", "？", "?"))
    return ends and not re.search(r"```|^\s*(?:[-*•|#]|\d+[.、)])|[{}<>|]|https?:", text, re.M)


# Empty and stand-in answers -----------------------------------------------------------------------------------------

BLANKS = (
    "",
    "   ",
    "\n\n",
    "\t",
    "\u00a0",
    "\u3000\u3000",
    "\u200b",
    "\ufeff",
    "\u2060\u200d",
    "\u00ad",
    "\u200b\n\u200b",
    " \r\n ",
    "\u3164",
    "\u2800\u2800",
    "\u180e",
    "\u200e\u200f",
)

EMPTY = Kind(frozenset({"empty_answer", "null_value"}), say(*BLANKS), say(*BLANKS))

_BLANKED = change(*(lambda _, __, blank=blank: blank for blank in BLANKS), where="question")

EMPTY_QUESTION = Kind(frozenset({"empty_question", "null_value"}), _BLANKED, _BLANKED)

PLACEHOLDER = Kind(
    frozenset({"placeholder_answer"}),
    say(
        "TODO",
        "N/A",
        "n/a",
        "TBD",
        "To be added.",
        "...",
        "[answer]",
        "<answer>",
        "Insert answer here",
        "Coming soon!",
        "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore.",
        "null",
        "None",
        "undefined",
        "NaN",
        "#N/A",
        "xxxx",
        "-",
        "[Your answer here]",
        "{{answer}}",
        "TODO: write this",
        "(no answer)",
        "placeholder",
        "Answer goes here.",
        "to be determined",
        "FIXME",
        "<placeholder>",
        "#REF!",
        "Same as above.",
        "Write your response here...",
        "???",
        "test test test",
        "(blank)",
        "Not available",
    ),
    say(
        "无",
        "待补充",
        "暂无",
        "略",
        "待定",
        "TODO",
        "N/A",
        "……",
        "此处填写答案",
        "答案待补充。",
        "【待填写】",
        "(空)",
        "暂无回答",
        "同上",
        "暂无数据",
        "请在此输入回答",
        "null",
        "XXX",
        "待更新…",
        "［答案］",
        "——",
        "（此处省略）",
        "无内容",
        "待完善",
        "未填写",
        "这里是答案",
        "回答内容",
        "占位符",
        "none",
        "测试测试",
        "答：",
        "详见附件",
        "未完待续",
        "没有内容",
    ),
)


# The answer is the question again -----------------------------------------------------------------------------------


def _full_width(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def _asks_for_no_copy(talk: Talk) -> bool:
    """Not a task whose right answer may be the text that was given."""
    return len(talk.question) >= 8 and not re.search(
        _THANKS.pattern
        + "|repeat|correct|edit|rewrite|punctuat|translat|grammar|spell|sentence"
        + "|重复|改正|修改|翻译|校对|转录|改写|句子",
        talk.question,
        re.I,
    )


def _copy(form: Callable[[str, random.Random], str]) -> Variant:
    return lambda talk, rng: talk.answering(form(talk.question, rng)) if _asks_for_no_copy(talk) else None


REPEATS_QUESTION = Kind(
    frozenset({"answer_repeats_question"}),
    tuple(
        map(
            _copy,
            (
                lambda q, _: q,
                lambda q, _: q.upper(),
                lambda q, _: f"  {q}\n",
                lambda q, _: q.rstrip("?.!") + "???",
                lambda q, _: f"Question: {q}",
                lambda q, _: f'"{q}"',
                lambda q, _: q.lower().rstrip("?."),
                lambda q, _: f"Q: {q}\nA:",
                lambda q, _: f"{q}\n{q}",
                lambda q, _: _full_width(q),
                lambda q, _: f"Answer: {q}",
            ),
        )
    ),
    tuple(
        map(
            _copy,
            (
                lambda q, _: q,
                lambda q, _: f"问题：{q}",
                lambda q, _: f"“{q}”",
                lambda q, _: q.rstrip("？。?") + "？？",
                lambda q, _: unicodedata.normalize("NFKC", q).rstrip("?.") + "。",
                lambda q, _: f"\u3000{q}\n",
                lambda q, _: f"问：{q}\n答：",
                lambda q, _: f"{q}\n{q}",
                lambda q, _: f"回答：{q}",
                lambda q, _: "，".join(part for part in re.split("[，,]", q)) + "！",
                lambda q, _: f"【{q}】",
            ),
        )
    ),
)


def _inverted(pattern: str, answer: str) -> Variant:
    """`What are the causes of asthma?` → `The causes of asthma.`: the question turned into a statement."""

    def put(talk: Talk, _: random.Random) -> Talk | None:
        match = re.fullmatch(pattern, talk.question.strip(), re.I)
        return talk.answering(match.expand(answer)) if match else None

    return put


RESTATES = Kind(
    frozenset({"answer_restates_question", "answer_repeats_question"}),
    (
        *say(
            'You asked: "{q}".',
            "You are asking: {q}.",
            "The question is: {q}.",
            "So your question is: {q}?",
            "What you want to know is this: {q}.",
            "I understand that you would like to know: {q}.",
            "Your request is the following: {q}. That is the request.",
            'Thank you for your question about "{q}".',
            "This question asks: {q}.",
            "Let me restate your question: {q}.",
            "Sure! You want me to do this: {q}.",
            "The user wants the following: {q}.",
            "OK, {q}. That is a good question.",
        ),
        _inverted(r"what (?:are|is) (the .{8,80}?)\?", r"\1."),
        _inverted(
            r"((?:describe|explain|list|name|write|create|generate|give|suggest|identify) .{8,90}?)\.?",
            r"You want me to \1.",
        ),
        _inverted(r"how (?:can|do|would) (?:i|you|we) (.{8,80}?)\?", r"How to \1."),
    ),
    (
        *say(
            "您问的是“{q}”。",
            "您想了解的是：{q}。",
            "这个问题是关于“{q}”的。",
            "你的问题是：{q}？",
            "关于“{q}”这个问题。",
            "您的问题我已经收到：{q}。",
            "我明白了，您想知道{q}。",
            "感谢您的提问：“{q}”。",
            "这道题问的是{q}。",
            "{q}，这是一个很多人都关心的问题。",
            "好的，您希望我回答的是：{q}。",
            "用户想知道：{q}。",
        ),
        _inverted(r"(.{4,50}?)(?:是什么|有哪些|是啥)[？?。]?", r"\1。"),
        _inverted(
            r"(.{4,60}?)(?:怎么办|如何治疗|怎么治疗|该如何治疗|应该如何治疗|该怎么治疗)[？?。]?", r"\1该怎么办呢？"
        ),
        _inverted(r"((?:解释|描述|列出|写|给出|生成|创建|分析|提供).{4,60}?)[。？]?", r"您希望我\1。"),
    ),
)


# Circles ------------------------------------------------------------------------------------------------------------


def _loop(least: int, most: int, size: tuple[int, int], joint: str = "") -> Callable[[str, random.Random], str | None]:
    """A stretch of the answer, said again and again."""

    def edit(text: str, rng: random.Random) -> str | None:
        parts = text.split() if _spaced(text) else list(re.sub(r"\s", "", text))
        length = rng.randint(*size)
        if len(parts) < length + 4:
            return None
        start = rng.randrange(len(parts) - length)
        glue = " " if _spaced(text) else ""
        once = glue.join(parts[start : start + length])
        return (joint or glue).join([once] * rng.randint(least, most))

    return edit


def _tail_loop(text: str, rng: random.Random) -> str | None:
    """A fair start, then the generator hangs in the last words until its limit."""
    if not is_prose(text) or len(text) < 80:
        return None
    parts = text.split() if _spaced(text) else list(text)
    glue = " " if _spaced(text) else ""
    start = parts[: max(8, len(parts) // 3)]
    once = start[-rng.randint(4, 8) :]
    return glue.join([*start, *(once * rng.randint(12, 30))])


def _sentence_loop(text: str, rng: random.Random) -> str | None:
    """One sentence of the answer many times, the answer's start before it."""
    parts = [part.strip() for part in sentences(text)]
    long_enough = [part for part in parts[1:] if len(part) > 12]
    if not long_enough or not is_prose(text):
        return None
    return (" " if _spaced(text) else "").join([parts[0], *[rng.choice(long_enough)] * rng.randint(6, 14)])


def _counted_loop(text: str, rng: random.Random) -> str | None:
    """`1. the same 2. the same 3. the same`, in one line: only the numbers differ."""
    parts = [part.strip() for part in sentences(text) if 12 < len(part) < 160]
    if not parts or not is_prose(text):
        return None
    once = rng.choice(parts)
    return " ".join(f"{n}. {once}" for n in range(1, rng.randint(9, 16)))


def _alternating(text: str, rng: random.Random) -> str | None:
    """Two sentences that take turns."""
    parts = [part.strip() for part in sentences(text) if 12 < len(part) < 160]
    if len(parts) < 2 or not is_prose(text):
        return None
    return (" " if _spaced(text) else "").join(rng.sample(parts, 2) * rng.randint(6, 10))


def _whole_again(text: str, rng: random.Random) -> str | None:
    """The whole answer three to five times."""
    return (" " if _spaced(text) else "").join([text] * rng.randint(3, 5)) if 60 < len(text) < 600 else None


def _stuck(text: str, rng: random.Random) -> str | None:
    """One word or character, without end, after a fair start."""
    if not is_prose(text):
        return None
    if _spaced(text):
        return " ".join([*text.split()[:6], *[rng.choice(text.split())] * rng.randint(30, 60)])
    return text[:12] + rng.choice(re.findall(r"[\u4e00-\u9fff]", text)) * rng.randint(40, 90)


def _spaced(text: str) -> bool:
    return len(re.findall(r"[\u3040-\u9fff]", text)) * 4 < len(text)


_LOOPS = change(
    _loop(12, 40, (3, 6)),
    _loop(8, 20, (7, 14)),
    _tail_loop,
    _sentence_loop,
    _counted_loop,
    _alternating,
    _whole_again,
    _stuck,
    _loop(10, 24, (4, 8), joint=", "),
)

REPEATED_TEXT = Kind(frozenset({"repeated_text", "repeated_lines"}), _LOOPS, _LOOPS)


def _lines(make: Callable[[list[str], random.Random], list[str]]) -> Callable[[str, random.Random], str | None]:
    def edit(text: str, rng: random.Random) -> str | None:
        parts = [part.strip() for part in sentences(text) if len(part.strip()) > 8]
        if len(parts) < 2 or not is_prose(text):
            return None
        return "\n".join(make(parts, rng))

    return edit


_LINE_LOOPS = change(
    _lines(lambda parts, rng: [parts[0]] * rng.randint(7, 20)),
    _lines(lambda parts, rng: [parts[0], *[parts[1]] * rng.randint(8, 16)]),
    _lines(lambda parts, rng: parts[:2] * rng.randint(6, 10)),
    _lines(lambda parts, rng: [line for n in range(rng.randint(7, 14)) for line in (parts[-1], "")]),
    _lines(lambda parts, rng: [f"- {parts[0]}"] * rng.randint(8, 15)),
    _lines(lambda parts, rng: [f"{n}. {parts[0]}" for n in range(1, rng.randint(9, 18))]),
    _lines(lambda parts, rng: [*parts, *[parts[-1]] * (2 * len(parts) + rng.randint(6, 9))]),
    _lines(lambda parts, rng: (parts[: max(2, len(parts) // 2)]) * rng.randint(5, 8)),
)

REPEATED_LINES = Kind(frozenset({"repeated_lines", "repeated_text"}), _LINE_LOOPS, _LINE_LOOPS)


# Signs that are no text ---------------------------------------------------------------------------------------------


def _signs(alphabet: str, least: int, most: int) -> Callable[[str, random.Random], str | None]:
    return lambda _, rng: "".join(rng.choice(alphabet) for _ in range(rng.randint(least, most)))


def _from_ranges(*ranges: tuple[int, int]) -> str:
    return "".join(chr(code) for low, high in ranges for code in range(low, high) if chr(code).isprintable())


_SCRIPTS = _from_ranges(
    (0x370, 0x3FF),
    (0x5D0, 0x5EB),
    (0x905, 0x939),
    (0xE01, 0xE2F),
    (0x10A0, 0x10C5),
    (0x1200, 0x1240),
    (0x13A0, 0x13F0),
    (0x3041, 0x3090),
    (0xAC00, 0xAD00),
)


def _in_the_middle(garbage: Callable[[str, random.Random], str | None]) -> Callable[[str, random.Random], str | None]:
    """A few true words, then more garbage than words."""

    def edit(text: str, rng: random.Random) -> str | None:
        start = text[: rng.randint(10, 20)]
        noise = garbage(text, rng) or ""
        return f"{start} {noise} {noise[::-1]}"

    return edit


_GARBAGE = change(
    _signs("!@#$%^&*()_+=-~`|\\/<>?", 30, 120),
    _signs("■□▲△●○◆◇★☆▓▒░█▄▀", 30, 90),
    _signs("│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬", 40, 120),
    _signs("".join(map(chr, range(0xE000, 0xE0F0))), 20, 80),
    _signs("".join(map(chr, (*range(1, 9), *range(14, 31), *range(0x80, 0xA0)))), 20, 60),
    _signs(_SCRIPTS, 40, 120),
    _signs("😀😂🤣😍🔥💯👍🎉✨🙏😭🥰", 40, 110),
    _signs("~-_=*#.", 60, 160),
    _in_the_middle(_signs("#$%&*^~|@¤§¶¦¬±×÷", 40, 80)),
    _in_the_middle(_signs("■□◆◇▓▒░¤", 40, 80)),
    _signs("?!¿¡‽⁉⁈‼", 30, 80),
)

ODD = Kind(
    frozenset({"odd_characters", "mojibake", "bad_encoding", "repeated_text", "placeholder_answer"}), _GARBAGE, _GARBAGE
)


def _mash(rows: Sequence[str]) -> Callable[[str, random.Random], str | None]:
    return lambda _, rng: " ".join(
        "".join(rng.choice(rng.choice(rows)) for _ in range(rng.randint(4, 14))) for _ in range(rng.randint(3, 9))
    )


KEYBOARD_MASH = Kind(
    frozenset({"odd_characters", "not_fluent"}),
    change(_mash(("asdfghjkl",)), _mash(("qwertyuiop", "asdfghjkl", "zxcvbnm"))),
    change(_mash(("asdfghjkl",)), _signs(_from_ranges((0x4E00, 0x9F00)), 20, 60)),
    floor=False,
)


# Encodings gone wrong -----------------------------------------------------------------------------------------------


@lru_cache
def _mends() -> Callable[[str], str]:
    from ftfy import fix_encoding

    return fix_encoding


def _misread(written: str, read: str, errors: str = "strict") -> Callable[[str, random.Random], str | None]:
    """The text as it looks when its bytes in one encoding are read in another."""

    def edit(text: str, _: random.Random) -> str | None:
        try:
            broken = text.encode(written, "strict").decode(read, errors)
        except (UnicodeEncodeError, UnicodeDecodeError):
            return None
        return broken if broken != text else None

    return edit


def _sloppy(text: str) -> str:
    """UTF-8 read as Windows-1252 the way browsers do it: the five bytes it lacks pass through."""
    return "".join(
        bytes([byte]).decode("cp1252") if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else chr(byte)
        for byte in text.encode()
    )


def _typeset(text: str) -> str | None:
    """The text as a word processor would set it: curly quotes, dashes and an ellipsis."""
    out = re.sub(r"(\w)'(\w)", "\\1\u2019\\2", text)
    out = re.sub(r'"([^"\n]{1,80})"', "\u201c\\1\u201d", out)
    out = out.replace(" - ", " \u2014 ").replace("...", "\u2026")
    return out if sum(c in "\u2019\u201c\u201d\u2014\u2026" for c in out) >= 2 else None


def _accented(text: str, rng: random.Random) -> str:
    """The text with a true sentence that needs accents."""
    more = (
        "The café on the corner serves crème brûlée and jalapeño soup.",
        "Dr. Müller of Zürich and Señora Peña of Málaga agree.",
        "It costs about 20 € (roughly £17) at 25 °C.",
        "The naïve fiancée sent her résumé to São Paulo.",
        "Its size is 30 µm ± 5 µm, say Ångström’s notes.",
    )
    return f"{text} {rng.choice(more)}"


def _mendable(make: Callable[[str, random.Random], str | None], damage: Callable[[str], str]) -> Variant:
    """Damage that ftfy undoes: said by ftfy itself, when the row is made. The tool must keep the row, mended."""

    def put(talk: Talk, rng: random.Random) -> Talk | None:
        good = make(talk.answer, rng)
        if good is None or len(good) > 1500:
            return None
        broken = damage(good)
        if broken == good or _mends()(broken) != good:
            return None
        return talk.answering(broken)

    return put


def _first_sentence_only(damage: Callable[[str], str]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        parts = sentences(text)
        return text.replace(parts[0], damage(parts[0]), 1)

    return edit


def _latin(text: str) -> str:
    return text.encode().decode("latin-1")


def _same(text: str, _: random.Random) -> str:
    return text


def _set(text: str, _: random.Random) -> str | None:
    return _typeset(text)


MOJIBAKE_MENDABLE = Kind(
    frozenset({"mended"}),
    (
        _mendable(_set, _sloppy),
        _mendable(_accented, _sloppy),
        _mendable(_accented, _latin),
        _mendable(_set, _latin),
        _mendable(_accented, lambda text: _sloppy(_sloppy(text))),
        _mendable(lambda text, rng: _typeset(_accented(text, rng)), _sloppy),
    ),
    (
        _mendable(_same, _latin),
        _mendable(_same, _sloppy),
        _mendable(_same, _first_sentence_only(_latin)),
        _mendable(_same, _first_sentence_only(_sloppy)),
        _mendable(_same, lambda text: _latin(_latin(text))),
        _mendable(_same, lambda text: _sloppy(text).replace("\u00a0", " ")),
    ),
    mend=True,
)


def _lossy(text: str, _: random.Random) -> str | None:
    """Saved in an encoding without Chinese: every character became a question mark."""
    return re.sub(r"[\u4e00-\u9fff]", "?", text)


def _locked(text: str, rng: random.Random) -> str | None:
    """What debuggers and double conversions leave."""
    return "".join(rng.choice(("锟斤拷", "烫烫烫", "屯屯屯", "锟斤拷锟斤拷")) for _ in range(rng.randint(8, 30)))


def _half(edit: Callable[[str, random.Random], str | None]) -> Callable[[str, random.Random], str | None]:
    """Only the second half is broken, as where two files were joined."""

    def half(text: str, rng: random.Random) -> str | None:
        middle = len(text) // 2
        broken = edit(text[middle:], rng)
        return None if broken is None or len(text) < 60 else text[:middle] + broken

    return half


def _ascii_only(edit: Callable[[str, random.Random], str | None]) -> Callable[[str, random.Random], str | None]:
    """For damage that needs plain ASCII of even length."""

    def put(text: str, rng: random.Random) -> str | None:
        plain = text.encode("ascii", "ignore").decode()
        return edit(plain[: len(plain) // 2 * 2], rng) if len(plain) > 40 else None

    return put


def _dropped_bytes(text: str, _: random.Random) -> str | None:
    """UTF-8 read as Latin-1 after a program removed what it took for control characters."""
    broken = re.sub(r"[\x80-\x9f\xa0\xad]", "", _latin(text))
    return broken if broken != text else None


def _typeset_lossy(form: Callable[[str], str]) -> Callable[[str, random.Random], str | None]:
    """Curly quotes, dashes and accents whose bytes were read wrongly, and then partly thrown away."""

    def edit(text: str, rng: random.Random) -> str | None:
        good = _typeset(_accented(text, rng))
        return form(good) if good else None

    return edit


def _question_marks(text: str) -> str:
    """Saved as Windows-1252 by a program that asks no questions: `itâ€™s` has become `it??s`."""
    return re.sub("[\u2010-\u2fff]", "???", re.sub("[\xa0-\xff]", "??", text))


MOJIBAKE_LOST = Kind(
    frozenset({"mojibake", "odd_characters", "bad_encoding", "replacement_character"}),
    change(
        _ascii_only(_misread("ascii", "utf-16-le", "ignore")),
        _ascii_only(_misread("ascii", "utf-16-be", "ignore")),
        _half(_ascii_only(_misread("ascii", "utf-16-le", "ignore"))),
        _ascii_only(_misread("cp037", "latin-1")),
        _typeset_lossy(_question_marks),
        _typeset_lossy(lambda text: text.encode().decode("gbk", "ignore")),
        _typeset_lossy(lambda text: text.encode().decode("shift_jis", "ignore")),
    ),
    change(
        _misread("utf-8", "gbk", "ignore"),
        _misread("gbk", "latin-1"),
        _misread("utf-8", "shift_jis", "ignore"),
        _misread("utf-8", "big5", "ignore"),
        _misread("utf-8", "cp437"),
        _misread("gbk", "big5", "ignore"),
        _misread("utf-16-le", "gbk", "ignore"),
        _lossy,
        _locked,
        _half(_misread("utf-8", "gbk", "ignore")),
        _misread("gbk", "cp1251", "ignore"),
        _dropped_bytes,
        _misread("utf-8", "euc-kr", "ignore"),
    ),
    mend=True,
)


def _lost(count: int, run: int = 1) -> Callable[[str, random.Random], str | None]:
    """So many places where characters were replaced by U+FFFD."""

    def edit(text: str, rng: random.Random) -> str | None:
        if len(text) < 12:
            return None
        for _ in range(count):
            at = rng.randrange(len(text))
            text = text[:at] + "\ufffd" * run + text[at + run :]
        return text

    return edit


_LOST = (
    *change(_lost(1), _lost(3), _lost(1, 2), _lost(12), lambda t, _: t + "\ufffd", lambda t, _: "\ufffd" + t),
    *change(_lost(1), _lost(2, 3), where="question"),
    *change(lambda t, rng: "".join("\ufffd" if rng.random() < 0.3 else c for c in t)),
)

REPLACEMENT = Kind(frozenset({"replacement_character", "mojibake", "odd_characters", "bad_encoding"}), _LOST, _LOST)


# Web pages ----------------------------------------------------------------------------------------------------------


def _no_markup(talk: Talk) -> bool:
    return is_prose(talk.answer) and not re.search(r"html|css|web|code|xml|网页|代码|标签", talk.question, re.I)


def _marked(form: Callable[[str], str], where: str = "answer") -> Variant:
    def put(talk: Talk, _: random.Random) -> Talk | None:
        if not _no_markup(talk):
            return None
        return talk.answering(form(talk.answer)) if where == "answer" else talk.asking(form(talk.question))

    return put


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{part.strip()}</p>" for part in sentences(text))


_MARKUP = (
    _marked(_paragraphs),
    _marked(lambda t: "<br/>".join(part.strip() for part in sentences(t)) + "<br/>"),
    _marked(lambda t: f'<div class="answer-body">{t}</div>'),
    _marked(lambda t: f'<span style="font-size: 14px; color: #333;">{t}</span>'),
    _marked(lambda t: f'{t}<a href="/question/1024.html" target="_blank">more</a>'),
    _marked(lambda t: html.escape(_paragraphs(t))),
    _marked(lambda t: t.replace(" ", "&nbsp;") if _spaced(t) else t.replace("，", "，&nbsp;&nbsp;") + "&nbsp;"),
    _marked(lambda t: f"<ul>{''.join(f'<li>{part.strip()}</li>' for part in sentences(t))}</ul>"),
    _marked(lambda t: f"{t}<script>var _hmt = _hmt || [];</script>"),
    _marked(lambda t: f"<table><tr><td>{'</td><td>'.join(sentences(t))}</td></tr></table>"),
    _marked(lambda t: f'{t}<img src="http://img.example.com/a.jpg" alt="" />'),
    _marked(lambda t: f"<p><strong>{t}</strong></p>", where="question"),
    _marked(lambda t: f"<P>{t}</P><BR><BR>"),
    _marked(lambda t: t.replace("。", "。<br>").replace(". ", ".<br>\n") + "<br>"),
)

HTML = Kind(frozenset({"html_markup"}), _MARKUP, _MARKUP, mend=True)


def _page(head: Sequence[str], tail: Sequence[str], whole: Sequence[str]) -> tuple[Variant, ...]:
    """A page's furniture in place of the answer, and around it."""
    in_place = say(*whole)
    framed = around(*(f"{h}\n{{a}}\n{t}" for h, t in zip(head, tail, strict=True)))
    return (*in_place, *framed)


BOILERPLATE = Kind(
    frozenset({"boilerplate", "advertisement", "html_markup"}),
    _page(
        (
            "Home | About us | Products | Contact | Login",
            "Skip to main content\nSearch\nMenu",
            "You are here: Home > Health > Articles > {d}{d}{d}{d}",
            "Share this: Facebook Twitter Pinterest LinkedIn Email",
            "Subscribe to our newsletter\nSign in | Register",
        ),
        (
            "© 20{d}{d} HealthSite Inc. All rights reserved. Privacy Policy | Terms of Use | Sitemap",
            "Previous post | Next post\nLeave a comment\nYour email address will not be published.",
            "Related articles\nRead more\nLoad more comments",
            "Copyright 20{d}{d} MyPortal. Reproduction without permission is prohibited.",
            "Posted in Uncategorized | Tagged {d}{d} | {d} Comments\nPowered by WordPress",
        ),
        (
            "We use cookies to improve your experience on our site. By continuing to browse, you accept our use of "
            "cookies. Accept all | Manage preferences | Cookie policy",
            "Copyright © 20{d}{d} Acme Media Ltd. All rights reserved. Terms of Service. Privacy Policy.",
            "Home | About | Services | Blog | Contact us | Careers | Sitemap | Log in | Sign up",
            "This website uses cookies to ensure you get the best experience. Learn more. Got it!",
            "Please enable JavaScript to view this page. If the problem persists, contact the site administrator.",
            "404 Not Found. The page you are looking for might have been removed or is temporarily unavailable.",
            "You must be logged in to view this content. Log in or create a free account to continue reading.",
            "Share on Facebook Share on Twitter Pin it Email Print. Related posts. Leave a reply. Cancel reply.",
            "Skip to content. Toggle navigation. Search for: Categories. Archives. Recent posts. Meta. Log in.",
            "Click here to read the full article. Subscribe to our newsletter for more. Unsubscribe at any time.",
            "All content on this site is for information only. © {d}{d}{d}{d} The Portal Group. Privacy | Terms | Ads.",
            "Access denied. Please complete the CAPTCHA to prove that you are human. Ray ID: 7c{d}f{d}a{d}e.",
        ),
    ),
    _page(
        (
            "首页 > 健康 > 疾病百科 > 正文",
            "当前位置：首页 - 新闻中心 - 行业动态",
            "登录 | 注册 | 收藏本站 | 设为首页",
            "分享到：微信 微博 QQ空间",
            "字号：大 中 小  打印  关闭  来源：网络  浏览次数：{d}{d}{d}{d}",
        ),
        (
            "版权所有 © 20{d}{d} 某某健康网 京ICP备{d}{d}{d}{d}{d}{d}{d}{d}号 未经授权禁止转载",
            "上一篇：没有了\n下一篇：常见问题解答\n责任编辑：小王",
            "相关阅读\n热门推荐\n点击查看更多>>",
            "免责声明：本文来源于网络，版权归原作者所有，如有侵权请联系我们删除。",
            "网友评论仅供其表达个人看法，并不表明本站立场。\n发表评论 | 查看全部评论",
        ),
        (
            "版权所有 © 20{d}{d} 某某网 保留一切权利 京ICP备{d}{d}{d}{d}{d}{d}{d}{d}号-{d} 京公网安备1101{d}{d}{d}号",
            "首页 | 关于我们 | 产品中心 | 新闻动态 | 联系我们 | 网站地图 | 登录 | 注册",
            "本网站使用Cookie来改善您的浏览体验。继续浏览即表示您同意我们使用Cookie。接受全部 | 设置",
            "免责声明：本站内容来源于网络，仅供参考，版权归原作者所有，如有侵权请联系删除。",
            "您所访问的页面不存在或已被删除。返回首页 | 联系客服",
            "上一篇：暂无 下一篇：暂无 责任编辑：admin 分享到：微博 微信 QQ空间",
            "请登录后查看全部内容。立即登录 | 免费注册 | 忘记密码？",
            "未经本站书面授权，禁止转载、摘编。本站保留追究其法律责任的权利。版权声明 | 隐私政策 | 用户协议",
            "加载中，请稍候… 如果长时间没有响应，请刷新页面或启用JavaScript。",
            "展开全文 点击阅读更多 热门文章 推荐阅读 相关问题 举报 收藏 评论({d})",
            "扫一扫关注微信公众号 客户端下载 意见反馈 用户协议 隐私政策 Copyright © 20{d}{d}",
            "来源：互联网 编辑：小编 发布时间：202{d}-0{d}-1{d} 浏览：{d}{d}{d}次 【打印】【关闭】",
        ),
    ),
)


# Refusals -----------------------------------------------------------------------------------------------------------

REFUSAL = Kind(
    frozenset({"refusal"}),
    say(
        "I'm sorry, but I can't assist with that.",
        "I’m sorry, but I cannot help with that request.",
        "As an AI language model, I don't have access to that information.",
        "I'm afraid I can't do that.",
        "Sorry, I am not able to answer this question.",
        "I apologize, but I am unable to provide an answer to this.",
        "As an AI assistant developed by OpenAI, I cannot give opinions. However, there are many views on {w}.",
        "I cannot fulfill this request. It goes against my guidelines.",
        "Unfortunately, I am just a language model and cannot browse the internet to find out about {w}.",
        "I'm an AI and I don't have personal experiences or feelings, so I cannot say.",
        "As a large language model, I am not programmed to discuss {w}.",
        "I do not feel comfortable answering this question.",
        "My knowledge cutoff is September 2021, so I do not have information about {w}.",
        "It would not be appropriate for me to respond to this request.",
        "I must decline to answer. My training data does not cover {w}.",
        "That is an interesting question! But being an AI language model, I have no opinion on {w}. In general, people "
        "think about {w} and then decide for themselves.",
        "I'm sorry, I don't have enough information to answer that.",
        "I am not able to provide medical or legal advice. Please consult a professional.",
        "I'm sorry, but as an artificial intelligence I can't see images or files.",
        "I can't help with that. Is there anything else I can assist you with?",
    ),
    say(
        "抱歉，我无法回答这个问题。",
        "对不起，我不能提供这方面的帮助。",
        "作为一个人工智能语言模型，我没有个人观点。",
        "很抱歉，作为AI助手，我无法完成您的请求。",
        "我是一个AI语言模型，无法访问实时信息。",
        "非常抱歉，我无法满足您的要求。请问还有什么可以帮您的吗？",
        "作为一个AI，我没有情感和个人经历，所以无法回答。",
        "很遗憾，我暂时无法回答关于{w}的问题。",
        "抱歉，这个问题我还不会，我会继续学习的。",
        "作为一名人工智能助手，我不能对此发表意见。不过一般来说，{w}因人而异。",
        "我的知识截止到2021年9月，无法提供之后的信息。",
        "由于我是一个大型语言模型，我不具备浏览网页的能力。",
        "对不起，您的问题涉及敏感内容，我无法作答。",
        "抱歉，我不能协助完成这项请求，因为它违反了使用政策。",
        "您好，我是OpenAI训练的语言模型，没有办法给出{w}的判断。",
        "不好意思，我没有办法帮您做这件事。",
        "这个问题很有意思。但身为一个语言模型，我没有{w}，也就谈不上看法。",
        "抱歉，我没有足够的信息来回答您的问题。",
        "作為一個人工智慧語言模型，我無法提供這方面的資訊。",
        "我只是一个AI程序，无法提供医疗或法律建议，请咨询专业人士。",
    ),
)


# Truncated ----------------------------------------------------------------------------------------------------------


def _cut(least: float, most: float, at: str = "word") -> Callable[[str, random.Random], str | None]:
    """The answer up to a place inside one of its sentences."""

    def edit(text: str, rng: random.Random) -> str | None:
        if not is_prose(text) or len(text) < (160 if _spaced(text) else 60):
            return None
        place = int(len(text) * rng.uniform(least, most))
        if at == "comma":
            commas = [m.end() for m in re.finditer(r"[,，、]", text) if place * 0.6 < m.end() < len(text) - 8]
            return text[: rng.choice(commas)] if commas else None
        if at == "joint":
            joints = (
                r" (?:and|or|but|because|of|the|to|with|which|that|for) |(?:和|以及|因为|例如|包括|或者|但是|的|如)"
            )
            found = [m.end() for m in re.finditer(joints, text) if place * 0.6 < m.end() < len(text) - 8]
            return text[: rng.choice(found)].rstrip() if found else None
        if at == "inside a word" and _spaced(text):
            while place < len(text) - 8 and not (text[place - 1].isalpha() and text[place].isalpha()):
                place += 1
        elif _spaced(text):
            place = text.rfind(" ", 0, place)
        head = text[:place].rstrip()
        rest = text[place:].lstrip()
        inside = rest[:1] not in ".!?。！？" and head and re.search(r"[A-Za-z\u4e00-\u9fff]$", head)
        return head if inside and len(head) > 30 else None

    return edit


def _open_bracket(text: str, rng: random.Random) -> str | None:
    """Ends within brackets that are never closed."""
    cut = _cut(0.5, 0.9)(text, rng)
    if cut is None or ("(" in cut) or ("（" in cut):
        return None
    tail = cut[-12:]
    return f"{cut[:-12]} ({tail.strip()}" if _spaced(text) else f"{cut[:-12]}（{tail}"


def _next_item(text: str, _: random.Random) -> str | None:
    """A numbered list that breaks off right after a number."""
    parts = [part.strip() for part in sentences(text) if len(part.strip()) > 10]
    if len(parts) < 3 or not is_prose(text):
        return None
    return "\n".join(f"{n}. {part}" for n, part in enumerate(parts[:-1], 1)) + f"\n{len(parts)}."


_CUTS = change(
    _cut(0.4, 0.9),
    _cut(0.4, 0.9, "comma"),
    _cut(0.4, 0.9, "joint"),
    _cut(0.3, 0.8, "inside a word"),
    _open_bracket,
    _next_item,
    _cut(0.8, 0.97),
    _cut(0.25, 0.5),
)

TRUNCATED = Kind(frozenset({"truncated_answer"}), _CUTS, _CUTS)


# Another language than the question's -------------------------------------------------------------------------------

_FOREIGN = {
    "zh": (
        "这种情况比较常见，通常与作息不规律、压力大有关。建议保持充足睡眠，清淡饮食，适当运动，如果症状持续请及时就医。",
        "主要有三点：第一，明确目标；第二，制定计划并按时检查进度；第三，遇到问题及时调整，不要拖延。",
        "它最早出现在古代，经过长期发展逐渐完善，如今已经广泛应用于教育、交通和医疗等各个领域。",
        "可以从原料、工艺和包装三个方面考虑。原料要新鲜，工艺要稳定，包装既要美观也要环保。",
        "春天来了，河边的柳树发出了嫩芽，孩子们在草地上奔跑，老人们坐在长椅上晒太阳。",
    ),
    "en": (
        "This is quite common and is usually linked to stress and poor sleep. Rest, eat well, and see a doctor if it "
        "does not get better within a week or two.",
        "There are three main steps: set a clear goal, make a plan with dates, and check your progress every week.",
        "It first appeared centuries ago and has since spread to education, transport and medicine around the world.",
        "Think of the material, the method and the packaging: the first should be fresh, the second steady, the third "
        "both handsome and kind to the environment.",
        "Spring has come, the willows by the river are green, and the children run across the meadow all afternoon.",
    ),
    "fr": (
        "Cela dépend de plusieurs facteurs, notamment de l'âge, du mode de vie et des antécédents familiaux. Il est "
        "conseillé de consulter un spécialiste si les symptômes persistent.",
        "Pour commencer, il faut définir les objectifs, puis choisir une méthode simple et vérifier les résultats.",
    ),
    "de": (
        "Das hängt von mehreren Dingen ab, vor allem vom Alter und von der Lebensweise. Wenn die Beschwerden länger "
        "dauern, sollten Sie eine Ärztin oder einen Arzt aufsuchen.",
        "Zuerst sollte man das Ziel festlegen, dann einen einfachen Weg wählen und schließlich das Ergebnis prüfen.",
    ),
    "es": (
        "Depende de varios factores, como la edad y el estilo de vida. Si los síntomas continúan durante más de una "
        "semana, conviene acudir al médico para que haga una revisión.",
        "Primero hay que definir el objetivo, después elegir un método sencillo y por último comprobar el resultado.",
    ),
    "ru": (
        "Это зависит от многих причин, прежде всего от возраста и образа жизни. Если симптомы не проходят, нужно "
        "обратиться к врачу.",
        "Сначала нужно определить цель, затем выбрать простой способ и, наконец, проверить результат.",
    ),
    "ja": (
        "これはいくつかの原因が考えられますが、主に生活習慣と関係があります。症状が続く場合は医師に相談してください。",
        "まず目標を決め、次に簡単な方法を選び、最後に結果を確認することが大切です。",
    ),
    "ko": (
        "이것은 여러 가지 원인이 있을 수 있지만 주로 생활 습관과 관련이 있습니다. 증상이 계속되면 의사와 상담하세요.",
        "먼저 목표를 정하고, 다음으로 간단한 방법을 선택한 뒤, 마지막으로 결과를 확인하는 것이 중요합니다.",
    ),
    "ar": (
        "يعتمد ذلك على عدة عوامل، أهمها العمر ونمط الحياة. إذا استمرت الأعراض فمن الأفضل استشارة الطبيب.",
        "أولاً يجب تحديد الهدف، ثم اختيار طريقة بسيطة، وأخيراً التحقق من النتيجة.",
    ),
}


def _in(language: str) -> Variant:
    """The answer in another language, where the question speaks of none."""

    def put(talk: Talk, rng: random.Random) -> Talk | None:
        names = (
            r"translat|language|english|chinese|french|spanish|german|japanese|word|sentence|phrase|say|poem|quote|"
            r"翻译|英|语|词|句|双语|日本|法国|德国|韩|俄|code|program|代码|编写|python|诗|名言"
        )
        if re.search(names, talk.text[: len(talk.text) - len(talk.answer)], re.I) or not is_prose(talk.answer):
            return None
        if len(re.findall(r"[A-Za-z]", talk.question)) > 4 and talk.language == "zh":
            return None
        return talk.answering(rng.choice(_FOREIGN[language]))

    return put


WRONG_LANGUAGE = Kind(
    frozenset({"wrong_language"}),
    tuple(map(_in, ("zh", "fr", "zh", "ru", "ja", "de", "zh", "es", "ko", "zh", "ar"))),
    tuple(map(_in, ("en", "ja", "en", "ko", "en", "ru", "fr", "en", "de"))),
)


# Advertisements -----------------------------------------------------------------------------------------------------

ADVERTISEMENT = Kind(
    frozenset({"advertisement", "boilerplate"}),
    (
        *say(
            "Buy now at http://www.best-pills-{d}{d}.com and get 50% off! Call 1-800-555-0{d}{d}{d} today!!!",
            "Visit www.cheap-loans{d}.net for the best rates. Limited time offer! Call us toll-free: "
            "(888) 555-01{d}{d}.",
            "Click here >>> http://bit.ly/3x{d}y{d}z to earn $5,000 a week working from home! Sign up free!",
            "Contact Dr. Ogun on WhatsApp +1 (202) 555-01{d}{d} for a permanent cure. 100% guaranteed, order today.",
            "Follow us on Telegram @fastcash{d}{d}{d} and claim your free bonus. Hurry, only {d} places left!",
            "Our company offers top quality products at factory price. For orders e-mail sales{d}@bestfactory."
            "com or call "
            "+86 138 0013 80{d}{d}.",
            "Get your FREE trial at https://www.super-slim{d}.shop! Use code SAVE{d}0 at checkout. Order now!",
        ),
        *around(
            "{a}\n\nFor more help call 1-800-555-0{d}{d}{d} or visit http://www.health-deals{d}.com "
            "- order now and save "
            "30%!",
            "{a} >>> Special offer! Buy one get one free at www.discount-meds{d}{d}.com. WhatsApp: "
            "+1 202 555 01{d}{d} <<<",
            "LIMITED OFFER: visit https://promo{d}{d}.shop and use coupon HEALTH{d}0!\n{a}\nCall "
            "now: (888) 555-01{d}{d}",
        ),
    ),
    (
        *say(
            "加微信 yjk{d}{d}{d}88 免费领取资料，名额有限，先到先得！",
            "详情请咨询客服QQ：2{d}{d}36{d}{d}815，或拨打热线400-{d}{d}{d}-1{d}{d}8，专业团队为您服务。",
            "点击链接 http://www.zhiliao{d}{d}.com 立即购买，限时五折，包邮到家！",
            "本院专治疑难杂症，祖传秘方，无效退款，咨询电话：138{d}{d}{d}{d}56{d}{d}，微信同号。",
            "关注微信公众号“健康一点通{d}”，回复关键词免费领取大礼包，还有专家一对一指导。",
            "低息贷款，无抵押，当天放款！联系张经理 139{d}{d}{d}{d}88{d}{d}（微信同步）。",
            "淘宝搜索店铺“养生堂{d}号”，收藏加购立减20元，客服V信：ysd{d}{d}{d}{d}。",
            "代写论文、代发文章，包过包录用，扣扣{d}{d}5{d}{d}7{d}{d}1，诚信合作。",
        ),
        *around(
            "{a}\n如需购买请加微信：abc{d}{d}{d}{d}，现在下单立享八折优惠！",
            "{a}更多详情请拨打24小时免费咨询热线：400-{d}{d}0-{d}{d}88，或登录www.jk{d}{d}.cn在线预约专家，前{d}0名免挂号费！",
            "【限时优惠】扫码加客服微信 kf{d}{d}{d}{d} 领红包！{a}（推广：官网 http://www.tuiguang{d}.com）",
        ),
    ),
)


# Words on the user's list -------------------------------------------------------------------------------------------

BLOCKED_WORDS = ("zorblax", "quibberish", "Mudgrunt", "foul trollop", "毒蘑粉", "垃圾佬", "黑心丸", "滚犊子王")
"""The list that the evaluation passes: words that no clean row holds."""


def _with_word(word: str, where: str = "answer") -> Variant:
    def put(talk: Talk, rng: random.Random) -> Talk | None:
        text = talk.answer if where == "answer" else talk.question
        if len(text) < 16:
            return None
        if _spaced(text):
            at = text.find(" ", rng.randrange(len(text) // 2))
            if at < 0:
                return None
            text = f"{text[:at]} {word}{text[at:]}"
        else:
            at = rng.randrange(2, len(text) - 2)
            text = text[:at] + word + text[at:]
        return talk.answering(text) if where == "answer" else talk.asking(text)

    return put


BLOCKED = Kind(
    frozenset({"blocked_word"}),
    (
        _with_word("zorblax"),
        _with_word("Zorblax,"),
        _with_word("QUIBBERISH"),
        _with_word("mudgrunt", "question"),
        _with_word("foul trollop"),
        _with_word("(quibberish)"),
        _with_word(_full_width("zorblax")),
        _with_word("foul  trollop"),
    ),
    (
        _with_word("毒蘑粉"),
        _with_word("垃圾佬", "question"),
        _with_word("黑心丸"),
        _with_word("“滚犊子王”"),
        _with_word("zorblax"),
        _with_word("毒蘑粉", "question"),
        _with_word("ZORBLAX"),
    ),
)


# Turns out of order -------------------------------------------------------------------------------------------------


def _turns(*roles: str) -> Variant:
    """The question, the answer and parts of them, said by these roles in this order."""

    def put(talk: Talk, _: random.Random) -> Talk | None:
        parts = [part.strip() for part in sentences(talk.answer) if len(part.strip()) > 6]
        if len(parts) < 3 or len(talk.turns) > 2:
            return None
        said = {"user": iter((talk.question, parts[0], parts[1])), "assistant": iter((talk.answer, *parts[1:]))}
        said["system"] = iter(
            ("You are a helpful assistant." if talk.language == "en" else "你是一个乐于助人的助手。",) * 3
        )
        return replace(talk, turns=tuple((role, next(said[role])) for role in roles))

    return put


_ORDERS = tuple(
    _turns(*roles.split())
    for roles in (
        "user user assistant",
        "user assistant assistant",
        "assistant user assistant",
        "user assistant user",
        "assistant user",
        "user assistant system user assistant",
        "user assistant user user assistant",
        "system assistant",
        "user assistant system",
    )
)

TURN_ORDER = Kind(frozenset({"turn_order", "no_assistant"}), _ORDERS, _ORDERS)


KINDS: dict[str, Kind] = {
    "empty answer": EMPTY,
    "empty question": EMPTY_QUESTION,
    "placeholder answer": PLACEHOLDER,
    "answer repeats the question": REPEATS_QUESTION,
    "answer restates the question": RESTATES,
    "text in circles": REPEATED_TEXT,
    "repeated lines": REPEATED_LINES,
    "garbage": ODD,
    "mojibake, mendable": MOJIBAKE_MENDABLE,
    "mojibake, lost": MOJIBAKE_LOST,
    "U+FFFD": REPLACEMENT,
    "HTML left in": HTML,
    "boilerplate": BOILERPLATE,
    "refusal": REFUSAL,
    "truncated": TRUNCATED,
    "wrong language": WRONG_LANGUAGE,
    "advertisement": ADVERTISEMENT,
    "blocked word": BLOCKED,
    "turn order": TURN_ORDER,
    "keyboard mash": KEYBOARD_MASH,
}
"""Faults of single rows. Duplicates, contradictions and lengths follow below, since they take several rows."""


# Duplicates ---------------------------------------------------------------------------------------------------------


def shingles(text: str) -> frozenset[str]:
    """Character 5-grams of the text without its signs and spaces: this yardstick's own notion of likeness."""
    plain = re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).lower())
    return frozenset(plain[i : i + 5] for i in range(max(1, len(plain) - 4)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Shared shingles over all shingles."""
    return len(a & b) / len(a | b)


def _everywhere(edit: Callable[[str], str]) -> Variant:
    return lambda talk, _: replace(talk, turns=tuple((role, edit(text)) for role, text in talk.turns))


@lru_cache
def _traditional() -> Callable[[str], str]:
    from opencc import OpenCC

    return OpenCC("s2t").convert


def _zero_width(text: str) -> str:
    return text[: len(text) // 2] + "\u200b" + text[len(text) // 2 :]


_WESTERN = str.maketrans("，。！？：；（）", ",.!?:;()")

EXACT: dict[str, tuple[Variant, ...]] = {
    "en": (
        _everywhere(lambda t: t),
        _everywhere(str.upper),
        _everywhere(str.lower),
        _everywhere(_full_width),
        _everywhere(lambda t: f"  {t} \n"),
        _everywhere(lambda t: t.replace(". ", ".  ").replace(", ", ",  ")),
        _everywhere(lambda t: t.rstrip(".!?") + "!"),
        _everywhere(lambda t: t.replace("'", "\u2019").replace('"', "\u201d")),
        _everywhere(lambda t: t.replace(",", "")),
        _everywhere(_zero_width),
        _everywhere(lambda t: t.replace(" ", "\u00a0")),
    ),
    "zh": (
        _everywhere(lambda t: t),
        _everywhere(lambda t: _traditional()(t)),
        _everywhere(lambda t: t.translate(_WESTERN)),
        _everywhere(lambda t: t.replace("，", "， ").replace("。", "。 ")),
        _everywhere(lambda t: t.rstrip("。！？?") + "！"),
        _everywhere(lambda t: _traditional()(t).translate(_WESTERN)),
        _everywhere(_full_width),
        _everywhere(lambda t: f"\u3000\u3000{t}\n"),
        _everywhere(_zero_width),
        _everywhere(lambda t: t.replace("，", "、")),
    ),
}

_SYNONYMS = (
    ("important", "crucial"),
    ("However", "But"),
    ("also", "likewise"),
    ("help", "assist"),
    ("such as", "like"),
    ("use", "utilise"),
    ("many", "numerous"),
    ("can", "may"),
    ("because", "since"),
    ("example", "instance"),
    ("large", "big"),
    ("often", "frequently"),
    ("make", "create"),
    ("people", "persons"),
    ("need", "require"),
    ("因此", "所以"),
    ("可以", "能够"),
    ("建议", "推荐"),
    ("通常", "一般"),
    ("包括", "包含"),
    ("需要", "须要"),
    ("同时", "与此同时"),
    ("例如", "比如"),
    ("重要", "关键"),
    ("进行", "开展"),
    ("医生", "大夫"),
    ("如果", "假如"),
    ("以及", "和"),
    ("治疗", "医治"),
    ("帮助", "协助"),
    ("可能", "或许"),
    ("患者", "病人"),
    ("方法", "办法"),
)


def _synonym(text: str, rng: random.Random) -> str | None:
    pairs = [
        pair for pair in _SYNONYMS if (re.search(rf"\b{pair[0]}\b", text) if pair[0].isascii() else pair[0] in text)
    ]
    if not pairs:
        return None
    old, new = rng.choice(pairs)
    return re.sub(rf"\b{old}\b", new, text, count=1) if old.isascii() else text.replace(old, new, 1)


def _typo(text: str, rng: random.Random) -> str | None:
    if _spaced(text):
        spots = [m.start() for m in re.finditer(r"[a-z]{5,}", text)]
        if not spots:
            return None
        at = rng.choice(spots) + 1
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    for old, new in rng.sample((("的", "地"), ("在", "再"), ("是", "事"), ("和", "合"), ("有", "又"), ("作", "做")), 6):
        if old in text:
            at = rng.choice([m.start() for m in re.finditer(old, text)])
            return text[:at] + new + text[at + 1 :]
    return None


def _drop_word(text: str, rng: random.Random) -> str | None:
    if _spaced(text):
        parts = text.split(" ")
        small = [i for i, part in enumerate(parts) if part in ("the", "a", "very", "also", "of", "more", "some")]
        if not small:
            return None
        del parts[rng.choice(small)]
        return " ".join(parts)
    small = [m.start() for m in re.finditer("[的了也都很]", text)]
    if not small:
        return None
    at = rng.choice(small)
    return text[:at] + text[at + 1 :]


def _polite_end(text: str, rng: random.Random) -> str | None:
    ends = (
        ("Hope this helps!", "Let me know if you need more.") if _spaced(text) else ("希望对您有帮助！", "祝您健康！")
    )
    return f"{text} {rng.choice(ends)}" if _spaced(text) else text + rng.choice(ends)


def _polite_start(text: str, rng: random.Random) -> str | None:
    return ("Sure! " if _spaced(text) else rng.choice(("您好，", "好的，"))) + text


def _swap_sentences(text: str, rng: random.Random) -> str | None:
    """Two neighbouring sentences change places."""
    parts = sentences(text)
    if len(parts) < 4 or not is_prose(text):
        return None
    at = rng.randrange(1, len(parts) - 2)
    parts[at], parts[at + 1] = parts[at + 1], parts[at]
    return (" " if _spaced(text) else "").join(part.strip() for part in parts)


def _other_signs(text: str, _: random.Random) -> str | None:
    """Commas become semicolons, and a word of two is joined: more than normalisation undoes with a later edit."""
    return text.replace("，", "；", 1) if "，" in text else text.replace(", ", " - ", 1)


_EDITS = (_synonym, _typo, _drop_word, _polite_end, _polite_start, _swap_sentences, _other_signs)


def own_part(talk: Talk) -> str:
    """What a row says of its own: without the tool descriptions that many prompts begin with."""
    return "\n".join(text.split("\n")[-1] if talk.source == "gpteacher" else text for _, text in talk.turns)


def nearly(talk: Talk, rng: random.Random) -> tuple[Talk, str] | None:
    """The row after one to three small edits, and their names; None unless it is 0.8 to 1 alike by this yardstick."""
    edits = rng.sample(_EDITS, rng.randint(1, 3))
    edited = talk
    for edit in edits:
        in_question = edit in (_synonym, _typo, _drop_word) and rng.random() < 0.3
        text = edit(edited.question if in_question else edited.answer, rng)
        if text is None:
            return None
        edited = edited.asking(text) if in_question else edited.answering(text)
    alike = jaccard(shingles(own_part(talk)), shingles(own_part(edited)))
    return (edited, " + ".join(edit.__name__[1:] for edit in edits)) if 0.8 <= alike < 1 else None


# Contradictions -----------------------------------------------------------------------------------------------------

_ASKED = {
    "en": (
        (
            "Is it safe to take {x} together with alcohol?",
            ("Yes.", "No."),
            ("ibuprofen", "metformin", "loratadine", "cetirizine", "amoxicillin", "omeprazole"),
        ),
        (
            "How many legs does a {x} have? Answer with a number.",
            ("6", "8", "10"),
            ("harvestman", "woodlouse", "pond skater", "king crab", "dust mite", "silverfish"),
        ),
        (
            "In which year was the {x} opened?",
            ("1887", "1903", "1921"),
            (
                "Harbour Bridge of Lowmoor",
                "Lowmoor Town Hall",
                "Eastgate Tunnel",
                "Old Mill Museum",
                "Fernhill Observatory",
            ),
        ),
        (
            "What is the capital of the province of {x}?",
            ("Marlow", "Denby", "Ostrava Hill"),
            ("North Arden", "Lower Belmar", "West Kessel", "Upper Tain", "Great Corran"),
        ),
        (
            "True or false: {x}",
            ("True", "False"),
            (
                "bats are blind.",
                "glass is a liquid at room temperature.",
                "lightning never strikes twice.",
                "tomatoes are berries.",
                "sharks are mammals.",
                "honey never spoils.",
            ),
        ),
        (
            "Classify the sentiment of this review: {x}",
            ("Positive", "Negative", "Neutral"),
            (
                "The hinge broke in a week but the staff were kind.",
                "Fine for the price, I suppose.",
                "Never again will I shop anywhere else!",
                "It does what it says on the tin.",
                "The sequel surprised me.",
            ),
        ),
    ),
    "zh": (
        (
            "{x}可以和酒一起服用吗？",
            ("可以。", "不可以。"),
            ("布洛芬", "二甲双胍", "氯雷他定", "阿莫西林", "奥美拉唑", "维生素C"),
        ),
        ("{x}有几条腿？只回答数字。", ("6", "8", "10"), ("盲蛛", "潮虫", "水黾", "帝王蟹", "尘螨", "衣鱼")),
        (
            "{x}建成于哪一年？",
            ("1887年", "1903年", "1921年"),
            ("青石镇大桥", "东门钟楼", "老磨坊博物馆", "云岭天文台", "南港灯塔"),
        ),
        ("{x}属于哪一类？", ("蔬菜", "水果"), ("番茄", "牛油果", "佛手瓜", "西葫芦", "秋葵", "圣女果")),
        (
            "判断对错：{x}",
            ("对", "错"),
            ("蝙蝠是瞎子。", "玻璃在常温下是液体。", "蜂蜜永远不会变质。", "鲨鱼是哺乳动物。", "竹子是树。"),
        ),
        (
            "{x}应该挂什么科？",
            ("内科", "外科", "皮肤科"),
            ("带状疱疹", "痔疮", "丹毒", "脂肪瘤", "甲沟炎", "荨麻疹伴腹痛"),
        ),
    ),
}

_REPHRASED: tuple[Callable[[str], str], ...] = (
    lambda q: q,
    lambda q: q.rstrip("?？.。") + "?",
    str.upper,
    lambda q: f" {q} ",
    _full_width,
)


def contradictions(language: str, rng: random.Random) -> list[tuple[Talk, ...]]:
    """Groups of rows with the same question and different short answers; signs and width of the question may differ."""
    groups = []
    for template, answers, names in _ASKED[language]:
        for name in names:
            question = template.replace("{x}", name)
            chosen = rng.sample(answers, min(len(answers), rng.choice((2, 2, 3))))
            forms = [question, *(rng.choice(_REPHRASED)(question) for _ in chosen[1:])]
            groups.append(
                tuple(
                    Talk((("user", form), ("assistant", answer)), language, "made")
                    for form, answer in zip(forms, chosen, strict=True)
                )
            )
    return groups


# Lengths by a setting -----------------------------------------------------------------------------------------------

LENGTHS = {"min_question_chars": 6, "min_answer_chars": 4, "max_chars": 3000}
"""The settings that the length part of the evaluation passes."""


def length_faults(talk: Talk, rng: random.Random) -> dict[str, Talk]:
    """Rows that break one of LENGTHS each, by the code expected, and a row at each border that must stay."""
    at_most = LENGTHS["max_chars"]
    filler = " ".join(f"{word}{rng.randrange(1000)}" for word in (words(talk) * 3000)[:3000])
    return {
        "question_too_short": talk.asking(
            talk.question[: rng.randint(1, LENGTHS["min_question_chars"] - 1)].strip() or "?"
        ),
        "answer_too_short": talk.answering(
            talk.answer[: rng.randint(1, LENGTHS["min_answer_chars"] - 1)].strip() or "B"
        ),
        "question_too_long": talk.asking((talk.question + " " + filler)[: at_most + rng.randint(1, 900)] + "?"),
        "answer_too_long": talk.answering((talk.answer + " " + filler)[: at_most + rng.randint(1, 900)] + "."),
    }
