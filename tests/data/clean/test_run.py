"""`data clean` end to end: nothing lost, the same bytes for any number of workers and after a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dsr1_tune.config import CleanRun, Data, Dedup, Privacy
from dsr1_tune.data.clean import run as clean
from dsr1_tune.errors import DataError, RunError

WORDS = [
    f"{a}{b}" for a in ("kar", "lo", "mi", "nu", "pe", "so", "ta", "vi") for b in ("ban", "dor", "fel", "gim", "hus")
]
HAN = "患者医生药物血糖饮食运动检查诊断症状治疗手术康复睡眠心脏肝肾肺胃骨皮肤眼耳鼻喉发热咳嗽疼痛"


def sentence(rng: random.Random, num: int = 30) -> str:
    return " ".join(rng.choices(WORDS, k=num)).capitalize() + "."


def chinese(rng: random.Random, num: int = 60) -> str:
    return "".join(rng.choices(HAN, k=num)) + "。"


def rows(num: int, seed: int = 0) -> list[dict[str, Any]]:
    """Good rows, Chinese and English in turn, of which no two are alike."""
    rng = random.Random(seed)
    said = [(sentence(rng, 8), sentence(rng)) if n % 2 else (chinese(rng, 12), chinese(rng)) for n in range(num)]
    return [{"instruction": question, "output": answer} for question, answer in said]


def write(path: Path, some: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some), encoding="utf-8")
    return path


def run(tmp_path: Path, *files: Path, name: str = "out", **settings: Any) -> tuple[Path, dict[str, Any]]:
    share, rules = settings.pop("eval_share", 0.1), settings.pop("rules", None)
    data = settings.pop("data", Data(files=files, eval_share=share, rules=rules))
    settings.setdefault("workers", 1)
    cleaned = clean.run(CleanRun(data=data, out=tmp_path / name, **settings))
    return cleaned.folder, cleaned.facts


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def test_every_row_ends_in_one_place(tmp_path: Path) -> None:
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
    folder, facts = run(tmp_path, write(tmp_path / "rows.jsonl", some))
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


def digest(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut every few rows, so that small files have many portions."""
    from dsr1_tune.data.clean import chunks

    original = chunks.cut
    monkeypatch.setattr(clean, "cut", lambda sources, mapping=None: original(sources, mapping, 2000))


def messy(tmp_path: Path) -> list[Path]:
    """Files in several layouts, with duplicates across them."""
    some = rows(400, seed=5)
    write(tmp_path / "a.jsonl", [*some[:200], *some[50:60], {"bad": 1}])
    (tmp_path / "b.json").write_text(json.dumps(some[150:300], ensure_ascii=False, indent=1), encoding="utf-8")
    turns = [[{"from": "human", "value": r["instruction"]}, {"from": "gpt", "value": r["output"]}] for r in some[290:]]
    (tmp_path / "c.json").write_text(json.dumps([{"conversations": one} for one in turns]), encoding="utf-8")
    return [tmp_path / name for name in ("a.jsonl", "b.json", "c.json")]


def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path, small_portions: None) -> None:
    files = messy(tmp_path)
    one, facts = run(tmp_path, *files, name="one", workers=1)
    assert facts["num_merged"] == 10 + 50 + 10
    two, _ = run(tmp_path, *files, name="two", workers=2)
    assert digest(one) == digest(two)


CHILD = """
import sys
from pathlib import Path
from dsr1_tune.config import CleanRun, Data
from dsr1_tune.data import clean, portions
cut = portions.cut
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


def kill_and_compare(tmp_path: Path, times: int) -> None:
    files = messy(tmp_path)
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


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    kill_and_compare(tmp_path, 2)


@pytest.mark.slow
def test_twenty_killed_runs_go_on(tmp_path: Path) -> None:
    kill_and_compare(tmp_path, 20)


def test_what_is_done_is_not_done_again(tmp_path: Path, small_portions: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from dsr1_tune.data.clean import workers

    file = write(tmp_path / "rows.jsonl", rows(100))
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


def test_other_settings_begin_anew(tmp_path: Path, small_portions: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from dsr1_tune.data.clean import run as module

    file = write(tmp_path / "rows.jsonl", rows(60))

    def stop(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "find_copies", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, file)
    _, facts = run(tmp_path, file, privacy=Privacy(action="off"))
    assert facts["personal_data"]["action"] == "off"


def test_a_split_keeps_copies_together_though_none_is_merged(tmp_path: Path) -> None:
    good = rows(200)
    twins = [{"instruction": r["instruction"], "output": r["output"] + " Vidor."} for r in good[1::2]]
    file = write(tmp_path / "rows.jsonl", good + twins + good[:50])
    off = Dedup(exact=False, near=False, contradictions=False)
    folder, facts = run(tmp_path, file, rules="none", dedup=off, eval_share=0.2)
    assert facts["num_kept"] == 350 and facts["num_merged"] == 0
    train, held_out = (
        {row["messages"][0]["content"] for row in lines(folder / f"{n}.jsonl")} for n in ("train", "eval")
    )
    assert not train & held_out
    assert 60 <= facts["split"]["num_eval"] <= 80


def test_rows_that_hold_evaluation_questions_are_dropped(tmp_path: Path) -> None:
    good = rows(50)
    leaked = {"instruction": "A test: " + good[3]["output"], "output": "Yes."}
    file = write(tmp_path / "rows.jsonl", [*good[:40], leaked])
    against = write(tmp_path / "held.jsonl", [{"question": good[3]["output"], "answer": "B"}])
    folder, facts = run(tmp_path, file, dedup=Dedup(against=(against,)))
    assert facts["dropped"] == {"contaminated": 2}
    found = facts["contamination"]
    assert found == {"files": [str(against)], "num_questions": 1, "num_unreadable": 0, "num_rows": 2}
    assert {row["index"] for row in lines(folder / "rejected.jsonl")} == {3, 40}


def test_weights_draw_and_repeat(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", rows(200, 1)), write(tmp_path / "b.jsonl", rows(100, 2))
    data = Data(files=(f"{a}:0.7", f"{b}:2"), eval_share=0.0)
    folder, facts = run(tmp_path, data=data)
    num_drawn = facts["files"][0]["num_kept"]
    assert 120 <= num_drawn <= 160
    assert facts["dropped"] == {"not_drawn": 200 - num_drawn}
    assert facts["split"]["num_train"] == num_drawn + 100
    assert len(lines(folder / "train.jsonl")) == num_drawn + 200 == facts["split"]["num_train_lines"]


def test_preferences_and_prompts_come_out_as_they_are(tmp_path: Path) -> None:
    from dsr1_tune.data.prepare import examine

    some = [{"prompt": r["instruction"], "chosen": r["output"], "rejected": r["output"][::-1]} for r in rows(20)]
    folder, facts = run(tmp_path, write(tmp_path / "p.jsonl", some), eval_share=0.0)
    assert facts["kinds"] == {"preference": 20}
    again = examine(Data(files=(folder / "train.jsonl",)))
    assert [(r.prompt[0].content, r.chosen.content, r.rejected.content) for r in again.rows] == [
        (s["prompt"], s["chosen"], s["rejected"]) for s in some
    ]
    prompts = [{"prompt": r["instruction"], "ground_truth": "42"} for r in rows(20)]
    folder, facts = run(tmp_path, write(tmp_path / "q.jsonl", prompts), name="q", eval_share=0.0)
    assert facts["kinds"] == {"prompt": 20}
    assert [row.answer for row in examine(Data(files=(folder / "train.jsonl",))).rows] == ["42"] * 20


def test_odd_values_in_other_fields_survive(tmp_path: Path) -> None:
    good = rows(3)
    text = "".join(json.dumps({**row, "id": 1}) + "\n" for row in good)
    text = text.replace('"id": 1', '"id": 123456789012345678901234567890', 1)
    odd = [text, json.dumps({**good[0], "note": "\ud800"}), json.dumps({**good[1], "note": float("nan")})]
    file = tmp_path / "rows.jsonl"
    odd.append(json.dumps({"half \ud800": 1}))
    file.write_text("\n".join(odd), encoding="utf-8")
    folder, facts = run(tmp_path, file)
    assert facts["num_rows"] == 6 and facts["num_merged"] == 2 and facts["dropped"]["unknown_fields"] == 1
    assert [row["row"].get("note") for row in lines(folder / "rejected.jsonl")] == ["\ud800", None, None]


def test_a_taken_folder_is_left_alone(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", rows(5))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="holds no earlier result"):
        run(tmp_path, file)
    run(tmp_path, file, name="mine")
    run(tmp_path, file, name="mine")  # an earlier result is replaced
    inside = write(tmp_path / "mine" / "rows.jsonl", rows(5))
    with pytest.raises(RunError, match="would be replaced"):
        run(tmp_path, inside, name="mine")


def test_nothing_but_bad_rows(tmp_path: Path) -> None:
    folder, facts = run(tmp_path, write(tmp_path / "rows.jsonl", [{"foo": 1}] * 3))
    assert facts["num_kept"] == 0 and facts["dropped"] == {"unknown_fields": 3}
    assert lines(folder / "train.jsonl") == [] and "3" in (folder / "report.html").read_text()


def test_mapped_columns_must_exist(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", rows(3))
    with pytest.raises(DataError, match="no row has such a field"):
        run(tmp_path, data=Data(files=(file,), map={"question": "instruction", "answer": "reply"}))


@pytest.mark.parametrize("action", ["count", "redact", "drop"])
def test_personal_data(tmp_path: Path, action: Any) -> None:
    mine = {
        "instruction": "Who am I? Mail me at jo.doe@clinic.org, or jo.doe@clinic.org.",
        "output": "Jo, 13812345678?",
    }
    bad = {"instruction": "Mail max@clinic.org what?", "output": " "}
    folder, facts = run(
        tmp_path, write(tmp_path / "rows.jsonl", [*rows(10), mine, bad]), privacy=Privacy(action=action)
    )
    found = facts["personal_data"]
    assert found["action"] == action
    assert found["kinds"] == {
        "email": {"num_found": 2, "num_rows": 1},
        "cn_mobile": {"num_found": 1, "num_rows": 1},
    }
    kept = (folder / "train.jsonl").read_text() + (folder / "eval.jsonl").read_text()
    page = (folder / "report.html").read_text() + (folder / "report.json").read_text()
    assert ("jo.doe" in kept) is (action == "count")
    assert ("[EMAIL_1], or [EMAIL_1]" in kept) is (action == "redact")
    assert ("jo.doe" in page) is False and ("max@clinic" in page) is (action == "count")
    assert facts["mended"] == ({"personal_data": 1} if action == "redact" else {})
    # What was dropped is whole.
    codes = {line["code"]: line["row"] for line in lines(folder / "rejected.jsonl")}
    assert codes == {"empty_answer": bad} | ({"personal_data": mine} if action == "drop" else {})


def test_least_lengths_and_a_pack_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "pack.yaml").write_text("rules: {blocked_word: {words: [kardor]}, lengths: {min_question_chars: 3}}\n")
    some = [
        *rows(40),
        {"instruction": "Q", "output": "A long enough answer."},
        {"instruction": "Question?", "output": "A"},
    ]
    data = Data(files=(write(tmp_path / "r.jsonl", some),), rules=str(tmp_path / "pack.yaml"), min_answer_chars=2)
    _, facts = run(tmp_path, data=data)
    assert facts["dropped"]["question_too_short"] == facts["dropped"]["answer_too_short"] == 1
    assert facts["dropped"]["blocked_word"] > 1
    assert facts["examples"]["blocked_word"][0]["line"] > 0


def test_a_row_is_merged_with_a_copy_that_is_drawn(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", rows(200, 1)), write(tmp_path / "b.jsonl", rows(200, 1))
    _, facts = run(tmp_path, data=Data(files=(f"{a}:0.1", str(b)), eval_share=0.0))
    assert facts["split"]["num_train"] == 200 and facts["num_merged"] == 200


def test_the_lot_of_weights_is_not_the_lot_of_held_out_rows(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", rows(600, 1))
    _, facts = run(tmp_path, data=Data(files=(f"{file}:1.5",), eval_share=0.1))
    assert facts["split"]["num_eval"] == 60
    assert 760 <= facts["split"]["num_train_lines"] <= 860  # 810


def test_answers_to_one_prompt_stay_on_one_side(tmp_path: Path) -> None:
    some = [
        {"prompt": row["instruction"], "chosen": other["output"], "rejected": "No."}
        for number, row in enumerate(rows(40, 1))
        for other in rows(3, seed=len(row["instruction"]) * 7 + number)
    ]
    folder, facts = run(tmp_path, write(tmp_path / "p.jsonl", some), eval_share=0.2, rules="none")
    assert facts["num_kept"] == 120
    train, held_out = ({json.dumps(r["messages"]) for r in lines(folder / f"{n}.jsonl")} for n in ("train", "eval"))
    assert held_out and not train & held_out


def test_other_tools_make_another_conversation(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "I will look it up for you now."}]
    some = [{"conversations": turns, "tools": json.dumps([{"name": name}])} for name in ("weather", "stock", "weather")]
    _, facts = run(tmp_path, write(tmp_path / "t.jsonl", some), eval_share=0.0)
    assert facts["num_kept"] == 2 and facts["dropped"] == {"exact_duplicate": 1}


def test_other_numbers_in_the_answer_are_another_answer(tmp_path: Path) -> None:
    answer = "Adults take {} mg with a glass of water after the evening meal, never more than twice on the same day."
    some = [{"instruction": "How much of it may an adult take?", "output": answer.format(dose)} for dose in (500, 5000)]
    _, facts = run(tmp_path, write(tmp_path / "d.jsonl", some), eval_share=0.0)
    assert facts["num_kept"] == 2


@pytest.mark.parametrize("changed", ["words.txt", "rules.py", "parent.yaml"])
def test_changed_rules_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    (tmp_path / "words.txt").write_text("nothing\n")
    (tmp_path / "rules.py").write_text("def fine(record):\n    return True\n")
    (tmp_path / "parent.yaml").write_text("rules: {blocked_word: {files: [words.txt]}}\n")
    (tmp_path / "pack.yaml").write_text('extends: parent.yaml\ncustom: [{call: "./rules.py:fine"}]\n')
    file = write(tmp_path / "rows.jsonl", rows(30))
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


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    from filelock import FileLock

    file = write(tmp_path / "rows.jsonl", rows(5))
    with FileLock(tmp_path / ".out.lock"), pytest.raises(RunError, match="another run is writing there"):
        run(tmp_path, file)


def test_where_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "rows.jsonl", rows(5))
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    clean.run(CleanRun(data=Data(files=(file,)), out=Path("link"), workers=1))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "report.json").exists()
    with pytest.raises(RunError, match="is the folder you are in"):
        clean.run(CleanRun(data=Data(files=(file,)), out=Path(), workers=1))
    held = write(tmp_path / "real" / "held.jsonl", rows(1))
    with pytest.raises(RunError, match="would be replaced"):
        clean.run(CleanRun(data=Data(files=(file,)), dedup=Dedup(against=(held,)), out=Path("real"), workers=1))
    assert not list(tmp_path.glob(".*"))


def test_a_part_of_a_number_in_an_excerpt_is_hidden(tmp_path: Path) -> None:
    good = "".join(json.dumps(row) + "\n" for row in rows(5))
    (tmp_path / "a.jsonl").write_text(good + '{"instruction": "110101199003071233", "output": "x" "y"}\n' + good)
    folder, _ = run(tmp_path, tmp_path / "a.jsonl", privacy=Privacy(action="redact"))
    assert "3071233" not in (folder / "report.json").read_text() + (folder / "report.html").read_text()


def test_a_huge_group_is_not_held_out_whole() -> None:
    import numpy as np

    from dsr1_tune.data.clean.split import hold_out

    groups = np.array([0] * 999 + [1])
    for seed in range(20):
        assert hold_out(np.zeros(1000, np.int64), groups, 0.1, seed).sum() == 1
