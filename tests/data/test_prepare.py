"""From files to records: nothing is lost, the split is repeatable, and what is written can be read again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsr1_tune.config import CleanRun, Data, Privacy
from dsr1_tune.data.clean import run
from dsr1_tune.data.prepare import examine, prepare, write_rejects
from dsr1_tune.data.prepare import write as write_folder
from dsr1_tune.data.prepared import Prepared
from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Drop, Feedback, Place, Preference, Prompt, Record
from dsr1_tune.errors import DataError

GOOD = [{"input": f"Q{number}", "output": f"A{number}"} for number in range(20)]
BAD = [{"input": "Q0", "output": "A0"}, {"input": "", "output": "A"}, {"input": "Q"}, 42]


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_prepare_accounts_for_every_row(write):
    files = (write("a.json", GOOD + BAD), write("b.jsonl", [*GOOD[:3], {"input": "new", "output": "B"}]))
    prepared = prepare(Data(files=files))
    assert [file.num_rows for file in prepared.files] == [24, 4]
    assert (len(prepared.records), len(prepared.drops)) == (21, 7)
    with pytest.raises(AssertionError):
        Prepared(prepared.rows[1:], prepared.drops, prepared.files)


def test_prepared_rows_can_be_dropped_by_a_later_step(write):
    prepared = prepare(Data(files=(write("a.json", GOOD),)))
    long = prepared.records[3]
    after = prepared.with_drops([Drop("too_long", "2000 tokens").at(long.place, "encode", long.row)])
    assert long not in after.records
    assert (len(after.records), after.drops[-1].row) == (19, GOOD[3])


def test_write_leaves_the_rows_the_rejects_and_the_report(write, tmp_path):
    source = write("a.json", GOOD + BAD)
    prepared = prepare(Data(files=(source,)))
    train, held_out = prepared.records[:-2], prepared.records[-2:]
    folder = tmp_path / "run" / "data"
    write_folder(prepared, folder, held_out)
    assert [(r.question, r.answer) for r in read([folder / "train.jsonl"])] == [(r.question, r.answer) for r in train]
    assert len(lines_of(folder / "eval.jsonl")) == len(held_out) == 2
    assert lines_of(folder / "train.jsonl")[0]["source"]["file"] == str(source)
    rejected = lines_of(folder / "rejected.jsonl")
    assert [row["row"] for row in rejected] == BAD
    assert rejected[1] == {
        "file": str(source),
        "line": prepared.drops[1].place.line,
        "index": 21,
        "stage": "rules",
        "code": "empty_question",
        "path": "$.input",
        "detail": "the question is blank",
        "fix": "write the question, or remove the row",
        "row": {"input": "", "output": "A"},
    }
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    counts = [report[f"num_{name}"] for name in ("rows", "kept", "merged", "dropped")]
    assert counts == [24, 20, 1, 3]
    assert (report["split"]["num_train"], report["split"]["num_eval"]) == (18, 2)


def test_write_rejects_writes_anything_that_was_read(tmp_path):
    rows = ["\ud800", 2**70, float("inf"), {"a": [[[[1]]]] * 2}, b"bytes", None]
    write_rejects([Drop("wrong_type", "x").at(Place("a", 1, 0), "read", row) for row in rows], tmp_path / "r.jsonl")
    assert [row["row"] for row in lines_of(tmp_path / "r.jsonl")][:2] == ["\ud800", 2**70]


def test_prepare_refuses_damaged_files_unless_allowed(write):
    text = json.dumps(GOOD)
    file = write("a.json", text[: text.index("Q15")])
    with pytest.raises(DataError, match=r"a\.json:1: the file ends inside this row") as caught:
        prepare(Data(files=(file,)))
    assert "train on the 15 that could be read" in caught.value.hint
    assert len(prepare(Data(files=(file,), allow_damaged=True)).records) == 15


def test_prepare_drops_rows_of_other_kinds_from_supervised_training(write):
    preference = {"prompt": "Q", "chosen": "A", "rejected": "B"}
    file = write("a.json", [*GOOD, preference])
    assert len(examine(Data(files=(file,))).rows) == 21
    (drop,) = prepare(Data(files=(file,))).drops
    assert (drop.code, drop.row) == ("not_supervised", preference)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "Q", "chosen": "A", "rejected": "B"}], "no row has an answer to learn (1 preference rows)"),
        ([{"prompt": "Q"}, {"prompt": "R"}], "no row has an answer to learn (2 prompt rows)"),
        ([{"input": "", "output": "A"}, {"input": "Q", "output": ""}], "of 2 rows none can be used"),
        ([1, 2, 3], "of 3 rows none can be used (3 not_an_object); the first"),
    ],
)
def test_prepare_says_why_nothing_can_be_learned(write, rows, said):
    with pytest.raises(DataError) as caught:
        prepare(Data(files=(write("a.json", rows),)))
    assert said in caught.value.message
    assert caught.value.hint


# Two of each, and a row that repeats none: full and half width, case, traditional characters, punctuation.
COPIES = [
    {"input": "What is aspirin for?", "output": "It lowers pain and fever."},
    {"input": "what is ＡＳＰＩＲＩＮ for", "output": "It lowers pain, and fever"},
    {"input": "糖尿病患者可以吃什么水果？", "output": "可以少量吃苹果和柚子。"},
    {"input": "糖尿病患者可以吃什麼水果?", "output": "可以少量吃蘋果和柚子"},
    {"input": "How much is a dose?", "output": "500 mg"},
    {"input": "How much is a dose?", "output": "５００ MG."},
    {"input": "How much is a dose for a child?", "output": "250 mg"},
]


def num_copies_cleaned(path, out, rules):
    config = CleanRun(data=Data(files=(path,), rules=rules), privacy=Privacy(action="off"), out=out, workers=1)
    return run.run(config).report


def num_copies_everywhere(path, tmp_path):
    """The number of exact duplicates by `data check`, by training, and by `data clean`."""
    checked = examine(Data(files=(path,))).report()
    kinds = checked["kinds"]
    kind = next(kind for kind in (Record, Preference, Feedback, Prompt) if kind.__name__.lower() in kinds)
    trained = prepare(Data(files=(path,)), kind).report()
    cleaned = num_copies_cleaned(path, tmp_path / "cleaned", "none")
    return [report["duplicates"]["num_exact"] for report in (checked, trained, cleaned)]


def test_exact_duplicates_are_as_many_for_check_training_and_clean(write, tmp_path):
    assert num_copies_everywhere(write("copies.json", COPIES), tmp_path) == [3, 3, 3]


def test_exact_duplicates_are_as_many_under_the_same_rules(write, tmp_path):
    path = write("copies.json", [*COPIES, {"input": "What is a heart attack?", "output": "TODO"}])
    trained = prepare(Data(files=(path,), rules="general")).report()
    cleaned = num_copies_cleaned(path, tmp_path / "cleaned", "general")
    for report in (trained, cleaned):
        assert (report["dropped"]["exact_duplicate"], report["dropped"]["placeholder_answer"]) == (3, 1)


def test_reports_of_training_check_and_clean_have_one_schema(write, tmp_path):
    path = write("copies.json", COPIES)
    write_folder(prepare(Data(files=(path,))), tmp_path / "run")
    trained = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    cleaned = num_copies_cleaned(path, tmp_path / "cleaned", "none")
    assert list(trained) == list(examine(Data(files=(path,))).report()) == list(cleaned)
    for report in (trained, cleaned):
        assert report["num_rows"] == report["num_kept"] + report["num_merged"] + report["num_dropped"] == 7
        assert [list(file) for file in report["files"]] == [list(file) for file in cleaned["files"]]


REAL_FILES = [
    *("LLaMA-Factory/alpaca_en_demo.json", "LLaMA-Factory/alpaca_zh_demo.json", "LLaMA-Factory/dpo_en_demo.json"),
    *("LLaMA-Factory/glaive_toolcall_zh_demo.json", "LLaMA-Factory/v1_sft_demo.jsonl", "Huatuo/llama_data.json"),
    *("Huatuo/liver_cancer.json", "DISC-LawLLM/qa_short_answer.json", "Zhongjing/CMtMedQA_test.json"),
    *("GPTeacher/toolformer-similarity-0.9-dataset.json", "GPTeacher/toolformer-dedupe-only-dataset.json"),
    pytest.param("Chinese-medical-dialogue-data/样例_内科5000-6000.csv", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", REAL_FILES)
def test_exact_duplicates_of_a_real_file_are_as_many_everywhere(real, tmp_path, name):
    assert len(set(num_copies_everywhere(real(name), tmp_path))) == 1


EXAMPLES = Path(__file__).parents[2] / "examples"
DATA_FILES = sorted(
    file for kind in ("*.json", "*.jsonl") for file in EXAMPLES.rglob(kind) if file.name != "answers.jsonl"
)


@pytest.mark.parametrize("path", DATA_FILES, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_exact_duplicates_of_an_example_are_as_many_everywhere(tmp_path, path):
    assert len(set(num_copies_everywhere(path, tmp_path))) == 1


def test_contradicted_pairs_and_their_copies_are_counted_alike(write, tmp_path):
    pair = {"prompt": "What is a chair for?", "chosen": "One sits on it.", "rejected": "One stands on it."}
    turned = {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]}
    other = {"prompt": "What is a pen for?", "chosen": "One writes with it.", "rejected": "One eats with it."}
    path = write("pairs.jsonl", [pair, pair, turned, other])
    reports = [examine(Data(files=(path,))).report(), num_copies_cleaned(path, tmp_path / "cleaned", "none")]
    for report in reports:
        assert report["dropped"] == {"contradictory_preference": 2, "exact_duplicate": 1}


def test_a_row_that_clean_wrote_twice_is_learned_twice(write, tmp_path):
    path = write("a.jsonl", GOOD[:4])
    config = CleanRun(data=Data(files=(f"{path}:2",), eval_share=0.25), out=tmp_path / "cleaned", workers=1)
    cleaned = run.run(config).folder
    prepared = prepare(Data(files=(cleaned,)))
    assert sum(row.place.file.endswith("train.jsonl") for row in prepared.rows) == 6
    assert len(prepared.eval_rows) == 1 and prepared.drops == ()
    copied = write("copied.jsonl", (cleaned / "train.jsonl").read_text(encoding="utf-8"))
    both = prepare(Data(files=(cleaned / "train.jsonl", copied)))
    assert {drop.code for drop in both.drops} == {"exact_duplicate"} and len(both.rows) == 6


def test_a_copy_in_a_file_of_little_weight_yields_to_one_that_is_taken_for_sure(write):
    few, all_ = write("few.json", GOOD), write("all.json", GOOD)
    prepared = prepare(Data(files=(f"{few}:0.1", all_)))
    assert len(prepared.rows) == 20 and {row.place.file for row in prepared.rows} == {str(all_)}
    assert {drop.code for drop in prepared.drops} == {"exact_duplicate"}


# Evaluation files of the user's own.

LONG = "Drink enough water, rest for a few days, and keep away from others while the fever lasts."
TAUGHT = [
    {"input": "How do I treat a cold at home?", "output": LONG},
    {"input": "How do I treat a cold at home, please?", "output": LONG + " Good luck."},
    {"input": "How is a burn cooled?", "output": "Under cool running water, for twenty minutes."},
    {"input": "What is a sprain?", "output": "A ligament that was stretched too far."},
]
EVALUATED = [
    {"input": "How do I treat a cold at home?", "output": LONG},
    {"input": "How do I treat a cold at home?", "output": LONG},
    {"input": "What is a bruise?", "output": "B"},
]


def test_eval_files_are_kept_whole_and_their_copies_leave_the_training_rows(write):
    files, evaluated = (write("a.jsonl", TAUGHT),), (write("eval.jsonl", EVALUATED),)
    prepared = prepare(Data(files=files, eval_files=evaluated, min_answer_chars=2))
    assert len(prepared.eval_rows) == 3, "an evaluation file is what it is: its own duplicates and short answers stay"
    assert [(drop.code, drop.place.index) for drop in prepared.drops] == [("contaminated", 0), ("contaminated", 1)]
    assert str(evaluated[0]) in prepared.drops[0].detail
    found = prepared.report()["contamination"]
    assert found == {"files": [str(evaluated[0])], "num_questions": 3, "num_unreadable": 0, "num_rows": 2}
    assert len(prepare(Data(files=files)).rows) == 4


def test_an_eval_file_among_the_training_files_is_refused(write):
    path = write("a.jsonl", TAUGHT)
    with pytest.raises(DataError, match="named twice"):
        prepare(Data(files=(path,), eval_files=(path,)))


def test_a_cleaned_folder_is_prepared_as_it_stands(write, tmp_path):
    rows = [{"input": f"What is item {number} for?", "output": f"It is for use {number}."} for number in range(40)]
    cleaned = run.run(CleanRun(data=Data(files=(write("a.json", rows),)), out=tmp_path / "cleaned", workers=1)).folder
    prepared = prepare(Data(files=(cleaned,)))
    assert [len(lines_of(cleaned / f"{name}.jsonl")) for name in ("train", "eval")] == [
        len(prepared.rows) - len(prepared.eval_rows),
        len(prepared.eval_rows),
    ]
    assert prepared.drops == () and prepared.eval_files == {str(cleaned / "eval.jsonl")}


def test_rules_in_training_let_files_leave_out_full_stops_as_clean_does(write, tmp_path):
    stem = "Rest, drink enough water, and keep the arm still until the swelling has gone down, after"
    rows = [
        {"input": f"What helps against complaint {number}?", "output": f"{stem} {number} more days"}
        for number in range(60)
    ]
    path = write("forum.jsonl", rows)
    trained = prepare(Data(files=(path,), rules="general")).report()
    cleaned = num_copies_cleaned(path, tmp_path / "cleaned", "general")
    assert trained["noted"] == cleaned["noted"] and trained["num_kept"] == cleaned["num_kept"]
