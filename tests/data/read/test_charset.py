"""Encodings are told apart, and never silently turned into mojibake."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsr1_tune.data.read.charset import detect

CHINESE = "高血压患者能吃党参吗？建议您先咨询医生，不要自行用药。"
TEXTS = [
    (CHINESE, "utf-8", "utf-8"),
    (CHINESE, "utf-8-sig", "utf-8-sig"),
    (CHINESE, "gb18030", "gb18030"),
    (CHINESE, "gbk", "gb18030"),
    ("问题,回答\n你好,很好\n", "gb18030", "gb18030"),
    ('{"a": "' + CHINESE, "utf-16", "utf-16"),
    ('{"a": "' + CHINESE, "utf-16-le", "utf-16-le"),
    ('{"a": "' + CHINESE, "utf-16-be", "utf-16-be"),
    ("高血壓患者能吃黨參嗎？建議您先諮詢醫生，不要自行用藥。這是一個說明。" * 5, "big5", "big5"),
    ("고혈압 환자는 약을 먹어야 하나요? 의사와 상담하세요." * 20, "euc-kr", "cp949"),
    ("Le café est-il dangereux pour la santé? Très peu, à condition d'en boire modérément.", "cp1252", None),
    ("plain ASCII", "ascii", "utf-8"),
]


@pytest.mark.parametrize(("text", "encoding", "expected"), TEXTS)
def test_detect_names_the_encoding(text, encoding, expected):
    data = text.encode(encoding)
    found = detect(io.BytesIO(data))
    # Western encodings are guesses between near relatives: what counts is the text.
    assert expected in (found, None)
    assert data.decode(found) == text


def test_detect_overlooks_a_few_broken_bytes():
    assert detect(io.BytesIO((CHINESE * 20).encode() + b"\xd0\xff" + CHINESE.encode())) == "utf-8"
    assert detect(io.BytesIO((CHINESE * 20).encode("gb18030") + b"\xff" + CHINESE.encode("gb18030"))) == "gb18030"


def test_detect_finds_late_chinese():
    assert detect(io.BytesIO(b"a" * 3_000_000 + CHINESE.encode("gb18030"))) == "gb18030"


def test_detect_takes_binary_for_no_text():
    assert detect(io.BytesIO(bytes(range(256)) * 10)) is None


# Beginning as JSON and CSV do, with an ASCII character; and no control characters, of which text has few.
_ANY_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=200).map('{"a": "'.__add__)
_EVERYDAY = "的是不了在有和我你一高血压患者能吃吗建议您先咨询医生不要自行用药问题回答"


@given(text=_ANY_TEXT, encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]))
def test_detect_of_any_text_in_unicode_gives_the_text_back(text, encoding):
    data = text.encode(encoding)
    found = detect(io.BytesIO(data))
    assert found is not None and data.decode(found) == text


@given(text=st.text(st.sampled_from(_EVERYDAY), min_size=20, max_size=120))
def test_detect_of_everyday_chinese_gives_the_text_back_or_refuses_it(text):
    data = ('{"a": "' + text).encode("gb18030")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        assert detect(io.BytesIO(data)) in ("gb18030", None)
    else:  # such as 一一一, whose bytes are Armenian in UTF-8: nobody could tell
        assert detect(io.BytesIO(data)) == "utf-8"


@given(data=st.binary(max_size=400))
def test_detect_of_any_bytes_names_an_encoding_that_exists_or_none(data):
    found = detect(io.BytesIO(data))
    assert found is None or isinstance(data.decode(found, "replace"), str)
