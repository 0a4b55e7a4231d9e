"""A data file of any type (JSON, JSON lines, CSV, Parquet, .gz) → its raw rows, each with its place."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Literal, TextIO, cast

from dsr1_tune.data.read import charset, json_rows
from dsr1_tune.data.read.formats import shown
from dsr1_tune.data.read.json_rows import Raw
from dsr1_tune.data.read.unrecognised import PIECE_OF_JSON, ROWS, foreign_text, unrecognised_bytes, unrecognised_text
from dsr1_tune.data.record import Drop, Place
from dsr1_tune.errors import DataError

Layout = Literal["JSON", "JSON lines", "CSV", "Parquet"]

ACCEPTED = "JSON, JSON lines (both also as .gz), CSV, TSV and Parquet are read"
ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".gz")
HEAD_CHARS = 1 << 16
MAX_CELL_CHARS = 1 << 28
UTF8 = ("utf-8", "utf-8-sig")

_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"
_JSON_START = re.compile(r"""\{\s*(?:["'}]|$)|\[\s*(?:[\[{"'\]tfn-]|\d+\s*[,\].\n]|$)""")


@dataclass(frozen=True, slots=True)
class Source:
    """A data file, and what it takes to read it."""

    path: Path
    layout: Layout
    encoding: str = ""
    delimiter: str = ","


def identify(path: Path) -> Source:
    """Find out how a file is laid out and encoded, by its content before its name. Raises DataError."""
    with said_plainly(path):
        _must_be_a_file(path)
    with said_plainly(path), _open_bytes(path) as stream:
        head = stream.read(16)
        if head.startswith(_PARQUET) or (path.suffix == ".parquet" and head):
            return Source(path, "Parquet")
        if foreign := unrecognised_bytes(head):
            raise DataError(f"{path}: is {foreign['what']}", hint=f"{foreign['fix']}; {ACCEPTED}")
        encoding = charset.detect(stream)
        if encoding is None:
            raise DataError(
                f"{path}: is binary, or text in an unknown encoding", hint=f"save text as UTF-8; {ACCEPTED}"
            )
        with _open_text(path, encoding) as text:
            return _by_content(path, encoding, text.read(HEAD_CHARS))


def raw_rows(source: Source) -> Iterator[Raw | Drop]:
    """Every row of the file in order; one that cannot be parsed is a Drop. Raises DataError where reading fails."""
    file = str(source.path)
    with said_plainly(source.path):
        if source.layout == "Parquet":
            yield from _parquet_rows(source.path)
            return
        if source.layout == "JSON lines" and source.encoding in UTF8:
            with _open_bytes(source.path) as stream:
                yield from json_rows.lines(stream, file)
            return
        with _open_text(source.path, source.encoding) as text:
            if source.layout == "JSON":
                yield from json_rows.document(text, file)
            elif source.layout == "JSON lines":
                yield from json_rows.lines(text, file)
            else:
                yield from _csv_rows(text, file, source.delimiter)


def is_plain_lines(source: Source) -> bool:
    """Whether any line feed can be sought out and read on from: JSON lines in UTF-8, not packed."""
    with said_plainly(source.path):
        return source.layout == "JSON lines" and source.encoding in UTF8 and not _is_packed(source.path)


def _must_be_a_file(path: Path) -> None:
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir() if entry.name.endswith(ENDINGS))
        listed = ", ".join(inside[:5]) + (f" and {len(inside) - 5} more" if len(inside) > 5 else "")
        raise DataError(f"{path}: is a folder", hint=f"name the files in it: {listed}" if inside else ACCEPTED)
    if not path.exists():
        folder = path.parent
        if not folder.is_dir():
            raise DataError(f"{path}: no such file; there is no folder {folder}", hint="check the path")
        near = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=3)
        hint = f"did you mean {' or '.join(str(folder / name) for name in near)}?" if near else "check the path"
        raise DataError(f"{path}: no such file", hint=hint)
    if not path.is_file():
        raise DataError(f"{path}: is no regular file, and the data is read more than once", hint="save it to a file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty (0 bytes)", hint="write the rows into it, or leave the file out")


@contextmanager
def said_plainly(path: Path) -> Iterator[None]:
    """What goes wrong below with reading the file, said as a DataError."""
    try:
        yield
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        hint = "fetch the file again, or keep what `gzip -dc` can still unpack"
        raise DataError(f"{path}: the gzip file is damaged or cut short: {error}", hint=hint) from None
    except UnicodeError as error:
        # Only UTF-16 and UTF-32, which have no way to carry on past broken bytes, end up here.
        raise DataError(f"{path}: is not the text it begins as: {error}", hint="save it as UTF-8") from None
    except PermissionError:
        raise DataError(f"{path}: permission denied", hint="make the file readable (chmod u+r)") from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror or error}", hint="check the file and its disk"
        ) from None


def _open_bytes(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb") if _is_packed(path) else path.open("rb"))


def _is_packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == _GZIP


def _open_text(path: Path, encoding: str) -> TextIO:
    """The text with its line ends as they are; bytes that do not decode become lone surrogates, found row by row."""
    errors = "strict" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
    return io.TextIOWrapper(_open_bytes(path), encoding, errors, newline="\n")


def _by_content(path: Path, encoding: str, head: str) -> Source:
    """Tell the layout from the first characters, and only where they leave it open from the name."""
    text = head.lstrip("\ufeff \t\r\n")
    if not text:
        raise DataError(f"{path}: is empty (nothing but blanks)", hint="write the rows into it, or leave the file out")
    if what := foreign_text(text):
        raise DataError(f"{path}: is {what}", hint=ACCEPTED)
    name = path.name.removesuffix(".gz")
    is_named_lines = name.endswith((".jsonl", ".ndjson"))
    is_named_table = name.endswith((".csv", ".tsv"))
    if _is_lines(text, is_named_lines, is_cut=len(head) == HEAD_CHARS):
        return Source(path, "JSON lines", encoding)
    is_sure = is_named_table or _JSON_START.match(text)
    unrecognised = "" if is_sure else unrecognised_text(text, Path(name).suffix.lower())
    if unrecognised == PIECE_OF_JSON and _is_quoted_table(text, is_cut=len(head) == HEAD_CHARS):
        unrecognised = ""
    if not unrecognised or unrecognised == "prose":
        if text[0] in "[{":
            return Source(path, "JSON", encoding)
        delimiter = "\t" if name.endswith(".tsv") else _delimiter(text)
        if is_named_table or (delimiter and not is_named_lines and not name.endswith(".json")):
            return Source(path, "CSV", encoding, delimiter or ",")
    raise DataError(f"{path}: {_looks_like(text, unrecognised)}", hint=f"{ROWS}; {ACCEPTED}")


def _is_lines(text: str, is_named_lines: bool, is_cut: bool) -> bool:
    """Whether each line is a value of its own; files named .json are often JSON lines."""
    found = [line.strip() for line in text.split("\n") if line.strip()]
    first = found[0]
    if is_cut and len(found) > 1:
        found.pop()
    if first in ("{", "["):
        return False
    if first.startswith("["):
        return len(found) > 1 and _parses(first)
    if is_named_lines and first.startswith("{"):
        return True
    whole = sum(line.startswith("{") and line.endswith("}") for line in found)
    return len(found) > 1 and whole >= len(found) / 2


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_quoted_table(text: str, is_cut: bool) -> bool:
    """Whether this is a header and rows of as many cells; quoted ones look like strings of JSON."""
    delimiter = _delimiter(text)
    if not delimiter or re.search(r"[\[\]{}:]", text.split("\n", 1)[0]):
        return False
    lines = io.StringIO(text.rpartition("\n")[0] if is_cut else text, newline="")
    sizes: list[int] = []
    try:
        sizes += (len(cells) for cells in csv.reader(lines, delimiter=delimiter, strict=True) if cells)
    except csv.Error:
        return False
    return len(sizes) > 1 and len(set(sizes)) == 1


def _delimiter(text: str) -> str:
    """What separates the columns of the first line, or "" where it is no header: a few short names."""
    header = text.split("\n", 1)[0].strip()
    delimiter = max(",\t;|", key=header.count)
    cells = [cell.strip() for cell in header.split(delimiter)]
    is_sentence = header.endswith((".", "!", "?", "。", "！", "？", "…"))
    are_names = all(0 < len(cell) <= 40 and len(cell.split()) <= 4 for cell in cells)
    return delimiter if len(cells) > 1 and are_names and not is_sentence else ""


def _looks_like(text: str, unrecognised: str) -> str:
    if _parses(text):
        return f"holds a single value, {shown(text.strip())}, not rows"
    what = f"looks like {unrecognised}; " if unrecognised else ""
    return f"{what}is not JSON, and not a table: it begins with {text[:40]!r}"


def is_one_object(source: Source) -> bool:
    """Whether a JSON file begins with an object rather than with a list of rows."""
    if source.layout != "JSON":
        return False
    with said_plainly(source.path), _open_text(source.path, source.encoding) as stream:
        return stream.read(HEAD_CHARS).lstrip("\ufeff \t\r\n").startswith("{")


def _csv_rows(stream: TextIO, file: str, delimiter: str) -> Iterator[Raw | Drop]:
    """Rows under a header line; fields may hold line breaks."""
    csv.field_size_limit(MAX_CELL_CHARS)
    taken: list[str] = []
    # Strict, because otherwise a quote that is never closed swallows the rest of the file without a word.
    reader = csv.reader(_noting(stream, taken), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    numbers = count()
    while True:
        line = reader.line_num + 1
        taken.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield _csv_error(error).at(Place(file, line, next(numbers)), "read", "".join(taken))
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = _header(cells, file)
            continue
        place = Place(file, line, next(numbers))
        while len(cells) > len(header) and not cells[-1].strip():
            cells.pop()
        if len(cells) != len(header):
            detail = f"{len(cells)} fields where the header has {len(header)}"
            fix = "put fields that hold the separator, a quote or a line break in double quotes"
            yield Drop("csv_malformed", detail, fix).at(place, "read", "".join(taken))
        else:
            yield Raw(dict(zip(header, cells, strict=True)), place)


def _header(cells: list[str], file: str) -> list[str]:
    """The columns' names; DataError where two are the same, of which one would be lost."""
    names = [cell.strip("\ufeff \t") for cell in cells]
    twice = [repr(shown(name)) for name, times in Counter(names).items() if name and times > 1]
    if twice:
        raise DataError(f"{file}: several columns are named {' and '.join(twice)}", hint="give each a name of its own")
    return names


def _noting(lines: Iterable[str], taken: list[str]) -> Iterator[str]:
    for line in lines:
        taken.append(line)
        yield line


def _csv_error(error: csv.Error) -> Drop:
    if "unexpected end of data" in str(error):
        detail = "a quote is opened in this row and never closed, so all that follows it cannot be read"
        return Drop("csv_truncated", detail, "close the quote, or fetch the file again, whole")
    return Drop("csv_malformed", str(error), 'write a quote inside a quoted field twice: ""')


def _parquet_rows(path: Path) -> Iterator[Raw]:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024)
        index = 0
        for batch in batches:
            for value in batch.to_pylist():
                yield Raw(value, Place(str(path), index + 1, index))
                index += 1
    except (pyarrow.ArrowException, OSError) as error:
        said = str(error).partition("\n")[0]
        raise DataError(f"{path}: is no readable Parquet file: {said}", hint="fetch or write the file again") from None
