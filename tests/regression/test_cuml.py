"""cuML's backend: against a stand-in that has cuML's rules where there is no CUDA device, else against cuML itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from coar_dist.config.schema import RegressionConfig
from coar_dist.errors import ConfigError
from coar_dist.regression import cuml_backend, lasso, ridge
from coar_dist.regression.backends import check_backend, choose_backend, lasso_weights, ridge_weights
from coar_dist.regression.factor import factorise
from coar_dist.regression.fit import fit
from coar_dist.regression.reduced import LassoTarget
from coar_dist.regression.statistics import gram, margin_statistics
from coar_dist.store.reader import RunReader
from tests.regression import cuml_stand_in
from tests.regression.problems import batches, problem, projected
from tests.regression.test_fit import run_of

PENALTIES = np.array([0.01, 0.3, 2.0, 30.0, 500.0])


@pytest.fixture
def cuml(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace | None:
    """The stand-in, which counts as a library that can run; None where cuML itself can."""
    if cuml_backend.why_no_cuml() is None:
        return None
    monkeypatch.setattr("coar_dist.regression.backends.why_no_cuml", lambda: None)
    return cuml_stand_in.install(monkeypatch)


@pytest.mark.parametrize(("num_masks", "num_components"), [(300, 150), (60, 150), (3, 9), (2, 5), (9, 1)])
def test_ridge_with_a_penalty_per_example_is_torch_s(cuml: Any, num_masks: int, num_components: int) -> None:
    """Also of rank 1: two masks, or one component."""
    masks, margins = problem(num_masks, num_components)
    masks[0], masks[1] = True, False
    _, factor, _, part = projected(masks, margins)
    found = ridge_weights("cuml", factor, part, PENALTIES)
    np.testing.assert_allclose(found, ridge.solve(factor, part, PENALTIES), rtol=1e-9, atol=1e-12)
    if cuml is not None:  # nothing as large as the problem is factorised once more
        assert max(cuml_stand_in.Ridge.factorised) <= 64


def test_ridge_of_equal_columns_and_without_a_penalty(cuml: Any) -> None:
    masks, margins = problem(40, 6)
    masks[:] = masks[:, :1]
    _, factor, _, part = projected(masks, margins)
    assert factor.rank == 1
    found = ridge_weights("cuml", factor, part, np.zeros(5))
    np.testing.assert_allclose(found, ridge.solve(factor, part, np.zeros(5)), rtol=1e-9, atol=1e-12)


def target_of(masks: np.ndarray, margins: np.ndarray, l1_ratio: float, share: float) -> tuple[Any, LassoTarget]:
    whole, block = gram(batches(masks), "cpu"), margin_statistics(batches(masks, 32, margins))
    part = lasso.problem_of(whole, lasso.extremes_of(whole, "cpu"), block, "cpu")
    alphas = lasso.largest_alphas(part, l1_ratio) * share
    return factorise(whole, "cpu"), LassoTarget(part, alphas, l1_ratio, torch.zeros_like(part.cross), 1e-10)


@pytest.mark.parametrize("l1_ratio", [1.0, 0.3])
@pytest.mark.parametrize(("num_masks", "num_components"), [(200, 30), (40, 70), (2, 5), (9, 1)])
@pytest.mark.parametrize("unit", [1.0, 1e-7, 1e6])
def test_lasso_is_torch_s_in_any_unit(
    cuml: Any, l1_ratio: float, num_masks: int, num_components: int, unit: float
) -> None:
    """Margins as small as 1e-7 have weights below the tolerance, at which the coordinate descent would end at once."""
    masks, margins = problem(num_masks, num_components)
    masks[0], masks[1] = True, False
    factor, target = target_of(masks, (margins - margins.mean(axis=0)) * np.float32(unit), l1_ratio, 0.1)
    found, gaps = lasso_weights("cuml", factor, target)
    known, _ = lasso_weights("torch", factor, target)
    assert (known != 0).any()
    assert (gaps < 1e-6).all(), gaps
    if num_masks == 2:  # equal columns may share a weight in any way
        found, known = found.sum(dim=0), known.sum(dim=0)
    np.testing.assert_allclose(found, known, rtol=1e-4, atol=1e-5 * float(known.abs().max()))


@pytest.mark.parametrize(
    ("config", "num_components", "tolerance"),
    [
        (RegressionConfig(), 200, 1e-6),  # the dual
        (RegressionConfig(method="lasso", num_penalties=4, tolerance=1e-6), 30, 5e-3),
    ],
)
def test_a_fit_from_shards_is_torch_s(
    cuml: Any, config: RegressionConfig, num_components: int, tolerance: float, tmp_path: Path
) -> None:
    if cuml is None:
        pytest.skip("shards are fitted with cuML by tests.benchmarks.gpu")
    masks, margins = problem(150, num_components)
    found = []
    for backend in ("torch", "cuml"):
        run = run_of(tmp_path / backend, masks, margins)
        name = fit(run, replace(config, backend=backend), lambda _: None)[0].method
        found.append(RunReader(run).weights(method=name))
    np.testing.assert_allclose(found[1], found[0], rtol=tolerance, atol=tolerance)


def test_the_process_keeps_its_settings(cuml: SimpleNamespace | None) -> None:
    """cupy allocates as before, and arrays come to the host although other estimators leave theirs on the device."""
    masks, margins = problem()
    _, factor, _, part = projected(masks, margins)
    import cupy

    before = cupy.cuda.get_allocator()
    if cuml is not None:
        cuml.output_type = "cupy"
    found = ridge_weights("cuml", factor, part, PENALTIES)
    np.testing.assert_allclose(found, ridge.solve(factor, part, PENALTIES), rtol=1e-9, atol=1e-12)
    assert cupy.cuda.get_allocator() == before
    assert cuml is None or cuml.output_type == "cupy"


def test_a_lasso_of_more_values_than_cuml_counts_is_refused(cuml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    factor, target = target_of(*problem(60, 20), 1.0, 0.1)
    monkeypatch.setattr(cuml_backend, "_MOST_VALUES", factor.rank * 20 - 1)
    with pytest.raises(ConfigError, match=r"the lasso of 20 components on a design of rank \d+ has more"):
        lasso_weights("cuml", factor, target)


def test_what_the_stand_in_refuses() -> None:
    """Its rules are cuML's: what this package does not do must not pass."""
    ridge_of, x, y = cuml_stand_in.Ridge, np.ones((3, 2)), np.ones((3, 4))
    settings = {"fit_intercept": False, "output_type": "numpy"}
    for alpha, solver, rows, values in (
        (1.0, "svd", x[:1], y[:1]),
        (np.ones(3), "svd", x, y),
        (-np.ones(4), "svd", x, y),
        (np.ones(4), "eig", x, y),
        (np.ones(4), "svd", x, np.full((3, 4), np.nan)),
    ):
        with pytest.raises(ValueError, match=r"minimum of 2|penalties|non-negative|multi-target|NaN"):
            ridge_of(alpha=alpha, solver=solver, **settings).fit(rows, values)
    with pytest.raises(ValueError, match="1d array"):
        cuml_stand_in.Lasso(alpha=0.1, tol=1e-3, max_iter=9, **settings).fit(x, y)
    assert ridge_of(alpha=1.0, solver="svd", **settings).fit(x > 0, y).coef_.dtype == np.float32  # it says nothing
    small = cuml_stand_in.Lasso(alpha=0.0, tol=1e-3, max_iter=9, **settings).fit(np.diag([1.0, 2.0]), np.full(2, 1e-9))
    assert abs(small.coef_).max() < 1e-3  # ended after one sweep, by its absolute rule


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuml_is_refused_without_a_device() -> None:
    with pytest.raises(ConfigError, match=r"regression\.backend='cuml' cannot run here: no CUDA device answers"):
        check_backend("cuml", "ridge")


def test_auto_takes_cuml_where_it_suits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coar_dist.regression.backends.why_no_cuml", lambda: None)
    assert choose_backend("auto", "ridge", "primal")[0] == "cuml"
    assert choose_backend("auto", "ridge", "dual")[0] == "cuml"
    for method, solver in (("lasso", "primal"), ("ridge", "iterative")):
        backend, why = choose_backend("auto", method, solver)
        assert (backend, bool(why)) == ("torch", True)
    monkeypatch.setattr("coar_dist.regression.backends.why_no_cuml", lambda: "cuml is not installed")
    assert choose_backend("auto", "ridge", "primal") == ("torch", "cuml is not installed")


def test_cuml_takes_the_arguments_that_it_is_given() -> None:
    """Its call contract, which holds without a device."""
    models = pytest.importorskip("cuml.linear_model", reason="cuml is not installed")
    import inspect

    models.Ridge(alpha=np.ones(3), fit_intercept=False, solver="svd", output_type="numpy")
    settings = {"alpha": 0.1, "fit_intercept": False, "tol": 1e-6, "max_iter": 10, "output_type": "numpy"}
    models.Lasso(**settings)
    models.ElasticNet(l1_ratio=0.5, **settings)
    for model in (models.Ridge, models.Lasso, models.ElasticNet):
        assert {"X", "y"} <= set(inspect.signature(model.fit).parameters)
