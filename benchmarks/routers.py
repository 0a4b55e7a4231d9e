"""How many tokens a bf16 training step sends to other experts than evaluation does: under plain autocast, and here.

python benchmarks/routers.py                # DeepSeek-V3's router: 256 experts, width 7,168; two minutes
python benchmarks/routers.py --width 2048   # a narrower one
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM, DeepseekV3Config

from dsr1_tune.models.trained.own_precision import OwnPrecision

NUM_TOKENS = 4096


def main() -> None:
    """The share of tokens, and of their chosen experts, that differ from evaluation's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--width", type=int, default=7168)
    given = parser.parse_args()
    model = one_layer(given.experts, given.width)
    ids = torch.randint(2, 4096, (8, NUM_TOKENS // 8), generator=torch.Generator().manual_seed(0))
    want = chosen(model, ids)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = chosen(model, ids)
        kept = OwnPrecision(model, torch.bfloat16)
        ours = chosen(model, ids)
        kept.close()
    table = Table(title=f"{given.experts} experts, 8 chosen, width {given.width:,}, {NUM_TOKENS:,} tokens")
    for column in ("training", "tokens with another set", "other rows"):
        table.add_column(column, justify="right")
    for name, found in (("under autocast", rounded), ("here", ours)):
        is_same_TK = (found.unsqueeze(2) == want.unsqueeze(1)).any(2).float()
        table.add_row(name, *(f"{1 - float(same.mean()):.1%}" for same in (is_same_TK.amin(1), is_same_TK)))
    Console().print(table)


def one_layer(num_experts: int, width: int) -> Any:
    """A layer of DeepSeek-V3 with random weights in bfloat16, its experts very narrow."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 4096, "hidden_size": width, "num_hidden_layers": 1, "first_k_dense_replace": 0}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 128, "kv_lora_rank": 128}
    experts = {"n_routed_experts": num_experts, "num_experts_per_tok": 8, "moe_intermediate_size": 8}
    model = AutoModelForCausalLM.from_config(DeepseekV3Config(**sizes, **heads, **experts, num_nextn_predict_layers=0))
    torch.nn.init.normal_(model.model.layers[0].mlp.gate.weight, std=width**-0.5)
    return model.to(torch.bfloat16).eval()


@torch.no_grad()
def chosen(model: Any, ids_BT: Tensor) -> Tensor:
    """The experts (T, K) of every token."""
    found: list[Tensor] = []
    gate = model.model.layers[0].mlp.gate
    hook = gate.register_forward_hook(lambda _module, _args, out: found.append(out[2]))
    model.model(input_ids=ids_BT, use_cache=False)
    hook.remove()
    return found[0]


if __name__ == "__main__":
    main()
