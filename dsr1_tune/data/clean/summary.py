"""The report as plain JSON values: what came in, what stayed, what fell out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dsr1_tune import __version__
from dsr1_tune.config import CleanRun
from dsr1_tune.data.clean.outcome import Fate, Outcome
from dsr1_tune.data.clean.scan import KINDS, Counts, Settings, add_example
from dsr1_tune.data.clean.split import Stratum
from dsr1_tune.data.dedup.contamination import Evaluation
from dsr1_tune.data.dedup.languages import LANGUAGES
from dsr1_tune.data.dedup.ngrams import Ints
from dsr1_tune.data.output import answer_of, question_of, turns_of
from dsr1_tune.data.read.files import Source
from dsr1_tune.data.record import DAMAGE, Place
from dsr1_tune.data.rules.pairs import PreferenceStats, pair_counts_as

SAMPLED_ROWS = 2000
NUM_BINS = 30
PAIRS_AT_ONCE = 10_000
STAGES = ("read", "rules", "privacy", "contamination", "duplicates", "judge", "selection")

_OF_MANY_CODES = (Fate.JUDGED, Fate.CONTRADICTED)

CountTokens = Callable[[list[str]], list[int]]


def gather_facts(
    config: CleanRun,
    sources: Sequence[Source],
    outcome: Outcome,
    strata: Sequence[Stratum],
    groups: dict[str, Any],
    judged: dict[str, Any] | None,
    settings: Settings,
    count_tokens: CountTokens | None,
) -> dict[str, Any]:
    """Everything that report.json says; the same for the same input, whatever the number of workers."""
    counts = Counts()
    for block in outcome.spill.blocks:
        counts.add(block.counts)
    late = _late_drops(outcome, counts)
    num_kept = outcome.count(Fate.TRAIN) + outcome.count(Fate.EVAL)
    num_merged = outcome.count(Fate.EXACT) + outcome.count(Fate.NEAR)
    num_dropped = sum(counts.dropped.values()) - num_merged
    assert counts.num_rows == num_kept + num_merged + num_dropped, "rows in = kept + merged + dropped"
    is_kept = outcome.fates <= Fate.EVAL
    return {
        "schema": 1,
        "version": __version__,
        "num_rows": counts.num_rows,
        "num_kept": num_kept,
        "num_merged": num_merged,
        "num_dropped": num_dropped,
        "utilisation": num_kept / counts.num_rows if counts.num_rows else 0.0,
        "stages": _funnel(counts),
        "dropped": ranked(counts.dropped),
        "noted": ranked(counts.noted),
        "mended": ranked(counts.mended),
        "examples": dict(sorted(counts.examples.items())),
        "kinds": _count(np.minimum(outcome.spill.kinds[is_kept], len(KINDS) - 1), [name.lower() for name in KINDS]),
        "opinions": _opinions(outcome, np.flatnonzero(is_kept & (outcome.spill.kinds > 0))),
        "files": [_file(source, config, outcome, late) for source in sources],
        "languages": _count(outcome.spill.languages[is_kept], LANGUAGES),
        "lengths": _lengths(outcome, np.flatnonzero(is_kept), config.base, count_tokens),
        "personal_data": _personal(counts, settings.privacy_action),
        "duplicates": {
            "num_exact": outcome.count(Fate.EXACT),
            "num_near": outcome.count(Fate.NEAR),
            "num_contradictory": counts.dropped["contradictory_answer"],
            "num_opposed": counts.dropped["contradictory_preference"] + counts.dropped["contradictory_label"],
            **groups,
        },
        "contamination": _contamination(config, settings.evaluation, counts),
        "judge": judged,
        "split": {
            "num_train": outcome.count(Fate.TRAIN),
            "num_train_lines": int(outcome.times[outcome.fates == Fate.TRAIN].sum()),
            "num_eval": outcome.count(Fate.EVAL),
            "strata": [{"name": one.name, "num_train": one.num_train, "num_eval": one.num_eval} for one in strata],
        },
        "settings": settings_of(config),
        "seed": config.seed,
    }


def ranked(counts: Counter[str]) -> dict[str, int]:
    """The counts, largest first, equal ones by name: sets and processes bring them in any order."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def settings_of(config: CleanRun) -> dict[str, Any]:
    """The settings on which the outcome depends, as JSON values."""
    return config.model_dump(mode="json", exclude={"out", "workers", "engine"})


def _late_drops(outcome: Outcome, counts: Counts) -> Counter[str]:
    """Add the rows that fell out after the scan, with a few examples of each kind; returns how many by file."""
    by_file: Counter[str] = Counter()
    for fate in Fate:
        rows = np.flatnonzero(outcome.fates == fate)
        if fate in (Fate.TRAIN, Fate.EVAL) or not len(rows):
            continue
        codes: Counter[str] = Counter()
        if fate in _OF_MANY_CODES:
            codes.update(map(outcome.code, rows.tolist()))
        else:
            codes[outcome.code(int(rows[0]))] = len(rows)
        counts.dropped.update(codes)
        counts.stages[outcome.stage(fate)] += len(rows)
        for row in _first_of_each(outcome, rows, fate):
            drop = outcome.drop(row)
            if drop:
                output = outcome.spill.outputs(np.array([row]))[0]
                place = Place(**output["source"])
                add_example(counts.examples, drop.at(place, outcome.stage(fate), None), output)
    for block in outcome.spill.blocks:
        fates = outcome.fates[block.first_row : block.first_row + block.num_rows]
        by_file[block.file] += int(np.count_nonzero(fates > Fate.EVAL))
    return by_file


def _first_of_each(outcome: Outcome, rows: Ints, fate: Fate) -> list[int]:
    """The first few rows of each code."""
    if fate not in _OF_MANY_CODES:
        return list(rows[:3].tolist())
    seen: Counter[str] = Counter()
    found = []
    for row in rows.tolist():
        code = outcome.code(row)
        seen[code] += 1
        if seen[code] <= 3:
            found.append(row)
    return found


def _funnel(counts: Counts) -> list[dict[str, Any]]:
    stages, left = [], counts.num_rows
    for stage in STAGES:
        num_out = left - counts.stages[stage]
        stages.append({"stage": stage, "num_in": left, "num_out": num_out})
        left = num_out
    return stages


def _count(codes: npt.NDArray[np.uint8], names: Sequence[str]) -> dict[str, int]:
    counts = np.bincount(codes, minlength=len(names)).tolist()
    return {name: number for name, number in sorted(zip(names, counts, strict=True), key=lambda x: -x[1]) if number}


def _opinions(outcome: Outcome, rows: Ints) -> dict[str, Any] | None:
    """How far length tells the better answer of the pairs among these rows, and how many answers are good and bad."""
    kinds = outcome.spill.kinds[rows]
    feedback = KINDS.index("Feedback")
    counts = Counter(num_good=int((kinds == feedback).sum()), num_bad=int((kinds == feedback + 1).sum()))
    pairs = rows[kinds == KINDS.index("Preference")]
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        for pair in outcome.spill.outputs(pairs[start : start + PAIRS_AT_ONCE]):
            counts.update(pair_counts_as(pair["chosen"], pair["rejected"]))
    found = PreferenceStats.counted(counts)
    return found.as_json() if found != PreferenceStats() else None


def _file(source: Source, config: CleanRun, outcome: Outcome, late: Counter[str]) -> dict[str, Any]:
    file = str(source.path)
    counts = Counts()
    for block in outcome.spill.blocks:
        if block.file == file:
            counts.add(block.counts)
    here = np.concatenate(
        [outcome.fates[b.first_row : b.first_row + b.num_rows] for b in outcome.spill.blocks if b.file == file]
        or [np.zeros(0, np.uint8)]
    )
    num_merged = int(np.count_nonzero((here == Fate.EXACT) | (here == Fate.NEAR)))
    num_dropped = sum(counts.dropped.values()) + late[file] - num_merged
    return {
        "file": file,
        "layout": source.layout,
        "encoding": source.encoding,
        "format": next(iter(ranked(counts.formats)), ""),
        "formats": ranked(counts.formats),
        "num_rows": counts.num_rows,
        "num_kept": counts.num_rows - num_merged - num_dropped,
        "num_merged": num_merged,
        "num_dropped": num_dropped,
        "weight": config.data.weight(file),
        "is_damaged": any(code in DAMAGE for code in counts.dropped),
    }


def _lengths(outcome: Outcome, rows: Ints, base: str | None, count_tokens: CountTokens | None) -> dict[str, Any]:
    """Histograms of question, answer and conversation; of a sample in tokens, of all rows in characters."""
    if count_tokens is None:
        question, answer = outcome.spill.prints.question_chars[rows], outcome.spill.prints.answer_chars[rows]
        unit, both, num_sampled = "characters", question + answer, len(rows)
    else:
        sample = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SAMPLED_ROWS)).astype(np.int64))]
        outputs = outcome.spill.outputs(sample)
        question = np.array(count_tokens([question_of(output) for output in outputs]), np.int64)
        answer = np.array(count_tokens([answer_of(output) for output in outputs]), np.int64)
        said = ["\n".join(text for _, text in turns_of(output)) for output in outputs]
        unit, both, num_sampled = "tokens", np.array(count_tokens(said), np.int64), len(sample)
    parts = {"question": question, "answer": answer, "conversation": both}
    return {"unit": unit, "tokenizer": base if count_tokens else None, "num_sampled": num_sampled} | {
        name: _histogram(lengths) for name, lengths in parts.items()
    }


def _histogram(lengths: Ints) -> dict[str, Any]:
    if not len(lengths):
        return {"edges": [], "counts": [], "median": 0, "p95": 0, "max": 0}
    # The last hundredth is long and thin; it goes into the last bin.
    top = max(1, int(np.quantile(lengths, 0.99)))
    edges = np.unique(np.linspace(0, top, NUM_BINS + 1).astype(np.int64))
    counts, _ = np.histogram(np.minimum(lengths, top), edges)
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "median": float(np.median(lengths)),
        "p95": float(np.quantile(lengths, 0.95)),
        "max": int(lengths.max()),
    }


def _personal(counts: Counts, action: str) -> dict[str, Any]:
    kinds = {
        kind: {"num_found": number, "num_rows": counts.personal_rows[kind]}
        for kind, number in ranked(counts.personal).items()
    }
    return {"action": action, "kinds": kinds}


def _contamination(config: CleanRun, evaluation: Evaluation | None, counts: Counts) -> dict[str, Any] | None:
    if not evaluation:
        return None
    return {
        "files": [str(file) for file in config.dedup.against],
        "num_questions": len(evaluation.places),
        "num_unreadable": evaluation.num_unreadable,
        "num_rows": counts.dropped["contaminated"],
    }
