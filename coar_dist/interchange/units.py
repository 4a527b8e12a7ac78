"""The units of weights: per mask bit here, per standard deviation of a mask bit in the research code's files.

Its regression (fast_l1, ``train_saga``) fits ``y = bias + sum_c weight_c * (x_c - mean_c) / deviation_c`` with x = 1
for a kept component, and saves ``weight`` and ``bias`` of that model; mean and deviation, of the masks that it was
fitted on, are not saved. Ours is ``y = intercept + sum_c w_c * x_c``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coar_dist.errors import ComponentMismatchError, ConfigError, MissingWorkError
from coar_dist.interchange.ids import in_ranges


@dataclass(frozen=True)
class MaskUnits:
    """What masks are standardised by.

    Attributes:
        mean: (num_components,) float64, the share of masks that keep the component.
        deviation: (num_components,) float64, the standard deviation of its mask bit (population, as in fast_l1).
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @classmethod
    def bits(cls, num_components: int) -> MaskUnits:
        """Not standardised: weights are per mask bit, as in this package."""
        return cls(np.zeros(num_components), np.ones(num_components))

    @classmethod
    def of_fraction(cls, ablation_fraction: float, num_components: int) -> MaskUnits:
        """What independent masks of this ablation fraction have in expectation.

        Raises:
            ConfigError: it is not strictly between 0 and 1.
        """
        if not 0.0 < ablation_fraction < 1.0:
            raise ConfigError(f"ablation_fraction={ablation_fraction}: must be strictly between 0 and 1.")
        deviation = (ablation_fraction * (1.0 - ablation_fraction)) ** 0.5
        return cls(np.full(num_components, 1.0 - ablation_fraction), np.full(num_components, deviation))

    @classmethod
    def of_masks(cls, batches: Iterable[NDArray[np.bool_]]) -> MaskUnits:
        """The masks themselves, in batches: (num_batch, num_components) bool each.

        Raises:
            MissingWorkError: there are none.
        """
        kept: NDArray[np.int64] | None = None
        num_masks = 0
        for masks in batches:
            sums = masks.sum(axis=0, dtype=np.int64)
            kept = sums if kept is None else kept + sums
            num_masks += len(masks)
        if kept is None or not num_masks:
            raise MissingWorkError("weights cannot be standardised by masks that are not there: there are none.")
        mean = kept / num_masks
        return cls(mean, np.sqrt(mean * (1.0 - mean)))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over both."""
        return "sha256:" + hashlib.sha256(np.stack([self.mean, self.deviation]).astype("<f8").tobytes()).hexdigest()

    def to_bits(
        self, weights: NDArray[np.floating], bias: NDArray[np.floating]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weights (n, num_components) and bias (n,) of the standardised model as weights per mask bit and intercepts.

        Raises:
            ComponentMismatchError: a component that all masks keep, or all ablate, has a weight, so these are not the
                masks that the weights were fitted on.
        """
        constant = self.deviation == 0.0
        weighted = np.flatnonzero(constant & weights.any(axis=0))
        if weighted.size:
            raise ComponentMismatchError(
                f"components {in_ranges(weighted)} have weights, though none or all of the masks ablate them: these "
                f"are not the masks that the attributions were fitted on. Give the right ones as standardised_by."
            )
        per_bit = weights.astype(np.float64) / np.where(constant, 1.0, self.deviation)
        return per_bit, bias.astype(np.float64) - per_bit @ self.mean

    def from_bits(
        self, weights: NDArray[np.floating], intercepts: NDArray[np.floating]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The inverse of ``to_bits``; the weight of a component that never varies becomes part of the bias."""
        per_bit = weights.astype(np.float64)
        return per_bit * self.deviation, intercepts.astype(np.float64) + per_bit @ self.mean
