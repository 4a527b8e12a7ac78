"""What ``edit.json`` says of a small edit, for tests of the files alone."""

from __future__ import annotations

from typing import Any

EDIT: dict[str, Any] = {
    "name": "mine",
    "run": "sha256:0123",
    "model_weights": "sha256:4567",
    "selection": "coar",
    "direction": "raise",
    "targets": [1],
    "references": [0, 2],
    "max_components": 4,
    "metric": "output",
    "criterion": "in words",
    "unablated": {"all": 0.5},
    "selected": {"coar": {"num_components": 1, "values": {"all": 0.75}}},
    "measured": {"all": {"num_examples": 3, "before": {"output": -1.0}, "after": {"output": None}}},
    "paired_correlation": [0.5, None],
    "each": None,
    "read": ["0.weight"],
    "components": [
        {
            "component_id": 2,
            "name": "0[2]",
            "score": -1.25,
            "slices": [{"parameter": "0.weight", "axis": 0, "start": 2, "size": 1}],
        }
    ],
}
