"""How far off predictions of ablations are, by how much they ablate, and what was measured with one component off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coar_dist.api import Run
from coar_dist.report.page import alone
from coar_dist.report.page.errors_by_size import ErrorsBySize
from coar_dist.report.page.gather import gather
from coar_dist.report.summary import summarise
from tests.report.synthetic import synthetic_run


def test_errors_that_grow_with_what_is_ablated_are_found_again() -> None:
    random = np.random.default_rng(0)
    scales = np.linspace(0.5, 1.5, 60)[:, None]

    def drawn(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        sizes = random.uniform(0.5, 10.0, shape)
        return sizes, scales * (0.3 + 0.2 * sizes) * random.standard_normal(shape)

    parts = [drawn((60, 100)) for _ in range(3)]
    of_whole = 0.3 * scales[:, 0] * random.standard_normal(60)
    found = ErrorsBySize.of([sizes for sizes, _ in parts], [errors for _, errors in parts], of_whole)
    assert found.sizes[0] == 0
    assert (np.diff(found.sizes) > 0).all()
    assert 9.9 < found.sizes[-1] < 10
    expected = 0.3 + 0.2 * found.sizes
    np.testing.assert_allclose(found.errors / found.errors.mean(), expected / expected.mean(), rtol=0.2)
    assert np.corrcoef(found.scales, scales[:, 0])[0, 1] > 0.9
    for low, high in ((0.5, 2.0), (4.0, 6.0), (8.0, 9.5)):
        sizes = random.uniform(low, high, (60, 500))
        errors = scales * (0.3 + 0.2 * sizes) * random.standard_normal(sizes.shape)
        widths = found.scales[:, None] * np.interp(sizes, found.sizes, found.errors)
        assert 0.62 < (np.abs(errors) < widths).mean() < 0.75
        assert 0.92 < (np.abs(errors) < 2 * widths).mean() < 0.98


def test_few_or_equal_sizes_have_one_error() -> None:
    found = ErrorsBySize.of([np.full((1, 8), 2.0)], [np.full((1, 8), 0.5)], np.full(1, np.nan))
    assert found.sizes.tolist() == [2.0]
    np.testing.assert_allclose(found.scales * found.errors, 0.5)
    nothing = ErrorsBySize.of([np.zeros((2, 8))], [np.zeros((2, 8))], np.zeros(2))
    assert nothing.errors.tolist() == [0.0]
    assert np.isfinite(nothing.scales).all()


@pytest.mark.parametrize("at_once", [5, 1024])
def test_outputs_with_one_component_off_are_those_of_its_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(alone, "_BYTES", 30 * 4 * 6)
    monkeypatch.setattr(alone, "_MASKS_AT_ONCE", at_once)
    run = Run(synthetic_run(tmp_path / "run", 30, has_alone=True))
    shown = gather(run.directory, summarise(run.directory)).examples
    masks, margins = run.margins("leave_one_out")
    assert shown.alone is not None
    order = np.argsort(-np.abs(run.weights()), axis=1, kind="stable")[:, :6]
    np.testing.assert_array_equal(shown.alone.components, order)
    of_component = np.argsort(np.argmin(masks, axis=1))  # the mask of each component
    expected = margins[of_component[order], np.arange(30)[:, None]]
    np.testing.assert_allclose(shown.alone.outputs, expected, rtol=1e-6)
    few = shown.strongest(2).alone
    assert few is not None
    np.testing.assert_array_equal(few.components, order[:, :2])
