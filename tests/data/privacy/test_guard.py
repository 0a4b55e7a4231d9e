"""Personal data is found where it is some, and numbers that only look like it are left alone."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise

import pytest

from dsr1_tune.data.privacy.guard import KINDS, Found, Guard, find
from dsr1_tune.data.privacy.kinds import FINDERS, NUMBERS, OPTIONAL, worth_a_look
from dsr1_tune.data.privacy.numbers import fold, is_card, is_cn_id, is_credit_code
from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Drop, Message, Place, Preference, Prompt, Record
from dsr1_tune.errors import ConfigError

PLACE = Place("a.json", 1, 0)


def record(*contents, tools=""):
    roles = ("user", "assistant")
    messages = [Message(roles[i % 2], content, f"$.messages[{i}].content") for i, content in enumerate(contents)]
    return Record(tuple(messages), PLACE, tools)


def found(text, kinds=()):
    return [(one.kind, text[one.start : one.end]) for one in find(text, kinds)]


def redacted(*contents, tools="", kinds=()):
    checked, _ = Guard(kinds, "redact").check(record(*contents, tools=tools))
    return [message.content for message in checked.row.messages]


# ---- what is found ---------------------------------------------------------------------------------------------------


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
def test_mobile_numbers_in_every_dress(written, frame):
    assert found(frame.format(written)) == [("cn_mobile", written)]


def test_a_han_character_is_no_boundary_to_look_for():
    # \b would not do: 话 and 1 are both word characters.
    assert found("我的电话13812345678谢谢") == [("cn_mobile", "13812345678")]
    assert found("身份证110105194912310021是我") == []  # wrong check digit
    assert found("身份证11010519491231002X是我") == [("cn_id", "11010519491231002X")]


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
def test_each_kind(text, kind, datum):
    assert found(text) == [(kind, datum)]


def test_every_kind_is_explained_and_has_a_finder_in_the_order_that_decides():
    assert list(KINDS) == list(FINDERS)
    assert all(KINDS.values())
    assert set(KINDS) >= NUMBERS | OPTIONAL


def test_many_in_one_text_without_signs_between():
    text = "我叫王磊，电话13812345678邮箱a1@qq.com微信wang_lei1车牌京A12345"
    assert [kind for kind, _ in found(text)] == ["name", "cn_mobile", "email", "wechat", "cn_plate"]
    assert found("13812345678/13912345678,13712345678、13612345678") == [
        ("cn_mobile", f"13{digit}12345678") for digit in "8976"
    ]


def test_finds_are_in_order_and_do_not_overlap():
    finds = find("邮箱13812345678@qq.com，手机13812345678，卡6222021001116245702")
    assert finds == sorted(finds, key=lambda one: one.start)
    assert all(first.end <= second.start for first, second in pairwise(finds))


def test_the_more_specific_kind_wins_even_where_it_is_not_asked_for():
    assert found("13812345678@qq.com", ["cn_mobile"]) == []
    assert found("400-820-8820") == []
    assert found("400-820-8820", ["hotline"]) == [("hotline", "400-820-8820")]
    assert find("call 800-736-5000", ["phone"]) == []  # toll free: a service's
    assert find("tel 13812345678", ["cn_mobile"]) == [Found("cn_mobile", 4, 15)]


# ---- what is not -----------------------------------------------------------------------------------------------------


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
def test_what_only_looks_like_it(text):
    assert found(text) == []


def test_check_digits_decide():
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
def test_a_wrong_check_digit_is_some_other_number(number):
    assert found(f"号码{number}") == []


# ---- what becomes of the row -----------------------------------------------------------------------------------------


def test_count_leaves_the_row():
    row = record("我的电话13812345678，备用13912345678", "好的，a@qq.com")
    checked, counts = Guard((), "count").check(row)
    assert checked.row is row
    assert checked.repaired == ()
    assert counts == {"cn_mobile": 2, "email": 1}


def test_redact_gives_one_value_one_placeholder_however_it_is_written():
    question, answer = redacted("电话+86 138-1234-5678，邮箱A@qq.com", "已记下13812345678和a@QQ.com，另一个13912345678")
    assert question == "电话[CN_MOBILE_1]，邮箱[EMAIL_1]"
    assert answer == "已记下[CN_MOBILE_1]和[EMAIL_1]，另一个[CN_MOBILE_2]"


def test_redact_says_so_and_keeps_what_is_clean():
    row = record("你好", "13812345678")
    checked, counts = Guard((), "redact").check(row)
    assert checked.repaired == ("personal_data",)
    assert counts == {"cn_mobile": 1}
    assert checked.row.messages[0] == row.messages[0]
    assert checked.row.messages[1].path == "$.messages[1].content"
    clean = record("你好", "你好")
    assert Guard((), "redact").check(clean)[0].row is clean


def test_redacting_twice_changes_nothing_and_new_data_get_new_numbers():
    guard = Guard((), "redact")
    once = guard.check(record("姓名：张三，电话13812345678，住址：北京市朝阳区建国路88号", "好"))[0].row
    again, counts = guard.check(once)
    assert again.row == once
    assert not counts
    assert redacted("[CN_MOBILE_3]和13912345678", "[CN_MOBILE_3]")[0] == "[CN_MOBILE_3]和[CN_MOBILE_4]"


def test_a_redacted_text_hides_nothing_that_stood_right_beside():
    for text in [
        "a1@qq.com13812345678@163.com",
        "13812345678QQ123456",
        "a@b.cn,b@c.cn；6222021001116245702/13812345678",
    ]:
        assert find(redacted(text, "")[0]) == []


def test_tool_calls_stay_json():
    call = '{"name": "sms", "arguments": {"phone": 13812345678, "to": ["a@qq.com", -1, 13912345678], "n": 2.5}}'
    written = redacted("发短信", call)[1]
    arguments = json.loads(written)["arguments"]
    assert arguments == {"phone": "[CN_MOBILE_1]", "to": ["[EMAIL_1]", -1, "[CN_MOBILE_2]"], "n": 2.5}
    assert written.startswith('{"name": "sms", "arguments": {"phone": "[CN')  # and its layout


def test_json_inside_json_stays_json_too():
    inner = json.dumps({"phone": 13812345678, "all": [13912345678], "text": "电话:\n13712345678"})
    written = redacted("发短信", json.dumps({"name": "sms", "arguments": inner}))[1]
    arguments = json.loads(json.loads(written)["arguments"])
    assert arguments["phone"] == "[CN_MOBILE_1]"
    assert arguments["all"] == ["[CN_MOBILE_2]"]
    assert "13712345678" not in arguments["text"]


def test_text_that_only_begins_like_json_needs_no_quotes():
    assert redacted("[备注] 电话: 13812345678, 谢谢", "")[0] == "[备注] 电话: [CN_MOBILE_1], 谢谢"


def test_tools_are_redacted_where_they_hold_some():
    tools = json.dumps([{"name": "call", "description": "rings 13812345678"}])
    checked, counts = Guard((), "redact").check(record("打电话", "好", tools=tools))
    assert json.loads(checked.row.tools)[0]["description"] == "rings [CN_MOBILE_1]"
    assert counts == {"cn_mobile": 1}
    drop = Guard((), "drop").check(record("打电话", "好", tools=tools))[0].row
    assert drop.path == "$.tools"


def test_drop_says_what_and_where_but_not_the_datum():
    checked, counts = Guard((), "drop").check(record("你好", "13812345678或13912345678，li.ming@acme.com"))
    drop = checked.row
    assert isinstance(drop, Drop)
    assert (drop.code, drop.path) == ("personal_data", "$.messages[1].content")
    assert drop.detail == "2 cn_mobile (13***), 1 email (li.***)"
    assert "privacy.action=redact" in drop.fix
    assert counts == {"cn_mobile": 2, "email": 1}


def test_preferences_and_prompts():
    user = Message("user", "我是13812345678")
    chosen, rejected = Message("assistant", "a@qq.com"), Message("assistant", "13812345678", "$.rejected")
    row = Preference((user,), chosen, rejected, PLACE)
    changed = Guard((), "redact").check(row)[0].row
    assert [changed.prompt[0].content, changed.chosen.content, changed.rejected.content] == [
        "我是[CN_MOBILE_1]",
        "[EMAIL_1]",
        "[CN_MOBILE_1]",
    ]
    prompt = Prompt((Message("user", "谁的电话是13812345678"),), "13812345678", PLACE)
    changed = Guard((), "redact").check(prompt)[0].row
    assert (changed.messages[0].content, changed.answer) == ("谁的电话是[CN_MOBILE_1]", "[CN_MOBILE_1]")
    assert Guard((), "count").check(Prompt((user,), None, PLACE))[1] == {"cn_mobile": 1}


def test_only_the_kinds_asked_for():
    row = record("电话13812345678，邮箱a@qq.com", "热线400-820-8820")
    assert Guard(("email",), "count").check(row)[1] == {"email": 1}
    assert Guard(("hotline", "email"), "count").check(row)[1] == {"email": 1, "hotline": 1}
    assert Guard((), "off").check(row)[1] == {}


def test_an_unknown_kind_is_an_error_that_knows_what_was_meant():
    with pytest.raises(ConfigError, match="no kind 'cn_moblie'; did you mean cn_mobile") as error:
        Guard(("cn_moblie",), "count")
    assert "us_ssn" in error.value.hint


def test_a_guard_can_be_sent_to_a_worker():
    guard = pickle.loads(pickle.dumps(Guard(("email",), "redact")))
    assert guard.check(record("a@qq.com", "好"))[1] == {"email": 1}


# ---- the quick look, and odd texts -----------------------------------------------------------------------------------


def test_ordinary_texts_are_not_looked_at_closer():
    for text in [
        "请介绍一下高血压的治疗方法。",
        "Write a haiku about the 3 seas.",
        "def f(x): return x[0]",
        "2023年5月",
    ]:
        assert not worth_a_look(text)


def test_folding_keeps_every_place():
    text = "电话：１３８　1234－5678，\\n１"
    assert len(fold(text)) == len(text)
    assert fold("１３８－１２") == "138-12"
    assert "，" in fold("，")  # ends a number where a comma may be part of it


@pytest.mark.parametrize(
    "text", ["", "\ud800 13812345678", "\0\0", "1" * 20000, "1 " * 5000, "a@" * 5000, "省市区" * 3000]
)
def test_odd_texts_do_no_harm(text):
    checked, _ = Guard((), "redact").check(record(text, "我住在" + text))
    assert all(find(message.content) == [] for message in checked.row.messages)


def test_a_real_file_of_medical_questions_holds_none(real):
    rows = list(read([real("Huatuo/llama_data.json")]))
    guard = Guard((), "count")
    assert sum(bool(guard.check(row)[1]) for row in rows if not isinstance(row, Drop)) == 0
