from __future__ import annotations

import numpy as np

from coar_dist.evaluation.correlation import predict


def test_predictions_lose_no_digits_to_a_large_offset() -> None:
    random = np.random.default_rng(2)
    masks = random.random((300, 500)) >= 0.05
    weights = (random.normal(size=(6, 500)) * 1e-3 + 40).astype(np.float32)
    weights[3:] -= 40
    intercepts = np.full(6, -2e4)
    exact = masks.astype(np.float64) @ weights.astype(np.float64).T + intercepts
    predicted = predict(masks, weights, intercepts)
    assert predicted.dtype == np.float64
    spread = exact.std(axis=0)
    assert (np.abs(predicted - exact).max(axis=0) < 2e-5 * spread).all()
