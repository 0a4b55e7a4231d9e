"""The kinds of personal data, who finds each, and a quick look that spares most texts the finders."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from dsr1_tune.data.privacy.contacts import emails, hotlines, ips, landlines, mobiles, phones, qqs, wechats
from dsr1_tune.data.privacy.numbers import (
    PLATE_PROVINCES,
    Span,
    bank_cards,
    cn_ids,
    credit_codes,
    passports,
    plates,
    ssns,
)
from dsr1_tune.data.privacy.people import HAN, addresses, names

KINDS: dict[str, str] = {
    "email": "an e-mail address, also written name[at]host[dot]com",
    "cn_id": "a Chinese resident identity number, 18 places with check digit or 15 of the old kind",
    "cn_credit_code": "a Chinese unified social credit code (GB 32100)",
    "ip": "a public IPv4 or IPv6 address",
    "passport": "a passport or travel permit number, where the text says that it is one",
    "hotline": "a service number such as 400-820-8820; off unless asked for",
    "bank_card": "a payment card number (Luhn)",
    "cn_plate": "a Chinese vehicle plate",
    "cn_mobile": "a Chinese mobile number",
    "qq": "a QQ number, where the text says that it is one",
    "wechat": "a WeChat name, where the text says that it is one",
    "cn_landline": "a Chinese landline number with its area code, or called a telephone number",
    "phone": "a telephone number of North America, or with another country's code",
    "us_ssn": "a US social security number",
    "address": "where a person lives, where the text says so",
    "name": "a person's name, where the text says that it is one: 姓名：张三, My name is John Smith",
}
"""Every kind, and what it is; where two could be meant, the one that stands first wins."""

OPTIONAL = frozenset({"hotline"})
"""Kinds that are looked for only where they are asked for by name: service numbers are nobody's own."""

FINDERS: dict[str, Callable[[str, int, int], Iterator[Span]]] = {
    "email": emails,
    "cn_id": cn_ids,
    "cn_credit_code": credit_codes,
    "ip": ips,
    "passport": passports,
    "hotline": hotlines,
    "bank_card": bank_cards,
    "cn_plate": plates,
    "cn_mobile": mobiles,
    "qq": qqs,
    "wechat": wechats,
    "cn_landline": landlines,
    "phone": phones,
    "us_ssn": ssns,
    "address": addresses,
    "name": names,
}
"""Who finds each kind in a part of a folded text, in the order of KINDS."""

NUMBERS = frozenset(
    {"cn_id", "cn_credit_code", "passport", "hotline", "bank_card", "cn_mobile", "cn_landline", "phone", "us_ssn"}
)
"""The kinds that have at least seven digits: looked for only around such numbers."""

assert list(FINDERS) == list(KINDS), "every kind has its finder, in the same order"


def worth_a_look(text: str) -> bool:
    """Whether there may be personal data in the text: a few microseconds that spare most texts the finders."""
    if _SIGN.search(text) or " dot " in text or "wechat" in text:
        return True
    return "name" in text and _NAME.search(text) is not None


_NAME_SIGN = r"ame(?: is|['’]s|[\\\"*| ]{0,3}[:=|])[\\\"“*\s]{1,4}[A-Z]"
# What personal data is never without, by its first character, the commoner first. One scan for all of them costs some
# nanoseconds a character, because a pattern that opens with a set of characters skips everything else at once.
_SIGNS = {
    "我本病患孩": "(?:人|者|子|[父母]亲|爸|妈|爱人|老[公婆]|[儿女][子儿])?(?:的?名|叫|是叫)",
    "人方户名告主": rf"[\\\"”*\s]{{0,3}}[:：| ][\\\"“*\s]{{0,4}}[{HAN}A-Z]",
    "0-9０-９": r"(?:[ .()（）\-－‐-—\u2212\u00a0\u2002-\u200a\u202f\u3000]{0,3}[0-9０-９]){6}"
    r"|[0-9０-９]{0,2}[.．][0-9０-９]{1,3}[.．][0-9０-９]{1,3}[.．][0-9０-９]"
    # 742 Evergreen Terrace
    r"|[A-Za-z]? (?:[NSEW]\.? )?(?:[A-Z0-9][A-Za-z0-9'’]{1,15} ){1,4}"
    r"(?:St|Av|R[do]|B[ol]|L[an]|Dr|C[oti]|Wa|Pl|Te|H[iw]|P[ak]|Sq|Cr)",
    "地": "址.{0,40}?[0-9０-９]",
    "家寄送": "[在到往].{0,40}?[0-9０-９]",
    "住": f"[址所地于]|在.{{0,30}}?[0-9０-９村室]|[{HAN}]{{2,9}}?[省市州区县]",
    "户": "[籍口]",
    "姓": rf" {{0,4}}名(?:[\\\"”*\s]{{0,4}}(?:[:：|]|是|为|叫))?[\\\"“*\s]{{0,4}}[{HAN}A-Z]",
    PLATE_PROVINCES: " ?[A-Za-zＡ-Ｚ].?[A-Za-z0-9０-９Ａ-Ｚ]{4}",
    ":": ":[0-9A-Fa-f]|(?:[0-9A-Fa-f]{1,4}:){3}",
    r"\[(（【": " ?(?:at|AT)",
    "@＠": "",
    "qQｑＱ扣企": r"[qQｑＱ扣鹅][^\n]{0,12}?[0-9０-９]{5}",
    "微威薇": r"信[^，。、\n]{0,10}?[A-Za-z0-9]",
    "加": "[VvＶ微]",
    "xXｘＸ": r"(?<=[vVwWｖＶｗＷ].)[号 ]?(?:[:： ]|是)",
    "W": "e[Cc]hat",
    "N": _NAME_SIGN,
}
_SIGN = re.compile(f"[{''.join(_SIGNS)}](?:{'|'.join(f'(?<=[{first}])(?:{rest})' for first, rest in _SIGNS.items())})")
_NAME = re.compile(_NAME_SIGN)
