"""Pairs and feedback as tokens: what the prompt is, what the answers are, what falls out, and what is held out."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsr1_tune.align.preference.encode import as_feedback_rows, as_rows, encode_feedback, encode_pair, encode_pairs
from dsr1_tune.config import AlignRun, Data, DpoRun, KtoRun
from dsr1_tune.data.encode.chat_template import render_prompt
from dsr1_tune.data.encode.example import IGNORED
from dsr1_tune.data.prepare import prepare, write
from dsr1_tune.data.prepared import FileSummary, Prepared
from dsr1_tune.data.record import Drop, Feedback, Message, Place, Preference
from dsr1_tune.errors import DataError
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.kept_rows import eval_subset_examples, kept_records
from tests.conftest import CHATML

Write = Callable[..., Prepared]
THINKING = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")


@pytest.fixture
def pairs(tmp_path: Path) -> Write:
    """pairs((question, chosen, rejected), ...) is a file of them, read."""

    def write(*rows: tuple[str, str, str]) -> Prepared:
        path = tmp_path / "pairs.jsonl"
        named = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows]
        path.write_text("\n".join(map(json.dumps, named)))
        return prepare(Data(files=(path,)), Preference)

    return write


def feedback(*rows: tuple[str, str, bool]) -> Prepared:
    read = [
        Feedback((Message("user", asked),), Message("assistant", said), is_good, Place("f.jsonl", number + 1, number))
        for number, (asked, said, is_good) in enumerate(rows)
    ]
    return Prepared(tuple(read), (), (FileSummary("f.jsonl", "jsonl", "utf-8", "feedback", len(read)),))


def configured(kind: type[AlignRun] = DpoRun, max_tokens: int = 200, **more: Any) -> Any:
    return kind.model_validate({"schedule": {"max_tokens": max_tokens}, **more})


def said(tokenizer: Any, ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(ids))


TWO = (("why?", "because it is so", "no"), ("when?", "now", "tomorrow, perhaps"))


def test_encoded_pair_has_two_answers_to_one_prompt_that_end_their_turn(pairs: Write, tiny_tokenizer: Any) -> None:
    data = encode_pairs(pairs(*TWO), tiny_tokenizer, configured())
    for one in (*data.train, *data.held_out):
        asked, chosen, rejected = next(row for row in TWO if row[0] == one.preference.prompt[0].content)
        assert said(tiny_tokenizer, one.prompt_ids) == render_prompt(one.record, tiny_tokenizer).text
        assert said(tiny_tokenizer, one.prompt_ids).endswith("<|im_start|>assistant\n")
        assert said(tiny_tokenizer, one.chosen_ids) == f"{chosen}<|im_end|>"
        assert said(tiny_tokenizer, one.rejected_ids) == f"{rejected}<|im_end|>"
        whole = tiny_tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}, {"role": "assistant", "content": chosen}], tokenize=False
        )
        assert said(tiny_tokenizer, one.prompt_ids + one.chosen_ids) == whole.rstrip()
        assert len(one.input_ids) == len(one.prompt_ids) + max(len(one.chosen_ids), len(one.rejected_ids))
    rows = as_rows(data.train)
    assert rows.column_names == ["prompt_ids", "chosen_ids", "rejected_ids"] and len(rows) == 1


def test_encoded_answers_close_a_thought_that_the_prompt_opens(pairs: Write, tiny_tokenizer: Any) -> None:
    before, tiny_tokenizer.chat_template = tiny_tokenizer.chat_template, THINKING
    try:
        rows = (("why?", "<think>hm</think>because", "so"), ("when?", "now", "<think>\nlet me see\n</think>\n\nlater"))
        data = encode_pairs(pairs(*rows), tiny_tokenizer, configured())
        stripped = encode_pairs(pairs(*rows), tiny_tokenizer, configured(sequences={"think": "strip"}))
    finally:
        tiny_tokenizer.chat_template = before
    told = {one.preference.prompt[0].content: one for one in (*data.train, *data.held_out)}
    for one in told.values():
        assert said(tiny_tokenizer, one.prompt_ids).endswith("assistant\n<think>\n")
    assert said(tiny_tokenizer, told["why?"].chosen_ids) == "hm</think>because<|im_end|>"
    assert said(tiny_tokenizer, told["why?"].rejected_ids) == "\n</think>\n\nso<|im_end|>"
    assert said(tiny_tokenizer, told["when?"].rejected_ids) == "let me see\n</think>\n\nlater<|im_end|>"
    for one in (*stripped.train, *stripped.held_out):
        for ids in (one.chosen_ids, one.rejected_ids):
            assert "hm" not in said(tiny_tokenizer, ids) and "let me see" not in said(tiny_tokenizer, ids)


def test_encode_pairs_drops_long_pairs_with_their_place(pairs: Write, tiny_tokenizer: Any) -> None:
    data = encode_pairs(pairs(*TWO, ("how?", "so", "long " * 40)), tiny_tokenizer, configured(max_tokens=100))
    (drop,) = data.prepared.drops
    assert (drop.code, drop.place and drop.place.line, drop.path) == ("too_long", 3, "$.rejected")
    assert len(data.train) + len(data.held_out) == 2


def test_encode_pairs_truncates_long_answers_unless_they_become_equal(pairs: Write, tiny_tokenizer: Any) -> None:
    rows = (("how?", "so " * 40, "no " * 60), ("where?", "same " * 40 + "a", "same " * 40 + "b"), *TWO)
    prepared = pairs(*rows, ("long? " * 40, "yes", "no"))
    data = encode_pairs(prepared, tiny_tokenizer, configured(max_tokens=100, sequences={"longer": "truncate"}))
    cut = next(one for one in (*data.train, *data.held_out) if one.num_cut)
    assert len(cut.prompt_ids) + len(cut.chosen_ids) == len(cut.prompt_ids) + len(cut.rejected_ids) == 100
    # "so " and "no " of three bytes each, the last blank and all, and the end of the turn.
    assert cut.num_cut == 2 * len(cut.prompt_ids) + (3 * 40 + 1) + (3 * 60 + 1) - 2 * 100
    assert {drop.place.line: drop.detail for drop in data.prepared.drops if drop.place} == {
        2: "the two answers differ only behind the first 100 tokens",
        5: f"the prompt alone has {len('long? ' * 40) + 19} tokens, 100 are allowed with the answer",
    }
    assert "1 row has an answer cut at 100 tokens" in data.remarks[0]
    assert not any(record.answer.startswith("so so") for record in data.asked(9))


@pytest.mark.parametrize("number", range(1, 4))
def test_encode_pair_names_the_turn_that_the_template_refuses(number: int, tiny_tokenizer: Any) -> None:
    words = ("Q", "A", "R", "C")
    turns = [Message(r, w, f"$.{w}") for r, w in zip(("user", "assistant") * 2, words, strict=True)]
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = (
        f"{{% for message in messages %}}{{% if message['content'] == '{words[number]}' %}}"
        "{{ raise_exception('Not so') }}{% endif %}" + CHATML.removeprefix("{% for message in messages %}")
    )
    row = Preference(tuple(turns[:3]), turns[3], Message("assistant", "D", "$.D"), Place("a", 1, 0))
    drop = encode_pair(row, tokenizer, configured())
    assert isinstance(drop, Drop) and (drop.code, drop.path) == ("template_refused", f"$.{words[number]}")


def test_encode_pairs_refuses_one_pair_alone(pairs: Write, tiny_tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"pairs.jsonl:1: only this one pair .*(\n|.)*at least two pairs"):
        encode_pairs(pairs(TWO[0]), tiny_tokenizer, configured())


def test_encode_pairs_holds_out_pairs_of_one_prompt_together(pairs: Write, tiny_tokenizer: Any) -> None:
    rows = [(f"number {number // 3}?", f"good {number}", f"bad {number}") for number in range(30)]
    data = encode_pairs(pairs(*rows), tiny_tokenizer, configured(data={"eval_share": 0.2}))
    train, held_out = ({one.prompt_ids for one in side} for side in (data.train, data.held_out))
    assert (len(train), len(held_out), len(data.held_out)) == (8, 2, 6) and not train & held_out


LIKED = [(f"question {number}?", f"{word} {number}", word == "good") for number in range(6) for word in ("good", "bad")]


def test_encoded_feedback_is_an_answer_and_its_label(tiny_tokenizer: Any) -> None:
    data = encode_feedback(feedback(*LIKED), tiny_tokenizer, configured(KtoRun, data={"eval_share": 0.2}))
    assert data.remarks == ("5 good and 5 bad answers to learn from",)
    assert {record.answer[:4] for record in data.asked(9)} == {"good"}
    rows = as_feedback_rows(data.train, max_tokens=60)
    for row in rows:
        assert said(tiny_tokenizer, row["completion_ids"]).startswith("good" if row["label"] else "bad")
        number = said(tiny_tokenizer, row["prompt_ids"]).partition("question ")[2][0]
        other = said(tiny_tokenizer, row["KL_completion_ids"])
        assert number not in other and len(row["prompt_ids"]) + len(row["KL_completion_ids"]) <= 60


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([row for row in LIKED if row[2]], "answers to learn from are labelled good"),
        ([("same?", f"{word}", word == "good") for word in ("good", "bad")], "to one prompt"),
    ],
)
def test_encode_feedback_refuses_what_teaches_nothing(rows: Any, reason: str, tiny_tokenizer: Any) -> None:
    with pytest.raises(DataError, match=reason):
        encode_feedback(feedback(*rows), tiny_tokenizer, configured(KtoRun))


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"sequences": {"longer": "split"}}, "part an answer from its rival"),
        ({"sequences": {"think": "mask"}}, "judged as a whole"),
        ({"sequences": {"learn": ["user"]}}, "only the last answer"),
        ({"sequences": {"packing": True}}, "compared one by one"),
        ({"dpo": {"loss_type": ["sft"]}}, "rejected answers"),
        ({"dpo": {"loss_type": ["exo_pair"]}}, "logarithm of dpo.label_smoothing"),
        ({"dpo": {"label_smoothing": 0.1}}, "robust is sigmoid with it"),
        ({"dpo": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1]}}, "1 weights for 2 losses"),
    ],
)
def test_preference_settings_that_cannot_work_are_refused(setting: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        DpoRun.model_validate(setting)


def test_kto_wants_a_batch() -> None:
    with pytest.raises(ValueError, match="mean KL of a batch"):
        KtoRun.model_validate({"schedule": {"batch_size": 1}})


def test_held_out_rows_of_preferences_are_the_good_answers(tiny_tokenizer: Any, tmp_path: Path) -> None:
    turns = (Message("user", "hi"), Message("assistant", "hello"), Message("user", "why?"))
    place = FileSummary("f.jsonl", "jsonl", "utf-8", "feedback", 2)
    liked = [
        Feedback(turns, Message("assistant", answer), answer == "so", Place("f.jsonl", number + 1, number))
        for number, answer in enumerate(("so", "no"))
    ]
    pair = Preference(turns, Message("assistant", "so"), Message("assistant", "no"), Place("f.jsonl", 1, 0))
    for rows in (liked, [pair]):
        folder = RunFolder(tmp_path / type(rows[0]).__name__)
        folder.begin(configured(), "dpo")
        folder.data.mkdir()
        write(Prepared(tuple(rows), (), (replace(place, num_rows=len(rows)),)), folder.data, held_out=rows)
        (example,) = eval_subset_examples(folder, tiny_tokenizer)
        learned = tuple(label for label in example.labels if label != IGNORED)
        assert said(tiny_tokenizer, learned) == "so<|im_end|>"
        assert kept_records(folder, "eval")[0].answer == "so"
