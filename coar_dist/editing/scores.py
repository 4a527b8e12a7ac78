"""In which order components are ablated to raise or lower the targets' outputs and leave the references' alone.

Pure functions. An order is an array of component ids whose first k entries are ablated together; ties go to the lower
id. By definition of an attribution, ablating a component lowers an example's predicted margin by its weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.store.reader import RunReader

_ROWS_AT_ONCE = 64
"""Rows of a block whose float64 copies are in memory together."""
_VALUES_AT_ONCE = 2**17
"""Predicted margins in memory together when components are compared: about 1 MB, which stays in a core's cache."""
_RANDOM_COUNTER = 2**64 - 3
"""The second word of the Philox key of ``at_random``; mask designs use the masks' ids there."""


@dataclass(frozen=True)
class Moments:
    """What the scores need of a group of examples.

    Attributes:
        num_examples: how many there are.
        mean: (num_components,) float64, of their weights.
        variance: (num_components,) float64, the population's: divided by ``num_examples``. Exactly 0 where all weights
            are equal.
    """

    num_examples: int
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]


def moments(blocks: Iterable[NDArray[np.floating[Any]]]) -> Moments:
    """Mean and population variance over the examples of all blocks, each of which is read once.

    Blocks are merged as by Chan, Golub and LeVeque (1983), in float64 and less the first example's weights, so that a
    common offset costs no digits and equal weights have variance 0.

    Args:
        blocks: weights (n_block, num_components) each, with one example at least in all of them.
    """
    num_examples = 0
    for block in blocks:
        for start in range(0, len(block), _ROWS_AT_ONCE):
            rows = block[start : start + _ROWS_AT_ONCE].astype(np.float64)
            if num_examples == 0:
                origin = rows[0].copy()
                mean, squares = np.zeros_like(origin), np.zeros_like(origin)
            rows -= origin
            rows_mean = rows.mean(axis=0)
            rows -= rows_mean
            total = num_examples + len(rows)
            shift = rows_mean - mean
            mean += shift * (len(rows) / total)
            squares += (rows**2).sum(axis=0) + shift**2 * (num_examples * len(rows) / total)
            num_examples = total
    assert num_examples > 0
    return Moments(num_examples, origin + mean, squares / num_examples)


def moments_of(reader: RunReader, example_ids: Sequence[int] | NDArray[np.int64], method: str | None) -> Moments:
    """Moments of stored attributions, with one block of examples in memory at a time.

    Args:
        reader: of a run with fitted attributions.
        example_ids: which examples.
        method: as in ``RunReader.weights``.

    Raises:
        MissingWorkError: the attributions have not been fitted yet.
    """
    return moments(weights for _, weights, _ in reader.attributions_by_block(example_ids, method))


def t_scores(targets: Moments, references: Moments) -> NDArray[np.float64]:
    """The scores of COAR-Edit (Shah et al. 2024, section 5): how far targets and references differ in a component.

    ``(mean_T - mean_R) / sqrt(var_T / n_T + var_R / n_R)``, population variances.

    A denominator of 0, as of a single target's lasso weight that no reference has, tells nothing about how certain the
    difference is. It is replaced by the median of the positive ones: such components are then ordered by their
    differences, as if they were as certain as a usual component, and a tiny difference does not come before all
    others. With one target and one reference all denominators are 0, and the scores are the plain differences.

    Returns:
        (num_components,) float64, finite; 0 where the means are equal.
    """
    difference = targets.mean - references.mean
    deviation = np.sqrt(targets.variance / targets.num_examples + references.variance / references.num_examples)
    is_positive = deviation > 0.0
    usual = np.median(deviation[is_positive]) if is_positive.any() else 1.0
    return np.asarray(difference / np.where(is_positive, deviation, usual))


def by_score(scores: NDArray[np.float64], direction: str) -> NDArray[np.int64]:
    """The order (num_components,) int64 of scores (num_components,): lowest first to raise, highest first to lower."""
    assert np.isfinite(scores).all()
    return np.argsort(_sign(direction) * scores, kind="stable")


def by_magnitude(magnitudes: NDArray[np.float64]) -> NDArray[np.int64]:
    """The order (num_components,) int64 of magnitudes (num_components,), e.g. root mean squares of the components'
    parameters: smallest first."""
    assert np.isfinite(magnitudes).all()
    return np.argsort(magnitudes, kind="stable")


def at_random(order: NDArray[np.int64], offsets: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """A random order that differs from ``order`` in nothing but which components of a parameter it takes.

    Its first k components are, for every k, as many of every parameter as the first k of ``order``: what an edit does
    beyond them is due to the choice of components, not of layers.

    Args:
        order: (k,) int64 component ids without repetition, of all components or of the first few.
        offsets: (num_groups + 1,) int64, ``ComponentIndex.offsets``.
        seed: of the draw. A longer ``order`` begins with the same components.

    Returns:
        (k,) int64 component ids without repetition.
    """
    groups = np.searchsorted(offsets, np.arange(offsets[-1]), side="right") - 1
    words = np.random.Philox(key=np.array([seed, _RANDOM_COUNTER], dtype=np.uint64)).random_raw(int(offsets[-1]))
    shuffled = np.lexsort((words, groups))  # every group's components within its own range of ids
    drawn = np.empty_like(order)
    next_in_group = offsets[:-1].copy()
    for place, group in enumerate(groups[order]):
        drawn[place] = shuffled[next_in_group[group]]
        next_in_group[group] += 1
    return drawn


def greedily(
    target_weights: NDArray[np.floating[Any]],
    target_intercepts: NDArray[np.float64],
    reference_weights: NDArray[np.floating[Any]],
    reference_intercepts: NDArray[np.float64],
    direction: str,
    num_components_max: int,
) -> NDArray[np.int64]:
    """An order in which every component is the best one to add by the linear model's predicted margins.

    With S ablated, example e's margin is predicted as ``m_e(S) = intercept_e + sum of weight_ec over c not in S``. The
    next component minimises, with s = 1 to raise and -1 to lower,

        mean over targets t of loss(s m_t(S)) + mean over references r of max(0, loss(m_r(S)) - loss(m_r(nothing)))

    where ``loss(m) = log(1 + exp(-m))`` is the cross-entropy of a margin. Targets are pulled across 0 and not far
    beyond. A reference costs what its loss has risen, little while its margin stays well above 0, whatever the
    direction; one that gains pays for none that loses, so that the references' own errors are not what is edited.

    Args:
        target_weights: (num_targets, num_components).
        target_intercepts: (num_targets,) float64.
        reference_weights: (num_references, num_components).
        reference_intercepts: (num_references,) float64.
        direction: ``raise`` or ``lower``.
        num_components_max: length of the order, num_components at most.

    Returns:
        (num_components_max,) int64. Time grows with num_components_max * num_examples * num_components, memory with
        the weights alone.
    """
    num_targets, num_components = target_weights.shape
    assert num_components_max <= num_components
    weights = np.concatenate([target_weights, reference_weights]).astype(np.float64)
    signs = np.ones((len(weights), 1))
    signs[:num_targets] = _sign(direction)
    margins = weights.sum(axis=1) + np.concatenate([target_intercepts, reference_intercepts])
    assert np.isfinite(margins).all()
    at_first = _loss(margins[num_targets:, None])
    per_chunk = max(1, _VALUES_AT_ONCE // len(weights))
    objective, is_left = np.empty(num_components), np.ones(num_components, dtype=np.bool_)
    order = np.empty(num_components_max, dtype=np.int64)
    for place in range(num_components_max):
        for start in range(0, num_components, per_chunk):
            chunk = slice(start, start + per_chunk)
            losses = _loss(signs * (margins[:, None] - weights[:, chunk]))
            risen = np.maximum(losses[num_targets:] - at_first, 0.0)
            objective[chunk] = losses[:num_targets].mean(axis=0) + risen.mean(axis=0)
        order[place] = np.where(is_left, objective, np.inf).argmin()
        is_left[order[place]] = False
        margins -= weights[:, order[place]]
    return order


def _sign(direction: str) -> float:
    return {"raise": 1.0, "lower": -1.0}[direction]


def _loss(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """``log(1 + exp(-m))`` without overflow; several times as fast as ``numpy.logaddexp``."""
    return np.asarray(np.maximum(-margins, 0.0) + np.log1p(np.exp(-np.abs(margins))))
