"""Memory that this process may use, in a container too."""

from __future__ import annotations

from pathlib import Path

from dsr1_tune.models.memory import Memory, main_memory


def test_main_memory_counts_a_containers_limit(tmp_path: Path) -> None:
    assert main_memory(tmp_path).free > 0
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 100\n")
    assert main_memory(tmp_path) == Memory(total=1000, free=400)
    (tmp_path / "memory.max").write_text("max\n")
    assert main_memory(tmp_path).total > 1000
