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

from coar_dist.regression.observations import Margins
from coar_dist.regression.statistics import DesignStatistics, as_tensor, require_finite
from coar_dist.store.gradients import GradientStore
from coar_dist.store.tables import AttributionTable

_FLOOR = 0.02
"""Share of the mean prior variance that every component has besides its own."""
_VALUES_AT_ONCE = 2**24
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
        margins = []
        sums: list[NDArray[np.float64]] = []
        squares = np.zeros(store.num_components)
        known = np.ones(store.num_components, np.bool_)
        for masks, gradients in store.read():
            kept_count += masks.sum(axis=0)
            margins.append(gradients.margins)
            sums = sums or [np.zeros(part.shape) for part in (gradients.kept, gradients.ablated)]
            for total, part in zip(sums, (gradients.kept, gradients.ablated), strict=True):
                total += part
            squares += gradients.kept_squares + gradients.ablated_squares
            known &= gradients.known
        all_margins = np.concatenate(margins)
        counts = np.stack([kept_count, len(all_margins) - kept_count])
        within = squares
        values: list[NDArray[np.float32]] = []
        for total, count in zip(sums, np.maximum(counts, 1), strict=True):
            within -= np.einsum("nd,nd->d", total, total) / count
            total /= count
            values.append(total.astype(np.float32))
        del sums
        # Where no mask keeps, or none ablates, a component, the other end of its gate has to do.
        for i in (0, 1):
            is_empty = np.flatnonzero(counts[i] == 0)
            values[i][:, is_empty] = values[1 - i][:, is_empty]
        if self.leave_one_out is not None:
            values.append(self.leave_one_out.read(block)[0])
        return BlockSources(all_margins, values, counts, np.maximum(within, 0.0), known)


@dataclass(frozen=True)
class BlockSources:
    """The sources of one example block.

    Attributes:
        margins: (num_gradient_masks, n) float32, of the passes with gradients.
        values: of every source (n, num_components) float32.
        counts: (2, num_components) float64, the masks that keep and ablate a component.
        within: (num_components,) float64, squares of gate gradients around their means, summed over the examples.
        known: (num_components,) bool, components that have gate gradients; the others' are zero.
    """

    margins: NDArray[np.float32]
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
    margins: Margins,
    found: BlockSources,
    design: DesignStatistics,
    rows: NDArray[np.int64],
    device: str,
) -> tuple[SourceStatistics, SampledRows]:
    """One pass over the margins of an example block.

    Args:
        margins: of the block.
        found: its sources.
        design: means of the masks.
        rows: the examples of the block on which priors are tried.
        device: where the products are computed.
    """
    sources = [as_tensor(values, device).T for values in found.values]
    num_examples = sources[0].shape[1]
    mean = torch.from_numpy(design.mean).to(device)
    at_mean = torch.stack([mean @ source.double() for source in sources])
    products = torch.zeros(len(sources), len(sources), num_examples, dtype=torch.float64, device=device)
    cross = torch.zeros(len(sources), num_examples, dtype=torch.float64, device=device)
    shift: torch.Tensor | None = None
    sums = torch.zeros(2, num_examples, dtype=torch.float64, device=device)
    sampled: list[tuple[NDArray[np.float32], ...]] = []
    position = 0
    for batch in margins.parts(0, design.num_masks):
        require_finite(batch, position)
        y = torch.from_numpy(batch).to(device).double()
        shift = y[0].clone() if shift is None else shift
        y -= shift
        masks = margins.masks.part(position, position + len(batch))
        predicted = torch.stack([masks.times(source) for source in sources]) - at_mean.unsqueeze(1)
        products += torch.einsum("kmn,lmn->kln", predicted, predicted)
        cross += torch.einsum("kmn,mn->kn", predicted, y)
        sums += torch.stack([y.sum(dim=0), (y * y).sum(dim=0)])
        sampled.append(
            (y[:, rows].cpu().numpy().astype(np.float32), predicted[..., rows].cpu().numpy().astype(np.float32))
        )
        position += len(batch)
    squares = sums[1] - sums[0] ** 2 / design.num_masks
    weight = torch.where(squares > 0, 1.0 / squares.clamp(min=1e-300), 0.0)
    statistics = SourceStatistics(
        (products * weight).sum(dim=2).cpu().numpy(),
        (cross * weight).sum(dim=1).cpu().numpy(),
        _products_by_component(found.values),
        found.within,
        found.counts,
        float(squares.sum()) / design.num_masks,
        num_examples,
        found.known,
    )
    return statistics, SampledRows(
        np.concatenate([y for y, _ in sampled]), np.concatenate([predicted for _, predicted in sampled], axis=1)
    )


def _products_by_component(sources: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    """s_k s_l summed over the examples (k, k, num_components), in float64, a few components at a time."""
    num_examples, num_components = sources[0].shape
    products = np.empty((len(sources), len(sources), num_components))
    step = max(_VALUES_AT_ONCE // num_examples, 1)
    for start in range(0, num_components, step):
        columns = slice(start, start + step)
        some = [source[:, columns].astype(np.float64) for source in sources]
        for k, one in enumerate(some):
            for i, other in enumerate(some):
                products[k, i, columns] = np.einsum("nd,nd->d", one, other)
    return products


@dataclass(frozen=True)
class SampledRows:
    """Some examples of a block, on which penalties and priors are tried.

    Attributes:
        margins: (m, n) float32, less each example's first.
        predicted: (k, m, n) float32, what each source predicts, less its mean; k is 0 without sources.
    """

    margins: NDArray[np.float32]
    predicted: NDArray[np.float32]

    @classmethod
    def of(cls, margins: NDArray[np.floating[Any]]) -> SampledRows:
        """Margins (m, n) without sources."""
        moved = (margins - margins[0].astype(np.float64)).astype(np.float32)
        return cls(moved, np.empty((0, *moved.shape), np.float32))

    @property
    def squares(self) -> NDArray[np.float64]:
        """The margins' centred sum of squares (n,); 0 where they are constant."""
        y = self.margins.astype(np.float64)
        return np.asarray(((y - y.mean(axis=0)) ** 2).sum(axis=0))

    def residuals(self, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the sources in this mixture leave of the margins: (m, n) float64."""
        left = self.margins.astype(np.float64)
        for b, predicted in zip(coefficients, self.predicted, strict=True):
            left -= b * predicted
        return left


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
