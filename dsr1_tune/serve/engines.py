"""`serve`: start an existing engine with an OpenAI-compatible API for a model, an adapter or a GGUF file. A
new engine is an entry here; its command is in models/artifact.py, and what it loads in export/check_serve.yaml and
export/formats/.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from dsr1_tune.errors import ModelError, RunError
from dsr1_tune.models.artifact import Artifact, command_for
from dsr1_tune.models.llama_cpp import client

ENGINES = ("vllm", "sglang", "llama.cpp", "transformers")
INSTALL = {
    "vllm": "pip install vllm  (in an environment of its own: it pins another torch)",
    "sglang": "pip install sglang  (in an environment of its own: it pins another torch)",
    "llama.cpp": f"{client.INSTALL}  (or put llama-server on the PATH)",
    "transformers": 'pip install "transformers[serving]"',
}
Say = Callable[[str], None]


def fitting(artifact: Artifact, engine: str) -> tuple[str, ...]:
    """The engines that may serve it, the fastest first: the one that was asked for, or those that `auto` tries."""
    if engine != "auto":
        return (engine,)
    if artifact.kind == "gguf":
        return ("llama.cpp",)
    return ("vllm", "sglang", "transformers")[: 2 if artifact.kind == "adapter" else 3]


def command(artifact: Artifact, engines: Sequence[str], host: str, port: int) -> list[str] | None:
    """What starts the first of the engines that is installed on this machine; None if none is."""
    started = (_here(artifact, one, host, port) for one in engines)
    return next((found for found in started if found), None)


def not_here(artifact: Artifact, engines: Sequence[str]) -> ModelError:
    """That none of the engines is installed, with the commands that install them."""
    ways = "; or ".join(INSTALL[one] for one in reversed(engines))
    if len(engines) == 1:
        name = "`transformers serve`" if engines[0] == "transformers" else engines[0]
        return ModelError(f"{name} is not installed here", hint=ways)
    if artifact.kind == "adapter":
        ways = f"merge it, and serve what comes of it: dsr1-tune merge {artifact.path}; or {ways}"
    return ModelError(f"no engine that serves this is installed here: {', '.join(engines)}", hint=ways)


def _here(artifact: Artifact, engine: str, host: str, port: int) -> list[str] | None:
    """The command with this machine's own programs in it; None if the engine is not here."""
    told = command_for(artifact, engine, host, port)
    if engine == "llama.cpp":
        if program := shutil.which("llama-server"):
            return [program, *told[1:]]
        own = [sys.executable, "-m", "dsr1_tune.serve.llama_server", str(artifact.path), "--host", host]
        own += ["--port", str(port)]
        if artifact.template_kwargs:
            own += ["--chat-template-kwargs", json.dumps(dict(artifact.template_kwargs))]
        return own if _can_import("xllamacpp") else None
    if engine == "sglang":
        return [sys.executable, *told[1:]] if _can_import("sglang") else None
    if engine == "transformers":
        is_ready = all(map(_can_import, ("fastapi", "uvicorn", "openai")))
        return [sys.executable, "-m", "transformers.cli.transformers", *told[1:]] if is_ready else None
    program = shutil.which("vllm")
    return [program, *told[1:]] if program else None


def _can_import(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def run(command: list[str], host: str, port: int, say: Say) -> int:
    """Run the engine until it ends or Ctrl-C stops it; says when it answers. Returns its exit code.

    Raises RunError if the port is taken, and if the engine ends before it has answered once.
    """
    _check_port(host, port)
    say(f"$ {shlex.join(command)}")
    # A session of its own, so that Ctrl-C reaches the engine once, from us, and all of its processes.
    process = subprocess.Popen(command, start_new_session=True)
    try:
        with _stopping_on_terminate():
            _wait(process, host, port, command, say)
            return process.wait()
    except KeyboardInterrupt:
        say("\nstopping ...")
        raise
    finally:
        _stop(process)


def _check_port(host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise RunError(f"--host: {host}: {error.strerror}", hint="127.0.0.1, or 0.0.0.0 for all networks") from None
    except OSError as error:
        raise RunError(f"{host}:{port}: {error.strerror}", hint=f"choose another port: --port {port + 1}") from None


def _wait(process: subprocess.Popen[bytes], host: str, port: int, command: list[str], say: Say) -> None:
    """Until the engine answers; large models take minutes."""
    address = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"
    while process.poll() is None:
        if _answers(f"{address}/health"):
            say(f"It answers at {address}/v1 (Ctrl-C stops it); for example:")
            say(_example(address))
            return
        time.sleep(0.5)
    raise RunError(
        f"{Path(command[0]).name} ended with code {process.returncode} before it answered",
        hint="its own messages above say why; dsr1-tune check-serve tells what it can load",
    )


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:  # our own engine, on the host that was asked for
            return bool(answer.status == 200)
    except OSError:
        return False


def _example(address: str) -> str:
    body = '{"messages": [{"role": "user", "content": "What is a fever?"}], "max_tokens": 64}'
    return f"curl {address}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"


@contextmanager
def _stopping_on_terminate() -> Iterator[None]:
    """What stops a container stops the engine as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the engine and all that it started; kindly first."""
    for number, patience in ((signal.SIGINT, 10), (signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
