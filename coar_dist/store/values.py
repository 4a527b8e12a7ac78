"""What takes the place of ablated activations: ``values/<fingerprint>.parquet``, one row per site.

Columns: ``site``, e.g. ``layer1.0.conv1.output``; ``shape`` list of int64; ``values`` list of float32, row by row. The
run's identity holds their fingerprint, so that a run has one such file, whatever else was tried in its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coar_dist.errors import MissingWorkError
from coar_dist.store.aside import set_aside_wrong
from coar_dist.store.parquet import is_made_with, read_content, write_table
from coar_dist.store.storage import Storage

VALUE, CONTENT = "ablation.value", "ablation.values"
"""Keys of a run's identity: what takes the place of ablated activations, and the fingerprint of the values."""
MEAN_OVER, REFERENCE = "ablation.mean_over", "ablation.reference"
"""The same: what the means are over, and the fingerprint of the examples."""
CLASSES, SEED, COUNTERFACTUAL = "ablation.classes", "ablation.seed", "ablation.counterfactual"
"""The same: the classes that have means of their own, the seed of what is resampled, and the fingerprint of paired
inputs."""
OF_VALUES = (VALUE, MEAN_OVER, CLASSES, SEED, REFERENCE, COUNTERFACTUAL, CONTENT)
"""All of them; a run in which weights are zeroed has none."""
VALUE_FILES = "values"
Arrays = Mapping[str, NDArray[np.float32]]
"""Per site its values, of any shape."""


ABLATION_VALUES = {
    "zero_weights": "weights zeroed",
    "zero": "activations zero",
    "mean": "mean activations",
    "resample": "activations of other examples",
    "counterfactual": "activations of counterfactuals",
    "constants": "constant activations",
}
"""What may take the place, for people."""


_TYPES = {"site": pa.string(), "shape": pa.list_(pa.int64()), "values": pa.list_(pa.float32())}


def value_in_words(identity: Mapping[str, Any]) -> str:
    """What takes the place of a run's ablated components, for people.

    Example:
        >>> value_in_words({"ablation.value": "mean", "ablation.mean_over": "position"})
        'mean activations by position'
    """
    over = identity.get(MEAN_OVER, "all")
    return ABLATION_VALUES[identity.get(VALUE, "zero_weights")] + ("" if over == "all" else f" by {over}")


def differs_by_example(identity: Mapping[str, Any]) -> bool:
    """Whether what takes the place of a run's ablated components depends on the example."""
    return CLASSES in identity or identity.get(VALUE) in ("resample", "counterfactual")


def fingerprint_of_values(values: Arrays) -> str:
    """SHA-256 over names, shapes and bytes of all sites."""
    digest = hashlib.sha256()
    for site, array in sorted(values.items()):
        digest.update(f"{site} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array, np.float32).tobytes())
    return "sha256:" + digest.hexdigest()


def has_values(storage: Storage, fingerprint: str) -> bool:
    """Whether the values of a fingerprint are there, whole."""
    return is_made_with(storage, _file(fingerprint), _belongs_to(fingerprint))


def write_values(storage: Storage, values: Arrays) -> str:
    """For the process that holds the run: write the values where they are missing or damaged.

    Returns:
        Their fingerprint.
    """
    fingerprint = fingerprint_of_values(values)
    name, belongs_to = _file(fingerprint), _belongs_to(fingerprint)
    set_aside_wrong(storage, name, belongs_to)
    if storage.size(name) is None:
        columns = {
            "site": pa.array(list(values), _TYPES["site"]),
            "shape": pa.array([list(array.shape) for array in values.values()], _TYPES["shape"]),
            "values": pa.array([array.reshape(-1) for array in values.values()], _TYPES["values"]),
        }
        write_table(storage, name, columns, belongs_to)
    return fingerprint


def values_of_run(storage: Storage, identity: Mapping[str, Any]) -> dict[str, NDArray[np.float32]] | None:
    """What takes the place of a run's ablated activations, by site: none is zeros. None where weights are zeroed.

    Args:
        storage: the run directory.
        identity: the run's.

    Raises:
        MissingWorkError: the file is not there.
        DamagedFileError: it is damaged.
    """
    if VALUE not in identity:
        return None
    fingerprint = identity.get(CONTENT)
    if fingerprint is None:
        return {}
    name = _file(fingerprint)
    found = read_content(storage, name, "ablate", _belongs_to(fingerprint), types=_TYPES)
    if found is None:
        raise MissingWorkError(f"{storage.where(name)} is missing: run the ablate stage.")
    rows = found.columns.to_pylist()
    return {row["site"]: np.asarray(row["values"], np.float32).reshape(row["shape"]) for row in rows}


def _file(fingerprint: str) -> str:
    return f"{VALUE_FILES}/{fingerprint.partition(':')[2][:16]}.parquet"


def _belongs_to(fingerprint: str) -> dict[str, Any]:
    return {"content": "values", "values": fingerprint}
