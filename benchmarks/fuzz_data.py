"""Damaged data files, thousands of them, through the reading code: is every row accounted for, and is there no crash?

Each file is a small one of an accepted format, or the beginning of a real one, with one to three mutations, all drawn
by a seed. Two outcomes are allowed: a TuneError for the whole file, or rows of which each is kept or dropped; and
chunks of the file must give the same rows as the whole.

    python benchmarks/fuzz_data.py                        # 10,000 files, a table by mutation
    python benchmarks/fuzz_data.py --number 500 --seed 7 --keep /tmp/crashes
"""

from __future__ import annotations

import argparse
import codecs
import gzip
import io
import json
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsr1_tune.config import Data
from dsr1_tune.data.clean.chunks import chunks, read_chunk
from dsr1_tune.data.prepare import examine, write_rejects
from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Drop
from dsr1_tune.data.rules.codes import MEANINGS
from dsr1_tune.errors import TuneError

REAL = Path(__file__).parents[2] / "shared" / "data"
HEAD_BYTES = 6000
ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".json.gz", ".jsonl.gz")

Mutation = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Fuzzed:
    """A damaged file: where it lies, what it was made of, and what was done to it."""

    path: Path
    origin: str
    mutations: tuple[str, ...]


def main() -> None:
    """Fuzz, print a table by mutation, and keep what crashed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="copy the files that crashed into this folder")
    args = parser.parse_args()
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    crashes: list[str] = []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for fuzzed in fuzzed_files(args.seed, args.number, Path(folder)):
            try:
                outcome = outcome_of(fuzzed.path)
            except Exception:
                outcome = "crashed"
                crashes.append(f"{fuzzed.path.name} ({fuzzed.origin}): {traceback.format_exc()}")
                if args.keep:
                    args.keep.mkdir(parents=True, exist_ok=True)
                    shutil.copy(fuzzed.path, args.keep)
            for name in fuzzed.mutations:
                outcomes[name][outcome] += 1
            outcomes["all files"][outcome] += 1
    kinds = ("refused", "all rows dropped", "some rows dropped", "all rows kept", "crashed")
    print(f"| mutation | files | {' | '.join(kinds)} |")
    print("|---|---|" + "---|" * len(kinds))
    for name in [*sorted(outcomes.keys() - {"all files"}), "all files"]:
        counts = outcomes[name]
        print(f"| {name} | {counts.total():,} | {' | '.join(f'{counts[kind]:,}' for kind in kinds)} |")
    print(f"\n{args.number:,} files, seed {args.seed}, in {time.perf_counter() - started:.0f} s")
    print("\n".join(crashes[:10]))
    sys.exit(bool(crashes))


def outcome_of(path: Path) -> str:
    """What became of the file; AssertionError where a row is lost, and whatever else goes wrong."""
    try:
        prepared = examine(Data(files=(path,)))
    except TuneError as error:
        assert path.name in error.message and error.hint, f"says nothing about the file: {error.message}"
        assert len(str(error).encode()) < 2000, "a long message"
        return "refused"
    places = [row.place for row in (*prepared.rows, *prepared.drops) if row.place]
    num_rows = prepared.files[0].num_rows
    assert sorted(place.index for place in places) == list(range(num_rows)), "a row is lost, or counted twice"
    for drop in prepared.drops:
        assert drop.code in MEANINGS and drop.detail and drop.fix, f"does not say why: {drop}"
        # What cannot be encoded cannot be printed either.
        assert len(f"{drop.detail} {drop.fix}".encode()) < 1000, "a long message"
    rejects = path.with_name("rejected.jsonl")
    write_rejects(prepared.drops, rejects)
    written = rejects.read_bytes().split(b"\n")
    assert len(written) == len(prepared.drops) + 1 and all(json.loads(line) for line in written[:-1])
    rejects.unlink()
    assert_chunks_agree(path)
    if not prepared.rows:
        return "all rows dropped"
    return "some rows dropped" if prepared.drops else "all rows kept"


def assert_chunks_agree(path: Path, max_bytes: int = 400) -> None:
    """A file's chunks give its rows, one by one."""
    expected = [_all_of(row) for row in read([path])]
    found = [_all_of(row) for chunk in chunks([path], max_bytes=max_bytes) for row in read_chunk(chunk)[0]]
    assert found == expected, "chunks differ from the file"


def _all_of(row: Any) -> str:
    notes = () if isinstance(row, Drop) else getattr(row, "notes", ())
    return repr((row, row.row, notes))


def fuzzed_files(seed: int, number: int, folder: Path) -> Iterator[Fuzzed]:
    """Damaged files, one after the other: each is there until the next one is asked for."""
    sources = list(origins())
    for index in range(number):
        chance = random.Random(f"{seed} {index}")
        origin, name, data = chance.choice(sources)
        chosen = chance.choices(list(MUTATIONS), k=chance.choice((1, 1, 1, 2, 3)))
        for mutation in chosen:
            data = MUTATIONS[mutation](data, chance)
        if chance.random() < 0.1:
            name = "a" + chance.choice(ENDINGS)
        path = folder / f"{index:05}-{chosen[0].replace(' ', '-')}-{name}"
        path.write_bytes(data)
        yield Fuzzed(path, origin, tuple(dict.fromkeys(chosen)))
        path.unlink(missing_ok=True)


def origins() -> Iterator[tuple[str, str, bytes]]:
    """(what it is, a file name, content): small files of every format and layout, and the heads of real ones."""
    for kind, rows in ROWS.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        yield f"{kind} array", "a.json", json.dumps(rows, ensure_ascii=False, indent=2).encode()
        yield f"{kind} array in a line", "a.json", json.dumps(rows).encode()
        yield f"{kind} lines", "a.jsonl", lines.encode()
        yield f"{kind} wrapped", "a.json", json.dumps({"version": 1, "data": rows}, indent=1).encode()
        yield f"{kind} packed lines", "a.jsonl.gz", gzip.compress(lines.encode(), mtime=0)
        yield f"{kind} UTF-16 lines", "a.jsonl", lines.encode("utf-16")
    for encoding in ("utf-8-sig", "gb18030", "utf-16"):
        yield f"{encoding} table", "a.csv", TABLE.encode(encoding)
    yield "tabs", "a.tsv", TABLE.replace(",", "\t").encode()
    for kind in ("Alpaca", "messages"):
        yield f"{kind} Parquet", "a.parquet", _parquet(ROWS[kind])
    for path in sorted(REAL.glob("*/*.*")):
        yield f"head of {path.name}", f"real{path.suffix}", path.read_bytes()[:HEAD_BYTES]


_SAID = [{"role": "user", "content": "你好?"}, {"role": "assistant", "content": "Hello, what can I do?"}]
ROWS: dict[str, list[dict[str, Any]]] = {
    "Alpaca": [{"instruction": f"问题 {n}\u2028", "input": "", "output": f'It\'s "{n}" 😀'} for n in range(8)],
    "ShareGPT": [
        {
            "conversations": [
                {"from": "human", "value": f"订单 {n}"},
                {"from": "function_call", "value": '{"name": "find", "arguments": {}}'},
                {"from": "observation", "value": "[1, 2]"},
                {"from": "gpt", "value": "Found."},
            ],
            "tools": '[{"name": "find"}]',
        }
        for n in range(4)
    ],
    "messages": [{"messages": [*_SAID, {"role": "user", "content": str(n)}, _SAID[1]]} for n in range(4)],
    "parts": [
        {"messages": [{"role": m["role"], "content": [{"type": "text", "text": f"{m['content']}{n}"}]} for m in _SAID]}
        for n in range(3)
    ],
    "preference": [{"prompt": f"Q {n}", "chosen": "good", "rejected": "bad"} for n in range(4)],
    "prompts": [{"prompt": f"{n} + 1?", "ground_truth": n + 1} for n in range(4)],
    "history": [{"instruction": "继续", "output": str(n), "history": [["q", "a"], ["q2", "a2"]]} for n in range(4)],
    "pairs": [{"conversation": [{"human": f"问 {n}", "assistant": "答"}] * 2} for n in range(4)],
    "tagged": [{"instruction": f" <user>: q {n} <bot>: a <user>: r", "output": "s"} for n in range(4)],
    "lists": [{"instruction": ["Q"], "output": [f"A {n}"], "id": n, "score": 0.5} for n in range(4)],
}
TABLE = "department,title,ask,answer\r\n" + "".join(
    f'内科,发烧 {n},"孩子三岁,\r\n三十九度","多喝水。""及时""就医"\r\n' for n in range(8)
)


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


def _somewhere(data: bytes, chance: random.Random) -> int:
    return chance.randrange(len(data) + 1)


def _inserted(data: bytes, chance: random.Random, *what: bytes) -> bytes:
    """One to four of these, each at some place."""
    for _ in range(chance.randint(1, 4)):
        at = _somewhere(data, chance)
        data = data[:at] + chance.choice(what) + data[at:]
    return data


def _truncated(data: bytes, chance: random.Random) -> bytes:
    return data[: _somewhere(data, chance)]


def _begun_late(data: bytes, chance: random.Random) -> bytes:
    return data[_somewhere(data, chance) :]


def _flipped(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 3, 30)) if data else 0):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _random_bytes(data: bytes, chance: random.Random) -> bytes:
    return _inserted(data, chance, chance.randbytes(chance.choice((1, 4, 100))))


def _deleted(data: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.randint(1, 4)):
        at = _somewhere(data, chance)
        data = data[:at] + data[at + chance.choice((1, 1, 2, 20)) :]
    return data


def _shuffled(data: bytes, chance: random.Random) -> bytes:
    one, two = sorted((_somewhere(data, chance), _somewhere(data, chance)))
    return data[two:] + data[one:two] + data[:one]


def _brackets_more(data: bytes, chance: random.Random) -> bytes:
    return _inserted(data, chance, b"[", b"]", b"{", b"}", b"}}", b"]]]", b"[[[[")


def _brackets_fewer(data: bytes, chance: random.Random) -> bytes:
    return _without_some(data, chance, rb"[\[\]{}]")


def _quotes_changed(data: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.3:
        return data.replace(b'"', chance.choice((b"'", "“".encode(), b"")))
    return _without_some(_inserted(data, chance, b'"', b"\\", b'\\"', b"'"), chance, rb'"')


def _commas_changed(data: bytes, chance: random.Random) -> bytes:
    return _without_some(_inserted(data, chance, b",", b",,", b":", b";", b"\t"), chance, rb"[,:]")


def _without_some(data: bytes, chance: random.Random, pattern: bytes) -> bytes:
    places = [match.span() for match in re.finditer(pattern, data)]
    for start, end in sorted(chance.sample(places, min(len(places), chance.randint(1, 3))), reverse=True):
        data = data[:start] + data[end:]
    return data


def _nul(data: bytes, chance: random.Random) -> bytes:
    return _inserted(data, chance, b"\0", b"\\u0000", b"\0" * 50)


def _lone_surrogates(data: bytes, chance: random.Random) -> bytes:
    return _inserted(data, chance, b"\\ud800", b"\\udc00", b"\xed\xa0\x80", b"\\ud83d\\ude00", b"\\uZZZZ", b"\\x41")


_VALUES = (
    b"null", b"true", b"0", b"-1", b"1.5", b"[]", b"{}", b'[""]', b'["a", "b"]', b'{"text": "x"}', b"NaN", b"Infinity",
    b'[[["x"]]]', b'[{"type": "text"}]', b'[{"role": "user"}]', b'[{"role": 1, "content": 2}]', b"[null]", b'""',
    b'[{"from": null, "value": null}]', b'[{"type": {"a": 1}, "text": []}]', b'[["q"]]', b'[["q", null]]', b"[1, [2]]",
)  # fmt: skip


def _values_swapped(data: bytes, chance: random.Random) -> bytes:
    """Another value of another type after some colons, or in place of some text."""
    return _replaced(data, chance, _VALUES)


def _huge_numbers(data: bytes, chance: random.Random) -> bytes:
    numbers = (
        b"9" * 19,
        b"9" * 40,
        b"-" + b"9" * 400,
        b"1" * 5000,
        b"1e999",
        b"-1e-999",
        b"1e15",
        b"0" * 9,
        b"1e",
        b"-",
    )
    return _replaced(data, chance, numbers)


def _nested(data: bytes, chance: random.Random) -> bytes:
    depth = chance.choice((150, 199, 200, 201, 990, 1030, 20_000))
    opened, closed = chance.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'[{"role":"user","content":', b"}]")))
    inside = chance.choice((b"1", b'"x"', b""))
    nested = opened * depth + inside + closed * chance.choice((depth, depth, depth - 1, 0))
    return _replaced(data, chance, (nested,)) if chance.random() < 0.7 else _inserted(data, chance, nested)


def _replaced(data: bytes, chance: random.Random, values: tuple[bytes, ...]) -> bytes:
    places = [match.span() for match in re.finditer(rb'"(?:[^"\\]|\\.)*"|\d+', data)]
    for start, end in sorted(chance.sample(places, min(len(places), chance.randint(1, 4))), reverse=True):
        data = data[:start] + chance.choice(values) + data[end:]
    return data


def _fields_renamed(data: bytes, chance: random.Random) -> bytes:
    names = re.findall(rb'"(\w+)"\s*:', data) or [b"output"]
    other = (
        b"role",
        b"content",
        b"messages",
        b"output",
        b"input",
        b"history",
        b"system",
        b"tools",
        b"text",
        b"type",
        b"",
    )
    new = chance.choice((*other, b"chosen", b"rejected", b"conversation", b"tool_calls", b"x" * 5000, "答案".encode()))
    return data.replace(b'"' + chance.choice(names) + b'"', b'"' + new + b'"', chance.choice((1, 3, -1)))


def _encoded_otherwise(data: bytes, chance: random.Random) -> bytes:
    text = data.decode("utf-8", "replace")
    encoding = chance.choice(
        ("utf-16", "utf-16-le", "utf-32", "gb18030", "big5", "latin-1", "cp1252", "utf-7", "cp037")
    )
    changed = text.encode(encoding, "replace")
    if chance.random() < 0.4:
        at = _somewhere(data, chance)
        return data[:at] + changed[at:]
    return changed


def _marks(data: bytes, chance: random.Random) -> bytes:
    marks = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, b"\x1f\x8b", b"PAR1")
    return chance.choice(marks) + data if chance.random() < 0.5 else _inserted(data, chance, *marks)


def _lines_changed(data: bytes, chance: random.Random) -> bytes:
    ends = (
        b"\r\n",
        b"\r",
        b"\n\n",
        b" \n\t",
        b"",
        "\u2028".encode(),
        "\u0085".encode(),
        b"\x0b",
        b"\x0c",
        b"\n\xef\xbb\xbf",
    )
    return data.replace(b"\n", chance.choice(ends), chance.choice((1, -1)))


def _repeated(data: bytes, chance: random.Random) -> bytes:
    return data * chance.choice((2, 3)) if chance.random() < 0.5 else data + b"\n" + data[: _somewhere(data, chance)]


def _glued(data: bytes, chance: random.Random) -> bytes:
    other = json.dumps(chance.choice(list(ROWS.values()))).encode()
    return data + chance.choice((b"", b"\n", b",")) + other if chance.random() < 0.5 else other + b"\n" + data


def _packed_and_damaged(data: bytes, chance: random.Random) -> bytes:
    return chance.choice((_truncated, _flipped, _deleted, _repeated))(gzip.compress(data, mtime=0), chance)


def _quarter(data: bytes, chance: random.Random) -> bytes:
    """Only some piece, wrapped in what might follow and precede."""
    start = _somewhere(data, chance)
    piece = data[start : start + chance.choice((0, 1, 2, 50, 500))]
    return chance.choice((b"", b"[", b"{", b'"', b"[{", b'{"data": ', b'{"data": [')) + piece


MUTATIONS: dict[str, Mutation] = {
    "truncated": _truncated,
    "begun late": _begun_late,
    "bits flipped": _flipped,
    "random bytes": _random_bytes,
    "bytes deleted": _deleted,
    "pieces shuffled": _shuffled,
    "more brackets": _brackets_more,
    "fewer brackets": _brackets_fewer,
    "quotes changed": _quotes_changed,
    "commas changed": _commas_changed,
    "NUL": _nul,
    "lone surrogates": _lone_surrogates,
    "values swapped": _values_swapped,
    "huge numbers": _huge_numbers,
    "deep nesting": _nested,
    "fields renamed": _fields_renamed,
    "encoded otherwise": _encoded_otherwise,
    "marks": _marks,
    "lines changed": _lines_changed,
    "repeated": _repeated,
    "glued": _glued,
    "packed and damaged": _packed_and_damaged,
    "a piece only": _quarter,
}


if __name__ == "__main__":
    main()
