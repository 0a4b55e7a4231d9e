"""Two models held against each other: the numbers against plain ones, the gates, the files, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from dsr1_tune import cli
from dsr1_tune.config import Compare, CompareRun, ExportRun, Gates, Quantize
from dsr1_tune.config.load import load_config
from dsr1_tune.data.encode.example import IGNORED
from dsr1_tune.errors import ConfigError, DataError, ModelError, TuneError
from dsr1_tune.export import compare, merge, quantize
from dsr1_tune.export.comparison import measure
from dsr1_tune.export.comparison import page as compare_report
from dsr1_tune.export.comparison.backends import open_scorer
from dsr1_tune.export.comparison.gates import gentler, missed_gates
from dsr1_tune.export.comparison.result import Comparison
from dsr1_tune.export.comparison.rows import GENERAL, choose_rows
from dsr1_tune.export.comparison.statistics import Estimate
from dsr1_tune.models.trained.attach import load_with_adapter
from dsr1_tune.runs.evaluate import held_out_loss
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.kept_rows import eval_subset_examples, records_of
from tests.export.conftest import TinyRun

QUICK = Compare(max_rows=6, answers=2, answer_tokens=4)


NO_GATES = Gates()


def compared(a: Any, b: Any, settings: Compare = QUICK, gates: Gates = NO_GATES, out: Path | None = None) -> Comparison:
    return compare.run(a, b, settings, gates, out, Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def run(tiny_run: TinyRun) -> RunFolder:
    return tiny_run("qwen3_moe", "lora")


@pytest.fixture(scope="module")
def base(run: RunFolder) -> Path:
    return run.path.parent / "base"


@pytest.fixture(scope="module")
def trained(run: RunFolder, base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    """The base and the run compared, and the files that were left."""
    out = tmp_path_factory.mktemp("compare") / "out"
    return compared(base, run.path, out=out), out


def test_the_numbers_are_the_plain_ones(run: RunFolder, base: Path, trained: tuple[Comparison, Path]) -> None:
    found, _ = trained
    models = [load_with_adapter(path) for path in (base, run.path)]
    examples = eval_subset_examples(run, models[0].tokenizer)
    losses = [held_out_loss(one.model, examples, 1).loss for one in models]
    assert found.domain is not None and found.domain.name == f"held-out rows of {run.path}"
    assert (found.domain.loss_a.value, found.domain.loss_b.value) == pytest.approx(tuple(losses), rel=1e-5)
    assert found.domain.increase.value == pytest.approx(losses[1] / losses[0] - 1, rel=1e-4)

    divergences, same = [], []
    for example in examples:
        ids = torch.tensor([example.input_ids])
        is_learned_T = torch.tensor(example.labels[1:]) != IGNORED
        with torch.no_grad():
            a_TV, b_TV = (one.model(ids).logits[0, :-1][is_learned_T].double().log_softmax(-1) for one in models)
        divergences.append((a_TV.exp() * (a_TV - b_TV)).sum(-1))
        same.append(a_TV.argmax(-1) == b_TV.argmax(-1))
    assert found.domain.divergence is not None and found.domain.agreement is not None
    assert found.domain.divergence.value == pytest.approx(float(torch.cat(divergences).mean()), rel=1e-3, abs=1e-5)
    assert found.domain.agreement.value == pytest.approx(float(torch.cat(same).double().mean()))
    assert found.domain.num_diverged == found.domain.num_tokens == len(torch.cat(same))


def test_a_model_is_itself(base: Path, run: RunFolder) -> None:
    found = compared(run.path, run.path, QUICK.model_copy(update={"max_rows": 3}), Gates(max_loss_increase=0.0))
    for one in (found.domain, found.general):
        assert one is not None and one.agreement and one.divergence
        assert (one.increase.value, one.increase.high) == (0.0, 0.0)
        assert one.agreement == Estimate(1.0, 1.0, 1.0)
        assert one.divergence == Estimate(0.0, 0.0, 0.0)
    assert found.answers is not None and found.answers.identical.value == 1.0
    assert found.missed == ()


def test_a_model_is_gone_before_the_next_one_comes(base: Path) -> None:
    with open_scorer(base, None, lambda text: None) as scorer:
        held = weakref.ref(scorer.model.lm_head.weight)  # type: ignore[attr-defined]
        assert held() is not None and scorer.num_bytes > held().nbytes > 0
    assert held() is None


def test_everything_is_in_the_files(trained: tuple[Comparison, Path], run: RunFolder) -> None:
    found, out = trained
    tree = json.loads((out / "compare.json").read_text())
    assert tree == json.loads(json.dumps(found.as_json()))
    assert (
        tree["b"]["num_bytes"] > tree["a"]["num_bytes"] and tree["a"]["stored_bytes"] and not tree["b"]["stored_bytes"]
    )
    assert tree["a"]["writes_per_second"] > 0 < tree["a"]["reads_per_second"]
    assert len(tree["answers"]["rows"]) == 2
    page = (out / "compare.html").read_text()
    assert "held-out rows of" in page and "what is" in page and "<script" not in page
    assert f"{found.general.increase.value:+.2%}" in page


def test_answers_that_were_cut_are_said_to_be_so(trained: tuple[Comparison, Path]) -> None:
    found, _ = trained
    assert found.answers is not None and found.answers.style_a.num_cut == 2
    assert any("2 of 2 answers" in remark and "answer_tokens" in remark for remark in found.remarks)


@pytest.mark.slow
def test_a_gguf_file_is_measured_like_its_model(tiny_run: TinyRun, tmp_path: Path) -> None:
    # llama.cpp gives the chosen experts of a Qwen3-MoE weights that sum to 1, whatever its config says.
    run = tiny_run("qwen3_moe", "lora", {"norm_topk_prob": True})
    silent = Console(file=io.StringIO())
    merge.run(run.path, tmp_path / "merged", console=silent)
    quantize.run(tmp_path / "merged", tmp_path / "gguf", Quantize(to="gguf", gguf="bf16"), silent)
    found = compared(tmp_path / "merged", tmp_path / "gguf", gates=Gates(max_loss_increase=0.001, min_agreement=0.9))
    assert found.missed == () and found.domain and found.domain.divergence and found.general.divergence
    assert found.domain.divergence.value < 1e-4 and found.general.divergence.value < 1e-4
    assert found.answers is not None and found.b.stored_bytes == found.b.num_bytes


def test_the_page_speaks_chinese_and_shows_data_as_text(trained: tuple[Comparison, Path]) -> None:
    found, _ = trained
    assert found.answers is not None
    rows = [
        replace(row, question="发烧怎么办？", reference="多喝水", a="<script>x</script>") for row in found.answers.rows
    ]
    page = compare_report.render(replace(found, answers=replace(found.answers, rows=tuple(rows))), "zh")
    assert "模型对比" in page and "&lt;script&gt;" in page and "<script" not in page
    assert compare_report._language(replace(found, answers=replace(found.answers, rows=tuple(rows)))) == "zh"


def test_other_tokens_are_compared_by_text(base: Path, tmp_path: Path, tiny_model: Any) -> None:
    other = tiny_model("llama")
    file = other / "tokenizer.json"
    tree = json.loads(file.read_text())
    tree["model"]["vocab"] = {token: (number + 1) % 258 for token, number in tree["model"]["vocab"].items()}
    for token in tree["added_tokens"]:
        token["id"] = (token["id"] + 1) % 258
    file.write_text(json.dumps(tree))
    settings = QUICK.model_copy(update={"answers": 0, "max_rows": 3})
    found = compared(base, other, settings)
    assert found.general.agreement is None and found.general.divergence is None and found.general.increase.value != 0
    assert any("other tokens" in remark for remark in found.remarks)
    with pytest.raises(ConfigError, match="min_agreement"):
        compared(base, other, settings, Gates(min_agreement=0.5))


def test_distributions_of_too_many_tokens_are_thinned(base: Path, run: RunFolder, monkeypatch: Any) -> None:
    settings = QUICK.model_copy(update={"answers": 0, "max_rows": 3})
    whole = compared(base, run.path, settings)
    monkeypatch.setattr(measure.Distributions.__init__, "__defaults__", (40 * 258 * 2,))
    some = compared(base, run.path, settings)
    assert whole.domain and some.domain and whole.general.divergence and some.general.divergence
    assert whole.domain.loss_b == some.domain.loss_b and whole.domain.agreement == some.domain.agreement
    kept = some.domain.num_diverged + some.general.num_diverged
    assert 20 <= kept <= 40 < whole.domain.num_diverged + whole.general.num_diverged
    assert some.general.divergence.value == pytest.approx(whole.general.divergence.value, rel=0.5)


def test_gates_say_what_was_missed(trained: tuple[Comparison, Path]) -> None:
    found, _ = trained
    assert found.domain is not None
    domain = replace(found.domain, increase=Estimate(0.031, 0.02, 0.04), agreement=Estimate(0.9, 0.88, 0.92))
    found = replace(found, domain=domain, general=replace(found.general, increase=Estimate(0.005, -0.01, 0.02)))
    assert missed_gates(found, Gates()) == ()
    assert missed_gates(found, Gates(max_loss_increase=0.031, min_agreement=0.9, max_general_drop=0.005)) == ()
    missed = missed_gates(found, Gates(max_loss_increase=0.02, min_agreement=0.95, max_general_drop=0.001))
    assert [line.split(" (")[0] for line in missed] == [
        "domain loss rose by +3.10%",
        "agreement is 90.00%",
        "general loss rose by +0.50%",
    ]
    broken = replace(found, general=replace(found.general, increase=Estimate(float("nan"), 0, 0)))
    assert len(missed_gates(broken, Gates(max_general_drop=0.5))) == 1


@pytest.mark.parametrize(
    ("said", "share"), [("2%", 0.02), ("0.02", 0.02), (" 1.5% ", 0.015), ("150%", 1.5), (0, 0.0), ("0%", 0.0)]
)
def test_limits_are_shares_or_percent(said: Any, share: float) -> None:
    assert Gates(max_loss_increase=said).max_loss_increase == pytest.approx(share)


@pytest.mark.parametrize(
    ("name", "said", "told"),
    [
        ("min_agreement", "95", "write 95% or 0.95"),
        ("min_agreement", "150%", "more than all"),
        ("min_agreement", "most", "for example 2% or 0.02"),
        ("max_loss_increase", "two", "for example 2% or 0.02"),
    ],
)
def test_how_a_share_is_written_is_told(name: str, said: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: .*{told}"):
        load_config(CompareRun, None, {f"gates.{name}": said})


@pytest.mark.parametrize("said", ["2", "x", "-1%", "nan%", "inf"])
def test_other_limits_are_refused(said: str) -> None:
    with pytest.raises(ValueError, match="max_loss_increase"):
        Gates(max_loss_increase=said)


def test_the_built_in_rows_are_in_both_languages_and_of_every_kind() -> None:
    records = records_of(GENERAL)
    num_chinese = sum(any("\u4e00" <= sign <= "\u9fff" for sign in record.question) for record in records)
    assert len(records) == len({record.question for record in records}) == 60
    assert 20 <= num_chinese <= 40


def test_rows_come_from_the_run_or_from_files(base: Path, run: RunFolder, sums: Path) -> None:
    assert choose_rows((base, run.adapter), QUICK).domain == choose_rows((run.path, base), QUICK).domain
    from_file = choose_rows((base, base), QUICK.model_copy(update={"data": (sums,)}))
    assert from_file.domain is not None and len(from_file.domain.records) == 6 and from_file.domain.name == "sums.json"
    without = choose_rows((base, base), QUICK)
    assert without.domain is None and "--data" in without.remarks[0] and len(without.asked) == 2


@pytest.mark.parametrize(
    ("b", "settings", "gates", "error"),
    [
        ("nowhere/at/all", {}, {}, ModelError),
        ("nope", {}, {}, ModelError),
        ("missing.gguf", {}, {}, ModelError),
        (str(Path(__file__).parent), {}, {}, ModelError),  # a folder, but of no model
        (None, {"data": (Path("missing.jsonl"),)}, {}, DataError),
        (None, {}, {"max_loss_increase": 0.02}, ConfigError),  # there are no domain rows
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(
    base: Path, b: str | None, settings: dict[str, Any], gates: dict[str, Any], error: type[TuneError], monkeypatch: Any
) -> None:
    monkeypatch.setattr(
        "dsr1_tune.export.comparison.backends.load_with_adapter", lambda *_: pytest.fail("a model was loaded")
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(error) as raised:
        compared(base, b or base, QUICK.model_copy(update=settings), Gates(**gates))
    assert raised.value.hint


@pytest.mark.parametrize("kind", ["model", "adapter", "gguf"])
def test_a_damaged_file_is_refused_before_the_other_model_is_loaded(
    base: Path, run: RunFolder, tmp_path: Path, kind: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(
        "dsr1_tune.export.comparison.backends.load_with_adapter", lambda *_: pytest.fail("a model was loaded")
    )
    broken = tmp_path / "broken"
    if kind == "gguf":
        pytest.importorskip("xllamacpp")
        broken.mkdir()
        (broken / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    else:
        shutil.copytree(base if kind == "model" else run.adapter, broken)
        file = next(broken.glob("*.safetensors"))
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="is damaged"):
        compared(base, broken)


def test_out_replaces_nothing_but_an_earlier_comparison(base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    ran: list[Path] = []

    def reached(*given: Any) -> Any:
        ran.append(given[4])
        raise ModelError("as far as this", hint="no further")

    monkeypatch.setattr("dsr1_tune.export.compare.run", reached)

    def ask(out: Path) -> Any:
        return CliRunner().invoke(cli.app, ["compare", str(base), str(base), "--out", str(out)])

    before = sorted(base.iterdir())
    said = ask(base).exception
    assert isinstance(said, ConfigError) and "holds other things than a comparison" in said.message and said.hint
    other = tmp_path / "other"
    other.mkdir()
    (other / "compare.json").write_text('{"of": "somebody else"}')
    assert "not of a comparison of ours" in str(ask(other).exception)
    assert "is a file" in str(ask(other / "compare.json").exception)
    assert not ran and sorted(base.iterdir()) == before
    (other / "compare.json").write_text('{"format": "dsr1-tune comparison 1"}')
    assert "earlier comparison" in ask(other).stderr
    assert "earlier comparison" not in ask(tmp_path / "new").stderr
    assert ran == [other, tmp_path / "new"]


def test_what_is_advised_is_another_format() -> None:
    for to in ("nf4", "int8", "w4a16", "fp8", "gguf", "none"):
        for flags in gentler(Quantize(to=to)):  # type: ignore[arg-type]
            sets = [part for part in flags.split() if "=" in part]
            advised = load_config(ExportRun, None, {"quantize.to": flags.split()[1]}, sets).quantize
            assert advised != Quantize(to=to)  # type: ignore[arg-type]
    assert gentler(Quantize(to="int8")) == ("--to gguf --set quantize.gguf=q8_0",)
    assert gentler(Quantize(to="gguf", gguf="q8_0")) == ("--to gguf --set quantize.gguf=bf16",)
    assert gentler(Quantize(to="w4a16", method="gptq"))[0] == "--to fp8" and gentler(Quantize(to="none")) == ()


def test_rows_without_answers_are_refused(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"prompt": "what is 2 times 3?"}\n')
    with pytest.raises(DataError, match="no question with its answer"):
        compared(base, base, QUICK.model_copy(update={"data": (file,)}))


def test_the_command_line(base: Path, run: RunFolder, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--set", "compare.answers=0", "--set", "compare.max_rows=3", "--json"]
    gate = ["--min-agreement", "100%", "--max-loss-increase", "50%"]
    monkeypatch.setattr(sys, "argv", ["dsr1-tune", "compare", str(base), str(run.path), *quick, *gate])
    with pytest.raises(SystemExit) as left:
        cli.main()
    printed = capsys.readouterr()
    tree = json.loads(printed.out)
    assert left.value.code == 1 and len(tree["missed"]) == 1
    assert "missed: agreement is" in printed.err and tree["asked"]["max_loss_increase"] == 0.5
