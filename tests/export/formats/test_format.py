"""What every format says of itself."""

from __future__ import annotations

import pytest

from dsr1_tune.config import Quantize
from dsr1_tune.export.formats.format import Format
from dsr1_tune.export.formats.registry import BUILT_IN


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({"to": "nf4"}, "nf4"),
        ({"to": "w4a16"}, "w4a16"),
        ({"to": "w4a16", "method": "gptq"}, "w4a16-gptq"),
        ({"to": "gguf", "gguf": "q8_0"}, "gguf-q8_0"),
    ],
)
def test_format_label_is_its_name_and_what_is_unusual(settings: dict[str, str], label: str) -> None:
    form = next(one for one in BUILT_IN if one.name == settings["to"])
    assert form.label(Quantize.model_validate(settings)) == label


@pytest.mark.parametrize("form", BUILT_IN, ids=lambda form: form.name)
def test_format_says_all_that_commands_need(form: Format) -> None:
    assert 0 < form.bits <= 16 and form.next_step.format(folder="there")
    assert set(form.options) <= set(Quantize.model_fields) and not form.loads_in & set(form.refused_by)
    assert not form.is_stored_as({"quant_method": "awq"})
