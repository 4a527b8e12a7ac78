"""Component attribution by regression (COAR) at cluster scale.

Shah, Ilyas, Madry: "Decomposing and Editing Predictions by Modeling Model Computation", ICML 2024.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coar_dist.ablation.direct import ablated_outputs
    from coar_dist.api import attribute
    from coar_dist.components.index import ComponentGroup, ComponentIndex
    from coar_dist.store.run import Run, open_run

__all__ = ["ComponentGroup", "ComponentIndex", "Run", "ablated_outputs", "attribute", "open_run"]

_HOME = {
    "ComponentGroup": "coar_dist.components.index",
    "ComponentIndex": "coar_dist.components.index",
    "Run": "coar_dist.store.run",
    "ablated_outputs": "coar_dist.ablation.direct",
    "attribute": "coar_dist.api",
    "open_run": "coar_dist.store.run",
}


def __getattr__(name: str) -> Any:
    """Import on first use: reading a run must not load torch, and ``coar-dist --help`` must not load anything."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'coar_dist' has no attribute {name!r}")
