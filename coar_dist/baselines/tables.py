"""Attribution tables of the gradient baselines, from the shards that the ablate stage has written."""

from __future__ import annotations

from typing import Any

import numpy as np

from coar_dist.store.examples import ExampleTable
from coar_dist.store.run_directory import TRAIN_DESIGN, RunDirectory
from coar_dist.store.tables import Attributions, AttributionTable


def fit_gradient_baseline(run: RunDirectory, method: str) -> bool:
    """Write the attributions of a gradient baseline; as for leave-one-out, the intercept makes the unablated prediction
    exact.

    Returns:
        Whether anything had to be computed.

    Raises:
        MissingWorkError: weights are missing; the message lists the ranges of examples.
    """
    store, blocks = run.baseline(method), run.margins(TRAIN_DESIGN).blocks
    settings: dict[str, Any] = {"baseline": store.fingerprint, **run.baselines[method]}
    table = AttributionTable(run, method)
    unfitted = table.unfitted(settings, blocks)
    if not unfitted:
        return False
    table.set_aside_wrong(unfitted)
    unablated = ExampleTable(run).read()["margin"].astype(np.float64)
    for block in unfitted:
        weights = store.read(block)
        intercepts = unablated[slice(*block)] - weights.sum(axis=1, dtype=np.float64)
        table.write(block, settings, Attributions.of_weights(weights, intercepts))
    return True
