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

import yaml

from dsr1_tune.atomic import atomic_write
from dsr1_tune.errors import DataError

DOMAINS = ("general", "medical", "legal", "finance", "support")
LANGUAGES = ("en", "zh")

_PACKAGE = Path(__file__).parents[2]
# In a wheel they lie inside the package, in a checkout beside it.
_FOLDER = next(filter(Path.is_dir, (_PACKAGE / "data_templates", _PACKAGE.parent / "data_templates")))


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
    content = yaml.safe_load((_FOLDER / f"{domain}.{language}.yaml").read_text(encoding="utf-8"))
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
        thought = f"<think>\n{item['thoughts']}\n</think>\n\n{item['answer']}"
        yield {"messages": [_message("user", _asked(item)), _message("assistant", thought)]}


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


_QUESTION = {"en": "what the user asks", "zh": "用户的问题"}
_ANSWER = {"en": "the answer to learn", "zh": "要学习的回答"}
_SYSTEM = {"en": "how the assistant shall behave; may be left out", "zh": "对助手的要求，可省略"}
_TURNS = {
    "en": "the turns: user and assistant alternate, the assistant comes last",
    "zh": "各轮对话：用户与助手交替，最后一轮是助手",
}

FORMATS: dict[str, Format] = {
    "messages": Format(
        _messages,
        ".jsonl",
        {"en": "conversations of any length, in OpenAI's form", "zh": "OpenAI 形式的多轮对话"},
        {
            "messages": _TURNS,
            "messages[].role": {"en": "system, user, assistant or tool", "zh": "system、user、assistant 或 tool"},
            "messages[].content": {"en": "what is said", "zh": "说的内容"},
        },
    ),
    "question-answer": Format(
        _questions_and_answers,
        ".jsonl",
        {"en": "one question and its answer a row", "zh": "每行一问一答"},
        {"question": _QUESTION, "answer": _ANSWER},
    ),
    "alpaca": Format(
        _alpaca,
        ".json",
        {"en": "an instruction, perhaps a text that it is about, and the answer", "zh": "指令、可选的输入与回答"},
        {
            "instruction": _QUESTION,
            "input": {"en": "a text that the instruction is about, or empty", "zh": "指令所针对的文本，可为空"},
            "output": _ANSWER,
        },
    ),
    "sharegpt": Format(
        _sharegpt,
        ".jsonl",
        {"en": "conversations as ShareGPT exports them", "zh": "ShareGPT 形式的多轮对话"},
        {
            "system": _SYSTEM,
            "conversations": _TURNS,
            "conversations[].from": {
                "en": "human or gpt; with tools also function_call and observation",
                "zh": "human 或 gpt；使用工具时还有 function_call 和 observation",
            },
            "conversations[].value": {"en": "what is said", "zh": "说的内容"},
        },
    ),
    "tools": Format(
        _tools,
        ".jsonl",
        {"en": "conversations in which the assistant calls a function", "zh": "助手调用函数的对话"},
        {
            "messages": _TURNS,
            "messages[].tool_calls": {
                "en": "the call, with its arguments as JSON text; content is empty then",
                "zh": "函数调用，参数为 JSON 文本；此时 content 为空",
            },
            "messages[].role = tool": {"en": "what the function returned", "zh": "函数返回的内容"},
            "tools": {
                "en": "the functions that may be called, as JSON Schema",
                "zh": "可调用的函数，以 JSON Schema 描述",
            },
        },
    ),
    "reasoning": Format(
        _reasoning,
        ".jsonl",
        {"en": "answers with the thoughts that lead to them", "zh": "带有思考过程的回答"},
        {
            "messages": _TURNS,
            "<think>": {
                "en": "the thoughts stand before the answer, between <think> and </think>",
                "zh": "思考过程写在回答之前，置于 <think> 与 </think> 之间",
            },
        },
    ),
    "history": Format(
        _history,
        ".json",
        {"en": "Alpaca rows with what was said before", "zh": "带有历史对话的 Alpaca 数据"},
        {
            "instruction": _QUESTION,
            "input": {"en": "a text that the instruction is about, or empty", "zh": "指令所针对的文本，可为空"},
            "output": _ANSWER,
            "history": {
                "en": "earlier [question, answer] pairs, the oldest first",
                "zh": "之前的 [问题, 回答]，由早到晚",
            },
        },
    ),
    "firefly": Format(
        _firefly,
        ".jsonl",
        {"en": "conversations as pairs of human and assistant, as Firefly has them", "zh": "Firefly 形式的多轮对话"},
        {
            "conversation_id": {"en": "a number of your own; not used", "zh": "自定的编号，不会使用"},
            "conversation[].human": _QUESTION,
            "conversation[].assistant": _ANSWER,
        },
    ),
    "csv": Format(
        _questions_and_answers,
        ".csv",
        {"en": "a table with a header line", "zh": "带表头的表格"},
        {
            "question": _QUESTION,
            "answer": {
                "en": "the answer to learn; cells with commas, quotes or line breaks stand in double quotes",
                "zh": "要学习的回答；含逗号、引号或换行的单元格须加双引号",
            },
        },
    ),
    "preference": Format(
        _preferences,
        ".jsonl",
        {"en": "a better and a worse answer to each question", "zh": "每个问题附有较好和较差的回答"},
        {
            "prompt": _QUESTION,
            "chosen": {"en": "the better answer", "zh": "较好的回答"},
            "rejected": {
                "en": "the worse answer; now longer than the better one, now shorter, or length is all that is learned",
                "zh": "较差的回答；有时更长、有时更短，否则模型只会学到长度",
            },
        },
        use="preference",
    ),
    "feedback": Format(
        _feedback,
        ".jsonl",
        {"en": "answers that people liked or did not like", "zh": "带有好评或差评的回答"},
        {
            "prompt": _QUESTION,
            "completion": {"en": "an answer", "zh": "一个回答"},
            "label": {"en": "true for a good answer, false for a bad one", "zh": "好的回答为 true，差的回答为 false"},
        },
        use="feedback",
    ),
    "prompts": Format(
        _prompts,
        ".jsonl",
        {"en": "questions whose answer can be checked", "zh": "答案可以核对的问题"},
        {
            "prompt": _QUESTION,
            "ground_truth": {"en": "the result to compare with; may be left out", "zh": "用于核对的结果，可省略"},
        },
        use="prompt",
    ),
}
"""What `--format` knows, by name."""

_USES = {
    "sft": {
        "en": "Train on what is left:\n\n```\ndsr1-tune lora --data {clean}/train.jsonl\n```\n",
        "zh": "用清洗后的数据训练：\n\n```\ndsr1-tune lora --data {clean}/train.jsonl\n```\n",
    },
    "preference": {
        "en": "Train a reward model, or the model itself by DPO, on what is left:\n\n```\n"
        "dsr1-tune reward --data {clean}/train.jsonl\ndsr1-tune dpo --data {clean}/train.jsonl\n```\n\n"
        "`dsr1-tune lora` learns from questions with one answer and leaves rows like these out.\n",
        "zh": "用清洗后的数据训练奖励模型，或用 DPO 训练模型本身：\n\n```\n"
        "dsr1-tune reward --data {clean}/train.jsonl\ndsr1-tune dpo --data {clean}/train.jsonl\n```\n\n"
        "`dsr1-tune lora` 只学习问答对，会略过这类数据。\n",
    },
    "feedback": {
        "en": "Train on what is left:\n\n```\ndsr1-tune kto --data {clean}/train.jsonl\n```\n\n"
        "`dsr1-tune lora` learns from questions with one answer and leaves rows like these out.\n",
        "zh": "用清洗后的数据训练：\n\n```\ndsr1-tune kto --data {clean}/train.jsonl\n```\n\n"
        "`dsr1-tune lora` 只学习问答对，会略过这类数据。\n",
    },
    "prompt": {
        "en": "Let the model answer, and learn from the rewards of its answers; a rewards.yaml says what is rewarded:"
        "\n\n```\ndsr1-tune grpo --data {clean}/train.jsonl --rewards rewards.yaml\n```\n\n"
        "`dsr1-tune ppo` takes the same. `dsr1-tune lora` learns from questions with an answer and leaves rows like "
        "these out.\n",
        "zh": "让模型作答，并从回答的奖励中学习；rewards.yaml 规定奖励什么：\n\n```\n"
        "dsr1-tune grpo --data {clean}/train.jsonl --rewards rewards.yaml\n```\n\n"
        "`dsr1-tune ppo` 用法相同。`dsr1-tune lora` 只学习问答对，会略过这类数据。\n",
    },
}

_README = {
    "en": """# {name}: {what}

{num_rows} rows to show the form. Put your own in their place; a few hundred good rows teach more than many poor ones.

| field | holds |
|---|---|
{fields}

Further fields are ignored. Text is UTF-8. {layout}

## Check, clean, train

See what is wrong with which row:

```
dsr1-tune data check {file}
```

Clean it; `{settings}` explains each setting, and `{clean}/report.html` shows what became of every row:

```
dsr1-tune data clean --config {settings}
```

{use}
The rows are general information, written for this purpose. They are no {advice} advice.
""",
    "zh": """# {name}：{what}

共 {num_rows} 行，用来展示格式。请换成自己的数据；几百行高质量数据胜过大量低质量数据。

| 字段 | 内容 |
|---|---|
{fields}

其他字段会被忽略。文本使用 UTF-8 编码。{layout}

## 检查、清洗、训练

查看哪一行有什么问题：

```
dsr1-tune data check {file}
```

清洗数据；各项设置的说明见 `{settings}`，每一行的去向见 `{clean}/report.html`：

```
dsr1-tune data clean --config {settings}
```

{use}
这些数据是为展示格式而编写的一般性信息，不构成{advice}建议。
""",
}
_LAYOUTS = {
    ".jsonl": {"en": "Each line is one row of JSON.", "zh": "每行是一个 JSON 对象。"},
    ".json": {"en": "The file is one JSON array.", "zh": "整个文件是一个 JSON 数组。"},
    ".csv": {"en": "The first line names the columns.", "zh": "第一行是列名。"},
}
_ADVICE = {
    "general": {"en": "professional", "zh": "专业"},
    "medical": {"en": "medical", "zh": "医疗"},
    "legal": {"en": "legal", "zh": "法律"},
    "finance": {"en": "financial", "zh": "投资"},
    "support": {"en": "professional", "zh": "专业"},
}

_SETTINGS = {
    "en": """# dsr1-tune data clean --config {settings}
data:
  # Several files may be listed; "other.jsonl:0.5" takes half of one.
  files: [{file}]
  # A pack of rules, or a YAML file of your own.
  rules: {domain}
  # Share of the rows held out for evaluation, never trained on.
  eval_share: 0.1
privacy:
  # What to do about personal data: off, count, redact (typed placeholders) or drop.
  action: redact
dedup:
  # Rows at least so alike are merged.
  similarity: 0.8
  # Rows that hold a question of these files are dropped.
  # against: [eval.jsonl]
# judge:
  # Let small models look for answers that do not fit, for so many minutes.
  # ask: true
  # minutes: 10
out: {clean}
language: en
""",
    "zh": """# dsr1-tune data clean --config {settings}
data:
  # 可列出多个文件；"other.jsonl:0.5" 表示只取一半。
  files: [{file}]
  # 规则包，或自己的 YAML 文件。
  rules: {domain}
  # 留作评测、不参与训练的比例。
  eval_share: 0.1
privacy:
  # 如何处理个人信息：off 不检查，count 只统计，redact 替换为占位符，drop 删除。
  action: redact
dedup:
  # 相似度达到此值的行会合并。
  similarity: 0.8
  # 与这些评测文件重合的行会剔除。
  # against: [eval.jsonl]
# judge:
  # 用小模型找出答非所问的行，最多用这么多分钟。
  # ask: true
  # minutes: 10
out: {clean}
language: zh
""",
}


def _readme(domain: str, language: str, format: str, path: Path) -> str:
    chosen = FORMATS[format]
    clean = _clean_folder(path)
    fields = "\n".join(f"| `{name}` | {said[language]} |" for name, said in chosen.fields.items())
    return _README[language].format(
        name=path.name,
        what=chosen.what[language],
        num_rows=_num_rows(domain, language, format),
        fields=fields,
        layout=_LAYOUTS[path.suffix][language],
        file=shlex.quote(str(path)),
        settings=shlex.quote(str(path.with_suffix(".clean.yaml"))),
        clean=clean,
        use=_USES[chosen.use][language].format(clean=shlex.quote(str(clean))),
        advice=_ADVICE[domain][language],
    )


def _num_rows(domain: str, language: str, format: str) -> int:
    return template(domain, language, format, ".jsonl").count("\n")


def _settings(domain: str, language: str, path: Path) -> str:
    return _SETTINGS[language].format(
        settings=shlex.quote(str(path.with_suffix(".clean.yaml"))),
        file=json.dumps(str(path), ensure_ascii=False),
        domain=domain,
        clean=json.dumps(str(_clean_folder(path)), ensure_ascii=False),
    )


def _clean_folder(path: Path) -> Path:
    return Path("clean") / path.stem
