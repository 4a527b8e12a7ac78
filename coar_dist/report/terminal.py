"""The result of a run as a table in the terminal."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table

from coar_dist.errors import MissingWorkError
from coar_dist.store.run_directory import GRADIENT_DESIGN, TRAIN_DESIGN, RunDirectory
from coar_dist.store.tables import GRADIENT_RIDGE, RESEARCH, EvaluationTable, fitted_methods

_LABELS = {
    "coar": "COAR",
    "gradient_ridge": "COAR + gradients",
    "coar_lasso": "COAR, lasso",
    "coar_elastic_net": "COAR, elastic net",
    "leave_one_out": "Leave-one-out",
    "research": "Research code",
    "gradient_x_parameter": "Gradient x parameter",
    "neuron_conductance": "Neuron conductance",
    "internal_influence": "Internal influence",
}
_FITTED = ("gradient_ridge", "coar", "coar_lasso", "coar_elastic_net")


def methods_of(run: RunDirectory) -> list[str]:
    """The attribution methods of a run: what was fitted or imported, and its baselines."""
    there = fitted_methods(run.storage)
    imported = [method for method in there if method.startswith(RESEARCH)]
    fitted = [method for method in _FITTED if method in there] or ([] if imported else ["coar"])
    ablated = [name for name, entry in run.designs.items() if entry.role == "baseline"]
    return [*fitted, *imported, *ablated, *run.baselines]


def _num_masks(run: RunDirectory, method: str) -> str:
    """How many masks the attributions are of, or what takes their place."""
    if method in run.baselines:
        steps = run.baselines[method].get("num_steps")
        return "1 gradient" if steps is None else f"{steps:,} steps"
    if method == GRADIENT_RIDGE:
        return f"{run.design(GRADIENT_DESIGN).num_masks:,} + {run.design(TRAIN_DESIGN).num_masks:,}"
    if method.startswith(RESEARCH):
        return "imported"
    return f"{run.design(TRAIN_DESIGN if method in _FITTED else method).num_masks:,}"


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
    examples = run.read_examples()
    console.print(
        "\nCorrelation of predicted and true margins on held-out masks, mean over examples, by ablation fraction:"
    )
    console.print(table)
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
