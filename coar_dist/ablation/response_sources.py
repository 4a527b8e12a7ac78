"""Where the activations of components come from, pass by pass, and what is kept of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coar_dist.ablation.site_taps import NO_ROWS, Tap
from coar_dist.ablation.strongest import Strongest, kept_shape
from coar_dist.store.responses import Response

NUM_KEPT = 8
"""Examples of a component."""
_ROW_BYTES = 48
"""Of an example of a component beside its activations."""
_SHAPES = "it has activations of several shapes"


@dataclass
class Source:
    """Where the activations of some components of a group come from.

    Attributes:
        component_ids: whose.
        taps: one; or of as many modules as own the parameter; or of every parameter that the components are slices of.
        is_norm: whether the components' activations are the norms over all taps, not those at any of them.
        strongest: what is kept.
        why: why there are none; None where there are some.
    """

    component_ids: NDArray[np.int64]
    taps: list[Tap]
    is_norm: bool
    strongest: Strongest = field(default_factory=lambda: Strongest(NUM_KEPT))
    why: str | None = None

    @property
    def is_in_decoder(self) -> bool:
        """Whether the padding that counts is the decoder's, where there are two."""
        return "decoder" in self.taps[0].place.module

    @property
    def positions(self) -> tuple[int, ...]:
        """The shape of what an example has of one channel."""
        layout = self.taps[0].layout
        assert layout is not None
        return layout.positions

    @property
    def num_bytes(self) -> float:
        """That the responses take at most, about."""
        return float(len(self.component_ids) * NUM_KEPT * (math.prod(kept_shape(self.positions[-2:])) + _ROW_BYTES))

    def begin(self, example_ids: Tensor, counted: Tensor | None) -> None:
        """A pass of some examples begins."""
        self._example_ids, self._counted = example_ids, counted
        self._calls: list[Tensor] = []
        self._num_calls = 0

    def see(self, tap: Tap, activation: Tensor, channel_axis: int) -> None:
        """An activation of the pass."""
        assert tap.layout is not None
        if self.why is not None:
            return
        self._num_calls += 1
        if not tap.layout.has_rows(activation, len(self._example_ids)):
            self.why = NO_ROWS
        elif self._num_calls > len(self.taps) * tap.layout.num_calls:
            self.why = "how often it is called depends on the examples"
        elif self._num_calls == 1 == len(self.taps) == tap.layout.num_calls:
            self._add(_in_planes(tap.activations(activation, channel_axis)))
        else:  # what follows may overwrite it before all are there
            self._calls.append(_in_planes(tap.activations(activation, channel_axis)).clone())

    def end(self) -> None:
        """The pass is done."""
        if not self._calls or self.why is not None:
            return
        if len({call.shape if self.is_norm else call.shape[3:] for call in self._calls}) > 1:
            self.why = _SHAPES
        elif self.is_norm:
            squares = torch.stack([call.float().square() for call in self._calls])
            self._add(squares.sum(dim=0).sqrt())
        else:
            self._add(torch.cat(self._calls, dim=2))
        self._calls = []

    def _add(self, activations: Tensor) -> None:
        counted, positions = self._counted, activations.shape[3:]
        if counted is not None and (len(positions) != 1 or positions[0] != counted.shape[1]):
            counted = None  # what is pooled, or of an image, has no padding
        if self.strongest.maps is not None and self.strongest.maps.ndim != 2 + len(positions):
            self.why = _SHAPES
            return
        ids = self._example_ids.to(activations.device)
        self.strongest.add(ids, activations, None if counted is None else counted.to(activations.device))

    def responses(self, padding: Tensor | None) -> dict[int, list[Response]]:
        """By component; ``padding`` is that of all examples."""
        if self.strongest.strengths is None:
            return {}
        strengths, example_ids, maps, firsts = self.strongest.arrays()
        is_kept = np.isfinite(strengths) & maps.reshape(*strengths.shape, -1).any(axis=2)
        found: dict[int, list[Response]] = {int(i): [] for i in self.component_ids}
        for column, place in zip(*is_kept.T.nonzero(), strict=True):  # the strongest of each component first
            example_id, first, activation = (
                int(example_ids[place, column]),
                int(firsts[place, column]),
                maps[place, column],
            )
            if padding is not None and activation.ndim == 1:
                begin, end = counted_range(padding[example_id])
                activation = activation[max(begin - first, 0) : max(end - first, 0)]
                first = max(first, begin)
            response = Response(example_id, float(strengths[place, column]), np.asarray(activation), first)
            found[int(self.component_ids[column])].append(response)
        return found


def _in_planes(activations: Tensor) -> Tensor:
    """(n, num_components, num_planes, *positions) with at most two axes of positions."""
    num_positions = activations.ndim - 2
    return activations.flatten(2, -3) if num_positions > 2 else activations.unsqueeze(2)


def counted_range(counted: Tensor) -> tuple[int, int]:
    """From the first to behind the last position that counts."""
    places = counted.nonzero()
    return (int(places[0, 0]), int(places[-1, 0]) + 1) if len(places) else (0, len(counted))
