"""The model as it is: margins that ablations are compared with, and predictions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.ablation.prepared import PreparedModel
from coar_dist.errors import NonFiniteMarginError, counted
from coar_dist.tasks.logits import predicted_classes


@dataclass(frozen=True)
class Unablated:
    """The unablated model's outputs.

    Attributes:
        margins: (num_examples,) float32.
        predictions: (num_examples,) int64 predicted classes; None where outputs are not (num_rows, num_classes) logits.
    """

    margins: NDArray[np.float32]
    predictions: NDArray[np.int64] | None


def run_unablated(model: PreparedModel, num_rows: int) -> Unablated:
    """Margins and predictions of all examples.

    Args:
        model: without gates or masks.
        num_rows: of a forward pass, at most.

    Raises:
        NonFiniteMarginError: a margin is NaN or infinite; the message names examples.
    """
    margins, predictions = [], []
    for _, batch in model.batches(model.examples, num_rows):
        outputs = model.outputs(model.module, batch.inputs)
        margins.append(model.output_function(outputs, batch.targets).float())
        predicted = predicted_classes(outputs, batch.targets)
        if predicted is not None:
            predictions.append(predicted)
    values = torch.cat(margins).cpu().numpy()
    wrong = np.flatnonzero(~np.isfinite(values))
    if wrong.size:
        raise NonFiniteMarginError(
            f"the unablated model's margins of {counted(wrong.size, 'example')} are not finite: example {wrong[0]} "
            f"has {values[wrong[0]]} (examples {wrong[:10].tolist()}). Correct the inputs or the checkpoint, or "
            f"leave these examples out."
        )
    return Unablated(values, torch.cat(predictions).cpu().numpy() if predictions else None)
