"""Student's t, without loading scipy for one number."""

from __future__ import annotations

from typing import Any

NORMAL = 1.959963985
"""Half of a normal distribution's 95% interval, in standard deviations."""


def half_95(freedom: Any) -> Any:
    """Half of the 95% interval of Student's t, within .01 from 4 degrees on (Abramowitz & Stegun 26.7.5).

    Args:
        freedom: degrees of freedom, a number or an array.
    """
    z = NORMAL
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
