"""``run.json``, what a run directory says of itself: its format, and that it is read as it was written."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from coar_dist.errors import DamagedFileError, RunMismatchError, RunNotFoundError
from coar_dist.store.storage import Storage
from coar_dist.version import VERSION

FORMAT = 4
RUN_FILE = "run.json"


def read_record(storage: Storage) -> dict[str, Any]:
    """The content of ``run.json``, verified.

    Raises:
        RunNotFoundError: there is no run.json.
        DamagedFileError: it is damaged.
        RunMismatchError: it is of another version's format.
    """
    if storage.size(RUN_FILE) is None:
        raise RunNotFoundError(
            f"{storage} is not a run directory: it has no {RUN_FILE}. Correct run.dir, or run the ablate stage, which "
            f"makes one."
        )
    where = storage.where(RUN_FILE)
    try:
        record = json.loads(storage.read(RUN_FILE))
        found = record["format"]
        checksum = record.pop("sha256", None)
        if (checksum is not None or found == FORMAT) and checksum != fingerprint_of(record):
            raise ValueError("it does not have the checksum that it was written with")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(
            f"{where} is damaged: {error}. Run the ablate stage: it writes the file again and keeps every shard of the "
            f"same run."
        ) from error
    if found != FORMAT:
        raise RunMismatchError(
            f"{where} has format {found}, this version reads format {FORMAT}. Use another run.dir; or remove the file "
            f"and run the ablate stage as before: it keeps every shard of the same run."
        )
    return dict(record)


def new_record(identity: Mapping[str, Any], probe_margins: Sequence[float]) -> dict[str, Any]:
    """The record of a run that begins now, without designs."""
    return {
        "format": FORMAT,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "coar-dist": VERSION,
            **{name: _version(name) for name in ("torch", "ray", "numpy", "pyarrow")},
        },
        "identity": dict(identity),
        "probe_margins": list(probe_margins),
        "designs": {},
    }


def write_record(storage: Storage, record: Mapping[str, Any]) -> None:
    """Write ``run.json`` with a checksum of its content."""
    storage.write(RUN_FILE, json.dumps({**record, "sha256": fingerprint_of(record)}, indent=2).encode())


def fingerprint_of(identity: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON of an identity."""
    return "sha256:" + hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a fit without Ray
        return "not installed"
