"""`data clean` end to end: nothing lost, the same bytes for any number of workers and after a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from dsr1_tune.config import CleanRun, Data, Dedup, Privacy
from dsr1_tune.config.load import load_config
from dsr1_tune.data.clean import run as clean
from dsr1_tune.errors import ConfigError, DataError, RunError
from dsr1_tune.lock import locked


def test_clean_accounts_for_every_row(tmp_path: Path, rows: Any, write_lines: Any, run: Any, lines: Any) -> None:
    good = rows(300)
    some = [
        *good,
        good[7],  # the same
        {"instruction": good[8]["instruction"].upper(), "output": good[8]["output"] + "  "},  # the same
        {"instruction": good[11]["instruction"], "output": good[11]["output"].replace("kar", "kur", 1) + " Yes."},
        {"instruction": "Which river is longer?", "output": "the first"},
        {"instruction": "Which river is longer?", "output": "the second"},
        {"instruction": "Q", "output": "  "},
        {"foo": 1},
    ]
    folder, facts = run(tmp_path, write_lines(tmp_path / "rows.jsonl", some))
    assert sorted(path.name for path in folder.iterdir()) == [
        "duplicates.jsonl",
        "eval.jsonl",
        "rejected.jsonl",
        "report.html",
        "report.json",
        "train.jsonl",
    ]
    train, held_out, rejected = (lines(folder / f"{name}.jsonl") for name in ("train", "eval", "rejected"))
    index = [row["source"]["index"] for row in train + held_out] + [row["index"] for row in rejected]
    assert sorted(index) == list(range(len(some)))
    assert {row["index"]: row["code"] for row in rejected} == {
        300: "exact_duplicate",
        301: "exact_duplicate",
        11: "near_duplicate",  # the later one has the longer answer
        303: "contradictory_answer",
        304: "contradictory_answer",
        305: "empty_answer",
        306: "unknown_fields",
    }
    assert [row["row"] for row in rejected] == [some[row["index"]] for row in rejected]
    assert (
        rejected[0]["detail"].endswith("with line 303 (row 302)")
        and rejected[1]["detail"] == "the same as line 8 (row 7)"
    )
    assert "'the second'" in rejected[3]["detail"]
    assert len(held_out) == 30 and facts["split"]["num_eval"] == 30
    assert (facts["num_rows"], facts["num_kept"], facts["num_merged"], facts["num_dropped"]) == (307, 300, 3, 4)
    assert [stage["num_out"] for stage in facts["stages"]] == [306, 305, 305, 305, 300, 300, 300]
    groups = lines(folder / "duplicates.jsonl")
    assert [(g["kind"], g["kept"]["line"], [m["line"] for m in g["merged"]]) for g in groups] == [
        ("exact", 8, [301]),
        ("exact", 9, [302]),
        ("near", 303, [12]),
    ]
    assert json.loads((folder / "report.json").read_text()) == facts
    assert not list(tmp_path.glob(".out*")), "the workplace is gone"


def test_clean_gives_the_same_bytes_for_any_number_of_workers(
    tmp_path: Path, small_chunks: None, run: Any, digest: Any, messy: Any
) -> None:
    files = messy(tmp_path)
    one, facts = run(tmp_path, *files, name="one", workers=1)
    assert facts["num_merged"] == 10 + 50 + 10
    two, _ = run(tmp_path, *files, name="two", workers=2)
    assert digest(one) == digest(two)


CHILD = """
import sys
from pathlib import Path
from dsr1_tune.config import CleanRun, Data
from dsr1_tune.data.clean import chunks
from dsr1_tune.config.load import load_config
from dsr1_tune.data.clean import run as clean
cut = chunks.cut
clean.cut = lambda sources, mapping=None: cut(sources, mapping, 2000)
if __name__ == "__main__":
    files = tuple(map(Path, sys.argv[2:]))
    clean.run(CleanRun(data=Data(files=files), out=Path(sys.argv[1]), workers=1))
"""


def killed_after(seconds: float, out: Path, files: list[Path]) -> bool:
    """Run in a process of its own and kill it; whether it was still at work."""
    command = [sys.executable, "-c", CHILD, str(out), *map(str, files)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def kill_and_compare(tmp_path: Path, files: list[Path], digest: Any, times: int) -> None:
    start = time.monotonic()
    assert not killed_after(120, tmp_path / "whole", files)
    took = time.monotonic() - start
    rng = random.Random(7)
    num_killed = 0
    for number in range(times):
        out = tmp_path / f"out{number}"
        num_killed += killed_after(rng.uniform(0.3, 1.0) * took, out, files)
        assert not out.exists() or digest(out) == digest(tmp_path / "whole"), "a folder is there whole or not at all"
        assert not killed_after(120, out, files)
        assert digest(out) == digest(tmp_path / "whole")
    assert num_killed >= times // 3


@pytest.mark.slow
def test_clean_goes_on_after_twenty_kills(tmp_path: Path, messy: Any, digest: Any) -> None:
    kill_and_compare(tmp_path, messy(tmp_path), digest, 20)


def test_clean_does_not_scan_again_what_is_done(
    tmp_path: Path,
    small_chunks: None,
    monkeypatch: pytest.MonkeyPatch,
    rows: Any,
    write_lines: Any,
    run: Any,
    digest: Any,
) -> None:
    from dsr1_tune.data.clean import workers

    file = write_lines(tmp_path / "rows.jsonl", rows(100))
    whole, _ = run(tmp_path, file, name="whole")
    saved: list[int] = []
    original = workers.save

    def save_few(scanned: Any, folder: Path, number: int) -> None:
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(number)
        original(scanned, folder, number)

    monkeypatch.setattr(workers, "save", save_few)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, file)
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.work").exists()
    monkeypatch.setattr(
        workers, "save", lambda scanned, folder, number: (saved.append(number), original(scanned, folder, number))
    )
    folder, _ = run(tmp_path, file)
    assert saved == list(range(len(saved))) and len(saved) > 6
    assert digest(folder)["train.jsonl"] == digest(whole)["train.jsonl"]


def test_clean_begins_anew_with_other_settings(
    tmp_path: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch, rows: Any, write_lines: Any, run: Any
) -> None:
    from dsr1_tune.data.clean import run as module

    file = write_lines(tmp_path / "rows.jsonl", rows(60))

    def stop(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "find_copies", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, file)
    _, facts = run(tmp_path, file, privacy=Privacy(action="off"))
    assert facts["personal_data"]["action"] == "off"


def test_clean_draws_and_repeats_rows_by_weight(
    tmp_path: Path, rows: Any, write_lines: Any, run: Any, lines: Any
) -> None:
    a, b = write_lines(tmp_path / "a.jsonl", rows(200, 1)), write_lines(tmp_path / "b.jsonl", rows(100, 2))
    data = Data(files=(f"{a}:0.7", f"{b}:2"), eval_share=0.0)
    folder, facts = run(tmp_path, data=data)
    num_drawn = facts["files"][0]["num_kept"]
    assert 120 <= num_drawn <= 160
    assert facts["dropped"] == {"not_drawn": 200 - num_drawn}
    assert facts["split"]["num_train"] == num_drawn + 100
    assert len(lines(folder / "train.jsonl")) == num_drawn + 200 == facts["split"]["num_train_lines"]


def test_clean_leaves_a_taken_folder_alone(tmp_path: Path, rows: Any, write_lines: Any, run: Any) -> None:
    file = write_lines(tmp_path / "rows.jsonl", rows(5))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="holds no earlier result"):
        run(tmp_path, file)
    run(tmp_path, file, name="mine")
    run(tmp_path, file, name="mine")  # an earlier result is replaced
    inside = write_lines(tmp_path / "mine" / "rows.jsonl", rows(5))
    with pytest.raises(RunError, match="would be replaced"):
        run(tmp_path, inside, name="mine")


def test_clean_reports_a_file_of_bad_rows(tmp_path: Path, write_lines: Any, run: Any, lines: Any) -> None:
    folder, facts = run(tmp_path, write_lines(tmp_path / "rows.jsonl", [{"foo": 1}] * 3))
    assert facts["num_kept"] == 0 and facts["dropped"] == {"unknown_fields": 3}
    assert lines(folder / "train.jsonl") == [] and "3" in (folder / "report.html").read_text()


def test_clean_refuses_mapped_columns_that_no_row_has(tmp_path: Path, rows: Any, write_lines: Any, run: Any) -> None:
    file = write_lines(tmp_path / "rows.jsonl", rows(3))
    with pytest.raises(DataError, match="no row has such a field"):
        run(tmp_path, data=Data(files=(file,), map={"question": "instruction", "answer": "reply"}))


def test_clean_applies_least_lengths_and_a_pack_of_ones_own(
    tmp_path: Path, rows: Any, write_lines: Any, run: Any
) -> None:
    (tmp_path / "pack.yaml").write_text("rules: {blocked_word: {words: [kardor]}, lengths: {min_question_chars: 3}}\n")
    some = [
        *rows(40),
        {"instruction": "Q", "output": "A long enough answer."},
        {"instruction": "Question?", "output": "A"},
    ]
    data = Data(files=(write_lines(tmp_path / "r.jsonl", some),), rules=str(tmp_path / "pack.yaml"), min_answer_chars=2)
    _, facts = run(tmp_path, data=data)
    assert facts["dropped"]["question_too_short"] == facts["dropped"]["answer_too_short"] == 1
    assert facts["dropped"]["blocked_word"] > 1
    assert facts["examples"]["blocked_word"][0]["line"] > 0


def test_clean_draws_weights_and_held_out_rows_apart(tmp_path: Path, rows: Any, write_lines: Any, run: Any) -> None:
    file = write_lines(tmp_path / "a.jsonl", rows(600, 1))
    _, facts = run(tmp_path, data=Data(files=(f"{file}:1.5",), eval_share=0.1))
    assert facts["split"]["num_eval"] == 60
    assert 760 <= facts["split"]["num_train_lines"] <= 860  # 810


@pytest.mark.parametrize("changed", ["words.txt", "rules.py", "parent.yaml"])
def test_clean_begins_anew_with_changed_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str, rows: Any, write_lines: Any, run: Any
) -> None:
    (tmp_path / "words.txt").write_text("nothing\n")
    (tmp_path / "rules.py").write_text("def fine(record):\n    return True\n")
    (tmp_path / "parent.yaml").write_text("rules: {blocked_word: {files: [words.txt]}}\n")
    (tmp_path / "pack.yaml").write_text('extends: parent.yaml\ncustom: [{call: "./rules.py:fine"}]\n')
    file = write_lines(tmp_path / "rows.jsonl", rows(30))
    data = Data(files=(file,), rules=str(tmp_path / "pack.yaml"))

    def stop(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(clean, "find_copies", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, data=data)
    scanned = tmp_path / ".out.work" / "000000.scan"
    os.utime(scanned, (0, 0))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, data=data)
    assert scanned.stat().st_mtime == 0, "nothing was changed, nothing is done again"
    texts = {"words.txt": "kardor\n", "rules.py": "def fine(record):\n    return False  # changed\n"}
    texts["parent.yaml"] = "rules: {lengths: {min_answer_chars: 900}}\n"
    (tmp_path / changed).write_text(texts[changed])
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, data=data)
    assert scanned.stat().st_mtime > 0


def test_clean_refuses_a_folder_that_another_run_writes(tmp_path: Path, rows: Any, write_lines: Any, run: Any) -> None:
    file = write_lines(tmp_path / "rows.jsonl", rows(5))
    with locked(tmp_path / ".out.lock", "busy"), pytest.raises(RunError, match="another run is writing there"):
        run(tmp_path, file)


def test_clean_writes_to_a_vacant_folder_or_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: Any, write_lines: Any
) -> None:
    file = write_lines(tmp_path / "rows.jsonl", rows(5))
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    clean.run(CleanRun(data=Data(files=(file,)), out=Path("link"), workers=1))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "report.json").exists()
    with pytest.raises(RunError, match="is the folder you are in"):
        clean.run(CleanRun(data=Data(files=(file,)), out=Path(), workers=1))
    held = write_lines(tmp_path / "real" / "held.jsonl", rows(1))
    with pytest.raises(RunError, match="would be replaced"):
        clean.run(CleanRun(data=Data(files=(file,)), dedup=Dedup(against=(held,)), out=Path("real"), workers=1))
    assert not list(tmp_path.glob(".*"))


def test_clean_refuses_a_cleaned_folder_and_evaluation_files(
    tmp_path: Path, rows: Any, write_lines: Any, run: Any
) -> None:
    folder, _ = run(tmp_path, write_lines(tmp_path / "rows.jsonl", rows(40)))
    for flags in ({"data.files": [str(folder)]}, {"data.files": ["a.json"], "data.eval_files": ["b.json"]}):
        with pytest.raises(ConfigError, match="data clean holds rows out by itself"):
            load_config(CleanRun, None, flags)


def test_copies_in_other_stored_forms_are_found_and_texts_stay_as_they_are(
    tmp_path: Path, write_lines: Any, run: Any, lines: Any
) -> None:
    def apart(text: str) -> str:
        return unicodedata.normalize("NFD", text)

    said = {
        "대한민국의 수도는 어디입니까?": "대한민국의 수도는 서울이며 한강을 끼고 있는 큰 도시입니다.",
        "Thủ đô của Việt Nam là gì?": "Thủ đô của Việt Nam là Hà Nội, một thành phố rất lâu đời.",
        "Où se trouve la forêt des Ardennes ?": "Elle se trouve entre la Belgique et le Luxembourg, près de l'Eifel.",
    }
    some = [{"instruction": asked, "output": answer} for asked, answer in said.items()]
    stored = [{name: apart(text) for name, text in row.items()} for row in some]
    leaked = apart("Quelle rivière traverse la ville de Besançon en été ?")
    other = {"instruction": apart("Où se trouve la forêt de Soignes ?"), "output": apart("Elle est près de Bruxelles.")}
    file = write_lines(tmp_path / "rows.jsonl", [*stored, *some, {"instruction": leaked, "output": "Le Doubs."}, other])
    asked = write_lines(tmp_path / "eval.jsonl", [{"question": unicodedata.normalize("NFC", leaked), "answer": "x"}])
    folder, _ = run(tmp_path, file, dedup=Dedup(against=(asked,)), eval_share=0.0)
    codes = {row["index"]: row["code"] for row in lines(folder / "rejected.jsonl")}
    assert codes == {3: "exact_duplicate", 4: "exact_duplicate", 5: "exact_duplicate", 6: "contaminated"}
    written = [[message["content"] for message in row["messages"]] for row in lines(folder / "train.jsonl")]
    assert written == [list(row.values()) for row in (*stored, other)]
