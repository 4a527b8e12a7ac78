"""Ids of examples and rows as a user writes and reads them: ``3, 17..20``."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coar_dist.errors import ConfigError, listed_ranges

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def in_ranges(ids: NDArray[np.int64]) -> str:
    """Ascending ids as ``3, 17..20``, the first ten ranges of them."""
    starts = np.flatnonzero(np.diff(ids, prepend=ids[:1] - 2) != 1)
    return listed_ranges([(part[0], part[-1] + 1) for part in np.split(ids, starts[1:])])


def parse_ids(key: str, text: str) -> list[int]:
    """``3,17-20`` as ids.

    Raises:
        ConfigError: it is something else.
    """
    ids: list[int] = []
    for part in text.split(","):
        found = _RANGE.fullmatch(part.strip())
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise ConfigError(f"{key}={text!r}: must be ids and ranges of ids, such as 3,17-20.")
        ids += range(int(found[1]), int(found[2] or found[1]) + 1)
    return ids


def examples_without(num_examples: int, leave_out: Sequence[int], where: object) -> NDArray[np.int64]:
    """The ids 0 .. num_examples - 1 but those to leave out, ascending.

    Raises:
        ConfigError: there is no such example, or none is left.
    """
    outside = [example for example in leave_out if not 0 <= example < num_examples]
    if outside:
        raise ConfigError(f"leave_out names example {outside[0]}, but {where} has examples 0..{num_examples - 1}.")
    left = np.setdiff1d(np.arange(num_examples), np.asarray(leave_out, dtype=np.int64))
    if not left.size:
        raise ConfigError(f"leave_out names all {num_examples} examples of {where}.")
    return left
