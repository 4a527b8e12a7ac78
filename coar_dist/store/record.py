"""``run.json``, what a run directory says of itself: its format, and that it is read as it was written."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Annotated, Any, NotRequired

from typing_extensions import TypedDict

from coar_dist.config.documents import Fingerprint, Finite, check_type, parsed, up_to
from coar_dist.config.methods import BASELINES
from coar_dist.config.schema.values import Count, FolderName, Seed, Share, one_of
from coar_dist.designs.design import MaskDesign
from coar_dist.designs.given import PackedMasks
from coar_dist.designs.own import Rule
from coar_dist.designs.registry import design_from_json
from coar_dist.errors import ConfigError, DamagedFileError, RunMismatchError, RunNotFoundError
from coar_dist.store.storage import Storage
from coar_dist.store.values import ABLATION_VALUES
from coar_dist.version import VERSION

FORMAT = 4
RUN_FILE = "run.json"
ROLES = ("train", "gradients", "baseline", "evaluation", "ceiling", "edit", "circuit")
_NumExamples = Annotated[int, up_to(1, 10**8 - 1)]
"""Names of files have 8 digits for an example's id, and 10 for a mask's."""
_NumMasks = Annotated[int, up_to(0, 10**10 - 1)]
_Identity = TypedDict(
    "_Identity",
    {
        "components": Fingerprint,
        "num_examples": _NumExamples,
        "ablation.examples_per_block": Count,
        "ablation.margins_dtype": Annotated[str, one_of("float32", "float16")],
        "ablation.precision": NotRequired[str],
        "ablation.value": NotRequired[Annotated[str, one_of(*ABLATION_VALUES)]],
        "ablation.mean_over": NotRequired[str],
        "ablation.seed": NotRequired[Seed],
        "ablation.values": NotRequired[Fingerprint | None],
    },
)


class _Design(TypedDict):
    role: Annotated[str, one_of(*ROLES)]
    active: bool
    kind: str
    num_components: Annotated[int, up_to(1, 2**31 - 1)]
    num_masks: _NumMasks
    ablation_fraction: Share
    seed: Seed
    correlation: NotRequired[Share]
    fingerprint: NotRequired[str]


class _AnyRecord(TypedDict):
    """What every version's ``run.json`` says."""

    format: int


class _Record(_AnyRecord):
    """What is read of ``run.json``; names that become parts of paths are ``FolderName``."""

    created: str
    versions: dict[str, str]
    identity: _Identity
    probe_margins: list[float]
    designs: dict[FolderName, _Design]
    engine_plan: NotRequired[dict[str, Any]]
    gradient_cost: NotRequired[Finite]
    baselines: NotRequired[dict[Annotated[str, one_of(*BASELINES)], dict[FolderName, Count]]]


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
        record = parsed(storage.read(RUN_FILE))
        check_type(_AnyRecord, record)
        found = record["format"]
        checksum = record.pop("sha256", None)
        if (checksum is not None or found == FORMAT) and checksum != fingerprint_of(record):
            raise ValueError("it does not have the checksum that it was written with")
        if found == FORMAT:
            check_type(_Record, record)
    except ValueError as error:
        raise damaged_record(storage, error) from error
    if found != FORMAT:
        raise RunMismatchError(
            f"{where} has format {found}, this version reads format {FORMAT}. Use another run.dir; or remove the file "
            f"and run the ablate stage as before: it keeps every shard of the same run."
        )
    return dict(record)


def damaged_record(storage: Storage, reason: object) -> DamagedFileError:
    """The error that says what is wrong with ``run.json``; ``reason`` is a sentence without a full stop."""
    return DamagedFileError(
        f"{storage.where(RUN_FILE)} is damaged: {reason}. Run the ablate stage: it writes the file again and keeps "
        f"every shard of the same run."
    )


def design_of_record(
    storage: Storage, name: str, entry: Mapping[str, Any], rule: Rule | None, load: Callable[[], PackedMasks] | None
) -> MaskDesign:
    """A design of the record, as ``design_from_json``.

    Raises:
        DamagedFileError: it has a key too few or too many, or there are no such masks.
    """
    written = {key: value for key, value in entry.items() if key not in ("role", "active")}
    try:
        return design_from_json(written, rule, load)
    except (TypeError, ConfigError) as error:
        raise damaged_record(storage, f"designs.{name} cannot be: {error}".rstrip(".")) from error


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
