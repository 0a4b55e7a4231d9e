"""report.html of `adapt`: the result and time of every stage, with links to the stages' own reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from dsr1_tune.adapt.state import DONE, MISSED, STAGES, State
from dsr1_tune.atomic import atomic_write
from dsr1_tune.models.memory import GIB
from dsr1_tune.report import html
from dsr1_tune.report.catalogue import Catalogue, Language

NAME = "report.html"
TEMPLATE = Path(__file__).with_name("page.html.j2")
TEXTS = Catalogue.beside(__file__)
_LINKS = {
    "plan": ("plan.json",),
    "clean": ("data/report.html", "data/rejected.jsonl"),
    "train": ("run/report.html", "run/manifest.json"),
    "merge": ("merged/lineage.json",),
    "quantize": ("model/lineage.json",),
    "compare": ("model/compare.html", "merged/compare.html"),
    "card": ("model/README.md", "merged/README.md"),
}


def write_report(state: State, language: Literal["auto", "en", "zh"] = "auto") -> Path:
    """Write report.html from adapt.json, whichever stage it has reached."""
    facts = state.read()
    chosen = _language(facts) if language == "auto" else language
    file = state.folder / NAME
    with atomic_write(file) as out:
        out.write(render(state.folder, facts, chosen))
    return file


def _language(facts: Mapping[str, Any]) -> Language:
    """The language that most rows are in."""
    languages = facts.get("stages", {}).get("clean", {}).get("languages") or {}
    return "zh" if next(iter(languages), "") == "zh" else "en"


def render(folder: Path, facts: Mapping[str, Any], language: Language) -> str:
    """The HTML of the page: no script, nothing external, and every value from data or settings escaped."""
    stages, config = facts.get("stages", {}), facts.get("config", {})
    missed = stages.get("compare", {}).get("missed") or []
    is_done = all(stages.get(name, {}).get("status") in (DONE, MISSED) for name in STAGES)
    made = "merged" if config.get("quantize", {}).get("to") == "none" else "model"
    return html.render(
        TEMPLATE,
        TEXTS,
        language,
        status="missed" if missed else "done" if is_done else "open",
        base=stages.get("plan", {}).get("base", ""),
        method=stages.get("plan", {}).get("method", ""),
        to=config.get("quantize", {}).get("to", ""),
        files=[Path(str(file)).name for file in config.get("data", {}).get("files", ())],
        command=f"dsr1-tune chat {folder / made}" if is_done and not missed else f"dsr1-tune adapt --out {folder}",
        missed=missed,
        rows=list(_rows(folder, stages, language)),
        settings=list(html.leaves(config)),
        hashes=list(facts.get("data_sha256", {}).items()),
        version=facts.get("version", ""),
    )


def _rows(folder: Path, stages: Mapping[str, Any], language: Language) -> Iterator[dict[str, Any]]:
    for name in STAGES:
        facts = stages.get(name, {})
        status = facts.get("status", "waiting")
        values = _values(name, facts) if status in (DONE, MISSED) else None
        yield {
            "name": name,
            "state": status,
            "seconds": f"{facts['seconds']:,.1f}" if "seconds" in facts else "",
            "result": TEXTS.say(f"result_{name}", language, **values) if values else "",
            "links": [link for link in _LINKS[name] if (folder / link).is_file()],
        }


def _values(name: str, facts: Mapping[str, Any]) -> dict[str, str] | None:
    """The values of a stage's result line; None where they are not known."""
    try:
        match name:
            case "plan":
                needed, memory = (f"{facts[key] / GIB:.2f}" for key in ("needed", "memory"))
                return {"method": facts["method"], "needed": needed, "memory": memory}
            case "clean":
                return {key: f"{facts[f'num_{key}']:,}" for key in ("rows", "kept", "merged", "dropped")}
            case "train":
                before, after = (f"{facts[key]:.4f}" for key in ("loss_before", "loss_after"))
                return {"before": before, "after": after, "steps": str(facts["num_steps"])}
            case "compare":
                agreement = facts["agreement"]
                agreed = "–" if agreement is None else f"{agreement:.2%}"
                return {"increase": f"{facts['increase']:+.2%}", "agreement": agreed}
            case "card":
                return {"file": facts["file"]}
            case _:
                return {"to": str(facts.get("to", "")), "size": f"{facts['bytes'] / 1e6:,.1f} MB"}
    except (KeyError, TypeError, ValueError):
        return None
