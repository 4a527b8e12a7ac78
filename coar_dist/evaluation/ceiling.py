"""The best correlation that any linear component model can reach on independent masks, without fitting one.

Under masks whose components are ablated independently, a margin is a sum of uncorrelated parts of degree 1, 2, ... in
the components; the best linear model is the part of degree 1, and its squared correlation that part's share of the
variance, W1 / V (Saunshi et al., arXiv 2210.01072). Two estimates of the share, of which neither fits a model:

- ``linear_shares``: for two masks x, y drawn apart and standardised components phi, E[f(x) f(y) phi(x).phi(y)] = W1,
  whatever the higher degrees are; n masks give n**2 / 2 such products. The standard error is about
  sqrt(2 num_components) / n. (Dicker, Biometrika 2014; Kong and Valiant, NeurIPS 2018.)
- ``stability_bounds``: two masks that agree because a share rho of the components was drawn once for both have
  covariance C = sum of rho**k Wk, so that W1 lies between (C / rho - rho V) / (1 - rho) and C / rho. The standard error
  is about 1 / (rho sqrt(num_pairs)), whatever the number of components.

Both are taken of f - g for a linear g that has not seen these masks. That is exact for any g, and a good one leaves
little to estimate: the standard errors above are in units of the variance of f - g.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.config.schema import MIN_CEILING_MASKS

Array = NDArray[np.float64]
Values = NDArray[np.floating[Any]]

_Z95 = 1.96
NUM_GROUPS = MIN_CEILING_MASKS // 2
"""Groups of masks, left out in turn by the jackknife; two masks each at least."""


@dataclass(frozen=True)
class Pairs:
    """Partners of the first masks: pair i is mask i and partner i, which is mask i with some components drawn again.

    Attributes:
        correlation: rho, the probability that a component is not drawn again.
        masks: (num_pairs, num_components) bool.
        outputs: (num_pairs, num_examples).
    """

    correlation: float
    masks: NDArray[np.bool_]
    outputs: Values


@dataclass(frozen=True)
class Shares:
    """Estimates of W1 / V, the share of the variance that the best linear model explains; NaN for constant outputs.

    Attributes:
        share: (num_examples,). Not clipped: noise may carry it beyond 0 and 1.
        without: (NUM_GROUPS, num_examples), the estimates without the masks of one group.
        double: (num_examples,) variance that stems from products of two masks. A jackknife counts it twice.
        products: (NUM_GROUPS, NUM_GROUPS) what two groups add to the sum of the shares over examples.
    """

    share: Array
    without: Array
    double: Array
    products: Array

    @classmethod
    def join(cls, blocks: Sequence[Shares]) -> Shares:
        """Blocks of examples under the same masks as one."""
        return cls(
            np.concatenate([block.share for block in blocks]),
            np.concatenate([block.without for block in blocks], axis=1),
            np.concatenate([block.double for block in blocks]),
            np.sum([block.products for block in blocks], axis=0),
        )


def linear_shares(
    masks: NDArray[np.bool_],
    outputs: Values,
    ablation_fraction: float,
    weights: Values | None = None,
    pairs: Pairs | None = None,
    is_fixed_size: bool = False,
) -> Shares:
    """Shares from products over all pairs of independent masks.

    Memory: 4 num_masks num_components bytes, and num_masks num_examples numbers a few times. Time: num_masks**2
    (num_components + num_examples).

    Args:
        masks: (num_masks, num_components) bool, at least ``MIN_CEILING_MASKS``, drawn independently of each other.
        outputs: (num_masks, num_examples).
        ablation_fraction: of every component, exactly.
        weights: (num_examples, num_components) of the linear g; None is g = 0.
        pairs: partners are further masks; a mask and its own partner are not multiplied.
        is_fixed_size: whether every mask ablates equally many components. Standardised components then have
            correlations -1 / (num_components - 1): their covariance, on the space of vectors that sum to 0 where they
            live, is num_components / (num_components - 1) times the identity.

    Returns:
        The shares: W1 and V without bias, their ratio with one of order 1 / num_masks.
    """
    assert len(masks) >= MIN_CEILING_MASKS
    sets = _sets(masks, outputs, weights, pairs)
    phi = _standardised(np.concatenate([part.masks for part in sets]), ablation_fraction)
    residuals = np.concatenate([part.residual for part in sets])
    mask_ids = np.concatenate([np.arange(len(part.masks)) for part in sets])  # of a partner, its mask's
    order = np.argsort(mask_ids % NUM_GROUPS, kind="stable")
    phi, residuals, mask_ids = phi[order], residuals[order], mask_ids[order]
    groups = mask_ids % NUM_GROUPS
    starts = np.searchsorted(groups, np.arange(NUM_GROUPS))
    products = np.empty((outputs.shape[1], NUM_GROUPS, NUM_GROUPS))
    num_masks, num_left_out = np.zeros(NUM_GROUPS), np.zeros(NUM_GROUPS)
    for group in range(NUM_GROUPS):
        rows = groups == group
        kernel = (phi @ phi[rows].T).astype(np.float64)
        if is_fixed_size:
            kernel *= 1.0 - 1.0 / masks.shape[1]
        are_one = mask_ids[:, None] == mask_ids[rows]  # a mask and itself, or its partner
        kernel[are_one] = 0.0
        products[:, :, group] = np.add.reduceat(residuals * (kernel @ residuals[rows]), starts).T
        num_masks[group], num_left_out[group] = rows.sum(), are_one.sum()

    # Of W1, residuals around their own mean lose 2 / n, and a little more where partners share the mean.
    n = num_masks.sum()
    shared = 0.0 if pairs is None else pairs.correlation * 2 * len(pairs.masks) / n
    kept = 1.0 - 2.0 * (1.0 + shared) / n + 2.0 / n**2
    num_products = (n**2 - num_left_out.sum()) * kept
    num_without = ((n - num_masks) ** 2 - (num_left_out.sum() - num_left_out)) * kept
    total = products.sum((1, 2))
    total_without = total - 2.0 * products.sum(2).T + np.diagonal(products, axis1=1, axis2=2).T

    variance, variance_without = _variances([part.output for part in sets])
    residual, residual_without = _variances([part.residual for part in sets])
    defined = _varies(sets, variance)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = 1.0 - (residual - total / num_products) / variance
        without = 1.0 - (residual_without - total_without / num_without[:, None]) / variance_without
    scaled = products / (np.where(defined, variance, np.inf) * num_products)[:, None, None]
    return Shares(np.where(defined, share, np.nan), without, _double(scaled), scaled.sum(0))


def stability_bounds(
    masks: NDArray[np.bool_], outputs: Values, pairs: Pairs, weights: Values | None = None
) -> tuple[Shares, Shares]:
    """Bounds on the shares from the covariance of mask and partner: (lower, upper).

    The lower bound is the share itself where f - g has nothing beyond degree 2, the upper one where it has, beyond
    degree 1, nothing of finite degree.

    Args:
        masks: (num_masks, num_components) bool.
        outputs: (num_masks, num_examples).
        pairs: at least ``MIN_CEILING_MASKS``, of a ``bernoulli`` design.
        weights: as in ``linear_shares``.
    """
    num_pairs, rho = len(pairs.masks), pairs.correlation
    assert MIN_CEILING_MASKS <= num_pairs <= len(masks)
    sets = _sets(masks[:num_pairs], outputs[:num_pairs], weights, pairs)
    residuals = [part.residual for part in sets]
    by_group = np.stack([(residuals[0][g::NUM_GROUPS] * residuals[1][g::NUM_GROUPS]).sum(0) for g in range(NUM_GROUPS)])
    sizes = np.array([len(range(g, num_pairs, NUM_GROUPS)) for g in range(NUM_GROUPS)])[:, None]
    variance, variance_without = _variances([part.output for part in sets])
    residual, residual_without = _variances(residuals)

    def unexplained(products: Array, size: Any, residual: Array, variance: Array) -> Array:
        mean = products / size
        covariance = mean + (residual + mean) / (2 * num_pairs)  # the centre's variance was taken away
        return np.asarray((residual - covariance / rho) / variance)

    with np.errstate(invalid="ignore", divide="ignore"):
        whole = unexplained(by_group.sum(0), num_pairs, residual, variance)
        parts = unexplained(by_group.sum(0) - by_group, num_pairs - sizes, residual_without, variance_without)
    whole = np.where(_varies(sets, variance), whole, np.nan)
    nothing = np.zeros_like(whole), np.zeros((NUM_GROUPS, NUM_GROUPS))
    lower, upper = (Shares(1.0 - whole / part, 1.0 - parts / part, *nothing) for part in (1.0 - rho, 1.0))
    return lower, upper


def mean_correlation(shares: Shares) -> tuple[float, float, Array]:
    """Mean over examples of the square roots of the shares.

    The root of a noisy share is too low on average, so each is first drawn towards the mean over examples, until their
    spread is the one that is left when the noise's is taken away (Louis, JASA 1984).

    Returns:
        The mean over examples with a share, NaN if there are none; its standard error over masks, with these examples,
        from which ``mean`` ± 1.96 of it reaches the ends of the mean share's interval also where that leaves 0 to 1;
        and (num_examples,) correlations, whose mean it is.
    """
    defined = np.isfinite(shares.share)
    correlations = np.full(len(defined), np.nan)
    if not defined.any():
        return float("nan"), float("nan"), correlations
    share, without = shares.share[defined], shares.without[:, defined]
    noise = _jackknife(without - without.mean(1, keepdims=True))
    noise = np.maximum(noise - shares.double[defined], noise / 2)
    spread = share.var()
    drawn = np.sqrt(max(0.0, 1.0 - noise.mean() / spread)) if spread > 0.0 else 0.0

    def roots(values: Array) -> Array:
        centre = values.mean(-1, keepdims=True)
        return np.asarray(np.sqrt(np.clip(centre + drawn * (values - centre), 0.0, 1.0)))

    correlations[defined] = roots(share)
    mean = float(correlations[defined].mean())
    variance = float(_jackknife(roots(without).mean(1)))
    double = _double(shares.products[None] / (2 * defined.sum() * max(mean, 1e-3)))[0]
    error = _error(variance, double)
    centres = without.mean(1)
    if centres.min() < 0.0 or centres.max() > 1.0:  # roots of what is clipped do not differ, however large the noise
        variance, double = float(_jackknife(centres)), _double(shares.products[None] / defined.sum())[0]
        of_share = _error(variance, double)
        ends = np.sqrt(np.maximum(share.mean() + _Z95 * of_share * np.array([-1.0, 1.0]), 0.0))
        error = max(error, np.abs(ends - np.sqrt(np.clip(share.mean(), 0.0, 1.0))).max() / _Z95)
    return mean, float(error), correlations


@dataclass(frozen=True)
class _Set:
    """Masks with their outputs and residuals f - g, these centred over all sets."""

    masks: NDArray[np.bool_]
    output: Array
    residual: Array


def _sets(masks: NDArray[np.bool_], outputs: Values, weights: Values | None, pairs: Pairs | None) -> list[_Set]:
    given = [(masks, outputs)] if pairs is None else [(masks, outputs), (pairs.masks, pairs.outputs)]
    values = [output.astype(np.float64) for _, output in given]
    residuals = values
    if weights is not None:
        by_component = weights.T.astype(np.float32)
        residuals = [
            value - some.astype(np.float32) @ by_component for value, (some, _) in zip(values, given, strict=True)
        ]
    centre = np.concatenate(residuals).mean(0)
    return [
        _Set(some, value, residual - centre)
        for (some, _), value, residual in zip(given, values, residuals, strict=True)
    ]


def _standardised(masks: NDArray[np.bool_], ablation_fraction: float) -> NDArray[np.float32]:
    """Components with mean 0 and variance 1 over masks: (num_masks, num_components) float32."""
    odds = np.float32(np.sqrt(ablation_fraction / (1.0 - ablation_fraction)))
    return np.where(masks, odds, -1.0 / odds)


def _variances(parts: list[Array]) -> tuple[Array, Array]:
    """Variance of each column over all rows, and (NUM_GROUPS, num_columns) without one group of rows."""
    centre = np.concatenate(parts).mean(0)
    groups = [np.concatenate([part[group::NUM_GROUPS] - centre for part in parts]) for group in range(NUM_GROUPS)]
    sizes = np.array([len(group) for group in groups], np.float64)[:, None]
    sums = np.stack([group.sum(0) for group in groups])
    squares = np.stack([(group**2).sum(0) for group in groups])
    size, left = sizes.sum(), sizes.sum() - sizes
    whole = (squares.sum(0) - sums.sum(0) ** 2 / size) / (size - 1.0)
    sums, squares = sums.sum(0) - sums, squares.sum(0) - squares
    return whole, (squares - sums**2 / left) / (left - 1.0)


def _varies(sets: list[_Set], variance: Array) -> NDArray[np.bool_]:
    """Which outputs are not constant: what is left of constant ones is rounding."""
    largest = np.max([np.abs(part.output).max(0) for part in sets], axis=0)
    return np.asarray(variance > 1e-12 * largest**2)


def _jackknife(without: Array) -> Array:
    """Variance of an estimate, from (NUM_GROUPS, ...) estimates without one group."""
    return np.asarray(without.var(0) * (NUM_GROUPS - 1))


def _error(variance: float, double: float) -> float:
    """Standard error from a jackknife's variance and what it counts twice, of which at most half is taken away."""
    return float(np.sqrt(max(variance - double, variance / 2)))


def _double(products: Array) -> Array:
    """Variance of a sum over pairs of groups that stems from the pairs, not from the groups.

    Args:
        products: (num_sums, NUM_GROUPS, NUM_GROUPS) symmetric terms; the diagonal is not looked at.
    """
    number = NUM_GROUPS
    apart = products * ~np.eye(number, dtype=np.bool_)
    of_group = apart.sum(2) / (number - 1)
    mean = of_group.mean(1)[:, None, None]
    effect = (number - 1) / (number - 2) * (of_group[:, :, None] - mean)
    left = (apart - mean - effect - effect.transpose(0, 2, 1)) * ~np.eye(number, dtype=np.bool_)
    per_product = (left**2).sum((1, 2)) / 2 / (number * (number - 3) / 2)
    return np.asarray(2.0 * number**2 * per_product)
