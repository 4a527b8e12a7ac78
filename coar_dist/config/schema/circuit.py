"""How circuits are scored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from coar_dist.config.schema.values import Distinct, Part, Rule, Seed, Share, at_least

NECESSARY = "necessary"
MIB_SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Sizes of the MIB benchmark (Mueller et al. 2025)."""


def _are_known(value: Any) -> bool:
    names = [value] if isinstance(value, str | int) else value
    return isinstance(names, list) and bool(names) and all(isinstance(name, str | int) and name != "" for name in names)


Sizes = Annotated[
    list[float],
    Rule(
        lambda sizes: len(sizes) > 1 and sizes == sorted(set(sizes)) and sizes[0] >= 0.0 and sizes[-1] <= 1.0,
        "two or more shares of the components, from 0 to 1, ascending and none twice",
    ),
]


@dataclass
class CircuitConfig(Part):
    """Which circuits are run: the strongest components alone, everything else ablated."""

    sizes: Sizes = field(default_factory=lambda: list(MIB_SIZES))
    """Shares of the components that a circuit holds, rounded down, as in the MIB benchmark."""
    methods: Annotated[list[str], Distinct] | None = None
    """Methods with attributions whose rankings are compared; None: all that the run has."""
    random_draws: Annotated[int, at_least(0)] = 5
    """Random rankings beside them, whose scores are averaged; 0: none."""
    seed: Seed = 0
    """Of the random rankings."""
    known: Annotated[Any, Rule(_are_known, "names of components, ids or shell patterns, or necessary")] | None = None
    """The components that are known to do the work: names, ids or shell patterns, or ``necessary``: those that the mean
    output breaks without, when they are ablated alone or in pairs (at most 128 components)."""
    threshold: Share = 0.25
    """Of ``known=necessary``: the share of the mean output, over that with everything ablated, whose loss is a
    break."""
