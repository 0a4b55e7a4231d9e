"""The rule about languages: an answer is in its question's language, unless the question wants another."""

from __future__ import annotations

from dataclasses import replace

from dsr1_tune.config import Count
from dsr1_tune.data.phrase_table import PhraseTable
from dsr1_tune.data.record import Drop, Row
from dsr1_tune.data.rules.rule import Meaning, Part, Rule, RuleSettings
from dsr1_tune.data.rules.text_features import LONG, Text, View, looks_like_code, quoted, view, without_code

_TABLE = PhraseTable(__file__)
# An answer with so many letters of the right language speaks it, whatever names and titles it lists.
_ENOUGH_TO_TALK = 30
_MARKS = {"Latin": b"a", "Chinese": b"h", "Korean": b"y", "Cyrillic": b"c", "Greek": b"g", "another script": b"o"}
# How many letters of an alphabet say about as much as one Han character or one Hangul syllable.
_WEIGHTS = {"Chinese": 3, "Japanese": 3, "Korean": 3}
_COMMON: dict[str, list[str]] = _TABLE["common"]
_LANGUAGES_OF: dict[str, tuple[str, ...]] = {
    word: tuple(language for language, words in _COMMON.items() if word in words)
    for words in _COMMON.values()
    for word in words
}


class WrongLanguage(RuleSettings):
    """Answers in another language than the question, which asks for none."""

    min_letters: Count = 24
    """Answers with fewer letters of the other language are not looked at; a Han character counts for three."""
    max_share: Part = 0.7
    """Largest share of letters in another script than the question's."""


def wrong_language(row: Row, settings: WrongLanguage) -> Row | Drop:
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
        if b"```" in answer.data and _TABLE.asks_for_code.search(seen.asked):
            return row  # what is said around a program may be in English
        answer = Text(replace(answer.message, content=without_code(answer)))
    want, got = _script(asked), _script(answer)
    if want == got == "Latin":
        if len(answer.data) < 60:
            return row
        want, got = _latin_languages(asked, answer)
    if not want or not got or want == got:
        return row
    if _num_letters(answer, got) < settings.min_letters:
        return row
    # Japanese is told from Chinese by its kana, and one Latin language from another by its words, not by letters.
    if want in _MARKS and got != "Japanese":
        counts = _num_by_script(answer)
        share = counts[want] / max(1, sum(counts.values()))
        if share > 1 - settings.max_share or counts[want] >= _ENOUGH_TO_TALK:
            return row
    if got == "Latin" and answer.shape.count(b" ") < 6:  # a name, a title, a formula
        return row
    if _wants_other(asked, got, seen) or seen.has_tools:
        return row
    may_be_code = not _is_english(answer) or _TABLE.asks_for_code.search(seen.asked)
    if got == "Latin" and looks_like_code(answer) and may_be_code:
        return row
    detail = f"a question in {want}, an answer in {got}: {quoted(answer.content)}"
    fix = "translate the answer, or name the language in the question"
    return Drop("wrong_language", detail, fix, answer.message.path)


def _is_english(text: Text) -> bool:
    """A quick look: the commonest words, and hardly a letter of another script."""
    return text.num_latin * 10 > len(text.shape) * 6 and (b" the " in text.low or b" and " in text.low)


def _script(text: Text) -> str:
    """The script of most of the text's letters, or nothing where there are too few to tell."""
    shape = text.shape
    if len(text.data) * 8 < len(shape) * 9:
        return "Latin" if text.num_latin > 7 else ""
    counts = _num_by_script(text)
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
    if language == "Japanese":
        return 3 * (text.shape.count(b"h") + _num_kana(text))
    return text.shape.count(_MARKS.get(language, b"a")) * _WEIGHTS.get(language, 1)


def _num_by_script(text: Text) -> dict[str, int]:
    return {name: text.shape.count(mark) * _WEIGHTS.get(name, 1) for name, mark in _MARKS.items()}


def _latin_languages(asked: Text, answer: Text) -> tuple[str, str]:
    """(the question's, the answer's) Latin language by their commonest words; nothing where that is not clear.

    A question is often too short to tell. It is in another language than the answer if it has words of that other
    one, or at least none of the answer's.
    """
    said, num_said = _counts_of_common(answer)
    first, second = sorted(said, key=said.__getitem__, reverse=True)[:2]
    if first == "English":
        if said[first] < 2 or said[first] < 2 * said[second]:
            return "", ""
    elif said[first] < max(4, 0.15 * num_said, 3 * said["English"]):
        return "", ""
    counts, num = _counts_of_common(asked)
    best = max(counts, key=lambda name: (counts[name], name == "English"))
    if best == first or num < 3:
        return "", ""
    if counts[first] == 0 and counts[best] > 0:
        return best, first
    if best == "English" or first == "English":
        return (best, first) if counts[best] >= max(2, 2 * counts[first]) else ("", "")
    return "", ""


def _counts_of_common(text: Text) -> tuple[dict[str, int], int]:
    """(how many words are of the commonest in each language, how many words there are)."""
    counts = dict.fromkeys(_COMMON, 0)
    words = _TABLE.latin_word.findall(text.content[:LONG].lower())
    for word in words:
        for language in _LANGUAGES_OF.get(word, ()):
            counts[language] += 1
    return counts, len(words)


def _wants_other(asked: Text, got: str, seen: View) -> bool:
    """Whether another language is named, or the question itself holds enough of the answer's."""
    if _TABLE.names_language.search(seen.asked):
        return True
    match got:
        case "Japanese":
            return _num_kana(asked) > 1
        case "Chinese" | "Korean":
            return _num_letters(asked, got) > 3
        case "Latin":
            return any(found.search(asked.content) for found in (_TABLE.foreign_passage, _TABLE.about_a_word))
    return got in _MARKS and asked.shape.count(_MARKS[got]) > 2


WRONG_LANGUAGE = Rule(
    "wrong_language",
    wrong_language,
    Meaning(
        "the answer is in another language than the question, which asks for none", "回答与问题语言不同，而问题并未要求"
    ),
    WrongLanguage,
)
