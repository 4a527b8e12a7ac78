"""Sections of ``tests.benchmarks.calibration``: the lasso's R2 on new masks, intervals of means, and of forecasts.

lasso: simulated margins, partly linear, partly quadratic in the masks; every fit is the product's own, from files on
disk, and the real R2 that of fresh masks. intervals: means of values drawn from distributions as correlations have
them, and with --run from the correlations of a run. forecasts: curves of ridge with a penalty per example by
generalised cross-validation, about a mean of 0 or one that is right but for noise, and what twice and four times the
masks and the true weights give.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from coar_dist.config.schema import RegressionConfig
from coar_dist.evaluation.extrapolation import extrapolate
from coar_dist.evaluation.intervals import means_of
from coar_dist.regression.fit import fit
from coar_dist.store.methods import methods_of
from coar_dist.store.reader import RunReader
from tests.regression.test_fit import run_of

CONSOLE = Console(width=160)
Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, int]], Array]


class World:
    """Margins with a linear and a quadratic part, whose variances over masks have the ratio share / (1 - share).

    Args:
        num_components: d.
        num_examples: n.
        share: of the variance that is linear.
        kept: the probability of a component to be kept.
        random: where weights come from.

    Attributes:
        weights: (d, n), of the linear part.
    """

    def __init__(
        self, num_components: int, num_examples: int, share: float, kept: float, random: np.random.Generator
    ) -> None:
        d, n, variance = num_components, num_examples, kept * (1 - kept)
        sizes = np.exp(0.7 * random.normal(size=(d, 1)))
        self.weights, self._kept = random.normal(size=(d, n)) * sizes, kept
        self.weights *= np.sqrt(share / variance) / np.linalg.norm(self.weights, axis=0)
        self._pairs = np.array([random.choice(d, 2, replace=False) for _ in range(2 * d)]).T
        self._products = random.normal(size=(2 * d, n))
        self._products *= np.sqrt(1 - share) / variance / np.linalg.norm(self._products, axis=0)

    def draw(self, count: int, random: np.random.Generator) -> tuple[NDArray[np.bool_], Array]:
        """So many masks (count, d) and their margins (count, n)."""
        masks = random.random((count, len(self.weights))) < self._kept
        moved = masks - self._kept
        one, other = self._pairs
        return masks, moved @ self.weights + (moved[:, one] * moved[:, other]) @ self._products


def lasso(arguments: argparse.Namespace) -> None:
    table = Table(title="R2 on new masks of the lasso, mean of 32 examples", title_justify="left")
    for name in ("components", "linear share", "masks", "told", "claimed", "real", "difference", "largest"):
        table.add_column(name, justify="right")
    for d, share in itertools.product(arguments.components, arguments.shares):
        for num_masks in sorted({max(round(ratio * d), 20) for ratio in arguments.masks_per_component}):
            table.add_row(f"{d}", f"{share:g}", f"{num_masks}", *_lasso_row(d, share, num_masks, arguments.seeds))
    CONSOLE.print(table)


def _lasso_row(num_components: int, share: float, num_masks: int, num_seeds: int) -> list[str]:
    pairs = np.array([_lasso_pair(num_components, share, num_masks, seed) for seed in range(num_seeds)])
    told = pairs[np.isfinite(pairs[:, 0])]
    how_many = f"{len(told)}/{len(pairs)}"
    if not len(told):
        return [how_many, "", f"{pairs[:, 1].mean():.3f}", "", ""]
    differences = told[:, 0] - told[:, 1]
    means = [f"{value:.3f}" for value in told.mean(axis=0)]
    return [how_many, *means, f"{differences.mean():+.3f}", f"{np.abs(differences).max():.3f}"]


def _lasso_pair(num_components: int, share: float, num_masks: int, seed: int) -> tuple[float, float]:
    """Claimed and real."""
    random = np.random.default_rng([seed, num_components, num_masks, round(100 * share)])
    world = World(num_components, 32, share, 0.8, random)
    masks, margins = world.draw(num_masks, random)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few masks: that they leave components out
        run = run_of(Path(folder), masks, margins.astype(np.float32), per_block=32)
        fit(run, RegressionConfig(method="lasso"), lambda _: None)
        reader = RunReader(run)
        fresh, true = world.draw(4000, random)
        errors = (reader.predict(fresh, method="coar_lasso") - true) ** 2
        claimed = reader.quality(method="coar_lasso")["r2_new"].mean()
    return float(claimed), float((1 - errors.mean(axis=0) / true.var(axis=0)).mean())


def intervals(arguments: argparse.Namespace) -> None:
    table = Table(title="Coverage of 95% intervals of means, low to high / mean ± longer half", title_justify="left")
    for name in ("values", "skewness", *map(str, arguments.numbers_of_examples)):
        table.add_column(name, justify="left" if name == "values" else "right")
    for name, draw in _distributions(arguments.run):
        random = np.random.default_rng(0)
        whole = draw(random, (2_000_000, 1))
        mean, skewness = whole.mean(), ((whole - whole.mean()) ** 3).mean() / whole.std() ** 3
        cells = []
        for count in arguments.numbers_of_examples:
            found = means_of(draw(random, (count, arguments.repeats)))
            if not np.isfinite(found.low).all():
                cells.append("none")
                continue
            half = np.maximum(found.mean - found.low, found.high - found.mean)
            covered = ((found.low <= mean) & (mean <= found.high), abs(found.mean - mean) <= half)
            cells.append(" / ".join(f"{share.mean():.3f}" for share in covered))
        table.add_row(name, f"{skewness:.1f}", *cells)
    CONSOLE.print(table)


def _distributions(run: str | None) -> Iterator[tuple[str, Draw]]:
    yield "tanh(normal .33, .2)", lambda random, size: np.tanh(0.33 + 0.2 * random.normal(size=size))
    yield "beta(8, 2)", lambda random, size: random.beta(8, 2, size)
    yield "1 - exponential / 50", lambda random, size: 1 - random.exponential(0.02, size)
    for spread in (0.5, 0.8):
        yield f"tanh(normal 2.5, {spread})", lambda random, size, s=spread: np.tanh(2.5 + s * random.normal(size=size))
    yield "tanh(normal 1.5, .5)", lambda random, size: np.tanh(1.5 + 0.5 * random.normal(size=size))
    for share in (0.2, 0.1, 0.05):
        yield (
            f".95, {share:.0%} at 0 to .9",
            lambda random, size, s=share: np.where(
                random.random(size) < s, random.uniform(0, 0.9, size), np.tanh(1.83 + 0.2 * random.normal(size=size))
            ),
        )
    if run is not None:
        from coar_dist.api import open_run

        opened = open_run(run)
        for method, design in itertools.product(methods_of(opened.directory), opened.directory.held_out):
            values = opened.evaluation(method, design)["correlation"]
            known = values[np.isfinite(values)]
            yield f"{method}, {design}", lambda random, size, known=known: random.choice(known, size)


def forecasts(arguments: argparse.Namespace) -> None:
    held: dict[tuple[bool, float], dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    grid = itertools.product(
        arguments.components,
        (1, 1.5, 2, 4, 8),
        arguments.shares,
        arguments.curve_examples,
        (False, True),
        range(arguments.seeds),
    )
    for d, ratio, share, n, has_prior, seed in grid:
        correlations, num_masks, limit = _curve(d, round(ratio * d), share, n, has_prior, seed)
        found = extrapolate(np.array(num_masks[:-2]), correlations[:, :-2], d)
        held[has_prior, ratio]["all"].append(True)
        for name, truth in (("twice", correlations[:, -2]), ("four_times", correlations[:, -1]), ("limit", limit)):
            forecast = getattr(found, name)
            if forecast is not None:
                held[has_prior, ratio][name].append(abs(forecast.value - truth.mean()) <= forecast.half_width)
    table = Table(title="Coverage of 95% intervals of forecasts (how many were told)", title_justify="left")
    for name in ("prior mean", "masks per component", "curves", "twice", "four times", "limit"):
        table.add_column(name, justify="right")
    for (has_prior, ratio), of_kind in held.items():
        cells = [_share(of_kind[name]) for name in ("twice", "four_times", "limit")]
        table.add_row("noisy" if has_prior else "0", f"{ratio:g}", f"{len(of_kind['all'])}", *cells)
    CONSOLE.print(table)


def _share(held: list[bool]) -> str:
    return f"{np.mean(held):.2f} ({len(held)})" if held else "none"


def _curve(d: int, num_masks: int, share: float, n: int, has_prior: bool, seed: int) -> tuple[Array, list[int], Array]:
    """Correlations (n, p) by number of masks, the last two beyond what is there; the numbers; the limits (n,)."""
    random = np.random.default_rng([seed, d, num_masks, round(100 * share), n, has_prior])
    world = World(d, n, share, float(random.choice([0.8, 0.9, 0.95])), random)
    masks, margins = world.draw(4 * num_masks, random)
    fresh, true = world.draw(200, random)
    prior = np.zeros_like(world.weights)
    if has_prior:
        prior = (world.weights + world.weights.std(axis=0) * random.normal(size=prior.shape)) / 2
    numbers = [m for m in (round(num_masks * part) for part in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4)) if m >= 8]
    curve = [_correlation(fresh @ _ridge(masks[:m], margins[:m], prior), true) for m in numbers]
    return np.stack(curve, axis=1), numbers, _correlation(fresh @ world.weights, true)


def _correlation(predicted: Array, true: Array) -> Array:
    one, other = predicted - predicted.mean(axis=0), true - true.mean(axis=0)
    return np.asarray((one * other).sum(axis=0) / np.linalg.norm(one, axis=0) / np.linalg.norm(other, axis=0))


def _ridge(masks: NDArray[np.bool_], margins: Array, prior: Array) -> Array:
    """Weights (d, n) about ``prior``, each example with the best of 25 penalties by generalised cross-validation."""
    residuals = margins - masks @ prior
    x, y = masks - masks.mean(axis=0), residuals - residuals.mean(axis=0)
    values, vectors = np.linalg.eigh(x.T @ x)
    values, vectors = values[values > 1e-9 * values[-1]], vectors[:, values > 1e-9 * values[-1]]
    along, squares = vectors.T @ (x.T @ y), (y**2).sum(axis=0)
    least, best = np.full(y.shape[1], np.inf), np.zeros_like(along)
    for penalty in np.geomspace(1e-3, 1e3, 25) * values.sum() / x.shape[1]:
        freedom = 1 - (1 + (values / (values + penalty)).sum()) / len(x)
        solved = along / (values + penalty)[:, None]
        rest = squares - 2 * (solved * along).sum(axis=0) + (values[:, None] * solved**2).sum(axis=0)
        if freedom > 1e-9:
            better = rest / freedom**2 < least
            least, best = np.where(better, rest / freedom**2, least), np.where(better, solved, best)
    return prior + vectors @ best


SECTIONS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "lasso": lasso,
    "intervals": intervals,
    "forecasts": forecasts,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """What these sections take besides ``components``, ``shares`` and ``seeds``."""
    parser.add_argument(
        "--masks-per-component", type=float, nargs="+", default=[0.5, 1, 2, 4, 8, 16], help="of the lasso"
    )
    parser.add_argument(
        "--numbers-of-examples", type=int, nargs="+", default=[10, 20, 30, 50, 100, 500], help="of means"
    )
    parser.add_argument("--repeats", type=int, default=4000, help="of every mean")
    parser.add_argument("--curve-examples", type=int, nargs="+", default=[1, 5, 40], help="of curves that are forecast")
    parser.add_argument("--run", help="a run directory that is evaluated, whose correlations are drawn from too")
