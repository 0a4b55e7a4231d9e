"""How right is an answer?  One score for each kind of right answer, each between 0 and 1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rapidfuzz.distance import LCSseq

from dsr1_tune.data.encode import thinking
from dsr1_tune.text.answer_kind import Kind, chosen_letter, items, kind_of
from dsr1_tune.text.equality import equal
from dsr1_tune.text.words import content_words, words


@dataclass(frozen=True)
class Task:
    """A row with an answer to compare with: what kind it is, and so which scores fit."""

    kind: Kind
    reference: str

    @classmethod
    def of(cls, question: str, reference: str) -> Task:
        """The kind of the reference, which may depend on the question; reasoning in <think> does not count."""
        said = thinking.strip(reference).strip()
        return cls(kind_of(question, said), said)


def scores(task: Task, answer: str) -> dict[str, float]:
    """The scores that fit, of an answer without its reasoning."""
    said = thinking.strip(answer).strip()
    if task.kind == "choice":
        return {"choice_accuracy": float(chosen_letter(said) == chosen_letter(task.reference))}
    if task.kind == "number":
        return {"numeric": float(equal(said, task.reference))}
    if task.kind == "text":
        return {"rouge_l": rouge_l(said, task.reference)}
    f1 = bag_f1(items(said), items(task.reference)) if task.kind == "list" else word_f1(said, task.reference)
    return {"exact_match": exact_match(said, task.reference), "f1": f1}


def exact_match(answer: str, reference: str) -> float:
    """1 where the words are the same, but for case, signs and articles."""
    return float(content_words(answer) == content_words(reference))


def word_f1(answer: str, reference: str) -> float:
    """F1 over the words, each as often as it stands there (SQuAD's, arXiv 1606.05250)."""
    return bag_f1(content_words(answer), content_words(reference))


def bag_f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of what was found; two empty bags agree."""
    if not found or not wanted:
        return float(found == wanted)
    num_right = (Counter(found) & Counter(wanted)).total()
    return 2 * num_right / (len(found) + len(wanted))


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L's F1: the longest common subsequence of words; CJK characters are words."""
    found, wanted = words(answer), words(reference)
    if not found or not wanted:
        return float(found == wanted)
    return 2 * LCSseq.similarity(found, wanted) / (len(found) + len(wanted))


def distinct(answers: Sequence[str], n: int) -> float | None:
    """Distinct-n (arXiv 1510.03055): the share of different n-grams among all n-grams of all answers; None of none."""
    grams = [tuple(found[at : at + n]) for found in map(words, answers) for at in range(len(found) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None
