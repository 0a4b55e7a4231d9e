"""Rows to measure data pipelines with: Alpaca JSON lines, half Chinese and half English, and what each of them is.

3 % are exact duplicates of an earlier row, 10 % near-duplicates (a few characters, words, capitals, widths or marks
differ, or a politeness was added), 2.9 % junk that simple rules find; the rest are clean and all different. Every row
is a function of the seed and its number, so that any number of them takes no memory. Sentences come from a small
grammar, or with --texts from the JSON files of a folder.

    python benchmarks/data_rows.py rows.jsonl --rows 200000                    # and rows.labels.jsonl
    python benchmarks/data_rows.py rows.jsonl --rows 200000 --texts my/data
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import orjson

Kind = Literal["clean", "exact", "near", "junk"]
SHARES: tuple[tuple[Kind, float], ...] = (("exact", 0.03), ("near", 0.10), ("junk", 0.029))
NUM_FIRST = 100
"""The first rows are clean, so that there is something to repeat."""
MIN_SIMILARITY = 0.85
"""Of a near-duplicate and its original: Jaccard index of the 5-grams of the lower-cased characters without marks."""
MIN_NEAR_CHARS = 90
"""Shorter answers get no near-duplicates: one edit makes another text of them."""
MAX_SENTENCES = 24
TOO_LONG = 5000
"""Characters of a row; clean ones have fewer, of the junk some have more."""


@dataclass(frozen=True)
class Texts:
    """What sentences are made of in both languages: (chance, number) → a sentence."""

    english: Callable[[Random], str]
    chinese: Callable[[Random], str]


@dataclass(frozen=True)
class Row:
    """An Alpaca row and what it is; `of` is the number of the row that it repeats, `how` what was done to it."""

    number: int
    question: str
    context: str
    answer: str
    kind: Kind = "clean"
    of: int | None = None
    how: str = ""

    @property
    def text(self) -> str:
        """All of the row, as a pipeline that knows of one text field gets it."""
        return "\n".join(part for part in (self.question, self.context, self.answer) if part)


def main() -> None:
    """Write rows and labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the file to write; the labels go beside it")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--texts", type=Path, help="a folder of JSON or JSONL files whose sentences are used")
    args = parser.parse_args()
    print(write(args.out, args.rows, args.seed, args.texts))


def write(out: Path, num_rows: int, seed: int, folder: Path | None = None) -> dict[str, int]:
    """Write the rows to `out` and labels of those that are not clean to `out`.labels.jsonl; how many of each kind."""
    texts = read_texts(folder) if folder else Texts(english, chinese)
    counts: dict[str, int] = {}
    with out.open("wb") as data, labels_of(out).open("wb") as labels:
        for row in make_rows(num_rows, seed, texts):
            counts[row.kind] = counts.get(row.kind, 0) + 1
            alpaca = {"id": row.number, "instruction": row.question, "input": row.context, "output": row.answer}
            data.write(orjson.dumps(alpaca) + b"\n")
            if row.kind != "clean":
                label = {"row": row.number, "kind": row.kind, "of": row.of, "how": row.how}
                labels.write(orjson.dumps(label) + b"\n")
    return counts


def labels_of(data: Path) -> Path:
    """The file of labels beside a file of rows."""
    return data.with_suffix(".labels.jsonl")


def make_rows(num_rows: int, seed: int, texts: Texts) -> Iterator[Row]:
    """Rows 0 to num_rows - 1."""
    for number in range(num_rows):
        match kind_of(seed, number):
            case "clean":
                yield original(seed, number, texts)
            case "exact":
                yield exact_copy(seed, number, texts)
            case "near":
                yield near_copy(seed, number, texts)
            case "junk":
                yield junk(seed, number, texts)


def kind_of(seed: int, number: int) -> Kind:
    """What row `number` is."""
    chance = _chance(seed, number, "kind")
    if number >= NUM_FIRST:
        for kind, share in SHARES:
            if chance < share:
                return kind
            chance -= share
    return "clean"


def original(seed: int, number: int, texts: Texts) -> Row:
    """A clean row: a question, in one of four with a context, and an answer of a sentence to a page."""
    draw = _random(seed, number, "row")
    speaks_chinese = _chance(seed, number, "language") < 0.5
    sentence = texts.chinese if speaks_chinese else texts.english
    glue = "" if speaks_chinese else " "
    asks = (CHINESE_ASKS if speaks_chinese else ENGLISH_ASKS)[int(draw.random() * 12)]
    first = sentence(draw)
    question = asks.format(first.rstrip("。.!?！？"))
    context = glue.join(sentence(draw) for _ in range(_size(draw, 2.0))) if draw.random() < 0.25 else ""
    parts = [sentence(draw) for _ in range(_size(draw, 6.9))]
    if draw.random() < 0.03:
        answer = _pick(draw, SHORT_ANSWERS[speaks_chinese])
    elif len(parts) > 4 and draw.random() < 0.4:
        answer = "\n".join(f"{place}. {part}" for place, part in enumerate(parts, start=1))
    elif len(parts) > 7:
        half = len(parts) // 2
        answer = glue.join(parts[:half]) + "\n\n" + glue.join(parts[half:])
    else:
        answer = glue.join(parts)
    return Row(number, question, context, answer)


def exact_copy(seed: int, number: int, texts: Texts) -> Row:
    """An earlier clean row again."""
    draw = _random(seed, number, "exact")
    source = _source(seed, number, draw, texts, copies="exact")
    return Row(number, source.question, source.context, source.answer, "exact", source.number, "copied")


def near_copy(seed: int, number: int, texts: Texts) -> Row:
    """An earlier clean row with something small changed."""
    draw = _random(seed, number, "near")
    source = _source(seed, number, draw, texts, copies="near")
    how = _pick(draw, tuple(EDITS))
    shingles = _shingles(source.text)
    num_edits = 1 + int(draw.random() * min(6, len(source.text) / 60))
    while True:
        question, answer = EDITS[how](source.question, source.answer, num_edits, draw)
        copy = Row(number, question, source.context, answer, "near", source.number, how)
        ours = _shingles(copy.text)
        is_changed = (question, answer) != (source.question, source.answer)
        if is_changed and len(ours & shingles) >= MIN_SIMILARITY * len(ours | shingles):
            return copy
        # Too much changed, or nothing to change in this way; one letter always fits.
        how, num_edits = (how, num_edits // 2) if is_changed and num_edits > 1 else ("letters", 1)


def junk(seed: int, number: int, texts: Texts) -> Row:
    """A row that one of four simple rules finds: lengths, repetition, special characters, too few letters."""
    draw = _random(seed, number, "junk")
    how = _pick(draw, ("too short", "too long", "repeated", "special characters", "no letters"))
    source = original(seed, number, texts)
    question, answer = source.question, source.answer
    match how:
        case "too short":
            question, answer = _pick(draw, ("?", "hi", "嗯", "在吗")), _pick(draw, ("ok", "好", "是的", "no"))
        case "too long":
            sentence = texts.chinese if _is_chinese(question) else texts.english
            while len(answer) <= TOO_LONG:
                answer += sentence(draw)
        case "repeated":
            start = int(draw.random() * max(1, len(answer) - 20))
            answer = answer[start : start + 3 + int(draw.random() * 15)] * 120
        case "special characters":
            answer = _noise(draw, "!@#$%^&*()_+-=[]{}|;:<>?/~ 0123456789", 400)
        case _:
            answer = _noise(draw, "▒▓░◢◣◤◥▁▂▃▅▆▇╬╠╣", 400)
    return Row(number, question, "", answer, "junk", None, how)


def _source(seed: int, number: int, draw: Random, texts: Texts, copies: Kind) -> Row:
    """An earlier clean row; those that get exact and those that get near copies are different ones."""
    while True:
        earlier = int(draw.random() * number)
        if kind_of(seed, earlier) != "clean" or (_chance(seed, earlier, "copies") < 0.25) != (copies == "exact"):
            continue
        row = original(seed, earlier, texts)
        if copies == "exact" or len(row.answer) >= MIN_NEAR_CHARS:
            return row


def _edit_letters(question: str, answer: str, num_edits: int, draw: Random) -> tuple[str, str]:
    """Letters or characters replaced, added or lost; digits stay, since they change what is said."""
    chars = list(answer)
    places = [place for place, char in enumerate(chars) if char.isalpha()]
    for place in _some(draw, places, num_edits):
        other = _pick(draw, HAN_LETTERS if _is_han(chars[place]) else "etaoinshrdlu")
        match int(draw.random() * 3):
            case 0:
                chars[place] = other
            case 1:
                chars[place] += other
            case _:
                chars[place] = ""
    return question, "".join(chars)


def _edit_words(question: str, answer: str, num_edits: int, draw: Random) -> tuple[str, str]:
    """Words replaced, or lost."""
    if _is_chinese(answer):
        for _ in range(num_edits):
            old = _pick(draw, CHINESE["noun"])
            # Whatever word is there: one that the answer holds is looked for.
            found = next((word for word in _around(CHINESE["noun"], old) if word in answer), "")
            answer = answer.replace(found, _pick(draw, CHINESE["noun"]), 1) if found else answer
        return question, answer
    words = answer.split(" ")
    places = [place for place, word in enumerate(words) if word.isalpha()]
    for place in _some(draw, places, num_edits):
        words[place] = _pick(draw, ENGLISH["adjective"]) if draw.random() < 0.7 else ""
    return question, " ".join(word for word in words if word)


def _edit_marks(question: str, answer: str, num_edits: int, draw: Random) -> tuple[str, str]:
    """Marks written wide or narrow, doubled, or left out, throughout."""
    match int(draw.random() * 3):
        case 0:
            return question.translate(OTHER_MARKS), answer.translate(OTHER_MARKS)
        case 1:
            return question + question[-1], re.sub(r"[.。]", lambda found: found[0] * 2, answer, count=3 * num_edits)
        case _:
            return question.rstrip("?？.。"), re.sub(r"[,，、;；]", "", answer)


def _edit_case(question: str, answer: str, num_edits: int, draw: Random) -> tuple[str, str]:
    """Capitals: all, none, or a few words'."""
    match int(draw.random() * 3):
        case 0:
            return question.upper(), answer
        case 1:
            return question.lower(), answer.lower()
        case _:
            words = answer.split(" ")
            for _ in range(2 * num_edits):
                place = int(draw.random() * len(words))
                words[place] = words[place].upper()
            return question, " ".join(words)


def _edit_width(question: str, answer: str, num_edits: int, draw: Random) -> tuple[str, str]:
    """Some letters and digits written as wide as a Chinese character."""
    chars = list(answer)
    places = [place for place, char in enumerate(chars) if char.isascii() and char.isalnum()]
    if places:
        start = int(draw.random() * len(places))
        for place in places[start : start + 2 * num_edits]:
            chars[place] = chr(ord(chars[place]) + 0xFEE0)
    return question, "".join(chars)


def _edit_blanks(question: str, answer: str, num_edits: int, draw: Random) -> tuple[str, str]:
    """Blanks and line breaks added at the ends of sentences."""
    return question, re.sub(r"([.。]) ?", lambda found: found[1] + "\n", answer, count=num_edits) + " "


def _add_politeness(question: str, answer: str, num_edits: int, draw: Random) -> tuple[str, str]:
    """A thank-you in the question, or a kind word after the answer."""
    if _is_chinese(question):
        before, after = _pick(draw, ("你好，", "请问一下，", "")), _pick(draw, ("谢谢！", "麻烦了。", "多谢。"))
        kind = _pick(draw, ("", "希望对你有帮助。"))
    else:
        before, after = _pick(draw, ("Hi, ", "Please: ", "")), _pick(draw, (" Thanks!", " Thank you.", " Cheers."))
        kind = _pick(draw, ("", " Hope this helps!"))
    return before + question + after, answer + kind


EDITS: dict[str, Callable[[str, str, int, Random], tuple[str, str]]] = {
    "letters": _edit_letters,
    "words": _edit_words,
    "marks": _edit_marks,
    "case": _edit_case,
    "width": _edit_width,
    "blanks": _edit_blanks,
    "politeness": _add_politeness,
}
_WIDE, _NARROW = "，。？！：；（）", ",.?!:;()"
OTHER_MARKS = {ord(a): b for a, b in (*zip(_WIDE, _NARROW, strict=True), *zip(_NARROW, _WIDE, strict=True))}


def _shingles(text: str) -> set[str]:
    """The 5-grams of lower-cased characters without marks."""
    plain = re.sub(r"[^\w\s]", "", text.lower())
    return {plain[start : start + 5] for start in range(len(plain) - 4)}


def _is_han(char: str) -> bool:
    return "一" <= char <= "鿿"


def _is_chinese(text: str) -> bool:
    return sum(map(_is_han, text)) * 4 > len(text)


def _around(words: Sequence[str], word: str) -> Iterator[str]:
    """All words, from `word` on."""
    start = words.index(word)
    yield from words[start:]
    yield from words[:start]


def _noise(draw: Random, signs: str, num_chars: int) -> str:
    return "".join(_pick(draw, signs) for _ in range(num_chars))


def _size(draw: Random, mean: float) -> int:
    """A number of sentences: mostly few, sometimes many."""
    return max(1, min(int(draw.gammavariate(1.6, mean / 1.6) + 0.5), MAX_SENTENCES))


def _pick(draw: Random, choices: Sequence[Any]) -> Any:
    # Not Random.choice: only random() is promised to give the same numbers in every version of Python.
    return choices[int(draw.random() * len(choices))]


def _some(draw: Random, choices: Sequence[int], num: int) -> set[int]:
    return {_pick(draw, choices) for _ in range(num)} if choices else set()


def _random(seed: int, number: int, what: str) -> Random:
    """What chance brings to one row, for one purpose."""
    return Random(_mix(seed, number, what))


def _chance(seed: int, number: int, what: str) -> float:
    """A number from 0 to 1, without the cost of a Random."""
    return _mix(seed, number, what) / 2**64


def _mix(seed: int, number: int, what: str) -> int:
    """64 well-mixed bits (the finaliser of splitmix64)."""
    value = (number * 0x9E3779B97F4A7C15 + (seed + 1) * 0xD1B54A32D192ED03 + PURPOSES[what]) & _ALL
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _ALL
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _ALL
    return value ^ (value >> 31)


_ALL = 2**64 - 1
PURPOSES = {
    what: (place + 1) * 0xA0761D6478BD642F
    for place, what in enumerate(("kind", "row", "language", "exact", "near", "junk", "copies"))
}


def english(draw: Random) -> str:
    """An English sentence."""
    frame = _pick(draw, ENGLISH_FRAMES)
    text = _filled(frame, ENGLISH, _english_name, draw)
    text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    return text[0].upper() + text[1:]


def chinese(draw: Random) -> str:
    """A Chinese sentence."""
    return _filled(_pick(draw, CHINESE_FRAMES), CHINESE, _chinese_name, draw)


def _filled(frame: Sequence[str], words: dict[str, Sequence[str]], name: Callable[[Random], str], draw: Random) -> str:
    """A frame with every hole filled; an odd place is a hole."""
    parts = []
    for place, part in enumerate(frame):
        if place % 2 == 0:
            parts.append(part)
        elif part == "name":
            parts.append(name(draw))
        elif part == "number":
            parts.append(str(1 + int(10 ** (draw.random() * 4))))
        else:
            parts.append(_pick(draw, words[part]))
    return "".join(parts)


def _english_name(draw: Random) -> str:
    syllables = [_pick(draw, SYLLABLES) for _ in range(2 + int(draw.random() * 2))]
    return "".join(syllables).capitalize()


def _chinese_name(draw: Random) -> str:
    return "".join(_pick(draw, HAN_LETTERS) for _ in range(2 + int(draw.random() * 2)))


def read_texts(folder: Path) -> Texts:
    """The sentences of all texts in the JSON and JSONL files under `folder`, by language."""
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for file in sorted(folder.rglob("*.json*")):
        content = file.read_bytes()
        try:
            values = [orjson.loads(content)]
        except orjson.JSONDecodeError:
            values = list(_lines(content))
        for text in _texts_in(values):
            for sentence in re.split(r"(?<=[。！？])|(?<=[.!?])\s+|\n+", text):
                sentence = sentence.strip()
                if 8 <= len(sentence) <= 300 and sum(map(str.isalpha, sentence)) > 0.6 * len(sentence):
                    found[_is_chinese(sentence)].add(sentence)
    pools = {is_chinese: sorted(sentences) for is_chinese, sentences in found.items()}
    if min(map(len, pools.values())) < 5000:
        raise SystemExit(f"{folder}: fewer than 5,000 sentences of a language: rows would be too much alike")
    return Texts(lambda draw: _pick(draw, pools[False]), lambda draw: _pick(draw, pools[True]))


def _lines(content: bytes) -> Iterator[Any]:
    for line in content.split(b"\n"):
        try:
            yield orjson.loads(line)
        except orjson.JSONDecodeError:
            continue


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(part)


def _frames(text: str) -> tuple[tuple[str, ...], ...]:
    """One frame a line; holes stand in braces."""
    return tuple(tuple(re.split(r"[{}]", line.strip())) for line in text.strip().splitlines())


ENGLISH_ASKS = (
    "What follows if {}?",
    "Explain why this is so: {}.",
    "Summarise in your own words: {}.",
    "{}. Is that right, and why?",
    "Write a short report about the following. {}.",
    "How would you check this claim: {}?",
    "Give three reasons for or against: {}.",
    "Rewrite for a newcomer: {}.",
    "{}. What should be done next?",
    "Continue the story: {}.",
    "Which facts are missing here? {}.",
    "Plan the work that this needs: {}.",
)
CHINESE_ASKS = (
    "如果{}，会怎么样？",
    "请解释原因：{}。",
    "用自己的话概括：{}。",
    "{}。这样说对吗，为什么？",
    "就下面的内容写一篇短报告。{}。",
    "怎样核实这个说法：{}？",
    "请给出三条支持或反对的理由：{}。",
    "改写成新手也能看懂的话：{}。",
    "{}。下一步应该怎么办？",
    "把故事接着写下去：{}。",
    "这里还缺少哪些事实？{}。",
    "为这件事制定计划：{}。",
)

SHORT_ANSWERS = (
    ("Yes.", "No.", "42", "B", "Both of them.", "Never"),
    ("是的。", "不会", "42", "B", "两者都是。", "从未"),
)

ENGLISH_FRAMES = _frames(
    """
    the {adjective} {noun} of {name} {past} a {noun} {adverb}, and {number} {plural} {past} the {adjective} {noun}.
    before you {verb} the {noun}, {verb} every {adjective} {noun} near {name}.
    in {name}, {plural} {adverb} {verb} {adjective} {plural} when the {noun} is {adjective}.
    {name} {past} {number} {plural}, since a {adjective} {noun} {past} the {noun}.
    a {noun} is {adjective} if its {noun} can {verb} the {plural} of a {adjective} {noun}.
    nobody {past} the {noun} until {name} {adverb} {past} a {adjective} {noun} from {name}.
    if the {noun} seems {adjective}, {verb} it {adverb} or {verb} the {noun} that {name} {past}.
    {plural} and {plural} {verb} a {noun} only {adverb}; the {adjective} {noun} {past} {number} of them.
    the {noun} costs {number} coins a {noun}, which {adjective} {plural} {adverb} {verb}.
    first {verb} a {adjective} {noun}, then {verb} the {plural} and {adverb} {verb} what is {adjective}.
    {name} calls this {noun} {adjective}, although its {plural} {adverb} {past} a {noun}.
    without {adjective} {plural}, no {noun} could {verb} the {noun} of {number} {plural}.
    it was {adverb} {adjective} that {name} and {name} {past} one {noun} after another.
    most {plural} {verb} the {noun}, yet {adjective} {plural} {verb} their own {noun} in {name}.
    to {verb} a {noun} takes {number} {plural}, a {adjective} {noun} and some {noun}.
    she {adverb} {past} the {adjective} {noun}, where {plural} {verb} and every {noun} is {adjective}.
    when {plural} {verb} {adverb}, the {noun} near the {adjective} {noun} {past} {name}.
    our {noun} shows {number} {adjective} {plural} for each {noun}; {name} {past} the rest {adverb}.
    """
)
CHINESE_FRAMES = _frames(
    """
    {name}的{adjective}{noun}{adverb}{verb}了{number}个{noun}，{noun}也因此{verb}了{noun}。
    在{verb}{noun}之前，请先{adverb}{verb}{name}附近的{adjective}{noun}。
    {noun}如果{adjective}，就应当{verb}{noun}，再由{name}{verb}{adjective}的{noun}。
    {name}{adverb}{verb}{noun}，因为{adjective}的{noun}已经{verb}了{noun}。
    一般来说，{noun}与{noun}{adverb}{verb}{number}次{noun}，{adjective}者可以{verb}{noun}。
    直到{name}{verb}了{adjective}的{noun}，人们才{adverb}{verb}{noun}。
    首先{verb}{noun}，其次{verb}{adjective}{noun}，最后{adverb}{verb}{noun}。
    {noun}每{noun}需要{number}元，{adjective}的{noun}往往{adverb}{verb}。
    虽然{noun}很{adjective}，但是{name}的{noun}仍然{adverb}{verb}{noun}。
    没有{adjective}的{noun}，{noun}就不能{verb}{number}份{noun}。
    {name}和{name}一起{verb}{noun}，把{adjective}{noun}{adverb}{verb}到{noun}。
    多数{noun}会{verb}{noun}，而{adjective}{noun}却{adverb}{verb}自己的{noun}。
    要{verb}{noun}，得有{number}种{noun}、一份{adjective}{noun}和{noun}。
    她{adverb}{verb}{noun}，那里的{noun}{adjective}，{noun}也不断{verb}。
    当{noun}{adverb}{verb}时，{name}旁边的{noun}变得{adjective}，于是{noun}{verb}{noun}。
    据{name}记载，{number}年间{noun}{verb}了{adjective}{noun}，{noun}从此{adverb}{verb}。
    所谓{noun}，就是{adverb}{verb}{noun}的{adjective}{noun}，{name}称它为{noun}。
    """
)
_NOUNS = """
    anchor apple archive attic bakery balance barrel basin beacon bench bicycle blanket boat border bottle
    branch brick bridge broom bucket budget butter button cabin cable camera canal candle canvas carpet castle
    cattle cellar census chapel charter chimney circle citizen cliff clinic clock cloth coast coin colour comet
    compass concert contract copper corner cotton council court cousin crane credit crystal curtain custom
    dancer deadline debate desert device diary dinner doctor donkey drawer dream driver eagle editor engine
    error estate event exhibit fabric factory farmer feather fence ferry festival fever fiddle field filter
    flame flavour forest formula fossil fountain frame freight furnace garden gate gesture glacier glove grain
    granite guard guitar hammer harbour harvest helmet hill holiday horizon hospital hotel index infant insect
    island jacket journal judge kettle kitchen ladder lake lamp lantern lawyer leaf lecture ledger letter
    library lighthouse limit liquid lizard machine magnet manual map marble market meadow measure melody member
    mentor message meteor method mineral mirror mistake monument motor mountain museum needle neighbour network
    notebook novel nurse oath object ocean office onion orbit orchard organ oven owner oyster package painter
    palace panel parade parcel parish patient pattern payment pencil pepper permit phrase piano pigeon pilot
    pipe planet platform pocket poem pond portrait potato powder prairie prize profit project pulse pupil puzzle
    quarry question railway rapid recipe record region relic remedy reptile reservoir result ribbon rider river
    rocket roof rope rumour sailor salad sample sandal scholar school screen sculptor season secret seed
    sentence servant shadow shelf shelter shield signal silver singer sketch slope soldier song source spider
    spoon square stable statue steam stone storm street student sugar summit surgeon swamp symbol table tailor
    target teacher temple tenant theatre theory thread ticket tiger timber token tool tower trader train treaty
    tribe tunnel turbine uncle valley vapour vessel village violin vision volcano voyage wagon wall warden watch
    weapon weather wheel whistle widow window winter witness workshop writer yard
"""
_ENGLISH_VERBS = """
    accept admire adopt answer approach arrest assist attach avoid award balance block borrow brush bury call
    carry catalog chase check claim clean close collect colour combine comfort compare complain confirm connect
    consider contain control copy correct count cover cross damage decide defend deliver demand describe destroy
    detect develop discover display divide doubt dress earn edit employ empty enjoy enter escape examine
    exchange explain explore export extend fasten favour fill filter finish follow forward gather govern greet
    guide handle harvest help hunt imagine import improve inform inspect install invent invite join judge
    label launch learn lift list load lock look mark measure melt mend mention mix move name need notice obey
    observe offer open order owe pack paint park pass plant polish pour praise predict prepare press print
    protect pull punish push question raise reach record reduce reflect refuse remember remove repair repeat
    replace report request rescue return reward roll save search select separate serve settle shape share
    shelter sign smooth sort spare start stay stop store study supply support surround suspect teach test touch
    trade train transport treat trust turn unite unlock update use visit wait walk want warn wash watch water
    weigh welcome whisper wonder work wrap
"""
_ENGLISH_ADJECTIVES = """
    able ancient annual bare bitter blind blue bold brave brief bright broad broken busy calm careful central
    cheap civil clever cloudy coastal cold common complete constant crooked cruel curious daily damp dark deep
    dense distant double dry eager early eastern elegant empty equal exact false famous fertile fierce final
    firm flat foreign formal fragile free fresh gentle giant golden grateful green hidden hollow honest humble
    hungry idle inner innocent joint just large late lazy legal light local lonely loose loud lucky mild minor
    modern modest moist narrow native neutral noble noisy northern obvious odd official open ordinary outer pale
    patient plain polite poor popular precious private proper proud public pure quick quiet rapid rare raw ready
    recent red remote rich rigid ripe rough round royal rural sacred safe secret severe shallow sharp short
    silent simple slender slow smooth soft solar solid southern spare stale steep sticky strange strict strong
    sudden sweet tall temporary tender thick thin tidy tiny tough urban useful vague valid vast visible vital
    warm weak western wet white whole wide wild wise wooden worthy yellow young
"""
_ENGLISH_ADVERBS = """
    again always badly barely boldly briefly calmly carefully cheaply clearly closely daily deeply directly
    early easily entirely evenly finally firmly freely fully gently gladly gradually hardly honestly kindly
    largely lately loudly merely mildly mostly nearly neatly never newly nicely often openly partly plainly
    politely poorly promptly proudly quickly quietly rarely readily safely secretly seldom sharply simply slowly
    smoothly softly soon steadily strictly strongly suddenly surely swiftly together truly twice usually vainly
    warmly weekly wholly widely wisely
"""

_CHINESE_NOUNS = """
    苹果 档案 面包 天平 木桶 灯塔 长凳 车辆 毯子 小船 边界 瓶子 树枝 砖块 桥梁 扫帚 预算 黄油 纽扣 木屋 电缆 相机
    运河 蜡烛 画布 地毯 城堡 牲畜 地窖 人口 教堂 章程 烟囱 圆圈 公民 悬崖 诊所 时钟 布料 海岸 硬币 颜色 彗星 罗盘
    音乐会 合同 铜矿 角落 棉花 议会 法院 亲戚 起重机 信用 水晶 窗帘 习俗 舞者 期限 辩论 沙漠 设备 日记 晚餐 医生
    毛驴 抽屉 梦想 司机 老鹰 编辑 引擎 错误 庄园 事件 展品 织物 工厂 农民 羽毛 围栏 渡轮 节日 发热 提琴 田野 滤网
    火焰 味道 森林 公式 化石 喷泉 框架 货运 炉子 花园 大门 手势 冰川 手套 粮食 花岗岩 卫兵 吉他 锤子 港口 收成 头盔
    山丘 假期 地平线 医院 旅馆 索引 婴儿 昆虫 岛屿 外套 期刊 法官 水壶 厨房 梯子 湖泊 台灯 灯笼 律师 叶片 讲座 账本
    信件 图书馆 极限 液体 蜥蜴 机器 磁铁 手册 地图 大理石 市场 草地 尺度 旋律 成员 导师 消息 流星 方法 矿物 镜子
    失误 纪念碑 马达 高山 博物馆 针线 邻居 网络 笔记 小说 护士 誓言 物体 海洋 办公室 洋葱 轨道 果园 器官 烤箱 主人
    牡蛎 包裹 画家 宫殿 面板 游行 教区 病人 图案 付款 铅笔 胡椒 许可 短语 钢琴 鸽子 飞行员 管道 行星 平台 口袋 诗歌
    池塘 肖像 土豆 粉末 草原 奖品 利润 项目 脉搏 学生 谜题 采石场 问题 铁路 食谱 记录 地区 遗物 药方 爬虫 水库 结果
    丝带 骑手 河流 火箭 屋顶 绳索 谣言 水手 样品 凉鞋 学者 学校 屏幕 雕塑家 季节 秘密 种子 句子 仆人 影子 书架 住所
    盾牌 信号 白银 歌手 草图 山坡 士兵 歌曲 来源 蜘蛛 勺子 广场 马厩 雕像 蒸汽 石头 风暴 街道 糖果 山顶 手术 沼泽
    符号 桌子 裁缝 目标 教师 寺庙 租户 剧院 理论 线头 车票 老虎 木材 代币 工具 高塔 商人 火车 条约 部落 隧道 涡轮
    山谷 村庄 视野 火山 航行 马车 围墙 典狱长 手表 武器 天气 车轮 口哨 窗户 冬天 证人 狼群 作坊 作家 院子
"""
_CHINESE_VERBS = """
    接受 欣赏 采用 回答 接近 协助 附加 避免 奖励 平衡 阻挡 借用 刷洗 埋藏 呼叫 携带 编目 追赶 检查 声明 清洁 关闭
    收集 涂抹 结合 安慰 比较 抱怨 确认 连接 考虑 包含 控制 复制 改正 计算 覆盖 穿过 损坏 决定 保卫 交付 要求 描述
    摧毁 检测 开发 发现 展示 划分 怀疑 装扮 赚取 雇用 清空 享受 进入 逃离 审查 交换 解释 探索 出口 延长 系紧 偏爱
    填满 过滤 完成 跟随 转发 聚集 治理 问候 引导 处理 收割 帮助 搜寻 想象 进口 改善 通知 视察 安装 发明 邀请 加入
    判断 标注 发射 学习 举起 列出 装载 锁住 观看 标记 测量 融化 修补 提到 混合 移动 命名 需要 注意 服从 观察 提供
    打开 订购 打包 绘制 停放 通过 种植 擦亮 倾倒 称赞 预测 准备 按压 印刷 保护 拉动 惩罚 推动 质疑 提高 到达 登记
    减少 反映 拒绝 记住 移除 修理 重复 替换 报告 请求 营救 归还 滚动 保存 搜索 选择 分开 服务 解决 塑造 分享 庇护
    签署 分类 节省 启动 停止 储存 研究 供应 支持 环绕 教导 测试 触摸 交易 训练 运输 治疗 信任 转动 联合 解锁 更新
    使用 参观 等待 警告 清洗 灌溉 称量 欢迎 包裹住
"""
_CHINESE_ADJECTIVES = """
    古老 每年 光秃 苦涩 蔚蓝 大胆 勇敢 简短 明亮 宽阔 破碎 繁忙 平静 细心 中央 便宜 聪明 多云 沿海 寒冷 常见 完整
    不变 弯曲 残酷 好奇 潮湿 黑暗 深厚 浓密 遥远 双重 干燥 热切 早期 东部 优雅 空荡 相等 精确 虚假 著名 肥沃 凶猛
    最终 坚定 平坦 外国 正式 脆弱 自由 新鲜 温和 巨大 金色 感激 绿色 隐蔽 空心 诚实 谦虚 饥饿 闲置 内部 无辜 共同
    公正 庞大 迟到 懒惰 合法 轻便 当地 孤独 松散 响亮 幸运 轻微 次要 现代 适度 狭窄 本土 中立 高贵 嘈杂 北方 明显
    奇怪 官方 开放 普通 外部 苍白 耐心 朴素 礼貌 贫穷 流行 珍贵 私人 恰当 自豪 公共 纯净 快速 安静 稀有 生硬 就绪
    近期 红色 偏远 富裕 僵硬 成熟 粗糙 圆形 皇家 乡村 神圣 安全 严重 浅薄 锋利 短暂 沉默 简单 细长 缓慢 光滑 柔软
    坚固 南方 备用 陈旧 陡峭 黏稠 陌生 严格 强壮 突然 甜美 高大 临时 娇嫩 厚重 稀薄 整洁 微小 顽强 有用 模糊 有效
    广阔 可见 关键 温暖 虚弱 西部 洁白
"""
_CHINESE_ADVERBS = """
    再次 总是 几乎 大胆地 短暂地 平静地 仔细地 廉价地 清楚地 密切地 每天 深深地 直接 尽早 轻易 完全 均匀地 最终
    坚决地 自由地 充分 轻轻地 高兴地 逐渐 很少 诚恳地 好心地 大部分 近来 大声地 仅仅 略微 多半 差点 整齐地 从不 重新
    经常 公开 部分地 明白地 礼貌地 勉强 及时 自豪地 迅速 悄悄地 难得 乐意 安全地 秘密地 极少 急剧 简单地 慢慢地 顺利
    柔和地 很快 稳步 严格 强烈 忽然 一定 飞快地 共同 确实 两次 通常 热情地
"""
_SYLLABLES = """
    ba bel bor cal cor da del dor dra el fa fen gal gor ha hel is ka kel kor la lin lor ma mar mel mi mon na nel nor
    o or pa pel por ra rin ros sa sel sor ta tel tor u va vel ver vi vor wen ya yor za zel
"""


def _plural(noun: str) -> str:
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeiou" else noun + "s"


def _past(verb: str) -> str:
    if verb in IRREGULAR:
        return IRREGULAR[verb]
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ied"
    return verb + ("d" if verb.endswith("e") else "ed")


IRREGULAR = {"owe": "owed", "stop": "stopped", "wrap": "wrapped", "teach": "taught"}
ENGLISH: dict[str, Sequence[str]] = {
    "noun": _NOUNS.split(),
    "plural": [_plural(noun) for noun in _NOUNS.split()],
    "verb": _ENGLISH_VERBS.split(),
    "past": [_past(verb) for verb in _ENGLISH_VERBS.split()],
    "adjective": _ENGLISH_ADJECTIVES.split(),
    "adverb": _ENGLISH_ADVERBS.split(),
}
CHINESE: dict[str, Sequence[str]] = {
    "noun": _CHINESE_NOUNS.split(),
    "verb": _CHINESE_VERBS.split(),
    "adjective": _CHINESE_ADJECTIVES.split(),
    "adverb": _CHINESE_ADVERBS.split(),
}
SYLLABLES = _SYLLABLES.split()
HAN_LETTERS = (
    "安白柏宝贝毕博才曹长辰成春达德登迪丁东段恩尔凡方费风福甘高戈格葛冠光桂海韩浩禾赫恒洪华惠霍基吉嘉杰金景君卡凯"
    "康科克孔库奎兰朗乐雷黎力丽良林灵刘龙卢鲁罗洛马曼梅蒙米密明莫牧纳南尼宁诺欧帕潘佩彭皮平普齐奇强乔秦青琼权仁荣"
    "瑞萨塞桑山尚申圣石史斯松苏索塔泰唐涛特天田廷图托瓦万威维温文沃武西希夏香向谢欣星雄秀旭亚延阳叶伊银英永尤宇玉"
    "元远月云泽扎詹张兆哲珍正志中周朱卓子宗祖"
)

if __name__ == "__main__":
    main()
