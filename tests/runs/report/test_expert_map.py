"""The pictures of the experts: drawn in every size, with what was counted in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from dsr1_tune.moe.monitor import Routing
from dsr1_tune.runs.report.expert_map import before_and_after, heat_map
from dsr1_tune.runs.watch.expert_tables import ExpertTables, note_routing

PNG = b"\x89PNG\r\n\x1a\n"


def routing(num_layers: int, num_experts: int, seed: int = 0) -> Routing:
    generator = torch.Generator().manual_seed(seed)
    load_LE = torch.randint(0, 100, (num_layers, num_experts), generator=generator).double()
    return Routing(tuple(f"model.layers.{n + 3}.mlp.experts" for n in range(num_layers)), load_LE, load_LE / 3, 2)


@pytest.mark.parametrize(("num_layers", "num_experts"), [(60, 256), (2, 4), (1, 1), (30, 8)])
def test_expert_maps_of_every_size_are_drawn_whole(tmp_path: Path, num_layers: int, num_experts: int) -> None:
    tables = ExpertTables(before=routing(num_layers, num_experts), after=routing(num_layers, num_experts, seed=1))
    file = tmp_path / "experts.png"
    assert before_and_after(tables, file)
    assert file.read_bytes().startswith(PNG)
    with Image.open(file) as picture:
        picture.load()
        width, height = picture.size
    # Each of the three maps gives every expert and every layer some pixels of their own.
    across, down = (3, 1) if num_experts <= 16 else (1, 3)
    assert width / across >= 4 * num_experts and height / down >= 4 * num_layers
    assert max(width, height) < 4000
    assert [path.name for path in tmp_path.iterdir()] == ["experts.png"]


def test_heat_map_draws_one_profile(tmp_path: Path) -> None:
    heat_map(routing(3, 64), tmp_path / "map.png", "a base on $data_with_odd^names$.json")
    assert (tmp_path / "map.png").read_bytes().startswith(PNG)


def test_heat_map_shows_what_was_counted(tmp_path: Path) -> None:
    """A crowded expert is bright, one without tokens grey, in the map of one layer."""
    load_LE = torch.ones(1, 32, dtype=torch.float64)
    load_LE[0, 5], load_LE[0, 20] = 30.0, 0.0
    heat_map(Routing(("layers.0",), load_LE, load_LE), tmp_path / "map.png", "one layer")
    with Image.open(tmp_path / "map.png") as picture:
        pixels = picture.convert("RGB")
        row = [pixels.getpixel((x, pixels.height // 2)) for x in range(pixels.width)]
    num_bright = sum(1 for red, green, blue in row if red > 200 and green > 200 and blue < 80)
    num_grey = sum(1 for red, green, blue in row if red == green == blue == 204)
    num_dark = sum(1 for red, green, blue in row if red < 90 and blue > 80)
    # One cell of each, thirty of the rest; the colour bar at the side adds a little.
    assert 20 < num_bright < 90 and 20 < num_grey < 60 and num_dark > 15 * num_grey


def test_expert_maps_are_not_drawn_where_a_side_is_missing(tmp_path: Path) -> None:
    one, nothing = routing(2, 4), Routing.nothing((), 0)
    for tables in (
        ExpertTables(),
        ExpertTables(before=one),
        ExpertTables(after=one, training=one),
        ExpertTables(before=nothing, after=nothing),
        ExpertTables(before=one, after=routing(2, 8)),
    ):
        assert not before_and_after(tables, tmp_path / "experts.png")
    assert not list(tmp_path.iterdir())


# --- the file behind them --------------------------------------------------------------------------------------------


def test_expert_tables_are_read_as_they_were_written(tmp_path: Path) -> None:
    before, after = routing(2, 4), routing(2, 4, seed=1)
    note_routing(tmp_path, before=before)
    note_routing(tmp_path, after=after, training=before + after)
    tables = ExpertTables.read(tmp_path)
    for found, wanted in ((tables.before, before), (tables.after, after), (tables.training, before + after)):
        assert found is not None and (found.layers, found.num_chosen) == (wanted.layers, 2)
        assert torch.equal(found.load_LE, wanted.load_LE) and torch.equal(found.weight_LE, wanted.weight_LE)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 but no more", b"no archive"])
def test_expert_tables_of_a_missing_or_broken_file_are_empty(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "experts_load.npz").write_bytes(content)
    assert ExpertTables.read(tmp_path) == ExpertTables()
