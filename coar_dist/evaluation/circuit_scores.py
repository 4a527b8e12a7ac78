"""How good a ranking of components is: against components that are known, and by what the strongest ones alone do.

Faithfulness, CPR and CMD are those of the MIB benchmark (Mueller et al. 2025, section 3.2), components being its nodes:
outputs are averaged over examples before the ratio, the circuit of size k holds the ``floor(k * num_components)``
strongest components, and areas are of the trapezoid rule over k from the first size to the last one, as in its code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.store.agreement import average_ranks

_ROUNDING = 4 * float(np.finfo(np.float32).eps)
"""Outputs that differ by less than this share of the larger one are equal: margins are stored in float32."""
_ERRORS = 2.0
"""Standard errors below which a difference cannot be told from 0."""
_FLOOR = 1e-9
"""``.29 * 100`` is 29 components, not 28."""


def num_kept(sizes: NDArray[np.float64], num_components: int) -> NDArray[np.int64]:
    """How many components the circuit of every size holds: (num_sizes,) int64.

    Example:
        >>> num_kept(np.array([0.001, 0.1, 0.2, 1.0]), 16).tolist()
        [0, 1, 3, 16]
    """
    return np.floor(sizes * num_components + _FLOOR).astype(np.int64)


def strongest_first(scores: NDArray[np.float64], by_magnitude: bool) -> NDArray[np.int64]:
    """Component ids from the highest score, or the largest absolute one, down; of equal ones the first comes first.

    Args:
        scores: (num_components,), mean weights over examples.
        by_magnitude: as for CMD; False is the signed ranking of CPR.

    Returns:
        (num_components,) int64.

    Example:
        >>> scores = np.array([0.1, -3.0, 2.0])
        >>> strongest_first(scores, by_magnitude=False).tolist(), strongest_first(scores, by_magnitude=True).tolist()
        ([2, 0, 1], [1, 2, 0])
    """
    assert np.isfinite(scores).all()
    return np.argsort(-np.abs(scores) if by_magnitude else -scores, kind="stable")


@dataclass(frozen=True)
class Ends:
    """The mean outputs over examples that faithfulness lies between.

    Attributes:
        full: of the whole model.
        none: with every component ablated.
        error: standard error of ``full - none`` over the examples; NaN of a single one.
        spread: standard deviation of the mean output over the run's own masks; NaN where there are none.
    """

    full: float
    none: float
    error: float = float("nan")
    spread: float = float("nan")

    @classmethod
    def of(cls, outputs: NDArray[np.floating[Any]], over_masks: NDArray[np.floating[Any]]) -> Ends:
        """From outputs.

        Args:
            outputs: (2, num_examples) of the whole model and of none of it.
            over_masks: (num_masks,) mean outputs under the run's own masks.
        """
        exact = outputs.astype(np.float64)
        (full, none), differences = exact.mean(axis=1).tolist(), exact[0] - exact[1]
        error = float(differences.std(ddof=1) / np.sqrt(len(differences))) if len(differences) > 1 else float("nan")
        return cls(full, none, error, float(np.std(over_masks)) if len(over_masks) else float("nan"))

    @property
    def why_undefined(self) -> str | None:
        """Why there is no faithfulness, a sentence without a full stop; None where there is.

        A ratio says nothing where its denominator cannot be told from 0 (Fieller 1954: its interval is then unbounded),
        which is below two standard errors here. And where masks of some components move the mean output more than
        ablating all of them does, what they do cancels, and shares of the sum are no shares of the work: of outputs
        that lie between both ends the standard deviation is at most half of their difference (Popoviciu 1935).
        """
        full, none = self.full, self.none
        assert np.isfinite([full, none]).all()
        difference = abs(full - none)
        if difference <= _ROUNDING * max(abs(full), abs(none)):
            return (
                f"ablating all components leaves the mean output at {none:.4g}, so there is nothing to be faithful to"
            )
        moves = f"ablating all components moves the mean output from {full:.4g} to {none:.4g}"
        if difference < _ERRORS * self.error:
            return (
                f"{moves}, which cannot be told from nothing: over the examples the standard error of this difference "
                f"is {self.error:.2g}. Take more examples, or examples that are more alike"
            )
        if difference < self.spread:
            return (
                f"{moves}, less than the run's own masks of some components do (standard deviation {self.spread:.2g}): "
                f"what components do cancels. Take another output function, or another ablation value"
            )
        return None


def faithfulness(outputs: NDArray[np.float64], ends: Ends) -> NDArray[np.float64]:
    """``(m(k) - m(none)) / (m(full) - m(none))``: 0 is what is left without any component, 1 the whole model.

    Args:
        outputs: mean outputs over examples with all but the circuit ablated, of any shape.
        ends: of the whole model and of none of it.

    Returns:
        float64 of the same shape; NaN where ``ends.why_undefined`` has a reason.

    Example:
        >>> faithfulness(np.array([1.0, 4.0, 6.0]), Ends(full=5.0, none=1.0)).tolist()
        [0.0, 0.75, 1.25]
    """
    assert np.isfinite(outputs).all()
    if ends.why_undefined is not None:
        return np.full(outputs.shape, np.nan)
    return np.asarray((outputs - ends.none) / (ends.full - ends.none), dtype=np.float64)


def cpr(sizes: NDArray[np.float64], faithful: NDArray[np.float64]) -> float:
    """Integrated circuit performance ratio: the area under faithfulness over linear size. Higher is better.

    Args:
        sizes: (num_sizes,) shares of the components, ascending.
        faithful: (num_sizes,) of circuits ranked by signed score; NaN gives NaN.

    Example:
        >>> round(cpr(np.array([0.0, 0.5, 1.0]), np.array([0.0, 1.0, 1.0])), 3)
        0.75
    """
    return _area(sizes, faithful)


def cmd(sizes: NDArray[np.float64], faithful: NDArray[np.float64]) -> float:
    """Integrated circuit-model distance: the area between faithfulness and 1 over linear size. 0 is best.

    Args:
        sizes: as of ``cpr``.
        faithful: (num_sizes,) of circuits ranked by absolute score; NaN gives NaN.

    Example:
        >>> round(cmd(np.array([0.0, 0.5, 1.0]), np.array([0.0, 1.5, 1.0])), 3)
        0.5
    """
    return _area(sizes, np.abs(1.0 - faithful))


def auroc(scores: NDArray[np.floating[Any]], is_known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Area under the ROC curve of known components: the chance that one of them has a higher score than another
    component, ties counting half. 1 is perfect, .5 chance.

    Args:
        scores: (n, num_components), absolute weights.
        is_known: (num_components,), neither all nor none.

    Returns:
        (n,) float64, what ``sklearn.metrics.roc_auc_score`` gives of every row.

    Example:
        >>> auroc(np.array([[3.0, 1.0, 2.0]]), np.array([True, False, True])).tolist()
        [1.0]
    """
    num_known = _num_known(scores, is_known)
    ranks = average_ranks(scores.T)[is_known].sum(axis=0) - num_known * (num_known - 1) / 2
    return np.asarray(ranks / (num_known * (len(is_known) - num_known)))


def average_precision(scores: NDArray[np.floating[Any]], is_known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Average precision of known components; 1 is perfect, their share of the components chance.

    Args, returns: as of ``auroc``; what ``sklearn.metrics.average_precision_score`` gives of every row.
    """
    from sklearn.metrics import average_precision_score  # scikit-learn takes seconds to load

    _num_known(scores, is_known)
    return np.array([average_precision_score(is_known, row) for row in scores])


def _num_known(scores: NDArray[np.floating[Any]], is_known: NDArray[np.bool_]) -> int:
    assert np.isfinite(scores).all()
    num_known = int(is_known.sum())
    assert 0 < num_known < len(is_known)
    return num_known


def _area(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    return float((np.diff(x) * (y[1:] + y[:-1])).sum() / 2)
