"""cupy and ``cuml.linear_model`` as NumPy modules with cuML 26.10's own rules, as its source has them.

What it refuses, this refuses: fewer than 2 rows, other dtypes, a penalty per target from another solver than ``svd``,
several targets for the lasso. The coordinate descent ends where cuML's does. Importing it sets cupy's allocator.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest


def checked(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x), np.asarray(y)
    if x.dtype not in (np.float32, np.float64) or y.dtype != x.dtype:
        raise TypeError(f"Expected float32 or float64, and y as X; got {x.dtype}, {y.dtype}")
    if x.ndim != 2 or x.shape[0] < 2:
        raise ValueError(f"Found array with {x.shape[0]} sample(s) while a minimum of 2 is required.")
    if x.shape[1] < 1 or len(y) != len(x):
        raise ValueError("X and y have inconsistent numbers of samples, or no features")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("Input contains NaN or infinity")
    return x, y


class Ridge:
    factorised: ClassVar[list[int]] = []
    """Rows of what was decomposed."""

    def __init__(self, *, alpha: Any, fit_intercept: bool, solver: str, output_type: str) -> None:
        assert (fit_intercept, output_type) == (False, "numpy")
        self.alpha, self.solver = alpha, solver

    def fit(self, X: Any, y: Any) -> Ridge:
        x, y = checked(X, y)
        targets = y.reshape(len(y), -1)
        alpha = np.asarray(self.alpha, x.dtype)
        if alpha.ndim and self.solver not in ("svd", "lsmr"):
            raise ValueError("an alpha per target takes solver 'svd' or 'lsmr'")
        if alpha.ndim and alpha.shape != (targets.shape[1],):
            raise ValueError(f"alpha {alpha.shape} for {targets.shape[1]} targets")
        u, s, vt = np.linalg.svd(x, full_matrices=False)
        self.factorised.append(len(x))
        kept = s > 1e-10
        shrunk = np.zeros((len(s), targets.shape[1]))
        shrunk[kept] = (s[kept, None] / (s[kept, None] ** 2 + alpha)) * (u.T @ targets)[kept]
        coef = (vt.T @ shrunk).T
        self.coef_ = coef[0] if y.ndim == 1 else coef
        return self


class ElasticNet:
    def __init__(
        self, *, alpha: float, l1_ratio: float, fit_intercept: bool, tol: float, max_iter: int, output_type: str
    ) -> None:
        assert (fit_intercept, output_type) == (False, "numpy")
        if not alpha >= 0 or not 0 <= l1_ratio <= 1:
            raise ValueError(f"alpha {alpha}, l1_ratio {l1_ratio}")
        self.alpha, self.l1_ratio, self.tol, self.max_iter = alpha, l1_ratio, tol, max_iter

    def fit(self, X: Any, y: Any) -> ElasticNet:
        x, y = checked(X, y)
        if y.ndim != 1:
            raise ValueError("Expected 1 target")
        number = len(x)
        l1, l2 = self.alpha * self.l1_ratio * number, self.alpha * (1 - self.l1_ratio) * number
        squares, weights, residual = (x**2).sum(axis=0), np.zeros(x.shape[1], x.dtype), y.copy()
        for _ in range(self.max_iter):
            largest = moved = 0.0
            for j in range(len(weights)):
                if squares[j] + l2 <= 1e-5:  # cuML leaves such columns out
                    continue
                before = weights[j]
                along = x[:, j] @ residual + squares[j] * before
                weights[j] = np.sign(along) * max(abs(along) - l1, 0.0) / (squares[j] + l2)
                residual += x[:, j] * (before - weights[j])
                largest, moved = max(largest, abs(weights[j])), max(moved, abs(weights[j] - before))
            if largest < self.tol or moved / largest < self.tol:  # the first of the two is absolute
                break
        self.coef_ = weights
        return self


class Lasso(ElasticNet):
    def __init__(self, **settings: Any) -> None:
        super().__init__(l1_ratio=1.0, **settings)


def install(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Make both importable; gives what cupy allocates from, as ``allocator``."""
    state = SimpleNamespace(allocator="cupy's own pool")
    cuda = SimpleNamespace(
        get_allocator=lambda: state.allocator, set_allocator=lambda given: setattr(state, "allocator", given)
    )

    class Cuml(ModuleType):
        """Sets the allocator when its parts are first looked at, as cuML does when it is imported."""

        def __getattr__(self, name: str) -> Any:
            if name != "linear_model":
                raise AttributeError(name)
            state.allocator = "rmm"
            return models

    cupy = ModuleType("cupy")
    vars(cupy).update(cuda=cuda, asarray=np.asarray, asfortranarray=np.asfortranarray, from_dlpack=np.from_dlpack)
    models = ModuleType("cuml.linear_model")
    vars(models).update(Ridge=Ridge, Lasso=Lasso, ElasticNet=ElasticNet)
    Ridge.factorised.clear()
    for name, module in {"cupy": cupy, "cuml": Cuml("cuml"), "cuml.linear_model": models}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return state
