"""Telephones, mailboxes and messengers in the forms that people write."""

from __future__ import annotations

import pytest

from dsr1_tune.data.privacy.contacts import emails, hotlines, ips, landlines, phones, qqs, wechats
from dsr1_tune.data.privacy.guard import find
from dsr1_tune.data.privacy.numbers import fold


def found(text, kinds=()):
    return [(one.kind, text[one.start : one.end]) for one in find(text, kinds)]


@pytest.mark.parametrize(
    "written",
    [
        "13812345678",
        "138-1234-5678",
        "138 1234 5678",
        "138.1234.5678",
        "+8613812345678",
        "+86 138 1234 5678",
        "(+86)13812345678",
        "0086-13812345678",
        "１３８１２３４５６７８",
        "138－1234－5678",
        "138—1234—5678",
        "1381234 5678",
        "1-3-8-1-2-3-4-5-6-7-8",
    ],
)
@pytest.mark.parametrize(
    "frame", ["电话{}谢谢", "{}", "手机：{}，请回电", "tel {} or mail", '{{"phone": "{}"}}', "**{}**"]
)
def test_mobiles_are_found_in_every_form(written, frame):
    assert found(frame.format(written)) == [("cn_mobile", written)]


@pytest.mark.parametrize(
    ("finder", "text", "expected"),
    [
        (
            emails,
            "write to li.ming@acme.com or ann [at] acme [dot] org",
            ["li.ming@acme.com", "ann [at] acme [dot] org"],
        ),
        (emails, "user@example.com no-reply@acme.com git@github.com:a/b logo@2x.png", []),
        (ips, "从113.87.12.9登录 127.0.0.1 8.8.8.8 52.95.110.0/24", ["113.87.12.9"]),
        (ips, "version 1.2.3.4", []),
        (hotlines, "400-820-8820 订单号：400-820-8821", ["400-820-8820"]),
        (landlines, "座机010-62345678，电话：62345679", ["010-62345678", "62345679"]),
        (phones, "call (212) 736-5000 or +44 20 7946 0958, not (555) 123-4567", ["+44 20 7946 0958", "(212) 736-5000"]),
        (qqs, "我的QQ是123456，QQ群：987654", ["123456"]),
        (wechats, "微信号：zhangsanfeng，微信支付12345元", ["zhangsanfeng"]),
    ],
)
def test_contacts_are_found_by_their_own_finder(finder, text, expected):
    folded = fold(text)
    assert [text[start:end] for start, end in finder(folded, 0, len(folded))] == expected
