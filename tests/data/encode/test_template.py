"""What is found out about a chat template: the arguments that it reads, and its modes."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from dsr1_tune.config import Template
from dsr1_tune.data.encode.end_tokens import end_tokens
from dsr1_tune.data.encode.template import (
    check_arguments,
    control_tokens,
    needless_mode,
    shows_system,
    thinking_switch,
    thinks_unasked,
)
from dsr1_tune.errors import ConfigError, ModelError
from tests.data.encode.slow_labels import DEEPSEEK_V3_1
from tests.real_templates import template, tokenizer_of


@pytest.mark.parametrize(
    ("source", "given"),
    [
        (template("qwen3"), {"enable_thinking": True}),
        (template("gptoss"), {"reasoning_effort": "low", "model_identity": "I"}),
        (template("llama3_1"), {"date_string": "1 Jan"}),
        (DEEPSEEK_V3_1, {"thinking": True}),
        (template("gemma"), {}),
        (template("qwen2_5"), {"bos_token": ""} if "bos_token" in template("qwen2_5") else {}),
        ({"default": template("qwen2_5"), "tool_use": template("qwen3")}, {"enable_thinking": True}),
    ],
)
def test_template_arguments_that_it_reads(source: Any, given: dict[str, Any]) -> None:
    tokenizer = tokenizer_of(template("qwen3"))
    tokenizer.chat_template = source
    check_arguments(tokenizer, given)


@pytest.mark.parametrize(
    ("source", "given", "said", "hint"),
    [
        (template("qwen3"), {"reasoning_effort": "low"}, "never reads reasoning_effort", "it reads enable_thinking"),
        (DEEPSEEK_V3_1, {"enable_thinking": True, "thinking": True}, "reads enable_thinking", "it reads thinking"),
        (template("gemma"), {"enable_thinking": False}, "never reads enable_thinking", "it reads none; take them out"),
        (
            {"default": template("qwen2_5"), "tool_use": template("qwen3")},
            {"effort": 1, "depth": 2},
            "never reads effort, depth",
            "it reads enable_thinking",
        ),
    ],
)
def test_template_arguments_that_it_never_reads_are_refused(
    source: Any, given: dict[str, Any], said: str, hint: str
) -> None:
    tokenizer = tokenizer_of(template("qwen3"))
    tokenizer.chat_template = source
    with pytest.raises(ConfigError) as caught:
        check_arguments(tokenizer, given)
    assert caught.value.message.startswith("template.kwargs: the base's chat template") and said in caught.value.message
    assert caught.value.hint == hint


def test_template_that_cannot_be_read_is_told_with_its_base() -> None:
    tokenizer = tokenizer_of(template("qwen3"))
    tokenizer.chat_template, tokenizer.name_or_path = "{% if x %}\n{{ messages }", "some/base"
    with pytest.raises(ModelError, match=r"^some/base: its chat template cannot be read: line 2: ") as caught:
        check_arguments(tokenizer, {"x": 1})
    assert "chat_template.jinja" in caught.value.hint


@pytest.mark.parametrize(
    ("source", "switch", "unasked"),
    [(template("qwen3"), "enable_thinking", True), (DEEPSEEK_V3_1, "thinking", False)],
)
def test_template_mode_where_nothing_is_said(source: str, switch: str, unasked: bool) -> None:
    tokenizer = tokenizer_of(source)
    assert thinking_switch(tokenizer, {}) == switch
    assert thinks_unasked(tokenizer, {}, switch) is unasked
    assert not needless_mode(tokenizer, Template(thinking="on"))


@pytest.mark.parametrize(("name", "shows"), [("gemma", False), ("gemma3", True), ("qwen3", True), ("llama3_1", True)])
def test_template_system_prompt(name: str, shows: bool) -> None:
    assert shows_system(tokenizer_of(template(name)), {}) is shows


def test_template_what_is_found_keeps_no_tokenizer() -> None:
    tokenizer = tokenizer_of(template("gemma"))
    assert end_tokens(tokenizer) is end_tokens(tokenizer)
    assert control_tokens(tokenizer, {}) is control_tokens(tokenizer, {})
    gone = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None
