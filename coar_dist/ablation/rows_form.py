"""Mode ``rows``: every row of a forward pass is one pair of a mask and an example, and carries its own gates.

So few examples fill the device too, and nothing is written to the weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from coar_dist.ablation.form import Form
from coar_dist.ablation.prefix import Cut
from coar_dist.ablation.prepared import PreparedModel
from coar_dist.tasks.example_set import ExampleSet


class RowsForm(Form):
    """The model has gates from the constructor to ``close``; they are written before every pass.

    Args:
        model: groups that cannot be gated are ablated in its weights, a mask at a time.
        rows_per_forward: rows of every forward pass.
    """

    def __init__(self, model: PreparedModel, rows_per_forward: int) -> None:
        super().__init__(model, rows_per_forward)
        self._in_weights = model.value.held_by(model.ungated)
        self._masker = model.value.masker(model.module) if model.ungated else None
        self._gated = model.value.gated(model.module, rows_per_forward, model.device, without=model.ungated)

    @override
    def whole(self, masks: NDArray[np.bool_], examples: ExampleSet) -> Tensor:
        return self._ungated_in_weights(
            masks, len(examples), lambda chosen: self._pairs(self._on_device(chosen), examples, self.forward)
        )

    @override
    def behind(self, cut: Cut, masks: NDArray[np.bool_], examples: ExampleSet) -> Tensor:
        return self._ungated_in_weights(masks, len(examples), lambda chosen: self._pairs_behind(cut, chosen, examples))

    def _ungated_in_weights(
        self, masks: NDArray[np.bool_], num_examples: int, compute: Callable[[NDArray[np.bool_]], Tensor]
    ) -> Tensor:
        """Masks that spare all ungated groups together; each of the others alone, its part of them in the weights."""
        alone = ~masks[:, self._in_weights].all(axis=1)
        if self._masker is None or not alone.any():
            return compute(masks)
        margins = torch.empty(len(masks), num_examples, device=self._model.device)
        together = np.flatnonzero(~alone)
        if together.size:
            margins[torch.from_numpy(together).to(margins.device)] = compute(masks[together])
        with self._masker.ablating() as ablate:
            for row in np.flatnonzero(alone):
                ablate(masks[row] | ~self._in_weights)
                margins[int(row)] = compute(masks[[row]])[0]
        return margins

    def _pairs_behind(self, cut: Cut, masks: NDArray[np.bool_], examples: ExampleSet) -> Tensor:
        kept, num_rows = self._on_device(masks), self.forward.num_rows
        margins = torch.empty(len(masks), len(examples), device=self._model.device)
        for start, batch in self._model.batches(examples, num_rows):
            self._gated.gates.fill_(1.0)
            filled = self._model.filled(batch, num_rows)
            rest = ExampleSet(self._model.outputs(cut.before, filled.inputs), filled.targets).rows(0, len(batch))
            values = self._pairs(kept, rest, partial(self._model.margins, cut.after))
            margins[:, start : start + len(batch)] = values
        return margins

    def _on_device(self, masks: NDArray[np.bool_]) -> Tensor:
        kept = torch.from_numpy(np.ascontiguousarray(masks)).to(self._model.device)
        return kept.to(self._gated.gates.dtype)

    def _pairs(self, kept: Tensor, examples: ExampleSet, margins_of: Callable[[ExampleSet], Tensor]) -> Tensor:
        """Margins (num_masks, num_examples) of all pairs of a mask and an example, one pair a row."""
        num_rows, num_examples = self.forward.num_rows, len(examples)
        margins = torch.empty(len(kept) * num_examples, device=self._model.device)
        num_passes = math.ceil(len(margins) / num_rows)
        # The last forward pass is filled up with pairs that are computed twice: its shape stays the same. Indices are
        # made where they are used: a copy from the host would wait for all that the device still has to do.
        pairs = [
            torch.arange(num_passes * num_rows, device=device).clamp(max=len(margins) - 1)
            for device in (self._model.device, examples.targets.device)
        ]
        masks, rows = pairs[0] // num_examples, pairs[1] % num_examples
        for start in range(0, len(margins), num_rows):
            torch.index_select(kept, 0, masks[start : start + num_rows], out=self._gated.gates)
            batch = self._model.on_device(self._model.selected(examples, rows[start : start + num_rows]))
            margins[start : start + num_rows] = margins_of(batch)[: len(margins) - start]
        return margins.reshape(len(kept), num_examples)

    @override
    def passes(self, num_masks: int, num_examples: int) -> tuple[float, float]:
        # Among others, masks share forward passes; behind a cut they are on their own.
        num_rows = self.forward.num_rows
        num_batches = math.ceil(num_examples / num_rows)
        behind = num_batches * math.ceil(num_masks * min(num_examples, num_rows) / num_rows)
        return num_masks * num_examples / num_rows, behind

    @override
    def seconds_per_margin(self) -> float:
        batch = self.forward.trial_batch()
        self._model.synchronise()
        started = time.perf_counter()
        self.forward(batch)
        self._model.synchronise()
        num_margins = len(batch) if self._masker is None else min(len(batch), len(self._model.examples))
        return (time.perf_counter() - started) / num_margins

    @override
    def close(self) -> None:
        self._gated.remove()
