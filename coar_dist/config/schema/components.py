"""Which parts of the model are ablated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from coar_dist.config.schema.values import Count, Part, Rule, at_least


def _are_names(value: Any) -> bool:
    names = [value] if isinstance(value, str) else value
    return isinstance(names, list) and bool(names) and all(isinstance(name, str) and name for name in names)


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

    selector: Annotated[Any, Rule(_are_names, "a name, or a list of names")] = "auto"
    """A key of ``coar_dist.components.selectors.SELECTORS``, ``rules``, or several of them."""
    rules: list[ComponentRule] = field(default_factory=list)
    include: list[str] = field(default_factory=lambda: ["*"])
    """Shell patterns of names of components or parameters; a component is taken if any of them matches."""
    exclude: list[str] = field(default_factory=list)
    """Shell patterns of names of components or parameters that are left out; wins over ``include``."""

    @property
    def selectors(self) -> list[str]:
        """The names, as a list."""
        return [self.selector] if isinstance(self.selector, str) else list(self.selector)
