"""The contract of a task: everything that names *what* is being explained, on one machine, in memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coar_dist.errors import CoarDistError, TaskError
from coar_dist.tasks.outputs import OutputFunction

Inputs = Tensor | dict[str, Tensor]
"""One tensor, given to the model as its first argument, or several, given by keyword."""


@dataclass(frozen=True)
class ExampleSet:
    """The examples in their fixed order: example i is row i of every tensor.

    Attributes:
        inputs: (num_examples, ...) tensor, or a dict of such tensors, given to the model by keyword.
        targets: (num_examples, ...) tensor that the output function reads; class labels are int64.
    """

    inputs: Inputs
    targets: Tensor

    def __post_init__(self) -> None:
        lengths = {name: len(tensor) for name, tensor in self.tensors()}
        if len(set(lengths.values())) != 1 or len(self.targets) == 0:
            raise TaskError(f"inputs and targets must have the same, positive number of rows, but have {lengths}.")

    @classmethod
    def of(cls, inputs: Any, targets: Any) -> ExampleSet:
        """The example set of tensors, NumPy arrays or lists."""
        as_dict = isinstance(inputs, Mapping)
        return cls(
            {name: torch.as_tensor(value) for name, value in inputs.items()} if as_dict else torch.as_tensor(inputs),
            torch.as_tensor(targets),
        )

    def __len__(self) -> int:
        return len(self.targets)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors by name, the targets last."""
        if isinstance(self.inputs, dict):
            yield from sorted(self.inputs.items())
        else:
            yield "inputs", self.inputs
        yield "targets", self.targets

    def map(self, function: Callable[[Tensor], Tensor]) -> ExampleSet:
        """The example set with ``function`` applied to every tensor."""
        inputs = self.inputs
        mapped = {k: function(v) for k, v in inputs.items()} if isinstance(inputs, dict) else function(inputs)
        return ExampleSet(mapped, function(self.targets))

    def rows(self, start: int, stop: int) -> ExampleSet:
        """Examples ``start .. stop - 1`` as views."""
        return self.map(lambda tensor: tensor[start:stop])

    def fingerprint(self) -> str:
        """SHA-256 over names, dtypes, shapes and bytes of all tensors."""
        return fingerprint_of_tensors(self.tensors())


@dataclass(frozen=True)
class Task:
    """Model, examples and output function."""

    model: nn.Module
    examples: ExampleSet
    output_function: OutputFunction

    def identity(self) -> dict[str, str]:
        """What results depend on: weights, architecture, examples and output function."""
        architecture = re.sub(r" at 0x[0-9a-f]+", "", repr(self.model))
        return {
            "model.weights": fingerprint_of_tensors(sorted(self.model.state_dict().items())),
            "model.architecture": "sha256:" + hashlib.sha256(architecture.encode()).hexdigest(),
            "examples": self.examples.fingerprint(),
            "output_function": self.output_function.identity(),
        }

    def check(self) -> list[float]:
        """Run the first two examples through the model and check that outputs and all targets fit.

        Returns:
            Their margins: a run keeps them, because a model can change without its weights or its name changing.

        Raises:
            TaskError: the model fails on the example, the output function does not give one value per example,
                or a target is outside the classes.
        """
        probe = self.examples.rows(0, 2)
        device = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
        was_training = self.model.training
        try:
            self.model.eval()
            with torch.no_grad():
                on_device = probe.map(lambda tensor: tensor.to(device))
                outputs = call_model(self.model, on_device.inputs)
                self.output_function.check(outputs, self.examples.targets)
                margins = self.output_function(outputs, on_device.targets)
        except CoarDistError:
            raise
        except Exception as error:  # the user's own code may raise anything
            shapes = {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in probe.tensors()}
            are_pixels = any(tensor.dtype == torch.uint8 for _, tensor in probe.tensors())
            way_out = " (task.model.input_mean and input_std let a model take uint8 pixels.)" if are_pixels else ""
            raise TaskError(
                f"{type(self.model).__name__} with output function {self.output_function.name!r} fails on the "
                f"first examples, whose tensors are {shapes}: {type(error).__name__}: {error}{way_out}"
            ) from error
        finally:
            self.model.train(was_training)
        if not isinstance(margins, Tensor) or margins.shape != (len(probe),) or not margins.is_floating_point():
            found = f"{margins.dtype} of shape {tuple(margins.shape)}" if isinstance(margins, Tensor) else repr(margins)
            raise TaskError(
                f"output function {self.output_function.name!r} must give one float per example, but gave {found} for "
                f"{len(probe)} examples."
            )
        return [float(margin) for margin in margins]


def call_model(model: Callable[..., Any], inputs: Inputs) -> Any:
    """The model's raw outputs for ``inputs``."""
    return model(**inputs) if isinstance(inputs, dict) else model(inputs)


def fingerprint_of_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return "sha256:" + digest.hexdigest()
