"""Tokens per second and peak memory of a training step with LoRA on routed experts: ours, stock TRL + PEFT, the limit.

The limit is the same model, batch and adapters with the routed experts frozen and without an update: the base's own
products, through transformers' own experts code. Each contender lives in a process of its own, so that its peak memory
is its own; the parent lets them take one optimizer step in turn, so that a noisy machine is noisy to all of them.

    python benchmarks/expert_lora.py                      # three shapes and the embedded base
    python benchmarks/expert_lora.py --shape E256-T512 --steps 9
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@dataclass(frozen=True)
class Shape:
    """A model of DeepSeek-V3's architecture (width 512, rank 8) and the batch to train on."""

    num_experts: int
    num_chosen: int
    expert_width: int
    num_layers: int
    num_tokens: int


SHAPES = {
    "E64-T1024": Shape(64, 6, 256, 6, 1024),
    "E256-T512": Shape(256, 8, 256, 4, 512),
    "E256-T2048": Shape(256, 8, 256, 4, 2048),
    "embedded-base": Shape(8, 2, 768, 30, 512),
}
CONTENDERS = ("ours", "stock", "limit")
RANK = 8
SEQUENCES = 4


def main() -> None:
    """Run the shapes asked for and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="only this shape (may be repeated)")
    parser.add_argument("--steps", type=int, default=7, help="counted steps of each contender, after one to warm up")
    args = parser.parse_args()
    print("| shape | contender | s/step (median) | tokens/s | time / limit | peak GB | peak / stock |")
    print("|---|---|---|---|---|---|---|")
    for name in args.shape or SHAPES:
        report(name, *measure(name, args.steps))


def measure(name: str, steps: int) -> tuple[dict[str, list[float]], dict[str, float], dict[str, list[float]]]:
    """Seconds of every counted step, peak GB and losses, by contender."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    for contender in CONTENDERS:
        ours, theirs = context.Pipe()
        process = context.Process(target=train, args=(name, contender, steps + 1, theirs), daemon=True)
        process.start()
        pipes[contender] = ours
        processes.append(process)
        assert ours.recv() == "ready"
    seconds: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
    for step in range(steps + 1):
        for contender in CONTENDERS:
            pipes[contender].send("go")
            took = pipes[contender].recv()
            if step:
                seconds[contender].append(took)
    peaks, losses = {}, {}
    for contender in CONTENDERS:
        pipes[contender].send("go")
        peaks[contender], losses[contender] = pipes[contender].recv()
    for process in processes:
        process.join()
    return seconds, peaks, losses


def report(name: str, seconds: dict[str, list[float]], peaks: dict[str, float], losses: dict[str, list[float]]) -> None:
    """One row a contender; the ratio to the limit is the median of the step-by-step ratios."""
    for contender in CONTENDERS:
        median = statistics.median(seconds[contender])
        ratio = statistics.median(a / b for a, b in zip(seconds[contender], seconds["limit"], strict=True))
        tokens = SHAPES[name].num_tokens / median
        print(
            f"| {name} | {contender} | {median:.2f} | {tokens:.0f} | {ratio:.2f} "
            f"| {peaks[contender]:.2f} | {peaks[contender] / peaks['stock']:.2f} |"
        )
    gap = max(abs(a - b) for a, b in zip(losses["ours"], losses["stock"], strict=True))
    print(f"largest difference of a step's loss, ours to stock: {gap:.1e}\n", flush=True)


def train(name: str, contender: str, num_steps: int, pipe: Connection) -> None:
    """One contender: a real SFTTrainer that waits for the parent's word before every step."""
    # TRL and transformers print progress and metrics; the table is the parent's.
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import TrainerCallback
    from transformers.utils import logging
    from trl import SFTConfig, SFTTrainer

    from dsr1_tune.moe.expert_lora import use_grouped_products

    logging.disable_progress_bar()
    torch.manual_seed(0)
    shape = SHAPES[name]
    model, tokenizer = build_model(name, shape)
    linears = ["q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
    dense = [f"shared_experts.{p}.weight" for p in ("gate_proj", "up_proj", "down_proj")]
    routed = [] if contender == "limit" else ["experts.gate_up_proj", "experts.down_proj"]
    config = LoraConfig(r=RANK, lora_alpha=16, target_modules=linears, target_parameters=dense + routed)
    peft_model = get_peft_model(model, config)
    if contender != "stock":
        use_grouped_products(peft_model)

    generator = torch.Generator().manual_seed(1)
    length = shape.num_tokens // SEQUENCES
    ids = torch.randint(10, model.config.vocab_size, (SEQUENCES, length), generator=generator).tolist()
    data = Dataset.from_dict({"input_ids": ids * num_steps, "labels": ids * num_steps})

    class Turns(TrainerCallback):  # type: ignore[misc]
        """Times a step from the parent's word to the end of the optimizer's work."""

        losses: list[float] = []

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            if not self.losses and not hasattr(self, "start"):
                pipe.send("ready")
            pipe.recv()
            self.start = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            pipe.send(time.perf_counter() - self.start)

        def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
            if "loss" in logs:
                self.losses.append(logs["loss"])

    turns = Turns()
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            max_steps=num_steps,
            per_device_train_batch_size=SEQUENCES,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            bf16=torch.cuda.is_available(),
            gradient_checkpointing=False,
            max_length=None,
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        trainer = SFTTrainer(
            model=peft_model, args=arguments, train_dataset=data, processing_class=tokenizer, callbacks=[turns]
        )
        trainer.train()
    pipe.recv()
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 1e9
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    pipe.send((peak, turns.losses))


def build_model(name: str, shape: Shape) -> tuple[Any, Any]:
    """The embedded base, or a random model of DeepSeek-V3's architecture; either with the embedded base's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from dsr1_tune.models import embedded

    folder = embedded.ensure()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if name == "embedded-base":
        return AutoModelForCausalLM.from_pretrained(folder, dtype="float32"), tokenizer
    config = AutoConfig.for_model(
        "deepseek_v3",
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1024,
        moe_intermediate_size=shape.expert_width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        n_routed_experts=shape.num_experts,
        num_experts_per_tok=shape.num_chosen,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=0,
        q_lora_rank=None,
        kv_lora_rank=128,
        qk_rope_head_dim=32,
        qk_nope_head_dim=32,
        v_head_dim=64,
    )
    return AutoModelForCausalLM.from_config(config, dtype="float32"), tokenizer


if __name__ == "__main__":
    main()
