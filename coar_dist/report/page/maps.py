"""The maps of the page: layers x numbers, components x groups, parameters x groups, and the model's errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.components.index import ComponentIndex
from coar_dist.report.judged import Judged
from coar_dist.report.page.components import clustered
from coar_dist.report.page.encoding import floats
from coar_dist.report.page.gather import Gathered
from coar_dist.report.page.groupings import Grouping
from coar_dist.report.page.layers import LayerShares
from coar_dist.store.class_names import class_in_words
from coar_dist.store.component_statistics import ComponentStatistics

_MAX_NUMBERS, _MAX_ROWS = 130, 100
"""Size of a map of layers x numbers; wider layers, as of neurons, have none."""
_NUM_COMPONENTS, MAX_GROUPS = 40, 24
_MAX_PAIRS = 30


def maps_of(found: Gathered) -> dict[str, Any]:
    """All maps as the page's script reads them."""
    return {
        "grids": _grids(found.run.components, found.statistics),
        "clusters": [_cluster(found, number) for number in range(len(found.groupings))],
        "parameters": _parameters(found.layers),
        "confusion": confusion(found.table, found.class_names),
    }


def _grids(components: ComponentIndex, statistics: ComponentStatistics) -> list[dict[str, Any]]:
    """Per kind of components a row per group and a column per number."""
    grids = []
    for kind in dict.fromkeys(group.kind for group in components.groups):
        numbers = [
            number
            for number, group in enumerate(components.groups)
            if group.kind == kind and group.num_components > 1 and max(group.numbers) < _MAX_NUMBERS
        ]
        if not 1 < len(numbers) <= _MAX_ROWS:
            continue
        groups = [components.groups[number] for number in numbers]
        width = 1 + max(max(group.numbers) for group in groups)
        ids = np.full((len(groups), width), -1)
        for row, (number, group) in enumerate(zip(numbers, groups, strict=True)):
            ids[row, list(group.numbers)] = components.offsets[number] + np.arange(group.num_components)
        there = ids >= 0
        names = [group.layer for group in groups]
        are_numbered = None not in names and len(set(names)) == len(names)
        grids.append(
            {
                "kind": kind,
                "rows": [f"layer {group.layer}" if are_numbered else group.module for group in groups],
                "width": width,
                "ids": [int(i) for i in ids.reshape(-1)],
                "mean": floats(np.where(there, statistics.mean[ids], np.nan)),
                "strength": floats(np.where(there, statistics.mean_absolute[ids], np.nan)),
            }
        )
    return grids


def shown_groups(grouping: Grouping, values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Which groups a map has room for: all, or those that differ most from the mean of all.

    Args:
        grouping: of the examples.
        values: (num_groups, width), what the map is of; NaN of groups without examples.
    """
    if len(grouping.values) <= MAX_GROUPS:
        return np.arange(len(grouping.values))
    known = np.nan_to_num(values, nan=0.0)
    return np.sort(np.argsort(-np.square(known - known.mean(axis=0)).sum(axis=1), kind="stable")[:MAX_GROUPS])


def _cluster(found: Gathered, number: int) -> dict[str, Any] | None:
    """Rows of the component table and groups, in the order that brings together what is alike."""
    means = found.components.by_group[number]
    if means is None:
        return None
    few = np.nan_to_num(means[:_NUM_COMPONENTS], nan=0.0)
    groups = shown_groups(found.groupings[number], few.T)
    rows, columns = clustered(few[:, groups])
    ordered = groups[columns]
    return {
        "rows": rows,
        "groups": [found.groupings[number].values[group] for group in ordered],
        "num_groups": len(found.groupings[number].values),
        "values": floats(means[rows][:, ordered]),
    }


def _parameters(layers: LayerShares) -> dict[str, Any]:
    parts = []
    for grouping, shares in zip(layers.groupings, layers.by_group, strict=True):
        groups = shown_groups(grouping, shares)
        parts.append({"groups": [grouping.values[group] for group in groups], "shares": floats(shares[groups].T)})
    return {"names": list(layers.parameters), "groupings": parts}


def confusion(table: dict[str, NDArray[Any]], class_names: dict[int, str]) -> dict[str, Any] | None:
    """How often the unablated model takes one class for another; None where nothing is known of that.

    Returns:
        Of few classes a matrix ``counts`` by ``labels`` (rows are the true ones); of many the most frequent errors as
        ``pairs`` of (label, prediction, count).
    """
    judged = Judged.of(table)
    if not judged.is_known.any():
        return None
    pairs = np.stack([judged.labels, judged.predictions])[:, judged.is_known].astype(np.int64)
    labels = np.unique(pairs)
    names = [class_in_words(class_names, number) for number in labels.tolist()]
    result: dict[str, Any] = {"num": int(judged.is_known.sum()), "wrong": int(judged.is_wrong.sum())}
    if len(labels) <= MAX_GROUPS:
        at = np.searchsorted(labels, pairs)
        counts = np.bincount(at[0] * len(labels) + at[1], minlength=len(labels) ** 2).reshape(len(labels), -1)
        return result | {"labels": labels.tolist(), "names": names, "counts": counts.tolist()}
    distinct, counts = np.unique(pairs[:, judged.is_wrong[judged.is_known]], axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_MAX_PAIRS]
    return result | {"pairs": _pairs(distinct[:, order], counts[order])}


def _pairs(distinct: NDArray[np.int64], counts: NDArray[np.int64]) -> Sequence[tuple[int, int, int]]:
    return [(int(one), int(other), int(num)) for (one, other), num in zip(distinct.T, counts, strict=True)]
