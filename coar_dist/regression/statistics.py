"""Sufficient statistics of all regressions on one design: after one pass the number of masks never appears again.

Shapes: m masks, d components, n examples of a block. X (m, d) is 0/1, Y (m, n) are margins. X'X is exact, so it may be
summed in any order; X'Y is summed in mask order in batches of fixed size, so that it has the same bits whoever adds it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.errors import MissingWorkError, NonFiniteMarginError

MASKS_PER_BATCH = 1024
"""Masks of one matrix product of X'Y; a part of what its last bits depend on."""
_EXACT_IN_FLOAT32 = 2**24
"""How many ones a float32 sum holds exactly."""

_VALUES_AT_ONCE = 2**24
"""Ones and zeros in float64 at a time; 128 MB."""


class Bits(Protocol):
    """Masks that are packed where they are: an eighth of their bytes goes to a device, where they are unpacked."""

    def __len__(self) -> int: ...

    def on(self, device: str) -> torch.Tensor:
        """0/1 (num_masks, d) uint8."""


MaskBatches = Iterable[NDArray[np.bool_] | Bits]
MarginBatches = Iterable[tuple[NDArray[np.bool_] | Bits, NDArray[np.floating[Any]]]]


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
        products: X'X (d, d), exact integers: float32 while that holds them, else float64; its diagonal is X'1.
    """

    num_masks: int
    products: NDArray[np.float32] | NDArray[np.float64]

    @classmethod
    def total(cls, parts: Iterable[Gram]) -> Gram:
        """The sum, in the memory of one; the parts are not changed."""
        num_masks = 0
        products: NDArray[Any] | None = None
        for part in parts:
            num_masks += part.num_masks
            if products is None:
                products = part.products.copy()
                continue
            products = products.astype(_dtype_of(num_masks), copy=False)
            products += part.products
        assert products is not None
        return cls(num_masks, products)

    def __sub__(self, other: Gram) -> Gram:
        return Gram(self.num_masks - other.num_masks, self.products - other.products)

    @property
    def design(self) -> DesignStatistics:
        """The means that go with it."""
        return DesignStatistics(self.num_masks, self.products.diagonal().astype(np.float64))

    def centred(self, mean: NDArray[np.float64], device: str) -> torch.Tensor:
        """(X - mean)'(X - mean): (d, d) float64, computed in place on ``device``."""
        centred = as_tensor(self.products, device).to(torch.float64, copy=True)
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
        batches: (num_batch, d) bool, or packed.
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
        recent = _add_product(recent, _on(masks, device))
        num_recent += len(masks)
        num_masks += len(masks)
    if recent is None:
        raise MissingWorkError("a regression needs at least 2 masks, but there are none.")
    return Gram(num_masks, (recent if total is None else total.add_(recent)).cpu().numpy())


def _dtype_of(num_masks: int) -> type[np.floating[Any]]:
    return np.float32 if num_masks < _EXACT_IN_FLOAT32 else np.float64


def as_tensor(array: NDArray[Any], device: str) -> torch.Tensor:
    """A tensor on the array's own memory, or on the device; arrays from an object store are read-only, and stay so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)


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
        batches: masks (num_batch, d) bool, or packed, and margins (num_batch, n), in mask order.
        device: where the products are computed, in float64.
        shift: (n,) float64; None is the margins of the first mask.

    Raises:
        NonFiniteMarginError: a margin is NaN or infinite.
        MissingWorkError: there are no masks.
    """
    sums: tuple[torch.Tensor, ...] = ()
    position = 0
    for masks, margins in batches:
        require_finite(margins, position)
        if shift is None:
            shift = margins[0].astype(np.float64)
        y = torch.from_numpy(margins).to(device).double() - torch.from_numpy(shift).to(device)
        bits = _on(masks, device)
        if not sums:
            sizes = ((bits.shape[1], y.shape[1]), (y.shape[1],), (y.shape[1],))
            sums = tuple(torch.zeros(size, dtype=torch.float64, device=device) for size in sizes)
        for columns in _column_slices(bits):
            x = bits[:, columns].double()
            sums[0][columns].addmm_(x.T, y)
        sums[1].add_(y.sum(dim=0))
        sums[2].add_((y * y).sum(dim=0))
        position += len(masks)
    if shift is None:
        raise MissingWorkError("a regression needs at least 2 masks, but there are none.")
    cross, totals, squares = (tensor.cpu().numpy() for tensor in sums)
    return MarginStatistics(shift, cross, totals, squares)


def require_finite(margins: NDArray[np.floating[Any]], position: int) -> None:
    """Refuse margins (num_batch, n), the first of which is of mask ``position``, that are NaN or infinite.

    Raises:
        NonFiniteMarginError: naming the first.
    """
    if not np.isfinite(margins).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(margins))[0])
        raise NonFiniteMarginError(
            f"the margin of mask {position + row} and example {column} of the block is {margins[row, column]}."
        )


def _on(masks: NDArray[np.bool_] | Bits, device: str) -> torch.Tensor:
    return torch.from_numpy(masks.view(np.uint8)).to(device) if isinstance(masks, np.ndarray) else masks.on(device)


def _column_slices(bits: torch.Tensor) -> Iterator[slice]:
    step = max(_VALUES_AT_ONCE // len(bits), 1)
    for start in range(0, bits.shape[1], step):
        yield slice(start, start + step)
