"""Who somebody is and where they live: names and addresses, found only where the text says that they are some.

Without a dictionary or a model neither can be told from other words, so a label or a sentence such as 我叫 or "I live
at" must introduce them. Names in running text, nicknames and the addresses of firms are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from dsr1_tune.data.privacy.numbers import Span

HAN = "\u4e00-\u9fff"
_CHINESE = re.compile(f"[{HAN}]")

# Between a label and what it labels: a colon, also in JSON ("姓名": "张三"), bold (**姓名：**) or a table's bar.
_COLON = r"[\\\"'”*\s]{0,4}[:=|][\\\"'“*\s]{0,4}"
_SAID = r"[\\\"'“*\s:]{0,4}"
_IS = r"[\\\"'”*\s]{0,4}(?:[:=|]|是|为|叫)?[\\\"'“*\s]{0,4}"

# ---- names -----------------------------------------------------------------------------------------------------------

# The surnames of all but a few in a thousand; characters that begin ordinary words are kept, the ends decide.
_SURNAME = (
    "(?:欧阳|上官|司马|诸葛|夏侯|皇甫|尉迟|公孙|慕容|令狐|司徒|东方|端木|南宫|独孤|西门|长孙|宇文|轩辕|澹台|呼延|"
    "[赵钱孙李周吴郑王冯陈褚卫蒋沈韩杨朱秦尤许何吕施张孔曹严华金魏陶姜戚谢邹喻柏水窦章云苏潘葛奚范彭郎鲁韦昌马苗凤"
    "花方俞任袁柳酆鲍史唐费廉岑薛雷贺倪汤滕殷罗毕郝邬安常乐于时傅皮卞齐康伍余元卜顾孟平黄穆萧尹姚邵湛汪祁毛禹狄米"
    "贝明臧计伏成戴谈宋茅庞熊纪舒屈项祝董梁杜阮蓝闵席季麻强贾路娄危江童颜郭梅盛林刁钟徐邱骆高夏蔡田樊胡凌霍虞万支"
    "柯昝管卢莫经房裘缪干解应宗丁宣邓郁单杭洪包诸左石崔吉钮龚程嵇邢滑裴陆荣翁荀羊甄曲家封芮储靳汲邴糜松井段富巫乌"
    "焦巴弓牧隗山谷车侯宓蓬全郗班仰秋仲伊宫宁仇栾暴甘厉戎祖武符刘景詹束龙叶幸司韶郜黎蓟薄印宿白怀蒲邰从鄂索咸籍赖"
    "卓蔺屠蒙池乔阴胥能苍双闻莘党翟谭贡劳逄姬申扶堵冉宰郦雍却璩桑桂濮牛寿通边扈燕冀浦尚农温别庄晏柴瞿阎充慕连茹习"
    "艾鱼容向古易慎戈廖庾终暨居衡步都耿满弘匡国文寇广禄阙东欧利师巩聂关荆肖仝佟闫郏丘覃苟岳帅付涂曾沙游竺权盖桓冼邝楚晋商牟佘植揭粟])"
)
# What may follow a name without a sign between.
_NEXT = (
    rf"(?=[^{HAN}·]|\Z|性别|年龄|男|女|电话|手机|联系|身份|证件|住址|地址|家庭|出生|民族|籍贯|职业|今年|来自|现年"
    r"|是[一我你来个]|微信|邮箱|生日|家住|住[在址]|和我|先生|女士)"
)
_TITLE = "某|先生|女士|小姐|老师|医生|主任|教授|大夫|师傅|经理|同学|阿姨|叔叔|总"
_HAN_NAME = rf"{_SURNAME}(?!{_TITLE})[{HAN}]{{1,2}}{_NEXT}"
_ABROAD_NAME = rf"[{HAN}]{{1,6}}(?:·[{HAN}]{{1,7}}?){{1,3}}(?=[^{HAN}·]|\Z|[的是和在性年电手住来今])"
_LATIN_WORD = r"[A-Z](?:[a-zà-ÿ]+|['’][A-Z][a-z]+)(?:[A-Z][a-z]+)?"
_LATIN_NAME = (
    rf"(?:(?:Mr|Mrs|Ms|Dr)\.? )?{_LATIN_WORD}(?:[ -](?:[A-Z]\. |(?:de|van|von|der|da|al|bin) )?{_LATIN_WORD}){{0,3}}"
    r"(?![A-Za-z0-9_])"
)
# Beside a Chinese label one Latin word is more often an example's "John" than somebody's name.
_ANY_NAME = rf"({_HAN_NAME}|{_ABROAD_NAME}|(?=[A-Z][A-Za-z'’]+[ -][A-Z]){_LATIN_NAME})"

_LABELLED = re.compile(
    rf"姓 {{0,4}}名{_IS}{_ANY_NAME}"
    r"|(?:紧急联系人|联系人|收件人|收货人|寄件人|取件人)(?: {1,2}|"
    rf"{_COLON}){_ANY_NAME}"
    r"|(?:申请人|投保人|被保险人|受益人|持卡人|户主|户名|法定代表人|法人代表|监护人|委托人|原告|被告人|被告|被害人|被上诉人|上诉人"
    rf"|甲方|乙方|出租方|承租方|借款人|出借人|客户名|患者名){_COLON}{_ANY_NAME}"
    rf"|(?:我|本人|病人|患者|孩子|我父亲|我母亲|我爸|我妈|我爱人|我老公|我老婆|我儿子|我女儿)(?:的名字|名字|名)?(?:叫做|叫|是叫|名字是){_SAID}{_ANY_NAME}"
    rf"|(?:我|本人)的?名字是{_SAID}{_ANY_NAME}"
)
# Begins with letters that are quickly found; what stands before them is looked at afterwards.
_NAME_IS = re.compile(rf"ame(?: is|['’]s|[\\\"'”*]{{0,3}} ?[:=|])[\\\"'“*\s]{{1,4}}({_LATIN_NAME})(?! ?:)")
_WHOSE = re.compile(
    r"(?:\b(?i:my (?:full |real |legal )?n)|(?i:\b(?:patient|customer|client|contact|applicant|employee|cardholder"
    r"|card holder|account holder|student|guardian|full|first|last|given|family|beneficiary|recipient|passenger|guest"
    r"|member|policyholder)(?:['’]s)?[ _](?:full |first |last )?n))\Z"
)
# Assistants introduce themselves in training data; forms hold what is to be filled in.
_NO_NAME = frozenset({"Name", "First", "Last", "Full", "Email", "Phone", "Address", "Date", "Age", "Gender", "The"})
_NO_NAME |= {"String", "Text", "Not", "None", "Null", "True", "False", "Unknown", "Your", "My", "Assistant", "ChatGPT"}
_NO_NAME |= {"GPT", "Claude", "Siri", "Alexa", "Cortana", "Bard", "Gemini", "Qwen", "DeepSeek", "Llama", "Mistral"}


def names(text: str, start: int, end: int) -> Iterator[Span]:
    """Names behind a label (姓名, 收件人, Patient name) or in an introduction (我叫, My name is)."""
    if _CHINESE.search(text):
        for match in _LABELLED.finditer(text, start, end):
            yield match.span(match.lastindex or 0)
    for match in _NAME_IS.finditer(text, start, end):
        before = text[max(0, match.start() - 40) : match.start()]
        if _WHOSE.search(before) and re.split(r"[ '’-]", match[1])[0] not in _NO_NAME:
            yield match.span(1)


# ---- addresses -------------------------------------------------------------------------------------------------------

_HOME = (
    "(?:家庭住址|家庭地址|现住址|现住地址|居住地址|居住地|居住在|居住于|住址|户籍地址|户籍所在地|户籍地|户籍|户口所在地|"
    "户口地址|收货地址|收件地址|收件人地址|寄送地址|邮寄地址|送货地址|配送地址|通讯地址|通信地址|联系地址|住所地|住所|"
    "家住|现住|我住|住在|住于|寄到|寄往|送到|送往|我家在|家在|地址|[，。,；; ]住(?![院宿房进]))"
)
_UNIT = "(?:号楼|号院|号|弄|栋|幢|座|单元|楼|层|室|户|组|队|社|房|门)"
# Possessive (`{1,5}+`): what was taken for an area is tried as nothing else, or a long junk text would take seconds.
_AREAS = (
    rf"(?:[{HAN}]{{2,9}}?(?:特别行政区|自治区|自治州|自治县|开发区|新区|地区|街道|省|市|州|盟|区|县|旗|镇|乡)"
    r" ?){1,5}+"
)
_ROADS = (
    rf"(?:[{HAN}A-Z0-9]{{1,12}}?(?:大道|胡同|小区|花园|家园|公寓|大厦|新村|社区|广场|路|街|道|巷|弄|里|村|屯|庄|苑|城|府"
    r"|湾|庭|园|段|坊|寓) ?)"
)
_NUMBERS = (
    r"(?:(?:[A-Za-z甲乙丙东西南北]?(?:[0-9]{1,5}|[一二三四五六七八九十百零]{1,4})(?:-[0-9A-Za-z]{1,5}){0,3} ?"
    rf"{_UNIT}|[A-Za-z甲乙丙丁东西南北](?:座|栋|幢|单元|区|楼)) ?)"
)
_FLAT_NUMBER = r"(?:[0-9]{1,4}(?:-[0-9]{1,4}){0,3}(?![0-9]))"
_HAN_ADDRESS = (
    rf"(?:中国)?(?:{_AREAS}{_ROADS}{{0,3}}(?:{_NUMBERS}{_ROADS}?){{1,6}}{_FLAT_NUMBER}?"
    rf"|{_AREAS}{_ROADS}{{1,3}}{_FLAT_NUMBER}?|{_ROADS}{{1,2}}{_NUMBERS}{{1,5}}{_FLAT_NUMBER}?)"
)
_LIVES_ZH = re.compile(rf"({_HOME}){_IS}(?:在|于)?({_HAN_ADDRESS})")
_FLAT = re.compile(r"室|单元|栋|幢|号楼|户|[0-9]-[0-9]")

_STREET = re.compile(
    r"[0-9](?<![0-9A-Za-z.][0-9])[0-9]{0,4}[A-Za-z]?(?:-[0-9]{1,4})? (?:(?:[NSEW]|North|South|East|West)\.? )?"
    r"(?:(?:[A-Z][a-z'’]+|[0-9]{1,3}(?:st|nd|rd|th)) ){1,3}"
    r"(?:(?:St|Ave|Rd|Blvd|Ln|Dr|Ct|Pl|Ter|Cir|Hwy|Pkwy)\b\.?|(?:Street|Avenue|Road|Boulevard|Lane|Drive|Court|Way|Place"
    r"|Terrace|Circle|Highway|Parkway|Square|Close|Crescent)\b)"
    r"(?:,? (?:Apt|Apartment|Suite|Ste|Unit|Flat|Floor|#)\.? ?#?[0-9A-Za-z-]{1,6})?"
    r"(?:,? [A-Z][a-z]+(?: [A-Z][a-z]+){0,2},? [A-Z]{2},? [0-9]{5}(?:-[0-9]{4})?)?"
)
_LIVES_EN = re.compile(
    r"(?:(?i:\b(?:live|lives|living|lived|reside|resides|residing|residence) (?:at|in|on|is)"
    r"|\b(?:home|shipping|billing|mailing|postal|street|residential|delivery|current|permanent|my|his|her|their|patient"
    r"|customer)(?:['’]s)?(?: home| mailing)? address(?: is| was)?"
    r"|\b(?:ship|shipped|deliver|delivered|mail|mailed|send|sent|moved)"
    r"(?: it| this| them| the \w{1,20}| my \w{1,20})? to)"
    r"|\bAddress)[\\\"'”*\s]{0,4}:?[\\\"'“*\s]{1,4}\Z"
)


def addresses(text: str, start: int, end: int) -> Iterator[Span]:
    """Addresses that the text says somebody lives at or is written to, down to a house, estate or village.

    地址 alone may be a hospital's or a court's, and counts only with a flat: 3栋2单元501室.
    """
    if _CHINESE.search(text):
        for match in _LIVES_ZH.finditer(text, start, end):
            if match[1] != "地址" or _FLAT.search(match[2]):
                yield match.start(2), match.start(2) + len(match[2].rstrip())
    for match in _STREET.finditer(text, start, end):
        if _LIVES_EN.search(text[max(0, match.start() - 60) : match.start()]):
            yield match.span()
