"""The contract of a task: everything that names *what* is being explained, on one machine."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coar_dist.components.plain_model import plain_model
from coar_dist.errors import CoarDistError, TaskError, counted
from coar_dist.tasks.elsewhere import known_margins, origin_of, weights_of
from coar_dist.tasks.example_set import ExampleSet, Inputs
from coar_dist.tasks.outputs import OutputFunction
from coar_dist.tasks.precision import other_dtypes


@dataclass(frozen=True)
class Task:
    """Model, examples and output function.

    Attributes:
        model: any module; where it is wrapped, or computes weights from others, what ``plain_model`` makes of it.
        examples: what it is run on.
        output_function: from its outputs and the targets to margins.
    """

    model: nn.Module
    examples: ExampleSet
    output_function: OutputFunction

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", plain_model(self.model))

    def identity(self) -> dict[str, str]:
        """What results depend on: weights, architecture, examples and output function."""
        origin = origin_of(self.model)
        architecture = re.sub(r" at 0x[0-9a-f]+", "", repr(self.model))
        return {
            "model.weights": weights_of(self.model) if origin is None else origin.weights,
            "model.architecture": "sha256:" + hashlib.sha256(architecture.encode()).hexdigest(),
            "examples": self.examples.fingerprint(),
            "output_function": self.output_function.identity(),
        }

    def check(self) -> list[float]:
        """Run the first two examples through the model and check that outputs and all targets fit; where the model has
        no weights here, that was done where they are.

        Returns:
            Their margins: a run keeps them, because a model can change without its weights or its name changing.

        Raises:
            TaskError: the model fails on the example, the output function does not give one value per example,
                or a target is outside the classes.
        """
        known = known_margins(self.model)
        if known is not None:
            return known
        probe = self.examples.rows(0, 2)
        device = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
        was_training = self.model.training
        try:
            self.model.eval()
            with torch.no_grad():
                on_device = probe.map(lambda tensor: tensor.to(device, copy=True))  # a model may change its input
                outputs = call_model(self.model, on_device.inputs)
                self.output_function.check(outputs, self.examples.targets)
                margins = self.output_function(outputs, on_device.targets)
        except CoarDistError:
            raise
        except Exception as error:  # the user's own code may raise anything
            shapes = ", ".join(f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in probe.tensors())
            inputs = {name: tensor for name, tensor in probe.tensors() if name != "targets"}
            way_out = other_dtypes(self.model, inputs)
            raise TaskError(
                f"{type(self.model).__name__} with output function {self.output_function.name!r} fails on the "
                f"first {counted(len(probe), 'example')} ({shapes}): {type(error).__name__}: {error}{way_out}"
            ) from error
        finally:
            self.model.train(was_training)
        if not isinstance(margins, Tensor) or margins.shape != (len(probe),) or not margins.is_floating_point():
            found = f"{margins.dtype} of shape {tuple(margins.shape)}" if isinstance(margins, Tensor) else repr(margins)
            raise TaskError(
                f"output function {self.output_function.name!r} must give one float per example, but gave {found} for "
                f"{counted(len(probe), 'example')}."
            )
        return [float(margin) for margin in margins]


def by_keyword(model: nn.Module, inputs: Any) -> Any:
    """Several inputs in a tuple, as ``model(*inputs)`` takes them, by the names of the model's arguments.

    Raises:
        TaskError: the names cannot be told, because the model takes ``*args``.
    """
    if not isinstance(inputs, tuple):
        return inputs
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind in kinds]
    if len(inputs) > len(names) or any(p.kind is inspect.Parameter.POSITIONAL_ONLY for p in parameters):
        raise TaskError(
            f"inputs are {len(inputs)} values in a tuple, and {type(model).__name__}.forward names {len(names)} "
            f"arguments{': ' + ', '.join(names) if names else ''}. Give a dict of inputs by argument name."
        )
    return dict(zip(names, inputs, strict=False))


def call_model(model: Callable[..., Any], inputs: Inputs) -> Any:
    """The model's raw outputs for ``inputs``."""
    return model(**inputs) if isinstance(inputs, dict) else model(inputs)
