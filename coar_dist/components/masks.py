"""The shape of masks, checked where users hand them in. No torch here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coar_dist.errors import ComponentMismatchError


def check_masks(masks: NDArray[np.bool_], num_components: int) -> None:
    """Check that masks are (num_masks, num_components) bool.

    Raises:
        ComponentMismatchError: with the shape and dtype that came and those that are needed.
    """
    if not isinstance(masks, np.ndarray) or masks.dtype != np.bool_ or masks.shape[1:] != (num_components,):
        found = (
            f"shape {masks.shape} and dtype {masks.dtype}" if isinstance(masks, np.ndarray) else type(masks).__name__
        )
        raise ComponentMismatchError(
            f"masks are {found}, but must be a (num_masks, {num_components}) bool array, True = kept."
        )
