"""Numbers that name a person: identity cards, passports, payment cards, vehicle plates; and what bounds a number.

Every finder takes a folded text (see `fold`) and the part of it to look at, and yields where its kind stands.
Precision comes first: check digits where there are some, otherwise the format that people write, or a word beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date

Span = tuple[int, int]

# Not \b: a Han character is a word character too, and 电话13812345678 would have no boundary. Not behind a decimal
# point, nor in the middle of a sum; but **13812345678** is bold.
LEFT = (
    r"(?=[0-9(+])(?:(?<![0-9A-Za-z])|(?<=[Tt]el)|(?<=TEL)|(?<=hone)|(?<=ID))(?<![0-9]\.)"
    r"(?<![0-9A-Za-z)][*×÷^])(?<![0-9A-Za-z)] [*×÷^+] )(?<!=-)(?<!= -)"
)
RIGHT = (
    r"(?:(?![0-9A-Za-z])|(?=(?i:qq|tel|e-?mail|vx|wx)))(?!\.[0-9])"
    r"(?! ?\*{0,2}[*×÷^] ?[0-9A-Za-z(])(?! - [0-9]{1,10}(?![0-9]))"
    r"(?! ?(?:[=%]|\+ |元|万|亿|美元|块|吨|个(?!人)|人民币|人次))"
)
SEPARATOR = r"(?: ?[-.] ?| )"
"""What people write between the groups of a number."""


def fold(text: str) -> str:
    """The text at the same length with full-width characters, odd spaces and dashes as ASCII has them.

    Escapes such as a JSON text's `\\n` become blanks: their letter would hide that a number begins there.
    """
    if not text.isascii():
        text = text.translate(_FOLDED)
    return _ESCAPE.sub(lambda match: " " * len(match.group()), text) if "\\" in text else text


# Not the full-width comma and full stop, which end a number where the ASCII ones may be part of it.
_FOLDED = (
    {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if chr(code) not in "，；！？"}
    | dict.fromkeys([0xA0, *range(0x2002, 0x200B), 0x202F, 0x3000], " ")
    | dict.fromkeys([*range(0x2010, 0x2016), 0x2212], "-")
    | {ord("【"): "[", ord("】"): "]"}
)
_ESCAPE = re.compile(r"\\(?:[nrt]|u[0-9a-fA-F]{4})")


def number_windows(text: str) -> list[Span]:
    """The parts of a folded text that hold a number of seven digits or more, with the words around it."""
    windows: list[Span] = []
    for match in _RUN.finditer(text):
        start, end = max(0, match.start() - 40), min(len(text), match.end() + 32)
        if windows and start <= windows[-1][1]:
            start = windows.pop()[0]
        windows.append((start, end))
    return windows


_RUN = re.compile(r"[0-9](?:[ .()-]{0,3}[0-9]){6,}")


def is_reference(text: str, start: int) -> bool:
    """Whether the words just before say that the number is an order, a serial or such, and nobody's own."""
    return _REFERENCE.search(text[max(0, start - 32) : start]) is not None


_REFERENCE = re.compile(
    r"(?:订单|运单|快递|物流|流水|交易|发票|合同|批准文|批|货|序列|条码|条形码|单|编|案|文|学|工|房|考|型)"
    r"号?(?:码)?(?:是|为)?[\s:\"'=#]{0,4}\Z"
    r"|(?:快递|运单|流水|编号|序列|条形码|时间戳)[^0-9。，；\n]{0,6}\Z"
    r"|(?i:\b(?:order|invoice|tracking|ticket|serial|part|item|model|transaction|reference|ref|case|isbn|issn|doi|imei"
    r"|sku|upc|ean|pmid|timestamp|build|version|seed|tweet|hash|lot|batch|sn))"
    r"(?i:[\s_-]?(?:id|no\.?|number|num|code|key))?\"?(?: is| was)?[\s:\"'=#]{0,4}\Z"
)


def bare(number: str) -> str:
    """The digits and letters of a number, without what separates them."""
    return re.sub(r"[^0-9A-Za-z]", "", number)


# ---- identity cards and credit codes ---------------------------------------------------------------------------------

_ID18 = re.compile(LEFT + r"[1-8][0-9](?:[- ]?[0-9]){15}[- ]?[0-9Xx]" + RIGHT)
_ID15 = re.compile(LEFT + r"[1-8][0-9]{14}" + RIGHT)
_SAYS_ID = re.compile(r"(?:身份|证|居民|ID)[^\n]{0,20}\Z")


def cn_ids(text: str, start: int, end: int) -> Iterator[Span]:
    """Identity numbers with a true check digit, birthday and province; old ones where the text says what they are."""
    for match in _ID18.finditer(text, start, end):
        if is_cn_id(bare(match.group())):
            yield match.span()
    for match in _ID15.finditer(text, start, end):
        number = match.group()
        said = _SAYS_ID.search(text[max(0, match.start() - 24) : match.start()])
        if said and number[:2] in _PROVINCES and _is_birthday("19" + number[6:12]):
            yield match.span()


def is_cn_id(number: str) -> bool:
    """Whether 18 characters are an identity number: province, birthday and the check digit of ISO 7064 MOD 11-2."""
    if number[:2] not in _PROVINCES or not _is_birthday(number[6:14]):
        return False
    rest = sum(weight * int(digit) for weight, digit in zip(_ID_WEIGHTS, number, strict=False)) % 11
    return "10X98765432"[rest] == number[17].upper()


# From north to south-west by GB/T 2260; then Taiwan, and the residence permits of Hong Kong, Macau and Taiwan.
_PROVINCES = frozenset(
    f"{region}{place}"
    for region, places in enumerate(["12345", "123", "1234567", "123456", "01234", "12345", "1", "123"], start=1)
    for place in places
)
_ID_WEIGHTS = tuple(2 ** (17 - place) % 11 for place in range(17))


def _is_birthday(digits: str) -> bool:
    try:
        return date(1880, 1, 1) <= date(int(digits[:4]), int(digits[4:6]), int(digits[6:])) <= date.today()
    except ValueError:
        return False


_CREDIT_CODE = re.compile(
    r"(?<![0-9A-Za-z])(?:9[1-3]|[15][1-39]|[2-468ANYany][1-9]|7[12])[0-9]{6}(?:[- ]?[0-9A-Za-z]){10}(?![0-9A-Za-z])"
)
_CREDIT_PLACES = "0123456789ABCDEFGHJKLMNPQRTUWXY"


def credit_codes(text: str, start: int, end: int) -> Iterator[Span]:
    """Unified social credit codes with a true check character."""
    for match in _CREDIT_CODE.finditer(text, start, end):
        if is_credit_code(bare(match.group()).upper()):
            yield match.span()


def is_credit_code(code: str) -> bool:
    """Whether 18 characters are a credit code: a province, the alphabet and the check character of GB 32100."""
    if code[2:4] not in _PROVINCES | {"10"} or any(place not in _CREDIT_PLACES for place in code):
        return False
    total = sum(3**place % 31 * _CREDIT_PLACES.index(char) for place, char in enumerate(code[:17]))
    return _CREDIT_PLACES[-total % 31] == code[17]


# ---- passports, cards, social security, plates -----------------------------------------------------------------------

_PASSPORT = re.compile(
    r"(?:护照|(?i:passport)|通行证|回乡证)[^0-9\n]{0,24}?(?<![A-Za-z])([A-Za-z]{1,2}[0-9]{7,8}|[0-9]{9})(?![0-9A-Za-z])"
    r"|(?:台胞证|台湾居民[^0-9\n]{0,12}证)[^0-9A-Za-z\n]{0,10}([0-9]{8})(?![0-9A-Za-z])"
    r"|(?<![0-9A-Za-z])([EGDSPegdsp][A-Za-z]?[0-9]{7,8}|[0-9]{9}(?= as |[^0-9A-Za-z\n]{0,8}护照))"
    r"(?=[^0-9\n]{0,16}(?:护照|(?i:passport)))"
)


def passports(text: str, start: int, end: int) -> Iterator[Span]:
    """Numbers beside the word passport, 护照 or 通行证."""
    for match in _PASSPORT.finditer(text, start, end):
        yield match.span(match.lastindex or 0)


_CARD = re.compile(
    LEFT + rf"(?:[2-69][0-9]{{13,18}}|[2-69][0-9]{{3}}(?:{SEPARATOR}[0-9]{{4}}){{2,3}}(?:{SEPARATOR}?[0-9]{{1,4}})?"
    rf"|3[47][0-9]{{2}}{SEPARATOR}[0-9]{{6}}{SEPARATOR}[0-9]{{5}}|[2-69][0-9]{{5}}{SEPARATOR}[0-9]{{8,13}})" + RIGHT
)
# An issuer's first digits, and the lengths of its cards: UnionPay; Visa, Mastercard and the older Chinese debit cards;
# Mastercard's new range; American Express; JCB and Discover; Diners.
_ISSUERS = (
    (re.compile("62|81"), {16, 17, 18, 19}),
    (re.compile("9558|60[13]|4|5[1-5]|68|69|95"), {16, 19}),
    (re.compile("2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)"), {16}),
    (re.compile("3[47]"), {15}),
    (re.compile("35(?:2[89]|[3-8])|6011|65|64[4-9]"), {16}),
    (re.compile("3(?:0[0-5]|6|8|9)"), {14}),
)


def bank_cards(text: str, start: int, end: int) -> Iterator[Span]:
    """Card numbers of a known issuer with a true check digit; not orders and serials."""
    for match in _CARD.finditer(text, start, end):
        if is_card(bare(match.group())) and not is_reference(text, match.start()):
            yield match.span()


def is_card(number: str) -> bool:
    """Whether digits are a card number: an issuer's beginning and length, and Luhn's check digit."""
    if not any(first.match(number) and len(number) in lengths for first, lengths in _ISSUERS):
        return False
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in number[-2::-2])
    return (sum(map(int, number[-1::-2])) + sum(doubled)) % 10 == 0 and len(set(number)) > 1


_SSN = re.compile(
    LEFT + r"(?!000|666|9)[0-9]{3}(?:(-)(?!00)[0-9]{2}-(?!0000)[0-9]{4}| ?(?!00)[0-9]{2} ?(?!0000)[0-9]{4})" + RIGHT
)
_SAYS_SSN = re.compile(r"(?i:ssn|social security|社会安全|社保|社安)[^\n]{0,24}\Z")
# Printed in advertisements once, and never given to anybody.
_VOID_SSN = frozenset(["078051120", "219099999"])


def ssns(text: str, start: int, end: int) -> Iterator[Span]:
    """US social security numbers: 3-2-4 with hyphens, or nine digits where the text says what they are."""
    for match in _SSN.finditer(text, start, end):
        if bare(match.group()) in _VOID_SSN or is_reference(text, match.start()):
            continue
        if match[1] or _SAYS_SSN.search(text[max(0, match.start() - 40) : match.start()]):
            yield match.span()


PLATE_PROVINCES = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼"
_PLATE = re.compile(
    rf"[{PLATE_PROVINCES}] ?[A-Za-z][·•・. -]?"
    r"(?:[0-9]{5}[DFdf]|[DFdf][A-Za-z0-9][0-9]{4}|[A-Za-z0-9]{4}[A-Za-z0-9挂学警港澳])(?![0-9A-Za-z])"
)


def plates(text: str, start: int, end: int) -> Iterator[Span]:
    """Vehicle plates, also of electric cars; at least three places are digits, and none is an I or O."""
    for match in _PLATE.finditer(text, start, end):
        if sum(char.isdigit() for char in match.group()) >= 3 and not re.search("[IOio]", match.group()):
            yield match.span()
