"""Which parts of the model are ablated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from coar_dist.config.schema.values import Count, Part, at_least


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
