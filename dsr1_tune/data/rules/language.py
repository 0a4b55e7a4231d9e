"""The rule about languages: an answer is in its question's language, unless the question wants another."""

from __future__ import annotations

import re
from dataclasses import replace

from dsr1_tune.data.record import Drop, Row
from dsr1_tune.data.rules.settings import WrongLanguage
from dsr1_tune.data.rules.text_features import LONG, Text, View, looks_like_code, phrases, quoted, view, without_code


def wrong_language(row: Row, rule: WrongLanguage) -> Row | Drop:
    """Drop an answer in another language than its question, which neither names nor holds another language.

    Scripts are told apart by counting; Latin languages by their commonest words, Japanese by its kana.
    """
    seen = view(row)
    asked, answer = seen.question, seen.answer
    if asked is None or answer is None:
        return row
    if asked.num_han > asked.num_latin and answer.num_han > answer.num_latin:
        # Both may still be Chinese or Japanese; kana and the Chinese full stop share their first byte.
        if answer.shape.count(b"k") * 3 < answer.num_han:
            return row
    elif asked.num_latin > 7 and _is_english(answer) and not asked.num_han:
        return row
    if b"`" in answer.signs:
        if b"```" in answer.data and _ASKS_FOR_CODE.search(seen.asked):
            return row  # what is said around a program may be in English
        answer = Text(replace(answer.message, content=without_code(answer)))
    want, got = _script(asked), _script(answer)
    if want == got == "Latin":
        if len(answer.data) < 60:
            return row
        want, got = _latin_languages(asked, answer)
    if not want or not got or want == got:
        return row
    if _num_letters(answer, got) < rule.min_letters:
        return row
    # Japanese is told from Chinese by its kana, and one Latin language from another by its words, not by letters.
    by_letters = want in _MARKS and got != "Japanese"
    if by_letters and (_share(answer, want) > 1 - rule.max_share or _num_letters(answer, want) >= _ENOUGH_TO_TALK):
        return row
    if got == "Latin" and answer.shape.count(b" ") < 6:  # a name, a title, a formula
        return row
    if _wants_other(asked, got, seen) or seen.has_tools:
        return row
    if got == "Latin" and looks_like_code(answer) and (not _is_english(answer) or _ASKS_FOR_CODE.search(seen.asked)):
        return row
    detail = f"a question in {want}, an answer in {got}: {quoted(answer.content)}"
    fix = "translate the answer, or name the language in the question"
    return Drop("wrong_language", detail, fix, answer.message.path)


def _is_english(text: Text) -> bool:
    """A quick look: the commonest words, and hardly a letter of another script."""
    return text.num_latin * 10 > len(text.shape) * 6 and (b" the " in text.low or b" and " in text.low)


# An answer with so many letters of the right language speaks it, whatever names and titles it lists.
_ENOUGH_TO_TALK = 30
_MARKS = {"Latin": b"a", "Chinese": b"h", "Korean": b"y", "Cyrillic": b"c", "Greek": b"g", "another script": b"o"}
# How many letters of an alphabet say about as much as one Han character or one Hangul syllable.
_WEIGHTS = {"Chinese": 3, "Japanese": 3, "Korean": 3}


def _script(text: Text) -> str:
    """The script of most of the text's letters, or nothing where there are too few to tell."""
    shape = text.shape
    if len(text.data) * 8 < len(shape) * 9:
        return "Latin" if text.num_latin > 7 else ""
    counts = {name: shape.count(mark) * _WEIGHTS.get(name, 1) for name, mark in _MARKS.items()}
    counts["Latin"] += shape.count(b"l")
    best = max(counts, key=counts.__getitem__)
    if counts[best] < 8:
        return ""
    if best == "Chinese" or (shape.count(b"k") * 2 > shape.count(b"h") and best != "Latin"):
        num_kana = _num_kana(text)
        if num_kana * 5 > shape.count(b"h") and num_kana > 5:
            return "Japanese"
    return best


def _num_kana(text: Text) -> int:
    return text.data.count(b"\xe3\x81") + text.data.count(b"\xe3\x82") + text.data.count(b"\xe3\x83")


def _num_letters(text: Text, language: str) -> int:
    """How many letters of the language's script the text has, weighted."""
    if language == "Japanese":
        return 3 * (text.shape.count(b"h") + _num_kana(text))
    mark = _MARKS.get(language, b"a")
    return text.shape.count(mark) * _WEIGHTS.get(language, 1)


def _share(text: Text, language: str) -> float:
    """The share of the text's letters that are of the script."""
    counts = {name: text.shape.count(mark) * _WEIGHTS.get(name, 1) for name, mark in _MARKS.items()}
    return counts[language] / max(1, sum(counts.values()))


_COMMON = {
    "English": phrases(
        "the|of|and|to|in|is|that|for|it|was|with|on|are|this|you|what|how|can|be|or|your|which|from|an|why|should|do|does|"
        "every|not|a|as|at|by|my|i|if|when|who|where|has|have|will|would|could|between|about|into|write|give|list|name|"
        "describe|explain|make|tell|their|there|they|we|he|she|his|her|its|more|some|than|then|find|identify|following"
    ),
    "French": phrases(
        "le|la|les|des|et|est|une|un|que|qui|dans|pour|pas|sur|du|avec|sont|plus|vous|ce|cette|être|aux|de|il|elle|en|à|"
        "au|si|ou|mais|nous|ils|son|sa|ses|leur|par|puis|cela|peut|faut|notamment|d|l|s|c|n|qu"
    ),
    "German": phrases(
        "der|die|das|und|ist|nicht|ein|eine|zu|den|von|mit|sich|auf|für|dem|sie|im|auch|sind|werden|oder|vom|wenn|man|dann|"
        "einen|einem|einer|aus|bei|nach|wird|kann|ich|wir|ihr|es|aber|sollte|sollten|als|durch|sehr|nur|haben|hat|zum|zur|"
        "über|schließlich|allem|so|wie|dass|zuerst"
    ),
    "Spanish": phrases(
        "el|la|los|las|de|que|y|en|un|una|por|con|para|es|del|se|su|como|más|pero|está|son|al|lo|si|sus|este|esta|durante|"
        "hay|después|o|muy|sin|sobre|también|puede|ser|haga|varios|primero|último|conviene"
    ),
    "Portuguese": phrases(
        "o|os|as|de|que|e|em|um|uma|para|com|não|por|do|da|dos|das|no|na|são|mais|como|é|ao|se|ou|mas|muito|também|pode|ser|"
        "seu|sua|pelo|pela|isso|você"
    ),
    "Italian": phrases(
        "il|lo|gli|di|che|e|è|un|una|per|con|non|del|della|dei|nel|sono|più|come|anche|alla|le|la|si|o|ma|può|essere|questo|"
        "questa|i|da|delle|degli|al|se"
    ),
    "Dutch": phrases(
        "de|het|een|en|van|is|dat|op|te|voor|met|zijn|niet|aan|er|om|ook|als|maar|deze|worden|bij|je|u|of|naar|dit|kan|wordt"
    ),
}
_LANGUAGES_OF: dict[str, tuple[str, ...]] = {
    word: tuple(language for language, words in _COMMON.items() if word in words)
    for words in _COMMON.values()
    for word in words
}
_LATIN_WORD = re.compile(r"[^\W\d_]+")


def _latin_languages(asked: Text, answer: Text) -> tuple[str, str]:
    """(the question's, the answer's) Latin language by their commonest words; nothing where that is not clear.

    A question is often too short to tell. It is in another language than the answer if it has words of that other
    one, or at least none of the answer's.
    """
    said, num_said = _counts_of_common(answer)
    first, second = sorted(said, key=said.__getitem__, reverse=True)[:2]
    if first == "English":
        if said[first] < 2 or said[first] < 2 * said[second]:
            return "", ""
    elif said[first] < max(4, 0.15 * num_said, 3 * said["English"]):
        return "", ""
    counts, num = _counts_of_common(asked)
    best = max(counts, key=lambda name: (counts[name], name == "English"))
    if best == first or num < 3:
        return "", ""
    if counts[first] == 0 and counts[best] > 0:
        return best, first
    if best == "English" or first == "English":
        return (best, first) if counts[best] >= max(2, 2 * counts[first]) else ("", "")
    return "", ""


def _counts_of_common(text: Text) -> tuple[dict[str, int], int]:
    """(how many words are of the commonest in each language, how many words there are)."""
    counts = dict.fromkeys(_COMMON, 0)
    words = _LATIN_WORD.findall(text.content[:LONG].lower())
    for word in words:
        for language in _LANGUAGES_OF.get(word, ()):
            counts[language] += 1
    return counts, len(words)


def _wants_other(asked: Text, got: str, seen: View) -> bool:
    """Whether another language is named, or the question itself holds enough of the answer's."""
    if _NAMES_LANGUAGE.search(seen.asked):
        return True
    match got:
        case "Japanese":
            return _num_kana(asked) > 1
        case "Chinese" | "Korean":
            return _num_letters(asked, got) > 3
        case "Latin":
            return (_FOREIGN_PASSAGE.search(asked.content) or _ABOUT_A_WORD.search(asked.content)) is not None
    return got in _MARKS and asked.shape.count(_MARKS[got]) > 2


_FOREIGN_PASSAGE = re.compile(r"[A-Za-z]+(?:[ ,'’-]+[A-Za-z]+){2}")
# 生成一个正确使用“opulent”一词的例句, 改变以下名词为复数形式：watch
_ABOUT_A_WORD = re.compile(r"[词句].*[“\"'‘：:] ?[a-z]{3,}|[“\"'‘：:] ?[a-z]{3,}.*[词句]", re.S)
_ASKS_FOR_CODE = re.compile(
    r"\bcode|program|\bfunction|\bscript|\bsql\b|\bquery\b|python|java|swift|c\+\+|regex|\bhtml|\bcss\b|shell|bash|"
    r"代码|程序|函数|脚本|查询|算法|编程|实现|命令|正则"
)
_NAMES_LANGUAGE = re.compile(
    r"translat|language|bilingual|in the original|\balphabet|\bgreet|\bhow (?:do|does|would|can|to)\b.{0,12}\bsay\b|\bsay (?:it )?in\b|pronounce|proverb|transliterat|"
    r"\b(?:english|chinese|mandarin|cantonese|japanese|korean|french|german|"
    r"spanish|portuguese|italian|dutch|latin|russian|arabic|greek|turkish|hindi|thai|vietnamese|swedish|polish|hebrew|"
    r"indonesian|pinyin|afrikaans|albanian|amharic|armenian|assamese|azerbaijani|basque|belarusian|bengali|bosnian|breton|"
    r"bulgarian|burmese|catalan|cherokee|coptic|corsican|croatian|czech|danish|dzongkha|esperanto|estonian|farsi|persian|"
    r"filipino|tagalog|finnish|frisian|gaelic|galician|georgian|guarani|gujarati|hausa|hawaiian|hmong|hungarian|icelandic|igbo|"
    r"inuktitut|irish|javanese|kannada|kazakh|khmer|kurdish|kyrgyz|lao|latvian|lithuanian|luxembourgish|macedonian|malagasy|"
    r"malay|malayalam|maltese|maori|marathi|mongolian|nepali|norwegian|occitan|odia|oromo|pashto|punjabi|quechua|romanian|"
    r"samoan|sanskrit|serbian|sesotho|shona|sindhi|sinhala|sinhalese|slovak|slovenian|somali|sundanese|swahili|syriac|tajik|"
    r"tamil|tatar|telugu|tibetan|tigrinya|tongan|turkmen|ukrainian|urdu|uyghur|uzbek|welsh|wolof|xhosa|yiddish|yoruba|zulu|"
    r"cyrillic|hangul|kanji|hiragana|katakana|devanagari|hieroglyphs?|runes?|kana)\b|"
    r"翻译|译成|译为|译文|英译|中译|英[语文]|中文|汉语|普通话|粤语|日[语文]|韩[语文]|法[语文]|德[语文]|"
    r"俄[语文]|泰[语文]|越南语|"
    r"西班牙|葡萄牙|意大利|阿拉伯|希腊|拉丁|荷兰语|土耳其|印地语|外[语文]|双语|多语|语种|[种门]语言|单词|拼音|"
    r"(?:藏|蒙古?|维吾尔|维|哈萨克|朝鲜|彝|壮|满|傣|苗|梵|波斯|希伯来|乌尔都|孟加拉|泰米尔|泰卢固|马拉地|古吉拉特|旁遮普|僧伽罗|尼泊尔|"
    r"缅甸?|高棉|柬埔寨|老挝|寮国?|马来|印尼|菲律宾|他加禄|斯瓦希里|阿姆哈拉|提格利尼亚|豪萨|约鲁巴|祖鲁|索马里|格鲁吉亚|亚美尼亚|阿塞拜疆|"
    r"乌兹别克|塔吉克|土库曼|吉尔吉斯|鞑靼|乌克兰|白俄罗斯|波兰|捷克|斯洛伐克|斯洛文尼亚|塞尔维亚|克罗地亚|保加利亚|罗马尼亚|匈牙利|芬兰|爱沙尼亚|"
    r"拉脱维亚|立陶宛|瑞典|挪威|丹麦|冰岛|爱尔兰|威尔士|巴斯克|加泰罗尼亚|世界|切罗基|夏威夷|毛利|科普特|叙利亚|意第绪)(?:语|文|話|话|語)|"
    r"怎么念|怎么读|打招呼|问候|原文|原句|字母表|哪些字母|谚语|俚语|用.{1,8}(?:语|話|语言)(?:怎么|如何|说|写|回答|表达|打)|"
    r"翻譯|譯成|譯為|英[語]|日[語]|韓[語文]|法[語]|德[語]|俄[語]|外[語]|雙語"
)
