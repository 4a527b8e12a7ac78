"""What a mask design is: mask i is a function of the design and of i alone, the same on every worker for ever.

Random bits come from Philox4x64-10 keyed by (seed, i), read as raw little-endian words. NumPy fixes these streams for
ever, unlike the methods of its ``Generator``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from coar_dist.errors import ConfigError


@dataclass(frozen=True)
class MaskDesign(ABC):
    """A rule for masks over ``num_components`` components; ``coar_dist.designs.registry`` lists the kinds.

    Attributes:
        num_components: components per mask.
        num_masks: masks 0 .. num_masks - 1 belong to the design. More masks never change the earlier ones.
        ablation_fraction: alpha, the share of components that a mask ablates: expected or exact, as the kind says.
        seed: 0 .. 2**64 - 1.
    """

    num_components: int
    num_masks: int
    ablation_fraction: float
    seed: int

    are_independent: ClassVar[bool | None] = False
    """Whether the masks are independent of each other; None: not known."""

    def __post_init__(self) -> None:
        if not 0.0 < self.ablation_fraction < 1.0:
            raise ConfigError(f"ablation_fraction={self.ablation_fraction}: must be strictly between 0 and 1.")

    @property
    @abstractmethod
    def kind(self) -> str:
        """Its name: a key of ``coar_dist.designs.registry.DESIGNS``, or ``module:function`` of a user's own rule."""

    @abstractmethod
    def mask(self, mask_id: int) -> NDArray[np.bool_]:
        """Mask ``mask_id``: (num_components,) bool, True = kept."""

    @property
    def masks_per_round(self) -> int:
        """Masks that together ablate every component equally often; 1 where only the expectation is equal."""
        return 1

    def masks(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Masks ``start .. stop - 1``: (stop - start, num_components) bool, True = kept.

        Raises:
            ConfigError: the design was imported, so that no rule makes its masks; or a user's own rule cannot be
                imported here, or makes other masks here than where the run was begun.
            TaskError: a user's own rule raises, or gives something else than a mask.
        """
        masks = np.empty((stop - start, self.num_components), dtype=np.bool_)
        for row, mask_id in enumerate(range(start, stop)):
            masks[row] = self.mask(mask_id)
        return masks

    def identity(self) -> dict[str, Any]:
        """Everything that a mask depends on; ``num_masks`` is not among it, so a run can be extended."""
        return {name: value for name, value in self.to_json().items() if name != "num_masks"}

    def to_json(self) -> dict[str, Any]:
        """The kind and all fields that are compared; ``coar_dist.designs.registry.design_from_json`` reads it."""
        return {"kind": self.kind} | {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.compare}


def raw_words(design: MaskDesign, mask_id: int, num_words: int) -> NDArray[np.uint64]:
    """The first random words of a mask's own stream: (num_words,) little-endian uint64."""
    generator = np.random.Philox(key=np.array([design.seed, mask_id], dtype=np.uint64))
    return np.asarray(generator.random_raw(num_words), dtype="<u8")
