"""Real public data sets: every row is read, and only true duplicates fall out."""

from __future__ import annotations

import pytest

from dsr1_tune.config import Data
from dsr1_tune.data.prepare import examine

# file, format, encoding, rows, dropped
FILES = [
    ("LLaMA-Factory/alpaca_en_demo.json", "Alpaca", "utf-8", 999, {"exact_duplicate": 14}),
    ("LLaMA-Factory/alpaca_zh_demo.json", "Alpaca", "utf-8", 1000, {"exact_duplicate": 8}),
    ("LLaMA-Factory/dpo_en_demo.json", "preference", "utf-8", 300, {"exact_duplicate": 5}),
    ("LLaMA-Factory/glaive_toolcall_zh_demo.json", "ShareGPT", "utf-8", 300, {"exact_duplicate": 43}),
    ("LLaMA-Factory/v1_sft_demo.jsonl", "messages", "utf-8", 500, {"exact_duplicate": 1}),
    ("Huatuo/llama_data.json", "Alpaca", "utf-8", 8658, {}),
    ("Huatuo/liver_cancer.json", "Alpaca", "utf-8", 1000, {}),
    ("DISC-LawLLM/qa_short_answer.json", "question-answer", "utf-8", 300, {"exact_duplicate": 3}),
    ("Zhongjing/CMtMedQA_test.json", "Alpaca", "utf-8", 1144, {"exact_duplicate": 6}),
    ("GPTeacher/toolformer-similarity-0.9-dataset.json", "Alpaca", "utf-8", 5959, {}),
    (
        "Chinese-medical-dialogue-data/样例_内科5000-6000.csv",
        "question-answer",
        "gb18030",
        7644,
        {"exact_duplicate": 378},
    ),
    ("axolotl/conversation.missingturns.json", "ShareGPT", "utf-8", 1, {"empty_answer": 1}),
]


@pytest.mark.parametrize(("name", "kind", "encoding", "num_rows", "dropped"), FILES, ids=[f[0] for f in FILES])
def test_real_file(real, name, kind, encoding, num_rows, dropped):
    summary = examine(Data(files=(real(name),))).report()
    (file,) = summary["files"]
    assert (file["format"], file["encoding"], file["num_rows"]) == (kind, encoding, num_rows)
    assert summary["dropped"] == dropped
