"""A web page's own text in answers is dropped."""

from __future__ import annotations

import pytest

from dsr1_tune.data.record import Drop
from dsr1_tune.data.rules.codes import MEANINGS

LONG_EN = "Regular exercise strengthens the heart. It also lowers the blood pressure and helps people to sleep well."
LONG_ZH = "规律的运动可以增强心脏功能。它还能降低血压，帮助人们睡得更好。饮食也要清淡一些。"

ADVICE_EN = (
    "Walk every day and eat less salt. Sleep enough and do not smoke. Your doctor can check the result after a month."
)
ADVICE_ZH = "每天散步，少吃盐。保证睡眠，不要吸烟。一个月后请医生复查血压，看看效果如何。"
PRESSURE_EN = "How can I lower my blood pressure?"
PRESSURE_ZH = "怎样才能降低血压？"
FAULTS = [
    ("boilerplate", "Why exercise?", LONG_EN + "\nCopyright © 2021 Example Inc. All rights reserved."),
    ("boilerplate", "Why exercise?", "Home | About | Contact us | Log in | Sign up\n" + LONG_EN),
    ("boilerplate", "为什么要运动？", LONG_ZH + "\n上一篇：如何养生 下一篇：健康饮食"),
    ("boilerplate", "为什么要运动？", LONG_ZH + "\n版权所有 未经授权不得转载"),
]
FAMILIES = [
    (
        "boilerplate",
        PRESSURE_EN,
        [
            "Error: JavaScript is disabled in your browser. Please enable it.",
            "Sorry, the page you were looking for could not be found. 404 error.",
            "Please log in to continue reading this article.",
            ADVICE_EN + "\nShare on Facebook | Share on Twitter",
            "Leave a Reply. Your email address will not be published. Required fields are marked *",
            "Checking your browser before accessing the site. Ray ID: 1234",
            ADVICE_EN + "\nAll content on this site is provided for information. © 2019 | Terms | Privacy",
            "This page was last edited on 3 May 2020.",
        ],
    ),
    (
        "boilerplate",
        PRESSURE_ZH,
        [
            "登录后查看完整内容，没有账号？免费注册",
            ADVICE_ZH + "\n本文来源于网络，如有侵权请联系删除。",
            ADVICE_ZH + "\n责任编辑：王小明 浏览次数：1024",
            "页面不存在，3秒后返回首页",
            ADVICE_ZH + "\n声明：以上观点不代表本站立场，版权归原作者所有。",
            "正在加载，请刷新页面重试",
            ADVICE_ZH + "\n点击展开全文",
        ],
    ),
]


@pytest.mark.parametrize(
    ("code", "question", "answer"),
    [*FAULTS, *((code, question, answer) for code, question, some in FAMILIES for answer in some)],
)
def test_boilerplate_drops_its_faults(record, general, code, question, answer):
    drop = general.check(record(question, answer)).row
    assert isinstance(drop, Drop)
    assert drop.code == code
    assert drop.code in MEANINGS
    assert drop.path == ("$.input" if question.startswith("@#") else "$.output")
    assert drop.detail and drop.fix
