"""The result of a run as tables in the terminal."""

from __future__ import annotations

from rich.table import Table

from coar_dist.console.saying import Terminal
from coar_dist.console.tables import new_table
from coar_dist.errors import counted
from coar_dist.report.judged import Judged
from coar_dist.report.numbers import ceiling_of, mean_of, number
from coar_dist.report.output_names import output_name
from coar_dist.report.summary import Summary, forecast_in_words
from coar_dist.store.ceilings import CEILING_LABEL
from coar_dist.store.class_names import read_class_names
from coar_dist.store.examples import ExampleTable
from coar_dist.store.run_directory import RunDirectory
from coar_dist.store.values import value_in_words


def print_report(run: RunDirectory, summary: Summary, terminal: Terminal) -> None:
    """Print the mean correlation per method and ablation fraction, and what more masks would give."""
    output = output_name(run.identity, read_class_names(run))
    terminal.print(
        f"\nCorrelation of predicted and true {output.many} on held-out masks by ablation fraction: "
        "mean over examples,"
        "\n± the longer half of its 95% interval over examples. Ceiling: of any linear model, ± over masks."
    )
    terminal.print_table(_correlations(summary))
    column = summary.trained_column
    if column is not None:
        terminal.print(
            f"\nAt {summary.trained_at:g}: Spearman correlation, mean; R2 and calibration (true = slope x predicted +\n"
            f"intercept), medians over examples"
        )
        terminal.print_table(_agreement(summary, column))
    for note in summary.notes:
        terminal.print(note)
    if summary.curves:
        terminal.print(
            f"\nAt {summary.trained_at:g}: correlation by number of masks, measured and, after |, forecast for more"
        )
        terminal.print_table(_budgets(summary))
        for curve in summary.curves:
            terminal.print(forecast_in_words(curve, run.num_examples))
    judged = Judged.of(ExampleTable(run).read())
    accuracy = f", accuracy {1 - judged.is_wrong.mean():.3f}" if judged.is_known.all() else ""
    terminal.print(
        f"{counted(run.num_examples, 'example')}{accuracy}; {counted(run.components.num_components, 'component')} in "
        f"{counted(len(run.components.groups), 'parameter')}, ablated: {value_in_words(run.identity)}."
    )


def _correlations(summary: Summary) -> Table:
    headers = []
    for design in summary.held_out.values():
        same = design.ablation_fraction == summary.trained_at
        headers.append(f"at {design.ablation_fraction:g}{chr(10) + '(trained)' if same else ''}")
    table = new_table("method", "masks", *headers)
    for method in summary.methods:
        cells = [mean_of(method.correlation, column) for column in range(len(headers))]
        table.add_row(method.label, method.num_masks, *cells)
    table.add_row(CEILING_LABEL, "", *map(ceiling_of, summary.ceilings.values()))
    return table


def _agreement(summary: Summary, column: int) -> Table:
    table = new_table("method", "Spearman", "R2", "slope", "intercept")
    for method in summary.methods:
        medians = [number(method.medians[name][column]) for name in ("r2", "slope", "intercept")]
        table.add_row(method.label, mean_of(method.spearman, column), *medians)
    return table


def _budgets(summary: Summary) -> Table:
    numbers = sorted({int(masks) for curve in summary.curves for masks in curve.curve.num_masks})
    table = new_table("method", *(f"{masks:,}" for masks in numbers), "|", "x 2", "x 4", "limit")
    for curve in summary.curves:
        measured = dict(zip(curve.curve.num_masks.tolist(), curve.means.mean, strict=True))
        points = [number(measured[masks]) if masks in measured else "" for masks in numbers]
        found = curve.extrapolation
        forecasts = (found.twice, found.four_times, found.limit)
        ahead = ["" if forecast is None else number(forecast.value) for forecast in forecasts]
        table.add_row(curve.label, *points, "|", *ahead)
    return table
