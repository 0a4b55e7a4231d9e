"""A model that learned its answers by heart stops behind them by itself, under the chat templates of real models."""

from __future__ import annotations

import gc
import io
import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from dsr1_tune.align.online.generate import generate
from dsr1_tune.config import Base, Data, FullRun, Merge, Rollout, Schedule, Template
from dsr1_tune.config.export import Quantize
from dsr1_tune.data.encode.chat_template import render_prompt
from dsr1_tune.data.encode.end_tokens import end_tokens
from dsr1_tune.data.prepare import prepare
from dsr1_tune.data.record import Record
from dsr1_tune.export import merge, quantize
from dsr1_tune.models.llama_cpp.client import LlamaCpp
from dsr1_tune.models.load import Loaded
from dsr1_tune.models.ref import template_kwargs_of
from dsr1_tune.models.trained.attach import load_with_adapter
from dsr1_tune.runs.evaluate import sample_answers
from dsr1_tune.serve.chat import Conversation
from dsr1_tune.train import full
from tests.conftest import CHATML, tiny_config
from tests.export.conftest import converter  # noqa: F401
from tests.real_templates import template, tokenizer_of

QWEN_BASE = "chatml, texts end at <|endoftext|>"
QUICK = [QWEN_BASE, "glm4moe"]
SLOW = [
    *("cohere", "cohere2", "deepseek_r1_distill", "deepseekv3", "gemma", "gemma3", "gptoss", "lfm2", "lfm2_v2"),
    *("llama3", "llama3_1", "llama3_2", "muse_glimmer", "nemotron_3_nano", "phi3", "phi3_5", "qwen2_5", "qwen3"),
    *("qwen3_5_nothink", "qwen3_5_think", "qwen3_6", "qwen3_8", "qwen3_instruct_2507"),
]
EVERY = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
ROOM = 120
"""Tokens that an answer may have; the longest of those that are learned has about half of it."""

ARGUMENTS = {"place": "Oslo"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Look.",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "description": "Where?"}},
                "required": ["place"],
            },
        },
    }
]


def plain_row(number: int) -> dict[str, Any]:
    asked = {"role": "user", "content": f"Say it {number}"}
    return {"messages": [asked, {"role": "assistant", "content": "Yes."}]}


def tool_row(number: int) -> dict[str, Any]:
    call = {"id": "abcdefgh1", "type": "function", "function": {"name": "look", "arguments": json.dumps(ARGUMENTS)}}
    return {
        "messages": [
            {"role": "user", "content": f"Weather {number}?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "3 C", "tool_call_id": "abcdefgh1", "name": "look"},
            {"role": "assistant", "content": "It is cold."},
        ],
        "tools": TOOLS,
    }


def base_of(name: str, row: dict[str, Any], folder: Path) -> Path:
    """A tiny Llama with the template, whose markers its tokenizer knows, and of what stands before `row` its parts."""
    source, eos = (CHATML, "<|endoftext|>") if name == QWEN_BASE else (template(name), "<eos>")
    plain = tokenizer_of(source, eos)
    asked = row["messages"][0]
    frame = plain.apply_chat_template([asked], tools=row.get("tools"), tokenize=False).partition(asked["content"])[0]
    tokenizer = tokenizer_of(source, eos, frame=frame if len(frame) > 200 else "")
    torch.manual_seed(0)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": 0}
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 1024}
    model = AutoModelForCausalLM.from_config(tiny_config("llama", **sizes, **ids))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Learned:
    """A run that learned every answer by heart, and the records that it learned."""

    path: Path
    records: list[Record]


def learn(name: str, rows: list[dict[str, Any]], folder: Path, num_steps: int = 120) -> Learned:
    file = folder / "rows.jsonl"
    random.Random(0).shuffle(rows)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = FullRun(
        data=Data(files=(file,)),
        base=Base(model=str(base_of(name, rows[0], folder / "base"))),
        schedule=Schedule(
            max_steps=num_steps, learning_rate=5e-3, batch_size=12, max_tokens=1024, gradient_checkpointing=False,
            save_steps=10_000,
        ),
        samples=0,
        out=folder / "run",
    )  # fmt: skip
    run = full.run(config, console=Console(file=io.StringIO()))
    loss = run.evaluation()["after"]["loss"]
    assert loss < 0.1, f"the answers were not learned: loss {loss}"
    return Learned(run.path, list(prepare(Data(files=(file,))).records))


@contextmanager
def counted(model: Any) -> Iterator[list[list[int]]]:
    """The ids of every answer that the model generates inside."""
    found: list[list[int]] = []
    generate = model.generate

    def keep(**given: Any) -> Any:
        output = generate(**given)
        found.append(output[0, given["input_ids"].shape[1] :].tolist())
        return output

    model.generate = keep
    try:
        yield found
    finally:
        del model.generate


def check_stopped(answers: list[list[int]], loaded: Loaded) -> None:
    ends = end_tokens(loaded.tokenizer, loaded.model.generation_config.eos_token_id).ids
    assert answers
    for ids in answers:
        said = loaded.tokenizer.decode(ids)
        assert len(ids) < ROOM and ids[-1] in ends, f"{len(ids)} tokens: {said}"
        assert not set(ids[:-1]) & ends, said


@pytest.fixture(autouse=True)
def little_garbage() -> Iterator[None]:
    gc.freeze()
    yield
    gc.unfreeze()


# --- every template --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_learned_answers_end(name: str, tmp_path: Path) -> None:
    learned = learn(name, [plain_row(number) for number in range(12)], tmp_path)
    loaded = load_with_adapter(learned.path)
    with counted(loaded.model) as answers:
        template = Template(kwargs=template_kwargs_of(learned.path))  # as `chat` asks a run's model
        conversation = Conversation(loaded, max_new_tokens=ROOM, template=template)
        for record in learned.records[:3]:
            conversation.forget()
            assert conversation.ask(record.question, lambda text: None).endswith("Yes.")
        samples = sample_answers(loaded.model, loaded.tokenizer, learned.records[:3], ROOM)
        assert all(sample.answer.endswith("Yes.") for sample in samples)
    assert len(answers) == 6
    check_stopped(answers, loaded)


def takes_calls(name: str) -> bool:
    return name != QWEN_BASE and end_tokens(tokenizer_of(template(name))).call is not None


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in ("glm4moe", *SLOW)])
def test_learned_calls_of_tools_end(name: str, tmp_path: Path) -> None:
    """The turn that calls, which is never a record's last one, and the answer behind the tool's result."""
    if not takes_calls(name):
        pytest.skip("the template has no form for calls")
    learned = learn(name, [tool_row(number) for number in range(12)], tmp_path, num_steps=100)
    loaded = load_with_adapter(learned.path)
    calls = [replace(record, messages=record.messages[:2]) for record in learned.records[:3]]
    with counted(loaded.model) as answers:
        called = sample_answers(loaded.model, loaded.tokenizer, calls, ROOM)
        told = sample_answers(loaded.model, loaded.tokenizer, learned.records[:3], ROOM)
    check_stopped(answers, loaded)
    assert all("look" in sample.answer and "Oslo" in sample.answer for sample in called)
    assert all(sample.answer.endswith("It is cold.") for sample in told)


# --- wherever the model goes -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    """A run over a base whose files say <|endoftext|> where its template says <|im_end|>."""
    return learn(QWEN_BASE, [plain_row(number) for number in range(12)], tmp_path_factory.mktemp("qwen"))


def check_plain(folder: Path, learned: Learned) -> None:
    """Whoever loads the folder with transformers alone."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    with counted(model) as answers:
        for record in learned.records[:3]:
            asked = tokenizer(render_prompt(record, tokenizer).text, add_special_tokens=False, return_tensors="pt")
            model.generate(**asked, max_new_tokens=ROOM, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    assert [tokenizer.decode(ids) for ids in answers] == ["Yes.<|im_end|>"] * 3


def test_saved_model_stops_for_everybody(qwen: Learned) -> None:
    check_plain(qwen.path / "model", qwen)
    said = json.loads((qwen.path / "model" / "generation_config.json").read_text())
    assert len(said["eos_token_id"]) == 2


def test_rollouts_stop(qwen: Learned) -> None:
    loaded = load_with_adapter(qwen.path)
    prompts = [
        loaded.tokenizer(render_prompt(record, loaded.tokenizer).text)["input_ids"] for record in qwen.records[:3]
    ]
    answers = generate(loaded.model, prompts, loaded.tokenizer, Rollout(max_new_tokens=ROOM), is_greedy=True)
    assert answers.have_ended == (True, True, True)
    assert loaded.tokenizer.batch_decode(answers.ids) == ["Yes.<|im_end|>"] * 3


def test_merged_model_stops_for_everybody_and_says_why(qwen: Learned, tmp_path: Path) -> None:
    said = io.StringIO()
    merge.run(qwen.path, tmp_path / "merged", Merge(rows=2), Console(file=said, width=200))
    assert (
        "generation_config.json: answers also end at <|im_end|>, which the base's own does not say" in said.getvalue()
    )
    check_plain(tmp_path / "merged", qwen)


@pytest.mark.slow
def test_gguf_stops(qwen: Learned, tmp_path: Path, converter: None) -> None:  # noqa: F811
    """llama.cpp knows <|im_end|> by its name, <turn_over> only where the file says it."""
    renamed = tmp_path / "renamed"
    shutil.copytree(qwen.path / "model", renamed)
    for file in renamed.iterdir():
        if file.suffix in (".json", ".jinja"):
            file.write_text(file.read_text().replace("<|im_end|>", "<turn_over>"))
    folder = quantize.run(renamed, tmp_path / "gguf", Quantize(to="gguf", gguf="bf16"), Console(file=io.StringIO()))
    (file,) = folder.glob("*.gguf")
    stops = [line for line in (folder / "Modelfile").read_text().splitlines() if "stop" in line]
    assert stops == ['PARAMETER stop "<|endoftext|>"', 'PARAMETER stop "<turn_over>"']
    with LlamaCpp(file) as engine:
        text = qwen.records[0].question
        prompt = engine.tokenize(f"<|im_start|>user\n{text}<turn_over>\n<|im_start|>assistant\n")
        spoken = list(engine.stream(prompt, ROOM))  # control tokens have no text
        assert [one.token for one in spoken] == engine.tokenize("Yes.")
