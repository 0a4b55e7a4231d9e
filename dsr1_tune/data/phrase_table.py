"""Tables of phrases and patterns, kept in YAML files beside the modules that search texts for them.

An entry is a text, or a list of alternatives; an alternative that is a list itself is written in several pieces.
`<<name>>` stands for another entry, in brackets where that is a list; `(?i)` begins a pattern whatever the case.
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
    """The entries of the YAML file that has a module's name and stands beside it: `table.name` is one as a pattern.

    A pattern is compiled when it is first asked for. The entries of `others` may be referred to.
    """

    def __init__(self, module_file: str, *others: PhraseTable) -> None:
        self._entries: dict[str, Any] = {name: entry for other in others for name, entry in other._entries.items()}
        self._entries |= load_yaml(Path(module_file).with_suffix(".yaml"))

    def __getitem__(self, name: str) -> Any:
        """The entry as the file holds it, such as a list of words. Raises KeyError where there is none."""
        return self._entries[name]

    def __getattr__(self, name: str) -> re.Pattern[str]:
        if name.startswith("_") or name not in self._entries:
            raise AttributeError(f"there is no entry {name!r}")
        pattern = self.__dict__[name] = re.compile(self.text(name))
        return pattern

    def text(self, name: str) -> str:
        """The entry as one text, its alternatives joined by |."""
        return self.filled(self._entries[name])

    def filled(self, entry: Any) -> str:
        """The same of what is part of an entry."""
        pieces = entry if isinstance(entry, list) else [entry]
        joined = "|".join("".join(piece) if isinstance(piece, list) else piece for piece in pieces)
        return _REFERENCE.sub(lambda found: self._part(found[1]), joined)

    def _part(self, name: str) -> str:
        return f"(?:{self.text(name)})" if isinstance(self._entries[name], list) else self.text(name)
