"""`adapt`: from a data file to a served model: plan, clean, train, merge, quantize, compare, card.

Every stage leaves files in one folder and is recorded in adapt.json when it is finished; the same command resumes where
it was stopped, and training resumes from its checkpoint.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from dsr1_tune.adapt import plan as planning
from dsr1_tune.adapt.page import write_report
from dsr1_tune.adapt.state import MISSED, PLAN, STAGES, StageName, State, begin
from dsr1_tune.atomic import atomic_write
from dsr1_tune.config import RUNS, AdaptRun, CleanRun, ExportRun, TuneRun, as_run
from dsr1_tune.data.clean import run as cleaning
from dsr1_tune.data.inspect.tables import show_cleaned
from dsr1_tune.errors import ConfigError, ModelError, RunError, TuneError
from dsr1_tune.export import lineage
from dsr1_tune.export.comparison.gates import GatesMissed
from dsr1_tune.export.formats import registry
from dsr1_tune.export.steps import Steps
from dsr1_tune.models.load import pick_device
from dsr1_tune.models.memory import GIB
from dsr1_tune.models.memory_plan.advice import Plan
from dsr1_tune.models.memory_plan.estimate import Method
from dsr1_tune.runs.console import Narrator, quiet_libraries
from dsr1_tune.runs.distributed.launch import run_in_processes
from dsr1_tune.runs.folder import FINISHED, RunFolder
from dsr1_tune.train import esft, full, lora, qlora

_TRAIN: dict[str, Callable[[Any, Path | None, Console | None], RunFolder]] = {
    "lora": lora.run,
    "qlora": qlora.run,
    "full": full.run,
    "esft": esft.run,
}


def run(config: AdaptRun, console: Console | None = None) -> Path:
    """Run all stages, or resume where it was stopped; returns the folder of the model.

    Raises TuneError for what the user can correct, GatesMissed (exit code 1) where the quantized model has lost too
    much, and KeyboardInterrupt after a Ctrl-C; what was done is kept in every case.
    """
    quiet_libraries()
    if not config.data.files:
        raise ConfigError("no data is given", hint="dsr1-tune adapt --data medical.json --out model")
    registry.pick(config.quantize)
    state = State(config.out or Path("adapted") / Path(config.data.name.removesuffix(".gz")).stem)
    adapt = _Adapt(_with_absolute_paths(config), state, Narrator(console or Console()))
    with state.held():
        adapt.config = begin(state, adapt.config)
        try:
            adapt.go()
        except KeyboardInterrupt:
            adapt.narrator.say(f"\nStopped. Go on with: dsr1-tune adapt --out {state.folder}")
            raise
    adapt.narrator.say(f"\nThe model is in {adapt.made}. Talk to it with: dsr1-tune chat {adapt.made}")
    return adapt.made


def _with_absolute_paths(config: AdaptRun) -> AdaptRun:
    """Adapt may be resumed from another working directory."""
    files = tuple(file.absolute() for file in config.data.files)
    weights = {str(Path(file).absolute()): weight for file, weight in config.data.weights.items()}
    evaluated = tuple(file.absolute() for file in config.data.eval_files)
    paths = {"files": files, "eval_files": evaluated, "weights": weights}
    return config.model_copy(update={"data": config.data.model_copy(update=paths)})


class _Adapt:
    """One run of adapt: its settings, its folder, and for each of its stages a function of that name."""

    def __init__(self, config: AdaptRun, state: State, narrator: Narrator) -> None:
        self.config, self.state, self.narrator = config, state, narrator
        self.data, self.trained = state.folder / "data", state.folder / "run"

    def go(self) -> None:
        """All stages that are not done yet, and the report, however far it comes."""
        try:
            for number, (name, stage) in enumerate(self.stages().items(), start=1):
                self.narrator.stage(f"[{number}/{len(STAGES)}] {name}")
                if self.state.is_done(name):
                    self.narrator.say("done before")
                    continue
                with self.state.running(name) as facts:
                    stage(facts)
                gc.collect()
            self.check_gates()
        except TuneError:
            self.state.withdraw()
            raise
        finally:
            if self.state.file.exists():
                self.report()

    def stages(self) -> dict[StageName, Callable[[dict[str, Any]], None]]:
        """In their order."""
        return {
            "plan": self.plan,
            "clean": self.clean,
            "train": self.train,
            "merge": self.merge,
            "quantize": self.quantize,
            "compare": self.compare,
            "card": self.card,
        }

    @property
    def steps(self) -> Steps:
        """From the training run to the model that is served."""
        config, folder = self.config, self.state.folder
        settings = ExportRun(merge=config.merge, quantize=config.quantize, compare=config.compare, gates=config.gates)
        return Steps(
            self.trained, folder / "merged", folder / "model", settings, self.narrator.console, config.language
        )

    @property
    def made(self) -> Path:
        """The model that is served."""
        return self.steps.made

    def plan(self, facts: dict[str, Any]) -> None:
        """Which way of training fits. Raises ModelError where none does and none was asked for."""
        asked = self.config.method
        methods: tuple[Method, ...] = ("lora", "qlora") if asked == "auto" else (asked,)
        # It is trained here, whatever memory is said.
        here = pick_device().type if self.config.device == "auto" else self.config.device
        made = planning.run(self.config.model_copy(update={"device": here}), self.narrator.console, methods)
        with atomic_write(self.state.folder / PLAN, binary=True) as file:
            file.write(orjson.dumps(planning.as_json(made), option=orjson.OPT_INDENT_2))
        if asked != "auto" and asked in made.refused:
            raise ConfigError(f"method={asked}: {made.refused[asked]}", hint="change that, or take another method")
        method = made.choice if asked == "auto" else asked
        if method is None:
            raise _none_fits(made)
        reason = _reason(made, method, asked)
        self.narrator.say(reason)
        needed = made.of(method).needed
        facts |= {"method": method, "reason": reason, "needed": needed, "memory": made.memory, "base": made.base.name}

    def clean(self, facts: dict[str, Any]) -> None:
        """Rules, personal data, duplicates, and held-out rows, unless there are evaluation files."""
        data, dedup = self.config.data, self.config.dedup
        if data.eval_files:
            dedup = dedup.model_copy(update={"against": (*dedup.against, *data.eval_files)})
            data = data.model_copy(update={"eval_share": 0.0, "eval_files": ()})
        config = CleanRun(
            data=data,
            privacy=self.config.privacy,
            dedup=dedup,
            judge=self.config.judge,
            out=self.data,
            language=self.config.language,
            seed=self.config.schedule.seed,
        )
        cleaned = cleaning.run(config).report
        show_cleaned(cleaned, self.narrator.console)
        facts |= {name: cleaned[name] for name in ("num_rows", "num_kept", "num_merged", "num_dropped")}
        facts["languages"] = cleaned.get("languages", {})

    def train(self, facts: dict[str, Any]) -> None:
        """Train with the chosen method, or resume it."""
        method = self.state.stage("plan")["method"]
        folder = RunFolder(self.trained)
        status = folder.manifest().get("status") if folder.manifest_file.exists() else None
        config = self._training(method)
        if status != FINISHED:
            self._train(method, config, self.trained if status else None)
        folder.update(data_origin=self._origin())
        told = folder.manifest()["metrics"]
        facts |= {name: told.get(name) for name in ("loss_before", "loss_after", "num_steps")}

    def _origin(self) -> dict[str, Any]:
        """The user's own files and what cleaning left of them, for the lineage: the run saw the cleaned ones only."""
        cleaned = orjson.loads((self.data / "report.json").read_bytes())
        files = {name: {"sha256": digest} for name, digest in self.state.read()["data_sha256"].items()}
        counts = {name: cleaned[name] for name in ("num_rows", "num_kept", "num_merged", "num_dropped", "dropped")}
        return {"files": files, **counts}

    def _training(self, method: str) -> TuneRun:
        data = self.config.data.model_dump() | {"files": (self.data,), "map": {}, "rules": None, "weights": {}}
        return as_run(self.config, RUNS[method], data=data, out=self.trained)

    def _train(self, method: str, config: TuneRun, resume: Path | None) -> None:
        number = config.parallel.processes
        if number == 1:
            _TRAIN[method](config, resume, self.narrator.console)
            return
        settings = self.state.folder / "train.yaml"  # JSON is YAML
        with atomic_write(settings) as file:
            file.write(config.model_dump_json(indent=1))
        words = ["--resume", str(resume)] if resume else ["--config", str(settings)]
        code = run_in_processes([method, *words, "--processes", str(number)], number)
        if code == 130:  # as a shell says it of Ctrl-C
            raise KeyboardInterrupt
        if code:
            raise RunError(f"{self.trained}: training ended with exit code {code}", hint="see what it said above")

    def merge(self, facts: dict[str, Any]) -> None:
        """The base with what was trained."""
        self.steps.merge()
        facts |= {"bytes": _weights_bytes(self.steps.merged)}
        known = lineage.read(self.steps.merged)
        if known and (stage := known.stage("merge")):
            facts["certificate"] = stage.facts.get("certificate")

    def quantize(self, facts: dict[str, Any]) -> None:
        """Into the format that is served."""
        facts["to"] = self.config.quantize.to
        self.steps.quantize()
        facts["bytes"] = _weights_bytes(self.made)

    def compare(self, facts: dict[str, Any]) -> None:
        """The served model compared with what it was made of, and checked against the gates."""
        found = self.steps.compare(("merged", "model") if self.steps.is_quantized else ("run", "merged"))
        measured = found.domain or found.general
        facts |= {
            "increase": measured.increase.value,
            "agreement": measured.agreement.value if measured.agreement else None,
            "general_increase": found.general.increase.value,
            "missed": list(found.missed),
            "status": MISSED if found.missed else "done",
        }

    def card(self, facts: dict[str, Any]) -> None:
        """The model card."""
        facts["file"] = self.steps.card().name

    def check_gates(self) -> None:
        """Raise GatesMissed, saying what to do, where a gate was missed."""
        if lines := self.state.stage("compare").get("missed"):
            ways = registry.gentler(self.config.quantize)
            gently = (
                f"Quantize more gently into another folder (dsr1-tune quantize {self.steps.merged} {ways[0]}), or allow"
                if ways
                else "Allow"
            )
            raise GatesMissed(
                f"{self.made}: " + "; ".join(lines),
                hint=f"everything is kept in {self.state.folder}. {gently} more and go on: dsr1-tune adapt --out "
                f"{self.state.folder} --set gates.max_loss_increase=... --set gates.min_agreement=...",
            )

    def report(self) -> None:
        """Written however far it has come; a report that cannot be written must not fail the run."""
        try:
            file = write_report(self.state, self.config.language)
            self.narrator.say(f"\nAll of it on one page: {file}")
        except Exception as error:
            self.narrator.say(f"{self.state.folder}: no report could be written: {type(error).__name__}: {error}")


def _none_fits(made: Plan) -> TuneError:
    """Why neither lora nor qlora is taken."""
    if not made.estimates:
        refused = "; ".join(f"{name}: {why}" for name, why in made.refused.items())
        return ConfigError(refused, hint="change that, or take another method")
    what = "neither lora nor qlora fits" if not made.refused else f"{made.estimates[0].method} does not fit"
    tips = "; ".join(f"{name}: {tip}" for name, tip in {**made.refused, **made.advice}.items())
    return ModelError(f"{made.base.name}: {what} in {made.memory / GIB:.1f} GiB", hint=tips)


def _reason(made: Plan, method: Method, asked: str) -> str:
    one, have = made.of(method), made.memory / GIB
    need = f"{method} needs about {one.needed / GIB:.2f} GiB of {have:.2f}"
    if asked != "auto":
        tip = f"try {made.advice[method]}" if method in made.advice else ""
        return f"{method}, as asked: {need}" + ("" if made.fits(method) else f", which it may not fit in; {tip}")
    if method == "lora":
        return f"lora: it fits ({need}), and trains over the base in its own number format"
    if "lora" in made.refused:
        return f"qlora: lora is refused ({made.refused['lora']}), {need}"
    return f"qlora: lora would need {made.of('lora').needed / GIB:.2f} GiB, {need}"


def _weights_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for pattern in ("*.safetensors", "*.gguf") for file in folder.glob(pattern))
