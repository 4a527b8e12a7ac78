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

import numpy as np
from numpy.typing import NDArray

from coar_dist.regression.gate_sources import GateSources, SourceStatistics

_FLOOR = 0.02
"""Share of the mean prior variance that every component has besides its own."""
_WIDE = 10.0
"""How many times the mean prior variance a component has that no gate gradient tells of."""


@dataclass(frozen=True)
class GatePrior:
    """The prior of all examples.

    Attributes:
        sources: where its mean comes from.
        coefficients: (k,) float64 of the sources.
        sampling: (num_components,) float64, variance of the mean over draws of the masks with gradients, relative to
            the margins' variance.
        covariance: (k, k) float64 of the coefficients over draws of the masks; of many examples it is next to nothing.
    """

    sources: GateSources
    coefficients: NDArray[np.float64]
    sampling: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def of(
        cls, sources: GateSources, statistics: SourceStatistics, coefficients: NDArray[np.float64], noise: float
    ) -> GatePrior:
        """With the variances that follow from the statistics.

        Args:
            sources: where the mean comes from.
            statistics: of the sources.
            coefficients: (k,) of the sources.
            noise: squared error on a new mask over the margins' sum of squares.
        """
        sampling = sampling_variances(statistics, coefficients) / max(statistics.mean_variance, 1e-300)
        covariance = np.asarray(np.linalg.pinv(statistics.products, 1e-9, hermitian=True) * noise, np.float64)
        return cls(sources, coefficients, sampling, covariance)

    def of_block(
        self, block: tuple[int, int], with_errors: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64] | None]:
        """Prior means of the weights of one example block (n, num_components) float32, the margins (num_gradient_masks,
        n) that lie beside their sources, and with errors the means' variance that stems from the coefficients."""
        found = self.sources.read(block)
        mean = np.zeros_like(found.values[0])
        for b, source in zip(self.coefficients, found.values, strict=True):
            mean += np.float32(b) * source
        if not with_errors:
            return mean, found.margins, None
        spread = np.zeros(mean.shape)
        variances, directions = np.linalg.eigh(self.covariance)
        for variance, direction in zip(np.maximum(variances, 0.0), directions.T, strict=True):
            along = sum(float(b) * source for b, source in zip(direction, found.values, strict=True))
            spread += variance * np.square(along, dtype=np.float64)
        return mean, found.margins, spread

    def sampling_of(self, variances: NDArray[np.float64]) -> NDArray[np.float64]:
        """Variance of the prior mean over draws of the masks with gradients (n, num_components) float64, in proportion
        to the variances (n,) that the examples' margins have over masks."""
        return np.outer(variances, self.sampling)


def fit_coefficients(statistics: SourceStatistics) -> NDArray[np.float64]:
    """Least squares of the margins on what the sources predict: (k,) float64."""
    return np.asarray(np.linalg.lstsq(statistics.products, statistics.cross, rcond=1e-9)[0])


def sampling_variances(statistics: SourceStatistics, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
    """Variance of the prior mean over draws of the masks with gradients, mean over examples: (num_components,) float64.

    Gate gradients at either end are means over M1 and M0 masks. Where every component is ablated equally often, as in
    balanced rounds, a gradient's first-order dependence on the masks adds up to 0 over a round, so that what g1 has too
    much is M0 / M1 of what g0 has too little: v (b0 - b1 M0 / M1)**2 / M0. Else v (b1**2 / M1 + b0**2 / M0).
    """
    kept, ablated = np.maximum(statistics.counts, 1)
    b1, b0 = coefficients[:2]
    if (statistics.counts == statistics.counts[:, :1]).all():
        factors = (b0 - b1 * ablated / kept) ** 2 / ablated
    else:
        factors = b1**2 / kept + b0**2 / ablated
    return np.asarray(statistics.per_pass_variances * factors)


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
