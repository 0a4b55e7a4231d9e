"""The errors a user can cause and mend; every one says what to do next."""

from __future__ import annotations


class TuneError(Exception):
    """Something the user can mend. The command line prints it with its hint and exits with `exit_code`."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class ConfigError(TuneError):
    """A flag, a `--set` or a line of the YAML file that cannot be used."""


class DataError(TuneError):
    """A data file that cannot be read, or holds nothing to learn from."""


class ModelError(TuneError):
    """A base model or an adapter that cannot be found, loaded or trained."""


class RunError(TuneError):
    """A run folder that cannot be written, resumed or trusted."""
