"""Outputs that were measured with one component ablated alone, where the run has leave-one-out masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coar_dist.config.methods import LEAVE_ONE_OUT
from coar_dist.store.run_directory import RunDirectory

_BYTES = 160_000
"""Of all of them on the page, before they become text."""
_BYTES_EACH = 4
_MASKS_AT_ONCE = 1024


@dataclass(frozen=True)
class MeasuredAlone:
    """Measured outputs of the shown examples with one of their strongest components ablated.

    Attributes:
        components: (n, k) int64, which, the strongest first.
        outputs: (n, k) float32.
    """

    components: NDArray[np.int64]
    outputs: NDArray[np.float32]

    def first(self, num: int) -> MeasuredAlone:
        """Of the ``num`` strongest components."""
        return MeasuredAlone(self.components[:, :num], self.outputs[:, :num])


def measured_alone(run: RunDirectory, ids: NDArray[np.int64], strongest: NDArray[np.int64]) -> MeasuredAlone:
    """Read them, of as many components as the page has room for.

    Args:
        run: with a leave-one-out design.
        ids: (n,) of the examples, ascending.
        strongest: (n, k) int64 component ids, each example's strongest first.

    Raises:
        MissingWorkError, DamagedFileError: margins are missing or damaged.
    """
    store = run.margins(LEAVE_ONE_OUT)
    components = strongest[:, : max(_BYTES // (_BYTES_EACH * max(len(ids), 1)), 1)]
    outputs = np.empty(components.shape, np.float32)
    for first, end in store.blocks:
        at = np.flatnonzero((ids >= first) & (ids < end))
        start = 0
        for margins in store.read_margins((first, end), _MASKS_AT_ONCE) if at.size else ():
            of_shown = margins[:, ids[at] - first]  # mask i ablates component i alone
            within = (components[at] >= start) & (components[at] < start + len(margins))
            rows, columns = np.nonzero(within)
            outputs[at[rows], columns] = of_shown[components[at][rows, columns] - start, rows]
            start += len(margins)
    return MeasuredAlone(components, outputs)
