"""The factorisation that all examples share: eigenvectors and eigenvalues of the centred Gram matrix.

Notation: Xc = X minus its column means, (m, d); S Xc'Xc S = V diag(e) V' with only the positive eigenvalues e (r,).
S is diagonal, the prior standard deviations of the weights: ridge then penalises w' S**-2 w. It is 1 in plain ridge.
Where there are fewer masks than components, ``coar_dist.regression.dual`` does without V.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.errors import warn
from coar_dist.regression.masks import components_at_once
from coar_dist.regression.statistics import Gram

_RANK_TOLERANCE = 1e-10
"""Eigenvalues below this share of the largest count as zero: X'X is exact, so they are rounding of eigh alone."""


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

    def vector_rows(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Blocks of components: their slice, and their rows of V (block length, r)."""
        step = components_at_once(self.rank)
        for start in range(0, self.num_components, step):
            part = slice(start, min(start + step, self.num_components))
            yield part, self.vectors[part]

    def whole(self) -> Factor:
        """This, as V is at hand."""
        return self


def factorise(gram: Gram, device: str, scale: NDArray[np.float64] | None = None) -> Factor:
    """From the Gram matrix of the components, in float64 on ``device``.

    Args:
        gram: X'X.
        device: a torch device.
        scale: the diagonal of S (d,); None is 1.
    """
    design = gram.design
    centred = gram.centred(design.mean, device)
    del gram  # whoever holds it no longer frees its memory here
    diagonal = None if scale is None else torch.from_numpy(scale).to(device)
    if diagonal is not None:
        centred *= diagonal
        centred *= diagonal.unsqueeze(1)
    values, vectors = eigh(centred)
    vectors[torch.from_numpy(design.says_nothing).to(device)] = 0.0
    return Factor(vectors, values, design.num_masks, diagonal)


def eigh(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positive eigenvalues (r,), ascending, and eigenvectors (d, r) of a symmetric matrix, which is overwritten.

    On a CPU by relatively robust representations (Dhillon & Parlett 2004; LAPACK's dsyevr): beside the matrix it takes
    the memory of the eigenvectors, where divide and conquer takes three times that.
    """
    if matrix.device.type == "cpu":
        values, vectors = (torch.from_numpy(array) for array in _lapack(matrix, eigvals_only=False))
    else:
        values, vectors = torch.linalg.eigh(matrix)
    first = int((values <= _RANK_TOLERANCE * values[-1].clamp(min=1.0)).sum())
    return values[first:], vectors[:, first:]


def eigenvalues(matrix: torch.Tensor) -> torch.Tensor:
    """All eigenvalues (d,), ascending, of a symmetric matrix, which is overwritten."""
    if matrix.device.type == "cpu":
        return torch.from_numpy(_lapack(matrix, eigvals_only=True))
    values: torch.Tensor = torch.linalg.eigvalsh(matrix)
    return values


def _lapack(matrix: torch.Tensor, eigvals_only: bool) -> Any:
    from scipy.linalg import eigh as of_symmetric
    from threadpoolctl import threadpool_limits

    with threadpool_limits(torch.get_num_threads(), user_api="blas"):  # bits depend on the number of threads
        transposed = matrix.numpy().T  # as LAPACK has them, column by column
        return of_symmetric(transposed, eigvals_only=eigvals_only, driver="evr", overwrite_a=True, check_finite=False)


def warn_if_rank_deficient(rank: int, num_masks: int, num_components: int) -> None:
    """Warn where least squares has no unique solution on a design."""
    if rank < num_components:
        warn(
            f"the centred design of {num_masks} masks has rank {rank} < {num_components} "
            f"components: regularisation=0 gives the minimum-norm least-squares solution. More masks, or a ridge "
            f"penalty (regression.regularisation=null), predict better."
        )
