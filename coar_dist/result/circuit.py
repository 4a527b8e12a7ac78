"""The circuits of a run, as tables and a figure."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from coar_dist.components.index import ComponentIndex
from coar_dist.config.methods import label_of
from coar_dist.errors import counted, listed
from coar_dist.store.circuits import SCORES, CircuitScores

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True, repr=False)
class Circuit:
    """What the strongest components of every method do alone, as ``run.circuit`` gives it.

    Attributes:
        found: the numbers as arrays.
        components: of the run.
    """

    found: CircuitScores
    components: ComponentIndex

    def __repr__(self) -> str:
        scores = {method: values["cpr"] for method, values in self.found.scores.items() if isfinite(values["cpr"])}
        largest = f"{max(scores.values()):.3f}" if scores else "undefined"
        best = [label_of(method) for method, score in scores.items() if f"{score:.3f}" == largest]
        who = f"tie of {listed(best)} at " if len(best) > 1 else "".join(f"{name} " for name in best)
        known = "" if self.found.known is None else f", known {listed(self.known or [], most=5)}"
        return (
            f"Circuit({counted(len(self.found.scores), 'ranking')} at {counted(len(self.found.sizes), 'size')}{known}; "
            f"largest CPR: {who}{largest})"
        )

    @property
    def known(self) -> list[str] | None:
        """Names of the components that are known to do the work; None where none are."""
        return None if self.found.known is None else [self.components.name_of(i) for i in self.found.known]

    def to_pandas(self) -> DataFrame:
        """A data frame with a row per ``method`` (random rankings are the mean over draws): ``label``, ``auroc`` and
        ``average_precision`` of the known components by mean absolute weight, the same ``_per_example``, ``cpr`` and
        ``cmd``; NaN where one is undefined."""
        from pandas import DataFrame, Index

        rows = [
            {"label": label_of(method), **{name: values[name] for name in SCORES}}
            for method, values in self.found.scores.items()
        ]
        return DataFrame(rows, index=Index(list(self.found.scores), name="method"))

    def curve(self) -> DataFrame:
        """A data frame with a row per ``method``, ``ranking`` (``signed``, ``magnitude``) and ``size``:
        ``num_components`` that the circuit holds, its mean ``output`` over examples, and its ``faithfulness``."""
        from pandas import DataFrame, concat

        found = self.found
        parts = [
            DataFrame(
                {
                    "method": method,
                    "ranking": ranking,
                    "size": found.sizes,
                    "num_components": found.num_components,
                    "output": found.outputs[method, ranking],
                    "faithfulness": found.faithfulness[method, ranking],
                }
            )
            for method, ranking in found.outputs
        ]
        return concat(parts, ignore_index=True)

    def plot(self) -> Figure:
        """Faithfulness by size, a line per method and a panel per ranking."""
        from coar_dist.report.circuit_figures import draw_circuit

        return draw_circuit(self.found)
