"""Every kind is found where it is one, and left alone where it only looks like one."""

from __future__ import annotations

import pytest

from dsr1_tune.data.privacy.guard import KINDS, Found, find
from dsr1_tune.data.privacy.kinds import FINDERS, NUMBERS, OPTIONAL, worth_a_look


def found(text, kinds=()):
    return [(one.kind, text[one.start : one.end]) for one in find(text, kinds)]


@pytest.mark.parametrize(
    ("text", "kind", "datum"),
    [
        ("身份证号：110105 19491231 002x", "cn_id", "110105 19491231 002x"),
        ("证件号１１０１０５１９４９１２３１００２Ｘ", "cn_id", "１１０１０５１９４９１２３１００２Ｘ"),
        ("老身份证130503670401001", "cn_id", "130503670401001"),
        ("税号91350100M000100Y43", "cn_credit_code", "91350100M000100Y43"),
        ("卡号6222 0210 0111 6245 702", "bank_card", "6222 0210 0111 6245 702"),
        ("Visa 4111-1111-1111-1111, thanks", "bank_card", "4111-1111-1111-1111"),
        ("Amex 3782 822463 10005", "bank_card", "3782 822463 10005"),
        ("邮箱zhang.wei@sina.com.cn谢谢", "email", "zhang.wei@sina.com.cn"),
        ("发到zhangwei＠qq.com", "email", "zhangwei＠qq.com"),
        ("write to john [at] acme [dot] com", "email", "john [at] acme [dot] com"),
        ("john at acme dot com", "email", "john at acme dot com"),
        ("13812345678@163.com", "email", "13812345678@163.com"),
        ("座机010-62345678", "cn_landline", "010-62345678"),
        ("（0755）8234 5678", "cn_landline", "（0755）8234 5678"),
        ("电话：62345678", "cn_landline", "62345678"),
        ("+86 10 6234 5678", "cn_landline", "+86 10 6234 5678"),
        ("call (212) 736-5000 now", "phone", "(212) 736-5000"),
        ("ring +44 20 7946 0958", "phone", "+44 20 7946 0958"),
        ("my phone is 2127365000", "phone", "2127365000"),
        ("SSN 536-22-8817", "us_ssn", "536-22-8817"),
        ("social security number 536228817", "us_ssn", "536228817"),
        ("从113.87.12.9登录", "ip", "113.87.12.9"),
        ("http://47.98.112.35:8080/x", "ip", "47.98.112.35"),
        ("from 2408:8207:1850:2a60::1", "ip", "2408:8207:1850:2a60::1"),
        ("护照号E12345678", "passport", "E12345678"),
        ("E12345678是我的护照号", "passport", "E12345678"),
        ("passport number is 548291736", "passport", "548291736"),
        ("驾驶粤B12345小客车", "cn_plate", "粤B12345"),
        ("沪A·D12345", "cn_plate", "沪A·D12345"),
        ("我的QQ是123456", "qq", "123456"),
        ("扣扣10012345", "qq", "10012345"),
        ("微信号：zhangsanfeng", "wechat", "zhangsanfeng"),
        ("加微信zhang_san88咨询", "wechat", "zhang_san88"),
        ("患者姓名：张三，男", "name", "张三"),
        ("姓名张伟性别男", "name", "张伟"),
        ("我叫欧阳文博，今年三十", "name", "欧阳文博"),
        ('{"姓名": "王小红"}', "name", "王小红"),
        ("我的名字是约翰·多伊", "name", "约翰·多伊"),
        ("My name is John Smith and", "name", "John Smith"),
        ("**Patient Name:** Mary-Ann O'Brien", "name", "Mary-Ann O'Brien"),
        ("住址：浙江省杭州市西湖区文三路90号3栋502室", "address", "浙江省杭州市西湖区文三路90号3栋502室"),
        ("我住在北京市朝阳区建国路88号，", "address", "北京市朝阳区建国路88号"),
        ("I live at 742 Evergreen Terrace.", "address", "742 Evergreen Terrace"),
        ("Ship it to 12 Oak Hill Rd, Apt 4B, Austin, TX 78701", "address", "12 Oak Hill Rd, Apt 4B, Austin, TX 78701"),
    ],
)
def test_kinds_are_found_one_by_one(text, kind, datum):
    assert found(text) == [(kind, datum)]


def test_kinds_are_explained_and_have_finders_in_the_order_that_decides():
    assert list(KINDS) == list(FINDERS)
    assert all(KINDS.values())
    assert set(KINDS) >= NUMBERS | OPTIONAL


def test_kinds_that_are_more_specific_win_even_where_not_requested():
    assert found("13812345678@qq.com", ["cn_mobile"]) == []
    assert found("400-820-8820") == []
    assert found("400-820-8820", ["hotline"]) == [("hotline", "400-820-8820")]
    assert find("call 800-736-5000", ["phone"]) == []  # toll free: a service's
    assert find("tel 13812345678", ["cn_mobile"]) == [Found("cn_mobile", 4, 15)]


@pytest.mark.parametrize(
    "text",
    [
        # medicine
        "谷丙转氨酶41.5U/L，参考值0.00-40.00，HBV-DNA定量41350000IU/ml",
        "国药准字H20046379，批号20210311022",
        "ICD-10编码：K29.500，rs61805159位点，国械注准20193140275",
        "卡马西平 600-1200mg/d，共13812345678元",
        # law
        "(2019)京01民终1234号，案号：（2021）粤0305刑初13812号",
        "18 U.S.C. § 1030, No. 19-1392",
        # books, papers, goods
        "ISBN 978-7-302-51234-5 ISBN: 9780747532699 doi:10.1016/j.cell.2019.05.031",
        "订单号：13812345678，快递单号13912345678",
        "order number 2127365000, tracking number: 4111111111111111",
        "iPhone 13, G1234次列车, GB/T 12345-2020",
        # numbers
        "时间戳1388534400，1388534400000，2014-01-01 08:00:00",
        "14834150134 - 6778576 = -16666579378",
        "13812345678 * 2 = 27624691356",
        "0.13812345678 and 3.14159265358979",
        "GPS (39.904200, 116.407400), lon=+116.4074123",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15",
        "偿还借款10000000元及利息213875.33元",
        # code
        "127.0.0.1:8080 192.168.1.1 10.0.0.1 0xdeadbeef 255.255.255.0 8.8.8.8 52.95.110.0/24",
        "550e8400-e29b-41d4-a716-446655440000",
        "version 1.2.3.4, Chrome/96.0.4664.110, pip install x==1.20.300.4",
        "git@github.com:a/b.git, logo@2x.png, lodash@4.17.21, @app.route, root@localhost",
        "https://user:secret@db.acme.com/x",
        "std::vector<int> a::b fe80::1 2001:db8::1 00:1a:2b:3c:4d:5e",
        # set aside for examples
        "user@example.com admin@mail.example.org",
        "(555) 123-4567, 212-555-0147, 123-456-7890",
        # words
        "我叫他去医院，我叫了一辆车，姓名：____，姓名和年龄是必填项",
        "My name is {{name}}; my name is on the list; My name is ChatGPT",
        "患者：高热三天，联系人：王先生，被告：刘某1",
        "我住在北京，我住在三楼，医院地址：北京市东城区帅府园1号",
        "QQ音乐2023版，QQ群：123456789，微信支付12345元，微信Windows版",
        "护照有效期至20300115，车牌号为×××的货车，豫A9××××，新A股",
        "138****5678，1381234XXXX，电话：[电话号码]",
        "拨打120，拨打12345，call 911",
    ],
)
def test_kinds_leave_alone_what_only_looks_like_them(text):
    assert found(text) == []


def test_worth_a_look_passes_over_ordinary_texts():
    for text in [
        "请介绍一下高血压的治疗方法。",
        "Write a haiku about the 3 seas.",
        "def f(x): return x[0]",
        "2023年5月",
    ]:
        assert not worth_a_look(text)
