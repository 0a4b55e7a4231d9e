"""The judge's cascade of scores: cheap ones for every row, then a model's for rows in doubt, in the time that is given.

On every language a score is first tried on reference rows and on bad rows made of them; one that tells them apart no
better than chance is switched off there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dsr1_tune.data.judge import lexical
from dsr1_tune.data.judge.bench import Bench, Floats, blend, measure
from dsr1_tune.data.judge.negatives import Bands, Ints, Reference, draw, shuffle_characters, shuffle_words
from dsr1_tune.data.judge.score_cache import Memo, Pair, digest
from dsr1_tune.data.judge.thresholds import MIN_ROWS
from dsr1_tune.text.amount import amount

if TYPE_CHECKING:
    from dsr1_tune.data.judge.embedder import Embedder
    from dsr1_tune.data.judge.language_model import LanguageModel

Clock = Callable[[], float]

CHUNK_ROWS = 2048
NUM_COSINE_ROWS = 400
"""Reference rows of a language that the embedding model looks at."""
NUM_LM_ROWS = 150
"""Reference rows of a language that the language model looks at; each costs five passes."""
BEYOND_DOUBT = 3.0
"""Log-odds from which on an answer needs no closer look: it is twenty times likelier to fit than not."""


def score_cheaply(bench: Bench) -> None:
    """Two passes over all rows: learn what the file is made of, then overlap and surprise; and try them out."""
    content = hashlib.blake2b(digest_size=12)
    for chunk, texts in _read(bench, "learning its words"):
        bench.counts.add(texts, chunk)
        content.update("".join(digest(*pair) for pair in texts).encode())
    bench.content = content.hexdigest()
    found, numbers = np.zeros((len(bench.pairs), 3), np.float32), np.zeros((len(bench.pairs), 3), np.int32)
    for chunk, texts in _read(bench, "scoring without a model"):
        bench.scores["overlap"][chunk] = lexical.overlap(texts, bench.counts)
        found[chunk], numbers[chunk] = lexical.bits(texts, bench.counts, chunk)
    for place, language in enumerate(bench.languages):
        _try_cheap_scores(bench, language, bench.seed + place, found, numbers)
        blend(bench, language)


def _try_cheap_scores(bench: Bench, language: str, seed: int, found: Floats, numbers: Ints) -> None:
    """Surprise from the bits and numbers of all answers' characters; and how well it and overlap tell on a language."""
    rows = bench.languages[language]
    reference = bench.references[language] = draw(rows, bench.texts, seed)
    usual = found[rows].sum(axis=0) / np.maximum(numbers[rows].sum(axis=0), 1)
    odd = lexical.surprise(found[rows], numbers[rows], usual)
    bands = Bands(odd, numbers[rows].sum(axis=1))
    bench.scores["surprise"][rows] = odd - bands.usual(numbers[rows].sum(axis=1))

    def odd_when(shuffle: Callable[[str, np.random.Generator], str]) -> Floats:
        costs, sizes = lexical.bits(reference.shuffled(shuffle, bench.seed), bench.counts, reference.rows)
        return lexical.surprise(costs, sizes, usual) - bands.usual(sizes.sum(axis=1))

    characters, words = odd_when(shuffle_characters), odd_when(shuffle_words)
    measure(bench, "surprise", language, bench.scores["surprise"][reference.rows], characters)
    bench.shuffled_surprise[language] = float(np.nanquantile(words, 0.95)) if np.isfinite(words).any() else np.inf
    wrong = np.stack([lexical.overlap(reference.wrong(which), bench.counts) for which in (0, 1)], axis=1)
    measure(bench, "overlap", language, bench.scores["overlap"][reference.rows], wrong)


def _read(bench: Bench, doing: str) -> Iterator[tuple[Ints, list[Pair]]]:
    for start in range(0, len(bench.rows), CHUNK_ROWS):
        chunk = bench.rows[start : start + CHUNK_ROWS]
        yield chunk, bench.pairs.texts(chunk.tolist())
        bench.say(f"judge: {doing}, {start + len(chunk):,} of {amount(len(bench.rows), 'row')}")


@dataclass(frozen=True)
class Budget:
    """The time at which a part of the work must end."""

    clock: Clock
    end: float

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - self.clock()

    def share(self, part: float) -> Budget:
        """A part of what is left."""
        return Budget(self.clock, self.clock() + max(self.left, 0.0) * part)


def embed(bench: Bench, model: Embedder, memo: Memo, budget: Budget) -> None:
    """Cosines, of the reference rows and then of rows in doubt."""
    for language, part in _language_by_language(bench, budget):
        _embed_language(bench, language, Cosines(model), memo, part)


def _embed_language(bench: Bench, language: str, cosines: Cosines, memo: Memo, budget: Budget) -> None:
    reference = bench.references[language]
    size = min(len(reference), NUM_COSINE_ROWS)
    seen, wrong = np.full(len(reference), np.nan), np.full((len(reference), 2), np.nan)

    def try_out(places: Ints) -> None:
        asked = [pair for p in places.tolist() for pair in (reference.pairs[p], *reference.wrong_of(p))]
        found = memo.scores(asked, cosines).reshape(-1, 3)
        seen[places], wrong[places] = found[:, 0], found[:, 1:]

    def look(rows: Ints) -> None:
        bench.scores["cosine"][rows] = memo.scores(bench.texts(rows), cosines)[:, 0]
        cosines.forget()

    _in_time(bench, np.arange(size), try_out, memo, budget.share(0.7), f"trying cosine on {language}", MIN_ROWS)
    cosines.forget()
    bench.scores["cosine"][reference.rows] = seen
    measure(bench, "cosine", language, seen, wrong)
    blend(bench, language)
    if bench.is_on("cosine", language):
        _in_time(bench, _doubtful(bench, language, "cosine"), look, memo, budget, f"cosine on {language}")
        blend(bench, language)


class Cosines:
    """Cosines of pairs by a model that sees every text once; `forget` the texts when they have been seen."""

    def __init__(self, model: Embedder) -> None:
        self._model = model
        self.forget()

    def forget(self) -> None:
        """Let go of the vectors."""
        self._questions: dict[str, Floats] = {}
        self._answers: dict[str, Floats] = {}

    def __call__(self, pairs: Sequence[Pair]) -> Floats:
        """[N, 1] cosine of each question with its answer."""
        sides = (
            (self._questions, self._model.questions, [question for question, _ in pairs]),
            (self._answers, self._model.answers, [answer for _, answer in pairs]),
        )
        for known, vectors, texts in sides:
            new = [text for text in dict.fromkeys(texts) if text not in known]
            if new:
                known.update(zip(new, vectors(new), strict=True))
        return np.array([[float(self._questions[question] @ self._answers[answer])] for question, answer in pairs])


def predict(bench: Bench, model: LanguageModel, memo: Memo, budget: Budget) -> None:
    """Perplexity, IFD and contrast, of reference rows and then of rows in doubt."""
    for language, part in _language_by_language(bench, budget):
        _predict_language(bench, language, model, memo, part)


def _predict_language(bench: Bench, language: str, model: LanguageModel, memo: Memo, budget: Budget) -> None:
    reference = bench.references[language]
    size = min(len(reference), NUM_LM_ROWS)
    shuffled = reference.shuffled(shuffle_words, bench.seed)
    # Of every reference row: alone, asked, under two other questions, and its words shuffled.
    tried = np.full((len(reference), 5, 2), np.nan)

    def try_out(places: Ints) -> None:
        asked = []
        for p in places.tolist():
            pair = reference.pairs[p]
            asked += [("", pair[1]), pair, *reference.wrong_of(p), ("", shuffled[p][1])]
        tried[places] = memo.scores(asked, model.losses).reshape(-1, 5, 2)

    _in_time(bench, np.arange(size), try_out, memo, budget.share(0.7), f"trying the LM on {language}", MIN_ROWS)
    bands = _try_lm_scores(bench, language, tried)
    blend(bench, language)

    def look(rows: Ints) -> None:
        asked = []
        for row, pair in zip(rows.tolist(), bench.texts(rows), strict=True):
            asked += [("", pair[1]), pair, (_another_question(reference, row, pair[0]), pair[1])]
        _note_losses(bench, rows, memo.scores(asked, model.losses).reshape(-1, 3, 2), bands)

    if any(bench.is_on(score, language) for score in ("ifd", "contrast", "oddity")):
        _in_time(bench, _doubtful(bench, language, "ifd"), look, memo, budget, f"the LM on {language}")
        blend(bench, language)


def _try_lm_scores(bench: Bench, language: str, tried: Floats) -> Bands:
    """Note the reference rows' scores; returns what loss is usual at which length."""
    alone, asked, wrong, wrong_too, shuffled = (tried[:, which, 0] for which in range(5))
    bands = Bands(alone, tried[:, 0, 1])
    rows = bench.references[language].rows
    is_known = ~np.isnan(alone)
    _note_losses(bench, rows[is_known], tried[is_known][:, [0, 1, 2]], bands)
    measure(bench, "ifd", language, asked / alone, _first_of_two(wrong / alone))
    measure(bench, "contrast", language, wrong / asked, _first_of_two(wrong_too / wrong))
    usual, usual_shuffled = (bands.usual(tried[:, which, 1]) for which in (0, 4))
    measure(bench, "oddity", language, np.exp(alone - usual), np.exp(shuffled - usual_shuffled))
    return bands


def _first_of_two(values: Floats) -> Floats:
    """[N, 2] with nothing in the second column, for scores of which only the first wrong question is known."""
    return np.stack([values, np.full(len(values), np.nan)], axis=1)


def _note_losses(bench: Bench, rows: Ints, losses: Floats, bands: Bands) -> None:
    """Scores from [N, 3, 2] losses and token counts of answers alone, asked and asked otherwise."""
    alone, asked, other = (losses[:, which, 0] for which in range(3))
    bench.scores["perplexity"][rows] = np.exp(alone)
    bench.scores["oddity"][rows] = np.exp(alone - bands.usual(losses[:, 0, 1]))
    bench.scores["ifd"][rows] = asked / alone
    bench.scores["ifd_perplexity"][rows] = np.exp(asked - alone)
    bench.scores["contrast"][rows] = other / asked


def _another_question(reference: Reference, row: int, question: str) -> str:
    size = len(reference)
    others = (reference.pairs[(row + step) % size][0] for step in range(size))
    return next((other for other in others if other != question), "")


def _language_by_language(bench: Bench, budget: Budget) -> Iterator[tuple[str, Budget]]:
    """The languages with rows enough to calibrate on, and the time for each; what one leaves goes to the next."""
    enough = [name for name, reference in bench.references.items() if len(reference) >= MIN_ROWS]
    for place, language in enumerate(enough):
        yield language, budget.share(1 / (len(enough) - place))


def _doubtful(bench: Bench, language: str, score: str) -> Ints:
    """The rows whose answer may not fit, by what is known of them, the most doubtful first; those scored are left out.

    Rows of which nothing is known come first, for nothing speaks for them.
    """
    rows = bench.languages[language]
    rows = rows[np.isnan(bench.scores[score][rows])]
    rows = rows[~(bench.scores["fit"][rows] > BEYOND_DOUBT)]
    fit = bench.scores["fit"][rows]
    return rows[np.argsort(np.nan_to_num(fit, nan=-np.inf), kind="stable")]


def _in_time(
    bench: Bench, items: Ints, work: Callable[[Ints], None], memo: Memo, budget: Budget, doing: str, least: int = 0
) -> None:
    """Work through the items in order, as far as the time goes, and say how far that is.

    Given up early where not even the `least` that is of use could be reached. How far it went is kept: doing the same
    again, or going on after a kill, gives the same.
    """
    settings = (bench.config.minutes, bench.config.sample, bench.config.lm, bench.config.embedder, bench.seed)
    task = digest(bench.content, repr(settings), doing)
    end = memo.end(task)
    done, chunk, start, before = 0, 16, budget.clock(), memo.num_new
    while done < len(items) and (done < end if end is not None else budget.left > 0):
        began = budget.clock()
        stop = min(done + chunk, len(items) if end is None else end)
        work(items[done:stop])
        done = stop
        took = budget.clock() - began
        chunk = min(chunk * 2, CHUNK_ROWS) if took < 2 else chunk
        rate = done / max(budget.clock() - start, 1e-9)
        to_go = int(min((len(items) - done) / rate, max(budget.left, 0)))
        progress = f"{done:,} of {amount(len(items), 'row')}, {rate:.1f} a second, {to_go // 60}:{to_go % 60:02d} to go"
        bench.say(f"judge: {doing}, {progress}")
        if end is None and memo.num_new > before and done < least and (least - done) / rate > budget.left:
            break
    memo.set_end(task, done)
    if done < len(items):
        bench.note(f"{doing}: {done:,} of {len(items):,} rows were looked at in the time given")
