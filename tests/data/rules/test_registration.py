"""A whole Rule from a file outside the package: its drops, thresholds and meanings, as if it came with the toolkit."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dsr1_tune.cli import app
from dsr1_tune.data.record import Message, Place, Preference, Prompt
from dsr1_tune.data.rules.checker import Checker
from dsr1_tune.data.rules.codes import MEANINGS, meaning
from dsr1_tune.data.rules.packs import load_pack
from dsr1_tune.errors import ConfigError, DataError

SHOUTING = '''
from dsr1_tune.data.record import Drop, messages_of
from dsr1_tune.data.rules.rule import Meaning, Part, Rule, RuleSettings


class Shouting(RuleSettings):
    """Answers in capital letters."""

    max_share: Part = 0.5
    """Largest share of capitals among the letters."""


def shouting(row, settings):
    """Drop an answer in capital letters."""
    last = messages_of(row)[-1]
    letters = [char for char in last.content if char.isalpha()]
    share = sum(map(str.isupper, letters)) / max(1, len(letters))
    if share > settings.max_share:
        return Drop("shouting", f"{share:.0%} of the letters are capitals", "write it in small letters", last.path)
    return row


SHOUTING = Rule("shouting", shouting, Meaning("the answer is written in capital letters", "回答全是大写字母"), Shouting)
CLASH = Rule("clash", shouting, {"refusal": Meaning("mine", "我的")})
BREAKS = Rule("breaks", lambda row, settings: row.answr, {"breaks": Meaning("it breaks", "出错")})
NUMBER = Rule("number", lambda row, settings: 3, {"number": Meaning("a number", "数字")})
STRANGE = Rule("strange", lambda row, settings: Drop("other", "mine"), {"strange": Meaning("odd", "奇怪")})
QUESTIONS = Rule("questions", shouting, {"shouting": Meaning("loud", "大声")}, Shouting, reads_questions=True)


def polite(record):
    return True
'''


@pytest.fixture
def pack(tmp_path):
    """pack("call: ...") is a pack with that custom rule, in a folder of its own."""
    (tmp_path / "my_rules.py").write_text(SHOUTING, encoding="utf-8")
    known = dict(MEANINGS)

    def pack_(entry):
        file = tmp_path / "my.yaml"
        file.write_text(f"extends: general\ncustom:\n  - {{{entry}}}\n", encoding="utf-8")
        return load_pack(file)

    yield pack_
    MEANINGS.clear()
    MEANINGS.update(known)


def test_registration_of_a_rule_drops_rows_in_data_clean_and_explains_them(tmp_path: Path, pack) -> None:
    pack('call: "./my_rules.py:SHOUTING", settings: {max_share: 0.8}')
    rows = [
        {"input": "Why is exercise good?", "output": "It strengthens the heart and improves sleep."},
        {"input": "Why is sleep good?", "output": "BECAUSE IT RESTS THE BODY AND CALMS THE MIND."},
    ]
    data, out = tmp_path / "rows.jsonl", tmp_path / "out"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for language, text in (("en", "the answer is written in capital letters"), ("zh", "回答全是大写字母")):
        command = [
            "data",
            "clean",
            str(data),
            "--rules",
            str(tmp_path / "my.yaml"),
            "--out",
            str(out),
            "--workers",
            "1",
        ]
        settings = ["--workers", "1", "--set", f"language={language}", "--set", "data.eval_share=0"]
        done = CliRunner().invoke(app, [*command, *settings])
        assert done.exit_code == 0, done.output
        assert json.loads((out / "report.json").read_text(encoding="utf-8"))["dropped"] == {"shouting": 1}
        assert text in (out / "report.html").read_text(encoding="utf-8")
        (rejected,) = map(json.loads, (out / "rejected.jsonl").read_text(encoding="utf-8").splitlines())
        assert (rejected["code"], rejected["stage"], rejected["path"]) == ("shouting", "rules", "$.output")
        assert rejected["detail"] == "100% of the letters are capitals"


def test_registration_takes_the_settings_of_the_pack(pack, record) -> None:
    loud = record("Why?", "It is GOOD FOR YOU, AND HEALTHY.")
    checker = Checker(pickle.loads(pickle.dumps(pack('call: "./my_rules.py:SHOUTING"'))))
    assert checker.check(loud).row.code == "shouting"
    mild = Checker(pack('call: "./my_rules.py:SHOUTING", settings: {max_share: 1}'))
    assert mild.check(loud).row is loud
    warns = Checker(pack('call: "./my_rules.py:SHOUTING", action: warn')).check(loud)
    assert warns.row is loud and [note.code for note in warns.notes] == ["shouting"]
    assert Checker(pack('call: "./my_rules.py:SHOUTING", action: off')).check(loud).notes == ()
    assert meaning("shouting") == "the answer is written in capital letters"
    assert meaning("shouting", "zh") == "回答全是大写字母"


def test_registration_shows_prompts_only_to_rules_that_read_questions(pack) -> None:
    prompt = Prompt((Message("user", "WHY IS IT SO LOUD?", "$.prompt"),), None, Place("a", 1, 0))
    assert Checker(pack('call: "./my_rules.py:SHOUTING"')).check(prompt).row is prompt
    assert Checker(pack('call: "./my_rules.py:QUESTIONS"')).check(prompt).row.path == "$.prompt"


def test_registration_gives_a_rule_the_row_as_it_is(pack) -> None:
    prompt = (Message("user", "Why?"),)
    chosen, rejected = Message("assistant", "It is good.", "$.chosen"), Message("assistant", "NO.", "$.rejected")
    pair = Preference(prompt, chosen, rejected, Place("a", 1, 0))
    assert Checker(pack('call: "./my_rules.py:SHOUTING"')).check(pair).row.path == "$.rejected"


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (
            'call: "./my_rules.py:SHOUTING", settings: {max_shar: 1}',
            "custom.0.settings.max_shar: there is no such setting; did you mean max_share?",
        ),
        ('call: "./my_rules.py:SHOUTING", settings: {max_share: 7}', "custom.0.settings.max_share: Input should be"),
        ('call: "./my_rules.py:CLASH"', "custom.0.call: the rule clash uses refusal, a code of the toolkit's own"),
        ('call: "./my_rules.py:polite", settings: {x: 1}', "custom.0.settings: a function takes none"),
        ('call: "./my_rules.py:SHOUTIN"', "has no function 'SHOUTIN'"),
    ],
)
def test_registration_refuses_what_does_not_fit(pack, entry: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        pack(entry)
    assert says in error.value.message


def test_registration_names_the_row_where_a_rule_fails(pack, record) -> None:
    with pytest.raises(DataError, match=r"a\.json:1: the rule BREAKS fails on this row: AttributeError") as error:
        Checker(pack('call: "./my_rules.py:BREAKS"')).check(record("Why?", "It is so."))
    assert "my_rules.py:BREAKS" in error.value.hint
    with pytest.raises(DataError, match=r"a\.json:1: the rule NUMBER returns '3'"):
        Checker(pack('call: "./my_rules.py:NUMBER"')).check(record("Why?", "It is so."))


def test_registration_gives_a_code_without_a_meaning_the_code_of_custom_rules(pack, record) -> None:
    drop = Checker(pack('call: "./my_rules.py:STRANGE"')).check(record("Why?", "It is so.")).row
    assert (drop.code, drop.detail) == ("custom_rule", "other: mine")
