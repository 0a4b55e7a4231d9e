"""Catalogues of texts in English and Chinese, read from the YAML file beside the code that uses them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

Language = Literal["en", "zh"]
_AGREEING = re.compile(r"\{(\w+):([^{}|]*)\|([^{}|]*)\}")


@dataclass(frozen=True)
class Catalogue:
    """The texts of one YAML file, `key: {en: ..., zh: ...}`; the file is read at the first use."""

    file: Path

    @classmethod
    def beside(cls, module: str, name: str = "texts.yaml") -> Catalogue:
        """The catalogue in the folder of a module, which gives its `__file__`."""
        return cls(Path(module).with_name(name))

    @property
    def texts(self) -> Mapping[str, Mapping[Language, str]]:
        """Every key's texts."""
        return _read(self.file)

    def text(self, key: str, language: Language) -> str:
        """The text of that key, its `{placeholders}` open. Raises KeyError, naming the file, for an unknown key."""
        if key not in self.texts:
            raise KeyError(f"{self.file} has no text {key!r}")
        return self.texts[key][language]

    def agreeing(self, key: str, language: Language, values: Mapping[str, object]) -> str:
        """The text of that key, its `{placeholders}` open, in which `{rows:row is|rows are}` agrees with the number."""

        def agree(match: re.Match[str]) -> str:
            name, one, many = match.groups()
            return f"{{{name}}} {one if str(values.get(name)) == '1' else many}"

        return _AGREEING.sub(agree, self.text(key, language))

    def say(self, key: str, language: Language, /, **values: object) -> str:
        """The text of that key with `values` in place of its placeholders."""
        return self.agreeing(key, language, values).format(**values)

    def named(self, group: str, name: str, language: Language) -> str:
        """A name from data, such as a stage's or a part's, in words where `<group>_<name>` has some; else itself."""
        key = f"{group}_{name}"
        return self.texts[key][language] if key in self.texts else name


@lru_cache
def _read(file: Path) -> Mapping[str, Mapping[Language, str]]:
    import yaml

    texts: Mapping[str, Mapping[Language, str]] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return texts
