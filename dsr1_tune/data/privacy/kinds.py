"""The kinds of personal data, who finds each, and a quick look that spares most texts the finders."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from dsr1_tune.data.phrase_table import PhraseTable
from dsr1_tune.data.privacy import contacts, numbers, people

_TABLE = PhraseTable(__file__, numbers.TABLE, people.TABLE)
KINDS: dict[str, str] = _TABLE["kinds"]
"""Every kind, and what it is; where two could be meant, the one that stands first wins."""

OPTIONAL = frozenset({"hotline"})
"""Kinds that are looked for only where they are asked for by name: service numbers are nobody's own."""

FINDERS: dict[str, Callable[[str, int, int], Iterator[numbers.Span]]] = {
    "email": contacts.emails,
    "cn_id": numbers.cn_ids,
    "cn_credit_code": numbers.credit_codes,
    "ip": contacts.ips,
    "passport": numbers.passports,
    "hotline": contacts.hotlines,
    "bank_card": numbers.bank_cards,
    "cn_plate": numbers.plates,
    "cn_mobile": contacts.mobiles,
    "qq": contacts.qqs,
    "wechat": contacts.wechats,
    "cn_landline": contacts.landlines,
    "phone": contacts.phones,
    "us_ssn": numbers.ssns,
    "address": people.addresses,
    "name": people.names,
}
"""Who finds each kind in a part of a folded text, in the order of KINDS."""

NUMBERS = frozenset(
    {"cn_id", "cn_credit_code", "passport", "hotline", "bank_card", "cn_mobile", "cn_landline", "phone", "us_ssn"}
)
"""The kinds that have at least seven digits: looked for only around such numbers."""

assert list(FINDERS) == list(KINDS), "every kind has its finder, in the same order"

_SIGNS = {_TABLE.filled(first): _TABLE.filled(rest) for first, rest in _TABLE["signs"].items()}
_SIGN = re.compile(f"[{''.join(_SIGNS)}](?:{'|'.join(f'(?<=[{first}])(?:{rest})' for first, rest in _SIGNS.items())})")


def worth_a_look(text: str) -> bool:
    """Whether there may be personal data in the text: a few microseconds that spare most texts the finders."""
    if _SIGN.search(text) or " dot " in text or "wechat" in text:
        return True
    return "name" in text and _TABLE.name.search(text) is not None
