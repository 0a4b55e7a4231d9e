"""Contradictions that are found without a model: a sentence and its denial, sums that are wrong, two results.

Two statements contradict one another where they are made of the same words and one denies what the other says. Who
says it in other words is not caught.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from dsr1_tune.text.equality import EXACT
from dsr1_tune.text.final_answer import final_numbers


@dataclass(frozen=True, slots=True)
class Statement:
    """A clause as the words that carry its meaning, and whether it denies."""

    text: str
    words: frozenset[str]
    is_denied: bool


def statements(text: str) -> list[Statement]:
    """The clauses of a text that state something: no questions, conditions or guesses."""
    found = []
    for sentence in _SENTENCE.findall(unicodedata.normalize("NFKC", text)):
        if _IS["condition"].search(sentence):
            continue
        clauses = [clause for clause in _IS["clause_end"].split(sentence) if clause.strip()]
        if sentence.rstrip().endswith("?"):  # "I am not allergic, may I take it?" states its first half
            clauses = [clause for clause in clauses[:-1] if not _IS["asked"].search(clause)]
        for clause in clauses:
            statement = _han(clause) if len(_IS_HAN.findall(clause)) > 3 else _latin(clause)
            if statement and not _IS["guess"].search(clause):
                found.append(statement)
    return found


_SENTENCE = re.compile(r"[^.!?。\n;]+(?:\.(?=\d)[^.!?。\n;]*)*[.!?。;]?")
_IS_HAN = re.compile(r"[\u3400-\u9fff]")


def _latin(clause: str) -> Statement | None:
    words = re.findall(r"[a-z0-9]+(?:[.'][a-z0-9]+)*", clause.lower().replace("’", "'"))
    num_denials = sum(word in _NOT or word.endswith("n't") for word in words)
    kept = set()
    for word in words:
        if word in _EMPTY or word in _NOT or word.endswith("n't"):
            continue
        opposite = _WORDS["opposites"].get(word)
        num_denials += opposite is not None
        kept.add(_stem(opposite or _WORDS["same"].get(word, word)))
    return Statement(clause.strip(), frozenset(kept), num_denials % 2 == 1) if len(kept) > 1 else None


def _stem(word: str) -> str:
    for ending in ("ing", "ied", "ies", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) > 2:
            return word[: -len(ending)] + ("y" if ending in ("ied", "ies") else "")
    return word[:-1] if word.endswith("e") and len(word) > 4 else word


_WORDS: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
_NOT, _EMPTY = frozenset(_WORDS["not"]), frozenset(_WORDS["empty"])
_IS = {name: re.compile("|".join(parts), re.I) for name, parts in _WORDS["patterns"].items()}


def _han(text: str) -> Statement | None:
    clause = _IS["han_no_denial"].sub("", text)
    clause, num_denials = _IS["han_denial"].subn("", clause)
    for word, opposite in _WORDS["han_opposites"].items():
        num_denials += clause.count(word)
        clause = clause.replace(word, opposite)
    signs = "".join(re.findall(r"[\u3400-\u9fffa-z0-9]", _IS["han_empty"].sub("", clause.lower())))
    pairs = {signs[at : at + 2] for at in range(len(signs) - 1)}
    return Statement(text.strip(), frozenset(pairs), num_denials % 2 == 1) if len(signs) > 3 else None


def contradictions(these: Sequence[Statement], those: Sequence[Statement]) -> list[tuple[Statement, Statement]]:
    """The pairs of statements of which one denies what the other says in nearly the same words."""
    return [
        (one, other)
        for one in _ends(these)
        for other in _ends(those)
        if one.is_denied != other.is_denied and _are_near(one.words, other.words)
    ]


def _ends(found: Sequence[Statement]) -> Sequence[Statement]:
    """The first and the last ones: every one is held against every other, which takes long where there are many."""
    return found if len(found) <= 200 else [*found[:100], *found[-100:]]


def _are_near(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether at most a fifth of all their words are in one of the two alone.

    They are about two things where each has a word of its own (adults, children), or a number makes the difference.
    """
    if (one - other and other - one) or any(map(str.isdigit, "".join(one ^ other))):
        return False
    return len(one & other) >= 0.8 * len(one | other)


def wrong_sums(text: str) -> Iterator[str]:
    """Every `3 + 4 = 8` in a text that is wrong beyond the rounding of its result."""
    text = _CODE.sub(" ", unicodedata.normalize("NFKC", text)).replace("−", "-").replace("–", "-")
    text = re.sub(r"\\(?:times|cdot)(?![a-z])|[·∙⋅]", "×", text.replace("\\div", "÷"))
    text = re.sub(r"[ \t]+", " ", text)
    if _IS["other_counting"].search(text):
        return
    for found in _SUM.finditer(text):
        if not _stands_alone(text[max(0, found.start() - 40) : found.start()]):
            continue
        value = _computed(found["left"])
        said = found["right"].replace(",", "")
        if value is None:
            continue
        decimals = len(said.partition(".")[2])
        # A quotient may be cut off instead of rounded.
        allowed = Fraction(1 if re.search("[/÷]", found["left"]) else Fraction(1, 2), 10**decimals)
        if abs(value - Fraction(said)) > allowed + Fraction(1, 10**9):
            yield found[0].strip()


_TERM = r"-?(?:\d{1,3}(?:,\d{3}){1,9}|\d{1,30})(?:\.\d{1,30})?"
_SUM = re.compile(
    # Not a part of a longer formula: no letter, bracket, operator, power or percent sign before, behind or between.
    rf"(?<![\w.)\]^+*/×÷=%√}}|!°\\-])(?<![+*/×÷=%^√-]\s)(?<!\d[:,])"
    rf"(?P<left>{_TERM}(?:\s?[-+*/×÷x]\s?{_TERM}){{1,50}})\s?=\s?(?P<right>{_TERM})"
    r"(?![\w%^(/!°√\\]|[.,:]\d|\s?\\%|\s?[-+*/×÷^]\s?[\w(\\]|\s?(?:\.{3}|…|million|billion|thousand|万|亿|千|百))"
)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]{1,300}`", re.S)


def _stands_alone(before: str) -> bool:
    """Whether a sum is all there is, not a part of "20% of 50 + 5", "log 100 + 1", "half of 10 + 2"."""
    before = before.rstrip(" $*`([\\")
    if not before or before[-1] in "\n.,;:!?。、>→⇒∴\"'“”":
        return True
    word = re.search(r"[a-z]+$", before, re.I)
    return word[0].lower() in _WORDS["before_a_sum"] if word else before[-1] in "共有是得即为则算以么"


def _computed(left: str) -> Fraction | None:
    """The value of a sum: products before sums, from the left; None for a division by 0."""
    terms: list[Fraction] = []
    for sign, said in re.findall(rf"([-+*/×÷x]?)\s*({_TERM})", left):
        number = Fraction(said.replace(",", ""))
        if sign in ("*", "×", "x"):
            terms[-1] *= number
        elif sign in ("/", "÷"):
            if not number:
                return None
            terms[-1] /= number
        else:
            terms.append(-number if sign == "-" else number)
    return sum(terms, Fraction(0))


def several_results(text: str) -> list[Fraction]:
    """The results that an answer names as its own, where they are not all the same: "answer: 5 ... answer: 7"."""
    found = final_numbers(text)
    are_one = all(EXACT.allows(one, found[-1]) for one in found[:-1])  # as 50 and 50% are
    return [] if are_one else list(dict.fromkeys(one.value for one in found))


def yes_or_no(text: str) -> bool | None:
    """Whether a text begins with a yes or a no; None where with neither."""
    begin = text.lstrip(" \n\t*_\"'“‘")[:12]
    if _IS["no"].match(begin):
        return False
    return True if _IS["yes"].match(begin) else None
