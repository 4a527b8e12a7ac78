"""Which components a behaviour breaks without, alone or in pairs: a truth that no attribution method has a part in.

Attention patterns tell what a head looks at, not whether it matters. What breaks the behaviour when it is taken away
does; a component with a stand-in breaks it only together with that one, so pairs are taken away, too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MOST_COMPONENTS = 128
"""Of which every pair is ablated: 8,256 masks."""


def num_pairs(num_components: int) -> int:
    """How many masks ``masks_of_pairs`` has."""
    return num_components * (num_components + 1) // 2


def masks_of_pairs(num_components: int) -> NDArray[np.bool_]:
    """One component ablated, then every pair: (d + d (d - 1) / 2, d) bool, True = kept.

    Example:
        >>> (~masks_of_pairs(3)).astype(int).tolist()
        [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]]
    """
    first, second = np.triu_indices(num_components, k=1)
    masks = np.ones((num_components + len(first), num_components), dtype=np.bool_)
    masks[np.arange(num_components), np.arange(num_components)] = False
    pairs = np.arange(num_components, len(masks))
    masks[pairs, first] = masks[pairs, second] = False
    return masks


def necessary(outputs: NDArray[np.float64], full: float, none: float, threshold: float) -> NDArray[np.bool_]:
    """The components whose ablation breaks the behaviour, alone or together with one that could stand in.

    Broken means that a share ``threshold`` of ``full - none`` is lost. A component counts if its ablation alone loses
    so much, or if ablating a pair with it loses so much more than both alone do: backups and redundant components.

    Args:
        outputs: (d + d (d - 1) / 2,) mean outputs over examples under ``masks_of_pairs(d)``.
        full: mean output of the whole model.
        none: mean output with everything ablated.
        threshold: share of ``full - none``, above 0.

    Returns:
        (d,) bool.

    Example:
        >>> necessary(np.array([0.0, 1.0, 1.0, 0.0, 0.0, 0.1]), full=1.0, none=0.0, threshold=0.25).tolist()
        [True, True, True]
    """
    d = int((np.sqrt(8 * len(outputs) + 1) - 1) / 2)
    assert len(outputs) == num_pairs(d)
    lost = (full - outputs) / (full - none)
    alone = lost[:d]
    first, second = np.triu_indices(d, k=1)
    together = lost[d:] - np.maximum(alone[first], 0.0) - np.maximum(alone[second], 0.0) >= threshold
    is_necessary = alone >= threshold
    is_necessary[first[together]] = True
    is_necessary[second[together]] = True
    return np.asarray(is_necessary)
