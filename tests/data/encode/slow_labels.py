"""What a conversation must teach, worked out slowly: prefixes are rendered and compared token by token.

Shares no code with `dsr1_tune`: it knows only records, Hugging Face's renderer and, by hand, where real models stop.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from dsr1_tune.data.record import Message, Record, ToolCall

IM, SENTENCE, EOT, TURN = "<|im_end|>", "<｜end▁of▁sentence｜>", "<|eot_id|>", "<|END_OF_TURN_TOKEN|>"
DEEPSEEK_V3_1 = (
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
    "{% set ns = namespace(first=true, is_tool=false, system='', asked=false) %}"
    "{%- for m in messages %}{%- if m['role'] == 'system' %}"
    "{% set ns.system = ns.system + ('\n\n' if ns.system else '') + m['content'] %}{%- endif %}{%- endfor %}"
    "{{ bos_token }}{{ ns.system }}{%- for m in messages %}"
    "{%- if m['role'] == 'user' %}{% set ns.is_tool = false %}{% set ns.asked = true %}"
    "{{ '<｜User｜>' + m['content'] }}{%- endif %}"
    "{%- if m['role'] == 'assistant' and m['tool_calls'] is defined and m['tool_calls'] is not none %}"
    "{%- if ns.asked %}{{ '<｜Assistant｜></think>' }}{%- endif %}"
    "{% set ns.asked = false %}{% set ns.is_tool = false %}{{ m['content'] or '' }}"
    "{%- for tool in m['tool_calls'] %}{%- if loop.first %}{{ '<｜tool▁calls▁begin｜>' }}{%- endif %}"
    "{{ '<｜tool▁call▁begin｜>' + tool['function']['name'] + '<｜tool▁sep｜>' + tool['function']['arguments']"
    " + '<｜tool▁call▁end｜>' }}{%- endfor %}{{ '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}{%- endif %}"
    "{%- if m['role'] == 'assistant' and (m['tool_calls'] is not defined or m['tool_calls'] is none) %}"
    "{%- if ns.asked %}{{ '<｜Assistant｜></think>' }}{%- endif %}{% set ns.asked = false %}"
    "{%- if ns.is_tool %}{{ m['content'] + '<｜end▁of▁sentence｜>' }}{% set ns.is_tool = false %}{%- else %}"
    "{% set content = m['content'] %}{%- if '</think>' in content %}"
    "{% set content = content.split('</think>', 1)[1] %}{%- endif %}"
    "{{ content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endif %}"
    "{%- if m['role'] == 'tool' %}{% set ns.asked = false %}{% set ns.is_tool = true %}"
    "{{ '<｜tool▁output▁begin｜>' + m['content'] + '<｜tool▁output▁end｜>' }}{%- endif %}{%- endfor -%}"
    "{%- if add_generation_prompt and ns.asked and not ns.is_tool %}"
    "{{ '<｜Assistant｜>' + ('<think>' if thinking else '</think>') }}{%- endif %}"
)
"""As DeepSeek-V3.1's own: history is shown without thoughts, behind </think>, and `thinking` opens one."""

STOPS: dict[str, tuple[str, str]] = {
    "qwen2_5": (IM, IM),
    "qwen3": (IM, IM),
    "qwen3_5_think": (IM, IM),
    "qwen3_5_nothink": (IM, IM),
    "qwen3_6": (IM, IM),
    "qwen3_instruct_2507": (IM, IM),
    "deepseekv3": (SENTENCE, SENTENCE),
    "deepseek_r1_distill": (SENTENCE, SENTENCE),
    "glm4moe": ("<|user|>", "<|observation|>"),
    "gptoss": ("<|return|>", "<|call|>"),
    "phi3": ("<|end|>", "<|end|>"),
    "llama3": (EOT, EOT),
    "llama3_1": (EOT, EOT),
    "gemma": ("<end_of_turn>", "<end_of_turn>"),
    "gemma3": ("<end_of_turn>", "<end_of_turn>"),
    "cohere": (TURN, TURN),
    "cohere2": (TURN, TURN),
    "lfm2_v2": (IM, IM),
    "nemotron_3_nano": (IM, IM),
    "deepseek_v3_1": (SENTENCE, SENTENCE),
}
"""The token at which a model stops behind an answer, and behind a call."""
UNENDED = {"glm4moe"}
"""Templates that leave the end of a turn to the next one's header."""
CLOSERS = {"gptoss": "<|end|>"}
"""What closes an earlier answer, where generation does not stop there."""
HEADERS = {"glm4moe": ("<|user|>", "<|assistant|>", "<|system|>", "<|observation|>")}
"""What ends a turn where the template leaves that to the next; generation stops at some of them alone."""
JSON_TEXT = {"deepseekv3", "deepseek_r1_distill", "deepseek_v3_1"}
"""Templates that join arguments to other text, so that they must be text."""
THOUGHT_FIELD = {"gptoss": "thinking"}

HERMES = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{}\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML "
    'tags:\n<tool_call>\n{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)
"""How Hermes and Qwen tell a model of its tools."""

Canonical = str
"""A sequence to read and to compare: markers as «<|im_end|>», what is learned between ⟦ and ⟧, its end cut off."""


class Refused(Exception):
    """The template cannot show the record."""


@dataclass(frozen=True)
class Base:
    """A chat template with its tokenizer of bytes, and where models that have it stop."""

    name: str
    tokenizer: Any

    @property
    def markers(self) -> dict[str, int]:
        return dict(self.tokenizer.get_added_vocab())

    @property
    def stops(self) -> tuple[int, int]:
        answer, call = STOPS[self.name]
        return self.markers.get(answer, -1), self.markers.get(call, -1)


# --- text and tokens ---------------------------------------------------------------------------------------------

_BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
_CHAR_OF_BYTE = {byte: chr(byte) for byte in _BYTES}
_CHAR_OF_BYTE |= {byte: chr(256 + n) for n, byte in enumerate(b for b in range(256) if b not in _BYTES)}
_STAND_IN = re.compile(r"QZ(\d{4})QZ")


def split(text: str, markers: dict[str, int]) -> list[str]:
    """Text cut at the markers, leftmost and then longest; markers stand at the odd places."""
    if not markers:
        return [text]
    return re.split("(" + "|".join(map(re.escape, sorted(markers, key=len, reverse=True))) + ")", text)


def byte_ids(text: str, base: Base) -> list[int]:
    vocab = base.tokenizer.get_vocab()
    return [vocab[_CHAR_OF_BYTE[byte]] for byte in text.encode()]


def tokens(text: str, base: Base, controls: list[str]) -> list[int]:
    """The ids of a rendered text, in which the control tokens of the record's texts are stand-ins, hence bytes."""
    ids: list[int] = []
    for number, part in enumerate(split(text, base.markers)):
        if number % 2:
            ids.append(base.markers[part])
        else:
            ids += byte_ids(_STAND_IN.sub(lambda found: controls[int(found[1])], part), base)
    return ids


def canonical(ids: list[int] | tuple[int, ...], is_learned: list[bool], base: Base) -> Canonical:
    """See `Canonical`. White space around the tags of thoughts is left out, as authors write it as they like."""
    names = {number: name for name, number in base.markers.items()}
    byte_of = {base.tokenizer.get_vocab()[char]: byte for byte, char in _CHAR_OF_BYTE.items()}
    last = max((n for n, learned in enumerate(is_learned) if learned), default=-1)
    written, before = bytearray(), False
    for number, learned in [*zip(ids[: last + 1], is_learned[: last + 1], strict=True), (None, False)]:
        if learned != before:
            written += "⟦".encode() if learned else "⟧".encode()
        before = learned
        if number is not None:
            written += f"«{names[number]}»".encode() if number in names else bytes([byte_of[number]])
    text = written.decode("utf-8", "backslashreplace")
    text = re.sub(r"«?(<think>)»?\s*(⟦?)\s*", r"\1\2", text)
    return re.sub(r"\s*«?(</think>)»?\s*(⟦?)\s*", r"\1\2", text)


# --- rendering ---------------------------------------------------------------------------------------------------

_THOUGHT = re.compile(r"^\s*<think>(.*?)</think>\s*", re.DOTALL)


def thought_of(message: Message) -> str:
    found = _THOUGHT.match(message.content) if message.role == "assistant" else None
    return found[1].strip() if found else ""


def words_of(message: Message) -> str:
    return _THOUGHT.sub("", message.content) if message.role == "assistant" else message.content


def without(message: Message) -> Message:
    return replace(message, content=words_of(message))


def turn(message: Message, base: Base, empty: str | None) -> dict[str, Any]:
    """A message in the form that chat templates are given."""
    written: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.role == "assistant" and base.name in THOUGHT_FIELD and thought_of(message):
        written |= {"content": words_of(message), THOUGHT_FIELD[base.name]: thought_of(message)}
    if message.calls:
        written["content"] = written["content"] or empty
        arguments: list[Any] = [call.arguments for call in message.calls]
        if base.name not in JSON_TEXT:
            arguments = list(map(json.loads, arguments))
        written["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": said}}
            for call, said in zip(message.calls, arguments, strict=True)
        ]
    if message.name:
        written["name"] = message.name
    if message.call_id:
        written["tool_call_id"] = message.call_id
    return written


_RENDERED: dict[Any, str] = {}


@dataclass
class Renderer:
    """Renders one record's turns in one mode; `asked` adds the prompt for the next answer."""

    base: Base
    tools: Any
    mode: bool | None
    controls: list[str]

    def text(self, messages: list[Message], asked: bool = False) -> str:
        key = (self.base.name, self.mode, repr(self.tools), asked, repr([(m, m.calls) for m in messages]))
        if key not in _RENDERED:
            _RENDERED[key] = self._text(messages, asked)
        return _RENDERED[key]

    def _text(self, messages: list[Message], asked: bool) -> str:
        mode = {} if self.mode is None else {"enable_thinking": self.mode, "thinking": self.mode}
        shown = ""
        for empty in ("", None):  # some want null beside calls
            turns = [turn(message, self.base, empty) for message in messages]
            try:
                shown = self.base.tokenizer.apply_chat_template(
                    turns, tools=self.tools, tokenize=False, add_generation_prompt=asked, **mode
                )
            except Exception as error:
                raise Refused(str(error)) from error
            if all(json.loads(call.arguments) is not None and call.name in shown for call in calls_of(messages)):
                return str(shown)
        return shown

    def ids(self, messages: list[Message], asked: bool = False) -> list[int]:
        return tokens(self.text(messages, asked), self.base, self.controls)


def calls_of(messages: list[Message]) -> list[ToolCall]:
    return [call for message in messages for call in message.calls]


def with_stand_ins(messages: list[Message], base: Base) -> tuple[list[Message], list[str]]:
    """Messages whose texts hold no control token, and what they held; the tags of an answer's thought are kept."""
    controls: list[str] = []

    def hidden(text: str) -> str:
        parts = split(text, base.markers)
        for number in range(1, len(parts), 2):
            controls.append(parts[number])
            parts[number] = f"QZ{len(controls) - 1:04d}QZ"
        return "".join(parts)

    def of(message: Message) -> Message:
        found = _THOUGHT.match(message.content) if message.role == "assistant" else None
        if found:
            head = found[0].replace(found[1], hidden(found[1]))
            content = head + hidden(message.content[found.end() :])
        else:
            content = hidden(message.content)
        calls = tuple(replace(call, arguments=hidden(call.arguments)) for call in message.calls)
        return replace(message, content=content, calls=calls)

    return [of(message) for message in messages], controls


# --- what is learned ---------------------------------------------------------------------------------------------


def common(one: list[int], other: list[int]) -> int:
    for number, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return number
    return min(len(one), len(other))


def starts(ids: list[int], prompt: list[int]) -> bool:
    return ids[: len(prompt)] == prompt


Forms = dict[Canonical, tuple[int, ...]]
"""Right forms of one example, each with the turns whose calls must then be learned in examples of their own."""


def expected(
    record: Record, base: Base, thinking: str = "auto", tools: str = "template"
) -> list[tuple[Canonical, ...]]:
    """All the lists of examples that are right for the record. Raises Refused."""
    if tools == "text":
        record = written_out(record)
    messages = list(record.messages)
    if thinking == "off":
        messages = list(map(without, messages))
    messages, controls = with_stand_ins(messages, base)
    if is_folded(messages, record, controls, base):
        messages = fold(messages, base)
    listed = json.loads(record.tools) if record.tools else None
    right = []
    for whole, apart in _conversation(messages, listed, controls, base, thinking).items():
        examples: list[Forms] = []
        for position in apart:
            *before, call = messages[: position + 1]
            alone = [*(replace(message, is_learned=False) for message in before), call]
            examples.append(_conversation(alone, listed, controls, base, thinking))
        right += [(whole, *rest) for rest in product(*examples)]
    return right


def is_folded(messages: list[Message], record: Record, controls: list[str], base: Base) -> bool:
    """Whether the template cannot show the rules where they stand: it refuses, loses or moves them."""
    rules = [n for n, message in enumerate(messages) if message.role == "system"]
    if not rules:
        return False
    marked = [replace(m, content=f"Mk{n:02d}") if m.role in ("system", "user") else m for n, m in enumerate(messages)]
    try:
        text = Renderer(base, json.loads(record.tools) if record.tools else None, None, controls).text(marked)
    except Refused:
        return True
    places = [text.find(m.content) for m in marked if m.role in ("system", "user")]
    return -1 in places or places != sorted(places)


def fold(messages: list[Message], base: Base) -> list[Message]:
    """Rules at the start as one, later ones at the head of the user's next turn; the first there too if it must."""
    folded: list[Message] = []
    for message in messages:
        before = folded[-1] if folded else None
        if before and before.role == "system" and (message.role == "system" or len(folded) > 1):
            folded[-1] = replace(message, content=f"{before.content}\n\n{message.content}")
        else:
            folded.append(message)
    if folded[0].role == "system" and not shows_rules(base):
        rules, *folded = folded
        place = [message.role for message in folded].index("user")
        folded[place] = replace(folded[place], content=f"{rules.content}\n\n{folded[place].content}")
    return folded


def shows_rules(base: Base) -> bool:
    try:
        return "Mk00" in Renderer(base, None, None, []).text([Message("system", "Mk00"), Message("user", "Mk01")])
    except Refused:
        return False


def written_out(record: Record) -> Record:
    """The record in Hermes' words: tools among the rules, calls said by the assistant, results by the user."""
    messages: list[Message] = []
    for message in record.messages:
        text = message.content
        if message.role == "tool":
            text = f"<tool_response>\n{text}\n</tool_response>"
            if messages[-1].role == "user" and messages[-1].content.endswith("</tool_response>"):
                text = f"{messages.pop().content}\n{text}"
        for call in message.calls:
            said = f'{{"name": "{call.name}", "arguments": {call.arguments}}}'
            text += ("\n" if text else "") + f"<tool_call>\n{said}\n</tool_call>"
        role = "user" if message.role == "tool" else message.role
        messages.append(Message(role, text, is_learned=message.is_learned))
    if record.tools:
        head = messages.pop(0).content + "\n\n" if messages[0].role == "system" else ""
        tools = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in json.loads(record.tools))
        messages.insert(0, Message("system", head + HERMES.format(tools)))
    return replace(record, messages=tuple(messages), tools="")


def _conversation(messages: list[Message], tools: Any, controls: list[str], base: Base, thinking: str) -> Forms:
    last = len(messages) - 1
    asked_last = max((n for n, m in enumerate(messages) if m.role == "user"), default=0)
    auto = {bool(thought_of(messages[last])), any(map(thought_of, messages[asked_last:]))}
    forms: Forms = {}
    for mode in {"on": {True}, "off": {False}, "auto": auto}[thinking]:
        forms |= _in_mode(mode, thinking == "auto", messages, tools, controls, base)
    return forms


def _in_mode(mode: bool, is_auto: bool, messages: list[Message], tools: Any, controls: list[str], base: Base) -> Forms:
    last = len(messages) - 1
    modes = [Renderer(base, tools, one, controls) for one in (mode, not mode, None)]
    renderer = modes[0]
    bare = [*map(without, messages[:last]), messages[last]]
    # A thought behind a closed one is shown as nobody is asked.
    behind = re.search(r"</think>\s*<think>", renderer.text(messages))
    shown_from = list(map(without, messages)) if behind else messages
    text = renderer.text(shown_from)
    lost = _must_show(messages, text)
    shown = tokens(text, base, controls)
    if base.name in UNENDED or (messages[last].calls and base.stops[1] not in shown[-3:]):
        shown.append(base.stops[bool(messages[last].calls)])
    prompt = renderer.ids(shown_from[:last], asked=True)
    body, end = _body(last, shown_from, renderer, shown), 0
    end = _end(body, messages[last], True, shown, base)
    is_shown = not thought_of(messages[last]) or (thought_of(messages[last]) in text and shown_from is messages)
    firsts = [len(prompt)]
    if starts(shown, prompt) and is_shown:
        usual = modes[2].ids(shown_from[:last], asked=True)
        if is_auto and not thought_of(messages[last]) and starts(shown, usual):
            firsts.append(len(usual))
    else:  # the last answer goes on from the very prompt that asks for it
        other = renderer.ids([_silent(m) for m in bare[:last]], asked=True)
        if is_shown and starts(shown, other):
            shown = prompt + shown[len(other) : end]
        else:
            tail = shown[body:end]
            if messages[last].calls and calls_of(messages[:last]):  # DeepSeek's opens the first calls alone
                alone = [Message("user", "Jx"), without(messages[last])]
                tail = renderer.ids(alone)
                tail = tail[_body(1, alone, renderer, tail) :]
                tail = tail[: _end(0, messages[last], True, tail, base)]
            shown = _from_prompt(prompt, messages[last], base, controls) + tail
        end = len(shown)
        lost = []
        text = renderer.text(shown_from[:last], asked=True) + text
    choices: list[list[tuple[int, int, int | None]]] = []
    if messages[last].is_learned:
        choices.append([(first, end, None) for first in firsts])
    for i, message in enumerate(messages[:last]):
        if message.role != "assistant" or not message.is_learned:
            continue
        if not any(m.role == "user" for m in messages[:i]):
            continue
        prompts = [one.ids(some[:i], asked=True) for one in modes for some in (shown_from, bare)]
        is_shown = not thought_of(message) or (thought_of(message) in text and shown_from is messages)
        alone = [(0, 0, i)] if message.calls else []
        if not is_shown or i in lost:
            choices += [alone] if alone else []
            continue
        at = _body(i, shown_from, renderer, shown)
        begins = {len(one) for one in prompts if starts(shown, one)}
        is_asked = starts(shown, prompts[0])
        begins |= {at} if message.content == words_of(message) else set()
        begins |= {common(shown, prompts[0])} if not is_asked else set()
        try:
            till = _end(at, message, False, shown, base)
        except Refused:
            choices += [alone]
            continue
        choices.append([*((first, till, None) for first in begins), *([] if is_asked else alone)])
    forms: Forms = {}
    for spans in product(*choices):
        learned = [any(first <= n < stop for first, stop, _ in spans) for n in range(len(shown))]
        forms[canonical(shown, learned, base)] = tuple(sorted(i for *_, i in spans if i is not None))
    return forms


def _silent(message: Message) -> Message:
    """A call without the words before it."""
    return replace(message, content="") if message.calls else message


def _must_show(messages: list[Message], text: str) -> list[int]:
    """The calls whose words are not shown. Refused where other words, or a call's name or arguments, are not."""
    lost = []
    for number, message in enumerate(messages):
        words = words_of(message).strip()
        if message.calls and words not in text and number < len(messages) - 1:
            lost.append(number)
            words = ""
        wanted = [words] if words and message.role != "tool" else []
        for call in message.calls:
            wanted += [call.name, *(said for pair in json.loads(call.arguments).items() for said in map(str, pair))]
        if message.role == "tool":
            wanted += re.findall(r"\w+", words)
        for said in wanted:
            if said not in text:
                raise Refused(f"{said!r} is not shown")
    return lost


def _body(i: int, messages: list[Message], renderer: Renderer, shown: list[int]) -> int:
    """Where the words or the calls of turn i begin: what is the same whatever they are comes before."""
    places = []
    for other in ("Jx", "Kx"):
        changed = [*messages[:i], Message("assistant", other), *messages[i + 1 :]]
        try:
            places.append(common(shown, renderer.ids(changed)))
        except Refused:  # a result without its call
            places.append(common(shown, renderer.ids(changed[: i + 1])))
    return min(places)


def _end(body: int, message: Message, is_last: bool, shown: list[int], base: Base) -> int:
    """Behind the stop token of a turn; before its closer, where generation does not stop there."""
    stop = base.stops[bool(message.calls)]
    closer = None if is_last or message.calls else base.markers.get(CLOSERS.get(base.name, ""))
    headers = [base.markers.get(one) for one in HEADERS.get(base.name, ())]
    for number in range(body, len(shown)):
        if shown[number] == closer:
            return number
        if shown[number] == stop:
            return number + 1
        if shown[number] in headers:
            return number
        if shown[number] in base.stops or shown[number] == base.markers.get("<｜tool▁outputs▁begin｜>"):
            break
    raise Refused("the turn has no end")


def _from_prompt(prompt: list[int], message: Message, base: Base, controls: list[str]) -> list[int]:
    """The prompt, and up to its words the answer that goes on from it."""
    tail = canonical(prompt, [True] * len(prompt), base)
    thought = thought_of(message)
    if tail.endswith("<think>⟧"):
        return prompt + tokens(f"{thought}</think>", base, controls)
    return prompt + (tokens(f"<think>{thought}</think>", base, controls) if thought else [])
