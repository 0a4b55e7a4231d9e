"""`dsr1-tune chat` and `serve`: talk to a model, or hand it over to an engine that is installed."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsr1_tune.cli import streams

if TYPE_CHECKING:
    from dsr1_tune.config import Template
    from dsr1_tune.serve.chat import Conversation


def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN_OR_MODEL",
            help="A run folder, an adapter, a model folder, a .gguf file or a Hub id",
            show_default="embedded",
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="Ask this and leave")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens")] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always gives the likeliest answer")] = 0.0,
    thinking: Annotated[
        str, typer.Option(help="on or off, where the chat template has both; auto as most training rows had it")
    ] = "auto",
    template_kwargs: Annotated[
        str,
        typer.Option(metavar="NAME=VALUE,...", help="Further arguments of the chat template, or as JSON"),
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="In a pipe or with --prompt: a line of JSON for each answer")
    ] = False,
) -> None:
    """Talk to a model in the terminal, or through a pipe: every line is a question, only answers are printed.

    In the terminal: /new, /system TEXT, /quit; Ctrl-C stops an answer, Ctrl-D leaves.
    """
    from dsr1_tune.errors import ConfigError
    from dsr1_tune.models import embedded
    from dsr1_tune.serve import chat as chatting

    if prompt is not None and not prompt.strip():
        raise ConfigError("--prompt: asks nothing", hint='for example: --prompt "What is a fever?"')
    if as_json and prompt is None and sys.stdin.isatty():
        raise ConfigError("--json: is not for a talk in the terminal", hint="pipe questions in, or give --prompt")
    if model is None:
        _note(f"Using {embedded.WHAT}.")
    template = _template(thinking, template_kwargs)
    conversation = _begin(model, max_new_tokens, temperature, template)
    answer, say = (chatting.as_json, streams.say_json) if as_json else (chatting.plainly, _say)
    if prompt is not None:
        answer(
            conversation, prompt.encode(errors="replace").decode(), say
        )  # bytes that are no text are none here either
    elif sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # not on Windows
            import readline  # noqa: F401 - gives input() its history and editing
        _note(f"{conversation.name}. {chatting.HELP}")
        chatting.talk(conversation, chatting.typed_lines(_note), _say, _note, is_interactive=True)
    else:
        chatting.talk(conversation, sys.stdin, say, _note, is_interactive=False, answer=answer)


def _template(thinking: str, kwargs: str) -> Template:
    """How the chat template is to be asked. Raises ConfigError that names the options."""
    from dsr1_tune.config import Template
    from dsr1_tune.config.load import load_config
    from dsr1_tune.errors import ConfigError

    try:
        return load_config(Template, flags={"thinking": thinking, "kwargs": kwargs or None})
    except ConfigError as error:
        name, colon, problem = error.message.partition(": ")
        option = {"kwargs": "--template-kwargs", "thinking": "--thinking"}.get(name, name)
        raise ConfigError(option + colon + problem, hint="dsr1-tune chat --help") from None


def _begin(model: str | None, max_new_tokens: int, temperature: float, said: Template) -> Conversation:
    """A conversation in which the template is asked as the model was trained to be, unless something else is said."""
    from dsr1_tune.data.encode.template import check_arguments, needless_mode
    from dsr1_tune.models.llama_cpp.client import LlamaCpp
    from dsr1_tune.models.ref import Gguf, ModelRef, local_path, template_kwargs_of
    from dsr1_tune.models.trained.attach import load_with_adapter
    from dsr1_tune.runs.console import quiet_libraries
    from dsr1_tune.serve.chat import Conversation, GgufConversation

    quiet_libraries()
    trained = template_kwargs_of(local_path(model)) if model else {}
    template = said.model_copy(update={"kwargs": {**trained, **said.kwargs}})

    def check(tokenizer: Any) -> None:
        check_arguments(tokenizer, said.kwargs, "--template-kwargs")
        if needless := needless_mode(tokenizer, said):
            _note(f"note: {needless}")

    if isinstance(ref := ModelRef.resolve(model), Gguf):
        conversation = GgufConversation(LlamaCpp(ref.file), max_new_tokens, temperature, template)
        check(conversation.tokenizer)
        return conversation
    return Conversation(load_with_adapter(model, _note, check), max_new_tokens, temperature, template)


def _say(text: str) -> None:
    """Answers go to stdout, at once."""
    print(text, end="", flush=True)


def _note(text: str) -> None:
    """Everything else goes to stderr."""
    print(text, file=sys.stderr, flush=True)


def serve(
    place: Annotated[Path, typer.Argument(metavar="DIR", help="A model, an adapter, a run or a .gguf file.")],
    engine: Annotated[
        str, typer.Option(help="auto, vllm, sglang, llama.cpp or transformers; auto takes what is here.")
    ] = "auto",
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    print_command: Annotated[bool, typer.Option("--print-command", help="Print the command and leave")] = False,
) -> None:
    """Serve a model over an OpenAI-compatible API, with an engine that is installed here; Ctrl-C stops it.

    GGUF files go to llama.cpp, everything else to vLLM, SGLang or transformers, the first of them that is here.
    """
    import json
    import shlex

    from dsr1_tune.errors import ConfigError, ModelError
    from dsr1_tune.models import artifact
    from dsr1_tune.serve import engines

    if engine not in ("auto", *engines.ENGINES):
        raise ConfigError(f"--engine: {engine} is unknown", hint=f"auto, {', '.join(engines.ENGINES)}")
    found = artifact.of(place)

    from dsr1_tune.export.check_serve import run as check

    verdicts = [check(found, name) for name in engines.fitting(found, engine)]
    loading = [one.engine for one in verdicts if one.loads]
    if not loading and (untried := [one for one in verdicts if one.answer == "not known"]):
        _note(f"note: whether it loads is not known: {'; '.join(untried[0].unknown)}")
        loading = [one.engine for one in untried]
    if not loading:
        told = "; ".join(f"{one.title} does not load it: {'; '.join(one.problems)}" for one in verdicts)
        told = f"no engine loads it: {told}" if len(verdicts) > 1 else told
        ways = " && ".join(next((one.instead for one in verdicts if one.instead), ()))
        raise ModelError(
            f"{place}: {told}", hint=ways or f"dsr1-tune check-serve {place} --engine {verdicts[0].engine}"
        )
    if found.template_kwargs and loading[0] not in artifact.TEMPLATE_KWARGS:
        asked = json.dumps(dict(found.template_kwargs))
        _note(f"note: {loading[0]} has no option for it: send chat_template_kwargs {asked} with every request")
    command = engines.command(found, loading, host, port)
    if print_command:
        if command is None:
            command = artifact.command_for(found, loading[0], host, port)
            _note(f"note: {loading[0]} is not installed here; to install it: {engines.INSTALL[loading[0]]}")
        typer.echo(shlex.join(command))
        return
    if command is None:
        raise engines.not_here(found, loading)
    raise typer.Exit(engines.run(command, host, port, _note))
