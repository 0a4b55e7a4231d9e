"""Encodings are told apart, and never silently turned into mojibake."""

from __future__ import annotations

import io

import pytest

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
def test_detect(text, encoding, expected):
    data = text.encode(encoding)
    found = detect(io.BytesIO(data))
    # Western encodings are guesses between near relatives: what counts is the text.
    assert expected in (found, None)
    assert data.decode(found) == text


def test_a_few_broken_bytes_do_not_change_the_encoding():
    assert detect(io.BytesIO((CHINESE * 20).encode() + b"\xd0\xff" + CHINESE.encode())) == "utf-8"
    assert detect(io.BytesIO((CHINESE * 20).encode("gb18030") + b"\xff" + CHINESE.encode("gb18030"))) == "gb18030"


def test_late_chinese_is_found():
    assert detect(io.BytesIO(b"a" * 3_000_000 + CHINESE.encode("gb18030"))) == "gb18030"


def test_binary_is_no_text():
    assert detect(io.BytesIO(bytes(range(256)) * 10)) is None
