"""One run of benchmarks/ppo.py, in a process of its own: by our PPO, or by TRL's. Not to be called by hand."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

EPOCHS, MINIBATCHES, RANK = 4, 4, 8
ROLLOUT = 16
KL = 0.001
PLACES = {"attention": ["q_proj", "k_proj", "v_proj", "o_proj"], "routed_experts": ["gate_up_proj", "down_proj"]}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_model(work: Path) -> None:
    """A Qwen3-MoE of 28 M parameters with random weights, and a tokenizer of 4,096 words learned from our own docs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3MoeConfig

    special = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    root = Path(__file__).parents[1]
    tokenizer.train([str(file) for file in sorted(root.glob("docs/*.md")) + sorted(root.glob("*.md"))], trainer)
    saved = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[1], pad_token=special[2])
    saved.chat_template = CHATML
    saved.save_pretrained(work / "model")
    config = Qwen3MoeConfig(
        vocab_size=len(saved),
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        num_experts=64,
        num_experts_per_tok=4,
        moe_intermediate_size=128,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        eos_token_id=saved.eos_token_id,
        pad_token_id=saved.pad_token_id,
        bos_token_id=0,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(5)  # as it begins, no hidden state could make any word likelier than 4 %
    model.generation_config.do_sample = True
    model.save_pretrained(work / "model")
    print(f"{sum(weight.numel() for weight in model.parameters()) / 1e6:.1f} M parameters", flush=True)


def run_ours(job: dict[str, Any]) -> dict[str, Any]:
    """Our PPO as the command runs it; memory is read when training ends, before the check of what was saved."""
    from dsr1_tune.align import ppo
    from dsr1_tune.config import PpoRun
    from dsr1_tune.runs.session import Session
    from dsr1_tune.runs.trainer.callbacks import TrainLog

    work = Path(job["work"])
    config = PpoRun.model_validate(
        {
            "data": {"files": [work / "prompts.jsonl"], "eval_share": 0},
            "base": {"model": str(work / "model"), "dtype": "float32"},
            "rewards": work / "rewards.yaml",
            "adapter": {"rank": RANK, "alpha": 2 * RANK, "groups": job["groups"]},
            "rollout": {"max_new_tokens": job["tokens"], "temperature": 1.0, "batch_size": ROLLOUT},
            "ppo": {
                "answers": job["answers"],
                "epochs": EPOCHS,
                "minibatches": MINIBATCHES,
                "kl": KL,
                "missing_eos": 0.0,
                "value": "own" if job["side"] == "ours-own" else "shared",
            },
            "schedule": {
                "learning_rate": job["learning_rate"],
                "max_steps": job["updates"],
                "batch_size": job["answers"] // MINIBATCHES,
                "gradient_checkpointing": job["checkpointing"],
                "max_tokens": 256,
                "seed": job["seed"],
                "save_steps": 100_000,
            },
            "samples": 0,
            "out": work / f"run-{job['side']}-{job['seed']}",
        }
    )
    Memory.start()
    clock, peaks = Clock(), []
    log, evaluate_after = TrainLog.on_log, Session.evaluate_after

    def log_and_note(*args: Any, **given: Any) -> None:
        log(*args, **given)
        clock.note()

    def evaluate_after_training(session: Any, model: Any) -> None:
        peaks.append(Memory.peak())
        evaluate_after(session, model)

    TrainLog.on_log, Session.evaluate_after = log_and_note, evaluate_after_training  # type: ignore[method-assign]
    folder = ppo.run(config)
    lines = [json.loads(line) for line in folder.log_file.read_text().splitlines()]
    lines = [line for line in lines if "reward/mean" in line]
    coverage = json.loads((folder.path / "manifest.json").read_text())["metrics"]["coverage"]
    return {
        "rewards": [line["reward/mean"] for line in lines],
        "kl": [line["policy/kl_per_answer"] for line in lines],
        **clock.told,
        "tokens": [round(line["answer/tokens"] * job["answers"]) for line in lines],
        "trained": sum(line["num_trained"] for line in coverage),
        "peak": peaks[0],
    }


def run_trl(job: dict[str, Any]) -> dict[str, Any]:
    """TRL's PPOTrainer with a PEFT policy, a value model and a reward module, as its documentation has them."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    work = Path(job["work"])
    tokenizer = AutoTokenizer.from_pretrained(work / "model", padding_side="left")
    Memory.start()
    policy = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
    value = AutoModelForSequenceClassification.from_pretrained(work / "model", dtype=torch.float32, num_labels=1)
    if job["side"] == "trl":
        value = get_peft_model(value, LoraConfig(task_type="SEQ_CLS", **lora(job)))
    reward = TextReward(load_reward(work), tokenizer)
    watch = watcher()
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(work / f"run-{job['side']}-{job['seed']}"),
            # One forward pass a minibatch: with gradient accumulation it would step once an epoch.
            per_device_train_batch_size=job["answers"],
            gradient_accumulation_steps=1,
            num_mini_batches=MINIBATCHES,
            num_ppo_epochs=EPOCHS,
            total_episodes=job["answers"] * job["updates"],
            local_rollout_forward_batch_size=ROLLOUT,
            response_length=job["tokens"],
            stop_token="eos",
            temperature=1.0,
            kl_coef=KL,
            learning_rate=job["learning_rate"],
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            gradient_checkpointing=job["checkpointing"],
            num_sample_generations=0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            seed=job["seed"],
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_list(encode(work, tokenizer)),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **lora(job)),
        callbacks=[watch],
    )
    trained = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
    trainer.train()
    return {
        "rewards": watch.told("objective/scores"),
        "kl": watch.told("objective/kl"),
        **watch.clock.told,
        "tokens": reward.tokens_of_updates(job["answers"]),
        "trained": trained,
        "peak": Memory.peak(),
    }


def lora(job: dict[str, Any]) -> dict[str, Any]:
    """Stock PEFT's LoRA on the places of ours: linear layers by name, the experts' fused weights as parameters."""
    given: dict[str, Any] = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": []}
    if "attention" in job["groups"]:
        given["target_modules"] = PLACES["attention"]
    if "routed_experts" in job["groups"]:
        given["target_parameters"] = [f"mlp.experts.{name}" for name in PLACES["routed_experts"]]
    return given


def encode(work: Path, tokenizer: Any) -> list[dict[str, Any]]:
    """The prompts as the chat template puts them."""
    rows = [json.loads(line) for line in (work / "prompts.jsonl").read_text().splitlines()]
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], tokenize=False, add_generation_prompt=True
        )
        for row in rows
    ]
    return [{"input_ids": tokenizer(text, add_special_tokens=False)["input_ids"]} for text in texts]


def load_reward(work: Path) -> Any:
    """The function in reward.py."""
    spec = importlib.util.spec_from_file_location("reward", work / "reward.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.share_of_e


class TextReward(nn.Module):
    """A function of the answer's text in the shape of the reward model that TRL asks for: a backbone and a score."""

    base_model_prefix = "backbone"

    def __init__(self, function: Any, tokenizer: Any) -> None:
        super().__init__()
        self.backbone = self._Backbone()
        self.score = self._Score(function, tokenizer)

    def tokens_of_updates(self, num_answers: int) -> list[int]:
        """Answer tokens of every update."""
        lengths = self.score.lengths
        return [sum(lengths[first : first + num_answers]) for first in range(0, len(lengths), num_answers)]

    class _Backbone(nn.Module):
        """Hands the ids on, -1 where there is padding."""

        def forward(self, input_ids: Any, attention_mask: Any, **given: Any) -> Any:
            class Output:
                hidden_states = (input_ids.masked_fill(~attention_mask.bool(), -1),)

            return Output

    class _Score(nn.Module):
        """The reward of the text, at every place; TRL reads it at the last one."""

        def __init__(self, function: Any, tokenizer: Any) -> None:
            super().__init__()
            self.function, self.tokenizer = function, tokenizer
            self.marker = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
            self.lengths: list[int] = []

        def forward(self, ids_BT: Any) -> Any:
            scores_B = torch.tensor([self.judge([token for token in ids if token >= 0]) for ids in ids_BT.tolist()])
            return scores_B.view(-1, 1, 1).expand(-1, ids_BT.shape[1], 1)

        def judge(self, ids: list[int]) -> float:
            """What stands behind the first generation prompt is the answer."""
            width = len(self.marker)
            start = next(place for place in range(len(ids)) if ids[place : place + width] == self.marker) + width
            self.lengths.append(len(ids) - start)
            return float(self.function(self.tokenizer.decode(ids[start:], skip_special_tokens=True)))


def watcher() -> Any:
    """A callback that notes what TRL logs, and when its updates end."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def __init__(self) -> None:
            self.logs: list[dict[str, float]] = []
            self.clock = Clock()

        def on_step_end(self, *args: Any, **given: Any) -> None:
            self.clock.note()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
            self.logs.append(logs)

        def told(self, name: str) -> list[float]:
            return [float(line[name]) for line in self.logs if name in line]

    return Watch()


class Clock:
    """When updates ended, by the wall's clock and by the processor's."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def note(self) -> None:
        """An update has ended."""
        self.ends.append((time.perf_counter(), time.process_time()))

    @property
    def told(self) -> dict[str, list[float]]:
        """Seconds of every update but the first."""
        pairs = list(itertools.pairwise(self.ends))
        return {"seconds": [b[0] - a[0] for a, b in pairs], "cpu_seconds": [b[1] - a[1] for a, b in pairs]}


class Memory:
    """The largest resident set since `start`, above what the imports had taken."""

    imports = 0

    @classmethod
    def start(cls) -> None:
        """Forget the peak of the imports."""
        cls.imports = psutil.Process().memory_info().rss
        Path("/proc/self/clear_refs").write_text("5")

    @classmethod
    def peak(cls) -> int:
        """Bytes."""
        status = Path("/proc/self/status").read_text()
        kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
        return int(kib) * 1024 - cls.imports


def main() -> None:
    """`make-model FOLDER`, or `run JOB`."""
    if sys.argv[1] == "make-model":
        make_model(Path(sys.argv[2]))
        return
    job = json.loads(sys.argv[2])
    result = run_trl(job) if job["side"].startswith("trl") else run_ours(job)
    Path(job["result"]).write_text(json.dumps({"epochs": EPOCHS, **result}))


if __name__ == "__main__":
    main()
