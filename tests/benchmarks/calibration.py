"""Whether the numbers beside the weights hold: claimed against real R2 on new masks, how many of the true weights lie
within 1.96 standard errors, and how many intervals of means and of forecasts hold what they are of.

    python -m tests.benchmarks.calibration                                    simulations and the digits preset
    python -m tests.benchmarks.calibration --sections lasso intervals forecasts --run runs/digits
    python -m tests.benchmarks.calibration --sections models --models vit gpt2 --text TEXT.txt --folder calibration
    python -m tests.benchmarks.calibration --sections models --models resnet20 --checkpoint W.safetensors \\
        --images CIFAR.npz

Simulated outputs are quadratic in the masks, so the best linear weights are known; gates are exact, or the gradient of
each component is wrong by a factor of its own, or outputs go through a tanh. Every fit is the product's own, from files
on disk. A number counts in the seeds in which it is told; "told" is their share. Claimed and real R2 are to differ
by .03 at most, the coverage is to be .90 to .98. ``calibration_intervals`` says what the other sections simulate.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.config.schema import RegressionConfig
from coar_dist.designs.independent import Bernoulli
from coar_dist.designs.subsets import Balanced
from coar_dist.store.gradients import GateGradients
from coar_dist.store.reader import RunReader
from tests.benchmarks import calibration_intervals
from tests.benchmarks.estimators import Pool, SeedRun, add_options, collect, tasks_of

CONSOLE = Console(width=140)
Array = NDArray[np.float64]


class World:
    """A simulated model.

    Args:
        num_components: d.
        num_examples: n.
        alpha: ablation fraction.
        share: of the variance over masks that is linear; before the tanh, if there is one.
        gates: ``exact``, ``biased`` or ``tanh``.
        seed: of all that is random.

    Attributes:
        weights: (n, d) the best linear weights; None behind a tanh.
    """

    def __init__(
        self, num_components: int, num_examples: int, alpha: float, share: float, gates: str, seed: int
    ) -> None:
        random = np.random.default_rng(seed)
        n, d, variance = num_examples, num_components, alpha * (1 - alpha)
        sizes = np.exp(0.5 * random.normal(size=d))  # some components matter more, for all examples
        weights = (random.normal(size=(n, d)) + 0.5 * random.normal(size=d)) * sizes
        pairs = np.triu(random.normal(size=(n, d, d)) * np.sqrt(np.outer(sizes, sizes)), 1)
        linear, quadratic = (weights**2).sum(axis=1) * variance, (pairs**2).sum(axis=(1, 2)) * variance**2
        pairs *= np.sqrt(linear / quadratic * (1 - share) / share)[:, None, None]
        unit = np.sqrt(share / linear) * (1 if gates == "tanh" else np.linspace(1, 4, n))
        self.num_components, self.num_examples, self.alpha, self.gates = d, n, alpha, gates
        self._linear, self._pairs = weights * unit[:, None], (pairs + pairs.transpose(0, 2, 1)) * unit[:, None, None]
        self._factors = np.exp(0.3 * random.normal(size=d)) if gates == "biased" else np.ones(d)
        self.weights = None if gates == "tanh" else self._linear

    def outputs(self, masks: NDArray[np.bool_]) -> Array:
        """(num_masks, n)."""
        return self._after(self._before(masks - (1 - self.alpha)))

    def gate_gradients(self, masks: NDArray[np.bool_]) -> Array:
        """(num_masks, n, d)."""
        moved = masks - (1 - self.alpha)
        gradients = self._linear + np.einsum("mc,ncd->mnd", moved, self._pairs)
        if self.gates == "tanh":
            gradients *= 1 - np.tanh(self._before(moved) / 2 + 0.5)[:, :, None] ** 2
        return np.asarray(gradients * self._factors)

    def _before(self, moved: Array) -> Array:
        quadratic = np.stack([((moved @ pairs) * moved).sum(axis=1) for pairs in self._pairs], axis=1)
        return np.asarray(moved @ self._linear.T + quadratic / 2)

    def _after(self, values: Array) -> Array:
        return np.asarray(2 * np.tanh(values / 2 + 0.5) + 7 if self.gates == "tanh" else values + 7)

    def pool(self, num_plain: int, num_passes: int, num_held_out: int, seed: int) -> Pool:
        """All masks that a run may take, drawn with a seed."""
        d, masks_of = self.num_components, {}
        for name, count, own in (("plain", num_plain, 0), ("held_out", num_held_out, 1_000_000)):
            masks = Bernoulli(d, count, self.alpha, seed + own).masks(0, count)
            masks_of[name] = {"masks": masks, "margins": self.outputs(masks).astype(np.float32)}
        rounds = []
        if num_passes:
            design = Balanced(d, num_passes, self.alpha, seed + 2_000_000)
            for masks in design.masks(0, num_passes).reshape(-1, design.masks_per_round, d):
                gradients, kept = self.gate_gradients(masks), masks[:, None, :]
                ends = [np.where(state, gradients, 0.0) for state in (kept, ~kept)]
                sums = (end.sum(axis=0).astype(np.float32) for end in ends)
                squares = ((end**2).sum(axis=(0, 1)) for end in ends)
                margins = self.outputs(masks).astype(np.float32)
                rounds.append((masks, GateGradients(margins, *sums, *squares, np.ones(d, np.bool_))))
        components = ComponentIndex((ComponentGroup.of("a.weight", 0, d),))
        return Pool(components, masks_of["plain"], masks_of["held_out"], rounds, None, (1.0, 1.0), self.alpha)


class Held:
    """How the numbers of one kind of run hold, over seeds."""

    def __init__(self) -> None:
        self._pairs: list[tuple[float, float]] = []
        self._covered: list[float] = []

    def add(self, run: SeedRun, method: str, weights: Array | None) -> None:
        """The numbers of the last fit; ``weights`` are the true ones (n, d)."""
        reader = RunReader(run.directory)
        claimed = reader.quality(method=method)["r2_new"]
        real = np.nanmean(run.evaluation(method)["r2"])
        self._pairs.append((float(np.nanmean(claimed)) if np.isfinite(claimed).any() else np.nan, float(real)))
        if weights is not None:
            distance = np.abs(reader.weights(method=method) - weights)
            within = distance <= 1.96 * reader.standard_errors(method=method)
            errors = np.isfinite(reader.standard_errors(method=method))
            self._covered.append(float(within[errors].mean()) if errors.any() else np.nan)

    @property
    def difference(self) -> float:
        """Mean of claimed minus real, where it is told; NaN if it is not."""
        differences = np.array([claimed - real for claimed, real in self._pairs if np.isfinite(claimed)])
        return float(differences.mean()) if len(differences) else np.nan

    @property
    def coverage(self) -> float:
        """Mean share of the true weights within 1.96 errors; NaN if these are not told."""
        covered = [share for share in self._covered if np.isfinite(share)]
        return float(np.mean(covered)) if covered else np.nan

    def row(self) -> list[str]:
        """Told, claimed, real, and their mean and largest difference; coverage."""
        pairs = np.array(self._pairs)
        told = pairs[np.isfinite(pairs[:, 0])]
        cells = [f"{len(told) / len(pairs):.2f}"]
        if len(told):
            cells += [f"{value:.3f}" for value in told.mean(axis=0)]
            cells += [f"{self.difference:+.3f}", f"{np.abs(told[:, 0] - told[:, 1]).max():.3f}"]
        else:
            cells += ["", f"{pairs[:, 1].mean():.3f}", "", ""]
        return [*cells, "" if np.isnan(self.coverage) else f"{self.coverage:.3f}"]


COLUMNS = ("masks", "told", "claimed", "real", "difference", "largest", "coverage")


def new_table(title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    return table


def measure(
    pools: Sequence[Pool], worlds: Sequence[World | None], runs: Sequence[tuple[int, int]], title: str
) -> list[Held]:
    """Print how the numbers hold of runs with (passes with gradients, plain masks), each pool being a seed."""
    table = new_table(title)
    held = {numbers: Held() for numbers in runs}
    config = RegressionConfig(standard_errors=True)
    for pool, world in zip(pools, worlds, strict=True):
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few masks: that they leave components out
            run = SeedRun(Path(folder), pool)
            for passes, plain in runs:
                method, _ = run.fit(plain, passes, False, config)
                held[passes, plain].add(run, method, None if world is None else world.weights)
    for (passes, plain), numbers in held.items():
        table.add_row(f"{passes} + {plain}" if passes else f"{plain}", *numbers.row())
    CONSOLE.print(table)
    return list(held.values())


def say_in_all(held: Sequence[Held]) -> None:
    """In how many kinds of runs the numbers hold."""
    differences, coverages = (np.array([getattr(kind, name) for kind in held]) for name in ("difference", "coverage"))
    told, covered = np.abs(differences[np.isfinite(differences)]), coverages[np.isfinite(coverages)]
    said = [f"of {len(held)} kinds of runs"]
    if len(told):
        said.append(f"{len(told)} tell R2, {(told <= 0.03).sum()} of them within .03, at most {told.max():.3f} off")
    if len(covered):
        low, high = (covered < 0.9).sum(), (covered > 0.98).sum()
        said.append(
            f"{len(covered)} tell errors: coverage {covered.min():.2f} to {covered.max():.2f}, {low} low, {high} high"
        )
    CONSOLE.print("; ".join(said))


def simulated(arguments: argparse.Namespace) -> None:
    held = []
    for d in arguments.components:
        alpha = 0.2 if d < 40 else 0.1 if d < 100 else 0.05
        each = round(1 / alpha)
        plain = [(0, m) for m in sorted({10, 20, 40, d // 2, d, 2 * d, 4 * d})]
        passes = sorted({each * max(round(number / each), 1) for number in arguments.gradient_masks})
        runs = plain + [(number, m) for number in passes for m in arguments.train_masks]
        for share, gates, n in product(arguments.shares, ("exact", "biased", "tanh"), arguments.examples_at_once):
            worlds = [World(d, n, alpha, share, gates, seed) for seed in range(arguments.seeds)]
            sizes = max(m for _, m in runs), max(passes), arguments.held_out
            pools = [world.pool(*sizes, 10 * seed) for seed, world in enumerate(worlds)]
            title = f"{d} components, alpha {alpha}, linear share {share}, gates {gates}, {n} examples"
            held += measure(pools, worlds, runs, title)
    say_in_all(held)


def models(arguments: argparse.Namespace) -> None:
    for name, task, selector in tasks_of(arguments):
        whole = collect(name, task, selector, arguments)
        pools = [whole.seed(number, arguments.seeds) for number in range(arguments.seeds)]
        plain = [(0, m) for m in arguments.plain_masks]
        runs = plain + [(passes, m) for passes in arguments.gradient_masks for m in arguments.train_masks]
        title = f"{name}: {whole.components.num_components} components, {len(task.examples)} examples"
        say_in_all(measure(pools, [None] * len(pools), runs, title))


SECTIONS = {"simulated": simulated, "models": models, **calibration_intervals.SECTIONS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=tuple(SECTIONS), default=tuple(SECTIONS))
    parser.add_argument("--components", type=int, nargs="+", default=[20, 80, 300], help="of simulations")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.6, 0.9], help="of the variance that is linear")
    parser.add_argument("--examples-at-once", type=int, nargs="+", default=[32], help="of simulations")
    calibration_intervals.add_options(parser)
    add_options(parser, gradient_masks=[20, 100], train_masks=[0, 20, 100, 500], plain_masks=[40, 250, 1000])
    parser.set_defaults(seeds=3, held_out=1000, eager=True, rounds=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    for name in arguments.sections:
        SECTIONS[name](arguments)


if __name__ == "__main__":
    main()
