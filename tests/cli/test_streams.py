"""Terminals that are not UTF-8: no command fails at a character that they cannot show or that is none."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsr1_tune import cli
from dsr1_tune.cli import streams
from dsr1_tune.runs.folder import RunFolder

ENCODINGS = ("ascii", "latin-1", "gbk", "cp1252", "utf-8")
ROWS = [{"input": f"感冒 {n} 怎么办 😀 → é?", "output": f"多喝水 {n * 7 % 10} 😷 — naïve"} for n in range(12)]

Cli = Callable[..., tuple[Any, str, str]]


@pytest.fixture(params=ENCODINGS)
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """terminal("data", "check", file) → (exit code, stdout, stderr) where the terminal has an encoding of its own."""

    def run(*words: str | Path, typed: bytes = b"") -> tuple[Any, str, str]:
        outs = [io.TextIOWrapper(io.BytesIO(), encoding=request.param) for _ in range(2)]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding=request.param))
        monkeypatch.setattr(sys, "stdout", outs[0])
        monkeypatch.setattr(sys, "stderr", outs[1])
        monkeypatch.setattr(sys, "argv", ["dsr1-tune", *map(str, words)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as left:
            code = left.code
        for out in outs:
            out.flush()
        # What click prints for a terminal of ASCII is UTF-8.
        encoding = "utf-8" if request.param == "ascii" else request.param
        out, err = (bytes(one.buffer.getvalue()).decode(encoding) for one in outs)  # type: ignore[attr-defined]
        return code, out, err

    return run


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "感冒.json"
    file.write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    return file


def test_data_commands_show_what_they_can(terminal: Cli, rows: Path) -> None:
    for words in (("check", rows), ("show", rows, "--row", "3"), ("stats", rows)):
        code, out, _ = terminal("data", *words)
        assert (code or 0) == 0
        assert "12" in out or "naïve" in out or "na\\u00efve" in out


def test_json_can_be_read_whatever_the_terminal_is(terminal: Cli, rows: Path) -> None:
    code, out, _ = terminal("data", "check", rows, "--json")
    assert (code or 0) == 0
    assert str(rows) in json.dumps(json.loads(out), ensure_ascii=False)


def in_latin_1(monkeypatch: pytest.MonkeyPatch, say: Callable[[], None]) -> str:
    """What a terminal shows of what `say` prints, once it is told to never fail."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1", write_through=True))
    streams.never_fail()
    say()
    return raw.getvalue().decode("latin-1")


def test_what_cannot_be_shown_is_escaped_as_one_character(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = in_latin_1(monkeypatch, lambda: print("é 感 😀 \udcff", end=""))
    assert shown == r"é \u611f \U0001f600 \udcff"


def test_json_that_cannot_be_shown_is_escaped_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = in_latin_1(monkeypatch, lambda: streams.say_json(json.dumps("é 感 😀 \udcff", ensure_ascii=False)))
    assert shown == r'"é \u611f \ud83d\ude00 \udcff"' and json.loads(shown) == "é 感 😀 \udcff"


def test_settings_and_help_and_errors_are_printed(terminal: Cli, rows: Path) -> None:
    code, out, _ = terminal("settings")
    assert (code or 0) == 0 and "schedule.learning_rate" in out
    assert terminal("lora", "--help")[0] == 0
    for words, said in (
        (("data", "check", rows.with_name("医学.json")), "no such file"),
        (("lora", "--dta", "医"), "No such option"),
        (("lora", "--data", rows, "--set", "adapter.rank=医"), "adapter.rank"),
    ):
        code, _, err = terminal(*words)
        assert code == 2 and said.lower() in err.lower(), err


@pytest.mark.parametrize("terminal", ["gbk", pytest.param("latin-1", marks=pytest.mark.slow)], indirect=True)
def test_a_run_is_finished_and_its_model_answers(
    terminal: Cli, rows: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("--data", rows, "--model", tiny_base, "--out", tmp_path / "跑😀", "--epochs", "1")
    few = ("--set", "schedule.max_tokens=256", "--set", "sample_tokens=3", "--set", "samples=2")
    code, out, err = terminal("lora", *given, *few)
    assert (code or 0) == 0, err
    assert RunFolder(tmp_path / "跑😀").manifest()["status"] == "finished"
    assert "Talk to it with" in out
    code, out, err = terminal(
        "chat", tmp_path / "跑😀", "--max-new-tokens", "4", typed="感冒 😀\n".encode() + b"\xff\xfe\x81\n"
    )
    assert (code or 0) == 0 and "Traceback" not in err


@pytest.mark.parametrize("encoding", ["gbk", "latin-1", "ascii"])
def test_a_process_heeds_the_encoding_that_is_set(rows: Path, encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dsr1_tune", "data", "check", str(rows)],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert done.stdout.decode(encoding)


@pytest.mark.skipif(not shutil.which("localedef"), reason="locales cannot be made here")
@pytest.mark.parametrize("locale", ["zh_CN.GBK", pytest.param("en_US.ISO-8859-1", marks=pytest.mark.slow)])
def test_a_system_that_is_not_utf_8(rows: Path, tmp_path: Path, locale: str) -> None:
    language, charmap = locale.split(".")
    made = subprocess.run(["localedef", "-i", language, "-f", charmap, tmp_path / locale], capture_output=True)
    if made.returncode:
        pytest.skip("localedef knows none of these")
    environment = {**os.environ, "LOCPATH": str(tmp_path), "LC_ALL": locale}
    environment.pop("PYTHONIOENCODING", None)
    for words in (
        ["data", "check", str(rows)],
        ["data", "clean", str(rows), "--out", "out", "--workers", "1"],
        ["settings"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "dsr1_tune", *words], env=environment, cwd=tmp_path, capture_output=True
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "train.jsonl").exists()


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"\xff.json")
    try:
        file.write_text(json.dumps(ROWS))
    except OSError:
        pytest.skip("this disk takes only names that are text")
    for words in (["data", "check", file], ["data", "clean", file, "--out", "out"], ["lora", "--data", file]):
        done = subprocess.run(
            [sys.executable, "-m", "dsr1_tune", *words], cwd=tmp_path, capture_output=True, encoding="utf-8"
        )
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert rf"{tmp_path}/\udcff.json is no text in this system's encoding, utf-8" in done.stderr
