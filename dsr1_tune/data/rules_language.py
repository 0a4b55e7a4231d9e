"""The rule about languages: an answer is in its question's language, unless the question wants another."""

from __future__ import annotations

import re
from dataclasses import replace

from dsr1_tune.data.record import Drop, Row
from dsr1_tune.data.rules_facts import LONG, Text, View, looks_like_code, phrases, quoted, view, without_code
from dsr1_tune.data.rules_settings import WrongLanguage


def wrong_language(row: Row, rule: WrongLanguage) -> Row | Drop:
    """Drop an answer in another language than its question, which neither names nor holds another language.

    Scripts are told apart by counting; Latin languages by their commonest words, Japanese by its kana.
    """
    seen = view(row)
    asked, answer = seen.question, seen.answer
    if asked is None or answer is None:
        return row
    if asked.num_han > asked.num_latin and answer.num_han > answer.num_latin:
        # Both may still be Chinese or Japanese; kana and the Chinese full stop share their first byte.
        if answer.shape.count(b"k") * 3 < answer.num_han:
            return row
    elif asked.num_latin > 7 and _is_english(answer) and not asked.num_han:
        return row
    if b"`" in answer.signs:
        answer = Text(replace(answer.message, content=without_code(answer)))
    want, got = _script(asked), _script(answer)
    if want == got == "Latin":
        if len(answer.data) < 60:
            return row
        want, got = _latin_language(asked), _latin_language(answer)
    if not want or not got or want == got:
        return row
    if _num_letters(answer, got) < rule.min_letters:
        return row
    # Japanese is told from Chinese by its kana, and one Latin language from another by its words, not by letters.
    by_letters = want in _MARKS and got != "Japanese"
    if by_letters and (_share(answer, want) > 1 - rule.max_share or _num_letters(answer, want) >= _ENOUGH_TO_TALK):
        return row
    if got == "Latin" and answer.shape.count(b" ") < 6:  # a name, a title, a formula
        return row
    if _wants_other(asked, got, seen) or seen.has_tools:
        return row
    if got == "Latin" and not _is_english(answer) and looks_like_code(answer):
        return row
    detail = f"a question in {want}, an answer in {got}: {quoted(answer.content)}"
    fix = "translate the answer, or name the language in the question"
    return Drop("wrong_language", detail, fix, answer.message.path)


def _is_english(text: Text) -> bool:
    """A quick look: the commonest words, and hardly a letter of another script."""
    return text.num_latin * 10 > len(text.shape) * 6 and (b" the " in text.low or b" and " in text.low)


# An answer with so many letters of the right language speaks it, whatever names and titles it lists.
_ENOUGH_TO_TALK = 30
_MARKS = {"Latin": b"a", "Chinese": b"h", "Korean": b"y", "Cyrillic": b"c", "Greek": b"g", "another script": b"o"}
# How many letters of an alphabet say about as much as one Han character or one Hangul syllable.
_WEIGHTS = {"Chinese": 3, "Japanese": 3, "Korean": 3}


def _script(text: Text) -> str:
    """The script of most of the text's letters, or nothing where there are too few to tell."""
    shape = text.shape
    if len(text.data) * 8 < len(shape) * 9:
        return "Latin" if text.num_latin > 7 else ""
    counts = {name: shape.count(mark) * _WEIGHTS.get(name, 1) for name, mark in _MARKS.items()}
    counts["Latin"] += shape.count(b"l")
    best = max(counts, key=counts.__getitem__)
    if counts[best] < 8:
        return ""
    if best == "Chinese" or (shape.count(b"k") * 2 > shape.count(b"h") and best != "Latin"):
        num_kana = _num_kana(text)
        if num_kana * 5 > shape.count(b"h") and num_kana > 5:
            return "Japanese"
    return best


def _num_kana(text: Text) -> int:
    return text.data.count(b"\xe3\x81") + text.data.count(b"\xe3\x82") + text.data.count(b"\xe3\x83")


def _num_letters(text: Text, language: str) -> int:
    """How many letters of the language's script the text has, weighted."""
    if language == "Japanese":
        return 3 * (text.shape.count(b"h") + _num_kana(text))
    mark = _MARKS.get(language, b"a")
    return text.shape.count(mark) * _WEIGHTS.get(language, 1)


def _share(text: Text, language: str) -> float:
    """The share of the text's letters that are of the script."""
    counts = {name: text.shape.count(mark) * _WEIGHTS.get(name, 1) for name, mark in _MARKS.items()}
    return counts[language] / max(1, sum(counts.values()))


_COMMON = {
    "English": phrases(
        "the|of|and|to|in|is|that|for|it|was|with|on|are|this|you|what|how|can|be|or|your|which|from|an|why|should|do|does|every|not"
    ),
    "French": phrases("le|la|les|des|et|est|une|un|que|qui|dans|pour|pas|sur|du|avec|sont|plus|vous|ce|cette|être|aux"),
    "German": phrases(
        "der|die|das|und|ist|nicht|ein|eine|zu|den|von|mit|sich|auf|für|dem|sie|im|auch|sind|werden|oder"
    ),
    "Spanish": phrases("el|la|los|las|de|que|y|en|un|una|por|con|para|es|del|se|su|como|más|pero|está|son|al|lo"),
    "Portuguese": phrases("o|os|as|de|que|e|em|um|uma|para|com|não|por|do|da|dos|das|no|na|são|mais|como|é|ao"),
    "Italian": phrases("il|lo|gli|di|che|e|è|un|una|per|con|non|del|della|dei|nel|sono|più|come|anche|alla|le|la"),
    "Dutch": phrases("de|het|een|en|van|is|dat|op|te|voor|met|zijn|niet|aan|er|om|ook|als|maar|deze|worden|bij"),
}
_LANGUAGES_OF: dict[str, tuple[str, ...]] = {
    word: tuple(language for language, words in _COMMON.items() if word in words)
    for words in _COMMON.values()
    for word in words
}
_LATIN_WORD = re.compile(r"[^\W\d_]+")


def _latin_language(text: Text) -> str:
    """Which Latin language the commonest words speak for, or nothing where that is not clear."""
    counts = dict.fromkeys(_COMMON, 0)
    words = _LATIN_WORD.findall(text.content[:LONG].lower())
    for word in words:
        for language in _LANGUAGES_OF.get(word, ()):
            counts[language] += 1
    first, second = sorted(counts, key=counts.__getitem__, reverse=True)[:2]
    if first == "English":
        return first if counts[first] > 1 and counts[first] >= 2 * counts[second] else ""
    return first if counts[first] >= max(4, 0.15 * len(words), 3 * counts["English"]) else ""


def _wants_other(asked: Text, got: str, seen: View) -> bool:
    """Whether another language is named, or the question itself holds enough of the answer's."""
    if _NAMES_LANGUAGE.search(seen.asked):
        return True
    match got:
        case "Japanese":
            return _num_kana(asked) > 1
        case "Chinese" | "Korean":
            return _num_letters(asked, got) > 3
        case "Latin":
            return (_FOREIGN_PASSAGE.search(asked.content) or _ABOUT_A_WORD.search(asked.content)) is not None
    return got in _MARKS and asked.shape.count(_MARKS[got]) > 2


_FOREIGN_PASSAGE = re.compile(r"[A-Za-z]+(?:[ ,'’-]+[A-Za-z]+){2}")
# 生成一个正确使用“opulent”一词的例句, 改变以下名词为复数形式：watch
_ABOUT_A_WORD = re.compile(r"[词句].*[“\"'‘：:] ?[a-z]{3,}|[“\"'‘：:] ?[a-z]{3,}.*[词句]", re.S)
_NAMES_LANGUAGE = re.compile(
    r"translat|language|bilingual|\b(?:english|chinese|mandarin|cantonese|japanese|korean|french|german|"
    r"spanish|portuguese|"
    r"italian|dutch|latin|russian|arabic|greek|turkish|hindi|thai|vietnamese|swedish|polish|hebrew|indonesian|"
    r"pinyin)\b|"
    r"翻译|译成|译为|译文|英译|中译|英[语文]|中文|汉语|普通话|粤语|日[语文]|韩[语文]|法[语文]|德[语文]|"
    r"俄[语文]|泰[语文]|越南语|"
    r"西班牙|葡萄牙|意大利|阿拉伯|希腊|拉丁|荷兰语|土耳其|印地语|外[语文]|双语|多语|语种|[种门]语言|单词|拼音|"
    r"翻譯|譯成|譯為|英[語]|日[語]|韓[語文]|法[語]|德[語]|俄[語]|外[語]|雙語"
)
