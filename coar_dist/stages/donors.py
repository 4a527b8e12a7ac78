"""Which examples may lend their activations to others, and the classes that have means of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coar_dist.errors import ConfigError, TaskError, listed
from coar_dist.store.values import REFERENCE
from coar_dist.tasks.example_set import ExampleSet, Inputs

_LABEL = "label"


@dataclass(frozen=True)
class Classes:
    """The classes of a column.

    Attributes:
        names: its values in the reference, sorted.
        of_reference: (num_reference,) int64, the place of each example's class among them.
        of_examples: (num_examples,) int64, the same of the examples that are explained.
    """

    names: list[Any]
    of_reference: NDArray[np.int64]
    of_examples: NDArray[np.int64]


def classes_in(column: str, reference: ExampleSet, examples: ExampleSet) -> Classes:
    """The classes that a column has in the reference, and those of the examples.

    Raises:
        ConfigError: there is no such column, or an example's class is not in the reference.
    """
    of_reference, of_examples = (
        _column(column, each, what)
        for each, what in ((reference, "the reference has"), (examples, "the examples have"))
    )
    names, places = np.unique(of_reference, return_inverse=True)
    found = np.searchsorted(names, of_examples).clip(max=len(names) - 1)
    strange = np.flatnonzero(names[found] != of_examples)
    if strange.size:
        row = int(strange[0])
        raise ConfigError(
            f"ablation.mean_over={column}: example {row} is of class {of_examples[row].item()!r}, of which the "
            f"reference has no example. Its classes are {listed([repr(name) for name in names.tolist()], 5)}."
        )
    return Classes(names.tolist(), places.reshape(-1).astype(np.int64), found.astype(np.int64))


def _column(name: str, examples: ExampleSet, whose: str) -> NDArray[Any]:
    targets, columns = examples.targets, dict(examples.columns)
    if targets.ndim == 1 and not targets.is_floating_point():
        columns[_LABEL] = targets.cpu().numpy()
    if name not in columns:
        raise ConfigError(
            f"ablation.mean_over={name}: must be all, position, or a column of the examples, and {whose} "
            f"{listed(sorted(columns), 5) or 'none'}."
        )
    return np.asarray(columns[name])


def check_signature(reference: ExampleSet, examples: ExampleSet) -> None:
    """A reference is what the model takes in the place of the examples, of any number and length.

    Raises:
        ConfigError: naming the inputs.
    """
    found, wanted = (
        {name: (tensor.dtype, tensor.ndim) for name, tensor in _inputs(each.inputs).items()}
        for each in (reference, examples)
    )
    if found != wanted:
        spelt = [
            ", ".join(f"{name} ({dtype}, {ndim} axes)" for name, (dtype, ndim) in each.items())
            for each in (found, wanted)
        ]
        raise ConfigError(f"{REFERENCE}: its inputs are {spelt[0]}, but the model is run on {spelt[1]}.")


def check_donors(reference: ExampleSet, examples: ExampleSet) -> None:
    """Any donor may take the place of any example: their inputs are of one shape, and none is padded in its own way.

    Raises:
        ConfigError: naming the input.
    """
    check_signature(reference, examples)
    if len(reference) < 2:
        raise ConfigError(f"ablation.value=resample needs at least two donors, and there is {len(reference)}.")
    for name, donors in _inputs(reference.inputs).items():
        own = _inputs(examples.inputs)[name]
        if donors.shape[1:] != own.shape[1:]:
            raise ConfigError(
                f"{REFERENCE}: its {name} is of shape {tuple(donors.shape[1:])} and the examples' of "
                f"{tuple(own.shape[1:])}, but any donor must fit any example. Give donors of the same shape."
            )
        if name.endswith("attention_mask") and bool((torch.cat([donors, own]) != own[:1]).any()):
            raise ConfigError(
                f"ablation.value=resample needs examples of one length, and {name} differs between them: padding would "
                f"take the place of words. Use ablation.value=mean, or examples of one length."
            )


def check_counterfactuals(examples: ExampleSet) -> None:
    """Every example has one.

    Raises:
        TaskError: none has.
    """
    if examples.counterfactual is None:
        raise TaskError(
            "ablation.value=counterfactual: the examples have no counterfactuals. Give them in "
            "ExampleSet(..., counterfactual=...), as task.examples.arguments.counterfactual of a source that takes it, "
            "or use ablation.value=resample."
        )


def _inputs(inputs: Inputs) -> dict[str, Tensor]:
    if isinstance(inputs, Tensor):
        return {"inputs": inputs}
    return {name: value for name, value in sorted(inputs.items()) if isinstance(value, Tensor)}
