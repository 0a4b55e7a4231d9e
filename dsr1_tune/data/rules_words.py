"""Rules about what is said: refusals, web boilerplate, advertisements, words of the user's own list."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from dsr1_tune.data.record import Drop, Row
from dsr1_tune.data.rules_facts import Text, View, phrases, quoted, view
from dsr1_tune.data.rules_settings import Advertisement, BlockedWord, Boilerplate, Refusal


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
        found = _refuses(head, len(text.content) <= rule.max_chars)
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
        if "歉" in head or "憾" in head or "模" in head or "智" in head or "無" in head or "对不起" in head[:12]:
            return True
        if "无法" in head or "不能" in head[:12] or "拒绝" in head[:12] or "不好意思" in head[:12]:
            return True
    return text.num_latin > 1 and _holds(text.low[:250], _REFUSING)


def _holds(low: bytes, needles: tuple[bytes, ...]) -> bool:
    """Whether one of the needles stands there: far quicker than a regular expression with alternatives."""
    for needle in needles:  # noqa: SIM110 - any() over a generator takes twice as long
        if needle in low:
            return True
    return False


def _needles(text: str) -> tuple[bytes, ...]:
    return tuple(phrase.encode() for phrase in text.split("|"))


_REFUSING = _needles("an ai|sorry|n't |n’t |cannot|unable|language model|apolog|unfortunately|not able|can not|regret")


def _refuses(head: str, short: bool) -> str:
    """The words that refuse, or nothing."""
    found = _AS_AI_EN.search(head) or _AS_AI_ZH.search(head)
    if found and not _in_quotes(head, found.start()):
        return found[0]
    found = (_SORRY_EN.match(head) or _CANNOT_HELP_EN.match(head) or _SORRY_ZH.match(head)) if short else None
    return found[0] if found else ""


def _in_quotes(head: str, at: int) -> bool:
    """Whether a quotation is open at that place."""
    before = head[:at]
    return before.count('"') % 2 == 1 or any(before.count(o) > before.count(c) for o, c in ("“”", "「」", "『』"))


_NOT_EN = (
    r"(?:can'?t|cannot|can not|unable|(?:am |'m )?not able|don'?t|do not|didn't|won't|will not|(?:am |"
    r"'m )?not capable|"
    r"lack|have no)"
)
_NOT_ZH = r"(?:无法|不能|没有|不具备|不会|没办法|無法|沒有)"
_AI_EN = r"(?:ai|artificial intelligence)"
_AS_AI_EN = re.compile(
    rf"\bas an? (?:\w+ |text-based )?(?:{_AI_EN} )?language model\b|"
    rf"\bas an? (?:\w+ )?{_AI_EN}\b[^.!?\n]{{0,40}}?\b{_NOT_EN}\b|"
    rf"\bi(?:'m| am) (?:just |only |merely )?an? (?:large |\w+ )?(?:{_AI_EN}|language model)\b"
    rf"[^.!?\n]{{0,50}}?\b{_NOT_EN}\b"
)
_AM_ZH = r"(?:作为|身为|由于我是|因为我是|我是|我只是|我作为)(?:一个|一名|一款|一种|一位|个|名|一種|一個)? ?"
_AS_AI_ZH = re.compile(
    rf"{_AM_ZH}[^，。,！!\n]{{0,10}}?(?:语言|語言|对话|聊天|"
    rf"自然语言处理)(?:大)?模型(?=[^。！？\n]{{0,12}}(?:我|[，,]|并不))|"
    rf"{_AM_ZH}[^，。,！!\n]{{0,4}}(?:人工智能|ai|人工智慧|(?:聊天|文本)?机器人)[^。！？\n]{{0,14}}?{_NOT_ZH}"
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


def _asked_for(found: str, seen: View) -> bool:
    """Whether the refusal is right: asked for, or the answer to a request for harm; or who speaks is the question."""
    if _HARM.search(seen.asked):
        return True
    if "ai" in found or "model" in found or "人工" in found or "模型" in found or "机器人" in found:
        return _ABOUT_AI.search(seen.asked) is not None
    return _HOW_TO_REFUSE.search(seen.asked) is not None


_ABOUT_AI = re.compile(
    r"\bai\b|artificial intelligence|language model|chat ?bot|chatgpt|\bgpt|robot|assistant|who are you|what are you|"
    r"are you|your name|人工智能|语言模型|机器人|助手|你是谁|您是谁|你是什么|你叫什么|您叫什么|你是不是|"
    r"你的名字|自我介绍|介绍.{0,3}自己"
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
    """Drop an answer that holds a web page's navigation, cookie or copyright text; one weak phrase is no reason."""
    seen = view(row)
    for text in seen.answers:
        if not (rule.phrases or _may_be_page(text)):
            continue
        lowered = text.content.lower()
        found = [phrase for phrase in rule.phrases if phrase.lower() in lowered]
        if not found:
            strong = [phrase for phrase in _STRONG if phrase in lowered]
            found = strong + [phrase for phrase in _WEAK if phrase in lowered]
            enough = strong or len(found) + (_MENU.search(text.content) is not None) > 2
            if not enough or (_ABOUT_PAGES if strong else _ABOUT_SITES).search(seen.asked):
                continue
        fix = "cut the page's own text out of the answer"
        return Drop("boilerplate", f"text of a web page: {quoted(', '.join(found))}", fix, text.message.path)
    return row


def _may_be_page(text: Text) -> bool:
    """A quick look, before the phrases; single rare characters are found fastest."""
    content, low = text.content, text.low
    if text.num_han:
        if ("版" in content and "版权" in content) or ("顶" in content and "返回顶部" in content):
            return True
        if ("篇" in content and "一篇" in content) or ("载" in content and "转载" in content):
            return True
        if ("页" in content and "首页" in content) or ("藏" in content and "加入收藏" in content):
            return True
        if ("责" in content and "责任编辑" in content) or (text.num_latin > 2 and (b"icp" in low or b"cookie" in low)):
            return True
    elif b"cookie" in low or b"reserved" in low:
        return True
    signs = text.signs
    if b"|" in signs or b">" in signs:
        return _holds(low, _OF_PAGES)
    return b"s" in signs and "©".encode() in low


_OF_PAGES = _needles("skip to|privacy p|copyright|©|log in|home |home>|subscribe")
_STRONG = phrases(
    """we use cookies|uses cookies|use of cookies|accept all cookies|accept cookies|cookie policy|all rights reserved
    skip to content|skip to main content|powered by wordpress|版权所有|icp备|icp证|公网安备|未经授权不得转载
    未经许可不得转载
    返回顶部|责任编辑|上一篇|下一篇|使用cookie|设为首页|加入收藏|转载请注明|禁止转载"""
)
_WEAK = phrases(
    """privacy policy|terms of use|terms of service|terms and conditions|contact us|copyright|©|sign up|log in|login
    subscribe|read more|share this|leave a comment|back to top|related articles|newsletter|隐私政策|服务条款
    用户协议|联系我们
    关于我们|网站地图|免责声明|登录|注册|阅读全文|点击查看|相关阅读|分享到|来源：|友情链接|扫码下载|首页"""
)
_MENU = re.compile(r"(?:home|首页) ?[|>»/·] ?\S|(?:\S{2,12} [|»] ){3}", re.I)
_ABOUT_PAGES = re.compile(
    r"cookie|copyright|footer|web ?page|web ?site|privacy|newsletter|licen[sc]e|html|"
    r"网站|网页|版权|隐私|转载|备案|著作权|声明|上一篇|下一篇"
)
_ABOUT_SITES = re.compile(
    r"cookie|copyright|web|footer|landing|privacy|terms|newsletter|blog|licen[sc]e|subscri|e-?mail|html|"
    r"\bapp\b|interface|"
    r"网站|网页|版权|隐私|条款|协议|登录|注册|页面|博客|声明|转载|备案|邮件|著作权|软件|平台|账号"
)


def advertisement(row: Row, rule: Advertisement) -> Row | Drop:
    """Drop an answer that advertises: a private contact, or a link or number with calls to buy.

    Links and numbers alone are answers; where the conversation asks for an advertisement, a contact or a post, all is.
    """
    seen = view(row)
    for text in seen.answers:
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
    if b"@" in signs and _holds(text.low, _PRIVATE_WAYS):
        return True
    if not text.num_han:
        return False
    content = text.content
    if ("微" in content and "微信" in content) or ("薇" in content and "薇信" in content):
        return True
    if "扫" in content and ("扫码" in content or "扫描" in content):
        return True
    return ("众" in content and "公众号" in content) or (text.num_latin > 1 and _holds(text.low, _PRIVATE_WAYS))


_PRIVATE_WAYS = _needles("qq|vx|wx|v信|v:|v：|telegram|whatsapp")


def _advertises(text: Text, seen: View) -> str:
    """The words that advertise, or nothing; they stand near the contact."""
    low = text.content.lower()
    for contact in _contacts(low):
        near = low[max(0, contact.start() - _NEAR) : contact.end() + _NEAR]
        points = 1 + 3 * (contact.re is _PRIVATE) + (_SALE.search(near) is not None)
        points += (_CALL.search(near) is not None) + 2 * (_PUSHY.search(near) is not None)
        if points > 2:
            if _ASKS_FOR_ADS.search(seen.asked):
                return ""
            return text.content[max(0, contact.start() - 20) : contact.end() + 20]
    return ""


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
    r"\+\d{1,3}[- ]?\d{6,12})(?![0-9a-z])"
)
_SCAN = re.compile(r"扫码|二维码|scan the qr")
_SALE = re.compile(
    r"discount|% ?off|special offer|limited[- ]time|for sale|best price|lowest price|cheap|free trial|free shipping|"
    r"coupon|promo|\bdeals?\b|buy (?:it |one |yours )?(?:now|today|online)|order (?:now|today)|winners?\b|"
    r"casino|earn \$|"
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
        lowered = text.content.lower()
        for word in _candidates(lowered, rule):
            found = re.search(
                rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])" if word.isascii() else re.escape(word), lowered
            )
            if found:
                near = lowered[max(0, found.start() - 15) : found.end() + 15]
                fix = "remove the row, or take the word off the list of blocked_word"
                return Drop("blocked_word", f"holds {word!r}: {quoted(near)}", fix, text.message.path)
    return row


# So many words are looked for one by one; of longer lists only those that begin as something in the text does.
_FEW = 64


def _candidates(lowered: str, rule: BlockedWord) -> list[str]:
    """The words of the list that stand somewhere in the text, in the list's order for short lists."""
    if len(rule.words) <= _FEW:
        return [word for word in rule.in_low if word in lowered]
    pairs = {first + second for first, second in pairwise(lowered)}
    starts = sorted(rule.by_start.keys() & (pairs | set(lowered)))
    return [word for start in starts for word in rule.by_start[start] if word in lowered]
