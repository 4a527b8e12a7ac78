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
_IN_URL = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
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
        if isinstance(value, Mapping):
            check_no_secrets(value, f"{where}.")
            continue
        items = value if isinstance(value, list | tuple) else [value]
        texts = [item for item in items if isinstance(item, str)]
        is_named = bool(_NAMES.fullmatch(str(key))) and any(texts)
        if is_named or any(_VALUES.search(text) or _IN_URL.search(text) for text in texts):
            raise ConfigError(
                f"{where} looks like a credential, and a configuration is kept in the run directory and in logs. "
                f"Leave it out, put it into an environment variable, and read it there."
            )
        for i, item in enumerate(items):
            if isinstance(item, Mapping):
                check_no_secrets(item, f"{where}[{i}].")


def without_secrets(text: str) -> str:
    """``text`` with the values of secret environment variables, URLs' passwords and signatures blacked out."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _NAMES.fullmatch(name):
            text = text.replace(value, _HIDDEN)
    return _SIGNED.sub(rf"\g<1>{_HIDDEN}", _IN_URL.sub(_HIDDEN, text))
