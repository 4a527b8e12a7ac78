"""Whether a run directory is of what is asked for now: what differs, and the messages that say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from coar_dist.designs.design import MaskDesign
from coar_dist.designs.given import Imported
from coar_dist.errors import RunMismatchError, shortened
from coar_dist.store.storage import Storage
from coar_dist.store.values import OF_VALUES, VALUE

_LEFT_OUT = {VALUE: "zero_weights"}
IMPORTED_FROM = "imported_from"
"""Key of the identity of a run whose margins were collected elsewhere: by whom."""


def check_identity(storage: Storage, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Check that a run's identity is the one asked for.

    Raises:
        RunMismatchError: it is not; the message names the keys and both values.
    """
    if IMPORTED_FROM in stored and IMPORTED_FROM not in asked:
        raise RunMismatchError(
            f"{storage} holds margins that were imported from {stored[IMPORTED_FROM]}. The ablate stage cannot add to "
            f"them: their masks are no function of a seed, and no model is known. Use 'stages=[fit,evaluate,report]', "
            f"or another run.dir."
        )
    differing = [key for key in {**stored, **asked} if stored.get(key) != asked.get(key)]
    if VALUE in differing:  # the others say what that value is
        differing = [key for key in differing if key == VALUE or key not in OF_VALUES]
    if differing:
        values = [[each.get(key, _LEFT_OUT.get(key)) for each in (asked, stored)] for key in differing]
        lines = "; ".join(
            shortened(f"{key} is {now!r}, but the run was made with {then!r}")
            for key, (now, then) in zip(differing, values, strict=True)
        )
        raise RunMismatchError(f"{storage} belongs to another run: {lines}. Use another run.dir, or undo the change.")


def check_probe(storage: Storage, stored: Sequence[float], asked: Sequence[float]) -> None:
    """Check that the margins of the first examples are those that the run began with, to a tolerance.

    Raises:
        RunMismatchError: they are not.
    """
    if not np.allclose(stored, asked, rtol=1e-2, atol=1e-2, equal_nan=True):
        raise RunMismatchError(
            f"{storage} belongs to another run: the unablated margins of the first examples are {list(asked)}, but the "
            f"run was made with {stored}, though weights and names are the same. The model's code or the output "
            f"function has changed. Use another run.dir, or undo the change."
        )


def check_design(storage: Storage, name: str, role: str, stored: MaskDesign, asked: MaskDesign) -> None:
    """Check that a design makes the masks that were collected under its name.

    Raises:
        RunMismatchError: it does not; the message names the option and both values.
    """
    old, new = stored.identity(), asked.identity()
    if old != new and (isinstance(stored, Imported) or isinstance(asked, Imported)):
        was_imported = isinstance(stored, Imported)
        how = "was imported, so no others" if was_imported else "was collected here, so no imported masks"
        raise RunMismatchError(
            f"design {name!r} of {storage} {how} can take its place. Use another design, or another run.dir."
        )
    for key in old:
        if old[key] == new[key]:
            continue
        if key == "fingerprint":
            raise RunMismatchError(
                f"{old['kind']!r} makes other masks than when design {name!r} of {storage} was collected: its code has "
                f"changed. Use another run.dir, or the former code."
            )
        option = f"{'design' if role == 'train' or key == 'ablation_fraction' else role}.{key}"
        if role == "ceiling":
            option = f"evaluation.{'ceiling_correlation' if key == 'correlation' else key}"
        raise RunMismatchError(
            f"{option} is {new[key]!r}, but design {name!r} of {storage} was collected with {old[key]!r}. Use another "
            f"run.dir, or {option}={old[key]}."
        )
