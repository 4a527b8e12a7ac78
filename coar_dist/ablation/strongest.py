"""The examples on which components are strongest, kept while activations stream by."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

LONGEST_SIDE = 16
"""Of a map; a longer one is scaled down by means over its parts."""
MOST_POSITIONS = 256
"""Of positions in a row; of more, those around the strongest."""


def kept_shape(positions: torch.Size | tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which the activations of one component on one example are kept.

    Example:
        >>> kept_shape((56, 56)), kept_shape((9,)), kept_shape((1024,)), kept_shape(())
        ((16, 16), (9,), (256,), ())
    """
    if len(positions) == 2:
        return min(positions[0], LONGEST_SIDE), min(positions[1], LONGEST_SIDE)
    return (min(positions[0], MOST_POSITIONS),) if positions else ()


class Strongest:
    """For every component of a site the examples with the largest of its activations, and the activations there.

    Args:
        num_kept: examples per component.

    Attributes:
        strengths: (num_kept, num_components) float32, the largest first; -inf where there is no example.
        example_ids: of the same shape, int64.
        maps: (num_kept, num_components, *kept_shape) float32.
        firsts: of the shape of ``strengths``, int64: the position of the first of ``maps``, where they are in a row.
    """

    def __init__(self, num_kept: int) -> None:
        self._num_kept = num_kept
        self.strengths: Tensor | None = None
        self.example_ids: Tensor | None = None
        self.maps: Tensor | None = None
        self.firsts: Tensor | None = None

    def add(self, example_ids: Tensor, activations: Tensor, counted: Tensor | None) -> None:
        """Look at a batch of examples; those that are kept from before are passed over.

        Args:
            example_ids: (n,) int64.
            activations: (n, num_components, num_planes, *positions), of which the plane with the largest is kept. From
                batch to batch the number of positions may differ.
            counted: (n, num_positions) bool, False where an example is padded; None: nowhere.
        """
        visible = activations
        if counted is not None:
            activations = activations.masked_fill(~counted[:, None, None], 0)
            visible = activations.masked_fill(~counted[:, None, None], -torch.inf)
        new = visible.flatten(2).amax(dim=2).float()
        new = torch.where(new.isfinite(), new, -torch.inf)
        if self.strengths is None:
            shape = self._num_kept, new.shape[1]
            self.strengths = new.new_full(shape, -torch.inf)
            self.example_ids = torch.full(shape, -1, dtype=torch.int64, device=new.device)
            self.firsts = torch.zeros_like(self.example_ids)
            self.maps = new.new_zeros(*shape, *kept_shape(activations.shape[3:]))
        assert self.example_ids is not None
        assert self.maps is not None
        assert self.firsts is not None
        seen = (self.example_ids[:, None] == example_ids[None, :, None]).any(dim=0)
        new = torch.where(seen, -torch.inf, new)
        self.strengths, chosen = torch.cat([self.strengths, new]).topk(self._num_kept, dim=0)
        is_new = (chosen >= self._num_kept) & (self.strengths > -torch.inf)
        before = chosen.clamp(max=self._num_kept - 1)
        self.example_ids = self.example_ids.gather(0, before)
        self.firsts = self.firsts.gather(0, before)
        trailing = [1] * (self.maps.ndim - 2)
        self.maps = self.maps.gather(0, before.reshape(*before.shape, *trailing).expand_as(self.maps))
        places, components = is_new.nonzero(as_tuple=True)
        if not len(places):
            return
        if self.maps.ndim == 3:
            longer = kept_shape(activations.shape[3:])[0] - self.maps.shape[2]
            self.maps = functional.pad(self.maps, (0, max(longer, 0)))
        rows = chosen[places, components] - self._num_kept
        self.example_ids[places, components] = example_ids[rows]
        kept = _kept(activations[rows, components].float(), visible[rows, components], self.maps.shape[2:])
        self.maps[places, components], self.firsts[places, components] = kept

    def arrays(self) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
        """``strengths``, ``example_ids``, ``maps`` and ``firsts`` on the CPU, once something was added."""
        assert self.strengths is not None
        assert self.example_ids is not None
        assert self.maps is not None
        assert self.firsts is not None
        strengths, maps = self.strengths.cpu().numpy(), self.maps.cpu().numpy()
        return strengths, self.example_ids.cpu().numpy(), maps, self.firsts.cpu().numpy()


def _kept(activations: Tensor, visible: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Of (n, num_planes, *positions) the plane with the largest in a kept shape, and the first position of each."""
    rows = torch.arange(len(activations), device=activations.device)
    plane = visible.reshape(*visible.shape[:2], -1).amax(dim=2).argmax(dim=1)
    activations, visible = activations[rows, plane], visible[rows, plane]
    firsts = torch.zeros_like(rows)
    if activations.shape[1:] == shape:
        return activations, firsts
    if len(shape) == 2:
        return functional.adaptive_avg_pool2d(activations[:, None], (shape[0], shape[1]))[:, 0], firsts
    longer = activations.shape[1] - shape[0]
    if longer < 0:
        return functional.pad(activations, (0, -longer)), firsts
    firsts = (visible.argmax(dim=1) - shape[0] // 2).clamp(0, longer)
    return activations.gather(1, firsts[:, None] + torch.arange(shape[0], device=rows.device)), firsts
