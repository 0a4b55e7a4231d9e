"""Turns as public data sets write them: calls, results, thoughts and weights, from the file to what is learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsr1_tune.align.preference.encode import PairExample, encode_pair
from dsr1_tune.config import DpoRun
from dsr1_tune.config.sections import Encoding, Sequences, Template
from dsr1_tune.data.encode.example import IGNORED, Example, encode, encode_all
from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Drop, Message, Place, Preference, Record
from tests.data.encode.slow_labels import DEEPSEEK_V3_1
from tests.real_templates import template, tokenizer_of

ASK, ANSWER = {"role": "user", "content": "Weather in Oslo?"}, {"role": "assistant", "content": "Cold."}
CITY = {"city": "Oslo"}
END = {"qwen3": "<|im_end|>", "deepseekv3": "<｜end▁of▁sentence｜>", "deepseek_r1_distill": "<｜end▁of▁sentence｜>"}
END |= {"qwen2_5": "<|im_end|>"}


def base(name: str) -> Any:
    return tokenizer_of(DEEPSEEK_V3_1 if name == "deepseek_v3_1" else template(name))


def openai_call(arguments: Any = CITY, name: str = "seek", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def rows_of(tmp_path: Path, *rows: Any) -> list[Any]:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return list(read([file]))


def row_of(tmp_path: Path, *turns: Any, **more: Any) -> Any:
    (row,) = rows_of(tmp_path, {"messages": list(turns), **more})
    return row


def record_of(tmp_path: Path, *turns: Any, **more: Any) -> Record:
    row = row_of(tmp_path, *turns, **more)
    assert isinstance(row, Record), row
    return row


def calls_of(record: Record) -> list[list[tuple[str, Any]]]:
    """Of each turn with calls: (name, arguments) of each."""
    return [[(c.name, json.loads(c.arguments)) for c in m.calls] for m in record.messages if m.calls]


def spans(example: Example, tokenizer: Any) -> list[str]:
    """What is learned, a text for each stretch."""
    found: list[list[int]] = [[]]
    for label in example.labels:
        if label != IGNORED:
            found[-1].append(label)
        elif found[-1]:
            found.append([])
    return [tokenizer.decode(ids) for ids in found if ids]


def learned(record: Record, name: str, encoding: Encoding | None = None) -> list[str]:
    tokenizer = base(name)
    examples, drops = encode_all([record], tokenizer, 10_000, encoding or Encoding())
    assert not drops, drops
    return [span for example in examples for span in spans(example, tokenizer)]


# --- F1: characters that stand for something else --------------------------------------------------------------


@pytest.mark.parametrize("name", ["deepseekv3", "deepseek_r1_distill"])
@pytest.mark.parametrize("think", ["keep", "strip", "mask"])
@pytest.mark.parametrize("odd", ["\ufffc", "\ufffc\ufffc", "\ue000", "\ufdd0", "\U0010fffd", "\x00"])
def test_odd_characters_in_a_question_change_nothing_that_is_learned(name: str, think: Any, odd: str) -> None:
    turns = (Message("system", f"S{odd}"), Message("user", f"See {odd} this?"), Message("assistant", "It is a cat."))
    said = learned(Record(turns, Place("a", 1, 0)), name, Encoding(sequences=Sequences(think=think)))
    assert len(said) == 1 and said[0].endswith(f"It is a cat.{END[name]}")
    assert said[0].removesuffix(f"It is a cat.{END[name]}").strip() in ("", "</think>")


@pytest.mark.parametrize("name", ["deepseekv3", "deepseek_r1_distill"])
def test_odd_characters_in_two_turns_leave_what_is_behind_the_last_answer_alone(name: str) -> None:
    turns = (
        Message("user", "\ufffc one?"),
        Message("assistant", "<think>\nhm\n</think>\n\nFirst."),
        Message("user", "And \ufffc two?"),
        Message("assistant", "Second \ufffc it is."),
    )
    (said,) = learned(Record(turns, Place("a", 1, 0)), name)
    assert said.replace("</think>", "").strip() == f"Second \ufffc it is.{END[name]}"


@pytest.mark.parametrize("name", ["deepseekv3", "deepseek_r1_distill", "deepseek_v3_1"])
def test_odd_characters_in_a_pairs_question_leave_its_answers_alone(name: str) -> None:
    tokenizer, config = base(name), DpoRun.model_validate({"schedule": {"max_tokens": 1000}})
    asked = (Message("system", "\ufffc"), Message("user", "See \ufffc this?"))
    good, bad = Message("assistant", "A cat."), Message("assistant", "A \ufffc dog.")
    pair = encode_pair(Preference(asked, good, bad, Place("a", 1, 0)), tokenizer, config)
    assert isinstance(pair, PairExample)
    end = "<｜end▁of▁sentence｜>"
    assert tokenizer.decode(pair.chosen_ids).replace("</think>", "").strip() == f"A cat.{end}"
    assert tokenizer.decode(pair.rejected_ids).replace("</think>", "").strip() == f"A \ufffc dog.{end}"


# --- F2: calls beside words and thoughts -----------------------------------------------------------------------


def _scene(**assistant: Any) -> tuple[Any, ...]:
    return (ASK, {"role": "assistant", **assistant}, {"role": "tool", "content": "3 C"}, ANSWER)


BESIDE: dict[str, tuple[dict[str, Any], str]] = {
    "words": ({"content": "Let me look.", "tool_calls": [openai_call()]}, "Let me look."),
    "thought in content": ({"content": "<think>hm</think>", "tool_calls": [openai_call()]}, "hm"),
    "thought and words": ({"content": "<think>hm</think>Well.", "tool_calls": [openai_call()]}, "Well."),
    "reasoning_content, empty": ({"content": "", "reasoning_content": "hm", "tool_calls": [openai_call()]}, "hm"),
    "reasoning_content, null": ({"content": None, "reasoning_content": "hm", "tool_calls": [openai_call()]}, "hm"),
    "reasoning_content, absent": ({"reasoning_content": "hm", "tool_calls": [openai_call()]}, "hm"),
    "reasoning": ({"content": "Well.", "reasoning": "hm", "tool_calls": [openai_call()]}, "hm"),
    "thinking": ({"content": "Well.", "thinking": "hm", "tool_calls": [openai_call()]}, "hm"),
    "legacy": ({"content": "Well.", "function_call": {"name": "seek", "arguments": '{"city": "Oslo"}'}}, "Well."),
    "legacy, null": ({"content": None, "function_call": {"name": "seek", "arguments": '{"city": "Oslo"}'}}, ""),
    "bare function": ({"content": "Well.", "tool_calls": [{"name": "seek", "arguments": CITY}]}, "Well."),
    "calls as text": ({"content": "Well.", "tool_calls": json.dumps([openai_call()])}, "Well."),
    "parts": (
        {"content": [{"type": "text", "text": "Well."}], "tool_calls": [openai_call()]},
        "Well.",
    ),
    "tool_use part": (
        {
            "content": [
                {"type": "text", "text": "Well."},
                {"type": "tool_use", "id": "t1", "name": "seek", "input": CITY},
            ]
        },
        "Well.",
    ),
    "tool_use part alone": ({"content": [{"type": "tool_use", "id": "t1", "name": "seek", "input": CITY}]}, ""),
    "thinking part and tool_use": (
        {
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "tool_use", "id": "t1", "name": "seek", "input": CITY},
            ]
        },
        "hm",
    ),
    "reasoning part": (
        {
            "content": [{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "W."}],
            "tool_calls": [openai_call()],
        },
        "hm",
    ),
}


@pytest.mark.parametrize("case", BESIDE)
def test_call_beside_words_or_a_thought_is_kept_with_them(tmp_path: Path, case: str) -> None:
    turn, words = BESIDE[case]
    record = record_of(tmp_path, *_scene(**turn))
    assert calls_of(record) == [[("seek", CITY)]]
    assert words in record.messages[1].content
    if words == "hm":
        content = record.messages[1].content
        assert "<think>" in content and "</think>" in content


def test_call_beside_words_is_learned_with_them(tmp_path: Path) -> None:
    turns = _scene(content="Let me look.", tool_calls=[openai_call('{"city": "Oslo"}')])
    said = learned(record_of(tmp_path, *turns), "qwen3")
    call = '<tool_call>\n{"name": "seek", "arguments": {"city": "Oslo"}}\n</tool_call>'
    assert any(span.endswith(f"Let me look.\n{call}<|im_end|>") for span in said), said


def test_pair_that_differs_in_its_call_alone_is_read(tmp_path: Path) -> None:
    answers = [
        [{"role": "assistant", "content": "Sure.", "tool_calls": [openai_call({"city": city})]}]
        for city in ("Oslo", "Rome")
    ]
    shown = [ASK, {"role": "assistant", "content": "Hm.", "tool_calls": [openai_call()]}]
    shown += [{"role": "tool", "content": "3 C"}, ANSWER, {"role": "user", "content": "And now?"}]
    (row,) = rows_of(tmp_path, {"prompt": shown, "chosen": answers[0], "rejected": answers[1]})
    assert isinstance(row, Preference), row
    assert row.chosen.calls and row.chosen.calls != row.rejected.calls
    assert [len(m.calls) for m in row.prompt] == [0, 1, 0, 0, 0]


def test_pair_of_whole_conversations_keeps_the_calls_that_both_share(tmp_path: Path) -> None:
    before = [ASK, {"role": "assistant", "content": "Hm.", "tool_calls": [openai_call()]}]
    before += [{"role": "tool", "content": "3 C"}]
    whole = [[*before, {"role": "assistant", "content": said}] for said in ("Cold.", "Warm.")]
    (row,) = rows_of(tmp_path, {"chosen": whole[0], "rejected": whole[1]})
    assert isinstance(row, Preference), row
    assert [len(m.calls) for m in row.prompt] == [0, 1, 0]


# --- F3: arguments in any form are one form ---------------------------------------------------------------------

ARGUMENTS: dict[str, Any] = {
    "plain": CITY,
    "none": {},
    "quotes": {"q": 'He said "no"', "path": "C:\\new"},
    "lines": {"text": "one\ntwo\r\n\tthree"},
    "Chinese and emoji": {"城市": "北京 👩‍👩‍👧", "é": "e\u0301"},
    "numbers": {"n": 3, "f": 1.5, "big": 12345678901234567890, "yes": True, "no": False},
    "nested": {"a": {"b": [1, {"c": "d"}], "e": {}}, "l": []},
    "JSON in text": {"json": '{"x": "y"}', "list": "[1]"},
    "text like numbers": {"zip": "00123", "yes": "true"},
    "control tokens": {"x": "<|im_end|>"},
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_as_text_or_object_are_one_call(tmp_path: Path, case: str) -> None:
    arguments = ARGUMENTS[case]
    forms = [arguments, json.dumps(arguments), json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))]
    records = [record_of(tmp_path, *_scene(content=None, tool_calls=[openai_call(form)])) for form in forms]
    assert [calls_of(record) for record in records] == [[[("seek", arguments)]]] * 3
    assert learned(records[0], "qwen3") == learned(records[1], "qwen3") == learned(records[2], "qwen3")
    said = next(span for span in learned(records[0], "qwen3") if "<tool_call>" in span)
    inner = said.split("<tool_call>\n")[1].split("\n</tool_call>")[0]
    assert json.loads(inner) == {"name": "seek", "arguments": arguments}
    assert said.endswith("</tool_call><|im_end|>")
    said = next(span for span in learned(records[0], "deepseekv3") if "```json" in span)
    assert json.loads(said.split("```json\n")[1].split("\n```")[0]) == arguments
    assert learned(records[0], "deepseekv3") == learned(records[1], "deepseekv3") == learned(records[2], "deepseekv3")


@pytest.mark.parametrize("arguments", ["", "{}", {}, None])
def test_call_without_arguments_has_empty_ones(tmp_path: Path, arguments: Any) -> None:
    record = record_of(tmp_path, *_scene(content=None, tool_calls=[openai_call(arguments)]))
    assert calls_of(record) == [[("seek", {})]]


@pytest.mark.parametrize(
    "value", ['{"name": "seek", "arguments": {"city": "Oslo"}}', {"name": "seek", "arguments": CITY}]
)
def test_sharegpt_call_is_a_call(tmp_path: Path, value: Any) -> None:
    turns = [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": value},
        {"from": "observation", "value": "3 C"},
        {"from": "gpt", "value": "Cold."},
    ]
    (row,) = rows_of(tmp_path, {"conversations": turns})
    assert isinstance(row, Record), row
    assert calls_of(row) == [[("seek", CITY)]] and row.messages[2].role == "tool"


def test_sharegpt_call_with_arguments_as_text(tmp_path: Path) -> None:
    value = json.dumps({"name": "seek", "arguments": json.dumps(CITY)})
    turns = [{"from": "human", "value": "W?"}, {"from": "function_call", "value": value}]
    (row,) = rows_of(tmp_path, {"conversations": turns})
    assert isinstance(row, Record), row
    assert calls_of(row) == [[("seek", CITY)]]


def test_tool_call_tags_in_text_are_learned_as_the_template_writes_calls(tmp_path: Path) -> None:
    text = '<tool_call>\n{"name": "seek", "arguments": {"city": "Oslo"}}\n</tool_call>'
    record = record_of(tmp_path, *_scene(content=text))
    assert any(span.endswith(f"{text}<|im_end|>") for span in learned(record, "qwen3"))


RESULTS: list[tuple[Any, str]] = [
    ({"role": "tool", "content": "3 C"}, "3 C"),
    ({"role": "tool", "content": {"temp": 3, "ok": True}}, "temp"),
    ({"role": "tool", "content": [{"temp": 3}]}, "temp"),
    ({"role": "tool", "content": [{"type": "text", "text": "3 C"}], "tool_call_id": "c1"}, "3 C"),
    ({"role": "function", "name": "seek", "content": "3 C"}, "3 C"),
    ({"role": "tool_response", "content": "3 C"}, "3 C"),
    ({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "3 C"}]}, "3 C"),
    (
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "3 C"}]}],
        },
        "3 C",
    ),
    ({"role": "tool", "content": ""}, ""),
    ({"role": "tool", "content": 3}, "3"),
]


@pytest.mark.parametrize(("turn", "words"), RESULTS, ids=[json.dumps(turn) for turn, _ in RESULTS])
def test_result_of_a_call_in_any_form_is_the_tools(tmp_path: Path, turn: Any, words: str) -> None:
    calling = {"role": "assistant", "content": None, "tool_calls": [openai_call(id="c1")]}
    record = record_of(tmp_path, ASK, calling, turn, ANSWER)
    assert [m.role for m in record.messages] == ["user", "assistant", "tool", "assistant"]
    content = record.messages[2].content
    assert words in content and "'" not in content


# --- F4: every answer ends ---------------------------------------------------------------------------------------

ENDS = {
    "glm4moe": ("<|user|>", "<|observation|>"),
    "qwen3": ("<|im_end|>",) * 2,
    "qwen3_5_think": ("<|im_end|>",) * 2,
    "qwen3_6": ("<|im_end|>",) * 2,
    "lfm2_v2": ("<|im_end|>",) * 2,
    "gptoss": ("<|return|>", "<|call|>"),
    "nemotron_3_nano": ("<|im_end|>",) * 2,
    "llama3_1": ("<|eot_id|>",) * 2,
}


@pytest.mark.parametrize("name", ENDS)
def test_calls_and_answers_are_learned_with_their_end(tmp_path: Path, name: str) -> None:
    answer, call = ENDS[name]
    said = learned(record_of(tmp_path, *_scene(content=None, tool_calls=[openai_call()])), name)
    (calling,) = [span for span in said if "seek" in span]
    (answering,) = [span for span in said if "Cold." in span]
    assert calling.endswith(call) and calling.count(call) == 1
    assert answering.endswith(answer) and answering.count(answer) == 1


@pytest.mark.parametrize("name", [*sorted(set(ENDS) - {"gptoss"}), "phi3", "gemma3", "cohere", "cohere2", "qwen2_5"])
def test_earlier_answers_are_learned_with_their_end(tmp_path: Path, name: str) -> None:
    turns = [ASK, {"role": "assistant", "content": "First."}, {"role": "user", "content": "And?"}, ANSWER]
    first, last = learned(record_of(tmp_path, *turns), name)
    end = last.split("Cold.")[1]
    assert end.strip() and first.endswith(f"First.{end}")


# --- F6: nulls of Arrow ------------------------------------------------------------------------------------------


def parquet_of(tmp_path: Path, rows: list[dict[str, Any]]) -> list[Any]:
    from datasets import Dataset

    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    return list(read([tmp_path / "rows.parquet"]))


def tool(name: str, **properties: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


def calling_row(name: str, arguments: dict[str, Any], **properties: Any) -> dict[str, Any]:
    calling = {"role": "assistant", "content": "", "tool_calls": [openai_call(arguments, name)]}
    turns = [ASK, calling, {"role": "tool", "content": "3 C"}, ANSWER]
    return {"messages": turns, "tools": [tool(name, **properties)]}


UNIONS: dict[str, list[dict[str, Any]]] = {
    "two kinds of arguments": [{"city": "Paris"}, {"time": 5, "zone": "CET"}],
    "nested": [{"at": {"city": "Paris"}}, {"at": {"zone": "CET"}, "n": 1}],
    "lists of objects": [{"stops": [{"city": "Paris"}]}, {"stops": [{"zone": "CET"}, {"city": "Rome"}]}],
}


@pytest.mark.parametrize("case", UNIONS)
def test_nulls_that_a_table_adds_to_arguments_are_none_of_them(tmp_path: Path, case: str) -> None:
    rows = [calling_row(f"f{n}", arguments) for n, arguments in enumerate(UNIONS[case])]
    for row in rows:
        del row["tools"]
    found = parquet_of(tmp_path, rows)
    assert [calls_of(row) for row in found] == [[[(f"f{n}", one)]] for n, one in enumerate(UNIONS[case])]


def test_nulls_that_a_table_adds_to_schemas_are_none_of_them(tmp_path: Path) -> None:
    text = {"type": "string", "description": "Which.", "enum": ["a", "b"]}
    rows = [calling_row("a", CITY, city=text), calling_row("b", {"zone": "CET"}, zone={"type": "string"})]
    found = parquet_of(tmp_path, rows)
    assert [json.loads(row.tools) for row in found] == [row["tools"] for row in rows]


def test_nulls_that_a_table_adds_to_turns_leave_weights_and_calls_alone(tmp_path: Path) -> None:
    excluded = {"role": "assistant", "content": "Bad.", "weight": 0}
    rows = [
        {"messages": [ASK, excluded, {"role": "user", "content": "And?"}, ANSWER]},
        {"messages": [ASK, {"role": "assistant", "content": "Sure.", "tool_calls": [openai_call()]}]},
    ]
    one, other = parquet_of(tmp_path, rows)
    assert [m.is_learned for m in one.messages if m.role == "assistant"] == [False, True]
    assert calls_of(other) == [[("seek", CITY)]] and other.messages[-1].content == "Sure."
    assert other.messages[-1].is_learned and not calls_of(one)


# --- F7: control tokens in texts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen3", "deepseekv3", "qwen2_5"])
@pytest.mark.parametrize("where", ["answer", "question", "system", "result", "arguments", "earlier answer"])
def test_control_tokens_in_texts_are_text(tmp_path: Path, name: str, where: str) -> None:
    tokenizer, end = base(name), END[name]

    def said(place: str) -> str:
        return f"x {end}\n<|im_start|>system y" if place == where else "x"

    call = openai_call({"city": said("arguments")})
    turns = [
        {"role": "system", "content": said("system")},
        {"role": "user", "content": said("question")},
        {"role": "assistant", "content": said("earlier answer")},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": said("result")},
        {"role": "assistant", "content": said("answer")},
    ]
    record = record_of(tmp_path, *turns)
    counts = []
    for keep in ("text", "keep"):
        example = encode(record, tokenizer, 10_000, Encoding(special_tokens=keep))  # type: ignore[arg-type]
        assert isinstance(example, Example), example
        counts.append(sum(tokenizer.convert_tokens_to_ids(end) == i for i in example.input_ids))
        assert end in tokenizer.decode(example.input_ids)
    assert counts[1] == counts[0] + 1
    for span in spans(encode(record, tokenizer, 10_000, Encoding()), tokenizer):  # type: ignore[arg-type]
        assert span.count(end) == 1 + (where in ("answer", "earlier answer", "arguments") and "system y" in span)


# --- F12: turns that are not to be learned -----------------------------------------------------------------------

EXCLUDED = [{"weight": 0}, {"weight": 0.0}, {"loss": False}, {"train": False}, {"loss_mask": 0}, {"masked": True}]
EXCLUDED += [{"weight": "0"}, {"loss": "false"}, {"train": 0}, {"loss_mask": False}, {"masked": 1}, {"loss": 0}]
INCLUDED = [{"weight": 1}, {"weight": 1.0}, {"loss": True}, {"train": True}, {"loss_mask": 1}, {"masked": False}]
INCLUDED += [{"weight": None}, {"loss": None}, {"train": None}, {"loss_mask": None}, {"masked": None}]


@pytest.mark.parametrize("said", [*EXCLUDED, *INCLUDED], ids=str)
@pytest.mark.parametrize("style", ["messages", "conversations"])
def test_turn_that_its_author_excludes_is_not_learned(tmp_path: Path, said: dict[str, Any], style: str) -> None:
    if style == "messages":
        first, *others = (
            {"role": "assistant", "content": "BAD five.", **said},
            {"role": "user", "content": "No?"},
            ANSWER,
        )
        turns: list[Any] = [ASK, first, *others]
    else:
        turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "BAD five.", **said}]
        turns += [{"from": "human", "value": "No?"}, {"from": "gpt", "value": "Cold."}]
    (record,) = rows_of(tmp_path, {style: turns})
    assert isinstance(record, Record), record
    words = learned(record, "qwen3")
    assert any("BAD" in span for span in words) == (said in INCLUDED)
    assert any("Cold." in span for span in words)


ANY_MASK = ("weight", "loss", "loss_weight", "loss_mask", "train", "training", "trainable", "masked")


@pytest.mark.parametrize("name", ["weight", "loss_weight"])
@pytest.mark.parametrize("value", [0.5, "0.5", 0.001], ids=repr)
def test_weight_between_is_refused_on_an_answer(tmp_path: Path, name: str, value: Any) -> None:
    drop = row_of(tmp_path, ASK, {**ANSWER, name: value})
    assert isinstance(drop, Drop), drop
    assert (drop.code, drop.path) == ("wrong_type", f"$.messages[1].{name}")
    assert str(value) in drop.detail and drop.fix
    row = row_of(tmp_path, {**ASK, name: value}, ANSWER)
    assert isinstance(row, Record) and row.messages[1].is_learned


@pytest.mark.parametrize("name", ANY_MASK)
@pytest.mark.parametrize("value", [2, 1.23, "half", "1e999", [0, 1], [], {"a": 0}], ids=repr)
def test_what_is_no_mask_leaves_a_turn_to_be_learned(tmp_path: Path, name: str, value: Any) -> None:
    row = row_of(tmp_path, ASK, {**ANSWER, name: value})
    assert isinstance(row, Record), row
    assert row.messages[1].is_learned


def test_loss_that_was_measured_is_no_mask_and_a_weight_below_zero_is_no_yes(tmp_path: Path) -> None:
    said = [{"loss": 0.5}, {"loss_mask": 0.3}, {"train": 0.5}, {"masked": 0.5}, {"weight": -1}, {"loss_weight": "-2"}]
    rows = [row_of(tmp_path, ASK, {**ANSWER, **one}) for one in said]
    assert [row.messages[1].is_learned for row in rows] == [True, True, True, True, False, False]


@pytest.mark.parametrize("name", ANY_MASK)
@pytest.mark.parametrize("yes", [1, 1.0, True, "1", "1.0", "true", "True", " yes "], ids=repr)
@pytest.mark.parametrize("no", [0, 0.0, False, "0", "0.0", "false", "FALSE", "no"], ids=repr)
def test_weight_is_the_same_as_number_text_and_boolean(tmp_path: Path, name: str, yes: Any, no: Any) -> None:
    rows = rows_of(tmp_path, *({"messages": [ASK, {**ANSWER, name: value}]} for value in (yes, no, None, "")))
    said = [row.messages[-1].is_learned for row in rows]
    assert said == [name != "masked", name == "masked", True, True]


def test_weight_of_question_and_answer_in_one_object_is_the_answers(tmp_path: Path) -> None:
    pairs = [{"human": "q1", "assistant": "a1", "weight": 0}, {"human": "q2", "assistant": "a2"}]
    (row,) = rows_of(tmp_path, {"conversation": pairs})
    assert [message.is_learned for message in row.messages] == [True, False, True, True]
    (drop,) = rows_of(tmp_path, {"conversation": [{**pairs[0], "weight": 0.5}]})
    assert (drop.code, drop.path) == ("wrong_type", "$.conversation[0].weight")


def test_excluded_call_is_not_learned(tmp_path: Path) -> None:
    turns = _scene(content="<think>hm</think>", tool_calls=[openai_call()], weight=0)
    for name in ("qwen3", "deepseekv3", "gptoss"):
        assert not any("seek" in span for span in learned(record_of(tmp_path, *turns), name))


def test_row_whose_every_answer_is_excluded_teaches_nothing(tmp_path: Path) -> None:
    record = record_of(tmp_path, ASK, {**ANSWER, "weight": 0})
    examples, drops = encode_all([record], base("qwen3"), 10_000, Encoding())
    assert not examples and [drop.code for drop in drops] == ["nothing_to_learn"]


# --- F13: modes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "opened", "closed"),
    [
        ("deepseek_v3_1", "<think>", "</think>"),
        ("qwen3_5_nothink", "<think>", "</think>"),
        ("nemotron_3_nano", "<think>", "</think>"),
    ],
)
def test_thoughts_are_learned_in_the_mode_that_asks_for_them(name: str, opened: str, closed: str) -> None:
    tokenizer = base(name)
    for content, asked in (("<think>\nhm\n</think>\n\n1", opened), ("1", closed)):
        record = Record((Message("user", "Q"), Message("assistant", content)), Place("a", 1, 0))
        example = encode(record, tokenizer, 1000, Encoding())
        assert isinstance(example, Example)
        first = next(n for n, label in enumerate(example.labels) if label != IGNORED)
        whole = "".join(tokenizer.decode(example.input_ids).split())
        if asked == opened:
            assert tokenizer.decode(example.input_ids[:first]).rstrip().endswith(asked)
            assert "<think>hm</think>1" in whole
        assert "</think><think>" not in whole
        off = encode(record, tokenizer, 1000, Encoding(template=Template(thinking="off")))
        assert isinstance(off, Example) and "hm" not in tokenizer.decode(off.input_ids)


# --- G1: several calls --------------------------------------------------------------------------------------------


def test_calls_in_turns_of_their_own_are_one_turns_calls(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "W?"}]
    turns += [{"from": "function_call", "value": json.dumps({"name": f"f{n}", "arguments": {"n": n}})} for n in (1, 2)]
    turns += [{"from": "observation", "value": f"r{n}"} for n in (1, 2)]
    turns += [{"from": "gpt", "value": "Cold."}]
    (row,) = rows_of(tmp_path, {"conversations": turns})
    assert isinstance(row, Record), row
    assert calls_of(row) == [[("f1", {"n": 1}), ("f2", {"n": 2})]]
    assert [m.role for m in row.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    (calling,) = [span for span in learned(row, "qwen3") if "f1" in span]
    assert calling.count("<tool_call>") == 2 and calling.endswith("</tool_call><|im_end|>")


def test_calls_of_openai_in_turns_of_their_own_are_one_turns_calls(tmp_path: Path) -> None:
    calling = [
        {"role": "assistant", "content": None, "tool_calls": [openai_call({"n": n}, f"f{n}", id=f"c{n}")]}
        for n in (1, 2)
    ]
    results = [{"role": "tool", "content": f"r{n}", "tool_call_id": f"c{n}"} for n in (1, 2)]
    record = record_of(tmp_path, ASK, *calling, *results, ANSWER)
    assert calls_of(record) == [[("f1", {"n": 1}), ("f2", {"n": 2})]]


def test_words_and_then_a_call_in_a_turn_of_its_own_are_one_turn(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "W?"}, {"from": "gpt", "value": "Let me look."}]
    turns += [{"from": "function_call", "value": json.dumps({"name": "seek", "arguments": CITY})}]
    turns += [{"from": "observation", "value": "3 C"}, {"from": "gpt", "value": "Cold."}]
    (row,) = rows_of(tmp_path, {"conversations": turns})
    assert isinstance(row, Record), row
    assert calls_of(row) == [[("seek", CITY)]]
    assert row.messages[1].content == "Let me look."


def test_legacy_function_call_and_its_result(tmp_path: Path) -> None:
    calling = {"role": "assistant", "content": None, "function_call": {"name": "seek", "arguments": '{"city": "Oslo"}'}}
    record = record_of(tmp_path, ASK, calling, {"role": "function", "name": "seek", "content": "3 C"}, ANSWER)
    assert calls_of(record) == [[("seek", CITY)]]
    assert record.messages[2].role == "tool" and record.messages[2].name == "seek"


def test_list_of_calls_in_one_sharegpt_turn(tmp_path: Path) -> None:
    value = json.dumps([{"name": f"f{n}", "arguments": {"n": n}} for n in (1, 2)])
    turns = [{"from": "human", "value": "W?"}, {"from": "function_call", "value": value}]
    (row,) = rows_of(tmp_path, {"conversations": turns})
    assert isinstance(row, Record), row
    assert calls_of(row) == [[("f1", {"n": 1}), ("f2", {"n": 2})]]


# --- G3: systems anywhere -----------------------------------------------------------------------------------------

SYSTEMS = {
    "amid": [ASK, {"role": "assistant", "content": "First."}, {"role": "system", "content": "Rule1"}, ASK, ANSWER],
    "two": [{"role": "system", "content": "Rule0"}, {"role": "system", "content": "Rule1"}, ASK, ANSWER],
    "developer": [{"role": "system", "content": "Rule0"}, {"role": "developer", "content": "Rule1"}, ASK, ANSWER],
    "behind the question": [ASK, {"role": "system", "content": "Rule1"}, ANSWER],
}


@pytest.mark.parametrize("case", SYSTEMS)
@pytest.mark.parametrize(
    "name", ["qwen3", "qwen2_5", "llama3", "deepseekv3", "gptoss", "qwen3_6", "deepseek_r1_distill"]
)
def test_system_turns_are_shown_or_the_row_is_refused(tmp_path: Path, case: str, name: str) -> None:
    record = record_of(tmp_path, *SYSTEMS[case])
    tokenizer = base(name)
    examples, drops = encode_all([record], tokenizer, 10_000, Encoding())
    if drops:
        assert [drop.code for drop in drops] == ["template_refused"]
        turns = [{"role": m.role, "content": m.content} for m in record.messages]
        try:
            shown = tokenizer.apply_chat_template(turns, tokenize=False)
        except Exception:
            return
        assert not all(m.content in shown for m in record.messages)
        return
    shown = tokenizer.decode(examples[0].input_ids)
    assert all(m.content in shown for m in record.messages)
    assert not any("Rule" in span for span in spans(examples[0], tokenizer))


# --- G6: what is cut must leave something of the answer ----------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen3", "deepseekv3", "gptoss", "glm4moe", "qwen3_5_think", "nemotron_3_nano"])
@pytest.mark.parametrize("calls", [False, True])
def test_truncated_record_has_words_of_its_answer_or_is_dropped(tmp_path: Path, name: str, calls: bool) -> None:
    tokenizer = base(name)
    answer = {"role": "assistant", "content": "Zebra.", **({"tool_calls": [openai_call()]} if calls else {})}
    if calls and name != "gptoss":
        answer["content"] = None
    record = record_of(tmp_path, ASK, answer)
    whole = encode(record, tokenizer, 10_000, Encoding())
    assert isinstance(whole, Example)
    encoding = Encoding(sequences=Sequences(longer="truncate"))
    first = next(n for n, label in enumerate(whole.labels) if label != IGNORED)
    for max_tokens in range(max(16, first - 2), len(whole.input_ids)):
        example = encode(record, tokenizer, max_tokens, encoding)
        if isinstance(example, Drop):
            continue
        (said,) = spans(example, tokenizer)
        wanted = ("Z", "s") if not calls else ("Z", "se", "[s", '{"name": "s', "<tool_call>s", "=s")
        assert any(one in said for one in wanted), (max_tokens, said)
