"""What ends an answer, and a call of a tool, under the chat templates of real models and of odd ones."""

from __future__ import annotations

from typing import Any

import pytest

from dsr1_tune.data.encode.end_tokens import EndTokens, end_tokens
from dsr1_tune.errors import ModelError
from tests.conftest import CHATML
from tests.real_templates import FOLDER, template, tokenizer_of

IM_END, SENTENCE, EOT = "<|im_end|>", "<｜end▁of▁sentence｜>", "<|eot_id|>"
# What ends an answer and a call (None: the template drops calls); "+" where the template leaves it to the next turn.
ENDS = {
    "cohere": ("<|END_OF_TURN_TOKEN|>", None),
    "cohere2": ("<|END_OF_TURN_TOKEN|>", None),
    "deepseek_r1_distill": (SENTENCE, SENTENCE),
    "deepseekv3": (SENTENCE, SENTENCE),
    "gemma": ("<end_of_turn>", None),
    "gemma3": ("<end_of_turn>", None),
    "gemma4": ("<turn|>", "<|tool_response>"),
    "glm4moe": ("+<|user|>", "+<|observation|>"),
    "glm4moe_training": ("<|user|>", "<|observation|>"),
    "gptoss": ("<|return|>", "<|call|>"),
    "lfm2": (IM_END, None),
    "lfm2_v2": (IM_END, IM_END),
    "llama3": (EOT, None),
    "llama3_1": (EOT, EOT),
    "llama3_2": (EOT, EOT),
    "muse_glimmer": ("<|eot|>", "<|eot|>"),
    "nemotron_3_nano": (IM_END, IM_END),
    "phi3": ("<|end|>", None),
    "phi3_5": ("<|end|>", None),
    "qwen2_5": (IM_END, IM_END),
    "qwen3": (IM_END, IM_END),
    "qwen3_5_nothink": (IM_END, IM_END),
    "qwen3_5_think": (IM_END, IM_END),
    "qwen3_6": (IM_END, IM_END),
    "qwen3_8": (IM_END, IM_END),
    "qwen3_instruct_2507": (IM_END, IM_END),
}


def texts(found: EndTokens, tokenizer: Any) -> set[str]:
    return set(tokenizer.convert_ids_to_tokens(sorted(found.ids)))


def said(token: str | None, is_written: bool) -> str | None:
    return token if token is None or is_written else f"+{token}"


@pytest.mark.parametrize("name", ENDS)
def test_end_tokens_real_template(name: str) -> None:
    tokenizer = tokenizer_of(template(name))
    found = end_tokens(tokenizer)
    assert (said(found.answer, found.is_written), said(found.call, found.is_call_written)) == ENDS[name]
    assert texts(found, tokenizer) == {"<eos>", found.answer, *([found.call] if found.call else [])}
    assert not found.remark


def test_end_tokens_every_shipped_template() -> None:
    """Whatever a template is, something ends its answers, and none of it is a mark that stands inside turns."""
    for file in sorted(FOLDER.glob("*.jinja")):
        tokenizer = tokenizer_of(file.read_text(encoding="utf-8"))
        found = end_tokens(tokenizer)
        assert found.answer and tokenizer.eos_token_id in found.ids, file.name
        inside = {"<|end|>", "</think>", "</tool_call>", "<|message|>", "<|channel|>", "<think>", "<tool_call>"}
        assert not inside & texts(found, tokenizer) or file.stem.startswith("phi3"), file.name


def test_end_tokens_settings_change_the_template() -> None:
    """Llama 3.1 with tools of its own ends a call by another token, and goes on when it is answered."""
    tokenizer = tokenizer_of(template("llama3_1"))
    assert end_tokens(tokenizer, settings={"builtin_tools": ["search"]}).call == "<|eom_id|>"
    assert end_tokens(tokenizer).call == EOT


def test_end_tokens_eos_is_not_the_turns_end() -> None:
    """Qwen2.5's base: <|endoftext|> ends texts, <|im_end|> turns."""
    tokenizer = tokenizer_of(CHATML, eos="<|endoftext|>")
    found = end_tokens(tokenizer, tokenizer.eos_token_id)
    assert (found.answer, found.is_written) == (IM_END, True)
    assert texts(found, tokenizer) == {"<|endoftext|>", IM_END}


def test_end_tokens_configured_are_kept() -> None:
    tokenizer = tokenizer_of(template("phi3"), eos="<|endoftext|>")
    assistant = tokenizer.convert_tokens_to_ids("<|assistant|>")
    assert end_tokens(tokenizer, [assistant, 9999]).ids == {
        assistant, 9999, tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end|>"),
    }  # fmt: skip
    assert end_tokens(tokenizer, None) == end_tokens(tokenizer)


def test_end_tokens_marker_is_no_token() -> None:
    """ChatML put on a base that does not know its markers: they are many tokens, the end of text is one."""
    found = end_tokens(tokenizer_of(CHATML, eos="</s>", known=False))
    assert (found.answer, found.is_written) == ("</s>", False)
    assert "'<|im_end|>'" in found.remark and "</s>" in found.remark


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ("{% for m in messages %}[INST]{{ m.content }}[/INST]{{ eos_token }}{% endfor %}", "<eos>"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "+<eos>"),
        ("{% for m in messages %}{{ bos_token }}{{ m.content }}\n{% endfor %}", "+<eos>"),
        ("{% for m in messages %}{{ m.content }}{% if not loop.last %}[END][NEXT]{% endif %}{% endfor %}", "+[END]"),
        ("{% for m in messages %}[ROLE]{{ m.content }}{{ raise_exception('no') if loop.last }}{% endfor %}", "+<eos>"),
    ],
)
def test_end_tokens_odd_template(source: str, answer: str) -> None:
    found = end_tokens(tokenizer_of(source))
    assert said(found.answer, found.is_written) == answer
    assert found.call is None


def test_end_tokens_the_turns_end_stands_inside_too() -> None:
    """Where one token ends thoughts, earlier answers and the last one, stopping there would leave thoughts alone."""
    source = (
        "{% for m in messages %}<role>{% if m.thinking %}{{ m.thinking }}<end>{% endif %}{{ m.content }}<end>"
        "{% if loop.last %}<stop>{% endif %}{% endfor %}"
    )
    assert end_tokens(tokenizer_of(source)).answer == "<stop>"


def test_end_tokens_nothing_ends() -> None:
    tokenizer = tokenizer_of("{% for m in messages %}{{ m.content }}{% endfor %}")
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="nothing ends an answer"):
        end_tokens(tokenizer)
    assert end_tokens(tokenizer, tokenizer.bos_token_id).answer == "<bos>"


def test_end_tokens_follow_the_template() -> None:
    """What was found for a tokenizer is found anew when its template becomes another."""
    tokenizer = tokenizer_of(template("gptoss") + template("qwen3"))
    tokenizer.chat_template = template("qwen3")
    assert end_tokens(tokenizer).answer == IM_END
    tokenizer.chat_template = template("gptoss")
    assert end_tokens(tokenizer).answer == "<|return|>"
    tokenizer.chat_template = {"default": template("qwen3"), "tool_use": template("qwen3")}
    assert end_tokens(tokenizer).answer == IM_END
