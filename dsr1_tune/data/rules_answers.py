"""Rules about a question and its answer together: lengths, stand-ins, answers that only repeat what is asked."""

from __future__ import annotations

import re

from dsr1_tune.data.record import Drop, Row
from dsr1_tune.data.rules_facts import HAN_RUN, WORD, Text, bare, phrases, quoted, view, visible
from dsr1_tune.data.rules_settings import (
    AnswerRepeatsQuestion,
    AnswerRestatesQuestion,
    Lengths,
    PlaceholderAnswer,
)


def lengths(row: Row, rule: Lengths) -> Row | Drop:
    """Drop a row with a question or answer far too long, or a final one too short."""
    seen = view(row)
    for text in seen.texts:
        if len(text.content) > rule.max_chars and text.message.role in ("user", "assistant"):
            name = "question" if text.message.role == "user" else "answer"
            detail = f"{len(text.content)} characters, more than {rule.max_chars}: {quoted(text.content)}"
            fix = "cut it into several rows, or raise lengths.max_chars"
            return Drop(f"{name}_too_long", detail, fix, text.message.path)
    asked, answer = seen.question, seen.answer
    if asked and len(asked.content) < rule.min_question_chars + 16:
        length = len(visible(asked.content))
        if length < rule.min_question_chars:
            return _too_short("question", asked, length, rule.min_question_chars)
    if answer and len(answer.content) < rule.min_answer_chars + 16:
        length = len(visible(answer.content))
        if length < rule.min_answer_chars:
            return _too_short("answer", answer, length, rule.min_answer_chars)
    return row


def _too_short(name: str, text: Text, length: int, least: int) -> Drop:
    detail = f"{length} characters, fewer than {least}: {text.content.strip()!r}"
    return Drop(f"{name}_too_short", detail, f"write more, or lower lengths.min_{name}_chars", text.message.path)


def placeholder_answer(row: Row, rule: PlaceholderAnswer) -> Row | Drop:
    """Drop an answer that only stands in for one; `None` and `无` are answers where the question allows for them."""
    seen = view(row)
    for text in seen.answers:
        if len(text.content) > 40 and not rule.words:
            continue
        core = text.content.strip(_AROUND).casefold()
        asked = seen.question.content.lower() if seen.question else ""
        if core in _STAND_INS:
            stands_in = True
        elif core in _NOTHINGS:
            stands_in = not _MAY_BE_NONE.search(asked) and core not in asked
        elif core in _NULLS:
            stands_in = not _ABOUT_VALUES.search(asked) and core not in asked
        elif not core:
            stands_in = _ONLY_DOTS.fullmatch(text.content.strip()) is not None and not _ABOUT_SIGNS.search(seen.asked)
        else:
            stands_in = any(core == word.strip(_AROUND).casefold() for word in rule.words)
        if stands_in:
            detail = f"a stand-in, not an answer: {quoted(text.content)}"
            return Drop("placeholder_answer", detail, "write the answer, or remove the row", text.message.path)
    return row


_AROUND = " \t\r\n.。!！…-_*[]【】()（）<>《》{}「」“”\"'`#:：,，"
_STAND_INS = frozenset(
    phrases(
        """todo|tbd|tbc|t.b.d|fixme|n/a|placeholder|lorem ipsum|lorem ipsum dolor sit amet|noinput|no input
        no output|nooutput|your answer here|insert answer here|answer here|add answer here|write your answer here
        enter your answer here|the answer goes here|answer goes here|response goes here|to be added|to be completed
        to be determined|to be done|to be filled|to be filled in|coming soon|no answer|no response|no content
        not available|answer|response|output|text here|your text here|xxx|xxxx|xxxxx|asdf|blank|empty|to do
        待补充|待定|待填写|待填|待完善|待续|待添加|待更新|待回答|待编辑|未填写|未填|暂无答案|暂无回答|暂无内容
        暂无回复|暂缺
        无答案|无回答|无内容|没有答案|没有回答|没有内容|略|同上|见上|见上文|如上|此处填写答案|在此填写答案|在此输入答案
        请在此处填写|请填写答案|请输入答案|答案|回答|输出|占位|占位符|占位文本|示例答案|测试|测试测试|xx|空
        空白|内容为空
        此处为答案|答案待补充|答案略|敬请期待|未完成"""
    )
)
_NOTHINGS = frozenset(phrases("none|nothing|无|没有"))
_NULLS = frozenset(phrases("null|nil|na|n.a|暂无|不适用|not applicable|nan|undefined"))
_ONLY_DOTS = re.compile(r"[.。…\-_*—()（）\[\] ]+")
_MAY_BE_NONE = re.compile(
    r"\bany\b|is there|are there|does|do you|did|has |have |which|extract|identify|find|detect|list|classif|output|"
    r"return|print|value|code|error|how many|有无|有没有|是否|吗|都有|共同|提取|抽取|识别|找出|检测|分类|判断|"
    r"返回|输出|代码|存在"
)
_ABOUT_VALUES = re.compile(
    r"extract|return|print|output|value|code|error|function|python|javascript|java\b|sql|json|field|column|data ?type|"
    r"提取|抽取|返回|输出|代码|字段|函数|适用|取值|变量"
)
_ABOUT_SIGNS = re.compile(
    r"punctuat|symbol|operator|character|emoji|morse|mark|sign|标点|符号|运算符|字符|表情|省略|莫尔斯|摩斯"
)


def answer_repeats_question(row: Row, rule: AnswerRepeatsQuestion) -> Row | Drop:
    """Drop an answer that is the whole question again, or its first line, the instruction.

    To give back only the text that was asked about is fine: there may have been nothing to correct.
    """
    seen = view(row)
    asked, answer = seen.question, seen.answer
    if asked is None or answer is None or len(answer.content) > len(asked.content) + 20:
        return row
    middle = len(answer.low) // 2
    if answer.low[max(0, middle - 2) : middle + 2] not in asked.low:
        return row
    said = bare(answer.content)
    if len(said) < rule.min_chars or said in _GREETINGS:
        return row
    first, _, rest = asked.content.strip().partition("\n")
    if said == bare(asked.content) or (said == bare(first) and not _ECHO.search(rest)):
        fix = "write the answer, or remove the row"
        detail = f"the answer is the question: {quoted(answer.content)}"
        return Drop("answer_repeats_question", detail, fix, answer.message.path)
    return row


_GREETINGS = frozenset(
    phrases(
        """hello|hithere|heythere|goodmorning|goodafternoon|goodevening|goodnight|goodbye|thankyou|thanks|seeyou
        happynewyear|merrychristmas|早上好|中午好|下午好|晚上好|新年快乐|春节快乐|生日快乐|圣诞快乐"""
    )
)
_ECHO = re.compile(
    r"repeat|echo|copy|correct|fix|edit|proofread|gramma|above|重复|复述|照抄|修改|纠正|改正|校对|上面|上述|以上", re.I
)


def answer_restates_question(row: Row, rule: AnswerRestatesQuestion) -> Row | Drop:
    """Drop an answer that only says what is asked: `You want to know how to cook rice.`"""
    seen = view(row)
    asked, answer = seen.question, seen.answer
    if asked is None or answer is None or len(answer.data) > 2 * len(asked.data) + 150:
        return row
    if len(answer.data) > max(1000, len(asked.data) + 150):
        return row
    if len(asked.content) > 600 and len(answer.content) * 5 < len(asked.content) * 3:
        return row  # a short answer in the words of a passage
    if answer.num_han:
        content = answer.content
        if not ("问" in content or "题" in content or "想" in content or "关于" in content):
            return row
    else:
        head = answer.low[:120]
        if not (b"ask" in head or b"question" in head or b"you " in head or b"task" in head or b"request" in head):
            return row
    said, num_leads = _LEAD.subn(" ", answer.content, 3)
    if not num_leads or seen.has_tools:
        return row
    new, all_ = _new_grams(_FILLER.sub(" ", said), asked.content)
    if new <= min(rule.max_new_share * all_, _MOST_NEW):
        detail = f"it only says what is asked: {quoted(answer.content)}"
        fix = "write an answer, or raise answer_restates_question.max_new_share"
        return Drop("answer_restates_question", detail, fix, answer.message.path)
    return row


_LEAD = re.compile(
    r"(?:so,? |well,? |okay,? |i see,? |i understand(?: that)?,? )?"
    r"(?:the user|you)(?:'re| are|'ve| have| just|'d| would)?"
    r"(?: currently| just| now)?(?: been)? (?:asking|asked|ask|asks|want|wants|wish|wondering|wonder|like|need)"
    r"(?: me| us)?(?: to know| to learn| to understand| to find out)?(?: about| for| whether| if| that)?|"
    r"(?:the|your|this|my) (?:question|request|prompt|query|task|instruction)(?: here| you asked| you have)?"
    r"(?: is asking| asks| asked| is| was| concerns| wants to know| here is)(?: about| for| whether| if| to)?|"
    r"this is (?:a|an|the) (?:\w+ )?(?:question|request|query)(?: about| on| regarding| concerning| of)?|"
    r"(?:您|你|用户|提问者)(?:现在|刚才|刚刚)?(?:是|正|正在|在)?(?:所)?(?:想要?|需要|希望|要)?(?:提问|询问|"
    r"咨询|问|知道|了解)(?:到|我)?(?:的)?"
    r"(?:问题|内容|事情)?(?:是|就是|为|关于)?|"
    r"(?:您|你|用户|这个|该|此|本)的?(?:问题|题目|提问|疑问)(?:是|就是|问的是|在问|询问|要求|关于|为)(?:关于)?|"
    r"题目(?:要求|问的是|是)|"
    r"这是(?:一个|一道)?(?:关于|有关)",
    re.I,
)
_FILLER = re.compile(
    r"(?:that(?:'s| is) |what )?an? (?:very )?(?:good|great|interesting|important|excellent) question|"
    r"thanks? (?:you )?for (?:asking|your question)|"
    r"这是(?:一)?个(?:很|非常)?好?的?问题|的?(?:问题|话题|疑问|内容)|谢谢(?:您的)?提问",
    re.I,
)
_STOP = frozenset(
    phrases("the|a|an|of|to|in|is|are|was|be|do|does|did|it|that|this|you|i|me|my|your|about|and|or|for|on")
)


# An answer with more new words says something, however long the question is that it takes up.
_MOST_NEW = 8


def _new_grams(said: str, asked: str) -> tuple[int, int]:
    """(how many of the Han bigrams and words said were not asked, how many there are)."""
    known = set(_grams(asked))
    grams = _grams(said)
    return sum(gram not in known for gram in grams), len(grams)


def _grams(text: str) -> list[str]:
    text = text.lower()
    grams = [run[i : i + 2] for run in HAN_RUN.findall(text) for i in range(len(run) - 1)]
    return grams + [word for word in WORD.findall(HAN_RUN.sub(" ", text)) if word not in _STOP]
