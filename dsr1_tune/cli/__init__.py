"""The command line: every verb parses, composes a config, calls one function and prints what came of it."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from dsr1_tune import __version__
from dsr1_tune.cli import adapt, base, data, doctor, export, exported, methods, rewards, serve, settings, streams
from dsr1_tune.errors import TuneError

app = typer.Typer(
    name="dsr1-tune",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"dsr1-tune {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Adapt mixture-of-experts language models to a domain."""


# In the order of the help.
_VERBS: tuple[Callable[..., None], ...] = (
    adapt.plan,
    adapt.adapt,
    adapt.experts,
    rewards.reward_test,
    rewards.score,
    export.merge,
    export.quantize,
    export.dequantize,
    serve.chat,
    base.base,
    doctor.doctor,
    exported.compare,
    export.export,
    exported.card,
    exported.verify,
    export.convert_adapter,
    exported.check_serve,
    serve.serve,
    settings.settings,
)
for _name in (*methods.TRAINS, *methods.ALIGNS):
    app.command(_name)(methods.command(_name))
for _verb in _VERBS:
    app.command()(_verb)
app.add_typer(data.app, name="data")

INTERRUPTED = 130


def main() -> None:
    """Run the command line; errors a user can mend are printed with their hint, any other keeps its traceback."""
    streams.never_fail()
    # It warns, when PEFT imports it, of a kernel that nothing here uses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        app()
    except TuneError as error:
        _fail(error.message, error.hint, error.exit_code)
    except KeyboardInterrupt as stopped:
        _interrupted(stopped)
    except SystemExit as left:
        # Inside a command typer makes of it an exit that says nothing.
        if isinstance(cause := getattr(left.__context__, "__cause__", None), KeyboardInterrupt):
            _interrupted(cause)
        raise
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; there is nobody left to tell.
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        hint = _OS_HINTS.get(error.errno or 0)
        if hint is None or (error.filename is None and error.errno != errno.ENOSPC):
            raise
        _fail(f"{error.filename or 'the output'}: {error.strerror}", hint, TuneError.exit_code)


_OS_HINTS = {
    errno.EACCES: "check the permissions, or choose another place with --out",
    errno.EPERM: "check the permissions, or choose another place with --out",
    errno.EROFS: "this file system is read-only; choose another place with --out",
    errno.ENOSPC: "free some disk space, or choose a place on another disk with --out",
    errno.EDQUOT: "your quota is used up; free some space, or choose another place with --out",
    errno.ENAMETOOLONG: "shorten the name",
    errno.EEXIST: "a file stands where a folder is needed; choose another place with --out",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another place with --out",
}


def _interrupted(stopped: KeyboardInterrupt) -> NoReturn:
    print(str(stopped) or "Interrupted", file=sys.stderr)
    sys.exit(INTERRUPTED)


def _fail(message: str, hint: str, exit_code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    sys.exit(exit_code)
