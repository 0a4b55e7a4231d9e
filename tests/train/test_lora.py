"""`lora` end to end on a tiny DeepSeek-V3: what a run leaves, what it never does, and how it goes on when disturbed."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dsr1_tune.config import GROUPS, Adapter, Base, Data, LoraRun, Schedule
from dsr1_tune.data.encode.example import encode_all
from dsr1_tune.data.prepare import prepare
from dsr1_tune.errors import ModelError, RunError, TuneError
from dsr1_tune.moe.anatomy import Anatomy
from dsr1_tune.runs import open_session, session
from dsr1_tune.runs.evaluate import held_out_loss
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.trainer import trainer
from dsr1_tune.train import lora

ROWS = [{"input": f"what is {a} times {b}?", "output": f"it is {a * b % 10}"} for a in range(5) for b in range(6)]
NUM_TRAIN, NUM_HELD_OUT, NUM_STEPS = 27, 3, 8  # two epochs in batches of 8

Configure = Callable[..., LoraRun]


@pytest.fixture(scope="module", autouse=True)
def short_collections() -> Iterator[None]:
    """A run collects garbage three times; what the imported libraries hold need not be looked at each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "sums.json"
    path.write_text(json.dumps([*ROWS, {"input": "what is nothing?", "output": ""}]))
    return path


@pytest.fixture(scope="module")
def configure(tiny_base: Path, data_file: Path) -> Configure:
    """configure(out, seed=1) is a run of two epochs; keywords change its schedule, or are whole nouns."""

    def configure_(out: Path | None, **changes: Any) -> LoraRun:
        nouns = {name: changes.pop(name) for name in list(changes) if name in LoraRun.model_fields}
        schedule = {"epochs": 2, "learning_rate": 1e-2, "batch_size": 8, "save_steps": 100, "max_tokens": 128}
        given = {
            "data": Data(files=(data_file,)),
            "base": Base(model=str(tiny_base)),
            "schedule": Schedule(**{**schedule, "gradient_checkpointing": False, **changes}),
            "sample_tokens": 4,
        }
        return LoraRun(out=out, **{**given, **nouns})

    return configure_


class Told(Console):
    """A console that keeps what it is told."""

    def __init__(self) -> None:
        self.kept = io.StringIO()
        super().__init__(file=self.kept, width=500)

    @property
    def text(self) -> str:
        return self.kept.getvalue()


def go(config: LoraRun, resume: Path | None = None, told: Told | None = None) -> RunFolder:
    return lora.run(config, resume, told or Told())


def go_on(folder: Path, told: Told | None = None) -> RunFolder:
    return go(LoraRun(), folder, told)


def log_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "train_log.jsonl").read_text().splitlines()]


def curve_of(path: Path) -> list[float]:
    """Everything that a run computed at its steps, in a row, without what a clock measured."""
    return [line[name] for line in log_of(path) for name in ("step", "epoch", "loss", "grad_norm", "learning_rate")]


def litter(path: Path) -> list[Path]:
    return [place for place in path.rglob("*") if place.name.endswith((".part", ".old"))]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Watched:
    """A finished run, what the trainer was given, the model as it stood in the end, and what was printed."""

    folder: RunFolder
    batches: list[dict[str, torch.Tensor]]
    model: PeftModel
    text: str

    @property
    def path(self) -> Path:
        return self.folder.path


@pytest.fixture(scope="module")
def done(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """One unbroken run, for all tests that only look at it."""
    batches: list[dict[str, torch.Tensor]] = []
    models: list[PeftModel] = []
    told = Told()
    train, wrap = trainer.SFTTrainer.training_step, lora.add_lora

    def step(self: Any, model: Any, inputs: dict[str, torch.Tensor], *rest: Any) -> Any:
        batches.append({name: inputs[name].clone() for name in ("input_ids", "labels", "attention_mask")})
        return train(self, model, inputs, *rest)

    def add(*given: Any) -> PeftModel:
        models.append(wrap(*given))
        return models[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.SFTTrainer, "training_step", step)
        patch.setattr(lora, "add_lora", add)
        folder = go(configure(tmp_path_factory.mktemp("runs") / "done"), told=told)
    return Watched(folder, batches, models[0], told.text)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """at_step(3, do): in the middle of the third step of this test's next run, `do` happens."""

    def arrange(step: int, do: Callable[[], None]) -> None:
        train = trainer.SFTTrainer.training_step

        def disturbed(self: Any, *given: Any) -> Any:
            if self.state.global_step == step - 1:
                monkeypatch.undo()
                do()
            return train(self, *given)

        monkeypatch.setattr(trainer.SFTTrainer, "training_step", disturbed)

    return arrange


@pytest.fixture
def survivor() -> Iterator[None]:
    """A SIGTERM that nobody takes over fails the test, and does not end all of them."""
    before = signal.signal(signal.SIGTERM, lambda *given: pytest.fail("nobody took the signal over"))
    yield
    signal.signal(signal.SIGTERM, before)


def press(*numbers: int) -> Callable[[], None]:
    """Send this process these signals, one after the other."""

    def send() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    return send


# --- what a run leaves -----------------------------------------------------------------------------------------------


def test_the_folder_holds_all_that_a_run_is_to_leave(done: Watched) -> None:
    names = {str(path.relative_to(done.path)) for path in done.path.rglob("*") if path.is_file()}
    expected = {"manifest.json", "train_log.jsonl", "eval.json"}
    expected |= {f"data/{name}" for name in ("train.jsonl", "eval.jsonl", "rejected.jsonl", "report.json")}
    weights = ("adapter_model.safetensors", "adapter_config.json")
    expected |= {f"adapter/{name}" for name in (*weights, "tokenizer.json", "chat_template.jinja")}
    assert expected <= names
    assert any(name.startswith("tensorboard/events.out.tfevents") for name in names)
    assert {path.name for path in done.path.iterdir()} == {
        *("manifest.json", "train_log.jsonl", "eval.json", "data", "adapter", "tensorboard", "checkpoints"),
        *("report.html", "experts.png", "experts_load.npz"),
    }
    assert not litter(done.path)


def test_the_manifest_says_what_was_done_and_how_to_do_it_again(
    done: Watched, data_file: Path, tiny_base: Path, configure: Configure
) -> None:
    manifest = done.folder.manifest()
    assert (manifest["status"], manifest["command"], manifest["seed"]) == ("finished", "lora", 42)
    assert manifest["started"] <= manifest["ended"]
    assert LoraRun.model_validate(manifest["config"]) == configure(done.path)
    assert manifest["data_sha256"] == {str(data_file): sha256(data_file)}
    assert manifest["base"] == {"name": str(tiny_base), "revision": None, "folder": str(tiny_base)}
    for name in ("torch", "transformers", "peft", "trl", "dsr1-tune"):
        assert manifest["versions"][name] == metadata.version(name)
    assert set(manifest["seconds"]) == {"load", "evaluate_before", "train", "evaluate_after", "check"}
    assert all(seconds > 0 for seconds in manifest["seconds"].values())
    metrics, evaluation = manifest["metrics"], done.folder.evaluation()
    assert metrics["num_steps"] == NUM_STEPS
    assert metrics["loss_before"] == evaluation["before"]["loss"]
    assert metrics["loss_after"] == evaluation["after"]["loss"]
    assert metrics["reloaded_loss"] == pytest.approx(metrics["loss_after"], abs=1e-3)
    assert "error" not in manifest


def test_the_log_has_a_line_for_every_step(done: Watched) -> None:
    log = log_of(done.path)
    assert [line["step"] for line in log] == list(range(1, NUM_STEPS + 1))
    assert all(line["loss"] > 0 and line["grad_norm"] > 0 and line["seconds"] > 0 for line in log)
    rates = [line["learning_rate"] for line in log]
    assert max(rates) == pytest.approx(1e-2)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert log[-1]["epoch"] == 2


def test_tensorboard_has_the_same_losses(done: Watched) -> None:
    assert losses_on_tensorboard(done.path) == pytest.approx({line["step"]: line["loss"] for line in log_of(done.path)})


def losses_on_tensorboard(path: Path) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    points = events.Scalars("train/loss")
    assert len({point.step for point in points}) == len(points)
    return {point.step: point.value for point in points}


def test_the_evaluation_has_before_and_after(done: Watched) -> None:
    evaluation = done.folder.evaluation()
    for when in ("before", "after"):
        loss = evaluation[when]["loss"]
        assert evaluation[when]["perplexity"] == pytest.approx(2.718281828**loss, rel=1e-6)
        assert evaluation[when]["num_records"] == NUM_HELD_OUT
    questions = {row["input"]: row["output"] for row in ROWS}
    for before, after in zip(evaluation["answers_before"], evaluation["answers_after"], strict=True):
        assert before["question"] == after["question"]
        assert questions[before["question"]] == before["reference"] == after["reference"]
    assert len(evaluation["answers_after"]) == 2
    assert evaluation["answers_before"] != evaluation["answers_after"]


def test_what_was_kept_and_what_was_not(done: Watched) -> None:
    train, held_out = texts_in(done.path, "train"), texts_in(done.path, "eval")
    assert (len(train), len(held_out)) == (NUM_TRAIN, NUM_HELD_OUT)
    assert {*train, *held_out} == {(row["input"], row["output"]) for row in ROWS}
    [rejected] = map(json.loads, (done.path / "data" / "rejected.jsonl").read_text().splitlines())
    assert (rejected["code"], rejected["row"]) == ("empty_answer", {"input": "what is nothing?", "output": ""})
    report = json.loads((done.path / "data" / "report.json").read_text())
    assert (report["num_rows"], report["num_kept"]) == (31, 30)


def texts_in(path: Path, name: str) -> list[tuple[str, str]]:
    rows = map(json.loads, (path / "data" / f"{name}.jsonl").read_text().splitlines())
    return [tuple(message["content"] for message in row["messages"]) for row in rows]  # type: ignore[misc]


def test_the_terminal_shows_the_run(done: Watched) -> None:
    text = done.text
    parts = ("What is trained", "Before training", "step 8/8", "After training", "Held-out loss (3 records")
    assert sorted(parts, key=text.index) == list(parts)
    assert "Loaded afresh with plain PEFT" in text and f"dsr1-tune chat {done.path}" in text


def test_the_adapter_names_its_base_as_the_run_does(done: Watched) -> None:
    config = json.loads((done.folder.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == done.folder.manifest()["base"]["name"]


def test_files_are_for_whom_the_umask_says(done: Watched) -> None:
    mask = os.umask(0)
    os.umask(mask)
    files = [done.folder.manifest_file, done.folder.eval_file, *done.folder.adapter.iterdir()]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~mask}
    assert done.folder.adapter.stat().st_mode & 0o777 == 0o777 & ~mask


# --- what is learned, and what is left alone -------------------------------------------------------------------------


def test_the_held_out_loss_falls(done: Watched) -> None:
    evaluation = done.folder.evaluation()
    assert evaluation["after"]["loss"] < 0.9 * evaluation["before"]["loss"]


def test_held_out_records_are_never_trained_on(done: Watched, tiny_tokenizer: Any) -> None:
    seen = Counter(
        tiny_tokenizer.decode(ids[mask == 1])
        for batch in done.batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    )
    held_out = texts_in(done.path, "eval")
    assert not any(f"{question}<|im_end|>" in text for question, _ in held_out for text in seen)
    # All others are: once in each epoch, whole.
    shown = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"
    assert seen == Counter({shown.format(*texts): 2 for texts in texts_in(done.path, "train")})


def test_only_answers_are_learned(done: Watched, tiny_tokenizer: Any) -> None:
    learned = {tiny_tokenizer.decode(labels[labels != -100]) for batch in done.batches for labels in batch["labels"]}
    assert learned == {f"{answer}<|im_end|>" for _, answer in texts_in(done.path, "train")}


def test_the_base_is_as_it_was(done: Watched, tiny_base: Path) -> None:
    before = AutoModelForCausalLM.from_pretrained(tiny_base).state_dict()
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): weight
        for name, weight in done.model.state_dict().items()
        if ".lora_" not in name
    }
    assert after.keys() == before.keys()
    # Bit for bit; the router, its correction bias and the embeddings are among them.
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert any(name.endswith("mlp.gate.weight") for name in before)


def test_every_group_is_trained_and_nothing_else(done: Watched) -> None:
    part_of = Anatomy(done.model)
    updates = {name: weight for name, weight in done.model.named_parameters() if weight.requires_grad}
    assert {part_of(name) for name in updates} == set(GROUPS)
    assert all(".lora_" in name for name in updates)
    # B starts from zero.
    assert [name for name, weight in updates.items() if ".lora_B" in name and not weight.any()] == []
    coverage = {line["part"]: line for line in done.folder.manifest()["metrics"]["coverage"]}
    for group in GROUPS:
        assert coverage[group]["num_trained"] == sum(w.numel() for name, w in updates.items() if part_of(name) == group)
        assert coverage[group]["num_adapted"] == coverage[group]["num_base"]
    assert coverage["router"]["num_trained"] == coverage["embeddings"]["num_trained"] == 0


def test_the_adapter_loads_with_plain_peft(done: Watched, tiny_base: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    model = PeftModel.from_pretrained(base, done.folder.adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(done.folder.adapter)
    kept = prepare(Data(files=(done.path / "data" / "eval.jsonl",)))
    examples, drops = encode_all(kept.records, tokenizer, 128)
    assert not drops
    loss = held_out_loss(model, examples, tokenizer.pad_token_id).loss
    assert loss == pytest.approx(done.folder.evaluation()["after"]["loss"], abs=1e-4)


def test_a_part_can_be_left_out(configure: Configure, tmp_path: Path) -> None:
    folder = go(configure(tmp_path / "run", adapter=Adapter(groups=("attention",)), epochs=0.5, samples=0))
    assert all(".self_attn." in name for name in load_file(folder.adapter / "adapter_model.safetensors"))
    trained = {line["part"] for line in folder.manifest()["metrics"]["coverage"] if line["num_trained"]}
    assert trained == {"attention"}
    assert folder.manifest()["metrics"]["num_steps"] == 2


@pytest.mark.parametrize("family", ["qwen3_moe", "llama"])
def test_other_architectures(configure: Configure, tiny_model: Any, tmp_path: Path, family: str) -> None:
    base = Base(model=str(tiny_model(family)))
    evaluation = go(configure(tmp_path / "run", base=base, samples=0)).evaluation()
    assert evaluation["after"]["loss"] < evaluation["before"]["loss"]


# --- the same again --------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run(configure: Configure, done: Watched, tmp_path: Path) -> None:
    again = go(configure(tmp_path / "run"))
    assert curve_of(again.path) == curve_of(done.path)
    assert again.evaluation() == done.folder.evaluation()
    weights, others = (load_file(run.adapter / "adapter_model.safetensors") for run in (again, done.folder))
    assert all(torch.equal(weights[name], others[name]) for name in others)


def test_another_seed_gives_another(configure: Configure, done: Watched, tmp_path: Path) -> None:
    other = go(configure(tmp_path / "run", seed=7, samples=0))
    assert texts_in(other.path, "eval") != texts_in(done.path, "eval")
    assert [line["loss"] for line in log_of(other.path)] != [line["loss"] for line in log_of(done.path)]


def test_gradient_checkpointing_changes_no_number(configure: Configure, done: Watched, tmp_path: Path) -> None:
    folder = go(configure(tmp_path / "run", gradient_checkpointing=True, samples=0))
    assert curve_of(folder.path) == pytest.approx(curve_of(done.path), rel=1e-6)


def test_accumulated_batches_are_one_batch(
    configure: Configure, done: Watched, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    group, sizes = trainer.LengthGrouped, list[int]()

    def watched(lengths: list[int], batch_size: int, *rest: int) -> trainer.LengthGrouped:
        sizes.append(batch_size)
        return group(lengths, batch_size, *rest)

    monkeypatch.setattr(trainer, "LengthGrouped", watched)
    folder = go(configure(tmp_path / "run", batch_size=2, gradient_accumulation_steps=4, samples=0))
    assert sizes == [8]
    losses, others = ([line["loss"] for line in log_of(path)] for path in (folder.path, done.path))
    assert losses == pytest.approx(others, rel=1e-5)


def test_each_epoch_has_its_own_order_of_like_lengths() -> None:
    lengths = [10 * (number % 7) for number in range(280)]
    orders = []
    for epoch in (0, 1, 0):
        sampler = trainer.LengthGrouped(lengths, batch_size=8, seed=3)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[1]) == list(range(280))
    batches = [[lengths[number] for number in orders[1][start : start + 8]] for start in range(0, 280, 8)]
    # As they come, every batch holds lengths from 0 to 60. (The longest record goes first, whatever its batch.)
    assert sum(max(batch) - min(batch) for batch in batches) / len(batches) < 20


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_base_in_16_bits(configure: Configure, tiny_base: Path, tmp_path: Path, dtype: str) -> None:
    folder = go(configure(tmp_path / "run", base=Base(model=str(tiny_base), dtype=dtype)))
    evaluation = folder.evaluation()
    assert evaluation["after"]["loss"] < 0.9 * evaluation["before"]["loss"]


# --- held out or not -------------------------------------------------------------------------------------------------


def test_nothing_held_out(configure: Configure, data_file: Path, tmp_path: Path) -> None:
    told = Told()
    folder = go(configure(tmp_path / "run", data=Data(files=(data_file,), eval_share=0), epochs=1), told=told)
    assert (folder.data / "eval.jsonl").read_text() == ""
    assert len(texts_in(folder.path, "train")) == 30
    assert folder.manifest()["status"] == "finished"
    # The few records on which the adapter is checked are no held-out ones.
    assert "Held-out loss (" not in told.text


def test_what_the_template_makes_too_long_is_dropped_and_reported(configure: Configure, tmp_path: Path) -> None:
    file = tmp_path / "long.json"
    file.write_text(json.dumps([*ROWS, {"input": "what is long?", "output": "a" * 200}]))
    folder = go(configure(tmp_path / "run", data=Data(files=(file,)), max_steps=1, samples=0))
    [rejected] = map(json.loads, (folder.data / "rejected.jsonl").read_text().splitlines())
    assert rejected["code"] == "too_long" and "128 are allowed" in rejected["detail"]


# --- Ctrl-C and --resume ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("survivor")
@pytest.mark.parametrize(
    ("step", "number"), [(2, signal.SIGINT), (6, signal.SIGTERM), (4, signal.SIGINT)], ids=["int", "term", "epoch-end"]
)
def test_a_stopped_run_goes_on_as_if_nothing_had_been(
    configure: Configure, done: Watched, at_step: Any, tmp_path: Path, step: int, number: int
) -> None:
    told, path = Told(), tmp_path / "run"
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    at_step(step, press(number))
    with pytest.raises(KeyboardInterrupt):
        go(configure(path), told=told)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    folder, checkpoint = RunFolder(path), path / "checkpoints" / f"checkpoint-{step}"
    assert folder.manifest()["status"] == "interrupted"
    assert folder.latest_checkpoint() == checkpoint
    assert [line["step"] for line in log_of(path)] == list(range(1, step + 1))
    assert "press Ctrl-C again" in told.text and f"dsr1-tune lora --resume {path}" in told.text
    assert not folder.adapter.exists()
    assert not litter(path)

    told = Told()
    assert go_on(path, told) == folder
    assert f"going on from {checkpoint}" in told.text
    assert curve_of(path) == pytest.approx(curve_of(done.path), abs=1e-6)
    assert losses_on_tensorboard(path) == pytest.approx(losses_on_tensorboard(done.path), abs=1e-6)
    for when in ("before", "after"):
        assert folder.evaluation()[when]["loss"] == pytest.approx(done.folder.evaluation()[when]["loss"], abs=1e-6)
    assert folder.evaluation()["answers_before"] == done.folder.evaluation()["answers_before"]
    assert folder.manifest()["status"] == "finished"
    assert folder.manifest()["metrics"]["num_steps"] == NUM_STEPS


def test_a_second_ctrl_c_stops_at_once(configure: Configure, done: Watched, at_step: Any, tmp_path: Path) -> None:
    path = tmp_path / "run"
    handler = signal.getsignal(signal.SIGINT)
    at_step(4, press(signal.SIGINT, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        go(configure(path, save_steps=2))
    assert signal.getsignal(signal.SIGINT) is handler
    folder = RunFolder(path)
    assert folder.manifest()["status"] == "interrupted"
    # The fourth step was not finished; what counts is the checkpoint before it, and the third is done again.
    assert [line["step"] for line in log_of(path)] == [1, 2, 3]
    assert folder.latest_checkpoint() == path / "checkpoints" / "checkpoint-2"
    go_on(path)
    assert curve_of(path) == pytest.approx(curve_of(done.path), abs=1e-6)
    assert losses_on_tensorboard(path).keys() == set(range(1, NUM_STEPS + 1))


def test_stopped_before_any_checkpoint_it_begins_anew(
    configure: Configure, done: Watched, at_step: Any, tmp_path: Path
) -> None:
    at_step(2, press(signal.SIGINT, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        go(configure(tmp_path / "run"))
    assert RunFolder(tmp_path / "run").latest_checkpoint() is None
    told = Told()
    go_on(tmp_path / "run", told)
    assert "going on from" not in told.text
    assert curve_of(tmp_path / "run") == curve_of(done.path)


@pytest.mark.parametrize("max_steps", [0, 3], ids=["at the end of an epoch", "within an epoch"])
def test_stopped_after_its_last_step_it_trains_no_further(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, max_steps: int
) -> None:
    config = configure(tmp_path / "run", max_steps=max_steps, samples=0)
    save = PeftModel.save_pretrained

    def stop_at_the_adapter(model: Any, folder: str, **given: Any) -> None:
        save(model, folder, **given)
        if ".part" in folder:
            raise KeyboardInterrupt

    monkeypatch.setattr(PeftModel, "save_pretrained", stop_at_the_adapter)
    with pytest.raises(KeyboardInterrupt):
        go(config)
    folder, num_steps = RunFolder(tmp_path / "run"), max_steps or NUM_STEPS
    assert folder.manifest()["status"] == "interrupted"
    assert not folder.adapter.exists() and not litter(folder.path)
    curve = curve_of(folder.path)
    monkeypatch.undo()
    go_on(folder.path)
    assert curve_of(folder.path) == curve
    assert folder.manifest()["metrics"]["num_steps"] == len(log_of(folder.path)) == num_steps
    assert folder.evaluation()["after"]["loss"] < folder.evaluation()["before"]["loss"]


def test_a_half_written_checkpoint_is_ignored(
    configure: Configure, done: Watched, at_step: Any, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    at_step(2, press(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        go(configure(path))
    half = path / "checkpoints" / "checkpoint-5"
    shutil.copytree(path / "checkpoints" / "checkpoint-2", half)
    (half / ".whole").unlink()
    (half / "adapter_model.safetensors").write_bytes(b"half of it")
    (path / "train_log.jsonl").open("a").write('{"step": 3, "lo')
    told = Told()
    go_on(path, told)
    assert "checkpoint-2" in told.text
    assert curve_of(path) == pytest.approx(curve_of(done.path), abs=1e-6)


def test_seconds_add_up_over_all_parts_of_a_run(configure: Configure, at_step: Any, tmp_path: Path) -> None:
    at_step(1, press(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        go(configure(tmp_path / "run", max_steps=2, samples=0))
    before = RunFolder(tmp_path / "run").manifest()["seconds"]
    after = go_on(tmp_path / "run").manifest()["seconds"]
    assert after["train"] > before["train"] > 0
    assert after["evaluate_before"] == before["evaluate_before"]


def test_a_finished_run_does_not_go_on(done: Watched) -> None:
    before = done.folder.manifest_file.read_bytes()
    with pytest.raises(RunError, match="is finished") as caught:
        go_on(done.path)
    assert "dsr1-tune chat" in caught.value.hint
    assert done.folder.manifest_file.read_bytes() == before


def test_a_run_goes_on_only_with_its_own_data(
    configure: Configure, data_file: Path, at_step: Any, tmp_path: Path
) -> None:
    mine = Path(shutil.copy(data_file, tmp_path / "mine.json"))
    at_step(1, press(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        go(configure(tmp_path / "run", data=Data(files=(mine,)), samples=0))
    mine.write_text(json.dumps(ROWS[:-1]))
    with pytest.raises(RunError, match=r"mine\.json: has changed"):
        go_on(tmp_path / "run")
    mine.unlink()
    with pytest.raises(RunError, match=r"mine\.json"):
        go_on(tmp_path / "run")
    assert RunFolder(tmp_path / "run").manifest()["status"] == "interrupted"


def test_only_a_run_goes_on(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        go_on(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_overwritten(done: Watched, configure: Configure) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.path.rglob("*")}
    with pytest.raises(RunError, match=r"already holds a run \(finished\)"):
        go(configure(done.path))
    assert {path: path.stat().st_mtime_ns for path in done.path.rglob("*")} == before


# --- when something is wrong -----------------------------------------------------------------------------------------


@pytest.fixture
def wrapped(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[PeftModel], None]], None]:
    """wrapped(change) changes the model between being wrapped and being trained."""

    def arrange(change: Callable[[PeftModel], None]) -> None:
        wrap = lora.add_lora

        def changed(*given: Any) -> PeftModel:
            model = wrap(*given)
            change(model)
            return model

        monkeypatch.setattr(lora, "add_lora", changed)

    return arrange


@pytest.mark.parametrize("group", GROUPS)
def test_a_part_without_gradient_stops_the_run_at_its_first_step(
    configure: Configure, wrapped: Any, tmp_path: Path, group: str
) -> None:
    models: list[PeftModel] = []

    def cut_off(model: PeftModel) -> None:
        models.append(model)
        part_of = Anatomy(model)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and part_of(name) == group:
                parameter.register_hook(torch.zeros_like)

    wrapped(cut_off)
    with pytest.raises(ModelError, match=f"no gradient: {group};") as caught:
        go(configure(tmp_path / "run", samples=0))
    assert "adapter.groups" in caught.value.hint
    manifest = RunFolder(tmp_path / "run").manifest()
    assert manifest["status"] == "failed" and group in manifest["error"]
    assert log_of(tmp_path / "run") == []
    assert not any(weight.any() for name, weight in models[0].named_parameters() if ".lora_B" in name)
    assert not (tmp_path / "run" / "adapter").exists() and not litter(tmp_path / "run")


def test_a_gradient_that_is_no_number_stops_the_run(configure: Configure, wrapped: Any, tmp_path: Path) -> None:
    def spoil(model: PeftModel) -> None:
        parameter = next(parameter for parameter in model.parameters() if parameter.requires_grad)
        parameter.register_hook(lambda gradient: gradient * float("nan"))

    wrapped(spoil)
    with pytest.raises(ModelError, match="is not finite"):
        go(configure(tmp_path / "run", samples=0))


def test_a_failed_run_can_go_on_once_it_is_mended(
    configure: Configure, done: Watched, at_step: Any, tmp_path: Path
) -> None:
    def fail() -> None:
        raise ModelError("something is wrong", hint="mend it")

    at_step(6, fail)
    with pytest.raises(ModelError):
        go(configure(tmp_path / "run", save_steps=2))
    assert "something is wrong" in RunFolder(tmp_path / "run").manifest()["error"]
    manifest = go_on(tmp_path / "run").manifest()
    assert manifest["status"] == "finished" and "error" not in manifest
    assert curve_of(tmp_path / "run") == pytest.approx(curve_of(done.path), abs=1e-6)


def other_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: 3 * weight for name, weight in weights.items()}


def no_expert_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in weights.items() if ".experts." not in name}


@pytest.mark.parametrize("damage", [other_weights, no_expert_weights])
def test_an_adapter_that_loads_as_another_is_refused(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: Any
) -> None:
    load = lora.load_plain_adapter

    def damaged(base: Any, folder: Path) -> PeftModel:
        file = folder / "adapter_model.safetensors"
        weights = load_file(file)
        assert damage(weights).keys() <= weights.keys()
        save_file(damage(weights), file)
        return load(base, folder)

    monkeypatch.setattr(lora, "load_plain_adapter", damaged)
    with pytest.raises(ModelError, match="loaded afresh"):
        go(configure(tmp_path / "run", samples=0))
    assert RunFolder(tmp_path / "run").manifest()["status"] == "failed"


@pytest.mark.parametrize("where", ["checkpoint", "adapter"])
@pytest.mark.parametrize(
    "full",
    [
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 52928 vs 52820"),
    ],
    ids=["file", "safetensors", "torch"],
)
def test_a_full_disk_leaves_nothing_half_written(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str, full: Exception
) -> None:
    save = PeftModel.save_pretrained

    def fail(model: Any, folder: str, **given: Any) -> None:
        if (".part" in folder) == (where == "adapter"):
            (Path(folder) / "adapter_config.json").write_text("{")
            raise full
        save(model, folder, **given)

    monkeypatch.setattr(PeftModel, "save_pretrained", fail)
    with pytest.raises(RunError, match="no room is left") as caught:
        go(configure(tmp_path / "run", max_steps=1, samples=0))
    assert f"dsr1-tune lora --resume {tmp_path / 'run'}" in caught.value.hint
    folder = RunFolder(tmp_path / "run")
    assert folder.manifest()["status"] == "failed"
    assert (folder.latest_checkpoint() is None) == (where == "checkpoint")
    assert not folder.adapter.exists() and not litter(folder.path)
    monkeypatch.undo()
    assert go_on(folder.path).manifest()["status"] == "finished"


def test_all_that_can_be_refused_is_refused_before_weights_are_read(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(session, "load_located", lambda *given, **more: pytest.fail("weights were read"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    (tmp_path / "empty.json").write_text("[]")
    wrong = (
        {"data": Data(files=(tmp_path / "nothing.json",))},
        {"data": Data(files=(tmp_path / "empty.json",))},
        {"base": Base(model=str(tmp_path / "nowhere"))},
        {"max_tokens": 16},
        {"out": tmp_path / "full"},
    )
    for changes in wrong:
        with pytest.raises(TuneError):
            go(configure(**{"out": tmp_path / "run", **changes}))
    assert not (tmp_path / "run").exists()


def test_a_hub_id_is_pinned_to_the_commit_it_stood_for(configure: Configure, tmp_path: Path) -> None:
    config = configure(tmp_path / "run")
    here = open_session.locate(config.base)
    assert open_session._pinned(config, here) == config
    on_hub = replace(here, name="org/model", repo_id="org/model", revision="1a2b")
    asked = config.model_copy(update={"base": Base(model="org/model", revision="main", dtype="bfloat16")})
    assert open_session._pinned(asked, on_hub).base == Base(model="org/model", revision="1a2b", dtype="bfloat16")
    assert open_session._pinned(asked, on_hub).schedule == config.schedule
