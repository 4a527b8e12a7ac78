"""A process that fits again and again, as the fit stage writes its tables; it loads little."""

from __future__ import annotations

from multiprocessing.synchronize import Barrier, Event

import numpy as np

from coar_dist.store.locations import storage_at
from coar_dist.store.run_directory import RunDirectory
from coar_dist.store.tables import Attributions, AttributionTable


def fit(run: RunDirectory, number: float, setting: int) -> None:
    """Write attributions all of whose numbers are ``number``."""
    table = AttributionTable(run, "coar")
    for first, end in run.margins("train").blocks:
        size = end - first
        weights = np.full((size, run.components.num_components), number, np.float32)
        made = Attributions(weights, *np.full((5, size), number, np.float64), standard_errors=weights)
        table.write((first, end), {"penalty": setting}, made)


def keep_refitting(root: str, barrier: Barrier, stop: Event) -> None:
    """Fit until ``stop`` is set, with another setting and other numbers each time."""
    run = RunDirectory.open(storage_at(root))
    barrier.wait()
    number = 0
    while not stop.is_set():
        number += 1
        fit(run, number, number % 2)
