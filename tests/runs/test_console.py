"""What the narrator prints, and that processes which are not heard print nothing."""

from __future__ import annotations

import io

from rich.console import Console

from dsr1_tune.runs.console import Narrator
from dsr1_tune.runs.evaluate import HeldOut, Sample


def speaking(is_heard: bool = True) -> tuple[Narrator, io.StringIO]:
    """A narrator, and the text that it prints."""
    text = io.StringIO()
    return Narrator(Console(file=text, width=120), is_heard=is_heard), text


def test_narrator_prints_brackets_as_they_are() -> None:
    narrator, text = speaking()
    narrator.say("the row is [bold]x[/bold] and [1, 2]")
    narrator.stage("Data [red]")
    assert "the row is [bold]x[/bold] and [1, 2]" in text.getvalue() and "Data [red]" in text.getvalue()


def test_narrator_that_is_not_heard_prints_nothing() -> None:
    narrator, text = speaking(is_heard=False)
    narrator.say("something")
    narrator.before_and_after(HeldOut(2.0, 9, 3), HeldOut(1.0, 9, 3), are_held_out=True)
    assert text.getvalue() == ""


def test_narrator_compares_the_losses_before_and_after() -> None:
    narrator, text = speaking()
    narrator.before_and_after(HeldOut(2.0, 1234, 3), HeldOut(1.5, 1234, 3), are_held_out=True)
    assert "Held-out loss (3 records, 1,234 tokens)" in text.getvalue()
    [line] = [line.split() for line in text.getvalue().splitlines() if line.strip().startswith("loss")]
    assert line == ["loss", "2.0000", "1.5000", "-25.0%"]
    narrator.before_and_after(HeldOut(2.0, 9, 3), HeldOut(1.5, 9, 3), are_held_out=False)
    assert "Loss on training records" in text.getvalue()


def test_narrator_puts_answers_before_and_after_beside_the_data() -> None:
    narrator, text = speaking()
    narrator.answers([Sample("why?", "[no idea]", "because")], [Sample("why?", "as it is", "because")])
    lines = [line.strip() for line in text.getvalue().splitlines() if line.strip()]
    assert lines == ["why?", "before: [no idea]", "after: as it is", "in the data: because"]


def test_narrator_counting_yields_a_function_that_may_be_called() -> None:
    narrator, text = speaking()
    with narrator.counting("evaluating", 3) as advance:
        advance(3)
    assert text.getvalue() == "", "where the output is no terminal there is no bar"
