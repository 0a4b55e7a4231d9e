"""ARCHITECTURE.md says what is there, and the house keeps its rules."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def architecture() -> ModuleType:
    """The script that writes the map."""
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "docs" / "architecture.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_map_names_every_file_with_its_purpose(architecture: ModuleType) -> None:
    assert (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8") == architecture.written()
    lines = architecture.written().splitlines()
    for file in (ROOT / "dsr1_tune").rglob("*.*"):
        if file.suffix in (".py", ".yaml", ".j2") and file.name != "__init__.py":
            expected = f"`{file.name}` {architecture.purpose(file)}"
            assert any(expected in line for line in lines), file


@pytest.mark.parametrize(
    ("name", "text", "purpose"),
    [
        ("a.yaml", "# Words, by kind. More of it.\na: 1\n", "Words, by kind."),
        ("a.yaml", "extends: general\ndescription: Law; long texts.\n", "Law; long texts."),
        ("a.yaml", "a: 1\n", ""),
        ("a.html.j2", "{#- A page of\n two lines. -#}\n<p>\n", "A page of two lines."),
        ("a.css", "p {}\n", ""),
    ],
)
def test_purpose_is_what_a_file_begins_with(
    architecture: ModuleType, tmp_path: Path, name: str, text: str, purpose: str
) -> None:
    (tmp_path / name).write_text(text)
    assert architecture.purpose(tmp_path / name) == purpose


def test_guide_to_ten_changes_names_files_that_exist() -> None:
    guide = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    table = [line for line in guide.splitlines() if "|" in line]
    named = [path for line in table for path in re.findall(r"`([\w/.]+/[\w.]*)`", line)]
    assert len(named) >= 40
    homes = (ROOT, ROOT / "dsr1_tune")
    assert [path for path in named if not any((home / path).exists() for home in homes)] == []


def test_house_keeps_its_rules(architecture: ModuleType) -> None:
    assert list(architecture.broken_rules()) == []


def test_house_rules_name_what_breaks_them(
    architecture: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "dsr1_tune"
    (package / "room").mkdir(parents=True)
    (package / "__init__.py").write_text('"""All."""\n')
    (package / "room" / "__init__.py").write_text('"""A room."""\n')
    for number in range(17):
        (package / "room" / f"file{number}.py").write_text('"""Says something."""\n')
    monkeypatch.setattr(architecture, "ROOT", tmp_path)
    monkeypatch.setattr(architecture, "PACKAGE", package)
    assert list(architecture.broken_rules()) == ["dsr1_tune/room: holds 17 source files; 16 at most"]
    (package / "room" / "file16.py").unlink()
    assert list(architecture.broken_rules()) == []
    (package / "room" / "file0.py").write_text('"""Long."""\n' + "x = 1\n" * 400)
    (package / "room" / "file1.py").write_text('"""One function."""\ndef f():\n' + "    x = 1\n" * 60)
    (package / "room" / "file2.py").write_text("x = 1\n")
    (package / "room" / "texts.yaml").write_text("title: Texts\n")
    (package / "room" / "page.html.j2").write_text("{#- A page. -#}\n<p>\n")
    assert list(architecture.broken_rules()) == [
        "dsr1_tune/room/texts.yaml: says nowhere what it is for; begin with a comment",
        "dsr1_tune/room/file0.py: has 401 lines; 400 at most",
        "dsr1_tune/room/file1.py:2: f has 61 lines; 60 at most",
        "dsr1_tune/room/file2.py: says nowhere what it is for; begin with a docstring",
    ]


def test_stale_map_fails_the_check(
    architecture: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = tmp_path / "ARCHITECTURE.md"
    stale.write_text((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8") + "more\n", encoding="utf-8")
    monkeypatch.setattr(architecture, "MAP", stale)
    monkeypatch.setattr(sys, "argv", ["architecture.py", "--check"])
    assert architecture.main() == 1
    assert "ARCHITECTURE.md: is stale" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["architecture.py"])
    assert architecture.main() == 0
    assert stale.read_text(encoding="utf-8") == (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def test_most_modules_have_a_mirrored_test() -> None:
    """Nine in ten modules; the others hold texts, tables, or what only another process runs."""
    modules = [
        file.relative_to(ROOT / "dsr1_tune")
        for file in (ROOT / "dsr1_tune").rglob("*.py")
        if file.name not in ("__init__.py", "__main__.py")
    ]
    lacking = [file for file in modules if not (ROOT / "tests" / file.parent / f"test_{file.name}").is_file()]
    assert len(lacking) <= 0.15 * len(modules), lacking


def test_benchmarks_and_examples_import_what_the_package_has() -> None:
    missing = []
    for file in (*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "examples").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dsr1_tune"):
                missing += [f"{file.name}: {node.module}.{one.name}" for one in node.names if not _has(node, one.name)]
    assert missing == []


def _has(node: ast.ImportFrom, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(node.module or ""), name) or bool(
            importlib.util.find_spec(f"{node.module}.{name}")
        )
    except ModuleNotFoundError:
        return False
