"""Which language is a row in?  Told from its scripts alone: enough to group rows by, and nearly free."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dsr1_tune.data.dedup.ngrams import SCRIPTS, Tokens

LANGUAGES = ("none", "latin", "zh", "ja", "ko", "cyrillic", "arabic", "other")
"""What `language_codes` counts in; latin is English and every other language in Latin letters."""

MIN_KANA_SHARE = 0.1


def language_codes(found: Tokens) -> npt.NDArray[np.uint8]:
    """The language of each row (N), as its number in LANGUAGES: the one that most of its tokens are in.

    Han characters are Chinese unless a tenth of the CJK characters is kana.
    """
    num_rows = len(found.bounds) - 1
    rows = np.repeat(np.arange(num_rows), np.diff(found.bounds))
    num_of = np.bincount(rows * len(SCRIPTS) + found.scripts, minlength=num_rows * len(SCRIPTS))
    by_script = dict(zip(SCRIPTS, num_of.reshape(num_rows, len(SCRIPTS)).T, strict=True))
    cjk = by_script["han"] + by_script["kana"]
    is_japanese = by_script["kana"] > MIN_KANA_SHARE * np.maximum(cjk, 1)
    votes = np.stack(
        [
            np.zeros(num_rows, np.int64),
            by_script["latin"],
            np.where(is_japanese, 0, cjk),
            np.where(is_japanese, cjk, 0),
            by_script["hangul"],
            by_script["cyrillic"],
            by_script["arabic"],
            by_script["other"],
        ]
    )
    return votes.argmax(axis=0).astype(np.uint8)
