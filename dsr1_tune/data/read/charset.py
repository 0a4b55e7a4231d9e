"""Detect a text file's character encoding: UTF-8 first, then Chinese, then a guess; never silently mojibake."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from functools import partial
from typing import IO

BLOCK_BYTES = 1 << 20
SAMPLE_BYTES = 4 << 20

# Longest first: the mark of UTF-16-LE begins that of UTF-32-LE.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
CERTAIN = frozenset({"", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030"})
"""What `detect` names on evidence; any other name is its best guess."""

_COMMON_HAN = frozenset("的是不了在有和我你一")


def detect(stream: IO[bytes]) -> str | None:
    """The Python name of the stream's encoding, or None where it is no text at all. Reads the stream from its start.

    A few bytes may be broken: the encoding that fits the rest is still named, and the reader reports the rows that
    hold them.
    """
    stream.seek(0)
    head = stream.read(BLOCK_BYTES)
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if wide := _wide(head):
        return wide
    if _is_binary(head):
        return None
    if _decodes_as_utf8(stream):
        return "utf-8"
    sample = _beyond_ascii(stream)
    if _share_broken(sample, "utf-8") < 0.5:
        return "utf-8"
    if _is_gb18030(sample):
        return "gb18030"
    return _guess(sample)


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    stream.seek(0)
    return iter(partial(stream.read, BLOCK_BYTES), b"")


def _wide(head: bytes) -> str | None:
    """UTF-16 without a mark: JSON and CSV begin with an ASCII character, and so with one zero byte in two."""
    first = head[:4]
    if len(first) < 4 or b"\0\0" in first:
        return None
    if first[1] == 0 and first[0] >= 32:
        return "utf-16-le"
    if first[0] == 0 and first[1] >= 32:
        return "utf-16-be"
    return None


def _is_binary(head: bytes) -> bool:
    """One control character in twenty is more than a damaged text holds."""
    controls = bytes(set(range(32)) - set(b"\t\n\r\f\v\x1b"))
    return len(head) - len(head.translate(None, controls)) > len(head) / 20


def _decodes_as_utf8(stream: IO[bytes]) -> bool:
    try:
        for _ in codecs.iterdecode(_blocks(stream), "utf-8"):
            pass
    except UnicodeDecodeError:
        return False
    return True


def _beyond_ascii(stream: IO[bytes]) -> bytes:
    """The first blocks that hold more than ASCII: only they say anything about the encoding."""
    sample = b""
    for block in _blocks(stream):
        if not block.isascii():
            sample += block
            if len(sample) >= SAMPLE_BYTES:
                break
    return sample


def _share_broken(sample: bytes, encoding: str) -> float:
    """Of everything beyond ASCII, the share that does not decode."""
    beyond = [character for character in sample.decode(encoding, "surrogateescape") if character > "\x7f"]
    broken = sum("\udc80" <= character <= "\udcff" for character in beyond)
    return broken / max(1, len(beyond))


def _is_gb18030(sample: bytes) -> bool:
    """Whether the sample decodes to Chinese that people write, not to rare characters made of another encoding's bytes.

    Nearly any bytes decode as GB18030. Western text gives characters outside the everyday GB2312 set, and Korean or
    Japanese bytes give Han characters of the wrong frequencies.
    """
    if _share_broken(sample, "gb18030") > 0.01:
        return False
    text = sample.decode("gb18030", "ignore")
    beyond = "".join(character for character in text if character > "\x7f")
    everyday = len(beyond.encode("gb2312", "ignore")) / 2
    if everyday < 0.8 * len(beyond):
        return False
    return len(beyond) < 200 or sum(character in _COMMON_HAN for character in beyond) >= 0.01 * len(beyond)


def _guess(sample: bytes) -> str | None:
    from charset_normalizer import from_bytes

    matches = from_bytes(sample[: BLOCK_BYTES // 4])
    best = matches.best()
    if best is None:
        return None
    # Its near relatives read as cleanly in a short text; Western European is the likeliest of them.
    clean = [match.encoding for match in matches if match.chaos <= best.chaos]
    return "cp1252" if "cp1252" in clean else best.encoding
