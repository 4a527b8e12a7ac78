"""What an edit computes with the model's weights, before it is made and after: where they are, which may be another
process."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

from coar_dist.components.gate_places import weights_read
from coar_dist.components.index import ComponentIndex
from coar_dist.editing.edit import Edit
from coar_dist.editing.plain import plain_outputs
from coar_dist.store.edits import EditStore
from coar_dist.tasks.checkpoints import state_to_save
from coar_dist.tasks.task import Task, call_model

_TOLERANCE = 1e-4
"""Share of the outputs by which edited weights may be off from replaced activations: sums in another order."""


@dataclass(frozen=True)
class Unedited:
    """What an edit needs to know of the unedited model.

    Attributes:
        outputs: (num_examples,) float32 of the held-out examples.
        predictions: (num_examples,) int64 classes; None where targets are no class labels.
        magnitudes: (num_components,) float64, as of ``root_mean_squares``; None where nothing is selected by them.
        read: parameters with components that forward methods read themselves; none for an edit of zeroed weights.
    """

    outputs: NDArray[np.float32]
    predictions: NDArray[np.int64] | None
    magnitudes: NDArray[np.float64] | None
    read: tuple[str, ...]

    @classmethod
    def of(cls, task: Task, components: ComponentIndex, by_magnitude: bool, has_values: bool) -> Unedited:
        """Check the model on the held-out examples, and run it.

        Args:
            task: model, held-out examples, and the output function that is measured.
            components: the component index.
            by_magnitude: whether something is selected by magnitudes.
            has_values: whether values take the place of activations.

        Raises:
            TaskError, NonFiniteMarginError: as of ``Task.check`` and ``plain_outputs``.
        """
        task.check()
        outputs, predictions = plain_outputs(task)
        magnitudes = root_mean_squares(task.model, components) if by_magnitude else None
        read: frozenset[str] = frozenset()
        if has_values:
            first = task.examples.rows(0, 1)
            read = weights_read(task.model, components, lambda: call_model(task.model, first.inputs))
        return cls(outputs, predictions, magnitudes, tuple(sorted(read)))


def edited_outputs(made: Edit, task: Task, edits: EditStore) -> tuple[NDArray[np.float32], str | None]:
    """Run the edited model, and write its weights where they can hold the edit.

    Args:
        made: the edit, with its components.
        task: the unedited model, held-out examples, and the output function that is measured.
        edits: where the weights go.

    Returns:
        Its outputs (num_examples,) float32, and why no weights are written; None where they are.
    """
    applied = None
    why = made.why_not_in_weights(task.model)
    if made.values is not None:
        with made.applied(task.model):
            applied, _ = plain_outputs(task)
    if why is None:
        edited = made.edited(task.model)
        about = {"edit": f"{made.name} of the run {made.run}"}  # one entry, for safetensors writes several in any order
        content = safetensors.torch.save(state_to_save(edited), about)
        edited.load_state_dict(safetensors.torch.load(content))  # what is measured is what is exported
        after, _ = plain_outputs(replace(task, model=edited))
        if applied is None or np.allclose(after, applied, rtol=_TOLERANCE, atol=_TOLERANCE * np.abs(applied).max()):
            edits.write_weights(content)
            return after, None
        why = f"outputs would be off by {np.abs(after - applied).max():.2g}"
    assert applied is not None
    return applied, why


@torch.no_grad()
def root_mean_squares(model: nn.Module, components: ComponentIndex) -> NDArray[np.float64]:
    """(num_components,) float64: the root mean square of every component's parameters."""
    values = []
    for group in components.groups:
        squares, num = np.zeros(group.num_components), 0
        for part in group.slices:
            by_index = model.get_parameter(part.parameter).detach().double().movedim(part.axis, 0).flatten(1)
            of_index = by_index.square().sum(dim=1).cpu().numpy()
            squares += of_index[part.indices()].reshape(-1, part.size).sum(axis=1)
            num += part.size * by_index.shape[1]
        values.append(np.sqrt(squares / num))
    return np.concatenate(values)
