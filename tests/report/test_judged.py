"""Classes held against predictions: what is not known is neither right nor wrong."""

from __future__ import annotations

import numpy as np

from coar_dist.report.judged import Judged


def test_what_is_not_known_is_neither_right_nor_wrong() -> None:
    nan = np.nan
    found = Judged.of({"label": np.array([0, 1, nan, 2, nan]), "prediction": np.array([0, 2, 1, nan, nan])})
    assert found.is_known.tolist() == [True, True, False, False, False]
    assert found.is_wrong.tolist() == [False, True, False, False, False]
    whole = Judged.of({"label": np.array([3, 4]), "prediction": np.array([3, 3])})
    assert (whole.is_known.all(), whole.is_wrong.tolist()) == (True, [False, True])
