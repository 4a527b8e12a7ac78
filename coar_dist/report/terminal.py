"""The result of a run as a table in the terminal."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table

from coar_dist.errors import MissingWorkError
from coar_dist.store.ceilings import CeilingTable, why_no_ceiling
from coar_dist.store.run_directory import GRADIENT_DESIGN, TRAIN_DESIGN, RunDirectory
from coar_dist.store.tables import GRADIENT_RIDGE, EvaluationTable, fitted_methods

_LABELS = {
    "coar": "COAR",
    "gradient_ridge": "COAR + gradients",
    "coar_lasso": "COAR, lasso",
    "coar_elastic_net": "COAR, elastic net",
    "leave_one_out": "Leave-one-out",
}
_FITTED = ("gradient_ridge", "coar", "coar_lasso", "coar_elastic_net")


def methods_of(run: RunDirectory) -> list[str]:
    """The attribution methods of a run: what was fitted, and the baselines whose designs it has."""
    there = fitted_methods(run.storage)
    fitted = [method for method in _FITTED if method in there]
    return [*(fitted or ["coar"]), *(name for name, entry in run.designs.items() if entry.role == "baseline")]


def _num_masks(run: RunDirectory, method: str) -> str:
    """How many masks the attributions are of."""
    if method == GRADIENT_RIDGE:
        return f"{run.design(GRADIENT_DESIGN).num_masks:,} + {run.design(TRAIN_DESIGN).num_masks:,}"
    return f"{run.design(TRAIN_DESIGN if method in _FITTED else method).num_masks:,}"


def _ceilings(run: RunDirectory, held_out: list[str]) -> tuple[list[str], list[str]]:
    """Per held-out design a cell with the best that a linear model can reach, and what is to be said about them."""
    cells: list[str] = []
    notes: dict[str, None] = {}
    for name in held_out:
        design = run.design(name)
        reason = why_no_ceiling(design)
        if reason is not None:
            cells.append("-")
            notes[f"No ceiling of linear models: {reason}."] = None
            continue
        found = CeilingTable(run, name).read()
        cells.append(f"{found.mean:.3f} ± {found.standard_error:.3f}" if np.isfinite(found.mean) else "undefined")
        if np.isfinite(found.lower) and np.isfinite(found.upper):
            notes[
                f"Ceiling at {design.ablation_fraction:g} by noise stability, {found.num_pairs:,} pairs: "
                f"{found.lower:.3f} ± {found.lower_standard_error:.3f} to "
                f"{found.upper:.3f} ± {found.upper_standard_error:.3f}."
            ] = None
    return cells, list(notes)


def report(run: RunDirectory, console: Console) -> None:
    """Print the mean correlation per method and ablation fraction, and where to look next.

    Raises:
        MissingWorkError: the run has not been evaluated.
    """
    held_out = {name: entry.design for name, entry in run.designs.items() if entry.role == "evaluation"}
    held_out = dict(sorted(held_out.items(), key=lambda item: -item[1].ablation_fraction))
    if not held_out:
        raise MissingWorkError(f"{run.storage} has no held-out designs: run the ablate and evaluate stages.")
    trained_at = run.design(TRAIN_DESIGN)
    table = Table()
    table.add_column("method")
    table.add_column("masks", justify="right")
    for design in held_out.values():
        same = design.ablation_fraction == trained_at.ablation_fraction
        table.add_column(f"at {design.ablation_fraction:g}{' (trained)' if same else ''}", justify="right")
    num_undefined = 0
    for method in methods_of(run):
        cells = []
        for name in held_out:
            correlations = EvaluationTable(run, method, name).read()
            defined = correlations[np.isfinite(correlations)]
            num_undefined += len(correlations) - len(defined)
            cells.append(f"{defined.mean():.3f}" if defined.size else "undefined")
        table.add_row(_LABELS.get(method, method), _num_masks(run, method), *cells)
    cells, notes = _ceilings(run, list(held_out))
    table.add_row("Ceiling of linear models", "", *cells)
    examples = run.read_examples()
    console.print(
        "\nCorrelation of predicted and true margins on held-out masks, mean over examples, by ablation fraction:"
    )
    console.print(table)
    for note in notes:
        console.print(note, soft_wrap=True, highlight=False)
    if num_undefined:
        console.print(f"{num_undefined} correlations are undefined (constant margins or predictions): not averaged.")
    known = np.isfinite(examples["label"].astype(np.float64))
    accuracy = f", accuracy {np.mean(examples['label'] == examples['prediction']):.3f}" if known.all() else ""
    lines = [
        f"{run.num_examples} examples{accuracy}; {run.components.num_components} components in "
        f"{len(run.components.groups)} parameters.",
        f"Run directory: {run.storage}",
        f"Next, in Python: run = coar_dist.open_run({run.storage.location!r}); run.weights(example_ids=[0])",
        f"Or query {run.storage}/attributions/{methods_of(run)[0]}.*.parquet with DuckDB, pandas or Polars.",
    ]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)
