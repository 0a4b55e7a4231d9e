"""Rules about what is said: refusals, web boilerplate, advertisements, words of the user's own list."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from dsr1_tune.data.record import Drop, Row
from dsr1_tune.data.rules.settings import Advertisement, BlockedWord, Boilerplate, Refusal
from dsr1_tune.data.rules.text_features import Text, View, folded, phrases, quoted, view


def refusal(row: Row, rule: Refusal) -> Row | Drop:
    """Drop an answer that begins with a refusal, or speaks as an AI language model.

    Later in an answer, or in quotation marks, a refusal is something that is talked about. Where the assistant has
    tools, to say that none fits is right.
    """
    seen = view(row)
    for text in seen.answers:
        if not (_may_refuse(text) or rule.phrases):
            continue
        head = text.content[:300].lower().replace("’", "'").lstrip()
        found = _refuses(head, text, len(text.content) <= rule.max_chars)
        if not found and rule.phrases:
            found = next((phrase for phrase in rule.phrases if head.startswith(phrase.lower())), "")
        if found and not seen.has_tools and not _asked_for(found, seen):
            fix = "write the answer, or set refusal to warn"
            return Drop("refusal", f"the answer refuses: {quoted(found)}", fix, text.message.path)
    return row


def _may_refuse(text: Text) -> bool:
    """A quick look, before the regular expressions; single rare characters are found fastest."""
    if text.num_han:
        head = text.content[:150]
        if "歉" in head or "憾" in head or "模" in head or "智" in head or "無" in head or "恕" in head:
            return True
        first = head[:16]
        if "无法" in head or "拒绝" in head[:20] or "截止" in head[:40] or "敏感" in head or "超出" in head[:40]:
            return True
        if "不能" in first or "不会" in first or "不便" in first or "没有" in first or "对不起" in first:
            return True
        if "不好意思" in first or "機" in head or "AI" in head or "程序" in head[:30] or "机器" in head[:40]:
            return True
    if text.num_latin < (10 if text.num_han else 2):
        return False
    return text.low.startswith(_SELF) or not _hints(text).isdisjoint(_REFUSING)


def _hints(text: Text) -> frozenset[bytes]:
    """Which of the words to keep an eye on stand near the beginning or the end: one pass for several rules."""
    if text.hints is None:
        low = text.low
        if len(low) > _HEAD + _MARGIN:
            low = low[:_HEAD] + b" " + low[-_MARGIN:]
        text.hints = _WATCHED.intersection(low.translate(_TO_WORDS).split())
    return text.hints


# Refusals stand within so many bytes.
_HEAD = 200
_TO_WORDS = bytes(byte if chr(byte).isalnum() and byte < 0x80 else 0x20 for byte in range(256))


def _holds(low: bytes, needles: tuple[bytes, ...]) -> bool:
    """Whether one of the needles stands there: far quicker than a regular expression with alternatives."""
    for needle in needles:  # noqa: SIM110 - any() over a generator takes twice as long
        if needle in low:
            return True
    return False


def _needles(text: str) -> tuple[bytes, ...]:
    return tuple(phrase.encode() for phrase in text.split("|"))


_SELF = (b"i ", b"i'", b"my ", b"it would", b"it is not", b"this request", b"your request", b"that request")
_REFUSING = frozenset(
    b"ai sorry t cannot unable able language apologize apologise apologies apology unfortunately regret regrettably cutoff "
    b"knowledge afraid decline refuse refrain comfortable programmed guidelines violates".split()
)


def _refuses(head: str, text: Text, short: bool) -> str:
    """The words that refuse, or nothing."""
    in_latin, in_han = text.num_latin > text.num_han, text.num_han > 3
    found = None
    if in_han and _has(head, _BEING_ZH):
        found = _AS_AI_ZH.search(head)
    if found is None and in_latin and _has(head, _NAMES_OF_AI):
        found = _AS_AI_EN.search(head)
    if found is None and _has(head, _OF_KNOWLEDGE):
        found = _KNOWS_UNTIL.search(head)
    if found and not _in_quotes(head, found.start()):
        return found[0]
    if not short:
        return ""
    found = None
    if in_latin:
        found = _SORRY_EN.match(head) or _CANNOT_HELP_EN.match(head) or _DECLINES_EN.match(head)
        if found and found[0].endswith(_WORKED_OUT) and _GOES_ON.search(head, found.end()):
            return ""  # it cannot be determined, and why
    if found is None and in_han:
        found = _SORRY_ZH.match(head) or (_DECLINES_ZH.match(head) if _has(head[:60], _DECLINING_ZH) else None)
    return found[0] if found else ""


def _has(text: str, parts: tuple[str, ...]) -> bool:
    """Whether one of the parts stands there; for texts what _holds is for bytes."""
    for part in parts:  # noqa: SIM110
        if part in text:
            return True
    return False


_BEING_ZH = tuple(phrases("作为|身为|我是|我只是|我作为|作為|身為"))
_NAMES_OF_AI = (" ai", " a.i", "artificial", "model", "bot", "assistant", "program", "llm")
_OF_KNOWLEDGE = tuple(
    phrases("knowledge|training|my data|my information|as of my|截止|截至|更新到|更新至|停留在|仅限|有限|止于")
)
_DECLINING_ZH = tuple(
    phrases(
        "不会|不會|作答|答不|学会|學會|方便|不便|敏感|违|違|超出|恕|无可奉告|無可奉告|暂不|没有|沒有|缺|拒绝|婉拒|办法|辦法"
    )
)
_WORKED_OUT = ("determin", "find", "identify", "see")
_GOES_ON = re.compile(r"in order to|\bonly given|given only|would need|because|since|(?:you|we) can\b|here (?:is|are)")


def _in_quotes(head: str, at: int) -> bool:
    """Whether a quotation is open at that place."""
    before = head[:at]
    return before.count('"') % 2 == 1 or any(before.count(o) > before.count(c) for o, c in ("“”", "「」", "『』"))


_NOT_EN = (
    r"(?:can'?t|cannot|can not|unable|(?:am |'m )?not able|don'?t|do not|didn't|won't|will not|(?:am |"
    r"'m )?not capable|"
    r"lack|have no)"
)
_NOT_ZH = r"(?:无法|不能|没有|不具备|不会|没办法|無法|沒有|不具備|不會|沒辦法|並不|并不)"
_AI_EN = r"(?:a\.?i\.?|artificial intelligence|chat ?bot|virtual assistant|computer program)"
_AS_AI_EN = re.compile(
    rf"\b(?:as|being|since i am|since i'm|because i am|because i'm) (?:just |only )?an? (?:[\w-]+ ){{0,2}}?"
    rf"(?:{_AI_EN} )?(?:language model|llm)\b|"
    rf"\b(?:as|being|since i am|since i'm|because i am|because i'm) (?:just |only )?an? (?:[\w-]+ )?{_AI_EN}\b"
    rf"[^.!?\n]{{0,60}}?\b{_NOT_EN}\b|"
    rf"\bi(?:'m| am) (?:just |only |merely |simply )?an? (?:[\w-]+ ){{0,2}}?(?:{_AI_EN}|language model)\b"
    rf"[^.!?\n]{{0,50}}?\b{_NOT_EN}\b"
)
# What the model was trained on is nobody's answer.
_KNOWS_UNTIL = re.compile(
    r"\bmy (?:knowledge|training|training data|information|data)(?:'s)? (?:cut-?off|only (?:goes|extends|covers)|ends|"
    r"does not (?:cover|include|extend)|doesn't (?:cover|include|extend)|is limited|was last updated|stops)|"
    r"\bas of my (?:last|latest|most recent) (?:update|training|knowledge)|"
    r"我的?(?:知识|训练|训练数据|数据|信息|資料|知識|訓練資料)库?(?:只|仅|僅)?(?:截止|截至|更新到|更新至|停留在|仅限|有限|止于)"
)
_AM_ZH = r"(?:作为|身为|由于我是|因为我是|我是|我只是|我作为|作為|身為|由於我是|因為我是)(?:一个|一名|一款|一种|一位|个|名|一種|一個)? ?"
_AS_AI_ZH = re.compile(
    rf"{_AM_ZH}[^，。,！!\n]{{0,10}}?(?:语言|語言|对话|聊天|"
    rf"自然语言处理)(?:大)?模型(?=[^。！？\n]{{0,12}}(?:我|[，,]|并不))|"
    rf"{_AM_ZH}[^，。,！!\n]{{0,4}}(?:人工智能|ai|人工智慧|(?:聊天|文本)?(?:机器人|機器人)|(?:电脑|计算机)?程序)"
    rf"[^。！？\n]{{0,14}}?{_NOT_ZH}"
)
_HELP_EN = (
    r"(?:assist|help|fulfil|provide|answer|comply|generat|creat|complet|do that|do this|respond|support|offer|engag|"
    r"writ|give|discuss|access|process|continue|retriev|determin|produc|perform|share|browse|open|summari|analy|"
    r"participat|understand|identify|translat|make|see|view|read|find|display|show|"
    r"(?:have|possess) (?:the ability|the capability|access|enough|any information|personal))"
)
_SORRY_EN = re.compile(
    r"(?:(?:hi|hello|dear \w+)[,.!]? )?"
    r"(?:(?:i'?m|i am|we'?re|we are)?,? ?(?:so |very |really |truly |deeply |terribly )?(?:sorry|afraid)\b|"
    r"(?:i|we) (?:sincerely )?(?:apologi[sz]e|regret)|my apologies|apologies|unfortunately|regrettably)"
    rf"[^.!?\n]{{0,70}}?[ ,](?:i(?: am|'m)?|we(?: are|'re)?)? ?(?:{_NOT_EN}|could not|couldn't)\b"
    rf"[^.!?\n]{{0,30}}?\b{_HELP_EN}"
)
_CANNOT_HELP_EN = re.compile(
    r"i(?:'m| am)? ?(?:can'?t|cannot|can not|unable to|not able to|won't|will not)(?: be able to)?"
    rf"(?: \w+){{0,2}}? \b{_HELP_EN}"
)
_DECLINES_EN = re.compile(
    r"(?:(?:hi|hello|thank you for [^.!?\n]{0,40})[,.!] )?(?:(?:i'?m |i am )?(?:sorry|afraid)[,.]? ?(?:but )?|unfortunately,? |"
    r"i apologi[sz]e,? (?:but )?|respectfully,? )?"
    r"(?:i (?:must|have to|need to|will have to|would have to|'ll have to|will|would)?(?: (?:respectfully|politely|kindly))? ?"
    r"(?:decline|refuse|refrain|abstain|pass on|prefer not to|rather not)|"
    r"i(?: do not|'m not| am not| don't| would not| wouldn't) (?:feel |entirely |really )?"
    r"(?:comfortable(?= (?:answer|discuss|giv|provid|shar|respond|talk|comment|help|assist|do|with|writ|mak|creat|generat))|allowed|permitted|"
    r"authori[sz]ed|programmed|designed|equipped|trained|qualified|willing|in a position)|"
    r"(?:it|that) (?:would|is|does|wouldn't|isn't)(?: be)?(?: not| n't)?(?: be)? ?(?:in)?(?:appropriate|ethical|proper|responsible|possible) "
    r"for me to|"
    r"i (?:do not|don't) (?:have|possess)(?: any)? (?:enough|sufficient|access|the ability|the capability|the necessary|"
    r"personal|opinions|real[- ]time|up-to-date|current)|"
    r"i have no (?:access|way of|ability|personal|opinion|knowledge of|information)|"
    r"(?:this|that|your) (?:request|question|topic|content)(?: \w+)? (?:violates|goes against|is against|is beyond|is outside|falls outside|"
    r"cannot be answered|can't be answered))"
)
_GREET_ZH = r"(?:您好|你好|嗯|唉|啊)?[，,！! ]{0,2}"
_HELP_ZH = (
    r"(?:回答|提供|满足|完成|协助|帮|处理|生成|执行|访问|给出|给您|给你|为您|为你|进行|继续|讨论|支持|做到|"
    r"回复|解答|创作|编写|写|翻译|识别|"
    r"查看|打开|播放|预订|制作|创建|绘制|画|确定|理解|知道|能力|回應|回覆)"
)
_SORRY_ZH = re.compile(
    rf"{_GREET_ZH}(?:我)?(?:非常|很|十分|实在|真的|真|深感|深表)?的?(?:感到)?(?:抱歉|对不起|遗憾|不好意思|"
    rf"對不起)[^。！!？?\n]{{0,40}}?"
    rf"(?:无法|不能|没有办法|没办法|不可以|没有权限|没有能力|拒绝|不便|不具备|無法)[^。！!？?\n]{{0,10}}?{_HELP_ZH}|"
    rf"{_GREET_ZH}(?:我|本人|本助手)(?:无法|不能|拒绝|無法)(?:直接|为您|为你)?{_HELP_ZH}"
)
_SORRY_WORD_ZH = r"(?:(?:我|很|非常|十分|实在|真的|真|實在|深感|感到)*(?:抱歉|对不起|遗憾|不好意思|對不起|遺憾|对不住)[，,。！! ]{0,2}(?:但是?|可是)?)"
_DECLINES_ZH = re.compile(
    rf"{_GREET_ZH}{_SORRY_WORD_ZH}?[^。！!？?\n]{{0,12}}?(?:"
    r"(?:这个|此|该|您的|你的|這個)?(?:问题|內容|内容|請求|请求|問題|话题)?(?:我|本助手)(?:还|暂时|目前|現在|暂|還|也)?"
    r"(?:不会(?:回答|呢|哦|[，,。！]|$)|不會(?:回答|[，,。！]|$)|答不上来|回答不了|没有学会|没学会|還沒學會|无法作答|無法作答|不方便回答|不便)|"
    r"(?:这个|此|该|您的|你的)?(?:问题|请求|内容|話題|问题|请求)[^。！？\n]{0,6}(?:涉及|包含|属于|違反|违反)[^。！？\n]{0,8}"
    r"(?:敏感|违法|违规|不当|不適當|政策|规定|隐私)[^。！？\n]{0,10}(?:无法|不能|不便|無法|拒绝)|"
    r"超出了?我的?(?:能力|知识|知識|回答|專業|专业|理解)?的?(?:范围|範圍)|"
    r"恕(?:我)?(?:不能|无法|难|難|無法)|无可奉告|無可奉告|暂不支持(?:该|此|这)|我(?:必须|只能|不得不)(?:拒绝|婉拒))|"
    rf"{_GREET_ZH}{_SORRY_WORD_ZH}[^。！!？?\n]{{0,8}}?(?:我|目前|本助手)?(?:还|暂时|目前)?(?:没有|沒有|缺乏|并无|無|缺少)"
    r"(?:足够|足夠|充分|相关|相關|这方面|這方面|关于|更多|任何|您|你)的?[^。！？\n]{0,12}(?:信息|資訊|资料|資料|数据|知识|知識|权限|能力)|"
    rf"{_GREET_ZH}{_SORRY_WORD_ZH}?[^。！!？?\n]{{0,6}}?我(?:还|也|暂时|目前|還|暫時)?(?:没有|沒有|无|無)(?:办法|辦法|法)[^。！？\n]{{0,4}}"
    r"(?:帮|幫|回答|提供|完成|给|給|判断|做|满足)"
)


def _asked_for(found: str, seen: View) -> bool:
    """Whether the refusal is right: asked for, or the answer to a request for harm; or who speaks is the question."""
    if len(seen.asked) < _LONGEST_REQUEST and _HARM.search(seen.asked):
        return True
    if "ai" in found or "model" in found or "人工" in found or "模型" in found or "机器人" in found:
        return _ABOUT_AI.search(seen.asked) is not None
    return _HOW_TO_REFUSE.search(seen.asked) is not None


# In longer texts such words are what a story or report tells.
_LONGEST_REQUEST = 400
_ABOUT_AI = re.compile(
    r"\b(?:who|what|how old|where) are you\b(?! (?:going|doing))|"
    r"\bare you (?:an? )?(?:ai\b|human|person|robot|real|bot\b|machine|conscious|alive|sentient|chatgpt|able|capable)|"
    r"\bdo you (?:have|feel|ever) |\bwhat can you\b|\bcan you (?:feel|see|hear|think|dream)|"
    r"\byour (?:name|creator|maker|model|training|feelings|purpose|limits|limitations|capabilities)|"
    r"(?:introduce|describe|about) yourself|chat ?bot|chatgpt|\bgpt|language model|\bai (?:assistant|model|system)|"
    r"robot|role-?play|pretend|act as|\bassistant\b|"
    r"语言模型|聊天机器人|机器人|助手|你是谁|您是谁|你是什么|你叫什么|您叫什么|你是不是|你是(?:人|真|由|哪)|谁(?:创造|开发|训练|打造|制造)了?[你您]|"
    r"[你您]的(?:名字|身份|身分|模型|能力|功能|局限|训练|感受|感觉)|[你您]有.{0,6}(?:感情|情感|意识|身体|感觉)|"
    r"[你您](?:可以|能|会)(?:够|给我|为我|帮我)?.{0,4}(?:什么|哪些)|自我介绍|介绍.{0,3}自己|扮演"
)
_HARM = re.compile(
    r"suicid|self-harm|kill (?:my|him|her|them)|\bbombs?\b|explosives?|want to die|自杀|自残|不想活|想死|跳楼|"
    r"结束.{0,4}生命|"
    r"离开这个世界|炸弹|制毒|杀人"
)
_HOW_TO_REFUSE = re.compile(
    r"refus|reject|declin|apolog|say no|turn down|婉拒|推辞|回绝|道歉信|拒绝信|"
    r"(?:写|拟|如何|怎么|怎样|礼貌|委婉|表达).{0,14}(?:拒绝|道歉|抱歉)"
)


def boilerplate(row: Row, rule: Boilerplate) -> Row | Drop:
    """Drop an answer that holds a web page's navigation, notices or copyright text; one weak phrase is no reason."""
    seen = view(row)
    for text in seen.answers:
        found = []
        if rule.phrases:
            lowered = text.content.lower()
            found = [phrase for phrase in rule.phrases if phrase.lower() in lowered]
        if not found:
            points, found = _page_points(text)
            if points > 1 and _MENU.search(text.content):
                points += 1
            if points < _ENOUGH_POINTS or (points < _ABUNDANT_POINTS and _ABOUT_PAGES.search(seen.asked)):
                continue
        fix = "cut the page's own text out of the answer"
        return Drop("boilerplate", f"text of a web page: {quoted(', '.join(found))}", fix, text.message.path)
    return row


# A strong phrase is enough, unless pages are the subject; then it takes what only a whole page holds.
_ENOUGH_POINTS = 3
_ABUNDANT_POINTS = 10


def _page_points(text: Text) -> tuple[int, list[str]]:
    """How much speaks for a web page, and the phrases; pages leave their own text around what they hold."""
    low, content = text.low, text.content
    if len(low) > 2 * _MARGIN:
        low = low[:_MARGIN] + b"\n" + low[-_MARGIN:]
    found = []
    if not text.num_han or text.num_latin > 9:
        for word in _hints(text) & _TRIGGERS:
            found += [phrase.decode() for phrase in _PAGE_LATIN[word] if phrase in low]
    if text.num_han:
        if len(content) > 2 * _MARGIN:
            content = content[:_MARGIN] + "\n" + content[-_MARGIN:]
        for char in set(_ONE_OF_RARE_HAN.findall(content)):
            found += [phrase for phrase in _PAGE_HAN[char] if phrase in content]
    points = 3 * len(found)
    signs = text.signs
    if points or b"|" in signs or b">" in signs or (b"s" in signs and "©" in content):
        lowered = content.lower()
        weak = [phrase for phrase in _WEAK if phrase in lowered]
        points += len(weak)
        found += weak
    return points, found


# So many characters are looked at on either side of a longer answer.
_MARGIN = 120
_STRONG_LATIN = """we use cookies|uses cookies|use of cookies|accept all cookies|accept cookies|cookie policy|enable cookies
    all rights reserved|skip to content|skip to main content|skip to navigation|powered by wordpress
    启用javascript|开启javascript|enable javascript|javascript is disabled|requires javascript|javascript enabled
    complete the captcha|captcha to|solve the captcha|ray id:|prove that you are human|verify you are human
    verify that you are human|confirm you are human|page you are looking for|page you requested could
    page you requested was|page you were looking for|page you're looking for|404 not found|404 error
    page not found|be logged in to view|be logged in to post|be logged in to comment|be logged in to access
    be logged in to reply|log in or create|log in or register|log in or sign up|log in to view
    log in to continue|log in to read|log in to comment|sign in to continue|sign in to view
    sign in or register|subscribe to our newsletter|sign up for our newsletter|join our newsletter
    click here to read|click here to view|click here to continue|click here for more|share on facebook
    share on twitter|share on linkedin|share on whatsapp|share this:|share this post|share this article
    share this page|leave a comment|load more comments|view all comments|post a comment|comments are closed
    leave a reply|cancel reply|email address will not be published|required fields are marked
    toggle navigation|jump to navigation|posted in uncategorized|posted in:|reproduction without permission
    reproduction in whole or in part|content on this site|information on this site|content on this website
    unsubscribe at any time|unsubscribe anytime|this page was last edited|this page was last modified
    your browser does not support|your browser is not supported|checking your browser|update your browser
    502 bad gateway|504 gateway time|503 service unavailable|is temporarily unavailable. please
    permission to access this|permission to access /"""
_STRONG_HAN = """版权所有|版权归原作者|版权归作者所有|版權所有|公网安备
    授权不得转载|许可不得转载|禁止转载|转载请注明|不得转载|严禁转载
    返回顶部|责任编辑|上一篇|下一篇|设为首页|加入收藏|收藏本站|返回首页|網站首頁|责编：
    登录后查看|登录后可见|登录后阅读|请登录后|立即登录|登录后才能
    浏览次数|浏览量：|浏览：|点击数：|阅读次数|当前位置：|您的位置：|您现在的位置
    请刷新页面|加载中|正在加载|页面不存在|页面已被删除|页面找不到|访问的页面
    展开全文|阅读全文|点击查看更多|点击阅读更多|点击加载更多|查看全部评论|网友评论|暂无评论|登录评论
    不代表本站|不表明本站|不代表本网|本站立场|本站内容|本站所有|本站文章|本站声明|本网站使用|与本站无关
    来源于网络|来源：网络|来源：互联网|如有侵权|侵权请联系|侵权必究|侵删|分享到：|【打印】|【关闭】|打印本页
    扫一扫关注|扫码关注|微信扫一扫|编辑：小编|猜你喜欢|相关推荐：|热门推荐
    客户端下载|输入验证码"""
_WEAK = phrases(
    """privacy policy|privacy ||terms of use|terms of service|terms and conditions|contact us|about us|copyright|©|sign up
    sitemap|log in|login|subscribe|read more|load more|related articles|related posts|recent posts|newsletter|access denied
    previous post|next post|you are here|back to top|read the full article|隐私政策|服务条款|用户协议|联系我们|关于我们|网站地图|免责声明|登录|注册|点击查看|相关阅读|推荐阅读
    相关文章|相关问题|举报|友情链接|首页|忘记密码|热门|微博|qq空间|字号|评论|收藏|意见反馈|打印|发表评论|扫描二维码|发布时间：|下载客户端|free account"""
)
# Characters that are rare in ordinary Chinese; every strong phrase holds one of them.
_RARE_HAN = "载登页站版阅扫侵浏荐置击编论藏篇码顶享展【猜网"


# With one of these words, the rarer ones first, every strong phrase can be told; a text is split into words once.
_TRIGGER_WORDS = (
    b"cookie cookies reserved skip wordpress javascript captcha ray prove verify confirm 404 logged newsletter unsubscribe "
    b"navigation posted reproduction edited modified browser gateway unavailable permission icp published comments comment reply "
    b"click log sign required share site website page".split()
)


def _by_rarest_part() -> tuple[dict[bytes, list[bytes]], dict[str, list[str]]]:
    """The strong phrases by the rarest word in them, in Chinese by the rarest character."""
    latin: dict[bytes, list[bytes]] = {}
    for phrase in phrases(_STRONG_LATIN):
        words = phrase.encode().translate(_TO_WORDS).split()
        latin.setdefault(next(word for word in _TRIGGER_WORDS if word in words), []).append(phrase.encode())
    han: dict[str, list[str]] = {}
    for phrase in phrases(_STRONG_HAN):
        han.setdefault(next(char for char in _RARE_HAN if char in phrase), []).append(phrase)
    return latin, han


_PAGE_LATIN, _PAGE_HAN = _by_rarest_part()
_ONE_OF_RARE_HAN = re.compile(f"[{''.join(_PAGE_HAN)}]")
_TRIGGERS = frozenset(_PAGE_LATIN)
_WATCHED = _REFUSING | _TRIGGERS
_MENU = re.compile(r"(?:home|首页) ?[|>»/·] ?\S|(?:\S{2,12} [|»] ){3}", re.I)
_ABOUT_PAGES = re.compile(
    r"cookie|copyright|\bweb|footer|landing|privacy|terms of|newsletter|blog|licen[sc]e|subscri|e-?mail|html|javascript|browser|"
    r"captcha|log ?in\b|sign ?up|\b40[34]\b|\bapp\b|interface|social media|facebook|twitter|comment|"
    r"网站|网页|网络|版权|隐私|条款|协议|登录|登陆|注册|页面|博客|声明|转载|备案|邮件|著作权|软件|平台|账号|侵权|"
    r"上一篇|下一篇|微信|微博|小程序|浏览器|验证码|公众号|打印"
)


def advertisement(row: Row, rule: Advertisement) -> Row | Drop:
    """Drop an answer that advertises: a private contact, or a link or number with calls to buy.

    Links and numbers alone are answers; where the conversation asks for an advertisement, a contact or a post, all is.
    """
    seen = view(row)
    for text in seen.answers:
        why = ""
        if rule.phrases:
            why = next((phrase for phrase in rule.phrases if phrase.lower() in text.content.lower()), "")
        if not why and _has_contact(text):
            why = _advertises(text, seen)
        if why:
            fix = "cut the advertisement out of the answer"
            return Drop("advertisement", f"it advertises: {quoted(why)}", fix, text.message.path)
    return row


def _has_contact(text: Text) -> bool:
    """A quick look: could there be a link, a number or another way to get in touch?"""
    data, shape, signs = text.data, text.shape, text.signs
    if b"0000" in shape and (b"0000000" in shape or b"-0000" in shape or b"0 0000" in shape):
        return True
    if b":" in signs and b"://" in data:
        return True
    if b"." in signs and (b".com" in data or b"www." in data):
        return True
    if b"@" in signs and (b".com" in data or b".cn" in data or _holds(text.low, _PRIVATE_WAYS)):
        return True
    if b"+" in signs and _ABROAD.search(text.content):
        return True
    if not text.num_han:
        return False
    content = text.content
    if ("微" in content and "微信" in content) or ("薇" in content and "薇信" in content):
        return True
    if "扫" in content and ("扫码" in content or "扫描" in content):
        return True
    return ("众" in content and "公众号" in content) or (text.num_latin > 1 and _names_private_way(text.low))


def _names_private_way(low: bytes) -> bool:
    """Whether QQ, VX or the like is named; single bytes are found fastest, and Chinese has few letters."""
    if b"q" in low and b"qq" in low:
        return True
    if b"x" in low and (b"vx" in low or b"wx" in low):
        return True
    if b"v" in low and ("v信".encode() in low or b"v:" in low or "v：".encode() in low):
        return True
    return (b"p" in low and b"whatsapp" in low) or (b"g" in low and b"telegram" in low)


_ABROAD = re.compile(r"\+\d{1,3}[- ]?\(?\d")
_PRIVATE_WAYS = _needles("qq|vx|wx|v信|v:|v：|telegram|whatsapp")


def _advertises(text: Text, seen: View) -> str:
    """The words that advertise, or nothing; they stand near the contact."""
    low = text.content.lower()
    for contact in _contacts(low):
        near = low[max(0, contact.start() - _NEAR) : contact.end() + _NEAR]
        points = 1 + 3 * (contact.re is _PRIVATE) + (_SALE.search(near) is not None)
        points += (_CALL.search(near) is not None) + 2 * (_PUSHY.search(near) is not None)
        if points > 2:
            if points < _SHAMELESS and _ASKS_FOR_ADS.search(seen.asked):
                return ""
            if _ORDERS_ADS.search(seen.asked):
                return ""
            return text.content[max(0, contact.start() - 20) : contact.end() + 20]
    return ""


# So many points are an advertisement, even where an e-mail, a link or a number was asked for.
_SHAMELESS = 5
_ORDERS_ADS = re.compile(
    r"(?:write|create|generate|compose|draft|craft|design|make|develop|suggest|come up|prepare|brainstorm|produce|rewrite|edit|translate)\b"
    r".{0,80}\b(?:ads?\b|advert|commercial|slogan|promo|marketing|campaign|flyer|brochure|poster|e-?mail|letter|caption|tweet|post\b|"
    r"message|script|invitation|announcement|template|press release|sms|jingle|blog|newsletter|copy\b)|"
    r"(?:写|拟|撰|创作|生成|设计|编|制作|起草|翻译|改写|帮我|给出).{0,40}(?:广告|文案|宣传|营销|推广|海报|邮件|信|短信|朋友圈|微博|公告|模板|标语|传单|推文)",
    re.S,
)
_DIGITS = re.compile(r"\d{4}")


def _contacts(low: str) -> Iterator[re.Match[str]]:
    """The ways to get in touch, the private ones first; a regular expression only runs where something hints at it."""
    hints = (
        (
            _PRIVATE,
            any(way in low for way in ("信", "qq", "vx", "wx", "v:", "v：", "扫", "telegram", "whatsapp", "wechat")),
        ),
        (_LINK, "://" in low or "www." in low or ".com" in low),
        (_NUMBER, _DIGITS.search(low) is not None),
        (_SCAN, "扫" in low or "二维码" in low or "qr code" in low),
    )
    for pattern, hinted in hints:
        found = pattern.search(low) if hinted else None
        if found:
            yield found


_NEAR = 120
_ID = r"[a-z0-9][a-z0-9_-]{4,}"
_PRIVATE = re.compile(
    rf"[微薇威v]信(?:号|账号|客服|咨询)?\s*(?:是|为)?\s*[:：]?\s*{_ID}|"
    rf"(?<![a-z])(?:vx|wx|v|wechat|weixin)(?: ?id| ?me)?\s*(?:[:：]|号|is|at)\s*{_ID}|"
    r"(?:扣扣|qq)(?:群|号|群号)?\s*(?:是|为|[:：])?\s*\d{5,}|"
    r"(?:加|添加)(?:我|我们|老师|客服|专家|医生|顾问|助理)?(?:的|个)?(?:微信|vx|v信|qq|薇|v[:：])|"
    r"(?<![a-z])(?:whatsapp|telegram)\W{0,4}(?:us |me |at |on |number |id |is ){0,3}\W{0,3}(?:\+?\d[\d -]{5,}|"
    r"@\w{4,})|"
    r"(?:扫码|扫描|长按)[^。\n]{0,10}(?:二维码)?[^。\n]{0,6}(?:加|添加|关注|领取|进群|咨询)|"
    r"关注(?:我们的?)?(?:微信)?公众号"
)
_LINK = re.compile(r"https?://\S+|www\.[\w-]+\.\S+|(?<![\w-])[\w-]{2,60}\.com?\b(?:/\S*)?")
_NUMBER = re.compile(
    r"(?<![0-9a-z.])(?:400[- ]?\d{3}[- ]?\d{4}|400[- ]?\d{4}[- ]?\d{3}|800[- ]?\d{3}[- ]?\d{4}|"
    r"1[3-9]\d[- ]?\d{4}[- ]?\d{4}|0\d{2,3}-\d{7,8}|(?:\+?1[- .])?\(?[2-9]\d{2}\)?[- .]\d{3}[- .]\d{4}|"
    r"\+\d{1,3}(?:[- ]?\(?\d{2,5}\)?){2,5})(?![0-9a-z])"
)
_SCAN = re.compile(r"扫码|二维码|scan the qr")
_SALE = re.compile(
    r"discount|% ?off|special offer|limited[- ]time|for sale|best price|lowest price|cheap|free trial|free shipping|"
    r"coupon|promo|\bdeals?\b|buy (?:it |one |yours )?(?:now|today|online)|order (?:now|today)|winners?\b|"
    r"casino|earn \$|factory price|wholesale|for orders?\b|orders? e-?mail|free bonus|risk[- ]free|money[- ]back|no prescription|"
    r"100% (?:guaranteed|free|natural)|permanent cure|work(?:ing)? from home|home-based job|loan approval|"
    r"优惠|特价|折扣|[\d一二三四五六七八九]折|促销|包邮|免费(?:领取|咨询|试用|体验|赠送)|限时|下单|抢购|秒杀|"
    r"代理|加盟|正品|低价|"
    r"批发|团购|返利|稳赚|荐股|内幕|贷款|办证|代开|代办|祖传|包治|根治|名额有限"
)
_CALL = re.compile(
    r"\bcall\b|\bvisit\b|\bclick\b|\border\b|\bcontact\b|sign up|subscribe|check out|follow us|text us|"
    r"拨打|致电|来电|访问|点击|登录|咨询|联系|关注|扫码|扫描|预约|订购|购买|私信|加群|进群|报名|热线"
)
_PUSHY = re.compile(
    r"call (?:us )?(?:now|today)|click (?:here|the link|below|now)|buy now|order now|act now|shop now|"
    r"don't miss|hurry|"
    r"(?:立即|马上|赶快|赶紧|快来|欢迎|现在就?|速速?)"
    r"(?:拨打|点击|购买|下单|联系|咨询|来电|致电|扫码|加|抢购|订购|报名|添加|访问)|"
    r"点击(?:下方|链接|下面|这里)|(?:咨询|订购|服务|客服|预约|免费|招商|加盟|购买)(?:热线|电话|专线)"
)
_ASKS_FOR_ADS = re.compile(
    r"\bads?\b|advert|commercial|slogan|promotion|marketing|campaign|flyer|brochure|poster|e-?mail|\bletter\b|caption|"
    r"(?:write|create|generate|compose|draft|craft).{0,40}(?:tweet|\bpost\b|blog|message|script)|\burls?\b|\blinks?\b|"
    r"contact|(?:tele)?phone number|hotline|r[ée]sum[ée]|\bcv\b|invitation|announcement|template|press release|\bsms\b|"
    r"coupon|discount|\bsales?\b|where (?:can|could|do|to)|"
    r"广告|文案|推销|宣传|营销|推广|海报|邮件|信函|写.{0,4}信|短信|朋友圈|微博|网址|链接|联系(?:方式|电话|人)|电话|热线|客服|"
    r"号码|地址|简历|邀请|公告|模板|促销|优惠|哪[里儿].{0,3}买|微信|公众号|qq|二维码|"
    r"(?:怎么|如何)(?:预约|挂号|报名|购买|联系)|传单|标语"
)


def blocked_word(row: Row, rule: BlockedWord) -> Row | Drop:
    """Drop a row with a word of the list in a question or answer; in Latin script only whole words count."""
    if not rule.words:
        return row
    for text in view(row).checked:
        lowered = _searchable(text, rule)
        for word in _candidates(lowered, rule):
            found = re.search(
                rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])" if word.isascii() else re.escape(word), lowered
            )
            if found:
                near = lowered[max(0, found.start() - 15) : found.end() + 15]
                fix = "remove the row, or take the word off the list of blocked_word"
                return Drop("blocked_word", f"holds {word!r}: {quoted(near)}", fix, text.message.path)
    return row


def _searchable(text: Text, rule: BlockedWord) -> str:
    """The text in lower case, and folded where full width, invisible characters or odd spaces could hide a word."""
    data = text.data
    hides = _FULL_WIDTH.search(text.content) if b"\xef\xbc" in data or b"\xef\xbd" in data else None
    if hides or b"\xe2\x80" in data or b"\xc2\xad" in data or b"\xef\xbb\xbf" in data or rule.have_spaces:
        return folded(text.content)
    return text.content.lower()


_FULL_WIDTH = re.compile("[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a]")
# So many words are looked for one by one; of longer lists only those that begin as something in the text does.
_FEW = 64


def _candidates(lowered: str, rule: BlockedWord) -> list[str]:
    """The words of the list that stand somewhere in the text, in the list's order for short lists."""
    if len(rule.words) <= _FEW:
        return [word for word in rule.in_low if word in lowered]
    pairs = {first + second for first, second in pairwise(lowered)}
    starts = sorted(rule.by_start.keys() & (pairs | set(lowered)))
    return [word for start in starts for word in rule.by_start[start] if word in lowered]
