"""Prompts encoded and split for learning from rewards; and rewards that fail: counted, kept, or the end of the run."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from dsr1_tune.align.online.session import RewardErrors, encode_prompts
from dsr1_tune.align.rewards.layered import Answered, RewardResult
from dsr1_tune.data.prepare import prepare
from dsr1_tune.data.record import Message, Prompt
from dsr1_tune.errors import RunError
from tests.align.online.conftest import PpoConfig
from tests.conftest import CHATML, TinyModel
from tests.real_templates import template, tokenizer_of


def test_encode_prompts_keeps_rows_of_one_prompt_on_one_side(
    tiny_model: TinyModel, ppo_run: PpoConfig, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    file = tmp_path / "twice.jsonl"
    rows = [{"prompt": f"say {n % 6}", "ground_truth": str(n)} for n in range(24)]
    file.write_text("\n".join(map(json.dumps, rows)))
    config = ppo_run(tiny_model("qwen3_moe"), data={"files": [str(file)], "eval_share": 0.3})
    data = encode_prompts(prepare(config.data, Prompt), tiny_tokenizer, config)
    learned, held_out = ({one.input_ids for one in side} for side in (data.train, data.held_out))
    assert len(data.train) + len(data.held_out) == 24
    assert held_out and learned and not learned & held_out


def test_encode_prompts_names_the_turn_that_the_template_refuses(
    tiny_model: TinyModel, ppo_run: PpoConfig, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    file = tmp_path / "talks.jsonl"
    talks = [["say", f"{n}", "and?", "more", "again"] for n in range(8)]
    talks[3][3] = "odd"
    rows = [
        {"messages": [{"role": ("user", "assistant")[n % 2], "content": said} for n, said in enumerate(talk)]}
        for talk in talks
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    config = ppo_run(tiny_model("qwen3_moe"), data={"files": [str(file)], "eval_share": 0.3})
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message['content'] == 'odd' %}{{ raise_exception('Not so') }}{% endif %}"
        + CHATML.removeprefix("{% for message in messages %}")
    )
    (drop,) = encode_prompts(prepare(config.data, Prompt), tokenizer, config).prepared.drops
    assert (drop.code, drop.path) == ("template_refused", "$.messages[3].content")


def test_encode_prompts_with_a_system_prompt_that_the_template_refuses(
    tiny_model: TinyModel, ppo_run: PpoConfig, tmp_path: Path
) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q"}]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in (turns, "R", "S", "T")))
    config = ppo_run(tiny_model("qwen3_moe"), data={"files": [str(file)]}, schedule={"max_tokens": 1000})
    tokenizer = tokenizer_of(template("gemma"))
    data = encode_prompts(prepare(config.data, Prompt), tokenizer, config)
    asked = [tokenizer.decode(example.input_ids) for example in (*data.train, *data.held_out)]
    assert any("<start_of_turn>user\nBe brief.\n\nQ<end_of_turn>" in text for text in asked)
    (moved,) = data.remarks
    assert moved.startswith("1 record has system turns")


def failing(number: int) -> tuple[list[Answered], list[RewardResult]]:
    answers = [Answered((Message("user", "How much?"),), f"a{i}") for i in range(number)]
    return answers, [RewardResult(0.0, errors=("task/own: ValueError: no",))] * number


def test_reward_errors_are_counted_kept_and_said_now_and_then(tmp_path: Path) -> None:
    said: list[str] = []
    errors = RewardErrors(tmp_path, "zero", said.append)
    assert errors.note([Answered((), "fine")], [RewardResult(1.0)]) == 0 and not errors.file.exists()
    for _ in range(4):
        errors.note(*failing(30))
    assert errors.counts == {"task/own": 120} and errors.counts.total() == 120
    assert len(said) == 3 and "'a0'" in said[0] and "10 times" in said[1] and "100 times" in said[2]
    lines = [json.loads(line) for line in errors.file.read_text().splitlines()]
    assert len(lines) == 120 and lines[1]["answer"] == "a1" and lines[1]["error"] == "ValueError: no"
    assert "task/own 120 times" in errors.summary()


def test_reward_errors_with_stop_end_the_run_and_keep_the_answer(tmp_path: Path) -> None:
    errors = RewardErrors(tmp_path, "stop", print)
    with pytest.raises(RunError, match="task/own failed: ValueError: no; answer: 'a0'"):
        errors.note(*failing(2))
    assert json.loads(errors.file.read_text().splitlines()[0])["answer"] == "a0"


def test_reward_errors_of_every_answer_of_a_step_end_the_run(tmp_path: Path) -> None:
    errors = RewardErrors(tmp_path, "zero", lambda said: None)
    answers, results = failing(3)
    fine = RewardResult(0.0)
    assert errors.note(answers, [*results[:2], fine], 1) == 2
    assert errors.note(answers, results) == 3, "outside of steps nothing is learned"
    with pytest.raises(RunError, match="of the 3 answers of update 2 none could be scored; reward task/own") as end:
        errors.note(answers, results, 2)
    assert end.value.exit_code == 2 and "--resume" in end.value.hint and str(errors.file) in end.value.hint
    assert len(errors.file.read_text().splitlines()) == 8


def test_reward_errors_resume_with_any_answer_and_without_half_a_line(tmp_path: Path) -> None:
    errors = RewardErrors(tmp_path, "zero", lambda said: None)
    texts = ["a\u2028b", "a\x85b", "a\r\nb", "答"]
    results = [RewardResult(0.0, errors=("task/own: ValueError: no",))] * len(texts) + [RewardResult(1.0)]
    for step in (1, 2):
        errors.note([Answered((), text) for text in [*texts, "fine"]], results, step)
    whole = errors.file.read_bytes()
    with errors.file.open("ab") as file:
        file.write(json.dumps({"step": 2, "component": "task/own", "answer": "答"}, ensure_ascii=False).encode()[:-3])
    after = RewardErrors(tmp_path, "zero", lambda said: None)
    after.resume(2)
    assert after.counts == {"task/own": 8} and after.file.read_bytes() == whole
    after.resume(1)
    assert after.counts == {"task/own": 4} and whole.startswith(after.file.read_bytes())
