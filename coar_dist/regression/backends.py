"""Who solves the ridge systems: torch from the shared factor, or scikit-learn or cuML on the reduced problem.

A backend is a pure function ``(factor, design, margins, penalties) -> weights (d, n) float64``. The libraries take
samples, not a Gram matrix; with ``R = diag(sqrt(e)) V'`` and ``t = R^-T X'y`` the ridge problem on (R, t) without
intercept, in rank(G) rows, has the same solution, so they never see m rows.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.errors import ConfigError
from coar_dist.regression.ridge import Factor, solve
from coar_dist.regression.statistics import DesignStatistics, MarginStatistics

RidgeBackend = Callable[[Factor, DesignStatistics, MarginStatistics, NDArray[np.float64]], NDArray[np.float64]]


def reduced_problem(
    factor: Factor, design: DesignStatistics, margins: MarginStatistics
) -> tuple[torch.Tensor, torch.Tensor]:
    """The equivalent regression without intercept: rows (rank, d) and targets (rank, n), float64."""
    positive = factor.values > 0
    roots = factor.values[positive].sqrt().unsqueeze(1)
    vectors = factor.vectors[:, positive]
    cross = torch.from_numpy(margins.centred_cross(design)).to(vectors.device)
    return roots * vectors.T, (vectors.T @ cross) / roots


def sklearn_ridge(
    factor: Factor, design: DesignStatistics, margins: MarginStatistics, penalties: NDArray[np.float64]
) -> NDArray[np.float64]:
    """``sklearn.linear_model.Ridge`` with one alpha per target: the reference."""
    from sklearn.linear_model import Ridge

    rows, targets = reduced_problem(factor, design, margins)
    model = Ridge(alpha=penalties, fit_intercept=False, solver="svd")
    model.fit(rows.cpu().numpy(), targets.cpu().numpy())
    return np.asarray(model.coef_.reshape(targets.shape[1], -1).T)


def cuml_ridge(
    factor: Factor, design: DesignStatistics, margins: MarginStatistics, penalties: NDArray[np.float64]
) -> NDArray[np.float64]:
    """``cuml.linear_model.Ridge`` with one alpha per target (solver "svd": one factorisation for all targets)."""
    import cupy
    from cuml.linear_model import Ridge

    rows, targets = reduced_problem(factor, design, margins)
    model = Ridge(alpha=cupy.asarray(penalties), fit_intercept=False, solver="svd", output_type="numpy")
    model.fit(cupy.from_dlpack(rows.cuda()), cupy.from_dlpack(targets.cuda()))
    return np.asarray(model.coef_, dtype=np.float64).reshape(targets.shape[1], -1).T


RIDGE_BACKENDS: dict[str, RidgeBackend] = {"torch": solve, "sklearn": sklearn_ridge, "cuml": cuml_ridge}


def choose_backend(requested: str) -> str:
    """The backend to use: ``auto`` is cuml where a CUDA device answers and cuml is installed, else torch.

    Raises:
        ConfigError: cuml is asked for and cannot run here; the message says why.
    """
    has_device = torch.cuda.is_available()
    has_cuml = importlib.util.find_spec("cuml") is not None
    if requested == "auto":
        return "cuml" if has_device and has_cuml else "torch"
    if requested == "cuml" and not (has_device and has_cuml):
        reason = "no CUDA device answers" if has_cuml else "cuml is not installed (pip install 'coar-dist[gpu]')"
        raise ConfigError(f"regression.backend='cuml' cannot run here: {reason}. Use regression.backend=auto.")
    return requested
