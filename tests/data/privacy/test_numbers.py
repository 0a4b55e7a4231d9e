"""Numbers that name a person have true check digits; folding keeps every place."""

from __future__ import annotations

import pytest

from dsr1_tune.data.privacy.guard import find
from dsr1_tune.data.privacy.numbers import fold, is_card, is_cn_id, is_credit_code


def found(text, kinds=()):
    return [(one.kind, text[one.start : one.end]) for one in find(text, kinds)]


def test_numbers_may_stand_between_han_characters():
    # \b would not do: 话 and 1 are both word characters.
    assert found("我的电话13812345678谢谢") == [("cn_mobile", "13812345678")]
    assert found("身份证110105194912310021是我") == []  # wrong check digit
    assert found("身份证11010519491231002X是我") == [("cn_id", "11010519491231002X")]


def test_numbers_with_check_digits_need_true_ones():
    assert is_cn_id("11010519491231002X")
    assert not is_cn_id("110105194912310021")
    assert not is_cn_id("99010519491231002X")  # no such province
    assert not is_cn_id("110105194913310029")  # no such month
    assert is_credit_code("91350100M000100Y43")
    assert not is_credit_code("91350100M000100Y44")
    assert is_card("4111111111111111")
    assert not is_card("4111111111111112")
    assert not is_card("1111111111111117")  # no issuer begins with 1


@pytest.mark.parametrize("number", ["6222021001116245703", "4111 1111 1111 1112", "91350100M000100Y44"])
def test_numbers_with_a_wrong_check_digit_are_not_found(number):
    assert found(f"号码{number}") == []


def test_fold_keeps_every_place():
    text = "电话：１３８　1234－5678，\\n１"
    assert len(fold(text)) == len(text)
    assert fold("１３８－１２") == "138-12"
    assert "，" in fold("，")  # ends a number where a comma may be part of it
