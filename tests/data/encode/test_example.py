"""The model learns what the assistant says, its end-of-turn token included, and nothing else."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dsr1_tune.data.encode.chat_template import render, render_prompt
from dsr1_tune.data.encode.example import IGNORED, Example, encode, encode_all
from dsr1_tune.data.record import Drop, Message, Place, Record, ToolCall
from dsr1_tune.data.rules.codes import MEANINGS
from tests.conftest import CHATML

# As reasoning models do: only the last answer keeps its thoughts.
THOUGHTS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and not loop.last %}{{ message['content'].split('</think>')[-1] }}"
    "{% else %}{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# No answer keeps its thoughts, and the model is asked with a thought opened for it.
OPENED = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'].split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
# The thought that is opened for the model stays in the finished turn.
KEPT = OPENED.replace(".split('</think>')[-1]", "")
STRICT = (
    "{% for message in messages %}{% if message['role'] != ('assistant' if loop.index0 % 2 else 'user') %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|im_start|>{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


# Words without the template's own tags and the mark by which it is searched.
_CHARACTERS = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<\ufffc")
_SAID = st.text(_CHARACTERS, min_size=1).filter(str.strip)


def record(*turns: tuple[str, str], tools: str = "") -> Record:
    """record(("user", "Q"), ("assistant", "A")) as if read from a file."""
    messages = tuple(Message(role, text, f"$.messages[{i}].content") for i, (role, text) in enumerate(turns))
    return Record(messages, Place("data.jsonl", 3, 2), tools, row={"raw": True})


def asked(answer: str, question: str = "Q") -> Record:
    return record(("user", question), ("assistant", answer))


@pytest.fixture
def with_template(tiny_tokenizer: Any) -> Any:
    """with_template(text) is the tiny tokenizer with another chat template."""

    def with_template_(template: str) -> Any:
        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.chat_template = template
        return tokenizer

    return with_template_


def encoded(record: Record, tokenizer: Any, max_tokens: int = 1000) -> Example:
    outcome = encode(record, tokenizer, max_tokens)
    assert isinstance(outcome, Example), outcome
    assert len(outcome.labels) == len(outcome.input_ids)
    assert all(label in (token, IGNORED) for token, label in zip(outcome.input_ids, outcome.labels, strict=True))
    return outcome


def learned(record: Record, tokenizer: Any) -> list[str]:
    """What is learned, run by run."""
    runs = groupby(encoded(record, tokenizer).labels, key=lambda label: label != IGNORED)
    return [tokenizer.decode(list(run), skip_special_tokens=False) for is_learned, run in runs if is_learned]


def refusal(record: Record, tokenizer: Any, max_tokens: int = 1000) -> Drop:
    outcome = encode(record, tokenizer, max_tokens)
    assert isinstance(outcome, Drop), outcome
    assert outcome.code in MEANINGS
    assert outcome.fix
    return outcome


# --- what is learned -------------------------------------------------------------------------------------------------


def test_encode_the_answer_and_its_end_are_learned(tiny_tokenizer: Any) -> None:
    example = encoded(asked("An answer."), tiny_tokenizer)
    text = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nAn answer.<|im_end|>\n"
    assert tiny_tokenizer.decode(example.input_ids, skip_special_tokens=False) == text
    assert learned(asked("An answer."), tiny_tokenizer) == ["An answer.<|im_end|>"]
    assert example.labels[-2:] == (tiny_tokenizer.eos_token_id, IGNORED)
    assert example.record == asked("An answer.")


def test_encode_every_answer_of_a_conversation_is_learned(tiny_tokenizer: Any) -> None:
    talk = record(
        ("system", "Be kind."), ("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "1 and 1, or 2")
    )
    assert learned(talk, tiny_tokenizer) == ["1<|im_end|>", "1 and 1, or 2<|im_end|>"]


def test_encode_what_tools_return_is_not_learned(tiny_tokenizer: Any) -> None:
    talk = record(("user", "Weather?"), ("assistant", "look()"), ("tool", "rain"), ("assistant", "Rain."))
    assert learned(talk, tiny_tokenizer) == ["look()<|im_end|>", "Rain.<|im_end|>"]


def test_encode_a_greeting_before_any_question_is_not_learned(tiny_tokenizer: Any) -> None:
    talk = record(("assistant", "Hello!"), ("user", "Q"), ("assistant", "A"))
    assert learned(talk, tiny_tokenizer) == ["A<|im_end|>"]


def test_encode_a_greeting_behind_the_system_prompt_is_not_learned_either(tiny_tokenizer: Any) -> None:
    talk = record(("system", "S"), ("assistant", "Hello!"), ("user", "Q"), ("assistant", "A"))
    assert learned(talk, tiny_tokenizer) == ["A<|im_end|>"]


@pytest.mark.parametrize(
    "answer",
    ["<think>hm</think>so</think>42", "hm</think>so</think>42", "<think>a</think>b<think>c</think>d</think>"],
)
@pytest.mark.parametrize("place", ["first", "last"])
def test_encode_a_thought_that_is_closed_twice_is_dropped_where_the_template_cuts_there(
    with_template: Any, tiny_tokenizer: Any, answer: str, place: str
) -> None:
    answers = (answer, "42") if place == "first" else ("42", answer)
    talk = record(("user", "Q"), ("assistant", answers[0]), ("user", "R"), ("assistant", answers[1]))
    cuts = with_template(CHATML.replace("message['content']", "message['content'].split('</think>')[-1]"))
    drop = refusal(talk, cuts)
    assert (drop.code, drop.path) == ("thought_closed_twice", f"$.messages[{1 if place == 'first' else 3}].content")
    assert learned(talk, tiny_tokenizer) == [f"{said}<|im_end|>" for said in answers]
    shown_only = tuple(replace(message, is_learned=message.content != answer) for message in talk.messages)
    assert learned(replace(talk, messages=shown_only), cuts)[-1] == "42<|im_end|>"


def test_encode_thoughts_between_words_and_tags_that_users_type_are_learned(tiny_tokenizer: Any) -> None:
    assert learned(asked("<think>a</think>1 and <think>b</think>2"), tiny_tokenizer)
    assert learned(asked("42", question="</think> and </think>?"), tiny_tokenizer)


def test_encode_the_same_words_said_by_the_user_are_not_learned(tiny_tokenizer: Any) -> None:
    assert learned(asked("echo", question="echo"), tiny_tokenizer) == ["echo<|im_end|>"]


@pytest.mark.parametrize(
    "answer",
    [
        " leading",
        "trailing ",
        "  both\t",
        "\nlines\n\n",
        "是",
        "血压 120/80，正常。",
        "😀",
        "👩‍⚕️ ok 👍🏽",
        "é",
        "a<|b",
        "42",
    ],
)
def test_encode_answers_are_learned_to_the_letter(tiny_tokenizer: Any, answer: str) -> None:
    assert learned(asked(answer, question="怎么样？😀"), tiny_tokenizer) == [f"{answer}<|im_end|>"]


@settings(max_examples=60)
@given(turns=st.lists(st.tuples(_SAID, _SAID.filter(lambda text: text.strip() == text)), min_size=1, max_size=3))
def test_encode_learns_the_answers_of_any_conversation_to_the_letter(tiny_tokenizer: Any, turns: Any) -> None:
    said = [turn for question, answer in turns for turn in (("user", question), ("assistant", answer))]
    example = encoded(record(*said), tiny_tokenizer, 10_000)
    shown = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in said)
    assert tiny_tokenizer.decode(example.input_ids, skip_special_tokens=False) == shown
    assert learned(record(*said), tiny_tokenizer) == [f"{answer}<|im_end|>" for _, answer in turns]


def test_encode_a_character_of_several_tokens_is_not_cut_at_the_border(with_template: Any) -> None:
    side_by_side = with_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    example = encoded(asked("是😀", question="是😀"), side_by_side)
    assert len(example.input_ids) == 2 * (3 + 4) + 1
    assert example.labels == (IGNORED,) * 7 + example.input_ids[7:]


def test_encode_a_token_across_the_border_is_learned() -> None:
    """Byte-level merges join the prompt's last newline with the answer's first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*alphabet, "ĊĊ", "ĊA"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("Ċ", "Ċ"), ("Ċ", "A")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] }}:\n{{ message['content'] }};{% endfor %}"
        "{% if add_generation_prompt %}assistant:\n{% endif %}"
    )
    for answer, token in (("\nB", "ĊĊ"), ("A", "ĊA")):
        example = encoded(asked(answer), tokenizer)
        first = next(label for label in example.labels if label != IGNORED)
        assert tokenizer.convert_ids_to_tokens(first) == token


def test_encode_no_special_tokens_are_added_to_those_of_the_template(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 0), ("<|im_end|>", 1)]
    )
    assert tokenizer("Q")["input_ids"][0] == 0
    assert encoded(asked("A"), tokenizer).input_ids == encoded(asked("A"), tiny_tokenizer).input_ids


# --- templates that rewrite ------------------------------------------------------------------------------------------


def test_encode_earlier_answers_that_the_template_rewrites_are_left_out(with_template: Any) -> None:
    talk = record(
        ("user", "One?"), ("assistant", "<think>hm</think>1"), ("user", "Two?"), ("assistant", "<think>so</think>2")
    )
    tokenizer = with_template(THOUGHTS)
    assert "hm" not in render(talk, tokenizer).text
    assert learned(talk, tokenizer) == ["<think>so</think>2<|im_end|>"]


def test_encode_earlier_answers_that_it_leaves_as_they_are_are_learned(with_template: Any) -> None:
    talk = record(("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "<think>so</think>2"))
    assert learned(talk, with_template(THOUGHTS)) == ["1<|im_end|>", "<think>so</think>2<|im_end|>"]


@pytest.mark.parametrize(
    ("answer", "continued"),
    [
        ("42", "\n</think>\n\n42"),
        ("<think>hm</think>42", "hm</think>42"),
        ("<think>\nhm\n</think>\n\n42", "hm\n</think>\n\n42"),
        ("hm\n</think>\n\n42", "hm\n</think>\n\n42"),
        ("<table>", "\n</think>\n\n<table>"),
        ("<think>hm</think><thin>", "hm</think><thin>"),
    ],
)
@pytest.mark.parametrize("template", ["opened", "kept"])
def test_encode_an_answer_goes_on_where_the_prompt_has_opened_a_thought(
    with_template: Any, answer: str, continued: str, template: str
) -> None:
    tokenizer = with_template(OPENED if template == "opened" else KEPT)
    text = render(asked(answer), tokenizer).text
    assert text == render_prompt(asked(answer), tokenizer).text + continued + "<|im_end|>\n"
    assert learned(asked(answer), tokenizer) == [f"{continued}<|im_end|>"]


def test_encode_a_thought_opened_by_the_prompt_is_not_learned_but_its_rest_is(with_template: Any) -> None:
    assert learned(asked("<think>\nhm</think>42"), with_template(KEPT)) == ["hm</think>42<|im_end|>"]


def test_encode_a_template_without_end_of_turn(with_template: Any) -> None:
    tokenizer = with_template(
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] | trim }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert learned(record(("user", "Q"), ("assistant", " A "), ("user", "R"), ("assistant", "B ")), tokenizer) == [
        "A",
        "B<|im_end|>",
    ]


# --- what cannot be learned ------------------------------------------------------------------------------------------


def test_encode_what_the_template_refuses_is_dropped_with_its_words(with_template: Any) -> None:
    drop = refusal(record(("user", "Q"), ("user", "R"), ("assistant", "A")), with_template(STRICT))
    assert drop.code == "template_refused"
    assert "roles must alternate" in drop.detail
    assert drop.path == "$.messages[1].content"


def test_encode_a_system_prompt_that_the_template_refuses_stands_before_the_first_question(with_template: Any) -> None:
    talk = record(("system", "Be kind."), ("user", "Q"), ("assistant", "A"))
    assert render(talk, with_template(STRICT)).text == "<|im_start|>Be kind.\n\nQ<|im_end|>\n<|im_start|>A<|im_end|>\n"
    assert render_prompt(talk, with_template(STRICT)).text == "<|im_start|>Be kind.\n\nQ<|im_end|>\n<|im_start|>"
    assert encoded(talk, with_template(STRICT)).moves_system
    blank = record(("system", " "), ("user", "Q"), ("assistant", "A"))
    assert render(blank, with_template(STRICT)).text == "<|im_start|>Q<|im_end|>\n<|im_start|>A<|im_end|>\n"
    assert not encoded(blank, with_template(STRICT)).moves_system
    lost = with_template(STRICT.replace("{{ raise", "{{ '' if message['role'] == 'system' else raise"))
    assert not encoded(asked("A"), lost).moves_system


@pytest.mark.parametrize("template", ["{{ messages[9]['content'] + 1 }}", "{{ messages | nofilter }}", "{% if %}"])
def test_encode_a_template_that_fails_is_dropped_too(with_template: Any, template: str) -> None:
    assert refusal(asked("A"), with_template(template)).code == "template_refused"


_REFUSES = (
    "{%% for message in messages %%}{%% if %s %%}{{ raise_exception('Not so') }}{%% endif %%}"
    "<|im_start|>{{ message['content'] }}<|im_end|>\n{%% endfor %%}"
)
TALK = (("user", "Q"), ("assistant", "A"), ("user", "R"), ("assistant", "B"), ("user", "S"), ("assistant", "C"))


@pytest.mark.parametrize("number", range(1, len(TALK)))
def test_encode_names_the_turn_with_which_the_refusal_begins(with_template: Any, number: int) -> None:
    content = TALK[number][1]
    drop = refusal(record(*TALK), with_template(_REFUSES % f"message['content'] == '{content}'"))
    assert drop.path == f"$.messages[{number}].content" and "as it says" in drop.fix


def test_encode_names_the_system_turn_that_is_refused(with_template: Any) -> None:
    turns = (("system", "S"), ("system", "T"), *TALK)
    for number in (0, 1):
        said = turns[number][1]
        tokenizer = with_template(_REFUSES % f"message['role'] == 'system' and message['content'] == '{said}'")
        assert refusal(record(*turns), tokenizer).path == f"$.messages[{number}].content"


def test_encode_names_the_record_alone_where_no_turn_is_at_fault(with_template: Any) -> None:
    drop = refusal(record(("system", "S"), *TALK), with_template("{{ raise_exception('Never') }}"))
    assert drop.path == "$" and "Never" in drop.detail


def test_encode_gives_no_wrong_mend_where_a_template_fails(with_template: Any) -> None:
    template = _REFUSES.replace("raise_exception('Not so')", "none + 1") % "message['content'] == 'R'"
    drop = refusal(record(*TALK), with_template(template))
    assert drop.path == "$.messages[2].content"
    assert "fails on it: TypeError" in drop.detail and "as it says" not in drop.fix


def test_encode_names_the_call_that_the_template_has_no_form_for(with_template: Any) -> None:
    talk = record(*TALK)
    calling = tuple(replace(m, calls=(ToolCall("f"),)) if m.content == "B" else m for m in talk.messages)
    drop = refusal(replace(talk, messages=calling), with_template(_REFUSES % "false"))
    assert "no form for tool calls" in drop.detail and drop.path == "$.messages[3].content"


def test_encode_the_longest_that_fits(tiny_tokenizer: Any) -> None:
    length = len(encoded(asked("An answer."), tiny_tokenizer).input_ids)
    assert isinstance(encode(asked("An answer."), tiny_tokenizer, length), Example)
    drop = refusal(asked("An answer."), tiny_tokenizer, length - 1)
    assert drop.code == "too_long"
    assert str(length) in drop.detail
    assert str(length - 1) in drop.detail
    assert "max_tokens" in drop.fix
    assert drop.path == "$.messages[1].content"


def test_encode_an_answer_of_which_the_template_leaves_nothing(with_template: Any) -> None:
    drop = refusal(asked("<think>only thoughts</think>"), with_template(OPENED))
    assert (drop.code, drop.path) == ("nothing_to_learn", "$.messages[1].content")
    silent = with_template("{% for message in messages %}{{ message['role'] }} {% endfor %}")
    assert refusal(asked("A"), silent).code == "nothing_to_learn"


def test_encode_of_a_conversation_only_the_answers_that_are_left_are_learned(with_template: Any) -> None:
    talk = record(("user", "Q"), ("assistant", "<think>hm</think>"), ("user", "R"), ("assistant", "B"))
    assert learned(talk, with_template(OPENED)) == ["\n</think>\n\nB<|im_end|>"]


# --- tools and prompts -----------------------------------------------------------------------------------------------


def test_encode_tools_reach_the_template(with_template: Any) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
    tokenizer = with_template(
        "{% if tools %}{% for tool in tools %}[{{ tool['function']['name'] }}]{% endfor %}{% endif %}"
        "{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}"
    )
    talk = record(("user", "Q"), ("assistant", "A"), tools=json.dumps(tools))
    assert render(talk, tokenizer).text == "[look]Q<|im_end|>A<|im_end|>"
    assert render_prompt(talk, tokenizer).text == "[look]Q<|im_end|>"
    assert learned(talk, tokenizer) == ["A<|im_end|>"]
    assert render(asked("A"), tokenizer).text == "Q<|im_end|>A<|im_end|>"


def test_encode_the_prompt_is_the_text_up_to_the_last_answer(tiny_tokenizer: Any) -> None:
    talk = record(("system", "S"), ("user", "Q"), ("assistant", "A"), ("user", "R"), ("assistant", "B"))
    rendered = render(talk, tiny_tokenizer)
    text, spans = rendered.text, rendered.spans
    prompt = render_prompt(talk, tiny_tokenizer).text
    assert text == prompt + "B<|im_end|>\n"
    assert [text[first:end] for first, end in spans] == ["A<|im_end|>", "B<|im_end|>"]
    assert spans[-1][0] == len(prompt)


def test_encode_the_prompt_opens_what_the_template_opens(with_template: Any) -> None:
    prompt = render_prompt(asked("<think>\nhm</think>42"), with_template(KEPT)).text
    assert prompt.endswith("assistant\n<think>\n")
    assert render(asked("<think>\nhm</think>42"), with_template(KEPT)).text.startswith(prompt)


# --- many records ----------------------------------------------------------------------------------------------------


def test_encode_records_are_kept_in_order_and_drops_say_where(tiny_tokenizer: Any) -> None:
    records = [asked("one"), asked("far too long " * 50), asked("three")]
    examples, drops = encode_all(records, tiny_tokenizer, max_tokens=100)
    assert [example.record.answer for example in examples] == ["one", "three"]
    (drop,) = drops
    assert (drop.code, drop.stage, drop.place, drop.row) == (
        "too_long", "encode", Place("data.jsonl", 3, 2), {"raw": True}
    )  # fmt: skip
