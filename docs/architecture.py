"""Write ARCHITECTURE.md: a line for every folder and file, made from the first lines of docstrings and comments.

    python docs/architecture.py           # write it
    python docs/architecture.py --check   # exit with 1 where it is stale, or where the house rules are broken

The head, down to the marker, is written by hand and kept. The house rules are those that ruff, mypy and import-linter
cannot check: how many files a folder holds, how long a file and a function may be, and that every file says what it is
for.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE, TEMPLATES, MAP = ROOT / "dsr1_tune", ROOT / "data_templates", ROOT / "ARCHITECTURE.md"
PAGES, BENCHMARKS = ROOT / "docs", ROOT / "benchmarks"
MARKER = "<!-- From here on made by `make architecture` from docstrings, first comments and headings. -->\n"
MAX_FILES, MAX_FILE_LINES, MAX_FUNCTION_LINES = 16, 400, 60


def main() -> int:
    """Write or check; the exit code."""
    if "--check" not in sys.argv[1:]:
        MAP.write_text(written(), encoding="utf-8")
        return 0
    problems = [*broken_rules()]
    if MAP.read_text(encoding="utf-8") != written():
        problems.append("ARCHITECTURE.md: is stale; run `make architecture`")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def written() -> str:
    """ARCHITECTURE.md as it should be: its head as it is, and the map as the files have it."""
    head = MAP.read_text(encoding="utf-8").split(MARKER)[0] if MAP.exists() else ""
    templates = [
        f"- **{TEMPLATES.name}/** A YAML file for each domain and language, which `data init` writes templates of."
    ]
    templates += [f"  - `{file.name}`" for file in sorted(TEMPLATES.iterdir())]
    benchmarks = ["- **benchmarks/** What is measured, each by one script; results are in `RESULTS.md`."]
    benchmarks += [f"  - `{file.name}` {purpose(file)}" for file in sorted(BENCHMARKS.glob("*.py"))]
    return head + MARKER + "\n" + "\n".join([*tree(PACKAGE), *templates, *pages(), *benchmarks]) + "\n"


def tree(folder: Path, depth: int = 0) -> Iterator[str]:
    """A line for the folder, one for each file in it, then those of its folders."""
    indent = "  " * depth
    yield f"{indent}- **{folder.name}/** {purpose(folder / '__init__.py')}".rstrip()
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name != "__init__.py":
            yield f"{indent}  - `{file.name}` {purpose(file)}".rstrip()
    for inner in sorted(folder.iterdir()):
        if inner.is_dir() and any(file.suffix in COMMENTS or file.suffix == ".py" for file in inner.iterdir()):
            yield from tree(inner, depth + 1)


def pages() -> Iterator[str]:
    """A line for each page of the documentation: its title and its sections."""
    yield "- **docs/** The documentation; `.zh.md` is the same page in Chinese."
    for file in sorted(PAGES.glob("*.md")):
        if not file.name.endswith(".zh.md"):
            title, *sections = re.findall(r"^##? (.+)", _without_code(file.read_text(encoding="utf-8")), re.MULTILINE)
            chinese = ", `.zh.md`" if file.with_suffix(".zh.md").exists() else ""
            yield f"  - `{file.name}`{chinese} {title}" + (f": {'; '.join(sections)}" if sections else "")


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


# How the comment that begins a file of other kinds is written.
COMMENTS = {
    ".yaml": re.compile(r"((?:#.*\n)+)|description: (.+)"),
    ".j2": re.compile(r"\{#-(.*?)-#\}", re.DOTALL),
}


def purpose(file: Path) -> str:
    """What a file says that it is for, on one line; "" where it says nothing.

    The first paragraph of a module's docstring; of YAML, templates and style sheets the first sentence of the comment
    that they begin with; of a rule pack its description.
    """
    if file.suffix == ".py" and file.exists():
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        return " ".join(docstring.split("\n\n", 1)[0].split())
    if file.suffix not in COMMENTS or not (found := COMMENTS[file.suffix].search(file.read_text(encoding="utf-8"))):
        return ""
    comment = next(part for part in found.groups() if part)
    return re.split(r"(?<=\.)\s", " ".join(comment.replace("#", "").split()))[0].rstrip(":")


def broken_rules() -> Iterator[str]:
    """Every place where a house rule is broken, in a line."""
    for folder in sorted({file.parent for file in PACKAGE.rglob("*.py")}):
        num_files = sum(1 for file in folder.glob("*.py") if file.name != "__init__.py")
        if num_files > MAX_FILES:
            yield f"{_name(folder)}: holds {num_files} source files; {MAX_FILES} at most"
    for file in sorted(PACKAGE.rglob("*")):
        if file.suffix in COMMENTS and not purpose(file):
            yield f"{_name(file)}: says nowhere what it is for; begin with a comment"
    for file in sorted(PACKAGE.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if not purpose(file):
            yield f"{_name(file)}: says nowhere what it is for; begin with a docstring"
        if (num_lines := text.count("\n")) > MAX_FILE_LINES:
            yield f"{_name(file)}: has {num_lines} lines; {MAX_FILE_LINES} at most"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    yield f"{_name(file)}:{node.lineno}: {node.name} has {length} lines; {MAX_FUNCTION_LINES} at most"


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


if __name__ == "__main__":
    sys.exit(main())
