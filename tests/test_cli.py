"""The command line as a whole: its flags, its exit codes, and that help comes at once."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from dsr1_tune import __version__, cli
from dsr1_tune.cli.options import compose
from dsr1_tune.config import AdaptRun, LoraRun
from dsr1_tune.config import load as settings
from dsr1_tune.errors import DataError

# Few flags: everything else is said by --config and --set. Whoever adds one changes this on purpose.
TRAINING = [
    *["--data", "--model", "--out", "--map", "--epochs", "--on-alarm", "--processes", "--config", "--set", "--resume"]
]
GATES = ["--max-loss-increase", "--min-agreement", "--max-general-drop"]
ALIGNMENT = [
    *["--data", "--model", "--out", "--method", "--map", "--epochs", "--on-alarm", "--processes"],
    *["--config", "--set", "--resume"],
]
ROLLOUTS = [
    *["--data", "--rewards", "--model", "--out", "--method", "--map", "--epochs", "--on-reward-error", "--on-alarm"],
    *["--processes", "--config", "--set", "--resume"],
]
FLAGS = {
    "lora": TRAINING,
    "qlora": TRAINING,
    "full": TRAINING,
    "esft": TRAINING,
    "reward": ALIGNMENT,
    "dpo": ALIGNMENT,
    "kto": ALIGNMENT,
    "ppo": ROLLOUTS,
    "grpo": ROLLOUTS,
    "adapt": [
        *["--data", "--model", "--gpu-memory", "--method", "--to", "--out", "--map", "--epochs", "--processes"],
        *["--config", "--set"],
    ],
    "plan": ["--data", "--model", "--memory", "--host-memory", "--processes", "--map", "--config", "--set", "--json"],
    "experts": ["FILES", "--model", "--out", "--map", "--config", "--set"],
    "reward-test": ["REWARDS", "FILES", "--out", "--show", "--map"],
    "data check": ["FILES", "--map", "--json", "--rejects"],
    "data clean": [
        *["FILES", "--out", "--rules", "--privacy", "--against", "--judge", "--judge-minutes", "--judge-sample"],
        *["--base", "--workers", "--engine", "--map", "--config", "--set"],
    ],
    "data dedup": ["FILES", "--out", "--similarity", "--against", "--workers", "--map", "--set"],
    "data split": ["FILES", "--out", "--eval-share", "--seed", "--workers", "--map", "--set"],
    "data show": [
        *["FILE", "--row", "--line", "--sample", "--code", "--full", "--base", "--json", "--map", "--config", "--set"],
    ],
    "data stats": ["FILES", "--base", "--json", "--map"],
    "data init": ["--domain", "--language", "--format", "--out"],
    "score": ["MODEL", "FILE", "--out", "--map", "--config", "--set"],
    "quantize": ["SOURCE", "--to", "--out", "--all", "--method", "--gguf", "--config", "--set"],
    "dequantize": ["SOURCE", "--out", "--dtype"],
    "merge": ["RUN", "--out", "--base", "--config", "--set"],
    "chat": [
        "MODEL",
        "--prompt",
        "-p",
        "--max-new-tokens",
        "--temperature",
        "--thinking",
        "--template-kwargs",
        "--json",
    ],
    "base": ["--rebuild", "--path"],
    "doctor": ["--json"],
    "compare": ["A", "B", "--data", *GATES, "--out", "--json", "--config", "--set"],
    "export": ["RUN", "--to", "--out", *GATES, "--config", "--set"],
    "card": ["FOLDER", "--language"],
    "verify": ["FOLDER"],
    "convert-adapter": ["ADAPTER", "--to", "--out"],
    "check-serve": ["PLACE", "--engine", "--engine-version", "--json"],
    "serve": ["PLACE", "--engine", "--host", "--port", "--print-command"],
    "settings": [],
}
HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "bitsandbytes", "pyarrow", "numpy")


def flags_of(command: Any, name: str = "") -> dict[str, list[str]]:
    """The flags and arguments of a command and of all below it, by the words that one types."""
    if not hasattr(command, "commands"):
        named = [(p.name.upper(),) if p.param_type_name == "argument" else p.opts for p in command.params]
        return {name: [flag for flags in named for flag in flags]}
    below = (flags_of(sub, f"{name} {word}".strip()) for word, sub in command.commands.items())
    return {name: flags for found in below for name, flags in found.items()}


Cli = Callable[..., tuple[Any, str, str]]


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """run_cli("lora", "--help") → (exit code, stdout, stderr), in this process."""

    def run(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["dsr1-tune", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        printed = capsys.readouterr()
        return left.value.code, printed.out, printed.err

    return run


def test_the_flags_are_these() -> None:
    assert flags_of(typer.main.get_command(cli.app)) == FLAGS


@pytest.mark.parametrize("words", ["", *FLAGS, "data"])
def test_help_names_every_flag(run_cli: Cli, words: str) -> None:
    code, out, err = run_cli(*words.split(), "--help")
    assert (code, err) == (0, "")
    assert all(flag in out for flag in FLAGS.get(words, []) if flag.startswith("--"))
    assert all(name.split()[0] in out for name in FLAGS if not words)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["lora", "--help"], ["data", "--help"], ["data", "check", "--help"], ["settings"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import json, sys\n"
        f"sys.argv = ['dsr1-tune', *{arguments!r}]\n"
        "from dsr1_tune import cli\n"
        "try:\n    cli.main()\n"
        "except SystemExit as left:\n    assert not left.code, left.code\n"
        "print('\\n' + json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) > 3
    assert not set(HEAVY) & set(json.loads(done.stdout.splitlines()[-1]))


def test_it_runs_as_a_module_too() -> None:
    done = subprocess.run([sys.executable, "-m", "dsr1_tune", "settings"], capture_output=True, text=True, check=True)
    for name, _, _ in settings.describe(LoraRun):
        assert name in done.stdout


def test_it_tells_its_version(run_cli: Cli) -> None:
    assert run_cli("--version") == (0, f"dsr1-tune {__version__}\n", "")
    assert "--version" in run_cli("--help")[1]


def test_without_a_command_it_lists_them(run_cli: Cli) -> None:
    code, out, err = run_cli()
    assert code == 2
    assert all(name.split()[0] in out + err for name in FLAGS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lorra"], "No such command 'lorra'"),
        (["data", "chek"], "No such command 'chek'"),
        (["lora", "--learning-rate", "1"], "No such option: --learning-rate"),
        (["lora", "--epochs", "many"], "Invalid value for '--epochs'"),
        (["lora", "--data"], "'--data' requires an argument"),
        (["lora", "medical.json"], "unexpected extra argument"),
        (["chat", "--temperature", "-1"], "Invalid value for '--temperature'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_it_does_not_know_exits_2_and_says_so(run_cli: Cli, arguments: list[str], said: str) -> None:
    code, _, err = run_cli(*arguments)
    assert code == 2
    assert said in err and "Traceback" not in err


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*given: Any, **more: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("a.json: is bad", hint="mend it"), 2, "error: a.json: is bad\nhint: mend it\n"),
        (KeyboardInterrupt(), 130, "Interrupted\n"),
        (KeyboardInterrupt("Stopped; nothing is left of out"), 130, "Stopped; nothing is left of out\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "error: /x: Permission denied\nhint: check the "),
        (OSError(errno.EROFS, "Read-only file system", "/x"), 2, "error: /x: Read-only file system\nhint: this file s"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: the output: No space left on device\nhint: free"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "xxx"), 2, "error: xxx: File name too long\nhint: shorten"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_exit_codes(run_cli: Cli, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str) -> None:
    monkeypatch.setattr(settings, "load_config", raising(error))
    left, _, err = run_cli("lora", "--data", "a.json")
    assert left == code
    assert err.strip().startswith(said.strip())
    assert err.count("error:") == (code == 2)


@pytest.mark.parametrize("error", [ZeroDivisionError(), FileNotFoundError(errno.ENOENT, "No such file", "/x")])
def test_our_own_mistakes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(settings, "load_config", raising(error))
    monkeypatch.setattr(sys, "argv", ["dsr1-tune", "lora", "--data", "a.json"])
    with pytest.raises(type(error)):
        cli.main()


def test_ctrl_c_while_importing_says_so() -> None:
    code = (
        "import runpy, sys\n"
        "class Slow:\n"
        "    def find_spec(self, name, *more):\n"
        "        if name == 'typer':\n            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Slow())\n"
        "runpy.run_module('dsr1_tune', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted\n")


def test_a_reader_that_goes_away_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "dsr1_tune", "settings"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.wait()


def test_flags_reach_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dsr1_tune.train import lora

    asked: list[Any] = []
    monkeypatch.setattr(lora, "run", lambda *given: asked.append(given))
    yaml = tmp_path / "run.yaml"
    yaml.write_text("schedule: {epochs: 9, seed: 5}\nadapter: {rank: 2}\n")
    words = "--data a.json --data b.json --model m --out o --map question=q,answer=a --map system=s --epochs 3"
    arguments = [*words.split(), "--config", str(yaml), "--set", "adapter.rank=32", "--set", "samples=0"]
    monkeypatch.setattr(sys, "argv", ["dsr1-tune", "lora", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code
    [(settings, resume)] = asked
    assert settings.data.files == (Path("a.json"), Path("b.json"))
    assert settings.data.map == {"question": "q", "answer": "a", "system": "s"}
    assert (settings.base.model, settings.out, settings.schedule.epochs) == ("m", Path("o"), 3)
    assert (settings.schedule.seed, settings.adapter.rank, settings.samples, resume) == (5, 32, 0, None)


def test_ctrl_c_in_a_real_process(tiny_base: Path, tmp_path: Path) -> None:
    """The whole way: a signal to the process, a checkpoint, exit code 130, and the command that goes on."""
    rows = [{"input": f"question {number}", "output": f"answer {number}"} for number in range(20)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    command = [sys.executable, "-m", "dsr1_tune", "lora", "--data", "a.json", "--model", str(tiny_base), "--out", "run"]
    command += ["--epochs", "1000", "--set", "samples=0"]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=subprocess.STDOUT)
        log = tmp_path / "run" / "train_log.jsonl"
        deadline = time.monotonic() + 120
        while not (log.exists() and log.read_text().count("\n") >= 2) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        code = process.wait(120)
    text = (tmp_path / "said").read_text()
    assert code == 130, text
    assert "dsr1-tune lora --resume run" in text and "Traceback" not in text
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "interrupted"
    assert len(list((tmp_path / "run" / "checkpoints").glob("checkpoint-*/.whole"))) == 1


def test_flags_count_over_the_settings_that_an_earlier_command_began_with() -> None:
    begun = AdaptRun.model_validate({"data": {"files": ["a.json"], "map": {"question": "old"}}})
    given = compose(AdaptRun, None, None, {**begun.model_dump(mode="json"), "data.map": {"question": "new"}})
    assert given.data.map == {"question": "new"} and list(given.data.files) == list(begun.data.files)
    of_flag = compose(AdaptRun, None, None, begun.model_dump(mode="json"), ["question=new"])
    assert of_flag.data.map == {"question": "new"}
    assert compose(AdaptRun, None, None, begun.model_dump(mode="json")).data.map == {"question": "old"}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_waiting_threads_yield_unless_the_user_says_otherwise(given: dict[str, str], wanted: str) -> None:
    """It is set before torch is loaded, as later it does not count."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    code = "import dsr1_tune, os, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=plain | given, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [wanted, "False"]
