"""The rule about answers that break off."""

from __future__ import annotations

import re

from dsr1_tune.data.record import Drop, Row
from dsr1_tune.data.rules.settings import TruncatedAnswer
from dsr1_tune.data.rules.text_features import LONG, Text, View, looks_like_code, phrases, quoted, view


def truncated_answer(row: Row, rule: TruncatedAnswer) -> Row | Drop:
    """Drop a final answer that breaks off; lists, titles, names, code and single sentences need no full stop."""
    seen = view(row)
    text = seen.answer
    if text is None or len(text.content) < rule.min_chars:
        return row
    content = text.content.rstrip()
    if not content:
        return row
    last = content[-1]
    if not last.isalpha() and last not in _OPENS and b"`" not in text.signs and content[0] not in "{[":
        is_bare = (last in _AFTER_NUMBERS and content[-2].isdigit()) or last in _BULLETS
        why = "a list ends with a bare number" if is_bare and _ends_with_bare_number(content) else ""
    else:
        why = _breaks_off(content, text, rule, seen)
    if not why:
        return row
    detail = f"{why}: … {quoted(content[-40:])}"
    return Drop("truncated_answer", detail, "complete the answer, or remove the row", text.message.path)


_OPENS = frozenset(",，、:：([{（【《“‘「『<")
_AFTER_NUMBERS = frozenset(".)、．）")
_BULLETS = frozenset("*-•·")
_BARE_NUMBER = re.compile(r"(?:[\n。；;!?！？]|\.[ \t])[ \t]*[(（]?(\d{1,3})[.)、．）]$")


def _ends_with_bare_number(content: str) -> bool:
    """Whether the last item of a list is only its number or bullet."""
    found = _BARE_NUMBER.search(content[-12:])
    if found:
        before = int(found[1]) - 1
        return (
            before > 0 and re.search(rf"(?:^|[\n。；;.!?！？])[ \t]*[(（]?{before}[.)、．）]\s*\S", content) is not None
        )
    bullet = content[-1]
    if bullet not in _BULLETS or not content[-3:-1].endswith("\n"):
        return False
    return re.search(rf"^[ \t]*{re.escape(bullet)} ?[^\W_]", content[-LONG:], re.M) is not None


def _breaks_off(content: str, text: Text, rule: TruncatedAnswer, seen: View) -> str:
    """What shows that the answer breaks off, or nothing."""
    last = content[-1]
    if content.count("```") % 2:
        return "a block of code is not closed"
    if _JSON.match(content):
        return "JSON is not closed" if last not in "]}" and not _closes_json(content) else ""
    if not last.isalpha() and last not in _OPENS:
        return ""
    lines = [line for line in map(str.strip, content[-LONG:].split("\n")) if line]
    line = lines[-1]
    if last in _OPENS:
        return f"it ends with {last}"
    if len(lines) > 1 and line.lower() in _LONE:
        return "the last line breaks off after its first word"
    if (b"```" in text.data or looks_like_code(text)) and not _reads_as_prose(line):
        return ""
    if _unclosed(line):
        return "a bracket is not closed"
    finished = len(lines) > 1 and lines[-2][-1] in _FULL_STOPS
    if _ends_with_small_word(line, finished) and not (last == "的" and _is_careless(line)):
        return "it ends with a word that needs another"
    if finished and _is_a_shred(line, content):
        return "the last line breaks off in its first word"
    if not rule.unended or _is_signature(lines) or _is_careless(line) or _TAG.search(line):
        return ""
    tail = _after_last_sentence(_GREETING.sub("", line))
    if tail and not (_STATUTE.search(line) and _QUOTES_LAW.search(content)):
        return "" if _CLOSING.match(tail) and len(tail) < 40 else "the last sentence has no end"
    if len(lines) > 1 and _others_end(lines):
        return "the last line has no end"
    if (
        _LONG_SENTENCE.match(line)
        and not line[-2:].startswith(" ")
        and not _ITEM.match(line)
        and not _is_phrase(line, seen)
    ):
        return "the sentence has no end"
    return ""


def _reads_as_prose(line: str) -> bool:
    """Whether a line that follows code or formulas is a sentence of its own."""
    if _CODE_IN_LINE.search(line):
        return False
    return len(HAN.findall(line)) > 20 or len(re.findall(r"(?<![\w.])[a-z]{2,}(?![\w.])", line)) > 9


_CODE_IN_LINE = re.compile(r"[=<>{}\\|;`$#@\[\]]|\w\(|\)\w")
# Statutes are quoted as far as they are needed.
_STATUTE = re.compile(r"第[一二三四五六七八九十百千零〇\d]+条")
_QUOTES_LAW = re.compile(r"法律依据|法条|条文|依据[:：]|规定[:：]")
_GREETING = re.compile(r"^(?:您好|你好|hi|hello|hey)[^。！!.，,\n]{0,8}[。！!.，,]\s*", re.I)


def _is_phrase(line: str, seen: View) -> bool:
    """Whether the line is a title, a slogan or another phrase, which needs no full stop: it has no verb."""
    words = [word for word in re.findall(r"[^\W\d_]+", line) if len(word) > 3]
    if not _VERB.search(line) or sum(word[0].isupper() for word in words) * 10 > 6 * len(words):
        return True
    return _ASKS_FOR_PHRASE.search(seen.asked) is not None


_VERB = re.compile(
    r"\b(?:is|are|was|were|be|been|has|have|had|do|does|did|can|could|will|would|should|may|might|must|made|went|became|"
    r"(?:mak|tak|includ|us|provid|becom|giv|involv|caus|requir|increas|reduc|improv|creat|creat|serv|driv|produc)es?|"
    r"(?:need|help|come|get|show|allow|contain|mean|refer|occur|keep|let|lead|play|work|represent|enjoy|feel|know|say|want|begin)s?|"
    r"goes|(?:add|depend|consist|remain|appear|seem|follow|happen|protect|prevent|affect|bring|hold|stand|grow|think|believe|tell|ask|find|see|learn|lose|agree|exist|vary)s|\w{3,}ed)\b|n't\b|['’](?:re|ll|ve|m)\b",
    re.I,
)
_ASKS_FOR_PHRASE = re.compile(
    r"slogan|headline|\btitle|subject line|tagline|caption|motto|\bname\b|heading|hashtag|\bphrase|\bpoem|\bverse|haiku|lyric"
)
# `#PuppyLove` and `- C. S. Lewis` end without a full stop.
_TAG = re.compile(
    r"#\w+$|[-—–~] ?[A-Z][\w. ]{2,40}$|(?:regards|wishes|sincerely|yours|cheers|love|thanks),? [A-Z]\w+(?: \w+)?$"
)
# A sentence of twelve words and more is no title.
_LONG_SENTENCE = re.compile(r"[A-Z\"'“](?:\S+ ){11,}\S+$")


_JSON = re.compile(r"\{\s*[\"']\w|\[\s*[\"{]")


def _closes_json(content: str) -> bool:
    """Whether the brackets are balanced: prose follows JSON, or comes from a list such as [name]."""
    return content.count("{") <= content.count("}") and content.count("[") <= content.count("]")


def _unclosed(line: str) -> bool:
    """Whether a bracket is opened in the line and never closed."""
    return any(
        line.count(opens) > line.count(closes) and line.rfind(opens) > line.rfind(closes)
        for opens, closes in ("()", "（）", "【】", "《》", "「」", "“”")
    )


# Words and characters after which something must follow.
_SMALL_WORDS = frozenset(
    phrases(
        """a|an|the|of|to|and|or|with|for|from|by|into|onto|than|that|which|whose|because|although|while|whereas|as|at
        is|are|was|were|be|been|being|has|have|had|will|would|should|could|can|may|might|must|such|including|like
        their|your|our|my|its|his|every|each|very|between|through|about|if|when|but|not|also|more|most|both|in|on"""
    )
)
_FEW_MAY_END = frozenset(
    phrases("in|on|of|to|for|with|from|by|about|like|be|is|are|was|have|can|will|not|more|most|that|both")
)
_LONE = frozenset(phrases("the|this|these|however|therefore|in|to|for|and|so|if|when|as|it|but|by|with|on|at|from|of"))
_BEGINNERS = frozenset(
    phrases("this|these|those|so|however|therefore|then|he|she|we|they|there|many|some|other|another")
)
_SMALL_HAN = frozenset(
    "和与或及以从由将并而但因把被向比使让给跟且其该这那每某各于为在是对还就很更最较极再仍曾已却若如虽即均皆请怎哪引避采患"
)
# Words that end with such a character, and may end a sentence.
_WHOLE_PAIRS = frozenset(
    phrases(
        "原因|病因|基因|诱因|成因|起因|理由|自由|缘由|事由|行为|认为|作为|成为|称为|以为|人为|合并|尤其|及其|"
        "对比|相比|百分比|不对|核对|相对|绝对|反对|面对|应对|针对|配对|是对|属于|关于|由于|位于|低于|高于|大于|小于|等于|趋于|处于|至于|对于|"
        "存在|现在|实在|所在|内在|潜在|正在|可以|所以|难以|予以|加以|得以|天使|大使|行使|驱使|即使|交给|还给|应该|不该|活该|各地|例如|比如|"
        "假如|不如|成就|造就|更加|不再|一再|偿还|归还|返还|讨还|退还|邀请|申请|聘请|敬请|饱和|温和|缓和|总和|中和|共和|参与|给予|赠与|普及|以及|"
        "涉及|提及|来及|自从|服从|顺从|听从|方向|倾向|导向|取向|定向|转向|面向|植被|棉被|循环比|避让|转让|礼让|出让|而且|况且|尚且|暂且|是否是|也是|"
        "都是|就是|不是|还是|正是|吸引|牵引|指引|索引|导引|援引|躲避|回避|规避|逃避|风采|喝采|病患|隐患|后患|医患|忧患|平均|立即|随即|当即|最后"
    )
)
# `的` after a noun needs another; after these a sentence is whole: 是可以的, 会好的.
_WHOLE_DE = re.compile(
    r"(?:是|会|挺|蛮|有|必须|应该|很|可)[^，,。；;、]{0,24}的$|(?:好|以|对|错|样|定|有|多|少|大|小|高|低|难|常|用|险|理|要|可能|不能|事|儿|起|致|成|"
    r"关|同|在|着|了|过|到|住|来|去|造|做|写|说|引|发|男|女|他|她|它|我|你|您|者)的$"
)
_WHOLE_LAI = re.compile(
    r"(?:起|出|未|以|下|过|回|将|本|原|上|进|历|从|向|近|到|由|带|传|后|外|往|再|想|醒|看|听|说)来$"
)
# Words that need another, and a clause of a character or two.
_NEEDS_MORE = re.compile(
    r"(?:祝您|祝你|希望您|建议您|例如|比如|包括|并且|而且|因此|所以|如果|由于|通过|(?<!正在)(?<!继续)(?<!同时)进行|根据|能够|必须)$|"
    r"(?<=[\u4e00-\u9fff]{3}，)(?!谢谢|再见|您好|加油|好吗|可以|良好|即可|为宜|为佳|恢复|正常|等等|是的|不是|没有|不能|会的|健康)[\u4e00-\u9fff]{1,2}$"
)
# The last of several items in a list is a single character, the others are not.
_CUT_ITEM = re.compile(r"[\u4e00-\u9fff]{2,}、[\u4e00-\u9fff]{2,}、[\u4e00-\u9fff]$")


def _ends_with_small_word(line: str, finished: bool = False) -> bool:
    """Whether the line ends with a word that cannot be the last; `finished` says that the line before has its end."""
    last = line[-1]
    if last >= "\u3400":
        if len(line) <= 12 and not finished:
            return False
        if _NEEDS_MORE.search(line[-6:]):
            return True
        if last in _SMALL_HAN:
            return line[-2:] not in _WHOLE_PAIRS
        if last == "的":
            return not _WHOLE_DE.search(line)
        return (last == "来" and not _WHOLE_LAI.search(line)) or _CUT_ITEM.search(line) is not None
    words = line.lower().split()
    if not words or not last.isascii() or (len(words) < 6 and not finished):
        return False
    word = words[-1]
    if finished and len(words) < 4 and word in _BEGINNERS:
        return True
    return word in _SMALL_WORDS and (word not in _FEW_MAY_END or len(words) > 8 or finished)


def _is_a_shred(line: str, content: str) -> bool:
    """Whether the last line is hardly more than a letter that stands nowhere else: `Therefore, t`."""
    words = line.split()
    word = words[-1]
    if len(word) > 1 or len(words) > 4 or word in "aABCDEI" or not word.isalpha():
        return False
    return word >= "\u3400" or re.search(rf"(?<!\w){word}(?!\w)", content[: -len(line)]) is None


def _is_signature(lines: list[str]) -> bool:
    """`Best regards,` and a name."""
    return len(lines[-1]) < 60 and any(_REGARDS.search(line) for line in lines[-4:-1])


_REGARDS = re.compile(
    r"^\W*(?:(?:best|kind|warm|many|with)\b.{0,20}|sincerely|yours|regards|love|cheers|respectfully|thank|"
    r"signed|cordially|此致|敬礼|"
    r"祝|谢谢|署名|落款|您的|你的|[-–—~～])",
    re.I,
)


def _is_careless(line: str) -> bool:
    """Whether a Chinese writer strings clauses together without full stops, or types half-width commas."""
    tail = _HAN_END.split(line)[-1]
    return (len(tail) > 80 and tail.count("，") > 3) or _HALF_COMMA.search(line) is not None


_HAN_END = re.compile(r"[。！？]")
_HALF_COMMA = re.compile(r"[\u4e00-\u9fff],[\u4e00-\u9fff]")
# The end of a sentence within a line: not after 1. or Dr. or U.S.
_SENTENCE_END = re.compile(
    r"[。！？!?][”’」』)）\"]?|(?<=[a-z\d)\"'”]{3})\.[\"'”)]?\s+(?=[A-Z\"'“(\[])|(?<=[a-z]{3})\.\d*\s+(?=[A-Z])"
)
_CLOSING = re.compile(
    r"\W*(?:祝|希望|期望|谢谢|感谢|愿|加油|再见|以上|供您参考|仅供参考|#|https?:|--?|—|source|hope|thank|"
    r"good luck|cheers|best|kind|warm|yours|sincerely|regards|love,)",
    re.I,
)


def _after_last_sentence(line: str) -> str:
    """What follows the last finished sentence of the line; nothing where it holds no finished sentence."""
    tail_from = 0
    for found in _SENTENCE_END.finditer(line):
        tail_from = found.end()
    tail = line[tail_from:].strip() if tail_from else ""
    return tail if any(map(str.isalpha, tail)) else ""


def _others_end(lines: list[str]) -> bool:
    """Whether the lines before the last are sentences like it, and end with full stops."""
    last = lines[-1]
    alike = [line for line in lines[:-1] if bool(_ITEM.match(line)) == bool(_ITEM.match(last)) and len(line) > 15]
    if len(last) * 3 < 12 or not alike:
        return False
    num_ended = sum(line[-1] in _FULL_STOPS for line in alike)
    is_sentence = bool(_ITEM.match(last)) or len(last.split()) > 4 or len(HAN.findall(last)) > 6
    enough = 1 if len(last.split()) > 11 else 2
    return is_sentence and num_ended >= enough and num_ended * 10 >= len(alike) * 9


HAN = re.compile(r"[\u4e00-\u9fff]")
_ITEM = re.compile(r"(?:\d+[.)、．]|[-*•·]|[（(]\d+[)）]|[①-⑳]|[a-zA-Z][.)]|第?[一二三四五六七八九十]+[、.])\s*")
_FULL_STOPS = frozenset('.。!！?？;；"”’」』)）')
