"""Who solves the systems: torch from the shared factor, scikit-learn, cuML, or a function of the user's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.config.function_identity import identity_of
from coar_dist.config.functions import name_of, resolve
from coar_dist.errors import ConfigError, ConvergenceError, TaskError
from coar_dist.regression import ridge
from coar_dist.regression.cuml_backend import cuml_coefficients, cuml_lasso, cuml_ridge, why_no_cuml
from coar_dist.regression.dual import AnyFactor
from coar_dist.regression.factor import Factor
from coar_dist.regression.lasso import LassoProblem, exact_gaps, solve
from coar_dist.regression.reduced import LassoTarget, reduced_problem, target_by_target
from coar_dist.regression.ridge import Projected

_LIBRARY_MAX_SWEEPS = 10_000
_KEY = "regression.backend"
_MOST_ABOVE_OPTIMUM = 1e-3
"""By how much of the margins' variance a user's own solver may miss ridge's objective."""


RidgeBackend = Callable[[Factor, Projected, NDArray[np.float64]], NDArray[np.float64]]
LassoBackend = Callable[[Factor | None, LassoTarget], torch.Tensor]
Backend = str | Callable[..., Any]
"""A key of the registry, ``module:function`` of a user's own, or the function itself."""


def sklearn_ridge(factor: Factor, projected: Projected, penalties: NDArray[np.float64]) -> NDArray[np.float64]:
    """``sklearn.linear_model.Ridge`` with one alpha per target: the reference."""
    from sklearn.linear_model import Ridge

    rows, targets = reduced_problem(factor, projected.cross)
    model = Ridge(alpha=penalties, fit_intercept=False, solver="svd")
    model.fit(rows.cpu().numpy(), targets.cpu().numpy())
    return np.asarray(model.coef_.reshape(targets.shape[1], -1).T)


def torch_lasso(factor: Factor | None, target: LassoTarget) -> torch.Tensor:
    """All examples at once on the Gram matrix."""
    del factor  # the Gram matrix is enough
    return solve(target.problem, target.alphas, target.l1_ratio, target.start, target.tolerance).weights


def sklearn_lasso(factor: Factor | None, target: LassoTarget) -> torch.Tensor:
    """``sklearn.linear_model.ElasticNet``, target by target: the reference."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import ElasticNet

    def fit_one(rows: Any, values: Any, alpha: float, l1_ratio: float, tolerance: float) -> Any:
        model = ElasticNet(
            alpha=alpha, l1_ratio=l1_ratio, fit_intercept=False, tol=tolerance, max_iter=_LIBRARY_MAX_SWEEPS
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the duality gap is measured and reported for all
            return model.fit(rows, values).coef_

    return target_by_target(factor, target, lambda tensor: np.asfortranarray(tensor.cpu().numpy()), fit_one)


COEFFICIENTS: dict[str, Callable[[AnyFactor, Projected, NDArray[np.float64]], torch.Tensor]] = {
    "torch": ridge.coefficients,
    "cuml": cuml_coefficients,
}
"""Backends that solve ridge in the factor's coordinates, (r, n) float64, and need no eigenvectors of the components."""
RIDGE_BACKENDS: dict[str, RidgeBackend] = {"torch": ridge.solve, "sklearn": sklearn_ridge, "cuml": cuml_ridge}
LASSO_BACKENDS: dict[str, LassoBackend] = {"torch": torch_lasso, "sklearn": sklearn_lasso, "cuml": cuml_lasso}


def device() -> str:
    """Where this process computes: ``cuda`` or ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def name_of_backend(backend: Backend) -> str:
    """A registered name, or ``module:function``."""
    return backend if isinstance(backend, str) else name_of(backend)


def identity_of_backend(backend: Backend) -> str:
    """The name; for a user's own function also the SHA-256 of its source."""
    name = name_of_backend(backend)
    own = resolve(_KEY, backend, {}) if isinstance(backend, str) and ":" in backend else backend
    return name if isinstance(own, str) else identity_of(name, own)


def ridge_weights(
    backend: Backend, factor: Factor, projected: Projected, penalties: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The weights of ``ridge.solve``, by any backend.

    Args:
        backend: a key of ``RIDGE_BACKENDS``, ``module:function``, or a function of the other three arguments.
        factor, projected, penalties: as in ``ridge.solve``.

    Returns:
        (d, n) float64.

    Raises:
        ConfigError: the function cannot be imported here.
        TaskError: a user's own raises, or gives something else than the solution: its scores and its standard errors
            would be of other weights.
    """
    if isinstance(backend, str) and backend in RIDGE_BACKENDS:
        return RIDGE_BACKENDS[backend](factor, projected, penalties)
    weights = _own_weights(backend, RIDGE_BACKENDS, (factor, projected, penalties), projected)
    values = factor.values.unsqueeze(1)
    penalty, own = (torch.from_numpy(array).to(values.device) for array in (penalties, weights))
    along = factor.vectors.T @ own
    reached = (values * along**2 - 2 * along * projected.cross).sum(dim=0) + penalty * (own**2).sum(dim=0)
    least = -(projected.cross**2 / (values + penalty)).sum(dim=0)
    varies = projected.squares > 0
    above = float(((reached - least)[varies] / projected.squares[varies]).amax()) if varies.any() else 0.0
    if above > _MOST_ABOVE_OPTIMUM:
        raise TaskError(
            f"{_KEY}={name_of_backend(backend)!r} does not solve ridge: its sum of squares and penalty lies "
            f"{above:.2g} of the margins' variance above the least. It must minimise |y - Xw|^2 + penalty |w|^2 of "
            f"every example."
        )
    return weights


def lasso_weights(backend: Backend, factor: Factor | None, target: LassoTarget) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights of ``torch_lasso`` (d, n) float64, by any backend, and their duality gaps (n,), finite.

    Raises:
        ConfigError, TaskError: as ``ridge_weights``.
        ConvergenceError: weights or gaps are not finite, whoever found them.
    """
    if isinstance(backend, str) and backend in LASSO_BACKENDS:
        weights = LASSO_BACKENDS[backend](factor, target)
    else:
        own = _own_weights(backend, LASSO_BACKENDS, (factor, target), target.problem)
        weights = torch.from_numpy(own).to(target.problem.cross.device)
    gaps = exact_gaps(target.problem, weights, target.alphas, target.l1_ratio)
    if not (torch.isfinite(weights).all() and torch.isfinite(gaps).all()):
        raise ConvergenceError(
            f"{_KEY}={name_of_backend(backend)!r} gives lasso weights that are not finite, or whose duality gap is "
            f"not. Use regression.backend=torch."
        )
    return weights, gaps


def _own_weights(
    backend: Backend, registry: Mapping[str, Any], arguments: tuple[Any, ...], problem: Projected | LassoProblem
) -> NDArray[np.float64]:
    name = name_of_backend(backend)
    function = resolve(_KEY, backend, registry) if isinstance(backend, str) else backend
    try:
        weights = np.asarray(function(*arguments), dtype=np.float64)
    except Exception as error:  # the user's own code may raise anything
        raise TaskError(f"{_KEY}={name!r} raises {type(error).__name__}: {error}") from error
    expected = (arguments[0].num_components, problem.cross.shape[1])
    if weights.shape != expected or not np.isfinite(weights).all():
        raise TaskError(
            f"{_KEY}={name!r} gives an array of shape {weights.shape}"
            f"{'' if np.isfinite(weights).all() else ' that is not finite'}: must be finite weights {expected}, "
            f"components x examples."
        )
    return weights


def check_backend(requested: Backend, method: str) -> None:
    """Refuse a name that is unknown, cuml where it cannot run, and a user's own function that cannot be imported.

    Raises:
        ConfigError: the message says why.
    """
    if isinstance(requested, str):
        resolve(_KEY, requested, {"auto": None, **(RIDGE_BACKENDS if method == "ridge" else LASSO_BACKENDS)})
    missing = why_no_cuml() if requested == "cuml" else None
    if missing is not None:
        raise ConfigError(f"regression.backend='cuml' cannot run here: {missing}. Use regression.backend=auto.")


def choose_backend(requested: Backend, method: str, solver: str) -> tuple[Backend, str]:
    """The backend to use and why.

    Args:
        requested: ``auto``: cuml on a CUDA device where it is installed and its solver suits, else torch.
        method: ``ridge`` or ``lasso``.
        solver: of ``sizes.choose_solver``.

    Raises:
        ConfigError: the requested backend cannot solve this problem here.
    """
    check_backend(requested, method)
    if requested != "auto":
        if solver == "iterative" and requested != "torch":
            raise ConfigError(
                f"{_KEY}={name_of_backend(requested)!r} needs a factorisation, which does not fit "
                f"regression.memory_gb. Raise it, or use regression.backend=torch (conjugate gradients)."
            )
        return requested, "as configured"
    missing = why_no_cuml()
    if missing is not None:
        return "torch", missing
    if method == "lasso":
        return "torch", "cuML's lasso takes one target at a time"
    if solver == "iterative":
        return "torch", "conjugate gradients"
    return "cuml", "a CUDA device answers"
