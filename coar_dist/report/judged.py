"""What the unablated model says of the examples, held against their classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Judged:
    """Classes and predictions side by side; all arrays are (num_examples,).

    Attributes:
        labels, predictions: float64, NaN where there is none.
        is_known: bool, both are there.
        is_wrong: bool, both are there and differ.
    """

    labels: NDArray[np.float64]
    predictions: NDArray[np.float64]
    is_known: NDArray[np.bool_]
    is_wrong: NDArray[np.bool_]

    @classmethod
    def of(cls, examples: Mapping[str, NDArray[Any]]) -> Judged:
        """Those of the columns of ``examples.parquet``."""
        labels, predictions = (examples[name].astype(np.float64) for name in ("label", "prediction"))
        is_known = np.isfinite(labels) & np.isfinite(predictions)
        return cls(labels, predictions, is_known, is_known & (labels != predictions))
