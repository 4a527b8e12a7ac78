"""The circuits of a run as the page shows them: what the strongest components do alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coar_dist.config.methods import label_of
from coar_dist.config.schema import RANDOM
from coar_dist.errors import MissingWorkError, counted, listed
from coar_dist.report.numbers import number, signed
from coar_dist.report.output_names import OutputName
from coar_dist.store.circuits import SIGNED, CircuitScores, CircuitTable
from coar_dist.store.run_directory import RunDirectory

_ENOUGH = 0.9
"""Faithfulness of the circuit that the sentence is about."""
_SCORES = {"cpr": "CPR", "cmd": "CMD"}
_OF_KNOWN = {"auroc": "AUROC", "average_precision": "average precision"}


@dataclass(frozen=True)
class ShownCircuits:
    """What the page says of circuits.

    Attributes:
        sentence: the result, for the first screen.
        notes: what is to be known of it.
        columns: of ``rows``, but the first.
        rows: per method its name and the numbers, NaN where one is undefined.
    """

    sentence: str
    notes: list[str]
    columns: list[str]
    rows: list[tuple[str, list[float]]]


def circuits_of(run: RunDirectory, output: OutputName) -> ShownCircuits | None:
    """What is known of a run's circuits; None where there are none of the attributions as they are now.

    Args:
        run: whose they are.
        output: what its outputs are called.

    Raises:
        DamagedFileError: their table is damaged.
    """
    try:
        found = CircuitTable(run).read()
    except MissingWorkError:
        return None
    names = _SCORES if found.known is None else _SCORES | _OF_KNOWN
    full, none = (signed(value, "-") for value in (found.full, found.none))
    notes = [f"The mean {output.one} is {full} of the whole model, {none} without any component."]
    if found.known is not None:
        known = [run.components.name_of(i) for i in found.known]
        notes.append(f"Known to do the work: {counted(len(known), 'component')}, {listed(known)}.")
    rows = [(label_of(method), [values[name] for name in names]) for method, values in found.scores.items()]
    return ShownCircuits(_sentence(found), notes, list(names.values()), rows)


def _sentence(found: CircuitScores) -> str:
    """How much of the output a small circuit keeps, by the method with the largest CPR."""
    scores = {method: values["cpr"] for method, values in found.scores.items() if np.isfinite(values["cpr"])}
    chance = f"; of random ones {number(scores.pop(RANDOM))}" if RANDOM in scores else ""
    if found.reason is not None or not scores:
        return f"How much circuits of the strongest components keep is undefined: {found.reason or 'no CPR is known'}."
    best = max(scores, key=lambda method: scores[method])
    faithfulness = found.faithfulness[best, SIGNED]
    is_some = (found.num_components > 0) & (found.sizes < 1.0) & np.isfinite(faithfulness)
    if not is_some.any():
        return f"The largest CPR of circuits is {number(scores[best])} by {label_of(best)}{chance}."
    enough = np.flatnonzero(is_some & (faithfulness >= _ENOUGH))
    place = int(enough[0] if enough.size else np.flatnonzero(is_some)[-1])
    num = int(found.num_components[place])
    return (
        f"The {counted(num, 'strongest component')} by {label_of(best)} ({100 * found.sizes[place]:.3g}% of all) alone "
        f"{'has' if num == 1 else 'have'} a faithfulness of {number(float(faithfulness[place]))} "
        f"(CPR {number(scores[best])}{chance})."
    )
