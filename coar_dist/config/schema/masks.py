"""What is ablated and in which masks: components, designs, gradients, held-out masks, baselines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from coar_dist.config.schema.values import Count, Distinct, NameOrFunction, Part, Rule, Seed, Share, at_least

MIN_CEILING_MASKS = 40
"""Masks below which the ceiling's standard error cannot be told."""
PILOT_MASKS, PILOT_GRADIENT_MASKS = 100, 40
"""Of a run with a budget, as in ``conf/estimator/budget.yaml``."""
NumMasks = Annotated[int, Rule(lambda number: number == 0 or number >= 2, "0 or at least 2")]
Ascending = Annotated[
    list[Share],
    Rule(lambda shares: shares == sorted(set(shares)), "a list of numbers, ascending and none twice"),
]
CeilingPairs = Annotated[
    int,
    Rule(lambda pairs: pairs == 0 or pairs >= MIN_CEILING_MASKS, f"0 or at least {MIN_CEILING_MASKS}"),
]


@dataclass
class ComponentRule(Part):
    """Components of a user's own: slices of every parameter whose name matches."""

    parameter: str = ""
    """Shell pattern of parameter names, e.g. ``*.attn.qkv.weight``."""
    axis: Annotated[int, at_least(0)] = 0
    block_size: Count = 1
    """Indices per component, e.g. the head size."""


@dataclass
class ComponentsConfig(Part):
    """Which parts of the model are ablated."""

    selector: str = "conv_filters"
    """A key of ``coar_dist.components.discovery.SELECTORS``, or ``rules``."""
    rules: list[ComponentRule] = field(default_factory=list)
    include: list[str] = field(default_factory=lambda: ["*"])
    """Shell patterns of parameter names; a group is taken if any of them matches."""
    exclude: list[str] = field(default_factory=list)
    """Shell patterns of parameter names that are left out; wins over ``include``."""


@dataclass
class DesignConfig(Part):
    """The masks from which the attributions are fitted."""

    kind: NameOrFunction = "bernoulli"
    """``bernoulli``, ``fixed_size``, ``balanced``, or your own: ``module:function``, or in Python a function,
    ``(design, mask_id) -> (num_components,)`` bool, True = kept, of the design's seed and the mask's id alone."""
    num_masks: NumMasks = 4000
    ablation_fraction: Share = 0.05
    seed: Seed = 0


@dataclass
class GradientsConfig(Part):
    """Passes that also run backward: each gives, besides a margin, an estimate of every component's effect. They make
    the attributions ``gradient_ridge``; their share of ablated components is ``design.ablation_fraction``."""

    num_masks: NumMasks = 0
    """Passes with gradients; 0 is COAR without them."""
    kind: NameOrFunction = "balanced"
    """As ``DesignConfig.kind``."""
    seed: Seed = 2_000_000
    masks_per_shard: Count | None = None
    """Masks in one shard, whose gradients are stored as sums. None: about 16,384 margins, in whole rounds of a balanced
    design."""


@dataclass
class BaselineConfig(Part):
    """How the gradient baselines are computed, always in the model's own precision."""

    num_steps: Annotated[int, at_least(2)] = 50
    """Steps along the path from a zero input to the example, of neuron conductance and internal influence."""
    rows_per_pass: Count | None = None
    """Rows of one forward and backward pass at most; None: 128, or 512 on a GPU. Halved where memory runs out."""


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
