"""The regression that libraries take, which want samples and not a Gram matrix.

With ``R = diag(sqrt(e)) V'`` and ``t = diag(1 / sqrt(e)) q`` the problem on (R, t) without intercept, in r = rank(Xc)
rows, has the same solution as that on all m masks. A lasso divides the squares by the number of rows, so its alpha is
scaled by m / r.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from coar_dist.regression.factor import Factor
from coar_dist.regression.lasso import LassoProblem


@dataclass(frozen=True)
class LassoTarget:
    """What a lasso backend solves: one alpha per example.

    Attributes:
        problem: for torch; its margins are in units of their standard deviation.
        alphas: (n,) float64, of these margins.
        l1_ratio: in (0, 1].
        start: (d, n) float64 weights near the solution.
        tolerance: duality gap relative to y'y / m.
    """

    problem: LassoProblem
    alphas: torch.Tensor
    l1_ratio: float
    start: torch.Tensor
    tolerance: float


def reduced_problem(factor: Factor, cross: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The equivalent regression without intercept: rows R (r, d) and targets t (r, n), float64.

    Args:
        factor: of the design.
        cross: q = V'Xc'y (r, n).
    """
    roots = factor.values.sqrt().unsqueeze(1)
    return roots * factor.vectors.T, cross / roots


def target_by_target(
    factor: Factor | None,
    target: LassoTarget,
    convert: Callable[[torch.Tensor], Any],
    fit_one: Callable[[Any, Any, float, float, float], Any],
    fewest_rows: int = 1,
) -> torch.Tensor:
    """The lasso of every example whose margins vary, by a library that takes one at a time: (d, n) float64.

    Every library gets targets of variance 1 over its rows: a rule for the end of its steps may hold weights to an
    absolute number. In these units, with c times the target, c w is the solution for c alpha l1_ratio and
    alpha (1 - l1_ratio).

    Args:
        factor: of the design.
        target: what is to be solved.
        convert: gives the library's array of a tensor (rows, d) or (rows,).
        fit_one: weights (d,) of rows, targets, alpha, l1_ratio and tolerance.
        fewest_rows: that the library takes; rows of zeros, which say nothing, make up for those that lack.
    """
    assert factor is not None
    cross = factor.vectors.T @ (target.problem.cross * factor.num_masks)
    rows, targets = reduced_problem(factor, cross)
    lacking = max(fewest_rows - len(rows), 0)
    rows, targets = (torch.cat([part, part.new_zeros(lacking, part.shape[1])]) for part in (rows, targets))
    design, num_rows = convert(rows), len(rows)
    weights = torch.zeros_like(target.problem.cross)
    for column in torch.nonzero(target.problem.squares > 0).squeeze(1).tolist():
        own = targets[:, column]
        unit = float(own.norm()) / num_rows**0.5 or 1.0
        alpha = float(target.alphas[column]) * factor.num_masks / num_rows
        absolute, squared = alpha * target.l1_ratio / unit, alpha * (1.0 - target.l1_ratio)
        l1_ratio = absolute / (absolute + squared) if squared else 1.0
        values = convert((own / unit).contiguous())
        solution = fit_one(design, values, absolute + squared, l1_ratio, target.tolerance)
        weights[:, column] = unit * torch.as_tensor(np.asarray(solution), dtype=weights.dtype)
    return weights
