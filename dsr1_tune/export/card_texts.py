"""What a model card says, in English and in Chinese: every text in both."""

from __future__ import annotations

from typing import Literal

Language = Literal["en", "zh"]

TEXTS: dict[str, dict[Language, str]] = {
    "made_by": {
        "en": "{base}, adapted to a domain with {command} by dsr1-tune {version}.",
        "zh": "由 dsr1-tune {version} 以 {command} 方法将 {base} 适配到领域数据。",
    },
    "made_by_none": {
        "en": "Made by dsr1-tune; what it was trained on is not known here.",
        "zh": "由 dsr1-tune 制作；此处没有其训练来源的记录。",
    },
    "quantized_to": {
        "en": "Its weights are stored as {to}: {after} in place of {before} ({share}).",
        "zh": "权重以 {to} 格式存储：{after}，原为 {before}（{share}）。",
    },
    "embedded": {
        "en": "The base is an upcycled model to try the toolkit with: SmolLM2-135M-Instruct in DeepSeek-V3's shape.",
        "zh": "该基座仅供试用：由 SmolLM2-135M-Instruct 扩展为 DeepSeek-V3 结构而成。",
    },
    "data": {"en": "Data", "zh": "数据"},
    "file": {"en": "file", "zh": "文件"},
    "rows": {
        "en": "{rows} rows were read, {kept} kept and {dropped} dropped; {train} records to learn from, {held_out} "
        "held out.",
        "zh": "读入 {rows} 行，保留 {kept} 行，剔除 {dropped} 行；{train} 条用于训练，{held_out} 条留出。",
    },
    "training": {"en": "Training", "zh": "训练"},
    "setting": {"en": "setting", "zh": "设置"},
    "value": {"en": "value", "zh": "取值"},
    "part": {"en": "part", "zh": "部分"},
    "reached": {"en": "reached by the update", "zh": "受更新影响"},
    "trained": {"en": "trained numbers", "zh": "训练的参数"},
    "evaluation": {"en": "Held-out loss", "zh": "留出损失"},
    "before": {"en": "before", "zh": "训练前"},
    "after": {"en": "after", "zh": "训练后"},
    "loss": {"en": "loss", "zh": "损失"},
    "perplexity": {"en": "perplexity", "zh": "困惑度"},
    "measured_on": {
        "en": "Measured on {records} held-out records of {tokens} tokens.",
        "zh": "测量于 {records} 条留出记录，共 {tokens} 个 token。",
    },
    "measured_on_train": {
        "en": "No records were held out: measured on {records} training records of {tokens} tokens.",
        "zh": "没有留出数据：测量于 {records} 条训练记录，共 {tokens} 个 token。",
    },
    "merge": {"en": "The merge and its certificate", "zh": "合并与合并证书"},
    "merge_tensors": {
        "en": "Of {total} tensors of the base {changed} were changed, all of them by what was trained; the other "
        "{equal} are the base's, byte by byte.",
        "zh": "基座的 {total} 个张量中，{changed} 个因训练而改变；其余 {equal} 个与基座逐字节相同。",
    },
    "merge_outputs": {
        "en": "On {tokens} held-out tokens the base with its update and this merge, both in float32, differ by at most "
        "{difference} in any logit (allowed: {bound}); their likeliest next token is the same in {agreement}.",
        "zh": "在 {tokens} 个留出 token 上，“基座加更新”与本合并模型（均为 float32）的任一 logit 最多相差 {difference}"
        "（允许 {bound}）；最可能的下一个 token 相同的比例为 {agreement}。",
    },
    "merge_loss": {
        "en": "Its loss on the held-out records is {merged}; the run measured {run}.",
        "zh": "合并模型的留出损失为 {merged}；训练结束时测得 {run}。",
    },
    "quantization": {"en": "Quantization", "zh": "量化"},
    "matrices": {"en": "matrices", "zh": "矩阵"},
    "quantized": {"en": "quantized", "zh": "已量化"},
    "bits": {"en": "bits a weight", "zh": "每权重位数"},
    "error": {"en": "relative error", "zh": "相对误差"},
    "comparison": {"en": "Compared with the model before", "zh": "与之前模型的比较"},
    "set": {"en": "set", "zh": "集合"},
    "change": {"en": "change", "zh": "变化"},
    "agreement": {"en": "same likeliest token", "zh": "首选 token 一致"},
    "interval": {
        "en": "A is {a}, B is {b}. In brackets the 95 % bootstrap interval.",
        "zh": "A 为 {a}，B 为 {b}。括号内为 95 % 自助法区间。",
    },
    "run_it": {"en": "How to run it", "zh": "如何运行"},
    "run_known": {
        "en": "Looked up for the named releases with `dsr1-tune check-serve`.",
        "zh": "根据 `dsr1-tune check-serve` 对所列版本的记录。",
    },
    "does_not_load": {"en": "{title} {version} does not load it: {why}.", "zh": "{title} {version} 无法加载：{why}。"},
    "limits": {"en": "Limits", "zh": "局限"},
    "limit_data": {
        "en": "It learned from {train} records. What they get wrong it may repeat, and what they do not cover it may "
        "have become worse at; measure before you rely on it.",
        "zh": "模型学习了 {train} 条记录。其中的错误可能被重复，未覆盖的能力可能变弱；使用前请先测量。",
    },
    "limit_no_held_out": {
        "en": "No records were held out, so nothing here tells how it does on anything new.",
        "zh": "没有留出数据，因此无法说明它在新数据上的表现。",
    },
    "limit_not_compared": {
        "en": "What quantizing cost in loss and answers was not measured: `dsr1-tune compare` does that.",
        "zh": "未测量量化对损失和回答的影响：可用 `dsr1-tune compare` 测量。",
    },
    "limit_base": {"en": "The base's own limits and licence apply.", "zh": "基座自身的局限与许可同样适用。"},
    "came_from": {"en": "Where it came from", "zh": "来源"},
    "verify": {
        "en": "`lineage.json` has all of it, with the SHA-256 of every file; `dsr1-tune verify .` checks them.",
        "zh": "`lineage.json` 记录了全部来源以及每个文件的 SHA-256；可用 `dsr1-tune verify .` 校验。",
    },
    "domain": {"en": "domain", "zh": "领域"},
    "general": {"en": "general", "zh": "通用"},
}
PARTS: dict[str, str] = {
    "attention": "注意力",
    "dense_ffn": "稠密前馈层",
    "shared_experts": "共享专家",
    "routed_experts": "路由专家",
    "router": "路由器",
    "embeddings": "嵌入",
    "norms": "归一化",
    "other": "其他",
}


def say(key: str, language: Language, **values: object) -> str:
    """The text of that key."""
    return TEXTS[key][language].format(**values)


def part(name: str, language: Language) -> str:
    """A part of the model, for people."""
    return PARTS[name] if language == "zh" else name.replace("_", " ")
