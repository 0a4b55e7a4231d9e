"""What a base's chat template can do: show tool calls and how, think or not; and which tokens are its control tokens.

Each is found by rendering small conversations through it, once for a tokenizer and template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from jinja2 import TemplateError, TemplateSyntaxError, meta, nodes

from dsr1_tune.config import Template
from dsr1_tune.data.encode import thinking
from dsr1_tune.errors import ConfigError, ModelError

TEMPLATE_ERRORS = (TemplateError, ValueError, TypeError, KeyError, AttributeError)
"""What a chat template raises for turns that it was not made for."""

Settings = Mapping[str, Any]
"""Arguments of a chat template, such as enable_thinking."""

# Words that stay as they are under trimming, escaping, and as JSON.
_ASK, _SAY, _NAME, _KEY, _VALUE, _RESULT = "qzaskqz", "qzsayqz", "qznameqz", "qzkeyqz", "qzvalueqz", "qzresultqz"
_THOUGHT = "qzthoughtqz"
_NONE = {"type": "object", "properties": {}}
_TOOLS = [{"type": "function", "function": {"name": "qzotherqz", "description": "None.", "parameters": _NONE}}]
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Where templates that do not look for <think> themselves want an answer's reasoning."""

Found = TypeVar("Found")


def show(
    tokenizer: Any,
    turns: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None = None,
    prompt: bool = False,
    settings: Settings = MappingProxyType({}),
) -> str:
    """The turns as text, with or without the generation prompt: `apply_chat_template`, which a content of None passes.

    Templates of DeepSeek know a turn that only calls functions by it. Raises one of TEMPLATE_ERRORS.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    (text, *_), _ = render_jinja_template(
        conversations=[turns],
        tools=tools,
        chat_template=tokenizer.get_chat_template(None, tools),
        add_generation_prompt=prompt,
        **{**tokenizer.special_tokens_map, **settings},
    )
    return str(text)


@dataclass(frozen=True)
class ToolForm:
    """How a template wants a turn that calls functions.

    `takes_text`: arguments as JSON text, else as an object. `empty` is the content of a turn without words. Whether
    words beside a call are shown at all, and with a thought before them.
    """

    takes_text: bool
    empty: str | None
    keeps_words: bool
    keeps_words_and_thought: bool


def tool_form(tokenizer: Any, settings: Settings) -> ToolForm | None:
    """How the template writes calls; None where it writes none, or not their arguments."""
    return once(_tool_form, tokenizer, settings)


def _tool_form(tokenizer: Any, settings: Settings) -> ToolForm | None:
    field = reasoning_field(tokenizer)

    def shows(takes_text: bool, content: str | None, words: Iterable[str], thought: str = "") -> bool:
        arguments: Any = {_KEY: _VALUE}
        function = {"name": _NAME, "arguments": json.dumps(arguments) if takes_text else arguments}
        call = {"type": "function", "id": "abcdefgh1", "function": function}
        turn = {"role": "assistant", "content": content, "tool_calls": [call]}
        if thought and field:
            turn[field] = thought
        elif thought:
            turn["content"] = f"{thinking.OPEN}\n{thought}\n{thinking.CLOSE}\n\n{content}"
        try:
            text = show(tokenizer, [_user(), turn], _TOOLS, settings=settings)
        except TEMPLATE_ERRORS:
            return False
        return all(word in text for word in words) and '\\"' + _KEY not in text

    called = (_NAME, _KEY, _VALUE)
    for takes_text, empty in ((False, ""), (False, None), (True, ""), (True, None)):
        if shows(takes_text, empty, called):
            keeps_words = shows(takes_text, _SAY, (*called, _SAY))
            keeps_both = keeps_words and shows(takes_text, _SAY, (*called, _SAY), _THOUGHT)
            return ToolForm(takes_text, empty, keeps_words, keeps_both)
    return None


def shows_system(tokenizer: Any, settings: Settings) -> bool:
    """Whether the template shows a system prompt before the first question; Gemma's refuses one."""
    return once(_shows_system, tokenizer, settings)


def _shows_system(tokenizer: Any, settings: Settings) -> bool:
    try:
        return _RESULT in show(tokenizer, [{"role": "system", "content": _RESULT}, _user()], settings=settings)
    except TEMPLATE_ERRORS:
        return False


def cuts_at_closing(tokenizer: Any, settings: Settings) -> bool:
    """Whether the template takes an answer for what stands behind its last </think>; Qwen3's does."""
    return once(_cuts_at_closing, tokenizer, settings)


def _cuts_at_closing(tokenizer: Any, settings: Settings) -> bool:
    answer = f"{_THOUGHT}{thinking.CLOSE}{_SAY}{thinking.CLOSE}{_RESULT}"
    try:
        return _SAY not in show(tokenizer, [_user(), {"role": "assistant", "content": answer}], settings=settings)
    except TEMPLATE_ERRORS:
        return False


def wants(tokenizer: Any, text: str) -> bool:
    """Whether the template's source names something."""
    return text in _source(tokenizer)


def reasoning_field(tokenizer: Any) -> str | None:
    """The field of a turn in which the template looks for its reasoning, where it knows no tags."""
    template = _source(tokenizer)
    if thinking.CLOSE in template:
        return None
    return next((field for field in REASONING_FIELDS if field in template), None)


def thinking_switch(tokenizer: Any, settings: Settings) -> str | None:
    """The template's argument that turns thinking on and off; None where it has no such modes."""
    return once(_thinking_switch, tokenizer, settings)


def arguments(tokenizer: Any, template: Template, is_thinking: bool | None = None) -> dict[str, Any]:
    """The template's arguments for a conversation with or without a thought; None leaves that to the template."""
    given = dict(template.kwargs)
    if switch := thinking_switch(tokenizer, given):
        if template.thinking != "auto":
            given[switch] = template.thinking == "on"
        elif is_thinking is not None:
            given.setdefault(switch, is_thinking)
    return given


def _thinking_switch(tokenizer: Any, settings: Settings) -> str | None:
    for name in Template.switches:
        if name in _source(tokenizer):
            on, off = (_prompt(tokenizer, {**settings, name: value}) for value in (True, False))
            if on and off and on != off:
                return name
    return None


def _prompt(tokenizer: Any, settings: Settings) -> str:
    try:
        return show(tokenizer, [_user()], prompt=True, settings=settings)
    except TEMPLATE_ERRORS:
        return ""


def thinks_unasked(tokenizer: Any, settings: Settings, switch: str) -> bool:
    """Whether a template with modes asks for a thought where nothing is said of it."""
    return _prompt(tokenizer, settings) == _prompt(tokenizer, {**settings, switch: True})


def needless_mode(tokenizer: Any, template: Template) -> str:
    """What to say of template.thinking where the template has no modes to choose from; mostly nothing."""
    if template.thinking == "auto" or thinking_switch(tokenizer, template.kwargs):
        return ""
    rest = "only leaves thoughts out" if template.thinking == "off" else "changes nothing"
    return f"the base's chat template has no thinking mode: template.thinking={template.thinking} {rest}"


def check_arguments(tokenizer: Any, given: Settings, setting: str = "template.kwargs") -> None:
    """Raise ConfigError for arguments that the template never reads, by the name of the setting that gives them.

    Raises ModelError for a template that cannot be read itself.
    """
    try:
        found = [_variables(source) for source in _sources(tokenizer)] if given else []
    except TemplateSyntaxError as error:
        base = getattr(tokenizer, "name_or_path", "") or "the base"
        raise ModelError(
            f"{base}: its chat template cannot be read: line {error.lineno}: {error.message}",
            hint="correct it, in chat_template.jinja or tokenizer_config.json, or copy these files again",
        ) from error
    read = set().union(*(names for names, _ in found))
    unread = [name for name in given if name not in read]
    if found and unread:
        listed = sorted(set().union(*(asked for _, asked in found)))
        known = f"it reads {', '.join(listed)}" if listed else "it reads none; take them out"
        raise ConfigError(f"{setting}: the base's chat template never reads {', '.join(unread)}", hint=known)


def _variables(source: str) -> tuple[set[str], set[str]]:
    """The names that a template may read without having set them, and those of them that are meant to be given."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment = _compile_jinja_template(source).environment
    tree = environment.parse(source)
    read = meta.find_undeclared_variables(tree)
    stored = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "store"}
    tests = [*tree.find_all(nodes.Test), *tree.find_all(nodes.Filter)]
    asked_for = {
        test.node.name for test in tests if test.name in ("defined", "default") and isinstance(test.node, nodes.Name)
    }
    given_anyway = {*environment.globals, "messages", "tools", "documents", "add_generation_prompt"}
    named = {name for name in read - given_anyway if not name.endswith("_token")}
    return read, {name for name in named if name not in stored or name in asked_for}


def control_tokens(tokenizer: Any, settings: Settings) -> re.Pattern[str]:
    """The tokens that begin and end turns: special ones, and what the template writes around plain turns.

    Not the tags of thoughts, which an answer may hold, nor those of calls, which authors write into answers as text.
    """
    return once(_control_tokens, tokenizer, settings)


def _control_tokens(tokenizer: Any, settings: Settings) -> re.Pattern[str]:
    added = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
    framing = set(tokenizer.all_special_tokens)
    says = {"role": "assistant", "content": _SAY}
    for turns in ([{"role": "system", "content": _RESULT}, _user(), says, _user()], [_user(), says, _user()]):
        for prompt in (False, True):
            try:
                text = show(tokenizer, turns, prompt=prompt, settings=settings)
            except TEMPLATE_ERRORS:
                continue
            framing |= {token for token in added if token in text}
    tokens = framing | {token for token, is_special in added.items() if is_special}
    tokens = {token for token in tokens if token.strip() and token not in (thinking.OPEN, thinking.CLOSE)}
    return any_of(tokens)


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """What finds any of these texts, a longer one before those that it begins with; of none it finds nothing."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


def _user() -> dict[str, str]:
    return {"role": "user", "content": _ASK}


def _source(tokenizer: Any) -> str:
    """The template's text; of several named ones all."""
    return "\n".join(_sources(tokenizer))


def _sources(tokenizer: Any) -> list[str]:
    template = tokenizer.chat_template
    return list(map(str, template.values())) if isinstance(template, dict) else [str(template)]


def once(find: Callable[..., Found], tokenizer: Any, settings: Settings, *also: Hashable) -> Found:
    """`find(tokenizer, settings, *also)`, found once for a template and remembered as long as the tokenizer is."""
    template = tokenizer.chat_template
    source = template if isinstance(template, str) else json.dumps(template, default=str)
    key = (find, source, len(tokenizer), json.dumps(dict(settings), default=str), *also)
    known = _KNOWN.setdefault(tokenizer, {})
    if key not in known:
        known[key] = find(tokenizer, settings, *also)
    found: Found = known[key]
    return found


_KNOWN: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()
