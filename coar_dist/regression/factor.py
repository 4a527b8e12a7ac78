"""The factorisation that all examples share: from the Gram matrix of the components, or from that of the masks.

Notation: Xc = X minus its column means, (m, d); S Xc'Xc S = V diag(e) V' with only the positive eigenvalues e (r,).
S is diagonal, the prior standard deviations of the weights: ridge then penalises w' S**-2 w. It is 1 in plain ridge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.errors import warn
from coar_dist.regression.statistics import DesignStatistics, Gram

_RANK_TOLERANCE = 1e-10
"""Eigenvalues below this share of the largest count as zero: X'X is exact, so they are rounding of eigh alone."""
_COLUMNS_PER_BLOCK = 8192


@dataclass(frozen=True)
class Factor:
    """Eigenvectors and positive eigenvalues of S Xc'Xc S.

    Attributes:
        vectors: V (d, r) float64, orthonormal columns.
        values: e (r,) float64, positive.
        num_masks: m.
        scale: the diagonal of S (d,) float64; None is 1.
    """

    vectors: torch.Tensor
    values: torch.Tensor
    num_masks: int
    scale: torch.Tensor | None = None

    @property
    def num_components(self) -> int:
        """d."""
        return len(self.vectors)

    @property
    def rank(self) -> int:
        """r, the rank of the centred design."""
        return len(self.values)

    def scaled(self, rows: torch.Tensor) -> torch.Tensor:
        """S times (d, ...) rows."""
        return rows if self.scale is None else self.scale.reshape(-1, *[1] * (rows.ndim - 1)) * rows


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


def factorise(gram: Gram, device: str, scale: NDArray[np.float64] | None = None) -> Factor:
    """From the Gram matrix of the components, in float64 on ``device``.

    Args:
        gram: X'X.
        device: a torch device.
        scale: the diagonal of S (d,); None is 1.
    """
    centred = gram.centred(gram.design.mean, device)
    diagonal = None if scale is None else torch.from_numpy(scale).to(device)
    if diagonal is not None:
        centred *= diagonal
        centred *= diagonal.unsqueeze(1)
    values, vectors = torch.linalg.eigh(centred)
    vectors[torch.from_numpy(gram.design.says_nothing).to(device)] = 0.0
    positive = values > _RANK_TOLERANCE * values[-1].clamp(min=1.0)
    return Factor(vectors[:, positive], values[positive], gram.num_masks, diagonal)


def factorise_dual(masks: PackedMasks, device: str, scale: NDArray[np.float64] | None = None) -> Factor:
    """From the Gram matrix of the masks: Xc S**2 Xc' = U diag(e) U', V = S Xc'U diag(e)**-1/2.

    Args:
        masks: of the design.
        device: a torch device.
        scale: the diagonal of S (d,); None is 1.
    """
    num_masks = len(masks.bits)
    diagonal = None if scale is None else torch.from_numpy(scale).to(device)
    dtype = torch.float32 if diagonal is None else torch.float64  # ones are exact in float32: fewer than 2**24
    products = torch.zeros(num_masks, num_masks, dtype=dtype, device=device)
    for columns, bits in masks.columns():
        x = torch.from_numpy(bits).to(device).to(dtype)
        if diagonal is not None:
            x *= diagonal[columns]
        products.addmm_(x, x.T)
    centred = products.double()
    centred -= centred.mean(dim=0)
    centred -= centred.mean(dim=1, keepdim=True)
    values, left = torch.linalg.eigh(centred)
    positive = values > _RANK_TOLERANCE * values[-1].clamp(min=1.0)
    left, values = left[:, positive] / values[positive].sqrt(), values[positive]
    vectors = torch.empty(masks.num_components, len(values), dtype=torch.float64, device=device)
    for columns, bits in masks.columns():
        x = torch.from_numpy(bits).to(device).double()
        if diagonal is not None:
            x *= diagonal[columns]
        vectors[columns] = (x - x.mean(dim=0)).T @ left
    return Factor(vectors, values, num_masks, diagonal)


def warn_if_rank_deficient(factor: Factor) -> None:
    """Warn that least squares has no unique solution on this design."""
    if factor.rank < factor.num_components:
        warn(
            f"the centred design of {factor.num_masks} masks has rank {factor.rank} < {factor.num_components} "
            f"components: regularisation=0 gives the minimum-norm least-squares solution. More masks, or a ridge "
            f"penalty (regression.regularisation=null), predict better."
        )
