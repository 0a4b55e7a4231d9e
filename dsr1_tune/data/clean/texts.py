"""What the codes of dropped rows mean, in English and in Chinese."""

from __future__ import annotations

from dsr1_tune.data.record import CODES
from dsr1_tune.report.catalogue import Language

MEANINGS_ZH: dict[str, str] = {
    "not_an_object": "该行是数字、文本或列表，不是带字段名的对象",
    "unknown_fields": "该行没有任何字段是问题或回答",
    "missing_field": "缺少必需的字段",
    "ambiguous_fields": "有多个字段都可能是问题或回答",
    "null_value": "必需的字段为 null",
    "wrong_type": "字段内容既不是文本也不是对话列表",
    "unknown_role": "对话中出现未知的角色",
    "turn_order": "对话轮次没有正常交替",
    "no_assistant": "对话没有以助手的回答结束",
    "unknown_label": "标签看不出是好是坏",
    "bad_encoding": "文本中含有无法解码的字节或字符",
    "too_large": "字段过长，远超可学习的长度",
    "nested_too_deep": "列表和对象嵌套过深，无法读取",
    "json_malformed": "该行不是合法 JSON；前后的行正常读取",
    "json_damaged": "JSON 数组在此处损坏",
    "json_truncated": "文件在某行中间结束，或缺少结尾括号",
    "csv_malformed": "列数与表头不一致，或引号位置错误",
    "csv_truncated": "此处的引号没有闭合，其后的内容全部被吞掉",
    "empty_question": "问题为空",
    "empty_answer": "回答为空",
    "question_too_short": "问题短于 min_question_chars",
    "answer_too_short": "回答短于 min_answer_chars",
    "question_too_long": "问题长于 max_chars",
    "answer_too_long": "回答长于 max_chars",
    "placeholder_answer": "回答只是占位内容，如 TODO、N/A 或“无”",
    "answer_repeats_question": "回答只是照抄问题",
    "answer_restates_question": "回答只是换种说法复述问题",
    "repeated_text": "文本反复循环",
    "repeated_lines": "同样的行一再出现",
    "repeated_turn": "同一问题接连两次得到同样的回答",
    "odd_characters": "文本大多是既非语言、也非代码或公式的符号",
    "mojibake": "文本按错误编码解码，无法修复",
    "replacement_character": "文本含有 U+FFFD，已有字符丢失",
    "html_markup": "文本含有网页标记",
    "boilerplate": "回答是网页导航、Cookie 提示或版权声明",
    "refusal": "回答拒绝作答，或自称是 AI 语言模型",
    "truncated_answer": "回答在句中被截断",
    "wrong_language": "回答与问题语言不同，而问题并未要求",
    "advertisement": "回答是广告：链接、联系方式、促销",
    "equal_answers": "chosen 与 rejected 是同一个回答",
    "blocked_word": "含有屏蔽词表中的词",
    "custom_rule": "不符合自定义规则",
    "template_placeholder": "文本含有 {{name}} 一类的占位符",
    "flattened_turns": "多轮对话以 <user>:、<bot>: 等标签挤在一段文本里，已拆分",
    "uneven_lengths": "两个回答中，一个比另一个长好几倍",
    "scores_disagree": "按该行自带的评分，chosen 并不更好",
    "personal_data": "含有个人信息",
    "exact_duplicate": "相同的对话已在别处出现",
    "near_duplicate": "几乎相同的对话已在别处出现",
    "contradictory_answer": "同一问题在别处有另一个简短答案",
    "contradictory_preference": "同样的两个回答在别处的好坏次序相反",
    "contradictory_label": "同一个回答在别处有相反的标签",
    "contaminated": "含有评测文件中的内容",
    "not_fluent": "小语言模型认为回答不是自然的文本",
    "unhelped_answer": "对小语言模型来说，问题没有让回答更可能出现",
    "answer_does_not_fit": "小模型认为回答属于另一个问题",
    "not_drawn": "该文件权重小于 1，此行未被抽中",
    "not_supervised": "需要问答对，而此行是偏好数据、反馈或仅有提问",
    "not_of_this_kind": "此行的类型与这种训练方法所需的不同",
    "template_refused": "模型的对话模板拒绝该对话",
    "nothing_to_learn": "模型的对话模板没有留下任何回答内容",
    "too_long": "对话的 token 数超过 max_tokens",
}


def meaning(code: str, language: Language) -> str:
    """What a code means; "" for one that nobody has explained."""
    english = CODES.get(code, "")
    return MEANINGS_ZH.get(code, english) if language == "zh" else english
