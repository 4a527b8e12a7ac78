"""Hydra's and OmegaConf's errors in this project's words: the key, the value, what was probably meant."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from coar_dist.config.fields import checked
from coar_dist.config.keys import all_keys, either, near, unknown_key
from coar_dist.errors import ConfigError

_MOST_LINES = 5
_IN_FILE = re.compile(r"^In '(?P<file>[^']+)': ")
_REPHRASED = [
    (
        r"Could not append to config\. An item is already at '(?P<key>[^']+)'\.",
        "+{key}: it is there already. Leave out the +.",
    ),
    (
        r"Multiple values for (?P<key>\S+)\.",
        "+{key}: there is one already. Leave out the +.",
    ),
    (
        r"Ambiguous value for argument '(?P<override>[^=]+=(?P<values>.*))'",
        "{override}: a list takes brackets, [{values}]; one run for each value takes --multirun.",
    ),
    (
        r"(In '(?P<file>[^']+)': )?Could not override '(?P<key>[^']+)'\. No match in the defaults list\.",
        "{key}: there is no such group of choices to override.",
    ),
]
"""Beginnings of Hydra's messages, and what is said in their place."""
_OPTIONAL = {"train": "an experiment that trains its model", "edit": "an edit, e.g. edit=custom"}


def explained(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """What went wrong while the configuration was composed.

    Args:
        error: what Hydra raised.
        overrides: the command line's.
    """
    if isinstance(error, MissingConfigException) and error.options:
        return _unknown_choice(error.missing_cfg_file or "", error.options)
    if isinstance(error, OverrideParseException):
        return ConfigError(f"{error.override}: cannot be read. Write key=value, e.g. 'stages=[fit,report]' in quotes.")
    cause = error.__cause__ or error.__context__
    if isinstance(cause, OmegaConfBaseException):
        file = _IN_FILE.match(str(error))
        where = f"{file['file']}.yaml: " if file else ""
        return ConfigError(f"{where}{_in_our_words(cause)}")
    if isinstance(error, AssertionError):  # OmegaConf's, for an option of a part that is null
        for override in overrides:
            part, _, option = override.partition("=")[0].partition(".")
            if option and part in _OPTIONAL:
                return ConfigError(f"{override}: {part} is null, so it has no {option}. Choose {_OPTIONAL[part]}.")
    for beginning, words in _REPHRASED:
        if found := re.match(beginning, str(error)):
            return ConfigError(words.format(**found.groupdict()))
    text = str(error).partition("\nConfig search path")[0] or repr(error)
    lines = [line for line in text.splitlines() if line.strip()]
    return ConfigError("the configuration cannot be composed: " + "\n".join(lines[:_MOST_LINES]))


def _unknown_choice(name: str, options: Sequence[str]) -> ConfigError:
    group, _, choice = name.rpartition("/")
    meant = near(choice, options)
    known = f"Did you mean {either(meant)}?" if meant else f"Choose one of {', '.join(options)}."
    return ConfigError(f"{group}={choice}: there is no such choice. {known}")


def _in_our_words(error: OmegaConfBaseException) -> str:
    key = str(error.full_key)
    if not isinstance(error, ConfigAttributeError | ConfigKeyError):
        wrong = _wrong_value(key, error.value) if isinstance(error, ValidationError) else None
        return wrong or f"{key}{': ' if key else ''}{str(error.msg).splitlines()[0]}."
    if key.startswith("hydra."):
        return f"{key}: unknown key; coar-dist --cfg hydra shows all."
    if error.object_type is not dict:
        return str(unknown_key(key))
    parent, _, name = key.rpartition(".")  # a mapping of free names, such as a model's arguments
    meant = [f"{parent}.{known}" for known in near(name, [str(known) for known in error.parent_node])]
    question = f"Did you mean {either(meant)}? " if meant else ""
    return f"{key}: {parent} has no {name} here. {question}To add it, write +{key}=..."


def _wrong_value(key: str, value: object) -> str | None:
    """What the option must be; None where its own checks do not refuse the value."""
    parent, dot, name = key.rpartition(".")
    if key not in all_keys():
        return None
    part = all_keys()[key]()
    setattr(part, name, value)
    try:
        checked(part, f"{parent}{dot}")
    except ConfigError as error:
        return str(error)
    return None
