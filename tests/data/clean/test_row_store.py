"""The intermediate store gives back what the scans left, by number, across chunks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsr1_tune.data.clean.chunks import chunks
from dsr1_tune.data.clean.row_store import RowStore, is_saved, read_outputs, save
from dsr1_tune.data.clean.scan import Scanner, ScanSettings
from dsr1_tune.data.rules.packs import load_pack


@pytest.fixture
def stored(tmp_path: Path, rows: Any, write_lines: Any) -> tuple[RowStore, list[dict[str, Any]]]:
    """Thirty rows and a bad one, scanned in chunks of a few."""
    some = [*rows(15, 1), {"foo": 1}, *rows(15, 2)]
    settings = ScanSettings(load_pack("none"), "off", (), True, np.zeros(0, np.uint64), frozenset(), None)
    scanner, files = Scanner(settings), []
    for number, chunk in enumerate(chunks([write_lines(tmp_path / "rows.jsonl", some)], max_bytes=1000)):
        assert not is_saved(tmp_path, number)
        save(scanner.scan(chunk), tmp_path, number)
        files.append(str(chunk.source.path))
        assert is_saved(tmp_path, number)
    assert len(files) > 3
    return RowStore(tmp_path, files), [row for row in some if "output" in row]


def test_row_store_reads_rows_of_any_chunks(stored: tuple[RowStore, list[dict[str, Any]]]) -> None:
    store, rows = stored
    assert store.num_rows == 30
    for numbers in ([0, 7, 29], list(range(30))):
        outputs = store.outputs(np.array(numbers))
        assert [output["messages"][1]["content"] for output in outputs] == [rows[n]["output"] for n in numbers]
        assert outputs == read_outputs(store.whereabouts(np.array(numbers)))
    assert [store.place_of(number).index for number in (0, 14, 15, 29)] == [0, 14, 16, 30]
    assert store.place_of(15).line == 17 and store.place_of(15).file.endswith("rows.jsonl")


def test_row_store_knows_how_long_its_rows_are(stored: tuple[RowStore, list[dict[str, Any]]]) -> None:
    store, _ = stored
    written = [line for block in store.blocks for line in store.lines(block, "rows")]
    assert store.num_bytes.tolist() == [len(line) + 1 for line in written]
    assert [json.loads(line)["source"]["index"] for line in written[14:16]] == [14, 16]


def test_row_store_holds_hashes_and_counts(stored: tuple[RowStore, list[dict[str, Any]]]) -> None:
    store, _ = stored
    assert store.has_bands() and len(store.bands(3)) == 30
    assert store.sketches(np.array([2, 20])).shape == (2, 120)
    assert sum(block.counts.num_rows for block in store.blocks) == 31
    assert sum(block.counts.dropped["unknown_fields"] for block in store.blocks) == 1
    assert [number for block in store.blocks for number in store.numbers(block, "drop_numbers")] == [15]
