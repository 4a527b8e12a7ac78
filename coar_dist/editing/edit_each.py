"""An edit for every target: the wrong predictions that become right, one at a time, and what that costs the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.config.schema import ALL
from coar_dist.editing.criterion import per_example
from coar_dist.editing.edit import Selected
from coar_dist.editing.held_out import HeldOut, Ids
from coar_dist.editing.sweep import Sweep, group_means, margins_of
from coar_dist.errors import ConfigError
from coar_dist.store.edits import CHOICE, MEASURE
from coar_dist.store.margins import MarginStore

_TOLERANCE = 1e-9
"""Rounding of sums in float64 that ties may differ by."""


@dataclass(frozen=True)
class Fixes:
    """What one selection does to every target.

    Attributes:
        columns: ``num_components`` int64, ``fixed`` bool, ``margin_before``, ``margin_after``, ``accuracy_before``,
            ``accuracy_after`` float64, (num_targets,) each; accuracies are of the examples that did not choose.
    """

    columns: dict[str, NDArray[Any]]

    def summary(self) -> Selected:
        """Share that became right, and the median and worst of their costs in accuracy."""
        fixed = self.columns["fixed"]
        costs = (self.columns["accuracy_before"] - self.columns["accuracy_after"])[fixed]
        return Selected(
            int(np.median(self.columns["num_components"])),
            {
                "fixed": float(fixed.mean()),
                "median_cost": float(np.median(costs)) if costs.size else float("nan"),
                "worst_cost": float(costs.max()) if costs.size else float("nan"),
            },
        )


def sweep_name(selection: str, target: int) -> str:
    """The name of the order of components for one target."""
    return f"{selection}/{target}"


def check_wrong(held_out: HeldOut, targets: Ids) -> None:
    """Every target must be predicted wrongly.

    Raises:
        ConfigError: some are right already.
    """
    right = targets[held_out.outputs[targets] > 0]
    if right.size:
        raise ConfigError(
            f"edit.target: {right.size} examples are right already, e.g. {right[:10].tolist()}. Add "
            f"edit.target.correct=false."
        )


def fix_each(
    held_out: HeldOut, targets: Ids, selections: Sequence[str], sweep: Sweep, store: MarginStore, limit: float
) -> dict[str, Fixes]:
    """Choose how many components to ablate for each target: of the sizes at which it is right and accuracy on the
    examples that choose falls by at most ``limit``, the one at which it falls least, the smallest of equals.

    The target itself counts neither for the choice nor for what is measured.

    Args:
        held_out: the run's own examples, but references.
        targets: example ids (num_targets,), in ``held_out``.
        selections: names of selections.
        sweep: an order of components for each of them and each target.
        store: its margins.
        limit: of accuracy.
    """
    parts = {part: held_out.part(ALL, part) for part in (CHOICE, MEASURE)}
    means = group_means(store, held_out.metric, parts)
    margins = margins_of(store, targets)
    found = {}
    for selection in selections:
        rows = []
        for column, target in enumerate(targets):
            masks = sweep.masks[sweep_name(selection, int(target))]
            own = margins[masks, column]
            without_own = {
                part: _without(means[part][masks], len(ids), per_example(own, held_out.metric), target in ids)
                for part, ids in parts.items()
            }
            loss = without_own[CHOICE][0] - without_own[CHOICE]
            best = _least_loss(own > 0, loss, limit)
            accuracy = without_own[MEASURE]
            rows.append((sweep.sizes[best], own[best] > 0, own[0], own[best], accuracy[0], accuracy[best]))
        sizes, fixed, *values = (np.array(column) for column in zip(*rows, strict=True))
        names = ("margin_before", "margin_after", "accuracy_before", "accuracy_after")
        columns = {name: value.astype(np.float64) for name, value in zip(names, values, strict=True)}
        found[selection] = Fixes({"num_components": sizes.astype(np.int64), "fixed": fixed.astype(np.bool_), **columns})
    return found


def _without(means: NDArray[np.float64], count: int, own: NDArray[np.float64], is_in: bool) -> NDArray[np.float64]:
    """Means over ``count`` examples, without the one whose values are ``own`` where it is among them."""
    return (means * count - own) / (count - 1) if is_in else means


def _least_loss(is_right: NDArray[np.bool_], loss: NDArray[np.float64], limit: float) -> int:
    allowed = np.flatnonzero(is_right & (loss <= limit + _TOLERANCE))
    if not allowed.size:
        return 0
    return int(allowed[np.flatnonzero(loss[allowed] <= loss[allowed].min() + _TOLERANCE)[0]])
