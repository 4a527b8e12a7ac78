"""Masks that ablate random subsets of a size that is fixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from coar_dist.designs.design import MaskDesign, raw_words
from coar_dist.errors import ConfigError

_TOLERANCE = 0.1
"""How far alpha may be from the share that a balanced design ablates, relative to that share."""


@dataclass(frozen=True)
class FixedSize(MaskDesign):
    """A uniformly random subset of ``round(alpha * num_components)`` components is ablated (the paper's text)."""

    kind = "fixed_size"
    are_independent: ClassVar[bool | None] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.num_ablated < self.num_components:
            raise ConfigError(
                f"ablation_fraction={self.ablation_fraction} of {self.num_components} components rounds to "
                f"{self.num_ablated} ablated ones: fixed_size needs at least 1 ablated and 1 kept."
            )

    @property
    def num_ablated(self) -> int:
        """Ablated components of every mask."""
        return round(self.ablation_fraction * self.num_components)

    @override
    def mask(self, mask_id: int) -> NDArray[np.bool_]:
        return _all_but(_random_order(self, mask_id)[: self.num_ablated], self.num_components)


@dataclass(frozen=True)
class Balanced(MaskDesign):
    """Every component is ablated once in a round of round(1 / alpha) masks.

    A round is a random order of the components, cut in parts whose sizes differ by 1 at most; each mask ablates one.
    Averages over the masks that ablate a component then all have the same number of terms.
    """

    kind = "balanced"

    def __post_init__(self) -> None:
        super().__post_init__()
        if can_be_balanced(self.num_components, self.ablation_fraction):
            return
        if self.masks_per_round <= self.num_components:
            raise ConfigError(
                f"ablation_fraction={self.ablation_fraction}: a balanced design ablates 1/2, 1/3, 1/4, ... of the "
                f"components, and 1/{self.masks_per_round} is too far from it. Use another fraction or design."
            )
        raise ConfigError(
            f"ablation_fraction={self.ablation_fraction} of {self.num_components} components is less than one: "
            f"balanced needs at least 1 ablated component in every mask."
        )

    @property
    @override
    def masks_per_round(self) -> int:
        return max(2, round(1.0 / self.ablation_fraction))

    @override
    def mask(self, mask_id: int) -> NDArray[np.bool_]:
        number, part = divmod(mask_id, self.masks_per_round)
        first, end = (self.num_components * edge // self.masks_per_round for edge in (part, part + 1))
        return _all_but(_random_order(self, number)[first:end], self.num_components)


def can_be_balanced(num_components: int, ablation_fraction: float) -> bool:
    """Whether rounds of masks that each ablate so many components ablate every one of them once.

    Example:
        >>> can_be_balanced(48, 0.05), can_be_balanced(48, 0.3)
        (True, False)
    """
    num_masks = max(2, round(1.0 / ablation_fraction))
    return abs(ablation_fraction * num_masks - 1.0) <= _TOLERANCE and num_masks <= num_components


def _random_order(design: MaskDesign, number: int) -> NDArray[np.int64]:
    """Order ``number`` of all components: (num_components,) ids."""
    return np.argsort(raw_words(design, number, design.num_components), kind="stable")


def _all_but(ablated: NDArray[np.int64], num_components: int) -> NDArray[np.bool_]:
    mask = np.ones(num_components, dtype=np.bool_)
    mask[ablated] = False
    return mask
