"""The sections of report.json that `data clean` fills: lengths, languages, personal data, strata and so on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from dsr1_tune.config import CleanRun
from dsr1_tune.data.clean.cleaned_rows import CleanedRows, RowStatus
from dsr1_tune.data.clean.scan import ScanSettings
from dsr1_tune.data.dedup.contamination import Evaluation
from dsr1_tune.data.dedup.exact import KINDS
from dsr1_tune.data.dedup.languages import LANGUAGES
from dsr1_tune.data.dedup.ngrams import Ints
from dsr1_tune.data.inspect.stats import CountTokens
from dsr1_tune.data.output import answer_of, question_of, turns_of
from dsr1_tune.data.read.files import Source
from dsr1_tune.data.record import Place
from dsr1_tune.data.report import MAX_EXAMPLES, RowCounts, build_report, ranked
from dsr1_tune.data.rules.pairs import PreferenceStats, pair_counts_as
from dsr1_tune.data.split import Stratum, split_section

SAMPLED_ROWS = 2000
NUM_BINS = 30
PAIRS_AT_ONCE = 10_000

_OF_MANY_CODES = (RowStatus.JUDGED, RowStatus.CONTRADICTED)


def report_of(
    config: CleanRun,
    sources: Sequence[Source],
    cleaned: CleanedRows,
    strata: Sequence[Stratum],
    groups: dict[str, Any],
    judged: dict[str, Any] | None,
    settings: ScanSettings,
    count_tokens: CountTokens | None,
) -> dict[str, Any]:
    """Everything that report.json says; the same for the same input, whatever the number of workers."""
    by_file = _counts_by_file(cleaned)
    files = [
        (
            {
                "file": str(source.path),
                "layout": source.layout,
                "encoding": source.encoding,
                "weight": config.data.weight(str(source.path)),
            },
            by_file.get(str(source.path), RowCounts()),
        )
        for source in sources
    ]
    counts = RowCounts()
    for of_file in by_file.values():
        counts.add(of_file)
    is_kept = cleaned.statuses <= RowStatus.EVAL
    assert counts.num_kept == np.count_nonzero(is_kept), "rows in = kept + merged + dropped"
    return build_report(
        files,
        kinds=_count(np.minimum(cleaned.store.kinds[is_kept], len(KINDS) - 1), [name.lower() for name in KINDS]),
        opinions=_opinions(cleaned, np.flatnonzero(is_kept & (cleaned.store.kinds > 0))),
        languages=_count(cleaned.store.languages[is_kept], LANGUAGES),
        lengths=_lengths(cleaned, np.flatnonzero(is_kept), config.base, count_tokens),
        personal_data=_personal(counts, settings.privacy_action),
        groups=groups,
        contamination=_contamination(config, settings.evaluation, counts),
        judge=judged,
        split=split_section(
            cleaned.count(RowStatus.TRAIN),
            int(cleaned.times[cleaned.statuses == RowStatus.TRAIN].sum()),
            cleaned.count(RowStatus.EVAL),
            strata,
        ),
        settings=settings_of(config),
        seed=config.seed,
    )


def settings_of(config: CleanRun) -> dict[str, Any]:
    """The settings on which the outcome depends, as JSON values."""
    return config.model_dump(mode="json", exclude={"out", "workers", "engine"})


def _counts_by_file(cleaned: CleanedRows) -> dict[str, RowCounts]:
    """What the scans counted, and the rows that fell out later, with a few examples of each kind."""
    by_file: dict[str, RowCounts] = {}
    for block in cleaned.store.blocks:
        by_file.setdefault(block.file, RowCounts()).add(block.counts)
    for block in cleaned.store.blocks:
        statuses = cleaned.statuses[block.first_row : block.first_row + block.num_rows]
        for status in RowStatus:
            rows = block.first_row + np.flatnonzero(statuses == status)
            if status > RowStatus.EVAL and len(rows):
                _count_late(cleaned, status, rows, by_file[block.file])
    return by_file


def _count_late(cleaned: CleanedRows, status: RowStatus, rows: Ints, counts: RowCounts) -> None:
    """Count rows that fell out after the scan, for one reason or, of some statuses, for several."""
    codes: Iterable[str] = map(cleaned.code, rows.tolist())
    if status not in _OF_MANY_CODES:
        codes = repeat(cleaned.code(int(rows[0])), len(rows))
    stage = cleaned.stage(status)
    counts.stages[stage] += len(rows)
    for row, code in zip(rows.tolist(), codes, strict=True):
        counts.dropped[code] += 1
        drop = cleaned.drop(row) if len(counts.examples.get(code, ())) < MAX_EXAMPLES else None
        if drop:
            output = cleaned.store.outputs(np.array([row]))[0]
            drop = drop.at(Place(**output["source"]), stage, None)
            counts.add_example(drop, question_of(output), answer_of(output))


def _count(codes: npt.NDArray[np.uint8], names: Sequence[str]) -> dict[str, int]:
    counts = np.bincount(codes, minlength=len(names)).tolist()
    return {name: number for name, number in sorted(zip(names, counts, strict=True), key=lambda x: -x[1]) if number}


def _opinions(cleaned: CleanedRows, rows: Ints) -> dict[str, Any] | None:
    """How far length tells the better answer of the pairs among these rows, and how many answers are good and bad."""
    kinds = cleaned.store.kinds[rows]
    feedback = KINDS.index("Feedback")
    counts = Counter(num_good=int((kinds == feedback).sum()), num_bad=int((kinds == feedback + 1).sum()))
    pairs = rows[kinds == KINDS.index("Preference")]
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        for pair in cleaned.store.outputs(pairs[start : start + PAIRS_AT_ONCE]):
            counts.update(pair_counts_as(*(text for _, text in turns_of(pair)[-2:])))
    found = PreferenceStats.counted(counts)
    return found.as_json() if found != PreferenceStats() else None


def _lengths(cleaned: CleanedRows, rows: Ints, base: str | None, count_tokens: CountTokens | None) -> dict[str, Any]:
    """Histograms of question, answer and conversation; of a sample in tokens, of all rows in characters."""
    if count_tokens is None:
        question, answer = cleaned.store.prints.question_chars[rows], cleaned.store.prints.answer_chars[rows]
        unit, both, num_sampled = "characters", question + answer, len(rows)
    else:
        sample = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SAMPLED_ROWS)).astype(np.int64))]
        outputs = cleaned.store.outputs(sample)
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


def _personal(counts: RowCounts, action: str) -> dict[str, Any]:
    kinds = {
        kind: {"num_found": number, "num_rows": counts.personal_rows[kind]}
        for kind, number in ranked(counts.personal).items()
    }
    return {"action": action, "kinds": kinds}


def _contamination(config: CleanRun, evaluation: Evaluation | None, counts: RowCounts) -> dict[str, Any] | None:
    if not evaluation:
        return None
    return {
        "files": [str(file) for file in config.dedup.against],
        "num_questions": len(evaluation.places),
        "num_unreadable": evaluation.num_unreadable,
        "num_rows": counts.dropped["contaminated"],
    }
