"""llama.cpp's server as a script of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dsr1_tune.serve import llama_server


def test_llama_server_needs_nothing_of_ours(tmp_path: Path) -> None:
    """So that the container has no more than this file."""
    text = Path(llama_server.__file__).read_text()
    (tmp_path / "server.py").write_text(text)
    command = [sys.executable, "-P", str(tmp_path / "server.py")]
    assert "import dsr1_tune" not in text and "from dsr1_tune" not in text
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "holds 0 .gguf files" in done.stderr


def test_llama_server_refuses_a_folder_with_several_files(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(SystemExit, match=r"holds 2 \.gguf files, and one is served"):
        llama_server.main([str(tmp_path)])


def test_llama_server_says_what_it_cannot_load(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    (tmp_path / "a.gguf").write_bytes(b"GGUF and no more")
    command = [sys.executable, llama_server.__file__, str(tmp_path), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "a.gguf: llama.cpp cannot load it" in done.stderr
