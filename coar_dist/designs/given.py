"""Masks that are not drawn: one component at a time, those of a list, and those that another code has drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from coar_dist.designs.design import MaskDesign
from coar_dist.errors import ConfigError

PackedMasks = NDArray[np.uint8]
"""One bit per component, as ``packed`` makes them."""


@dataclass(frozen=True)
class LeaveOneOut(MaskDesign):
    """Mask i ablates component i alone; alpha is 1 / num_components."""

    kind = "leave_one_out"

    @classmethod
    def of(cls, num_components: int) -> LeaveOneOut:
        """The design of all components.

        Raises:
            ConfigError: there are fewer than two, so that alpha would be 1.
        """
        if num_components < 2:
            raise ConfigError(f"leave_one_out needs at least 2 components; there are {num_components}.")
        return cls(num_components, num_components, 1.0 / num_components, seed=0)

    @override
    def mask(self, mask_id: int) -> NDArray[np.bool_]:
        mask = np.ones(self.num_components, dtype=np.bool_)
        mask[mask_id] = False
        return mask


@dataclass(frozen=True)
class Listed(MaskDesign):
    """Masks of a list, as of a sweep over numbers of ablated components; alpha is the share that they ablate.

    Attributes:
        fingerprint: of the masks.
        load: gives the masks, packed as of ``packed``. It is called where masks are made, so that a design that lies
            in a file is small wherever it is only named.
    """

    kind = "listed"
    fingerprint: str
    load: Callable[[], PackedMasks] = field(compare=False, repr=False)

    @classmethod
    def of(cls, masks: PackedMasks, num_components: int) -> Listed:
        """The design of these masks.

        Args:
            masks: as of ``packed``, at least one. Not all keep everything, nor do all keep nothing.
            num_components: d.
        """
        num_masks = len(masks)
        assert masks.dtype == np.uint8
        assert masks.shape == (num_masks, -(-num_components // 8))
        content = masks.tobytes()
        num_ablated = num_masks * num_components - int.from_bytes(content).bit_count()
        fingerprint = f"sha256:{hashlib.sha256(content).hexdigest()}"
        share = num_ablated / (num_masks * num_components)
        return cls(num_components, num_masks, share, seed=0, fingerprint=fingerprint, load=partial(_same, masks))

    @override
    def mask(self, mask_id: int) -> NDArray[np.bool_]:
        return np.asarray(self.masks(mask_id, mask_id + 1)[0])

    @override
    def masks(self, start: int, stop: int) -> NDArray[np.bool_]:
        chosen = self.load()[start:stop]
        return np.unpackbits(chosen, axis=1, count=self.num_components, bitorder="little").view(np.bool_)


def packed(masks: NDArray[np.bool_]) -> PackedMasks:
    """Masks (num_masks, num_components) as one bit per component: (num_masks, ceil(num_components / 8)) uint8.

    Bit i, least significant first, is component i; the bits beyond the last one are 0.
    """
    return np.packbits(masks, axis=1, bitorder="little")


def _same(masks: PackedMasks) -> PackedMasks:
    return masks


@dataclass(frozen=True)
class Imported(MaskDesign):
    """Masks that another code has drawn: no rule makes them, the run's margin shards alone hold them.

    Attributes:
        fingerprint: of masks and margins.
    """

    kind = "imported"
    fingerprint: str

    @override
    def mask(self, mask_id: int) -> NDArray[np.bool_]:
        raise ConfigError("the masks of an imported design cannot be drawn again: its margin shards alone hold them.")
