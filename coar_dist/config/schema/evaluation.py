"""The held-out masks, and what is learnt from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from coar_dist.config.schema.values import Distinct, NameOrFunction, Part, Rule, Seed, Share, at_least

MIN_CEILING_MASKS = 40
"""Masks below which the ceiling's standard error cannot be told."""
Ascending = Annotated[
    list[Share],
    Rule(lambda shares: shares == sorted(set(shares)), "a list of numbers, ascending and none twice"),
]
CeilingPairs = Annotated[
    int,
    Rule(lambda pairs: pairs == 0 or pairs >= MIN_CEILING_MASKS, f"0 or at least {MIN_CEILING_MASKS}"),
]


@dataclass
class EvaluationConfig(Part):
    """The held-out masks on which predictions are compared with the truth, per ablation fraction."""

    kind: NameOrFunction = "bernoulli"
    """As ``DesignConfig.kind``."""
    num_masks: Annotated[int, at_least(2)] = 200
    ablation_fractions: Annotated[list[Share], Distinct] | None = None
    """None: twice, 1.5 times, once and half ``design.ablation_fraction``, as far as they are below 1."""
    seed: Seed = 1_000_000
    curve_shares: Ascending = field(default_factory=lambda: [0.0625, 0.125, 0.25, 0.5])
    """Shares of the train design's masks from which attributions are fitted once more, to see what more masks would
    give; at most 1,024 examples are looked at. [] leaves that out."""
    ceiling_pairs: CeilingPairs = 0
    """The ceiling of linear models is estimated from the held-out masks, at no cost. So many of them at
    ``design.ablation_fraction`` also get a partner with some components drawn again, one pass each: the ceiling's error
    shrinks as with so many more held-out masks, and bounds from the pairs stand beside it, for which only their number
    matters. They are what is left where components are many and masks few."""
    ceiling_correlation: Share = 0.25
    """Of mask and partner. Lower: closer bounds with more noise."""


def light_evaluation(trained: float, seed: int) -> EvaluationConfig:
    """What Python's face evaluates on where nothing else is asked for: few masks, of the training masks' fraction.

    Args:
        trained: the ablation fraction of the training masks.
        seed: of these held-out masks.
    """
    return EvaluationConfig(num_masks=100, ablation_fractions=[trained], seed=seed, curve_shares=[])
