"""Rules about a question and its answer together: lengths, stand-ins, answers that only repeat what is asked."""

from __future__ import annotations

import re
import unicodedata

from dsr1_tune.data.record import Drop, Row
from dsr1_tune.data.rules.settings import AnswerRepeatsQuestion, AnswerRestatesQuestion, Lengths, PlaceholderAnswer
from dsr1_tune.data.rules.text_features import HAN_RUN, WORD, Text, View, bare, phrases, quoted, view, visible


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
        if not rule.words and text.num_han > _LONGEST_IN_HAN:
            continue
        if len(text.content) > _LONGEST_STAND_IN and not rule.words and not text.low.startswith(_DUMMY):
            continue
        if _stands_in(text, seen, rule):
            detail = f"a stand-in, not an answer: {quoted(text.content)}"
            return Drop("placeholder_answer", detail, "write the answer, or remove the row", text.message.path)
    return row


_LONGEST_STAND_IN = 60
_LONGEST_IN_HAN = 24
_DUMMY = (b"lorem ipsum", b" lorem ipsum", b"\nlorem ipsum", b'"lorem ipsum', b"<p>lorem ipsum")
# With these every Chinese stand-in begins.
_FIRST_ZH = frozenset(
    "请在此这以参标示正模你您答回内文解输结描详具见看同如更建编整施审补完待稍测占过中省从页持某×x目现暂没无未缺尚数信资横下空敬略"
)


def _stands_in(text: Text, seen: View, rule: PlaceholderAnswer) -> bool:
    """Whether the text is none of its own: a word for an answer that is missing, a slot, a test, only signs."""
    content = text.content
    plain = unicodedata.normalize("NFKC", content) if b"f" in text.signs else content
    plain = plain.strip().casefold()
    core = plain.strip(_AROUND)
    if rule.words and any(core == word.strip(_AROUND).casefold() for word in rule.words):
        return True
    if plain.startswith("lorem ipsum"):
        return not _ABOUT_LOREM.search(seen.asked)
    if len(content) > _LONGEST_STAND_IN:
        return False
    if text.num_han and core[:1] not in _FIRST_ZH and core not in _NULLS:
        return False
    asked = seen.question.content.lower() if seen.question else ""
    if core in _STAND_INS or (plain[-1:] in (":", "：") and _ONLY_LABEL.fullmatch(plain)):
        return len(asked) > _LONGEST_WORD_QUESTION or not _TRANSLATES.search(asked)
    if core in _NOTHINGS or (_MISSING_ZH if text.num_han else _MISSING).fullmatch(core):
        return not _MAY_BE_NONE.search(asked) and (len(core) == 1 or core not in asked)
    if core in _NULLS:
        return not _ABOUT_VALUES.search(asked) and not _ABOUT_SIGNS.search(seen.asked) and core not in asked
    if core in ("ref", "value", "name", "div/0", "num", "spill", "n/a") and _SHEET_ERROR.fullmatch(plain):
        return not _ABOUT_SHEETS.search(seen.asked)
    if not core or _ONLY_SLOT.fullmatch(plain):
        # Of a single sign one cannot tell; `{}` and `[]` are results.
        is_empty = len(plain) > 1 or plain in "-—–_.…*"
        is_empty = is_empty and (_ONLY_DOTS.fullmatch(plain) or _ONLY_SLOT.fullmatch(plain)) is not None
        return is_empty and not _ABOUT_SIGNS.search(seen.asked) and not _ABOUT_VALUES.search(asked)
    if (_STANDS_IN_ZH if text.num_han else _STANDS_IN).fullmatch(core):
        return not _ABOUT_DUMMIES.search(seen.asked) and core not in asked
    return False


_AROUND = " \t\r\n.。!！…-_*[]【】()（）<>《》{}「」“”\"'`#:：,，?？~$%/\\|=—–;；、"
_STAND_INS = frozenset(
    phrases(
        """todo|tbd|tbc|t.b.d|fixme|n/a|placeholder|lorem ipsum|noinput|no input
        no output|nooutput|your answer here|insert answer here|answer here|add answer here
        coming soon|no answer|no response|no content
        not available|answer|response|output|text here|your text here|xxx|xxxx|xxxxx|asdf|blank|empty|to do
        待补充|待定|待填写|待填|待完善|待续|待添加|待更新|待回答|待编辑|未填写|未填|暂无答案|暂无回答|暂无内容
        暂无回复|暂缺
        无答案|无回答|无内容|没有答案|没有回答|没有内容|略|同上|见上|见上文|如上|此处填写答案|在此填写答案|在此输入答案
        请在此处填写|请填写答案|请输入答案|答案|回答|输出|占位|占位符|占位文本|示例答案|测试|测试测试|xx|空
        空白|内容为空|答|解答|解析
        此处为答案|答案待补充|答案略|敬请期待|未完成|未完待续"""
    )
)
_NOTHINGS = frozenset(phrases("none|nothing|无|没有"))
_NULLS = frozenset(phrases("null|nil|na|n.a|暂无|不适用|not applicable|nan|undefined"))
_TEXT_EN = r"(?:answer|response|output|reply|text|content|solution|completion|explanation|description|summary)s?"
_WHOSE_EN = r"(?:(?:your|the|an?|some|my|model|expected|sample|example|dummy|correct|actual|real|full|final) )*"
_TEST_EN = r"(?:test|testing|asdf\w*|blah|bla|foo|bar|baz|qwe\w*|lorem|ipsum|dummy|abc)"
_STANDS_IN = re.compile(
    rf"(?:please )?(?:insert|write|enter|type|add|put|provide|fill in|paste|place)(?: in)? {_WHOSE_EN}{_TEXT_EN}"
    r"(?: text)?(?: (?:here|below|in this (?:box|field)))?|"
    rf"{_WHOSE_EN}{_TEXT_EN}(?: text)?(?: (?:goes?|comes|is|are|will|be|to|here|below|pending|needed|required|omitted|"
    r"added|written|completed|follows?|soon|later|tbd|todo|placeholder))+|"
    rf"(?:your|sample|example|dummy|test|model|expected) {_TEXT_EN}|"
    r"(?:todo|to do|fixme|tbd|tbc|wip)(?:\W+\w.*)?|"
    r"to be (?:added|completed|determined|done|filled|filled in|written|provided|decided|updated|continued|"
    r"confirmed|announced)(?: later| soon| here)?|"
    r"(?:(?:content|answer|more|details?|information|updates?) )*(?:is |are )?coming soon|under construction|"
    r"work in progress|(?:answer|this) pending|ditto|idem|"
    r"(?:please )?(?:same|see|as|refer to|check|read|cf)(?: (?:as|the|in))*(?: (?:above|below|before|attached|"
    r"attachments?|previous|preceding|file|document|link|image|picture|figure|comments?|answers?|question|response|"
    r"one|notes?|textbook|page|following|mentioned|stated))+|"
    rf"(?:{_TEST_EN}[\s,.!]+)+(?:{_TEST_EN}|1 ?2 ?3|one two three)|(?:this is )?(?:just |only )?a test|"
    r"test (?:answer|response|data|text|message|row|record|entry)|object object"
)
_TEXT_ZH = r"(?:答案|回答|回复|内容|答复|文字|文本|解答|解析|正文|描述|输出|结果)"
_STANDS_IN_ZH = re.compile(
    rf"(?:请|请您|请你)?(?:在)?(?:此处?|这里|下方|下面|横线上|输入框中?)?(?:填写|输入|填入|写下|写出|写|补充|添加|插入|键入)"
    rf"(?:上|入)?(?:您的|你的|正确的?|完整的?)?{_TEXT_ZH}(?:内容|在此|于此)?|"
    rf"(?:此处|这里|以下|这)(?:为|是|填|写|放)?(?:您的|你的|参考|标准|示例|一个)*{_TEXT_ZH}?(?:省略|从略|略|待填|内容)?|"
    rf"(?:参考|标准|示例|正确|模型|你的|您的)?{_TEXT_ZH}(?:内容|文本|部分)?(?:在此|在这里|为空|缺失|省略|从略|略|未填|"
    r"稍后.{0,4}|待.{1,4}|占位符?|更新中|编辑中)|"
    rf"(?:回答|答案|答复|回复)(?:内容|文本|正文)|"
    r"(?:此处|以下|内容|过程|具体|中间)?(?:省略|从略)(?:\d+字|若干字?|内容)?|"
    r"(?:请|详情|具体|内容|答案)?(?:详见|参见|参考|参照|参阅|查看|请看|见)(?:附件|附图|上文|上图|下图|下文|上题|原文|图片|"
    r"评论|链接|正文|教材|课本|书本|附录|前文|上述.{0,3}|上面|下面|答案|解析)(?:所示|内容|回答|答案)?|"
    r"同(?:上|前)(?:题|文|面|所述|回答|答案)?|如(?:上|前|图|下)(?:所述|所示|图)?|"
    r"(?:内容|答案|页面|正在|持续)*(?:更新|建设|编辑|整理|施工|审核|补充|完善)中|待(?:补|补全|撰写|审核|整理|核实)|"
    r"稍后(?:补充|回答|更新|添加|完善|再.{1,3})|(?:测试|占位|示例)(?:内容|文本|数据|答案|一下|用|\d+)|(?:测试[\s,，]*){2,}|"
    r"请(?:填写|输入|补充|作答|回答)|x{2,}|某某某?|×{2,}"
)
# Said of data where there may be some: an answer if the question asks for what may not be there.
_MISSING = re.compile(
    r"(?:no|missing) (?:answer|response|output|content|data|text|reply|input|result|information)s?"
    r"(?: (?:is|are|available|found|provided|yet|given|here|specified|recorded))*|"
    rf"{_WHOSE_EN}(?:data|information|{_TEXT_EN})"
    r" (?:is |are )?(?:not|un|missing)(?: ?(?:yet |currently )?(?:available|provided|found|given|specified|recorded))?"
)
_MISSING_ZH = re.compile(
    r"(?:目前|现在)?(?:暂无|暂缺|暂时没有|暂没有|没有|无|未找到|未提供|缺少|缺失|尚无)(?:相关|可用|有效|详细|具体|任何)*"
    r"(?:答案|回答|回复|内容|数据|资料|信息|记录|解析|结果|描述|说明|简介|介绍)|(?:数据|信息|资料|内容|答案)(?:缺失|为空|暂缺|未提供)"
)
_SHEET_ERROR = re.compile(r"#(?:ref|value|name|div/0|null|num|n/?a|spill|calc)[!?]?")
_ABOUT_SHEETS = re.compile(r"excel|sheet|formula|cell|error|公式|表格|单元格|错误")
_ONLY_LABEL = re.compile(r"(?:a|ans|answer|assistant|gpt|bot|response|答|答案|回答|解)\s*[:：]")
_ONLY_DOTS = re.compile(r"[.。…\-_*—–(（）)\[\] ?？!！~/\\、,，]+")
# Tags, entities and brackets with nothing in them.
_ONLY_SLOT = re.compile(r"(?:</?[a-z][^<>]{0,40}>|&[a-z]+;|\s|[\[({（【]\s*[\])}）】]){1,20}")
_ABOUT_LOREM = re.compile(r"lorem|dummy|placeholder|filler|template|\bmock\b|html|占位|模板|假文")
_LONGEST_WORD_QUESTION = 80
_TRANSLATES = re.compile(r"translat|翻译|译[成为]")
_ABOUT_DUMMIES = re.compile(
    r"lorem|dummy|placeholder|filler|template|\bmock\b|translat|synonym|antonym|\bmeans?\b|caption|slogan|headline|"
    r"\btitle\b|to-?do|sign\b|占位|模板|翻译|译|同义|近义|反义|意思|标题|标语|待办"
)
_MAY_BE_NONE = re.compile(
    r"\bany\b|\bis there|\bare there|\bnone\b|\bwhich\b|extract|identify|\bfind\b|detect|"
    r"\blist|classif|output|"
    r"\breturn|\bprint|\bvalues?\b|\bcode\b|\berrors?\b|how many|有无|有没有|是否|吗|都有|共同|提取|抽取|识别|找出|检测|分类|判断|"
    r"返回|输出|代码|存在|没有则|无则|[“\"‘'「]无[”\"’'」]|(?:回答|填|写|答|为)无"
)
_ABOUT_VALUES = re.compile(
    r"extract|return|\bprint|\boutput|\bvalues?\b|\bcode\b|\berrors?\b|function|python|javascript|\bjava\b|\bsql\b|json|\bfields?\b|"
    r"\bcolumns?\b|data ?type|\blist\b|empty|html|xml|\btags?\b|"
    r"提取|抽取|返回|输出|代码|字段|函数|适用|取值|变量|列表|为空|标签"
)
_ABOUT_SIGNS = re.compile(
    r"punctuat|symbol|operator|character|emoji|morse|\bmarks?\b|\bsigns?\b|element|chemical|sodium|country code|"
    r"abbreviat|pattern|sequence|draw|ascii|\bart\b|brainfuck|kaomoji|braille|"
    r"标点|符号|运算符|字符|表情|省略|莫尔斯|摩斯|摩尔斯|电码|元素|钠|缩写|代号|图案|划线|横线|空格|键"
)


def answer_repeats_question(row: Row, rule: AnswerRepeatsQuestion) -> Row | Drop:
    """Drop an answer that is the whole question again, or its first line, the instruction.

    To give back only the text that was asked about is fine: there may have been nothing to correct.
    """
    seen = view(row)
    asked, answer = seen.question, seen.answer
    if asked is None or answer is None or len(answer.content) > 2 * len(asked.content) + 20:
        return row
    low, fourth = answer.low, len(answer.low) // 4
    samples = (low[fourth : fourth + 12], low[2 * fourth : 2 * fourth + 12], low[3 * fourth - 12 : 3 * fourth])
    low = asked.low
    known = (samples[0] in low) + (samples[1] in low)
    is_known = known == 2 or (known == 1 and samples[2] in low)
    if not is_known and (answer.num_han or answer.num_latin * 2 > len(answer.shape) or not _is_full_width(answer)):
        return row
    said = bare(answer.content)
    if len(said) < rule.min_chars or said in _GREETINGS:
        return row
    first, _, rest = asked.content.strip().partition("\n")
    whole = bare(asked.content)
    if said in (whole, whole * 2) or (said == bare(first) and not _ECHO.search(rest)):
        fix = "write the answer, or remove the row"
        detail = f"the answer is the question: {quoted(answer.content)}"
        return Drop("answer_repeats_question", detail, fix, answer.message.path)
    return row


def _is_full_width(text: Text) -> bool:
    """Whether most of the text is full-width letters and signs."""
    return text.shape.count(b"f") * 2 > len(text.shape)


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
    """Drop an answer that only says what is asked: `You want to know how to cook rice.`, `How to cook rice.`"""
    seen = view(row)
    asked, answer = seen.question, seen.answer
    if asked is None or answer is None or len(answer.data) > 2 * len(asked.data) + 150:
        return row
    if len(answer.data) > max(1000, len(asked.data) + 150) or seen.has_tools:
        return row
    if len(asked.content) > 600 and len(answer.content) * 5 < len(asked.content) * 3:
        return row  # a short answer in the words of a passage
    is_as_long = len(asked.data) <= 2 * len(answer.data) and len(answer.data) <= len(asked.data) + 24
    if (_may_take_up(answer) and _only_takes_up(asked.content, answer, rule)) or (
        is_as_long and (not answer.num_han or answer.content[:4] in asked.content) and _is_the_stem(asked, answer)
    ):
        detail = f"it only says what is asked: {quoted(answer.content)}"
        fix = "write an answer, or raise answer_restates_question.max_new_share"
        return Drop("answer_restates_question", detail, fix, answer.message.path)
    return row


def _may_take_up(answer: Text) -> bool:
    """A quick look: how such answers begin, or what they say at the end."""
    content = answer.content
    if answer.num_han > answer.num_latin:
        if "题" in content[-24:]:
            return True
        begins = content[:16].lstrip(_QUOTES)
        if begins[:1] in _LEADING:
            return True
        return begins[:1] in _LEADING_WITH and ("题" in begins or "问" in begins or "关" in begins or "换" in begins)
    low = answer.low
    return _holds(low if len(low) < 240 else low[:120] + low[-120:], _SPEAKING_OF_QUESTIONS)


_QUOTES = " \t\r\n“\"'‘「《"
_LEADING = frozenset("好嗯明我收没当您你用提题问感谢让")
_LEADING_WITH = frozenset("这该此本多先换也")
_SPEAKING_OF_QUESTIONS = (
    b"ask",
    b"question",
    b"you ",
    b"task",
    b"request",
    b"user",
    b"prompt",
    b"query",
    b"restat",
    b"words",
)


def _only_takes_up(asked: str, text: Text, rule: AnswerRestatesQuestion) -> bool:
    """Whether the answer speaks of the question, and but for that has hardly a word of its own."""
    answer = text.content
    pairs = ((_LEAD_ZH, _REMARK_ZH), (_LEAD, _REMARK)) if text.num_han else ((_LEAD, _REMARK),)
    start, num_leads, num_remarks = 0, 0, 0
    for lead, remark in pairs:
        while num_leads < 4 and (found := lead.match(answer, start)):
            start, num_leads = found.end(), num_leads + 1
        num_remarks += remark.search(answer[-60:]) is not None
    if not num_leads and not num_remarks:
        return False
    said = answer[start:]
    for _, remark in pairs:
        said = remark.sub(" ", said)
    new, num = _new_grams(said, asked)
    if new > min(rule.max_new_share * num, _MOST_NEW) or (not num_leads and num < 2):
        return False
    return not _YES_OR_NO.search(answer) or _YES_OR_NO.search(asked) is not None


def _holds(text: bytes, needles: tuple[bytes, ...]) -> bool:
    """Whether one of the needles stands there: far quicker than a regular expression with alternatives."""
    for needle in needles:  # noqa: SIM110 - any() over a generator takes twice as long
        if needle in text:
            return True
    return False


_LEAD = re.compile(
    r"[\s,.:!，。：！“\"「]*"
    r"(?:(?:so|well|okay|ok|sure|i see|i understand|got it|let me see|certainly|of course)[,.!]? (?:that )?)?(?:"
    r"(?:the user|you)(?:'re| are|'ve| have| just|'d| would)?"
    r"(?: currently| just| now)?(?: been)? (?:asking|asked|asks?|wants?|wish(?:es)?|wondering|wonders?|like|needs?)"
    r"(?: me| us)?(?: to do this| to know| to learn| to understand| to find out)?(?: about| for| whether| if| that| to)?"
    r"(?: the following| this)?|"
    r"what (?:you|the user) (?:wants?|would like|wish|asks?|asked|needs?)(?: me)?(?: to (?:know|learn|ask|do))?(?: about)?"
    r"(?: is)?(?: this| the following)?|"
    r"(?:the|your|this|my) (?:question|request|prompt|query|task|instruction)(?: here| you asked| you have)?"
    r"(?: is asking| asks| asked| is| was| concerns| wants to know| here is| reads| says)?(?: about| for| whether| if| to)?"
    r"(?: the following| this)?|"
    r"(?:thanks|thank you)(?: very much| so much| a lot)? for (?:your|the|this|asking)"
    r"(?: (?:question|query|request|message|enquiry|inquiry))?(?: about| on| regarding| concerning)?|"
    r"(?:let me|let us|let's|i will|i'll|to|allow me to) (?:restate|rephrase|repeat|paraphrase|reformulate)"
    r"(?: your| the| this)?(?: question| request| prompt)?|"
    r"(?:if i understand|as i understand)(?: it| you| your question)?(?: correctly| right| well)?|in other words|"
    r"(?:i|we)(?: am|'m| are|'re| have been|'ve been| was| were) (?:being )?(?:asked|told|requested)(?: to| about| for)?|"
    r"this is (?:a|an|the) (?:\w+ )?(?:question|request|query)(?: about| on| regarding| concerning| of)?)",
    re.I,
)
_LEAD_ZH = re.compile(
    r"[\s,.:!，。：！“\"「]*"
    r"(?:好的|好|嗯|明白了|我明白了?|我了解了|收到|没问题|当然)?[，,。！! ]{0,2}(?:"
    r"(?:您|你|用户|提问者)(?:现在|刚才|刚刚)?(?:是|正|正在|在)?(?:所)?(?:想要?|需要|希望|要|让|请)?(?:我|我们)?"
    r"(?:提问|询问|咨询|问|知道|了解|回答|解答)(?:到|我|的)?"
    r"(?:问题|内容|事情)?(?:是|就是|为|关于)?|"
    r"(?:您|你|用户|这个|该|此|本)的?(?:问题|题目|提问|疑问)(?:我|我们)?(?:已经?)?(?:是|就是|问的是|在问|询问|要求|关于|为|收到|记下|了解)?"
    r"了?(?:关于)?|(?:您|你|用户)(?:希望|想|想要|要|要求|需要|请|让|想让)我们?|"
    r"(?:这道|本|该|此)?题目?(?:要求|问的是|是|问)|(?:这个)?问题(?:是|问的是|要求)|"
    r"(?:感谢|谢谢|多谢)(?:您|你)?的?(?:提问|咨询|来信|问题|关注|询问|信任)|"
    r"(?:让我|我来|让我们|我先|先)(?:先)?(?:复述|重复|重述|看看|梳理)(?:一下|一遍)?(?:您|你)?的?(?:问题|题目)?|换句话说|也就是说|"
    r"这是(?:一个|一道)?(?:关于|有关)|(?:关于|针对)(?=.{2,200}?(?:这个|这一|该|此)(?:问题|话题|疑问).{0,3}$))"
)
_REMARK = re.compile(
    r"(?:that(?:'s| is| was) |this is |it is |what )(?:an?|the|your|my) (?:(?:very|really|truly|most) )?"
    r"(?:(?:good|great|interesting|important|excellent|common|fair|frequent|difficult|tough|big) )?"
    r"(?:question|request|task|query|topic)(?: (?:that )?(?:many|most|a lot of|some) people (?:ask|have|wonder about))?|"
    r"thanks? (?:you )?for (?:asking|your (?:question|request))|"
    r"that(?:'s| is) what (?:you|the user) (?:asked?|wants?)(?: me)?(?: to do| for| about| to know)?|"
    r"(?:many|a lot of|most) people (?:ask|wonder about|are interested in) (?:this|that)",
    re.I,
)
_REMARK_ZH = re.compile(
    r"[，,]?(?:这|那|它)(?:确实)?(?:是|就是)(?:一|1)?(?:个|道)?(?:(?:很|非常|十分|比较)?(?:好|重要|常见|有趣|有意思|复杂|经典|普遍|值得.{2,4}|"
    r"(?:很)?多人.{0,6}|大家.{0,6})的?)*(?:问题|话题|疑问|题目)|"
    r"(?:这个|该|此)(?:问题|话题)(?:很|非常)?(?:受|值得|需要)?(?:好|重要|关注|思考|探讨|讨论)?|的?(?:问题|话题|疑问|内容)|"
    r"(?:谢谢|感谢)(?:您|你)?的?提问|(?:下面|接下来|现在)?(?:由?我|让我|让我们)来?(?:为您|为你|给您)?(?:解答|回答|看看|分析)(?:一下)?|"
    r"希望(?:能|可以)?对?(?:您|你)?有?所?帮助"
)
_YES_OR_NO = re.compile(
    r"\b(?:yes|no|true|false)\b|是的|(?<!是)不是|(?<!不)可以|(?<!能)不能|(?<!会)不会|没有|正确|错误|对的", re.I
)


def _is_the_stem(asked: Text, answer: Text) -> bool:
    """Whether the answer is the question without its question word: `How can I sleep?`, `How to sleep.`"""
    if answer.num_han:
        content = answer.content.strip()
        fourth = len(content) // 4
        samples = (content[:4], content[fourth : fourth + 4], content[2 * fourth : 2 * fourth + 4])
        if not all(sample in asked.content for sample in samples):
            return False
        if not _ASKS_ZH.search(asked.content):
            return False
        stem, of_answer = _ASKS_ZH.sub("", asked.content), _ASKS_ZH.sub("", answer.content)
    else:
        found = _ASKS_EN.match(asked.content)
        if not found:
            return False
        stem, of_answer = asked.content[found.end() :], _ASKS_EN.sub("", answer.content, count=1)
    stem = bare(stem)
    return len(stem) > 4 and stem == bare(of_answer)


_ASKS_EN = re.compile(
    r"\s*(?:please |can you |could you |tell me )?"
    r"(?:what(?:'s| is| are| was| were)|how (?:can|do|does|did|would|could|should|to)(?: (?:i|you|we|one|people)\b)?|"
    r"why (?:is|are|do|does|did)|where (?:is|are|do|does)|when (?:is|are|do|does|did)|who (?:is|are|was|were))\b",
    re.I,
)
_ASKS_ZH = re.compile(
    r"请问|(?:该|应该|应当|应|要|需要|可以|能)?(?:如何|怎么|怎样|怎麼)(?:才?能够?|才?可以)?(?:办|辦|治疗|治療|处理|做|回事|样)?(?:才好|好|呢)?|"
    r"(?:是|有|为|叫)?(?:什么|哪些|哪种|哪个|多少|啥|什麼)(?:呢|啊)?|呢"
)
# An answer with more new words says something, however long the question is that it takes up.
_MOST_NEW = 8


_STOP = frozenset(
    phrases("the|a|an|of|to|in|is|are|was|be|do|does|did|it|that|this|you|i|me|my|your|about|and|or|for|on")
)


def _new_grams(said: str, asked: str) -> tuple[int, int]:
    """(how many of the Han bigrams and words said were not asked, how many there are)."""
    known = set(_grams(asked))
    grams = _grams(said)
    return sum(gram not in known for gram in grams), len(grams)


def _grams(text: str) -> list[str]:
    text = text.lower()
    grams = [run[i : i + 2] for run in HAN_RUN.findall(text) for i in range(len(run) - 1)]
    return grams + [word for word in WORD.findall(HAN_RUN.sub(" ", text)) if word not in _STOP]
