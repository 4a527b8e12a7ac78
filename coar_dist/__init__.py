"""Component attribution by regression (COAR) at cluster scale.

Shah, Ilyas, Madry: "Decomposing and Editing Predictions by Modeling Model Computation", ICML 2024.

    run = coar_dist.attribute(model, inputs, targets)     what every component does for every example: a Run
    run = coar_dist.open_run("runs/mine")                 the same, from its files
    coar_dist.compare(run, other)                         two runs or methods side by side: a Comparison
    coar_dist.find_components(model)                      what can be ablated
    coar_dist.ablated_outputs(model, ...)                 true outputs under given masks
    coar_dist.prompts(tokenizer, texts, ...)              examples for language models: an ExampleSet
    run.edit(...), coar_dist.load_edit(folder)            components to remove, and the edited model: an Edit

``help`` of any of them says its arguments; ``ComponentRule``, ``ComponentIndex`` (of ``ComponentGroup`` and ``Slices``)
and ``ExampleGroup`` are for components and groups of your own.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from coar_dist.version import VERSION

if TYPE_CHECKING:
    from coar_dist.ablation.direct import ablated_outputs
    from coar_dist.api import attribute, open_run
    from coar_dist.components.groups import ComponentGroup, Slices
    from coar_dist.components.index import ComponentIndex
    from coar_dist.components.overview import find_components
    from coar_dist.config.schema import ComponentRule, ExampleGroup
    from coar_dist.editing.edit import Edit
    from coar_dist.editing.edit_record import load_edit
    from coar_dist.report.comparison.compared import Comparison
    from coar_dist.result.comparing import compare
    from coar_dist.result.result import Result
    from coar_dist.result.run import Run
    from coar_dist.tasks.example_set import ExampleSet
    from coar_dist.tasks.examples.answers import prompts

__version__ = VERSION
logging.getLogger(__name__).addHandler(logging.NullHandler())  # whoever uses a library says where its log goes

__all__ = [
    "Comparison",
    "ComponentGroup",
    "ComponentIndex",
    "ComponentRule",
    "Edit",
    "ExampleGroup",
    "ExampleSet",
    "Result",
    "Run",
    "Slices",
    "__version__",
    "ablated_outputs",
    "attribute",
    "compare",
    "find_components",
    "load_edit",
    "open_run",
    "prompts",
]

_HOME = {
    "Comparison": "coar_dist.report.comparison.compared",
    "ComponentGroup": "coar_dist.components.groups",
    "ComponentIndex": "coar_dist.components.index",
    "ComponentRule": "coar_dist.config.schema",
    "Edit": "coar_dist.editing.edit",
    "ExampleGroup": "coar_dist.config.schema",
    "ExampleSet": "coar_dist.tasks.example_set",
    "Result": "coar_dist.result.result",
    "Run": "coar_dist.result.run",
    "Slices": "coar_dist.components.groups",
    "ablated_outputs": "coar_dist.ablation.direct",
    "attribute": "coar_dist.api",
    "compare": "coar_dist.result.comparing",
    "find_components": "coar_dist.components.overview",
    "load_edit": "coar_dist.editing.edit_record",
    "open_run": "coar_dist.api",
    "prompts": "coar_dist.tasks.examples.answers",
}


def __getattr__(name: str) -> Any:
    """Import on first use: reading a run must not load torch, and ``coar-dist --help`` must not load anything."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'coar_dist' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, for completion."""
    return __all__
