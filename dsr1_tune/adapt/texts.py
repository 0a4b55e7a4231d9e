"""What adapt's report.html says, in English and in Chinese: every text in both."""

from __future__ import annotations

from dsr1_tune.report.catalogue import Language

TEXTS: dict[str, dict[Language, str]] = {
    "title": {"en": "From data to model", "zh": "从数据到模型"},
    "summary": {
        "en": "{base} was adapted to {files} with {method} and written as {to}.",
        "zh": "以 {method} 方法将 {base} 适配到 {files}，并写成 {to} 格式。",
    },
    "summary_begun": {"en": "The way from {files} to a model.", "zh": "从 {files} 到模型的全过程。"},
    "status_done": {"en": "finished", "zh": "已完成"},
    "status_missed": {"en": "a gate was missed", "zh": "未达到门槛"},
    "status_open": {"en": "not finished", "zh": "未完成"},
    "missed": {"en": "What was missed", "zh": "未达到的要求"},
    "go_on": {"en": "Go on with: {command}", "zh": "继续执行：{command}"},
    "talk": {"en": "Talk to it with: {command}", "zh": "与模型对话：{command}"},
    "numbers": {"en": "In numbers", "zh": "主要数字"},
    "stages": {"en": "The stages", "zh": "各阶段"},
    "stage": {"en": "stage", "zh": "阶段"},
    "state": {"en": "state", "zh": "状态"},
    "time": {"en": "seconds", "zh": "用时（秒）"},
    "what": {"en": "what came of it", "zh": "结果"},
    "files": {"en": "files", "zh": "文件"},
    "settings": {"en": "Settings", "zh": "设置"},
    "hashes": {"en": "Data files (SHA-256)", "zh": "数据文件（SHA-256）"},
    "stage_plan": {"en": "Plan", "zh": "规划"},
    "stage_clean": {"en": "Clean", "zh": "清洗"},
    "stage_train": {"en": "Train", "zh": "训练"},
    "stage_merge": {"en": "Merge", "zh": "合并"},
    "stage_quantize": {"en": "Quantize", "zh": "量化"},
    "stage_compare": {"en": "Compare", "zh": "对比"},
    "stage_card": {"en": "Card", "zh": "模型卡"},
    "state_done": {"en": "done", "zh": "完成"},
    "state_missed": {"en": "gate missed", "zh": "未达门槛"},
    "state_begun": {"en": "begun", "zh": "进行中"},
    "state_failed": {"en": "failed", "zh": "失败"},
    "state_interrupted": {"en": "interrupted", "zh": "已中断"},
    "state_waiting": {"en": "waiting", "zh": "等待"},
    "told_plan": {"en": "{method}: {needed} GiB of {memory}", "zh": "{method}：需 {needed} GiB，可用 {memory} GiB"},
    "told_clean": {
        "en": "{kept} of {rows} rows kept, {merged} merged with copies, {dropped} dropped",
        "zh": "{rows} 行中保留 {kept} 行，合并重复 {merged} 行，剔除 {dropped} 行",
    },
    "told_train": {
        "en": "held-out loss {before} → {after} in {steps} steps",
        "zh": "留出损失 {before} → {after}，共 {steps} 步",
    },
    "told_merge": {"en": "{size}, certified", "zh": "{size}，已验证"},
    "told_quantize": {"en": "{to}, {size}", "zh": "{to}，{size}"},
    "told_compare": {
        "en": "loss {increase}, the same next token at {agreement} of the places",
        "zh": "损失变化 {increase}，下一个 token 一致率 {agreement}",
    },
    "told_card": {"en": "written", "zh": "已写入"},
}


def say(key: str, language: Language) -> str:
    """A text of the report."""
    return TEXTS[key][language]
