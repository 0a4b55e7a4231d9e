"""Run folders as runs and ways of alignment leave them, without a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from dsr1_tune.moe.monitor import Routing
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.report.page import write_report
from dsr1_tune.runs.watch.expert_tables import ExpertTables

EVIL = "<script>alert('x')</script>\u202egnp.exe & {{ 7*7 }}"


def fill(path: Path, status: str = "finished", text: str = "is it?") -> RunFolder:
    """A run folder as runs leave it."""
    manifest: dict[str, Any] = {
        "status": status,
        "command": "lora",
        "config": {"data": {"files": ["/data/medical.json"]}, "adapter": {"rank": 8}, "note": text},
        "data_sha256": {"/data/medical.json": "ab" * 32},
        "base": {"name": f"some/base {text}", "revision": None},
        "versions": {"dsr1-tune": "0.1.0", "torch": "2.13.0"},
        "machine": {"system": "Linux", "gpus": "none"},
        "seconds": {"load": 1.5, "train": 4000.0, "something_new": 3},
        "alarms": [
            {
                "what": "loss_spike",
                "where": "loss",
                "since_step": 41,
                "detail": f"9.1 {text}",
                "try": "x",
                "advice": ["lower_rate", "raise_tomorrow"],
                "answer": "warn",
            },
            {"what": "kind_of_tomorrow", "where": text, "since_step": 3, "detail": "", "try": "", "answer": "shrug"},
        ],
        "rollback": {"from_step": 43, "to_step": 20, "learning_rate_factor": 0.5},
        "metrics": {
            "coverage": [
                {"part": "attention", "num_base": 1000, "num_adapted": 1000, "num_trained": 50, "num_frozen": 1000},
                {"part": "router", "num_base": 100, "num_adapted": 0, "num_trained": 0, "num_frozen": 100},
            ]
        },
    }
    answers = [{"question": text, "answer": f"before {text}", "reference": f"reference {text}"}]
    evaluation = {
        "on": "12 held-out records",
        "before": {"loss": 2.5, "num_tokens": 100, "num_records": 12},
        "answers_before": answers,
        "after": {"loss": 2.0, "num_tokens": 100, "num_records": 12},
        "answers_after": [{**answers[0], "answer": f"after {text}"}],
    }
    data = {
        "num_rows": 130,
        "num_kept": 120,
        "num_dropped": 10,
        "dropped": {"empty_answer": 9, text: 1},
        "files": [{"file": f"/data/{text}", "num_rows": 130, "num_kept": 120, "num_dropped": 10}],
    }
    log = [
        {
            "step": step,
            "loss": 2.5 - step / 100 if step != 30 else math.nan,
            "grad_norm/attention": 0.1 * step,
            "num_tokens": 100.0 * step,
            "seconds": 2.0 * step,
            "tokens_per_second": 50.0,
            "memory/rss_gib": 1.5,
            "experts/entropy_mean": 0.9,
            "experts/entropy_min": 0.8,
        }
        for step in range(1, 51)
    ]
    (path / "data").mkdir(parents=True)
    for name, value in (("manifest.json", manifest), ("eval.json", evaluation), ("data/report.json", data)):
        (path / name).write_text(json.dumps(value), encoding="utf-8")
    (path / "train_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log) + '{"step": 51, "lo')
    record = {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "yes it is"}]}
    (path / "data" / "train.jsonl").write_text((json.dumps(record) + "\n") * 108)
    (path / "data" / "eval.jsonl").write_text((json.dumps(record) + "\n") * 12)
    load_LE = torch.tensor([[4.0, 4.0, 4.0, 4.0], [16.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    one = Routing(("model.layers.1.mlp.experts", "model.layers.2.mlp.experts"), load_LE, load_LE, 2)
    ExpertTables(before=one, training=one, after=one).write(path)
    return RunFolder(path)


def fill_alignment(path: Path, command: str, text: str = "is it?") -> RunFolder:
    """A run folder as a way of alignment leaves it."""
    folder = fill(path, text=text)
    folder.update(command=command)
    pairs = {"loss": 2.0, "accuracy": 0.55, "accuracy_by_sum": 0.5, "length_accuracy": 0.625, "num_records": 40}
    differs = {"safety": {"num_pairs": 30, "accuracy": 0.9}}
    scores = {"loss": 0.7, "accuracy": 0.5, "margin": 0.0, "calibration_error": 0.1, "length_only": 0.6}
    answers = {"reward": 0.25, "layers": {"form": 0.5, text: 0.125}, "components": {"form/length": 0.5}}
    answers |= {"num_prompts": 24, "answer_tokens": 30.25, "ended": 0.5, "loss": 1.0}
    sections = {
        "dpo": (pairs, pairs | {"accuracy": 0.725}),
        "reward": (scores, scores | {"accuracy": 0.8125, "differs": differs, "num_pairs": 40}),
        "grpo": (answers, answers | {"reward": 0.75}),
    }
    before, after = sections[command]
    told = {"reward_accuracy": 0.9, "reward_margin": 1.5, "beta": 0.1}
    folder.write_evaluation(before=before, after=after, preferences=told)
    metrics = folder.manifest()["metrics"] | {"reward_errors": {f"task/{text}": 17}}
    folder.update(metrics=metrics)
    numbers = {
        "dpo": {"rewards/chosen": 0.5, "rewards/rejected": -0.5, "rewards/accuracies": 0.75, "rewards/margins": 1.0},
        "reward": {"accuracy": 0.75, "margin": 0.5, "min_reward": -1.0, "mean_reward": 0.0, "max_reward": 1.0},
        "grpo": {"reward/mean": 0.5, "reward/form": 0.5, "reward/form/length": 0.5, "reward/task": 0.25}
        | {"reward/errors": 0.1, "policy/kl": 0.01, "policy/entropy": 2.0, "answer/tokens": 30.0},
    }[command]
    lines = [
        {"step": step, "loss": 0.5} | {name: value + step / 99 for name, value in numbers.items()} for step in (1, 2, 3)
    ]
    folder.log_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def page_of(folder: RunFolder, language: Any = "en") -> str:
    return write_report(folder, language).read_text(encoding="utf-8")
