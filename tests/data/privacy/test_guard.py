"""Personal data is found where it is some, and numbers that only look like it are left alone."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise

import pytest

from dsr1_tune.data.privacy.guard import Guard, find
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


def test_guard_many_in_one_text_without_signs_between():
    text = "我叫王磊，电话13812345678邮箱a1@qq.com微信wang_lei1车牌京A12345"
    assert [kind for kind, _ in found(text)] == ["name", "cn_mobile", "email", "wechat", "cn_plate"]
    assert found("13812345678/13912345678,13712345678、13612345678") == [
        ("cn_mobile", f"13{digit}12345678") for digit in "8976"
    ]


def test_guard_finds_are_in_order_and_do_not_overlap():
    finds = find("邮箱13812345678@qq.com，手机13812345678，卡6222021001116245702")
    assert finds == sorted(finds, key=lambda one: one.start)
    assert all(first.end <= second.start for first, second in pairwise(finds))


def test_guard_count_leaves_the_row():
    row = record("我的电话13812345678，备用13912345678", "好的，a@qq.com")
    checked, counts = Guard((), "count").check(row)
    assert checked.row is row
    assert checked.repaired == ()
    assert counts == {"cn_mobile": 2, "email": 1}


def test_guard_redact_gives_one_value_one_placeholder_however_it_is_written():
    question, answer = redacted("电话+86 138-1234-5678，邮箱A@qq.com", "已记下13812345678和a@QQ.com，另一个13912345678")
    assert question == "电话[CN_MOBILE_1]，邮箱[EMAIL_1]"
    assert answer == "已记下[CN_MOBILE_1]和[EMAIL_1]，另一个[CN_MOBILE_2]"
    question, answer = redacted("My name is José Díaz.", "My name is Jose\u0301 Di\u0301az, her name is not.")
    assert (question, answer) == ("My name is [NAME_1].", "My name is [NAME_1], her name is not.")


def test_guard_redact_says_so_and_keeps_what_is_clean():
    row = record("你好", "13812345678")
    checked, counts = Guard((), "redact").check(row)
    assert checked.repaired == ("personal_data",)
    assert counts == {"cn_mobile": 1}
    assert checked.row.messages[0] == row.messages[0]
    assert checked.row.messages[1].path == "$.messages[1].content"
    clean = record("你好", "你好")
    assert Guard((), "redact").check(clean)[0].row is clean


def test_guard_redacting_twice_changes_nothing_and_new_data_get_new_numbers():
    guard = Guard((), "redact")
    once = guard.check(record("姓名：张三，电话13812345678，住址：北京市朝阳区建国路88号", "好"))[0].row
    again, counts = guard.check(once)
    assert again.row == once
    assert not counts
    assert redacted("[CN_MOBILE_3]和13912345678", "[CN_MOBILE_3]")[0] == "[CN_MOBILE_3]和[CN_MOBILE_4]"


def test_guard_a_redacted_text_hides_nothing_that_stood_right_beside():
    for text in [
        "a1@qq.com13812345678@163.com",
        "13812345678QQ123456",
        "a@b.cn,b@c.cn；6222021001116245702/13812345678",
    ]:
        assert find(redacted(text, "")[0]) == []


def test_guard_tool_calls_stay_json():
    call = '{"name": "sms", "arguments": {"phone": 13812345678, "to": ["a@qq.com", -1, 13912345678], "n": 2.5}}'
    written = redacted("发短信", call)[1]
    arguments = json.loads(written)["arguments"]
    assert arguments == {"phone": "[CN_MOBILE_1]", "to": ["[EMAIL_1]", -1, "[CN_MOBILE_2]"], "n": 2.5}
    assert written.startswith('{"name": "sms", "arguments": {"phone": "[CN')  # and its layout


def test_guard_json_inside_json_stays_json_too():
    inner = json.dumps({"phone": 13812345678, "all": [13912345678], "text": "电话:\n13712345678"})
    written = redacted("发短信", json.dumps({"name": "sms", "arguments": inner}))[1]
    arguments = json.loads(json.loads(written)["arguments"])
    assert arguments["phone"] == "[CN_MOBILE_1]"
    assert arguments["all"] == ["[CN_MOBILE_2]"]
    assert "13712345678" not in arguments["text"]


def test_guard_text_that_only_begins_like_json_needs_no_quotes():
    assert redacted("[备注] 电话: 13812345678, 谢谢", "")[0] == "[备注] 电话: [CN_MOBILE_1], 谢谢"


def test_guard_tools_are_redacted_where_they_hold_some():
    tools = json.dumps([{"name": "call", "description": "rings 13812345678"}])
    checked, counts = Guard((), "redact").check(record("打电话", "好", tools=tools))
    assert json.loads(checked.row.tools)[0]["description"] == "rings [CN_MOBILE_1]"
    assert counts == {"cn_mobile": 1}
    drop = Guard((), "drop").check(record("打电话", "好", tools=tools))[0].row
    assert drop.path == "$.tools"


def test_guard_drop_says_what_and_where_but_not_the_datum():
    checked, counts = Guard((), "drop").check(record("你好", "13812345678或13912345678，li.ming@acme.com"))
    drop = checked.row
    assert isinstance(drop, Drop)
    assert (drop.code, drop.path) == ("personal_data", "$.messages[1].content")
    assert drop.detail == "2 cn_mobile (13***), 1 email (li.***)"
    assert "privacy.action=redact" in drop.fix
    assert counts == {"cn_mobile": 2, "email": 1}


def test_guard_preferences_and_prompts():
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


def test_guard_only_the_kinds_asked_for():
    row = record("电话13812345678，邮箱a@qq.com", "热线400-820-8820")
    assert Guard(("email",), "count").check(row)[1] == {"email": 1}
    assert Guard(("hotline", "email"), "count").check(row)[1] == {"email": 1, "hotline": 1}
    assert Guard((), "off").check(row)[1] == {}


def test_guard_an_unknown_kind_is_an_error_that_knows_what_was_meant():
    with pytest.raises(ConfigError, match="no kind 'cn_moblie'; did you mean cn_mobile") as error:
        Guard(("cn_moblie",), "count")
    assert "us_ssn" in error.value.hint


def test_a_guard_can_be_sent_to_a_worker():
    guard = pickle.loads(pickle.dumps(Guard(("email",), "redact")))
    assert guard.check(record("a@qq.com", "好"))[1] == {"email": 1}


@pytest.mark.parametrize(
    "text", ["", "\ud800 13812345678", "\0\0", "1" * 20000, "1 " * 5000, "a@" * 5000, "省市区" * 3000]
)
def test_guard_odd_texts_do_no_harm(text):
    checked, _ = Guard((), "redact").check(record(text, "我住在" + text))
    assert all(find(message.content) == [] for message in checked.row.messages)


def test_guard_a_real_file_of_medical_questions_holds_none(real):
    rows = list(read([real("Huatuo/llama_data.json")]))
    guard = Guard((), "count")
    assert sum(bool(guard.check(row)[1]) for row in rows if not isinstance(row, Drop)) == 0
