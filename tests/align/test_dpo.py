"""`dpo` on tiny models: what it learns, what its reference is, what is in memory, and how it goes on."""

from __future__ import annotations

import gc
import io
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from dsr1_tune.align import dpo
from dsr1_tune.align.preference import session
from dsr1_tune.config import DpoRun, LoraRun
from dsr1_tune.errors import DataError
from dsr1_tune.export import merge
from dsr1_tune.models.trained.attach import load_with_adapter
from dsr1_tune.runs.evaluate import sample_answers
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.train import lora

PAIRS = [
    {"prompt": f"what is {a} times {b}?", "chosen": f"it is {a * b % 10}", "rejected": f"no idea {b}"}
    for a in range(5)
    for b in range(6)
]
Configure = Callable[..., DpoRun]


@pytest.fixture(scope="module", autouse=True)
def short_collections() -> Iterator[None]:
    """A run collects garbage three times; what the imported libraries hold need not be looked at each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty pairs; three of them are held out."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, PAIRS)))
    return path


@pytest.fixture(scope="module")
def configure(tiny_base: Path, pairs: Path) -> Configure:
    """configure(out, method="full", schedule={"seed": 1}) is a run of eight steps."""

    def configure_(out: Path | None, base: Path = tiny_base, data: Path = pairs, **changes: Any) -> DpoRun:
        schedule = {"epochs": 2, "learning_rate": 1e-2, "batch_size": 8, "save_steps": 100, "max_tokens": 128}
        tree: dict[str, Any] = {
            "data": {"files": [str(data)]},
            "base": {"model": str(base)},
            "schedule": {**schedule, "gradient_checkpointing": False, **changes.pop("schedule", {})},
            "watch": {"trackers": []},
            "samples": 0,
            "out": out and str(out),
        }
        return DpoRun.model_validate({**tree, **changes})

    return configure_


def go(config: DpoRun, resume: Path | None = None) -> RunFolder:
    return dpo.run(config, resume, Console(file=io.StringIO(), width=200))


def log_of(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.log_file.read_text().splitlines()]


def num_living() -> int:
    """The numbers in all parameters that are alive, whoever holds them; those of one memory count once."""
    gc.collect()
    living = [thing for thing in gc.get_objects() if isinstance(thing, nn.Parameter)]
    return sum(sizes.numel() for sizes in {one.data_ptr(): one for one in living}.values())


@dataclass
class Seen:
    """What was looked at in the middle of a run."""

    given: list[torch.Tensor]
    """The reference's log-probabilities in the rows of a batch, chosen then rejected."""
    base: list[torch.Tensor]
    """Those of the model with its adapter off."""
    trained: list[torch.Tensor]
    num_living: int
    num_own: int
    names: list[str]


def look(seen: list[Seen], at: int) -> Callable[..., Any]:
    """A training step that first looks, at one step, at the model and at its batch."""
    step = dpo.DPOTrainer.training_step

    def looking(self: Any, model: Any, inputs: dict[str, torch.Tensor], *rest: Any) -> Any:
        if self.state.global_step == at:
            assert self.ref_model is None
            is_adapted = hasattr(model, "disable_adapter")
            with torch.no_grad():
                trained = plain(model, inputs)
                base = trained
                if is_adapted:
                    with model.disable_adapter():
                        base = plain(model, inputs)
            names = list(model.peft_config) if is_adapted else []
            given = [inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]]
            own = sum(parameter.numel() for parameter in model.parameters())
            seen.append(Seen(given, base, trained, num_living(), own, names))
        return step(self, model, inputs, *rest)

    return looking


def plain(model: Any, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """log p of the answers in a batch by the formula, chosen then rejected."""
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    told = logits[:, :-1].log_softmax(-1).gather(2, inputs["input_ids"][:, 1:, None])[..., 0]
    return list((told * inputs["completion_mask"][:, 1:]).sum(1).chunk(2))


@dataclass
class Done:
    """A finished run, and what was seen in its sixth step."""

    folder: RunFolder
    seen: Seen
    num_before: int


def watched(config: DpoRun, at: int = 5) -> Done:
    seen: list[Seen] = []
    num_before = num_living()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpo.DPOTrainer, "training_step", look(seen, at))
        folder = go(config)
    return Done(folder, seen[0], num_before)


@pytest.fixture(scope="module")
def done(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """One unbroken run, for all tests that only look at it."""
    return watched(configure(tmp_path_factory.mktemp("runs") / "done", watch={"trackers": [], "eval_steps": 4}))


# --- what is learned -------------------------------------------------------------------------------------------------


def test_chosen_answers_are_raised_above_rejected_ones(done: Done) -> None:
    manifest, told = done.folder.manifest(), done.folder.evaluation()
    assert (manifest["status"], manifest["command"]) == ("finished", "dpo")
    metrics = manifest["metrics"]
    assert metrics["reward_accuracy"] == 1.0 and metrics["reward_margin"] > 0.5
    assert metrics["accuracy_after"] >= metrics["accuracy_before"] and metrics["length_accuracy"] == 0.0
    assert abs(metrics["reloaded_loss"] - metrics["loss_after"]) < 1e-5
    assert told["preferences"]["reward_margin"] == metrics["reward_margin"]
    assert len(told["after"]["pairs"]) == 3 == len((done.folder.data / "eval.jsonl").read_text().splitlines())


def test_every_step_is_logged_with_its_rewards(done: Done) -> None:
    lines = log_of(done.folder)
    assert [line["step"] for line in lines] == list(range(1, 9))
    names = {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "grad_norm"}
    assert all(names | {"num_tokens", "tokens_per_second", "experts/dead"} <= line.keys() for line in lines)
    # The model is its own reference before it has moved; afterwards chosen answers gain.
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-5) and lines[-1]["rewards/margins"] > 0.5
    assert lines[-1]["rewards/chosen"] - lines[-1]["rewards/rejected"] == pytest.approx(lines[-1]["rewards/margins"])
    # QuantizedWeight out, too, it is DPO's loss that is watched, not that of the chosen answers.
    assert lines[3]["eval_loss"] < math.log(2) and lines[7]["eval_loss"] < lines[3]["eval_loss"]


def test_the_run_can_be_merged_and_is_what_it_measured(done: Done, tmp_path: Path) -> None:
    told = io.StringIO()
    merge.run(done.folder.path, tmp_path / "merged", console=Console(file=told, width=200))
    loss = done.folder.manifest()["metrics"]["loss_after"]
    assert f"Held-out loss {loss:.4f}; the run measured {loss:.4f}" in told.getvalue()


# --- the reference ---------------------------------------------------------------------------------------------------


def test_the_reference_is_the_base_with_the_adapter_off(done: Done) -> None:
    for given, base, trained in zip(done.seen.given, done.seen.base, done.seen.trained, strict=True):
        torch.testing.assert_close(given, base, atol=1e-3, rtol=1e-5)
        assert (given - trained).abs().min() > 0.05  # by then the model is somewhere else


def test_there_is_one_base_and_one_adapter_in_memory(done: Done) -> None:
    coverage = done.folder.manifest()["metrics"]["coverage"]
    num_base, num_adapter = (sum(line[name] for line in coverage) for name in ("num_base", "num_trained"))
    assert done.seen.names == ["default"]
    assert done.seen.num_living - done.num_before == done.seen.num_own == num_base + num_adapter


def test_full_training_has_its_reference_without_a_second_model(configure: Configure, tmp_path: Path) -> None:
    config = configure(tmp_path / "run", method="full", schedule={"learning_rate": 1e-3, "epochs": 1})
    run = watched(config, at=3)
    assert run.seen.num_living - run.num_before == run.seen.num_own
    assert log_of(run.folder)[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-4)  # it is its own reference
    metrics = run.folder.manifest()["metrics"]
    assert metrics["reward_accuracy"] == 1.0 and (run.folder.model / "config.json").exists()


# --- beginning with a run --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sft(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of lora on questions of the pairs."""
    folder = tmp_path_factory.mktemp("sft")
    (folder / "sums.json").write_text(json.dumps([{"input": row["prompt"], "output": row["chosen"]} for row in PAIRS]))
    config = LoraRun.model_validate(
        {
            "data": {"files": [str(folder / "sums.json")]},
            "base": {"model": str(tiny_base)},
            "schedule": {"max_steps": 2, "learning_rate": 1e-2, "max_tokens": 128},
            "adapter": {"rank": 3, "ranks": {"routed_experts": 2}},
            "watch": {"trackers": []},
            "samples": 0,
            "out": str(folder / "run"),
        }
    )
    return lora.run(config, console=Console(file=io.StringIO()))


@pytest.mark.parametrize("how", ["keep", "continue"])
def test_a_run_of_lora_is_where_it_begins(sft: RunFolder, configure: Configure, tmp_path: Path, how: str) -> None:
    more = {"adapter": {"rank": 4}} if how == "keep" else {}
    folder = go(configure(tmp_path / "run", base=sft.path, start={"adapter": how}, schedule={"max_steps": 4}, **more))
    before, after = (load_file(one.adapter / "adapter_model.safetensors") for one in (sft, folder))
    assert log_of(folder)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert folder.evaluation()["before"]["loss"] == pytest.approx(sft_loss(sft, folder), abs=1e-4)
    assert before.keys() == after.keys()
    for name, old in before.items():
        if how == "continue":
            assert after[name].shape == old.shape and not torch.equal(after[name], old)
        else:
            kept = kept_part(name, after[name], old)
            assert torch.equal(kept, old), name
            assert after[name].numel() > old.numel()
    loaded = load_with_adapter(folder.path)
    assert sample_answers(loaded.model, loaded.tokenizer, [], 4) == []
    assert torch.isfinite(loaded.model(torch.arange(9).view(1, -1)).logits).all()


def kept_part(name: str, weight: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """The first ranks of a factor; A of experts is (E·R, in), expert by expert, and B is (out, R·E), rank by rank."""
    if "lora_B" in name:
        return weight[:, : old.shape[1]]
    num_experts = 4 if ".experts." in name else 1
    new, kept = (factor.reshape(num_experts, -1, factor.shape[1]) for factor in (weight, old))
    return new[:, : kept.shape[1]].reshape(old.shape)


def sft_loss(sft: RunFolder, folder: RunFolder) -> float:
    """The loss on the held-out chosen answers of the run that was begun with, by itself."""
    from dsr1_tune.align.preference.encode import encode_pairs
    from dsr1_tune.align.preference.metrics import measure_pairs
    from dsr1_tune.data.prepare import prepare
    from dsr1_tune.data.record import Preference

    loaded = load_with_adapter(sft.path)
    config = folder.config(DpoRun)
    data = encode_pairs(prepare(config.data, Preference), loaded.tokenizer, config)
    return measure_pairs(loaded.model, data.held_out, 1).loss


# --- losses ----------------------------------------------------------------------------------------------------------

LOG2 = math.log(2)
# What each is worth before the model has moved, with β 0.1 and label smoothing 0.2.
AT_FIRST = {
    "sigmoid": LOG2,
    "hinge": 1.0,
    "ipo": (1 / 0.2) ** 2,
    "exo_pair": 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2),
    "nca_pair": 2 * LOG2,
    "robust": LOG2,
    "bco_pair": 2 * LOG2,
    "sppo_hard": 2 * 5.0**2,
    "aot": LOG2,
    "aot_unpaired": LOG2,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "sigmoid_norm": LOG2,
}


def test_all_losses_run_and_are_weighed(configure: Configure, tmp_path: Path) -> None:
    weights = {name: 1 + number for number, name in enumerate(AT_FIRST)}
    told = {"loss_type": list(AT_FIRST), "loss_weights": list(weights.values()), "label_smoothing": 0.2}
    folder = go(configure(tmp_path / "run", dpo=told, schedule={"max_steps": 2}))
    wanted = sum(weights[name] * value for name, value in AT_FIRST.items())
    assert log_of(folder)[0]["loss"] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [*AT_FIRST, "sigmoid,sft"])
def test_each_loss_alone_tells_the_answers_apart(configure: Configure, tmp_path: Path, loss: str) -> None:
    told: dict[str, Any] = {"loss_type": loss.split(",")}
    if loss in ("robust", "exo_pair", "aot", "aot_unpaired"):
        told["label_smoothing"] = 0.2
    folder = go(configure(tmp_path / "run", dpo=told, schedule={"epochs": 1, "learning_rate": 2e-2}))
    assert folder.manifest()["metrics"]["reward_accuracy"] == 1.0
    if loss in AT_FIRST:
        assert log_of(folder)[0]["loss"] == pytest.approx(AT_FIRST[loss], rel=1e-4)


# --- going on, and what is refused -----------------------------------------------------------------------------------


@pytest.fixture
def press() -> Iterator[Callable[[int, Callable[[], Any]], None]]:
    """press(3, go) runs go() and presses Ctrl-C in the middle of the third step."""

    def stop(step: int, run: Callable[[], Any]) -> None:
        train = dpo.DPOTrainer.training_step

        def disturbed(self: Any, *given: Any) -> Any:
            if self.state.global_step == step - 1:
                os.kill(os.getpid(), signal.SIGINT)
            return train(self, *given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dpo.DPOTrainer, "training_step", disturbed)
            with pytest.raises(KeyboardInterrupt):
                run()

    before = signal.getsignal(signal.SIGINT)
    yield stop
    signal.signal(signal.SIGINT, before)


def test_a_resumed_run_is_an_unbroken_one(done: Done, configure: Configure, tmp_path: Path, press: Any) -> None:
    watch = {"trackers": [], "eval_steps": 4}
    press(3, lambda: go(configure(tmp_path / "run", watch=watch)))
    folder = go(DpoRun(), tmp_path / "run")
    for line, other in zip(log_of(folder), log_of(done.folder), strict=True):
        # What a clock measured; and the experts are counted over the last steps of one sitting.
        timed = {"seconds", "tokens_per_second", "memory/rss_gib"}
        names = [name for name in line if name not in timed and not name.startswith("experts/")]
        assert {name: line[name] for name in names} == {name: other[name] for name in names}
    saved, whole = (load_file(run.adapter / "adapter_model.safetensors") for run in (folder, done.folder))
    assert all(torch.equal(saved[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("text", "changes", "reason"),
    [
        ('{"input": "why?", "output": "because"}\n' * 2, {}, "no row has a better and a worse answer"),
        ("", {}, "empty|no rows|nothing"),
        (
            "\n".join(map(json.dumps, PAIRS[:4])),
            {"schedule": {"max_tokens": 16}},
            "none of the 4 records .* 16 are allowed",
        ),
        (json.dumps(PAIRS[0]), {}, "only this one pair"),
    ],
)
def test_bad_files_are_refused_with_the_place(
    configure: Configure, tmp_path: Path, text: str, changes: dict[str, Any], reason: str
) -> None:
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(DataError, match=reason) as told:
        go(configure(tmp_path / "run", data=tmp_path / "bad.jsonl", **changes))
    assert "bad.jsonl" in str(told.value) and told.value.hint and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_step_after_a_rollback_has_the_same_reference(configure: Configure, tmp_path: Path) -> None:
    asked: list[int] = []
    ask = session.shared_log_probs

    def once(*given: Any) -> list[float]:
        asked.append(1)
        return ask(*given)

    blown: list[int] = []
    step = dpo.DPOTrainer.training_step

    def fault(self: Any, model: Any, *given: Any) -> Any:
        loss = step(self, model, *given)
        if self.state.global_step == 3 and not blown:
            blown.append(1)
            return loss * math.nan
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "shared_log_probs", once)
        patch.setattr(dpo.DPOTrainer, "training_step", fault)
        folder = go(
            configure(
                tmp_path / "run", watch={"trackers": [], "on_alarm": "rollback"}, schedule={"epochs": 1}, samples=0
            )
        )
    assert blown and asked == [1] and "rollback" in folder.manifest()
    assert log_of(folder)[0]["loss"] == pytest.approx(LOG2, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "method"),
    [("qwen3_moe", "lora"), ("qwen3_moe", "qlora"), ("mixtral", "full"), ("gpt_oss", "lora"), ("llama", "qlora")],
)
def test_other_families(configure: Configure, tiny_model: Any, tmp_path: Path, family: str, method: str) -> None:
    rate = 1e-3 if method == "full" else 1e-2
    given = configure(tmp_path / "run", base=tiny_model(family), method=method, schedule={"learning_rate": rate})
    folder = go(given)
    assert folder.manifest()["metrics"]["reward_accuracy"] == 1.0


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(pairs: Path, tiny_base: Path, tmp_path: Path) -> None:
    """Of 24 pairs to learn from, so that no batch has to be filled up."""
    curves = []
    for count, size in ((1, 8), (2, 4)):
        told = [f"schedule.{name}" for name in (f"batch_size={size}", "learning_rate=0.01", "max_tokens=128")]
        told += ["data.eval_share=0.2", "samples=0", "watch.trackers=[]", "watch.eval_steps=2"]
        sets = [part for setting in told for part in ("--set", setting)]
        given = ["--data", str(pairs), "--model", str(tiny_base), "--out", str(tmp_path / f"run{count}"), *sets]
        command = [sys.executable, "-m", "dsr1_tune", "dpo", *given, "--processes", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = log_of(RunFolder(tmp_path / f"run{count}"))
        curves.append([line[name] for line in lines for name in ("loss", "grad_norm", "rewards/margins")])
    assert len(curves[0]) == 9 and curves[1] == pytest.approx(curves[0], rel=1e-3, abs=1e-5)
