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

The tables are the output of `python benchmarks/families.py --commands main --out families.json` on each version and
`python benchmarks/families.py --table families.json ...`; an empty cell was not tried.""",
        "family": "family",
        "refused": "Why it is refused",
        "failed": "What fails",
        "number": "Families of {num} that work",
        "and": " and ",
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

这些表由各版本上的 `python benchmarks/families.py --commands main --out families.json` 与
`python benchmarks/families.py --table families.json ...` 生成；空格表示未试。""",
        "family": "家族",
        "refused": "拒绝的原因",
        "failed": "失败之处",
        "number": "{num} 个家族中可用的数目",
        "and": " 与 ",
    },
}


def write(runs: list[dict[str, Any]], docs: Path) -> None:
    """Write both files, with a table for each version of transformers; of two runs on one the later cells count."""
    by_version: dict[str, dict[str, Any]] = {}
    for run in runs:
        one = by_version.setdefault(run["versions"]["transformers"], {"versions": {}, "families": {}})
        one["versions"] |= run["versions"]
        for family, cells in run["families"].items():
            one["families"].setdefault(family, {}).update(cells)
    for name, texts in TEXTS.items():
        (docs / name).write_text(_page(list(by_version.values()), texts), encoding="utf-8")


def _page(versions: list[dict[str, Any]], texts: dict[str, str]) -> str:
    named = {name: _and(texts["and"], [one["versions"][name] for one in versions]) for name in versions[0]["versions"]}
    counts = _and(texts["and"], [str(len(one["families"])) for one in versions])
    lines = [f"# {texts['title']}", "", texts["other"], "", texts["about"].format(num=counts, **named)]
    for one in versions:
        lines += ["", f"## transformers {one['versions']['transformers']}", "", *_table(one["families"], texts)]
        for state, head in (("refused", texts["refused"]), ("failed", texts["failed"])):
            if told := _told(one["families"], state):
                lines += ["", f"### {head}", "", *told]
    return "\n".join(lines) + "\n"


def _and(word: str, names: list[str]) -> str:
    return word.join(dict.fromkeys(names))


def _table(families: dict[str, dict[str, Any]], texts: dict[str, str]) -> list[str]:
    commands = list(dict.fromkeys(command for cells in families.values() for command in cells))
    lines = _row([texts["family"], *(HEADS.get(command, command) for command in commands)])
    lines += _row(["---"] * (len(commands) + 1))
    for name, cells in sorted(families.items()):
        states = [cells[command]["state"] if command in cells else None for command in commands]
        lines += _row([f"`{name}`", *(MARKS[state] if state else "" for state in states)])
    works = Counter(
        command for cells in families.values() for command, cell in cells.items() if cell["state"] == "works"
    )
    return lines + _row([f"**{texts['number'].format(num=len(families))}**", *(str(works[one]) for one in commands)])


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
