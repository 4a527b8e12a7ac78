"""Shell patterns of the names of components and parameters."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name matches one of several shell patterns.

    Names have brackets of their own, so that those of a pattern may be either: ``conv1[1?]`` is what it looks like, and
    ``L[23]H*`` are the heads of two layers.

    Example:
        >>> [matches(name, ["conv1[1?]", "L[23]H*"]) for name in ("conv1[12]", "conv1[7]", "L2H0", "L4H0")]
        [True, False, True, False]
    """
    return any(
        fnmatchcase(name, pattern) or ("[" in pattern and fnmatchcase(name, pattern.replace("[", "[[]")))
        for pattern in patterns
    )
