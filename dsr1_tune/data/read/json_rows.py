"""Walk JSON row by row: an array of any length, rows wrapped in an object, single objects, or one value per line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Generator, Iterable, Iterator
from itertools import count
from typing import Any, NamedTuple, TextIO

import orjson

from dsr1_tune.data.record import Drop, Place

BLOCK_CHARS = 1 << 20
MAX_DEPTH = 200
WRAPPERS = frozenset({"data", "instances", "rows", "examples", "records"})


def _number(digits: str) -> int | float:
    """An integer as orjson reads it: beyond 64 bits as a float, while one can hold it."""
    number = int(digits)
    return number if -(2**63) <= number < 2**64 or math.isinf(float(digits)) else float(digits)


# Not strict: a raw tab or line break inside a string is read as what it plainly is.
_DECODER = json.JSONDecoder(strict=False, parse_int=_number)
_BLANKS = re.compile(r"[ \t\r\n\ufeff]*")
_SEAM = re.compile(r'\}\s*,\s*\{\s*"[^"\\]*"\s*:')
_BLANK_LINE = re.compile(rb"(?:[ \t\r\n]|\xef\xbb\xbf)*")
_BARE_WORD = re.compile(r'[^,\[\]{}"]+')
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)
_CONTAINERS = (dict, list)
_PUNCTUATION_FIX = "look for a missing or unescaped quote, comma or bracket there"
_NUMBER_FIX = "write the number as text, in quotes"


class Raw(NamedTuple):
    """A row as it stands in the file, before anyone asks what it means."""

    value: Any
    place: Place


def lines(stream: Iterable[bytes | str], file: str, first_line: int = 1, first_index: int = 0) -> Iterator[Raw | Drop]:
    """One JSON value per line; a line that is none becomes a Drop and the next one is read.

    UTF-8 is best given as bytes: the parser takes it as it is. Each line still has its "\n".
    """
    index = first_index
    for line_number, line in enumerate(stream, first_line):
        try:
            # Blanks around the value are the parser's to skip.
            value = orjson.loads(line)
        except orjson.JSONDecodeError:
            text = _stripped(line)
            if not text:
                continue
            yield _line_slowly(text, Place(file, line_number, index), is_last=line[-1:] not in ("\n", b"\n"))
        else:
            place = Place(file, line_number, index)
            yield _too_deep(_stripped(line), place) if _is_deep(value) else Raw(value, place)
        index += 1


def is_row(line: bytes) -> bool:
    """Whether `lines` makes a row of this line: anything but blanks and byte order marks."""
    return _BLANK_LINE.fullmatch(line) is None


def _stripped(line: bytes | str) -> str:
    """The line as text, without what is blank. Bytes that do not decode become lone surrogates."""
    text = line if isinstance(line, str) else line.decode("utf-8", "surrogateescape")
    # A byte order mark stands inside a file that was made by joining others.
    return text.strip(" \t\r\n\ufeff")


def _line_slowly(text: str, place: Place, is_last: bool) -> Raw | Drop:
    """Read what orjson will not (NaN, lone surrogates, raw tabs) with the standard library, which names the column."""
    try:
        value = _parsed(text)
        return _too_deep(text, place) if _is_deep(value) else Raw(value, place)
    except RecursionError:
        return _too_deep(text, place)
    except json.JSONDecodeError as error:
        if is_last and _is_cut_off(text, error):
            return _truncated(text, place, f"the file ends inside this row: {error.msg} (column {error.colno})")
        fix = _PUNCTUATION_FIX
        if text.startswith(("{'", "['")):
            fix = "this is Python's notation, not JSON: write the rows with json.dumps"
        detail = f"{error.msg} (column {error.colno}, near {_near(text, error.pos)})"
        return Drop("json_malformed", detail, fix).at(place, "read", text)
    except ValueError as error:
        return Drop("json_malformed", str(error), _NUMBER_FIX).at(place, "read", text)


def _parsed(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        # A comma after a row is left over from an array; nothing is lost by it.
        return _DECODER.decode(text.removesuffix(","))


def document(stream: TextIO, file: str) -> Iterator[Raw | Drop]:
    """The rows of JSON arrays, of objects that wrap one (`{"data": [...]}`) and single objects, one after the other."""
    window = Window(stream)
    numbers = count()
    while character := window.peek():
        if character == "[":
            yield from _elements(window, file, numbers)
        elif character == "{":
            yield from _object(window, file, numbers)
        else:
            place = Place(file, window.line, next(numbers))
            rest = window.rest()
            detail = f"text where the file should end: {rest[:40]!r}"
            fix = "remove this text, or mend the bracket before it"
            yield Drop("json_damaged", detail, fix).at(place, "read", rest)


def _elements(window: Window, file: str, numbers: Iterator[int]) -> Generator[Raw | Drop, None, bool]:
    """The elements of the array that begins here; returns whether its end was found."""
    window.step()
    while (character := window.peek()) != "]":
        if character == ",":
            # One comma too many or too few loses nothing.
            window.step()
            continue
        place = Place(file, window.line, next(numbers))
        if character == "":
            yield _truncated("", place, "the file ends before the closing bracket of the array")
            return False
        try:
            value = window.value()
        except (ValueError, RecursionError) as error:
            yield _broken(window, error, place)
            if not window.peek():
                return False
        else:
            yield Raw(value, place)
            for line, row in window.alike():
                yield Raw(row, Place(file, line, next(numbers)))
    window.step()
    return True


def _object(window: Window, file: str, numbers: Iterator[int]) -> Iterator[Raw | Drop]:
    """The rows inside the object that begins here, or the object itself where it wraps none."""
    line = window.line
    fields: dict[str, Any] = {}
    is_row = True
    try:
        window.step()
        while (character := window.peek()) != "}":
            if character == ",":
                window.step()
                continue
            if character != '"':
                raise json.JSONDecodeError("Expecting a field's name in double quotes", window.text, window.position)
            key = window.value()
            if window.peek() != ":":
                raise json.JSONDecodeError("Expecting ':'", window.text, window.position)
            window.step()
            if key in WRAPPERS and window.peek() == "[":
                is_row = False
                if not (yield from _elements(window, file, numbers)):
                    return
            else:
                fields[key] = window.value()
        window.step()
    except (ValueError, RecursionError) as error:
        yield _broken(window, error, Place(file, line, next(numbers)))
        window.rest()
        return
    if is_row:
        yield Raw(fields, Place(file, line, next(numbers)))


def _broken(window: Window, error: Exception, place: Place) -> Drop:
    """What is wrong with the value at which the window stands; moves the window behind it."""
    if isinstance(error, RecursionError):
        return _too_deep(window.skip_value(), place)
    if not isinstance(error, json.JSONDecodeError):
        return Drop("json_damaged", str(error), _NUMBER_FIX).at(place, "read", window.skip_value())
    line, column = window.where(error.pos)
    where = f"{error.msg} (line {line}, column {column}"
    if _is_cut_off(window.text, error):
        return _truncated(window.rest(), place, f"the file ends inside this row: {where})")
    detail = f"{where}, near {_near(window.text, error.pos)})"
    return Drop("json_damaged", detail, _PUNCTUATION_FIX).at(place, "read", window.skip_value())


def _is_cut_off(text: str, error: json.JSONDecodeError) -> bool:
    """Whether the text is not wrong but over: the error stands at its very end, or in a string that never closes."""
    rest = text[error.pos :].rstrip()
    if rest.endswith(("]", "}")):
        return False
    return len(rest) < 6 or error.msg.startswith("Unterminated string")


def _near(text: str, position: int) -> str:
    return repr(text[max(0, position - 15) : position + 15])


def _truncated(raw: str, place: Place, detail: str) -> Drop:
    return Drop("json_truncated", detail, "fetch or write the file again, whole").at(place, "read", raw)


def _too_deep(raw: str, place: Place) -> Drop:
    fix = "a row needs lists in objects, no deeper: flatten it"
    return Drop("nested_too_deep", f"lists or objects more than {MAX_DEPTH} levels deep", fix).at(place, "read", raw)


def _is_deep(value: Any, levels: int = MAX_DEPTH) -> bool:
    """Whether the value is nested deeper than rows are, or than they could be written again."""
    if type(value) not in _CONTAINERS:
        return False
    inside = [item for item in (value.values() if type(value) is dict else value) if type(item) in _CONTAINERS]
    return levels == 0 or (bool(inside) and any(_is_deep(item, levels - 1) for item in inside))


class Window:
    """A window on a long text that moves forward only: holds what is read and not yet used, and counts lines."""

    def __init__(self, stream: TextIO) -> None:
        self.text = ""
        self.position = 0
        self.line = 1
        self._stream = stream
        self._has_ended = False
        self._seam = ""
        self._reach = 0

    def peek(self) -> str:
        """The next character that is not blank, or "" at the end of the file."""
        while True:
            match = _BLANKS.match(self.text, self.position)
            self._move(match.end() if match else self.position)
            if self.position < len(self.text):
                return self.text[self.position]
            if not self._read_on():
                return ""

    def step(self) -> None:
        """Move over one character."""
        self._move(self.position + 1)

    def value(self) -> Any:
        """The JSON value that begins at the next character that is not blank.

        Raises ValueError or RecursionError, and stays where it is.
        """
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                is_short = len(self.text) - error.pos < 16 or error.msg.startswith("Unterminated string")
                if is_short and self._read_on():
                    continue
                raise
            # A number at the window's edge may have further digits.
            if end == len(self.text) and self._read_on():
                continue
            if _is_deep(value):
                raise RecursionError
            # What stands between the object that ends here and the next one probably stands between the others too.
            match = _SEAM.match(self.text, end - 1)
            self._seam = match.group() if match else ""
            self._reach = 4096 + 4 * (end - self.position)
            self._move(end)
            return value

    def alike(self) -> Iterator[tuple[int, Any]]:
        """The objects behind the value just read, each with its line, as far as they follow each other as it did.

        Guessing where an object ends cannot mislead: it is over at its last bracket, so that what is a whole object
        up to some place does not go on behind it. On any doubt this stops, and `value` has a closer look.
        """
        text, seam = self.text, self._seam
        to_next = seam.find("{")
        start = self.position - 1 + to_next
        while seam and (end := text.find(seam, start, start + self._reach) + 1):
            try:
                row = orjson.loads(text[start:end])
            except orjson.JSONDecodeError:
                return
            if _is_deep(row):
                return
            line = self.line + text.count("\n", self.position, start)
            self.line = line + text.count("\n", start, end)
            self.position = end
            yield line, row
            start = end - 1 + to_next

    def skip_value(self) -> str:
        """Move behind the value that begins here by matching brackets; to the end of the file if they do not match."""
        self._read_all()
        end = self._end_of_value()
        if not self.text[end:].lstrip().startswith((",", "]")):
            return self.rest()
        skipped = self.text[self.position : end]
        self._move(end)
        return skipped

    def _end_of_value(self) -> int:
        if word := _BARE_WORD.match(self.text, self.position):
            return word.end()
        closing: list[str] = []
        for match in _STRING_OR_BRACKET.finditer(self.text, self.position):
            token = match.group()
            if token in "[{":
                closing.append("]" if token == "[" else "}")
            elif token in "]}" and (not closing or token != closing.pop()):
                break
            if not closing:
                return match.end()
        return len(self.text)

    def rest(self) -> str:
        """All that is left of the file."""
        self._read_all()
        rest = self.text[self.position :]
        self._move(len(self.text))
        return rest

    def where(self, position: int) -> tuple[int, int]:
        """Line and column, both from 1, of a position in the text."""
        line = self.line + self.text.count("\n", self.position, position)
        return line, position - self.text.rfind("\n", 0, position)

    def _move(self, position: int) -> None:
        # Only "\n" ends a line, as in every editor; str.splitlines would also count U+2028.
        self.line += self.text.count("\n", self.position, position)
        self.position = position

    def _read_on(self) -> bool:
        """Forget what is used and read as much again as is left, so that a long value costs linear time."""
        if self._has_ended:
            return False
        left = self.text[self.position :]
        block = self._stream.read(max(BLOCK_CHARS, len(left)))
        self.text, self.position = left + block, 0
        self._has_ended = not block
        return bool(block)

    def _read_all(self) -> None:
        while self._read_on():
            pass
