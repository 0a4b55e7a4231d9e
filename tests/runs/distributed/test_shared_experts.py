"""Processes that share the experts out take the steps of one with the same micro-batches, and save its files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from dsr1_tune.config import Base, LoraRun, QloraRun
from dsr1_tune.errors import RunError
from dsr1_tune.models.load import load
from dsr1_tune.models.trained.attach import load_with_adapter
from dsr1_tune.models.trained.lora import load_plain_adapter
from dsr1_tune.runs.trainer import shared_experts
from dsr1_tune.train import lora
from tests.conftest import save_tiny
from tests.runs.distributed.conftest import TIMEOUT, environment, log_of
from tests.runs.distributed.test_group import after, curve_of, in_processes, manifest_of, settings

STEPS, FEWER_STEPS = 50, 20
FAMILIES = ("deepseek_v3", "deepseek_v2", "qwen3_moe", "mixtral", "gpt_oss")
CASES = [(family, "lora", False) for family in FAMILIES]
CASES += [("deepseek_v3", "qlora", False), ("gpt_oss", "qlora", False), ("deepseek_v3", "lora", True)]
MANY = {"deepseek_v3": {"n_routed_experts": 16, "num_experts_per_tok": 4}}


@dataclass(frozen=True)
class Runs:
    """Plans runs over tiny models, all on the same data."""

    place: Path
    data: Path
    tokenizer: Any

    def base(self, family: str) -> Path:
        folder = self.place / "bases" / family
        return folder if folder.exists() else save_tiny(folder, self.tokenizer, family, **MANY.get(family, {}))

    def plan(self, out: str, family: str = "deepseek_v3", command: str = "lora", **changes: Any) -> dict[str, Any]:
        """A run of two processes that share the experts out, unless `changes` say otherwise."""
        parallel = {"strategy": changes.pop("strategy", "experts")}
        config = settings(self.base(family), self.data, self.place / out, 4, **parallel)
        config["sequences"] = {"packing": changes.pop("packing", False)}
        if router := changes.pop("router", None):
            config["router"] = {"mode": router}
        config["schedule"] |= {"epochs": 20, "max_steps": STEPS, **changes}
        return {"command": command, "config": config}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data_file: Path, tiny_tokenizer: Any) -> Runs:
    return Runs(tmp_path_factory.mktemp("experts"), data_file, tiny_tokenizer)


def alone(runs: Runs, *planned: dict[str, Any], number: int = 2) -> list[dict[str, Any]]:
    """The same runs for one process, which takes the micro-batches of `number` one after the other."""
    changed = json.loads(json.dumps(planned))
    for run in changed:
        run["config"]["out"] += "-alone"
        run["config"]["parallel"] = {}
        run["config"]["schedule"]["gradient_accumulation_steps"] = number
    return changed


def check_same(together: Path, by_one: Path, steps: int = STEPS) -> None:
    """The same curve, losses and files."""
    assert len(log_of(together)) == steps
    assert curve_of(together) == pytest.approx(curve_of(by_one), abs=1e-5)
    for mine, theirs in zip(log_of(together), log_of(by_one), strict=True):
        norms = {name: norm for name, norm in theirs.items() if name.startswith("grad_norm/")}
        assert {name: mine[name] for name in norms} == pytest.approx(norms, abs=1e-5)
    assert after(together) == pytest.approx(after(by_one), abs=1e-5)
    shared, whole = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (together, by_one))
    assert shared.keys() == whole.keys()
    for name, tensor in shared.items():
        torch.testing.assert_close(tensor, whole[name], atol=1e-4, rtol=0)
    assert manifest_of(together)["metrics"]["coverage"] == manifest_of(by_one)["metrics"]["coverage"]


def test_two_processes_share_a_run_out(runs: Runs) -> None:
    planned = runs.plan("few", max_steps=3)
    in_processes(2, [planned], runs.place / "few-together")
    (by_one,) = alone(runs, planned)
    lora.run(LoraRun.model_validate(by_one["config"]))
    check_same(runs.place / "few", runs.place / "few-alone", steps=3)


def name_of(family: str, command: str, is_packed: bool, number: int) -> str:
    return f"{family}-{command}{'-packed' * is_packed}-{number}"


def steps_of(command: str, number: int) -> int:
    return STEPS if (command, number) == ("lora", 2) else FEWER_STEPS


def trained(runs: Runs, case: tuple[str, str, bool], number: int) -> Path:
    """The case's run by so many processes that share the experts out, and beside it that by one; done once."""
    family, command, is_packed = case
    name = name_of(*case, number)
    if not (runs.place / name).exists():
        planned = runs.plan(
            name, family, command, packing=is_packed, batch_size=5 - number, max_steps=steps_of(command, number)
        )
        in_processes(number, [planned], runs.place / f"{name}-together")
        in_processes(1, alone(runs, planned, number=number), runs.place / f"{name}-by-one")
    return runs.place / name


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}{'-packed' * case[2]}")
def test_families_take_the_steps_of_one_process(runs: Runs, case: tuple[str, str, bool], number: int) -> None:
    family, command, is_packed = case
    run = trained(runs, case, number)
    check_same(run, Path(f"{run}-alone"), steps_of(command, number))
    if command == "lora" and not is_packed:
        check_plain_peft(runs, family, run)


def check_plain_peft(runs: Runs, family: str, run: Path) -> None:
    """Plain PEFT computes the loss with the saved adapter."""
    base = load(Base(model=str(runs.base(family)), dtype="float32"))
    ids = base.tokenizer("what is 3 times 2? it is 6", return_tensors="pt").input_ids
    with torch.no_grad():
        plain = load_plain_adapter(base.model, run / "adapter")(input_ids=ids, labels=ids).loss
        ours = load_with_adapter(run / "adapter").model.float()(input_ids=ids, labels=ids).loss
    assert float(plain) == pytest.approx(float(ours), abs=1e-4)


@pytest.fixture(scope="module")
def resumed(runs: Runs) -> Runs:
    """Runs of 8 steps interrupted amid the second epoch, that go on in as many processes or in others; and DDP's."""
    few = {"max_steps": 8, "save_steps": 100}
    in_two: list[dict[str, Any]] = [runs.plan("whole", **few)]
    for strategy in ("experts", "ddp"):
        in_two += [runs.plan(f"{strategy}-stopped", strategy=strategy, **few) | {"interrupt": [1, 6]}]
    in_processes(2, in_two, runs.place / "stopping")
    for strategy in ("experts", "ddp"):
        for copy in ("again", "one", "one-two"):
            shutil.copytree(runs.place / f"{strategy}-stopped", runs.place / f"{strategy}-{copy}")

    def go_on(name: str, **more: Any) -> dict[str, Any]:
        return runs.plan(name, strategy="ddp", **few) | {"resume": str(runs.place / name)} | more

    both = ("experts", "ddp")
    in_processes(
        1,
        [go_on(f"{one}-{copy}", **({"interrupt": [0, 7]} if copy == "one-two" else {}))
         for one in both for copy in ("one", "one-two")],
        runs.place / "by-one",
    )  # fmt: skip
    in_processes(2, [go_on(f"{one}-{copy}") for one in both for copy in ("again", "one-two")], runs.place / "again")
    return runs


@pytest.mark.slow
def test_a_run_goes_on_in_as_many_processes(resumed: Runs) -> None:
    assert curve_of(resumed.place / "experts-again") == pytest.approx(curve_of(resumed.place / "whole"), abs=1e-6)
    assert after(resumed.place / "experts-again") == pytest.approx(after(resumed.place / "whole"), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["one", "one-two"])
def test_a_run_goes_on_in_one_process_and_in_two_again(resumed: Runs, way: str) -> None:
    ours, of_copies = resumed.place / f"experts-{way}", resumed.place / f"ddp-{way}"
    assert curve_of(ours) == pytest.approx(curve_of(of_copies), abs=1e-4)
    assert after(ours) == pytest.approx(after(of_copies), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "router"), [("deepseek_v3", "bias"), ("deepseek_v3", "train"), ("qwen3_moe", "aux_loss")]
)
def test_routers_learn_as_in_one_process(runs: Runs, family: str, router: str) -> None:
    name = f"{family}-{router}"
    run = runs.plan(name, family, router=router, max_steps=6)
    copies = runs.plan(f"{name}-ddp", family, router=router, max_steps=6, strategy="ddp")
    in_processes(2, [run, copies], runs.place / f"{name}-two")
    check_same(runs.place / name, runs.place / f"{name}-ddp", steps=6)


@pytest.mark.slow
def test_8_bit_state_stays_with_the_processes_that_made_it(runs: Runs) -> None:
    few = {"max_steps": 4, "optimizer": "adamw_8bit", "save_steps": 100}
    whole = runs.plan("8bit", command="qlora", **few)
    stopped = runs.plan("8bit-stopped", command="qlora", **few) | {"interrupt": [1, 2]}
    goes_on = runs.plan("8bit-stopped", command="qlora", **few) | {"resume": str(runs.place / "8bit-stopped")}
    in_processes(2, [whole, stopped], runs.place / "8bit-two")
    checkpoint = next((runs.place / "8bit-stopped" / "checkpoints").glob("checkpoint-*"))
    with pytest.raises(RunError, match="2 processes have saved"):
        shared_experts.own_state(checkpoint)
    in_processes(2, [goes_on], runs.place / "8bit-again")
    assert curve_of(runs.place / "8bit-stopped") == pytest.approx(curve_of(runs.place / "8bit"), abs=1e-6)


FAULT = """
import os, signal, sys, threading, time
if os.environ.get("RANK") == "1":
    def disturbed(self, *given, train=None):
        if self.state.global_step == 2:
            if os.environ["DYING"] == "raise":
                raise ValueError("a fault of process 1")
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[os.environ["DYING"]])
        return train(self, *given)
    def wait():
        while True:
            kind = getattr(sys.modules.get("dsr1_tune.runs.trainer.trainer"), "ResumableTrainer", None)
            if kind:
                train = kind.training_step
                kind.training_step = lambda self, *given: disturbed(self, *given, train=train)
                return
            time.sleep(0.01)
    threading.Thread(target=wait, daemon=True).start()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dying", "said"), [("kill", "killed by SIGKILL"), ("stop", "was stopped"), ("raise", "a fault of process 1")]
)
def test_a_process_that_dies_ends_all_and_the_run_goes_on(runs: Runs, tmp_path: Path, dying: str, said: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAULT)  # python runs it in every process, before anything else
    run, unbroken = (runs.plan(name, max_steps=4, save_steps=1) for name in (f"dies-{dying}", f"lives-{dying}"))
    settings_file = tmp_path / "run.json"
    settings_file.write_text(json.dumps(run["config"]))
    command = [sys.executable, "-m", "dsr1_tune", "lora"]
    processes = ["--config", str(settings_file), "--processes", "2"]
    began = time.monotonic()
    done = subprocess.run(
        [*command, *processes],
        env=environment(PYTHONPATH=f"{tmp_path}:{Path.cwd()}", DYING=dying),
        capture_output=True,
        timeout=TIMEOUT,
        text=True,
    )
    last_step = max((runs.place / f"dies-{dying}" / "checkpoints").glob("checkpoint-*/.whole")).stat().st_mtime
    assert time.time() - last_step < 30, time.monotonic() - began
    assert done.returncode not in (0, 130)
    assert said in done.stderr
    assert done.stderr.count("error: ") + done.stderr.count("Traceback") == 1
    mine = [one for one in psutil.process_iter(["cmdline"]) if str(settings_file) in (one.info["cmdline"] or ())]
    assert not mine
    resume = ["--resume", str(runs.place / f"dies-{dying}")]
    subprocess.run([*command, *resume], env=environment(), check=True, capture_output=True, timeout=TIMEOUT)
    in_processes(2, [unbroken], runs.place / f"lives-{dying}-two")
    assert curve_of(runs.place / f"dies-{dying}") == pytest.approx(curve_of(runs.place / f"lives-{dying}"), abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": {"dtype": "float16"}}, "float16"),
        ({"schedule": {"optimizer": "adafactor"}}, "adafactor"),
        ({"watch": {"on_alarm": "rollback"}}, "rollback"),
        ({"parallel": {"powersgd_rank": 2}}, "powersgd"),
    ],
)
@pytest.mark.parametrize("kind", [LoraRun, QloraRun])
def test_what_does_not_work_is_refused(kind: type[LoraRun], changes: dict[str, Any], said: str) -> None:
    parallel = {"strategy": "experts", **changes.get("parallel", {})}
    with pytest.raises(ValueError, match=said):
        kind.model_validate({**changes, "parallel": parallel})
