"""The engine on given masks in this process: no Ray, no run directory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.plan import EnginePlan
from coar_dist.ablation.row_value import Paired, Resampled, RowValues
from coar_dist.ablation.site_means import site_means
from coar_dist.ablation.value import AblationValue, SiteValues, ZeroWeights
from coar_dist.components.discovery import Components, chosen_components
from coar_dist.components.index import ComponentIndex
from coar_dist.components.plain_model import plain_model
from coar_dist.components.sites import checked_values
from coar_dist.config.python_words import OF_ABLATED_OUTPUTS, in_python_words
from coar_dist.config.schema import COUNTERFACTUAL, MEAN, RESAMPLE, ZERO, ZERO_WEIGHTS
from coar_dist.errors import ConfigError
from coar_dist.tasks.build import task_in_memory
from coar_dist.tasks.task import ExampleSet, Inputs, Task, by_keyword, inputs_alone


@in_python_words(OF_ABLATED_OUTPUTS)
def ablated_outputs(
    model: nn.Module,
    components: Components,
    masks: NDArray[np.bool_],
    inputs: Inputs | ExampleSet,
    targets: Tensor | None = None,
    output: str | Callable[[Any, Tensor], Tensor] = "margin",
    precision: str = "float32",
    plan: EnginePlan | None = None,
    ablation_value: str | Mapping[str, Tensor] = ZERO_WEIGHTS,
    reference: Inputs | None = None,
    counterfactual: Inputs | None = None,
) -> NDArray[np.float32]:
    """Outputs of ``model`` under given masks, computed in this process: no Ray, no run directory. ``model`` is copied.

    Args:
        model: any module, on the device where it is to run.
        components: as in ``coar_dist.attribute``; the masks are over these.
        masks: (num_masks, num_components) bool, True = kept.
        inputs: (num_examples, ...) tensor, or a dict of tensors given by keyword, or an ``ExampleSet``.
        targets: (num_examples, ...) what the output function compares with, e.g. int64 class labels; of an
            ``ExampleSet`` its own.
        output: a registered output function, ``module:function``, or a callable ``(outputs, targets) -> (num_rows,)``.
        precision: ``float32``, or ``bfloat16`` for autocast.
        plan: how to run; None runs one mask at a time.
        ablation_value: what ablated components are replaced by: ``zero_weights``, ``zero``, ``mean``, ``resample``,
            ``counterfactual``, or a tensor (num_channels,) for every site, by its name.
        reference: of ``mean`` and ``resample``: the inputs whose mean it is, or that are drawn; None is ``inputs``.
        counterfactual: of ``counterfactual``: inputs like ``inputs``, row by row.

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
    check_given(ablation_value, inputs, reference, counterfactual)
    index = chosen_components(model, components)
    task = task_in_memory(copy.deepcopy(plain_model(model)), inputs, targets, None, output, counterfactual)
    task.check()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    others = None if reference is None else inputs_alone(by_keyword(model, reference))
    value = _value_of(ablation_value, task, index, others, device)
    return AblationEngine(task, index, str(device), precision, plan, value).margins(masks)


def check_given(ablation_value: object, inputs: object, reference: object, counterfactual: object) -> None:
    """Check that what a Python caller gives belongs to the ablation value.

    Raises:
        ConfigError: it has no effect, or is missing.
    """
    for key, given, values in (
        ("ablation.reference", reference, (MEAN, RESAMPLE)),
        ("counterfactual", counterfactual, (COUNTERFACTUAL,)),
    ):
        if given is not None and ablation_value not in values:
            raise ConfigError(f"{key} has no effect with ablation.value={ablation_value!r}. Leave it out.")
    if ablation_value == COUNTERFACTUAL and counterfactual is None and not isinstance(inputs, ExampleSet):
        raise ConfigError("ablation.value='counterfactual': needs counterfactual=..., inputs like inputs, row by row.")


def _value_of(
    given: str | Mapping[str, Tensor],
    task: Task,
    components: ComponentIndex,
    reference: ExampleSet | None,
    device: torch.device,
) -> AblationValue:
    if isinstance(given, Mapping):
        return SiteValues(components, values=checked_values(given, task.model, components))
    if given == ZERO_WEIGHTS:
        return ZeroWeights(components)
    if given == ZERO:
        return SiteValues(components, values={})
    others = task.examples if reference is None else reference
    if given == MEAN:
        return SiteValues(components, values=site_means(task.model.eval(), components, others, device, False))
    if given == RESAMPLE:
        return RowValues(components, source=Resampled(0, len(others), reference is None), reference=reference)
    if given == COUNTERFACTUAL:
        return RowValues(components, source=Paired())
    names = f"{ZERO_WEIGHTS}, {ZERO}, {MEAN}, {RESAMPLE}, {COUNTERFACTUAL}"
    raise ConfigError(f"ablation.value={given!r}: must be {names}, or tensors by site.")
