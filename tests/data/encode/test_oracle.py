"""What real templates teach, compared with a slow and independent account of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsr1_tune.align.preference.encode import PairExample, encode_one, encode_pair
from dsr1_tune.config import DpoRun, KtoRun
from dsr1_tune.config.sections import Encoding, Template
from dsr1_tune.data.encode.example import IGNORED, encode_all, prompt_ids
from dsr1_tune.data.output import as_output, dumps
from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Drop, Feedback, Message, Place, Preference, Record, ToolCall
from tests.data.encode.slow_labels import DEEPSEEK_V3_1, STOPS, Base, Refused, canonical, expected
from tests.real_templates import template, tokenizer_of

PLACE = Place("oracle.jsonl", 1, 0)


def call(city: str, name: str = "seek", id: str = "") -> ToolCall:
    return ToolCall(name, json.dumps({"city": city}), id)


def user(text: str) -> Message:
    return Message("user", text)


def says(text: str = "", *calls: ToolCall, thought: str = "", learned: bool = True) -> Message:
    content = f"<think>\n{thought}\n</think>\n\n{text}" if thought else text
    return Message("assistant", content, calls=calls, is_learned=learned)


def result(text: str, call_id: str = "", name: str = "seek") -> Message:
    return Message("tool", text, call_id=call_id, name=name)


def system(text: str) -> Message:
    return Message("system", text)


TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": "seek",
                "description": "Seeks a town.",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
            },
        }
    ]
)
SHAPES: dict[str, tuple[Message, ...]] = {
    "plain": (user("Ask1"), says("Say1")),
    "turns": (user("Ask1"), says("Say1"), user("Ask2"), says("Say2"), user("Ask3"), says("Say3.")),
    "system": (system("Rule1"), user("Ask1"), says("Say1")),
    "thought last": (user("Ask1"), says("Say1", thought="Muse1")),
    "thought early": (user("Ask1"), says("Say1", thought="Muse1"), user("Ask2"), says("Say2")),
    "thoughts": (user("Ask1"), says("Say1", thought="Muse1"), user("Ask2"), says("Say2", thought="Muse2")),
    "call last": (user("Ask1"), says("", call("Oslo"))),
    "words call last": (user("Ask1"), says("Look1", call("Oslo"))),
    "call": (user("Ask1"), says("", call("Oslo")), result("Snow1"), says("Say1")),
    "words call": (user("Ask1"), says("Look1", call("Oslo")), result("Snow1"), says("Say1")),
    "parallel": (user("Ask1"), says("", call("Oslo"), call("Rome")), result("Snow1"), result("Sun1"), says("Say1")),
    "parallel last": (user("Ask1"), says("", call("Oslo"), call("Rome"))),
    "rounds": (
        user("Ask1"),
        says("", call("Oslo")),
        result("Snow1"),
        says("", call("Rome")),
        result("Sun1"),
        says("Say1"),
    ),
    "two talks of calls": (
        user("Ask1"),
        says("", call("Oslo")),
        result("Snow1"),
        says("Say1"),
        user("Ask2"),
        says("", call("Rome")),
        result("Sun1"),
        says("Say2"),
    ),
    "thought call last": (user("Ask1"), says("", call("Oslo"), thought="Muse1")),
    "thought call": (user("Ask1"), says("", call("Oslo"), thought="Muse1"), result("Snow1"), says("Say1")),
    "thought call thought": (
        user("Ask1"),
        says("", call("Oslo"), thought="Muse1"),
        result("Snow1"),
        says("Say1", thought="Muse2"),
    ),
    "thought call before": (
        user("Ask1"),
        says("", call("Oslo"), thought="Muse1"),
        result("Snow1"),
        says("Say1"),
        user("Ask2"),
        says("Say2"),
    ),
    "weights": (user("Ask1"), says("Say1", learned=False), user("Ask2"), says("Say2")),
    "last unlearned": (user("Ask1"), says("Say1"), user("Ask2"), says("Say2", learned=False)),
    "call unlearned": (user("Ask1"), says("", call("Oslo"), learned=False), result("Snow1"), says("Say1")),
    "system amid": (user("Ask1"), says("Say1"), system("Rule1"), user("Ask2"), says("Say2")),
    "two systems": (system("Rule1"), system("Rule2"), user("Ask1"), says("Say1")),
    "greeting": (says("Hello1"), user("Ask1"), says("Say1")),
}
WITH_TOOLS = {"call", "call last", "thought call", "parallel"}


@cache
def base(name: str) -> Base:
    source = DEEPSEEK_V3_1 if name == "deepseek_v3_1" else template(name)
    return Base(name, tokenizer_of(source))


def record_of(shape: str, tools: bool = False) -> Record:
    return Record(SHAPES[shape], PLACE, TOOLS if tools else "")


def learned_by(record: Record, of: Base, encoding: Encoding | None = None) -> list[str] | str:
    """The product's examples, or why it drops the record."""
    examples, drops = encode_all([record], of.tokenizer, 10_000, encoding or Encoding())
    if drops:
        assert not examples
        return str(drops[0].code)
    for example in examples:
        assert all(label in (IGNORED, token) for label, token in zip(example.labels, example.input_ids, strict=True))
    return [canonical(example.input_ids, [label != IGNORED for label in example.labels], of) for example in examples]


def wanted_of(record: Record, of: Base, thinking: str = "auto", tools: str = "template") -> list[tuple[str, ...]] | str:
    try:
        return expected(record, of, thinking, tools)
    except Refused:
        return "template_refused"


def same(learned: list[str] | str, wanted: list[tuple[str, ...]] | str) -> bool:
    if isinstance(learned, str) or isinstance(wanted, str):
        nothing = isinstance(wanted, list) and all("⟦" not in one for forms in wanted for one in forms)
        return learned == wanted or (learned == "nothing_to_learn" and nothing)
    return tuple(learned) in wanted


def unlike(learned: list[str] | str, wanted: list[tuple[str, ...]] | str) -> str:
    """Both, for a message."""
    if isinstance(wanted, str):
        return f"\nlearned {learned}\nwanted  {wanted}"
    return f"\nlearned {learned}" + "".join(f"\nwanted  {list(forms)}" for forms in wanted)


CASES = [(name, shape, tools) for name in STOPS for shape in SHAPES for tools in (False, True)]
CASES = [(name, shape, tools) for name, shape, tools in CASES if not tools or shape in WITH_TOOLS]
# It writes calls where `content` is null, which Hugging Face's renderer leaves out.
CASES = [one for one in CASES if one[0] != "deepseek_r1_distill" or not any(m.calls for m in SHAPES[one[1]])]


QUICK = ("qwen3", "qwen3_5_think", "deepseekv3", "deepseek_v3_1", "glm4moe", "gptoss", "llama3_1", "nemotron_3_nano")
QUICK += ("gemma",)


def marked(name: str, *others: Any) -> Any:
    """A case, which is slow where its template is none of the quick ones."""
    return pytest.param(name, *others, marks=() if name in QUICK else pytest.mark.slow)


@pytest.mark.parametrize(("name", "shape", "tools"), [marked(*case) for case in CASES])
def test_labels_are_what_a_slow_account_finds(name: str, shape: str, tools: bool) -> None:
    record = record_of(shape, tools)
    learned, wanted = learned_by(record, base(name)), wanted_of(record, base(name))
    assert same(learned, wanted), unlike(learned, wanted)


@pytest.mark.parametrize("name", ["gemma", "gemma3", "phi3", "llama3"])
def test_tools_as_text_are_what_a_slow_account_finds(name: str) -> None:
    """Also where the system prompt, which they stand in, is no turn of the template's: Gemma refuses one."""
    wrong, encoding = [], Encoding(template=Template(tools="text"))
    for shape in set(SHAPES) - {"greeting"} if name == "gemma" else SHAPES:
        record = record_of(shape, tools=True)
        learned, wanted = learned_by(record, base(name), encoding), wanted_of(record, base(name), tools="text")
        if not same(learned, wanted) or (isinstance(learned, str) and shape != "greeting"):
            wrong.append(shape + unlike(learned, wanted))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", [marked(name) for name in STOPS])
def test_last_answer_is_learned_behind_the_prompt_that_asks_for_it(name: str) -> None:
    wrong = []
    for shape in SHAPES:
        record = record_of(shape)
        examples, drops = encode_all([record], base(name).tokenizer, 10_000, Encoding())
        if drops or not record.messages[-1].is_learned:
            continue
        prompts = [prompt_ids(record, base(name).tokenizer, usual=usual) for usual in (False, True)]
        if not any(list(examples[0].input_ids[: len(prompt)]) == prompt for prompt in prompts):
            wrong.append(shape)
    assert not wrong


HYBRIDS = ("qwen3", "qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "glm4moe", "nemotron_3_nano", "deepseek_v3_1")
MODED = ("plain", "turns", "thought last", "thought early", "thoughts", "call", "thought call", "thought call last")


@pytest.mark.parametrize("systems", [1, 2])
def test_calls_are_learned_apart_where_system_turns_move(systems: int) -> None:
    """Qwen3 shows no thought before a call once the user has asked again; the system turns go to the first question."""
    refuses = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('none') }}{% endif %}{% endfor %}"
    tokenizer = tokenizer_of(refuses + template("qwen3"))
    called = (user("Ask1"), says("", call("Oslo"), thought="Muse1"), result("rain"), says("Say1"))
    talk = (*called, user("Ask2"), says("Say2"))
    rules = tuple(system(f"Rule{number}") for number in range(systems))

    def learned_of(messages: tuple[Message, ...]) -> list[str]:
        examples = encode_all([Record(messages, PLACE, TOOLS)], tokenizer, 10_000).examples
        return [tokenizer.decode([label for label in one.labels if label != IGNORED]) for one in examples]

    learned = learned_of((*rules, *talk))
    assert learned == learned_of(talk) and "Muse1" in learned[1] and "Oslo" in learned[1]


@pytest.mark.parametrize("thinking", ["on", "off"])
@pytest.mark.parametrize("name", [marked(name) for name in HYBRIDS])
def test_explicit_modes_are_those_in_which_rows_are_learned(name: str, thinking: Any) -> None:
    wrong = []
    for shape in MODED:
        record, encoding = record_of(shape), Encoding(template=Template(thinking=thinking))
        learned, wanted = learned_by(record, base(name), encoding), wanted_of(record, base(name), thinking)
        if not same(learned, wanted):
            wrong.append(shape + unlike(learned, wanted))
        for example in [] if isinstance(learned, str) else learned:
            assert not re.search(r"</think>⟧?\s*⟦?\s*<think>", example), example
    assert not wrong, "\n".join(wrong)


# --- written, cleaned and read again -----------------------------------------------------------------------------


def openai_row(record: Record, fields: bool) -> dict[str, Any]:
    """A row as people write it; where `fields`, thoughts stand in one of their own and arguments are objects."""
    turns = []
    for message in record.messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        found = re.match(r"<think>\n(.*)\n</think>\n\n(.*)", message.content, re.DOTALL)
        if found and fields:
            turn |= {"reasoning_content": found[1], "content": found[2] or None}
        if message.calls:
            turn["tool_calls"] = [
                {
                    "id": f"c{number}",
                    "type": "function",
                    "function": {
                        "name": call.name,
                        "arguments": json.loads(call.arguments) if fields else call.arguments,
                    },
                }
                for number, call in enumerate(message.calls)
            ]
        if not message.is_learned:
            turn["weight"] = 0
        turns.append(turn)
    return {"messages": turns} | ({"tools": json.loads(record.tools)} if record.tools else {})


READABLE = tuple(shape for shape in SHAPES if shape != "greeting")
READ_AGAIN = ("qwen2_5", "deepseekv3")


@cache
def learned_before(shape: str, tools: bool, name: str) -> Any:
    """What is learned of a shape that was never written."""
    return learned_by(record_of(shape, tools), base(name))


def teaches_the_same(shape: str, tools: bool, read_again: Any) -> list[str]:
    """What is learned otherwise of a record that was written and read again."""
    if not isinstance(read_again, Record):
        return [f"{shape}: {getattr(read_again, 'code', read_again)} {getattr(read_again, 'detail', '')}"]
    learned = {name: learned_by(read_again, base(name)) for name in READ_AGAIN}
    before = {name: learned_before(shape, tools, name) for name in READ_AGAIN}
    return [f"{shape} on {n}\nbefore {before[n]}\nnow {learned[n]}" for n in READ_AGAIN if before[n] != learned[n]]


def test_rows_teach_the_same_after_they_were_written_and_read(tmp_path: Path) -> None:
    cases = [(shape, tools) for shape in READABLE for tools in (False, True) if not tools or shape in WITH_TOOLS]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join(dumps(as_output(record_of(*case))) for case in cases))
    rows = list(read([file]))
    assert len(rows) == len(cases)
    wrong = []
    for case, row in zip(cases, rows, strict=True):
        wrong += teaches_the_same(*case, row)
        if isinstance(row, Record) and row.messages != record_of(*case).messages:
            wrong.append(f"{case}: {row.messages}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("fields", [False, True])
def test_rows_teach_the_same_after_data_clean(tmp_path: Path, fields: bool) -> None:
    cases = [(shape, shape in WITH_TOOLS) for shape in READABLE]
    file, out = tmp_path / "rows.jsonl", tmp_path / "clean"
    file.write_text("\n".join(json.dumps(openai_row(record_of(*case), fields)) for case in cases))
    given_ = ["--rules", "none", "--privacy", "off", "--workers", "1"]
    for setting in ("dedup.near=false", "dedup.exact=false", "dedup.contradictions=false"):
        given_ += ["--set", setting]
    command = [sys.executable, "-m", "dsr1_tune", "data", "clean", str(file), "--out", str(out), *given_]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    files = [out / name for name in ("train.jsonl", "eval.jsonl") if (out / name).stat().st_size]
    by_line = {}
    for row in read(files):
        assert isinstance(row, Record), row
        by_line[row.row["source"]["index"]] = row
    wrong = []
    for number, case in enumerate(cases):
        wrong += teaches_the_same(*case, by_line.get(number, "dropped"))
    assert not wrong, "\n".join(wrong) + (out / "rejected.jsonl").read_text()


# --- any text ----------------------------------------------------------------------------------------------------

_ODD = [
    "\ue000",
    "\ue001",
    "\uf8ff",
    "\ufffc",
    "\ufdd0",
    "\u200b",
    "\u200d",
    "\ufeff",
    "\x00",
    "\x01",
    "\x1b",
    "\x7f",
    "\u2028",
]
_ODD += [
    "\U000f0000",
    "\U0010fffd",
    "\r\n",
    "\n",
    " ",
    "  ",
    "\t",
    "{{ x }}",
    "{% if %}",
    "QZ",
    "é",
    "é",
    "你好",
    "👩‍👩‍👧",
]
_TAGS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "/no_think",
    "/nothink",
]


def texts(of: Base, tags: bool) -> st.SearchStrategy[str]:
    """Words among odd characters and the template's own markers."""
    thoughts = {"<think>", "</think>", "[THINK]"}
    markers = [marker for marker in of.markers if marker not in thoughts]
    halves = [marker[: len(marker) // 2] for marker in markers]
    pieces = st.sampled_from([*_ODD, *markers, *halves, *(_TAGS if tags else [])])
    any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<[Q"), max_size=8)
    words = st.lists(st.one_of(pieces, any_text, st.just("word")), min_size=1, max_size=8)
    # A text of the template's own tags for results is a result to some.
    return words.map("".join).filter(lambda text: text.strip() != "" and not text.strip().startswith("<tool_resp"))


TEXTED = (
    "qwen3",
    "qwen3_5_think",
    "deepseekv3",
    "deepseek_r1_distill",
    "glm4moe",
    "gptoss",
    "llama3_1",
    "phi3",
    "gemma",
    "gemma3",
    "lfm2_v2",
    "nemotron_3_nano",
    "deepseek_v3_1",
)


def outline(of: Base, ids: Any, labels: Any) -> str:
    """`canonical`, in which tags typed in a text may be tokens or text."""
    return re.sub(
        "«(</?(?:think|tool_call|tool_response)>)»", r"\1", canonical(ids, [i != IGNORED for i in labels], of)
    )


def plain_tags(forms: set[str]) -> set[str]:
    return {re.sub("«(</?(?:think|tool_call|tool_response)>)»", r"\1", form) for form in forms}


@pytest.mark.parametrize("name", [marked(name) for name in TEXTED])
@settings(max_examples=10, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_any_text_is_learned_as_a_slow_account_finds(name: str, data: st.DataObject) -> None:
    of = base(name)
    rule, ask, again = (data.draw(texts(of, tags=True)) for _ in range(3))
    first, last = data.draw(texts(of, tags=False)), data.draw(texts(of, tags=False))
    turns = (system(rule), user(ask), says(first), user(again), says(last))
    record = Record(turns if data.draw(st.booleans()) else (user(ask), says(last)), PLACE)
    examples, drops = encode_all([record], of.tokenizer, 100_000, Encoding())
    try:
        wanted = expected(record, of)
    except Refused as why:
        pytest.fail(f"the slow account refuses it: {why}")
    assert not drops, drops
    (example,) = examples
    assert outline(of, example.input_ids, example.labels) in plain_tags({whole for (whole,) in wanted})


@pytest.mark.parametrize("name", [marked(name) for name in TEXTED])
@settings(max_examples=10, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_whatever_is_said_each_span_ends_once_and_nothing_of_the_user_is_learned(
    name: str, data: st.DataObject
) -> None:
    of = base(name)
    ask, again = (data.draw(texts(of, tags=True)) for _ in range(2))
    first, last = data.draw(texts(of, tags=True)), data.draw(texts(of, tags=True))
    mark = "UserMark77"
    record = Record((user(mark + ask + mark), says(first), user(mark + again + mark), says(last)), PLACE)
    for example in encode_all([record], of.tokenizer, 100_000, Encoding()).examples:
        ids, labels = list(example.input_ids), list(example.labels)
        learned = [token if label != IGNORED else None for token, label in zip(ids, labels, strict=True)]
        spans = "".join("x" if token is not None else "." for token in learned)
        shown = outline(of, ids, labels)
        for found in re.finditer("x+", spans):
            span = ids[found.start() : found.end()]
            num_ends = sum(token in of.stops for token in span)
            is_last = found.end() == max(m.end() for m in re.finditer("x+", spans))
            may_lack = name == "gptoss" and not is_last
            assert num_ends == 1 or (may_lack and num_ends == 0), shown
            assert num_ends == 0 or span[-1] in of.stops, shown
            assert mark not in of.tokenizer.decode(span), shown


# --- preferences -------------------------------------------------------------------------------------------------

CALLERS = (
    "qwen2_5",
    "qwen3",
    "qwen3_5_think",
    "qwen3_6",
    "deepseekv3",
    "deepseek_v3_1",
    "glm4moe",
    "lfm2_v2",
    "nemotron_3_nano",
)
ASKED = (system("Rule1"), user("Ask1"))


def pair_of(name: str, good: Message, bad: Message, asked: tuple[Message, ...] = ASKED) -> PairExample | Drop:
    config = DpoRun.model_validate({"schedule": {"max_tokens": 10_000}})
    return encode_pair(Preference(asked, good, bad, PLACE, TOOLS), base(name).tokenizer, config)


def answers_of(name: str, good: Message, bad: Message, asked: tuple[Message, ...] = ASKED) -> PairExample:
    of, pair = base(name), pair_of(name, good, bad, asked)
    assert isinstance(pair, PairExample), pair
    for answer, ids in ((good, pair.chosen_ids), (bad, pair.rejected_ids)):
        stop = of.stops[bool(answer.calls)]
        assert ids[-1] == stop and sum(one in of.stops for one in ids) == 1
        assert not answer.calls or answer.calls[0].name in of.tokenizer.decode(ids)
    return pair


@pytest.mark.parametrize("words", ["", "Sure."])
@pytest.mark.parametrize("name", CALLERS)
def test_pair_that_differs_in_its_call_alone_has_two_answers(name: str, words: str) -> None:
    pair = answers_of(name, says(words, call("Oslo")), says(words, call("Rome")))
    assert pair.chosen_ids != pair.rejected_ids
    record = Record((*ASKED, says(words, call("Oslo"))), PLACE, TOOLS)
    assert list(pair.prompt_ids) in [prompt_ids(record, base(name).tokenizer, usual=usual) for usual in (False, True)]
    (example,) = encode_all([record], base(name).tokenizer, 10_000).examples
    learned = [label for label in example.labels if label != IGNORED]
    assert (
        learned[-len(pair.chosen_ids) :] == list(pair.chosen_ids) or learned == list(pair.chosen_ids)[-len(learned) :]
    )


@pytest.mark.parametrize("name", CALLERS)
def test_pair_of_a_call_and_words_has_two_ends(name: str) -> None:
    pair = answers_of(name, says("", call("Oslo")), says("No."))
    assert pair.chosen_ids != pair.rejected_ids


@pytest.mark.parametrize("name", CALLERS)
def test_pair_behind_a_call_shows_the_call_in_its_prompt(name: str) -> None:
    asked = (*ASKED, says("", call("Oslo")), result("Snow1"))
    pair = answers_of(name, says("Cold."), says("Warm."), asked)
    shown = base(name).tokenizer.decode(pair.prompt_ids)
    assert "Oslo" in shown and "Snow1" in shown


@pytest.mark.parametrize("name", CALLERS)
def test_pair_that_differs_in_the_thought_before_its_call(name: str) -> None:
    pair = answers_of(name, says("", call("Oslo"), thought="Muse1"), says("", call("Oslo"), thought="Muse2"))
    of = base(name)
    assert "Muse1" in of.tokenizer.decode(pair.chosen_ids) and "Muse2" in of.tokenizer.decode(pair.rejected_ids)
    assert "Muse" not in of.tokenizer.decode(pair.prompt_ids)


@pytest.mark.parametrize("name", CALLERS)
def test_feedback_on_a_call_has_its_end(name: str) -> None:
    row = Feedback(ASKED, says("Sure.", call("Oslo")), True, PLACE, TOOLS)
    config = KtoRun.model_validate({"schedule": {"max_tokens": 10_000}})
    encoded = encode_one(row, base(name).tokenizer, config)
    assert not isinstance(encoded, Drop), encoded
    assert encoded.completion_ids[-1] == base(name).stops[1]
    record = Record((*ASKED, row.completion), PLACE, TOOLS)
    assert list(encoded.prompt_ids) in [
        prompt_ids(record, base(name).tokenizer, usual=usual) for usual in (False, True)
    ]


def test_pair_with_a_system_prompt_that_the_template_refuses_and_one_that_closes_a_thought_twice() -> None:
    config = DpoRun.model_validate({"schedule": {"max_tokens": 10_000}})
    pair = encode_pair(Preference(ASKED, says("Yes."), says("No."), PLACE), base("gemma").tokenizer, config)
    assert isinstance(pair, PairExample) and pair.moves_system
    assert "Rule1\n\nAsk1" in base("gemma").tokenizer.decode(pair.prompt_ids)
    drop = pair_of("qwen3", says("Yes."), says("<think>a</think>b</think>No."))
    assert isinstance(drop, Drop) and drop.code == "thought_closed_twice"
