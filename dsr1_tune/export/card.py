"""`card`: the model card, README.md, of an exported model, from its lineage.json alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from dsr1_tune.atomic import atomic_write
from dsr1_tune.config.export import Quantize
from dsr1_tune.errors import TuneError
from dsr1_tune.export import check_serve, lineage
from dsr1_tune.export.engine_table import engines
from dsr1_tune.export.formats.registry import formats
from dsr1_tune.export.lineage import Lineage
from dsr1_tune.models import artifact, embedded
from dsr1_tune.report import html
from dsr1_tune.report.catalogue import Catalogue, Language

FILE = "README.md"
TEMPLATE = Path(__file__).with_name("card.md.j2")
TEXTS = Catalogue.beside(__file__, "card_texts.yaml")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_SHOWN = (
    *("adapter.rank", "adapter.alpha", "adapter.groups", "adapter.rslora", "adapter.dora", "train.only", "esft.share"),
    *("router.mode", "schedule.learning_rate", "schedule.epochs", "schedule.max_steps", "schedule.batch_size"),
    *("schedule.gradient_accumulation_steps", "schedule.max_tokens", "schedule.optimizer", "schedule.seed"),
)


def run(folder: Path, language: Literal["auto", "en", "zh"] = "auto") -> Path:
    """Write the card of an exported model, and note it in lineage.json; `auto` takes the language of the data.

    Raises RunError where there is no lineage.json.
    """
    known = lineage.known(folder)
    chosen = _language(known) if language == "auto" else language
    with atomic_write(folder / FILE) as file:
        file.write(render(folder, known, chosen))
    lineage.refresh(folder, [FILE])
    return folder / FILE


def _language(known: Lineage) -> Language:
    data = known.stage("data")
    return "zh" if data and data.facts.get("language") == "zh" else "en"


def render(folder: Path, known: Lineage, language: Language) -> str:
    """The card's text. What is not known is left out."""
    commands, refusals = _engines(folder, language)
    return html.render(
        TEMPLATE,
        TEXTS,
        language,
        cell=_cell,
        front_matter=_front_matter(known, folder),
        title=_title(folder, known),
        summary=list(_summary(known, language)),
        data=_data(known),
        training=_training(known, language),
        evaluation=_evaluation(known, language),
        merge=list(_merge(known, language)),
        quantization=list(_quantization(known, language)),
        comparison=_comparison(folder, language),
        commands=commands,
        refusals=refusals,
        limits=list(_limits(folder, known, language)),
        versions=_versions(known),
    )


def _cell(text: object) -> str:
    """Text escaped to stay in one cell of a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def _facts(known: Lineage, stage: str) -> Mapping[str, Any]:
    found = known.stage(stage)
    return found.facts if found else {}


def _title(folder: Path, known: Lineage) -> str:
    """The run's name and the format; the folder's where there is no run."""
    run, to = _facts(known, "train").get("run"), _facts(known, "quantize").get("to")
    return " ".join(filter(None, (Path(str(run)).name, to))) if run else folder.absolute().name


def _base(known: Lineage) -> tuple[str, bool]:
    """The name of the base model, and whether it is a repository on the Hub."""
    base = _facts(known, "train").get("base") or {}
    name = str(base.get("name") or _facts(known, "quantize").get("source") or "")
    if name == embedded.NAME:
        return embedded.HUB_ID, True
    if _HUB_ID.fullmatch(name) and not Path(name).exists():
        return name, True
    return Path(name).name, False


def _front_matter(known: Lineage, folder: Path) -> str:
    """The YAML metadata that the Hub reads."""
    name, is_on_hub = _base(known)
    train, quantized = _facts(known, "train"), _facts(known, "quantize")
    data_language = _facts(known, "data").get("language")
    tree: dict[str, Any] = {
        "base_model": name if is_on_hub else None,
        "base_model_relation": ("quantized" if quantized else "finetune") if is_on_hub else None,
        "license": (train.get("base") or {}).get("license"),
        "language": [data_language] if data_language else None,
        "library_name": "gguf" if any(folder.glob("*.gguf")) else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["dsr1-tune", "mixture-of-experts", *filter(None, (train.get("command"), quantized.get("to")))],
    }
    kept = {key: value for key, value in tree.items() if value}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def _summary(known: Lineage, language: Language) -> Iterator[str]:
    train, quantized = _facts(known, "train"), _facts(known, "quantize")
    if train:
        version = (train.get("versions") or {}).get("dsr1-tune", "")
        yield TEXTS.say("made_by", language, base=_base(known)[0], command=train.get("command"), version=version)
    else:
        yield TEXTS.say("made_by_none", language)
    if (train.get("base") or {}).get("name") == embedded.NAME:
        yield TEXTS.say("embedded", language)
    if {"bytes_before", "bytes_after"} <= quantized.keys():
        before, after = quantized["bytes_before"], quantized["bytes_after"]
        sizes = {"before": _size(before), "after": _size(after), "share": f"{after / before:.0%}"}
        yield TEXTS.say("quantized_to", language, to=_format(quantized), **sizes)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.1f} MiB"


def _format(quantized: Mapping[str, Any]) -> str:
    settings, to = quantized.get("settings") or {}, str(quantized["to"])
    form = formats().get(to)
    given = {name: value for name, value in settings.items() if name in Quantize.model_fields}
    detail = form.variant(Quantize.model_validate(given)) if form else ""
    return f"{to} ({detail})" if detail else to


def _data(known: Lineage) -> dict[str, Any] | None:
    """The data files by name, without their private folders, and the row counts."""
    facts = _facts(known, "data")
    if not facts:
        return None
    kept = facts.get("kept") or {}
    counts = {"rows": facts.get("num_rows"), "kept": facts.get("num_kept"), "dropped": facts.get("num_dropped")}
    if counts["dropped"] is not None:
        counts["dropped"] += facts.get("num_merged", 0)
    counts |= {name: (kept.get(name) or {}).get("num_records") for name in ("train", "held_out")}
    is_whole = all(number is not None for number in counts.values())
    return {
        "files": [(Path(name).name, file.get("sha256", "")) for name, file in (facts.get("files") or {}).items()],
        "counts": {name: f"{number:,}" for name, number in counts.items()} if is_whole else None,
    }


def _training(known: Lineage, language: Language) -> dict[str, Any] | None:
    facts = _facts(known, "train")
    if not facts:
        return None
    config, metrics = facts.get("config") or {}, facts.get("metrics") or {}
    settings = [(TEXTS.say("command", language), f"dsr1-tune {facts.get('command')}")]
    for name in _SHOWN:
        section, _, key = name.partition(".")
        value = (config.get(section) or {}).get(key)
        if value:
            settings.append((name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    settings += [(TEXTS.say("steps", language), f"{metrics['num_steps']:,}")] if "num_steps" in metrics else []
    revision = (facts.get("base") or {}).get("revision")
    settings += [(TEXTS.say("base", language), _base(known)[0] + (f" @ {revision}" if revision else ""))]
    parts = [
        (
            TEXTS.named("part", line["part"], language),
            f"{line['num_adapted'] / line['num_base']:.0%}",
            f"{line['num_trained']:,}",
        )
        for line in metrics.get("coverage") or ()
        if line["num_base"]
    ]
    return {"settings": settings, "parts": parts}


def _evaluation(known: Lineage, language: Language) -> dict[str, Any] | None:
    evaluation = _facts(known, "train").get("evaluation") or {}
    if not {"before", "after"} <= evaluation.keys():
        return None
    before, after = evaluation["before"], evaluation["after"]
    lines = [
        (TEXTS.say(name, language), f"{before[name]:.4f}", f"{after[name]:.4f}")
        for name in ("loss", "perplexity")
        if name in before and name in after
    ]
    held_out = (_facts(known, "data").get("kept") or {}).get("held_out") or {}
    key = "measured_on" if held_out.get("num_records") else "measured_on_train"
    counts = {"records": after.get("num_records"), "tokens": after.get("num_tokens")}
    is_known = all(number is not None for number in counts.values())
    on = TEXTS.say(key, language, **{name: f"{number:,}" for name, number in counts.items()}) if is_known else None
    return {"lines": lines, "on": on}


def _merge(known: Lineage, language: Language) -> Iterator[str]:
    certificate = _facts(known, "merge").get("certificate")
    if not certificate:
        return
    tensors, outputs, loss = certificate["tensors"], certificate["outputs"], certificate["loss"]
    counts = {"total": "num_tensors", "changed": "num_changed", "equal": "num_equal"}
    yield TEXTS.say("merge_tensors", language, **{name: f"{tensors[key]:,}" for name, key in counts.items()})
    # Nothing is rounded in float32; earlier versions did not say.
    if (kept := tensors.get("kept_by_part")) and certificate.get("dtype") != "F32":
        shares = ", ".join(f"{TEXTS.named('part', part, language)} {share:.1%}" for part, share in kept.items())
        yield TEXTS.say("merge_kept", language, dtype=certificate["dtype"], shares=shares)
    yield TEXTS.say(
        "merge_outputs",
        language,
        tokens=f"{outputs['num_tokens']:,}",
        difference=f"{outputs['max_difference']:.1e}",
        bound=f"{outputs['bound']:.1e}",
        agreement=f"{outputs['top1_agreement']:.2%}",
    )
    if loss:
        yield TEXTS.say("merge_loss", language, merged=f"{loss['merged']:.4f}", run=f"{loss['run']:.4f}")
        if (before := loss.get("before")) is not None and before > loss["run"]:
            kept_gain = (before - loss["merged"]) / (before - loss["run"])
            yield TEXTS.say("merge_gain", language, before=f"{before:.4f}", share=f"{kept_gain:.1%}")


def _quantization(known: Lineage, language: Language) -> Iterator[tuple[str, ...]]:
    for group in _facts(known, "quantize").get("groups") or ():
        # An earlier version spelled it otherwise in lineage.json.
        is_quantized = int(group.get("num_quantized", group.get("num_quantised", 0)))
        done = (f"{group['bits']:.2f}", f"{group['relative_error']:.2%}") if is_quantized else ("16/32", "–")
        yield TEXTS.named("part", group["part"], language), f"{group['num_tensors']:,}", f"{group['share']:.0%}", *done


def _comparison(folder: Path, language: Language) -> dict[str, Any] | None:
    """What `compare` found, if its compare.json is in the folder."""
    try:
        comparison = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
        lines = [
            (
                TEXTS.say(name, language),
                f"{found['loss_a']['value']:.4f}",
                f"{found['loss_b']['value']:.4f}",
                _interval(found["increase"], lambda number: f"{number:+.2%}"),
                _interval(found["agreement"], lambda number: f"{number:.2%}") if found["agreement"] else "–",
            )
            for name in ("domain", "general")
            if (found := comparison.get(name))
        ]
        names = {side: Path(str(comparison[side]["name"])).name for side in ("a", "b")}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return {"lines": lines, "note": TEXTS.say("interval", language, **names)} if lines else None


def _interval(estimate: Mapping[str, float], shown: Callable[[float], str]) -> str:
    return f"{shown(estimate['value'])} ({shown(estimate['low'])} … {shown(estimate['high'])})"


def _engines(folder: Path, language: Language) -> tuple[list[str], list[str]]:
    """The commands that serve it, and why other engines do not; the folder goes by its name alone."""
    commands: list[str] = [f"dsr1-tune chat {folder.name}"]
    refusals: list[str] = []
    try:
        found = artifact.of(folder)
    except TuneError:  # a folder without weights has a card all the same
        return commands, refusals
    for engine in engines():
        verdict = check_serve.run(found, engine)
        if verdict.loads:
            own = str(verdict.command).replace(str(folder), folder.name)
            commands.append(f"{own}  # {verdict.title} {verdict.version}")
        else:
            why = "; ".join(verdict.problems or verdict.unknown)
            said = "does_not_load" if verdict.problems else "not_known"
            refusals.append(TEXTS.say(said, language, title=verdict.title, version=verdict.version, why=why))
    return commands, refusals


def _limits(folder: Path, known: Lineage, language: Language) -> Iterator[str]:
    kept = _facts(known, "data").get("kept") or {}
    if number := (kept.get("train") or {}).get("num_records"):
        yield TEXTS.say("limit_data", language, train=f"{number:,}")
        if not (kept.get("held_out") or {}).get("num_records"):
            yield TEXTS.say("limit_no_held_out", language)
    if known.stage("quantize") and not (folder / "compare.json").is_file():
        yield TEXTS.say("limit_not_compared", language)
    yield TEXTS.say("limit_base", language)


def _versions(known: Lineage) -> str:
    """The versions of the libraries that the numbers depend on."""
    versions = _facts(known, "train").get("versions") or _facts(known, "quantize").get("versions") or {}
    names = ("dsr1-tune", "torch", "transformers", "peft", "trl", "bitsandbytes", "python")
    return ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
