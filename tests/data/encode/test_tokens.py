"""Labels stand on the tokens of what is learned."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dsr1_tune.data.encode.chat_template import Rendered
from dsr1_tune.data.encode.tokens import IGNORED, Tokens

_PLACES = st.lists(st.integers(0, 30), max_size=12).map(sorted)


@given(ends=_PLACES, spans=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=5))
def test_tokens_labels_are_on_tokens_that_share_a_character_with_a_span(
    ends: list[int], spans: list[tuple[int, int]]
) -> None:
    offsets = list(zip([0, *ends[:-1]], ends, strict=True)) if ends else []
    spans = sorted((min(span), max(span)) for span in spans if span[0] != span[1])
    labels = Tokens(list(range(len(offsets))), offsets, Rendered("", spans), 0).labels(spans)
    characters = {place for first, end in spans for place in range(first, end)}
    for number, (start, end) in enumerate(offsets):
        if start < end:
            assert labels[number] == (number if characters & set(range(start, end)) else IGNORED)
