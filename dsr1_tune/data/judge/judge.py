"""The judge: scores of questions and answers by small models, calibrated on the file itself, then decisions.

A cascade: what needs no model is computed for every row; an embedding model then looks at the rows in doubt, and a
causal language model at those that are in doubt even so, each while its time lasts. Bad rows are made of the file's
own (judge_reference.py); per language they show how well a score tells, whether it is used at all, and where to cut.

The scores of a question q and an answer a, with L(a|q) the mean loss of a's tokens under q and L(a) alone:

    surprise        bits a character beyond what is usual, by character triples of the file    lower is better
    overlap         shared words, rare ones weighing more                                      higher
    cosine          of their embeddings                                                        higher
    perplexity      exp L(a)                                                                   lower
    oddity          perplexity over what is usual at this length                               lower
    ifd             L(a|q) / L(a), the ratio of losses of arXiv 2308.12032                     lower
    ifd_perplexity  exp(L(a|q) - L(a)), the ratio of perplexities of arXiv 2402.00530          lower
    contrast        L(a|another question) / L(a|q)                                             higher
    fit             overlap, cosine, ifd and contrast as one: log-odds that a belongs to q     higher

Surprise, oddity and fit decide; the others do where you set a cut-off for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from dsr1_tune.config import Judge
from dsr1_tune.data.judge.bench import Bench, Floats, Measure, PairSource, Say, as_good, as_score, open_bench
from dsr1_tune.data.judge.negatives import Ints
from dsr1_tune.data.judge.score_cache import Memo, digest
from dsr1_tune.data.judge.scores import BEYOND_DOUBT, Budget, Clock, embed, predict, score_cheaply
from dsr1_tune.data.judge.thresholds import MIN_ROWS, Cut, auc_of_good, cut_at, find_cut, share_of_bad
from dsr1_tune.data.record import Drop
from dsr1_tune.errors import ModelError

if TYPE_CHECKING:
    from dsr1_tune.data.judge.embedder import Embedder
    from dsr1_tune.data.judge.language_model import LanguageModel

__all__ = ["Judgement", "Models", "PairSource", "judge"]

DROP_CODES = {
    "surprise": "not_fluent",
    "oddity": "not_fluent",
    "overlap": "answer_does_not_fit",
    "cosine": "answer_does_not_fit",
    "ifd": "unhelped_answer",
    "contrast": "answer_does_not_fit",
    "fit": "answer_does_not_fit",
}
DECIDING = {"surprise": (0.98, 0.125), "oddity": (0.98, 0.125), "fit": (0.98, 0.25)}
"""Scores that drop rows by themselves: from which AUC on, and their part of the good rows that may be lost.

The parts add up to a half: the other half is kept back, for what is lost is estimated on few rows.
"""
NONE = "none"
"""The name of no model."""
NUM_BINS = 24
_FIXES = {
    "not_fluent": "read the answer; if it is fine, set judge.cuts.surprise or judge.cuts.oddity higher",
    "answer_does_not_fit": "read question and answer; if they belong together, set judge.cuts.fit lower",
    "unhelped_answer": "read question and answer; if they belong together, set judge.cuts.fit lower",
}
Model = TypeVar("Model")


@dataclass(frozen=True)
class Models:
    """How to load the two models by name, None for the default; both raise ModelError where they cannot be had."""

    embedder: Callable[[str | None], Embedder]
    lm: Callable[[str | None], LanguageModel]


@dataclass(frozen=True)
class Judgement:
    """`scores` by name, nan where a row was not scored; `drops` by row; `facts` for the report, as JSON values."""

    scores: dict[str, Floats]
    drops: dict[int, Drop]
    facts: dict[str, Any]


def judge(
    pairs: PairSource,
    config: Judge,
    cache: Path,
    seed: int,
    say: Say = lambda line: None,
    models: Models | None = None,
    clock: Clock = time.monotonic,
) -> Judgement:
    """Score the rows and name those to drop. What the models say is kept in the folder `cache` and not asked again.

    Raises ModelError for a model that was named and cannot be had; without a default one it goes on, and says so.
    """
    load = models or Models(_load_embedder, _load_lm)
    bench = open_bench(pairs, config, seed, say)
    score_cheaply(bench)
    begin = clock()
    end = begin + config.minutes * 60
    names: dict[str, str | None] = {"embedder": None, "lm": None}
    if embedder := _loaded(bench, "embedder", config.embedder, load.embedder):
        names["embedder"] = embedder.name
        half = end if config.lm == NONE else (begin + end) / 2
        with Memo(cache / f"cosine-{_identity(config.embedder, embedder.name)}.jsonl") as memo:
            embed(bench, embedder, memo, Budget(clock, half))
        embedder = None  # two models need not be in memory at once
    if lm := _loaded(bench, "lm", config.lm, load.lm):
        names["lm"] = lm.name
        with Memo(cache / f"loss-{_identity(config.lm, lm.name)}.jsonl") as memo:
            predict(bench, lm, memo, Budget(clock, end))
    drops = _decide(bench)
    return Judgement(bench.scores, drops, _facts(bench, names))


def _load_embedder(name: str | None) -> Embedder:
    from dsr1_tune.data.judge import embedder as judge_embed

    return judge_embed.load(name)


def _load_lm(name: str | None) -> LanguageModel:
    from dsr1_tune.data.judge import language_model

    return language_model.load(name)


def _loaded(bench: Bench, role: str, name: str | None, load: Callable[[str | None], Model]) -> Model | None:
    """The model, or None where there is no use or no default for it, which is noted."""
    if name == NONE or not bench.config.minutes:
        return None
    if all(len(reference) < MIN_ROWS for reference in bench.references.values()):
        bench.note(f"no {role} was asked: no language has {MIN_ROWS} rows to calibrate it on")
        return None
    bench.say(f"judge: loading the {role}")
    try:
        return load(name)
    except ModelError as error:
        if name is not None:
            raise
        bench.note(f"goes on without the {role}: {error.message} ({error.hint})")
        return None


def _identity(name: str | None, said: str) -> str:
    """Names a model's file of scores; a folder whose weights change gets another one."""
    files = sorted(Path(name).glob("*.safetensors")) if name and Path(name).is_dir() else []
    found = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return digest(said, repr(found))


def _decide(bench: Bench) -> dict[int, Drop]:
    """The rows beyond a cut-off, by the first score that objects to them."""
    drops: dict[int, Drop] = {}
    for language, rows in bench.languages.items():
        for score, code in DROP_CODES.items():
            cut = _cut(bench, score, language)
            if cut is None:
                continue
            good = as_good(score, bench.scores[score][rows])
            for row in rows[(good < cut.value) & _may_decide(bench, score, language, rows)].tolist():
                drops.setdefault(row, _drop(bench, row, score, code, cut))
    return dict(sorted(drops.items()))


def _cut(bench: Bench, score: str, language: str) -> Cut | None:
    """Where to cut: as you said, or the worst share, or where it is calibrated; noted in the score's measure."""
    config = bench.config
    measure = bench.measures.get((score, language))
    seen = _all_seen(bench, score, language, measure) if measure else np.zeros(0)
    bad = measure.bad.reshape(-1) if measure else np.zeros(0)
    cut = None
    if score in config.cuts:
        cut = cut_at(float(as_good(score, np.array(config.cuts[score]))), seen, bad)
    elif score == "fit" and config.drop_worst:
        fit = bench.scores["fit"][bench.languages[language]]
        if not np.isnan(fit).all():
            cut = cut_at(float(np.nanquantile(fit, config.drop_worst)), seen, bad)
    elif score in DECIDING and measure and not measure.off:
        least, part = DECIDING[score]
        rows = bench.languages[language]
        value = auc_of_good(measure.auc, share_of_bad(seen, bad))
        if (bench.fit_auc[rows].max() if score == "fit" else value) >= least:
            cut = find_cut(seen, bad, config.max_lost * part)
        else:
            bench.note(f"{score} drops no row of {language}: its AUC is {value:.3f}, {least} is asked of it")
        if cut and score == "surprise" and -bench.shuffled_surprise[language] < cut.value:
            # Mash is odder than the file's own words in any order; a poem is not.
            cut = cut_at(-bench.shuffled_surprise[language], seen, bad)
    if measure:
        measure.cut = cut
    return cut


def _all_seen(bench: Bench, score: str, language: str, measure: Measure) -> Floats:
    """The rows to calibrate on: all of them, or the reference rows where others were not looked at as they needed."""
    rows = bench.languages[language]
    values = as_good(score, bench.scores[score][rows])
    if score == "surprise":
        return values
    if score == "fit":
        is_settled = _is_looked_at(bench, language, rows) | (values > BEYOND_DOUBT)
        is_short = np.isnan(bench.scores["surprise"][rows])
        if (is_settled | is_short).all():
            return values[is_settled]
    return measure.seen


def _may_decide(bench: Bench, score: str, language: str, rows: Ints) -> np.ndarray:
    """Whether a row may be dropped by its calibrated score.

    Shared words alone condemn nobody: a model must have looked, and the blend it is part of must tell well. Nor does
    the fit of a very short answer count (it has no surprise either): B, 42 and 是 are whole answers, and like no
    question.
    """
    if score != "fit" or score in bench.config.cuts or bench.config.drop_worst:
        return np.ones(len(rows), bool)
    return _is_looked_at(bench, language, rows) & (bench.fit_auc[rows] >= DECIDING["fit"][0])


def _is_looked_at(bench: Bench, language: str, rows: Ints) -> np.ndarray:
    looked = [bench.scores[part][rows] for part in ("cosine", "ifd", "contrast") if bench.is_on(part, language)]
    known = ~np.isnan(np.array(looked).reshape(-1, len(rows)))
    return np.asarray(known.any(axis=0) & ~np.isnan(bench.scores["surprise"][rows]))


def _drop(bench: Bench, row: int, score: str, code: str, cut: Cut) -> Drop:
    value = {name: float(of[row]) for name, of in bench.scores.items() if not np.isnan(of[row])}
    said = f"{score} {value[score]:.2f}, cut-off {as_score(score, cut.value):.2f}"
    if score == "fit":
        known = [f"{name} {value[name]:.2f}" for name in ("overlap", "cosine", "ifd", "contrast") if name in value]
        said += f" ({', '.join(known)})"
        code = "unhelped_answer" if value.get("ifd", 0) >= 1 else code
    return Drop(code, said, _FIXES[code])


def _facts(bench: Bench, models: dict[str, str | None]) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    order = list(bench.scores)
    for (score, language), measure in sorted(bench.measures.items(), key=lambda item: order.index(item[0][0])):
        scores.setdefault(score, {})[language] = _score_facts(bench, score, language, measure)
    return {
        "num_rows": len(bench.pairs),
        "num_looked_at": len(bench.rows),
        "languages": {language: len(rows) for language, rows in bench.languages.items()},
        "models": models,
        "scores": scores,
        "notes": bench.notes,
    }


def _score_facts(bench: Bench, score: str, language: str, measure: Measure) -> dict[str, Any]:
    values = bench.scores[score][bench.languages[language]]
    num_scored = int((~np.isnan(values)).sum())
    cut = measure.cut
    return {
        "num_scored": num_scored,
        "num_unscored": len(values) - num_scored,
        "auc": _rounded(measure.auc),
        "switched_off": measure.off or None,
        "cut_off": _rounded(as_score(score, cut.value)) if cut else None,
        "expected": cut and {name: _rounded(getattr(cut, name)) for name in ("share_bad", "found", "lost")},
        "histogram": _histogram(score, values, measure.bad),
    }


def _histogram(score: str, values: Floats, bad: Floats) -> dict[str, Any]:
    """Counts of the rows' scores and of the bad rows' in the same bins; what lies beyond is in the outermost."""
    true = values[~np.isnan(values)].astype(float)
    shuffled = np.array([as_score(score, good) for good in bad[~np.isnan(bad)]])
    both = np.concatenate([true, shuffled])
    if not len(both):
        return {"edges": [], "true": [], "shuffled": []}
    low, high = np.quantile(both, [0.005, 0.995])
    edges = np.linspace(low, max(high, low + 1e-6), NUM_BINS + 1)
    counts = [np.histogram(np.clip(side, edges[0], edges[-1]), edges)[0].tolist() for side in (true, shuffled)]
    return {"edges": [_rounded(edge) for edge in edges], "true": counts[0], "shuffled": counts[1]}


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
