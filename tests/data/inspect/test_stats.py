"""The numbers are right, the memory is bounded, and a sample is a sample."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from dsr1_tune.data.inspect import stats as module
from dsr1_tune.data.inspect.stats import Lengths, language, show_stats, stats
from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Drop, Message, Place, Preference, Prompt, Record

PLACE = Place("a.json", 1, 0)


def record(question="Q?", answer="A", system="", tools="", before=()):
    said = [Message("system", system)] if system else []
    for asked, answered in before:
        said += [Message("user", asked), Message("assistant", answered)]
    return Record((*said, Message("user", question), Message("assistant", answer)), PLACE, tools)


def preference():
    return Preference(
        (Message("user", "Which?"),), Message("assistant", "better"), Message("assistant", "worse"), PLACE
    )


def test_rows_are_counted_by_what_they_are():
    rows = [
        record("What is it?", "是", system="Be kind.", tools="[]"),
        record("what is that?", "<think>x</think>y", system="Be kind.\n"),
        record("如何治疗感冒？", "多休息。", before=[("你好", "您好")]),
        preference(),
        Prompt((Message("user", "2+2?"),), "4", PLACE),
        Drop("empty_answer", "blank"),
        Drop("empty_answer", "blank"),
        Drop("turn_order", "twice"),
    ]
    found = stats(rows)
    assert (found.num_rows, found.num_good) == (8, 5)
    assert found.kinds == {"record": 3, "preference": 1, "prompt": 1}
    assert found.codes == {"empty_answer": 2, "turn_order": 1}
    assert found.turns == {1: 4, 2: 1}
    assert found.languages == {"latin": 3, "zh": 1, "none": 1}
    assert (found.num_with_system, found.num_with_tools, found.num_with_thoughts) == (2, 1, 1)
    assert found.systems == (("Be kind.", 2),)
    assert dict(found.first_words) == {"what is": 2, "如何": 1, "which": 1, "2+2": 1}
    assert (found.unit, found.num_sampled) == ("characters", 5)
    assert found.lengths["answer"]["max"] == 17


def test_nothing_at_all():
    found = stats([])
    assert (found.num_rows, found.num_good, found.kinds) == (0, 0, {})
    assert found.lengths["question"] == {"edges": [], "counts": [], "median": None, "p95": None, "max": None}
    assert "together" in shown(found, 80)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("多喝水，多休息。", "zh"),
        ("繁體中文也是中文", "zh"),
        ("これは日本語の文章です", "ja"),
        ("한국어 문장입니다", "ko"),
        ("Это русский текст", "cyrillic"),
        ("هذا نص عربي", "arabic"),
        ("Drink water and rest", "latin"),
        ("Trinken Sie viel, schöne Grüße", "latin"),
        ("ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ", "other"),
        ("血红蛋白 Hb 偏低", "zh"),
        ("Translate 你好 into English, please", "latin"),
        ("42 + 1 = 43", "none"),
        ("", "none"),
    ],
)
def test_languages(text, expected):
    assert language(text) == expected


@pytest.mark.parametrize("lengths", [[7], list(range(1, 500)), [1] * 99 + [123_456], [0, 5, 5, 9_999_999]])
def test_lengths_against_numpy(lengths):
    counted = Lengths()
    for length in lengths:
        counted.add(length)
    found = counted.as_json()
    for name, share in (("median", 0.5), ("p95", 0.95)):
        exact = np.quantile(lengths, share, method="inverted_cdf")
        assert found[name] == pytest.approx(exact, rel=0.01)
    assert found["max"] == max(lengths)
    edges, counts = found["edges"], found["counts"]
    assert edges == sorted(set(edges)) and edges[0] <= min(lengths) and edges[-1] > max(lengths)
    assert counts == np.histogram(lengths, edges)[0].tolist()
    assert counts[0] and counts[-1]


def test_lengths_take_bounded_memory():
    counted = Lengths()
    for length in range(1, 300_000):
        counted.add(length)
    assert counted.num == 299_999 and len(counted._counts) < 3_300


def test_tokens_are_counted_of_a_sample_only(monkeypatch):
    monkeypatch.setattr(module, "NUM_SAMPLED", 500)
    calls = []

    def count_tokens(texts):
        calls.append(len(texts))
        return [len(text.split()) for text in texts]

    draw = random.Random(3)
    rows = [record("why so " + "x " * draw.randrange(1, 100), "a b c") for _ in range(8_000)]
    found = stats(rows, count_tokens)
    assert (found.unit, found.num_sampled) == ("tokens", 500)
    assert sum(found.lengths["question"]["counts"]) == 500
    # Drawn from everywhere, so the sample's median is near the whole's (52); each row equally likely.
    assert 45 < found.lengths["question"]["median"] < 59
    assert found.lengths["answer"]["median"] == 3
    assert max(calls) <= 3 * 64 and sum(calls) < 3 * 500 * 5
    assert stats(rows, count_tokens) == found, "the same seed draws the same rows"
    assert stats(rows, count_tokens, seed=1).lengths != found.lengths


def test_a_late_row_replaces_an_early_one_measured_before(monkeypatch):
    """Rows wait for the tokenizer in batches; a slot taken twice within one keeps the later row."""
    monkeypatch.setattr(module, "NUM_SAMPLED", 1)
    rows = [record("x " * number, "a") for number in range(1, 200)]
    lengths = {
        stats(rows, lambda texts: [len(t.split()) for t in texts], seed).lengths["question"]["max"]
        for seed in range(30)
    }
    assert len(lengths) > 20 and max(lengths) > 100 > min(lengths)


def test_parts_that_are_not_there_do_not_count_as_short():
    found = stats([Prompt((Message("user", "2+2?"),), None, PLACE), record("Q", "four")])
    assert found.lengths["answer"]["median"] == 4 and sum(found.lengths["answer"]["counts"]) == 1


def test_rare_names_are_forgotten_before_frequent_ones(monkeypatch):
    monkeypatch.setattr(module, "MAX_NAMES", 100)
    rows = [record(f"word{number} again" if number % 3 else "how many") for number in range(3_000)]
    assert stats(rows).first_words[0] == ("how many", 1_000)


def test_json_is_plain():
    import orjson

    found = stats([record(), preference(), Drop("turn_order", "x")], lambda texts: [1] * len(texts))
    assert orjson.loads(orjson.dumps(found.as_json()))["lengths"]["unit"] == "tokens"


def shown(found, width):
    console = Console(file=io.StringIO(), width=width)
    show_stats(found, console)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 100])
def test_tables_fit_and_show_data_as_text(width):
    rows = [record("[red]如何\x1b[31m做？", "A" * n, system="很长的系统提示" * 20 + "\u202e[/]") for n in range(1, 40)]
    text = shown(stats([*rows, Drop("turn_order", "x")]), width)
    assert max(cell_len(line) for line in text.split("\n")) <= width
    assert "\x1b" not in text and "\u202e" not in text and "[red]如何\\x1b" in text
    for said in ("bad: turn_order", "a system prompt", "Languages", "39", "2.5%"):
        assert said in text
    assert "Lengths (characters of 39 rows)" in text


def test_real_files(real):
    found = stats(read([real("Zhongjing/CMtMedQA_test.json"), real("LLaMA-Factory/dpo_en_demo.json")]))
    assert (found.num_rows, found.kinds) == (1_444, {"record": 1_144, "preference": 300})
    assert found.languages["zh"] == 1_144
    assert max(found.turns) > 5
