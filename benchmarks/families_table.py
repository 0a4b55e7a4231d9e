"""The tables of docs/families.md and docs/families.zh.md, from what benchmarks/families.py measured."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

MARKS = {"works": "✓", "refused": "R", "failed": "✗", "not tried": "–"}
HEADS = {
    "lora-merged": "merge lora", "qlora-merged": "merge qlora", "full-merged": "merge full",
    "esft-merged": "merge esft", "dpo-merged": "merge dpo",
}  # fmt: skip
TEXTS = {
    "families.md": {
        "title": "Families of mixtures",
        "other": "[中文](families.zh.md)",
        "about": """\
Which family goes through which command. A tiny model with random weights is built of every mixture of experts that
transformers {transformers} has as a causal language model ({num}), the commands of the table are run on it
(peft {peft}, trl {trl}, torch {torch}, on a CPU), and a program that uses nothing of this package looks at the results:

- a merged model's logits are those of the base with what was trained beside it, in float32, to 1e-4, or 4 times
  what other orders of summation and other last digits make; the router is the base's;
- an adapter's B have all moved;
- each matrix of a quantized folder is as near to the merged one as its format must be, and so are the logits.

✓ works, and was found right · R refused, before any weights are loaded; why stands below · ✗ fails · – needs a step
that does not work. Tiny random models say nothing of how well a family learns, nor of GPUs.

The table is the output of `python benchmarks/families.py --commands main --out families.json` and
`python benchmarks/families.py --table families.json`.""",
        "family": "family",
        "refused": "Why it is refused",
        "failed": "What fails",
        "number": "Families of {num} that work",
    },
    "families.zh.md": {
        "title": "混合专家模型家族一览",
        "other": "[English](families.md)",
        "about": """\
哪个家族能走通哪条命令。对 transformers {transformers} 中作为因果语言模型的每一个混合专家家族（共 {num} 个），
都用随机权重造一个极小的模型，把表中每条命令跑一遍（peft {peft}、trl {trl}、torch {torch}，CPU），
再由一个完全不使用本软件包的程序检查结果：

- 合并后模型的 logits 与“基座加训练所得”在 float32 下一致，误差不超过 1e-4，
  或不同求和次序与末位数字所致差异的 4 倍；路由器与基座相同；
- 适配器的每个 B 都已改变；
- 量化文件夹里每个矩阵与合并后矩阵的误差不超过该格式应有的误差，logits 亦然。

✓ 可用且结果正确 · R 在加载权重之前即被拒绝，原因见下 · ✗ 失败 · – 所需的前一步不可用。
极小的随机模型不能说明一个家族学得多好，也不代表 GPU 上的情形。

此表由 `python benchmarks/families.py --commands main --out families.json` 与
`python benchmarks/families.py --table families.json` 生成。""",
        "family": "家族",
        "refused": "拒绝的原因",
        "failed": "失败之处",
        "number": "{num} 个家族中可用的数目",
    },
}


def write(results: dict[str, Any], docs: Path) -> None:
    """Write both files."""
    for name, texts in TEXTS.items():
        (docs / name).write_text(_page(results, texts), encoding="utf-8")


def _page(results: dict[str, Any], texts: dict[str, str]) -> str:
    families: dict[str, dict[str, Any]] = results["families"]
    commands = list(next(iter(families.values())))
    numbers = {"num": len(families), **results["versions"]}
    lines = [f"# {texts['title']}", "", texts["other"], "", texts["about"].format(**numbers), ""]
    lines += _row([texts["family"], *(HEADS.get(command, command) for command in commands)])
    lines += _row(["---"] * (len(commands) + 1))
    for name, cells in families.items():
        lines += _row([f"`{name}`", *(MARKS[cells[command]["state"]] for command in commands)])
    works = Counter(
        command for cells in families.values() for command in commands if cells[command]["state"] == "works"
    )
    lines += _row([f"**{texts['number'].format(**numbers)}**", *(str(works[command]) for command in commands)])
    for state, head in (("refused", texts["refused"]), ("failed", texts["failed"])):
        if told := _told(families, state):
            lines += ["", f"## {head}", "", *told]
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> list[str]:
    return [f"| {' | '.join(cells)} |"]


def _told(families: dict[str, dict[str, Any]], state: str) -> list[str]:
    """One line for each family and reason, with the commands that give it."""
    lines = []
    for name, cells in families.items():
        commands: dict[str, list[str]] = {}
        for command, cell in cells.items():
            if cell["state"] == state:
                said = cell["said"].partition(" hint: ")
                reason = re.sub(r"^[\w.-]+: ", "", said[0])
                commands.setdefault(reason, []).append(HEADS.get(command, command))
        lines += [f"- `{name}`, {', '.join(those)}: {reason}" for reason, those in commands.items()]
    return lines
