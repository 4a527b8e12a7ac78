"""How many components an edit ablates: as many as do best for some groups of held-out examples while others keep what
they have, chosen on one part of the held-out examples and measured on the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.errors import ConfigError, NonFiniteMarginError
from coar_dist.store.agreement import correlation_of

_EVERY_UP_TO = 16
_GROWTH_PERCENT = 115
_SPLIT_COUNTER = 2**64 - 4
"""The second word of the split's Philox key; mask designs use the masks' ids there."""
_ROUNDING = 1e-9
"""By so much, relative to the unablated value, a metric may miss its limit: .9 - .01 is not .89."""

METRICS: dict[str, Callable[[NDArray[np.floating[Any]]], NDArray[np.float64]]] = {
    "accuracy": lambda margins: (margins > 0).astype(np.float64),
    "output": lambda margins: margins.astype(np.float64),
}
"""By the name of ``edit.metric``: what every margin counts as; a group's metric is the mean."""


@dataclass(frozen=True)
class Choice:
    """The number of components that an edit ablates.

    Attributes:
        index: its place among the sizes that were tried.
        num_components: the size itself.
        bound_by: groups to keep whose limits are missed by a size that would have been better.
    """

    index: int
    num_components: int
    bound_by: tuple[str, ...]


def sizes(max_components: int) -> tuple[int, ...]:
    """The numbers of components that are tried: 0, every one up to 16, then each about 15% above the last, and
    ``max_components``: about 50 for 1,000."""
    tried = list(range(min(max_components, _EVERY_UP_TO) + 1))
    while tried[-1] < max_components:
        tried.append(min(max_components, tried[-1] * _GROWTH_PERCENT // 100))
    return tuple(tried)


def split(num_held_out: int, choice_fraction: float, seed: int, pairs: NDArray[Any] | None = None) -> NDArray[np.bool_]:
    """On which held-out examples the number of components is chosen; the others measure the edit.

    A larger fraction chooses on the same examples and more.

    Args:
        num_held_out: number of held-out examples.
        choice_fraction: share that is chosen on, to the nearest whole number of examples (or of values of ``pairs``).
        seed: of the split.
        pairs: (num_held_out,) values of which equal ones stay on one side.

    Returns:
        (num_held_out,) bool, True = chosen on.

    Raises:
        ConfigError: one side would be empty.
    """
    first = unit_of = np.arange(num_held_out)
    if pairs is not None:
        _, first, unit_of = np.unique(pairs, return_index=True, return_inverse=True)
    num_chosen = round(choice_fraction * len(first))
    if not 0 < num_chosen < len(first):
        what = "held-out examples" if pairs is None else "pairs of held-out examples"
        raise ConfigError(
            f"edit.choice_fraction={choice_fraction}: of {len(first)} {what}, {num_chosen} would be chosen on and "
            f"{len(first) - num_chosen} measured on, and each needs one at least. Use a fraction nearer to .5, or more "
            f"held-out examples."
        )
    words = np.random.Philox(key=np.array([seed, _SPLIT_COUNTER], dtype=np.uint64)).random_raw(num_held_out)
    is_chosen = np.zeros(len(first), dtype=np.bool_)
    is_chosen[np.argsort(words[first], kind="stable")[:num_chosen]] = True
    return is_chosen[unit_of]


def per_example(margins: NDArray[np.floating[Any]], metric: str) -> NDArray[np.float64]:
    """What the margins of held-out examples count as: a group's metric is the mean over its examples.

    Args:
        margins: any shape.
        metric: ``accuracy``, 1 for margins above 0 and 0 for others, or ``output``, the margins themselves.

    Returns:
        The same shape, float64.

    Raises:
        NonFiniteMarginError: a margin is NaN or infinite.
    """
    wrong = np.argwhere(~np.isfinite(margins))
    if wrong.size:
        raise NonFiniteMarginError(
            f"{len(wrong)} of {margins.size} margins of the held-out examples are NaN or infinite, first at "
            f"{wrong[0].tolist()} of {list(margins.shape)}. Look at the output function; with "
            f"ablation.precision=bfloat16, use float32."
        )
    return METRICS[metric](margins)


def choose(
    curve: Mapping[str, NDArray[np.float64]],
    tried: Sequence[int],
    improve: Sequence[str],
    keep: Mapping[str, float],
    direction: str,
    metric: str,
) -> Choice:
    """The best size of those at which the metric of every group of ``keep`` is its unablated one to within its limit:
    an accuracy has fallen by no more, an output has neither fallen nor risen by more.

    To raise, the best has the highest minimum of the metrics of ``improve``; to lower, the lowest maximum. Ties go to
    the smallest size. No ablation always qualifies, so there is always a choice, which may be to ablate nothing.

    Args:
        curve: by group, the metric (num_sizes,) float64 at every size.
        tried: ascending sizes, the first of them 0.
        improve: one group at least; the worst of them counts.
        keep: by group, by how much its metric may fall, or an output may change, 0 or more.
        direction: ``raise`` or ``lower``.
        metric: ``accuracy`` or ``output``.

    Raises:
        ConfigError: there is no such group.
    """
    assert tried[0] == 0
    assert improve
    assert all(limit >= 0.0 for limit in keep.values())
    for key, names in (("edit.improve", improve), ("edit.keep", keep)):
        unknown = [name for name in names if name not in curve]
        if unknown:
            raise ConfigError(f"{key}: there are no groups {unknown}; there are {', '.join(curve)}.")
    assert all(np.isfinite(curve[name]).all() for name in (*improve, *keep))
    sign = {"raise": 1.0, "lower": -1.0}[direction]
    worst = np.min([sign * curve[name] for name in improve], axis=0)
    kept = {name: _is_kept(curve[name], limit, metric) for name, limit in keep.items()}
    qualifies = np.all([np.ones(len(tried), dtype=np.bool_), *kept.values()], axis=0)
    index = int(np.where(qualifies, worst, -np.inf).argmax())
    is_better = worst > worst[index]
    bound_by = tuple(name for name, is_kept in kept.items() if (is_better & ~is_kept).any())
    return Choice(index, tried[index], bound_by)


def _is_kept(values: NDArray[np.float64], limit: float, metric: str) -> NDArray[np.bool_]:
    """At which sizes (num_sizes,) a metric has fallen by no more than ``limit``, or an output changed."""
    fallen = values[0] - values
    lost = np.abs(fallen) if metric == "output" else fallen
    return np.asarray(lost <= limit + _ROUNDING * max(1.0, abs(float(values[0]))))


def describe(improve: Sequence[str], keep: Mapping[str, float], metric: str, direction: str) -> str:
    """The criterion in words.

    Args:
        improve: groups, the worst of which counts.
        keep: groups with their limits.
        metric: ``accuracy`` or ``output``.
        direction: ``raise`` or ``lower``.

    Example:
        >>> describe(["triggered"], {"clean": 0.01}, "accuracy", "raise")
        'most accuracy of `triggered` while `clean` falls by no more than 0.01'
    """
    most, worst = {"raise": ("most", "lowest"), "lower": ("least", "highest")}[direction]
    groups = " and ".join(f"`{name}`" for name in improve)
    of_groups = groups if len(improve) == 1 else f"the {worst} of {groups}"
    verb = "changes" if metric == "output" else "falls"
    limits = " and ".join(f"`{name}` {verb} by no more than {limit:g}" for name, limit in keep.items())
    return f"{most} {metric} of {of_groups}" + (f" while {limits}" if limits else "")


def paired_correlation(margins: NDArray[np.floating[Any]], pairs: NDArray[Any], forms: NDArray[Any]) -> float:
    """Pearson correlation of two forms' margins over their pairs; NaN where it is undefined.

    Args:
        margins: (n,) of both forms of n / 2 images.
        pairs: (n,) equal for the two forms of one image.
        forms: (n,) one value for each form, two in all, e.g. whether there is a trigger.

    Raises:
        ConfigError: there are not two forms, or a pair does not have each of them once.
    """
    kinds, form_of = np.unique(forms, return_inverse=True)
    if len(kinds) != 2:
        raise ConfigError(
            f"edit.pairs: pairs have two forms, and there are {len(kinds)}: {kinds[:10].tolist()}. Leave it out."
        )
    values, pair_of = np.unique(pairs, return_inverse=True)
    counts = np.zeros((len(values), 2), dtype=np.int64)
    np.add.at(counts, (pair_of, form_of), 1)
    wrong = np.flatnonzero((counts != 1).any(axis=1))
    if wrong.size:
        of_first = dict(zip(kinds.tolist(), counts[wrong[0]].tolist(), strict=True))
        raise ConfigError(
            f"edit.pairs: {len(wrong)} of {len(values)} pairs do not have both forms once, first "
            f"{values[wrong[0]].item()!r} with {of_first}. Hold out both forms of every image, or leave edit.pairs out."
        )
    by_pair = np.empty((2, len(values), 1))
    by_pair[form_of, pair_of, 0] = margins
    return float(correlation_of(by_pair[0], by_pair[1])[0])
