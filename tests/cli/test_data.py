"""`dsr1-tune data check`: exit codes, tables, JSON and the rejects file; and the other verbs as one types them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dsr1_tune.cli.data import app
from dsr1_tune.errors import TuneError

GOOD = [
    {"input": "What is aspirin for?", "output": "Pain and fever."},
    {"input": "感冒了怎么办？", "output": "多休息。"},
]
BAD = [{"input": "What is aspirin for?", "output": " "}, {"input": "Q", "ouput": "A"}]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def check(*arguments):
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def dump(name, rows):
    Path(name).write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return name


def test_good_data():
    result = check(dump("good.json", GOOD))
    assert result.exit_code == 0
    assert "All 2 rows are good (2 records)." in result.output
    assert [path.name for path in Path().iterdir()] == ["good.json"]


def test_a_single_good_row():
    result = check(dump("one.json", GOOD[:1]))
    assert result.exit_code == 0 and "The only row is good (1 record)." in result.output


def test_bad_rows_are_listed_and_written():
    result = check(dump("medical.json", GOOD + BAD))
    assert result.exit_code == 1
    assert "empty_answer" in result.output and "rename 'ouput' to 'output'" in result.output
    assert "The bad rows (2) are in medical.rejects.jsonl" in result.output
    rejects = [json.loads(line) for line in Path("medical.rejects.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["row"] for row in rejects] == BAD


def test_json_is_all_that_stdout_holds():
    result = check(dump("medical.json", GOOD + BAD), "--json", "--rejects", "bad/rows.jsonl")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert (report["num_rows"], report["num_kept"]) == (4, 2)
    assert [(row["line"], row["index"], row["code"], row["path"]) for row in report["bad_rows"]] == [
        (10, 2, "empty_answer", "$.output"),
        (14, 3, "missing_field", "$.output"),
    ]
    assert Path(report["rejects"]).exists()


def test_json_of_good_data():
    report = json.loads(check(dump("good.json", GOOD), "--json").stdout)
    assert (report["bad_rows"], report["rejects"]) == ([], None)


def test_map():
    file = dump("forum.json", [{"title": "Q", "text": "A"}])
    assert check(file).exit_code == 1
    assert check(file, "--map", "question=title,answer=text").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.json"], "no such file"),
        (["good.json", "--map", "answer=reply"], "no row has such a field"),
        (["good.json", "--map", "answer"], "not of the form"),
        (["good.json", "--rejects", "good.json"], "would be written over this data file"),
        (["empty.json"], "is empty"),
    ],
)
def test_what_cannot_be_read_is_an_error_with_exit_code_2(arguments, message):
    dump("good.json", GOOD)
    Path("empty.json").touch()
    error = check(*arguments).exception
    assert isinstance(error, TuneError)
    assert message in error.message and error.hint and error.exit_code == 2


def test_a_truncated_file_is_reported_with_exit_code_1():
    Path("cut.json").write_text(json.dumps(GOOD)[:-20], encoding="utf-8")
    result = check("cut.json")
    assert result.exit_code == 1
    assert "json_truncated" in result.output and "damaged" in result.output


def test_rejects_that_cannot_be_written_do_not_hide_the_report():
    Path("a file").touch()
    result = check(dump("medical.json", GOOD + BAD), "--rejects", "a file/rows.jsonl")
    assert isinstance(result.exception, TuneError)
    assert "--rejects" in result.exception.hint


def test_help_without_arguments():
    result = CliRunner().invoke(app, [])
    assert "check" in result.output


def test_a_second_file_of_the_default_name_is_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text('[{"input": "Q", "output": ""}]')
    mended = '{"input": "Q", "output": "A"}\n'
    (tmp_path / "a.rejects.jsonl").write_text(mended)
    result = CliRunner().invoke(app, ["check", "a.json", "a.rejects.jsonl"])
    assert isinstance(result.exception, TuneError)
    assert "--rejects" in result.exception.hint
    assert (tmp_path / "a.rejects.jsonl").read_text() == mended


# --- clean, dedup, split, show, stats, init ---------------------------------------------------------------------------

MEDICAL = Path(__file__).parents[2] / "examples" / "medical" / "medical.json"


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dsr1_tune", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    shutil.copy(MEDICAL, tmp_path / "medical.json")
    return tmp_path


def test_clean_says_what_it_did(here: Path) -> None:
    done = run("data", "clean", "medical.json", "--workers", "1", cwd=here)
    assert done.returncode == 0, done.stderr
    report = json.loads((here / "clean" / "medical" / "report.json").read_text())
    assert report["num_rows"] == 224 and 16 <= report["num_merged"] + report["num_dropped"] <= 20
    assert f"{report['num_kept']} of 224 rows are kept" in done.stdout
    for code in report["dropped"]:
        assert code in done.stdout
    # What came out can be trained on, and shown.
    assert run("data", "check", "clean/medical/train.jsonl", cwd=here).returncode == 0
    shown = run("data", "show", "clean/medical/rejected.jsonl", "--code", next(iter(report["dropped"])), cwd=here)
    assert shown.returncode == 0 and next(iter(report["dropped"])) in shown.stdout


def test_parts_of_it(here: Path) -> None:
    merged = run("data", "dedup", "medical.json", "--out", "merged", "--workers", "1", cwd=here)
    assert merged.returncode == 0, merged.stderr
    report = json.loads((here / "merged" / "report.json").read_text())
    # Only what cannot be read, or says the same, falls out.
    assert set(report["dropped"]) & {"refusal", "placeholder_answer", "contradictory_answer"} == set()
    assert report["split"]["num_eval"] == 0 and report["num_merged"] > 0
    split = run("data", "split", "medical.json", "--out", "parts", "--eval-share", "0.25", "--workers", "1", cwd=here)
    assert split.returncode == 0, split.stderr
    report = json.loads((here / "parts" / "report.json").read_text())
    assert report["num_merged"] == 0 and 0.2 < report["split"]["num_eval"] / report["num_kept"] < 0.3


def test_stats_and_init(here: Path) -> None:
    stats = run("data", "stats", "medical.json", "--json", cwd=here)
    assert stats.returncode == 0 and json.loads(stats.stdout)["num_rows"] == 224
    made = run("data", "init", "--domain", "legal", "--language", "zh", cwd=here)
    assert made.returncode == 0 and (here / "legal.jsonl").exists()
    assert run("data", "init", "--domain", "legal", "--language", "zh", cwd=here).returncode == 2
    cleaned = run("data", "clean", "--config", "legal.clean.yaml", "--workers", "1", cwd=here)
    assert cleaned.returncode == 0, cleaned.stderr
    assert (here / "clean" / "legal" / "report.html").read_text(encoding="utf-8").count("数据") > 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["medcal.json"], "did you mean"),
        (["medical.json", "--rules", "medcal"], "did you mean medical"),
        (["medical.json", "--privacy", "hide"], "privacy.action"),
        (["medical.json", "--set", "privacy.kinds=[emial]"], "did you mean email"),
        (["medical.json", "--set", "dedup.similarity=2"], "dedup.similarity"),
        (["medical.json", "--against", "none.jsonl"], "no such file"),
        (["medical.json", "--engine", "spark"], "engine"),
        (["medical.json", "--out", "medical.json"], "is a file"),
        (["medical.json:0"], "weights.medical.json: Input should be greater than 0"),
        ([], "no data file is given"),
    ],
)
def test_mistakes_are_told(here: Path, words: list[str], said: str) -> None:
    failed = run("data", "clean", *words, "--workers", "1", cwd=here)
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert said in failed.stderr and "Traceback" not in failed.stderr
    assert not (here / "clean").exists() and not list(here.glob("**/.*.work"))
