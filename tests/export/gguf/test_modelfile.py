"""A Modelfile's Go template gives the text of the tokenizer's Jinja template, or is left out and says why."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from dsr1_tune.export.gguf.modelfile import work_out
from tests.export.gguf.go_template import GoTemplateError, as_ollama, render

# --- Go's text/template, as its documentation and Ollama's templates show it -----------------------------------------


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{23 -}} < {{- 45}}", "23<45"),
        ("{{ 3 }}  {{- 5 }} \n", "35 \n"),
        ('{{ "{{" }} x }}', "{{ x }}"),
        ("{{ if .Empty }}a{{ else if .Name }}b{{ else }}c{{ end }}", "b"),
        ("{{ if and .Name (eq (len .List) 2) }}yes{{ end }}", "yes"),
        ("{{ if or .Empty (not .Name) }}yes{{ else }}no{{ end }}", "no"),
        ("{{ range $i, $x := .List }}{{ $i }}{{ $x.Name }}{{ .Name }};{{ end }}", "0oneone;1twotwo;"),
        ("{{ range .List }}{{ .Name }}{{ $.Name }} {{ end }}", "onetop twotop "),
        ("{{ range $i, $_ := .List }}{{ len (slice $.List $i) }}{{ end }}", "21"),
        ("{{ $a := len .List }}{{ $a }}{{ eq .Name `other` `top` }}", "2True"),
    ],
)
def test_go_template_reader_gives_what_go_gives(template: str, text: str) -> None:
    data = {"Name": "top", "Empty": "", "List": [{"Name": "one"}, {"Name": "two"}]}
    assert render(template, data) == text


@pytest.mark.parametrize("template", ["{{ if .A }}", "{{ end }}", "{{ .B }}", "{{ printf .A }}", "{{ (len .A }}"])
def test_go_template_reader_refuses_what_it_does_not_know(template: str) -> None:
    with pytest.raises(GoTemplateError):
        render(template, {"A": "x"})


# --- chat templates of the common kinds ------------------------------------------------------------------------------

QWEN = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if (message.role == 'user') or (message.role == 'system' and not loop.first) or"
    " (message.role == 'assistant') %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
DEEPSEEK = (
    "{% set ns = namespace(system='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{%- set ns.system = message['content'] %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system }}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{%- endif %}"
    "{%- if message['role'] == 'assistant' %}{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' +"
    " message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
PHI3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
DATED = "{{ strftime_now('%d %b %Y') }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
COUNTS = (
    "{% for message in messages %}{{ loop.index }}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SHOUTS = "{% for message in messages %}{{ message['content'] | upper }}!{% endfor %}"
QUOTES = '{% for message in messages %}"""{{ message["role"] }}: {{ message["content"] }}{% endfor %}'


@pytest.fixture
def speaking(tiny_tokenizer: Any) -> Any:
    """speaking(template) is a tokenizer with that chat template."""

    def speak(template: str) -> Any:
        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.chat_template = template
        tokenizer.bos_token = "<|im_start|>"
        return tokenizer

    return speak


def talk(num_turns: int, system: str = "") -> list[dict[str, str]]:
    said = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    return said + [{"role": roles[turn % 2], "content": f"turn {turn}:\n'{{{{ x }}}}' 好"} for turn in range(num_turns)]


@pytest.mark.parametrize("template", [None, QWEN, DEEPSEEK, LLAMA3, MISTRAL], ids=lambda text: str(text)[:12])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_go_template_gives_the_text_of_the_chat_template(
    template: str | None, adds_bos: bool, speaking: Any, tiny_tokenizer: Any
) -> None:
    tokenizer = speaking(template or tiny_tokenizer.chat_template)
    found = work_out(tokenizer, adds_bos)
    assert found.template is not None, found.remarks
    has_system = template != MISTRAL
    assert any("no place for system messages" in remark for remark in found.remarks) != has_system
    bos = str(tokenizer.bos_token)
    for turns in (talk(1), talk(5), talk(9), talk(1, "Be brief."), talk(7, "Be\n\nbrief.")):
        if turns[0]["role"] == "system" and not has_system:
            continue
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        begins = adds_bos and template is not None
        assert (bos if begins else "") + render(found.template, as_ollama(turns)) == text


def test_modelfile_remarks_say_where_ollama_differs(speaking: Any, tiny_tokenizer: Any) -> None:
    assert "removes white space" in " ".join(work_out(speaking(LLAMA3)).remarks)
    assert "hold thoughts" in " ".join(work_out(speaking(DEEPSEEK)).remarks)
    assert work_out(speaking(tiny_tokenizer.chat_template)).remarks == ()


@pytest.mark.parametrize("template", [DATED, COUNTS, SHOUTS, QUOTES, PHI3])
def test_chat_template_that_go_cannot_give_is_left_out(template: str, speaking: Any) -> None:
    found = work_out(speaking(template))
    assert found.template is None
    assert found.remarks[0].startswith("no TEMPLATE: the model's chat template")
