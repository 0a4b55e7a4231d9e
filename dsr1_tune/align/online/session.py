"""What PPO and GRPO share: prompts encoded, answers scored, scoring that fails, and rewards on held-out prompts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from dsr1_tune.align.online.generate import Answers, shared_answers
from dsr1_tune.align.preference.encode import encode_all
from dsr1_tune.align.preference.log_probs import log_probs
from dsr1_tune.align.rewards.layered import Answered, LayeredReward, RewardResult
from dsr1_tune.atomic import atomic_write
from dsr1_tune.config import Encoding, RolloutRun
from dsr1_tune.data.encode import thinking
from dsr1_tune.data.encode.example import prompt_tokens, refused_by_template
from dsr1_tune.data.encode.template import TEMPLATE_ERRORS
from dsr1_tune.data.prepared import Prepared
from dsr1_tune.data.record import Drop, Message, Prompt, Record, Row
from dsr1_tune.errors import ConfigError, DataError, RunError
from dsr1_tune.models.load import Loaded
from dsr1_tune.runs.console import plain_table
from dsr1_tune.runs.data import RunData
from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.evaluate import in_order
from dsr1_tune.runs.session import Session
from dsr1_tune.text.amount import amount

Run = TypeVar("Run", bound=RolloutRun)
MAX_NAMED = 5
ERRORS = "reward_errors.jsonl"


@dataclass(frozen=True, slots=True)
class PromptExample:
    """A prompt as token ids; `record` is the same with the expected answer, if any, as its answer."""

    prompt: Prompt
    record: Record
    input_ids: tuple[int, ...]
    num_cut: int = 0
    opens_thought: bool = False
    """Whether the chat template ends the prompt with <think>."""
    moves_system: bool = False
    """Whether system turns stand elsewhere: see `Rendered.moves_system`."""


def encode_prompts(prepared: Prepared, tokenizer: Any, config: RolloutRun) -> RunData:
    """Encode prompts, split into training and held-out ones. Raises DataError if none leaves room for an answer."""
    room = config.schedule.max_tokens - config.rollout.max_new_tokens
    # Rows with the same prompt and other expected answers stay on one side of the split.
    return encode_all(prepared, lambda row: _encode(row, tokenizer, config.encoding, room), tokenizer, config)


def _encode(row: Prompt, tokenizer: Any, encoding: Encoding, room: int) -> PromptExample | Drop:
    record = Record((*row.messages, Message("assistant", row.answer or "")), row.place, row.tools, row.row)
    try:
        tokens = prompt_tokens(record, tokenizer, encoding, usual=True)
    except TEMPLATE_ERRORS as error:

        def show(some: tuple[Message, ...]) -> object:
            asked = replace(record, messages=(*some, record.messages[-1]))
            return prompt_tokens(asked, tokenizer, encoding, usual=True)

        return refused_by_template(error, row.messages, show)
    ids = tuple(tokens.ids)
    if len(ids) > room:
        detail = f"{amount(len(ids), 'token')}; with rollout.max_new_tokens for the answer {max(room, 0):,} are allowed"
        return Drop("too_long", detail, "shorten it, or raise schedule.max_tokens", row.messages[-1].path)
    opens_thought = tokenizer.decode(ids[-8:]).rstrip().endswith(thinking.OPEN)
    return PromptExample(row, record, ids, 0, opens_thought, tokens.rendered.moves_system)


@dataclass(frozen=True)
class HeldOutRewards:
    """The rewards of the model's greedy answers to the held-out prompts."""

    reward: float
    layers: dict[str, float]
    components: dict[str, float]
    num_prompts: int
    answer_tokens: float
    """Mean length of the answers in tokens."""
    ended: float
    """Share of answers that the model ended itself."""
    loss: float
    """Nats per token of these answers under the model; the check of what was saved compares it."""
    answers: tuple[tuple[int, ...], ...]
    """Their token ids."""
    num_failed: int = 0
    """Answers that could not be scored; the means are of the others."""

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> HeldOutRewards:
        """The inverse of `as_json`."""
        return cls(**{**value, "answers": tuple(map(tuple, value["answers"]))})

    def as_json(self) -> dict[str, Any]:
        """For eval.json."""
        return asdict(self)

    def __str__(self) -> str:
        layers = "".join(f", {name} {value:.3f}" for name, value in self.layers.items())
        failed = f", {self.num_failed:,} not scored" if self.num_failed else ""
        ended = f"{self.ended:.0%} ended{layers}{failed}"
        return f"mean reward {self.reward:.4f} ({self.answer_tokens:.0f} tokens, {ended})"


class RolloutSession(Session[Run]):
    """A session that learns from rewards of answers that the model generates."""

    learns: ClassVar[type[Row]] = Prompt
    encode = staticmethod(encode_prompts)
    result_type = HeldOutRewards
    watches_loss: ClassVar[bool] = False
    rewards: LayeredReward
    errors: RewardErrors

    @classmethod
    def num_further(cls, config: Any) -> int:
        """The longest answer."""
        return int(config.rollout.max_new_tokens)

    def check_rewards(self) -> None:
        """Check the reward file, and that the rows have what it needs. Raises ConfigError and DataError."""
        file = self.config.rewards
        if file is None:
            raise ConfigError("no rewards are given", hint="--rewards rewards.yaml")
        self.rewards = LayeredReward.read(file)
        prompts = [example.prompt for example in (*self.data.train, *self.data.held_out)]
        lacking = [prompt for prompt in prompts if prompt.answer is None]
        if self.rewards.needs_expected and lacking:
            raise DataError(
                f"{lacking[0].place}: has no answer to check against, which {file} needs "
                f"({amount(len(lacking), 'row has', 'rows have')} none)",
                hint='add it: {"prompt": ..., "expected": ...}, or name its column: --map ground_truth=COLUMN',
            )
        unusable = [
            f"{prompt.place}: its expected answer {objection} in {file}"
            for prompt in dict.fromkeys(prompts)
            if prompt.answer is not None and (objection := self.rewards.objection(prompt.answer))
        ]
        if unusable:
            more = [f"and {len(unusable) - MAX_NAMED:,} more rows"] if len(unusable) > MAX_NAMED else []
            raise DataError(
                "\n".join([*unusable[:MAX_NAMED], *more]),
                hint="mend these rows or take them out; of several columns, name the right one: "
                "--map ground_truth=COLUMN",
            )
        self.errors = RewardErrors(self.folder.path, self.config.on_reward_error, self.narrator.say)

    def load(self) -> Loaded:
        """Load the reward models, and the base."""
        with self.timed("load_rewards"):
            self.rewards = self.rewards.open()
        return super().load()

    def score(self, examples: Sequence[PromptExample], answers: Answers, step: int | None = None) -> list[RewardResult]:
        """Score each answer; rewards that fail are counted, and end the run with on_reward_error=stop.

        Nor does a run go on after a step in which no answer could be scored. Of several processes each scores its
        share of a step, or, outside of steps, its share of the same answers.
        """
        said = [ids[:-1] if ended else ids for ids, ended in zip(answers.ids, answers.have_ended, strict=True)]
        texts = self.base.tokenizer.batch_decode(said, skip_special_tokens=True)
        answered = [
            Answered(one.prompt.messages, text.strip(), one.prompt.answer, len(ids), ended, one.opens_thought)
            for one, text, ids, ended in zip(examples, texts, answers.ids, answers.have_ended, strict=True)
        ]
        results = self.rewards.score(answered) if step is not None else _shared(self.rewards.score, answered)
        self.errors.note(answered, results, step)
        return results

    def evaluate(self, model: Any) -> HeldOutRewards:
        """Evaluate the greedy answers to the held-out prompts."""
        examples: list[PromptExample] = self.data.eval_subset
        prompts, tokenizer = [example.input_ids for example in examples], self.base.tokenizer
        with self.narrator.counting("answering", len(examples)) as advance:
            answers = shared_answers(model, prompts, tokenizer, self.config.rollout, advance)
        results = self.score(examples, answers)
        return HeldOutRewards(
            reward=mean([result.total for result in results if result.is_scored]),
            layers={name: mean(values) for name, values in layer_values(results).items()},
            components={name: mean(values) for name, values in component_values(results).items()},
            num_prompts=len(examples),
            answer_tokens=mean([len(ids) for ids in answers.ids]),
            ended=mean([float(ended) for ended in answers.have_ended]),
            loss=self._loss(model, answers.ids),
            answers=answers.ids,
            num_failed=sum(not result.is_scored for result in results),
        )

    def _loss(self, model: Any, answers: Sequence[Sequence[int]]) -> float:
        pairs = list(zip((example.input_ids for example in self.data.eval_subset), answers, strict=True))
        return -sum(log_probs(model, pairs, self.base.tokenizer.pad_token_id)) / sum(map(len, answers))

    def reloaded_loss(self, model: Any) -> float:
        """The loss of the answers that the trained model gave."""
        return self._loss(model, HeldOutRewards.from_json(self.folder.evaluation()["after"]).answers)

    def metrics(self, before: HeldOutRewards, after: HeldOutRewards) -> dict[str, Any]:
        """Mean rewards before and after, and how often scoring failed."""
        return {"reward_before": before.reward, "reward_after": after.reward, "reward_errors": self.errors.counts}

    def show(self, before: HeldOutRewards, after: HeldOutRewards) -> None:
        """Print rewards by layer and component, before and after."""
        what = "held-out prompts" if self.data.held_out else "of the training prompts"
        title = f"Mean reward of the likeliest answers ({after.num_prompts:,} {what})"
        table = plain_table(title, "", "before", "after")
        table.add_row("reward", f"{before.reward:.4f}", f"{after.reward:.4f}")
        for kind in ("layers", "components"):
            was, now = getattr(before, kind), getattr(after, kind)
            for name in now:
                table.add_row(f"  {name}", f"{was.get(name, 0.0):.4f}", f"{now[name]:.4f}")
        table.add_row("tokens per answer", f"{before.answer_tokens:.1f}", f"{after.answer_tokens:.1f}")
        table.add_row("ended by the model", f"{before.ended:.0%}", f"{after.ended:.0%}")
        self.narrator.console.print(table)
        if failed := self.errors.summary():
            self.narrator.say(failed)


def _shared(score: Callable[[Sequence[Answered]], list[RewardResult]], every: Sequence[Answered]) -> list[RewardResult]:
    """What `score` gives all of them, of which this process asks for its share."""
    mine = range(group.rank(), len(every), group.world_size())
    found = score([every[number] for number in mine]) if mine else []
    return in_order(dict(zip(mine, found, strict=True)))


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; 0 of no values."""
    return sum(values) / len(values) if values else 0.0


def layer_values(results: Sequence[RewardResult]) -> dict[str, list[float]]:
    """By layer, what it gave the answers that could be scored."""
    names = dict.fromkeys(name for result in results for name in result.layers)
    return {name: [result.layers[name] for result in results if result.is_scored] for name in names}


def component_values(results: Sequence[RewardResult]) -> dict[str, list[float]]:
    """By "layer/component", what it gave the answers for which it did not fail."""
    names = dict.fromkeys(name for result in results for name in result.components)
    return {name: [result.given[name] for result in results if name in result.given] for name in names}


def reward_values(results: Sequence[RewardResult]) -> dict[str, list[float]]:
    """The same of every layer and then of every component, by the names in the log."""
    every = layer_values(results) | component_values(results)
    return {f"reward/{name}": values for name, values in every.items()}


# --- rewards that fail ------------------------------------------------------------------------------------------------


class RewardErrors:
    """Counts, for one run, the answers that a component could not score."""

    def __init__(self, folder: Path, on_error: Literal["stop", "zero"], say: Callable[[str], None]) -> None:
        self.file = folder / ERRORS
        self.on_error = on_error
        self.say = say
        self.counts: Counter[str] = Counter()

    def resume(self, step: int) -> None:
        """Take up the count where a run goes on after `step`; what it does again is forgotten."""
        known = [line for line in _lines(self.file) if line.get("step", 0) <= step]
        if group.is_main() and self.file.exists():
            with atomic_write(self.file) as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in known)
        self.counts = Counter(line["component"] for line in known)

    def note(self, answers: Sequence[Answered], results: Sequence[RewardResult], step: int | None = None) -> int:
        """Keep what went wrong with these answers; how much that was.

        Raises RunError at the first with `stop`, and always where no answer of a step could be scored. Where there are
        several processes all call it, in a step each with its share, else all with the same; one of them writes.
        """
        pairs = zip(answers, results, strict=True)
        lines = [_line(one, error, step) for one, result in pairs for error in result.errors]
        if step is not None:
            lines = group.all_gather(lines)
        if not lines:
            return 0
        if group.is_main():
            with self.file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        if self.on_error == "stop":
            hint = f"the answer is in {self.file}; mend the reward and go on with --resume"
            raise RunError(f"reward {lines[0]['component']} failed: {_what(lines[0])}", hint=hint)
        if step is not None and not any(scored := group.all_gather([result.is_scored for result in results])):
            hint = f"every answer is in {self.file}; mend the reward and go on with --resume"
            detail = f"reward {lines[0]['component']} failed: {_what(lines[0])}"
            raise RunError(
                f"of the {amount(len(scored), 'answer')} of update {step} none could be scored; {detail}", hint=hint
            )
        for line in lines:
            component = line["component"]
            self.counts[component] += 1
            number = self.counts[component]
            if str(number).rstrip("0") == "1":  # a power of ten
                times = "" if number == 1 else f", {amount(number, 'time')} by now"
                self.say(f"reward {component} failed, and the answer is left out{times}: {_what(line)}")
        return len(lines)

    def summary(self) -> str:
        """One line for the end of a run, or nothing."""
        if not self.counts:
            return ""
        listed = ", ".join(f"{component} {amount(count, 'time')}" for component, count in self.counts.most_common())
        return f"rewards that failed, whose answers were left out: {listed}; every one is in {self.file}"


def _lines(file: Path) -> list[dict[str, Any]]:
    """What the file holds; a line that a killed run left half written is no line."""
    if not file.exists():
        return []
    found = []
    with file.open("rb") as lines:  # an answer may hold other line ends, such as U+2028, as they are
        for line in lines:
            with suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and "component" in row:
                    found.append(row)
    return found


def _line(one: Answered, error: str, step: int | None) -> dict[str, Any]:
    component, _, said = error.partition(": ")
    return {
        **({} if step is None else {"step": step}),
        "component": component,
        "error": said,
        "question": one.question,
        "answer": one.answer,
        "expected": one.expected,
    }


def _what(line: dict[str, Any]) -> str:
    """What went wrong, and the beginning of the answer."""
    answer = " ".join(line["answer"].split())
    return f"{line['error']}; answer: {answer if len(answer) <= 80 else answer[:80] + '…'!r}"
