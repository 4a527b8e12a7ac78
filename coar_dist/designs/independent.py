"""Masks that ablate every component independently, and their partners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from coar_dist.designs.design import MaskDesign, raw_words
from coar_dist.errors import ConfigError

_STEPS = 2**32
"""Probabilities are rounded to multiples of 1 / _STEPS."""


@dataclass(frozen=True)
class Bernoulli(MaskDesign):
    """Every component is ablated independently with probability alpha (the research code's masks)."""

    kind = "bernoulli"
    are_independent: ClassVar[bool | None] = True

    @override
    def mask(self, mask_id: int) -> NDArray[np.bool_]:
        words = raw_words(self, mask_id, (self.num_components + 1) // 2).view("<u4")
        return np.asarray(words[: self.num_components] >= round(self.ablation_fraction * _STEPS))


@dataclass(frozen=True)
class Correlated(MaskDesign):
    """Mask i of the bernoulli design of the same seed, in which each component is drawn again with probability
    1 - rho.

    Over pairs of mask i there and here, every component's correlation is rho. Both masks are bernoulli's.

    Attributes:
        correlation: rho, the share of components that stay as they are in bernoulli's mask i.
    """

    kind = "correlated"
    are_independent: ClassVar[bool | None] = True
    correlation: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.correlation < 1.0:
            raise ConfigError(f"correlation={self.correlation}: must be strictly between 0 and 1.")

    @override
    def mask(self, mask_id: int) -> NDArray[np.bool_]:
        size = self.num_components
        # The words that are needed beyond those of bernoulli's mask follow them in the same stream.
        words = raw_words(self, mask_id, 3 * ((size + 1) // 2)).view("<u4").reshape(3, -1)[:, :size]
        stays = words[1] < round(self.correlation * _STEPS)
        return np.asarray(np.where(stays, words[0], words[2]) >= round(self.ablation_fraction * _STEPS))
