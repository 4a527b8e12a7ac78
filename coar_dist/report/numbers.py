"""How numbers are written: in the terminal and on the page alike."""

from __future__ import annotations

import numpy as np

from coar_dist.evaluation.intervals import Means
from coar_dist.store.ceilings import Ceiling

Z95 = 1.96
"""Half of a 95% interval in standard errors."""


def number(value: float) -> str:
    """Three decimals, without a 0 before the point, as in the paper's tables.

    Example:
        >>> number(0.5), number(-0.00001), number(1.0), number(float("nan"))
        ('.500', '.000', '1.000', 'undefined')
    """
    if not np.isfinite(value):
        return "undefined"
    text = f"{value:.3f}".replace("-0.000", "0.000")
    return text.replace("0.", ".", 1) if abs(value) < 0.9995 else text


def signed(value: float, sign: str = "+") -> str:
    """Three significant digits, with a true minus as on the axes of figures; whole numbers from 1,000 on.

    Args:
        value: finite.
        sign: ``+`` writes the sign of positive numbers, too; ``-`` does not.
    """
    text = f"{value:{sign},.0f}" if 1000 <= abs(value) < 1e7 else f"{value:{sign}#.3g}".rstrip(".")
    return text.replace("-", "\N{MINUS SIGN}")


def half(width: float) -> str:
    """Half of an interval, e.g. ``±.012``."""
    return f"±{number(width)}" if width == 0 or width >= 0.0005 else "±<.001"


def half_95(standard_error: float) -> str:
    """Half of a 95% interval from a standard error."""
    return half(Z95 * standard_error)


def mean_of(means: Means, column: int) -> str:
    """The mean of a column with the longer half of its interval, if it has one."""
    width = float(max(means.high[column] - means.mean[column], means.mean[column] - means.low[column]))
    return f"{number(means.mean[column])}{half(width) if np.isfinite(width) else ''}"


def ceiling_of(ceiling: Ceiling | None) -> str:
    """A ceiling with half of its 95% interval; a dash where none is estimated."""
    if ceiling is None:
        return "-"
    return number(ceiling.mean) + (half_95(ceiling.standard_error) if np.isfinite(ceiling.mean) else "")


def in_time(seconds: float) -> str:
    """A duration in words, e.g. ``2 h 03 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
