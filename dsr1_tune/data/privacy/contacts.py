"""Contact data: e-mail and network addresses, telephone numbers, messenger accounts.

What is set aside for examples reaches nobody, and is not found: example.com, telephone numbers with 555, private and
documentation networks.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from dsr1_tune.data.phrase_table import PhraseTable
from dsr1_tune.data.privacy.numbers import TABLE, Span, own_numbers

_TABLE = PhraseTable(__file__, TABLE)
_AT = ("@", "[at", "(at", "{at", "[AT", "(AT", "[ at", "( at", " dot ", " DOT ")


def emails(text: str, start: int, end: int) -> Iterator[Span]:
    """Mailboxes; not example domains, no-reply senders, git remotes or the password in a URL."""
    if not any(sign in text for sign in _AT):
        return
    for match in _TABLE.email.finditer(text, start, end):
        host = _TABLE.dot.sub(".", match["host"]).rstrip(".")
        is_none = match["top"].lower() in _TABLE["no_domain"] or _TABLE.example.search(host)
        if is_none or _TABLE.nobody.match(match.group()):
            continue
        if not _TABLE.userinfo.search(text[max(0, match.start() - 72) : match.start()]):
            yield match.span()


def ips(text: str, start: int, end: int) -> Iterator[Span]:
    """Addresses that are routed on the internet; not version or section numbers, resolvers or networks (/24)."""
    for pattern in (_TABLE.ipv4, _TABLE.ipv6):
        for match in pattern.finditer(text, start, end):
            before = text[max(0, match.start() - 24) : match.start()]
            if _TABLE.inside.search(before) or not _is_public(match.group()):
                continue
            # Nearly every address has a part of three digits; 1.2.3.4 without a word is a heading or a version.
            likely = (
                pattern is _TABLE.ipv6
                or re.search(r"[0-9]{3}", match.group())
                or _TABLE.says_host.search(before)
                or _TABLE.says_ip.match(text, match.end())
            )
            if likely and match.group() not in _TABLE["resolvers"] and not _TABLE.says_version.search(before):
                yield match.span()


def _is_public(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return parsed.is_global and not parsed.is_multicast


def mobiles(text: str, start: int, end: int) -> Iterator[Span]:
    """Chinese mobile numbers in the groupings people write, with or without +86, or with a dot behind each digit."""
    for pattern in (_TABLE.mobile, _TABLE.spelt_mobile):
        for match in own_numbers(pattern, text, start, end):
            yield match.span()


def hotlines(text: str, start: int, end: int) -> Iterator[Span]:
    """Service numbers of firms: 400 and 800 in China, 800, 888 and the like in North America."""
    for match in own_numbers(_TABLE.hotline, text, start, end):
        yield match.span()


def landlines(text: str, start: int, end: int) -> Iterator[Span]:
    """Chinese landline numbers: with an area code set apart, or beside the word telephone."""
    for match in own_numbers(_TABLE.landline, text, start, end):
        yield match.span()
    for match in _TABLE.called_landline.finditer(text, start, end):
        yield match.span(1)


def phones(text: str, start: int, end: int) -> Iterator[Span]:
    """North American numbers in the formats people write, and any number with a + and a country's code."""
    for match in _TABLE.abroad.finditer(text, start, end):
        digits = re.sub("[^0-9]", "", match.group())
        fiction = len(digits) == 11 and digits[0] == "1" and _TABLE.fiction.match(digits)
        # As long as a telephone number, and no signed decimal such as +116.4074123.
        if 9 <= len(digits) <= 15 and match.group().count(".") != 1 and not fiction:
            yield match.span()
    for pattern in (_TABLE.american, _TABLE.plain_american):
        for match in own_numbers(pattern, text, start, end):
            before = text[max(0, match.start() - 40) : match.start()]
            said = _TABLE.says_phone.search(before) or _TABLE.says_phone_after.match(text, match.end())
            # A sign between the groups, or a word beside: three bare numbers in a row may be anything.
            is_one = said or re.search(r"[-.(]", match.group())
            if is_one and not _TABLE.fiction.match(re.sub("[^0-9]", "", match.group())):
                yield match.span()


def qqs(text: str, start: int, end: int) -> Iterator[Span]:
    """Numbers beside QQ or 扣扣; a group's number (QQ群) is no person's."""
    if not any(word in text for word in ("QQ", "qq", "扣扣", "企鹅", "Qq")):
        return
    for match in _TABLE.qq.finditer(text, start, end):
        yield match.span(1)


def wechats(text: str, start: int, end: int) -> Iterator[Span]:
    """Names beside 微信 or WeChat: said to be one (微信号：zhangsan), or with a digit or a hyphen in it."""
    if not any(word in text for word in _TABLE["says_wechat"]):
        return
    for match in _TABLE.wechat.finditer(text, start, end):
        said, id_ = match["said"], match["id"]
        if not said and match.group()[0] not in "微威薇加":  # wx1234567 is a word of its own
            continue
        odd = re.search(r"[0-9_-]", id_) is not None and not id_.isdigit()
        if "号" in said or (odd and (id_[0].islower() or re.search(r"[Dd:=是为]| is", said))):
            yield match.span("id")
