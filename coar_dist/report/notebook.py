"""What a run shows in a notebook: its report and its strongest components as data frames, Figure 1 as a figure."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import replace
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.errors import ConfigError, counted
from coar_dist.report.numbers import Z95
from coar_dist.report.summary import summarise
from coar_dist.store.ceilings import CEILING, CEILING_LABEL
from coar_dist.store.methods import fitted_methods
from coar_dist.store.reader import RunReader
from coar_dist.store.run_directory import TRAIN_DESIGN, RunDirectory
from coar_dist.store.tables import AttributionTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


def report_frame(run: RunDirectory) -> DataFrame:
    """The report's numbers: one row per method and held-out ablation fraction, then those of the ceiling.

    Raises:
        MissingWorkError: the run has not been evaluated.
        DamagedFileError: a table is damaged.
    """
    from pandas import DataFrame

    summary = summarise(run)
    rows: list[dict[str, Any]] = []
    for method in summary.methods:
        for column, design in enumerate(summary.held_out.values()):
            means = method.correlation
            rows.append(
                {
                    "method": method.method,
                    "label": method.label,
                    "masks": method.num_masks,
                    "ablation_fraction": design.ablation_fraction,
                    "correlation": means.mean[column],
                    "correlation_low": means.low[column],
                    "correlation_high": means.high[column],
                    "spearman": method.spearman.mean[column],
                    **{name: medians[column] for name, medians in method.medians.items()},
                    "num_undefined": run.num_examples - int(means.num_defined[column]),
                }
            )
    for found, fraction in zip(summary.ceilings.values(), summary.fractions, strict=True):
        if found is not None:
            rows.append(
                {
                    "method": CEILING,
                    "label": CEILING_LABEL,
                    "ablation_fraction": fraction,
                    "correlation": found.mean,
                    "correlation_low": found.mean - Z95 * found.standard_error,
                    "correlation_high": found.mean + Z95 * found.standard_error,
                    "num_undefined": int(np.isnan(found.correlations).sum()),
                }
            )
    return DataFrame(rows)


def correlation_figure(run: RunDirectory, methods: Sequence[str] | None) -> Figure:
    """Figure 1 of Shah et al. (2024) for this run.

    Raises:
        ConfigError: the run has no such method.
        MissingWorkError: the run has not been evaluated.
        DamagedFileError: a table is damaged.
    """
    from coar_dist.report.figures import draw_correlations

    summary = summarise(run)
    if methods is not None:
        there = {summary_of.method: summary_of for summary_of in summary.methods}
        unknown = [method for method in methods if method not in there]
        if unknown or isinstance(methods, str) or not methods:
            raise ConfigError(f"methods={methods!r}: must be a list of some of {', '.join(there)}.")
        summary = replace(summary, methods=[there[method] for method in methods])
    return draw_correlations(summary)


def component_frame(
    reader: RunReader, example_ids: int | Sequence[int] | NDArray[Any], num: int, method: str
) -> DataFrame:
    """The ``num`` components with the largest absolute weights, as ``coar_dist.api.Run.top_components`` has them.

    Raises:
        IndexError, MissingWorkError, ConfigError: as there.
    """
    from pandas import DataFrame, RangeIndex

    if index(num) < 1:
        raise ConfigError(f"num={num}: must be at least 1.")
    ids: list[int] = np.asarray(example_ids).reshape(-1).tolist()
    if not ids:
        raise ConfigError("example_ids is empty: name at least one example.")
    if len(ids) == 1:
        weights: NDArray[Any] = reader.weights(ids, method)[0]
        errors = _stored_errors(reader, ids, method)
    else:
        weights, errors = _mean_and_error(reader, ids, method)
    strongest = np.argsort(-np.abs(weights), kind="stable")[:num]
    table = reader.components.table()
    names = ("component_id", "name", "kind", "layer")
    columns = {name: [table[name][i] for i in strongest] for name in names} | {"weight": weights[strongest]}
    if errors is not None:
        columns["standard_error"] = errors[strongest]
    return DataFrame(columns, index=RangeIndex(1, len(strongest) + 1, name="rank"))


def html_of(reader: RunReader) -> str:
    """What there is in a run and what to call, as HTML."""
    directory = reader.directory
    designs = ", ".join(
        f"{name} {entry.design.num_masks:,} ({entry.design.kind}, {entry.design.ablation_fraction:g})"
        for name, entry in directory.designs.items()
    )
    rows = {
        "examples": f"{directory.num_examples:,}",
        "components": f"{reader.components.num_components:,} in {counted(len(reader.components.groups), 'parameter')}",
        "masks": designs or "none",
        "attributions": ", ".join(fitted_methods(directory)) or "none",
        "next": "run.report(), run.plot_correlation(), run.top_components(0)",
    }
    cells = "".join(
        f"<tr><th style='text-align:left'>{name}</th><td style='text-align:left'>{html.escape(text)}</td></tr>"
        for name, text in rows.items()
    )
    return f"<table><caption>{html.escape(str(directory.storage))}</caption>{cells}</table>"


def _stored_errors(reader: RunReader, ids: list[int], method: str) -> NDArray[Any] | None:
    table, store = AttributionTable(reader.directory, method), reader.directory.margins(TRAIN_DESIGN)
    has_errors = all(table.has_standard_errors(block) for block in store.blocks if block[0] <= ids[0] < block[1])
    return reader.standard_errors(ids, method)[0] if has_errors else None


def _mean_and_error(reader: RunReader, ids: list[int], method: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean weights (num_components,) over examples, and the mean's standard error by their spread."""
    sums = np.zeros((2, reader.components.num_components))
    for _, weights, _ in reader.attributions_by_block(ids, method):
        exact = weights.astype(np.float64)
        sums += [exact.sum(axis=0), (exact**2).sum(axis=0)]
    mean = sums[0] / len(ids)
    variance = np.maximum(sums[1] - len(ids) * mean**2, 0.0) / (len(ids) - 1)
    return mean, np.sqrt(variance / len(ids))
