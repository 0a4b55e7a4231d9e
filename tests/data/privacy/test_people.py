"""Names and addresses are found only where the text says that they are some."""

from __future__ import annotations

import pytest

from dsr1_tune.data.privacy.numbers import fold
from dsr1_tune.data.privacy.people import addresses, names


def found(finder, text):
    return [text[start:end] for start, end in finder(fold(text), 0, len(text))]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("患者姓名：李小明，男", "李小明"),
        ("收件人：欧阳娜娜 电话", "欧阳娜娜"),
        ("我叫王磊，今年四十", "王磊"),
        ("原告：张建国，住", "张建国"),
        ("My name is Anna Maria Smith.", "Anna Maria Smith"),
        ("Patient's name: John O'Brien", "John O'Brien"),
        ("My name is José García Núñez.", "José García Núñez"),
        ("My name is Jose\u0301 Garci\u0301a Nu\u0301n\u0303ez.", "Jose\u0301 Garci\u0301a Nu\u0301n\u0303ez"),
    ],
)
def test_names_behind_a_label_or_an_introduction(text, name):
    assert found(names, text) == [name]


@pytest.mark.parametrize(
    "text",
    ["李小明是医生", "我叫他去医院", "姓名：____", "Anna Smith said so", "My name is ChatGPT", "the name is on it"],
)
def test_names_without_a_label_are_left_alone(text):
    assert found(names, text) == []


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("家庭住址：广东省深圳市南山区科技路5号2栋301室", "广东省深圳市南山区科技路5号2栋301室"),
        ("我住在北京市朝阳区建国路88号。", "北京市朝阳区建国路88号"),
        ("I live at 12 Oak Street.", "12 Oak Street"),
    ],
)
def test_addresses_where_somebody_lives(text, address):
    assert found(addresses, text) == [address]


@pytest.mark.parametrize(
    "text", ["医院地址：北京市东城区帅府园1号", "我住在三楼", "The shop at 12 Oak Street is closed."]
)
def test_addresses_of_firms_and_places_are_left_alone(text):
    assert found(addresses, text) == []


def test_names_and_addresses_look_at_the_given_part_only():
    text = "姓名:张三，姓名:李四。"
    assert [text[start:end] for start, end in names(text, 6, len(text))] == ["李四"]
