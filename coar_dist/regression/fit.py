"""The fit stage: margins of the train design to one attribution per example, block by block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from coar_dist.config import RegressionConfig
from coar_dist.regression.backends import RIDGE_BACKENDS, choose_backend
from coar_dist.regression.ridge import (
    choose_penalties,
    factorise,
    intercepts,
    penalty_grid,
    warn_if_rank_deficient,
)
from coar_dist.regression.statistics import MASKS_PER_BATCH, design_statistics, margin_statistics
from coar_dist.store.run_directory import TRAIN_DESIGN, RunDirectory
from coar_dist.store.tables import AttributionTable

METHOD = "coar"


def fit(run: RunDirectory, config: RegressionConfig, on_progress: Callable[[int], None]) -> bool:
    """Fit the attributions of every example, if they are not there already.

    Args:
        run: a run whose train design is complete.
        config: backend and penalty.
        on_progress: called with the number of examples done.

    Returns:
        Whether anything had to be computed.

    Raises:
        MissingWorkError: margins are missing; the message lists the ranges.
        NonFiniteMarginError, DamagedFileError: margins cannot be used.
    """
    backend = choose_backend(config.backend)
    store = run.margins(TRAIN_DESIGN)
    settings: dict[str, Any] = {
        "design": store.fingerprint,
        "num_masks": store.num_masks,
        "backend": backend,
        "regularisation": config.regularisation,
        "num_penalties": config.num_penalties,
        "penalty_range": list(config.penalty_range),
    }
    table = AttributionTable(run, METHOD)
    if table.is_complete(settings, store.blocks):
        return False
    design = design_statistics(masks for masks, _ in store.read(None, MASKS_PER_BATCH))
    factor = factorise(design, "cuda" if torch.cuda.is_available() else "cpu")
    if config.regularisation == 0.0:
        warn_if_rank_deficient(factor)
    for block in store.blocks:
        margins = margin_statistics(store.read(block, MASKS_PER_BATCH))
        num_examples = block[1] - block[0]
        if config.regularisation is None:
            low, high = config.penalty_range
            penalties = choose_penalties(
                factor, design, margins, penalty_grid(factor, config.num_penalties, (low, high))
            )
        else:
            penalties = np.full(num_examples, config.regularisation)
        weights = RIDGE_BACKENDS[backend](factor, design, margins, penalties)
        table.write(
            block,
            settings,
            np.ascontiguousarray(weights.T, dtype=np.float32),
            intercepts(design, margins, weights),
            penalties,
        )
        on_progress(block[1])
    return True
