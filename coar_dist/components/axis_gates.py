"""The gates of one axis of a weight, put together from the groups whose components are slices along it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coar_dist.components.groups import Slices


class AxisGates:
    """From the gates of components to those of channels.

    Their values lie on a module, so that other values can take their place for a call: (num_rows, num_components) of
    each group, in buffers.

    Args:
        keys: names of the buffers, one for each of ``parts``.
        parts: slices along one axis, which do not overlap; an index that none has is always kept.
        length: of the axis.
        places_key: name of a buffer for ``places``.

    Attributes:
        places: (length,) int64, where the gate of every index lies among those of all parts, one behind the last for
            one that is always kept; None where the slices of a single part are all there is.
    """

    def __init__(self, keys: Sequence[str], parts: Sequence[Slices], length: int, places_key: str) -> None:
        self._keys, self._places_key = list(keys), places_key
        self._size = parts[0].size
        self.places: Tensor | None = None
        if len(parts) == 1 and parts[0].covers == length:
            return
        num_before, places = 0, np.full(length, sum(len(part.starts) for part in parts))
        for part in parts:
            owners = part.owners(length, -1)
            places[owners >= 0] = num_before + owners[owners >= 0]
            num_before += len(part.starts)
        self.places = torch.from_numpy(places)

    def num_rows(self, module: Any) -> int:
        """Rows of the gates."""
        return len(getattr(module, self._keys[0]))

    def of_channels(self, module: Any) -> Tensor:
        """(num_rows, length): the gate of every index along the axis."""
        if self.places is None:
            gate: Tensor = getattr(module, self._keys[0])
            return gate if self._size == 1 else gate.repeat_interleave(self._size, dim=1)
        return self._all(module).index_select(1, getattr(module, self._places_key))

    def of_indices(self, module: Any, indices: Tensor) -> Tensor:
        """(num_rows, n): the gates of indices (num_rows, n) along the axis, tokens of each row for one."""
        if self.places is None:
            gate: Tensor = getattr(module, self._keys[0])
            return gate.gather(1, indices // self._size)
        return self._all(module).gather(1, getattr(module, self._places_key)[indices])

    def _all(self, module: Any) -> Tensor:
        gates = [getattr(module, key) for key in self._keys]
        return torch.cat([*gates, gates[0].new_ones(len(gates[0]), 1)], dim=1)
