"""The masks from which attributions are fitted: those of passes without gradients, and with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from coar_dist.config.schema.values import Count, NameOrFunction, Part, Rule, Seed, Share

PILOT_MASKS, PILOT_GRADIENT_MASKS = 100, 40
"""Of a run with a budget, as in ``conf/estimator/budget.yaml``."""
GRADIENT_MASKS, MASKS_BESIDE_GRADIENTS = 100, 500
"""Of a run with gradients, as in ``conf/estimator/gradient.yaml``."""
BALANCED = "balanced"
"""The kind of masks with gradients where none is named, as far as there are rounds."""
NumMasks = Annotated[int, Rule(lambda number: number == 0 or number >= 2, "0 or at least 2")]


@dataclass
class DesignConfig(Part):
    """The masks from which the attributions are fitted."""

    kind: NameOrFunction = "bernoulli"
    """``bernoulli``, ``fixed_size``, ``balanced``, or your own: ``module:function``, or in Python a function,
    ``(design, mask_id) -> (num_components,)`` bool, True = kept, of the design's seed and the mask's id alone."""
    num_masks: NumMasks = 4000
    ablation_fraction: Share | None = None
    seed: Seed = 0


@dataclass
class GradientsConfig(Part):
    """Passes that also run backward: each gives, besides a margin, an estimate of every component's effect. They make
    the attributions ``gradient_ridge``; their share of ablated components is ``design.ablation_fraction``."""

    num_masks: NumMasks = 0
    """Passes with gradients; 0 is COAR without them."""
    kind: NameOrFunction | None = None
    """As ``DesignConfig.kind``. None: ``balanced``, or ``bernoulli`` where no round ablates every component once."""
    seed: Seed = 2_000_000
    masks_per_shard: Count | None = None
    """Masks in one shard, whose gradients are stored as sums. None: about 16,384 margins, in whole rounds of a balanced
    design."""
