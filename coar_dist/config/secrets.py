"""Credentials stay where they belong, in the environment: refused in the configuration, blacked out in texts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from coar_dist.errors import ConfigError

_NAMES = re.compile(
    r"(?i)(.*_)?(password|passwd|secret|secret_key|api_key|apikey|access_key|secret_access_key|private_key|"
    r"credentials?|auth_token|access_token|api_token|hf_token|session_token|bearer_token)|token"
)
_VALUES = re.compile(
    r"hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|(AKIA|ASIA)[0-9A-Z]{16}|sk-[A-Za-z0-9_-]{20,}|"
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_IN_URL = re.compile(r"(?<=://)[^/\s'\"]+(?=@)")
_VARIABLES = re.compile(r"(?i).*(token|secret|password|passwd|api_?key|access_key|private_key|credentials?)")
_SIGNED = re.compile(
    r"(?i)((?:X-Amz-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|Signature|token)=)[^&\s'\"]+"
)
_HIDDEN = "***"
_SHORTEST = 8  # a shorter value of the environment is no secret, and blacking it out would garble the text


def check_no_secrets(values: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse credentials in a configuration: it is kept in the run directory and in logs.

    Args:
        values: nested configuration.
        prefix: of the keys, with a dot at its end.

    Raises:
        ConfigError: naming the key, never the value.
    """
    for key, value in values.items():
        where = f"{prefix}{key}"
        is_named = bool(_NAMES.fullmatch(str(key))) and not isinstance(value, bool | Mapping) and bool(value)
        _check_value(value, where, is_named)


def _check_value(value: Any, where: str, is_named: bool) -> None:
    if isinstance(value, Mapping):
        check_no_secrets(value, f"{where}.")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check_value(item, f"{where}[{i}]", is_named)
    elif is_named or (isinstance(value, str) and (_VALUES.search(value) or _IN_URL.search(value))):
        raise ConfigError(
            f"{where} looks like a credential, and a configuration is kept in the run directory and in logs. "
            f"Leave it out, put it into an environment variable, and read it there."
        )


def without_secrets(text: str) -> str:
    """``text`` with the values of secret environment variables, URLs' passwords and signatures blacked out."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _VARIABLES.fullmatch(name):
            text = text.replace(value, _HIDDEN)
    text = _VALUES.sub(_HIDDEN, _IN_URL.sub(_HIDDEN, text))
    return _SIGNED.sub(rf"\g<1>{_HIDDEN}", text)
