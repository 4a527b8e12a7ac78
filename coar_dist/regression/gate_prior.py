"""A prior for COAR's weights from gate gradients: its mean and its variances.

COAR's weight is w[c] = E[f(c kept) - f(c ablated)], over the other components' masks: the mean of the gate gradient
g[c] along the gate. Its two ends are observed in passes with gradients, as means over M1 masks that keep c and M0 that
ablate it, g1[c] and g0[c]. With one variance v[c] within both, they have variances v / M1 and v / M0. The prior is

    w = b1 g1 + b0 g0 (+ b2 leave-one-out) + u,    u[c] ~ N(0, t d[c]),    y = b + x'w + noise,    noise ~ N(0, s)

with b shared by all examples: least squares of all margins, each example's relative to its variance; a noisy g0 gets a
small b0, and the trapezoid's 1/2, 1/2 where both are exact. d[c] is the prior mean's sampling variance, b1**2 v / M1
+ b0**2 v / M0, averaged over the examples, plus as much again in proportion to the mean square of the prior mean, for
what averaging does not remove (curvature). So u is ridge on the residuals y - x'(prior mean), in the coordinates
u / sqrt(d) with penalty s / t, by generalised cross-validation for all examples together, which also judges d = 1 and
mean 0: those are plain ridge. The posterior is N(prior mean + u, s (Xc'Xc + s / t diag(1 / d))**-1).

Empirical Bayes (Efron & Morris 1973; Morris 1983) with regression toward a predicted mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.regression.observations import Observations
from coar_dist.regression.statistics import DesignStatistics
from coar_dist.store.gradients import GradientStore
from coar_dist.store.tables import AttributionTable

_FLOOR = 0.02
"""Share of the mean prior variance that every component has besides its own."""
_WIDE = 10.0
"""How many times the mean prior variance a component has that no gate gradient tells of."""


@dataclass(frozen=True)
class GateSources:
    """Where the sources of the prior mean lie.

    Attributes:
        gradients: one per example block.
        leave_one_out: its attributions; None where there are none.
    """

    gradients: tuple[GradientStore, ...]
    leave_one_out: AttributionTable | None

    @property
    def names(self) -> list[str]:
        """Names of the sources, in order."""
        return ["kept", "ablated", *(["leave_one_out"] if self.leave_one_out is not None else [])]

    def settings(self, blocks: list[tuple[int, int]]) -> dict[str, Any]:
        """What attributions depend on besides those of the train design."""
        gradients = self.gradients[0]
        settings: dict[str, Any] = {"gradients": gradients.fingerprint, "num_gradient_masks": gradients.num_masks}
        if self.leave_one_out is not None:
            settings["leave_one_out"] = self.leave_one_out.settings_fingerprint(blocks)
        return settings

    def read(self, block: tuple[int, int]) -> BlockSources:
        """The sources of one example block.

        Raises:
            MissingWorkError, DamagedFileError: they cannot be read.
        """
        (store,) = (gradients for gradients in self.gradients if gradients.block == block)
        kept_count = np.zeros(store.num_components)
        num_masks = 0
        sums: list[NDArray[np.float64]] = []
        squares = np.zeros(store.num_components)
        known = np.ones(store.num_components, np.bool_)
        for masks, gradients in store.read():
            kept_count += masks.sum(axis=0)
            num_masks += len(masks)
            parts = [gradients.kept.astype(np.float64), gradients.ablated.astype(np.float64)]
            sums = parts if not sums else [total + part for total, part in zip(sums, parts, strict=True)]
            squares += gradients.kept_squares + gradients.ablated_squares
            known &= gradients.known
        counts = np.stack([kept_count, num_masks - kept_count])
        means = [total / np.maximum(count, 1) for total, count in zip(sums, counts, strict=True)]
        within = squares - sum((mean * total).sum(axis=0) for mean, total in zip(means, sums, strict=True))
        # Where no mask keeps, or none ablates, a component, the other end of its gate has to do.
        means = [np.where(counts[i] > 0, means[i], means[1 - i]) for i in (0, 1)]
        values = [mean.astype(np.float32) for mean in means]
        if self.leave_one_out is not None:
            values.append(self.leave_one_out.read(block)[0])
        return BlockSources(values, counts, np.maximum(within, 0.0), known)


@dataclass(frozen=True)
class BlockSources:
    """The sources of one example block.

    Attributes:
        values: of every source (n, num_components) float32.
        counts: (2, num_components) float64, the masks that keep and ablate a component.
        within: (num_components,) float64, squares of gate gradients around their means, summed over the examples.
        known: (num_components,) bool, components that have gate gradients; the others' are zero.
    """

    values: list[NDArray[np.float32]]
    counts: NDArray[np.float64]
    within: NDArray[np.float64]
    known: NDArray[np.bool_]


@dataclass(frozen=True)
class SourceStatistics:
    """What the prior is made of; the blocks' add up.

    Attributes:
        products: (k, k), per example s_k'Xc'Xc s_l over the margins' sum of squares, summed.
        cross: (k,), per example s_k'Xc'y over the same, summed.
        sizes: (k, k, num_components), s_k s_l summed over the examples.
        within: (num_components,), as in ``BlockSources``.
        counts: (2, num_components), the same in every block.
        variance: of the margins over the masks, summed over the examples.
        num_examples: of the blocks.
        known: (num_components,), as in ``BlockSources``.
    """

    products: NDArray[np.float64]
    cross: NDArray[np.float64]
    sizes: NDArray[np.float64]
    within: NDArray[np.float64]
    counts: NDArray[np.float64]
    variance: float
    num_examples: int
    known: NDArray[np.bool_]

    @property
    def per_pass_variances(self) -> NDArray[np.float64]:
        """Variance v of a gate gradient at either end of its gate, mean over the examples: (num_components,)."""
        freedom = self.num_examples * np.maximum(self.counts.sum(axis=0) - (self.counts > 0).sum(axis=0), 1)
        return np.asarray(self.within / freedom)

    @property
    def mean_variance(self) -> float:
        """Variance of the margins over the masks, mean over the examples."""
        return self.variance / self.num_examples

    def __add__(self, other: SourceStatistics) -> SourceStatistics:
        return SourceStatistics(
            self.products + other.products,
            self.cross + other.cross,
            self.sizes + other.sizes,
            self.within + other.within,
            self.counts,
            self.variance + other.variance,
            self.num_examples + other.num_examples,
            self.known & other.known,
        )


def source_statistics(
    observations: Observations, sources: GateSources, design: DesignStatistics, block: tuple[int, int], device: str
) -> SourceStatistics:
    """One pass over the margins of an example block."""
    found = sources.read(block)
    stacked = torch.from_numpy(np.stack(found.values)).to(device).double()
    num_sources, num_examples, _ = stacked.shape
    mean = torch.from_numpy(design.mean).to(device)
    products = torch.zeros(num_sources, num_sources, num_examples, dtype=torch.float64, device=device)
    cross = torch.zeros(num_sources, num_examples, dtype=torch.float64, device=device)
    shift: torch.Tensor | None = None
    sums = torch.zeros(2, num_examples, dtype=torch.float64, device=device)
    for masks, margins in observations.of_block(block).read(0, observations.num_masks):
        y = torch.from_numpy(margins).to(device).double()
        shift = y[0].clone() if shift is None else shift
        y -= shift
        x = torch.from_numpy(masks.view(np.uint8)).to(device).double() - mean
        predicted = torch.einsum("md,knd->kmn", x, stacked)
        products += torch.einsum("kmn,lmn->kln", predicted, predicted)
        cross += torch.einsum("kmn,mn->kn", predicted, y)
        sums += torch.stack([y.sum(dim=0), (y * y).sum(dim=0)])
    squares = sums[1] - sums[0] ** 2 / design.num_masks
    weight = torch.where(squares > 0, 1.0 / squares.clamp(min=1e-300), 0.0)
    return SourceStatistics(
        (products * weight).sum(dim=2).cpu().numpy(),
        (cross * weight).sum(dim=1).cpu().numpy(),
        torch.einsum("knd,lnd->kld", stacked, stacked).cpu().numpy(),
        found.within,
        found.counts,
        float(squares.sum()) / design.num_masks,
        num_examples,
        found.known,
    )


@dataclass(frozen=True)
class GatePrior:
    """The prior of all examples.

    Attributes:
        sources: where its mean comes from.
        coefficients: (k,) float64 of the sources.
    """

    sources: GateSources
    coefficients: NDArray[np.float64]

    def mean(self, block: tuple[int, int]) -> NDArray[np.float32]:
        """Prior means of the weights of one example block: (n, num_components) float32."""
        values = self.sources.read(block).values
        return sum(
            (np.float32(b) * source for b, source in zip(self.coefficients, values, strict=True)),
            np.zeros_like(values[0]),
        )


def fit_coefficients(statistics: SourceStatistics) -> NDArray[np.float64]:
    """Least squares of the margins on what the sources predict: (k,) float64."""
    return np.asarray(np.linalg.lstsq(statistics.products, statistics.cross, rcond=1e-9)[0])


def prior_variances(statistics: SourceStatistics, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
    """The prior's variances d (num_components,) float64, with mean 1; wide where there are no gate gradients."""
    counts = statistics.counts
    per_pass = statistics.per_pass_variances
    noise = sum(coefficients[i] ** 2 * per_pass / np.maximum(counts[i], 1) for i in (0, 1))
    size = np.einsum("k,l,kld->d", coefficients, coefficients, statistics.sizes)
    known = statistics.known
    if not known.any():
        return np.ones(len(known))
    variances = _relative(np.asarray(noise)[known]) + _relative(size[known]) + _FLOOR
    spread = np.full(len(known), _WIDE * variances.mean())  # nothing is known but the margins
    spread[known] = variances
    return np.asarray(spread / spread.mean())


def _relative(values: NDArray[np.float64]) -> NDArray[np.float64]:
    mean = values.mean()
    return values / mean if mean > 0 else np.ones_like(values)
