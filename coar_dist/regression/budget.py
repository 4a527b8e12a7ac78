"""How many passes with gradients, and how many without, a budget is best spent on, by what a pilot has shown.

The prior of ``gate_prior`` has variances t d[c]: in part the sampling variance of the gate gradients' means, which
falls with the passes M, in part misfit, which does not. With m further masks, and residual variance s, the masks being
nearly orthogonal, the weights' posterior variances (``gate_prior``) and so the error on a new mask are

    n[c](M) = v[c] / M (b1**2 / (1 - alpha) + b0**2 / alpha),   misfit[c] = max(t d[c] - n[c](pilot), 0)
    error(M, m) = s + a sum_c 1 / (1 / (n[c](M) + misfit[c]) + a (M + m) / s),   a = alpha (1 - alpha)

all relative to the margins' variance. The pilot's cross-validation gives error(pilot), hence s, and s / t. For more
passes than the pilot's, b1 and b0 are taken as equal, as they become when both ends of a gate are well known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coar_dist.regression.planning import PriorDecision

_MOST_CANDIDATES = 1000
_LEAST_NOISE = 0.1
"""Share of the pilot's error that is residual variance, at least."""


@dataclass(frozen=True)
class Passes:
    """A plan.

    Attributes:
        with_gradients: masks M, the pilot's among them.
        without: masks m of passes without gradients.
        error: expected squared error on a new mask, relative to the margins' variance.
    """

    with_gradients: int
    without: int
    error: float


def spend(
    fit: PriorDecision,
    pilot: tuple[int, int],
    ablation_fraction: float,
    masks_per_round: int,
    cost: float,
    budget: float,
) -> Passes:
    """The best plan within a budget, which is at least the pilot.

    Args:
        fit: of the pilot.
        pilot: its masks with and without gradients.
        ablation_fraction: alpha.
        masks_per_round: the number of passes with gradients is a multiple of this.
        cost: of a pass with gradients, in passes without.
        budget: in passes without gradients, the pilot's among them.
    """
    first, plain = pilot
    kept_variance = ablation_fraction * (1.0 - ablation_fraction)
    per_pass = fit.statistics.per_pass_variances / fit.statistics.mean_variance
    b1, b0 = fit.coefficients[:2]
    between = (b1 + b0) / 2

    def sampling(masks: int, kept: float, ablated: float) -> NDArray[np.float64]:
        spread = kept**2 / (1.0 - ablation_fraction) + ablated**2 / ablation_fraction
        return np.asarray(per_pass / masks * spread)

    def of_weights(prior: NDArray[np.float64], masks: int, noise: float) -> float:
        return kept_variance * float((prior / (1.0 + prior * kept_variance * masks / noise)).sum())

    # error = noise + what the weights' errors add, which is in proportion to noise: so are the prior's variances.
    added = of_weights(fit.variances / fit.penalty, first + plain, 1.0)
    noise = fit.error * max(1.0 / (1.0 + added), _LEAST_NOISE)
    prior = noise / fit.penalty * fit.variances
    if not fit.has_mean:  # gradients say nothing here
        masks = max(plain, int(budget - cost * first))
        return Passes(first, masks, noise + of_weights(prior, first + masks, noise))
    misfit = np.maximum(prior - sampling(first, b1, b0), 0.0)
    most = max(first, int((budget - plain) / cost))
    step = max(masks_per_round, (most - first) // _MOST_CANDIDATES // masks_per_round * masks_per_round)
    plans = []
    for masks in range(first, most + 1, step):
        others = max(plain, int(budget - cost * masks))
        error = noise + of_weights(sampling(masks, between, between) + misfit, masks + others, noise)
        plans.append(Passes(masks, others, error))
    return min(plans, key=lambda passes: passes.error)
