"""Personal data: how much of it is found, and how much of what is found is some. A labelled set, made from a seed.

Values are made by the rules of their issuers (check digits, area codes, real county codes) and written as people write
them: with separators, full-width, in Chinese without a sign around them, in English, in forms, JSON and Markdown. The
hard negatives are the numbers that the same kinds of text are full of: lab values, dosages, statutes, case numbers,
drug approvals, ISBNs, prices, orders, mathematics, code. A datum counts as found where its kind is right and all of it
is covered; what is found counts as true where it is a datum of that kind, and no more than 4 characters around it.

    python benchmarks/privacy.py                    # the table, and the false alarms by family
    python benchmarks/privacy.py --misses 20        # also what was missed and wrongly found
    python benchmarks/privacy.py --real ../shared/data   # also everything found in real files, to be judged by eye
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dsr1_tune.data.privacy import KINDS, Guard, find
from dsr1_tune.data.read import read
from dsr1_tune.data.record import Drop, Preference
from dsr1_tune.errors import DataError


@dataclass(frozen=True)
class Case:
    """A text, and what there is in it: (kind, start, end). `family` names the sort of a text without any."""

    text: str
    truth: tuple[tuple[str, int, int], ...] = ()
    family: str = ""


def main() -> None:
    """Make the set, look through it, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--each", type=int, default=150, help="positives of each kind")
    parser.add_argument("--misses", type=int, default=0, help="show so many misses and false finds")
    parser.add_argument("--real", type=Path, help="a folder of data files to look through as well")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    cases = [*positives(rng, args.each), *negatives(rng, 75)]
    report(cases, args.misses)
    if args.real:
        report_real(args.real)


# ---- values, by their issuers' rules ---------------------------------------------------------------------------------

COUNTIES = (
    "110101 110105 110108 120103 130102 140105 150102 210102 220104 230103 310101 310115 320106 320506 330106 340104 "
    "350203 360102 370202 370102 410105 420106 430104 440106 440305 440403 450103 460105 500103 510107 520103 530102 "
    "540102 610113 620102 630104 640104 650102 420922 513721 411525 341226 533103 652901"
).split()
GIVEN_ZH = "伟 芳 娜 敏 静 丽 强 磊 军 洋 勇 艳 杰 娟 涛 明 超 秀英 桂兰 建国 志强 文博 子涵 雨桐 浩然 欣怡 思远 海燕 小红".split()
FAMILY_ZH = "王 李 张 刘 陈 杨 黄 赵 吴 周 徐 孙 马 朱 胡 郭 何 林 高 罗 郑 梁 谢 宋 唐 许 韩 冯 邓 曹 彭 曾 欧阳 司马 诸葛".split()
GIVEN_EN = "James Mary Robert Patricia John Jennifer Michael Linda David Susan Priya Wei Carlos Aisha Olga Ingrid".split()
FAMILY_EN = "Smith Johnson Brown Garcia Miller Davis Martinez Lee O'Brien Nguyen Patel Kowalski Fernandez Müller".split()
PROVINCES_PLATE = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼"


def digits(rng: random.Random, count: int, first: str = "0123456789") -> str:
    return rng.choice(first) + "".join(rng.choices("0123456789", k=count - 1))


def birthday(rng: random.Random) -> str:
    return f"{rng.randint(1935, 2018)}{rng.randint(1, 12):02}{rng.randint(1, 28):02}"


def cn_id(rng: random.Random) -> str:
    if rng.random() < 0.12:
        return rng.choice(COUNTIES) + birthday(rng)[2:].replace("20", "85", 1)[:6].rjust(6, "7") + digits(rng, 3)
    body = rng.choice(COUNTIES) + birthday(rng) + digits(rng, 3)
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return body + "10X98765432"[sum(w * int(d) for w, d in zip(weights, body, strict=True)) % 11]


def write_cn_id(rng: random.Random, value: str) -> str:
    if len(value) == 15:
        return value
    style = rng.randrange(8)
    if style == 0:
        return f"{value[:6]} {value[6:14]} {value[14:]}"
    if style == 1:
        return f"{value[:6]}-{value[6:14]}-{value[14:]}"
    if style == 2:
        return full_width(value)
    return value.lower() if style == 3 else value


def credit_code(rng: random.Random) -> str:
    places = "0123456789ABCDEFGHJKLMNPQRTUWXY"
    weights = (1, 3, 9, 27, 19, 26, 16, 17, 20, 29, 25, 13, 8, 24, 10, 30, 28)
    body = rng.choice(["91", "92", "93", "12", "51", "52"]) + rng.choice(COUNTIES)
    body += "".join(rng.choices(places if rng.random() < 0.7 else "0123456789", k=9))
    return body + places[(31 - sum(w * places.index(c) for w, c in zip(weights, body, strict=True)) % 31) % 31]


def card(rng: random.Random) -> str:
    first, length = rng.choice(
        [("622848", 19), ("622202", 19), ("621700", 19), ("62258", 16), ("625912", 16), ("955880", 19), ("4367", 16)]
        + [("4", 16), ("51", 16), ("55", 16), ("2720", 16), ("37", 15), ("34", 15), ("6011", 16), ("3566", 16)]
    )
    body = first + "".join(rng.choices("0123456789", k=length - 1 - len(first)))
    total = 0
    for place, digit in enumerate(reversed(body)):
        number = int(digit) * (2 if place % 2 == 0 else 1)
        total += number - 9 if number > 9 else number
    return body + str(-total % 10)


def write_card(rng: random.Random, value: str) -> str:
    sep = rng.choice(["", "", " ", " ", "-"])
    if len(value) == 15 and sep:
        return sep.join([value[:4], value[4:10], value[10:]])
    grouped = sep.join(value[i : i + 4] for i in range(0, len(value), 4))
    return full_width(grouped) if rng.random() < 0.08 else grouped


def mobile(rng: random.Random) -> str:
    first = rng.choice("130 131 135 136 137 138 139 147 150 151 155 158 159 166 170 173 176 177 180 181 186 188 189 191 193 198 199".split())
    return first + digits(rng, 8)


def write_mobile(rng: random.Random, value: str) -> str:
    a, b, c = value[:3], value[3:7], value[7:]
    return rng.choice(
        [value, value, value, f"{a}-{b}-{c}", f"{a} {b} {c}", f"+86{value}", f"+86 {value}", f"+86-{a}-{b}-{c}"]
        + [f"+86 {a} {b} {c}", f"86-{value}", f"0086{value}", f"(+86){value}", f"（+86）{a} {b} {c}", full_width(value)]
        + [f"{a}.{b}.{c}", f"{a}－{b}－{c}", f"{a} {b}{c}", f"{a}{b} {c}", f"{a} - {b} - {c}", f"{a}—{b}—{c}"]
    )


AREAS = "010 020 021 022 023 024 025 027 028 029 0311 0351 0371 0431 0451 0512 0531 0551 0571 0591 0731 0755 0769 0791 0851 0871 0898 0931 0951 0971 0991".split()


def landline(rng: random.Random) -> str:
    area = rng.choice(AREAS)
    return area + " " + digits(rng, 8 if len(area) == 3 else rng.choice([7, 8]), "2345678")


def write_landline(rng: random.Random, value: str) -> str:
    area, rest = value.split()
    split = f"{rest[:-4]} {rest[-4:]}" if rng.random() < 0.5 else f"{rest[:-4]}-{rest[-4:]}"
    return rng.choice(
        [f"{area}-{rest}", f"{area}-{rest}", f"({area}){rest}", f"（{area}）{rest}", f"{area} {rest}", f"{area}-{split}"]
        + [f"+86-{area[1:]}-{rest}", f"+86 {area[1:]} {rest}", f"({area}) {rest}", full_width(f"{area}-{rest}")]
        + [f"{area}—{rest}", f"{area}-{rest}-{rng.randint(1, 8)}0{rng.randint(1, 9)}", f"{area}－{rest}"]
    )


def email(rng: random.Random) -> str:
    name = rng.choice([pinyin(rng), pinyin(rng) + digits(rng, 3), digits(rng, 9, "123456789"), dotted(rng), f"{pinyin(rng)}_{digits(rng, 2)}"])
    host = rng.choice("qq.com 163.com 126.com gmail.com outlook.com sina.com.cn foxmail.com yahoo.co.uk mail.tsinghua.edu.cn acme-corp.io hospital.org.cn".split())
    return f"{name}@{host}"


def write_email(rng: random.Random, value: str) -> str:
    name, host = value.split("@")
    return rng.choice(
        [value] * 8
        + [value.upper(), f"{name}＠{host}", f"{name}[at]{host}", f"{name} (at) {host}"]
        + [f"{name} [at] {host.replace('.', ' [dot] ')}", f"{name} at {host.replace('.', ' dot ')}", full_width(value)]
    )


def ip(rng: random.Random) -> str:
    if rng.random() < 0.25:
        groups = [rng.choice(["2400", "2408", "2a02", "2607", "240e"]), *(f"{rng.randrange(1, 65536):x}" for _ in range(7))]
        return ":".join(groups) if rng.random() < 0.6 else ":".join(groups[:3]) + "::" + groups[-1]
    first = rng.choice([23, 36, 42, 58, 61, 101, 113, 117, 124, 139, 183, 202, 210, 218, 221])
    return f"{first}.{rng.randint(1, 254)}.{rng.randint(0, 254)}.{rng.randint(1, 254)}"


def phone(rng: random.Random) -> str:
    if rng.random() < 0.35:
        return rng.choice(["+44 20 7", "+44 7911 ", "+49 30 ", "+33 1 42 ", "+81 3-", "+852 9", "+65 8", "+61 4", "+91 98", "+7 495 "]) + digits(rng, 3) + rng.choice([" ", "-", ""]) + digits(rng, 4)
    area = rng.choice("212 310 415 617 713 206 305 512 202 646 925 718 404 303".split())
    exchange = rng.choice("2346789") + rng.choice("023456789") + rng.choice("0123456789")
    line = digits(rng, 4)
    return rng.choice([f"({area}) {exchange}-{line}", f"{area}-{exchange}-{line}", f"{area}.{exchange}.{line}", f"+1 {area} {exchange} {line}"] + [f"+1-{area}-{exchange}-{line}", f"1-{area}-{exchange}-{line}", f"+1 ({area}) {exchange}-{line}", f"+1{area}{exchange}{line}", f"{area} {exchange} {line}", f"({area}){exchange}-{line}"])


def ssn(rng: random.Random) -> str:
    return f"{rng.choice([rng.randint(1, 665), rng.randint(667, 899)]):03}-{rng.randint(1, 99):02}-{rng.randint(1, 9999):04}"


def plate(rng: random.Random) -> str:
    places = "ABCDEFGHJKLMNPQRSTUVWXYZ"
    region = rng.choice(PROVINCES_PLATE) + rng.choice(places[:12])
    if rng.random() < 0.3:
        tail = rng.choice("DF") + rng.choice(places + "0123456789") + digits(rng, 4)
    else:
        tail = "".join(rng.sample([rng.choice(places), *digits(rng, 4)] if rng.random() < 0.6 else [rng.choice(places), rng.choice(places), *digits(rng, 3)], 5))
    return region + rng.choice(["", "", "·", " ", "•", "-"]) + tail


def passport(rng: random.Random) -> str:
    return rng.choice(["E" + digits(rng, 8), "G" + digits(rng, 8), "E" + rng.choice("ABCDEFGH") + digits(rng, 7), digits(rng, 9, "123456789")])


def hotline(rng: random.Random) -> str:
    a, b = digits(rng, 3), digits(rng, 4)
    return rng.choice([f"400-{a}-{b}", f"400 {a} {b}", f"400{a}{b}", f"800-{a}-{b}", f"400-{b}-{a}", f"1-800-{rng.randint(223, 999)}-{b}"])


def qq(rng: random.Random) -> str:
    return digits(rng, rng.randint(5, 10), "123456789")


def wechat(rng: random.Random) -> str:
    return rng.choice([pinyin(rng) + digits(rng, 3), f"{pinyin(rng)}_{digits(rng, 2)}", f"wxid_{digits(rng, 6)}", f"{pinyin(rng)}-{digits(rng, 4)}"])


def zh_name(rng: random.Random) -> str:
    if rng.random() < 0.07:
        return rng.choice(["约翰·史密斯", "玛丽·约翰逊", "买买提·艾力", "阿依古丽·吐尔逊"])
    return rng.choice(FAMILY_ZH) + rng.choice(GIVEN_ZH)


def en_name(rng: random.Random) -> str:
    middle = rng.choice(["", "", "", " J.", " Anne"])
    return f"{rng.choice(GIVEN_EN)}{middle} {rng.choice(FAMILY_EN)}" if rng.random() < 0.85 else rng.choice(GIVEN_EN)


def zh_address(rng: random.Random) -> str:
    area = rng.choice("浙江省杭州市西湖区 北京市朝阳区 上海市浦东新区 广东省深圳市南山区 四川省成都市武侯区 江苏省苏州市工业园区 湖北省武汉市洪山区 陕西省西安市雁塔区 杭州市余杭区 内蒙古自治区呼和浩特市赛罕区 河南省信阳市固始县".split())
    road = rng.choice("文三路 建国路 中山北路 人民大道 解放街 科技园南路 学府大道 长江中路 和平里 新华西街".split())
    number = rng.randint(1, 399)
    flat = f"{rng.randint(1, 20)}{rng.choice(['号楼', '栋', '幢'])}{rng.randint(1, 5)}单元{rng.randint(1, 30)}0{rng.randint(1, 4)}"
    return rng.choice(
        [f"{area}{road}{number}号", f"{area}{road}{number}号{flat}室", f"{area}{road}{number}弄{rng.randint(1, 30)}号{rng.randint(101, 909)}室"]
        + [f"{area}{road}{number}号阳光花园{flat}", f"{area}城关镇李家村{rng.randint(1, 12)}组", f"{area}幸福小区{flat}室"]
        + [f"{area}{road}{number}号院{rng.randint(1, 9)}-{rng.randint(1, 6)}-{rng.randint(101, 909)}"]
    )


def en_address(rng: random.Random) -> str:
    street = f"{rng.randint(1, 9999)} {rng.choice(['Maple', 'Oak Hill', 'Washington', 'N. Lincoln', 'Sunset', '42nd', 'West Elm'])} {rng.choice(['Street', 'St', 'Avenue', 'Ave.', 'Road', 'Lane', 'Blvd', 'Drive', 'Court'])}"
    flat = rng.choice(["", "", ", Apt 4B", ", Unit 12", " #305"])
    town = rng.choice(["", f", Springfield, IL {digits(rng, 5)}", f", San Jose, CA {digits(rng, 5)}", f", Austin, TX {digits(rng, 5)}"])
    return street + flat + town


def pinyin(rng: random.Random) -> str:
    return "".join(rng.choices("zhang wang li chen xiao ming hao yu lin fang qiang tian".split(), k=2))


def dotted(rng: random.Random) -> str:
    return f"{rng.choice(GIVEN_EN)}.{rng.choice(FAMILY_EN)}".lower().replace("'", "").replace("ü", "ue")


def full_width(text: str) -> str:
    return "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text)


# ---- how they stand in sentences -------------------------------------------------------------------------------------

Make = Callable[[random.Random], str]
NUMBER_ZH = [
    "您好，我的{label}是{}，麻烦您帮我看看。",
    "{label}：{}",
    "{label}:{}，其他信息稍后补上",
    "请记一下{}这是我的{label}谢谢",
    "病人家属留的{label}{}请及时回复",
    "他把{label}（{}）写在了登记表上。",
    "登记信息如下：\n1. {label}：{}\n2. 备注：无",
    '{{"备注": "无", "{label}": "{}"}}',
    "**{label}**：{}",
    "| {label} | {} |",
    "原告称其{label}为{}，被告对此没有异议",
    "{}，就是这个{label}，别弄错了",
]
NUMBER_EN = [
    "My {label} is {}, could you check it please?",
    "{label}: {}",
    "Please update my {label} to {} as soon as possible.",
    "The customer gave {} as {label}.",
    '{{"id": 7, "{label}": "{}"}}',
    "- **{label}:** {}",
    "Patient record\n{label} = {}\nAllergies: none",
]
PHONE_ZH = ["有事打{}找我", "联系我{}", "急需转让，价格面议，{}（同微信）", "致电{}预约挂号", "李医生{}张护士", "加我{}聊", "拨打{}咨询"]
PHONE_EN = ["Call me at {}.", "You can reach me on {} after six.", "Text {} for details", "Phone {} or drop by", "My cell: {}"]
BARE = ["{}", "回复：{}。", "{}谢谢医生", "好的，{}"]


def frames(kind: str) -> tuple[list[str], list[str], list[str], list[str]]:
    """(Chinese frames, English frames, Chinese labels, English labels) of a kind."""
    match kind:
        case "email":
            return [*NUMBER_ZH, "发到{}就行", "简历请投{}谢谢", *BARE], [*NUMBER_EN, "Write to {} or call.", "cc {}", "<{}>"], ["邮箱", "电子邮件", "Email", "E-mail地址"], ["email", "e-mail address", "Email"]
        case "cn_id":
            return [*NUMBER_ZH], [*NUMBER_EN], ["身份证号", "身份证", "身份证号码", "证件号", "公民身份号码"], ["Chinese ID number", "national ID", "ID"]
        case "cn_credit_code":
            return [*NUMBER_ZH, *BARE], [*NUMBER_EN], ["统一社会信用代码", "社会信用代码", "税号", "信用代码"], ["unified social credit code", "USCC", "tax ID"]
        case "ip":
            return [*NUMBER_ZH, "他从{}登录了后台", "日志里出现{}多次访问"], [*NUMBER_EN, "Login from {} failed", "GET / 200 {} - -"], ["IP地址", "IP", "登录IP", "客户端地址"], ["IP address", "ip", "client IP"]
        case "passport":
            return [*NUMBER_ZH], [*NUMBER_EN], ["护照号", "护照号码", "护照", "中国护照编号"], ["passport number", "passport no.", "Passport"]
        case "hotline":
            return [*NUMBER_ZH, "客服热线{}竭诚为您服务"], [*NUMBER_EN], ["客服电话", "热线", "服务电话"], ["support line", "hotline"]
        case "bank_card":
            return [*NUMBER_ZH, "钱打到{}这张卡上"], [*NUMBER_EN, "Charge it to {} please"], ["银行卡号", "卡号", "工行卡", "信用卡号"], ["card number", "credit card", "card"]
        case "cn_plate":
            return [*NUMBER_ZH, "看到一辆{}闯红灯", "驾驶{}小型轿车沿路行驶", *BARE], ["The car with plate {} was seen.", "Plate: {}"], ["车牌号", "车牌", "牌照", "车号"], ["plate"]
        case "cn_mobile":
            return [*NUMBER_ZH, *PHONE_ZH, *BARE], [*NUMBER_EN, *PHONE_EN], ["手机号", "手机", "电话", "联系电话", "联系方式", "微信同号"], ["mobile number", "phone", "Tel"]
        case "cn_landline":
            return [*NUMBER_ZH, *PHONE_ZH[:5]], [*NUMBER_EN, *PHONE_EN], ["座机", "电话", "固定电话", "办公室电话", "传真"], ["office phone", "Tel", "fax number"]
        case "phone":
            return ["我在国外的电话是{}", "联系电话：{}，时差注意一下", "海外手机{}可以打通"], [*NUMBER_EN, *PHONE_EN], ["电话"], ["phone number", "cell", "Phone"]
        case "us_ssn":
            return ["他的美国社会安全号是{}", "SSN：{}"], [*NUMBER_EN, "SSN {} on file"], ["SSN"], ["SSN", "social security number", "Social Security #"]
        case "qq":
            return ["我的QQ是{}", "QQ：{}", "加qq{}聊", "QQ号{}欢迎打扰", "扣扣{}", "联系QQ:{}，备注来意", "QQ号码为{}", '{{"QQ": "{}"}}', "有意者加QQ {}", "企鹅号：{}"], ["My QQ is {}", "QQ: {}", "add me on QQ {}"], [""], [""]
        case "wechat":
            return ["我的微信是{}", "微信号：{}", "加微信{}咨询", "微信:{}，手机同号", "vx：{}", "薇信 {}", "微信号码为{}", '{{"微信号": "{}"}}', "请加微信 {} 进群", "VX:{}", "wx：{}"], ["My WeChat is {}", "WeChat ID: {}", "wechat: {}"], [""], [""]
        case "name":
            return ["患者姓名：{}，性别：男", "姓名：{}", "姓名{} 性别女", "我叫{}，今年三十岁", "大家好我叫{}来自成都", "医生您好，我的名字是{}。", "收件人：{}\n电话见下", "联系人：{}（家属）", '{{"姓名": "{}", "年龄": 30}}', "**姓名：** {}", "| 姓名 | {} |", "本人姓名{}，申请办理", "原告：{}，女，1980年出生", "投保人：{}", "我叫{}", "法定代表人：{}，经理"], ["My name is {}.", "Hi, my name is {} and I have a question.", "Patient name: {}\nAge: 40", "Full name: {}", "Customer Name: {}, order pending", "my name's {}", '{{"patient_name": "{}"}}', "**Patient Name:** {}"], [""], [""]
        case "address":
            return ["住址：{}", "我住在{}，离医院不远", "家庭住址：{}，电话见附件", "收货地址：{}", "请寄到{}谢谢", "户籍地址{}", '{{"住址": "{}"}}', "家住{}的老人", "被告住所地{}。", "**家庭地址**：{}", "联系地址：{}；邮编略", "患者现住{}，独居"], ["I live at {}.", "My address is {}", "Please ship it to {}", "Shipping address: {}", "Home address: {}", "He resides at {} with his wife.", "Billing Address: {}", "deliver to {} please"], [""], [""]
    raise AssertionError(kind)


MAKERS: dict[str, tuple[Make, Callable[[random.Random, str], str] | None]] = {
    "email": (email, write_email),
    "cn_id": (cn_id, write_cn_id),
    "cn_credit_code": (credit_code, None),
    "ip": (ip, None),
    "passport": (passport, None),
    "hotline": (hotline, None),
    "bank_card": (card, write_card),
    "cn_plate": (plate, None),
    "cn_mobile": (mobile, write_mobile),
    "qq": (qq, None),
    "wechat": (wechat, None),
    "cn_landline": (landline, write_landline),
    "phone": (phone, None),
    "us_ssn": (ssn, None),
}
AFTER_OLD_ID = ("{label}：{}", "我的{label}是{}，老证", "{label}{}谢谢")


def positives(rng: random.Random, each: int) -> Iterator[Case]:
    """`each` texts with one datum of every kind, and as many with three of different kinds run together."""
    for kind in KINDS:
        for _ in range(each):
            yield one_case(rng, kind)
    for _ in range(each):
        yield mixed_case(rng)


def one_case(rng: random.Random, kind: str) -> Case:
    chinese, english, labels_zh, labels_en = frames(kind)
    in_chinese = rng.random() < (0.7 if kind not in ("phone", "us_ssn") else 0.3)
    if kind in ("name", "address"):
        make = {("name", True): zh_name, ("name", False): en_name, ("address", True): zh_address, ("address", False): en_address}
        written = make[kind, in_chinese](rng)
    else:
        maker, write = MAKERS[kind]
        value = maker(rng)
        written = write(rng, value) if write else value
        if kind == "cn_id" and len(value) == 15:  # nobody can tell one without a word that says what it is
            chinese, in_chinese = list(AFTER_OLD_ID), True
    frame = rng.choice(chinese if in_chinese else english)
    label = rng.choice(labels_zh if in_chinese else labels_en)
    return fill(frame, label, kind, written)


def fill(frame: str, label: str, kind: str, written: str) -> Case:
    before, after = (part.replace("{label}", label).replace("{{", "{").replace("}}", "}") for part in split_frame(frame))
    return Case(before + written + after, ((kind, len(before), len(before) + len(written)),))


def split_frame(frame: str) -> tuple[str, str]:
    """At the one `{}` that is no part of `{{}}`."""
    at = frame.index("{}") if "{{" not in frame else frame.index('"{}"') + 1
    return frame[:at], frame[at + 2 :]


def mixed_case(rng: random.Random) -> Case:
    """A form or a sentence with a name, a number and an address, with and without signs between."""
    parts = rng.choice(
        [
            [("姓名：", "name"), ("，身份证号：", "cn_id18"), ("，手机：", "cn_mobile"), ("。", "")],
            [("我叫", "name"), ("，住在", "address"), ("，电话", "cn_mobile"), ("", "")],
            [("收件人：", "name"), (" ", "cn_mobile"), (" 收货地址：", "address"), ("", "")],
            [("电话", "cn_mobile"), ("邮箱", "email"), ("QQ", "qq"), ("欢迎联系", "")],
            [("户名：", "name"), ("\n卡号：", "bank_card"), ("\n手机：", "cn_mobile"), ("\n", "")],
            [("车主电话", "cn_mobile"), ("车牌", "cn_plate"), ("身份证", "cn_id18"), ("已登记", "")],
            [("联系方式：", "cn_landline"), ("/", "cn_mobile"), ("，", "email"), ("。", "")],
            [("", "cn_mobile"), (",", "cn_mobile"), ("、", "cn_mobile"), ("都可以打", "")],
        ]
    )
    text, truth = "", []
    for words, kind in parts:
        text += words
        if not kind:
            break
        if kind == "name":
            written = zh_name(rng)
        elif kind == "address":
            written = zh_address(rng)
        elif kind == "cn_id18":
            kind = "cn_id"
            written = next(value for value in iter(lambda: cn_id(rng), "") if len(value) == 18)
        else:
            written = MAKERS[kind][0](rng).replace(" ", "-")
        truth.append((kind, len(text), len(text) + len(written)))
        text += written
    return Case(text, tuple(truth))


# ---- hard negatives --------------------------------------------------------------------------------------------------


def negatives(rng: random.Random, each: int) -> Iterator[Case]:
    """`each` texts of every family that hold no personal data, however much they look like it."""
    for family, make in FAMILIES.items():
        for _ in range(each):
            yield Case(make(rng), family=family)


def pick(*templates: str) -> Make:
    """One of the templates; <#3> is three digits, <x4> four of hexadecimal, <~1-99> a number between, <~.0-9> with two
    decimals, <0~1-12> with two places, and <isbn> or <bad_id> one of those."""

    def make(rng: random.Random) -> str:
        return PLACE.sub(lambda match: draw(rng, match), rng.choice(templates))

    return make


PLACE = re.compile(r"<(?:#(?P<digits>\d+)|x(?P<hex>\d+)|(?P<form>0?~\.?)(?P<low>\d+)-(?P<high>\d+)|(?P<of>isbn|bad_\w+))>")


def draw(rng: random.Random, match: re.Match[str]) -> str:
    if match["digits"]:
        return digits(rng, int(match["digits"]), "123456789")
    if match["hex"]:
        return "".join(rng.choices("0123456789abcdef", k=int(match["hex"])))
    if match["of"]:
        return {"bad_id": bad_id, "bad_card": bad_card, "bad_code": bad_code, "isbn": isbn}[match["of"]](rng)
    low, high = int(match["low"]), int(match["high"])
    if match["form"] == "~.":
        return f"{rng.uniform(low, high):.2f}"
    return f"{rng.randint(low, high):02}" if match["form"] == "0~" else str(rng.randint(low, high))


def bad_id(rng: random.Random) -> str:
    value = next(value for value in iter(lambda: cn_id(rng), "") if len(value) == 18)
    return rng.choice([value[:17] + rng.choice([d for d in "0123456789" if d != value[17]]), "99" + value[2:], value[:10] + "13" + value[12:]])


def bad_card(rng: random.Random) -> str:
    value = card(rng)
    return value[:-1] + rng.choice([d for d in "0123456789" if d != value[-1]])


def bad_code(rng: random.Random) -> str:
    value = credit_code(rng)
    return value[:-1] + rng.choice([d for d in "0123456789" if d != value[-1]])


def isbn(rng: random.Random) -> str:
    return rng.choice([f"978-7-{digits(rng, 3)}-{digits(rng, 5)}-{digits(rng, 1)}", f"9787{digits(rng, 9)}", f"978-0-{digits(rng, 6)}-{digits(rng, 2)}-{digits(rng, 1)}", f"0-{digits(rng, 3)}-{digits(rng, 5)}-X"])


FAMILIES: dict[str, Make] = {
    "lab values": pick("谷丙转氨酶<~10-400>U/L，参考值0.00-40.00，总胆红素<~.3-40>μmol/L", "HBV-DNA定量<#8>IU/ml，超过<#7>.00", "白细胞<~.3-12>×10^9/L 血小板<~100-300>", "WBC <~.3-12> RBC <~.3-6> HGB <~90-170> PLT <~100-350>", "乙肝两对半<~.0-9><~.0-9><~.0-999>怎么回事", "血糖 <~.3-20> mmol/L，糖化<~.4-12>%，肌酐<~40-200>"),
    "dosages": pick("卡马西平 600-1200mg/d，每日<~1-4>次，共<~100-9999>毫升", "阿莫西林0.25g*<~10-50>粒，一次<~1-4>粒", "青霉素 <#7>单位静滴", "维生素D3 <#6>IU，疗程2000-5000天", "Take <~100-900> mg every <~4-12> hours, max <~1000-4000> mg/day"),
    "dates": pick("20<~10-25>-<0~1-12>-<0~1-28>至20<~10-25>-<0~1-12>-<0~1-28>", "2012.<0~1-12>.<0~1-28>做的检查，2013.<0~1-12>.<0~1-28>复查", "20<~10-25><0~1-12><0~1-28>做的肝功", "from 19<~10-99>-<~2000-2020> to 20<~10-25>/<0~1-12>/<0~1-28> <0~0-23>:<0~0-59>:<0~0-59>", "20<~10-25><0~1-12><0~1-28><0~0-23><0~0-59><0~0-59>", "20<~10-25>-<0~1-12>-<0~1-28>T<0~0-23>:<0~0-59>:<0~0-59>.<#3>Z"),
    "statutes and cases": pick("（20<~10-25>）京01民终<#4>号民事判决书", "(2019)京0105民初<#5>号", "根据《民法典》第<~1-1260>条第<~1-9>款", "案号：（20<~10-25>）最高法知民终<#3>号，粤<#4>刑初<#3>号", "18 U.S.C. § <~1000-3000>, 42 CFR 410.<#3>", "No. <~10-23>-<#4>, 5<~10-99> U.S. <#3> (20<~10-23>)", "国发〔20<~10-25>〕<#2>号"),
    "drug approvals": pick("国药准字H20<#6>", "国药准字Z<#8>，批号<#8>", "国药准字S20<#6>，有效期至20250<~1-9>", "注册证号H20<#6>，产品批号：<#11>", "国械注准20<#9>", "NDC <#5>-<#3>-<#2>"),
    "medical codes": pick("ICD-10编码：K29.<#3>", "诊断 J18.900，手术编码 45.1600x0<#2>", "rs<#8>位点AA基因型", "AL0<#5>.4、AC<#6>.3", "GSM<#7> 与 NM_<#6>.3", "CAS号：<#4>-<#2>-<#1>", "PMID: <#8>, NCT0<#7>"),
    "books and papers": pick("ISBN <isbn>", "ISBN：<isbn>，定价<~.10-99>元", "doi:10.<#4>/j.cell.20<~10-25>.<0~1-12>.<#3>", "https://doi.org/10.<#4>/s<#5>-0<#2>-<#5>-<#1>", "ISSN <#4>-<#4>, 12(<#1>): <#3>-<#3>", "arXiv:<0~10-25><0~1-12>.<#5>v<#1>", "ISBN: 9780<#9>"),
    "money": pick("偿还借款本金<#8>元及利息<#6>.33元", "合同价款<#8>元，已付<#11>元", "￥<#6>.00，合计人民币<#11>元", "$<#3>,<#3>,<#3>.00 in total", "GDP达到<#11>元，人均<#6>元", "price: <#7>.<#2> USD, fee <~.1-9>%", "罚息213875元、复利<#6>.<#2>元"),
    "orders": pick("订单号：20<#14>", "订单编号<#16>，请查询", "快递单号<#12>", "运单号 SF<#13>", "流水号：<#11>", "Your order number is <#10>.", "order ID <#11>", "Tracking number: <#12>", "invoice no. <#9>", "工单编号：13<#9>", "发票号码：<#8>", "交易单号4200001<#14>", "学号：20<#9>"),
    "mathematics": pick("计算 <#8> + <#9> = ", "<#6> × <#6> = <#12>", "355909190063-<#3>", "<#11> * <#2> = <#13>", "x = (<#2> - <#2>) / <#1>.<#10>", "π≈3.14159265358979，e≈2.718281828459", "0.<#11>", "the sum of <#12> and <#12>", "√<#8> ≈ <#4>.<#6>", "1 2 3 4 5 6 7 8 9 10 11 12 13", "斐波那契数列 1 1 2 3 5 8 13 21 34 55 89", "1<#10> ÷ <#3>", "<#3>-<#2>=<#2>，<#3>+<#3>=<#3>", "a^2 + 13<#9>^2"),
    "code": pick("host = '127.0.0.1'; port = <#4>", "MAX = 0x<x8>; seed = <#10>", "for i in range(<#7>):", "#include <vector>\nstd::vector<int> a; a::b::c", "color: #<x6>; rgba(<~0-255>, 0, 0, 0.5)", "UUID: <x8>-<x4>-<x4>-<x4>-<x12>", "sha256: <x32>", "commit <x20>", "np.array([[<#2>, <#3>], [<#4>, <#5>]])", "time.sleep(<#1>.<#10>)", "id=<#9>&page=<#2>", "0b1010101010101010", "uint64_t x = <#18>ULL;", "@app.route('/x')\n@property\ndef f(self): pass", "re.compile(r'[a-z]+@[a-z]+\\.com')", "\\frac{<#2>}{<#3>}\\times 10^{<#1>}"),
    "timestamps": pick("timestamp: 1388<#6>", "时间戳1<#9>", "1<#12>", '{"ts": 16<#8>, "v": <~.0-9>}', "epoch 17<#8>000", "[<#5>.<#6>] kernel: usb 1-<#1>"),
    "places": pick("GPS (39.<#4>, 116.<#4>) 到 (40.<#6>, -73.<#6>)", "北纬<#2>.<#6>°，东经1<#2>.<#6>°", "34.<#6>, -118.<#6>", "lat=+39.<#7>, lon=+116.<#7>", "邮编<#6>，区号0755", "海拔<#4>米，面积<#7>平方公里"),
    "versions": pick("version 1.<#2>.<#1>.<#3>", "Chrome/96.0.<#4>.<#3> Safari/537.36", "升级到v<#1>.<#2>.<#3>.<#1>版本", "驱动版本 31.0.<~100-255>.<~100-255>", "第1.2.3.4节", "1.3.6.1.4.1.<#4>", "pip install torch==2.<#1>.0.<#4>", "Windows 10.0.<#5>.<#3>", "2.1.3.<#1> 实验方法"),
    "networks": pick("192.168.<~0-255>.<~1-254>", "路由器地址10.<~0-255>.<~0-255>.1", "172.16.<~0-255>.<~1-254>:8080", "ping 8.8.8.8", "127.0.0.1:<#4>", "netmask 255.255.255.0", "224.0.0.<~1-251>", "203.0.113.<~1-254>", "2001:db8::<x4>", "fe80::1ff:fe23:4567:890a", "MAC 00:1a:<#2>:3c:4d:5e", "169.254.<~1-254>.<~1-254>", "DNS 114.114.114.114"),
    "example mail": pick("user@example.com", "your_name@example.org，请替换", "contact <test@mail.example.net>", "git clone git@github.com:org/repo.git", "logo@2x.png", "lodash@4.<#2>.21", "foo@localhost", "https://user:pass@host.company.com/path", "no-reply@service.com", "@zhangsan 你好", "关注@某某博主", "a @ b 是矩阵乘法", "root@server:~#", "name[at]"),
    "fictional phones": pick("(555) <#3>-<#4>", "call 555-01<#2>", "212-555-01<#2>", "+1 (415) 555-01<#2>", "123-456-7890", "1-555-<#3>-<#4>", "138****<#4>", "1381234XXXX", "电话：[电话号码]", "+86 1XX XXXX XXXX"),
    "wrong check digits": pick("<bad_id>", "编码<bad_id>", "<bad_card>", "号码 <bad_card> 无效", "<bad_code>", "代码：<bad_code>"),
    "lone digits": pick("<#12>", "<#13>", "<#10>", "结果是<#9>", "0<#11>", "<#20>", "编号 <#15>", "共<#7>条", "ID <#8>", "<#3> <#4> <#5>", "12 34 56 78 90 12", "<#2>-<#2>-<#2>-<#2>", "2<#9>", "<#14>"),
    "hotlines and emergency": pick("请立即拨打120", "拨打110报警", "打12345市民热线", "call 911 now", "致电95588", "全国统一热线12315", "10086和10010", "请拨打12320卫生热线"),
    "scores and ranges": pick("比分 110-98，108-105，<#2>-<#2>", "体重<#2>-<#3>斤，身高<#3>-<#3>", "2000-<#5>元", "第<#3>-<#3>页", "<#4>—<#4>年", "概率0.<#7>", "投票人数<#9>人，占<~.1-99>%", "10000-20000-30000", "Windows 7 / 8 / 10 / 11 / 2012 / 2016"),
    "models and transport": pick("iPhone 13 Pro Max 256GB", "G1<#3>次列车，CA<#4>航班", "型号：DS-2CD<#4>-I5", "RTX 4090 24GB 16384 CUDA", "GB/T <#5>-20<~10-25>", "IMEI：86<#13>", "股票代码600<#3>，000001.SZ", "SKU <#12>", "条形码69<#11>", "京A股、沪B股", "新K线图", "沪G1234次", "豫A9××××", "粤B*****"),
    "names that are none": pick("我叫他去医院", "我叫了一辆车，三十块", "姓名：____", "姓名：[您的姓名]", "请填写姓名、电话和地址", "姓名和年龄是必填项", "函数返回用户的姓名：字符串类型", "My name is {{name}}", "my name is on the list", "Name: Chocolate Cake", "Full name: Email:", "Patient name: [Name]", "The name is derived from Latin", "我的名字叫什么？", "原告：某科技公司", "被告：刘某1", "联系人：暂无", "I am ChatGPT and my name is Assistant", "联系人：王先生", "患者：高热三天伴咳嗽", "print('My name is', name)"),
    "addresses that are none": pick("我住在北京", "我住在三楼", "医院地址：北京市东城区帅府园1号", "公司地址：上海市浦东新区世纪大道100号", "地址是0x<x8>", "浙江省杭州市西湖区是著名景区", "他在人民路上走了<#2>分钟", "The White House is at 1600 Pennsylvania Avenue", "I live in New York", "email address", "IP地址和MAC地址", "家住农村，父母务农", "住院<#2>天，住在<#3>病房", "<~1-99> Main ideas of the Road", "住址：____", "I live on the 3rd floor"),
    "messengers": pick("QQ音乐2<#3>版", "微信支付<#5>元", "使用微信小程序登录", "QQ群：<#9>", "微信公众号推送<#4>篇", "WeChat Pay is accepted", "微信Windows版3.9.<#1>", "关注微信公众平台", "QQ 2013 版下载", "wx.request({url})", "发微信给朋友", "微信转账<#5>元", "用微信android客户端", "QQ有<#5>万用户", "const vx = 12; x: <#6>"),
    "documents talked about": pick("请携带身份证和护照原件", "护照有效期至20300<~1-9>15", "passport must be valid for 6 months", "身份证号码由18位数字组成", "银行卡号一般为16-19位", "SSN is a nine-digit number", "办理护照需要<#3>元", "part number <#3>-<#2>-<#4>", "Passport control opened in 19<~10-99>", "车牌号为×××的重型半挂牵引车", "渝A69XXX"),
    "tables": pick("| 1 | <#3> | <#4> | <#5> |", "<#3>\t<#4>\t<#5>\t<#3>", "2019: <#6>; 2020: <#6>; 2021: <#6>", "年份,数量\n2019,<#5>\n2020,<#5>", "A1 <#2> B2 <#3> C3 <#4>", "[1, <#2>, <#3>, <#4>, <#5>]", "<#3> <#3> <#4> <#2>%", "1.<~.1-9> 2.<~.1-9> 3.<~.1-9>"),
    "redacted": pick("姓名：[NAME_1]，电话[CN_MOBILE_1]", "邮箱：[EMAIL_2]", "住址：[ADDRESS_1]", "My name is [NAME_1], call [PHONE_1]", "身份证[CN_ID_1]卡号[BANK_CARD_1]", "微信：[WECHAT_1] QQ：[QQ_1]", "姓名：***", "手机：138xxxx<#4>", "<地址>", "护照号：E********"),
    "sequences": pick("ATGCGTACGTTAGC", "1-2-3-4-5-6-7-8-9-10", "密码：aB3#fG6&kL9@", "8-4-4-4-12", "SN: C02<#3>ABC<#4>", "ABCD-<#4>-EFGH-<#4>", "V<#17>", "LSVAU2180N2<#6>", "P/N <#3>-<#5>-<#2>", "<x24>", "彩票开奖号码 01 05 12 19 23 30 07", "base64: MTIzNDU2Nzg5MDEyMzQ1Ng=="),
    "plain prose": pick("The quick brown fox jumps over <#2> lazy dogs.", "请简要介绍一下高血压的治疗方法。", "解释一下相对论，并举<#1>个例子。", "Write a haiku about the sea.", "本人身体一直很好，最近胃疼<#1>天", "翻译：My friend lives in a small town.", "根据症状，建议做<#1>次检查。"),
}


# ---- reports ---------------------------------------------------------------------------------------------------------


def report(cases: list[Case], num_shown: int) -> None:
    """Recall and precision of each kind and overall, and the false finds of each family."""
    asked, hit, found, true = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    alarms, shown = Counter[str](), []
    for case in cases:
        finds = find(case.text, KINDS)
        for kind, start, end in case.truth:
            asked[kind] += 1
            if any(one.kind == kind and one.start <= start and end <= one.end for one in finds):
                hit[kind] += 1
            else:
                shown.append(f"missed {kind}: {case.text[start:end]!r} in {case.text!r}, found {finds}")
        for one in finds:
            found[one.kind] += 1
            if any(one.kind == kind and start - 4 <= one.start and one.end <= end + 4 and one.start < end and start < one.end for kind, start, end in case.truth):
                true[one.kind] += 1
            else:
                alarms[case.family or "positives"] += 1
                shown.append(f"false {one.kind}: {case.text[one.start : one.end]!r} in {case.text!r}")
    families = Counter(case.family for case in cases if case.family)
    print(f"{sum(asked.values())} positives in {len(cases) - families.total()} texts, {families.total()} hard negatives of {len(families)} families\n")
    print("| kind | positives | recall % | found | precision % |")
    print("|---|---|---|---|---|")
    for kind in KINDS:
        print(f"| {kind} | {asked[kind]} | {share(hit[kind], asked[kind])} | {found[kind]} | {share(true[kind], found[kind])} |")
    print(f"| **all** | {asked.total()} | **{share(hit.total(), asked.total())}** | {found.total()} | **{share(true.total(), found.total())}** |")
    print("\nfalse finds by family:", dict(alarms) or "none")
    for line in random.Random(0).sample(shown, min(num_shown, len(shown))):
        print(line)


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"


def report_real(folder: Path) -> None:
    """What is found in the data files of a folder, and what looking costs on a row."""
    print("\n| file | rows | with personal data | found | µs CPU a row |")
    print("|---|---|---|---|---|")
    guard, lines = Guard(), []
    for file in sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl", ".csv")):
        try:
            rows = [row for row in read([file]) if not isinstance(row, Drop)]
        except DataError:
            continue
        began = time.process_time()
        counts = [counts for _, counts in map(guard.check, rows)]
        spent = (time.process_time() - began) / max(1, len(rows)) * 1e6
        total = sum(counts, Counter())
        print(f"| {file.name} | {len(rows)} | {sum(map(bool, counts))} | {json.dumps(total)} | {spent:.1f} |")
        for row, count in zip(rows, counts, strict=True):
            if not count:
                continue
            messages = (*row.prompt, row.chosen, row.rejected) if isinstance(row, Preference) else row.messages
            for text in [*(message.content for message in messages), row.tools]:
                for one in find(text):
                    around = text[max(0, one.start - 25) : one.end + 12].replace("\n", " ")
                    lines.append(f"{row.place.line}\t{file.name}\t{one.kind}\t{text[one.start : one.end]!r}\tin {around!r}")
    print(*["", *lines], sep="\n")


if __name__ == "__main__":
    main()
