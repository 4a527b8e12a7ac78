"""Mode ``weights``: one mask at a time is written into the weights, and all examples go through."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from coar_dist.ablation.form import Form, trial_mask
from coar_dist.ablation.prefix import Cut
from coar_dist.ablation.prepared import PreparedModel, even_size
from coar_dist.tasks.example_set import ExampleSet


class WeightsForm(Form):
    """Weights are changed within calls alone, and have their exact bits again after each, whatever happened.

    Args:
        model: ablated in place.
        rows_per_forward: rows of a forward pass at most; the model's examples are split evenly.
    """

    def __init__(self, model: PreparedModel, rows_per_forward: int) -> None:
        super().__init__(model, even_size(len(model.examples), rows_per_forward))
        self._masker = model.value.masker(model.module)
        self._masker.stay()

    @override
    def whole(self, masks: NDArray[np.bool_], examples: ExampleSet) -> Tensor:
        margins = torch.empty(len(masks), len(examples), device=self._model.device)
        with self._masker.ablating() as ablate:
            for row, mask in enumerate(masks):
                ablate(mask)
                for start, batch in self._model.batches(examples, self.forward.num_rows):
                    margins[row, start : start + len(batch)] = self._padded_margins(batch)
        return margins

    def _padded_margins(self, batch: ExampleSet) -> Tensor:
        """Margins of a batch, which is filled up where the pass has a fixed shape."""
        num_rows = self.forward.num_rows
        if len(batch) == num_rows or not self.forward.has_fixed_shape:
            return self.forward(batch)
        return self.forward(self._model.filled(batch, num_rows))[: len(batch)]

    @override
    def behind(self, cut: Cut, masks: NDArray[np.bool_], examples: ExampleSet) -> Tensor:
        margins = torch.empty(len(masks), len(examples), device=self._model.device)
        for start, batch in self._model.batches(examples, self.forward.num_rows):
            activations = self._model.outputs(cut.before, batch.inputs)
            rest = ExampleSet(activations, batch.targets)
            with self._masker.ablating() as ablate:
                for row, mask in enumerate(masks):
                    ablate(mask)
                    margins[row, start : start + len(batch)] = self._model.margins(cut.after, rest)
        return margins

    @override
    def passes(self, num_masks: int, num_examples: int) -> tuple[float, float]:
        count = float(num_masks * math.ceil(num_examples / self.forward.num_rows))
        return count, count

    @override
    def seconds_per_margin(self) -> float:
        batch, mask = self.forward.trial_batch(), trial_mask(self._model.value.components.num_components)
        self._model.synchronise()
        started = time.perf_counter()
        with self._masker.ablated(mask):
            masked = time.perf_counter()
            self.forward(batch)
            self._model.synchronise()
            forward = time.perf_counter() - masked
        masking = time.perf_counter() - started - forward
        return forward / len(batch) + masking / len(self._model.examples)

    @override
    def close(self) -> None:
        self._masker.leave()
