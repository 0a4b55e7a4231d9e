"""Ollama's Modelfile beside a .gguf: its TEMPLATE is worked out from the tokenizer's chat template, and tried.

Ollama reads Go templates, tokenizers bring Jinja ones; of a GGUF's own chat template Ollama makes use only where it is
one of a short list. Whatever the Jinja template puts around the turns of a conversation is found by rendering some; the
same texts around the turns of others must then give the very same text, or the template is left out and the Modelfile
says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from dsr1_tune.export.weights.source import Source
from dsr1_tune.models.folder import ModelFolder
from dsr1_tune.models.tokenizer_files import ends_in

FILE = "Modelfile"
_USUAL_CONTEXT = 8192
_ROLES = {"S": "system", "U": "user", "A": "assistant"}

Turns = list[dict[str, str]]


def write(source: Source, file: Path, adds_bos: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Write the Modelfile beside `file`; what is to be said of it for lineage.json.

    `adds_bos`: whether llama.cpp puts the token that begins a text before every text.
    """
    tokenizer = ModelFolder(source.folder, source.name).read_tokenizer()
    found = work_out(tokenizer, adds_bos)
    for remark in found.remarks:
        say(f"Modelfile: {remark}")
    lines = [f"# {remark}" for remark in found.remarks]
    lines.append(f"FROM ./{file.name}")
    if found.template is not None:
        lines.append(f'TEMPLATE """{found.template}"""')
    lines += [f"PARAMETER stop {json.dumps(token, ensure_ascii=False)}" for token in _stops(source, tokenizer)]
    context = getattr(source.meta_model.config, "max_position_embeddings", None) or _USUAL_CONTEXT
    lines.append(f"PARAMETER num_ctx {min(int(context), _USUAL_CONTEXT)}")
    lines += [f"PARAMETER {name} {value}" for name, value in _sampling(source)]
    (file.parent / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"modelfile": {"template": found.template is not None, "remarks": list(found.remarks)}}


@dataclass(frozen=True)
class Found:
    """A Go template, None if the tokenizer's cannot be said in Go, and what a user should know."""

    template: str | None
    remarks: tuple[str, ...] = ()


def work_out(tokenizer: Any, adds_bos: bool = False) -> Found:
    """The Go template that gives the text of the tokenizer's chat template."""
    if "strftime_now" in str(tokenizer.chat_template):
        return Found(None, ("no TEMPLATE: the model's chat template says today's date, which Ollama's cannot",))
    bos = str(tokenizer.bos_token or "") if adds_bos else ""
    try:
        around, is_bos_left = _derive(tokenizer, bos)
        template = around.as_go()
    except (TemplateError, _Unclear) as error:
        return Found(None, (f"no TEMPLATE: the model's chat template cannot be said in Go: {error}",))
    remarks = []
    if bos and not is_bos_left:
        remarks.append(f"llama.cpp puts {bos} before every text by itself, which the model's chat template does not")
    before = bos if is_bos_left else ""
    has_system = around.brief is not None
    if not has_system:
        remarks.append("the model's chat template has no place for system messages; they are left out")
    if not all(
        _is_same(tokenizer, around, before, turns)
        for turns in _SAMPLES
        if has_system or all(turn["role"] != "system" for turn in turns)
    ):
        return Found(None, ("no TEMPLATE: the model's chat template treats turns in a way that Ollama's cannot",))
    for turns, what in _CORNERS:
        if not _is_same(tokenizer, around, before, turns):
            remarks.append(what)
    return Found(template, tuple(remarks))


class _Unclear(Exception):
    """A chat template that does more than to put something around the turns."""


@dataclass(frozen=True)
class _Around:
    """What a chat template puts around the turns of a conversation."""

    plain: str
    """Before the first turn, where there is no system message."""
    brief: tuple[str, str] | None
    """Before and behind a system message; None where there is no place for one."""
    user: tuple[str, str]
    answer: tuple[str, str]
    """The second part comes only if another turn follows."""
    new: str
    """Before the answer that is to be written."""

    def as_go(self) -> str:
        """As a Go template. Raises _Unclear for text that cannot be quoted in a Modelfile."""
        user, user_end, answer, answer_end, new = map(_raw, (*self.user, *self.answer, self.new))
        start = _raw(self.plain)
        if self.brief:
            other = f"{{{{ else }}}}{start}" if start else ""
            before, behind = map(_raw, self.brief)
            start = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{behind}{other}{{{{ end }}}}"
        return (
            f"{start}{{{{ range $i, $_ := .Messages }}}}{{{{ $last := eq (len (slice $.Messages $i)) 1 }}}}"
            f'{{{{ if eq .Role "user" }}}}{user}{{{{ .Content }}}}{user_end}{{{{ if $last }}}}{new}{{{{ end }}}}'
            f'{{{{ else if eq .Role "assistant" }}}}{answer}{{{{ .Content }}}}'
            f"{{{{ if not $last }}}}{answer_end}{{{{ end }}}}{{{{ end }}}}{{{{ end }}}}"
        )

    def of(self, turns: Turns) -> str:
        """What that Go template gives for a conversation; Ollama hands it all system messages together."""
        system = "\n\n".join(turn["content"] for turn in turns if turn["role"] == "system")
        text = system.join(self.brief) if self.brief and system else self.plain
        for number, turn in enumerate(turns, start=1):
            is_last = number == len(turns)
            if turn["role"] == "user":
                text += turn["content"].join(self.user) + (self.new if is_last else "")
            elif turn["role"] == "assistant":
                text += self.answer[0] + turn["content"] + ("" if is_last else self.answer[1])
        return text


def _derive(tokenizer: Any, bos: str) -> tuple[_Around, bool]:
    """What stands between the turns, and whether `bos`, which llama.cpp adds, could be left to it."""
    user_end = _pieces(tokenizer, "U1", asks=False)[1]
    answer_end = _pieces(tokenizer, "U1 A1", asks=False)[2]
    first, to_answer, to_user, _, _, to_new = _pieces(tokenizer, "U1 A1 U2 A2 U3", asks=True)
    user = _without_start(to_user, answer_end)
    answer, new = _without_start(to_answer, user_end), _without_start(to_new, user_end)
    plain = _without_end(first, user)
    brief: tuple[str, str] | None = None
    try:
        briefed = _pieces(tokenizer, "S1 U1", asks=True)
    except (TemplateError, _Unclear):
        pass
    else:
        brief = briefed[0], _without_end(briefed[1], user)
    is_left = bool(bos) and plain.startswith(bos) and (brief is None or brief[0].startswith(bos))
    if is_left:
        plain, brief = plain.removeprefix(bos), brief and (brief[0].removeprefix(bos), brief[1])
    return _Around(plain, brief, (user, user_end), (answer, answer_end), new), is_left


def _raw(text: str) -> str:
    """Text of a template that is to stand as it is."""
    if '"""' in text:
        raise _Unclear("it holds three quotation marks")
    return text.replace("{{", '{{ "{{" }}')


def _jinja(tokenizer: Any, turns: Turns, asks: bool) -> str:
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=asks))


def _pieces(tokenizer: Any, names: str, asks: bool) -> list[str]:
    """What stands before, between and behind the turns of these names, each of whose texts must be there once."""
    turns = [{"role": _ROLES[name[0]], "content": f"[{name}]"} for name in names.split()]
    pieces, rest = [], _jinja(tokenizer, turns, asks)
    for turn in turns:
        before, found, rest = rest.partition(turn["content"])
        if not found:
            raise _Unclear("it does not repeat what is said")
        pieces.append(before)
    if any(turn["content"] in rest for turn in turns):
        raise _Unclear("it repeats what is said")
    return [*pieces, rest]


def _without_start(text: str, start: str) -> str:
    if not text.startswith(start):
        raise _Unclear("it ends a turn in different ways")
    return text[len(start) :]


def _without_end(text: str, end: str) -> str:
    if not text.endswith(end):
        raise _Unclear("it begins the first turn in another way than the others")
    return text[: len(text) - len(end)]


def _is_same(tokenizer: Any, around: _Around, before: str, turns: Turns) -> bool:
    try:
        return before + around.of(turns) == _jinja(tokenizer, turns, True)
    except TemplateError:
        return False


_TALK: Turns = [
    {"role": "user", "content": "What is a fever?\nIs 38 °C one?"},
    {"role": "assistant", "content": 'A temperature above "normal".\n\n- 38 °C: yes'},
    {"role": "user", "content": "发烧三天了怎么办？ {{ .Role }} `x`"},
    {"role": "assistant", "content": "请及时就医。"},
    {"role": "user", "content": "thanks"},
]
_BRIEF = {"role": "system", "content": "You are a physician.\nBe brief."}
_SAMPLES: tuple[Turns, ...] = (_TALK[:1], _TALK[:3], _TALK, [_BRIEF, *_TALK[:1]], [_BRIEF, *_TALK])
_CORNERS: tuple[tuple[Turns, str], ...] = (
    (
        [{"role": "user", "content": "  hello \n"}],
        "the model's chat template removes white space around what is said; Ollama's cannot",
    ),
    (
        [_TALK[0], {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."}, _TALK[2]],
        "the model's chat template changes earlier answers that hold thoughts; Ollama sends them as they are",
    ),
)


def _stops(source: Source, tokenizer: Any) -> list[str]:
    """The tokens that end an answer, the likelier ones first."""
    ends = ends_in(source.folder, tokenizer)
    texts = [tokenizer.eos_token, ends.answer, ends.call, *tokenizer.convert_ids_to_tokens(sorted(ends.ids))]
    return list(dict.fromkeys(text for text in texts if text))


def _sampling(source: Source) -> Iterator[tuple[str, Any]]:
    """How the model wants to be sampled, where it says so."""
    said = _generation(source)
    if said.get("do_sample"):
        yield from ((name, said[name]) for name in ("temperature", "top_p", "top_k") if said.get(name) is not None)


def _generation(source: Source) -> dict[str, Any]:
    file = source.folder / "generation_config.json"
    if not file.is_file():
        return {}
    tree = json.loads(file.read_text(encoding="utf-8"))
    return tree if isinstance(tree, dict) else {}
