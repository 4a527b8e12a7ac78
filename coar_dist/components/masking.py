"""Applying a mask to weights in place: only the ablated slices are touched, and the exact bits come back.

Research semantics (Shah et al. 2024, section 3): the component's slice of the weight is zero; biases and
normalisation layers stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coar_dist.components.discovery import check_components
from coar_dist.components.index import ComponentIndex


class WeightMasker:
    """Zeroes slices of a model's weights for the length of a ``with`` block.

    It keeps one copy of every parameter that has components, from which the exact bits are restored. The weights must
    not be changed by others while a masker lives.

    Attributes:
        writes_whole: whether every weight is written as a whole, which asks nothing of the host (CUDA devices), or only
            the slices that are ablated, which costs the least (CPUs). The results are the same bits.
    """

    def __init__(self, model: nn.Module, components: ComponentIndex) -> None:
        check_components(model, components)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._components = components
        self._live = [parameters[group.parameter].detach() for group in components.groups]
        self._original = [weight.clone() for weight in self._live]
        self._devices = {weight.device for weight in self._live}
        self.writes_whole = all(device.type == "cuda" for device in self._devices)
        self._undo: list[Callable[[], object]] = []

    @contextmanager
    def ablating(self) -> Iterator[Callable[[NDArray[np.bool_]], None]]:
        """A function that makes the weights those of a mask (num_components,) bool, True = kept, until its next call.

        Every exit restores the exact bits.
        """
        with torch.no_grad():
            try:
                yield self._zero
            finally:
                self._restore()

    @contextmanager
    def ablated(self, mask: NDArray[np.bool_]) -> Iterator[None]:
        """Zero the components that ``mask`` does not keep; restore the exact bits on every exit.

        Args:
            mask: (num_components,) bool, True = kept.
        """
        with self.ablating() as zero:
            zero(mask)
            yield

    def _zero(self, mask: NDArray[np.bool_]) -> None:
        if self.writes_whole:
            self._write_whole(mask)
        else:
            self._restore()
            self._write_ablated(mask)

    def _restore(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _write_ablated(self, mask: NDArray[np.bool_]) -> None:
        offsets = self._components.offsets
        for g, group in enumerate(self._components.groups):
            ablated = np.flatnonzero(~mask[offsets[g] : offsets[g + 1]])
            if ablated.size == 0:
                continue
            if group.block_size > 1:
                block = np.arange(group.block_size)
                ablated = (ablated[:, None] * group.block_size + block).reshape(-1)
            live, axis = self._live[g], group.axis
            indices = torch.from_numpy(ablated).to(live.device)
            original = self._original[g].index_select(axis, indices)
            self._undo.append(partial(live.index_copy_, axis, indices, original))
            live.index_fill_(axis, indices, 0)

    def _write_whole(self, mask: NDArray[np.bool_]) -> None:
        if not self._undo:
            self._undo = [partial(live.copy_, weight) for live, weight in zip(self._live, self._original, strict=True)]
        on_host = torch.from_numpy(np.ascontiguousarray(mask))
        if torch.cuda.is_available():
            on_host = on_host.pin_memory()  # else the copy waits for all that the device still has to do
        kept = {device: on_host.to(device, non_blocking=True) for device in self._devices}
        offsets, written = self._components.offsets, set[int]()
        for g, group in enumerate(self._components.groups):
            live, shape = self._live[g], [1] * self._live[g].ndim
            gate = kept[live.device][offsets[g] : offsets[g + 1]]
            if group.block_size > 1:
                gate = gate.repeat_interleave(group.block_size)
            shape[group.axis] = len(gate)
            # Two groups may be slices of one weight along its two axes.
            source = live if live.data_ptr() in written else self._original[g]
            torch.where(gate.reshape(shape), source, live.new_zeros(()), out=live)
            written.add(live.data_ptr())
