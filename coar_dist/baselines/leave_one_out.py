"""Leave-one-out attributions: w[c] = f(z, {}) - f(z, {c}) (Shah et al. 2024, section 4, baselines)."""

from __future__ import annotations

from typing import Any

import numpy as np

from coar_dist.config.methods import LEAVE_ONE_OUT
from coar_dist.store.examples import ExampleTable
from coar_dist.store.run_directory import RunDirectory
from coar_dist.store.tables import Attributions, AttributionTable


def fit_leave_one_out(run: RunDirectory) -> bool:
    """Write the attributions of the ``leave_one_out`` design; its intercept makes the unablated prediction exact.

    Returns:
        Whether anything had to be computed.

    Raises:
        MissingWorkError: margins are missing; the message lists the ranges.
    """
    store = run.margins(LEAVE_ONE_OUT)
    settings: dict[str, Any] = {"design": store.fingerprint}
    table = AttributionTable(run, LEAVE_ONE_OUT)
    unfitted = table.unfitted(settings, store.blocks)
    if not unfitted:
        return False
    table.set_aside_wrong(unfitted)
    unablated = ExampleTable(run).read()["margin"].astype(np.float64)
    for block in unfitted:
        margins = np.concatenate([batch for _, batch in store.read(block, masks_per_batch=1024)])
        weights = unablated[slice(*block), None] - margins.T.astype(np.float64)
        intercepts = unablated[slice(*block)] - weights.sum(axis=1)
        table.write(block, settings, Attributions.of_weights(weights.astype(np.float32), intercepts))
    return True
