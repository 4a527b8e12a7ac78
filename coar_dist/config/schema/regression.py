"""How margins become attributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from coar_dist.config.schema.values import NameOrFunction, NonNegative, Part, Positive, Rule, Share, at_least, one_of

SELECTIONS = {"ridge": ("gcv", "leave_one_out"), "lasso": ("held_out", "bic")}
"""By method: what can choose an example's penalty; the lasso's default first."""


Range = Annotated[
    list[float],
    Rule(lambda ends: len(ends) == 2 and 0.0 < ends[0] < ends[1], "[low, high] with 0 < low < high"),
]
L1Ratio = Annotated[float, Rule(lambda ratio: 0.0 < ratio <= 1.0, "a number above 0 and at most 1")]
Tolerance = Annotated[float, Rule(lambda tolerance: 1e-12 <= tolerance < 1.0, "a number from 1e-12 to below 1")]


@dataclass
class RegressionConfig(Part):
    """How margins become attributions."""

    method: Annotated[str, one_of(*SELECTIONS)] = "ridge"
    """``ridge`` (attributions ``coar``) or ``lasso`` (``coar_lasso``; the elastic net with an l1_ratio below 1)."""
    backend: NameOrFunction = "auto"
    """``torch``, ``sklearn``, ``cuml``, ``auto``, or your own: ``module:function``, or in Python a function, with the
    arguments of the others (``coar_dist.regression.backends``). All solve the same problem."""
    regularisation: NonNegative | None = None
    """One penalty for every example; None: chosen from the data. Ridge: ``sum of squares + penalty * ||w||**2``, 0 is
    least squares. Lasso: scikit-learn's alpha of margins divided by their own standard deviation, without a unit."""
    selection: str | None = None
    """What chooses the penalty of an example: for ridge ``gcv`` or ``leave_one_out``, the exact error on up to 2,048
    masks left out one at a time; None is this below two masks per component, and for ``gradient_ridge`` where 32 masks
    are without gradients. For lasso ``held_out`` (the default), the error on the last ``held_out_fraction`` of the
    masks, or ``bic``."""
    shared_penalty: bool | None = None
    """Ridge: one penalty, chosen for all examples together, by 1,024 of them where there are more; None: below two
    masks per component."""
    num_penalties: Annotated[int, at_least(2)] = 25
    penalty_range: Range | None = None
    """The grid's ends. Ridge: in units of the mean eigenvalue of the centred X'X, [0.001, 1000] by default. Lasso:
    shares of the smallest penalty at which all weights are 0, [0.001, 1] by default."""
    l1_ratio: L1Ratio = 1.0
    """Lasso: share of the penalty that is ``||w||_1``; the rest is ``||w||**2 / 2``."""
    held_out_fraction: Share = 0.1
    tolerance: Tolerance = 1e-6
    """Of iterative solvers: duality gap of the lasso relative to the margins' variance; relative residual of conjugate
    gradients."""
    standard_errors: bool = False
    """Ridge: store standard errors of the weights beside them, which hold the bias of the penalty, too."""
    memory_gb: Positive = 16.0
    """Memory of a factorisation, on the worker that computes it. It decides between the Gram matrix of the components,
    that of the masks, and conjugate gradients."""
    distributed: bool | None = None
    """Whether the cluster's CPUs or GPUs do the work, and that of the evaluation; None: where ``cluster.address`` or
    RAY_ADDRESS names one."""


def penalty_range(regression: RegressionConfig) -> tuple[float, float]:
    """The grid's ends, the method's own where none are set."""
    if regression.penalty_range is None:
        return (1e-3, 1e3) if regression.method == "ridge" else (1e-3, 1.0)
    low, high = regression.penalty_range
    return low, high
