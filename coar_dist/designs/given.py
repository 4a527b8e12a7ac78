"""Masks that are not drawn: one component at a time, those of a list, and those that another code has drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from coar_dist.designs.design import MaskDesign
from coar_dist.errors import ConfigError


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
    """Mask i ablates the components that a list names; alpha is their mean share.

    Attributes:
        ablated: ids of the components that each mask ablates.
    """

    kind = "listed"
    ablated: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        super().__post_init__()
        assert len(self.ablated) == self.num_masks

    @classmethod
    def of(cls, num_components: int, ablated: Sequence[Sequence[int]]) -> Listed:
        """The design whose mask i ablates the components ``ablated[i]``.

        Args:
            num_components: d.
            ablated: component ids in 0 .. d - 1, of every mask none twice; at least one id in all, and one fewer than
                everything.
        """
        assert all(len(set(ids)) == len(ids) and all(0 <= i < num_components for i in ids) for ids in ablated)
        fraction = sum(map(len, ablated)) / (len(ablated) * num_components)
        lists = [[int(i) for i in ids] for ids in ablated]
        return cls(num_components, len(lists), fraction, seed=0, ablated=lists)

    @override
    def mask(self, mask_id: int) -> NDArray[np.bool_]:
        mask = np.ones(self.num_components, dtype=np.bool_)
        mask[list(self.ablated[mask_id])] = False
        return mask


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
