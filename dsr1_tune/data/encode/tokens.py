"""A rendered conversation as token ids: control tokens in its texts stay text, and labels stand on what is learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dsr1_tune.config import Encoding
from dsr1_tune.data.encode.chat_template import Rendered
from dsr1_tune.data.encode.control_tokens import Span, hide, tokenise
from dsr1_tune.data.encode.template import control_tokens
from dsr1_tune.data.record import Record

IGNORED = -100
"""The label of a token that is not learned; the loss skips it."""


@dataclass(frozen=True)
class Tokens:
    """A conversation as the model reads it, and as it was rendered."""

    ids: list[int]
    offsets: list[Span]
    """The characters of each token in the text."""
    rendered: Rendered
    num_control: int
    """Control tokens that its texts hold, as text."""

    @classmethod
    def of(
        cls, record: Record, tokenizer: Any, encoding: Encoding, render: Callable[[Record, Any, Encoding], Rendered]
    ) -> Tokens:
        """What `render` makes of a record whose control tokens are hidden. Raises what the template raises."""
        hidden = hide(record, control_tokens(tokenizer, encoding.template.kwargs))
        rendered = render(hidden.record, tokenizer, encoding)
        text, places = hidden.shown(rendered.text)
        as_text = places if encoding.special_tokens == "text" and tokenizer.is_fast else ()
        return cls(*tokenise(text, as_text, tokenizer), rendered, len(places))

    def labels(self, spans: Sequence[Span]) -> list[int]:
        """The ids of tokens that share a character with a span, IGNORED for the others; spans are in order."""
        found, at = [], 0
        for token, (start, end) in zip(self.ids, self.offsets, strict=True):
            while at < len(spans) and spans[at][1] <= start:
                at += 1
            found.append(token if at < len(spans) and spans[at][0] < end else IGNORED)
        return found
