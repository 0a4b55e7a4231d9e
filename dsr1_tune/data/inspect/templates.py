"""A few good rows to begin with, in any accepted format: `dsr1-tune data init`."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsr1_tune.atomic import atomic_write
from dsr1_tune.data.phrase_table import load_yaml
from dsr1_tune.errors import DataError

DOMAINS = ("general", "medical", "legal", "finance", "support")
LANGUAGES = ("en", "zh")

_TEXTS: dict[str, Any] = load_yaml(Path(__file__).with_suffix(".yaml"))


def folder_beside(package: Path) -> Path:
    """The folder of the templates: inside the package in a wheel, beside it in a checkout."""
    return next(filter(Path.is_dir, (package / "data_templates", package.parent / "data_templates")))


_FOLDER = folder_beside(Path(__file__).parents[2])


@dataclass(frozen=True, slots=True)
class Format:
    """An accepted format: what is said about it, and the ending of its files."""

    ending: str
    what: dict[str, str]
    fields: dict[str, dict[str, str]]
    use: str = "sft"


FORMATS = {name: Format(**texts) for name, texts in _TEXTS["formats"].items()}
"""What `--format` knows, by name."""


def init(domain: str, language: str = "en", format: str = "messages", out: Path | None = None) -> list[Path]:
    """Write a template, a README that explains its fields, and settings to clean it with; the paths of all three.

    Raises DataError for an unknown domain, language or format, and where one of the files is already there.
    """
    chosen = _known("format", format, FORMATS)
    _known("domain", domain, {name: name for name in DOMAINS})
    _known("language", language, {name: name for name in LANGUAGES})
    path = out or Path(f"{domain}{chosen.ending}")
    _check_ending(path, format, chosen)
    readme, settings = path.with_suffix(".README.md"), path.with_suffix(".clean.yaml")
    taken = [str(file) for file in (path, readme, settings) if file.exists()]
    if taken:
        raise DataError(f"{', '.join(taken)}: already there", hint="choose another name with --out, or move it away")
    texts = {
        path: template(domain, language, format, path.suffix),
        readme: _readme(domain, language, format, path),
        settings: _settings(domain, language, path),
    }
    for file, text in texts.items():
        with atomic_write(file) as handle:
            handle.write(text)
    return list(texts)


def template(domain: str, language: str, format: str, ending: str = "") -> str:
    """The text of a template file: JSON lines, a JSON array (`.json`) or CSV (`.csv`)."""
    content = load_yaml(_FOLDER / f"{domain}.{language}.yaml")
    rows = list(_rows(format, content))
    ending = ending or FORMATS[format].ending
    if ending == ".csv":
        return _as_csv(rows)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    return "[\n" + ",\n".join(lines) + "\n]\n" if ending == ".json" else "".join(line + "\n" for line in lines)


def _known(what: str, name: str, names: dict[str, Any]) -> Any:
    if name not in names:
        raise DataError(f"there is no {what} {name!r} among the templates", hint=f"choose one of {', '.join(names)}")
    return names[name]


def _check_ending(path: Path, format: str, chosen: Format) -> None:
    endings = (".csv",) if chosen.ending == ".csv" else (".jsonl", ".json")
    if path.suffix not in endings:
        hint = f"end the name in {' or '.join(endings)}; --format csv writes tables"
        raise DataError(f"{path}: {format} templates are not written as {path.suffix or 'a file without ending'}", hint)


def _as_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _rows(format: str, content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if format == "prompts":
        yield from ({"prompt": prompt["question"], "ground_truth": prompt["result"]} for prompt in content["prompts"])
    elif format == "tools":
        yield from _tool_calls(content)
    else:
        for number, item in enumerate(content["items"], 1):
            yield from _rows_of_item(format, item, number, content["system"])


def _rows_of_item(format: str, item: dict[str, Any], number: int, system: str) -> Iterator[dict[str, Any]]:
    asked, answer, then = _asked(item), item["answer"], item["then"]
    talk = [("user", asked), ("assistant", answer), ("user", then["question"]), ("assistant", then["answer"])]
    match format:
        case "question-answer" | "csv":
            yield {"question": asked, "answer": answer}
        case "alpaca":
            yield {"instruction": item["question"], "input": item.get("context", ""), "output": answer}
        case "history":
            row = {"instruction": then["question"], "input": "", "output": then["answer"]}
            yield {**row, "history": [[asked, answer]]}
        case "sharegpt":
            names = {"user": "human", "assistant": "gpt"}
            turns = [{"from": names[role], "value": text} for role, text in talk]
            yield {"system": system, "conversations": turns}
        case "messages":
            yield {"messages": [_message(*turn) for turn in [("system", system), *talk]]}
        case "firefly":
            said = [text for _, text in talk]
            pairs = [{"human": said[at], "assistant": said[at + 1]} for at in (0, 2)]
            yield {"conversation_id": number, "conversation": pairs}
        case "reasoning":
            thought = f"<think>\n{item['reasoning']}\n</think>\n\n{answer}"
            yield {"messages": [_message("user", asked), _message("assistant", thought)]}
        case "preference":
            yield {"prompt": asked, "chosen": answer, "rejected": item["worse"]}
        case "feedback":
            yield {"prompt": asked, "completion": answer, "label": True}
            yield {"prompt": asked, "completion": item["worse"], "label": False}
        case _:
            raise AssertionError(format)


def _tool_calls(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    tool = content["tool"]
    parameters = {"type": "object", "properties": tool["arguments"], "required": list(tool["arguments"])}
    function = {"name": tool["name"], "description": tool["description"], "parameters": parameters}
    for call in content["calls"]:
        arguments = json.dumps(call["arguments"], ensure_ascii=False)
        called = {"type": "function", "function": {"name": tool["name"], "arguments": arguments}}
        messages = [
            _message("user", call["question"]),
            {"role": "assistant", "content": "", "tool_calls": [called]},
            _message("tool", json.dumps(call["result"], ensure_ascii=False)),
            _message("assistant", call["answer"]),
        ]
        yield {"messages": messages, "tools": [{"type": "function", "function": function}]}


def _asked(item: dict[str, Any]) -> str:
    """The question, with the text that it is about."""
    return "\n".join(filter(None, (item["question"], item.get("context"))))


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _readme(domain: str, language: str, format: str, path: Path) -> str:
    chosen = FORMATS[format]
    clean = _clean_folder(path)
    fields = "\n".join(f"| `{name}` | {said[language]} |" for name, said in chosen.fields.items())
    return _TEXTS["readme"][language].format(
        name=path.name,
        what=chosen.what[language],
        num_rows=template(domain, language, format, ".jsonl").count("\n"),
        fields=fields,
        layout=_TEXTS["layouts"][path.suffix][language],
        file=shlex.quote(str(path)),
        settings=shlex.quote(str(path.with_suffix(".clean.yaml"))),
        clean=clean,
        use=_TEXTS["uses"][chosen.use][language].format(clean=shlex.quote(str(clean))),
        advice=_TEXTS["advice"][domain][language],
    )


def _settings(domain: str, language: str, path: Path) -> str:
    return _TEXTS["settings"][language].format(
        settings=shlex.quote(str(path.with_suffix(".clean.yaml"))),
        file=json.dumps(str(path), ensure_ascii=False),
        domain=domain,
        clean=json.dumps(str(_clean_folder(path)), ensure_ascii=False),
    )


def _clean_folder(path: Path) -> Path:
    return Path("clean") / path.stem
