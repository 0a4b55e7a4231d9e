"""Talk to a model: a conversation that streams its answers, and the loop around it for a terminal or a pipe."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TextStreamer

from dsr1_tune.config import Encoding, Template
from dsr1_tune.data.encode import thinking
from dsr1_tune.data.encode.chat_template import render_prompt
from dsr1_tune.data.encode.control_tokens import hide, pieces
from dsr1_tune.data.encode.end_tokens import end_tokens
from dsr1_tune.data.encode.example import prompt_ids
from dsr1_tune.data.encode.template import TEMPLATE_ERRORS, any_of
from dsr1_tune.data.record import Message, Place, Record
from dsr1_tune.errors import ModelError, TuneError
from dsr1_tune.models.llama_cpp.client import LlamaCpp
from dsr1_tune.models.load import Loaded
from dsr1_tune.text.amount import amount

HELP = "/new starts again, /system TEXT tells the model how to behave, /quit leaves; Ctrl-C stops an answer"


class Conversation:
    """What has been said so far to a model, and how it answers: at most `max_new_tokens`, greedy at temperature 0.

    `template` says how the chat template is asked. Control tokens in what is typed are text.
    """

    def __init__(
        self,
        loaded: Loaded,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        template: Template = Template(),  # noqa: B008 - it is frozen
    ) -> None:
        self.loaded, self.tokenizer = loaded, loaded.tokenizer
        self.name = loaded.name
        self.context: int = loaded.model.config.max_position_embeddings
        self._start(max_new_tokens, temperature, template)

    def _start(self, max_new_tokens: int, temperature: float, template: Template) -> None:
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.template = template
        self.system = ""
        self.turns: list[Message] = []

    def ask(self, question: str, say: Callable[[str], None]) -> str:
        """Answer, telling `say` every piece as it comes; what was asked and answered is remembered.

        A KeyboardInterrupt on the way is passed on when what was answered so far, if anything, has been remembered.
        Raises ModelError if the question does not fit into the model's context, or its chat template refuses it.
        """
        asked = Message("user", question)
        prompt = self._fit([*self.turns, asked])
        said: list[str] = []

        def hear(piece: str) -> None:
            said.append(piece)
            say(piece)

        try:
            self._speak(prompt, hear)
        except KeyboardInterrupt:
            if answer := "".join(said).strip():
                self._remember(asked, answer)
            raise
        self._remember(asked, "".join(said).strip())
        return self.turns[-1].content

    def _speak(self, prompt: Any, hear: Callable[[str], None]) -> None:
        """Answer an encoded prompt, piece by piece."""
        pieces = _Pieces(self.loaded, hear)
        try:
            with torch.inference_mode():
                self.loaded.model.generate(**prompt, **self._settings(), streamer=pieces)
        except KeyboardInterrupt:
            pieces.end()
            raise
        except torch.OutOfMemoryError as error:
            raise ModelError("the memory is full", hint="start again with /new, or lower --max-new-tokens") from error

    def opens_thought(self) -> bool:
        """Whether the prompt for the last answer ended with an opened thought, with which the answer then goes on."""
        prompt = render_prompt(
            self._unanswered(self.turns[:-1]), self.tokenizer, Encoding(template=self.template), usual=True
        )
        return prompt.text.rstrip().endswith(thinking.OPEN)

    def _remember(self, asked: Message, answer: str) -> None:
        self.turns += [asked, Message("assistant", answer)]

    def forget(self) -> None:
        """Start again; what the model was told by `system` stays."""
        self.turns.clear()

    def _fit(self, turns: list[Message]) -> Any:
        """The encoded prompt for `turns`; the oldest questions are forgotten where the context is too short."""
        limit = self.context - self.max_new_tokens
        prompt = self._encode(turns)
        while (num_tokens := self._length(prompt)) > limit:
            if len(turns) < 3:
                raise ModelError(
                    f"the question is {amount(num_tokens, 'token')} long, {max(limit, 0)} fit before an answer of "
                    f"{self.max_new_tokens}",
                    hint="ask something shorter, or lower --max-new-tokens",
                )
            turns = turns[2:]
            prompt = self._encode(turns)
        self.turns = turns[:-1]
        return prompt

    def _unanswered(self, turns: list[Message]) -> Record:
        """The record at whose end stands what it has not answered yet."""
        system = [Message("system", self.system)] if self.system else []
        return Record((*system, *turns, Message("assistant", "")), Place("", 0, 0))

    def _encode(self, turns: list[Message]) -> Any:
        try:
            return self._apply_template(self._unanswered(turns))
        except TEMPLATE_ERRORS as error:
            raise ModelError(
                f"the model's chat template refuses this: {error}", hint="try without /system, or start again with /new"
            ) from error

    def _apply_template(self, record: Record) -> Any:
        ids = prompt_ids(record, self.tokenizer, Encoding(template=self.template), usual=True)
        ids_BT = torch.tensor([ids], device=self.loaded.model.device)
        return {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}

    def _length(self, prompt: Any) -> int:
        """In tokens."""
        return int(prompt["input_ids"].shape[1])

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "pad_token_id": self.loaded.tokenizer.pad_token_id,
        }
        if self.temperature > 0:
            return settings | {"do_sample": True, "temperature": self.temperature}
        return settings | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


class _Pieces(TextStreamer):
    """Hands on every finished piece of the answer, and keeps it."""

    def __init__(self, loaded: Loaded, say: Callable[[str], None]) -> None:
        super().__init__(loaded.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.say = say
        # Not all that end an answer are special tokens.
        self.ends = end_tokens(loaded.tokenizer, loaded.model.generation_config.eos_token_id).ids

    def put(self, value: Any) -> None:
        if self.next_tokens_are_prompt or int(value) not in self.ends:
            super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.say(text)


@dataclass(frozen=True)
class _Template:
    """What a chat template asks of a tokenizer, as a .gguf file says it."""

    engine: LlamaCpp

    @property
    def name_or_path(self) -> str:
        return str(self.engine.file)

    @property
    def chat_template(self) -> str:
        return str(self.engine.chat_template)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        return {"bos_token": self.engine.bos, "eos_token": self.engine.eos}

    def get_chat_template(self, chosen: str | None, tools: Any) -> str:
        return self.chat_template

    def __len__(self) -> int:
        return int(self.engine.num_vocab)


class GgufConversation(Conversation):
    """The same with a .gguf file in llama.cpp: chat template and tokenizer are those in the file."""

    def __init__(
        self,
        engine: LlamaCpp,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        template: Template = Template(),  # noqa: B008 - it is frozen
    ) -> None:
        """Raises ModelError if the file has no chat template."""
        if not engine.chat_template:
            raise ModelError(
                f"{engine.file}: has no chat template, so questions and answers cannot be told apart",
                hint="convert the model's chat or instruct variant",
            )
        self.engine, self.tokenizer = engine, _Template(engine)
        self.name = f"{engine.file}, {engine.description}"
        self.context = engine.context
        self._start(max_new_tokens, temperature, template)

    def _apply_template(self, record: Record) -> list[int]:
        hidden = hide(record, self._control_tokens(record))
        rendered = render_prompt(hidden.record, self.tokenizer, Encoding(template=self.template), usual=True)
        text, places = hidden.shown(rendered.text)
        ids: list[int] = []
        for (first, end), is_text in pieces(text, places):
            ids += self.engine.tokenize(text[first:end], special=not is_text)
        return ids

    def _control_tokens(self, record: Record) -> re.Pattern[str]:
        """What in the texts llama.cpp takes for one token, though it is written as several."""
        said = "".join(message.content for message in record.messages)
        found = [
            text
            for text in dict.fromkeys(re.findall(r"<[^<>\s]{1,60}>", said))
            if len(self.engine.tokenize(text)) == 1 < len(self.engine.tokenize(text, special=False))
        ]
        return any_of(found)

    def _length(self, prompt: Any) -> int:
        return len(prompt)

    def _speak(self, prompt: Any, hear: Callable[[str], None]) -> None:
        seed = random.getrandbits(32)
        for spoken in self.engine.stream(prompt, self.max_new_tokens, self.temperature, seed):
            if spoken.text:
                hear(spoken.text)


Answer = Callable[[Conversation, str, Callable[[str], None]], None]
"""Asks a conversation a question, and says the answer and what ends it."""


def plainly(conversation: Conversation, question: str, say: Callable[[str], None]) -> None:
    """The answer as it comes, and a new line behind it."""
    conversation.ask(question, say)
    say("\n")


def as_json(conversation: Conversation, question: str, say: Callable[[str], None]) -> None:
    """One line of JSON with question, answer and thinking, which is null where the answer begins with no thought.

    The answer is empty where the thought was not closed.
    """
    said = conversation.ask(question, lambda piece: None)
    parts = _parted(said, conversation.opens_thought())
    told = {"question": question, "answer": parts.answer.strip(), "thinking": parts.reasoning.strip() or None}
    say(json.dumps(told, ensure_ascii=False) + "\n")


def _parted(said: str, is_opened: bool) -> thinking.Reasoned:
    """Thought and answer; a thought begins behind a prompt that opened it, or with <think>, and may never end."""
    if is_opened and not said.startswith(thinking.OPEN):
        said = thinking.OPEN + said
    if not said.startswith(thinking.OPEN):
        return thinking.Reasoned("", said)
    return thinking.part(said) or thinking.Reasoned(said.removeprefix(thinking.OPEN), "")


def talk(
    conversation: Conversation,
    lines: Iterable[str],
    say: Callable[[str], None],
    note: Callable[[str], None],
    is_interactive: bool,
    answer: Answer | None = None,
) -> None:
    """Answer line after line until they end or one says /quit: answers to `say`, everything else to `note`.

    Interactively Ctrl-C ends an answer and a mistake is noted; otherwise both end the talk. `answer` is another way to
    answer than plainly.
    """
    answer = answer or plainly
    for line in lines:
        line = line.strip()
        if not line:
            continue
        if line.startswith("/"):
            if not obey(conversation, line, note):
                return
            continue
        try:
            answer(conversation, line, say)
        except KeyboardInterrupt:
            if not is_interactive:
                raise
            note("\n[stopped]")
            continue
        except TuneError as error:
            if not is_interactive:
                raise
            note(str(error))
            continue


def obey(conversation: Conversation, line: str, note: Callable[[str], None]) -> bool:
    """Carry out a line that starts with a slash; False if it says to leave."""
    command, _, text = line.partition(" ")
    if command == "/quit":
        return False
    if command == "/new":
        conversation.forget()
        note("started again")
    elif command == "/system":
        conversation.system = text.strip()
        note("the model will be told so" if conversation.system else "the model will be told nothing beforehand")
    else:
        note(HELP if command == "/help" else f"there is no {command}; {HELP}")
    return True


def typed_lines(note: Callable[[str], None]) -> Iterator[str]:
    """The lines typed at a prompt until Ctrl-D; Ctrl-C there only says how to leave."""
    while True:
        try:
            yield input("> ")
        except EOFError:
            note("")
            return
        except KeyboardInterrupt:
            note("\n(Ctrl-D or /quit leaves)")
