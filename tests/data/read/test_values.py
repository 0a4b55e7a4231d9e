"""A field's value becomes the text or list that is meant, or says why not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsr1_tune.data.read.read import read
from dsr1_tune.data.read.values import MAX_FIELD_CHARS, Unusable, as_list, is_sound, key_of, path_to, text_of


@pytest.mark.parametrize(("value", "text"), [(42, "42"), (1.5, "1.5"), (True, "true"), (["B"], "B")])
def test_values_that_are_plain_are_taken_as_text(write, value, text):
    (record,) = read([write("a.json", [{"input": "Q", "output": value}])])
    assert record.answer == text


@pytest.mark.parametrize(
    ("value", "code", "path"),
    [
        (None, "null_value", "$.a"),
        (float("nan"), "null_value", "$.a"),
        (1e300, "wrong_type", "$.a"),
        ({"text": "A"}, "wrong_type", "$.a"),
        ([{"type": "text", "text": "a"}, {"type": "image"}], "wrong_type", "$.a[1]"),
        ("a\0b", "bad_encoding", "$.a"),
        ("\ud800", "bad_encoding", "$.a"),
        ("x" * (MAX_FIELD_CHARS + 1), "too_large", "$.a"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_text_of_says_what_is_no_text_and_where(value, code, path):
    with pytest.raises(Unusable) as error:
        text_of(value, "$.a")
    assert (error.value.drop.code, error.value.drop.path) == (code, path)
    assert error.value.drop.detail and error.value.drop.fix


def test_text_of_joins_text_parts():
    assert text_of([{"type": "text", "text": "a"}, {"type": "text", "value": "b"}], "$") == "ab"


def test_as_list_reads_json_text_and_refuses_the_rest():
    assert as_list('[1, "a"]', "$.a") == [1, "a"] == as_list([1, "a"], "$.a")
    for value, code in (("[1,", "wrong_type"), (None, "null_value"), ("hello", "wrong_type"), ({}, "wrong_type")):
        with pytest.raises(Unusable) as error:
            as_list(value, "$.a")
        assert error.value.drop.code == code


def test_path_to_quotes_odd_column_names():
    assert path_to("output") == "$.output" and path_to("the answer") == "$['the answer']"
    assert key_of({"b": 1, "c": 2}, "a", "b", "c") == "b" and key_of({}, "a") == ""


@given(text=st.text(max_size=200))
def test_is_sound_is_what_can_be_written(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        assert not is_sound(text)
    else:
        assert is_sound(text) == ("\0" not in text)
