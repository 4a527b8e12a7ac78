"""The fit stage: attributions of every example, by every method that the run has the masks for."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.config.methods import LEAVE_ONE_OUT
from coar_dist.console.tables import new_table
from coar_dist.errors import counted
from coar_dist.stages.executing import executing_fits
from coar_dist.stages.session import Session
from coar_dist.stages.stage import Stage
from coar_dist.store.reader import LARGEST_R2_NEW_ERROR, RunReader
from coar_dist.store.run_directory import TRAIN_DESIGN

_THERE = "is there already"
_NUMBERS: dict[str, tuple[str, Callable[[NDArray[np.float64]], np.floating[Any]], str]] = {
    "mean R2": ("r2", np.mean, ".3f"),
    "new masks": ("r2_new", np.mean, ".3f"),
    "median penalty": ("regularisation", np.median, ".3g"),
    "duality gap": ("duality_gap", np.max, ".1e"),
}
"""What the table shows: a number of ``RunReader.quality``, over the examples. R2 on new masks is an estimate."""
_log = logging.getLogger(__name__)


def _check(session: Session) -> None:
    regression = session.config.regression
    if regression.backend != "auto":
        from coar_dist.regression.backends import check_backend  # torch takes seconds to load

        check_backend(regression.backend, regression.method)


def _run(session: Session) -> None:
    """Fit what is not fitted yet; the run must have all margins."""
    from coar_dist.baselines.leave_one_out import fit_leave_one_out
    from coar_dist.baselines.tables import fit_gradient_baseline
    from coar_dist.regression.fit import fit
    from coar_dist.regression.sizes import FEWEST_OF_NOISE

    run, config = session.open_run(), session.config
    session.take()
    with contextlib.ExitStack() as stack:
        execute = stack.enter_context(executing_fits(config))
        progress = stack.enter_context(session.progress(run.num_examples, "examples"))
        baselines = {LEAVE_ONE_OUT: fit_leave_one_out(run)} if LEAVE_ONE_OUT in run.designs else {}
        baselines |= {method: fit_gradient_baseline(run, method) for method in run.baselines}
        results = fit(run, config.regression, progress.update, execute)
        seconds = progress.seconds
    found = {result.method: RunReader(run).quality_and_error(result.method) for result in results}
    rows = {result.method: (result.how or _THERE, _in_words(found[result.method][0])) for result in results}
    rows |= {name: ("" if is_new else _THERE, {}) for name, is_new in baselines.items()}
    is_new = any(how != _THERE for how, _ in rows.values())
    taken = f" in {seconds:.1f} s" if is_new else ""
    session.terminal.say(f"attributions of {counted(run.num_examples, 'example')}{taken}:")
    shown = [number for number in _NUMBERS if any(number in quality for _, quality in rows.values())]
    table = new_table("method", "solver", *shown, num_text=2)
    for method, (how, quality) in rows.items():
        table.add_row(method, how, *(quality.get(number, "") for number in shown))
        numbers = ", ".join(f"{name} {value}" for name, value in quality.items())
        _log.info("%s", "; ".join(filter(None, [method, how, numbers])))
    session.terminal.show_table(table)
    for result in results:
        reason = _why_not_told(found[result.method][1])
        if reason:
            session.terminal.say(f"R2 of {result.method} on new masks: {reason}. Held-out masks tell (evaluate stage).")
    if config.regression.standard_errors and run.design(TRAIN_DESIGN).num_masks < FEWEST_OF_NOISE:
        session.terminal.say(f"standard errors: not known, they take {FEWEST_OF_NOISE} masks without gradients.")


def _why_not_told(error: float) -> str:
    """Why the R2 on new masks is not told, by its standard error; empty where it is."""
    if np.isnan(error):
        return "not known, it takes 32 masks without gradients, and ridge a factorisation"
    if error > LARGEST_R2_NEW_ERROR:
        return f"too uncertain, its standard error is {error:.2g} and more masks make it smaller"
    return ""


def _in_words(quality: dict[str, NDArray[np.float64]]) -> dict[str, str]:
    """What is known of a method's attributions, by the words of ``_NUMBERS``."""
    known = {name: values[np.isfinite(values)] for name, values in quality.items()}
    return {
        words: f"{function(known[name]):{form}}"
        for words, (name, function, form) in _NUMBERS.items()
        if known[name].size
    }


FIT = Stage("fit", reads=("regression", "cluster"), run=_run, check=_check)
