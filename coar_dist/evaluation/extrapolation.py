"""What more masks would give, from the correlations that fewer have given: r(m)**-2 = limit**-2 + amount m**-exponent.

The law is that of noise in the weights. With c the correlation that the true weights would have, and independent errors
of variance v / m in each weight, the predictions' correlation is r**-2 = c**-2 (1 + v / (m q)), q being the mean square
of the weights: exponent 1. An exponent of its own stands for penalties, for weights of unequal size and for masks that
barely determine the weights. For large m it is r = limit - amount m**-exponent, but unlike this it also holds far from
the limit, where r grows as sqrt(m).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coar_dist.evaluation.intervals import means_of

_EXPONENTS = np.linspace(0.1, 2.5, 97)
_FEWEST_POINTS = 4
_FEWEST_MASKS = 128
_DETERMINED = 2.0
"""Masks per component from which on the law has been found to hold."""
_SLOW = 0.5
"""An exponent below which the curve has not shown where it goes."""
_FALL = 0.005
"""By how much a curve may fall from one point to the next, by chance."""
_LEAST = 0.002
"""Least half-width: what other masks of the same number change."""


@dataclass(frozen=True)
class Forecast:
    """A mean correlation that has not been measured.

    Attributes:
        value: the forecast.
        half_width: of its 95% interval.
    """

    value: float
    half_width: float


@dataclass(frozen=True)
class Extrapolation:
    """What a budget curve says about more masks.

    Attributes:
        num_examples: for which every point of the curve is defined; the gains are of these.
        measured: (p,) float64, mean correlations over the examples that are defined at each point.
        twice: with twice the masks; None where ``why_not`` says why.
        four_times: with four times the masks.
        limit: with ever more masks.
        why_not: why nothing, or not all, is forecast; empty where all is.
    """

    num_examples: int
    measured: NDArray[np.float64]
    twice: Forecast | None = None
    four_times: Forecast | None = None
    limit: Forecast | None = None
    why_not: str = ""


def extrapolate(num_masks: NDArray[np.int64], correlations: NDArray[np.float64], num_components: int) -> Extrapolation:
    """Fit the law to a budget curve and follow it to twice and four times the masks, and to its limit.

    Least squares of the correlations, each residual in proportion to the point's masks, over limits up to 1 and
    exponents of .1 to 2.5, for the examples with all points defined. The gain that it forecasts for them is added to
    the last mean of all examples. Its 95% interval spans the larger of the gain itself, of the error that the same
    procedure makes when it forecasts the last point from those before it (twice that for four times the masks and the
    limit), and .002. It is about these examples and held-out masks. Of simulated ridge regressions (20 to 150
    components, 2 to 8 masks per component, 1 to 40 examples, .5 to .98 of the variance linear, with and without a prior
    mean), .97 and .97 of the intervals held for twice the masks, .95 and .99 for four times, .93 and .98 for the limit;
    .95 and .97, .95 and .96, .91 and .91 without the first of 5 points.

    A forecast is withheld where there are fewer than 4 points, below 128 masks and below 2 masks per component, where
    intervals of this kind held in .7 to .9, where correlations are not positive, and where they fall as masks come.
    Where the exponent is below 1/2 or the limit 1, only the next doubling is forecast.

    Args:
        num_masks: (p,) int64, ascending, the last is what the run has.
        correlations: (n, p) float64, NaN = undefined.
        num_components: d.
    """
    is_whole = np.isfinite(correlations).all(axis=1)
    known = Extrapolation(int(is_whole.sum()), means_of(correlations).mean)
    if not is_whole.any():
        return replace(known, why_not="no example has all correlations defined")
    if len(num_masks) < _FEWEST_POINTS:
        return replace(known, why_not=f"a curve of {len(num_masks)} points is too short, it takes {_FEWEST_POINTS}")
    if num_masks[-1] < _FEWEST_MASKS:
        return replace(known, why_not=f"{num_masks[-1]} masks, below {_FEWEST_MASKS} forecasts do not hold")
    per_component = num_masks[-1] / num_components
    if per_component < _DETERMINED:
        return replace(
            known, why_not=f"{per_component:.2g} masks per component, below {_DETERMINED:g} forecasts do not hold"
        )
    points = correlations[is_whole].mean(axis=0)
    if (points <= 0.0).any():
        return replace(known, why_not="correlations of few masks are not positive")
    if (np.diff(points[-3:]) < -_FALL).any():
        return replace(known, why_not="the correlation falls as masks are added")
    masks = num_masks / num_masks[-1]
    law, now = _fit(masks, points), float(points[-1])
    miss = abs(_fit(masks[:-1], points[:-1]).at(1.0) - now)

    def forecast(times: float, misses: float) -> Forecast:
        gain = law.at(times) - now
        return Forecast(min(float(known.measured[-1]) + gain, 1.0), max(misses * miss, abs(gain), _LEAST))

    twice = forecast(2.0, 1.0)
    if law.exponent < _SLOW or law.limit >= 1.0:
        return replace(known, twice=twice, why_not="the curve does not show a limit yet")
    return replace(known, twice=twice, four_times=forecast(4.0, 2.0), limit=forecast(np.inf, 2.0))


@dataclass(frozen=True)
class _Law:
    """A curve of correlations."""

    limit: float
    amount: float
    exponent: float

    def at(self, masks: float) -> float:
        """The correlation at a number of masks, in units of the run's."""
        return float((self.limit**-2.0 + self.amount * masks**-self.exponent) ** -0.5)


def _fit(masks: NDArray[np.float64], correlations: NDArray[np.float64]) -> _Law:
    """The law of a (p,) curve within the bounds, with the best exponent of a grid.

    Least squares is linear in r**-2, whose residuals are brought back to r's size by its slope r**3 / 2.
    """
    inverse_squares = np.maximum(correlations, 1e-3) ** -2.0
    weights = (masks / masks[-1] * inverse_squares**-1.5 / 2) ** 2
    falls = masks ** -_EXPONENTS[:, None]
    total = weights.sum()
    mean, mean_fall = (weights * inverse_squares).sum() / total, (weights * falls).sum(axis=1) / total
    moved = falls - mean_fall[:, None]
    amount = np.maximum((weights * moved * inverse_squares).sum(axis=1) / (weights * moved**2).sum(axis=1), 0.0)
    floor = mean - amount * mean_fall
    # Where the limit would exceed 1, it is 1, and the amount is fitted alone.
    alone = (weights * falls * (inverse_squares - 1.0)).sum(axis=1) / (weights * falls**2).sum(axis=1)
    amount, floor = np.where(floor < 1.0, alone, amount), np.maximum(floor, 1.0)
    squares = (weights * (inverse_squares - floor[:, None] - amount[:, None] * falls) ** 2).sum(axis=1)
    best = int(squares.argmin())
    return _Law(float(floor[best]) ** -0.5, float(amount[best]), float(_EXPONENTS[best]))
