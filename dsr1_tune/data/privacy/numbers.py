"""Numbers that name a person: identity cards, passports, payment cards, vehicle plates; and what bounds a number.

Every finder takes a folded text (see `fold`) and the part of it to look at, and yields where its kind stands.
Precision comes first: check digits where there are some, otherwise the format that people write, or a word beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date

from dsr1_tune.data.phrase_table import PhraseTable

Span = tuple[int, int]

TABLE = PhraseTable(__file__)
"""Also what bounds a number, and which provinces there are."""
# Not the full-width comma and full stop, which end a number where the ASCII ones may be part of it.
_FOLDED = (
    {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if chr(code) not in "，；！？"}
    | dict.fromkeys([0xA0, *range(0x2002, 0x200B), 0x202F, 0x3000], " ")
    | dict.fromkeys([*range(0x2010, 0x2016), 0x2212], "-")
    | {ord("【"): "[", ord("】"): "]"}
)
# From north to south-west by GB/T 2260; then Taiwan, and the residence permits of Hong Kong, Macau and Taiwan.
_PROVINCES = frozenset(
    f"{region}{place}"
    for region, places in enumerate(["12345", "123", "1234567", "123456", "01234", "12345", "1", "123"], start=1)
    for place in places
)
_ID_WEIGHTS = tuple(2 ** (17 - place) % 11 for place in range(17))
_CREDIT_PLACES = "0123456789ABCDEFGHJKLMNPQRTUWXY"
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
# Printed in advertisements once, and never given to anybody.
_VOID_SSN = frozenset(["078051120", "219099999"])


def fold(text: str) -> str:
    """The text at the same length with full-width characters, odd spaces and dashes as ASCII has them.

    Escapes such as a JSON text's `\\n` become blanks: their letter would hide that a number begins there.
    """
    if not text.isascii():
        text = text.translate(_FOLDED)
    return TABLE.escape.sub(lambda match: " " * len(match.group()), text) if "\\" in text else text


def number_windows(text: str) -> list[Span]:
    """The parts of a folded text that hold a number of seven digits or more, with the words around it."""
    windows: list[Span] = []
    for match in TABLE.run.finditer(text):
        start, end = max(0, match.start() - 40), min(len(text), match.end() + 32)
        if windows and start <= windows[-1][1]:
            start = windows.pop()[0]
        windows.append((start, end))
    return windows


def own_numbers(pattern: re.Pattern[str], text: str, start: int, end: int) -> Iterator[re.Match[str]]:
    """The numbers found there; not those that the words just before call an order, a serial or such: nobody's own."""
    for match in pattern.finditer(text, start, end):
        if not TABLE.reference.search(text[max(0, match.start() - 32) : match.start()]):
            yield match


def bare(number: str) -> str:
    """The digits and letters of a number, without what separates them."""
    return re.sub(r"[^0-9A-Za-z]", "", number)


def cn_ids(text: str, start: int, end: int) -> Iterator[Span]:
    """Identity numbers with a true check digit, birthday and province; old ones where the text says what they are."""
    for match in TABLE.id18.finditer(text, start, end):
        if is_cn_id(bare(match.group())):
            yield match.span()
    for match in TABLE.id15.finditer(text, start, end):
        number = match.group()
        said = TABLE.says_id.search(text[max(0, match.start() - 24) : match.start()])
        if said and number[:2] in _PROVINCES and _is_birthday("19" + number[6:12]):
            yield match.span()


def is_cn_id(number: str) -> bool:
    """Whether 18 characters are an identity number: province, birthday and the check digit of ISO 7064 MOD 11-2."""
    if number[:2] not in _PROVINCES or not _is_birthday(number[6:14]):
        return False
    rest = sum(weight * int(digit) for weight, digit in zip(_ID_WEIGHTS, number, strict=False)) % 11
    return "10X98765432"[rest] == number[17].upper()


def _is_birthday(digits: str) -> bool:
    try:
        return date(1880, 1, 1) <= date(int(digits[:4]), int(digits[4:6]), int(digits[6:])) <= date.today()
    except ValueError:
        return False


def credit_codes(text: str, start: int, end: int) -> Iterator[Span]:
    """Unified social credit codes with a true check character."""
    for match in TABLE.credit_code.finditer(text, start, end):
        if is_credit_code(bare(match.group()).upper()):
            yield match.span()


def is_credit_code(code: str) -> bool:
    """Whether 18 characters are a credit code: a province, the alphabet and the check character of GB 32100."""
    if code[2:4] not in _PROVINCES | {"10"} or any(place not in _CREDIT_PLACES for place in code):
        return False
    total = sum(3**place % 31 * _CREDIT_PLACES.index(char) for place, char in enumerate(code[:17]))
    return _CREDIT_PLACES[-total % 31] == code[17]


def passports(text: str, start: int, end: int) -> Iterator[Span]:
    """Numbers beside the word passport, 护照 or 通行证."""
    for match in TABLE.passport.finditer(text, start, end):
        yield match.span(match.lastindex or 0)


def bank_cards(text: str, start: int, end: int) -> Iterator[Span]:
    """Card numbers of a known issuer with a true check digit; not orders and serials."""
    for match in own_numbers(TABLE.card, text, start, end):
        if is_card(bare(match.group())):
            yield match.span()


def is_card(number: str) -> bool:
    """Whether digits are a card number: an issuer's beginning and length, and Luhn's check digit."""
    if not any(first.match(number) and len(number) in lengths for first, lengths in _ISSUERS):
        return False
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in number[-2::-2])
    return (sum(map(int, number[-1::-2])) + sum(doubled)) % 10 == 0 and len(set(number)) > 1


def ssns(text: str, start: int, end: int) -> Iterator[Span]:
    """US social security numbers: 3-2-4 with hyphens, or nine digits where the text says what they are."""
    for match in own_numbers(TABLE.ssn, text, start, end):
        said = match[1] or TABLE.says_ssn.search(text[max(0, match.start() - 40) : match.start()])
        if said and bare(match.group()) not in _VOID_SSN:
            yield match.span()


def plates(text: str, start: int, end: int) -> Iterator[Span]:
    """Vehicle plates, also of electric cars; at least three places are digits, and none is an I or O."""
    for match in TABLE.plate.finditer(text, start, end):
        if sum(char.isdigit() for char in match.group()) >= 3 and not re.search("[IOio]", match.group()):
            yield match.span()
