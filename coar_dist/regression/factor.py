"""The factorisation that all examples share: from the Gram matrix of the components, or from that of the masks.

Notation: Xc = X minus its column means, (m, d); Xc'Xc = V diag(e) V' with only the positive eigenvalues e (r,).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.errors import CoarWarning
from coar_dist.regression.statistics import DesignStatistics, Gram

_RANK_TOLERANCE = 1e-10
"""Eigenvalues below this share of the largest count as zero: X'X is exact, so they are rounding of eigh alone."""
_COLUMNS_PER_BLOCK = 8192


@dataclass(frozen=True)
class Factor:
    """Eigenvectors and positive eigenvalues of Xc'Xc.

    Attributes:
        vectors: V (d, r) float64, orthonormal columns.
        values: e (r,) float64, positive.
        num_masks: m.
    """

    vectors: torch.Tensor
    values: torch.Tensor
    num_masks: int

    @property
    def num_components(self) -> int:
        """d."""
        return len(self.vectors)

    @property
    def rank(self) -> int:
        """r, the rank of the centred design."""
        return len(self.values)


@dataclass(frozen=True)
class PackedMasks:
    """All masks of a design, one bit each.

    Attributes:
        bits: (m, ceil(d / 8)) uint8, least significant bit first.
        num_components: d.
    """

    bits: NDArray[np.uint8]
    num_components: int

    def columns(self) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
        """Blocks of components: their slice, and 0/1 (m, block length) uint8."""
        for start in range(0, self.num_components, _COLUMNS_PER_BLOCK):
            stop = min(start + _COLUMNS_PER_BLOCK, self.num_components)
            packed = self.bits[:, start // 8 : -(-stop // 8)]
            yield slice(start, stop), np.unpackbits(packed, axis=1, count=stop - start, bitorder="little")

    def rows(self, num_rows: int) -> Iterator[NDArray[np.uint8]]:
        """Batches of masks, 0/1 (num_batch, d) uint8."""
        for start in range(0, len(self.bits), num_rows):
            yield np.unpackbits(
                self.bits[start : start + num_rows], axis=1, count=self.num_components, bitorder="little"
            )

    @property
    def design(self) -> DesignStatistics:
        """How often each component was kept."""
        kept = np.zeros(self.num_components)
        for batch in self.rows(1024):
            kept += batch.sum(axis=0, dtype=np.float64)
        return DesignStatistics(len(self.bits), kept)


def choose_solver(num_masks: int, num_components: int, memory_bytes: float) -> tuple[str, str]:
    """How ridge systems are solved, and why: ``primal``, ``dual`` or ``iterative``.

    ``primal`` decomposes the Gram matrix of the components (three d x d matrices at the peak), ``dual`` that of the
    masks where these are fewer (three m x m and one d x m); where neither fits, conjugate gradients.
    """
    primal = 24.0 * num_components**2
    dual = 24.0 * num_masks**2 + 8.0 * num_masks * num_components
    sizes = (
        f"{num_masks} masks, {num_components} components; primal {primal / 1e9:.2f} GB, dual {dual / 1e9:.2f} GB, "
        f"regression.memory_gb={memory_bytes / 1e9:g}"
    )
    if num_masks < num_components and dual <= memory_bytes:
        return "dual", sizes
    if primal <= memory_bytes:
        return "primal", sizes
    return "iterative", sizes


def factorise(gram: Gram, device: str) -> Factor:
    """From the Gram matrix of the components, in float64 on ``device``."""
    centred = torch.from_numpy(gram.centred(gram.design.mean)).to(device)
    values, vectors = torch.linalg.eigh(centred)
    vectors[torch.from_numpy(gram.design.says_nothing).to(device)] = 0.0
    positive = values > _RANK_TOLERANCE * values[-1].clamp(min=1.0)
    return Factor(vectors[:, positive], values[positive], gram.num_masks)


def factorise_dual(masks: PackedMasks, device: str) -> Factor:
    """From the Gram matrix of the masks: Xc Xc' = U diag(e) U', V = Xc'U diag(e)**-1/2."""
    num_masks = len(masks.bits)
    products = torch.zeros(num_masks, num_masks, device=device)
    for _, bits in masks.columns():
        x = torch.from_numpy(bits).to(device).float()
        products.addmm_(x, x.T)  # exact: sums of fewer than 2**24 ones
    centred = products.double()
    centred -= centred.mean(dim=0)
    centred -= centred.mean(dim=1, keepdim=True)
    values, left = torch.linalg.eigh(centred)
    positive = values > _RANK_TOLERANCE * values[-1].clamp(min=1.0)
    left, values = left[:, positive] / values[positive].sqrt(), values[positive]
    vectors = torch.empty(masks.num_components, len(values), dtype=torch.float64, device=device)
    for columns, bits in masks.columns():
        x = torch.from_numpy(bits).to(device).double()
        vectors[columns] = (x - x.mean(dim=0)).T @ left
    return Factor(vectors, values, num_masks)


def warn_if_rank_deficient(factor: Factor) -> None:
    """Warn that least squares has no unique solution on this design."""
    if factor.rank < factor.num_components:
        warnings.warn(
            f"the centred design of {factor.num_masks} masks has rank {factor.rank} < {factor.num_components} "
            f"components: regularisation=0 gives the minimum-norm least-squares solution. More masks, or a ridge "
            f"penalty (regression.regularisation=null), predict better.",
            CoarWarning,
            stacklevel=2,
        )
