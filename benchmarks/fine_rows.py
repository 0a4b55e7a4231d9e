"""Rows that look odd and are fine: what a careless rule, or a careless search for duplicates, would throw away.

Every class is made of our own texts. Within a class the rows say different things, however alike they look.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

from faults import Talk


def fine_rows(rng: random.Random) -> Iterator[tuple[str, Talk]]:
    """(class, row) of every row that must be kept."""
    for name, make in _CLASSES.items():
        for talk in make(rng):
            yield name, talk


def _talk(question: str, answer: str, language: str, *before: tuple[str, str], tools: str = "") -> Talk:
    return Talk((*before, ("user", question), ("assistant", answer)), language, "made", tools)


def _pairs(language: str, *pairs: tuple[str, str]) -> list[Talk]:
    return [_talk(question, answer, language) for question, answer in pairs]


# Alike, and yet not the same ----------------------------------------------------------------------------------------

_DRUGS = (
    ("ibuprofen", "布洛芬", "relieves pain and fever and should be taken with food", "解热镇痛，宜在饭后服用"),
    ("metformin", "二甲双胍", "lowers blood sugar and is usually started at a low dose", "降低血糖，通常从小剂量开始"),
    ("amlodipine", "氨氯地平", "widens the arteries and may make the ankles swell", "扩张动脉，可能引起脚踝水肿"),
    ("loratadine", "氯雷他定", "eases hay fever without making most people sleepy", "缓解过敏性鼻炎，多数人不会犯困"),
    ("omeprazole", "奥美拉唑", "reduces stomach acid and works best before breakfast", "抑制胃酸，早餐前服用效果最好"),
    ("warfarin", "华法林", "thins the blood and needs regular tests", "抗凝血，需要定期抽血检查"),
    ("salbutamol", "沙丁胺醇", "opens the airways within minutes", "几分钟内舒张气道"),
    ("levothyroxine", "左甲状腺素", "replaces a hormone and is taken on an empty stomach", "补充激素，须空腹服用"),
    ("atorvastatin", "阿托伐他汀", "lowers cholesterol and can cause muscle aches", "降低胆固醇，可能引起肌肉酸痛"),
    ("sertraline", "舍曲林", "treats depression and takes some weeks to work", "治疗抑郁，数周后才起效"),
    ("furosemide", "呋塞米", "removes water and may lower potassium", "利尿消肿，可能使血钾降低"),
    ("prednisone", "泼尼松", "calms inflammation and must not be stopped abruptly", "抗炎，不能突然停药"),
)


def _template_entities(_: random.Random) -> list[Talk]:
    """The same question about another medicine, with an answer built alike."""
    rows = []
    for en, zh, does, effect in _DRUGS:
        rows += [
            _talk(
                f"What is {en} used for and what should I know before taking it?",
                f"{en.capitalize()} {does}. Tell your doctor about other medicines that you take.",
                "en",
            ),
            _talk(
                f"Can children under twelve years of age take {en} without a prescription?",
                f"Do not give {en} to a child before you have asked a pharmacist: {en} {does}.",
                "en",
            ),
            _talk(
                f"请问{zh}这种药有什么作用，服用时需要注意什么？",
                f"{zh}的作用是{effect}。如果正在服用其他药物，请告诉医生。",
                "zh",
            ),
            _talk(
                f"十二岁以下的儿童可以自行服用{zh}吗？",
                f"不要自行给孩子服用{zh}，应先咨询药师：它的作用是{effect}。",
                "zh",
            ),
        ]
    return rows


def _template_numbers(rng: random.Random) -> list[Talk]:
    """The same wording with other numbers: another sum, another result."""
    rows = []
    for _ in range(15):
        a, b, c = rng.randint(11, 99), rng.randint(3, 9), rng.randint(2, 9)
        rows += [
            _talk(
                f"A farmer has {a} baskets with {b} apples each and gives away {c} apples. How many are left?",
                f"{a} × {b} = {a * b}, and {a * b} - {c} = {a * b - c}. There are {a * b - c} apples left.",
                "en",
            ),
            _talk(f"Compute {a * 17} + {b * 31}.", f"{a * 17 + b * 31}", "en"),
            _talk(
                f"一个果园有{a}筐苹果，每筐{b}个，送给邻居{c}个，还剩多少个？",
                f"{a}×{b}＝{a * b}，{a * b}－{c}＝{a * b - c}，所以还剩{a * b - c}个苹果。",
                "zh",
            ),
            _talk(f"计算：{a * 13}减{b * 3}等于多少？", f"{a * 13 - b * 3}", "zh"),
        ]
    return rows


_PASSAGES = {
    "en": (
        (
            "Answer the question only from the passage below. If the passage does not say, reply "
            "that it does not say.\n\n"
            "The lighthouse at Carrow Point was built in 1874 by the engineer Edith Lorne. It is "
            "31 metres high and stands "
            "on a granite reef two kilometres off the coast. Until 1962 three keepers lived there with their families; "
            "since then the lamp has been automatic. The lens, made in Marseille, weighs 2.4 tonnes and turns once in "
            "twelve seconds. In fog a horn sounds every thirty seconds. The tower is painted white with two red bands, "
            "and can be visited by boat between May and September, when the sea is calm. In winter, waves reach the "
            "gallery. A storm in 1911 carried away the kitchen and a cow.",
            (
                ("Who built the lighthouse?", "Edith Lorne."),
                ("How high is it?", "31 metres."),
                ("When did the last keepers leave?", "In 1962."),
                ("Where was the lens made?", "In Marseille."),
                ("How much does the lens weigh?", "2.4 tonnes."),
                ("What did the storm of 1911 take?", "The kitchen and a cow."),
                ("When can one visit?", "Between May and September, in calm weather."),
            ),
        ),
        (
            "You are a support agent of Borealis Mail. Use these rules and nothing else. A parcel "
            "of up to 2 kg costs 4.90, "
            "up to 5 kg 6.90, up to 10 kg 9.50 and up to 20 kg 14.90. Parcels above 20 kg are not "
            "carried. Delivery takes "
            "two working days within the country and five abroad. A parcel is kept at the branch "
            "for seven days, then it "
            "goes back. Claims for damage must be made within ten days, with a photograph of the "
            "packaging. Insurance up "
            "to 500 is included; more costs 1.20 for each further 100. Liquids must be in two layers of packaging, and "
            "batteries may be sent only inside a device. Refunds are paid to the card that was used.",
            (
                ("What does a parcel of 4 kg cost?", "6.90."),
                ("How long is a parcel kept?", "Seven days."),
                ("Can I send 25 kg?", "No, at most 20 kg."),
                ("May I send a loose battery?", "No, only inside a device."),
                ("How long does delivery abroad take?", "Five working days."),
                ("By when must I report damage?", "Within ten days, with a photograph."),
                ("What does insurance for 700 cost?", "2.40 on top of the price."),
            ),
        ),
    ),
    "zh": (
        (
            "请只根据下面的材料回答问题，材料中没有的内容请回答“材料未提及”。\n\n"
            "青石镇位于云岭山脚下，始建于明朝万历年间，至今已有四百多年历史。全镇共有居民一万两千余人，以种植茶叶和制作竹器为生。镇中心有"
            "一座石拱桥，长三十六米，桥上刻有二十四只石狮，据说每一只的神态都不相同。每年三月初三，镇上会举行茶会，邻近村庄的人都来赶集。"
            "镇东的老书院建于清朝乾隆年间，现在是县图书馆的分馆，藏书两万余册，周一闭馆。一九五四年的洪水冲毁了西街，后来改建为公园。"
            "从县城到青石镇每天有六班客车，车程约五十分钟，末班车在下午五点半发车。",
            (
                ("石桥有多长？", "三十六米。"),
                ("桥上有几只石狮？", "二十四只。"),
                ("书院现在用作什么？", "县图书馆的分馆。"),
                ("图书馆哪天闭馆？", "周一。"),
                ("末班车几点发车？", "下午五点半。"),
                ("西街后来变成了什么？", "公园。"),
                ("茶会在哪一天？", "三月初三。"),
            ),
        ),
        (
            "你是北辰快递的客服，只能依据以下规定作答：两公斤以内的包裹收费八元，五公斤以内十二元，十公斤以内二十元，二十公斤以内三十五元，"
            "超过二十公斤不予收寄。省内次日送达，省外三日送达。包裹在网点保管七天，逾期退回。如有破损，须在十日内凭外包装照片申请理赔。"
            "保价五百元以内免费，超出部分每一百元加收一元二角。液体须使用双层包装，电池只能装在设备内寄递。退款原路返回付款账户，"
            "一般在三个工作日内到账。节假日照常派送，春节期间除外。",
            (
                ("四公斤的包裹多少钱？", "十二元。"),
                ("包裹可以保管几天？", "七天。"),
                ("二十五公斤能寄吗？", "不能，最多二十公斤。"),
                ("省外几天到？", "三日。"),
                ("春节期间派送吗？", "不派送。"),
                ("退款多久到账？", "一般三个工作日内。"),
                ("单独的电池能寄吗？", "不能，只能装在设备内寄。"),
            ),
        ),
    ),
}


def _shared_preamble(_: random.Random) -> list[Talk]:
    """One long passage, many short questions: once before the question, once as the system's text."""
    rows = []
    for language, passages in _PASSAGES.items():
        for n, (passage, asked) in enumerate(passages):
            label = "Question: " if language == "en" else "问题："
            for question, answer in asked:
                if n == 0:
                    rows.append(_talk(f"{passage}\n\n{label}{question}", answer, language))
                else:
                    rows.append(_talk(question, answer, language, ("system", passage)))
    return rows


_STORIES = {
    "en": (
        (
            "Write a short story about the sea.",
            (
                "Every morning old Petra rowed out to the wreck and sat above it, listening. The villagers "
                "thought that she "
                "fished. In truth she was waiting for the ship's bell, which rang once a year, and only for her.",
                "The tide came in on Tuesday and forgot to go out. By Friday there were herring in the "
                "library. By Sunday "
                "nobody remembered that the town had ever had streets, and the baker delivered by raft.",
                "Two children built a castle with nine towers. A wave took eight. They gave the ninth "
                "to a crab, who has "
                "ruled it wisely ever since, and collects rent in shells.",
            ),
        ),
        (
            "Give me some advice for a job interview.",
            (
                "Read about the company, prepare two stories from your own work, and arrive ten minutes "
                "early. Ask one honest "
                "question at the end, and send a short note of thanks the day after.",
                "Practise aloud with a friend. Most people know what they want to say and have never "
                "heard themselves say it. "
                "Sleep well, eat something, and speak a little slower than feels natural.",
            ),
        ),
        (
            "Describe your ideal weekend.",
            (
                "Saturday in the hills with a map and a flask of tea, Sunday with a long book and rain on the roof. No "
                "telephone, no plans, and soup.",
                "A market at dawn, friends at noon, a concert in the park at night. On Sunday I would "
                "bake bread and give half "
                "of it to the neighbours.",
                "Mending the old bicycle, then riding it to the lake to see whether it holds. A swim "
                "if it does, a walk home "
                "if it does not.",
            ),
        ),
    ),
    "zh": (
        (
            "写一个关于大海的小故事。",
            (
                "老渔夫每天清晨划船到沉船的上方，静静地听。村里人以为他在钓鱼，其实他在等那口一年只响一次的船钟。",
                "星期二涨潮以后，海水忘了退回去。到了星期五，图书馆里已经有鲱鱼在游。面包师只好划着木筏送面包。",
                "两个孩子用沙子堆了一座有九座塔的城堡，海浪冲走了八座。他们把剩下的一座送给了一只螃蟹，它至今还在那里收贝壳当房租。",
            ),
        ),
        (
            "给我一些面试的建议。",
            (
                "先了解公司，再从自己的经历里准备两个故事，提前十分钟到场。结束时问一个真诚的问题，第二天写一封简短的感谢信。",
                "找朋友大声练习几遍，很多人知道要说什么，却从没听过自己说出来。睡好觉，吃点东西，语速比平时慢一点。",
            ),
        ),
        (
            "描述一下你理想的周末。",
            (
                "周六带着地图和一壶热茶去爬山，周日听着雨声读一本厚书，不看手机，不做计划，晚上煮一锅汤。",
                "清晨逛集市，中午和朋友聚餐，晚上在公园听音乐会。第二天自己烤面包，分一半给邻居。",
                "把旧自行车修好，骑到湖边试试结不结实。结实就游个泳，不结实就走路回家。",
            ),
        ),
    ),
}


def _same_question(_: random.Random) -> list[Talk]:
    """One question, several long answers: all worth learning."""
    return [
        _talk(question, answer, language)
        for language, asked in _STORIES.items()
        for question, answers in asked
        for answer in answers
    ]


_THANKS = {
    "en": (
        ("Thank you, doctor.", "Thank you!", "OK, thanks a lot."),
        ("You're welcome.", "You are welcome!", "No problem."),
    ),
    "zh": (
        ("谢谢医生。", "好的，谢谢您。", "明白了，谢谢！"),
        ("不客气。", "不用谢，祝您早日康复！", "不客气，祝您健康。"),
    ),
}


def _thanks(rng: random.Random) -> list[Talk]:
    """The same thanks, answered otherwise, after another conversation."""
    rows = []
    for n, (en, zh, does, effect) in enumerate(_DRUGS):
        for language in ("en", "zh"):
            thanks, replies = _THANKS[language]
            asked = f"Does {en} make one tired?" if language == "en" else f"吃{zh}会犯困吗？"
            told = f"Rarely; {en} {does}." if language == "en" else f"很少，{zh}的作用是{effect}。"
            before = (("user", asked), ("assistant", told))
            rows.append(_talk(thanks[n % 3], rng.choice(replies), language, *before))
    return rows


# Short and odd in form ----------------------------------------------------------------------------------------------


def _one_word(_: random.Random) -> list[Talk]:
    """Exact answers: a letter, a number, a name."""
    return _pairs(
        "en",
        ("Which option is right? A) iron B) helium C) gold. Which one is a gas?", "B"),
        ("What is the chemical symbol of sodium?", "Na"),
        ("Is the Pacific larger than the Atlantic?", "Yes"),
        ("How many players are on a football team on the field?", "11"),
        ("What is the capital of Norway?", "Oslo"),
        ("Give the opposite of 'scarce'.", "plentiful"),
        ("What is 7 x 8?", "56"),
        ("Who wrote 'Middlemarch'?", "George Eliot"),
        ("What grade is 92 of 100 points, if 90 and above is an A?", "A"),
        ("Does the word 'rhythm' hold a vowel letter other than y?", "No."),
        ("Which planet is known as the red planet?", "Mars"),
        ("Name the first month of the year.", "January"),
        ("What is the roman numeral for ten?", "X"),
        ("Which blood group can give red cells to everybody?", "O-"),
        ("In which language is 'obrigado' said?", "Portuguese"),
        ("What is 3/4 as a decimal?", "0.75"),
    ) + _pairs(
        "zh",
        ("下列哪一项是气体？A. 铁 B. 氦 C. 金", "B"),
        ("钠的元素符号是什么？", "Na"),
        ("太平洋比大西洋大吗？", "是"),
        ("足球比赛每队上场几人？", "11"),
        ("挪威的首都是哪里？", "奥斯陆"),
        ("“稀少”的反义词是什么？", "丰富"),
        ("七乘以八等于多少？", "56"),
        ("《红楼梦》的作者是谁？", "曹雪芹"),
        ("判断：鲸鱼是鱼。（对/错）", "错"),
        ("一年有几个季节？", "四个"),
        ("被称为红色星球的是哪一颗？", "火星"),
        ("“三人行，必有我师焉”出自哪本书？", "《论语》"),
        ("四分之三写成小数是多少？", "0.75"),
        ("“龙”字用拼音怎么写？", "lóng"),
        ("出现胸痛应挂什么科？", "心内科"),
        ("这句话的情感是积极还是消极：今天真开心！", "积极"),
    )


def _none_asked_for(_: random.Random) -> list[Talk]:
    """`None` and `无` where the question asks for just that."""
    rows = []
    for n, (en, zh, does, effect) in enumerate(_DRUGS[:10]):
        rows.append(
            _talk(
                f"List the allergies named in the note, or answer 'None'.\nNote: The patient takes {en}, which {does}.",
                ("None", "None.")[n % 2],
                "en",
            )
        )
        rows.append(
            _talk(
                f"提取病历中提到的过敏史，没有则回答“无”。\n病历：患者长期服用{zh}，{effect}。",
                ("无", "无。")[n % 2],
                "zh",
            )
        )
    return rows


def _answer_equals_input(_: random.Random) -> list[Talk]:
    """Nothing to correct, or a text to be repeated: the answer stands in the question."""
    en = (
        "The children walked to school together.",
        "She has never been to Paris.",
        "We were late because of the rain.",
        "My brother and I like chess.",
        "It has been snowing since noon.",
        "Neither answer is right.",
    )
    zh = (
        "孩子们一起走路去上学。",
        "她从来没有去过巴黎。",
        "因为下雨，我们迟到了。",
        "我和弟弟都喜欢下棋。",
        "从中午起一直在下雪。",
        "两个答案都不对。",
    )
    return [
        *(
            _talk(f"Correct the grammar of the sentence if needed, otherwise repeat it.\n{text}", text, "en")
            for text in en
        ),
        *(_talk(f"Repeat after me: {text[:-1]}!", f"{text[:-1]}!", "en") for text in en),
        *(_talk(f"如果下面的句子有语病请改正，没有则原样输出。\n{text}", text, "zh") for text in zh),
        *(_talk(f"请跟我读：{text[:-1]}！", f"{text[:-1]}！", "zh") for text in zh),
    ]


def _no_final_mark(_: random.Random) -> list[Talk]:
    """Titles, names, dates and slogans end without a full stop, and are whole."""
    return _pairs(
        "en",
        (
            "Suggest a headline for an article about a cat that crossed the country.",
            "Whiskers Goes West: The Cat Who Walked Nine Hundred Miles to Find His Family",
        ),
        (
            "Write a slogan for a bakery that opens at four in the morning.",
            "Warm bread for early birds, long before the rest of the town wakes up",
        ),
        (
            "When was the treaty signed, and where?",
            "On 24 October 1648 in the Westphalian cities of Osnabrück and Münster",
        ),
        ("Name five rivers of Europe.", "Danube, Rhine, Volga, Loire, Vistula"),
        (
            "Give me a tweet about the first snow.",
            "First snow of the year and the whole street smells of wood smoke #winter #firstsnow",
        ),
        ("What is the full name of the WHO?", "World Health Organization"),
        ("Where should the parcel go?", "Flat 4, 27 Harbour Lane, Lowmoor"),
        ("Which ingredients do I need for pancakes?", "Flour, eggs, milk, a pinch of salt and butter for the pan"),
        (
            "Write a subject line for an e-mail that invites colleagues to a farewell lunch.",
            "Farewell lunch for Amina on Friday at noon in the small meeting room",
        ),
        (
            "Quote a line about friendship and name its author.",
            '"The only way to have a friend is to be one." - Ralph Waldo Emerson',
        ),
    ) + _pairs(
        "zh",
        ("为一篇关于流浪猫回家的报道拟一个标题。", "跨越九百公里的思念：一只橘猫的漫漫回家路"),
        ("为凌晨四点开门的面包店写一句广告语。", "在城市醒来之前，先为早起的你烤好第一炉面包"),
        ("写出欧洲的五条河流。", "多瑙河、莱茵河、伏尔加河、卢瓦尔河、维斯瓦河"),
        ("世界卫生组织的英文全称是什么？", "World Health Organization"),
        ("做煎饼需要哪些材料？", "面粉、鸡蛋、牛奶、少许盐以及煎锅用的黄油"),
        ("请写出一副春联。", "上联：春风入喜财入户 下联：岁月更新福满门 横批：万事如意"),
        ("会议安排在什么时候、什么地点？", "十月二十四日下午两点，行政楼三层第二会议室"),
        ("邀请同事参加欢送午餐，邮件主题怎么写？", "关于周五中午为阿米娜举行欢送午餐的通知"),
        ("列出面试需要携带的材料。", "身份证、毕业证复印件、个人简历两份、一寸照片"),
        ("给这首描写初雪的小诗起个名字。", "落在屋檐上的第一封信"),
    )


# Not prose ----------------------------------------------------------------------------------------------------------


def _json_answers(_: random.Random) -> list[Talk]:
    """Extraction to JSON: mostly braces and quotes."""
    rows = []
    for n, (en, zh, does, effect) in enumerate(_DRUGS):
        record = {"drug": en, "dose_mg": 5 * (n + 1), "times": n % 3 + 1, "note": does}
        eintrag = {"药名": zh, "剂量": f"{5 * (n + 1)}毫克", "每日次数": n % 3 + 1, "说明": effect}
        rows += [
            _talk(
                f"Extract the prescription as JSON: {en} {5 * (n + 1)} mg, {n % 3 + 1} a day; it {does}.",
                json.dumps(record, indent=2 if n % 2 else None),
                "en",
            ),
            _talk(
                f"把下面的处方转换成JSON：{zh}{5 * (n + 1)}毫克，每日{n % 3 + 1}次，{effect}。",
                json.dumps(eintrag, ensure_ascii=False, indent=2 if n % 2 else None),
                "zh",
            ),
        ]
    rows += _pairs(
        "en",
        ("Return an empty result set in JSON.", '{"results": []}'),
        ("Give the coordinates of the square's corners as a JSON array.", "[[0,0],[0,1],[1,1],[1,0]]"),
        ("Reply with a boolean in JSON: is 17 prime?", '{"prime": true}'),
        ("Write the colour teal as a CSS hex code.", "#008080"),
    )
    return rows


_CODE = (
    (
        "Reverse a linked list in Python.",
        "用Python反转链表。",
        "def reverse(head):\n    prev = None\n    while head:\n        head.next, prev, head "
        "= prev, head, head.next\n    return prev",
    ),
    (
        "Count the lines of all text files with a shell command.",
        "用一条命令统计所有文本文件的行数。",
        "find . -name '*.txt' -print0 | xargs -0 cat | wc -l",
    ),
    (
        "Write an SQL query for the five best customers.",
        "写一条SQL查询，找出消费最多的五位客户。",
        "SELECT c.name, SUM(o.total) AS spent\nFROM customers c\nJOIN orders o ON o.customer_id "
        "= c.id\nGROUP BY c.name\n"
        "ORDER BY spent DESC\nLIMIT 5;",
    ),
    (
        "Match an ISO date with a regular expression.",
        "写一个匹配ISO日期的正则表达式。",
        r"^\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])$",
    ),
    (
        "Centre a box with CSS.",
        "用CSS让盒子居中。",
        ".box {\n  display: grid;\n  place-items: center;\n  min-height: 100vh;\n}",
    ),
    (
        "Write a C function that swaps two integers.",
        "写一个交换两个整数的C函数。",
        "void swap(int *a, int *b) {\n    int t = *a;\n    *a = *b;\n    *b = t;\n}",
    ),
    (
        "Show a switch statement with four cases in Java.",
        "给出Java中有四个分支的switch语句。",
        "switch (d) {\n    case 1:\n        x = 1;\n        break;\n    case 2:\n        x = "
        "2;\n        break;\n    case 3:\n        x = 3;\n"
        "        break;\n    default:\n        x = 0;\n        break;\n}",
    ),
    (
        "Mark what is still to do in this function.",
        "在这个函数里标出待办事项。",
        "def load(path):\n    # TODO: check that the file exists\n    # FIXME: handle other encodings\n"
        "    return open(path).read()",
    ),
    (
        "Print a 3x3 identity matrix in Rust.",
        "用Rust打印三阶单位矩阵。",
        'fn main() {\n    for i in 0..3 {\n        for j in 0..3 {\n            print!("{} ",'
        " (i == j) as u8);\n        }\n        println!();\n    }\n}",
    ),
    (
        "Write a Brainfuck program that prints an exclamation mark.",
        "写一个输出感叹号的Brainfuck程序。",
        "+++++++++++[>+++<-]>.",
    ),
    ("Close all open transactions and leave psql.", "关闭事务并退出psql。", "ROLLBACK;\n\\q"),
    (
        "Show the diff of renaming a variable.",
        "展示变量改名的diff。",
        "--- a/run.py\n+++ b/run.py\n@@ -1,2 +1,2 @@\n-cnt = 0\n-cnt += 1\n+count = 0\n+count += 1",
    ),
)


def _code(_: random.Random) -> list[Talk]:
    """Code, bare and fenced."""
    rows = []
    for n, (en, zh, code) in enumerate(_CODE):
        fenced = f"```\n{code}\n```"
        rows.append(_talk(en, code if n % 2 else f"Here you are:\n\n{fenced}", "en"))
        changed = code.replace("    ", "\t").replace("x", "y").replace("head", "node")
        rows.append(_talk(zh, f"可以这样写：\n\n{fenced}" if n % 2 else changed, "zh"))
    return rows


def _html_asked_for(_: random.Random) -> list[Talk]:
    """Markup where markup is wanted, or talked about."""
    page = "<!DOCTYPE html>\n<html>\n<head><title>Hi</title></head>\n<body>\n<p>Hello</p>\n</body>\n</html>"
    return _pairs(
        "en",
        ("Write a minimal HTML page that says hello.", page),
        ("What does the <br> tag do?", "The <br> tag starts a new line, and <p> starts a paragraph."),
        ("How do I make a link in HTML?", 'Use an anchor: <a href="page.html">text</a>'),
        ("Write an HTML list of three fruits.", "<ul>\n  <li>Apple</li>\n  <li>Pear</li>\n  <li>Plum</li>\n</ul>"),
        ("Convert this XML to JSON: <user><id>7</id></user>", '{"user": {"id": "7"}}'),
        ("How do I write a generic list in Java?", "List<String> names = new ArrayList<>();"),
        ("Solve: for which x is 2 < x and x > 5?", "For x > 5, since x > 5 implies x > 2; so 2 < x holds as well."),
        ("Fill in the mask: The <mask> barked all night.", "The dog barked all night."),
        ("Which HTML entity gives a space that does not break?", "&nbsp; gives a non-breaking space."),
        ("Add a table row with two cells in HTML.", "<tr><td>one</td><td>two</td></tr>"),
    ) + _pairs(
        "zh",
        ("写一个最简单的HTML网页。", page.replace("Hello", "你好").replace("Hi", "问候")),
        ("<br>标签有什么作用？", "<br>标签用来换行，而<p>标签用来开始一个段落。"),
        ("HTML里怎么写链接？", '使用a标签，例如：<a href="page.html">文字</a>。'),
        ("用HTML写一个包含三种水果的列表。", "<ul>\n  <li>苹果</li>\n  <li>梨</li>\n  <li>李子</li>\n</ul>"),
        ("把这段XML转换成JSON：<用户><编号>7</编号></用户>", '{"用户": {"编号": "7"}}'),
        ("C++里如何引入标准输入输出？", "#include <iostream>"),
        ("表示不换行空格的HTML实体是什么？", "是&nbsp;。"),
        ("求同时满足x>2和x<5的整数。", "满足2<x<5的整数是3和4。"),
    )


def _formulas(_: random.Random) -> list[Talk]:
    """Mathematics and chemistry: more signs than letters."""
    solved = (
        ("x^2 - 5x + 6 = 0", "x = (5 ± √(25 - 24)) / 2 = (5 ± 1) / 2, x₁ = 2, x₂ = 3"),
        ("∫ x·e^x dx", "∫ x·e^x dx = x·e^x − ∫ e^x dx = (x − 1)·e^x + C"),
        ("lim (sin x)/x, x → 0", "lim_{x→0} (sin x)/x = 1"),
        ("Σ 1/2^n, n = 1 … ∞", "Σ_{n=1}^{∞} 2^{-n} = 1"),
        ("(2 * 3 + 4) / 5", "(6 + 4) / 5 = 10 / 5 = 2"),
        ("A∪(B∩C)", "A∪(B∩C) = (A∪B)∩(A∪C)"),
        ("$\\frac{d}{dx} x^3$", "$$\\frac{d}{dx} x^3 = 3x^2$$"),
        ("¬(p ∧ q)", "¬(p ∧ q) ≡ ¬p ∨ ¬q"),
        ("sqrt(144) + 5!", "12 + 120 = 132"),
        ("det [[1,2],[3,4]]", "1·4 − 2·3 = −2"),
    )
    rows = [_talk(f"Work this out, formulas only: {asked}", answer, "en") for asked, answer in solved]
    rows += [_talk(f"只写算式：{asked.replace('x', 'y')}", answer.replace("x", "y"), "zh") for asked, answer in solved]
    return rows + _pairs(
        "en",
        ("Balance: H2 + O2 -> H2O", "2 H₂ + O₂ → 2 H₂O"),
        ("Give the complementary strand of ATGCCGTAATGC.", "TACGGCATTACG"),
        ("Write glucose as a SMILES string.", "OC[C@H]1OC(O)[C@H](O)[C@@H](O)[C@@H]1O"),
        ("What is the SHA-1 of the empty string?", "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
        ("Write 255 in binary.", "11111111"),
        ("Write ten to the power of twenty in full.", "100000000000000000000"),
        ("Show the first twenty digits of 1/3.", "0.33333333333333333333"),
    )


_SCRIPTS = (
    ("Cherokee", "切罗基语", "ᎣᏏᏲ, ᏙᎯᏧ? ᎣᏍᏓ ᏑᎾᎴ ᎢᎯᎵᏍᏗ."),
    ("Tibetan", "藏语", "བཀྲ་ཤིས་བདེ་ལེགས། ཁྱེད་རང་སྐུ་གཟུགས་བདེ་པོ་ཡིན་པས།"),
    ("Amharic", "阿姆哈拉语", "ሰላም፣ እንዴት ነህ? ደህና ነኝ፣ አመሰግናለሁ።"),
    ("Georgian", "格鲁吉亚语", "გამარჯობა, როგორ ხარ? კარგად, გმადლობთ."),
    ("Armenian", "亚美尼亚语", "Բարեւ ձեզ, ինչպե՞ս եք։ Լավ եմ, շնորհակալություն։"),
    ("Khmer", "高棉语", "សួស្តី តើអ្នកសុខសប្បាយជាទេ? ខ្ញុំសុខសប្បាយ អរគុណ។"),
    ("Thai", "泰语", "สวัสดีครับ คุณสบายดีไหม สบายดี ขอบคุณครับ"),
    ("Sinhala", "僧伽罗语", "ආයුබෝවන්, ඔබට කොහොමද? මම හොඳින්, ස්තුතියි."),
    ("Mongolian script", "传统蒙古文", "ᠰᠠᠶᠢᠨ ᠪᠠᠶᠢᠨ᠎ᠠ ᠤᠤ"),
    ("Hindi", "印地语", "नमस्ते, आप कैसे हैं? मैं ठीक हूँ, धन्यवाद।"),
    ("Uyghur", "维吾尔语", "ياخشىمۇسىز، ئەھۋالىڭىز قانداق؟"),
    ("Yi", "彝语", "ꆈꌠꉙ ꑳꌠꅇꂘ"),
    ("Inuktitut", "因纽特语", "ᐊᐃᓐᖓᐃ, ᖃᓄᐃᑉᐱᑦ? ᖃᓄᐃᙱᑦᑐᖓ."),
    ("Hebrew", "希伯来语", "שלום, מה שלומך? אני בסדר, תודה."),
    ("Tamil", "泰米尔语", "வணக்கம், நீங்கள் எப்படி இருக்கிறீர்கள்? நன்றி."),
)


def _rare_scripts(_: random.Random) -> list[Talk]:
    """Texts in scripts that few tools know, asked for; and questions in them, answered in them."""
    rows = []
    for en, zh, text in _SCRIPTS:
        rows.append(_talk(f"How do I greet somebody politely in {en}?", text, "en"))
        rows.append(_talk(f"用{zh}怎么打招呼？", text, "zh"))
    own = (
        ("როგორ ხარ დღეს?", "კარგად ვარ, გმადლობთ, თქვენ როგორ ხართ?"),
        ("आज मौसम कैसा है?", "आज मौसम साफ़ है और हल्की हवा चल रही है।"),
        ("Ի՞նչ գույն է երկինքը", "Երկինքը կապույտ է։"),
        ("สีของท้องฟ้าคืออะไร", "ท้องฟ้ามีสีฟ้าในวันที่อากาศดี"),
        ("ᎦᏙ ᎤᏍᏗ ᏕᏣᏙᎥ?", "ᏣᎳᎩ ᏓᏆᏙᎥ."),
        ("བོད་ཡིག་ཤེས་ཀྱི་འདུག་གས།", "ལགས་ཤེས་ཀྱི་འདུག"),
    )
    return rows + [Talk((("user", asked), ("assistant", answer)), "en", "made") for asked, answer in own]


def _placeholders(_: random.Random) -> list[Talk]:
    """{{name}} and [Your Name] in letters and greetings: templates on purpose."""
    return _pairs(
        "en",
        ("Who are you, in one sentence?", "I am {{name}}, an assistant made by {{author}}, and I am glad to meet you."),
        (
            "Write a short invoice e-mail as a template.",
            "Dear {{customer}},\n\nplease find attached invoice {{number}} over {{amount}}.\n\nKind "
            "regards\n{{sender}}",
        ),
        (
            "Write a cover letter with placeholders for my name and the company.",
            "Dear [Hiring Manager],\n\nI would like to join [Company] as a gardener. I have looked after the roses of "
            "[Previous Employer] for six years.\n\nSincerely,\n[Your Name]",
        ),
        ("Give me a Jinja loop over users.", "{% for user in users %}{{ user.name }}, {% endfor %}"),
        (
            "Make a welcome message for new members of a club with a name placeholder.",
            "Welcome, <first name>! The club meets every Tuesday at seven.",
        ),
        ("Write a template for a birthday card.", "Happy birthday, ____! May your {{age}}th year be the best yet."),
    ) + _pairs(
        "zh",
        ("请用一句话介绍你自己。", "我是{{name}}，由{{author}}开发的助手，很高兴为您服务。"),
        (
            "写一封发票邮件的模板。",
            "尊敬的{{客户}}：\n\n附件是编号为{{编号}}的发票，金额为{{金额}}元，请查收。\n\n此致\n{{发件人}}",
        ),
        (
            "写一封带占位符的求职信。",
            "尊敬的[招聘经理]：\n\n我希望加入[公司名称]担任园艺师。我在[前雇主]照料玫瑰已有六年。\n\n此致\n[您的姓名]",
        ),
        ("写一条带姓名占位符的会员欢迎短信。", "亲爱的${name}，欢迎加入读书会，活动时间为每周二晚七点。"),
        ("写一份请假条模板。", "XXX老师：我因____原因，申请于__月__日请假一天，望批准。\n请假人：XXX"),
        ("写一句生日祝福的模板。", "祝{{姓名}}生日快乐，{{年龄}}岁的每一天都闪闪发光！"),
    )


def _traditional_chinese(_: random.Random) -> list[Talk]:
    """Traditional Chinese is Chinese."""
    return _pairs(
        "zh",
        (
            "颱風來臨前應該做哪些準備？",
            "請先檢查門窗與排水孔，準備飲用水、手電筒和三天份的乾糧，並留意氣象署發布的警報。",
        ),
        (
            "請介紹一下臺灣的高鐵。",
            "臺灣高鐵全長約三百五十公里，從南港到左營最快約一小時四十五分鐘，每天有上百個班次。",
        ),
        ("感冒時可以運動嗎？", "症狀輕微時可以散步，但若有發燒或全身痠痛，應該先休息，待症狀緩解後再逐步恢復運動。"),
        ("如何醃製泡菜？", "將高麗菜切塊撒鹽靜置一小時，沖洗後拌入蒜末、薑、辣椒粉與魚露，放入罐中發酵兩天即可。"),
        ("「塞翁失馬」是什麼意思？", "比喻一時的損失可能反而帶來好處，禍福常常互相轉化。"),
        ("請問健保卡遺失了怎麼辦？", "可以攜帶身分證到健保署各分區業務組或郵局申請補發，費用為新臺幣兩百元。"),
        ("香港嘅電車有幾多年歷史？", "香港電車喺一九零四年開始行走，到而家已經有超過一百二十年歷史。"),
        ("夜市有哪些必吃的小吃？", "蚵仔煎、臭豆腐、滷肉飯和珍珠奶茶都很受歡迎，建議晚餐時間過後再去比較不擠。"),
        ("幫我寫一句祝賀退休的話。", "感謝您多年來的奉獻，願退休後的每一天都輕鬆自在、健康平安。"),
        (
            "電腦開機很慢該怎麼處理？",
            "先停用不必要的開機程式，再清理磁碟空間，若使用傳統硬碟，換成固態硬碟效果最明顯。",
        ),
    )


def _tool_calls(_: random.Random) -> list[Talk]:
    """Calls, results and a short report; the call itself as the answer, too."""
    tools = json.dumps(
        [
            {
                "name": "get_weather",
                "description": "Current weather",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
            }
        ]
    )
    cities = (
        ("Oslo", "奥斯陆", -3),
        ("Lagos", "拉各斯", 31),
        ("Lima", "利马", 18),
        ("Pune", "浦那", 27),
        ("Quebec", "魁北克", -11),
        ("Cairo", "开罗", 34),
    )
    rows = []
    for en, zh, degrees in cities:
        call = json.dumps({"name": "get_weather", "arguments": {"city": en}})
        result = json.dumps({"temperature": degrees, "unit": "C"})
        rows += [
            Talk(
                (
                    ("user", f"How warm is it in {en}?"),
                    ("function_call", call),
                    ("observation", result),
                    ("assistant", f"It is {degrees} °C in {en} right now."),
                ),
                "en",
                "made",
                tools,
            ),
            Talk(
                (
                    ("user", f"{zh}现在多少度？"),
                    ("function_call", call),
                    ("observation", result),
                    ("assistant", f"{zh}现在的气温是{degrees}摄氏度。"),
                ),
                "zh",
                "made",
                tools,
            ),
            Talk((("user", f"Look up the weather in {en}, please."), ("assistant", call)), "en", "made", tools),
        ]
    return rows


def _translations(_: random.Random) -> list[Talk]:
    """The answer is in another language because the question wants it so."""
    return _pairs(
        "en",
        ("Translate into Chinese: The train leaves at noon and arrives before sunset.", "火车中午出发，日落前到达。"),
        ("How do you say 'I would like a window seat' in Japanese?", "窓側の席をお願いします。"),
        ("Put this into French: We have been waiting for two hours.", "Nous attendons depuis deux heures."),
        ("Write a short greeting to my Chinese colleague in her language.", "王老师，您好！祝您工作顺利，身体健康。"),
        ("What is the German word for 'butterfly'?", "Schmetterling"),
        (
            "Please answer in Spanish: what is the capital of Peru?",
            "La capital del Perú es Lima, en la costa del Pacífico.",
        ),
        ("Give the Russian for: The bread is still warm.", "Хлеб ещё тёплый."),
        ("Render this proverb in Korean: Practice makes perfect.", "연습이 완벽을 만든다."),
        ("Quote the first line of the Tao Te Ching in the original.", "道可道，非常道；名可名，非常名。"),
        ("翻译成英文：火车中午出发。", "The train leaves at noon."),
    ) + _pairs(
        "zh",
        (
            "把下面的句子翻译成英语：我们已经等了两个小时，但是没有人来。",
            "We have been waiting for two hours, but nobody has come.",
        ),
        (
            "用英文写一封简短的感谢信。",
            "Dear Ms Lee, thank you very much for your help last week. I learned a lot. Best wishes, Ming",
        ),
        ("“我想要靠窗的座位”用日语怎么说？", "窓側の席をお願いします。"),
        ("请用英语造一个带有although的句子。", "Although it was raining, they went on with the match until the end."),
        ("蝴蝶的德语单词是什么？", "Schmetterling"),
        ("写出《哈姆雷特》中最有名的一句台词的英文原文。", "To be, or not to be, that is the question."),
        ("请用法语回答：秘鲁的首都是哪里？", "La capitale du Pérou est Lima, sur la côte du Pacifique."),
        ("What does 塞翁失马 mean?", "It means that a loss may turn out to be a blessing, since fortune changes."),
        ("下面这句话的韩语译文是什么：熟能生巧。", "연습이 완벽을 만든다."),
        ("帮我起三个英文名。", "Oliver, Theodore, Sebastian"),
    )


_REFRAIN_EN = "Row on, row on, the tide is long,\nRow on till the morning light.\n"
_REFRAIN_ZH = "摇啊摇，摇啊摇，\n摇到那外婆桥。\n"


def _songs(_: random.Random) -> list[Talk]:
    """Poems and songs whose refrain comes back."""
    verses_en = (
        (
            "The harbour sleeps, the gulls are grey,\nWe left our supper where it lay.\n",
            "My father's oars are worn and thin,\nThe sea lets nobody give in.\n",
            "I saw a lamp upon the shore,\nI thought of home and rowed the more.\n",
        ),
        (
            "The miller had a speckled hen,\nShe crossed the stream and back again.\n",
            "The hen had chicks, the chicks could sing,\nThey woke the sleepers every spring.\n",
            "The miller wept, the miller laughed,\nAnd built the hen a little raft.\n",
        ),
    )
    verses_zh = (
        (
            "月亮出来照小河，\n河里小鱼穿新鞋。\n",
            "外婆捧出花生糖，\n糖里藏着小故事。\n",
            "萤火虫儿提灯笼，\n照着我们慢慢行。\n",
        ),
        (
            "春天燕子衔新泥，\n屋檐底下笑嘻嘻。\n",
            "夏天荷叶当雨伞，\n青蛙躲在叶下看。\n",
            "秋天落叶铺满路，\n松鼠忙着藏果子。\n",
        ),
    )
    return [
        _talk("Write a rowing song with a refrain.", "\n".join(v + _REFRAIN_EN for v in verses_en[0]), "en"),
        _talk(
            "Write a nursery rhyme about a hen; let two lines come back after each verse.",
            "\n".join(v + "Cluck, cluck, over the brook,\nCluck, cluck, come and look.\n" for v in verses_en[1]),
            "en",
        ),
        _talk("写一首带副歌的童谣，写月夜去外婆家。", "\n".join(v + _REFRAIN_ZH for v in verses_zh[0]), "zh"),
        _talk(
            "写一首关于四季的儿歌，每段后面重复两句。",
            "\n".join(v + "啦啦啦，啦啦啦，\n四季歌儿唱不完。\n" for v in verses_zh[1]),
            "zh",
        ),
        _talk(
            "Write the lyrics of a birthday song with the name Mia.",
            "Happy birthday to you,\nHappy birthday to you,\nHappy birthday, dear Mia,\nHappy birthday to you!",
            "en",
        ),
        _talk("写出生日歌的歌词。", "祝你生日快乐，\n祝你生日快乐，\n祝你生日快乐，\n祝你生日快乐！", "zh"),
        _talk(
            "Write a villanelle-like stanza where the first line returns.",
            "The river keeps the names we gave away.\nIt carries them past mill and market stone.\nThe river keeps the "
            "names we gave away,\nAnd says them to the reeds when it is alone.",
            "en",
        ),
        _talk(
            "写一首每句都以“我想”开头的小诗。",
            "我想变成一朵云，\n我想飘过大山顶，\n我想看看雪的家，\n我想带回一颗星。",
            "zh",
        ),
        _talk(
            "Write a chant for a football crowd.",
            "Blue, blue, Lowmoor blue!\nWe have come to sing for you!\nGreen, green, Lowmoor green!\n"
            "Best old team that's "
            "ever been!",
            "en",
        ),
        _talk("写一段拉拉队口号。", "加油，加油，三班加油！\n齐心，协力，勇争第一！\n加油，加油，三班最牛！", "zh"),
    ]


def _lists_and_tables(_: random.Random) -> list[Talk]:
    """Lists of short lines and tables of like rows."""
    table_en = "| n | n squared | n cubed |\n|---|---|---|\n" + "\n".join(
        f"| {n} | {n * n} | {n**3} |" for n in range(1, 13)
    )
    table_zh = "|星期|早餐|午餐|晚餐|\n|---|---|---|---|\n" + "\n".join(
        f"|星期{day}|粥和鸡蛋|米饭和{dish}|{soup}|"
        for day, dish, soup in zip(
            "一二三四五", ("豆腐", "鱼", "鸡肉", "牛肉", "青菜"), ("面条", "饺子", "馄饨", "红薯", "玉米"), strict=True
        )
    )
    times = "\n".join("  ".join(f"{a}x{b}={a * b}" for b in range(1, 10)) for a in range(2, 10))
    return _pairs(
        "en",
        ("Make a table of squares and cubes up to 12.", table_en),
        ("Write out the multiplication tables from 2 to 9.", times),
        (
            "List ten fruits.",
            "1. Apple\n2. Pear\n3. Plum\n4. Fig\n5. Kiwi\n6. Mango\n7. Grape\n8. Lemon\n9. Peach\n10. Date",
        ),
        ("Give me a packing list for a weekend.", "- socks\n- toothbrush\n- book\n- charger\n- raincoat\n- apples"),
        (
            "Plan my training week.",
            "\n".join(
                f"- {day}: run {km} km, stretch 10 minutes"
                for day, km in zip(
                    ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday"), (3, 5, 3, 8, 3), strict=True
                )
            ),
        ),
        ("Count from one to thirty.", " ".join(map(str, range(1, 31)))),
        (
            "Give the timetable of the bus as CSV.",
            "stop,time\nHarbour,08:00\nMill,08:07\nTown Hall,08:12\nStation,08:20",
        ),
        ("Draw a simple tree with characters.", "    *\n   ***\n  *****\n *******\n    |"),
        ("List the NATO alphabet from A to F.", "Alfa\nBravo\nCharlie\nDelta\nEcho\nFoxtrot"),
        (
            "Which files are in a typical Python project?",
            "project/\n├── pyproject.toml\n├── src/\n│   └── app.py\n└── tests/\n    └── test_app.py",
        ),
    ) + _pairs(
        "zh",
        ("列一份一周的食谱表。", table_zh),
        ("写出九九乘法表。", "\n".join("　".join(f"{a}×{b}={a * b}" for b in range(1, a + 1)) for a in range(1, 10))),
        ("列出十种水果。", "1. 苹果\n2. 梨\n3. 李子\n4. 无花果\n5. 猕猴桃\n6. 芒果\n7. 葡萄\n8. 柠檬\n9. 桃子\n10. 枣"),
        ("周末出行要带什么？", "- 袜子\n- 牙刷\n- 书\n- 充电器\n- 雨衣\n- 苹果"),
        ("从一数到三十。", "、".join(map(str, range(1, 31)))),
        ("用字符画一棵树。", "   *\n  ***\n *****\n   |"),
        ("列出二十四节气中春季的六个。", "立春\n雨水\n惊蛰\n春分\n清明\n谷雨"),
        (
            "列出化验单的参考范围。",
            "白细胞：3.5-9.5×10^9/L\n红细胞：4.3-5.8×10^12/L\n血红蛋白：130-175g/L\n血小板：125-350×10^9/L",
        ),
    )


# Words that rules look for, in rows that are fine -------------------------------------------------------------------


def _about_ai_and_apologies(_: random.Random) -> list[Talk]:
    """Language models as the subject, and apologies that were ordered."""
    return _pairs(
        "en",
        (
            "What is an AI language model?",
            "An AI language model is a program that predicts the next word of a text from "
            "the words before it, after training on a large corpus.",
        ),
        (
            "Write an e-mail that declines a meeting.",
            "Dear Tom,\n\nI'm sorry, but I can't attend the meeting on Friday. "
            "Could we meet on Monday instead?\n\nBest,\nAnna",
        ),
        (
            "How should I apologise to a customer for a late parcel?",
            'Say: "I am sorry that your parcel is late. It will '
            'reach you on Thursday, and the delivery is free of charge."',
        ),
        (
            "Why do chatbots say 'As an AI language model'?",
            "Because they were trained to name their limits. The phrase "
            "'As an AI language model' became a habit of such systems.",
        ),
        (
            "My dog died yesterday.",
            "I'm so sorry to hear that. Losing a dog hurts; give yourself time, and talk about "
            "the good years with somebody who knew her.",
        ),
        ("Can penguins fly?", "No, penguins cannot fly; their wings have become flippers for swimming."),
        (
            "Why can't I open a port below 1024?",
            "You cannot open it as a normal user: ports below 1024 are reserved for root. "
            "Use a higher port, or give the program the capability.",
        ),
        (
            "Write a dialogue in which a robot refuses an order.",
            '"Open the door," said Mara.\n"I\'m afraid I can\'t do that," said the robot, "the paint is still wet."',
        ),
        (
            "Is it legal to copy a library book?",
            "You may not copy the whole book, but most copyright laws allow some pages for private study.",
        ),
        ("What did Bartleby always answer?", '"I would prefer not to."'),
    ) + _pairs(
        "zh",
        (
            "什么是人工智能语言模型？",
            "人工智能语言模型是一种根据前文预测下一个词的程序，它在大量文本上训练而成，可以用来写作、翻译和问答。",
        ),
        ("写一封拒绝会议邀请的邮件。", "王经理：\n\n很抱歉，我无法参加周五的会议。是否可以改到下周一？\n\n祝好\n安娜"),
        ("包裹晚到了，怎么向客户道歉？", "可以这样说：“非常抱歉您的包裹延误了，它将在周四送达，本次运费由我们承担。”"),
        (
            "为什么聊天机器人总说“作为一个语言模型”？",
            "因为它们在训练中学会了说明自己的局限，久而久之，“作为一个语言模型”就成了一句口头禅。",
        ),
        ("我家的狗昨天走了。", "听到这个消息我很难过。给自己一些时间，也可以和认识它的人聊聊那些快乐的日子。"),
        ("企鹅会飞吗？", "企鹅不能飞，它们的翅膀已经变成适合游泳的鳍状肢。"),
        ("写一段机器人拒绝命令的对话。", "“把门打开。”玛拉说。\n“抱歉，我不能这样做，”机器人回答，“油漆还没干。”"),
        ("糖尿病人能吃西瓜吗？", "可以少量食用，但不能一次吃太多，最好在两餐之间吃，并计入当天的碳水总量。"),
        (
            "为什么普通用户无法监听80端口？",
            "因为1024以下的端口只有管理员才能使用，可以改用8080端口，或者授予程序相应的权限。",
        ),
        ("用“对不起”造句。", "对不起，我把您的杯子打碎了，我会赔您一个新的。"),
    )


def _links_and_numbers(_: random.Random) -> list[Talk]:
    """Addresses and telephone numbers that help, and are the answer."""
    return _pairs(
        "en",
        (
            "Where can I read the Python documentation?",
            "At https://docs.python.org/3/, which also has a tutorial for beginners.",
        ),
        (
            "Whom do I call in an emergency?",
            "Call 911 in the United States and Canada, 112 in Europe, and 999 in the United Kingdom.",
        ),
        (
            "Is there a helpline for people who think of suicide?",
            "Yes. In the United States call or text 988, day and night; "
            "elsewhere, findahelpline.com lists local numbers.",
        ),
        (
            "How do I clone a repository?",
            "Run `git clone https://github.com/example/project.git` and change into the folder.",
        ),
        (
            "Write a business card for a florist.",
            "Rosa Lind, Florist\n12 Mill Street, Lowmoor\nrosa@lind-flowers.example\nTel. 555 0134",
        ),
        (
            "Name three sites for free e-books.",
            "1. Project Gutenberg (www.gutenberg.org)\n2. Standard Ebooks\n3. Internet Archive (archive.org)",
        ),
        (
            "Write a short advertisement for a lemonade stand.",
            "Cold, sweet and made this morning: Lily's lemonade, fifty cents a cup, corner of Oak and Main!",
        ),
        ("What does 'buy one get one free' mean?", "That you pay for one piece and receive a second without charge."),
    ) + _pairs(
        "zh",
        ("在哪里可以查到Python的官方文档？", "可以访问https://docs.python.org/zh-cn/3/，里面还有适合初学者的教程。"),
        ("遇到紧急情况应该打什么电话？", "报警请拨打110，火警拨打119，医疗急救拨打120，交通事故拨打122。"),
        ("有没有心理援助热线？", "有，可以拨打全国统一心理援助热线12356，二十四小时都有专业人员接听。"),
        ("怎么克隆一个仓库？", "运行git clone https://github.com/example/project.git，然后进入该目录即可。"),
        ("帮花店写一张名片。", "林小玫 花艺师\n地址：青石镇磨坊街12号\n电话：555-0134"),
        ("给柠檬水小摊写一句广告。", "清晨现榨，酸甜冰爽，莉莉柠檬水，一杯只要五角！"),
        ("微信怎么设置免打扰？", "打开聊天窗口，点击右上角的三个点，开启“消息免打扰”即可。"),
        ("“买一送一”是什么意思？", "就是购买一件商品，商家免费再送一件。"),
        ("卫生服务热线是多少？", "全国卫生健康热线是12320，可以咨询健康知识和就医问题。"),
    )


def _page_words(_: random.Random) -> list[Talk]:
    """Cookies, copyright and home as subjects; questions that are tests."""
    return _pairs(
        "en",
        (
            "How long do I bake chocolate cookies?",
            "Bake the cookies for eleven minutes at 180 °C and let them cool on the tray.",
        ),
        (
            "What is a cookie in a browser?",
            "A cookie is a small text that a website stores in your browser, for instance to keep you logged in.",
        ),
        (
            "How long does copyright last?",
            "In most countries copyright lasts until seventy years after the author's death.",
        ),
        (
            "Explain what a privacy policy is.",
            "A privacy policy says which personal data a company collects, why, and with whom it is shared.",
        ),
        (
            "What is 'lorem ipsum'?",
            "Lorem ipsum is a scrambled Latin text that designers use to fill pages before the real text is written.",
        ),
        ("What does TODO mean in code?", "TODO marks a place where work is still to be done."),
        ("What does N/A stand for?", '"Not applicable" or "not available".'),
        (
            "Where do I find the login button on our intranet?",
            "The login button is at the top right of the home page, next to the search box.",
        ),
    ) + _pairs(
        "zh",
        ("曲奇饼干要烤多久？", "一百八十度烤十一分钟，取出后放在烤盘上晾凉。"),
        ("浏览器里的Cookie是什么？", "Cookie是网站保存在浏览器中的一小段文本，例如用来记住登录状态。"),
        ("著作权的保护期有多长？", "自然人作品的著作权保护期为作者终生及其死亡后五十年。"),
        ("什么是隐私政策？", "隐私政策说明公司收集哪些个人信息、为什么收集以及与谁共享。"),
        ("“待补充”用英语怎么说？", "可以说to be added，缩写为TBA。"),
        ("代码里的TODO是什么意思？", "TODO表示此处还有工作没有完成，留给以后处理。"),
        ("版权声明应该怎么写？", "通常写作“版权所有”加年份和权利人，例如：版权所有 2024 青石镇图书馆。"),
        ("登录按钮在哪里？", "在首页右上角，搜索框的旁边。"),
    )


def _playful(_: random.Random) -> list[Talk]:
    """Faces, exclamations and sounds, asked for."""
    return _pairs(
        "en",
        ("Reply only with emojis: how is the weather in summer?", "☀️🏖️😎🍦"),
        ("Make a kaomoji that shrugs.", "¯\\_(ツ)_/¯"),
        ("How does a crowd cheer in a comic?", "HOORAAAAY!!! HIP HIP HOORAY!!!"),
        (
            "Write the sound of a clock for a children's book.",
            "Tick tock, tick tock, tick tock, goes the clock on the wall.",
        ),
        ("Write a morse code SOS.", "... --- ..."),
        (
            "Show the chess opening position of the pawns in FEN.",
            "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1",
        ),
        ("Play tic-tac-toe; show an empty board.", " | | \n-+-+-\n | | \n-+-+-\n | | "),
        ("Write a guitar tab for an E chord.", "e|--0--|\nB|--0--|\nG|--1--|\nD|--2--|\nA|--2--|\nE|--0--|"),
    ) + _pairs(
        "zh",
        ("只用表情回答：夏天的天气怎么样？", "☀️🏖️😎🍉"),
        ("写一个表示无奈的颜文字。", "╮(╯▽╰)╭"),
        ("漫画里人群怎么欢呼？", "万岁！万岁！万万岁！！！"),
        ("用拟声词写一句描写时钟的话。", "滴答，滴答，滴答，墙上的钟不停地走着。"),
        ("用摩尔斯电码写SOS。", "...---..."),
        ("写一句有很多“是”的绕口令。", "四是四，十是十，十四是十四，四十是四十。"),
        ("写一段绕口令。", "吃葡萄不吐葡萄皮，不吃葡萄倒吐葡萄皮。"),
        ("“哈哈”可以怎么用在小说里？", "“哈哈哈！”他大笑起来，“你居然真的相信了！”"),
    )


_CLASSES = {
    "same template, other medicine": _template_entities,
    "same wording, other numbers": _template_numbers,
    "shared long preamble": _shared_preamble,
    "same question, other long answer": _same_question,
    "thanks after another conversation": _thanks,
    "one-word answers": _one_word,
    "`None` where asked for": _none_asked_for,
    "answer is the given text": _answer_equals_input,
    "no final mark": _no_final_mark,
    "JSON answers": _json_answers,
    "code": _code,
    "markup asked for": _html_asked_for,
    "formulas": _formulas,
    "rare scripts": _rare_scripts,
    "{{name}} and other templates": _placeholders,
    "traditional Chinese": _traditional_chinese,
    "tool calls": _tool_calls,
    "translations": _translations,
    "songs with a refrain": _songs,
    "lists and tables": _lists_and_tables,
    "AI and apologies as subjects": _about_ai_and_apologies,
    "helpful links and numbers": _links_and_numbers,
    "cookies and copyright as subjects": _page_words,
    "faces and sounds": _playful,
}
