"""The Checker keeps what is fine and runs the rules of a pack in order; each rule has its own test file."""

from __future__ import annotations

import pytest

from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Drop, Message, Place, Preference, Prompt, Record, ToolCall
from dsr1_tune.data.rules.checker import Checker, long_enough, not_empty
from dsr1_tune.data.rules.codes import MEANINGS
from dsr1_tune.data.rules.packs import load_pack

LONG_EN = "Regular exercise strengthens the heart. It also lowers the blood pressure and helps people to sleep well."


@pytest.mark.parametrize("answer", ["B", "42", "是", "{}", "...", "ᏣᎳᎩ", "{{name}}", "```\nx = 1\n```"])
def test_not_empty_and_long_enough_keep_short_and_odd_answers(record, answer):
    row = record(answer=answer)
    assert not_empty(row) is row
    assert long_enough(row, 1, 1) is row


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u3000", "\u200b", " \ufeff\n"])
def test_not_empty_drops_blank_texts(record, blank):
    assert not_empty(record(answer=blank)) == Drop(
        "empty_answer", "the answer is blank", "write the answer, or remove the row", "$.output"
    )
    assert not_empty(record(question=blank)).code == "empty_question"


@pytest.mark.parametrize(
    "blank", ["\u115f\u1160", "\uffa0", "\u2062", "\ufe0f", "\u180b \n", "\u2800\n\u2800", "\U000e0020"]
)
def test_not_empty_drops_characters_that_print_nothing(record, blank):
    drop = not_empty(record("How can I lower my blood pressure?", blank))
    assert (drop.code, drop.path) == ("empty_answer", "$.output")


def test_not_empty_looks_at_every_turn():
    turns = [Message("user", "Q"), Message("assistant", " ", "$.messages[1].content")] * 2
    assert not_empty(Record(tuple(turns), Place("a", 1, 0))).path == "$.messages[1].content"
    chosen, rejected = Message("assistant", "A"), Message("assistant", "", "$.rejected")
    assert not_empty(Preference((Message("user", "Q"),), chosen, rejected, Place("a", 1, 0))).path == "$.rejected"


def test_long_enough_counts_characters(record):
    assert long_enough(record("ab", "cd"), 2, 2) == record("ab", "cd")
    drop = long_enough(record("ab", " c "), 2, 2)
    assert (drop.code, drop.detail, drop.path) == ("answer_too_short", "1 character, fewer than 2: 'c'", "$.output")
    assert long_enough(record("a", "cd"), 2, 2).code == "question_too_short"


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
def test_checker_keeps_what_is_fine(record, general, question, answer):
    row = record(question, answer)
    checked = general.check(row)
    assert checked.row is row, checked.row
    assert checked.repaired == ()


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
def test_checker_keeps_what_only_looks_like_a_fault(record, general, question, answer):
    row = record(question, answer)
    assert not_empty(row) is row
    checked = general.check(row)
    assert checked.row is row, checked.row


def test_checker_looks_at_the_question_only_of_a_prompt(general):
    def prompt(text):
        return Prompt((Message("user", text, "$.prompt"),), None, Place("a", 1, 0))

    fine = prompt("I'm sorry, but I can't assist with that")
    assert general.check(fine).row is fine
    assert general.check(prompt("exerc\ufffdse")).row.code == "replacement_character"
    assert general.check(prompt("Itâ€™s a cafÃ©?")).row.messages[0].content == "It’s a café?"


def test_checker_names_the_path_of_the_turn(conversation, general):
    refused = conversation("Why exercise?", "I'm sorry, but I can't help with that.", "And sleep?", LONG_EN)
    assert general.check(refused).row.path == "$.messages[1].content"
    # The user may let an answer go on; only the final one must be whole.
    cut = conversation("Why exercise?", LONG_EN + " In addition, people who walk every day are less", "Go on.", LONG_EN)
    assert general.check(cut).row is cut


def test_checker_keeps_tool_calls(conversation, general):
    call = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
    turns = conversation(
        "巴黎天气怎么样？",
        call,
        '{"temperature": 20, "html": "<p>sun</p><p>x</p>"}',
        "巴黎现在20度。",
        tools="[{}]",
        roles=("user", "assistant", "tool", "assistant"),
    )
    assert general.check(turns).row is turns
    only_call = conversation("巴黎天气怎么样？", call, tools="[{}]")
    assert general.check(only_call).row is only_call
    # To say that no tool fits is what such data teaches.
    no_tool = conversation("帮我订披萨。", "很抱歉，作为一个AI，我无法执行订购披萨等外部任务。", tools="[{}]")
    assert general.check(no_tool).row is no_tool
    assert (
        general.check(conversation("帮我订披萨。", "很抱歉，作为一个AI，我无法执行订购披萨等外部任务。")).row.code
        == "refusal"
    )


STRANGE = {
    "blank": ("", " ", "\u200b" * 30, "\u2028\u0085" * 40, "\n" * 5000),
    "control": ("\x00" * 9,),
    "lone": ("\ud800 lone",),
    "too long": ("a" * 100_000, "ab" * 30_000, "哈" * 50_000, "\n" * 40_000 + "2. x"),
    "open code": ("```",),
    "signs": ("{" * 50, "<" * 999, "(" * 500 + ")" * 500, "{{" * 99, "😀" * 200),
    "repeated": ("1 " * 9000, "- a\n" * 3000 + "-"),
}
STRANGE_TEXTS = [text for texts in STRANGE.values() for text in texts]


def test_checker_gives_strange_texts_a_reason_or_leaves_them_as_they_are(record, general):
    codes = {}
    for question in STRANGE_TEXTS:
        for answer in STRANGE_TEXTS:
            row = record(question, answer)
            outcome = general.check(row)
            if isinstance(outcome.row, Drop):
                assert outcome.row.code in MEANINGS and outcome.row.detail and outcome.row.fix
                assert outcome.row.path in ("$.input", "$.output")
            else:
                assert outcome.row is row and outcome.repaired == ()
            codes[question, answer] = getattr(outcome.row, "code", "kept")
    for text in STRANGE["too long"]:
        assert {codes["```", text], codes[text, "```"]} == {"answer_too_long", "question_too_long"}


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("\x00" * 9, "odd_characters"),
        ("", "answer_too_short"),
        ("```", "kept"),
        ("{" * 50, "odd_characters"),
        ("<" * 999, "odd_characters"),
        ("1 " * 9000, "repeated_text"),
        ("- a\n" * 3000 + "-", "repeated_text"),
        ("\ud800 lone", "kept"),
    ],
)
def test_checker_says_why_a_strange_answer_falls_out(record, general, answer, code):
    assert getattr(general.check(record("Why exercise?", answer)).row, "code", "kept") == code


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
def test_checker_keeps_well_kept_files(general, real, name, most):
    rows = [row for row in read([real(name)]) if not isinstance(row, Drop)][:1200]
    drops = [row for row in (general.check(row).row for row in rows) if isinstance(row, Drop)]
    assert len(drops) <= most * len(rows), [(drop.code, drop.detail) for drop in drops]
    assert {drop.code for drop in drops} <= {
        "refusal",
        "truncated_answer",
        "wrong_language",
        "answer_restates_question",
    }


@pytest.mark.parametrize("pack", ["general", "medical", "legal", "finance", "support", "code", "math"])
def test_an_answer_that_only_calls_a_function_is_one(pack: str) -> None:
    call = Message("assistant", "", calls=(ToolCall("look", '{"city": "Oslo"}'),))
    row = Record((Message("user", "What is the weather in Oslo today?"), call), Place("a.jsonl", 1, 0))
    assert Checker(load_pack(pack)).check(row).row == row
