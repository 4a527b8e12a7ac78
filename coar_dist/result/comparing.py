"""``compare``: two runs, results or methods side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.config.python_arguments import NAMES, WHOLES, check, shown
from coar_dist.config.python_words import OF_ATTRIBUTE, in_python_words
from coar_dist.errors import ConfigError
from coar_dist.interchange.ids import parse_ids
from coar_dist.report.comparison.compared import Comparison
from coar_dist.report.comparison.sides import Side, chosen_examples
from coar_dist.result.result import Result
from coar_dist.result.run import Run
from coar_dist.store.locations import storage_at
from coar_dist.store.run_directory import RunDirectory


@in_python_words(OF_ATTRIBUTE)
def compare(
    a: Result | str | Path,
    b: Result | str | Path | None = None,
    methods: Sequence[str] | None = None,
    *,
    examples: Sequence[int] | NDArray[Any] | str | None = None,
) -> Comparison:
    """How much the attributions of two runs, or of two methods of a run, agree.

    Components are matched by name, examples by id; those components that only one of them has are counted and named.
    Both are read in blocks of examples, so that runs of any size fit into memory.

    Args:
        a, b: runs, or some examples of them (``run[:50]``), by any method; or where a run directory lies. Without
            ``b``, two ``methods`` of ``a``.
        methods: of either, or one name for both; None is each one's own: that of a result, the best of a run.
        examples: ids of those to compare, as numbers or as ``"0-49,60"``; None: all, which both must have.

    Returns:
        Data frames (``examples``, ``components``, ``largest``, ``differences``), in whose columns ``one`` is ``a`` and
        ``other`` is ``b``; a ``summary`` in words, ``warnings`` where the two are of other outputs, examples or
        ablations, and ``write_report``, which writes it all as a page.

    Raises:
        ConfigError: no component has the same name; a method or an example is not there; both are the same.
        RunMismatchError: they are of other examples.
        RunNotFoundError: there is no run at a path.
        MissingWorkError: attributions are missing.

    Example:
        >>> comparison = coar_dist.compare(run, run, methods=("coar", "leave_one_out"))
        >>> bool((comparison.examples["spearman"].abs() <= 1).all())
        True
    """
    if methods is not None:
        if not isinstance(methods, str):
            check("methods", methods, NAMES)
        methods = [methods] * 2 if isinstance(methods, str) else list(methods)
        if len(methods) != 2:
            raise ConfigError(f"methods={methods}: name one of both sides, or one of each.")
    if examples is not None and not isinstance(examples, str):
        check("examples", examples, WHOLES)
    ids = parse_ids("examples", examples) if isinstance(examples, str) else examples
    of_a, of_b = methods or (None, None)
    if b is None and of_a == of_b:
        raise ConfigError("b is missing: another run, or two methods of a, as methods=('coar', 'gradient_ridge').")
    return Comparison.of(_side("a", a, of_a, ids), _side("b", a if b is None else b, of_b, ids))


def _side(
    name: str, given: Result | str | Path, method: str | None, examples: Sequence[int] | NDArray[Any] | None
) -> Side:
    if not isinstance(given, Result | str | os.PathLike):
        raise ConfigError(f"{name}={shown(given)}: must be a run, a part of one, or where a run directory lies.")
    result = given if isinstance(given, Result) else Run(RunDirectory.open(storage_at(given)))
    own = result.example_ids
    if examples is not None:
        own = np.intersect1d(own, chosen_examples(result._reader, examples))
    return Side(result._reader, np.unique(own), method or result.method)
