"""The serving engines, and what is known of a release of each: check_serve.yaml, and in which formats each reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dsr1_tune.export.formats.format import Format
from dsr1_tune.export.formats.registry import formats, stored_as
from dsr1_tune.models.artifact import Artifact


@dataclass(frozen=True)
class Engine:
    """A serving engine, and what is known of one of its releases."""

    name: str
    title: str
    version: str
    formats: frozenset[str]
    """What it reads of the formats that are not written here, by `quant_method`; `none` is 16 or 32 bits."""
    adapters: Mapping[str, Any]
    wants_topk_method: tuple[str, ...] = ()
    """Architectures whose router it picks by settings that transformers leaves out."""

    @property
    def is_own(self) -> bool:
        """Whether it has its own code for each architecture, and so knows only some."""
        return self.name != "transformers"

    @property
    def is_llama_cpp(self) -> bool:
        """Whether it reads GGUF files, and has names of its own for what is in them."""
        return self.name == "llama.cpp"

    def knows(self, architecture: str) -> bool:
        """Whether it is known to run models of this architecture, as config.json names it."""
        facts = table()["architectures"].get(architecture, {})
        if self.is_llama_cpp:
            return "gguf" in facts
        return not self.is_own or self.name in facts.get("engines", ())

    def reads(self, artifact: Artifact) -> bool:
        """Whether it loads the format of an artifact's weights."""
        form = format_of(artifact)
        return self.name in form.loads_in if form else artifact.format in self.formats


@cache
def table() -> dict[str, Any]:
    """All of check_serve.yaml."""
    tree: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("check_serve.yaml").read_text(encoding="utf-8"))
    return tree


@cache
def engines() -> Mapping[str, Engine]:
    """The engines by name."""
    return {
        name: Engine(name, **{**facts, "formats": frozenset(facts["formats"])})
        for name, facts in table()["engines"].items()
    }


def format_of(artifact: Artifact) -> Format | None:
    """The format of those written here that its weights are stored in."""
    if artifact.kind == "gguf":
        return formats()["gguf"]
    quantization = artifact.config.get("quantization_config") if artifact.kind == "model" else None
    return stored_as(quantization) if isinstance(quantization, Mapping) else None
