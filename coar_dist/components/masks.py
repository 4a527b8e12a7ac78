"""The shape of masks, checked where users hand them in, and masks by components' names. No torch here."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index

import numpy as np
from numpy.typing import NDArray

from coar_dist.components.index import ComponentIndex
from coar_dist.components.name_patterns import matches
from coar_dist.config.python_arguments import is_whole, listed_of, shown
from coar_dist.errors import ComponentMismatchError, ConfigError


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


Off = ComponentIndex | Iterable[str | int] | str | int
"""Components to ablate: ids, names, shell patterns of names, several of these, or an index of some components."""


def mask_without(components: ComponentIndex, off: Off, key: str = "off") -> NDArray[np.bool_]:
    """The mask that ablates some components.

    Args:
        components: all of them.
        off: those to ablate.
        key: what the caller calls ``off``, for messages.

    Returns:
        (num_components,) bool, True = kept.

    Raises:
        ConfigError: there is no such component.

    Example:
        >>> from coar_dist.components.groups import ComponentGroup
        >>> index = ComponentIndex((ComponentGroup.of("conv1.weight", 0, 4), ComponentGroup.of("fc.weight", 0, 2)))
        >>> mask_without(index, ["conv1*", 5]).tolist()
        [False, False, False, False, True, False]
    """
    if isinstance(off, ComponentIndex):
        off = off.names()
    if getattr(off, "dtype", None) == np.bool_:
        raise ConfigError(f"{key} is a bool array, but must be ids or names, as np.flatnonzero gives them.")
    entries = [off] if isinstance(off, str) or not isinstance(off, Iterable) else listed_of(off)
    for entry in entries:
        if not isinstance(entry, str) and not is_whole(entry):
            raise ConfigError(f"{key}={shown(off)}: {shown(entry)} is no component. Give ids, names or shell patterns.")
    names = components.names()
    mask = np.ones(len(names), dtype=np.bool_)
    for entry in entries:
        if isinstance(entry, str):
            # A name may have what a pattern reads as a set of letters: conv1[5].
            found = [i for i, name in enumerate(names) if name == entry]
            found = found or [i for i, name in enumerate(names) if matches(name, [entry])]
        else:
            found = [index(entry)] if 0 <= index(entry) < len(names) else []
        if not found:
            raise ConfigError(
                f"{key}: there is no component {entry!r}. Their names are {names[0]} to {names[-1]}, their ids 0 to "
                f"{len(names) - 1}."
            )
        mask[found] = False
    return mask
