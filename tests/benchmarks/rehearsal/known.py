"""Margins whose linear part is known: what takes the place of forward passes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from coar_dist.designs.design import MaskDesign
from coar_dist.store.gradients import GateGradients

_RANK = 16
_NOISE, _INTERACTION, _GRADIENT_NOISE = 0.4, 0.3, 2.0
"""Standard deviations, relative to those of the linear part of the margins and of the weights."""


@dataclass(frozen=True)
class Known:
    """Margins of examples: an offset, weights of the components, a product of two sums of components, and noise.

    Weights are of rank ``_RANK``, so that those of all examples need not lie in memory. Everything is a function of
    sizes, ids and a seed: every process has the same.

    Attributes:
        num_components: d.
        num_examples: n.
        ablation_fraction: of the masks; the linear part of the margins has variance 1 under it.
    """

    num_components: int
    num_examples: int
    ablation_fraction: float

    @cached_property
    def _spread(self) -> float:
        """Standard deviation of a component's bit."""
        return float(np.sqrt(self.ablation_fraction * (1.0 - self.ablation_fraction)))

    @cached_property
    def _directions(self) -> NDArray[np.float32]:
        """(_RANK + 2, d): of the weights, and of the two sums, whose components are apart."""
        drawn = np.random.default_rng([1, self.num_components]).standard_normal((_RANK + 2, self.num_components))
        drawn /= np.sqrt(self.num_components) * self._spread
        drawn[_RANK, ::2] = drawn[_RANK + 1, 1::2] = 0.0
        drawn[_RANK:] *= np.sqrt(2.0)
        return drawn.astype(np.float32)

    @cached_property
    def _loads(self) -> NDArray[np.float32]:
        """(n, _RANK + 2): the offset, and how much of every direction an example has."""
        loads = np.random.default_rng([2, self.num_examples]).standard_normal((self.num_examples, _RANK + 2))
        loads[:, :_RANK] /= np.sqrt(_RANK)
        return loads.astype(np.float32)

    def offsets(self) -> NDArray[np.float32]:
        """(n,): margins of the unablated model."""
        return 3.0 + self._loads[:, _RANK]

    def weights(self, block: tuple[int, int]) -> NDArray[np.float32]:
        """(block length, d): what keeping each component adds to the margins."""
        return self._loads[slice(*block), :_RANK] @ self._directions[:_RANK]

    def margins(self, masks: NDArray[np.bool_], first: int, seed: int, block: tuple[int, int]) -> NDArray[np.float32]:
        """(num_masks, block length) of masks ``first ..`` of the design of that seed."""
        loads = self._loads[slice(*block)]
        ablated = (~masks).astype(np.float32) @ self._directions.T
        centred = ablated[:, _RANK:] - self.ablation_fraction * self._directions[_RANK:].sum(axis=1)
        margins = self.offsets()[slice(*block)] - ablated[:, :_RANK] @ loads[:, :_RANK].T
        margins += _INTERACTION * centred.prod(axis=1, keepdims=True) * loads[:, _RANK + 1]
        for row in range(len(masks)):
            dice = np.random.default_rng([seed, first + row, block[0]])
            margins[row] += _NOISE * dice.standard_normal(len(loads), dtype=np.float32)
        return margins

    def gradients(
        self, design: MaskDesign, masks: NDArray[np.bool_], first: int, block: tuple[int, int]
    ) -> GateGradients:
        """Sums over these masks of gate gradients, each the weight and noise."""
        weights = self.weights(block)
        noise = _GRADIENT_NOISE * float(weights.std())
        dice = np.random.default_rng([design.seed, first, block[0]])
        counts = [masks.sum(axis=0, dtype=np.float32), (~masks).sum(axis=0, dtype=np.float32)]
        sums = []
        for count in counts:
            total = dice.standard_normal(weights.shape, dtype=np.float32)
            total *= noise * np.sqrt(count)
            total += count * weights
            sums.append(total)
        squares = np.square(weights).sum(axis=0, dtype=np.float64) + len(weights) * noise**2
        margins = self.margins(masks, first, design.seed, block)
        known = np.ones(self.num_components, np.bool_)
        return GateGradients(margins, *sums, *(count * squares for count in counts), known)
