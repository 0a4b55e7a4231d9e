"""What is learned of a row is shown as a run would learn it, by the base's own template."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from dsr1_tune import cli
from dsr1_tune.config import Schedule, Sequences, TuneRun
from dsr1_tune.data.encode.example import IGNORED, encode
from dsr1_tune.data.inspect.learned import parts_of, show_learned
from dsr1_tune.data.read.read import read
from dsr1_tune.errors import ConfigError

TURNS = [
    {"role": "user", "content": "a 感冒?"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"},
    {"role": "user", "content": "c?"},
    {"role": "assistant", "content": "d"},
]
ROWS = [{"messages": TURNS}, {"prompt": "p", "chosen": "q", "rejected": "r"}, {"input": "e", "output": ""}]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_parts_are_the_whole_text_and_what_is_learned_of_it(file: Path, tiny_tokenizer: Any) -> None:
    record: Any = next(iter(read([file])))
    example: Any = encode(record, tiny_tokenizer, 1000)
    parts = parts_of(example, tiny_tokenizer)
    assert "".join(part.text for part in parts) == tiny_tokenizer.decode(example.input_ids)
    learned = [label for label in example.labels if label != IGNORED]
    assert "".join(part.text for part in parts if part.is_learned) == tiny_tokenizer.decode(learned)
    assert [part.is_learned for part in parts] == [False, True, False, True, *([False] if len(parts) > 4 else [])]


def test_learned_is_marked_without_colours_and_coloured_with_them(file: Path, tiny_tokenizer: Any) -> None:
    def shown(sequences: Sequences = Sequences(), max_tokens: int = 1000, **how: Any) -> str:  # noqa: B008
        console = Console(file=io.StringIO(), width=200, **how)
        config = TuneRun(sequences=sequences, schedule=Schedule(max_tokens=max_tokens))
        show_learned(read([file]), tiny_tokenizer, config, console)
        text: str = console.file.getvalue()  # type: ignore[attr-defined]
        return text

    plain = shown()
    assert (
        "<|im_start|>user\na 感冒?<|im_end|>\n<|im_start|>assistant\n«<think>\nhm\n</think>\n\nb<|im_end|>»\n" in plain
    )
    assert "of which learned: " in plain and "only conversations are shown so" in plain and "empty_answer" in plain
    assert "<think>\nhm\n</think>\n\n«b<|im_end|>»" in shown(Sequences(think="mask"))
    assert "«c?<|im_end|>»" in shown(Sequences(learn=("user",)))
    assert "too_long" in shown(max_tokens=16)
    coloured = shown(force_terminal=True, color_system="standard")
    assert "«" not in coloured and "\x1b[1;32mb<|im_end|>" in coloured.replace("\x1b[0m\n\x1b[1;32m", "\n")


def test_data_show_with_a_base_takes_the_settings_of_a_run(file: Path, tiny_base: Path, tmp_path: Path) -> None:
    def show(*words: str) -> Any:
        return CliRunner().invoke(cli.app, ["data", "show", str(file), *words])

    told = show("--base", str(tiny_base), "--row", "0", "--set", "sequences.think=strip")
    assert told.exit_code == 0 and "assistant\n«b<|im_end|>»" in told.output, told.output
    (tmp_path / "run.yaml").write_text(f"base: {{model: {tiny_base}}}\nsequences: {{learn: [user]}}\n")
    [one] = json.loads(show("--config", str(tmp_path / "run.yaml"), "--row", "0", "--json").stdout)
    assert [part["text"] for part in one["parts"] if part["learned"]] == ["a 感冒?<|im_end|>", "c?<|im_end|>"]
    assert len(one["input_ids"]) == len(one["labels"]) and one["index"] == 0 and one["num_cut"] == 0
    refused = show("--json")
    assert refused.exit_code != 0 and "no chat template" in str(refused.exception)


def test_data_show_refuses_template_arguments_that_a_run_refuses(file: Path, tiny_base: Path) -> None:
    words = ["data", "show", str(file), "--base", str(tiny_base), "--set", "template.kwargs.effort=low"]
    refused = CliRunner().invoke(cli.app, words)
    assert isinstance(refused.exception, ConfigError) and "never reads effort" in refused.exception.message
    assert refused.stdout == ""


@pytest.mark.parametrize("section", ["esft: {share: 0.5}", "train: {only: [attention]}", "adapter: {rank: 2}"])
def test_data_show_takes_the_config_of_any_training_command(
    file: Path, tiny_base: Path, tmp_path: Path, section: str
) -> None:
    (tmp_path / "run.yaml").write_text(f"{section}\nsequences: {{learn: [user]}}\n")
    words = ["data", "show", str(file), "--base", str(tiny_base), "--config", str(tmp_path / "run.yaml"), "--json"]
    told = CliRunner().invoke(cli.app, [*words, "--row", "0"])
    assert told.exit_code == 0, told.exception
    [one] = json.loads(told.stdout)
    assert [part["text"] for part in one["parts"] if part["learned"]] == ["a 感冒?<|im_end|>", "c?<|im_end|>"]


def test_data_show_names_a_section_that_no_training_command_has(file: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("esft: {share: 0.5}\ntrian: {only: [attention]}\n")
    refused = CliRunner().invoke(cli.app, ["data", "show", str(file), "--config", str(tmp_path / "run.yaml")])
    assert isinstance(refused.exception, ConfigError)
    assert refused.exception.message == f"{tmp_path / 'run.yaml'}: trian: there is no such setting"
