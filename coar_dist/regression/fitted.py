"""What a plan makes of one block of examples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.store.tables import Attributions


@dataclass(frozen=True)
class Fitted:
    """One block.

    Attributes:
        attributions: of its examples.
        num_at_edge: examples whose penalty is an end of the grid.
    """

    attributions: Attributions
    num_at_edge: int


def where(varies: torch.Tensor, values: torch.Tensor) -> NDArray[np.float64]:
    """``values`` (n,), NaN where the margins are constant."""
    return np.asarray(torch.where(varies, values, torch.nan).cpu().numpy())
