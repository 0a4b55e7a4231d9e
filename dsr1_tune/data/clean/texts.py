"""What report.html says, in English and in Chinese: every text in both."""

from __future__ import annotations

from dsr1_tune.report.catalogue import Language

TEXTS: dict[str, dict[Language, str]] = {
    "title": {"en": "Data report", "zh": "数据报告"},
    "headline": {"en": "of the rows are kept", "zh": "的数据被保留"},
    "counts": {
        "en": "{kept} of {rows} rows are good; {merged} repeat another row, {dropped} fell out with a reason.",
        "zh": "读入 {rows} 行，{kept} 行可用于训练；{merged} 行与其他行重复，{dropped} 行因具体原因被剔除。",
    },
    "adds_up": {
        "en": "Nothing is lost: {rows} read = {kept} kept + {merged} merged + {dropped} dropped.",
        "zh": "无一遗漏：读入 {rows} = 保留 {kept} + 合并 {merged} + 剔除 {dropped}。",
    },
    "does_not_add_up": {
        "en": "The counts do not add up: {rows} read, but {kept} kept + {merged} merged + {dropped} dropped. "
        "Please report this.",
        "zh": "数目不符：读入 {rows}，而保留 {kept} + 合并 {merged} + 剔除 {dropped}。请反馈此问题。",
    },
    "no_rows": {"en": "No rows were read.", "zh": "没有读到任何数据。"},
    "kept": {"en": "kept", "zh": "保留"},
    "merged": {"en": "merged", "zh": "合并"},
    "dropped": {"en": "dropped", "zh": "剔除"},
    "records": {"en": "conversations", "zh": "对话"},
    "preferences": {"en": "preference pairs", "zh": "偏好对"},
    "prompts": {"en": "prompts without answer", "zh": "仅有提问"},
    "feedback": {"en": "labelled answers", "zh": "带标签的回答"},
    "sections": {"en": "Sections", "zh": "目录"},
    # worth a look
    "findings": {"en": "Worth a look", "zh": "值得关注"},
    "no_findings": {"en": "Nothing stands out.", "zh": "没有特别需要关注的问题。"},
    "finding_damaged": {
        "en": "{file} breaks off or is broken inside: an unknown number of rows could not be read. Fetch it again.",
        "zh": "{file} 不完整或内部损坏：有未知数量的行无法读取。请重新获取该文件。",
    },
    "finding_reason": {
        "en": "{code} is the reason for {share} of all that fell out: {meaning}.",
        "zh": "所有未保留的行中，{share} 的原因是 {code}：{meaning}。",
    },
    "finding_file": {
        "en": "Of {file} only {share} is kept; the other files fare better.",
        "zh": "{file} 只有 {share} 被保留，明显低于其他文件。",
    },
    "finding_formats": {
        "en": "{file} mixes several formats: {formats}.",
        "zh": "{file} 混用了多种格式：{formats}。",
    },
    "finding_personal": {
        "en": "{found} pieces of personal data were only counted; they are still there.",
        "zh": "有 {found} 处个人信息只做了统计，仍保留在数据中。",
    },
    "finding_contaminated": {
        "en": "{rows} rows hold a row of the evaluation files and were taken out.",
        "zh": "{rows} 行与评测文件内容重合，已剔除。",
    },
    "finding_switched_off": {
        "en": "The judge's score {score} was switched off for {language}: {why}",
        "zh": "评判分数 {score} 对{language}已停用：{why}",
    },
    "finding_contradictory": {
        "en": "{rows} rows give different short answers to the same question; someone must say which is right.",
        "zh": "{rows} 行对同一问题给出不同的简短答案，需人工确认哪个正确。",
    },
    "finding_opposed": {
        "en": "{rows} rows judge the same answers otherwise than another row does; someone must say which is right.",
        "zh": "{rows} 行对同样的回答与其他行评价相反，需人工确认哪个正确。",
    },
    "finding_longer": {
        "en": "Who only takes the longer answer is right in {share} of {pairs} pairs: a model may learn just that. Add "
        "pairs in which the longer answer is the worse one.",
        "zh": "在 {pairs} 个偏好对中，只选较长的回答就能答对 {share}：模型可能只学到长度。请补充“较长但较差”的例子。",
    },
    "finding_shorter": {
        "en": "Who only takes the shorter answer is right in {share} of {pairs} pairs: a model may learn just that. "
        "Add pairs in which the shorter answer is the worse one.",
        "zh": "在 {pairs} 个偏好对中，只选较短的回答就能答对 {share}：模型可能只学到长度。请补充“较短但较差”的例子。",
    },
    # funnel
    "stages": {"en": "From raw file to training data", "zh": "从原始文件到训练数据"},
    "stage": {"en": "step", "zh": "步骤"},
    "in": {"en": "in", "zh": "输入"},
    "out": {"en": "out", "zh": "输出"},
    "lost": {"en": "taken out", "zh": "移除"},
    "no_stages": {"en": "The steps were not recorded.", "zh": "没有记录各步骤。"},
    "stage_read": {"en": "Read", "zh": "读取"},
    "stage_rules": {"en": "Rules", "zh": "规则"},
    "stage_privacy": {"en": "Personal data", "zh": "个人信息"},
    "stage_duplicates": {"en": "Duplicates", "zh": "去重"},
    "stage_contamination": {"en": "Evaluation files", "zh": "评测集去污染"},
    "stage_judge": {"en": "Small-model judge", "zh": "小模型评判"},
    "stage_selection": {"en": "Selection", "zh": "抽选"},
    "stage_encode": {"en": "Tokens", "zh": "编码"},
    # reasons
    "reasons": {"en": "Why rows fell out", "zh": "剔除原因"},
    "no_reasons": {"en": "No row fell out.", "zh": "没有任何行被剔除。"},
    "reason": {"en": "reason", "zh": "原因"},
    "rows": {"en": "rows", "zh": "行数"},
    "share": {"en": "share", "zh": "占比"},
    "share_note": {
        "en": "Share of all rows read. Every one of these rows stands, whole, in rejected.jsonl.",
        "zh": "占比以读入总行数计。每一行都原样保存在 rejected.jsonl 中。",
    },
    "examples": {"en": "Examples", "zh": "示例"},
    "example_count": {"en": "{shown} of {rows} rows", "zh": "{rows} 行中的 {shown} 行"},
    "question": {"en": "question", "zh": "问题"},
    "answer": {"en": "answer", "zh": "回答"},
    "fix": {"en": "mend", "zh": "修正"},
    # files
    "files": {"en": "Files", "zh": "文件"},
    "no_files": {"en": "No files were recorded.", "zh": "没有文件记录。"},
    "file": {"en": "file", "zh": "文件"},
    "weight": {"en": "weight", "zh": "权重"},
    "damaged": {"en": "damaged: rows may be lost", "zh": "已损坏：可能缺行"},
    "unknown_format": {"en": "no known format", "zh": "未知格式"},
    # lengths
    "lengths": {"en": "Lengths of kept rows", "zh": "保留数据的长度"},
    "no_lengths": {"en": "Lengths were not measured.", "zh": "没有统计长度。"},
    "lengths_tokens": {"en": "In tokens of {tokenizer}", "zh": "单位：{tokenizer} 的 token"},
    "lengths_characters": {"en": "In characters", "zh": "单位：字符"},
    "lengths_sampled": {"en": "a sample of {rows} rows", "zh": "抽样 {rows} 行"},
    "conversation": {"en": "whole conversation", "zh": "整段对话"},
    "tokens": {"en": "tokens", "zh": "token"},
    "characters": {"en": "characters", "zh": "字符"},
    "median": {"en": "median", "zh": "中位数"},
    "p95": {"en": "95 % below", "zh": "95% 不超过"},
    "max": {"en": "longest", "zh": "最长"},
    # languages
    "languages": {"en": "Languages of kept rows", "zh": "保留数据的语言"},
    "no_languages": {"en": "Languages were not counted.", "zh": "没有统计语言。"},
    "language": {"en": "language", "zh": "语言"},
    "language_zh": {"en": "Chinese", "zh": "中文"},
    "language_en": {"en": "English", "zh": "英文"},
    "language_ja": {"en": "Japanese", "zh": "日文"},
    "language_ko": {"en": "Korean", "zh": "韩文"},
    "language_mixed": {"en": "mixed", "zh": "混合"},
    "language_latin": {"en": "Latin script", "zh": "拉丁字母"},
    "language_cyrillic": {"en": "Cyrillic script", "zh": "西里尔字母"},
    "language_arabic": {"en": "Arabic script", "zh": "阿拉伯字母"},
    "language_other": {"en": "other", "zh": "其他"},
    "language_none": {"en": "no letters", "zh": "无文字"},
    # personal data
    "personal": {"en": "Personal data", "zh": "个人信息"},
    "no_personal": {"en": "Personal data was not looked for.", "zh": "没有检查个人信息。"},
    "personal_off": {"en": "The search was switched off.", "zh": "检查已关闭。"},
    "personal_count": {"en": "Only counted; the rows are as they were.", "zh": "只统计，数据未改动。"},
    "personal_redact": {"en": "Replaced by typed placeholders.", "zh": "已替换为带类型的占位符。"},
    "personal_drop": {"en": "Rows that hold any were dropped.", "zh": "含个人信息的行已剔除。"},
    "personal_none": {"en": "None was found.", "zh": "未发现个人信息。"},
    "kind": {"en": "kind", "zh": "类别"},
    "found": {"en": "found", "zh": "处数"},
    "in_rows": {"en": "in rows", "zh": "涉及行数"},
    # duplicates
    "duplicates": {"en": "Duplicates", "zh": "重复"},
    "no_duplicates": {"en": "Duplicates were not looked for.", "zh": "没有检查重复。"},
    "exact": {"en": "exact copies", "zh": "完全重复"},
    "near": {"en": "near copies", "zh": "近似重复"},
    "contradictory": {"en": "contradictory answers", "zh": "答案矛盾"},
    "groups": {"en": "groups", "zh": "重复组"},
    "largest": {"en": "Largest groups", "zh": "最大的重复组"},
    "group": {"en": "group", "zh": "组"},
    "kept_copy": {"en": "kept copy", "zh": "保留的一份"},
    "groups_file": {"en": "Every group, with all its rows: ", "zh": "所有重复组及其各行见："},
    # contamination
    "contamination": {"en": "Evaluation files", "zh": "评测集污染"},
    "no_contamination": {
        "en": "No evaluation files were given (dedup.against), so nothing was compared.",
        "zh": "没有指定评测文件（dedup.against），未做比对。",
    },
    "contamination_rows": {
        "en": "{rows} rows held a row of these files and were taken out:",
        "zh": "{rows} 行与下列文件的内容重合，已剔除：",
    },
    # judge
    "judge": {"en": "What a small model thinks", "zh": "小模型评判"},
    "no_judge": {"en": "The small-model judge did not run.", "zh": "没有运行小模型评判。"},
    "judge_how": {
        "en": "Each score is tried on this data: on true pairs of question and answer, and on shuffled ones. AUC is "
        "how often it ranks a true pair above a shuffled one: 1 always, 0.5 is chance.",
        "zh": "每个分数都先在本数据上检验：真实问答对与打乱的问答对。"
        "AUC 表示真实对得分优于打乱对的概率：1 为完美，0.5 等于随机。",
    },
    "judge_dropped": {"en": "{rows} rows were dropped by the judge.", "zh": "评判共剔除 {rows} 行。"},
    "no_scores": {"en": "No row was scored.", "zh": "没有任何行被评分。"},
    "score": {"en": "score", "zh": "分数"},
    "scored": {"en": "scored", "zh": "已评分"},
    "unscored": {"en": "not scored", "zh": "未评分"},
    "cut_off": {"en": "cut-off", "zh": "阈值"},
    "switched_off": {"en": "switched off", "zh": "已停用"},
    "true_pairs": {"en": "true pairs", "zh": "真实问答对"},
    "shuffled_pairs": {"en": "shuffled pairs", "zh": "打乱问答对"},
    # split
    "split": {"en": "Training and evaluation", "zh": "训练集与评测集"},
    "no_split": {"en": "The rows were not split.", "zh": "没有划分训练集与评测集。"},
    "split_counts": {
        "en": "{train} rows to train on, {eval} held out and never trained on.",
        "zh": "训练 {train} 行；留出评测 {eval} 行，不参与训练。",
    },
    "stratum": {"en": "stratum", "zh": "分层"},
    "train": {"en": "train", "zh": "训练"},
    "eval": {"en": "held out", "zh": "评测"},
    # remarks and mends
    "noted": {"en": "Remarks on kept rows", "zh": "对保留数据的提示"},
    "no_noted": {"en": "Nothing is odd about the kept rows.", "zh": "保留的数据没有异常提示。"},
    "mended": {"en": "What was mended", "zh": "已修复的问题"},
    "no_mended": {"en": "Nothing needed mending.", "zh": "没有需要修复的内容。"},
    "what": {"en": "what", "zh": "内容"},
    # settings
    "settings": {"en": "Settings and versions", "zh": "设置与版本"},
    "no_settings": {"en": "The settings were not recorded.", "zh": "没有记录设置。"},
    "setting": {"en": "setting", "zh": "设置项"},
    "value": {"en": "value", "zh": "取值"},
    "seed": {"en": "seed", "zh": "随机种子"},
    "made_by": {
        "en": "Written by dsr1-tune {version}. The same numbers, for programs, are in report.json.",
        "zh": "由 dsr1-tune {version} 生成。供程序读取的同一份数据见 report.json。",
    },
    "control": {
        "en": "Marks like U+202E stand for characters that cannot be seen.",
        "zh": "形如 U+202E 的标记代表不可见字符。",
    },
}


def say(key: str, language: Language) -> str:
    """A text of the report."""
    return TEXTS[key][language]


def named(group: str, name: str, language: Language) -> str:
    """A name from the data, such as a stage or a language, in words where we have some for it."""
    texts = TEXTS.get(f"{group}_{name}")
    return texts[language] if texts else name
