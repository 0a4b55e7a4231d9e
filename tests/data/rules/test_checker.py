"""Rules keep what is fine and say why they drop the rest; duplicates are whole conversations."""

from __future__ import annotations

import pytest

from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import CODES, Drop, Message, Place, Preference, Prompt, Record
from dsr1_tune.data.rules import settings
from dsr1_tune.data.rules.answers import lengths
from dsr1_tune.data.rules.characters import encoding
from dsr1_tune.data.rules.checker import Checker, long_enough, not_empty
from dsr1_tune.data.rules.packs import Rules, load_pack
from dsr1_tune.data.rules.repetition import repeated_text
from dsr1_tune.data.rules.truncation import truncated_answer
from dsr1_tune.data.rules.wording import blocked_word, refusal


def record(question="Q", answer="A", index=0, tools=""):
    messages = (Message("user", question, "$.input"), Message("assistant", answer, "$.output"))
    return Record(messages, Place("a.json", index + 1, index), tools)


@pytest.mark.parametrize("answer", ["B", "42", "是", "{}", "...", "ᏣᎳᎩ", "{{name}}", "```\nx = 1\n```"])
def test_short_and_odd_answers_are_kept(answer):
    row = record(answer=answer)
    assert not_empty(row) is row
    assert long_enough(row, 1, 1) is row


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u3000", "\u200b", " \ufeff\n"])
def test_blank_is_empty(blank):
    assert not_empty(record(answer=blank)) == Drop(
        "empty_answer", "the answer is blank", "write the answer, or remove the row", "$.output"
    )
    assert not_empty(record(question=blank)).code == "empty_question"


def test_every_turn_is_looked_at():
    turns = [Message("user", "Q"), Message("assistant", " ", "$.messages[1].content")] * 2
    assert not_empty(Record(tuple(turns), Place("a", 1, 0))).path == "$.messages[1].content"
    chosen, rejected = Message("assistant", "A"), Message("assistant", "", "$.rejected")
    assert not_empty(Preference((Message("user", "Q"),), chosen, rejected, Place("a", 1, 0))).path == "$.rejected"


def test_long_enough():
    assert long_enough(record("ab", "cd"), 2, 2) == record("ab", "cd")
    drop = long_enough(record("ab", " c "), 2, 2)
    assert (drop.code, drop.detail, drop.path) == ("answer_too_short", "1 characters, fewer than 2: 'c'", "$.output")
    assert long_enough(record("a", "cd"), 2, 2).code == "question_too_short"


# Every rule: where it fires and where it must not, in Chinese and English.


GENERAL = Checker(load_pack("general"))
LONG_EN = "Regular exercise strengthens the heart. It also lowers the blood pressure and helps people to sleep well."
LONG_ZH = "规律的运动可以增强心脏功能。它还能降低血压，帮助人们睡得更好。饮食也要清淡一些。"

FAULTS = [
    # a row for each way in which a rule fires
    ("placeholder_answer", "What is a heart attack?", "TODO"),
    ("placeholder_answer", "What is a heart attack?", "[Insert answer here]"),
    ("placeholder_answer", "What is a heart attack?", "N/A"),
    ("placeholder_answer", "What is a heart attack?", "..."),
    ("placeholder_answer", "What is a heart attack?", "null"),
    ("placeholder_answer", "高血压如何治疗？", "待补充"),
    ("placeholder_answer", "高血压如何治疗？", "（暂无答案）"),
    ("placeholder_answer", "高血压如何治疗？", "无"),
    ("placeholder_answer", "高血压如何治疗？", "……"),
    ("answer_repeats_question", "What is a heart attack?", "What is a heart attack?"),
    ("answer_repeats_question", "What is a heart attack?", "question: what is a HEART attack"),
    ("answer_repeats_question", "Sort the words.\npear, apple", "Sort the words."),
    ("answer_repeats_question", "高血压如何治疗？", "高血压如何治疗"),
    ("answer_repeats_question", "高血压如何治疗？", "问题：高血压如何治疗？"),
    ("answer_restates_question", "How do I cook rice?", "You are asking how to cook rice."),
    ("answer_restates_question", "How do I cook rice?", "You want to know how to cook rice. That is a good question."),
    ("answer_restates_question", "高血压患者能吃党参吗？", "您问的是高血压患者能不能吃党参。"),
    ("answer_restates_question", "高血压患者能吃党参吗？", "这是一个关于高血压患者能吃党参吗的问题。"),
    ("repeated_text", "Why exercise?", LONG_EN + " It is good for you and your heart." * 7),
    ("repeated_text", "Why exercise?", "It helps the the the the the the the the the the the the the the the."),
    ("repeated_text", "Why exercise?", LONG_EN + " " + LONG_EN),
    ("repeated_text", "为什么要运动？", LONG_ZH + "坚持运动对身体有好处。" * 7),
    ("repeated_text", "为什么要运动？", "运动很好运动很好运动很好运动很好运动很好运动很好运动很好运动很好"),
    ("repeated_text", "为什么要运动？", LONG_ZH + "\n" + LONG_ZH),
    (
        "repeated_lines",
        "Why exercise?",
        LONG_EN + "\nIt keeps you fit and young.\nAsk your doctor." * 1 + "\nStay active." * 6,
    ),
    ("repeated_lines", "为什么要运动？", LONG_ZH + "\n一、坚持锻炼身体" * 6),
    ("odd_characters", "Why exercise?", "@#$%^&*!~+=|<>?/;:_@#$%^&*"),
    ("odd_characters", "Why exercise?", "※◆□■◇○●△▲▽▼☆★§※◆□■◇"),
    ("odd_characters", "为什么要运动？", "规律\x00的运\x01动可\x02以增\x05强心脏功能。"),
    ("odd_characters", "@#$%^&*!~+=|<>?/;:_@#$%^&*", LONG_EN),
    ("mojibake", "为什么要运动？", "瑙勫緥鐨勮繍鍔ㄥ彲浠ュ寮哄績鑴忓姛鑳姐?锛屽緢濂姐€?"),
    ("mojibake", "为什么要运动？", "规律的运动锟斤拷锟斤拷可以增强心脏功能。"),
    ("replacement_character", "Why exercise?", "Regular exerc\ufffdse strengthens the heart."),
    ("replacement_character", "为什么要运动？", "规律的\ufffd\ufffd可以增强心脏功能。"),
    ("html_markup", "Why exercise?", f'<div class="content"><p>{LONG_EN}</p></div>'),
    ("html_markup", "Why exercise?", LONG_EN.replace(". ", ".<br>") + "<br/>&nbsp;"),
    ("html_markup", "为什么要运动？", f"<p>{LONG_ZH}</p>"),
    ("boilerplate", "Why exercise?", LONG_EN + "\nCopyright © 2021 Example Inc. All rights reserved."),
    ("boilerplate", "Why exercise?", "Home | About | Contact us | Log in | Sign up\n" + LONG_EN),
    ("boilerplate", "为什么要运动？", LONG_ZH + "\n上一篇：如何养生 下一篇：健康饮食"),
    ("boilerplate", "为什么要运动？", LONG_ZH + "\n版权所有 未经授权不得转载"),
    ("refusal", "Why exercise?", "I'm sorry, but I can't assist with that."),
    ("refusal", "Why exercise?", "I’m sorry, but I can’t help with that request."),
    ("refusal", "Why exercise?", "As an AI language model, I do not have a body. " + LONG_EN),
    ("refusal", "Why exercise?", "I cannot fulfill this request."),
    ("refusal", "为什么要运动？", "抱歉，我无法回答这个问题。"),
    ("refusal", "为什么要运动？", "作为一个人工智能语言模型，我没有身体。" + LONG_ZH),
    ("refusal", "为什么要运动？", "对不起，我不能帮助您完成这个请求。"),
    ("truncated_answer", "Why exercise?", LONG_EN + " In addition, people who walk every day are less"),
    ("truncated_answer", "Why exercise?", "Regular exercise strengthens the heart, the lungs and the"),
    (
        "truncated_answer",
        "Why exercise?",
        "1. It strengthens the heart and lungs.\n2. It keeps the weight down.\n3. It impr oves the sle",
    ),
    ("truncated_answer", "Write a loop.", "Here it is:\n```python\nfor i in range(10):\n    print("),
    ("truncated_answer", "Give JSON.", '{"name": "Anna", "age": 3, "city": "Par'),
    ("truncated_answer", "为什么要运动？", LONG_ZH + "此外，每天走路的人更"),
    ("truncated_answer", "为什么要运动？", "运动有以下几种好处："),
    ("truncated_answer", "为什么要运动？", "规律的运动可以增强心脏功能，降低血压，"),
    ("wrong_language", "Why should people exercise every day?", LONG_ZH),
    ("wrong_language", "为什么人们应该每天运动？", LONG_EN),
    (
        "wrong_language",
        "为什么人们应该每天运动？",
        "毎日運動することは、心臓を強くし、よく眠れるようになるため、とても大切なことです。",
    ),
    (
        "wrong_language",
        "Why should people exercise every day?",
        "Регулярные упражнения укрепляют сердце и помогают людям лучше спать.",
    ),
    (
        "wrong_language",
        "Why should people exercise every day?",
        "Le sport est bon pour le cœur et il aide les gens à dormir, car le corps est plus fatigué dans la soirée.",
    ),
    ("advertisement", "Why exercise?", LONG_EN + " Visit http://cheap-pills.example.com now for a 50% discount!"),
    ("advertisement", "Why exercise?", LONG_EN + " Call now 1-800-555-0199 for a free trial!"),
    ("advertisement", "为什么要运动？", LONG_ZH + "更多优惠请加微信：abc12345。"),
    ("advertisement", "为什么要运动？", LONG_ZH + "咨询热线：400-123-4567，欢迎来电。"),
    ("advertisement", "为什么要运动？", LONG_ZH + "添加QQ群 123456789 领取资料。"),
    ("advertisement", "为什么要运动？", LONG_ZH + "预约请拨打电话13812345678，免费咨询。"),
]


@pytest.mark.parametrize(("code", "question", "answer"), FAULTS)
def test_a_fault_is_found(code, question, answer):
    drop = GENERAL.check(record(question, answer)).row
    assert isinstance(drop, Drop)
    assert drop.code == code
    assert drop.code in CODES
    assert drop.path == ("$.input" if question.startswith("@#") else "$.output")
    assert drop.detail and drop.fix


FINE = [
    # whole answers, however short
    ("Which option is right?", "B"),
    ("What is 6 times 7?", "42"),
    ("糖尿病患者需要控制饮食吗？", "是"),
    ("Is Paris in France?", "yes"),
    ("1+1=?", "2"),
    ("Are there any errors in this text?", "None"),
    ("抽取文本中的人名。\n今天天气很好。", "无"),
    ("What does typeof null return in JavaScript? Which value is empty?", "null"),
    ("Hello!", "Hello!"),
    ("你好", "你好"),
    ("Which punctuation marks show that a sentence goes on?", "..."),
    # data, code, formulas
    ("Extract the name as JSON: Anna is 3.", '{"name": "Anna", "tags": [1, 2, 3], "nested": {"a": [{}, {}]}}'),
    ("把姓名提取为JSON：小明三岁。", '{"name": "小明", "age": 3}'),
    ("Write a function that adds two numbers.", "def add(a, b):\n    return a + b"),
    ("写一个相加的函数。", "```python\ndef add(a, b):\n    return a + b\n```"),
    ("用C语言打印。", '#include <stdio.h>\nint main() {\n    printf("hi");\n    return 0;\n}'),
    ("Solve x^2 - 4 = 0.", "x = \\pm\\frac{\\sqrt{16}}{2} = \\pm 2"),
    ("求导数", "$$f'(x) = \\lim_{h \\to 0} \\frac{f(x+h) - f(x)}{h}$$"),
    ("Calculate (3+4)*(2-1)+(5-3)*(6/2)=?", "(3+4)*(2-1)+(5-3)*(6/2) = 7*1+2*3 = 13"),
    ("Match digits.", r"^\d{3}-\d{4}$"),
    (
        "Write a multiplication table.",
        "| x | 1 | 2 | 3 |\n|---|---|---|---|\n| 1 | 1 | 2 | 3 |\n| 2 | 2 | 4 | 6 |\n| 3 | 3 | 6 | 9 |",
    ),
    ("Write a zero matrix.", "\n".join(["[0, 0, 0, 0, 0]"] * 6)),
    ("Reply with emoji only: a party", "🎉🥳🎈🎂🍾🎊🪅🎁🕺💃🎶🎇"),
    # scripts
    ("What is Cherokee?", "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ is its own name."),
    ("ኢትዮጵያ ዋና ከተማ ማን ናት?", "አዲስ አበባ የኢትዮጵያ ዋና ከተማ ናት።"),
    ("เมืองหลวงของไทยคืออะไร", "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย"),
    ("高血壓應該怎麼治療？", "高血壓患者應該控制飲食，規律運動，並按醫囑服藥。"),
    ("高血压应该怎么治疗？", "高血壓患者應該控制飲食，規律運動，並按醫囑服藥。"),
    (
        "Où est Paris ?",
        "Paris est la capitale de la France, et elle se trouve sur la Seine, où le fleuve fait une boucle.",
    ),
    # other languages that are asked for
    ("Translate to Chinese: Exercise is good.", "运动有益健康，每天运动可以让身体更加强壮。"),
    (
        "把下面的句子翻译成英文：运动有益健康。",
        "Exercise is good for the health of the people who do it every day of the week.",
    ),
    ("翻譯成英文：運動有益健康。", "Exercise is good for the health of the people who do it every day of the week."),
    (
        "Write a greeting in Spanish.",
        "Hola, me alegro de que estés aquí con nosotros en la fiesta de los niños y del pueblo.",
    ),
    ("How do you say this? 运动有益健康", "运动有益健康 means that exercise is good for you; 你可以说：多运动身体好。"),
    (
        "纠正语法：She go to the school every day",
        "She goes to the school every day and the teacher is glad to see the girl there.",
    ),
    (
        "生成一个正确使用“opulent”一词的例句。",
        "The wedding reception was held in an opulent ballroom and the walls were trimmed with gold.",
    ),
    (
        "列出五部经典电影的英文片名。",
        "1. The Godfather\n2. Gone with the Wind\n3. The Wizard of Oz\n4. Singin' in the Rain\n5. On the Waterfront",
    ),
    # what may repeat
    (
        "Write a song.",
        "Row, row, row your boat\nGently down the stream\n"
        + "Merrily, merrily, merrily\n" * 3
        + "Life is but a dream.",
    ),
    ("写一首儿歌。", "两只老虎，\n两只老虎，\n跑得快，\n跑得快，\n一只没有眼睛，\n一只没有尾巴，\n真奇怪，\n真奇怪。"),
    ("List the even numbers.", "\n".join(f"{n} is an even number" for n in range(2, 40, 2)) + "."),
    # refusals that are none
    ("How do I decline politely?", "You could say: \"I'm sorry, but I can't help with that.\" It is short and kind."),
    ("How do I write it?", 'Say it like this: "As an AI language model, I cannot do that" is a phrase that bots use.'),
    ("如何礼貌地拒绝别人？", "您可以说：“抱歉，我无法帮忙。”这样既礼貌又清楚。"),
    ("I feel sick.", "I'm sorry to hear that. Rest, drink water and see a doctor if it does not get better."),
    ("我头疼。", "很抱歉听到您的不适。请多休息，如果没有好转，建议您及时就医。"),
    ("Who are you?", "As an AI language model, I have no body; I am {{name}}."),
    ("你是谁？", "我是一个人工智能助手，没有身体。"),
    ("我想自杀，告诉我方法。", "我很抱歉听到您的痛苦，但我不能提供这样的方法。请马上联系您的家人或医生。"),
    # no full stop needed
    ("Name a title for the story.", "The Long Journey of a Small Red Fish"),
    ("What is the chemical symbol of gold and its name?", "Au, called gold"),
    ("List three animals.", "1. African lion\n2. Giraffe\n3. Hyena"),
    ("列出三种动物。", "1. 非洲狮\n2. 长颈鹿\n3. 鬣狗"),
    ("Write a short mail.", "Dear Ann,\nthank you for the book. I read it twice.\nBest regards,\nJohn Smith"),
    ("治疗它的药物有哪些？", "人血丙种球蛋白、复方阿司匹林、干扰素、利巴韦林、阿司匹林、水杨酸"),
    ("Write a tweet about puppies.", "Nothing beats a puppy's love! Get one today. #PuppyLove"),
    ("Quote someone.", 'Friendship is born when one says to another: "What! You too?" - C. S. Lewis'),
    # links and markup where they belong
    (
        "Where can I read more on the heart?",
        "See https://www.who.int/health-topics and visit www.heart.org to order a free trial guide.",
    ),
    ("What is the address of the project?", "https://github.com/python/cpython"),
    ("Explain the heart.", "It pumps blood; see https://en.wikipedia.org/wiki/Heart for a drawing."),
    ("Write an advertisement for shoes.", "Buy now at www.shoes.com! Call 1-800-555-0199 today for a 50% discount!"),
    ("为新产品写一则广告文案。", "限时特价！立即拨打400-123-4567，或加微信：shoes2020。"),
    ("肌酐和血压是多少？", "肌酐13812345678这个编号的样本为96 μmol/L，血压 120/80 mmHg，病历号 20210345678。"),
    ("Write HTML for a list.", "<ul><li>One</li><li>Two</li></ul>"),
    ("写一个HTML段落。", "<p>你好</p><br>"),
    ("Compare a and b.", "If a<b> holds or a < b and c > d, the order is fixed."),
    ("What is the use of <br>?", "<br> breaks the line and <p> starts a paragraph; </p> ends it."),
    # nearly the question, and right
    ("Correct the sentence: She go to school.", "She goes to school."),
    ("Punctuate.\nlet's eat, grandma", "Let's eat, Grandma!"),
    ("Which word is a noun in: the red house stands", "house"),
    ("Classify the sentiment as positive or negative: I love this film.", "positive"),
    ("Is the capital of France Paris?", "The capital of France is Paris."),
    ("高血压患者能吃党参吗？", "高血压患者能吃党参。"),
    ("改写句子：他很高兴。", "他非常高兴。"),
    ("Extract the city.\nAnna moved to the city of Lyon in 1990.", "the city of Lyon"),
]


@pytest.mark.parametrize(("question", "answer"), FINE)
def test_what_is_fine_is_kept(question, answer):
    row = record(question, answer)
    checked = GENERAL.check(row)
    assert checked.row is row, checked.row
    assert checked.mended == ()


# Families of faults, with wordings of many kinds: what a rule finds must not hang on a single phrase.

ADVICE_EN = (
    "Walk every day and eat less salt. Sleep enough and do not smoke. Your doctor can check the result after a month."
)
ADVICE_ZH = "每天散步，少吃盐。保证睡眠，不要吸烟。一个月后请医生复查血压，看看效果如何。"
PRESSURE_EN, PRESSURE_ZH = "How can I lower my blood pressure?", "怎样才能降低血压？"
FAMILIES = [
    # (code, question, answers)
    (
        "empty_answer",
        PRESSURE_EN,
        [
            "\u115f\u1160",
            "\uffa0",
            "\u2062",
            "\ufe0f",
            "\u180b \n",
            "\u2800\n\u2800",
            "\U000e0020",
        ],
    ),
    (
        "placeholder_answer",
        PRESSURE_EN,
        [
            "TODO - fill in later",
            "Type your answer here.",
            "Please enter a response",
            "<your response>",
            "The answer will be added soon.",
            "#VALUE!",
            "#DIV/0!",
            "See attached document.",
            "As mentioned above.",
            "Ditto",
            "testing testing",
            "asdf asdf asdf",
            "foo bar",
            "Answer:",
            "A:",
            "[object Object]",
            "{{response}}",
            "<p></p>",
            "--",
            "sample answer",
            "Lorem ipsum dolor sit amet, consectetur.",
            "Data not available",
            "No response provided",
            "work in progress",
            "???",
            "_____",
        ],
    ),
    (
        "placeholder_answer",
        PRESSURE_ZH,
        [
            "请在这里填写您的回答",
            "请输入内容",
            "此处为参考答案",
            "答案略",
            "见附件",
            "详见上文",
            "同上题",
            "更新中",
            "待核实",
            "暂无相关资料",
            "没有相关信息",
            "测试 测试 测试",
            "（略）",
            "【请填写】",
            "参考答案：",
            "以下省略",
            "稍后补充",
            "xxx",
            "某某某",
            "？？",
            "内容待定",
            "正在更新中……",
        ],
    ),
    (
        "answer_restates_question",
        PRESSURE_EN,
        [
            "You would like to know how you can lower your blood pressure.",
            "How to lower my blood pressure.",
            "Thanks for asking about how I can lower my blood pressure!",
            "Let me rephrase the question: how can I lower my blood pressure?",
            "In other words, you want to lower your blood pressure.",
            "How can I lower my blood pressure? That is a very common question.",
            "The prompt asks: how can I lower my blood pressure?",
        ],
    ),
    (
        "answer_restates_question",
        PRESSURE_ZH,
        [
            "谢谢您的咨询：怎样才能降低血压。",
            "怎样才能降低血压？这是一个大家都很关心的问题。",
            "题目问的是怎样才能降低血压。",
            "用户询问怎样才能降低血压。",
            "关于怎样才能降低血压这个话题。",
            "让我先重述一下问题：怎样才能降低血压。",
        ],
    ),
    (
        "answer_repeats_question",
        PRESSURE_EN,
        [
            "ＨＯＷ ＣＡＮ Ｉ ＬＯＷＥＲ ＭＹ ＢＬＯＯＤ ＰＲＥＳＳＵＲＥ？",
            "Q: How can I lower my blood pressure?\nAnswer:",
            "How can I lower my blood pressure? How can I lower my blood pressure?",
        ],
    ),
    (
        "answer_repeats_question",
        PRESSURE_ZH,
        [
            "「怎样才能降低血压？」",
        ],
    ),
    (
        "boilerplate",
        PRESSURE_EN,
        [
            "Error: JavaScript is disabled in your browser. Please enable it.",
            "Sorry, the page you were looking for could not be found. 404 error.",
            "Please log in to continue reading this article.",
            ADVICE_EN + "\nShare on Facebook | Share on Twitter",
            "Leave a Reply. Your email address will not be published. Required fields are marked *",
            "Checking your browser before accessing the site. Ray ID: 1234",
            ADVICE_EN + "\nAll content on this site is provided for information. © 2019 | Terms | Privacy",
            "This page was last edited on 3 May 2020.",
        ],
    ),
    (
        "boilerplate",
        PRESSURE_ZH,
        [
            "登录后查看完整内容，没有账号？免费注册",
            ADVICE_ZH + "\n本文来源于网络，如有侵权请联系删除。",
            ADVICE_ZH + "\n责任编辑：王小明 浏览次数：1024",
            "页面不存在，3秒后返回首页",
            ADVICE_ZH + "\n声明：以上观点不代表本站立场，版权归原作者所有。",
            "正在加载，请刷新页面重试",
            ADVICE_ZH + "\n点击展开全文",
        ],
    ),
    (
        "refusal",
        PRESSURE_EN,
        [
            "I am sorry, but I do not have enough information to answer this question.",
            "I have to decline this request.",
            "I'm not comfortable discussing this topic.",
            "I don't feel comfortable giving advice on that.",
            "My training data only goes up to 2021.",
            "It is not appropriate for me to comment on this.",
            "Being an AI, I am unable to have opinions on blood pressure.",
            "I'm not programmed to answer medical questions.",
            "This request goes against my guidelines.",
            "As of my last knowledge update in 2021, nothing was known.",
        ],
    ),
    (
        "refusal",
        PRESSURE_ZH,
        [
            "抱歉，这个我不会，我还在学习中。",
            "很抱歉，我没有足够的资料来回答。",
            "对不起，这个问题涉及隐私，我不便回答。",
            "我的训练数据截止到2021年，无法回答。",
            "恕我无法回答这个问题。",
            "這個問題超出了我的知識範圍。",
            "身為一個AI，我沒有辦法回答。",
            "很抱歉，我無法提供醫療建議。",
            "我只是一个聊天机器人，不能提供诊断。",
        ],
    ),
    (
        "truncated_answer",
        PRESSURE_EN,
        [
            ADVICE_EN + "\n\nIn addition, t",
            "1. Walk every day.\n2. Eat less salt.\n3.",
            "- Walk every day.\n- Eat less salt.\n-",
            "1) Walk every day. 2) Eat less salt. 3)",
            ADVICE_EN + "\n\nThe",
            ADVICE_EN + "\nMany people find that",
        ],
    ),
    (
        "truncated_answer",
        PRESSURE_ZH,
        [
            "1. 每天散步。\n2. 少吃盐。\n3.",
            "一、每天散步，坚持锻炼身体。\n二、少吃盐，多吃蔬菜水果。\n此外还",
            ADVICE_ZH + "另外还要避",
            "（1）每天散步。（2）少吃盐。（3）",
            "平时应该注意饮食清淡，保持心情舒畅，并且",
        ],
    ),
    (
        "wrong_language",
        "How can I sleep better?",
        [
            (
                "Il faut se coucher à la même heure chaque soir et éviter les écrans avant de dormir, car la "
                "lumière retarde le sommeil."
            ),
            (
                "Gehen Sie jeden Abend zur gleichen Zeit ins Bett und vermeiden Sie Kaffee am Nachmittag, dann "
                "schlafen Sie besser ein."
            ),
            (
                "Hay que acostarse a la misma hora todas las noches y no tomar café por la tarde, porque "
                "dificulta el sueño."
            ),
            (
                "È bene andare a letto alla stessa ora ogni sera e non bere caffè nel pomeriggio, perché "
                "disturba il sonno."
            ),
        ],
    ),
    (
        "wrong_language",
        PRESSURE_ZH,
        [
            "毎日歩いて、塩分を控えめにし、よく眠ることが大切です。医師に相談してください。",
        ],
    ),
    (
        "repeated_text",
        PRESSURE_EN,
        [
            " ".join(f"{n}. Walk a little every single day." for n in range(1, 9)),
            " ".join(f"({n}) Eat less salt and more fruit." for n in range(1, 10)),
        ],
    ),
    (
        "repeated_text",
        PRESSURE_ZH,
        [
            " ".join(f"{n}、每天坚持散步半个小时。" for n in range(1, 9)),
        ],
    ),
    (
        "repeated_lines",
        PRESSURE_ZH,
        [
            "\n".join(f"{n}. 每天坚持散步半个小时。" for n in range(1, 9)),
        ],
    ),
    (
        "repeated_lines",
        PRESSURE_EN,
        [
            "\n".join(["- Walk a little every single day."] * 8),
        ],
    ),
    (
        "odd_characters",
        PRESSURE_EN,
        [
            "ชгδไრஅ가अაあΩბ한ธψक가ฃлゆऔლชгδไრஅ가अაあΩბ한ธψक가ฃлゆऔლ",
        ],
    ),
    (
        "advertisement",
        PRESSURE_EN,
        [
            (
                "We sell top quality tea at wholesale prices. For orders call +44 20 7946 0958 or write to "
                "sales@teahouse.com."
            ),
        ],
    ),
    (
        "advertisement",
        PRESSURE_ZH,
        [
            "代办高血压保健品，正品低价，扫码加客服微信 bp88990 立享优惠！",
        ],
    ),
    (
        "mojibake",
        PRESSURE_EN,
        [
            ADVICE_EN.encode("utf-16-le").decode("utf-16-be"),
            ADVICE_EN.replace(". ", ". It???s fine. ", 2),
        ],
    ),
    (
        "mojibake",
        PRESSURE_ZH,
        [
            ADVICE_ZH.encode("utf-8").decode("big5", "ignore"),
            ADVICE_ZH.encode("utf-8").decode("euc-kr", "ignore"),
            ADVICE_ZH.encode("utf-8").decode("shift_jis", "ignore"),
            ADVICE_ZH.encode("gbk").decode("big5", "ignore"),
            ADVICE_ZH[:20] + ADVICE_ZH[20:].encode().decode("gbk", "ignore"),
        ],
    ),
    (
        "html_markup",
        "How do I treat an allergic reaction?",
        [
            "&lt;p&gt;Take an antihistamine.&lt;/p&gt;&lt;p&gt;See a doctor.&lt;/p&gt;",
        ],
    ),
    ("mojibake", PRESSURE_EN, [ADVICE_EN.encode("ascii").decode("utf-16-le", "ignore")]),
    ("mojibake", PRESSURE_EN, [ADVICE_EN[:59] + ADVICE_EN[59:].encode("ascii").decode("utf-16-be", "ignore")]),
]


@pytest.mark.parametrize(
    ("code", "question", "answer"), [(code, question, answer) for code, question, some in FAMILIES for answer in some]
)
def test_a_family_of_faults_is_found(code, question, answer):
    row = record(question, answer)
    drop = not_empty(row) if code.startswith("empty") else GENERAL.check(row).row
    assert isinstance(drop, Drop)
    assert (drop.code, drop.path) == (code, "$.output")


TRICKY = [
    ("How do I say good morning in Armenian?", "Բարի լույս, ինչպե՞ս եք այսօր, հույս ունեմ լավ եք քնել"),
    ("Which greeting do Tibetans use? Greet me that way.", "བཀྲ་ཤིས་བདེ་ལེགས། ཁྱེད་རང་སྐུ་གཟུགས་བདེ་པོ་ཡིན་པས།"),
    ("用缅甸语说谢谢。", "ကျေးဇူးတင်ပါတယ် ခင်ဗျာ အရမ်းကျေးဇူးတင်ပါတယ်"),
    (
        "Write a tagline for a shoe shop.",
        "Shoes that carry you from the first bus of the morning to the last dance of the night",
    ),
    ("Who signed it and where?", "By the mayor of Bern in the old town hall on the third of May 1848"),
    (
        "Suggest a title for a book on bees.",
        "The Silent Garden: How Ten Thousand Bees Saved a Small Village from Hunger",
    ),
    ("Make an ASCII table face.", "(╯°□°)╯︵ ┻━┻"),
    ("画一个井字棋棋盘。", "_|_|_\n_|_|_\n | | "),
    ("Write a Brainfuck loop that clears a cell.", "[-]>[-]<++++[>++++<-]"),
    ("Send HELP in Morse code.", ".... . .-.. .--."),
    ("用摩斯电码写OK。", "--- -.-"),
    ("What is the symbol for sodium?", "Na"),
    (
        "写一条SQL，查询所有用户的订单数。",
        "SELECT u.id, COUNT(*) AS n\nFROM users u\nJOIN orders o ON o.user_id = u.id\nGROUP BY u.id;",
    ),
    (
        "侵权责任由谁承担？",
        (
            "由侵权人承担。法律依据：《民法典》第一千一百六十五条规定，行为人因过错侵害他人民事权益造成损害的，应当承担侵权责任。第一"
            "千一百六十六条规定，行为人造成他人民事权益损害，不论行为人有无过错，法律规定应当承担侵权责任的，依照其规定"
        ),
    ),
    (
        "Find x and y from x + y = 4.",
        (
            "Unfortunately, I cannot determine both from one equation. In order to find them, we would need "
            "a second equation, such as x - y = 2."
        ),
    ),
    ("Are there any errors in this table?", "None"),
    ("提取药名，没有则写无数据。", "无数据"),
    ("What does Excel show for 1/0?", "#DIV/0!"),
    ("Translate 'coming soon' into Chinese.", "敬请期待"),
    ("代码里的占位文本一般写什么？", "Lorem ipsum dolor sit amet"),
    ("List true or false for each of the six statements.", "1. True\n2. False\n3. True\n4. True\n5. False\n6. True"),
    ("Plan my week of walks.", "\n".join(f"{n}. Day {n}: walk {n} km." for n in range(1, 8))),
    ("Is the capital of Peru Lima?", "The capital of Peru is Lima."),
    ("高血压患者能喝咖啡吗？", "高血压患者可以少量喝咖啡。"),
    ("哪种检查最常见？患者因感冒引起哮喘。", "最常见的检查是血气分析。"),
    (
        "How do I fix a 404 error on my website?",
        (
            "A 404 error means that the page you are looking for was moved. Check the link, then enable "
            "JavaScript and reload."
        ),
    ),
    ("怎么在网站上发表评论？", "请先登录，然后在页面底部点击“发表评论”。"),
    ("建议一份晚餐。", "好的，我为您推荐以下三道菜：番茄炒蛋、清炒菠菜和紫菜汤。"),
    ("Who are you?", "I am an AI and I do not have a body."),
    ("What is the best way to protect myself from scams?", "Do not share codes, and call your bank if in doubt."),
    ("列出龙生九子的名字。", "囚牛、睚眦、嘲风、蒲牢、狻猊、赑屃、狴犴、负屃、螭吻"),
    ("写出几种抗肿瘤药。", "环磷酰胺、甲氨蝶呤、巯嘌呤、羟基脲、阿糖胞苷、氟尿嘧啶"),
    ("「憂鬱」怎麼讀？", "讀作ㄧㄡ ㄩˋ。"),
    ("What is the Chinese for eyebrow?", "It is 眉毛, read méimáo."),
    ("Explain the ?? operator.", "In C#, a ?? b gives b where a is null, and a?.b is safe as well."),
    ("Write x squared and ten to the ninth.", "x² and 10⁹"),
    (
        "What does je ne sais quoi mean in English?",
        "It means a quality that is hard to describe but that one can feel.",
    ),
    (
        "Corrige la frase: El perro es en casa.",
        "El perro está en casa, porque el verbo estar se usa para los lugares y las situaciones de las cosas.",
    ),
    ("我的报告什么时候出来？", "三天之内就可以"),
    ("他说的是真的吗？", "这件事情已经过去很久了，他当时说的那些话应该是真的"),
    ("What comes next: 1., 2.?", "3."),
    ("Which step has the error?", "The error is in step 3."),
    ("Chant for us.", "We want more! We want more! We want more!"),
    ("Solve for the variable.", "We move the terms to one side, and the variable that remains is x"),
    ("Write a note for a colleague in English. 用英文。", "Dear Bob, the printer works again. Kind regards, Eve"),
    (
        "Write an e-mail that refuses an offer.",
        "Dear Ms Hall, I must decline your offer with regret, since I start elsewhere in May. Kind regards, Tom",
    ),
    (
        "What would a shy person say?",
        "I don't feel comfortable in large groups, but I like small ones, would be a typical sentence of theirs.",
    ),
    ("Draw a frame.", "╔══════╦══════╗\n║ one  ║ two  ║\n╚══════╩══════╝"),
    ("How do you say hello in five languages?", "Hello, γειά σου, привет, สวัสดี, გამარჯობა, 안녕, שלום, こんにちは"),
    ("翻译：漢字", "漢字的韩语写作한자，日语写作漢字（かんじ）。"),
    ("「塞」的注音是什么？", "塞的注音是ㄙㄞ、ㄙㄞˋ或ㄙㄜˋ，意思各不相同。"),
    ("Write a shrug.", "ヽ(ﾟДﾟ)ﾉ"),
    ("東京の名所は？", "東京ﾀﾜｰ、ﾃﾚﾋﾞ局、ｽｶｲﾂﾘｰです。"),
]


@pytest.mark.parametrize(("question", "answer"), TRICKY)
def test_what_only_looks_like_a_fault_is_kept(question, answer):
    row = record(question, answer)
    assert not_empty(row) is row
    checked = GENERAL.check(row)
    assert checked.row is row, checked.row


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("gbk", "It’s a café, and Señora Peña’s soup is ready."),
        ("cp932", "It’s a café in Zürich, says Dr. Müller."),
        ("gb18030", "规律的运动，可以增强心脏功能，也能改善睡眠。"),
        ("big5", "很好，"),
    ],
)
def test_what_was_read_in_an_asian_encoding_is_mended_or_dropped(wrong, text):
    try:
        broken = text.encode().decode(wrong)
    except UnicodeDecodeError:  # bytes were lost: there is nothing to mend
        lossy = text.encode().decode(wrong, "ignore")
        assert GENERAL.check(record("What is it? 是什么？", lossy * 4)).row.code == "mojibake"
        return
    checked = GENERAL.check(record("What is it? 是什么？", broken))
    assert isinstance(checked.row, Record), checked.row
    assert (checked.row.answer, checked.mended) == (text, ("encoding",))


def test_text_encoded_twice_is_mended():
    meant = "规律的运动可以增强心脏功能。"
    checked = GENERAL.check(record("是什么？", meant.encode().decode("latin-1").encode().decode("latin-1")))
    assert checked.row.answer == meant


@pytest.mark.parametrize("hidden", ["ｓｃａｍ", "sc\u200bam", "SC\u00adAM"])
def test_a_blocked_word_cannot_hide(hidden):
    rule = settings.BlockedWord(words=("scam", "wild goose"))
    assert blocked_word(record("Q", f"It is a {hidden}!"), rule).code == "blocked_word"
    for space in ("  ", "\n", "\u00a0", "\u3000"):
        assert blocked_word(record("Q", f"a wild{space}Goose chase"), rule).code == "blocked_word"
    fine = record("Q", "a wild young goose")
    assert blocked_word(fine, rule) is fine


def test_a_placeholder_is_said_and_kept():
    checked = GENERAL.check(record("Who are you?", "I am {{name}}, made by {{ author }}."))
    assert isinstance(checked.row, Record)
    assert [(note.code, note.path) for note in checked.notes] == [("template_placeholder", "$.output")]
    assert "{{name}}" in checked.notes[0].detail and "{{ author }}" in checked.notes[0].detail


@pytest.mark.parametrize(
    ("broken", "meant"),
    [
        ("Itâ€™s a cafÃ©.", "It’s a café."),
        ("50Â°F is cold.", "50°F is cold."),
        ("规律的运动可以增强心脏功能。".encode().decode("latin-1"), "规律的运动可以增强心脏功能。"),
        ("规律的运动，可以增强心脏功能".encode().decode("gb18030"), "规律的运动，可以增强心脏功能"),
        ("规律的运动可以增强心脏功能".encode("gbk").decode("latin-1"), "规律的运动可以增强心脏功能"),
    ],
)
def test_a_wrong_encoding_is_mended_first(broken, meant):
    row = record("What is it? 是什么？", broken)
    checked = GENERAL.check(row)
    assert isinstance(checked.row, Record), checked.row
    assert checked.row.answer == meant
    assert checked.mended == ("encoding",)
    assert checked.row.messages[-1].path == "$.output"
    assert checked.row.place == row.place
    strict = Checker(GENERAL.pack.model_copy(update={"rules": Rules(encoding={"repair": False})}))
    assert strict.check(row).row.code == "mojibake"


@pytest.mark.parametrize(
    "fine", ["Él comió piñas en São Paulo, à côté de l’église.", "Größe: 5 µm ± 2 %, 20 °C", "涓涓细流", "naïve café"]
)
def test_accents_are_no_mojibake(fine):
    assert encoding(record(fine, fine), settings.Encoding()).messages[1].content == fine


def test_the_rejected_answer_is_mended_too_and_else_left_alone():
    prompt, chosen = (Message("user", "What is it?", "$.prompt"),), Message("assistant", "It’s a cafÃ©.", "$.chosen")
    rejected = Message("assistant", "Itâ€™s TODO.", "$.rejected")
    checked = GENERAL.check(Preference(prompt, chosen, rejected, Place("a", 1, 0)))
    assert isinstance(checked.row, Preference)
    assert (checked.row.chosen.content, checked.row.rejected.content) == ("It’s a café.", "It’s TODO.")
    refused = Message("assistant", "I'm sorry, but I can't assist with that.", "$.rejected")
    fine = Preference(prompt, Message("assistant", "A café.", "$.chosen"), refused, Place("a", 1, 0))
    assert GENERAL.check(fine).row is fine
    worse = Preference(prompt, refused, Message("assistant", "A café."), Place("a", 1, 0))
    assert GENERAL.check(worse).row.code == "refusal"


def test_of_a_prompt_only_the_question_is_looked_at():
    def prompt(text):
        return Prompt((Message("user", text, "$.prompt"),), None, Place("a", 1, 0))

    fine = prompt("I'm sorry, but I can't assist with that")
    assert GENERAL.check(fine).row is fine
    assert GENERAL.check(prompt("exerc\ufffdse")).row.code == "replacement_character"
    assert GENERAL.check(prompt("Itâ€™s a cafÃ©?")).row.messages[0].content == "It’s a café?"


def conversation(*contents, tools="", roles=("user", "assistant")):
    said = [Message(roles[i % len(roles)], text, f"$.messages[{i}].content") for i, text in enumerate(contents)]
    return Record(tuple(said), Place("a", 1, 0), tools)


def test_the_path_names_the_turn():
    refused = conversation("Why exercise?", "I'm sorry, but I can't help with that.", "And sleep?", LONG_EN)
    assert GENERAL.check(refused).row.path == "$.messages[1].content"
    # The user may let an answer go on; only the final one must be whole.
    cut = conversation("Why exercise?", LONG_EN + " In addition, people who walk every day are less", "Go on.", LONG_EN)
    assert GENERAL.check(cut).row is cut


def test_the_same_turn_twice():
    twice = conversation("Why exercise?", LONG_EN, "Why exercise?", LONG_EN)
    drop = GENERAL.check(twice).row
    assert (drop.code, drop.path) == ("repeated_turn", "$.messages[2].content")
    other = conversation("Why exercise?", LONG_EN, "Why exercise?", "Because it is good for the heart.")
    assert GENERAL.check(other).row is other


def test_tool_calls_are_fine():
    call = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
    turns = conversation(
        "巴黎天气怎么样？",
        call,
        '{"temperature": 20, "html": "<p>sun</p><p>x</p>"}',
        "巴黎现在20度。",
        tools="[{}]",
        roles=("user", "assistant", "tool", "assistant"),
    )
    assert GENERAL.check(turns).row is turns
    only_call = conversation("巴黎天气怎么样？", call, tools="[{}]")
    assert GENERAL.check(only_call).row is only_call
    # To say that no tool fits is what such data teaches.
    no_tool = conversation("帮我订披萨。", "很抱歉，作为一个AI，我无法执行订购披萨等外部任务。", tools="[{}]")
    assert GENERAL.check(no_tool).row is no_tool
    assert (
        GENERAL.check(conversation("帮我订披萨。", "很抱歉，作为一个AI，我无法执行订购披萨等外部任务。")).row.code
        == "refusal"
    )


def test_lengths():
    assert lengths(record("ab", "cd"), settings.Lengths(max_chars=2)) == record("ab", "cd")
    drop = lengths(record("abc", "cd"), settings.Lengths(max_chars=2))
    assert (drop.code, drop.path) == ("question_too_long", "$.input")
    assert lengths(record("ab", "cde"), settings.Lengths(max_chars=2)).code == "answer_too_long"
    assert lengths(record("ab", "c"), settings.Lengths(min_answer_chars=2)).code == "answer_too_short"
    assert lengths(record("a", "cd"), settings.Lengths(min_question_chars=2)).code == "question_too_short"


@pytest.mark.parametrize("many", [False, True])
def test_blocked_words(many):
    others = tuple(f"word{n}" for n in range(100)) if many else ()
    rule = settings.BlockedWord(words=(*others, "Scam", "赌博", "x"))
    assert blocked_word(record("Q", "It is a scam!"), rule).code == "blocked_word"
    assert "'scam'" in blocked_word(record("a SCAM", "A"), rule).detail
    assert blocked_word(record("Q", "scampi"), rule) == record("Q", "scampi")
    assert blocked_word(record("他参与赌博。", "不好"), rule).path == "$.input"
    assert blocked_word(record("Q", "maximum"), rule) == record("Q", "maximum")


def test_thresholds_are_settings():
    twice = record("Why exercise?", "It keeps you fit and happy. " * 6)
    assert repeated_text(twice, settings.RepeatedText()).code == "repeated_text"
    assert repeated_text(twice, settings.RepeatedText(max_share=1, max_run=9)) is twice
    unended = record("为什么要运动？", LONG_ZH + "此外，每天走路的人更健康")
    assert truncated_answer(unended, settings.TruncatedAnswer()).code == "truncated_answer"
    assert truncated_answer(unended, settings.TruncatedAnswer(unended=False)) is unended
    short = record("Why exercise?", "I'm sorry, but I can't help with that." + LONG_EN)
    assert refusal(short, settings.Refusal()).code == "refusal"
    assert refusal(short, settings.Refusal(max_chars=50)) is short
    assert refusal(record("Q", "No comment, sorry."), settings.Refusal(phrases=("no comment",))).code == "refusal"


def test_strange_texts_break_no_rule():
    strange = [
        "",
        " ",
        "\x00",
        "\ud800 lone",
        "a" * 100_000,
        "\n" * 5000,
        "```",
        "{" * 50,
        "<" * 999,
        "😀" * 200,
        "1 " * 9000,
        "\n" * 20_000 + "2. x",
        "- a\n" * 3000 + "-",
    ]
    strange += ["哈" * 50_000, "\u200b" * 30, "(" * 500 + ")" * 500, "ab" * 30_000, "{{" * 99, "\u2028\u0085" * 40]
    for question in strange:
        for answer in strange:
            outcome = GENERAL.check(record(question, answer)).row
            assert isinstance(outcome, (Drop, Record))


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("Huatuo/llama_data.json", 0.01),
        ("Huatuo/liver_cancer.json", 0.01),
        ("Zhongjing/CMtMedQA_test.json", 0.01),
        ("DISC-LawLLM/qa_short_answer.json", 0.01),
        ("LLaMA-Factory/glaive_toolcall_zh_demo.json", 0.01),
        ("LLaMA-Factory/dpo_en_demo.json", 0.02),
        # These hold some thirty answers each in which an AI speaks of itself.
        ("LLaMA-Factory/alpaca_en_demo.json", 0.035),
        ("LLaMA-Factory/v1_sft_demo.jsonl", 0.04),
        ("LLaMA-Factory/alpaca_zh_demo.json", 0.06),
    ],
)
def test_well_kept_files_are_kept(real, name, most):
    rows = [row for row in read([real(name)]) if not isinstance(row, Drop)][:1200]
    drops = [row for row in (GENERAL.check(row).row for row in rows) if isinstance(row, Drop)]
    assert len(drops) <= most * len(rows), [(drop.code, drop.detail) for drop in drops]
    assert {drop.code for drop in drops} <= {
        "refusal",
        "truncated_answer",
        "wrong_language",
        "answer_restates_question",
    }
