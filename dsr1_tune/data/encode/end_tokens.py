"""Which tokens end an answer: found in what the model's own chat template writes behind one, and asked of nobody else.

Small conversations are rendered whose answers are words that no template changes; what stands behind them is looked
at. A template may end the last answer otherwise than earlier ones (gpt-oss), end a call of a tool by a token of its
own, leave the end to the next turn's first token (GLM-4), or write no end at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from dsr1_tune.data.encode.template import ToolForm, any_of, once, show, tool_form
from dsr1_tune.errors import ModelError

# Words that stay as they are under trimming, escaping, and as JSON.
_SAID, _LATER, _THOUGHT, _MORE = "qzanswerqz", "qzlaterqz", "qzthoughtqz", "qzmoreqz"
_NAME = "qztoolqz"
_ASKED = {"role": "user", "content": "qzaskedqz"}
_ANSWERED = {"role": "assistant", "content": _SAID}
_REASONED = {**_ANSWERED, **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), _THOUGHT)}
_PLACE = {"type": "object", "properties": {"place": {"type": "string", "description": "Where?"}}, "required": ["place"]}
_TOOLS = [{"type": "function", "function": {"name": _NAME, "description": "Look.", "parameters": _PLACE}}]

Turns = list[dict[str, Any]]


@dataclass(frozen=True)
class EndTokens:
    """What ends a model's answers."""

    answer: str
    """The token that ends a plain answer, the last of a conversation."""
    is_written: bool
    """Whether the chat template writes it behind the last answer; if not, it has to be put there."""
    call: str | None
    """The token that ends a last answer that calls a tool; None where the template has no form for calls."""
    is_call_written: bool
    """Whether the chat template writes that behind a last answer that calls a tool."""
    ids: frozenset[int]
    """All tokens at which generation stops."""
    remark: str = ""
    """What a user should know; mostly nothing."""


def end_tokens(
    tokenizer: Any, configured: Iterable[int] | int | None = (), settings: Mapping[str, Any] | None = None
) -> EndTokens:
    """What ends answers under the tokenizer's chat template, given its `settings` (`enable_thinking`, say).

    `configured` is what the model's generation config names as eos_token_id; generation stops there as well, and at
    the tokenizer's own end of text. Raises ModelError where nothing at all ends an answer.
    """
    own = [configured] if isinstance(configured, int) else configured or ()
    return once(_found, tokenizer, settings or {}, tokenizer.eos_token, frozenset(map(int, own)))


def _found(tokenizer: Any, settings: Mapping[str, Any], eos: str | None, configured: frozenset[int]) -> EndTokens:
    """`end_tokens`, of a tokenizer whose end of text is `eos`."""
    known = _Known.of(tokenizer)
    stops = {token for token in (eos, *map(tokenizer.convert_ids_to_tokens, configured)) if token}
    probe = _Probe(tokenizer, settings, known)
    answer = probe.answer(stops)
    remark = ""
    if answer is None:
        if not stops:
            raise ModelError(
                f"{tokenizer.name_or_path}: nothing ends an answer: the chat template writes no token behind it, and "
                "the tokenizer has no eos_token",
                hint="name the model's eos_token in its tokenizer_config.json",
            )
        answer = _End(eos or min(stops), is_written=False)
        if tail := probe.tail().strip():
            remark = (
                f"the chat template writes {tail!r} behind an answer, which is no token of this tokenizer; "
                f"answers are ended by {answer.token} in its place"
            )
    call = probe.call(stops | {answer.token}, answer)
    tokens = stops | {answer.token} | ({call.token} if call else set())
    ids = {*configured, *(int(tokenizer.convert_tokens_to_ids(token)) for token in tokens)}
    return EndTokens(
        answer=answer.token,
        is_written=answer.is_written,
        call=call.token if call else None,
        is_call_written=bool(call and call.is_written),
        ids=frozenset(ids),
        remark=remark,
    )


@dataclass(frozen=True)
class _End:
    token: str
    is_written: bool


@dataclass(frozen=True)
class _Known:
    """The tokens that a tokenizer knows as they are written, whatever stands around them."""

    pattern: re.Pattern[str]

    @classmethod
    def of(cls, tokenizer: Any) -> _Known:
        """Added and special tokens; runs of blanks, which some tokenizers add, end nothing."""
        added = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
        return cls(any_of(token for token in added if token.strip()))

    def within(self, text: str) -> list[str]:
        """Those in `text`, in their order."""
        return self.pattern.findall(text)


@dataclass(frozen=True)
class _Probe:
    """Conversations rendered to see what stands around an answer."""

    tokenizer: Any
    settings: Mapping[str, Any]
    known: _Known

    def answer(self, stops: set[str]) -> _End | None:
        """What ends a plain answer; None where no token does."""
        alone, followed = [_ASKED, _ANSWERED], [_ASKED, _ANSWERED, {**_ASKED, "content": _LATER}]
        inside = set(self.known.within(self._between(_THOUGHT, _SAID, [_ASKED, _REASONED])))
        last, earlier = self._behind(_SAID, alone), self._behind(_SAID, followed, _LATER)
        return self._end(last, inside, earlier, stops) or self._next_turn(inside, earlier)

    def tail(self) -> str:
        """The text behind a last answer."""
        return _behind(_SAID, self._text([_ASKED, _ANSWERED])) or ""

    def call(self, stops: set[str], answer: _End) -> _End | None:
        """What ends an answer that calls a tool; None where the template has no form for calls."""
        form = tool_form(self.tokenizer, self.settings)
        if form is None:
            return None
        one, two = ([_ASKED, _calling(number, form)] for number in (1, 2))
        # Between two calls stands what ends a call, but no turn; unless each is a turn of its own.
        inside = set(self.known.within(self._between(_SAID, _MORE, two, _TOOLS))) - {answer.token}
        result = {"role": "tool", "content": _LATER, "name": _NAME, "tool_call_id": "abcdefgh1"}
        for turns, word in ((one, _SAID), (two, _MORE)):
            last = self._behind(word, turns, tools=_TOOLS)
            earlier = self._behind(word, [*turns, result], _LATER, _TOOLS)
            if end := self._end(last, inside, earlier, stops):
                return end
        earlier = self._behind(_SAID, [*one, result], _LATER, _TOOLS)
        return self._next_turn(inside, earlier) or replace(answer, is_written=False)

    def _end(
        self, last: Sequence[str] | None, inside: set[str], earlier: Sequence[str] | None, stops: set[str]
    ) -> _End | None:
        """The token that ends the last answer: the last of those that earlier answers have behind them as well.

        Where they have none of it, the last answer's own: the first that is known to stop, else the last.
        """
        last = [token for token in last or () if token not in inside]
        earlier = [token for token in earlier or () if token not in inside]
        shared = [one for one, other in takewhile(lambda pair: pair[0] == pair[1], zip(last, earlier, strict=False))]
        if shared:
            return _End(shared[-1], is_written=True)
        own = [token for token in last if token in stops][:1] or last[-1:]
        return _End(own[0], is_written=True) if own else None

    def _next_turn(self, inside: set[str], earlier: Sequence[str] | None) -> _End | None:
        """The token with which the next turn begins; not one that begins texts."""
        first = next((token for token in earlier or () if token not in inside), None)
        return _End(first, is_written=False) if first and first != self.tokenizer.bos_token else None

    def _behind(
        self, word: str, turns: Turns, until: str | None = None, tools: list[Any] | None = None
    ) -> list[str] | None:
        """The tokens behind `word`, up to `until` or the end; None where the template does not show them."""
        text = _behind(word, self._text(turns, tools))
        if text is not None and until is not None:
            text, shown, _ = text.partition(until)
            return self.known.within(text) if shown else None
        return None if text is None else self.known.within(text)

    def _between(self, word: str, until: str, turns: Turns, tools: list[Any] | None = None) -> str:
        behind = _behind(word, self._text(turns, tools)) or ""
        return behind.partition(until)[0] if until in behind else ""

    def _text(self, turns: Turns, tools: list[Any] | None = None) -> str:
        """The conversation as the template shows it; empty where it refuses it."""
        try:
            return show(self.tokenizer, turns, tools, settings=self.settings)
        except Exception:  # a template is a program that knows nothing of what it is given
            return ""


def _behind(word: str, text: str) -> str | None:
    """The text behind the last `word`; None where it is not there."""
    _, found, behind = text.rpartition(word)
    return behind if found else None


def _calling(number: int, form: ToolForm) -> dict[str, Any]:
    """An answer that calls a tool, once or twice, in the template's form."""
    calls = [
        {
            "type": "function",
            "id": f"abcdefgh{count}",
            "function": {
                "name": _NAME,
                "arguments": json.dumps({"place": word}) if form.takes_text else {"place": word},
            },
        }
        for count, word in enumerate((_SAID, _MORE)[:number], start=1)
    ]
    return {"role": "assistant", "content": form.empty, "tool_calls": calls}
