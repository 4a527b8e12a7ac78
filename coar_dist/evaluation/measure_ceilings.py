"""Ceilings of linear models on the held-out designs of a run, from margins that are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.cluster.execution import Execute, in_this_process
from coar_dist.designs.independent import Correlated
from coar_dist.designs.subsets import FixedSize
from coar_dist.evaluation.ceiling import Pairs, Shares, linear_shares, mean_correlation, stability_bounds
from coar_dist.store.ceilings import Ceiling, CeilingTable, partners_of, why_no_ceiling
from coar_dist.store.margins import MarginStore
from coar_dist.store.run_directory import TRAIN_DESIGN, RunDirectory
from coar_dist.store.tables import AttributionTable

Block = tuple[int, int]
_OfBlock = tuple[Shares, list[tuple[Shares, Shares]]]
"""What an example block adds to the ceiling and, where there are partners, to its lower and upper bound."""


def measure_ceilings(
    run: RunDirectory, method: str, on_progress: Callable[[int], None], execute: Execute = in_this_process
) -> bool:
    """Write the ceiling of every held-out design that has one, where it is not there already.

    A design's masks and the margins of one example block are in memory at a time. The attributions of a block are read
    once for all designs.

    Args:
        run: a run with fitted attributions and complete held-out designs.
        method: attributions fitted from other masks. They are taken away from the margins first, for precision.
        on_progress: called with the number of example blocks done.
        execute: who runs the parts, one per example block.

    Returns:
        Whether anything had to be computed.

    Raises:
        MissingWorkError: attributions or margins are missing.
    """
    tables = {
        name: CeilingTable(run, name, method) for name, design in run.held_out.items() if not why_no_ceiling(design)
    }
    missing = {name: table for name, table in tables.items() if not table.is_complete()}
    for table in missing.values():
        table.set_aside_wrong()
    blocks, found = run.margins(TRAIN_DESIGN).blocks, dict[Block, dict[str, _OfBlock]]()
    if missing:
        for block, of_block in execute(_shares_of_block, (run, list(missing), method), blocks):
            found[block] = of_block
            on_progress(len(found))
    for name, table in missing.items():
        table.write(_ceiling(run, name, method, [found[block][name] for block in blocks]))
    on_progress(len(blocks))
    return bool(missing)


def _ceiling(run: RunDirectory, design_name: str, method: str, parts: Sequence[_OfBlock]) -> Ceiling:
    """From what the example blocks add, in their order."""
    design, partner_name = run.design(design_name), partners_of(design_name)
    partners = run.design(partner_name) if partner_name in run.designs else None
    shares = [of_block for of_block, _ in parts]
    lower, upper = ([pair[i] for _, bounds in parts for pair in bounds] for i in (0, 1))
    mean, standard_error, correlations = mean_correlation(Shares.join(shares))
    (low, low_error), (high, high_error) = (
        mean_correlation(Shares.join(bounds))[:2] if bounds else (np.nan, np.nan) for bounds in (lower, upper)
    )
    return Ceiling(
        mean=mean,
        standard_error=standard_error,
        lower=low,
        lower_standard_error=low_error,
        upper=high,
        upper_standard_error=high_error,
        correlations=correlations,
        num_masks=design.num_masks,
        num_pairs=0 if partners is None else partners.num_masks,
        method=method,
    )


def _shares_of_block(shared: tuple[RunDirectory, list[str], str], block: Block) -> tuple[Block, dict[str, _OfBlock]]:
    """What one example block adds to the ceiling on each of some designs."""
    run, design_names, method = shared
    weights = AttributionTable(run, method).read(block)[0]
    return block, {name: _of_block(run, name, block, weights) for name in design_names}


def _of_block(run: RunDirectory, design_name: str, block: Block, weights: NDArray[np.float32]) -> _OfBlock:
    design, partner_name = run.design(design_name), partners_of(design_name)
    fraction = design.num_ablated / design.num_components if isinstance(design, FixedSize) else design.ablation_fraction
    masks, margins = _read(run.margins(design_name), block)
    pairs, bounds = None, []
    if partner_name in run.designs:
        partners = run.design(partner_name)
        assert isinstance(partners, Correlated)
        pairs = Pairs(partners.correlation, *_read(run.margins(partner_name), block))
        bounds.append(stability_bounds(masks, margins, pairs, weights))
    return linear_shares(masks, margins, fraction, weights, pairs, isinstance(design, FixedSize)), bounds


def _read(store: MarginStore, block: tuple[int, int]) -> tuple[NDArray[np.bool_], NDArray[np.floating[Any]]]:
    """All masks of a held-out design and the margins of one example block."""
    return next(store.read(block, store.num_masks))
