"""Numbers with units in texts, in English and Chinese."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsr1_tune.text.quantities import changed, quantities, quantity


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("take 500 mg, then 1.5g", [(500, "mg"), (1.5, "g")]),
        ("5-10 ml/kg", [(5, "ml/kg"), (10, "ml/kg")]),
        ("38.5℃ or 101.3 °F", [(38.5, "°C"), (101.3, "°F")]),
        ("五百毫克，每日3次，3片", [(500, "mg")]),
        ("￥500 and 5万元", [(500, "元"), (50_000, "元")]),
        ("5G network, q8h, 2024年, 3月, no. 5 me", []),
        ("7.0 mmol/L", [(7, "mmol/l")]),
    ],
)
def test_quantities_of_a_text(text: str, wanted: list[tuple[float, str]]) -> None:
    assert [(one.number, one.label) for one in quantities(text)] == wanted


def test_quantities_know_every_unit_of_the_table() -> None:
    from dsr1_tune.text import quantities as module

    assert Path(module.__file__).with_name("units.yaml").is_file()
    assert all(quantities(f"2 {name}" if name not in "$€¥" else f"{name}2") for name in module.UNITS)


def test_quantities_are_compared_across_units() -> None:
    half, same, tenfold, other = quantities("500 mg, 0.5 g, 5000 mg, 500 g")
    assert half.equals(same) and not half.equals(tenfold)
    assert other.has_other_unit(half) and tenfold.has_slipped(half) and not same.has_slipped(half)
    assert half.is_near(same) and not quantities("3 kg")[0].is_near(half)
    dollars, euros = quantities("$500 and 500 euros")
    assert not dollars.equals(euros) and euros.has_other_unit(dollars)


def test_quantity_by_name() -> None:
    dose = quantity(2, "mg/kg")
    assert dose is not None and (dose.kind, dose.label, dose.value) == ("mass/mass", "mg/kg", 2e-6)
    assert quantity(1, "furlong") is None and quantity(1, "mg/furlong") is None


def test_changed_pairs_what_was_given_with_what_became_of_it() -> None:
    pairs = changed(quantities("take 250 mg"), quantities("take 2500 mg or 5 ml"))
    assert [(one.text, other.text) for one, other in pairs] == [("250 mg", "2500 mg")]
    assert changed(quantities("for 3 days"), quantities("3 weeks")) == []
