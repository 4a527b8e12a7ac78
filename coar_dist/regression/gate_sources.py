"""What passes with gradients say of the weights: means of gate gradients, and how they fit the margins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.regression.observations import Margins
from coar_dist.regression.statistics import DesignStatistics, as_tensor, require_finite
from coar_dist.store.gradients import GradientStore
from coar_dist.store.tables import AttributionTable

_VALUES_AT_ONCE = 2**24


@dataclass(frozen=True)
class GateSources:
    """Where the sources of the prior mean lie.

    Attributes:
        gradients: one per example block.
        leave_one_out: its attributions; None where there are none.
    """

    gradients: tuple[GradientStore, ...]
    leave_one_out: AttributionTable | None

    @property
    def names(self) -> list[str]:
        """Names of the sources, in order."""
        return ["kept", "ablated", *(["leave_one_out"] if self.leave_one_out is not None else [])]

    def settings(self, blocks: list[tuple[int, int]]) -> dict[str, Any]:
        """What attributions depend on besides those of the train design."""
        gradients = self.gradients[0]
        settings: dict[str, Any] = {"gradients": gradients.fingerprint, "num_gradient_masks": gradients.num_masks}
        if self.leave_one_out is not None:
            settings["leave_one_out"] = self.leave_one_out.settings_fingerprint(blocks)
        return settings

    def read(self, block: tuple[int, int]) -> BlockSources:
        """The sources of one example block.

        Raises:
            MissingWorkError, DamagedFileError: they cannot be read.
        """
        (store,) = (gradients for gradients in self.gradients if gradients.block == block)
        kept_count = np.zeros(store.num_components)
        margins = []
        sums: list[NDArray[np.float64]] = []
        squares = np.zeros(store.num_components)
        known = np.ones(store.num_components, np.bool_)
        for masks, gradients in store.read():
            kept_count += masks.sum(axis=0)
            margins.append(gradients.margins)
            sums = sums or [np.zeros(part.shape) for part in (gradients.kept, gradients.ablated)]
            for total, part in zip(sums, (gradients.kept, gradients.ablated), strict=True):
                total += part
            squares += gradients.kept_squares + gradients.ablated_squares
            known &= gradients.known
        all_margins = np.concatenate(margins)
        counts = np.stack([kept_count, len(all_margins) - kept_count])
        within = squares
        values: list[NDArray[np.float32]] = []
        for total, count in zip(sums, np.maximum(counts, 1), strict=True):
            within -= np.einsum("nd,nd->d", total, total) / count
            total /= count
            values.append(total.astype(np.float32))
        del sums
        # Where no mask keeps, or none ablates, a component, the other end of its gate has to do.
        for i in (0, 1):
            is_empty = np.flatnonzero(counts[i] == 0)
            values[i][:, is_empty] = values[1 - i][:, is_empty]
        if self.leave_one_out is not None:
            values.append(self.leave_one_out.read(block)[0])
        return BlockSources(all_margins, values, counts, np.maximum(within, 0.0), known)


@dataclass(frozen=True)
class BlockSources:
    """The sources of one example block.

    Attributes:
        margins: (num_gradient_masks, n) float32, of the passes with gradients.
        values: of every source (n, num_components) float32.
        counts: (2, num_components) float64, the masks that keep and ablate a component.
        within: (num_components,) float64, squares of gate gradients around their means, summed over the examples.
        known: (num_components,) bool, components that have gate gradients; the others' are zero.
    """

    margins: NDArray[np.float32]
    values: list[NDArray[np.float32]]
    counts: NDArray[np.float64]
    within: NDArray[np.float64]
    known: NDArray[np.bool_]


@dataclass(frozen=True)
class SourceStatistics:
    """What the prior is made of; the blocks' add up.

    Attributes:
        products: (k, k), per example s_k'Xc'Xc s_l over the margins' sum of squares, summed.
        cross: (k,), per example s_k'Xc'y over the same, summed.
        sizes: (k, k, num_components), s_k s_l summed over the examples.
        within: (num_components,), as in ``BlockSources``.
        counts: (2, num_components), the same in every block.
        variance: of the margins over the masks, summed over the examples.
        num_examples: of the blocks.
        known: (num_components,), as in ``BlockSources``.
    """

    products: NDArray[np.float64]
    cross: NDArray[np.float64]
    sizes: NDArray[np.float64]
    within: NDArray[np.float64]
    counts: NDArray[np.float64]
    variance: float
    num_examples: int
    known: NDArray[np.bool_]

    @property
    def per_pass_variances(self) -> NDArray[np.float64]:
        """Variance v of a gate gradient at either end of its gate, mean over the examples: (num_components,)."""
        freedom = self.num_examples * np.maximum(self.counts.sum(axis=0) - (self.counts > 0).sum(axis=0), 1)
        return np.asarray(self.within / freedom)

    @property
    def mean_variance(self) -> float:
        """Variance of the margins over the masks, mean over the examples."""
        return self.variance / self.num_examples

    def __add__(self, other: SourceStatistics) -> SourceStatistics:
        return SourceStatistics(
            self.products + other.products,
            self.cross + other.cross,
            self.sizes + other.sizes,
            self.within + other.within,
            self.counts,
            self.variance + other.variance,
            self.num_examples + other.num_examples,
            self.known & other.known,
        )


def source_statistics(
    margins: Margins,
    found: BlockSources,
    design: DesignStatistics,
    rows: NDArray[np.int64],
    device: str,
) -> tuple[SourceStatistics, SampledRows]:
    """One pass over the margins of an example block.

    Args:
        margins: of the block.
        found: its sources.
        design: means of the masks.
        rows: the examples of the block on which priors are tried.
        device: where the products are computed.
    """
    sources = [as_tensor(values, device).T for values in found.values]
    num_examples = sources[0].shape[1]
    mean = torch.from_numpy(design.mean).to(device)
    at_mean = torch.stack([mean @ source.double() for source in sources])
    products = torch.zeros(len(sources), len(sources), num_examples, dtype=torch.float64, device=device)
    cross = torch.zeros(len(sources), num_examples, dtype=torch.float64, device=device)
    shift: torch.Tensor | None = None
    sums = torch.zeros(2, num_examples, dtype=torch.float64, device=device)
    sampled: list[tuple[NDArray[np.float32], ...]] = []
    position = 0
    for batch in margins.parts(0, design.num_masks):
        require_finite(batch, position)
        y = torch.from_numpy(batch).to(device).double()
        shift = y[0].clone() if shift is None else shift
        y -= shift
        masks = margins.masks.part(position, position + len(batch))
        predicted = torch.stack([masks.times(source) for source in sources]) - at_mean.unsqueeze(1)
        products += torch.einsum("kmn,lmn->kln", predicted, predicted)
        cross += torch.einsum("kmn,mn->kn", predicted, y)
        sums += torch.stack([y.sum(dim=0), (y * y).sum(dim=0)])
        sampled.append(
            (y[:, rows].cpu().numpy().astype(np.float32), predicted[..., rows].cpu().numpy().astype(np.float32))
        )
        position += len(batch)
    squares = sums[1] - sums[0] ** 2 / design.num_masks
    weight = torch.where(squares > 0, 1.0 / squares.clamp(min=1e-300), 0.0)
    statistics = SourceStatistics(
        (products * weight).sum(dim=2).cpu().numpy(),
        (cross * weight).sum(dim=1).cpu().numpy(),
        _products_by_component(found.values),
        found.within,
        found.counts,
        float(squares.sum()) / design.num_masks,
        num_examples,
        found.known,
    )
    return statistics, SampledRows(
        np.concatenate([y for y, _ in sampled]), np.concatenate([predicted for _, predicted in sampled], axis=1)
    )


def _products_by_component(sources: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    """s_k s_l summed over the examples (k, k, num_components), in float64, a few components at a time."""
    num_examples, num_components = sources[0].shape
    products = np.empty((len(sources), len(sources), num_components))
    step = max(_VALUES_AT_ONCE // num_examples, 1)
    for start in range(0, num_components, step):
        columns = slice(start, start + step)
        some = [source[:, columns].astype(np.float64) for source in sources]
        for k, one in enumerate(some):
            for i, other in enumerate(some):
                products[k, i, columns] = np.einsum("nd,nd->d", one, other)
    return products


@dataclass(frozen=True)
class SampledRows:
    """Some examples of a block, on which penalties and priors are tried.

    Attributes:
        margins: (m, n) float32, less each example's first.
        predicted: (k, m, n) float32, what each source predicts, less its mean; k is 0 without sources.
    """

    margins: NDArray[np.float32]
    predicted: NDArray[np.float32]

    @classmethod
    def of(cls, margins: NDArray[np.floating[Any]]) -> SampledRows:
        """Margins (m, n) without sources."""
        moved = (margins - margins[0].astype(np.float64)).astype(np.float32)
        return cls(moved, np.empty((0, *moved.shape), np.float32))

    @property
    def squares(self) -> NDArray[np.float64]:
        """The margins' centred sum of squares (n,); 0 where they are constant."""
        y = self.margins.astype(np.float64)
        return np.asarray(((y - y.mean(axis=0)) ** 2).sum(axis=0))

    def residuals(self, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the sources in this mixture leave of the margins: (m, n) float64."""
        left = self.margins.astype(np.float64)
        for b, predicted in zip(coefficients, self.predicted, strict=True):
            left -= b * predicted
        return left
