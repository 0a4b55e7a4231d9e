"""The formats that `--to` takes: a new one is a file here and a line in this one; installed packages may bring more."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from dsr1_tune.config.export import Quantize
from dsr1_tune.errors import ConfigError
from dsr1_tune.export.formats import bitsandbytes, fp8, gguf, w4a16
from dsr1_tune.export.formats.format import Format

GROUP = "dsr1_tune.formats"
"""The entry point group in which a package names its own `Format` objects."""
NONE = "none"
"""The setting that leaves a model as it is."""
BUILT_IN = (bitsandbytes.NF4, bitsandbytes.INT8, w4a16.FORMAT, fp8.FORMAT, gguf.FORMAT)


@cache
def formats() -> Mapping[str, Format]:
    """Every format by name, built-in ones first. Raises ConfigError for an entry point that cannot be used."""
    found = {one.name: one for one in BUILT_IN}
    for entry in entry_points(group=GROUP):
        where = f"the format {entry.name} of {entry.dist.name if entry.dist else entry.value}"
        hint = f"correct that package, or uninstall it; its entry point is {entry.value}"
        try:
            one = entry.load()
        except Exception as error:  # whatever somebody else's code raises
            raise ConfigError(f"{where}: cannot be loaded: {type(error).__name__}: {error}", hint=hint) from error
        if not isinstance(one, Format):
            raise ConfigError(f"{where}: is a {type(one).__name__}, not a Format", hint=hint)
        if one.name == NONE or one.name in found:
            raise ConfigError(f"{where}: is called {one.name}, as another one is", hint=hint)
        found[one.name] = one
    return found


def pick(settings: Quantize) -> Format | None:
    """The format that the settings name; None for `none`.

    Raises ConfigError for an unknown name, and for settings that only another format heeds.
    """
    known = formats()
    if settings.to not in known and settings.to != NONE:
        raise ConfigError(
            f"quantize.to: {settings.to} is no format that is known here",
            hint=f"choose {', '.join(f'{one.name} ({one.bits:g} bits)' for one in known.values())}, or none",
        )
    chosen = known.get(settings.to)
    for one in known.values():
        for name, needs in one.options.items():
            _check_option(settings, name, needs, one, chosen)
    return chosen


def _check_option(settings: Quantize, name: str, needs: str, owner: Format, chosen: Format | None) -> None:
    """Refuse a setting of another format, unless it has its default value, which may stand in any file."""
    given = getattr(settings, name)
    other, _, value = (chosen.options.get(name, "to=") if chosen else "to=").partition("=")
    is_heeded = not other or str(getattr(settings, other)) == value
    if is_heeded or given == type(settings).model_fields[name].default:
        return
    form = f"{owner.name} with {needs}" if needs else owner.name
    have = f"{settings.to} with method={settings.method}" if chosen and "method" in chosen.options else settings.to
    raise ConfigError(
        f"quantize: {name}={given} is for to={form}, but to is {have}; leave it out, or choose that format",
        hint="correct the value; `dsr1-tune settings` lists names, meanings and defaults",
    )


def gentler(settings: Quantize) -> tuple[str, ...]:
    """The flags of formats that lose less than the one that missed a gate, the likeliest first; none for 16 bits."""
    chosen = formats().get(settings.to)
    return chosen.gentler(settings) if chosen else ()


def stored_as(quantization: Mapping[str, Any]) -> Format | None:
    """The format that a config.json's `quantization_config` means; None for one that is not written here."""
    return next((one for one in formats().values() if one.is_stored_as(quantization)), None)
