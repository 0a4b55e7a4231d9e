"""`experts`: what it chooses is what `esft` trains, and a larger share chooses more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsr1_tune.config import Esft
from dsr1_tune.moe.select import Choice
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.train import experts
from tests.train.conftest import ConfigureEsft


def test_experts_chooses_what_esft_trains(
    configure_esft: ConfigureEsft, esft_run: RunFolder, told: Any, tmp_path: Path
) -> None:
    out = tmp_path / "experts.json"
    choice = experts.run(configure_esft(None), out, told)
    assert choice == Choice.read(out) == Choice.read(esft_run.choice_file)
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "The fewest experts that take 40% of a layer's gate weight" in told.text
    assert f"{choice.num_chosen} of 4 experts are chosen" in told.text


def test_experts_chooses_more_for_a_larger_share(configure_esft: ConfigureEsft, tmp_path: Path) -> None:
    few = experts.run(configure_esft(None, esft=Esft(share=0.1, score="tokens")), tmp_path / "few.json")
    many = experts.run(configure_esft(None, esft=Esft(share=0.99, score="tokens")), tmp_path / "many.json")
    assert few.num_chosen == 1 < many.num_chosen
    name = "model.layers.1.mlp.experts"
    assert set(few.chosen[name]) < set(many.chosen[name])
