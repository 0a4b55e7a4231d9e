"""Record what the product produces, so that a refactor can be shown to change nothing.

    python benchmarks/golden.py record before.json [--data DIR] [--only help,runs] [--workers 2]
    (the refactor)
    python benchmarks/golden.py record after.json [--data DIR]
    python benchmarks/golden.py compare before.json after.json

`record` calls the command line in a scratch folder and keeps, for each command, its exit code, what it printed and
what it wrote: text and JSON as they are, tensors, pictures and rows of data as hashes. Models are tiny ones with
random weights that are made here; nothing is downloaded, but for the converter to GGUF, which the product installs
once. Of the package only `dsr1_tune.cli.app` is imported, to find all commands, so its modules may move as they like.

There are five parts: `help` (the help of every command, the settings, some errors), `runs` (every way of training and
alignment), `exports` (merge, quantize, convert-adapter and what looks at their results), `clean` (the data commands on
the examples and on every data file under --data) and `judged` (compare, score, reward-test). `compare` prints every
difference as `path: before -> after`, texts as a unified diff, and exits 1 if there are any; where the two
were asked for other jobs by --only, it looks at those that both have.

What two runs of the same code do not share is replaced: times, speeds, memory, dates, process ids and paths. The two
files must come from the same machine and the same versions of the libraries, which are recorded, too.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("help", "runs", "exports", "clean", "judged")
DATA_ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz")
LIBRARIES = ("accelerate", "gguf", "peft", "tokenizers", "torch", "transformers", "trl", "typer")


@dataclass(frozen=True)
class Job:
    """One command and what is kept of it.

    `writes` are the files and folders that it leaves; `after` names the jobs whose results it reads.
    """

    arguments: tuple[str, ...]
    writes: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    columns: int = 200


def main() -> None:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    recording = verbs.add_parser("record", help="run everything and write what came of it")
    recording.add_argument("out", type=Path)
    recording.add_argument("--data", type=Path, help="a folder of data files to clean besides the examples")
    recording.add_argument(
        "--only", default=",".join(PARTS), help="some of %(default)s; or jobs as runs/lora, clean/check"
    )
    recording.add_argument("--workers", type=int, default=2, help="commands at a time")
    recording.add_argument(
        "--no-eval", action="store_true", help="hold no rows out, to compare two versions that split differently"
    )
    comparing = verbs.add_parser("compare", help="print every difference of two recordings")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.verb == "compare":
        sys.exit(compare(json.loads(options.before.read_text()), json.loads(options.after.read_text())))
    wanted = tuple(options.only.split(","))
    with tempfile.TemporaryDirectory(prefix="golden-") as scratch:
        found = record(Path(scratch).resolve(), wanted, options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, sort_keys=True, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"recorded in {options.out} ({options.out.stat().st_size / 1e6:.1f} MB)")


# --- recording -------------------------------------------------------------------------------------------------------


def record(scratch: Path, wanted: tuple[str, ...], options: argparse.Namespace) -> dict[str, Any]:
    """What came of the jobs whose names begin with one of `wanted`, by part and name of the job."""
    began = time.monotonic()
    write_material(scratch, options.data, options.no_eval)
    jobs = all_jobs(scratch)
    asked = [name for name in jobs if name.startswith(wanted)]
    if unknown := [word for word in wanted if not any(name.startswith(word) for name in asked)]:
        sys.exit(f"--only: no job's name begins with {' or '.join(unknown)}")
    chosen = with_what_they_need(asked, jobs)
    if any("--model" in jobs[name].arguments or name.startswith("runs/") for name in chosen):
        write_models(scratch)
    outcomes: dict[str, Future[dict[str, Any]]] = {}
    left = len(chosen)

    def do(name: str) -> dict[str, Any]:
        nonlocal left
        for needed in jobs[name].after:  # submitted earlier, so it is running or done
            outcomes[needed].result()
        started = time.monotonic()
        outcome = outcome_of(jobs[name], scratch)
        left -= 1
        seconds = time.monotonic() - started
        print(
            f"{time.monotonic() - began:6.0f} s  {name}: exit {outcome['exit']} after {seconds:.1f} s, {left} left",
            flush=True,
        )
        return outcome

    with ThreadPoolExecutor(options.workers) as pool:
        for name in chosen:
            outcomes[name] = pool.submit(do, name)
    found: dict[str, Any] = {"asked": wanted, "versions": {"python": sys.version.split()[0]}}
    found["versions"] |= {library: importlib.metadata.version(library) for library in LIBRARIES}
    for name in asked:
        part, _, rest = name.partition("/")
        found.setdefault(part, {})[rest] = outcomes[name].result()
    return found


def with_what_they_need(names: list[str], jobs: dict[str, Job]) -> list[str]:
    """The jobs and those that come before them, each after what it needs."""
    ordered: dict[str, None] = {}

    def add(name: str) -> None:
        for needed in jobs[name].after:
            add(needed)
        ordered.setdefault(name)

    for name in names:
        add(name)
    return list(ordered)


def outcome_of(job: Job, scratch: Path) -> dict[str, Any]:
    """Run a command; its exit code, what it said, and what it wrote."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "COLUMNS": str(job.columns),
    }
    done = subprocess.run(
        [sys.executable, "-m", "dsr1_tune", *job.arguments],
        cwd=scratch,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    outcome: dict[str, Any] = {
        "arguments": " ".join(job.arguments),
        "exit": done.returncode,
        "printed": printed(done.stdout, scratch),
        "printed to stderr": steady(done.stderr, scratch),
    }
    files = {name: contents for written in job.writes for name, contents in kept_of(scratch / written, scratch)}
    return {**outcome, "files": files} if job.writes else outcome


def printed(text: str, scratch: Path) -> Any:
    """What a command printed; JSON as a tree."""
    try:
        return steady_tree(json.loads(text), scratch)
    except ValueError:
        return steady(text, scratch)


# --- what is run -----------------------------------------------------------------------------------------------------


def all_jobs(scratch: Path) -> dict[str, Job]:
    """Every job by `part/name`, the long ones first within what they wait for."""
    return {**run_jobs(), **export_jobs(), **judged_jobs(), **clean_jobs(scratch), **help_jobs()}


def help_jobs() -> dict[str, Job]:
    """The help of every command, what `settings` prints, and what some mistakes are answered with."""
    sys.path.insert(0, str(ROOT))
    import typer

    from dsr1_tune.cli import app

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield words
        for name, inner in sorted(getattr(command, "commands", {}).items()):
            yield from walk(inner, (*words, name))

    jobs = {
        f"help/{' '.join(('dsr1-tune', *words))}": Job((*words, "--help"), columns=120)
        for words in walk(typer.main.get_command(app), ())
    }
    mistakes = {
        "no command": (),
        "no data": ("lora",),
        "no rewards": ("grpo", "--data", "prompts.jsonl"),
        "no such file": ("data", "check", "nothing.json"),
        "unknown setting": ("lora", "--data", "sums.json", "--set", "adapter.rnak=4"),
        "value out of range": ("lora", "--data", "sums.json", "--set", "adapter.rank=0"),
        "unknown option": ("lora", "--dta", "sums.json"),
        "unknown format": ("quantize", "nothing", "--to", "nf3"),
        "no run": ("merge", "nothing"),
        "wrong pack": ("data", "clean", "sums.json", "--rules", "nothing"),
        "no such row": ("data", "show", "sums.json", "--row", "10000"),
    }
    jobs |= {f"help/mistake: {name}": Job(words) for name, words in mistakes.items()}
    jobs["help/settings"] = Job(("settings",))
    templates = [(domain, "en") for domain in ("general", "medical", "legal", "finance", "support")]
    for domain, language in [*templates, ("medical", "zh")]:
        file = f"init/{domain}.{language}.jsonl"
        words = ("data", "init", "--domain", domain, "--language", language, "--out", file)
        jobs[f"help/init {domain} {language}"] = Job(words, (f"init/{domain}.{language}*",))
    return jobs


SUPERVISED = {"base": {"model": "deepseek"}, "data": {"files": ["sums.json"]}}
SCHEDULE = {
    "max_steps": 5,
    "learning_rate": 0.01,
    "batch_size": 4,
    "max_tokens": 128,
    "gradient_checkpointing": False,
    "save_steps": 3,
}
LOOK = {"samples": 1, "sample_tokens": 6}
ROLLOUT = {"data": {"files": ["prompts.jsonl"], "eval_share": 0.2}, "rewards": "rewards.yaml"}

# By the name of the run: the command and what differs from SUPERVISED, SCHEDULE and LOOK.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": (
        "grpo",
        {
            **ROLLOUT,
            "rollout": {"max_new_tokens": 5, "batch_size": 6},
            "grpo": {"group": 4},
            "schedule": {"accumulate": 2, "max_steps": 4},
        },
    ),
    "ppo": (
        "ppo",
        {
            **ROLLOUT,
            "rollout": {"max_new_tokens": 6, "batch_size": 8},
            "ppo": {"answers": 8, "epochs": 2, "minibatches": 2},
            "schedule": {"max_steps": 4},
        },
    ),
    "lora": ("lora", {}),
    "lora-qwen": ("lora", {"base": {"model": "qwen"}, "schedule": {"accumulate": 2, "warmup_share": 0.4}}),
    "lora-options": (
        "lora",
        {
            "adapter": {"rank": 4, "rslora": True, "ranks": {"attention": 2}},
            "router": {"mode": "train"},
            "sequences": {"packing": True},
            "schedule": {"gradient_checkpointing": True},
        },
    ),
    "qlora": ("qlora", {}),
    "full": ("full", {}),
    "full-qwen": ("full", {"base": {"model": "qwen"}, "train": {"only": ["routed_experts"]}}),
    "esft": ("esft", {"esft": {"share": 0.4}}),
    "esft-lora": ("esft", {"esft": {"share": 0.4, "method": "lora"}}),
    "reward": ("reward", {"data": {"files": ["pairs.jsonl"], "eval_share": 0.2}, "samples": 0}),
    "dpo": ("dpo", {"data": {"files": ["pairs.jsonl"], "eval_share": 0.2}}),
    "kto": ("kto", {"data": {"files": ["feedback.jsonl"], "eval_share": 0.2}}),
}


def run_jobs() -> dict[str, Job]:
    """Every way of training and alignment, a few steps each."""
    jobs = {
        f"runs/{name}": Job((command, "--config", f"configs/{name}.yaml", "--out", f"runs/{name}"), (f"runs/{name}",))
        for name, (command, _) in RUNS.items()
    }
    flags = ("--model", "runs/lora", "--config", "configs/dpo.yaml", "--set", "start.adapter=continue")
    jobs["runs/dpo-on-lora"] = Job(("dpo", *flags, "--out", "runs/dpo-on-lora"), ("runs/dpo-on-lora",), ("runs/lora",))
    jobs["runs/experts"] = Job(
        ("experts", "sums.json", "--model", "deepseek", "--out", "profile/experts.json"), ("profile",)
    )
    words = ("plan", "--data", "sums.json", "--model", "deepseek", "--memory", "24GiB", "--json")
    jobs["runs/plan"] = Job(words)
    return jobs


def export_jobs() -> dict[str, Job]:
    """Merges, fewer bits, other layouts of the adapter, and what looks at the results."""
    jobs = {}
    for name in ("lora", "lora-qwen", "qlora", "full", "esft", "dpo-on-lora"):
        words = ("merge", f"runs/{name}", "--out", f"merged/{name}")
        jobs[f"exports/merge {name}"] = Job(words, (f"merged/{name}",), (f"runs/{name}",))
    forms = {
        "nf4": ("--to", "nf4"),
        "int8 all": ("--to", "int8", "--all"),
        "fp8": ("--to", "fp8"),
        "w4a16 rtn": ("--to", "w4a16", "--method", "rtn"),
    }
    for name, flags in forms.items():
        folder = f"quantised/{name.replace(' ', '-')}"
        words = ("quantize", "merged/lora", *flags, "--out", folder)
        jobs[f"exports/quantize {name}"] = Job(words, (folder,), ("exports/merge lora",))
    # The first of them may install the converter and say so.
    words = ("quantize", "merged/lora-qwen", "--to", "gguf", "--gguf", "bf16", "--out", "tried")
    jobs["tools/gguf"] = Job(words, after=("exports/merge lora-qwen",))
    for kind in ("bf16", "q8_0"):
        words = ("quantize", "merged/lora-qwen", "--to", "gguf", "--gguf", kind, "--out", f"quantised/gguf-{kind}")
        jobs[f"exports/quantize gguf {kind}"] = Job(words, (f"quantised/gguf-{kind}",), ("tools/gguf",))
    for name in ("lora", "lora-qwen"):
        words = ("convert-adapter", f"runs/{name}", "--to", "per-expert", "--out", f"converted/{name}")
        jobs[f"exports/convert {name}"] = Job(words, (f"converted/{name}",), (f"runs/{name}",))
    back = ("convert-adapter", "converted/lora", "--to", "peft-fused", "--out", "converted/lora-back")
    jobs["exports/convert lora back"] = Job(back, ("converted/lora-back",), ("exports/convert lora",))
    whole = ("export", "runs/lora", "--to", "int8", "--out", "exported", "--max-loss-increase", "90%")
    whole += ("--set", "compare.answers=0", "--set", "compare.max_rows=4")
    jobs["exports/export"] = Job(whole, ("exported",), ("runs/lora",))
    servable = {
        "vllm": "merged/lora",
        "sglang": "quantised/nf4",
        "llama.cpp": "merged/lora",
        "transformers": "merged/lora",
    }
    for engine, place in servable.items():
        words, needed = (
            ("check-serve", place, "--engine", engine, "--json"),
            ("exports/merge lora", "exports/quantize nf4"),
        )
        jobs[f"exports/check-serve {place} {engine}"] = Job(words, (), needed)
    jobs["exports/verify"] = Job(("verify", "quantised/nf4"), (), ("exports/quantize nf4",))
    for language in ("en", "zh"):  # one after the other: both write the same file
        needed = (
            ("exports/card en",) if language == "zh" else ("exports/verify", "exports/check-serve quantised/nf4 sglang")
        )
        words = ("card", "quantised/nf4", "--language", language)
        jobs[f"exports/card {language}"] = Job(words, ("quantised/nf4/README.md",), needed)
    return jobs


def judged_jobs() -> dict[str, Job]:
    """What models and reward files say of answers."""
    few = ("--set", "compare.answers=2", "--set", "compare.answer_tokens=4", "--set", "compare.max_rows=6")
    words = ("compare", "deepseek", "runs/lora", "--out", "compared/lora", *few)
    jobs = {"judged/compare": Job(words, ("compared/lora",), ("runs/lora",))}
    words = ("score", "runs/reward", "pairs.jsonl", "--out", "scores.jsonl")
    jobs["judged/score"] = Job(words, ("scores.jsonl",), ("runs/reward",))
    for example in ("arithmetic", "medical-alignment"):
        folder, out = f"examples/{example}", f"rewarded-{example}.jsonl"
        words = ("reward-test", f"{folder}/rewards.yaml", f"{folder}/answers.jsonl", "--out", out)
        jobs[f"judged/reward-test {example}"] = Job(words, (out,))
    return jobs


def clean_jobs(scratch: Path) -> dict[str, Job]:
    """The data commands on every file of data."""
    jobs = {}
    folders = [folder for name in ("data", "examples") for folder in (scratch / name).rglob("*")]
    files = sorted(str(file.relative_to(scratch)) for file in folders if file.name.endswith(DATA_ENDINGS))
    for file in files:
        rejects = f"rejects/{file.replace('/', '.')}.jsonl"
        jobs[f"clean/check {file}"] = Job(("data", "check", file, "--rejects", rejects), (rejects,))
        for pack in ("general", "medical"):
            out = f"clean/{pack}/{file}"
            words = ("data", "clean", file, "--rules", pack, "--workers", "1", "--out", out)
            jobs[f"clean/clean {pack} {file}"] = Job(words, (out,))
    file = "examples/medical/medical.json"
    jobs["clean/dedup"] = Job(("data", "dedup", file, "--workers", "1", "--out", "merged-rows"), ("merged-rows",))
    jobs["clean/split"] = Job(("data", "split", file, "--workers", "1", "--out", "split"), ("split",))
    jobs["clean/stats"] = Job(("data", "stats", file))
    jobs["clean/stats --json"] = Job(("data", "stats", file, "--json"))
    jobs["clean/show"] = Job(("data", "show", file, "--full"))
    jobs["clean/show --row"] = Job(("data", "show", file, "--row", "5"))
    words = ("data", "clean", file, "examples/medical-alignment/feedback.jsonl", "--privacy", "redact")
    words += ("--against", "sums.json", "--workers", "2", "--out", "clean/two-files")
    jobs["clean/two files"] = Job(words, ("clean/two-files",))
    return jobs


# --- what it is run on -----------------------------------------------------------------------------------------------


def write_material(scratch: Path, data: Path | None, no_eval: bool) -> None:
    """Rows, rewards and configs; the examples and the data files, so that all paths are the same everywhere."""
    shutil.copytree(ROOT / "examples", scratch / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    if data:
        for file in sorted(data.rglob("*")):
            if file.name.endswith(DATA_ENDINGS):
                copy = scratch / "data" / file.relative_to(data)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
    for folder in ("rejects", "init", "profile", "configs"):
        (scratch / folder).mkdir()
    sums = [(f"what is {a} times {b}?", f"it is {a * b % 10}", f"no idea {b}") for a in range(5) for b in range(6)]
    rows = {
        "sums.json": [{"input": asked, "output": right} for asked, right, _ in sums],
        "pairs.jsonl": [{"prompt": asked, "chosen": right, "rejected": wrong} for asked, right, wrong in sums],
        "feedback.jsonl": [
            {"prompt": asked, "completion": answer, "label": answer == right}
            for asked, right, wrong in sums
            for answer in (right, wrong)
        ],
        "prompts.jsonl": [{"prompt": f"say it {'again ' * (n % 4)}{n}"} for n in range(20)],
    }
    for name, some in rows.items():
        lines = "".join(json.dumps(row) + "\n" for row in some)
        (scratch / name).write_text(json.dumps(some) if name.endswith(".json") else lines)
    (scratch / "own.py").write_text(
        "def letters(answer):\n    return sum(one.isalpha() for one in answer) / max(len(answer), 1)\n"
    )
    letters = {"type": "function", "name": "letters", "call": "own.py:letters"}
    layers = [
        {"name": "form", "gate": "none", "components": [{"type": "length", "max_tokens": 4}, "ended"]},
        {"name": "task", "weight": 2, "components": [letters]},
    ]
    (scratch / "rewards.yaml").write_text(json.dumps({"layers": layers}))  # JSON is YAML
    for name, (_, settings) in RUNS.items():
        tree = {**SUPERVISED, **LOOK, **settings, "schedule": {**SCHEDULE, **settings.get("schedule", {})}}
        if no_eval:
            tree["data"] = {**tree["data"], "eval_share": 0}
        (scratch / "configs" / f"{name}.yaml").write_text(json.dumps(tree))


def write_models(scratch: Path) -> None:
    """A tiny DeepSeek-V3 and a tiny Qwen3-MoE: two layers, four experts, every byte a token."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, DeepseekV3Config, PreTrainedTokenizerFast, Qwen3MoeConfig

    special = ["<|im_start|>", "<|im_end|>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=special[1], pad_token=special[1], additional_special_tokens=special
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    sizes: dict[str, Any] = {
        "vocab_size": len(tokens),
        "hidden_size": 64,
        "intermediate_size": 128,
        "moe_intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 512,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "bos_token_id": 0,
    }
    latent = {"q_lora_rank": None, "kv_lora_rank": 64, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16}
    groups = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
    configs = {
        "deepseek": DeepseekV3Config(**sizes, **latent, **groups, num_nextn_predict_layers=0),
        "qwen": Qwen3MoeConfig(**sizes, num_experts=4, head_dim=16, norm_topk_prob=True),
    }
    torch.set_num_threads(1)
    for name, config in configs.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(scratch / name)
        tokenizer.save_pretrained(scratch / name)


# --- what is kept of a file ------------------------------------------------------------------------------------------


def kept_of(place: Path, scratch: Path) -> Iterator[tuple[str, Any]]:
    """What is kept of each file of a folder, of a file, or of all that match a pattern; by name."""
    places = sorted(place.parent.glob(place.name)) if "*" in place.name else [place]
    for found in places:
        files = sorted(file for file in found.rglob("*") if file.is_file()) if found.is_dir() else [found]
        for file in files:
            name = _EVENTS.sub("events", steady(str(file.relative_to(scratch)), scratch))
            yield name, contents(file, scratch) if file.exists() else None


_EVENTS = re.compile(r"events\.out\.tfevents\..*")


def contents(file: Path, scratch: Path) -> Any:
    """Text and JSON as they are, tensors and rows as hashes; of a checkpoint's states only that they are there."""
    if file.name.startswith("events.out.tfevents") or file.suffix in _PICKLED:
        return "there"
    if file.suffix == ".safetensors":
        return tensor_hashes(file)
    if file.suffix == ".npz":
        return array_hashes(file)
    if file.name == "train_log.jsonl":
        return [steady_tree(json.loads(line), scratch) for line in file.read_text(encoding="utf-8").splitlines()]
    if file.suffix == ".jsonl":
        rows = file.read_bytes().replace(str(scratch).encode(), b"<scratch>")
        return f"{rows.count(bytes([10]))} lines, sha256 {hashlib.sha256(rows).hexdigest()}"
    if file.suffix == ".json" and file.name not in _LONG:
        return steady_tree(json.loads(file.read_text(encoding="utf-8")), scratch)
    if file.suffix in (".html", ".md", ".txt", ".yaml", ".jinja", "") and b"\0" not in (whole := file.read_bytes()):
        text = whole.decode("utf-8", "replace")
        return steady(text.replace("><", ">\n<") if file.suffix == ".html" else text, scratch)
    return f"{file.stat().st_size} bytes, sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}"


_PICKLED = (".pt", ".pth", ".bin")
_LONG = ("tokenizer.json",)


def tensor_hashes(file: Path) -> dict[str, str]:
    """Type, shape and hash of every tensor by its name, whatever the order in the file."""
    whole = file.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:begin])
    told = {}
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        first, last = tensor["data_offsets"]
        digest = hashlib.sha256(whole[begin + first : begin + last]).hexdigest()
        told[name] = f"{tensor['dtype']} {tensor['shape']} {digest[:32]}"
    return told


def array_hashes(file: Path) -> dict[str, str]:
    """The same of NumPy's arrays."""
    import numpy

    with numpy.load(file) as arrays:
        return {
            name: f"{array.dtype} {list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()[:32]}"
            for name, array in arrays.items()
        }


# --- what differs from run to run ------------------------------------------------------------------------------------

_NUMBER = r"\d[\d,]*(?:\.\d+)?"
_CHANGES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|\+\d\d:\d\d)?"), "<date>"),
    (re.compile(r"\b\d{8}-\d{6}\b"), "<date>"),
    (re.compile(rf"\b{_NUMBER} ?(?:ms|s|min|h|seconds?)\b(?!\w)"), "<time>"),
    (re.compile(rf"\b{_NUMBER} (tokens/s|tokens a second)"), r"<speed> \1"),
    (re.compile(r"<td>(tokens (?:read|written) a second)</td>.*?</tr>", re.S), r"<td>\1: <speed></tr>"),
    (re.compile(r"(tokens (?:read|written) a second)  .*"), r"\1  <speed>"),
    (re.compile(r"<figure>\s*<figcaption>(Tokens a second|Memory, GiB)</figcaption>.*?</figure>", re.S), r"<\1>"),
    (re.compile(rf"\b{_NUMBER} (GiB|GB)\b"), r"<memory> \1"),
    (re.compile(r"[ \t]{2,}"), "  "),  # the padding of a table's cells
    (re.compile(r"([─━═-])\1{2,}"), r"\1\1\1"),
)
# Hashes of whole files, and their sizes, follow from paths and dates in them; what is in the files is kept by itself.
_VOLATILE = re.compile(r".*seconds|.*per_second|started|ended|.*rss_gib|output_sha256|sha256|bytes")


def steady(text: str, scratch: Path) -> str:
    """The text without paths of this machine, times, dates, speeds and sizes of memory."""
    text = text.replace(str(scratch), "<scratch>").replace(str(ROOT), "<repository>")
    for pattern, replacement in _CHANGES:
        text = pattern.sub(replacement, text)
    return text


def steady_tree(value: Any, scratch: Path, is_volatile: bool = False) -> Any:
    """The same of JSON; of what is by its name the clock's or the machine's only the kind is kept."""
    if isinstance(value, dict):
        return {
            steady(name, scratch): steady_tree(one, scratch, is_volatile or bool(_VOLATILE.fullmatch(name)))
            for name, one in value.items()
        }
    if isinstance(value, list):
        return [steady_tree(one, scratch, is_volatile) for one in value]
    if is_volatile:
        return f"<{type(value).__name__}>"
    return steady(value, scratch) if isinstance(value, str) else value


# --- comparing -------------------------------------------------------------------------------------------------------


def compare(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print every difference; 1 if there are any. Where --only was not the same, of the jobs that both have."""
    count = 0
    if before["asked"] != after["asked"]:
        before, after = only_shared(before, after), only_shared(after, before)
        print(f"compared are only the {sum(len(before[part]) for part in PARTS if part in before)} jobs that both have")
    for path, one, other in differences(before, after):
        count += 1
        print(told(path, one, other))
    print(f"{count} differences" if count else "no differences")
    return min(count, 1)


def only_shared(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The versions, and the jobs of `one` that `other` has, too."""
    parts = {part: set(one[part]) & set(other[part]) for part in PARTS if part in one and part in other}
    return {"versions": one["versions"]} | {
        part: {name: one[part][name] for name in sorted(names)} for part, names in parts.items()
    }


_MISSING = "<missing>"


def differences(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The places where two trees differ, with both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in [*before, *(name for name in after if name not in before)]:
            inner = f"{path} / {name}" if path else name
            yield from differences(before.get(name, _MISSING), after.get(name, _MISSING), inner)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from differences(one, other, f"{path}[{number}]")
    elif repr(before) != repr(after):  # so that NaN is NaN, and 1 is not 1.0
        yield path, before, after


def told(path: str, before: Any, after: Any) -> str:
    """`path: before -> after`, or the lines that differ of a text."""
    if isinstance(before, str) and isinstance(after, str) and ("\n" in before or "\n" in after):
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "after", lineterm="", n=1)
        return "\n".join([f"{path}:", *(f"    {line}" for line in lines)])
    return f"{path}: {short(before)} -> {short(after)}"


def short(value: Any) -> str:
    """A value on a line."""
    text = value if value == _MISSING else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 500 else f"{text[:500]} ... ({len(text)} characters)"


if __name__ == "__main__":
    main()
