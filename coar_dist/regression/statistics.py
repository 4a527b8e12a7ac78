"""Sufficient statistics of all regressions on one design: after one pass the number of masks never appears again.

Shapes: m masks, d components, n examples of a block. X (m, d) is 0/1, Y (m, n) are margins. X'X is exact, so it may be
summed in any order; X'Y is summed in mask order in batches of fixed size, so that it has the same bits whoever adds it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.errors import MissingWorkError, NonFiniteMarginError

MASKS_PER_BATCH = 1024
"""Masks of one matrix product of X'Y; a part of what its last bits depend on."""
_EXACT_IN_FLOAT32 = 2**24
"""How many ones a float32 sum holds exactly."""

MaskBatches = Iterable[NDArray[np.bool_]]
MarginBatches = Iterable[tuple[NDArray[np.bool_], NDArray[np.float32]]]


@dataclass(frozen=True)
class DesignStatistics:
    """What all examples share.

    Attributes:
        num_masks: m.
        kept: X'1 (d,) float64, exact integers: how often each component was kept.
    """

    num_masks: int
    kept: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """How often each component was kept, as a share of the masks: (d,) float64."""
        return self.kept / self.num_masks

    @property
    def says_nothing(self) -> NDArray[np.bool_]:
        """(d,) bool: components that all masks keep, or all ablate; their centred column is exactly 0."""
        return np.asarray((self.kept == 0) | (self.kept == self.num_masks))


@dataclass(frozen=True)
class Gram:
    """X'X of some of the masks.

    Attributes:
        num_masks: how many.
        products: X'X (d, d) float64, exact integers; its diagonal is X'1.
    """

    num_masks: int
    products: NDArray[np.float64]

    def __add__(self, other: Gram) -> Gram:
        return Gram(self.num_masks + other.num_masks, self.products + other.products)

    def __sub__(self, other: Gram) -> Gram:
        return Gram(self.num_masks - other.num_masks, self.products - other.products)

    @property
    def design(self) -> DesignStatistics:
        """The means that go with it."""
        return DesignStatistics(self.num_masks, self.products.diagonal().copy())

    def centred(self, mean: NDArray[np.float64], device: str) -> torch.Tensor:
        """(X - mean)'(X - mean): (d, d) float64, computed in place on ``device``."""
        centred = torch.from_numpy(self.products).to(device, copy=True)
        kept, about = centred.diagonal().clone(), torch.from_numpy(mean).to(device)
        return (
            centred.addr_(kept, about, alpha=-1).addr_(about, kept, alpha=-1).addr_(about, about, alpha=self.num_masks)
        )


@dataclass(frozen=True)
class MarginStatistics:
    """What belongs to the examples of one block; margins are taken relative to ``shift``, which loses no digits.

    Attributes:
        shift: (n,) float64, any fixed value near the margins: each example's first margin.
        cross: X'(Y - shift) (d, n) float64.
        sums: sum over masks of y - shift, (n,) float64.
        square_sums: sum over masks of (y - shift)**2, (n,) float64; 0 where the margins are constant, and only there.
    """

    shift: NDArray[np.float64]
    cross: NDArray[np.float64]
    sums: NDArray[np.float64]
    square_sums: NDArray[np.float64]

    def __add__(self, other: MarginStatistics) -> MarginStatistics:
        assert np.array_equal(self.shift, other.shift)
        return MarginStatistics(
            self.shift,
            self.cross + other.cross,
            self.sums + other.sums,
            self.square_sums + other.square_sums,
        )

    @property
    def is_constant(self) -> NDArray[np.bool_]:
        """(n,) bool: examples whose margin is the same under every mask."""
        return np.asarray(self.square_sums == 0.0)

    def centred_cross(self, design: DesignStatistics) -> NDArray[np.float64]:
        """X'Y - X'1 1'Y / m: (d, n) float64."""
        centred = self.cross - np.outer(design.kept, self.sums / design.num_masks)
        centred[design.says_nothing] = 0.0  # not the rounding of two equal sums
        return np.asarray(centred)

    def centred_squares(self, design: DesignStatistics) -> NDArray[np.float64]:
        """Sum over masks of (y - mean)**2: (n,) float64, at least 0."""
        return np.maximum(self.square_sums - self.sums**2 / design.num_masks, 0.0)

    def mean(self, design: DesignStatistics) -> NDArray[np.float64]:
        """Mean margin: (n,) float64."""
        return self.shift + self.sums / design.num_masks

    def intercepts(self, design: DesignStatistics, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Intercepts (n,) that go with weights (d, n): mean margin minus the weights at the mean mask."""
        return self.mean(design) - design.mean @ weights


def gram(batches: MaskBatches, device: str) -> Gram:
    """X'X of the given masks, exact: products of 0/1 add up in float32, or in bfloat16 tensor cores with float32 sums.

    Args:
        batches: (num_batch, d) bool.
        device: where the products are computed.

    Raises:
        MissingWorkError: there are no masks.
    """
    num_masks = 0
    total: torch.Tensor | None = None
    recent: torch.Tensor | None = None
    num_recent = 0
    for masks in batches:
        assert len(masks) < _EXACT_IN_FLOAT32
        if recent is not None and num_recent + len(masks) >= _EXACT_IN_FLOAT32:
            total = recent.double() if total is None else total.add_(recent)
            recent, num_recent = None, 0
        bits = torch.from_numpy(masks.view(np.uint8)).to(device)
        recent = _add_product(recent, bits)
        num_recent += len(masks)
        num_masks += len(masks)
    if recent is None:
        raise MissingWorkError("a regression needs at least 2 masks, but there are none.")
    return Gram(num_masks, (recent.double() if total is None else total.add_(recent)).cpu().numpy())


def _add_product(total: torch.Tensor | None, bits: torch.Tensor) -> torch.Tensor:
    """``total`` + bits'bits in float32."""
    if bits.device.type == "cuda":
        x = bits.to(torch.bfloat16)
        product = torch.mm(x.T, x, out_dtype=torch.float32)
        return product if total is None else total.add_(product)
    x = bits.float()
    return x.T @ x if total is None else total.addmm_(x.T, x)


def margin_statistics(
    batches: MarginBatches, device: str = "cpu", shift: NDArray[np.float64] | None = None
) -> MarginStatistics:
    """One pass over the margins of one example block.

    Args:
        batches: masks (num_batch, d) bool and margins (num_batch, n) float32, in mask order.
        device: where the products are computed, in float64.
        shift: (n,) float64; None is the margins of the first mask.

    Raises:
        NonFiniteMarginError: a margin is NaN or infinite.
        MissingWorkError: there are no masks.
    """
    sums: tuple[torch.Tensor, ...] = ()
    position = 0
    for masks, margins in batches:
        if not np.isfinite(margins).all():
            row, column = (int(i) for i in np.argwhere(~np.isfinite(margins))[0])
            raise NonFiniteMarginError(
                f"the margin of mask {position + row} and example {column} of the block is {margins[row, column]}."
            )
        if shift is None:
            shift = margins[0].astype(np.float64)
        y = torch.from_numpy(margins).to(device).double() - torch.from_numpy(shift).to(device)
        x = torch.from_numpy(masks.view(np.uint8)).to(device).double()
        if not sums:
            sums = (x.T @ y, y.sum(dim=0), (y * y).sum(dim=0))
        else:
            sums[0].addmm_(x.T, y)
            sums[1].add_(y.sum(dim=0))
            sums[2].add_((y * y).sum(dim=0))
        position += len(masks)
    if shift is None:
        raise MissingWorkError("a regression needs at least 2 masks, but there are none.")
    cross, totals, squares = (tensor.cpu().numpy() for tensor in sums)
    return MarginStatistics(shift, cross, totals, squares)
