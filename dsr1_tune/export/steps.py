"""The four steps from what was trained to a model that is served: merge, quantize, compare, card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from dsr1_tune.config import ExportRun
from dsr1_tune.export import card, compare, lineage, merge, quantize
from dsr1_tune.export.comparison import page
from dsr1_tune.export.comparison.result import Comparison
from dsr1_tune.export.formats import registry


@dataclass(frozen=True)
class Steps:
    """Each step reads what the one before left in its folder, so that it may be taken in another process."""

    trained: Path
    """The folder of a finished run."""
    merged: Path
    """Where the model goes in the number format of its base."""
    quantized: Path
    """Where it goes in the format that is to be served."""
    settings: ExportRun
    console: Console | None = None
    language: Literal["auto", "en", "zh"] = "auto"
    """Of compare.html and the card."""

    @property
    def is_quantized(self) -> bool:
        """Whether the model that is served is another one than the merged one."""
        return self.settings.quantize.to != registry.NONE

    @property
    def made(self) -> Path:
        """The folder of the model that is served."""
        return self.quantized if self.is_quantized else self.merged

    def merge(self) -> None:
        """The base with what was trained, unless that was written before."""
        if not _is_whole(self.merged):
            merge.run(self.trained, self.merged, self.settings.merge, self.console)

    def quantize(self) -> None:
        """Into the format that is served, unless that is the merged one, or was written before."""
        if self.is_quantized and not _is_whole(self.quantized):
            quantize.run(self.merged, self.quantized, self.settings.quantize, self.console)

    def compare(self, names: tuple[str, str]) -> Comparison:
        """What came out against what went in, held to the gates; `names` are what the two are called."""
        before, settings = self.merged if self.is_quantized else self.trained, self.settings
        found = compare.run(
            before, self.made, settings.compare, settings.gates, self.made, self.console, names, self.language
        )
        lineage.refresh(self.made, (page.JSON_NAME, page.HTML_NAME))
        return found

    def card(self) -> Path:
        """The model card."""
        return card.run(self.made, self.language)


def _is_whole(folder: Path) -> bool:
    """Whether a folder that is written whole or not at all is there."""
    return (folder / lineage.FILE).is_file()
