"""Texts of a page in two languages."""

from __future__ import annotations

from typing import Literal

Language = Literal["en", "zh"]

CUT: dict[Language, str] = {"en": "… {more} more characters", "zh": "…… 另有 {more} 字符"}
"""What stands where a long text was cut."""
