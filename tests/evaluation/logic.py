"""What units make together: functions of their values (num_rows, num_units), 0 where one is ablated."""

from __future__ import annotations

import torch
from torch import Tensor


def with_others(main: Tensor, units: Tensor, num_main: int = 2) -> Tensor:
    """What the first units make, and a little of each of the others."""
    return main + 0.02 * units[:, num_main:].sum(dim=1)


def either(units: Tensor) -> Tensor:
    """Two redundant units: each does the work alone."""
    return with_others(torch.maximum(units[:, 0], units[:, 1]), units)


def backup(units: Tensor) -> Tensor:
    """One unit works, and another one stands in for most of it once the first is gone."""
    first, second = units[:, 0], units[:, 1]
    return with_others(torch.where(first > 0.5, first, 0.8 * second), units)


def both(units: Tensor) -> Tensor:
    """Two units are needed."""
    return with_others(units[:, 0] * units[:, 1], units)


def six(units: Tensor) -> Tensor:
    """Six units are needed."""
    return with_others(units[:, :6].prod(dim=1), units, 6)
