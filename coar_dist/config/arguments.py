"""Arguments ``key=value`` of the commands that take no configuration."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from coar_dist.config.keys import meant
from coar_dist.errors import UsageError

_HELP = {"-h", "--help"}


def parsed(arguments: Sequence[str], keys: Collection[str], usage: str) -> dict[str, str]:
    """The values of a command's arguments by their keys.

    Args:
        arguments: ``key=value`` each; ``--help`` prints the usage and exits, as everywhere.
        keys: what the command takes.
        usage: ends every error.

    Raises:
        UsageError: an argument has another key, or none, has no value, or is given twice; the message names it and
            what was probably meant.

    Example:
        >>> parsed(["run.dir=runs/digits"], ["run.dir", "other"], "")
        {'run.dir': 'runs/digits'}
    """
    if _HELP & set(arguments):
        print(usage)
        raise SystemExit(0)
    values: dict[str, str] = {}
    for argument in arguments:
        key, has_value, value = argument.partition("=")
        if key not in keys and not has_value:
            raise UsageError(f"{argument}: arguments are key=value; keys are {', '.join(keys)}.\n{usage}")
        if key not in keys:
            way_out = meant(key, keys) or f" There are {', '.join(keys)}."
            raise UsageError(f"{argument}: no argument is called {key}.{way_out}\n{usage}")
        if not value:
            raise UsageError(f"{argument}: {key} has no value. Give one, as {key}=..., or leave it out.\n{usage}")
        if key in values:
            raise UsageError(f"{key} is given twice, as {values[key]} and as {value}. Leave one of them out.\n{usage}")
        values[key] = value
    return values
