"""How the gradient baselines are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from coar_dist.config.schema.values import Count, Part, at_least


@dataclass
class BaselineConfig(Part):
    """How the gradient baselines are computed, always in the model's own precision."""

    num_steps: Annotated[int, at_least(2)] = 50
    """Steps along the path from a zero input to the example, of neuron conductance and internal influence."""
    rows_per_pass: Count | None = None
    """Rows of one forward and backward pass at most; None: 128, or 512 on a GPU. Halved where memory runs out."""
