"""Who solves the systems: torch from the shared factor, or scikit-learn or cuML on the reduced problem.

The libraries take samples, not a Gram matrix; with ``R = diag(sqrt(e)) V'`` and ``t = diag(1 / sqrt(e)) q`` the problem
on (R, t) without intercept, in r = rank(Xc) rows, has the same solution, so they never see m rows. Their lasso divides
the squares by the number of rows, so its alpha is scaled by m / r.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.errors import ConfigError
from coar_dist.regression import ridge
from coar_dist.regression.factor import Factor
from coar_dist.regression.lasso import LassoProblem, solve
from coar_dist.regression.ridge import Projected

CUML_RIDGE_MAX_COMPONENTS = 4096
"""Above it ``auto`` takes torch: cuML factorises the reduced problem once more, in a singular value decomposition."""
_LIBRARY_MAX_SWEEPS = 10_000


@dataclass(frozen=True)
class LassoTarget:
    """What a lasso backend solves: one alpha per example.

    Attributes:
        problem: for torch.
        alphas: (n,) float64.
        l1_ratio: in (0, 1].
        start: (d, n) float64 weights near the solution.
        tolerance: duality gap relative to y'y / m.
    """

    problem: LassoProblem
    alphas: torch.Tensor
    l1_ratio: float
    start: torch.Tensor
    tolerance: float


RidgeBackend = Callable[[Factor, Projected, NDArray[np.float64]], NDArray[np.float64]]
LassoBackend = Callable[[Factor | None, LassoTarget], torch.Tensor]


def reduced_problem(factor: Factor, cross: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The equivalent regression without intercept: rows R (r, d) and targets t (r, n), float64.

    Args:
        factor: of the design.
        cross: q = V'Xc'y (r, n).
    """
    roots = factor.values.sqrt().unsqueeze(1)
    return roots * factor.vectors.T, cross / roots


def sklearn_ridge(factor: Factor, projected: Projected, penalties: NDArray[np.float64]) -> NDArray[np.float64]:
    """``sklearn.linear_model.Ridge`` with one alpha per target: the reference."""
    from sklearn.linear_model import Ridge

    rows, targets = reduced_problem(factor, projected.cross)
    model = Ridge(alpha=penalties, fit_intercept=False, solver="svd")
    model.fit(rows.cpu().numpy(), targets.cpu().numpy())
    return np.asarray(model.coef_.reshape(targets.shape[1], -1).T)


def cuml_ridge(factor: Factor, projected: Projected, penalties: NDArray[np.float64]) -> NDArray[np.float64]:
    """``cuml.linear_model.Ridge`` with one alpha per target (solver "svd": one factorisation for all targets)."""
    import cupy
    from cuml.linear_model import Ridge

    rows, targets = reduced_problem(factor, projected.cross)
    model = Ridge(alpha=cupy.asarray(penalties), fit_intercept=False, solver="svd", output_type="numpy")
    model.fit(cupy.from_dlpack(rows.cuda()), cupy.from_dlpack(targets.cuda()))
    return np.asarray(model.coef_, dtype=np.float64).reshape(targets.shape[1], -1).T


def torch_lasso(factor: Factor | None, target: LassoTarget) -> torch.Tensor:
    """All examples at once on the Gram matrix."""
    del factor  # the Gram matrix is enough
    return solve(target.problem, target.alphas, target.l1_ratio, target.start, target.tolerance).weights


def sklearn_lasso(factor: Factor | None, target: LassoTarget) -> torch.Tensor:
    """``sklearn.linear_model.ElasticNet``, target by target: the reference."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import ElasticNet

    def fit_one(rows: Any, values: Any, alpha: float, tolerance: float) -> Any:
        model = ElasticNet(
            alpha=alpha, l1_ratio=target.l1_ratio, fit_intercept=False, tol=tolerance, max_iter=_LIBRARY_MAX_SWEEPS
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the duality gap is measured and reported for all
            return model.fit(rows, values).coef_

    return _target_by_target(factor, target, lambda tensor: np.asfortranarray(tensor.cpu().numpy()), fit_one)


def cuml_lasso(factor: Factor | None, target: LassoTarget) -> torch.Tensor:
    """``cuml.linear_model.Lasso`` (``ElasticNet`` below an l1_ratio of 1), which takes one target at a time."""
    import cupy
    from cuml.linear_model import ElasticNet, Lasso

    def fit_one(rows: Any, values: Any, alpha: float, tolerance: float) -> Any:
        settings: dict[str, Any] = {
            "alpha": alpha,
            "fit_intercept": False,
            "tol": tolerance,
            "max_iter": _LIBRARY_MAX_SWEEPS,
            "output_type": "numpy",
        }
        model = Lasso(**settings) if target.l1_ratio == 1.0 else ElasticNet(l1_ratio=target.l1_ratio, **settings)
        return model.fit(rows, values).coef_

    return _target_by_target(factor, target, lambda tensor: cupy.asfortranarray(cupy.from_dlpack(tensor)), fit_one)


def _target_by_target(
    factor: Factor | None,
    target: LassoTarget,
    convert: Callable[[torch.Tensor], Any],
    fit_one: Callable[[Any, Any, float, float], Any],
) -> torch.Tensor:
    assert factor is not None
    cross = factor.vectors.T @ (target.problem.cross * factor.num_masks)
    rows, targets = reduced_problem(factor, cross)
    design = convert(rows)
    weights = torch.zeros_like(target.problem.cross)
    for column in torch.nonzero(target.problem.squares > 0).squeeze(1).tolist():
        alpha = float(target.alphas[column]) * factor.num_masks / factor.rank
        solution = fit_one(design, convert(targets[:, column].contiguous()), alpha, target.tolerance)
        weights[:, column] = torch.as_tensor(np.asarray(solution), dtype=weights.dtype)
    return weights


RIDGE_BACKENDS: dict[str, RidgeBackend] = {"torch": ridge.solve, "sklearn": sklearn_ridge, "cuml": cuml_ridge}
LASSO_BACKENDS: dict[str, LassoBackend] = {"torch": torch_lasso, "sklearn": sklearn_lasso, "cuml": cuml_lasso}


def check_backend(requested: str) -> None:
    """Refuse cuml where it cannot run.

    Raises:
        ConfigError: the message says why.
    """
    if requested == "cuml" and not (torch.cuda.is_available() and _has_cuml()):
        missing = "cuml is not installed (pip install 'coar-dist[gpu]')"
        if not torch.cuda.is_available():
            missing = "no CUDA device answers"
        raise ConfigError(f"regression.backend='cuml' cannot run here: {missing}. Use regression.backend=auto.")


def choose_backend(requested: str, method: str, solver: str, num_components: int) -> tuple[str, str]:
    """The backend to use and why.

    Args:
        requested: ``auto``: cuml on a CUDA device where it is installed and its solver suits the size, else torch.
        method: ``ridge`` or ``lasso``.
        solver: of ``factor.choose_solver``.
        num_components: d.

    Raises:
        ConfigError: the requested backend cannot solve this problem here.
    """
    check_backend(requested)
    if requested != "auto":
        if solver == "iterative" and requested != "torch":
            raise ConfigError(
                f"regression.backend={requested!r} needs a factorisation, which does not fit regression.memory_gb. "
                f"Raise it, or use regression.backend=torch (conjugate gradients)."
            )
        return requested, "as configured"
    if not torch.cuda.is_available():
        return "torch", "no CUDA device"
    if not _has_cuml():
        return "torch", "cuml is not installed"
    if method == "lasso":
        return "torch", "cuML's lasso takes one target at a time"
    if solver == "iterative":
        return "torch", "conjugate gradients"
    if num_components > CUML_RIDGE_MAX_COMPONENTS:
        return "torch", f"more than {CUML_RIDGE_MAX_COMPONENTS} components, cuML would factorise them again"
    return "cuml", "a CUDA device answers"


def _has_cuml() -> bool:
    return importlib.util.find_spec("cuml") is not None
