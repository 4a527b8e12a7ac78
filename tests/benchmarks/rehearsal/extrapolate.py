"""What another size would take, by the operations and bytes of every stage."""

from __future__ import annotations

from rich.table import Table

from tests.benchmarks.rehearsal.shapes import Shape
from tests.benchmarks.rehearsal.watch import Usage

_MARGIN_BYTES = 2


def _operations(stage: str, shape: Shape) -> float:
    """Of a stage; those of the ablate stage are its bytes, as its passes are not rehearsed."""
    m, d, n = shape.num_masks, shape.num_components, shape.num_examples
    held_out = 4.0 * shape.num_held_out
    match stage:
        case "ablate":
            return _bytes(stage, shape)
        case "fit":
            return m * d * (d / 2 + n) + 10.0 * d**3 + 2.0 * d * d * n
        case "evaluate":
            return held_out * d * n + _operations("fit", Shape("", m // 2, 0, min(n, 1024), (d,)))
    return 1.0


def _bytes(stage: str, shape: Shape) -> float:
    """Bytes written by a stage."""
    m, d, n = shape.num_masks + 4 * shape.num_held_out, shape.num_components, shape.num_examples
    match stage:
        case "ablate":
            return m * (_MARGIN_BYTES * n + d / 8)
        case "fit":
            return 4.0 * n * d
    return 0.0


def extrapolated(shape: Shape, usages: dict[str, Usage], setup: Shape) -> Table:
    """Seconds and bytes of a setup, in proportion to what was rehearsed."""
    table = Table(title="in proportion to the operations", title_justify="left")
    for name in ("stage", "hours here", "written"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage, usage in usages.items():
        seconds = usage.seconds * _operations(stage, setup) / _operations(stage, shape)
        table.add_row(stage, f"{seconds / 3600:.2f}", f"{_bytes(stage, setup) / 1e9:,.1f} GB")
    return table
