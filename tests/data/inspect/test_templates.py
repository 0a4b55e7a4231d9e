"""Every template is good data in the format it claims to be, and is never written over something."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from dsr1_tune.config import CleanRun, Data
from dsr1_tune.config.load import load_config
from dsr1_tune.data.inspect import templates
from dsr1_tune.data.inspect.templates import DOMAINS, FORMATS, LANGUAGES, init
from dsr1_tune.data.prepare import examine, prepare
from dsr1_tune.data.privacy.guard import find
from dsr1_tune.data.record import Drop, Feedback, Message, Place, Preference, Prompt, Record
from dsr1_tune.data.rules.checker import Checker
from dsr1_tune.data.rules.packs import load_pack
from dsr1_tune.data.rules.pairs import PreferenceStats
from dsr1_tune.errors import DataError

CONTENTS = [(domain, language) for domain in DOMAINS for language in LANGUAGES]
KINDS = {"preference": Preference, "feedback": Feedback, "prompts": Prompt}
READ_AS = {
    "messages": "messages",
    "tools": "messages",
    "reasoning": "messages",
    "sharegpt": "ShareGPT",
    "alpaca": "Alpaca",
    "history": "Alpaca",
    "question-answer": "question-answer",
    "csv": "question-answer",
    "firefly": "pairs",
    "preference": "preference",
    "feedback": "feedback",
    "prompts": "prompts",
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("domain", "language"), CONTENTS)
def test_templates_every_row_is_good_and_kept(tmp_path, domain, language, format):
    *_, settings = init(domain, language, format, tmp_path / f"rows{FORMATS[format].ending}")
    config = load_config(CleanRun, settings)
    prepared = examine(config.data)
    assert [(drop.code, drop.detail) for drop in prepared.drops] == []
    assert len(prepared.rows) == (12 if format == "feedback" else 6)
    assert [note.code for row in prepared.rows for note in row.notes] == []
    assert {type(row) for row in prepared.rows} == {KINDS.get(format, Record)}
    assert prepared.files[0].format == READ_AS[format]
    if format in KINDS:
        assert prepare(config.data, KINDS[format]).rows == prepared.rows
    checker = Checker(load_pack(config.data.rules))
    checked = [checker.check(row) for row in prepared.rows]
    assert [(one.row.code, one.row.detail) for one in checked if isinstance(one.row, Drop)] == []
    assert [note.code for one in checked for note in one.notes] == []


def rows_of(tmp_path, format, domain="medical", language="en"):
    file, *_ = init(domain, language, format, tmp_path / f"{domain}-{language}-{format}{FORMATS[format].ending}")
    return examine(Data(files=(file,))).rows


def test_templates_formats_hold_what_they_are_for(tmp_path):
    assert [m.role for m in rows_of(tmp_path, "messages")[0].messages] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert [m.role for m in rows_of(tmp_path, "tools")[0].messages] == ["user", "assistant", "tool", "assistant"]
    assert all("list_appointments" in row.tools for row in rows_of(tmp_path, "tools", language="zh"))
    assert all(
        row.answer.startswith("<think>\n") and "</think>\n\n" in row.answer for row in rows_of(tmp_path, "reasoning")
    )
    assert all(len(row.messages) == 4 for row in rows_of(tmp_path, "history"))
    assert [row.answer for row in rows_of(tmp_path, "prompts")] == ["B", "B", "20", "D", "72", "A"]
    # The text that an instruction is about follows it, in whatever format.
    questions = {format: rows_of(tmp_path, format, "legal")[2].question for format in ("alpaca", "csv", "reasoning")}
    assert len(set(questions.values())) == 1 and "\nEither party" in questions["csv"]


def test_templates_formats_say_the_same(tmp_path):
    """A conversation is the same in messages, ShareGPT, Firefly and history, but for its system prompt."""
    talks = [
        [[(m.role, m.content) for m in row.messages if m.role != "system"] for row in rows_of(tmp_path, format)]
        for format in ("messages", "sharegpt", "firefly", "history")
    ]
    assert talks[0] == talks[1] == talks[2] == talks[3]


def test_templates_length_does_not_tell_the_better_answer():
    """Over all templates, whoever takes the longer answer is right about as often as not."""
    rows = [
        Preference((), Message("assistant", item["answer"]), Message("assistant", item["worse"]), Place("a", 1, 0))
        for domain, language in CONTENTS
        for item in yaml.safe_load((templates._FOLDER / f"{domain}.{language}.yaml").read_text("utf-8"))["items"]
    ]
    found = PreferenceStats.of(rows)
    assert found.num_pairs == 60
    assert found.length_share < 0.55 and not found.length_tells


def test_templates_functions_are_described_as_json_schema(tmp_path):
    for domain, language in CONTENTS:
        for row in rows_of(tmp_path / f"{domain}{language}", "tools", domain, language):
            (tool,) = json.loads(row.tools)
            parameters = tool["function"]["parameters"]
            (called,) = row.messages[1].calls
            arguments = json.loads(called.arguments)
            assert called.name == tool["function"]["name"]
            assert list(arguments) == list(parameters["properties"]) == parameters["required"]
            types = {"string": str, "number": (int, float), "integer": int}
            for name, schema in parameters["properties"].items():
                assert schema.keys() == {"type", "description"}
                assert isinstance(arguments[name], types[schema["type"]])


def test_templates_results_of_functions_are_said(tmp_path):
    """The last answer repeats what the function returned."""
    for language in LANGUAGES:
        for row in rows_of(tmp_path / language, "tools", "finance", language):
            result = json.loads(row.messages[2].content)
            assert all(f"{value:,.2f}" in row.answer for value in result.values()), row.answer


def test_templates_the_readme_explains_every_field(tmp_path):
    for format, chosen in FORMATS.items():
        file, readme, _ = init("support", "zh", format, tmp_path / format / f"a{chosen.ending}")
        text = readme.read_text(encoding="utf-8")
        first = file.read_text(encoding="utf-8").lstrip("[\n").splitlines()[0].rstrip(",")
        fields = first.split(",") if chosen.ending == ".csv" else json.loads(first)
        assert [name for name in fields if f"| `{name}" not in text and name not in ("system",)] == []
        for command in ("data check", "data clean --config"):
            assert f"dsr1-tune {command} {tmp_path}" in text
        verbs = {"sft": ("lora",), "preference": ("reward", "dpo"), "feedback": ("kto",), "prompt": ("grpo",)}
        for use, of_use in verbs.items():
            for verb in of_use:
                assert (f"dsr1-tune {verb} --data clean/a/train.jsonl" in text) == (chosen.use == use)


def test_templates_settings_can_be_used_as_they_are(tmp_path):
    file, _, settings = init("legal", "zh", out=tmp_path / "my law.jsonl")
    config = load_config(CleanRun, settings)
    assert config.data.files == (file,)
    assert (config.data.rules, config.language, config.out) == ("legal", "zh", Path("clean/my law"))
    # What is commented out can be used too.
    text = settings.read_text(encoding="utf-8")
    for line in ("against: [eval.jsonl]", "judge:", "ask: true", "minutes: 10"):
        assert f"# {line}\n" in text
        text = text.replace(f"# {line}\n", f"{line}\n")
    full = CleanRun.model_validate(yaml.safe_load(text))
    assert (full.judge.ask, full.dedup.against) == (True, (Path("eval.jsonl"),))


def test_templates_default_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [str(path) for path in init("finance")] == ["finance.jsonl", "finance.README.md", "finance.clean.yaml"]
    assert init("legal", format="csv")[0] == Path("legal.csv")


@pytest.mark.parametrize("taken", ["a.jsonl", "a.README.md", "a.clean.yaml"])
def test_templates_nothing_is_written_over(tmp_path, taken):
    (tmp_path / taken).write_text("mine")
    with pytest.raises(DataError, match="already there") as error:
        init("medical", out=tmp_path / "a.jsonl")
    assert taken in error.value.message and "--out" in error.value.hint
    assert [path.name for path in tmp_path.iterdir()] == [taken]
    assert (tmp_path / taken).read_text() == "mine"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"domain": "cooking"}, "medical"), ({"language": "fr"}, "zh"), ({"format": "xml"}, "sharegpt")],
)
def test_templates_unknown_names_are_refused_with_those_that_are_known(tmp_path, wrong, named):
    with pytest.raises(DataError, match="there is no") as error:
        init(**{"domain": "medical", "out": tmp_path / "a.jsonl", **wrong})
    assert named in error.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("format", "name"), [("csv", "a.jsonl"), ("messages", "a.csv"), ("alpaca", "a"), ("tools", "a.txt")]
)
def test_templates_an_ending_that_says_something_else_is_refused(tmp_path, format, name):
    with pytest.raises(DataError, match="are not written as"):
        init("medical", format=format, out=tmp_path / name)


def test_templates_the_ending_chooses_between_array_and_lines(tmp_path):
    array, *_ = init("general", format="messages", out=tmp_path / "a.json")
    lines, *_ = init("general", format="alpaca", out=tmp_path / "b.jsonl")
    assert len(json.loads(array.read_text(encoding="utf-8"))) == 6
    assert [set(json.loads(line)) for line in lines.read_text(encoding="utf-8").splitlines()] == [
        {"instruction", "input", "output"}
    ] * 6


def test_templates_texts_are_told_apart(tmp_path):
    """No two rows of a template, and no two domains, share an answer: they are data, not filler."""
    for language in LANGUAGES:
        answers = [
            item[name]
            for domain in DOMAINS
            for content in [yaml.safe_load((templates._FOLDER / f"{domain}.{language}.yaml").read_text("utf-8"))]
            for item in content["items"]
            for name in ("answer", "worse")
        ]
        assert len(answers) == len(set(answers)) == 2 * 6 * len(DOMAINS)


def test_templates_no_personal_data():
    for domain, language in CONTENTS:
        text = (templates._FOLDER / f"{domain}.{language}.yaml").read_text("utf-8")
        assert [(found.kind, text[found.start : found.end]) for found in find(text)] == []


def test_templates_are_found_in_a_wheel_and_in_a_checkout(tmp_path):
    package = tmp_path / "dsr1_tune"
    beside = tmp_path / "data_templates"
    beside.mkdir()
    assert templates.folder_beside(package) == beside
    inside = package / "data_templates"
    inside.mkdir(parents=True)
    assert templates.folder_beside(package) == inside


def test_templates_are_a_file_for_every_domain_and_language():
    files = {f"{domain}.{language}.yaml" for domain, language in CONTENTS}
    assert {file.name for file in templates._FOLDER.glob("*.yaml")} == files
