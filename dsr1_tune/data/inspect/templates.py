"""A few good rows to begin with, in any accepted format: `dsr1-tune data init`."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Callable, Iterator
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
    """An accepted format: how its rows are made of a domain's content, and what is said about it."""

    rows: Callable[[dict[str, Any]], Iterator[dict[str, Any]]]
    ending: str
    what: dict[str, str]
    fields: dict[str, dict[str, str]]
    use: str = "sft"


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
    rows = list(FORMATS[format].rows(content))
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


def _questions_and_answers(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for item in content["items"]:
        yield {"question": _asked(item), "answer": item["answer"]}


def _alpaca(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for item in content["items"]:
        yield {"instruction": item["question"], "input": item.get("context", ""), "output": item["answer"]}


def _history(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for item in content["items"]:
        then = item["then"]
        before = [[_asked(item), item["answer"]]]
        yield {"instruction": then["question"], "input": "", "output": then["answer"], "history": before}


def _sharegpt(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    names = {"user": "human", "assistant": "gpt"}
    for item in content["items"]:
        turns = [{"from": names[role], "value": text} for role, text in _talk(item)]
        yield {"system": content["system"], "conversations": turns}


def _messages(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for item in content["items"]:
        yield {"messages": [_message("system", content["system"]), *(_message(*turn) for turn in _talk(item))]}


def _firefly(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for number, item in enumerate(content["items"], 1):
        then = item["then"]
        pairs = [
            {"human": _asked(item), "assistant": item["answer"]},
            {"human": then["question"], "assistant": then["answer"]},
        ]
        yield {"conversation_id": number, "conversation": pairs}


def _reasoning(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for item in content["items"]:
        answer = f"<think>\n{item['reasoning']}\n</think>\n\n{item['answer']}"
        yield {"messages": [_message("user", _asked(item)), _message("assistant", answer)]}


def _tools(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
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


def _preferences(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for item in content["items"]:
        yield {"prompt": _asked(item), "chosen": item["answer"], "rejected": item["worse"]}


def _feedback(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for item in content["items"]:
        yield {"prompt": _asked(item), "completion": item["answer"], "label": True}
        yield {"prompt": _asked(item), "completion": item["worse"], "label": False}


def _prompts(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for prompt in content["prompts"]:
        yield {"prompt": prompt["question"], "ground_truth": prompt["result"]}


def _asked(item: dict[str, Any]) -> str:
    """The question, with the text that it is about."""
    return "\n".join(filter(None, (item["question"], item.get("context"))))


def _talk(item: dict[str, Any]) -> list[tuple[str, str]]:
    then = item["then"]
    return [
        ("user", _asked(item)),
        ("assistant", item["answer"]),
        ("user", then["question"]),
        ("assistant", then["answer"]),
    ]


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


_ROWS: dict[str, Callable[[dict[str, Any]], Iterator[dict[str, Any]]]] = {
    "messages": _messages,
    "question-answer": _questions_and_answers,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "tools": _tools,
    "reasoning": _reasoning,
    "history": _history,
    "firefly": _firefly,
    "csv": _questions_and_answers,
    "preference": _preferences,
    "feedback": _feedback,
    "prompts": _prompts,
}
FORMATS = {name: Format(rows, **_TEXTS["formats"][name]) for name, rows in _ROWS.items()}
"""What `--format` knows, by name."""


def _readme(domain: str, language: str, format: str, path: Path) -> str:
    chosen = FORMATS[format]
    clean = _clean_folder(path)
    fields = "\n".join(f"| `{name}` | {said[language]} |" for name, said in chosen.fields.items())
    return _TEXTS["readme"][language].format(
        name=path.name,
        what=chosen.what[language],
        num_rows=_num_rows(domain, language, format),
        fields=fields,
        layout=_TEXTS["layouts"][path.suffix][language],
        file=shlex.quote(str(path)),
        settings=shlex.quote(str(path.with_suffix(".clean.yaml"))),
        clean=clean,
        use=_TEXTS["uses"][chosen.use][language].format(clean=shlex.quote(str(clean))),
        advice=_TEXTS["advice"][domain][language],
    )


def _num_rows(domain: str, language: str, format: str) -> int:
    return template(domain, language, format, ".jsonl").count("\n")


def _settings(domain: str, language: str, path: Path) -> str:
    return _TEXTS["settings"][language].format(
        settings=shlex.quote(str(path.with_suffix(".clean.yaml"))),
        file=json.dumps(str(path), ensure_ascii=False),
        domain=domain,
        clean=json.dumps(str(_clean_folder(path)), ensure_ascii=False),
    )


def _clean_folder(path: Path) -> Path:
    return Path("clean") / path.stem
