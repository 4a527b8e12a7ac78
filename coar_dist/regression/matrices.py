"""The masks of a fit, read once and kept on a worker, and the matrices that are factorised."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from coar_dist.cluster.execution import Execute, Kept
from coar_dist.errors import MissingWorkError, listed, warn
from coar_dist.regression.backends import device
from coar_dist.regression.cross_validation import constant_design_error
from coar_dist.regression.masks import PackedMasks
from coar_dist.regression.observations import Observations
from coar_dist.regression.statistics import MASKS_PER_BATCH, DesignStatistics, Gram, gram

_MASKS_PER_GRAM_PART = 8192


def keep_masks(observations: Observations, execute: Execute) -> tuple[Kept[PackedMasks], DesignStatistics]:
    """All masks, kept on a worker, and their means.

    Raises:
        MissingWorkError: there are fewer than 2.
        ConfigError: all are equal.
    """
    masks = execute.keep_one(Observations.packed_masks, observations)
    design = execute.ask(_design, masks)
    _check_design(design)
    return masks, design


def _design(masks: Kept[PackedMasks]) -> DesignStatistics:
    return masks.read().design


@dataclass(frozen=True)
class Matrices:
    """What a factorisation starts from.

    Attributes:
        solver: ``primal`` or ``dual``.
        masks: of the design.
        grams: X'X of ranges of masks, one after the other; where there are none, it is of ``masks`` here.
    """

    solver: str
    masks: Kept[PackedMasks]
    grams: list[Kept[Gram]]

    @classmethod
    def of(cls, solver: str, masks: Kept[PackedMasks], num_masks: int, execute: Execute) -> Matrices:
        """X'X is exact, so it may be summed in any parts: as many as run at once, if that is worth while."""
        num_parts = min(execute.width, -(-num_masks // _MASKS_PER_GRAM_PART)) if solver == "primal" else 1
        if num_parts == 1:
            return cls(solver, masks, [])
        limits = np.linspace(0, num_masks, num_parts + 1).astype(int).tolist()
        return cls(solver, masks, execute.keep(gram_part, masks, list(pairwise(limits))))

    def gram(self) -> Gram:
        """X'X of all masks."""
        if self.grams:
            return Gram.total(part.read() for part in self.grams)
        return gram(self.masks.read().parts(MASKS_PER_BATCH), device())


def gram_part(masks: Kept[PackedMasks], limits: tuple[int, int]) -> Gram:
    """X'X of masks ``first .. end - 1``."""
    return gram(masks.read().part(*limits).parts(MASKS_PER_BATCH), device())


def _check_design(design: DesignStatistics) -> None:
    """Refuse a design that says nothing, and name the components about which it says nothing."""
    if design.num_masks < 2:
        raise MissingWorkError(f"a regression needs at least 2 masks, but there are {design.num_masks}.")
    never = np.flatnonzero(design.says_nothing)
    if len(never) == len(design.kept):
        raise constant_design_error()
    if never.size:
        warn(
            f"nothing can be said about components that none or all of the {design.num_masks} masks ablate: "
            f"{never.size} of {len(design.kept)}, component ids {listed(never.tolist())}. Their weights are 0, "
            f"or what gradients alone say. Raise design.num_masks."
        )
