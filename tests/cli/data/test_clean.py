"""`data clean`, `dedup`, `split`, `show`, `stats` and `init` as one types them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MEDICAL = Path(__file__).parents[3] / "examples" / "medical" / "medical.json"


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
