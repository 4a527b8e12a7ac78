"""Ridge where there are fewer masks than components, from the Gram matrix of the masks alone.

Xc S**2 Xc' = U diag(e) U' with the positive eigenvalues e (r,) and orthonormal U (m, r). The eigenvectors of
``coar_dist.regression.factor`` are V = S Xc'U diag(e)**-1/2, but no (d, r) matrix is ever needed:

    q = V'S Xc'y = diag(e)**1/2 U'y
    Xc S V = U diag(e)**1/2
    S V g = S**2 Xc'U diag(e)**-1/2 g

Products with Xc' unpack a block of components at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.regression.factor import Factor, eigh
from coar_dist.regression.masks import PackedMasks


@dataclass(frozen=True)
class DualFactor:
    """Eigenvectors and positive eigenvalues of Xc S**2 Xc'.

    Attributes:
        left: U (m, r) float64, orthonormal columns.
        values: e (r,) float64, positive.
        masks: of the design.
        scale: the diagonal of S (d,) float64; None is 1.
    """

    left: torch.Tensor
    values: torch.Tensor
    masks: PackedMasks
    scale: torch.Tensor | None = None

    @property
    def num_masks(self) -> int:
        """m."""
        return self.masks.num_masks

    @property
    def num_components(self) -> int:
        """d."""
        return self.masks.num_components

    @property
    def rank(self) -> int:
        """r, the rank of the centred design."""
        return len(self.values)

    def vector_rows(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Blocks of components: their slice, and their rows of V (block length, r)."""
        return self._transposed_times(self.left / self.values.sqrt(), power=1)

    def weight_rows(self, coefficients: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Blocks of components: their slice, and their rows of S V g (block length, n) for coefficients g (r, n)."""
        return self._transposed_times(self.left @ (coefficients / self.values.sqrt().unsqueeze(1)), power=2)

    def _transposed_times(self, rows: torch.Tensor, power: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """S**power Xc' times (m, k) rows, in blocks of components."""
        for columns, x in _centred_columns(self.masks, rows.device):
            product = x.T @ rows
            yield columns, product if self.scale is None else self.scale[columns].unsqueeze(1) ** power * product

    def whole(self) -> Factor:
        """The same with V (d, r), for whoever cannot do without."""
        vectors = torch.empty(self.num_components, self.rank, dtype=torch.float64, device=self.values.device)
        for columns, rows in self.vector_rows():
            vectors[columns] = rows
        return Factor(vectors, self.values, self.num_masks, self.scale)


def _centred_columns(masks: PackedMasks, device: torch.device | str) -> Iterator[tuple[slice, torch.Tensor]]:
    """Blocks of components: their slice, and their columns of Xc (m, block length) float64."""
    for columns, bits in masks.columns():
        x = torch.from_numpy(bits).to(device).double()
        yield columns, x.sub_(x.mean(dim=0))


def factorise_dual(masks: PackedMasks, device: str, scale: NDArray[np.float64] | None = None) -> DualFactor:
    """From the Gram matrix of the masks, in float64 on ``device``.

    Args:
        masks: of the design.
        device: a torch device.
        scale: the diagonal of S (d,); None is 1.
    """
    diagonal = None if scale is None else torch.from_numpy(scale).to(device)
    centred = _products(masks, diagonal, device).double()
    centred -= centred.mean(dim=0)
    centred -= centred.mean(dim=1, keepdim=True)
    values, left = eigh(centred)
    return DualFactor(left, values, masks, diagonal)


def _products(masks: PackedMasks, diagonal: torch.Tensor | None, device: str) -> torch.Tensor:
    """X S**2 X' (m, m)."""
    dtype = torch.float32 if diagonal is None else torch.float64  # ones are exact in float32: fewer than 2**24
    products = torch.zeros(masks.num_masks, masks.num_masks, dtype=dtype, device=device)
    for columns, bits in masks.columns():
        x = torch.from_numpy(bits).to(device).to(dtype)
        if diagonal is not None:
            x *= diagonal[columns]
        products.addmm_(x, x.T)
    return products


AnyFactor = Factor | DualFactor
