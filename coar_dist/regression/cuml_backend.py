"""Ridge and lasso by cuML (RAPIDS 26.10), on a CUDA device.

What its source demands: two rows or more; one penalty per target from ridge's ``svd`` solver alone, which factorises
what it is given at each call; one target at a time of the coordinate descent, which ends where the largest weight,
or its relative change, is below the tolerance, and counts the values of its matrix in 32 bits. So ridge gets the
problem in the factor's own coordinates, where it is diagonal and falls into small pieces, and the lasso gets targets
of variance 1. Arrays are float64: of other ones cuML makes float32 without a word. It computes on the thread's default
stream, which the device orders before and after torch's; what it gives is on the host, and so all done.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.errors import ConfigError
from coar_dist.regression.dual import AnyFactor
from coar_dist.regression.factor import Factor
from coar_dist.regression.reduced import LassoTarget, target_by_target
from coar_dist.regression.ridge import Projected

_PIECE = 64
"""Rows of the diagonal problem that are solved together: the time of a singular value decomposition grows with their
cube, that of the calls with the number of pieces."""
_FEWEST_ROWS = 2
_MAX_SWEEPS = 10_000
_MOST_VALUES = 2**31 - 1


def why_no_cuml() -> str | None:
    """Why cuML cannot run in this process; None where it can."""
    if not torch.cuda.is_available():
        return "no CUDA device answers"
    if importlib.util.find_spec("cuml") is None:
        return "cuml is not installed (pip install 'coar-dist[gpu]')"
    return None


@contextlib.contextmanager
def _libraries() -> Iterator[tuple[Any, Any]]:
    """cupy and ``cuml.linear_model``, which gives NumPy arrays, whatever the process asks of its other estimators.

    cuML's first import makes cupy of the whole process allocate from rmm's pool; it is given back what it had, as
    others in the process may use it.
    """
    import cupy

    allocator = cupy.cuda.get_allocator()
    from cuml import linear_model, using_output_type

    cupy.cuda.set_allocator(allocator)
    with using_output_type("numpy"):
        yield cupy, linear_model


def _as_cupy(cupy: Any, tensor: torch.Tensor) -> Any:
    """An array of cupy's on the device, without a copy where the tensor is there."""
    return cupy.from_dlpack(tensor.cuda() if torch.cuda.is_available() else tensor)


def cuml_coefficients(factor: AnyFactor, projected: Projected, penalties: NDArray[np.float64]) -> torch.Tensor:
    """``cuml.linear_model.Ridge`` with one alpha per example: weights in the factor's coordinates (r, n) float64.

    There the rows of the reduced problem are diag(sqrt(e)): no row has a say in another's weight, and nothing large is
    factorised again.

    Args:
        factor: of the design.
        projected: the block.
        penalties: (n,) at least 0.
    """
    found = torch.empty_like(projected.cross)
    with _libraries() as (cupy, models):
        alphas = cupy.asarray(penalties)
        for start in range(0, factor.rank, _PIECE):
            part = slice(start, start + _PIECE)
            roots, targets = factor.values[part].sqrt(), projected.cross[part]
            number = len(roots)
            targets = targets / roots.unsqueeze(1)
            if number < _FEWEST_ROWS:  # a row, and a weight, of its own that comes out as 0
                roots = torch.cat([roots, roots.new_ones(1)])
                targets = torch.cat([targets, targets.new_zeros(1, targets.shape[1])])
            model = models.Ridge(alpha=alphas, fit_intercept=False, solver="svd", output_type="numpy")
            model.fit(_as_cupy(cupy, torch.diag(roots)), _as_cupy(cupy, targets.contiguous()))
            weights = np.asarray(model.coef_, dtype=np.float64).reshape(targets.shape[1], -1)
            found[part] = torch.from_numpy(weights[:, :number].T.copy()).to(found.device)
    return found


def cuml_ridge(factor: Factor, projected: Projected, penalties: NDArray[np.float64]) -> NDArray[np.float64]:
    """As ``ridge.solve``: weights S**-1 w (d, n) float64."""
    return np.asarray((factor.vectors @ cuml_coefficients(factor, projected, penalties)).cpu().numpy())


def cuml_lasso(factor: Factor | None, target: LassoTarget) -> torch.Tensor:
    """``cuml.linear_model.Lasso`` (``ElasticNet`` below an l1_ratio of 1), which takes one target at a time.

    Raises:
        ConfigError: the problem has more values than cuML counts.
    """
    assert factor is not None
    if max(factor.rank, _FEWEST_ROWS) * factor.num_components > _MOST_VALUES:
        raise ConfigError(
            f"regression.backend='cuml' counts a matrix' values in 32 bits, and the lasso of {factor.num_components:,} "
            f"components on a design of rank {factor.rank:,} has more. Use regression.backend=torch."
        )
    with _libraries() as (cupy, models):

        def fit_one(rows: Any, values: Any, alpha: float, l1_ratio: float, tolerance: float) -> Any:
            settings: dict[str, Any] = {
                "alpha": alpha,
                "fit_intercept": False,
                "tol": tolerance,
                "max_iter": _MAX_SWEEPS,
                "output_type": "numpy",
            }
            model = models.Lasso(**settings) if l1_ratio == 1.0 else models.ElasticNet(l1_ratio=l1_ratio, **settings)
            return model.fit(rows, values).coef_

        def convert(tensor: torch.Tensor) -> Any:
            return cupy.asfortranarray(_as_cupy(cupy, tensor))

        return target_by_target(factor, target, convert, fit_one, _FEWEST_ROWS)
