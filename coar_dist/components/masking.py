"""Applying a mask to weights in place: only the ablated slices are touched, and the exact bits come back.

Research semantics (Shah et al. 2024, section 3): the component's slice of the weight is zero; biases and
normalisation layers stay as they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from coar_dist.components.discovery import check_components
from coar_dist.components.groups import Slices
from coar_dist.components.index import ComponentIndex


class Masker(ABC):
    """Applies one mask at a time to a model, in place, within ``with`` blocks; each exit leaves it as it was."""

    @abstractmethod
    def ablating(self) -> AbstractContextManager[Callable[[NDArray[np.bool_]], None]]:
        """A function that makes the model that of a mask (num_components,) bool, True = kept, until its next call."""

    @contextmanager
    def ablated(self, mask: NDArray[np.bool_]) -> Iterator[None]:
        """Ablate the components that ``mask`` does not keep, for the length of a ``with`` block.

        Args:
            mask: (num_components,) bool, True = kept.
        """
        with self.ablating() as ablate:
            ablate(mask)
            yield

    @abstractmethod
    def stay(self) -> None:
        """Leave on the model what masks need, all of them kept: for compiled and recorded passes. ``leave`` ends it."""

    @abstractmethod
    def leave(self) -> None:
        """Take off what ``stay`` left."""


def on_devices(mask: NDArray[np.bool_], devices: Iterable[torch.device]) -> dict[torch.device, Tensor]:
    """A mask where it is used. The host does not wait for what the devices still have to do."""
    on_host = torch.from_numpy(np.ascontiguousarray(mask))
    if torch.cuda.is_available():
        on_host = on_host.pin_memory()  # else the copy waits
    return {device: on_host.to(device, non_blocking=True) for device in devices}


class WeightMasker(Masker):
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
        self._live = {name: parameters[name].detach() for name in components.parameters}
        self._original = {name: weight.clone() for name, weight in self._live.items()}
        self._parts = [
            (slice(int(first), int(stop)), part)
            for group, first, stop in zip(components.groups, components.offsets, components.offsets[1:], strict=False)
            for part in group.slices
        ]
        self._devices = {weight.device for weight in self._live.values()}
        self.writes_whole = all(device.type == "cuda" for device in self._devices)
        self._undo: list[Callable[[], object]] = []
        self._zeros: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    @cached_property
    def _gathered(self) -> list[Tensor | None]:
        return [self._places(part) for _, part in self._parts]

    def _keep(self, name: str, parameter: Tensor) -> None:
        """Restore this one too."""
        if name not in self._live:
            self._live[name], self._original[name] = parameter, parameter.clone()
            self._devices.add(parameter.device)

    def _places(self, part: Slices) -> Tensor | None:
        """(length of the axis,) int64: each index's place among the components, or one behind the last of a kept one.

        None where the components' slices are all there is, one after the other.
        """
        live = self._live[part.parameter]
        length, num = live.shape[part.axis], len(part.starts)
        if part.covers == length:
            return None
        return torch.from_numpy(part.owners(length, num)).to(live.device)

    @override
    @contextmanager
    def ablating(self) -> Iterator[Callable[[NDArray[np.bool_]], None]]:
        with torch.no_grad():
            try:
                yield self._zero
            finally:
                self._restore()

    @override
    def stay(self) -> None:
        """Nothing: masks are in the weights."""

    @override
    def leave(self) -> None:
        """Nothing: every call has restored the weights."""

    def _zero(self, mask: NDArray[np.bool_]) -> None:
        if self.writes_whole:
            self._write_whole(on_devices(mask, self._devices))
        else:
            self._restore()
            self._write_ablated(mask)

    def _restore(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _write_ablated(self, mask: NDArray[np.bool_]) -> None:
        for ids, part in self._parts:
            ablated = np.flatnonzero(~mask[ids])
            if ablated.size == 0:
                continue
            live, axis = self._live[part.parameter], part.axis
            indices = torch.from_numpy(part.indices(ablated)).to(live.device)
            original = self._original[part.parameter].index_select(axis, indices)
            self._undo.append(partial(live.index_copy_, axis, indices, original))
            live.index_fill_(axis, indices, 0)

    def _write_whole(self, kept: Mapping[torch.device, Tensor]) -> None:
        if not self._undo:
            self._undo = [partial(live.copy_, self._original[name]) for name, live in self._live.items()]
        written = set[str]()
        for (ids, part), places in zip(self._parts, self._gathered, strict=True):
            live, shape = self._live[part.parameter], [1] * self._live[part.parameter].ndim
            gate = kept[live.device][ids]
            if places is not None:
                gate = torch.cat([gate, gate.new_ones(1)])[places]
            elif part.size > 1:
                gate = gate.repeat_interleave(part.size)
            shape[part.axis] = len(gate)
            # A weight may be cut more than once, along both of its axes for one.
            source = live if part.parameter in written else self._original[part.parameter]
            torch.where(gate.reshape(shape), source, self._zero_like(live), out=live)
            written.add(part.parameter)

    def _zero_like(self, live: Tensor) -> Tensor:
        """A scalar that is made once: a new one is one more kernel for every weight and mask."""
        key = live.device, live.dtype
        if key not in self._zeros:
            self._zeros[key] = live.new_zeros(())
        return self._zeros[key]
