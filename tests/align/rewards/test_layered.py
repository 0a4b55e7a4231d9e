"""Layers, gates and components of form and task; what fails for one answer; what a reward file may not say."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dsr1_tune.align.rewards.errors import RewardErrors
from dsr1_tune.align.rewards.file import KINDS
from dsr1_tune.align.rewards.layered import Answered, LayeredReward, RewardResult
from dsr1_tune.align.rewards.scoring import score_conversations
from dsr1_tune.config import Base
from dsr1_tune.data.record import Message
from dsr1_tune.errors import ConfigError, RunError
from dsr1_tune.models.load import load_located, locate
from dsr1_tune.models.trained import reward_model
from dsr1_tune.text.final_answer import final_number, same_text

Read = Callable[..., LayeredReward]


def answered(answer: str, expected: str | None = None, question: str = "How much is it?", **known: Any) -> Answered:
    return Answered((Message("user", question),), answer, expected, **known)


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """read(components, components, ...) is a reward with a layer a, b, ... for each list; dicts are whole layers."""

    def made(*layers: Any) -> LayeredReward:
        tree = [one if isinstance(one, dict) else {"components": one} for one in layers]
        named = [{"name": "abcdef"[number], **one} for number, one in enumerate(tree)]
        file = tmp_path / "rewards.yaml"
        file.write_text(yaml.safe_dump({"layers": named}, allow_unicode=True), encoding="utf-8")
        return LayeredReward.read(file)

    return made


@pytest.fixture
def score(read: Read) -> Callable[..., float]:
    """score({"type": ...}, answer, expected) is what one component alone gives."""

    def of(component: Any, answer: str, expected: str | None = None, **known: Any) -> float:
        verdict = read([component]).judge([answered(answer, expected, **known)])[0]
        assert not verdict.errors
        return verdict.total

    return of


# --- layers and gates -------------------------------------------------------------------------------------------------


def parts(*words: str) -> list[dict[str, Any]]:
    """A component for each word, 1 where the answer has it."""
    return [{"type": "contains", "words": [word], "name": word} for word in words]


@pytest.mark.parametrize(
    ("gate", "answer", "gates", "total"),
    [
        ("none", "x", [1, 1], 0 + 2 * 1),
        (None, "b x", [1, 0.25], 0.25 + 2 * 0.25),
        ({"soft": 0.5}, "b x", [1, 0.5], 0.25 + 2 * 0.5),
        ({"soft": 0.5}, "a x", [1, 1], 0.75 + 2),
        ({"hard": 0.75}, "a x", [1, 1], 0.75 + 2),
        ({"hard": 0.75}, "b x", [1, 0], 0.25),
        ("hard", "a b x", [1, 1], 1 + 2),
        ("hard", "a x", [1, 0], 0.75),
    ],
)
def test_the_total_is_the_formula(read: Read, gate: Any, answer: str, gates: list[float], total: float) -> None:
    low = parts("a", "b")
    low[0]["weight"] = 3
    verdict = read(
        {"components": low, **({"gate": gate} if gate else {})}, {"components": parts("x"), "weight": 2}
    ).judge([answered(answer)])[0]
    assert list(verdict.gates.values()) == gates
    assert verdict.total == pytest.approx(total)
    assert verdict.total == pytest.approx(verdict.layers["a"] + 2 * verdict.layers["b"])
    assert verdict.components == {"a/a": "a" in answer, "a/b": "b" in answer, "b/x": 1}


def test_gates_multiply_upwards(read: Read) -> None:
    verdict = read(parts("a", "b"), parts("c", "d"), parts("e")).judge([answered("a c e")])[0]
    assert verdict.gates == {"a": 1, "b": 0.5, "c": 0.25}
    assert verdict.total == pytest.approx(0.5 + 0.25 + 0.25)


def test_a_hard_gate_forgives_rounding(read: Read) -> None:
    low = parts("a", "b", "c")
    for part, weight in zip(low, (0.1, 0.2, 0.7), strict=True):
        part["weight"] = weight
    verdict = read({"components": low, "gate": {"hard": 0.3}}, parts("x")).judge([answered("a b x")])[0]
    assert verdict.gates["b"] == 1


# --- form -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("component", "answer", "wanted"),
    [
        ("not_empty", "...", 0),
        ("not_empty", "嗯", 1),
        ("not_empty", "<think>hm</think>", 0),
        ({"type": "not_empty", "of": "thought"}, "<think>hm</think>", 1),
        ("well_formed", "Take it with water.", 1),
        ("well_formed", "Rest for a day or two. Take it with the", 0),
        ("well_formed", "饭后服用，每日", 1),
        ("well_formed", "", 0),
        ({"type": "well_formed", "format": "json"}, '{"a": 1}', 1),
        ({"type": "well_formed", "format": "json"}, '```json\n{"a": 1}\n```', 1),
        ({"type": "well_formed", "format": "json"}, '{"a": 1', 0),
        ({"type": "well_formed", "format": "json"}, "[" * 100_000, 0),
        ({"type": "well_formed", "format": "markdown"}, "```py\nx = '```'\n```\nDone", 1),
        ({"type": "well_formed", "format": "markdown"}, "```py\nx = 1\n", 0),
        ({"type": "language", "want": "zh"}, "每天吃一片阿司匹林。", 1),
        ({"type": "language", "want": "zh"}, "Take one aspirin a day.", 0),
        ({"type": "language", "want": "en"}, "Take one 片 of aspirin a day.", 1),
        ({"type": "language", "want": "en"}, "42", 1),
        ({"type": "language", "want": "en"}, " ", 0),
        ({"type": "language", "want": "zh"}, "A", 1),
        ({"type": "language", "want": "zh"}, "OK", 1),
        ({"type": "language", "want": "zh"}, "面积是 $\\frac{width}{height} \\times length$ 平方米", 1),
        ("no_repetition", "1000000000000", 1),
        ("no_repetition", "1/3 = 0.3333333333333", 1),
        ("no_repetition", "+".join("3" * 12) + " = 36", 1),
        ("language", "每天饭后吃一片阿司匹林，多喝水，注意休息，如有不适请及时就医。", 0),
        ("language", "You should take one aspirin a day, after a meal.", 1),
        ({"type": "length", "min_chars": 3}, "ab", 0),
        ({"type": "length", "max_chars": 4}, "abcd", 1),
        ({"type": "length", "max_chars": 4}, "abcde", 0),
        ({"type": "length", "max_chars": 4, "soft": 3}, "abcdef", 0.5),
        ({"type": "length", "max_chars": 4, "soft": 3}, "abcdefgh", 0),
        ({"type": "length", "min_chars": 4, "soft": 3}, "ab", 0.5),
        ("no_repetition", "Drink water, rest, and see a doctor when it gets worse.", 1),
        ("no_repetition", "I am well. " * 20, 0),
        ("no_repetition", "哈" * 200, 0),
        ("no_repetition", "多喝水多休息。" * 20, 0),
        ("no_repetition", "", 0),
        ("think_format", "<think>2 + 2</think>4", 1),
        ("think_format", "2 + 2</think>4", 1),
        ({"type": "think_format", "opened": "answer"}, "2 + 2</think>4", 0),
        ({"type": "think_format", "opened": "prompt"}, "<think>2 + 2</think>4", 0),
        ("think_format", "<think>2</think><think>2</think>4", 0),
        ("think_format", "<think></think>4", 0),
        ("think_format", "<think>2</think> ", 0),
        ("think_format", "well <think>2</think>4", 0),
        ("think_format", "4", 0),
        ({"type": "contains", "words": ["doctor", "rest"], "pattern": r"\d mg"}, "See a Doctor, 5 mg", 2 / 3),
        ({"type": "contains", "words": ["doctor", "医生"], "need": "any"}, "请看医生", 1),
        ({"type": "contains", "words": ["rest"]}, "restless", 0),
        ({"type": "forbids", "words": ["as an AI"]}, "As an AI, I", 0),
        ({"type": "forbids", "pattern": "http"}, "See a doctor", 1),
    ],
)
def test_form(score: Callable[..., float], component: Any, answer: str, wanted: float) -> None:
    assert score(component, answer) == pytest.approx(wanted)


def test_repetition_costs_more_the_more_there_is(score: Callable[..., float]) -> None:
    once = "Drink enough water every day, rest at home, and call a doctor if the fever lasts. "
    varied = once + "Keep the room cool and eat light meals while you recover from the flu. "
    values = [score("no_repetition", text) for text in (once, varied + "Drink enough water every day at home.")]
    assert 1 == values[0] >= values[1] > 0.5


def test_nothing_is_said_in_a_thought_that_is_not_closed(score: Callable[..., float]) -> None:
    assert score("not_empty", "2 and 2", opens_thought=True) == 0
    assert score("not_empty", "2 and 2</think>4", opens_thought=True) == 1
    assert score("numeric", "so 4", "4", opens_thought=True) == 0
    assert score({"type": "not_empty", "of": "thought"}, "2 and 2", opens_thought=True) == 1


def test_ended_and_tokens(score: Callable[..., float]) -> None:
    assert score("ended", "a", has_ended=True) == 1
    assert score("ended", "a", has_ended=False) == 0
    assert score({"type": "length", "max_tokens": 5}, "a b", num_tokens=6) == 0
    assert score({"type": "length", "max_tokens": 5, "soft": 1}, "a b", num_tokens=6) == 0.5


# --- task -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,000", 1000),
        ("1/2", Fraction(1, 2)),
        ("It is 1 1/2 cups", Fraction(3, 2)),
        (r"so \boxed{\dfrac{1}{2}} it is, not 3", Fraction(1, 2)),
        ("50%", Fraction(1, 2)),
        ("百分之五十", Fraction(1, 2)),
        ("The answer is **42**. Check: 6 x 7", 42),
        ("First 12, then 15. Answer: 3 + 4 = 7", 7),
        ("答案：-7", -7),
        ("答案是三十二。", 32),
        ("8 apples and 9 pears, so 17.", 17),
        ("so 5-3", 3),
        ("−3", -3),
        ("#### 1,234", 1234),
        ("3e-4", Fraction(3, 10_000)),
        ("１２", 12),
        ("12，一般如此", 12),
        ("The total is 15.\n\n#### Note 2: rounding\nFine.", 15),
        ("The total is 15.\n1. Rounded\n2. Checked", 15),
        ("温度为-5℃", -5),
        ("零下5度", -5),
        ("答案是负三", -3),
        ("minus 5", -5),
        ("5岁-10岁", 10),
        ("The answer is the sum of 3 and 4: 7.", 7),
        ("The answer is not 5, it is 7.", 7),
        ("答案是用3乘4得到12", 12),
        ("答案是12=3*4", 12),
        ("Answer: 12 apples (3 bags of 4)", 12),
        (r"\boxed{3\frac{1}{2}}", Fraction(7, 2)),
        (r"\frac34", Fraction(3, 4)),
        ("3×10⁸", 3 * 10**8),
        ("12²", 144),
        ("10^3", 1000),
        ("3千万", 3 * 10**7),
        ("2百万", 2 * 10**6),
        ("2万5千", 25_000),
        ("1亿2千万", 120_000_000),
        ("一百二", 120),
        ("一万二", 12_000),
        ("一百零二", 102),
        ("一样", None),
        ("none", None),
        ("1/0", None),
        ("1e400000", None),
    ],
)
def test_the_number_that_an_answer_comes_down_to(text: str, number: float | Fraction | None) -> None:
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("component", "answer", "expected", "wanted"),
    [
        ("numeric", "so 0.5", "1/2", 1),
        ("numeric", "so 0.51", "1/2", 0),
        ({"type": "numeric", "tolerance": 0.01}, "so 0.51", "1/2", 1),
        ({"type": "numeric", "relative": 0.01}, "1009", "1,000", 1),
        ({"type": "numeric", "percent": False}, "50%", "50", 1),
        ("numeric", "no idea", "3", 0),
        ("numeric", r"\boxed{3, 4}", "3, 4", 1),
        ("numeric", "Answer: 3:4", "3:4", 1),
        ("numeric", "Answer: 5 to 10", "5 to 10", 1),
        ("numeric", "<think>3</think>4", "3", 0),
        ("numeric", "<think>3</think>4", "steps... #### 4", 1),
        ("exact", "**Paris**.", "paris", 1),
        ("exact", "The answer is: Ｐａｒｉｓ", "Paris", 1),
        ("exact", r"\boxed{\text{B}}", "(B)", 1),
        ("exact", "London", "Paris", 0),
        ({"type": "regex", "pattern": r"\Ax{expected}\Z"}, "xa.b", "a.b", 1),
        ({"type": "regex", "pattern": r"\Ax{expected}\Z"}, "xacb", "a.b", 0),
        ({"type": "regex", "pattern": r"^\d{2}$"}, "12", None, 1),
    ],
)
def test_task(score: Callable[..., float], component: Any, answer: str, expected: str | None, wanted: float) -> None:
    assert score(component, answer, expected) == wanted


def test_what_makes_no_difference_to_a_text() -> None:
    assert same_text(" “The  Answer”。") == same_text("the answer")
    assert same_text("(B).") == same_text("b)") == same_text("**B**") == "b"
    for one, other in (("5!", "5"), (".5", "5"), ("(1,2]", "[1,2)"), ("2*3", "23"), ("a_1", "a1")):
        assert same_text(one) != same_text(other)


def own(folder: Path, code: str, name: str = "own.py") -> None:
    (folder / name).write_text(code)


def test_a_function_of_the_users_own(read: Read, tmp_path: Path) -> None:
    own(tmp_path, "def good(answer, info, expected=None): return len(answer) + info.num_tokens\n")
    call = {"type": "function", "call": "own.py:good"}
    one = answered("abcd", num_tokens=6)
    assert read([call | {"scale": [0, 20]}]).judge([one])[0].total == 0.5
    assert read([call | {"scale": [20, 0]}]).judge([one])[0].total == 0.5
    assert read([call | {"scale": [0, 5]}]).judge([one])[0].total == 1
    assert read([call | {"unbounded": True}]).judge([one])[0].total == 10
    assert read([call | {"sigmoid": True}]).judge([one])[0].total == pytest.approx(1 / (1 + math.exp(-10)))
    failed = read([call]).judge([one])[0]
    assert failed.total == 0 and "not from 0 to 1" in failed.errors[0]


def test_what_fails_for_one_answer_counts_0_there_alone(read: Read, tmp_path: Path) -> None:
    own(
        tmp_path,
        "import sys\n"
        "def good(answer):\n"
        "    if answer == 'raise': raise ValueError('out of\\nrange')\n"
        "    if answer == 'exit': sys.exit(3)\n"
        "    return {'nan': float('nan'), 'inf': float('inf'), 'none': None, 'text': 'high'}.get(answer, 1)\n",
    )
    reward = read([{"type": "function", "call": "own.py:good"}], ["not_empty"])
    texts = ["fine", "raise", "nan", "inf", "none", "text", "exit", "fine"]
    verdicts = reward.judge([answered(text) for text in texts])
    assert [verdict.components["a/function"] for verdict in verdicts] == [1, 0, 0, 0, 0, 0, 0, 1]
    assert [len(verdict.errors) for verdict in verdicts] == [0, 1, 1, 1, 1, 1, 1, 0]
    assert verdicts[1].errors == ("a/function: ValueError: out of range",)
    assert all(verdict.components["b/not_empty"] == 1 for verdict in verdicts)
    assert all(math.isfinite(verdict.total) for verdict in verdicts)


def test_a_row_without_an_expected_answer_is_an_error_of_that_row(read: Read) -> None:
    reward = read(["numeric"])
    assert reward.needs_expected and not read(["ended"]).needs_expected
    assert read([{"type": "regex", "pattern": "{expected}"}]).needs_expected
    assert "no expected answer" in reward.judge([answered("3")])[0].errors[0]
    assert "holds no number" in reward.judge([answered("3", "many")])[0].errors[0]


# --- errors of a run --------------------------------------------------------------------------------------------------


def failing(number: int) -> tuple[list[Answered], list[RewardResult]]:
    return [answered(f"a{i}") for i in range(number)], [
        RewardResult(0.0, errors=("task/own: ValueError: no",))
    ] * number


def test_errors_are_counted_kept_and_said_now_and_then(tmp_path: Path) -> None:
    said: list[str] = []
    errors = RewardErrors(tmp_path, "zero", said.append)
    assert errors.note([answered("fine")], [RewardResult(1.0)]) == 0 and not errors.file.exists()
    for _ in range(4):
        errors.note(*failing(30))
    assert errors.counts == {"task/own": 120} and errors.num_errors == 120
    assert len(said) == 3 and "'a0'" in said[0] and "10 times" in said[1] and "100 times" in said[2]
    lines = [json.loads(line) for line in errors.file.read_text().splitlines()]
    assert len(lines) == 120 and lines[1]["answer"] == "a1" and lines[1]["error"] == "ValueError: no"
    assert len(errors.kept["task/own"]) == 5 and "120 times" in errors.summary()


def test_stop_ends_the_run_and_keeps_the_answer(tmp_path: Path) -> None:
    errors = RewardErrors(tmp_path, "stop", print)
    with pytest.raises(RunError, match="task/own failed: ValueError: no; answer: 'a0'"):
        errors.note(*failing(2))
    assert json.loads(errors.file.read_text().splitlines()[0])["answer"] == "a0"


# --- the file ---------------------------------------------------------------------------------------------------------


def test_every_problem_is_listed_with_its_place(tmp_path: Path) -> None:
    own(tmp_path, "def good(prompts, answer): return 1\n")
    file = tmp_path / "rewards.yaml"
    file.write_text(
        r"""
layers:
  - name: form
    gate: {hard: 1.5}
    components:
      - {type: lenght, max_chars: 3}
      - {type: length, max_char: 3}
      - {type: contains, pattern: '('}
      - {type: not_empty, weight: 0}
      - not_empty
      - {weight: 1}
  - name: task
    gate: {hard: 0.5}
    wait: 2
    components:
      - {type: function, call: 'own.py:good'}
      - {type: function, call: 'missing.py:good', name: b}
      - {type: function, call: 'own.py:best', name: c}
      - {type: reward_model, path: nowhere, sigmoid: true, unbounded: true}
      - {type: numbers, limits: {furlong: [0, 1]}}
      - {type: relevance, model: ./nowhere}
""",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError) as caught:
        LayeredReward.read(file)
    lines = [line.removeprefix(f"{file}: ") for line in caught.value.message.splitlines()]
    for said in (
        "layers[0].gate.hard: input should be less than or equal to 1",
        "layers[0].components[0].type: there is no component 'lenght'; did you mean length?",
        "layers[0].components[1].max_char: there is no such setting; did you mean max_chars?",
        "layers[0].components[2].pattern: is no regular expression",
        "layers[0].components[3].weight: input should be greater than 0",
        "layers[0].components[4].name: 'not_empty' is there 2 times",
        "layers[0].components[5]: has no type",
        "layers[1].gate: nothing stands above the last layer",
        "layers[1].wait: there is no such setting; did you mean weight?",
        "layers[1].components[0].call: good needs prompts; it is given",
        "layers[1].components[1].call: ",
        "layers[1].components[2].call: ",
        "layers[1].components[3].path: there is no folder",
        "layers[1].components[4].limits: 'furlong' is no unit known here",
        "layers[1].components[5].model: there is no folder",
    ):
        assert any(line.startswith(said) for line in lines), f"{said}\n" + "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no layers"),
        ("layers: []", "layers: is empty"),
        ("layers: 3", "layers: give a list"),
        ("layers: [{name: a, components: []}]", "layers[0].components: is empty"),
        ("layers: [{components: [ended]}]", "layers[0].name: is missing"),
        ("layers: [3]", "layers[0]: give names with values"),
        ("layers: [{name: a, components: [{type: length}]}]", "components[0]: give min_chars"),
        ("layers: [{name: a, components: [{type: length, min_chars: 3, max_chars: 2}]}]", "min_chars=3 is more"),
        ("layers: [{name: a, gate: {hard: 1, soft: 1}, components: [ended]}]", "layers[0].gate: give hard or soft"),
        ("layers: [{name: a, components: [ended]}, {name: a, components: [ended]}]", "layers[1].name: 'a' is there 2"),
        ("layers: [{name: mean, components: [ended]}]", "layers[0].name: 'mean' is a number of the log"),
        ("layers: [{name: a, gate: 0.5, components: [ended, 3]}]", "layers[0].components[1]: give names"),
        ("layers: [{name: a, components: [{type: function, call: a.py}]}]", "call: is neither module:function"),
        ("layers: [", "is not YAML"),
        ("layers: [{name: a/b, components: [ended]}]", "layers[0].name: string should match"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "rewards.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        LayeredReward.read(file)
    assert said in caught.value.message


def test_a_reward_model_must_say_how_its_number_counts_and_be_one(read: Read, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        read([{"type": "reward_model", "path": "nowhere"}])
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match="is no reward model"):
        read([{"type": "reward_model", "path": "model", "sigmoid": True}])


def test_a_reward_model_scores_what_is_said(read: Read, tmp_path: Path, tiny_base: Path) -> None:
    torch.manual_seed(0)
    base = locate(Base(model=str(tiny_base)))
    loaded = load_located(base, "float32")
    model = reward_model.ScalarModel(loaded.model, loaded.tokenizer)
    facts = reward_model.RewardFacts(chat_template_sha256=reward_model.template_hash(loaded.tokenizer))
    reward_model.save_scalar(model, base, tmp_path / "scorer", facts)
    part = {"type": "reward_model", "path": "scorer"}
    with pytest.raises(ConfigError, match="say how it becomes a score"):
        read([part])
    answers = [answered("a cat"), answered("<think>well</think>a cat"), answered(" "), answered("a dog " * 9)]
    raw = [verdict.total for verdict in read([part | {"unbounded": True}]).judge(answers)]
    wanted = score_conversations(model.eval(), [(answers[0].prompt, "a cat"), (answers[3].prompt, "a dog " * 9)])
    assert [raw[0], raw[3]] == pytest.approx(wanted, abs=1e-5)
    assert raw[1] == pytest.approx(raw[0], abs=1e-5) and abs(raw[3] - raw[0]) > 1e-4
    bounded = read([part | {"sigmoid": True}]).judge(answers)
    assert [verdict.total for verdict in bounded[:2]] == pytest.approx([1 / (1 + math.exp(-wanted[0]))] * 2)
    assert bounded[2].total == 0 and not bounded[2].errors


def test_an_unbounded_component_stands_above_all_gates(read: Read, tmp_path: Path) -> None:
    own(tmp_path, "def good(answer): return 7\n")
    raw = [{"type": "function", "call": "own.py:good", "unbounded": True}]
    with pytest.raises(ConfigError, match=r"layers\[0\].gate: function is unbounded"):
        read(raw, ["ended"])
    assert read({"components": raw, "gate": "none"}, ["ended"]).judge([answered("a")])[0].total == 8


def test_the_example_in_the_docs_is_one(tmp_path: Path) -> None:
    docs = (Path(__file__).parents[3] / "docs" / "alignment.md").read_text(encoding="utf-8")
    section = docs[docs.index("## Layered rewards") :]
    file = tmp_path / "rewards.yaml"
    file.write_text(section.split("```yaml\n", 1)[1].split("```", 1)[0], encoding="utf-8")
    reward = LayeredReward.read(file)
    assert [layer.name for layer in reward.settings.layers] == ["form", "logic", "task"] and reward.needs_expected
    verdict = reward.judge([answered("<think>2 and 2 are 4</think>It is 4.", "4", num_tokens=12)])[0]
    assert verdict.total == pytest.approx(1.4) and not verdict.errors
    for kind in KINDS:
        assert f"| `{kind}` |" in section, kind


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        LayeredReward.read(tmp_path / "none.yaml")
