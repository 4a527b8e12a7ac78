"""Applying a mask to weights in place: only the ablated slices are touched, and the exact bits come back.

Research semantics (Shah et al. 2024, section 3): the component's slice of the weight is zero; biases and
normalisation layers stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coar_dist.components.discovery import check_components
from coar_dist.components.index import ComponentIndex


class WeightMasker:
    """Zeroes slices of a model's weights for the length of a ``with`` block.

    It keeps one copy of every parameter that has components, from which slices are restored bit by bit.
    The weights must not be changed by others while a masker lives.
    """

    def __init__(self, model: nn.Module, components: ComponentIndex) -> None:
        check_components(model, components)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._components = components
        self._live = [parameters[group.parameter].detach() for group in components.groups]
        self._original = [weight.clone() for weight in self._live]

    @contextmanager
    def ablated(self, mask: NDArray[np.bool_]) -> Iterator[None]:
        """Zero the components that ``mask`` does not keep; restore the exact bits on every exit.

        Args:
            mask: (num_components,) bool, True = kept.
        """
        touched: list[tuple[int, int, torch.Tensor]] = []
        offsets = self._components.offsets
        with torch.no_grad():
            try:
                for g, group in enumerate(self._components.groups):
                    ablated = np.flatnonzero(~mask[offsets[g] : offsets[g + 1]])
                    if ablated.size == 0:
                        continue
                    if group.block_size > 1:
                        block = np.arange(group.block_size)
                        ablated = (ablated[:, None] * group.block_size + block).reshape(-1)
                    live = self._live[g]
                    indices = torch.from_numpy(ablated).to(live.device)
                    touched.append((g, group.axis, indices))
                    live.index_fill_(group.axis, indices, 0)
                yield
            finally:
                for g, axis, indices in touched:
                    self._live[g].index_copy_(axis, indices, self._original[g].index_select(axis, indices))
