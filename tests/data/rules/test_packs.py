"""Packs compose, say everything that is wrong with them, travel to other processes and run a user's own rules."""

from __future__ import annotations

import pickle

import pytest
import yaml

from dsr1_tune.data.record import Drop, Message, Place, Preference, Prompt, Record
from dsr1_tune.data.rules.checker import Checker
from dsr1_tune.data.rules.packs import SHIPPED, Pack, load_pack, shipped_packs
from dsr1_tune.data.rules.registry import Rules
from dsr1_tune.errors import ConfigError, DataError

NAMES = ("general", "code", "finance", "legal", "math", "medical", "none", "support")


def record(question="Why exercise?", answer="It is good for the heart."):
    messages = (Message("user", question, "$.input"), Message("assistant", answer, "$.output"))
    return Record(messages, Place("a.json", 7, 6), row={"input": question})


@pytest.fixture
def pack(tmp_path):
    """pack("rules: ...") writes my.yaml and loads it; further files by name."""

    def pack_(text, **files):
        for name, content in files.items():
            (tmp_path / name.replace("__", ".")).write_text(content, encoding="utf-8")
        (tmp_path / "my.yaml").write_text(text, encoding="utf-8")
        return load_pack(tmp_path / "my.yaml")

    return pack_


def test_the_shipped_packs():
    assert shipped_packs() == NAMES
    for name in NAMES:
        pack = load_pack(name)
        assert (pack.name, bool(pack.description)) == (name, True)
        assert pickle.loads(pickle.dumps(pack)) == pack
        Checker(pack)


def test_packs_general_spells_out_every_default():
    general = load_pack("general")
    assert general.rules == Rules()
    assert general.privacy == "count"
    written = yaml.safe_load((SHIPPED / "general.yaml").read_text(encoding="utf-8"))["rules"]
    assert {name: set(given) for name, given in written.items()} == {
        name: set(type(getattr(Rules(), name)).model_fields) for name in Rules.model_fields
    }


def test_packs_none_turns_every_rule_off():
    pack = load_pack("none")
    assert {getattr(pack.rules, name).action for name in Rules.model_fields} == {"off"}
    bad = record(answer="TODO")
    assert Checker(pack).check(bad).row is bad


def test_packs_what_the_domains_change():
    assert load_pack("medical").privacy == "redact"
    assert load_pack("math").privacy == "off"
    page = record("How do I show a list?", "<ul><li>One</li><li>Two</li></ul>")
    assert Checker(load_pack("general")).check(page).row.code == "html_markup"
    assert Checker(load_pack("code")).check(page).row is page
    sorry = record("Can you send it today?", "I'm sorry, but we cannot process returns today.")
    checked = Checker(load_pack("support")).check(sorry)
    assert checked.row is sorry
    assert [note.code for note in checked.notes] == ["refusal"]
    tip = record("怎么买股票？", "跟着带单老师操作，稳赚不赔。")
    assert Checker(load_pack("finance")).check(tip).row.code == "advertisement"


@pytest.mark.parametrize("name", ["general", "medical", "legal", "finance", "support"])
def test_packs_no_domain_lets_broken_off_answers_pass(name):
    cut = record("为什么要运动？", "规律的运动可以增强心脏功能。它还能降低血压，帮助人们睡得更")
    assert Checker(load_pack(name)).check(cut).row.code == "truncated_answer"


def test_packs_to_warn_of_a_folk_remedy_is_no_advertisement():
    warning = record("糖尿病能用偏方吗？", "不建议。祖传秘方的疗效不确切，更没有什么药能包治百病。")
    assert Checker(load_pack("medical")).check(warning).row is warning


def test_a_pack_says_only_what_differs(pack):
    mine = pack(
        "extends: medical\ndescription: mine\nrules:\n  refusal: {phrases: [no way]}\n  lengths: {max_chars: 9}\n"
    )
    medical = load_pack("medical")
    assert mine.rules.refusal.phrases == ("no way",)
    assert mine.rules.refusal.max_chars == medical.rules.refusal.max_chars
    assert mine.rules.advertisement == medical.rules.advertisement
    assert (mine.privacy, mine.description) == ("redact", "mine")
    assert mine.rules.lengths.max_chars == 9
    assert pack("rules:\n  refusal: warn\n").rules == Rules(refusal={"action": "warn"})
    assert pack("").rules == Rules()


def test_packs_a_bare_off_is_no_boolean(pack):
    mine = pack("privacy: off\nrules:\n  refusal: off\n  encoding: {action: off}\n")
    assert (mine.privacy, mine.rules.refusal.action, mine.rules.encoding.action) == ("off", "off", "off")
    kept = record(answer="I'm sorry, but I can't help with that.")
    assert Checker(mine).check(kept).row is kept


def test_a_pack_extends_another_file(pack):
    mine = pack(
        "extends: ./base.yaml\nrules:\n  refusal: off\n", base__yaml="extends: legal\nrules: {refusal: {max_chars: 9}}"
    )
    assert (mine.rules.refusal.action, mine.rules.refusal.max_chars) == ("off", 9)
    assert mine.rules.lengths == load_pack("legal").rules.lengths


def problems(error):
    return error.value.message.split("\n")


def test_packs_every_problem_is_named_at_once(pack, tmp_path):
    text = """
    extends: general
    privcy: count
    rules:
      refusals: {action: drop}
      repeated_text: {max_shar: 0.3, max_share: 7}
      lengths: {max_chars: many, action: delete}
      blocked_word: {words: [no, fine], files: [lost.txt]}
    custom:
      - {call: "nowhere_at_all:f"}
      - {call: "./lost.py:f"}
    """
    with pytest.raises(ConfigError) as error:
        pack(text)
    said = problems(error)
    assert all(line.startswith(f"{tmp_path / 'my.yaml'}: ") for line in said)
    found = "\n".join(said)
    assert "privcy: there is no such setting; did you mean privacy?" in found
    assert "rules.refusals: there is no such rule; did you mean refusal?" in found
    assert "rules.repeated_text.max_shar: there is no such setting; did you mean max_share?" in found
    assert "rules.repeated_text.max_share: Input should be less than or equal to 1 (given: 7)" in found
    assert "rules.lengths.max_chars: Input should be a valid integer" in found
    assert "rules.lengths.action: Input should be 'drop', 'warn' or 'off' (given: 'delete')" in found
    assert "rules.blocked_word.words.0: Input should be a valid string (given: False); put it in quotes" in found
    assert f"rules.blocked_word.files.0: {tmp_path / 'lost.txt'} cannot be read: No such file or directory" in found
    assert "custom.0.call: nowhere_at_all cannot be imported: ModuleNotFoundError" in found
    assert "custom.1.call: " in found and "there is no file" in found


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("medicine", "there is no pack of rules 'medicine'; did you mean medical?"),
        ("lost.yaml", "lost.yaml: there is no such pack of rules"),
        ("./medical", "medical: there is no such pack of rules"),
    ],
)
def test_an_unknown_pack(name, says):
    with pytest.raises(ConfigError) as error:
        load_pack(name)
    assert says in error.value.message
    assert error.value.hint


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1, 2]", "is list, no settings by name"),
        ("rules: [", "is not YAML: "),
        ("rules: 3", "rules: Input should be a valid dictionary"),
        ("extends: medicine", "extends: there is no pack of rules 'medicine'; did you mean medical?"),
        ("extends: ./my.yaml", "extends: goes round in circles"),
        ("extends: 3", "extends: 3 is not the name of a pack"),
        ("rules: {refusal: sometimes}", "rules.refusal.action: Input should be 'drop', 'warn' or 'off'"),
        ("custom: [{call: nothing}]", "custom.0.call: "),
        ("custom: 3", "custom: Input should be a valid tuple"),
    ],
)
def test_a_broken_pack(pack, text, says):
    with pytest.raises(ConfigError, match=r"my\.yaml") as error:
        pack(text)
    assert says in error.value.message
    assert "refusal" in error.value.hint


def test_packs_blocked_words_from_a_file(pack, tmp_path):
    mine = pack(
        "rules:\n  blocked_word: {words: [foo], files: [words.txt]}\n",
        words__txt="\ufeffbar\n\n# a remark\n  赌博 \r\n",
    )
    assert mine.rules.blocked_word.words == ("foo", "bar", "赌博")
    (tmp_path / "words.txt").unlink()  # the pack holds the words: nothing is read where it travels to
    checker = Checker(pickle.loads(pickle.dumps(mine)))
    drop = checker.check(record(answer="他去赌博了。")).row
    assert (drop.code, drop.path) == ("blocked_word", "$.output")


OWN = """
from dataclasses import dataclass, replace
from dsr1_tune.data.record import Drop

@dataclass
class Limit:
    most: int = 20

def polite(record):
    return "thank you" in record.answer or "no thanks"

def short(record):
    return len(record.answer) <= Limit().most

def fine(record):
    return None

def louder(record):
    *before, last = record.messages
    return replace(record, messages=(*before, replace(last, content=last.content.upper())))

def drops(record):
    return Drop("refusal", "mine", "mend it", "$.x")

def strange(record):
    return Drop("my_own", "mine")

def breaks(record):
    return record.answr

def number(record):
    return 3

not_callable = 3
"""


def own(pack, function, action="drop"):
    text = f"custom:\n  - {{call: './own.py:{function}', action: {action}, name: my {function}}}\n"
    return Checker(pickle.loads(pickle.dumps(pack(text, own__py=OWN))))


def test_packs_a_rule_of_ones_own(pack):
    drop = own(pack, "polite").check(record()).row
    assert (drop.code, drop.detail, drop.path) == ("custom_rule", "my polite: no thanks", "$.output")
    thanks = record(answer="Well, thank you very much.")
    assert own(pack, "polite").check(thanks).row is thanks
    drop = own(pack, "short").check(record()).row
    assert (drop.code, drop.detail) == ("custom_rule", "my short objects")
    assert own(pack, "fine").check(thanks).row is thanks
    assert own(pack, "drops").check(record()).row == Drop("refusal", "mine", "mend it", "$.x")
    assert own(pack, "strange").check(record()).row == Drop("custom_rule", "my_own: mine")


def test_packs_a_rule_of_ones_own_mends_and_warns(pack):
    checked = own(pack, "louder").check(record())
    assert checked.row.answer == "IT IS GOOD FOR THE HEART."
    assert (checked.repaired, checked.row.place, checked.row.row) == (("my louder",), record().place, record().row)
    checked = own(pack, "short", "warn").check(record())
    assert isinstance(checked.row, Record)
    assert [note.detail for note in checked.notes] == ["my short objects"]
    assert own(pack, "breaks", "off").check(record()).notes == ()


def test_packs_a_rule_of_ones_own_on_other_rows(pack):
    prompt = (Message("user", "Why exercise?"),)
    chosen, rejected = Message("assistant", "It is good.", "$.chosen"), Message("assistant", "No.", "$.rejected")
    pair = Preference(prompt, chosen, rejected, Place("a", 1, 0))
    checked = own(pack, "louder").check(pair).row
    assert (checked.chosen.content, checked.rejected) == ("IT IS GOOD.", rejected)
    assert own(pack, "polite").check(pair).row.path == "$.chosen"
    question = Prompt(prompt, None, Place("a", 1, 0))
    assert own(pack, "polite").check(question).row is question


def test_packs_a_rule_of_ones_own_that_fails_is_named_with_its_row(pack, tmp_path):
    with pytest.raises(DataError) as error:
        own(pack, "breaks").check(record())
    assert error.value.message.startswith("a.json:7: the rule my breaks fails on this row: AttributeError: ")
    line = OWN.split("\n").index("    return record.answr") + 1
    assert f"({tmp_path / 'own.py'}:{line})" in error.value.message
    assert "own.py:breaks" in error.value.hint
    with pytest.raises(DataError, match=r"a\.json:7: the rule my number returns '3'"):
        own(pack, "number").check(record())


def test_packs_what_cannot_be_called_is_refused_on_loading(pack):
    for call, says in (
        ("./own.py:polit", "has no function 'polit'; did you mean polite?"),
        ("./own.py:not_callable", "has no function 'not_callable'"),
        ("json:lods", "json has no function 'lods'; did you mean loads?"),
        ("./broken.py:f", "cannot be imported: SyntaxError"),
        ("./raises.py:f", "cannot be imported: ZeroDivisionError"),
    ):
        with pytest.raises(ConfigError) as error:
            pack(f"custom: ['{call}']", own__py=OWN, broken__py="def f(:", raises__py="1 / 0")
        assert says in error.value.message, call


def test_packs_custom_rules_add_up(pack):
    mine = pack(
        "extends: ./base.yaml\ncustom: ['./own.py:short']\n", base__yaml="custom: ['./own.py:polite']\n", own__py=OWN
    )
    assert [custom.title for custom in mine.custom] == ["polite", "short"]


def test_a_pack_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Pack().privacy = "drop"
