"""The words of an answer, for scores that count them: Chinese, Japanese and Korean character by character."""

from __future__ import annotations

import re
import unicodedata

_CJK = "\u3005\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003134f"
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_ARTICLES = frozenset({"a", "an", "the"})


def words(text: str) -> list[str]:
    """Lower-case words; a CJK character is a word of its own. Signs, blanks and full-width forms make no difference.

    Without CJK these are rouge-score's tokens.
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def content_words(text: str) -> list[str]:
    """`words` without a, an and the, as SQuAD compares answers (arXiv 1606.05250); those alone are kept."""
    found = words(text)
    return [word for word in found if word not in _ARTICLES] or found


def is_chinese(text: str) -> bool:
    """Whether more of a text's words are Han characters than anything else."""
    num_han = len(_HAN.findall(text))
    return 2 * num_han > len(words(text))
