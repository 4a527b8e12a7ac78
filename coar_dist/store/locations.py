"""From ``run.dir`` to the storage that it names."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from coar_dist.config.python_arguments import shown
from coar_dist.config.secrets import without_secrets
from coar_dist.errors import ConfigError
from coar_dist.store.local_storage import LocalStorage
from coar_dist.store.object_storage import PACKAGES, ObjectStorage
from coar_dist.store.storage import Storage

_URL = re.compile(r"([a-z0-9+.-]+)://(.*)", re.IGNORECASE)


def storage_at(location: str | os.PathLike[str]) -> Storage:
    """The storage of a path or URL.

    Raises:
        ConfigError: it is no path, or the URL is of an unknown kind, has no bucket, or holds credentials.
    """
    if not isinstance(location, str | os.PathLike):
        raise ConfigError(f"run.dir={shown(location)}: must be a path, or s3://bucket/prefix.")
    text = os.fspath(location)
    if not text:
        raise ConfigError("run.dir is empty: name a folder, or s3://bucket/prefix.")
    url = _URL.fullmatch(text)
    if url is None:
        if text.partition(":")[0] in PACKAGES and ":/" in text:
            raise ConfigError(f"run.dir={text!r} has lost a slash of its ://, as in a pathlib.Path. Give a str.")
        return LocalStorage(text)
    protocol, rest = url[1], url[2]
    if protocol not in PACKAGES:
        raise ConfigError(
            f"run.dir={without_secrets(text)!r}: object stores are {', '.join(f'{name}://' for name in PACKAGES)}."
        )
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket:
        raise ConfigError(
            f"run.dir={without_secrets(text)!r} holds credentials, and run.dir is shown in logs. Set them in the "
            f"environment, e.g. AWS_ACCESS_KEY_ID."
        )
    if not bucket or not prefix.strip("/"):
        raise ConfigError(f"run.dir={text!r}: must be {protocol}://bucket/prefix.")
    return ObjectStorage(text.rstrip("/"))


def cache_folder() -> Path:
    """Where runs lie that nobody gave a place: the platform's folder for caches, or ``COAR_DIST_CACHE``."""
    home = Path.home()
    if sys.platform == "win32":
        caches = os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local"
    elif sys.platform == "darwin":
        caches = home / "Library" / "Caches"
    else:
        caches = os.environ.get("XDG_CACHE_HOME") or home / ".cache"
    return Path(os.environ.get("COAR_DIST_CACHE") or Path(caches) / "coar_dist") / "runs"
