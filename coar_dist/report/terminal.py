"""The result of a run as tables in the terminal."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table

from coar_dist.errors import StorageError
from coar_dist.evaluation.bootstrap import Means
from coar_dist.report.figures import write_figures
from coar_dist.report.summary import Z95, CurveSummary, Summary, label_of, methods_of, summarise
from coar_dist.report.tables import new_table, print_whole
from coar_dist.store.ceilings import CEILING, CeilingTable, why_no_ceiling
from coar_dist.store.run_directory import RunDirectory


def report(run: RunDirectory, console: Console) -> None:
    """Print the mean correlation per method and ablation fraction and what more masks would give, and draw both.

    Raises:
        MissingWorkError: the run has not been evaluated.
    """
    summary = summarise(run)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False)

    say(
        "\nCorrelation of predicted and true margins on held-out masks by ablation fraction: mean over examples,"
        "\n± half of its 95% bootstrap interval over examples. Ceiling: of any linear model, ± over masks."
    )
    ceilings, notes = _ceilings(run, summary)
    print_whole(console, _correlations(summary, ceilings))
    for note in notes:
        say(note)
    column = summary.trained_column
    if column is not None:
        say(
            f"\nAt {summary.trained_at:g}: Spearman correlation, mean; R2 and calibration (true = slope x predicted +\n"
            f"intercept), medians over examples"
        )
        print_whole(console, _agreement(summary, column))
    for line in _undefined(summary):
        say(line)
    if summary.curves:
        say(f"\nAt {summary.trained_at:g}: correlation by number of masks, measured and, after |, forecast for more")
        print_whole(console, _budgets(summary))
        for curve in summary.curves:
            say(_forecast_in_words(curve, run.num_examples))
    examples = run.read_examples()
    known = np.isfinite(examples["label"].astype(np.float64))
    accuracy = f", accuracy {np.mean(examples['label'] == examples['prediction']):.3f}" if known.all() else ""
    say(
        f"{run.num_examples} examples{accuracy}; {run.components.num_components} components in "
        f"{len(run.components.groups)} parameters."
    )
    say(f"Run directory: {run.storage}")
    try:
        names = [run.storage.where(name) for name in write_figures(run.storage, summary) if name.endswith(".png")]
        say(f"Figures: {', '.join(names)}, and as .svg")
    except StorageError as error:  # a run directory that others own can still be read
        say(f"[yellow]No figures: {error}[/yellow]")
    say(f"Next, in Python: run = coar_dist.open_run({run.storage.location!r}); run.weights(example_ids=[0])")
    say(f"Or query {run.storage}/attributions/{methods_of(run)[0]}.*.parquet with DuckDB, pandas or Polars.")


def _ceilings(run: RunDirectory, summary: Summary) -> tuple[list[str], list[str]]:
    """Per held-out design a cell with the best that a linear model can reach, and what is to be said about them."""
    cells: list[str] = []
    notes: dict[str, None] = {}
    for name, design in summary.held_out.items():
        reason = why_no_ceiling(design)
        if reason is not None:
            cells.append("-")
            notes[f"No ceiling of linear models: {reason}."] = None
            continue
        found = CeilingTable(run, name).read()
        cells.append(_number(found.mean) + (_half(Z95 * found.standard_error) if np.isfinite(found.mean) else ""))
        if np.isfinite(found.lower) and np.isfinite(found.upper):
            notes[
                f"Ceiling at {design.ablation_fraction:g} by noise stability, {found.num_pairs:,} pairs: "
                f"{_number(found.lower)} {_half(Z95 * found.lower_standard_error)} to "
                f"{_number(found.upper)} {_half(Z95 * found.upper_standard_error)}."
            ] = None
    return cells, list(notes)


def _correlations(summary: Summary, ceilings: list[str]) -> Table:
    headers = []
    for design in summary.held_out.values():
        same = design.ablation_fraction == summary.trained_at
        headers.append(f"at {design.ablation_fraction:g}{chr(10) + '(trained)' if same else ''}")
    table = new_table("method", "masks", *headers)
    for method in summary.methods:
        cells = [_mean(method.correlation, column) for column in range(len(headers))]
        table.add_row(method.label, method.num_masks, *cells)
    table.add_row(label_of(CEILING), "", *ceilings)
    return table


def _agreement(summary: Summary, column: int) -> Table:
    table = new_table("method", "Spearman", "R2", "slope", "intercept")
    for method in summary.methods:
        medians = [_number(method.medians[name][column]) for name in ("r2", "slope", "intercept")]
        table.add_row(method.label, _mean(method.spearman, column), *medians)
    return table


def _budgets(summary: Summary) -> Table:
    numbers = sorted({int(number) for curve in summary.curves for number in curve.curve.num_masks})
    table = new_table("method", *(f"{number:,}" for number in numbers), "|", "x 2", "x 4", "limit")
    for curve in summary.curves:
        measured = dict(zip(curve.curve.num_masks.tolist(), curve.means.mean, strict=True))
        points = [_number(measured[number]) if number in measured else "" for number in numbers]
        found = curve.extrapolation
        forecasts = (found.twice, found.four_times, found.limit)
        ahead = ["" if forecast is None else _number(forecast.value) for forecast in forecasts]
        table.add_row(curve.label, *points, "|", *ahead)
    return table


def _forecast_in_words(summary: CurveSummary, num_examples: int) -> str:
    curve, found = summary.curve, summary.extrapolation
    of = "" if len(curve.example_ids) == num_examples else f" on {len(curve.example_ids):,} sampled examples"
    text = f"{summary.label}, {int(curve.num_masks[-1]):,} masks{of}: {_number(found.measured[-1])}; "
    names = ("twice the masks about", "four times", "ever more")
    forecasts = zip(names, (found.twice, found.four_times, found.limit), strict=True)
    ahead = [
        f"{name} {_number(forecast.value)} {_half(forecast.half_width)}" for name, forecast in forecasts if forecast
    ]
    return f"{text}{', '.join(ahead) or 'no forecast'}{f' ({found.why_not})' if found.why_not else ''}."


def _undefined(summary: Summary) -> list[str]:
    """How many values are null, and why."""
    lines = []
    for method in summary.methods:
        counts = {name: count for name, count in method.num_undefined.items() if count}
        if counts:
            listed = ", ".join(f"{count:,} of {name}" for name, count in counts.items())
            lines.append(
                f"{method.label}: undefined and not averaged, as margins or predictions are constant: {listed}."
            )
    return lines


def _mean(means: Means, column: int) -> str:
    half = float(means.high[column] - means.low[column]) / 2
    return f"{_number(means.mean[column])}{_half(half) if np.isfinite(half) else ''}"


def _half(width: float) -> str:
    return f"±{_number(width)}"


def _number(value: float) -> str:
    """Three decimals, without a 0 before the point, as in the paper's tables."""
    if not np.isfinite(value):
        return "undefined"
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 0.9995 else text
