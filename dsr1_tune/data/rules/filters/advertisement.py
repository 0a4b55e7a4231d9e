"""The rule about answers that advertise: private contacts, or links and numbers with calls to buy."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dsr1_tune.data.phrase_table import PhraseTable
from dsr1_tune.data.record import Drop, Row
from dsr1_tune.data.rules.hints import holds
from dsr1_tune.data.rules.rule import Meaning, Rule, RuleSettings, Words
from dsr1_tune.data.rules.text_features import Text, View, phrases, quoted, view

_TABLE = PhraseTable(__file__)


class Advertisement(RuleSettings):
    """Answers that advertise: private contacts, or links and numbers with calls to buy."""

    phrases: Words = ()
    """Further phrases of your own, each of them a reason."""


def advertisement(row: Row, settings: Advertisement) -> Row | Drop:
    """Drop an answer that advertises: a private contact, or a link or number with calls to buy.

    Links and numbers alone are answers; where the conversation asks for an advertisement, a contact or a post, all is.
    """
    seen = view(row)
    for text in seen.answers:
        why = ""
        if settings.phrases:
            why = next((phrase for phrase in settings.phrases if phrase.lower() in text.content.lower()), "")
        if not why and _has_contact(text):
            why = _advertises(text, seen)
        if why:
            fix = "cut the advertisement out of the answer"
            return Drop("advertisement", f"it advertises: {quoted(why)}", fix, text.message.path)
    return row


def _has_contact(text: Text) -> bool:
    """A quick look: could there be a link, a number or another way to get in touch?"""
    data, shape, signs = text.data, text.shape, text.signs
    if b"0000" in shape and (b"0000000" in shape or b"-0000" in shape or b"0 0000" in shape):
        return True
    if b":" in signs and b"://" in data:
        return True
    if b"." in signs and (b".com" in data or b"www." in data):
        return True
    if b"@" in signs and (b".com" in data or b".cn" in data or holds(text.low, _PRIVATE_WAYS)):
        return True
    if b"+" in signs and _ABROAD.search(text.content):
        return True
    if not text.num_han:
        return False
    content = text.content
    if ("微" in content and "微信" in content) or ("薇" in content and "薇信" in content):
        return True
    if "扫" in content and ("扫码" in content or "扫描" in content):
        return True
    return ("众" in content and "公众号" in content) or (text.num_latin > 1 and _names_private_way(text.low))


def _names_private_way(low: bytes) -> bool:
    """Whether QQ, VX or the like is named; single bytes are found fastest, and Chinese has few letters."""
    if b"q" in low and b"qq" in low:
        return True
    if b"x" in low and (b"vx" in low or b"wx" in low):
        return True
    if b"v" in low and ("v信".encode() in low or b"v:" in low or "v：".encode() in low):
        return True
    return (b"p" in low and b"whatsapp" in low) or (b"g" in low and b"telegram" in low)


_ABROAD = re.compile(r"\+\d{1,3}[- ]?\(?\d")
_PRIVATE_WAYS = tuple(phrase.encode() for phrase in phrases("qq|vx|wx|v信|v:|v：|telegram|whatsapp"))


def _advertises(text: Text, seen: View) -> str:
    """The words that advertise, or nothing; they stand near the contact."""
    low = text.content.lower()
    for contact in _contacts(low):
        near = low[max(0, contact.start() - _NEAR) : contact.end() + _NEAR]
        points = 1 + 3 * (contact.re is _PRIVATE) + (_SALE.search(near) is not None)
        points += (_CALL.search(near) is not None) + 2 * (_PUSHY.search(near) is not None)
        if points > 2:
            if points < _SHAMELESS and _ASKS_FOR_ADS.search(seen.asked):
                return ""
            if _ORDERS_ADS.search(seen.asked):
                return ""
            return text.content[max(0, contact.start() - 20) : contact.end() + 20]
    return ""


# So many points are an advertisement, even where an e-mail, a link or a number was asked for.
_SHAMELESS = 5
_ORDERS_ADS = _TABLE.pattern("orders_ads", re.S)
_DIGITS = re.compile(r"\d{4}")


def _contacts(low: str) -> Iterator[re.Match[str]]:
    """The ways to get in touch, the private ones first; a regular expression only runs where something hints at it."""
    hints = (
        (
            _PRIVATE,
            any(way in low for way in ("信", "qq", "vx", "wx", "v:", "v：", "扫", "telegram", "whatsapp", "wechat")),
        ),
        (_LINK, "://" in low or "www." in low or ".com" in low),
        (_NUMBER, _DIGITS.search(low) is not None),
        (_SCAN, "扫" in low or "二维码" in low or "qr code" in low),
    )
    for pattern, hinted in hints:
        found = pattern.search(low) if hinted else None
        if found:
            yield found


_NEAR = 120
_PRIVATE = _TABLE.pattern("private")
_LINK = re.compile(r"https?://\S+|www\.[\w-]+\.\S+|(?<![\w-])[\w-]{2,60}\.com?\b(?:/\S*)?")
_NUMBER = _TABLE.pattern("number")
_SCAN = re.compile(r"扫码|二维码|scan the qr")
_SALE = _TABLE.pattern("sale")
_CALL = _TABLE.pattern("call")
_PUSHY = _TABLE.pattern("pushy")
_ASKS_FOR_ADS = _TABLE.pattern("asks_for_ads")


ADVERTISEMENT = Rule(
    "advertisement",
    advertisement,
    Meaning("the answer advertises: links, contact numbers, calls to buy", "回答是广告：链接、联系方式、促销"),
    Advertisement,
)
