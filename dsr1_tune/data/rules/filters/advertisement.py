"""The rule about answers that advertise: private contacts, or links and numbers with calls to buy."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dsr1_tune.data.phrase_table import PhraseTable
from dsr1_tune.data.record import Drop, Row
from dsr1_tune.data.rules.rule import Meaning, Rule, RuleSettings, Words
from dsr1_tune.data.rules.text_features import Text, View, holds, phrases, quoted, view

_TABLE = PhraseTable(__file__)
_NEAR = 120
# So many points are an advertisement, even where an e-mail, a link or a number was asked for.
_SHAMELESS = 5
_PRIVATE_WAYS = tuple(phrase.encode() for phrase in phrases("qq|vx|wx|v信|v:|v：|telegram|whatsapp"))


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
    data, shape, signs, content = text.data, text.shape, text.signs, text.content
    return (
        (b"0000" in shape and (b"0000000" in shape or b"-0000" in shape or b"0 0000" in shape))
        or (b":" in signs and b"://" in data)
        or (b"." in signs and (b".com" in data or b"www." in data))
        or (b"@" in signs and (b".com" in data or b".cn" in data or holds(text.low, _PRIVATE_WAYS)))
        or (b"+" in signs and _TABLE.abroad.search(content) is not None)
        or (text.num_han > 0 and (_names_public_way(content) or (text.num_latin > 1 and _names_private_way(text.low))))
    )


def _names_public_way(content: str) -> bool:
    return (
        ("微" in content and "微信" in content)
        or ("薇" in content and "薇信" in content)
        or ("扫" in content and ("扫码" in content or "扫描" in content))
        or ("众" in content and "公众号" in content)
    )


def _names_private_way(low: bytes) -> bool:
    """Whether QQ, VX or the like is named; single bytes are found fastest, and Chinese has few letters."""
    return (
        (b"q" in low and b"qq" in low)
        or (b"x" in low and (b"vx" in low or b"wx" in low))
        or (b"v" in low and ("v信".encode() in low or b"v:" in low or "v：".encode() in low))
        or (b"p" in low and b"whatsapp" in low)
        or (b"g" in low and b"telegram" in low)
    )


def _advertises(text: Text, seen: View) -> str:
    """The words that advertise, or nothing; they stand near the contact."""
    low = text.content.lower()
    for contact in _contacts(low):
        near = low[max(0, contact.start() - _NEAR) : contact.end() + _NEAR]
        points = 1 + 3 * (contact.re is _TABLE.private) + (_TABLE.sale.search(near) is not None)
        points += (_TABLE.call.search(near) is not None) + 2 * (_TABLE.pushy.search(near) is not None)
        if points > 2:
            if points < _SHAMELESS and _TABLE.asks_for_ads.search(seen.asked):
                return ""
            if _TABLE.orders_ads.search(seen.asked):
                return ""
            return text.content[max(0, contact.start() - 20) : contact.end() + 20]
    return ""


def _contacts(low: str) -> Iterator[re.Match[str]]:
    """The ways to get in touch, the private ones first; a regular expression only runs where something hints at it."""
    ways = ("信", "qq", "vx", "wx", "v:", "v：", "扫", "telegram", "whatsapp", "wechat")
    hints = (
        (_TABLE.private, any(way in low for way in ways)),
        (_TABLE.link, "://" in low or "www." in low or ".com" in low),
        (_TABLE.number, _TABLE.digits.search(low) is not None),
        (_TABLE.scan, "扫" in low or "二维码" in low or "qr code" in low),
    )
    for pattern, hinted in hints:
        found = pattern.search(low) if hinted else None
        if found:
            yield found


ADVERTISEMENT = Rule(
    "advertisement",
    advertisement,
    Meaning("the answer advertises: links, contact numbers, calls to buy", "回答是广告：链接、联系方式、促销"),
    Advertisement,
)
