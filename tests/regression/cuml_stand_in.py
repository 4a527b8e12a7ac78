"""cupy and ``cuml.linear_model`` as NumPy modules with cuML 26.10's own rules, as its source has them.

What it refuses, this refuses, and what it converts, this converts: fewer than 2 rows, a penalty below 0, as many
penalties as there are not targets, several targets for another of ridge's solvers than ``svd`` or for the lasso; other
dtypes become float32, and y has that of X. The coordinate descent ends where cuML's does. Importing it sets cupy's
allocator, and an output type that is set for all estimators goes before an estimator's own.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest


def checked(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    x = _converted(x, (np.float32, np.float64))
    if x.ndim != 2:
        raise ValueError(f"Expected 2D array, got {x.ndim}D array instead")
    if x.shape[0] < 2:
        raise ValueError(f"Found array with {x.shape[0]} sample(s) while a minimum of 2 is required.")
    if x.shape[1] < 1:
        raise ValueError("Found array with 0 features while a minimum of 1 is required.")
    y = _converted(y, (x.dtype,))
    if y.ndim not in (1, 2):
        raise ValueError(f"Expected 2D array, got {y.ndim}D array instead")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("Input contains NaN or infinity")
    if len(y) != len(x):
        raise ValueError("Found input variables with inconsistent numbers of samples")
    return x, y


def _converted(values: Any, dtypes: tuple[Any, ...]) -> np.ndarray:
    """As cuML does it: without a word."""
    array = np.asarray(values)
    if array.dtype.kind == "c":
        raise ValueError("Complex data not supported")
    return array if array.dtype in dtypes else array.astype(dtypes[0])


class Ridge:
    factorised: ClassVar[list[int]] = []
    """Rows of what was decomposed."""

    def __init__(self, *, alpha: Any, fit_intercept: bool, solver: str, output_type: str) -> None:
        assert (fit_intercept, output_type) == (False, "numpy")
        self.alpha, self.solver = alpha, solver

    def fit(self, X: Any, y: Any) -> Ridge:
        x, y = checked(X, y)
        targets = y.reshape(len(y), -1)
        alpha = np.asarray(self.alpha, x.dtype).ravel()
        if (alpha < 0).any():
            raise ValueError(f"alpha must be non-negative, got {self.alpha}")
        if len(alpha) not in (1, targets.shape[1]):
            raise ValueError(f"Number of targets and number of penalties do not correspond: {targets.shape[1]}")
        if self.solver not in ("svd", "lsmr") and targets.shape[1] > 1:
            raise ValueError(f"solver={self.solver!r} doesn't support multi-target y")
        u, s, vt = np.linalg.svd(x, full_matrices=False)
        self.factorised.append(len(x))
        kept = s >= 1e-10
        shrunk = np.zeros((len(s), targets.shape[1]), x.dtype)
        shrunk[kept] = (u.T @ targets)[kept] * s[kept, None] / (s[kept, None] ** 2 + alpha)
        self._coef = (vt.T @ shrunk).T
        if self._coef.shape[0] == 1:
            self._coef = self._coef.ravel()
        return self

    @property
    def coef_(self) -> np.ndarray:
        return reflected(self._coef)


class ElasticNet:
    def __init__(
        self, *, alpha: float, l1_ratio: float, fit_intercept: bool, tol: float, max_iter: int, output_type: str
    ) -> None:
        assert (fit_intercept, output_type) == (False, "numpy")
        self.alpha, self.l1_ratio, self.tol, self.max_iter = alpha, l1_ratio, tol, max_iter

    def fit(self, X: Any, y: Any) -> ElasticNet:
        if self.alpha < 0 or self.l1_ratio < 0 or self.l1_ratio > 1:
            raise ValueError(f"Expected alpha >= 0 and 0 <= l1_ratio <= 1, got {self.alpha}, {self.l1_ratio}")
        x, y = checked(X, y)
        if y.ndim == 2 and y.shape[1] != 1:
            raise ValueError(f"y should be a 1d array, got an array of shape {y.shape} instead.")
        number = len(x)
        l1, l2 = self.alpha * self.l1_ratio * number, self.alpha * (1 - self.l1_ratio) * number
        squares, weights, residual = (x**2).sum(axis=0), np.zeros(x.shape[1], x.dtype), y.ravel().copy()
        for _ in range(self.max_iter):
            largest = moved = 0.0
            for j in range(len(weights)):
                before = weights[j]
                along = x[:, j] @ residual + squares[j] * before
                past = along - l1 if along > l1 else along + l1 if along < -l1 else 0.0
                weights[j] = past / (squares[j] + l2) if squares[j] + l2 > 1e-5 else 0.0  # cuML's bound is absolute
                residual += x[:, j] * (before - weights[j])
                largest, moved = max(largest, abs(weights[j])), max(moved, abs(weights[j] - before))
            if largest < self.tol or moved / largest < self.tol:  # the first of the two is absolute
                break
        self._coef = weights
        return self

    @property
    def coef_(self) -> np.ndarray:
        return reflected(self._coef)


class OnDevice:
    """An array of cupy's, which does not become one of NumPy's unasked."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")


STATE = SimpleNamespace(allocator="cupy's own pool", output_type=None)


def reflected(array: np.ndarray) -> Any:
    return array if STATE.output_type in (None, "numpy") else OnDevice()


@contextlib.contextmanager
def using_output_type(output_type: str | None) -> Iterator[None]:
    before, STATE.output_type = STATE.output_type, output_type
    try:
        yield
    finally:
        STATE.output_type = before


class Lasso(ElasticNet):
    def __init__(self, **settings: Any) -> None:
        super().__init__(l1_ratio=1.0, **settings)


def install(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Make both importable; gives what cupy allocates from, as ``allocator``, and cuML's ``output_type`` for all."""
    STATE.allocator, STATE.output_type = "cupy's own pool", None
    cuda = SimpleNamespace(
        get_allocator=lambda: STATE.allocator, set_allocator=lambda given: setattr(STATE, "allocator", given)
    )

    class Cuml(ModuleType):
        """Sets the allocator when its parts are first looked at, as cuML does when it is imported."""

        def __getattr__(self, name: str) -> Any:
            if name not in ("linear_model", "using_output_type"):
                raise AttributeError(name)
            STATE.allocator = "rmm"
            return models if name == "linear_model" else using_output_type

    cupy = ModuleType("cupy")
    vars(cupy).update(cuda=cuda, asarray=np.asarray, asfortranarray=np.asfortranarray, from_dlpack=np.from_dlpack)
    models = ModuleType("cuml.linear_model")
    vars(models).update(Ridge=Ridge, Lasso=Lasso, ElasticNet=ElasticNet)
    Ridge.factorised.clear()
    for name, module in {"cupy": cupy, "cuml": Cuml("cuml"), "cuml.linear_model": models}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return STATE
