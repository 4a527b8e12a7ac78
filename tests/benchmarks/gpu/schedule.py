"""Which sections there are, in their order, and what each may take. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence

SECONDS: dict[str, float] = {
    "ridge": 45,
    "lasso": 15,
    "run": 30,
    "fit": 30,
    "statistics": 25,
    "ray": 40,
    "setup_b": 165,
    "language": 55,
    "gradients": 90,
    "gap": 45,
    "values": 25,
    "identical": 35,
    "memory": 20,
    "few": 30,
    "exactness": 60,
    "throughput": 90,
}
"""By name: after so many seconds it begins nothing more. What has never run on a GPU comes first."""
BROKEN_DEVICE, NO_DEVICE = 3, 4
"""Exit statuses of a worker: an error on the device leaves its process without it; there is none."""
GRACE_S = 30.0
"""How much longer a measurement that has begun may take before its process is killed."""


def allowance(names: Sequence[str], seconds: float) -> float:
    """Seconds of the first of the sections that are left: its share of the time that is left for all of them."""
    return max(seconds, 0.0) * SECONDS[names[0]] / sum(SECONDS[name] for name in names)
