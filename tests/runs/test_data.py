"""What a run trains on and what it holds out: no near copy of a training row is ever held out."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pytest

from dsr1_tune.config import Data, LoraRun, Schedule, Template
from dsr1_tune.config.load import load_config
from dsr1_tune.data.encode.example import encode_all
from dsr1_tune.data.prepare import prepare, write
from dsr1_tune.data.read.read import read
from dsr1_tune.errors import DataError, ModelError
from dsr1_tune.runs.data import RunData, check_ends, encode_and_split
from tests.real_templates import template, tokenizer_of

NOUNS = [
    "burn",
    "sprain",
    "fever",
    "cough",
    "rash",
    "cut",
    "bruise",
    "headache",
    "toothache",
    "cramp",
    "blister",
    "bite",
]
PLACES = [
    "kitchen",
    "garden",
    "office",
    "school",
    "train",
    "forest",
    "gym",
    "pool",
    "market",
    "workshop",
    "boat",
    "farm",
]
ADVICE = [
    *("keep still", "drink water", "call a nurse", "cool it", "cover it", "rest in bed", "see a doctor", "wash it"),
    *("note the time", "raise the arm", "take a walk", "breathe slowly", "eat lightly", "stay warm", "ask a friend"),
]


def rows(num: int = 90, seed: int = 5) -> list[dict[str, str]]:
    """Questions with answers; a third of the rows has a near copy further down: a word or two are changed."""
    chance = random.Random(seed)
    made = []
    for noun, place in chance.sample([(noun, place) for noun in NOUNS for place in PLACES], num):
        steps = chance.sample(ADVICE, 9)
        answer = f"First {steps[0]}, then {', '.join(steps[1:8])}; in the end {steps[8]}."
        made.append({"instruction": f"What do I do about a {noun} in the {place}?", "output": answer})
    copies = [
        {"instruction": row["instruction"].replace("What do", "Please, what do"), "output": row["output"][:-1] + " !"}
        if number % 2
        else {**row, "output": f"{row['output']} Good luck."}
        for number, row in enumerate(made[::3])
    ]
    chance.shuffle(copies)
    return [*made, *copies]


def said(row: dict[str, Any]) -> str:
    return " ".join(message["content"] for message in row["messages"])


def near_copies(some: list[str], others: list[str]) -> list[tuple[str, str]]:
    """Pairs across two lists that are nearly the same, letter by letter; nothing of the product's own is used."""
    pairs = []
    for one in some:
        for other in others:
            matcher = SequenceMatcher(None, one, other, autojunk=False)
            if matcher.real_quick_ratio() > 0.9 and matcher.quick_ratio() > 0.9 and matcher.ratio() > 0.9:
                pairs.append((one, other))
    return pairs


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    path = tmp_path / "medical.json"
    path.write_text(json.dumps(rows()), encoding="utf-8")
    return path


@pytest.fixture
def split_as_lora(tmp_path: Path, tiny_tokenizer: Any) -> Callable[..., RunData]:
    """The data of `lora --data ...`, as the command prepares it; it leaves its files in tmp_path/data."""

    def split(*files: Path, **settings: Any) -> RunData:
        flags = {"data.files": [str(file) for file in files]}
        config = load_config(LoraRun, None, flags, [f"{name}={value}" for name, value in settings.items()])
        data = encode_and_split(prepare(config.data), tiny_tokenizer, config)
        write(data.prepared, tmp_path / "data", data.held_out_records)
        return data

    return split


@pytest.mark.parametrize(
    "seed", [1, 2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_lora_holds_out_no_near_copy_of_a_training_row(
    tmp_path: Path, data_file: Path, split_as_lora: Callable[..., RunData], seed: int
) -> None:
    data = split_as_lora(data_file, **{"schedule.seed": seed, "data.eval_share": 0.2})
    train, held_out = ([said(row) for row in lines(tmp_path / "data" / f"{name}.jsonl")] for name in ("train", "eval"))
    assert len(train) + len(held_out) == 120 and 20 <= len(held_out) <= 28
    assert (len(data.train), len(data.held_out)) == (len(train), len(held_out))
    assert near_copies(held_out, train) == []
    # The finder does find them where rows are drawn one by one.
    everyone = [*train, *held_out]
    random.Random(seed).shuffle(everyone)
    assert len(near_copies(everyone[:24], everyone[24:])) >= 5


def test_another_seed_holds_out_other_rows(data_file: Path, split_as_lora: Callable[..., RunData]) -> None:
    drawn = [
        {row.question for row in split_as_lora(data_file, **{"schedule.seed": seed}).held_out_records}
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_cleaned_folder_is_trained_and_evaluated_on_as_it_was_split(
    tmp_path: Path, data_file: Path, split_as_lora: Callable[..., RunData]
) -> None:
    from dsr1_tune.config import CleanRun
    from dsr1_tune.data.clean import run

    cleaned = run.run(CleanRun(data=Data(files=(data_file,)), out=tmp_path / "clean", workers=1)).folder
    split_as_lora(cleaned)
    for name in ("train", "eval"):
        trained, before = (lines(folder / f"{name}.jsonl") for folder in (tmp_path / "data", cleaned))
        assert [row["messages"] for row in trained] == [row["messages"] for row in before] != []
    again = tmp_path / "again"
    (tmp_path / "data").rename(again)
    split_as_lora(again)
    assert (tmp_path / "data" / "train.jsonl").stat().st_size > 0
    assert lines(tmp_path / "data" / "eval.jsonl")[0]["messages"] == lines(cleaned / "eval.jsonl")[0]["messages"]


def test_eval_files_alone_are_held_out(tmp_path: Path, data_file: Path, split_as_lora: Callable[..., RunData]) -> None:
    evaluated = tmp_path / "mine.json"
    evaluated.write_text(json.dumps([rows()[0], {"instruction": "What is a splint?", "output": "A stiff support."}]))
    data = split_as_lora(data_file, **{"data.eval_files": f"[{evaluated}]"})
    assert [row.question for row in data.held_out_records][1] == "What is a splint?" and len(data.held_out) == 2
    # The first row and its near copy leave the training rows.
    assert len(data.train) == 118
    assert [drop.code for drop in data.prepared.drops] == ["contaminated"] * 2


def test_eval_files_of_which_nothing_can_be_used_are_an_error(
    tmp_path: Path, data_file: Path, split_as_lora: Callable[..., RunData]
) -> None:
    evaluated = tmp_path / "mine.json"
    evaluated.write_text(json.dumps([{"instruction": "Q", "output": " "}]))
    with pytest.raises(DataError, match="no row is left to evaluate on") as caught:
        split_as_lora(data_file, **{"data.eval_files": f"[{evaluated}]"})
    assert caught.value.hint


def test_run_data_counts_a_weighted_file_more_than_once(data_file: Path, tiny_tokenizer: Any) -> None:
    config = LoraRun(data=Data(files=(f"{data_file}:2.5",), eval_share=0.0), schedule=Schedule(max_tokens=512))
    data = encode_and_split(prepare(config.data), tiny_tokenizer, config)
    assert len(data.train) == 120 * 2 + 60 and data.held_out == []
    assert len(data.eval_subset) == 8 and "of the training records" in data.probe_name


# --- what the template does to the rows -------------------------------------------------------------------------------


def of_rows(write_rows: list[dict[str, Any]], folder: Path, name: str, **sections: Any) -> RunData:
    """The rows as a run encodes them under a real template."""
    file = folder / "talks.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in write_rows), encoding="utf-8")
    config = LoraRun(data=Data(files=(file,), eval_share=0.0), schedule=Schedule(max_tokens=10_000), **sections)
    return encode_and_split(prepare(config.data), tokenizer_of(template(name), "<|im_end|>"), config)


def test_remarks_say_what_the_template_does(tmp_path: Path) -> None:
    asked = {"role": "user", "content": "Weather?"}
    calls = [{"function": {"name": "look", "arguments": "{}"}}]
    data = of_rows(
        [
            {"messages": [asked, {"role": "assistant", "content": "<think>hm</think>It ends with <|im_end|>."}]},
            {"messages": [asked, {"role": "assistant", "content": "Rain."}, {"role": "system", "content": "Be brief."},
                          {"role": "user", "content": "And now?"}, {"role": "assistant", "content": "Sun."}]},
            {"messages": [asked, {"role": "assistant", "reasoning_content": "I look.", "tool_calls": calls},
                          {"role": "tool", "content": "rain"}, {"role": "assistant", "content": "It rains."},
                          {"role": "user", "content": "Thanks."}, {"role": "assistant", "content": "Gladly."}]},
        ],
        tmp_path,
        "qwen3_5_think",
    )  # fmt: skip
    control, apart, moved, modes = data.remarks
    assert control.startswith("1 record holds control tokens of the base in the text, 1 in all")
    assert moved.startswith("1 record has system turns that the chat template cannot show in their places")
    assert apart.startswith("1 call is shown otherwise")
    assert "2 records have a thought, shown with enable_thinking=true; 2 have none" in modes
    assert len(data.train) == 4
    assert data.template_kwargs == {"enable_thinking": False}


TALKS = [
    {"messages": [{"role": "user", "content": f"Q{number}"}, {"role": "assistant", "content": answer}]}
    for number, answer in enumerate(["<think>hm</think>A", "B", "C"])
]


@pytest.mark.parametrize(
    ("thinking", "said"),
    [
        ("on", "1 record has a thought, 2 have none: all are shown with enable_thinking=true"),
        ("off", "1 record has a thought, 2 have none: all are shown with enable_thinking=false"),
    ],
)
def test_remarks_say_how_many_rows_a_chosen_mode_changes(tmp_path: Path, thinking: Any, said: str) -> None:
    data = of_rows(TALKS, tmp_path, "qwen3", template=Template(thinking=thinking))
    (remark,) = data.remarks
    assert remark.startswith(said)
    assert data.template_kwargs == {"enable_thinking": thinking == "on"}


@pytest.mark.parametrize("thinking", ["auto", "on", "off"])
def test_remarks_say_that_a_template_has_no_modes(tmp_path: Path, thinking: Any) -> None:
    data = of_rows(TALKS, tmp_path, "qwen2_5", template=Template(thinking=thinking))
    rest = {"on": "changes nothing", "off": "only leaves thoughts out"}.get(thinking)
    assert data.remarks == (
        (f"the base's chat template has no thinking mode: template.thinking={thinking} {rest}",) if rest else ()
    )
    assert data.template_kwargs == {}


def test_remarks_say_modes_only_where_they_tell_something(tmp_path: Path) -> None:
    """Qwen3 thinks where nothing is said of it."""
    assert of_rows(TALKS[:1], tmp_path, "qwen3").remarks == ()
    (said,) = of_rows(TALKS[1:], tmp_path, "qwen3").remarks
    assert "0 records have a thought" in said and "2 have none, shown with enable_thinking=false" in said
    assert of_rows(TALKS[1:], tmp_path, "qwen3_5_nothink").remarks == ()
    assert len(of_rows(TALKS, tmp_path, "qwen3").remarks) == 1
    chosen = Template(kwargs={"enable_thinking": True})
    assert of_rows(TALKS, tmp_path, "qwen3", template=chosen).remarks == ()


def test_remarks_count_first_system_prompts_that_stand_before_the_question(tmp_path: Path) -> None:
    rules = [{"role": "system", "content": "Be brief."}, *TALKS[1]["messages"]]
    (moved,) = of_rows([{"messages": rules}, TALKS[2]], tmp_path, "gemma").remarks
    assert moved.startswith("1 record has system turns that the chat template cannot show in their places")


def test_the_end_of_what_is_learned_must_end_an_answer(tmp_path: Path) -> None:
    file = tmp_path / "talks.jsonl"
    file.write_text(json.dumps({"input": "Q", "output": "A"}) + "\n", encoding="utf-8")
    tokenizer, config = tokenizer_of(template("glm4moe"), "<|endoftext|>"), LoraRun(data=Data(files=(file,)))
    (example,), _ = encode_all(read([file]), tokenizer, 1000)  # type: ignore[arg-type]
    check_ends([example], tokenizer, config)
    silent = replace(example, labels=(*example.labels[:-1], -100))
    with pytest.raises(ModelError, match="ends with 'A', at which no answer ends"):
        check_ends([silent], tokenizer, config)
