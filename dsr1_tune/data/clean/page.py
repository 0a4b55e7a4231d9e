"""report.html of cleaned data, made from report.json: one self-contained page."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from dsr1_tune.data.report import MERGED
from dsr1_tune.data.rules.codes import meaning
from dsr1_tune.data.rules.pairs import PreferenceStats
from dsr1_tune.report import html
from dsr1_tune.report.catalogue import Catalogue, Language

TEMPLATE = Path(__file__).with_name("page.html.j2")
TEXTS = Catalogue.beside(__file__)
MAX_EXCERPT_CHARS = 200
MAX_EXAMPLES = 3
MAX_LISTED = 200
MAX_FINDINGS = 12
# A file with a smaller share of kept rows, and a reason with a larger share of all drops, is a finding.
POOR_FILE = 0.5
MAIN_REASON = 0.3
_NUM_TICKS = 4

Facts = Mapping[str, Any]


def render(facts: Facts, language: Language = "en") -> str:
    """The report as one HTML page: no script, no outside font or image, everything from the data escaped.

    Facts that are not there leave a sentence in place of their section.
    """
    findings = list(islice(_findings(facts, language), MAX_FINDINGS))
    return html.render(
        TEMPLATE,
        TEXTS,
        language,
        findings=findings,
        meaning=partial(meaning, language=language),
        excerpt=MAX_EXCERPT_CHARS,
        **_view(facts),
    )


def _view(facts: Facts) -> dict[str, Any]:
    """The values of the template: every name is present, lists are ordered and cut."""
    counts = _named(facts, counts=("num_rows", "num_kept", "num_merged", "num_dropped"))
    num_rows, num_kept = counts["num_rows"], counts["num_kept"]
    files = [_file(file) for file in _items(facts, "files")]
    personal, judge = _section(facts, "personal_data"), _section(facts, "judge")
    contamination, split = _section(facts, "contamination"), _section(facts, "split")
    return {
        **counts,
        "adds_up": num_rows == num_kept + counts["num_merged"] + counts["num_dropped"],
        "utilisation": num_kept / num_rows if num_rows else 0.0,
        "kinds": _ranked(facts, "kinds"),
        "stages": _stages(_items(facts, "stages")),
        "reasons": _reasons(facts, num_rows),
        "files": files[:MAX_LISTED],
        "num_more_files": max(0, len(files) - MAX_LISTED),
        "lengths": _lengths(_section(facts, "lengths")),
        "languages": _shares([pair for pair in _ranked(facts, "languages") if pair[1]]),
        "personal": _personal(personal),
        "duplicates": _duplicates(_section(facts, "duplicates")),
        "contamination": contamination
        and {"files": list(contamination.get("files") or ()), "num_rows": _count(contamination, "num_rows")},
        "judge": judge and {"num_dropped": _count(judge, "num_dropped"), "scores": list(_scores(judge))},
        "split": split and _split(split),
        "noted": _ranked(facts, "noted"),
        "mended": _ranked(facts, "mended"),
        "settings": list(html.leaves(facts.get("settings") or {})),
        "versions": list(html.leaves(facts.get("versions") or {})),
        "seed": facts.get("seed"),
        "version": facts.get("version") or "",
    }


def _findings(facts: Facts, language: Language) -> Iterator[str]:
    text, shown = partial(html.text, TEXTS, language), partial(html.shown, language)
    files = [_file(file) for file in _items(facts, "files")]
    for file in files:
        if file["is_damaged"]:
            yield text("finding_damaged", file=shown(file["file"]))
    personal = _personal(_section(facts, "personal_data"))
    if personal and personal["action"] == "count" and personal["kinds"]:
        found = sum(kind["num_found"] for kind in personal["kinds"])
        yield text("finding_personal", found=html.number(found))
    judge = _section(facts, "judge")
    for score in _scores(judge) if judge else ():
        if score["switched_off"]:
            of = shown(TEXTS.named("language", score["language"], language))
            why = shown(score["switched_off"])
            yield text("finding_switched_off", score=shown(score["name"]), language=of, why=why)
    for kind in ("contradictory", "opposed"):
        if number := _count(_section(facts, "duplicates") or {}, f"num_{kind}"):
            yield text(f"finding_{kind}", rows=html.number(number))
    counts = _section(facts, "opinions") or {}
    opinions = PreferenceStats.counted({name: _count(counts, name) for name in PreferenceStats.__slots__})
    if opinions.length_tells:
        key = "finding_longer" if opinions.longer_share > 0.5 else "finding_shorter"
        share = html.share(language, opinions.length_share)
        yield text(key, share=share, pairs=html.number(opinions.num_pairs))
    if contaminated := _count(_section(facts, "contamination") or {}, "num_rows"):
        yield text("finding_contaminated", rows=html.number(contaminated))
    reasons = _ranked(facts, "dropped")
    num_lost = sum(number for _, number in reasons)
    for code, number in reasons[:1]:
        if number / num_lost >= MAIN_REASON and len(reasons) > 1:
            of_all = html.share(language, number / num_lost)
            yield text("finding_reason", code=shown(code), share=of_all, meaning=meaning(code, language) or code)
    for file in files:
        if len(files) > 1 and file["num_rows"] and file["num_kept"] / file["num_rows"] < POOR_FILE:
            kept = html.share(language, file["num_kept"] / file["num_rows"])
            yield text("finding_file", file=shown(file["file"]), share=kept)
    for file in files:
        if len(file["formats"]) > 1:
            listed = ", ".join(f"{name} ({html.number(number)})" for name, number in file["formats"])
            yield text("finding_formats", file=shown(file["file"]), formats=shown(listed))


def _stages(stages: Sequence[Facts]) -> list[dict[str, Any]]:
    """Each step's bar: what came out, and what it took, as shares of what the first step was given."""
    whole = max((_count(stage, "num_in") for stage in stages), default=0) or 1
    lines = []
    for stage in stages:
        counts = _named(stage, counts=("num_in", "num_out"))
        lost = max(0, counts["num_in"] - counts["num_out"])
        shares = {"out_share": counts["num_out"] / whole, "lost_share": lost / whole}
        lines.append({"name": html.as_text(stage.get("stage")), **counts, "num_lost": lost, **shares})
    return lines


def _reasons(facts: Facts, num_rows: int) -> list[dict[str, Any]]:
    """Reasons by frequency, each with its share of all rows and a few examples."""
    ranked = _ranked(facts, "dropped")
    most = max((number for _, number in ranked), default=1) or 1
    examples = facts.get("examples") or {}
    texts = ("file", "line", "path", "detail", "fix", "question", "answer")
    return [
        {
            "code": code,
            "num_rows": number,
            "share": number / num_rows if num_rows else 0.0,
            "width": number / most,
            "is_merged": code in MERGED,
            "examples": [_named(example, texts) for example in _items(examples, code)[:MAX_EXAMPLES]],
        }
        for code, number in ranked
    ]


def _file(file: Facts) -> dict[str, Any]:
    named = _named(file, ("file", "layout", "encoding", "format"), ("num_rows", "num_kept"))
    others = {"weight": file.get("weight"), "is_damaged": bool(file.get("is_damaged"))}
    return {**named, "formats": _ranked(file, "formats"), **others}


def _lengths(lengths: Facts | None) -> dict[str, Any] | None:
    charts = []
    for name in ("question", "answer", "conversation"):
        of = _section(lengths or {}, name)
        counts = [int(number or 0) for number in (of or {}).get("counts") or ()]
        if of is None or not counts or len(of.get("edges") or ()) != len(counts) + 1:
            continue
        edges = list(of["edges"])
        facts = {key: of.get(key) for key in ("median", "p95", "max")}
        ticks = _ticks(edges)
        if (facts["max"] or 0) > edges[-1]:  # the last bin holds all that is longer
            ticks[-1]["label"] += "+"
        charts.append({"name": name, "bars": _bars(counts), "ticks": ticks, **facts})
    if not lengths or not charts:
        return None
    return {
        "unit": "tokens" if lengths.get("unit") == "tokens" else "characters",
        "tokenizer": lengths.get("tokenizer"),
        "num_sampled": lengths.get("num_sampled"),
        "charts": charts,
    }


def _bars(counts: Sequence[float], most: float = 0) -> list[dict[str, float]]:
    """Bars of equal width; `x`, `width` and `height` are shares of the chart."""
    most = most or max(counts, default=0) or 1
    width = 1 / len(counts)
    return [{"x": number * width, "width": width, "height": count / most} for number, count in enumerate(counts)]


def _ticks(edges: Sequence[float]) -> list[dict[str, Any]]:
    """A few of the edges, with where they stand below the chart; the last one always."""
    num_bins = len(edges) - 1
    step = max(1, round(num_bins / _NUM_TICKS))
    chosen = [number for number in range(0, num_bins, step) if num_bins - number >= step]
    return [{"x": number / num_bins, "label": _short(edges[number])} for number in (*chosen, num_bins)]


def _shares(ranked: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    whole = sum(number for _, number in ranked) or 1
    return [{"name": name, "num_rows": number, "share": number / whole} for name, number in ranked]


def _personal(personal: Facts | None) -> dict[str, Any] | None:
    if personal is None:
        return None
    counted = [
        (_count(of or {}, "num_found"), _count(of or {}, "num_rows"), str(name))
        for name, of in (personal.get("kinds") or {}).items()
    ]
    names = ("num_found", "num_rows", "name")
    kinds = [dict(zip(names, kind, strict=True)) for kind in sorted(counted, reverse=True) if kind[0]]
    action = str(personal.get("action") or "off")
    return {"action": action if action in ("off", "count", "redact", "drop") else "off", "kinds": kinds}


def _duplicates(duplicates: Facts | None) -> dict[str, Any] | None:
    if duplicates is None:
        return None
    counts = _named(duplicates, counts=("num_exact", "num_near", "num_contradictory", "num_groups"))
    groups = _items(duplicates, "largest")
    return {**counts, "largest": [_named(group, ("group", "kept", "text"), ("num_rows",)) for group in groups]}


def _scores(judge: Facts) -> Iterator[dict[str, Any]]:
    """One entry per score and language, with its two histograms and the position of the cut-off."""
    for name, languages in (judge.get("scores") or {}).items():
        for language, of in (languages or {}).items():
            of = of or {}
            histogram = _section(of, "histogram") or {}
            edges = list(histogram.get("edges") or ())
            true, shuffled = list(histogram.get("true") or ()), list(histogram.get("shuffled") or ())
            drawn = len(edges) > 1 and len(true) == len(shuffled) == len(edges) - 1
            # Shares, not counts: there may be more true pairs than shuffled ones.
            tops = [[count / (sum(counts) or 1) for count in counts] for counts in (true, shuffled)]
            most = max((*tops[0], *tops[1]), default=0)
            yield {
                "name": str(name),
                "language": str(language),
                "num_scored": _count(of, "num_scored"),
                "num_unscored": _count(of, "num_unscored"),
                "auc": of.get("auc"),
                "cut_off": of.get("cut_off"),
                "switched_off": of.get("switched_off"),
                "true": _bars(tops[0], most) if drawn else [],
                "shuffled": _bars(tops[1], most) if drawn else [],
                "ticks": _ticks(edges) if drawn else [],
                "cut_off_x": _position(of.get("cut_off"), edges) if drawn else None,
            }


def _position(value: Any, edges: Sequence[float]) -> float | None:
    """The position of a value, from 0 to 1, among bins that are drawn with equal widths."""
    if not isinstance(value, (int, float)):
        return None
    if value <= edges[0]:
        return 0.0
    if value >= edges[-1]:
        return 1.0
    bin_ = bisect_right(edges, value) - 1
    within = (value - edges[bin_]) / (edges[bin_ + 1] - edges[bin_])
    return (bin_ + within) / (len(edges) - 1)


def _split(split: Facts) -> dict[str, Any]:
    counts = ("num_train", "num_eval")
    strata = [_named(stratum, ("name",), counts) for stratum in _items(split, "strata")]
    return {**_named(split, counts=counts), "strata": strata}


def _named(facts: Facts, texts: Sequence[str] = (), counts: Sequence[str] = ()) -> dict[str, Any]:
    """The facts with these names, be they there or not."""
    return {name: html.as_text(facts.get(name)) for name in texts} | {name: _count(facts, name) for name in counts}


def _ranked(facts: Facts, name: str) -> list[tuple[str, int]]:
    """Counted names, the most frequent first."""
    counts = [(str(key), int(number or 0)) for key, number in (facts.get(name) or {}).items()]
    return sorted(counts, key=lambda pair: (-pair[1], pair[0]))


def _items(facts: Facts, name: str) -> list[Facts]:
    return [item for item in facts.get(name) or () if isinstance(item, Mapping)]


def _section(facts: Facts, name: str) -> Facts | None:
    value = facts.get(name)
    return value if isinstance(value, Mapping) else None


def _count(facts: Facts, name: str) -> int:
    return int(facts.get(name) or 0)


def _short(value: float) -> str:
    """An axis label: 1500 → 1.5k."""
    if abs(value) >= 1000:
        return f"{value / 1000:.3g}k" if abs(value) < 1_000_000 else f"{value / 1_000_000:.3g}M"
    return f"{value:.2g}" if abs(value) < 10 else f"{value:.0f}"
