"""The command line: one module per verb parses, loads a config, calls one function and prints what came of it."""

from __future__ import annotations

import errno
import logging
import sys

import typer

from dsr1_tune.cli import adapt, base, doctor, settings
from dsr1_tune.cli.align import methods as align_methods
from dsr1_tune.cli.align import reward_test, score
from dsr1_tune.cli.data import inspect
from dsr1_tune.cli.export import card, check_serve, compare, convert_adapter, export, merge, quantize, verify
from dsr1_tune.cli.serve import chat, serve
from dsr1_tune.cli.train import experts, plan
from dsr1_tune.cli.train import methods as train_methods
from dsr1_tune.errors import TuneError

app = typer.Typer(
    name="dsr1-tune",
    help="Adapt mixture-of-experts language models to a domain.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for method in train_methods.TRAINS:
    app.command(method)(train_methods.command(method))
for method in align_methods.ALIGNS:
    app.command(method)(align_methods.command(method))
app.command("plan")(plan.plan)
app.command("adapt")(adapt.adapt)
app.command("experts")(experts.experts)
app.command("reward-test")(reward_test.reward_test)
app.add_typer(inspect.app, name="data")
app.command("score")(score.score)
app.command("merge")(merge.merge)
app.command("quantize")(quantize.quantize)
app.command("chat")(chat.chat)
app.command("base")(base.base)
app.command("doctor")(doctor.doctor)
app.command("compare")(compare.compare)
app.command("export")(export.export)
app.command("card")(card.card)
app.command("verify")(verify.verify)
app.command("convert-adapter")(convert_adapter.convert_adapter)
app.command("check-serve")(check_serve.check_serve)
app.command("serve")(serve.serve)
app.command("settings")(settings.settings)

INTERRUPTED = 130


def main() -> None:
    """Run the command line; errors a user can mend are printed with their hint, any other keeps its traceback."""
    # It warns, when PEFT imports it, of a kernel that nothing here uses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        app()
    except TuneError as error:
        _fail(error.message, error.hint, error.exit_code)
    except KeyboardInterrupt as stopped:
        if str(stopped):
            print(stopped, file=sys.stderr)
        sys.exit(INTERRUPTED)
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


def _fail(message: str, hint: str, exit_code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    sys.exit(exit_code)
