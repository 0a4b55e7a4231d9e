"""Talk to a model: a conversation that streams its answers, and the loop around it for a terminal or a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import TextStreamer

from dsr1_tune.errors import ModelError, TuneError
from dsr1_tune.models.load import Loaded

HELP = "/new starts again, /system TEXT tells the model how to behave, /quit leaves; Ctrl-C stops an answer"


class Conversation:
    """What has been said so far to a model, and how it answers: at most `max_new_tokens`, greedy at temperature 0."""

    def __init__(self, loaded: Loaded, max_new_tokens: int = 512, temperature: float = 0.0) -> None:
        self.loaded = loaded
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.system = ""
        self.turns: list[dict[str, str]] = []

    def ask(self, question: str, say: Callable[[str], None]) -> str:
        """Answer, telling `say` every piece as it comes; what was asked and answered is remembered.

        A KeyboardInterrupt on the way is passed on when what was answered so far, if anything, has been remembered.
        Raises ModelError if the question does not fit into the model's context, or its chat template refuses it.
        """
        asked = {"role": "user", "content": question}
        prompt = self._fit([*self.turns, asked])
        pieces = _Pieces(self.loaded.tokenizer, say)
        try:
            with torch.inference_mode():
                self.loaded.model.generate(**prompt, **self._settings(), streamer=pieces)
        except KeyboardInterrupt:
            pieces.end()
            if pieces.answer:
                self._remember(asked, pieces.answer)
            raise
        except torch.OutOfMemoryError as error:
            raise ModelError("the memory is full", hint="start again with /new, or lower --max-new-tokens") from error
        self._remember(asked, pieces.answer)
        return pieces.answer

    def _remember(self, asked: dict[str, str], answer: str) -> None:
        self.turns += [asked, {"role": "assistant", "content": answer}]

    def forget(self) -> None:
        """Start again; what the model was told by `system` stays."""
        self.turns.clear()

    def _fit(self, turns: list[dict[str, str]]) -> Any:
        """The encoded prompt for `turns`; the oldest questions are forgotten where the context is too short."""
        limit = self.loaded.model.config.max_position_embeddings - self.max_new_tokens
        prompt = self._encode(turns)
        while (num_tokens := prompt["input_ids"].shape[1]) > limit:
            if len(turns) < 3:
                raise ModelError(
                    f"the question is {num_tokens} tokens long, {max(limit, 0)} fit before an answer of "
                    f"{self.max_new_tokens}",
                    hint="ask something shorter, or lower --max-new-tokens",
                )
            turns = turns[2:]
            prompt = self._encode(turns)
        self.turns = turns[:-1]
        return prompt

    def _encode(self, turns: list[dict[str, str]]) -> Any:
        system = [{"role": "system", "content": self.system}] if self.system else []
        try:
            encoded = self.loaded.tokenizer.apply_chat_template(
                system + turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        except TemplateError as error:
            raise ModelError(
                f"the model's chat template refuses this: {error}", hint="try without /system, or start again with /new"
            ) from error
        return encoded.to(self.loaded.model.device)

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

    def __init__(self, tokenizer: Any, say: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.say = say
        self.said: list[str] = []

    @property
    def answer(self) -> str:
        """All that was said."""
        return "".join(self.said).strip()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.said.append(text)
            self.say(text)


def talk(
    conversation: Conversation,
    lines: Iterable[str],
    say: Callable[[str], None],
    note: Callable[[str], None],
    is_interactive: bool,
) -> None:
    """Answer line after line until they end or one says /quit: answers to `say`, everything else to `note`.

    Interactively Ctrl-C ends an answer and a mistake is noted; otherwise both end the talk.
    """
    for line in lines:
        line = line.strip()
        if not line:
            continue
        if line.startswith("/"):
            if not obey(conversation, line, note):
                return
            continue
        try:
            conversation.ask(line, say)
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
        say("\n")


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
