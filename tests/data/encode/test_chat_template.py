"""Which roles are learned, what becomes of thoughts under real templates, and what of records that are too long."""

from __future__ import annotations

import copy
import json
from itertools import groupby, pairwise
from typing import Any

import pytest

from dsr1_tune.config import Encoding, Sequences
from dsr1_tune.data.encode.chat_template import render, render_prompt
from dsr1_tune.data.encode.example import IGNORED, Encoded, Example, encode, encode_all
from dsr1_tune.data.record import Drop, Message, Place, Record
from tests.real_templates import template, tokenizer_of

# The special tokens of DeepSeek-R1.
BEGIN, END, USER, ASSISTANT = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"

THINKS = [
    ("user", "One?"),
    ("assistant", "<think>\nhm\n</think>\n\n1"),
    ("user", "Two?"),
    ("assistant", "<think>\nso\n</think>\n\n2"),
]
SAYS = [("system", "Be brief."), ("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2")]


def record(*turns: tuple[str, str], tools: str = "", line: int = 1) -> Record:
    messages = tuple(Message(role, text, f"$.messages[{i}].content") for i, (role, text) in enumerate(turns))
    return Record(messages, Place("data.jsonl", line, line), tools, row={"raw": line})


# Their templates write no end behind the last answer by name, or another one behind it than behind earlier ones.
ENDS = {"glm4moe": "<|endoftext|>", "gptoss": "<|return|>", "phi3": "<|endoftext|>", "llama3": "<|eot_id|>"}


@pytest.fixture(scope="module")
def real() -> Any:
    """real("deepseek_r1_distill") is a tokenizer of bytes with that model's own chat template, as TRL ships it."""

    def real_(name: str) -> Any:
        eos = END if name in ("deepseek_r1_distill", "deepseekv3") else ENDS.get(name, "<|im_end|>")
        return tokenizer_of(template(name), eos, BEGIN)

    return real_


def learned(record: Record, tokenizer: Any, **settings: Any) -> list[str]:
    """What is learned, run by run."""
    outcome = encode(record, tokenizer, 10_000, Encoding(Sequences(**settings)))
    assert isinstance(outcome, Example), outcome
    runs = groupby(outcome.labels, key=lambda label: label != IGNORED)
    return [tokenizer.decode(list(run), skip_special_tokens=False) for is_learned, run in runs if is_learned]


def text_of(record: Record, tokenizer: Any, **settings: Any) -> str:
    return render(record, tokenizer, Encoding(Sequences(**settings))).text


# --- DeepSeek-R1 -----------------------------------------------------------------------------------------------------

R1 = pytest.mark.parametrize("name", ["deepseek_r1_distill", "deepseekv3"])


@R1
def test_chat_template_r1_is_what_these_tests_take_it_for(real: Any, name: str) -> None:
    """Its template removes the thoughts of every answer, and asks with a thought opened."""
    tokenizer = real(name)
    turns = [{"role": role, "content": text} for role, text in THINKS]
    shown = tokenizer.apply_chat_template(turns, tokenize=False)
    assert "think" not in shown
    assert shown.endswith(f"{USER}Two?{ASSISTANT}\n\n2{END}")
    assert render_prompt(record(*THINKS), tokenizer).text.endswith(f"{USER}Two?{ASSISTANT}<think>\n")


@R1
def test_chat_template_r1_learns_the_thoughts_that_its_template_would_remove(real: Any, name: str) -> None:
    tokenizer = real(name)
    assert learned(record(*THINKS), tokenizer) == [f"so\n</think>\n\n2{END}"]
    text = text_of(record(*THINKS), tokenizer)
    assert text == render_prompt(record(*THINKS), tokenizer).text + f"so\n</think>\n\n2{END}"
    # Earlier thoughts stay removed, as when the model is used.
    assert text.startswith(f"{BEGIN}{USER}One?{ASSISTANT}\n\n1{END}{USER}Two?")


@R1
def test_chat_template_r1_is_shown_masked_thoughts(real: Any, name: str) -> None:
    tokenizer = real(name)
    assert text_of(record(*THINKS), tokenizer, think="mask") == text_of(record(*THINKS), tokenizer)
    assert learned(record(*THINKS), tokenizer, think="mask") == [f"2{END}"]


@R1
def test_chat_template_r1_without_thoughts_closes_the_opened_one_at_once(real: Any, name: str) -> None:
    tokenizer = real(name)
    wanted = f"{BEGIN}Be brief.{USER}One?{ASSISTANT}1{END}{USER}Two?{ASSISTANT}<think>\n\n</think>\n\n2{END}"
    assert text_of(record(*SAYS), tokenizer) == wanted
    assert learned(record(*SAYS), tokenizer) == [f"1{END}", f"\n</think>\n\n2{END}"]
    assert learned(record(*SAYS), tokenizer, think="mask") == [f"1{END}", f"2{END}"]
    stripped = encode(record(SAYS[0], *THINKS), tokenizer, 1000, Encoding(Sequences(think="strip")))
    assert isinstance(stripped, Example)
    assert tokenizer.decode(stripped.input_ids, skip_special_tokens=False) == wanted


@R1
def test_chat_template_r1_with_tools(real: Any, name: str) -> None:
    """After a tool's result its template opens neither turn nor thought."""
    talk = record(("user", "Weather?"), ("assistant", "look()"), ("tool", "rain"), ("assistant", "Rain."))
    assert learned(talk, real(name)) == [f"look(){END}", f"Rain.{END}"]
    assert "<｜tool▁output▁begin｜>rain<｜tool▁output▁end｜>" in text_of(talk, real(name))


@R1
def test_chat_template_r1_keeps_the_system_prompt_first_wherever_it_is_asked_to_learn_it(real: Any, name: str) -> None:
    assert learned(record(*SAYS), real(name), learn=("system", "user")) == ["Be brief.", "One?", "Two?"]


# --- thoughts under other templates ----------------------------------------------------------------------------------


def test_chat_template_qwen3_shows_the_last_thought_itself(real: Any) -> None:
    assert learned(record(*THINKS), real("qwen3")) == ["<think>\nso\n</think>\n\n2<|im_end|>"]
    assert learned(record(*THINKS), real("qwen3"), think="mask") == ["2<|im_end|>"]
    text = text_of(record(*THINKS), real("qwen3"))
    assert "hm" not in text
    assert text.count("<think>") == 1


def test_chat_template_qwen3_learns_the_words_of_earlier_answers_that_it_frames_otherwise(real: Any) -> None:
    assert learned(record(*SAYS), real("qwen3")) == ["1<|im_end|>", "<think>\n\n</think>\n\n2<|im_end|>"]


def test_chat_template_gpt_oss_gets_the_thought_in_a_field_of_its_own(real: Any) -> None:
    thought, said = (
        "<|channel|>analysis<|message|>so<|end|>",
        "<|start|>assistant<|channel|>final<|message|>2<|return|>",
    )
    assert learned(record(*THINKS), real("gptoss")) == [thought + said]
    assert learned(record(*THINKS), real("gptoss"), think="mask") == ["2<|return|>"]
    assert "think>" not in text_of(record(*THINKS), real("gptoss"))


@pytest.mark.parametrize("name", ["llama3", "qwen2_5", "phi3", "lfm2", "glm4moe", "qwen3", "gptoss"])
def test_chat_template_stripped_thoughts_are_nowhere(real: Any, name: str) -> None:
    outcome = encode(record(*THINKS), real(name), 10_000, Encoding(Sequences(think="strip")))
    assert isinstance(outcome, Example)
    assert [message.content for message in outcome.record.messages] == ["One?", "1", "Two?", "2"]
    text = real(name).decode(outcome.input_ids, skip_special_tokens=False)
    assert "hm" not in text
    assert "so" not in text.split("Two?")[1]


@pytest.mark.parametrize("name", ["llama3", "qwen2_5", "phi3", "lfm2"])
def test_chat_template_templates_that_know_no_thoughts_show_all_of_them(real: Any, name: str) -> None:
    one, two = learned(record(*THINKS), real(name))
    assert one.startswith("<think>\nhm\n</think>\n\n1")
    assert two.startswith("<think>\nso\n</think>\n\n2")
    one, two = learned(record(*THINKS), real(name), think="mask")
    assert (one[0], two[0]) == ("1", "2")
    assert text_of(record(*THINKS), real(name), think="mask") == text_of(record(*THINKS), real(name))


@pytest.mark.parametrize("name", ["llama3", "qwen3", "deepseek_r1_distill", "glm4moe"])
def test_chat_template_masking_changes_no_answer_without_thoughts(real: Any, name: str) -> None:
    text = text_of(record(*SAYS), real(name))
    kept, masked = ("".join(learned(record(*SAYS), real(name), think=think)) for think in ("keep", "mask"))
    assert [answer in masked for answer in "12"] == [True, True]
    assert len(masked) <= len(kept)
    assert text == text_of(record(*SAYS), real(name), think="mask")


@pytest.mark.parametrize("think", ["strip", "mask"])
@pytest.mark.parametrize("answer", ["<think>hm, and then it breaks off", "<think>only thoughts</think>"])
def test_chat_template_an_answer_that_is_all_thought_is_dropped(tiny_tokenizer: Any, think: str, answer: str) -> None:
    outcome = encode(
        record(("user", "Q"), ("assistant", answer)), tiny_tokenizer, 1000, Encoding(Sequences(think=think))
    )
    assert isinstance(outcome, Drop)
    assert outcome.code == "nothing_to_learn"
    assert f"sequences.think={think}" in outcome.detail
    assert outcome.path == "$.messages[1].content"


# --- roles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roles", "wanted"),
    [
        (("assistant",), ["look()", "Rain."]),
        (("user",), ["Weather?"]),
        (("system",), ["Be brief."]),
        (("tool",), ["rain"]),
        (("user", "assistant"), ["Weather?", "look()", "Rain."]),
        (("system", "user", "assistant", "tool"), ["Be brief.", "Weather?", "look()", "rain", "Rain."]),
    ],
)
def test_chat_template_learns_the_chosen_roles_with_their_ends(
    tiny_tokenizer: Any, roles: Any, wanted: list[str]
) -> None:
    talk = record(
        ("system", "Be brief."), ("user", "Weather?"), ("assistant", "look()"), ("tool", "rain"), ("assistant", "Rain.")
    )
    assert learned(talk, tiny_tokenizer, learn=roles) == [f"{words}<|im_end|>" for words in wanted]


@pytest.mark.parametrize("name", ["llama3", "qwen2_5", "phi3", "lfm2", "glm4moe", "qwen3", "gptoss", "deepseekv3"])
def test_chat_template_headers_are_not_learned(real: Any, name: str) -> None:
    talk = record(("user", "Echo?"), ("assistant", "Echo?"), ("user", "Echo?"), ("assistant", "yes"))
    runs = learned(talk, real(name), learn=("user",))
    assert [run[:5] for run in runs] == ["Echo?", "Echo?"]
    assert not any("user" in run.lower() or "assistant" in run.lower() for run in runs)


def test_chat_template_a_system_prompt_that_the_template_puts_into_the_question(with_folded_system: Any) -> None:
    talk = record(("system", "Be brief."), ("user", "Q"), ("assistant", "A"))
    assert learned(talk, with_folded_system, learn=("system",)) == ["Be brief."]
    assert learned(talk, with_folded_system, learn=("user",)) == ["Q<|im_end|>"]


@pytest.fixture
def with_folded_system(tiny_tokenizer: Any) -> Any:
    """Some templates have no turn for the system prompt, and no conversation that ends with it."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = (
        "{% if messages | length == 1 and messages[0]['role'] == 'system' %}{{ raise_exception('no user') }}{% endif %}"
        "{% set ns = namespace(system='') %}{% for message in messages %}"
        "{% if message['role'] == 'system' %}{% set ns.system = message['content'] + '\n\n' %}{% else %}"
        "<|im_start|>{{ message['role'] }}\n{{ ns.system }}{{ message['content'] }}<|im_end|>\n"
        "{% set ns.system = '' %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


# --- long records ----------------------------------------------------------------------------------------------------

LONG = [("system", "S")] + [turn for n in range(6) for turn in (("user", f"{n}?" * 5), ("assistant", f"{n}!" * 5))]


def encoded(records: list[Record], tokenizer: Any, max_tokens: int, **settings: Any) -> Encoded:
    return encode_all(records, tokenizer, max_tokens, Encoding(Sequences(**settings)))


def test_chat_template_long_records_are_dropped_unless_told_otherwise(tiny_tokenizer: Any) -> None:
    done = encoded([record(*LONG)], tiny_tokenizer, 120)
    assert ([drop.code for drop in done.drops], done.examples) == (["too_long"], [])
    assert (done.num_truncated, done.num_split, done.lost_parts) == (0, 0, ())


def test_chat_template_truncated_records_lose_their_end(tiny_tokenizer: Any) -> None:
    whole = encode(record(*LONG), tiny_tokenizer, 10_000)
    assert isinstance(whole, Example)
    done = encoded([record(*LONG), record(*SAYS)], tiny_tokenizer, 120, longer="truncate")
    cut, untouched = done.examples
    assert (cut.input_ids, cut.labels) == (whole.input_ids[:120], whole.labels[:120])
    assert cut.num_cut == len(whole.input_ids) - 120
    assert untouched.num_cut == 0
    assert done.num_truncated == 1
    assert not done.drops


def test_chat_template_a_record_of_which_the_cut_leaves_nothing_to_learn_is_dropped(tiny_tokenizer: Any) -> None:
    done = encoded([record(("user", "Q" * 200), ("assistant", "A"))], tiny_tokenizer, 120, longer="truncate")
    (drop,) = done.drops
    assert (drop.code, done.num_truncated) == ("too_long", 0)
    assert "behind the cut" in drop.fix


def test_chat_template_split_records_keep_system_prompt_and_every_exchange_once(tiny_tokenizer: Any) -> None:
    done = encoded([record(*LONG, tools=json.dumps([]))], tiny_tokenizer, 120, longer="split")
    assert len(done.examples) > 1
    assert (done.num_split, done.drops, done.lost_parts) == (1, [], ())
    messages = [example.record.messages for example in done.examples]
    assert all(some[0] == record(*LONG).messages[0] for some in messages)
    assert [message for some in messages for message in some[1:]] == list(record(*LONG).messages[1:])
    assert all(some[1].role == "user" and some[-1].role == "assistant" for some in messages)
    assert all(len(example.input_ids) <= 120 for example in done.examples)
    assert {example.record.place for example in done.examples} == {record(*LONG).place}
    # No two neighbours would have fitted together.
    for one, other in pairwise(messages):
        together = Record((*one, *other[1:3]), Place("data.jsonl", 1, 1))
        assert isinstance(encode(together, tiny_tokenizer, 120), Drop)


def test_chat_template_tool_calls_are_not_torn_from_their_results(tiny_tokenizer: Any) -> None:
    turns = [("user", "Q" * 20), ("assistant", "look()"), ("tool", "R" * 20), ("assistant", "A" * 20)]
    done = encoded([record(*turns, *turns)], tiny_tokenizer, 200, longer="split")
    assert [[message.role for message in example.record.messages] for example in done.examples] == [
        ["user", "assistant", "tool", "assistant"]
    ] * 2


def test_chat_template_a_part_that_is_too_long_by_itself_is_lost_and_told(tiny_tokenizer: Any) -> None:
    turns = [*LONG[:3], ("user", "Q" * 300), ("assistant", "A"), *LONG[3:5]]
    done = encoded([record(*turns)], tiny_tokenizer, 120, longer="split")
    assert [len(example.record.messages) for example in done.examples] == [3, 3]
    (lost,) = done.lost_parts
    assert (lost.code, lost.path, lost.stage, lost.place) == (
        "too_long", "$.messages[4].content", "encode", Place("data.jsonl", 1, 1)
    )  # fmt: skip
    assert (done.num_split, done.drops) == (1, [])


def test_chat_template_a_record_of_which_no_part_fits_is_dropped_once(tiny_tokenizer: Any) -> None:
    turns = [("user", "Q" * 300), ("assistant", "A"), ("user", "Q" * 300), ("assistant", "A")]
    done = encoded([record(*turns)], tiny_tokenizer, 120, longer="split")
    assert ([drop.code for drop in done.drops], done.examples, done.lost_parts) == (["too_long"], [], ())
    assert done.num_split == 0


def test_chat_template_records_that_fit_are_not_split(tiny_tokenizer: Any) -> None:
    done = encoded([record(*SAYS)], tiny_tokenizer, 1000, longer="split")
    assert [example.record for example in done.examples] == [record(*SAYS)]
    assert done.num_split == 0
