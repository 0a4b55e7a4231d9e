"""Tables of phrases and patterns, kept in YAML files beside the modules that search texts for them.

An entry is a text, or a list of alternatives; an alternative that is a list itself is written in several pieces.
`<<name>>` stands for another entry of the same file, in brackets where that is a list.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_REFERENCE = re.compile(r"<<(\w+)>>")


def load_yaml(file: Path) -> Any:
    """What a YAML file of the package holds, read by libyaml where that is there: it is ten times as fast."""
    return yaml.load(file.read_text(encoding="utf-8"), _LOADER)


class PhraseTable:
    """The entries of the YAML file that has a module's name and stands beside it; it is read once, on import."""

    def __init__(self, module_file: str) -> None:
        self._entries: dict[str, Any] = load_yaml(Path(module_file).with_suffix(".yaml"))

    def __getitem__(self, name: str) -> Any:
        """The entry as the file holds it, such as a list of words. Raises KeyError where there is none."""
        return self._entries[name]

    def text(self, name: str) -> str:
        """The entry as one text, its alternatives joined by |."""
        entry = self._entries[name]
        pieces = entry if isinstance(entry, list) else [entry]
        joined = "|".join("".join(piece) if isinstance(piece, list) else piece for piece in pieces)
        return _REFERENCE.sub(lambda found: self._part(found[1]), joined)

    def _part(self, name: str) -> str:
        return f"(?:{self.text(name)})" if isinstance(self._entries[name], list) else self.text(name)

    def pattern(self, name: str, flags: int = 0) -> re.Pattern[str]:
        """The entry as a compiled regular expression."""
        return re.compile(self.text(name), flags)
