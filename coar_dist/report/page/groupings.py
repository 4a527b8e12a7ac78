"""How the examples of a run fall into groups: by class, by whether the model is right, and by their own columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.report.judged import Judged
from coar_dist.store.class_names import class_in_words

CLASS, RIGHT_OR_WRONG = "class", "right or wrong"
_ALWAYS = ("example_id", "label", "prediction", "margin", "excerpt", "tokens")
_MAX_VALUES = 24
"""Distinct values of a column up to which it groups examples; classes may be any number."""
_MAX_GROUPINGS = 6


@dataclass(frozen=True)
class Grouping:
    """One way in which examples fall into groups.

    Attributes:
        name: ``class``, ``right or wrong`` of the model's predictions, or the column's.
        values: what the groups are called.
        codes: (num_examples,) int64, the group of each; -1 is none.
        labels: of classes, their numbers; else empty.
    """

    name: str
    values: list[str]
    codes: NDArray[np.int64]
    labels: list[int]

    @property
    def counts(self) -> NDArray[np.int64]:
        """(num_groups,) examples."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.values))

    def sums(self, example_ids: NDArray[np.int64], rows: NDArray[np.floating[Any]]) -> tuple[Any, NDArray[np.float64]]:
        """Group numbers and sums (num_found, width) of rows (n, width), over the examples of each group."""
        codes = self.codes[example_ids]
        if len(self.values) <= _MAX_VALUES:
            members = codes == np.arange(len(self.values))[:, None]
            return np.arange(len(self.values)), (members.astype(rows.dtype) @ rows).astype(np.float64)
        order = np.argsort(codes, kind="stable")
        order = order[codes[order] >= 0]
        if not order.size:
            return np.empty(0, np.int64), np.empty((0, rows.shape[1]))
        groups, firsts = np.unique(codes[order], return_index=True)
        return groups, np.add.reduceat(rows[order], firsts, axis=0, dtype=np.float64)


def groupings_of(examples: Mapping[str, NDArray[Any]], class_names: Mapping[int, str]) -> list[Grouping]:
    """The groupings of a run's examples, that by class first; none where nothing tells them apart.

    Args:
        examples: the columns of ``examples.parquet``.
        class_names: by label.
    """
    found = []
    judged = Judged.of(examples)
    has_class = np.isfinite(judged.labels)
    if has_class.any():
        labels, codes = np.unique(judged.labels[has_class].astype(np.int64), return_inverse=True)
        of_all = np.full(len(has_class), -1)
        of_all[has_class] = codes
        names = [class_in_words(class_names, number) for number in labels.tolist()]
        found.append(Grouping(CLASS, names, of_all, labels.tolist()))
        wrong = np.where(judged.is_known, judged.is_wrong.astype(np.int64), -1)
        if (wrong == 1).any() and (wrong == 0).any():
            found.append(Grouping(RIGHT_OR_WRONG, ["right", "wrong"], wrong, []))
    for name, values in examples.items():
        if name not in _ALWAYS and values.dtype.kind in "biuUf":
            grouping = _by_column(name, values)
            if grouping is not None and len(found) < _MAX_GROUPINGS:
                found.append(grouping)
    return found


def other_columns(examples: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The example set's own columns, but the excerpts."""
    return {name: values for name, values in examples.items() if name not in _ALWAYS and values.dtype.kind in "biuUf"}


def _by_column(name: str, values: NDArray[Any]) -> Grouping | None:
    is_known = np.isfinite(values) if values.dtype.kind == "f" else np.ones(len(values), np.bool_)
    distinct, codes = np.unique(values[is_known], return_inverse=True)
    if not 2 <= len(distinct) <= min(_MAX_VALUES, len(values) / 2):
        return None
    of_all = np.full(len(values), -1)
    of_all[is_known] = codes
    return Grouping(name, [in_words(value) for value in distinct], of_all, [])


def in_words(value: Any) -> str:
    """A value of a column; whole numbers without a point."""
    if isinstance(value, np.floating):
        return f"{value:.6g}" if np.isfinite(value) else ""
    return str(value)
