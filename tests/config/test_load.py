"""Settings from defaults, YAML, flags and --set; what is wrong with them is said all at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dsr1_tune.config import (
    Adapter,
    ConfigSection,
    Data,
    DpoRun,
    ExportRun,
    GrpoRun,
    KtoRun,
    LoraRun,
    PlanRun,
    PpoRun,
    RewardRun,
    Schedule,
    Template,
)
from dsr1_tune.config.load import describe, load_config
from dsr1_tune.errors import ConfigError

ROOT = Path(__file__).parents[2]
RUNS: dict[str, type[ConfigSection]] = {
    "lora": LoraRun, "reward": RewardRun, "dpo": DpoRun, "kto": KtoRun, "ppo": PpoRun, "grpo": GrpoRun
}  # fmt: skip
YAML = sorted([*ROOT.glob("examples/**/*.yaml"), *ROOT.glob("examples/**/*.yml")])
SHIPPED = [file for file in YAML if not file.stem.startswith("rewards")]  # those are tried in test_examples.py


@pytest.fixture
def yaml(tmp_path: Path) -> Any:
    """yaml("adapter: {rank: 4}") writes a file and returns its path."""

    def write(text: str | bytes) -> Path:
        path = tmp_path / "run.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refused(*given: Any, **more: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(LoraRun, *given, **more)
    return caught.value


def test_defaults() -> None:
    assert load_config(LoraRun) == LoraRun()


def test_set_beats_a_flag_beats_the_file_beats_the_default(yaml: Any) -> None:
    file = yaml("schedule: {epochs: 2, seed: 2, batch_size: 2}\nsamples: 2")
    flags = {"schedule.epochs": 3.0, "schedule.seed": 3}
    got = load_config(LoraRun, file, flags, ["schedule.epochs=4"])
    schedule = got.schedule
    assert (schedule.epochs, schedule.seed, schedule.batch_size, schedule.gradient_accumulation_steps) == (4, 3, 2, 1)
    assert got.adapter == Adapter()


def test_a_flag_that_is_not_given_changes_nothing(yaml: Any) -> None:
    assert load_config(LoraRun, yaml("schedule: {epochs: 2}"), {"schedule.epochs": None}).schedule.epochs == 2


def test_the_last_set_counts() -> None:
    assert load_config(LoraRun, sets=["adapter.rank=4", "adapter.rank=16"]).adapter.rank == 16


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("adapter.rank=32", "adapter.rank", 32),
        ("schedule.learning_rate=2e-4", "schedule.learning_rate", 2e-4),
        ("schedule.gradient_checkpointing=false", "schedule.gradient_checkpointing", False),
        ("adapter.groups=[attention, routed_experts]", "adapter.groups", ("attention", "routed_experts")),
        ("data.map={answer: reply}", "data.map", {"answer": "reply"}),
        ("data.files=[a.json, b.json]", "data.files", (Path("a.json"), Path("b.json"))),
        ("base.model=deepseek-ai/DeepSeek-V2-Lite-Chat", "base.model", "deepseek-ai/DeepSeek-V2-Lite-Chat"),
        ("base.revision='1234567'", "base.revision", "1234567"),
        ("base.model=a=b", "base.model", "a=b"),
        ("out=runs/mine", "out", Path("runs/mine")),
        ("out=null", "out", None),
        ("base.model=2024-13-45", "base.model", "2024-13-45"),
        ("base.model=[open", "base.model", "[open"),
        (" samples = 0", "samples", 0),
    ],
)
def test_types(text: str, name: str, value: Any) -> None:
    got: Any = load_config(LoraRun, sets=[text])
    for part in name.split("."):
        got = getattr(got, part)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_shipped_file_is_a_run(file: Path) -> None:
    config: Any = load_config(RUNS[file.stem], file)
    assert config.data.files
    assert all((ROOT / path).is_file() for path in config.data.files)


def test_there_are_shipped_files() -> None:
    assert ROOT / "examples" / "medical" / "lora.yaml" in SHIPPED


def test_an_unknown_name_lists_the_known_ones(yaml: Any) -> None:
    error = refused(sets=["adapter.rnak=3"])
    assert "adapter.rnak: there is no such setting" in error.message
    assert error.hint == f"known here: {', '.join(Adapter.model_fields)}"
    assert refused(sets=["rank=3"]).hint == f"known here: {', '.join(LoraRun.model_fields)}"
    error = refused(yaml("schedule: {lr: 3}"))
    assert "run.yaml: schedule.lr" in error.message
    assert "learning_rate" in error.hint


def test_all_problems_at_once(yaml: Any) -> None:
    file = yaml("schedule: {epochs: 0, seed: -1, rate: 5}\nadapter: {groups: [router]}\nfoo: 1")
    error = refused(file, {"schedule.batch_size": "many"}, ["data.eval_share=1"])
    for name in ("epochs", "seed", "rate", "batch_size"):
        assert f"schedule.{name}: " in error.message
    for name in ("adapter.groups.0: ", "foo: there is no such setting", "data.eval_share: ", "(given: 'many')"):
        assert name in error.message
    assert error.message.startswith(str(file))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("adapter.rank=0", "greater than or equal to 1"),
        ("adapter.rank=4.5", "valid integer"),
        ("adapter.rank=eight", "valid integer"),
        ("adapter.alpha=0", "greater than 0"),
        ("adapter.groups=[]", "name at least one of attention, dense_ffn"),
        ("adapter.groups=[router]", "'attention', 'dense_ffn', 'shared_experts' or 'routed_experts'"),
        ("base.dtype=int8", "'auto', 'float32', 'bfloat16' or 'float16'"),
        ("data.eval_share=1", "less than 1"),
        ("data.eval_share=-0.1", "greater than or equal to 0"),
        ("schedule.learning_rate=nan", "finite number"),
        ("schedule.epochs=inf", "finite number"),
        ("schedule.max_tokens=8", "greater than or equal to 16"),
        ("schedule.seed=4294967296", "less than 4294967296"),
        ("schedule=5", "valid dictionary"),
    ],
)
def test_values_that_cannot_work(text: str, said: str) -> None:
    error = refused(sets=[text])
    assert error.message.startswith(text.split(".")[0].split("=")[0])
    assert said in error.message and "dsr1-tune settings" in error.hint


def test_what_is_no_setting_at_all(yaml: Any) -> None:
    assert "not of the form name=value" in refused(sets=["adapter.rank"]).message
    assert "not of the form name=value" in refused(sets=["=3"]).message
    assert "samples is a value, it has no more" in refused(sets=["samples=1", "samples.more=1"]).message
    assert "data is a value, it has no files" in refused(yaml("data: a.json"), {"data.files": ["b.json"]}).message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1, 2", "is not YAML"),
        ("a: b: c", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        ("a: 2024-13-45", "is not YAML"),
        ("a: " + "[" * 5000, "is not YAML"),
        ("!!python/object/apply:os.getcwd []", "is not YAML"),
        ("", "holds no settings"),
        ("# all commented out", "holds no settings"),
        ("- a\n- b", "holds no settings"),
        ("just a text", "holds no settings"),
    ],
)
def test_what_is_no_file_of_settings(yaml: Any, text: str | bytes, said: str) -> None:
    error = refused(yaml(text))
    assert f"run.yaml: {said}" in error.message and "examples/medical/lora.yaml" in error.hint


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "nothing.yaml: cannot be read: No such file" in refused(tmp_path / "nothing.yaml").message
    assert "cannot be read: Is a directory" in refused(tmp_path).message


def test_an_empty_section_leaves_the_defaults(yaml: Any) -> None:
    file = yaml("schedule:\n  # epochs: 3\nadapter:\n  rank: 4\n")
    assert load_config(LoraRun, file) == LoraRun(adapter=Adapter(rank=4))
    assert load_config(LoraRun, file, {"schedule.epochs": 2.0}).schedule.epochs == 2


def nouns(kind: type[ConfigSection] = LoraRun) -> list[type[ConfigSection]]:
    inner = [field.annotation for field in kind.model_fields.values()]
    below = [noun for noun in inner if isinstance(noun, type) and issubclass(noun, ConfigSection)]
    return [kind, *(noun for each in below for noun in nouns(each))]


def test_describe_covers_every_setting_with_its_meaning() -> None:
    rows = describe(LoraRun)
    assert len({name for name, _, _ in rows}) == len(rows)
    leaves = sum(len(noun.model_fields) for noun in nouns()) - (len(nouns()) - 1)
    assert len(rows) == leaves
    for name, default, meaning in rows:
        assert meaning.endswith("."), name
        got: Any = LoraRun()
        for part in name.split("."):
            got = getattr(got, part)
        assert str(got) == default


@pytest.mark.parametrize("noun", nouns(), ids=lambda noun: noun.__name__)
def test_nouns_are_frozen_and_know_their_names(noun: type[ConfigSection]) -> None:
    assert noun.__doc__
    one = noun()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(one, next(iter(noun.model_fields)), None)
    with pytest.raises(ValidationError, match="Extra inputs"):
        noun(no_such_name=1)


def test_a_config_survives_json() -> None:
    config = LoraRun(data=Data(files=(Path("a.json"),), map={"answer": "a"}), schedule=Schedule(seed=3), out=Path("x"))
    assert LoraRun.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("said", ["abc", "-1GiB", "GiB", "1e400"])
def test_how_memory_is_written_is_told(said: str) -> None:
    with pytest.raises(ConfigError, match=r"memory: .*for example 24GiB"):
        load_config(PlanRun, None, {"memory": said})


@pytest.mark.parametrize(("said", "gib"), [("24GiB", 24), ("24 g", 24), ("512MiB", 0.5), ("1.5tib", 1536), ("24", 24)])
def test_memory_in_words(said: str, gib: float) -> None:
    assert load_config(PlanRun, None, {"memory": said}).memory == gib


def test_old_names_of_settings_work_and_the_new_one_is_said(yaml: Any, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(ExportRun, yaml("quantise: {to: int8}"), sets=["quantise.all=true"])
    assert (config.quantize.to, config.quantize.all) == ("int8", True)
    assert (
        capsys.readouterr().err.splitlines()
        == ["note: quantise is called quantize now; the old name works in this version only"] * 2
    )  # the file's and the --set's
    assert ExportRun.model_validate({"quantise": {"to": "fp8"}}).quantize.to == "fp8"


def test_old_and_new_name_of_a_setting_together_are_refused(yaml: Any) -> None:
    with pytest.raises(ConfigError, match="quantise is the old name of quantize"):
        load_config(ExportRun, yaml("quantise: {to: int8}\nquantize: {to: nf4}"))


def test_present_names_of_settings_say_nothing(yaml: Any, capsys: pytest.CaptureFixture[str]) -> None:
    load_config(ExportRun, yaml("quantize: {to: int8}"))
    assert capsys.readouterr().err == ""


RENAMED = {
    "schedule.accumulate=3": (LoraRun, "schedule.gradient_accumulation_steps"),
    "schedule.neftune=5": (LoraRun, "schedule.neftune_noise_alpha"),
    "watch.evaluate_steps=7": (LoraRun, "watch.eval_steps"),
    "dpo.loss=[hinge]": (DpoRun, "dpo.loss_type"),
    "dpo.weights=[2]": (DpoRun, "dpo.loss_weights"),
    "reward.center=0.5": (RewardRun, "reward.center_rewards_coefficient"),
    "grpo.group=4": (GrpoRun, "grpo.num_generations"),
    "grpo.iterations=2": (GrpoRun, "grpo.num_iterations"),
    "grpo.kl=0.5": (GrpoRun, "grpo.beta"),
    "grpo.loss=bnpo": (GrpoRun, "grpo.loss_type"),
    "grpo.scale=none": (GrpoRun, "grpo.scale_rewards"),
}


@pytest.mark.parametrize("text", RENAMED)
def test_renamed_setting_is_set_by_its_old_name_as_by_its_new_one(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, new = RENAMED[text]
    old = text.partition("=")[0]
    config = load_config(kind, sets=[text])
    assert capsys.readouterr().err.startswith(f"note: {old} is called {new} now")
    assert config == load_config(kind, sets=[text.replace(old, new)])
    assert config != kind()


def test_settings_saved_by_an_earlier_version_are_read() -> None:
    saved = LoraRun(schedule=Schedule(gradient_accumulation_steps=3)).model_dump(mode="json")
    saved["schedule"]["accumulate"] = saved["schedule"].pop("gradient_accumulation_steps")
    saved["watch"]["evaluate_steps"] = saved["watch"].pop("eval_steps")
    assert LoraRun.model_validate(saved) == LoraRun(schedule=Schedule(gradient_accumulation_steps=3))


def test_old_name_in_a_file_and_new_name_in_set_go_together(yaml: Any) -> None:
    old = yaml("schedule: {accumulate: 3}")
    assert load_config(LoraRun, old, sets=["schedule.gradient_accumulation_steps=5"]) == LoraRun(
        schedule=Schedule(gradient_accumulation_steps=5)
    )


# --- arguments of the chat template ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("low=true,effort=high", {"low": True, "effort": "high"}),
        ('{"parts": {"a": [1, 2]}, "text": "x=1,y=2"}', {"parts": {"a": [1, 2]}, "text": "x=1,y=2"}),
        ({"parts": {"a": 1}}, {"parts": {"a": 1}}),
    ],
)
def test_template_arguments_are_pairs_or_json(said: Any, wanted: dict[str, Any]) -> None:
    assert load_config(Template, flags={"kwargs": said}).kwargs == wanted


@pytest.mark.parametrize("said", ["x", '{"a": ', "[1, 2]", '{"a b": 1}', "=1", "a=b,c"])
def test_template_arguments_that_are_neither_are_refused_with_an_example(said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Template, flags={"kwargs": said})
    assert 'write NAME=VALUE,... such as reasoning_effort=low, or as JSON {"reasoning_effort": "low"}' in str(
        caught.value
    )


@pytest.mark.parametrize("said", ['a={"x": 1, "y": 2}', 'a={"x": 1}', "b=1,a=[1,2]"])
def test_template_arguments_with_parts_are_shown_the_form_in_json(said: str) -> None:
    with pytest.raises(ConfigError, match=r"write all arguments as JSON, such as (\{.*\})") as caught:
        load_config(LoraRun, sets=[f"template.kwargs={said}"])
    example = str(caught.value).partition("such as ")[2].partition("\n")[0]
    assert load_config(LoraRun, sets=[f"template.kwargs={example}"]).template.kwargs == json.loads(example)


@pytest.mark.parametrize(("thinking", "value"), [("on", False), ("off", True)])
@pytest.mark.parametrize("name", Template.switches)
def test_template_argument_that_contradicts_the_mode_is_refused(thinking: str, value: bool, name: str) -> None:
    sets = [f"template.thinking={thinking}", f"template.kwargs.{name}={str(value).lower()}"]
    with pytest.raises(ConfigError, match=f"template.thinking={thinking} and template.kwargs.{name}=.* contradict"):
        load_config(LoraRun, sets=sets)
    assert load_config(LoraRun, sets=[sets[0], f"template.kwargs.{name}={str(not value).lower()}"])
    assert load_config(LoraRun, sets=sets[1:])
