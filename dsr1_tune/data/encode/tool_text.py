"""Tools as text, for templates that know none: the form of Hermes and Qwen, which most servers' parsers can read."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import groupby
from typing import Any

from dsr1_tune.data.record import Message, Record

_ASK = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def functions(tools: str, describes: bool = False, parametrises: bool = False) -> list[Any] | None:
    """The tools of a record as templates take them, `{"type": "function", "function": ...}`; None for none.

    A template that takes descriptions or parameters for granted gets empty ones where a tool has none. Raises
    ValueError where they are no JSON.
    """
    if not tools:
        return None
    listed = json.loads(tools)
    usual: dict[str, Any] = {"description": ""} if describes else {}
    usual |= {"parameters": {"type": "object", "properties": {}}} if parametrises else {}
    wrapped = [_wrapped(tool) for tool in (listed if isinstance(listed, list) else [listed])]
    for tool in wrapped:
        if isinstance(tool, dict) and isinstance(tool.get("function"), dict):
            tool["function"] = {**tool["function"], **{k: v for k, v in usual.items() if k not in tool["function"]}}
    return wrapped or None


def _wrapped(tool: Any) -> Any:
    if not isinstance(tool, dict) or "function" in tool or "name" not in tool:
        return tool
    if "input_schema" in tool:
        tool = {
            **{name: value for name, value in tool.items() if name != "input_schema"},
            "parameters": tool["input_schema"],
        }
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def as_text(record: Record) -> Record:
    """The record with its tools in the system prompt, calls in the assistant's words, and results said by the user."""
    messages: list[Message] = []
    for is_result, group in groupby(record.messages, key=lambda message: message.role == "tool"):
        said = list(group)
        if is_result:
            content = "\n".join(f"<tool_response>\n{result.content}\n</tool_response>" for result in said)
            messages.append(replace(said[0], role="user", content=content, name="", call_id=""))
        else:
            messages += map(_calls_said, said)
    if tools := functions(record.tools):
        asked = _ASK.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
        has_system = messages[0].role == "system"
        content = f"{messages[0].content}\n\n{asked}" if has_system else asked
        messages[: int(has_system)] = [Message("system", content, messages[0].path)]
    return replace(record, messages=tuple(messages), tools="")


def _calls_said(message: Message) -> Message:
    if not message.calls:
        return message
    calls = []
    for call in message.calls:
        said = f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {call.arguments}}}'
        calls.append(f"<tool_call>\n{said}\n</tool_call>")
    return replace(message, content="\n".join([message.content] * bool(message.content) + calls), calls=())
