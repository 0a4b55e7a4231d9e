"""Two real processes on a tiny DeepSeek-V3: they take one process's steps, stop together, go on, and fail clearly."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dsr1_tune.config import LoraRun, Parallel
from dsr1_tune.errors import ConfigError
from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.distributed.launch import processes_of
from tests.runs.distributed.conftest import TIMEOUT, environment, log_of

NUM_STEPS = 8  # two epochs of 27 records in global batches of 8
WORKER = Path(__file__).with_name("two_processes.py")


def settings(base: Path, data: Path, out: Path, batch_size: int, **parallel: Any) -> dict[str, Any]:
    """Two epochs; 8 records a step in one process, or 4 in each of two."""
    schedule = {"epochs": 2, "learning_rate": 0.01, "batch_size": batch_size, "max_tokens": 128, "save_steps": 100}
    return {
        "data": {"files": [str(data)]},
        "base": {"model": str(base), "dtype": "float32"},
        "schedule": schedule,
        "parallel": parallel,
        "out": str(out),
        "samples": 1,
        "sample_tokens": 2,
    }


def in_processes(number: int, runs: list[dict[str, Any]], place: Path) -> list[list[dict[str, Any]]]:
    """Do the runs in so many processes; what each process tells of each run."""
    place.mkdir(parents=True, exist_ok=True)
    file = place / "runs.json"
    file.write_text(json.dumps(runs))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ranks = [
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1"}
        for rank in range(number)
    ]
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(file)],
            env=environment(MASTER_PORT=port, PATIENCE=str(TIMEOUT - 20), **rank),
            stderr=-1,
        )
        for rank in ranks
    ]
    try:
        said = [process.communicate(timeout=TIMEOUT)[1].decode() for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * number, "\n".join(said)
    return [
        [json.loads(Path(f"{file}.{run}.{rank}").read_text()) for rank in range(number)] for run in range(len(runs))
    ]


def curve_of(run: Path) -> list[float]:
    return [line[name] for line in log_of(run) for name in ("step", "loss", "grad_norm", "learning_rate")]


def manifest_of(run: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    return manifest


def after(run: Path) -> float:
    loss: float = json.loads((run / "eval.json").read_text())["after"]["loss"]
    return loss


@dataclass
class Done:
    """The runs that the tests look at, and what each process told of them."""

    place: Path
    told: dict[str, list[dict[str, Any]]]

    def __getitem__(self, name: str) -> Path:
        return self.place / name


Plan = Callable[..., dict[str, Any]]


def done_by(tiny_base: Path, data_file: Path, place: Path, two: Callable[[Plan], dict[str, Any]], *alone: str) -> Done:
    """One process's runs of the methods `alone`, by their names, and the runs that `two` plans for two processes."""

    def plan(name: str, command: str = "lora", batch_size: int = 4, **parallel: Any) -> dict[str, Any]:
        return {"command": command, "config": settings(tiny_base, data_file, place / name, batch_size, **parallel)}

    runs = two(plan)
    in_processes(1, [plan(method, method, batch_size=8) for method in alone], place / "alone")
    told = in_processes(2, list(runs.values()), place / "together")
    return Done(place, dict(zip(runs, told, strict=True)))


@pytest.fixture(scope="module")
def done(tiny_base: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """LoRA and QLoRA by one process, and by two that hold copies of all weights."""
    place = tmp_path_factory.mktemp("runs")

    def two(plan: Plan) -> dict[str, Any]:
        return {
            **stopped_and_resumed(plan, place, "ddp"),
            "starved": plan("starved") | {"starve": 1},
            "quantized": plan("quantized", "qlora"),
        }

    return done_by(tiny_base, data_file, place, two, "lora", "qlora")


@pytest.fixture(scope="module")
def sharded(tiny_base: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """LoRA by one process, and by two that share the weights out."""
    place = tmp_path_factory.mktemp("sharded")
    return done_by(tiny_base, data_file, place, lambda plan: stopped_and_resumed(plan, place, "fsdp2"), "lora")


def stopped_and_resumed(plan: Plan, place: Path, strategy: str) -> dict[str, Any]:
    """A run from end to end, and one of which only the second process is interrupted, amid the second epoch."""
    return {
        strategy: plan(strategy, strategy=strategy),
        "stopped": plan("stopped", strategy=strategy) | {"interrupt": [1, 6]},
        "resumed": plan("stopped") | {"resume": str(place / "stopped")},
    }


BOTH = pytest.mark.parametrize(("runs", "strategy"), [("done", "ddp"), ("sharded", "fsdp2")])


@pytest.mark.slow
@BOTH
def test_group_of_two_processes_takes_the_steps_of_one(
    request: pytest.FixtureRequest, runs: str, strategy: str
) -> None:
    """27 records do not fill the last batch of 8: in it, one process has records and the other fillers."""
    done: Done = request.getfixturevalue(runs)
    assert len(log_of(done["lora"])) == NUM_STEPS
    assert curve_of(done[strategy]) == pytest.approx(curve_of(done["lora"]), abs=1e-4)
    assert after(done[strategy]) == pytest.approx(after(done["lora"]), abs=1e-4)
    first, second = done.told[strategy]
    assert first["sum"] == second["sum"]  # all have the same weights in the end, to the last bit


@pytest.mark.slow
@BOTH
def test_group_size_is_recorded_in_the_manifest(request: pytest.FixtureRequest, runs: str, strategy: str) -> None:
    done: Done = request.getfixturevalue(runs)
    manifest = manifest_of(done[strategy])
    assert manifest["status"] == "finished"
    assert (manifest["processes"], manifest["global_batch"]) == (2, 8)
    assert manifest["config"]["parallel"]["processes"] == 2
    assert manifest["config"]["parallel"]["strategy"] == strategy
    assert manifest["metrics"]["reloaded_loss"] == pytest.approx(after(done[strategy]), abs=1e-3)
    assert processes_of(done[strategy]) == 2


@pytest.mark.slow
@BOTH
def test_group_stops_together_and_resumes(request: pytest.FixtureRequest, runs: str, strategy: str) -> None:
    """`stopped` holds the run after it went on; had the processes stopped apart, the first one would hang."""
    done: Done = request.getfixturevalue(runs)
    assert curve_of(done["stopped"]) == pytest.approx(curve_of(done[strategy]), abs=1e-6)
    assert after(done["stopped"]) == pytest.approx(after(done[strategy]), abs=1e-6)
    assert manifest_of(done["stopped"])["status"] == "finished"
    assert (done["stopped"] / "checkpoints" / "checkpoint-6" / ".whole").exists()


@pytest.mark.slow
def test_group_trains_an_expert_without_tokens_in_one_process(done: Done) -> None:
    first, second = done.told["starved"]
    assert first["experts"] == [0, 1, 2, 3]
    assert second["experts"] == [1, 2, 3]
    assert first["sum"] == second["sum"]
    losses = [line["loss"] for line in log_of(done["starved"])]
    assert len(losses) == NUM_STEPS
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_group_takes_the_steps_of_one_with_qlora(done: Done) -> None:
    """DDP must leave the 4-bit weights alone: it would send their placeholders."""
    assert curve_of(done["quantized"]) == pytest.approx(curve_of(done["qlora"]), abs=1e-4)
    assert after(done["quantized"]) == pytest.approx(after(done["qlora"]), abs=1e-4)


@pytest.mark.parametrize(
    ("method", "strategy"),
    [
        ("lora", "ddp"),
        pytest.param("full", "ddp", marks=pytest.mark.slow),
        pytest.param("full", "fsdp2", marks=pytest.mark.slow),
        pytest.param("esft", "ddp", marks=pytest.mark.slow),
    ],
)
def test_group_takes_the_steps_of_one_with_every_method(
    tiny_base: Path, data_file: Path, tmp_path: Path, method: str, strategy: str
) -> None:
    done = done_by(tiny_base, data_file, tmp_path, lambda plan: {"two": plan("two", method, strategy=strategy)}, method)
    assert curve_of(done["two"]) == pytest.approx(curve_of(done[method]), abs=1e-4)
    assert after(done["two"]) == pytest.approx(after(done[method]), abs=1e-4)


@pytest.mark.slow
def test_group_learns_with_powersgd(tiny_base: Path, data_file: Path, tmp_path: Path) -> None:
    def two(plan: Plan) -> dict[str, Any]:
        run = plan("two", powersgd_rank=2)
        run["config"]["schedule"]["epochs"] = 8  # its first steps are sent whole
        return {"two": run}

    done = done_by(tiny_base, data_file, tmp_path, two, "lora")
    losses = [line["loss"] for line in log_of(done["two"])]
    assert losses[-1] < losses[NUM_STEPS] < losses[0]
    first, second = done.told["two"]
    assert first["sum"] == second["sum"]


# --- from the command line ---


def command(base: Path, data: Path, out: Path, *more: str) -> list[str]:
    given = ["--data", str(data), "--model", str(base), "--out", str(out), "--set", "schedule.max_tokens=128"]
    few = [
        "--set",
        "base.dtype=float32",
        "--set",
        "schedule.batch_size=4",
        "--set",
        "samples=1",
        "--set",
        "sample_tokens=2",
    ]
    return [sys.executable, "-m", "dsr1_tune", "lora", *given, *few, *more]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_group_works_under_accelerate_launch(
    done: Done, tiny_base: Path, data_file: Path, tmp_path: Path, strategy: str
) -> None:
    config = Path(__file__).parents[3] / "configs" / "accelerate" / f"{strategy}.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    line = command(tiny_base, data_file, tmp_path / "run", "--epochs", "2", "--set", "schedule.learning_rate=0.01")
    subprocess.run([*launch, *line[1:]], env=environment(), check=True, capture_output=True, timeout=TIMEOUT)
    assert curve_of(tmp_path / "run") == pytest.approx(curve_of(done["lora"]), abs=1e-4)
    assert manifest_of(tmp_path / "run")["config"]["parallel"]["strategy"] == strategy


# --- what needs no other process ---


def test_group_of_several_processes_must_be_started() -> None:
    with pytest.raises(ConfigError, match="single process"):
        group.join(Parallel(processes=2))


@pytest.mark.parametrize("strategy", ["fsdp2", "experts"])
def test_group_of_one_cannot_shard(strategy: str) -> None:
    config = LoraRun.model_validate({"parallel": {"strategy": strategy}})
    with pytest.raises(ConfigError, match="one process"):
        group.as_launched(config, False, print)


def test_group_of_deepspeed_is_refused(tiny_base: Path, data_file: Path, tmp_path: Path) -> None:
    words = ["lora", "--model", str(tiny_base), "--data", str(data_file), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "dsr1_tune", *words],
        env=environment(ACCELERATE_USE_DEEPSPEED="true"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert "configured for DeepSpeed, which is not used" in done.stderr and "fsdp2.yaml" in done.stderr


def test_group_of_one_needs_no_communication() -> None:
    assert group.world_size() == 1
    assert group.is_main()
    assert group.from_main(lambda: 3) == group.main_first(lambda: 3) == 3
    assert group.any_of(True)
    assert not group.any_of(False)


@pytest.mark.parametrize("name", ["ddp", "experts", "fsdp2", "multi-node"])
def test_group_configs_are_read_by_accelerate(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(Path(__file__).parents[3] / "configs" / "accelerate" / f"{name}.yaml"))
    kinds = {"ddp": "MULTI_GPU", "experts": "MULTI_GPU", "fsdp2": "FSDP", "multi-node": "MULTI_GPU"}
    assert config.distributed_type == kinds[name]
    assert config.num_processes == (16 if name == "multi-node" else 2)
    if name == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2
