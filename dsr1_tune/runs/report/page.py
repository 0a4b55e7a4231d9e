"""report.html of a run, finished or not, from its folder alone: results, alarms, curves, data; a function a section."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Literal

from dsr1_tune.atomic import atomic_write
from dsr1_tune.data.rules.codes import meaning
from dsr1_tune.moe.monitor import Routing
from dsr1_tune.report import html
from dsr1_tune.report.catalogue import Language
from dsr1_tune.report.charts import HEIGHT, WIDTH, Line, chart, smoothed
from dsr1_tune.runs.folder import FINISHED, RunFolder
from dsr1_tune.runs.report.align_sections import CURVES, LOSS_OF_ITS_OWN, TEXTS, Facts, curves, outcome, points, section
from dsr1_tune.runs.report.expert_map import before_and_after
from dsr1_tune.runs.trainer.callbacks import read_log
from dsr1_tune.runs.watch.alarms import TEXTS as ALARM_TEXTS
from dsr1_tune.runs.watch.alarms import advice_in, in_words
from dsr1_tune.runs.watch.expert_tables import ExpertTables

FILE_NAME = "report.html"
PICTURE_NAME = "experts.png"
CALIBRATION_NAME = "calibration.png"
TEMPLATE = Path(__file__).with_name("page.html.j2")
MAX_ANSWER_CHARS = 2000


def write_report(folder: RunFolder, language: Literal["auto", "en", "zh"] = "auto") -> Path:
    """Draw experts.png and write report.html from the files of a run folder; the page says which parts are missing."""
    before_and_after(ExpertTables.read(folder.path), folder.path / PICTURE_NAME)
    file = folder.path / FILE_NAME
    with atomic_write(file) as out:
        out.write(render(_RunFacts.of(folder), language_of(folder) if language == "auto" else language))
    return file


@dataclass(frozen=True)
class _RunFacts:
    """The contents of a run folder's files; empty where a file is missing or damaged."""

    path: Path
    manifest: Facts
    evaluation: Facts
    data: Facts
    log: list[dict[str, Any]]
    tables: ExpertTables

    @classmethod
    def of(cls, folder: RunFolder) -> _RunFacts:
        manifest, evaluation, data = map(_read, (folder.manifest_file, folder.eval_file, folder.data / "report.json"))
        return cls(folder.path, manifest, evaluation, data, read_log(folder), ExpertTables.read(folder.path))


def _read(file: Path) -> Facts:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _picture(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode() if file.is_file() else ""


def language_of(folder: RunFolder) -> Language:
    """The language that most records are in, judged by the characters of the first 200."""
    votes = 0
    try:
        with (folder.data / "train.jsonl").open(encoding="utf-8") as lines:
            for line in islice(lines, 200):
                text = " ".join(_contents(json.loads(line)))
                num_han, num_kana = len(re.findall(r"[\u4e00-\u9fff]", text)), len(re.findall(r"[\u3040-\u30ff]", text))
                is_chinese = num_han > len(re.findall(r"[A-Za-z]+", text)) and num_kana <= 0.1 * num_han
                votes += 1 if is_chinese else -1
    except (OSError, ValueError, AttributeError):
        return "en"
    return "zh" if votes > 0 else "en"


def _contents(row: Any) -> Iterator[str]:
    """Every message's content in a row of any kind: a conversation, a preference pair or a prompt."""
    if isinstance(row, Mapping):
        yield str(row.get("content", ""))
    for value in row.values() if isinstance(row, Mapping) else row if isinstance(row, list) else ():
        yield from _contents(value)


def render(run: _RunFacts, language: Language = "en") -> str:
    """The HTML of the page: no script, no external font or image, and every value from data or settings escaped."""
    return html.render(
        TEMPLATE,
        TEXTS,
        language,
        meaning=partial(meaning, language=language),
        alarm_kind=lambda what: ALARM_TEXTS.named("kind", what, language),
        advice=lambda alarm: in_words(advice_in(alarm), language),
        canvas=(WIDTH, HEIGHT),
        max_answer_chars=MAX_ANSWER_CHARS,
        **_view(run, language),
    )


def _view(run: _RunFacts, language: Language) -> dict[str, Any]:
    manifest = run.manifest
    metrics = section(manifest, "metrics")
    config = section(manifest, "config")
    status = str(manifest.get("status", "running"))
    command = str(manifest.get("command", ""))
    return {
        "status": status,
        "is_finished": status == FINISHED,
        "error": manifest.get("error") or "",
        "command": command,
        "folder": str(run.path),
        "base": str(section(manifest, "base").get("name", "")),
        "files": [Path(str(file)).name for file in section(config, "data").get("files", ())],
        "outcome": outcome(command, run.evaluation, metrics, language),
        "gain": _gain(run.evaluation),
        "are_held_out": "none are held out" not in str(run.evaluation.get("on", "")),
        "size": _size(metrics.get("coverage")),
        "pace": _pace(run, metrics),
        "alarms": [alarm for alarm in manifest.get("alarms", ()) if isinstance(alarm, Mapping)],
        "rollback": section(manifest, "rollback"),
        "data": _data(run),
        "coverage": _coverage(metrics.get("coverage")),
        "charts": [*curves(command, run.log, run.evaluation, language), *_charts(run, language)],
        "experts": _experts(run.tables),
        "picture": _picture(run.path / PICTURE_NAME),
        "calibration": _picture(run.path / CALIBRATION_NAME),
        "samples": list(_samples(run.evaluation)),
        "seconds": list(section(manifest, "seconds").items()),
        "machine": list(html.leaves(section(manifest, "machine"))),
        "settings": list(html.leaves(config)),
        "versions": list(html.leaves(section(manifest, "versions"))),
        "hashes": list(section(manifest, "data_sha256").items()),
        "version": str(section(manifest, "versions").get("dsr1-tune", "")),
    }


def _gain(evaluation: Facts) -> dict[str, Any] | None:
    """The held-out loss before and after; None until both are measured."""
    before, after = section(evaluation, "before"), section(evaluation, "after")
    losses = before.get("loss"), after.get("loss")
    if not all(isinstance(loss, (int, float)) and math.isfinite(loss) and loss > 0 for loss in losses):
        return None
    return {
        "before": before["loss"],
        "after": after["loss"],
        "change": after["loss"] / before["loss"] - 1,
        "was": _words(before["loss"]),
        "now": _words(after["loss"]),
        "num_records": after.get("num_records", 0),
    }


def _words(loss: float) -> str:
    """The perplexity of a loss, rounded to be read."""
    perplexity = math.exp(min(loss, 50.0))
    return f"{perplexity:,.0f}" if perplexity >= 100 else f"{perplexity:.3g}"


def _size(coverage: Any) -> dict[str, Any] | None:
    lines = [line for line in coverage or () if isinstance(line, Mapping)]
    whole, trained = sum(line["num_base"] for line in lines), sum(line["num_trained"] for line in lines)
    return {"whole": whole, "trained": trained, "share": trained / whole} if whole else None


def _pace(run: _RunFacts, metrics: Facts) -> dict[str, Any] | None:
    if not run.log:
        return None
    last = run.log[-1]
    seconds, tokens = float(last.get("seconds", 0.0)), float(last.get("num_tokens", 0.0))
    return {"steps": last["step"], "seconds": seconds, "speed": tokens / seconds if seconds else 0.0}


def _data(run: _RunFacts) -> dict[str, Any] | None:
    if not run.data:
        return None
    reasons = {str(code): int(number) for code, number in section(run.data, "dropped").items()}
    files = [file for file in run.data.get("files", ()) if isinstance(file, Mapping)]
    return {
        "num_rows": run.data.get("num_rows", 0),
        "num_kept": run.data.get("num_kept", 0),
        "num_dropped": _num_lost(run.data),
        "num_train": _num_lines(run.path / "data" / "train.jsonl"),
        "num_eval": _num_lines(run.path / "data" / "eval.jsonl"),
        "reasons": sorted(reasons.items(), key=lambda pair: -pair[1]),
        "files": [
            {name: file.get(name, "") for name in ("file", "num_rows", "num_kept")} | {"num_dropped": _num_lost(file)}
            for file in files
        ],
    }


def _num_lost(counts: Facts) -> int:
    """Rows that fell out, with those that repeat another row."""
    return int(counts.get("num_dropped", 0)) + int(counts.get("num_merged", 0))


def _num_lines(file: Path) -> int | None:
    try:
        with file.open("rb") as lines:
            return sum(1 for _ in lines)
    except OSError:
        return None


def _coverage(coverage: Any) -> dict[str, Any] | None:
    lines = [dict(line) for line in coverage or () if isinstance(line, Mapping)]
    if not lines:
        return None
    for line in lines:
        # Full fine-tuning trains the weights themselves, so no adapter covers them.
        reached = max(line["num_adapted"], min(line["num_trained"], line["num_base"]))
        line["share"] = reached / line["num_base"] if line["num_base"] else 0.0
    names = ("num_base", "num_trained", "num_frozen")
    return {"lines": lines, "together": {name: sum(line[name] for line in lines) for name in names}}


def _charts(run: _RunFacts, language: Language) -> Iterator[dict[str, Any]]:
    text = partial(TEXTS.text, language=language)
    losses = points(run.log, "loss")
    held_out = points(run.log, "eval_loss")
    before, after = section(run.evaluation, "before").get("loss"), section(run.evaluation, "after").get("loss")
    if run.manifest.get("command") in LOSS_OF_ITS_OWN:
        before = after = None
    if losses and isinstance(before, (int, float)):
        held_out = [(0.0, float(before)), *held_out]
    if losses and isinstance(after, (int, float)):
        held_out = [point for point in held_out if point[0] < losses[-1][0]] + [(losses[-1][0], float(after))]
    of_loss = [
        Line(text("line_loss"), "faint", losses),
        Line(text("line_smooth"), "c0", smoothed(losses)),
        Line(text("line_held_out"), "dots", held_out),
    ]
    groups = sorted({name for line in run.log for name in line if name.startswith("grad_norm/")})
    gradients = [
        Line(TEXTS.named("part", group.removeprefix("grad_norm/"), language), f"c{n % 6}", points(run.log, group))
        for n, group in enumerate(groups)
    ]
    drawn = [chart(text("chart_loss"), of_loss), chart(text("chart_gradients"), gradients, is_log=True)]
    yield from (one for one in (*drawn, *(curve.draw(run.log, language) for curve in CURVES["run"])) if one)


def _experts(tables: ExpertTables) -> dict[str, Any] | None:
    """Routing health before, during and after training, one row per measure; None without routed experts."""
    stages = [("before", tables.before), ("while_training", tables.training), ("after", tables.after)]
    known = [(name, routing) for name, routing in stages if routing is not None and routing.layers]
    if not known:
        return None
    columns = [_health(routing, tables.before) for _, routing in known]
    one = (tables.before or known[0][1]) if tables.before is None or tables.before.layers else known[0][1]
    return {
        "stages": [name for name, _ in known],
        "rows": [(measure, [column[measure] for column in columns]) for measure in columns[0]],
        "num_layers": len(one.layers),
        "num_experts": one.num_experts,
        "num_rows": int(one.rows_L.max()),
    }


def _health(routing: Routing, base: Routing | None) -> dict[str, str]:
    drift_L = None if base is None or base is routing else routing.drift_L(base)
    return {
        "entropy_mean": f"{float(routing.entropy_L.mean()):.3f}",
        "entropy_min": f"{float(routing.entropy_L.min()):.3f}",
        "violation_max": f"{float(routing.max_violation_L.max()):.2f}",
        "num_dead": f"{int(routing.dead_LE.sum()):,} / {routing.dead_LE.numel():,}",
        "drift_mean": "–" if drift_L is None else f"{float(drift_L.mean()):.3f}",
        "drift_max": "–" if drift_L is None else f"{float(drift_L.max()):.3f}",
    }


def _samples(evaluation: Facts) -> Iterator[dict[str, Any]]:
    before = [sample for sample in evaluation.get("answers_before", ()) if isinstance(sample, Mapping)]
    after = [sample for sample in evaluation.get("answers_after", ()) if isinstance(sample, Mapping)]
    for old, new in zip_longest(before, after[: len(before)]):
        said = {name: old.get(name, "") for name in ("question", "reference")}
        yield said | {"before": old.get("answer", ""), "after": None if new is None else new.get("answer", "")}
