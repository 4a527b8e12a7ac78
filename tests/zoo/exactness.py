"""Holds every form of the engine to a brute-force loop: exact, refused by name, or wrong.

The truth knows nothing of the engine: one deep copy per mask, the slices zeroed, one example at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.plan import EnginePlan
from coar_dist.components.index import ComponentIndex
from coar_dist.errors import CoarDistError
from coar_dist.tasks.task import Task, call_model

FORMS = ("weights", "rows", "gradients")
_EPSILONS = 64.0
"""Roundings of a margin, in units of its dtype's epsilon, that two orders of the same sums may differ by.

In float32, timm's Inception v3 with random weights is off by up to 53 from itself in float64, in every form.
"""
_RELATIVE = 1e-3
"""Share of a mask's effect that a form may be off by."""


@dataclass
class Animal:
    """One model of the zoo.

    Attributes:
        name: of the model.
        task: fresh at every call: model, examples, output function.
        components: what is ablated, from the model.
        plain: from the model to one with the same outputs whose parameters of the components' names are the effective
            weights; the truth zeroes those.
        precision: of the engine.
    """

    name: str
    task: Callable[[], Task]
    components: Callable[[nn.Module], ComponentIndex]
    plain: Callable[[nn.Module], nn.Module] = field(default=lambda model: model)
    precision: str = "float32"


@dataclass(frozen=True)
class Verdict:
    """What became of one form.

    Attributes:
        kind: ``exact``, ``refused`` or ``WRONG``.
        detail: the error in shares of what is allowed, or the reason.
        in_weights: the groups that have no gates in mode ``rows``, by their parameters, with the reason.
    """

    kind: str
    detail: str
    in_weights: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kind} ({self.detail})"


def masks_of(components: ComponentIndex, seed: int = 0) -> NDArray[np.bool_]:
    """Both halves of every group alone, single components, and random masks of two sizes."""
    random = np.random.default_rng(seed)
    num = components.num_components
    masks = []
    for start, stop in zip(components.offsets[:-1], components.offsets[1:], strict=True):
        half = random.permutation(np.arange(start, stop))
        for part in (half[: (len(half) + 1) // 2], half[(len(half) + 1) // 2 :]):
            mask = np.ones(num, np.bool_)
            mask[part] = False
            masks.append(mask)
    for single in random.choice(num, min(num, 8), replace=False):
        masks.append(np.arange(num) != single)
    masks += [random.random(num) >= fraction for fraction in (0.1, 0.1, 0.5)]
    return np.stack(masks)


def truth(animal: Animal, masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Margins (num_masks, num_examples), one mask and one example at a time, on a fresh copy for every mask."""
    task = animal.task()
    components = animal.components(task.model)
    plain = animal.plain(task.model).eval()
    margins = np.empty((len(masks), len(task.examples)))
    for row, mask in enumerate(masks):
        model = copy.deepcopy(plain)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for component in components[~mask] if not mask.all() else ():
                for parameter, axis, start, size in component.slices:
                    parameters[parameter].narrow(axis, start, size).zero_()
            state = copy.deepcopy(model.state_dict())
            for example in range(len(task.examples)):
                model.load_state_dict(state)
                one = task.examples.rows(example, example + 1).map(lambda tensor: tensor.clone())
                margins[row, example] = float(task.output_function(call_model(model, one.inputs), one.targets))
    return margins


def verdicts(animal: Animal, rows_per_forward: int = 5) -> dict[str, Verdict]:
    """Every form of the engine against the truth."""
    task = animal.task()
    try:
        components = animal.components(task.model)
        masks = masks_of(components)
        task.check()
        before = {name: tensor.clone() for name, tensor in task.examples.tensors()}
        engine = AblationEngine(copy.deepcopy(task), components, "cpu", animal.precision)
    except CoarDistError as error:
        return dict.fromkeys(FORMS, Verdict("refused", str(error)))
    except Exception as error:
        return dict.fromkeys(FORMS, Verdict("RAISED", f"{type(error).__name__}: {error}"))
    expected = truth(animal, np.concatenate([masks, np.ones_like(masks[:1])]))
    effects = expected[:-1] - expected[-1]
    dtype = next((p.dtype for p in task.model.parameters() if p.is_floating_point()), torch.float32)
    epsilon = torch.finfo(torch.bfloat16 if animal.precision == "bfloat16" else dtype).eps
    rounding = _EPSILONS * max(epsilon, torch.finfo(torch.float32).eps) * np.abs(expected).max()
    allowed = _RELATIVE * np.sqrt((effects**2).mean(axis=1, keepdims=True)) + rounding
    found = {}
    for form in FORMS:
        try:
            if form == "gradients":
                margins = engine.gate_gradients(masks, (0, len(task.examples))).margins
            else:
                engine.use(EnginePlan(form, rows_per_forward, compiled=False))
                margins = np.concatenate([engine.margins(masks[:1]), engine.margins(masks[1:])])
        except CoarDistError as error:
            found[form] = Verdict("refused", str(error))
            continue
        except Exception as error:  # what the engine lets through without a name is a fault of its own
            found[form] = Verdict("RAISED", f"{type(error).__name__}: {error}")
            continue
        wrong = np.abs(margins - expected[:-1]) / allowed
        kind = "exact" if (wrong <= 1.0).all() else "WRONG"
        in_weights = {components.groups[number].parameter: why for number, why in engine.ungated.items()}
        found[form] = Verdict(kind, f"{np.nan_to_num(wrong, nan=np.inf).max():.2g} of what is allowed", in_weights)
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.examples.tensors()), animal.name
    return found
