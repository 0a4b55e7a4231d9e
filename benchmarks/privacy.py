"""Personal data: how much of it is found, and how much of what is found is some. A labelled set, made from a seed.

Values are made by the rules of their issuers (check digits, area codes, real county codes) and written as people write
them: with separators, full-width, in Chinese without a sign around them, in English, in forms, JSON and Markdown
(privacy.yaml holds the sentences). The hard negatives are the numbers that the same sorts of text are full of: lab
values, dosages, statutes, case numbers, drug approvals, ISBNs, prices, orders, mathematics, code. A datum is found
where the kind is right and all of it is covered; what is found is true where it is a datum of that kind, with no more
than 4 characters around it.

    python benchmarks/privacy.py                         # the tables, and the false finds by family
    python benchmarks/privacy.py --show 20               # also some of what was missed and wrongly found
    python benchmarks/privacy.py --real ../shared/data   # also all that is found in real files, to be judged by eye
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
from typing import Any

import yaml

from dsr1_tune.data.privacy.guard import KINDS, Guard, find
from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Drop, Preference
from dsr1_tune.errors import DataError

TEXTS: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


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
    parser.add_argument("--show", type=int, default=0, help="show so many misses and false finds")
    parser.add_argument("--real", type=Path, help="a folder of data files to look through as well")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    report("made", [*positives(rng, args.each), *negatives(rng, args.each * 2 // 3)], args.show)
    report("written by hand", [marked(line) for line in TEXTS["written"]], args.show)
    if args.real:
        report_real(args.real)


# ---- texts -----------------------------------------------------------------------------------------------------------


def positives(rng: random.Random, each: int) -> Iterator[Case]:
    """`each` texts with one datum of every kind, and as many with several run together."""
    for kind in KINDS:
        for _ in range(each):
            yield one_datum(rng, kind)
    for _ in range(each):
        yield marked(re.sub(r"\{(\w+)\}", lambda match: several(rng, match[1]), rng.choice(TEXTS["mixed"])))


def one_datum(rng: random.Random, kind: str) -> Case:
    """A frame with a datum as somebody writes it; Chinese kinds mostly in Chinese, American ones in English."""
    language = "zh" if rng.random() < (0.3 if kind in ("phone", "us_ssn") else 0.7) else "en"
    written = VALUES[kind](rng, language)
    frames = TEXTS["frames"][kind]
    choices = [frame for name in frames.get(f"{language}_shared", []) for frame in TEXTS["shared"][name]]
    choices += frames.get(language, [])
    if kind == "cn_id" and len(written) == 15:  # of the old kind: nobody can tell without a word that says so
        language, choices = "zh", ["{label}：{}", "我的{label}是{}，老证", "{label}{}谢谢"]
    frame = rng.choice(choices).replace("{label}", rng.choice(frames.get(f"{language}_labels", [""])))
    before, _, after = frame.partition("{}")
    return Case(before + written + after, ((kind, len(before), len(before) + len(written)),))


def several(rng: random.Random, kind: str) -> str:
    """A marked datum for a text with several: without blanks, and an identity number with its check digit."""
    while True:
        written = VALUES[kind](rng, "zh")
        if " " not in written and not (kind == "cn_id" and len(written) == 15):
            return f"⟦{kind}:{written}⟧"


def marked(line: str) -> Case:
    """`我叫⟦name:张伟⟧` → the text without marks, and where the data stand."""
    text, truth, done = "", [], 0
    for match in re.finditer(r"⟦(\w+):(.*?)⟧", line):
        text += line[done : match.start()]
        truth.append((match[1], len(text), len(text) + len(match[2])))
        text += match[2]
        done = match.end()
    return Case(text + line[done:], tuple(truth))


def negatives(rng: random.Random, each: int) -> Iterator[Case]:
    """`each` texts of every family that hold no personal data, however much they look like it."""
    for family, templates in TEXTS["negatives"].items():
        for _ in range(each):
            yield Case(PLACE.sub(lambda match: drawn(rng, match), rng.choice(templates)), family=family)


PLACE = re.compile(
    r"<(?:#(?P<digits>\d+)|x(?P<hex>\d+)|(?P<form>0?~\.?)(?P<low>\d+)-(?P<high>\d+)|(?P<of>isbn|bad_\w+))>"
)


def drawn(rng: random.Random, match: re.Match[str]) -> str:
    """What stands for a place of a negative; see privacy.yaml."""
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


# ---- values, by their issuers' rules, and how people write them ------------------------------------------------------


def words(text: str) -> list[str]:
    """The words of a list."""
    return text.split()


COUNTIES = words(
    "110101 110105 110108 120103 130102 140105 150102 210102 220104 230103 310101 310115 320106 320506 330106 340104 "
    "350203 360102 370202 370102 410105 420106 430104 440106 440305 440403 450103 460105 500103 510107 520103 530102 "
    "540102 610113 620102 630104 640104 650102 420922 513721 411525 341226 533103 652901"
)
GIVEN_ZH = words(
    "伟 芳 娜 敏 静 丽 强 磊 军 洋 勇 艳 杰 娟 涛 明 超 秀英 桂兰 建国 志强 文博 子涵 雨桐 浩然 欣怡 思远 海燕 小红"
)
FAMILY_ZH = words(
    "王 李 张 刘 陈 杨 黄 赵 吴 周 徐 孙 马 朱 胡 郭 何 林 高 罗 郑 梁 谢 宋 唐 许 韩 冯 邓 曹 彭 曾 欧阳 司马 诸葛"
)
GIVEN_EN = words(
    "James Mary Robert Patricia John Jennifer Michael Linda David Susan Priya Wei Carlos Aisha Olga Ingrid"
)
FAMILY_EN = words("Smith Johnson Brown Garcia Miller Davis Martinez Lee O'Brien Nguyen Patel Kowalski Fernandez Müller")
HOSTS = words(
    "qq.com 163.com 126.com gmail.com outlook.com sina.com.cn foxmail.com yahoo.co.uk mail.tsinghua.edu.cn "
    "acme-corp.io hospital.org.cn"
)
MOBILES = words(
    "130 131 135 136 137 138 139 147 150 151 155 158 159 166 170 173 176 177 180 181 186 188 189 191 193 198 199"
)
AREAS = words(
    "010 020 021 022 023 024 025 027 028 029 0311 0351 0371 0431 0451 0512 0531 0551 0571 0591 0731 0755 0769 0791 "
    "0851 0871 0898 0931 0951 0971 0991"
)
DISTRICTS = words(
    "浙江省杭州市西湖区 北京市朝阳区 上海市浦东新区 广东省深圳市南山区 四川省成都市武侯区 杭州市余杭区 "
    "江苏省苏州市工业园区 湖北省武汉市洪山区 陕西省西安市雁塔区 内蒙古自治区呼和浩特市赛罕区 河南省信阳市固始县"
)
ROADS = words("文三路 建国路 中山北路 人民大道 解放街 科技园南路 学府大道 长江中路 和平里 新华西街")
PLATES = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼"


def digits(rng: random.Random, count: int, first: str = "0123456789") -> str:
    """So many digits, the first of some."""
    return rng.choice(first) + "".join(rng.choices("0123456789", k=count - 1))


def full_width(text: str) -> str:
    """The text in full-width characters."""
    return "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text)


def cn_id(rng: random.Random) -> str:
    """A resident identity number: every eighth of the old kind with 15 places."""
    day = f"{rng.randint(1, 12):02}{rng.randint(1, 28):02}"
    if rng.random() < 0.12:
        return f"{rng.choice(COUNTIES)}{rng.randint(35, 85)}{day}{digits(rng, 3)}"
    body = f"{rng.choice(COUNTIES)}{rng.randint(1935, 2018)}{day}{digits(rng, 3)}"
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return body + "10X98765432"[sum(w * int(d) for w, d in zip(weights, body, strict=True)) % 11]


def write_cn_id(rng: random.Random, language: str) -> str:
    """With blanks or hyphens, full-width, with a small x."""
    value = cn_id(rng)
    if len(value) == 15:
        return value
    split = [value[:6], value[6:14], value[14:]]
    return rng.choice([" ".join(split), "-".join(split), full_width(value), value.lower(), value, value, value, value])


def credit_code(rng: random.Random, language: str = "") -> str:
    """A unified social credit code."""
    places = "0123456789ABCDEFGHJKLMNPQRTUWXY"
    weights = (1, 3, 9, 27, 19, 26, 16, 17, 20, 29, 25, 13, 8, 24, 10, 30, 28)
    body = rng.choice(["91", "92", "93", "12", "51", "52"]) + rng.choice(COUNTIES)
    body += "".join(rng.choices(places if rng.random() < 0.7 else "0123456789", k=9))
    return body + places[(31 - sum(w * places.index(c) for w, c in zip(weights, body, strict=True)) % 31) % 31]


def card(rng: random.Random) -> str:
    """A payment card's number."""
    chinese = [("622848", 19), ("622202", 19), ("621700", 19), ("62258", 16), ("625912", 16), ("955880", 19)]
    others = [("4", 16), ("4367", 16), ("51", 16), ("55", 16), ("2720", 16), ("37", 15), ("34", 15), ("6011", 16)]
    first, length = rng.choice([*chinese, *others])
    body = first + digits(rng, length - 1 - len(first))
    total = 0
    for place, digit in enumerate(reversed(body)):
        number = int(digit) * (2 if place % 2 == 0 else 1)
        total += number - 9 if number > 9 else number
    return body + str(-total % 10)


def write_card(rng: random.Random, language: str) -> str:
    """In groups of four, or as American Express has it."""
    value, sep = card(rng), rng.choice(["", "", " ", " ", "-"])
    if len(value) == 15:
        return sep.join([value[:4], value[4:10], value[10:]])
    grouped = sep.join(value[place : place + 4] for place in range(0, len(value), 4))
    return full_width(grouped) if rng.random() < 0.08 else grouped


def write_mobile(rng: random.Random, language: str) -> str:
    """With or without the country's code, in the usual groups."""
    a, b, c = rng.choice(MOBILES), digits(rng, 4), digits(rng, 4)
    value = a + b + c
    plain = [value] * 3 + [
        f"{a}-{b}-{c}",
        f"{a} {b} {c}",
        f"{a}.{b}.{c}",
        f"{a}－{b}－{c}",
        f"{a} {b}{c}",
        f"{a}{b} {c}",
    ]
    long = [f"+86{value}", f"+86 {value}", f"+86-{a}-{b}-{c}", f"+86 {a} {b} {c}", f"86-{value}", f"0086{value}"]
    odd = [f"(+86){value}", f"（+86）{a} {b} {c}", full_width(value), f"{a} - {b} - {c}", f"{a}—{b}—{c}"]
    return rng.choice(plain + long + odd)


def write_landline(rng: random.Random, language: str) -> str:
    """With the area code set apart, perhaps with an extension."""
    area = rng.choice(AREAS)
    rest = digits(rng, 8 if len(area) == 3 else rng.choice([7, 8]), "2345678")
    plain = [f"{area}-{rest}"] * 2 + [f"({area}){rest}", f"（{area}）{rest}", f"{area} {rest}", f"({area}) {rest}"]
    split = [
        f"{area}-{rest[:-4]} {rest[-4:]}",
        f"{area}-{rest[:-4]}-{rest[-4:]}",
        f"{area}-{rest}-{rng.randint(11, 899)}",
    ]
    odd = [f"+86-{area[1:]}-{rest}", f"+86 {area[1:]} {rest}", full_width(f"{area}-{rest}"), f"{area}—{rest}"]
    return rng.choice(plain + split + odd)


def write_hotline(rng: random.Random, language: str) -> str:
    """A 400 or 800 number."""
    a, b = digits(rng, 3), digits(rng, 4)
    return rng.choice(
        [
            f"400-{a}-{b}",
            f"400 {a} {b}",
            f"400{a}{b}",
            f"800-{a}-{b}",
            f"400-{b}-{a}",
            f"1-800-{digits(rng, 3, '2346')}-{b}",
        ]
    )


def write_phone(rng: random.Random, language: str) -> str:
    """A number of North America, or of another country."""
    line = digits(rng, 4)
    if rng.random() < 0.35:
        countries = ["+44 20 7", "+44 7911 ", "+49 30 ", "+33 1 42 ", "+81 3-", "+852 9", "+65 8", "+61 4", "+91 98"]
        return rng.choice([*countries, "+7 495 "]) + digits(rng, 3) + rng.choice([" ", "-", ""]) + line
    area = rng.choice(words("212 310 415 617 713 206 305 512 202 646 925 718 404 303"))
    exchange = rng.choice("2346789") + rng.choice("023456789") + rng.choice("0123456789")
    plain = [f"({area}) {exchange}-{line}", f"{area}-{exchange}-{line}", f"{area}.{exchange}.{line}"]
    long = [f"+1 {area} {exchange} {line}", f"+1-{area}-{exchange}-{line}", f"1-{area}-{exchange}-{line}"]
    odd = [f"+1 ({area}) {exchange}-{line}", f"+1{area}{exchange}{line}", f"({area}){exchange}-{line}"]
    return rng.choice([*plain, *long, *odd, f"{area} {exchange} {line}"])


def write_ssn(rng: random.Random, language: str) -> str:
    """A US social security number."""
    area = rng.choice([rng.randint(1, 665), rng.randint(667, 899)])
    return f"{area:03}-{rng.randint(1, 99):02}-{rng.randint(1, 9999):04}"


def write_email(rng: random.Random, language: str) -> str:
    """A mailbox, sometimes hidden from robots."""
    english = f"{rng.choice(GIVEN_EN)}.{rng.choice(FAMILY_EN)}".lower().replace("'", "").replace("ü", "ue")
    name = rng.choice(
        [pinyin(rng), pinyin(rng) + digits(rng, 3), digits(rng, 9), english, f"{pinyin(rng)}_{digits(rng, 2)}"]
    )
    host = rng.choice(HOSTS)
    value = f"{name}@{host}"
    hidden = [f"{name}[at]{host}", f"{name} (at) {host}", f"{name} [at] {host.replace('.', ' [dot] ')}"]
    odd = [value.upper(), f"{name}＠{host}", full_width(value), f"{name} at {host.replace('.', ' dot ')}"]
    return rng.choice([value] * 8 + hidden + odd)


def pinyin(rng: random.Random) -> str:
    """Two syllables."""
    return "".join(rng.choices(words("zhang wang li chen xiao ming hao yu lin fang qiang tian"), k=2))


def write_ip(rng: random.Random, language: str) -> str:
    """A public address, every fourth of version 6."""
    if rng.random() < 0.25:
        groups = [rng.choice(words("2400 2408 2a02 2607 240e")), *(f"{rng.randrange(1, 65536):x}" for _ in range(7))]
        return ":".join(groups) if rng.random() < 0.6 else ":".join(groups[:3]) + "::" + groups[-1]
    first = rng.choice([23, 36, 42, 58, 61, 101, 113, 117, 124, 139, 183, 202, 210, 218, 221])
    return f"{first}.{rng.randint(1, 254)}.{rng.randint(0, 254)}.{rng.randint(1, 254)}"


def write_plate(rng: random.Random, language: str) -> str:
    """A plate, every third of an electric car."""
    letters = "ABCDEFGHJKLMNPQRSTUVWXYZ"
    if rng.random() < 0.3:
        tail = rng.choice("DF") + rng.choice(letters + "0123456789") + digits(rng, 4)
    else:
        places = [*rng.choices(letters, k=rng.choice([1, 1, 2])), *digits(rng, 4)]
        tail = "".join(rng.sample(places[:5], 5))
    return rng.choice(PLATES) + rng.choice(letters[:12]) + rng.choice(["", "", "·", " ", "•", "-"]) + tail


def write_passport(rng: random.Random, language: str) -> str:
    """A Chinese passport, or nine digits as other countries have."""
    old, new = rng.choice("EG") + digits(rng, 8), "E" + rng.choice("ABCDEFGH") + digits(rng, 7)
    return rng.choice([old, old, new, digits(rng, 9, "123456789")])


def write_qq(rng: random.Random, language: str) -> str:
    """A QQ number."""
    return digits(rng, rng.randint(5, 10), "123456789")


def write_wechat(rng: random.Random, language: str) -> str:
    """A WeChat name."""
    plain, odd = [pinyin(rng) + digits(rng, 3), f"{pinyin(rng)}_{digits(rng, 2)}"], f"{pinyin(rng)}-{digits(rng, 4)}"
    return rng.choice([*plain, odd, f"wxid_{digits(rng, 6)}"])


def write_name(rng: random.Random, language: str) -> str:
    """A name in the language of the text."""
    if language == "en":
        middle = rng.choice(["", "", "", " J.", " Anne"])
        given = rng.choice(GIVEN_EN)
        return f"{given}{middle} {rng.choice(FAMILY_EN)}" if rng.random() < 0.85 else given
    if rng.random() < 0.07:
        return rng.choice(words("约翰·史密斯 玛丽·约翰逊 买买提·艾力 阿依古丽·吐尔逊"))
    return rng.choice(FAMILY_ZH) + rng.choice(GIVEN_ZH)


def write_address(rng: random.Random, language: str) -> str:
    """Where somebody lives, in the language of the text."""
    number = rng.randint(1, 399)
    if language == "en":
        road = rng.choice(["Maple", "Oak Hill", "Washington", "N. Lincoln", "Sunset", "42nd", "West Elm"])
        road += " " + rng.choice(words("Street St Avenue Ave. Road Lane Blvd Drive Court"))
        town = rng.choice(["", f", Springfield, IL {digits(rng, 5)}", f", San Jose, CA {digits(rng, 5)}"])
        return f"{number} {road}" + rng.choice(["", "", ", Apt 4B", ", Unit 12", " #305"]) + town
    area, road = rng.choice(DISTRICTS), rng.choice(ROADS)
    flat = f"{rng.randint(1, 20)}{rng.choice(['号楼', '栋', '幢'])}{rng.randint(1, 5)}单元{rng.randint(101, 3004)}"
    town = [f"{area}{road}{number}号", f"{area}{road}{number}号{flat}室", f"{area}{road}{number}号阳光花园{flat}"]
    town += [f"{area}{road}{number}弄{rng.randint(1, 30)}号{rng.randint(101, 909)}室", f"{area}幸福小区{flat}室"]
    town += [f"{area}{road}{number}号院{rng.randint(1, 9)}-{rng.randint(1, 6)}-{rng.randint(101, 909)}"]
    return rng.choice([*town, f"{area}城关镇李家村{rng.randint(1, 12)}组"])


VALUES: dict[str, Callable[[random.Random, str], str]] = {
    "email": write_email,
    "cn_id": write_cn_id,
    "cn_credit_code": credit_code,
    "ip": write_ip,
    "passport": write_passport,
    "hotline": write_hotline,
    "bank_card": write_card,
    "cn_plate": write_plate,
    "cn_mobile": write_mobile,
    "qq": write_qq,
    "wechat": write_wechat,
    "cn_landline": write_landline,
    "phone": write_phone,
    "us_ssn": write_ssn,
    "address": write_address,
    "name": write_name,
}


def bad_id(rng: random.Random) -> str:
    """An identity number with a wrong check digit, province or month."""
    value = next(value for value in iter(lambda: cn_id(rng), "") if len(value) == 18)
    wrong = rng.choice([digit for digit in "0123456789" if digit != value[17]])
    return rng.choice([value[:17] + wrong, "99" + value[2:], value[:10] + "13" + value[12:]])


def bad_card(rng: random.Random) -> str:
    """A card with a wrong check digit."""
    value = card(rng)
    return value[:-1] + rng.choice([digit for digit in "0123456789" if digit != value[-1]])


def bad_code(rng: random.Random) -> str:
    """A credit code with a wrong check digit."""
    value = credit_code(rng)
    return value[:-1] + rng.choice([digit for digit in "0123456789" if digit != value[-1]])


def isbn(rng: random.Random) -> str:
    """A book's number, with and without hyphens."""
    zh = f"978-7-{digits(rng, 3)}-{digits(rng, 5)}-{digits(rng, 1)}"
    en = f"978-0-{digits(rng, 6)}-{digits(rng, 2)}-{digits(rng, 1)}"
    return rng.choice([zh, en, f"9787{digits(rng, 9)}", f"0-{digits(rng, 3)}-{digits(rng, 5)}-X"])


# ---- reports ---------------------------------------------------------------------------------------------------------


def report(name: str, cases: list[Case], num_shown: int) -> None:
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
                shown.append(f"missed {kind} {case.text[start:end]!r} in {case.text!r}, found {finds}")
        for one in finds:
            found[one.kind] += 1
            inside = [
                (start, end)
                for kind, start, end in case.truth
                if kind == one.kind and one.start < end and start < one.end
            ]
            if inside and inside[0][0] - 4 <= one.start and one.end <= inside[0][1] + 4:
                true[one.kind] += 1
            else:
                alarms[case.family or "beside positives"] += 1
                shown.append(f"false {one.kind} {case.text[one.start : one.end]!r} in {case.text!r}")
    families = Counter(case.family for case in cases if case.family)
    print(f"\n{name}: {asked.total()} data in {len(cases) - families.total()} texts,", end=" ")
    print(f"and {families.total()} texts of {len(families)} families without\n")
    print("| kind | data | recall % | found | precision % |\n|---|---|---|---|---|")
    for kind in KINDS:
        recall, precision = share(hit[kind], asked[kind]), share(true[kind], found[kind])
        print(f"| {kind} | {asked[kind]} | {recall} | {found[kind]} | {precision} |")
    recall, precision = share(hit.total(), asked.total()), share(true.total(), found.total())
    print(f"| **all** | {asked.total()} | **{recall}** | {found.total()} | **{precision}** |")
    print("\nfalse finds by family:", dict(alarms) or "none")
    for line in random.Random(0).sample(shown, min(num_shown, len(shown))):
        print(line)


def share(part: int, whole: int) -> str:
    """In per cent."""
    return f"{100 * part / whole:.1f}" if whole else "-"


def report_real(folder: Path) -> None:
    """What is found in the data files of a folder, and what looking costs."""
    print("\n| file | rows | bytes a row | rows with some | found | µs CPU a row |\n|---|---|---|---|---|---|")
    guard, lines = Guard(), []
    for file in sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl", ".csv")):
        try:
            rows = [row for row in read([file]) if not isinstance(row, Drop)]
        except DataError:
            continue
        spent = []
        for _ in range(3):  # the least of three: other programs on the machine only ever add
            began = time.process_time()
            counts = [counts for _, counts in map(guard.check, rows)]
            spent.append((time.process_time() - began) / max(1, len(rows)) * 1e6)
        num_bytes = 0
        for row, count in zip(rows, counts, strict=True):
            messages = (*row.prompt, row.chosen, row.rejected) if isinstance(row, Preference) else row.messages
            texts = [*(message.content for message in messages), row.tools]
            num_bytes += sum(len(text.encode(errors="replace")) for text in texts)
            for text in texts if count else ():
                for one in find(text):
                    around = text[max(0, one.start - 25) : one.end + 12].replace("\n", " ")
                    lines.append(
                        f"{row.place.line}\t{file.name}\t{one.kind}\t{text[one.start : one.end]!r}\tin {around!r}"
                    )
        some, total = sum(map(bool, counts)), json.dumps(sum(counts, Counter()))
        print(f"| {file.name} | {len(rows)} | {num_bytes // max(1, len(rows))} | {some} | {total} | {min(spent):.1f} |")
    print(*["", *lines], sep="\n")


if __name__ == "__main__":
    main()
