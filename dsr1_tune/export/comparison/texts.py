"""What compare.html says, in English and in Chinese: every text in both."""

from __future__ import annotations

from dsr1_tune.report.catalogue import Language

TEXTS: dict[str, dict[Language, str]] = {
    "title": {"en": "Two models compared", "zh": "模型对比"},
    "headline": {"en": "change of the loss from A to B", "zh": "由 A 到 B 损失的变化"},
    "headline_general": {
        "en": "change of the loss on general rows from A to B",
        "zh": "由 A 到 B 通用数据上损失的变化",
    },
    "lead": {
        "en": "A is {a}, B is {b}. Behind every number stands the interval in which 95 % of the samples drawn from the "
        "same rows lie: two numbers whose difference's interval holds 0 may differ by chance.",
        "zh": "A 为 {a}，B 为 {b}。每个数字之后是从同一批数据重复抽样时 95 % 的样本所在的区间：若差值的区间包含 0，"
        "则差异可能只是偶然。",
    },
    "passed": {"en": "all gates passed", "zh": "全部门槛通过"},
    "missed": {"en": "gates missed", "zh": "未通过门槛"},
    "no_gates": {"en": "no gates were set", "zh": "未设置门槛"},
    "sections": {"en": "sections", "zh": "目录"},
    "remarks": {"en": "Remarks", "zh": "说明"},
    "loss": {"en": "Loss and agreement", "zh": "损失与一致性"},
    "measure": {"en": "measure", "zh": "指标"},
    "change": {"en": "change", "zh": "变化"},
    "rows_of": {
        "en": "{rows} rows, {tokens} tokens of answers: {name}",
        "zh": "{rows} 条、{tokens} 个回答 token：{name}",
    },
    "domain_set": {"en": "Domain", "zh": "领域数据"},
    "general_set": {"en": "General", "zh": "通用数据"},
    "loss_per_token": {"en": "loss (nats per token)", "zh": "损失（每 token，nat）"},
    "perplexity": {"en": "perplexity", "zh": "困惑度"},
    "agreement": {"en": "same next token", "zh": "最可能的下一个 token 相同"},
    "divergence": {"en": "KL(A‖B), nats per token", "zh": "A 与 B 的 KL 散度（每 token，nat）"},
    "scores": {"en": "Task scores", "zh": "任务得分"},
    "scores_lead": {
        "en": "Which score fits a row is told from its right answer: a letter, a number, a list, a few words, or a "
        "text.",
        "zh": "每条数据适用哪种得分由标准答案决定：选项字母、数字、列表、短语或长文本。",
    },
    "no_answers": {"en": "No answers were asked for.", "zh": "未要求生成回答。"},
    "answered": {"en": "{rows} rows answered", "zh": "回答了 {rows} 条"},
    "score_exact_match": {"en": "exact match", "zh": "完全匹配"},
    "score_numeric": {"en": "numbers right", "zh": "数值正确率"},
    "score_f1": {"en": "F1", "zh": "F1"},
    "score_rouge_l": {"en": "ROUGE-L", "zh": "ROUGE-L"},
    "score_choice_accuracy": {"en": "choices right", "zh": "选择题正确率"},
    "identical": {"en": "identical answers", "zh": "回答完全相同"},
    "similarity": {"en": "ROUGE-L between the answers", "zh": "两份回答之间的 ROUGE-L"},
    "style": {"en": "How the answers read", "zh": "回答的整体特征"},
    "distinct_1": {"en": "distinct-1", "zh": "distinct-1（不同词占比）"},
    "distinct_2": {"en": "distinct-2", "zh": "distinct-2（不同二元词组占比）"},
    "mean_words": {"en": "words per answer", "zh": "平均词数"},
    "mean_tokens": {"en": "tokens per answer", "zh": "平均 token 数"},
    "num_cut": {"en": "answers cut at the limit", "zh": "达到长度上限被截断"},
    "num_empty": {"en": "empty answers", "zh": "空回答"},
    "cost": {"en": "Size and speed", "zh": "体积与速度"},
    "num_bytes": {"en": "weights in memory", "zh": "内存中的权重"},
    "stored_bytes": {"en": "weights on disk", "zh": "磁盘上的权重"},
    "reads_per_second": {"en": "tokens read a second", "zh": "每秒读取 token"},
    "writes_per_second": {"en": "tokens written a second", "zh": "每秒生成 token"},
    "side_by_side": {"en": "Answers side by side", "zh": "回答并列对比"},
    "differ_first": {"en": "Those that differ most come first.", "zh": "差异最大的排在最前。"},
    "same": {"en": "identical", "zh": "完全相同"},
    "reference": {"en": "in the data", "zh": "数据中的回答"},
    "kind_choice": {"en": "a choice", "zh": "选择题"},
    "kind_number": {"en": "a number", "zh": "数值题"},
    "kind_list": {"en": "a list", "zh": "列举"},
    "kind_span": {"en": "a few words", "zh": "短语"},
    "kind_text": {"en": "a text", "zh": "长文本"},
    "footer": {
        "en": "Written by dsr1-tune {version}. Every number stands in compare.json.",
        "zh": "由 dsr1-tune {version} 生成。全部数字见 compare.json。",
    },
}


def say(key: str, language: Language) -> str:
    """A text of the page."""
    return TEXTS[key][language]
