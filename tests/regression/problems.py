"""Random regressions with noise and large offsets, and their statistics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from coar_dist.designs.registry import DESIGNS
from coar_dist.regression.factor import Factor, factorise
from coar_dist.regression.masks import PackedMasks
from coar_dist.regression.ridge import Projected, project
from coar_dist.regression.statistics import DesignStatistics, MarginStatistics, gram, margin_statistics


def problem(
    num_masks: int = 90, num_components: int = 12, num_examples: int = 5, seed: int = 0, kind: str = "bernoulli"
) -> tuple[Any, Any]:
    """Masks and noisy margins with large, different offsets."""
    random = np.random.default_rng(seed)
    masks = DESIGNS[kind](num_components, num_masks, 0.2, seed).masks(0, num_masks)
    weights = random.normal(size=(num_components, num_examples)) * np.linspace(0.1, 3, num_examples)
    margins = masks @ weights + random.normal(size=(num_masks, num_examples)) + np.linspace(-200, 300, num_examples)
    return masks, margins.astype(np.float32)


def batches(masks: np.ndarray, size: int = 32, margins: np.ndarray | None = None) -> Iterator[Any]:
    """Masks, or masks and margins, in batches."""
    for start in range(0, len(masks), size):
        rows = slice(start, start + size)
        yield masks[rows] if margins is None else (masks[rows], margins[rows])


def fitted(masks: np.ndarray, margins: np.ndarray) -> tuple[DesignStatistics, Factor, MarginStatistics]:
    """Means, primal factor and statistics."""
    whole = gram(batches(masks), "cpu")
    return whole.design, factorise(whole, "cpu"), margin_statistics(batches(masks, 32, margins))


def projected(masks: np.ndarray, margins: np.ndarray) -> tuple[DesignStatistics, Factor, MarginStatistics, Projected]:
    """The same with the block in the factor's coordinates."""
    design, factor, block = fitted(masks, margins)
    return design, factor, block, project(factor, design, block)


def packed(masks: np.ndarray) -> PackedMasks:
    """One bit per component."""
    return PackedMasks(np.packbits(masks, axis=1, bitorder="little"), masks.shape[1])
