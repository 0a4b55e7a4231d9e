"""Contact data: e-mail and network addresses, telephone numbers, messenger accounts.

What is set aside for examples reaches nobody, and is not found: example.com, telephone numbers with 555, private and
documentation networks.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from dsr1_tune.data.privacy.numbers import LEFT, RIGHT, SEPARATOR, Span, is_reference

# ---- network ---------------------------------------------------------------------------------------------------------

_DOT = r"(?:\.| ?[\[({] ?(?:dot|DOT) ?[\])}] ?| (?:dot|DOT) )"
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9@._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}"
    r"(?:@| ?[\[({] ?(?:at|AT|@) ?[\])}] ?| (?:at|AT) (?=[A-Za-z0-9-]{2,30} (?:dot|DOT) ))"
    rf"(?P<host>(?:[A-Za-z0-9](?:[A-Za-z0-9-]{{0,61}}[A-Za-z0-9])?{_DOT}){{1,4}})"
    r"(?P<top>[A-Za-z]{2,18})(?:(?![A-Za-z0-9@])|(?=QQ|qq|TEL|[Tt]el))"
)
_AT = ("@", "[at", "(at", "{at", "[AT", "(AT", "[ at", "( at", " dot ", " DOT ")
_EXAMPLE = re.compile(r"(?i:(?:^|\.)(?:example|test|invalid|localhost)(?:\.|\Z))")
# Domains that are none: files, and names inside a local network.
_NO_DOMAIN = frozenset(
    ["png", "jpg", "jpeg", "gif", "svg", "webp", "py", "js", "ts", "css", "html", "json", "xml", "md"]
)
_NO_DOMAIN |= {"yml", "yaml", "txt", "local", "internal", "lan", "test", "example", "invalid"}
_NOBODY = re.compile(r"(?i:git@|hg@|no-?reply|do-?not-?reply)")
_USERINFO = re.compile(r"://[^\s/]{0,64}\Z")


def emails(text: str, start: int, end: int) -> Iterator[Span]:
    """Mailboxes; not example domains, no-reply senders, git remotes or the password in a URL."""
    if not any(sign in text for sign in _AT):
        return
    for match in _EMAIL.finditer(text, start, end):
        host = re.sub(_DOT, ".", match["host"]).rstrip(".")
        if _EXAMPLE.search(host) or match["top"].lower() in _NO_DOMAIN or _NOBODY.match(match.group()):
            continue
        if not _USERINFO.search(text[max(0, match.start() - 72) : match.start()]):
            yield match.span()


# What stands around is looked at afterwards: a pattern that opens with a set of characters is found ten times as fast.
_IPV4 = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9A-Za-z_-])(?!\.[0-9])(?!/[0-9]{1,2}(?![0-9]))")
_IPV6 = re.compile(r"[23][0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![0-9A-Za-z:])")
_INSIDE = re.compile(r"(?:[0-9._-]|[0-9:]:|[0-9A-Za-z]/|(?<!IP)(?<=[A-Za-z]))\Z")
_SAYS_HOST = re.compile(r"(?i:\bip|地址|主机|服务器|登录|来自|address|host|server|from|ping|ssh)[^\n]{0,20}\Z")
_SAYS_IP = re.compile(r"[^\n]{0,12}?(?:IP|\bip\b)")
_SAYS_VERSION = re.compile(
    r"(?i:version|\bver\b|\bv|版本|版|release|build|firmware|固件|驱动|section|第)[^0-9\n]{0,8}\Z"
)
# Public resolvers, in every tutorial.
_RESOLVERS = frozenset(["8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9"])
_RESOLVERS |= {"114.114.114.114", "223.5.5.5", "223.6.6.6"}


def ips(text: str, start: int, end: int) -> Iterator[Span]:
    """Addresses that are routed on the internet; not version or section numbers, resolvers or networks (/24)."""
    for pattern in (_IPV4, _IPV6):
        for match in pattern.finditer(text, start, end):
            before = text[max(0, match.start() - 24) : match.start()]
            if _INSIDE.search(before) or not _is_public(match.group()):
                continue
            # Nearly every address has a part of three digits; 1.2.3.4 without a word is a heading or a version.
            likely = (
                pattern is _IPV6
                or re.search(r"[0-9]{3}", match.group())
                or _SAYS_HOST.search(before)
                or _SAYS_IP.match(text, match.end())
            )
            if likely and match.group() not in _RESOLVERS and not _SAYS_VERSION.search(before):
                yield match.span()


def _is_public(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return parsed.is_global and not parsed.is_multicast


# ---- telephones ------------------------------------------------------------------------------------------------------

_S = SEPARATOR
_MOBILE = re.compile(
    LEFT
    + r"(?<!\+)(?:\(?(?:\+|00)?86\)?[- ]{0,2}(?:\(0\))?)?1(?:[38][0-9]|4[014-9]|5[0-35-9]|6[2567]|7[0-8]|9[0-35-9])"
    rf"(?:[0-9]{{8}}|{_S}[0-9]{{4}}{_S}?[0-9]{{4}}|[0-9]{{4}}{_S}[0-9]{{4}}|[0-9]{_S}[0-9]{{4}}{_S}[0-9]{{3}}"
    rf"|{_S}[0-9]{{3}}{_S}[0-9]{{5}}|{_S}[0-9]{{2}}(?:{_S}[0-9]{{2}}){{3}})" + RIGHT
)
_SPELT_MOBILE = re.compile(LEFT + r"1([-.])[3-9]\1[0-9](?:\1[0-9]){8}" + RIGHT)


def mobiles(text: str, start: int, end: int) -> Iterator[Span]:
    """Chinese mobile numbers in the groupings people write, with or without +86, or with a dot behind each digit."""
    for pattern in (_MOBILE, _SPELT_MOBILE):
        for match in pattern.finditer(text, start, end):
            if not is_reference(text, match.start()):
                yield match.span()


_HOTLINE = re.compile(
    LEFT + rf"(?:(?:1[- ])?(?:8(?:00|88|77|66|55|44|33)[-.]|\(8(?:00|88|77|66|55|44|33)\) ?)[0-9]{{3}}{_S}[0-9]{{4}}"
    rf"|[48]00{_S}?(?:[0-9]{{3}}{_S}?[0-9]{{4}}|[0-9]{{4}}{_S}[0-9]{{3}}|[0-9]{{2}}{_S}?[0-9]{{5}}))" + RIGHT
)


def hotlines(text: str, start: int, end: int) -> Iterator[Span]:
    """Service numbers of firms: 400 and 800 in China, 800, 888 and the like in North America."""
    for match in _HOTLINE.finditer(text, start, end):
        if not is_reference(text, match.start()):
            yield match.span()


# China's area codes, without the 0.
_AREA = (
    r"(?:10|2[0-57-9]|3(?:1[0-9]|35|49|5[0-9]|7[0-9]|9[0-9])|4(?:1[0-9]|2[179]|3[0-9]|5[0-9]|6[4-9]|7[0-9]|8[23])"
    r"|5(?:[134567][0-9]|2[37]|80|9[0-9])|6(?:3[1-5]|6[0238]|9[12])|7(?:01|[135679][0-9]|2[248]|4[3-6])"
    r"|8(?:1[236-8]|2[5-7]|3[0-9]|5[1-9]|7[0-9]|8[0-9]|9[1-8])|9(?:0[1-9]|1[0-9]|3[0-9]|4[13]|5[1-5]|7[0-9]|9[0-9]))"
)
_LANDLINE = re.compile(
    LEFT + rf"(?:\(?(?:\+|00)86\)?[- ]{{0,2}}\(?0?{_AREA}|\(0{_AREA}\)|0{_AREA}[- ])\)?[- ]{{0,3}}"
    r"[2-8][0-9]{2,3}[- ]?[0-9]{4}(?:(?:-| ?转 ?|,)[0-9]{1,5})?" + RIGHT
)
_CALLED_LANDLINE = re.compile(
    r"(?:电话|座机|固话|传真|宅电|办公室|[Tt]el|TEL|[Ff]ax|FAX)(?:号码|号)?"
    r"[^0-9A-Za-z\n，。；(+]{0,4}(?:\([^()0-9\n]{1,6}\))?[: ]?"
    rf"(0{_AREA}[2-8][0-9]{{6,7}}|(?!20[0-3][0-9][01][0-9])[2-8][0-9]{{2,3}}[- ]?[0-9]{{4}})" + RIGHT
)


def landlines(text: str, start: int, end: int) -> Iterator[Span]:
    """Chinese landline numbers: with an area code set apart, or beside the word telephone."""
    for match in _LANDLINE.finditer(text, start, end):
        if not is_reference(text, match.start()):
            yield match.span()
    for match in _CALLED_LANDLINE.finditer(text, start, end):
        yield match.span(1)


_ABROAD = re.compile(
    r"(?<![0-9A-Za-z+)])(?<![0-9)]\s)\(?\+[1-9][0-9]{0,2}\)?(?:[-. ]{0,2}\(?[0-9]{1,5}\)?){1,7}" + RIGHT
)
_AMERICAN = re.compile(
    LEFT + rf"(?:\+?1{_S}?)?(?:\([2-9][0-9]{{2}}\) ?{_S}?|[2-9][0-9]{{2}}{_S})[2-9][0-9]{{2}}{_S}[0-9]{{4}}"
    r"(?: ?(?:x|ext\.?) ?[0-9]{1,5})?" + RIGHT
)
_PLAIN_AMERICAN = re.compile(LEFT + r"1?[2-9][0-9]{2}[2-9][0-9]{6}" + RIGHT)
# Area code 555 is given to nobody, nor are 555-0100 to 555-0199, and x11 are services.
_FICTION = re.compile(r"1?(?:555|.11|.{3}(?:55501|.11))")
_SAYS_PHONE = re.compile(
    r"(?i:phone|call|\btel\b|cell|mobile|\btext|fax|whatsapp|reach|dial|电话|手机)[^\n0-9]{0,24}\Z"
)
_SAYS_PHONE_AFTER = re.compile(r"(?i:[^\n0-9]{0,16}(?:phone|\btel\b|cell|mobile|\bfax))")


def phones(text: str, start: int, end: int) -> Iterator[Span]:
    """North American numbers in the formats people write, and any number with a + and a country's code."""
    for match in _ABROAD.finditer(text, start, end):
        digits = re.sub("[^0-9]", "", match.group())
        fiction = len(digits) == 11 and digits[0] == "1" and _FICTION.match(digits)
        # As long as a telephone number, and no signed decimal such as +116.4074123.
        if 9 <= len(digits) <= 15 and match.group().count(".") != 1 and not fiction:
            yield match.span()
    for pattern in (_AMERICAN, _PLAIN_AMERICAN):
        for match in pattern.finditer(text, start, end):
            digits = re.sub("[^0-9]", "", match.group())
            if _FICTION.match(digits) or is_reference(text, match.start()):
                continue
            # A sign between the groups, or a word beside: three bare numbers in a row may be anything.
            if re.search(r"[-.(]", match.group()) or _said_phone(text, *match.span()):
                yield match.span()


def _said_phone(text: str, start: int, end: int) -> bool:
    return bool(_SAYS_PHONE.search(text[max(0, start - 40) : start]) or _SAYS_PHONE_AFTER.match(text, end))


# ---- messengers ------------------------------------------------------------------------------------------------------

_QQ = re.compile(
    r"(?:(?<![A-Za-z])[Qq]{2}|(?<![A-Z])QQ|扣扣|企鹅)(?:号码|号|id|ID)?[\\\"'*\s]{0,4}(?:[:=,，]|是|为|is\b)?[\\\"'*\s]{0,4}"
    r"([1-9][0-9]{4,10})(?![0-9A-Za-z])(?! ?(?:年|版|元|人|个|万|位|款))"
)


def qqs(text: str, start: int, end: int) -> Iterator[Span]:
    """Numbers beside QQ or 扣扣; a group's number (QQ群) is no person's."""
    if not any(word in text for word in ("QQ", "qq", "扣扣", "企鹅", "Qq")):
        return
    for match in _QQ.finditer(text, start, end):
        yield match.span(1)


_SAYS_WECHAT = ("微信", "威信", "薇信", "加V", "加v", "eChat", "echat", "eixin", "vx", "VX", "Vx", "wx", "WX", "Wx")
_WECHAT = re.compile("[微威薇]信|加[Vv]|[Ww]e[Cc]hat|[Ww]eixin|[VvWw][Xx]")
_WECHAT = re.compile(
    r"(?:微信|威信|薇信|加[Vv](?= ?[:是])|(?i:wechat|weixin)|(?<![A-Za-z])(?i:[vw]x))"
    r"(?P<said>[\\\"'”]{0,2}(?:账号|帐号|号码|号| ?[Ii][Dd])?[\\\"'”*\s]{0,4}(?:[:=]|是|为| is)?[\\\"'“*\s]{0,4})"
    r"(?P<id>[A-Za-z][A-Za-z0-9_-]{5,19}|[1-9][0-9]{5,10})(?![A-Za-z0-9_@.-])"
)


def wechats(text: str, start: int, end: int) -> Iterator[Span]:
    """Names beside 微信 or WeChat: said to be one (微信号：zhangsan), or with a digit or a hyphen in it."""
    if not any(word in text for word in _SAYS_WECHAT):
        return
    for match in _WECHAT.finditer(text, start, end):
        said, id_ = match["said"], match["id"]
        if not said and match.group()[0] not in "微威薇加":  # wx1234567 is a word of its own
            continue
        odd = re.search(r"[0-9_-]", id_) is not None and not id_.isdigit()
        if "号" in said or (odd and (id_[0].islower() or re.search(r"[Dd:=是为]| is", said))):
            yield match.span("id")
