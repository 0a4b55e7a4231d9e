"""Turns in one text, split at inline role tags: `<user>: … <bot>: …`, `Human: … Assistant: …`, `用户：… 助手：…`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from dsr1_tune.data.record import Drop, Role

# Who asks, and who may answer. Few-shot prompts are full of "Q:" and "A:", case notes of "患者：" and "医生：": those
# stay text.
_SPEAKERS = (
    (("user", "human"), ("bot", "assistant", "chatbot", "gpt", "ai")),
    (("用户",), ("助手", "助理", "机器人", "客服", "ai")),
    (("问",), ("答",)),
)
_SYSTEM = ("system", "系统")
_ASKING = tuple(word for asking, _ in _SPEAKERS for word in asking)
_ANSWERING = tuple(word for _, answering in _SPEAKERS for word in answering)

_COLON = r"[ \t]?[:：]"
_FIRST = "|".join((*_ASKING, *_SYSTEM))
_OPENING = re.compile(rf"\s*(?:(?P<angle><)(?:{_FIRST})>|(?:\#\#\#?[ ]?)?(?:{_FIRST})){_COLON}", re.IGNORECASE)
_WORD = "|".join((*_ASKING, *_ANSWERING, *_SYSTEM))
_ANGLED_TAG = re.compile(rf"(?P<mark><(?P<word>{_WORD})>){_COLON}", re.IGNORECASE)
# A bare word is a tag at the start, after a blank or a sentence's end; "### Human:" is one anywhere.
_BARE_TAG = re.compile(
    rf"(?:^|(?<=[\s。！？!?.…”\"])|(?=\#\#))(?P<mark>(?:\#\#\#?[ ]?)?(?P<word>{_WORD})){_COLON}", re.IGNORECASE
)
_FIX = "write the turns as messages: user and assistant in turn, none of them empty"


@dataclass(frozen=True, slots=True)
class Dialogue:
    """The turns that stood in one text, the mark of the assistant's ("" for none), and what to say about it."""

    turns: tuple[tuple[Role, str], ...]
    assistant: str
    note: Drop

    def unmarked(self, answer: str) -> str:
        """An answer that stands elsewhere, without the mark that says again whose turn it is."""
        again = re.match(rf"\s*{re.escape(self.assistant)}{_COLON}\s*", answer) if self.assistant else None
        return answer[again.end() :] if again else answer


@dataclass(frozen=True, slots=True)
class _Tag:
    role: Role
    mark: str
    start: int
    end: int


def begins_with_role_tag(text: str) -> bool:
    """Whether the text begins with the tag of a user or of a system prompt: quick, for every row."""
    return _OPENING.match(text) is not None


def split_role_tags(text: str, has_answer: bool) -> Dialogue | Drop | None:
    """The turns in the text; a remark where its tags make no dialogue; None for any other text.

    With `has_answer` the last turn is the user's, as its answer stands elsewhere; else the text holds it all.
    """
    opening = _OPENING.match(text)
    tags = _tags(text, bool(opening["angle"])) if opening else []
    may_be_lone = has_answer and opening is not None and bool(opening["angle"])
    if not any(tag.role == "assistant" for tag in tags) and not (tags and may_be_lone):
        return None
    ends = [*(tag.start for tag in tags[1:]), len(text)]
    turns = [(tag.role, text[tag.end : end].strip()) for tag, end in zip(tags, ends, strict=True)]
    if has_answer and turns[-1] == ("assistant", ""):
        # "Assistant:" at the very end only says whose turn it is.
        turns.pop()
    marks = " and ".join(f"{mark}:" for mark in dict.fromkeys(tag.mark for tag in tags))
    if not _take_turns(turns, has_answer):
        detail = f"the text begins as a dialogue, but its tags ({marks}) mark no turns that alternate: kept as one text"
        return Drop("flattened_turns", detail, _FIX)
    detail = f"{len(turns)} turns stood in one text behind {marks}, and were told apart"
    if len(turns) == 1:
        detail = f"the tag {marks} stood before the question, and was taken away"
    note = Drop("flattened_turns", detail, _FIX)
    return Dialogue(tuple(turns), next((tag.mark for tag in tags if tag.role == "assistant"), ""), note)


def _tags(text: str, is_angled: bool) -> list[_Tag]:
    """The tags of the first user and of the first assistant to speak; the same words spelled otherwise are text."""
    found = [_tag(match) for match in (_ANGLED_TAG if is_angled else _BARE_TAG).finditer(text)]
    user = next((tag.mark for tag in found if tag.role == "user"), "")
    fitting = next((answering for asking, answering in _SPEAKERS if _word(user) in asking), ())
    assistant = next((tag.mark for tag in found if tag.role == "assistant" and _word(tag.mark) in fitting), "")
    if not user:
        return []
    return [tag for tag in found if tag.mark in (user, assistant) or (tag.role == "system" and tag is found[0])]


def _tag(match: re.Match[str]) -> _Tag:
    word = match["word"].lower()
    role: Role = "system" if word in _SYSTEM else "user" if word in _ASKING else "assistant"
    return _Tag(role, match["mark"], match.start(), match.end())


def _word(mark: str) -> str:
    """`### Human` → human."""
    return mark.strip("#<> ").lower()


def _take_turns(turns: Sequence[tuple[Role, str]], has_answer: bool) -> bool:
    """Whether user and assistant alternate, each says something, and the user is last where the answer is elsewhere."""
    if not turns or not all(text for _, text in turns):
        return False
    spoken = [role for role, _ in turns[turns[0][0] == "system" :]]
    alternate = all(role == expected for role, expected in zip(spoken, cycle(("user", "assistant")), strict=False))
    return bool(spoken) and alternate and (not has_answer or spoken[-1] == "user")
