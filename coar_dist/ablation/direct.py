"""The engine on given masks in this process: no Ray, no run directory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.former_arguments import takes_former_arguments
from coar_dist.ablation.plan import EnginePlan
from coar_dist.ablation.row_value import Paired, Resampled, RowValues
from coar_dist.ablation.site_means import site_means
from coar_dist.ablation.value import AblationValue, SiteValues, ZeroWeights
from coar_dist.components.discovery import Components, chosen_components
from coar_dist.components.index import ComponentIndex
from coar_dist.components.plain_model import plain_model
from coar_dist.components.sites import checked_values
from coar_dist.config.functions import look_up
from coar_dist.config.python_arguments import shown
from coar_dist.config.python_words import OF_ABLATED_OUTPUTS, in_python_words
from coar_dist.config.schema import COUNTERFACTUAL, MEAN, RESAMPLE, ZERO, ZERO_WEIGHTS
from coar_dist.errors import ConfigError
from coar_dist.tasks.build import given_reference, given_task
from coar_dist.tasks.example_set import ExampleSet, Inputs
from coar_dist.tasks.task import Task

_PRECISIONS = ("float32", "bfloat16")


@takes_former_arguments
@in_python_words(OF_ABLATED_OUTPUTS)
def ablated_outputs(
    model: nn.Module,
    inputs: Any,
    targets: Any = None,
    *,
    masks: NDArray[np.bool_],
    components: Components = "auto",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    ablation_value: str | Mapping[str, Tensor] = ZERO_WEIGHTS,
    reference: Inputs | None = None,
    counterfactual: Inputs | None = None,
    output_function: str | Callable[[Any, Tensor], Tensor] = "margin",
    precision: str = "float32",
    plan: EnginePlan | None = None,
) -> NDArray[np.float32]:
    """Outputs of ``model`` under given masks, computed in this process: no Ray, no run directory. ``model`` is copied.

    Args:
        model: any module, on the device where it is to run.
        inputs: (num_examples, ...) tensor or array, or a dict of them by keyword, a Dataset,
            a DataLoader or an ``ExampleSet``.
        targets: (num_examples, ...) what the output function compares with; int64 class labels for ``margin``. None:
            those that ``inputs`` holds, or none, for ``value`` and ``logit:3``, which read none.
        masks: (num_masks, num_components) bool, True = kept.
        components: as of ``coar_dist.attribute``, or a run's own, ``run.components``; the masks are over these.
        include, exclude: shell patterns of names of components, or of parameters, that are taken and that are left out.
        ablation_value: what ablated components are replaced by: ``zero_weights``, ``zero``, ``mean``, ``resample``,
            ``counterfactual``, or a tensor (num_channels,) for every site, by its name.
        reference: of ``mean`` and ``resample``: the inputs whose mean it is, or that are drawn; None is ``inputs``.
        counterfactual: of ``counterfactual``: inputs like ``inputs``, row by row.
        output_function: a registered name, ``module:function``, or ``(outputs, targets) -> (num_rows,)``.
        precision: ``float32``, or ``bfloat16`` for autocast.
        plan: how to run; None runs one mask at a time.

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
        >>> ablated_outputs(model, images, labels, masks=np.eye(4) == 0).shape
        (4, 5)
    """
    check_given(ablation_value, inputs, reference, counterfactual)
    if plan is not None and not isinstance(plan, EnginePlan):
        raise ConfigError(f"plan={shown(plan)}: must be an EnginePlan, or None.")
    look_up("ablation.precision", precision, dict.fromkeys(_PRECISIONS))
    index = chosen_components(model, components, include, exclude)
    copied = copy.deepcopy(plain_model(model))
    task = given_task(copied, inputs, targets, None, output_function, counterfactual)
    task.check()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    others = given_reference(model, reference)
    value = _value_of(ablation_value, task, index, others, device)
    return AblationEngine(task, index, str(device), precision, plan, value).margins(np.asarray(masks))


def check_given(ablation_value: object, inputs: object, reference: object, counterfactual: object) -> None:
    """Check that what a Python caller gives belongs to the ablation value.

    Raises:
        ConfigError: it has no effect, or is missing.
    """
    if not isinstance(ablation_value, str | Mapping):
        raise ConfigError(f"ablation.value={shown(ablation_value)}: must be a name, or a dict of tensors by site.")
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
