"""The engine on given masks in this process: no Ray, no run directory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.plan import EnginePlan
from coar_dist.components.discovery import Components, chosen_components
from coar_dist.components.plain_model import plain_model
from coar_dist.config.python_words import OF_ABLATED_OUTPUTS, in_python_words
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import ExampleSet, Inputs, Task, by_keyword


@in_python_words(OF_ABLATED_OUTPUTS)
def ablated_outputs(
    model: nn.Module,
    components: Components,
    masks: NDArray[np.bool_],
    inputs: Inputs,
    targets: Tensor,
    output: str | Callable[[Any, Tensor], Tensor] = "margin",
    precision: str = "float32",
    plan: EnginePlan | None = None,
) -> NDArray[np.float32]:
    """Outputs of ``model`` under given masks, computed in this process: no Ray, no run directory. ``model`` is copied.

    Args:
        model: any module, on the device where it is to run.
        components: as in ``coar_dist.attribute``; the masks are over these.
        masks: (num_masks, num_components) bool, True = kept.
        inputs: (num_examples, ...) tensor, or a dict of tensors given by keyword.
        targets: (num_examples, ...) what the output function compares with, e.g. int64 class labels.
        output: a registered output function, ``module:function``, or a callable ``(outputs, targets) -> (num_rows,)``.
        precision: ``float32``, or ``bfloat16`` for autocast.
        plan: how to run; None zeroes weights, one mask at a time.

    Returns:
        (num_masks, num_examples) float32.

    Raises:
        NoComponentsError: the selector matches nothing.
        ComponentMismatchError: masks or components do not fit the model.
        TaskError: inputs, targets or outputs do not fit each other.
        ConfigError: the plan cannot be used for this model.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 3))
        >>> images, labels = torch.randn(5, 1, 6, 6), torch.tensor([0, 1, 2, 0, 1])
        >>> ablated_outputs(model, "conv_filters", np.eye(4) == 0, images, labels).shape
        (4, 5)
    """
    index = chosen_components(model, components)
    task = Task(
        copy.deepcopy(plain_model(model)), ExampleSet.of(by_keyword(model, inputs), targets), output_function(output)
    )
    task.check()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return AblationEngine(task, index, str(device), precision, plan).margins(masks)
