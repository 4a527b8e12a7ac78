"""What a run shows in a notebook: its report and its attributions as data frames, and its figures."""

from __future__ import annotations

import contextlib
import html
from collections.abc import Mapping, Sequence
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.errors import ConfigError, MissingWorkError, counted
from coar_dist.evaluation.component_statistics import ComponentSums
from coar_dist.report.numbers import Z95
from coar_dist.report.summary import summarise
from coar_dist.store.ceilings import CEILING, CEILING_LABEL
from coar_dist.store.component_statistics import ComponentStatistics, StatisticsTable
from coar_dist.store.examples import TOKEN_END, TOKENS
from coar_dist.store.methods import fitted_methods
from coar_dist.store.reader import RunReader
from coar_dist.store.run_directory import TRAIN_DESIGN, RunDirectory
from coar_dist.store.tables import AttributionTable

if TYPE_CHECKING:
    from pandas import DataFrame

_KEYS = ("layer", "kind", "module", "parameter")


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
                    "spearman": method.spearman.mean[column],
                    **{name: medians[column] for name, medians in method.medians.items()},
                    "num_undefined": run.num_examples - int(means.num_defined[column]),
                    "correlation_low": means.low[column],
                    "correlation_high": means.high[column],
                    "correlation": means.mean[column],  # pandas hides the columns in the middle
                }
            )
    for found, fraction in zip(summary.ceilings.values(), summary.fractions, strict=True):
        if found is not None:
            rows.append(
                {
                    "method": CEILING,
                    "label": CEILING_LABEL,
                    "ablation_fraction": fraction,
                    "correlation_low": found.mean - Z95 * found.standard_error,
                    "correlation_high": found.mean + Z95 * found.standard_error,
                    "num_undefined": int(np.isnan(found.correlations).sum()),
                    "correlation": found.mean,
                }
            )
    return DataFrame(rows)


def component_frame(
    reader: RunReader, example_ids: int | Sequence[int] | NDArray[Any], num: int, method: str
) -> DataFrame:
    """The ``num`` components with the largest absolute weights, as ``coar_dist.result.result.Result.top`` has them.

    Raises:
        IndexError, MissingWorkError, ConfigError: as there.
    """
    from pandas import DataFrame, RangeIndex

    if index(num) < 1:
        raise ConfigError(f"num={num}: must be at least 1.")
    ids: list[int] = np.asarray(example_ids).reshape(-1).tolist()
    if not ids:
        raise ConfigError("there is no example: name at least one.")
    if len(ids) == 1:
        weights: NDArray[Any] = reader.weights(ids, method)[0]
        is_there = has_standard_errors(reader, np.array(ids), method)
        errors = reader.standard_errors(ids, method)[0] if is_there else None
    else:
        weights, errors = _mean_and_error(reader, ids, method)
    strongest = np.argsort(-np.abs(weights), kind="stable")[:num]
    table = reader.components.table()
    names = ("name", "module", "kind", "layer", "component_id")  # pandas hides the columns in the middle
    columns = {name: [table[name][i] for i in strongest] for name in names} | {"weight": weights[strongest]}
    if errors is not None:
        columns["standard_error"] = errors[strongest]
    return DataFrame(columns, index=RangeIndex(1, len(strongest) + 1, name="rank"))


def group_frame(reader: RunReader, example_ids: NDArray[np.int64], method: str, keys: Sequence[str]) -> DataFrame:
    """Sums of weights (num_examples, num_groups) over the components that agree in all ``keys``.

    Raises:
        ConfigError: a key is unknown.
        MissingWorkError: there are no attributions of this method.
    """
    from pandas import DataFrame, Index, MultiIndex

    for key in keys:
        if not isinstance(key, str) or key not in _KEYS:
            raise ConfigError(f"by({key!r}): must be some of {', '.join(_KEYS)}.")
    table = reader.components.table()
    table["layer"] = [  # of a net without numbered layers, every module is one
        module if layer is None else layer for layer, module in zip(table["layer"], table["module"], strict=True)
    ]
    labels = list(zip(*(table[key] for key in keys), strict=True))
    groups = list(dict.fromkeys(labels))
    places = {group: place for place, group in enumerate(groups)}
    of_component = np.array([places[label] for label in labels])
    order = np.argsort(of_component, kind="stable")
    firsts = np.searchsorted(of_component[order], np.arange(len(groups)))
    sums = np.empty((len(example_ids), len(groups)))
    for rows, weights, _ in reader.attributions_by_block(example_ids, method):
        sums[rows] = np.add.reduceat(weights[:, order].astype(np.float64), firsts, axis=1)
    if len(keys) == 1:
        columns = Index([group[0] for group in groups], name=keys[0])
    else:
        columns = MultiIndex.from_tuples(groups, names=list(keys))
    return DataFrame(sums, index=Index(example_ids, name="example_id"), columns=columns)


def neighbour_frame(
    reader: RunReader, example_ids: NDArray[np.int64], method: str, example: int, num: int
) -> DataFrame:
    """The ``num`` examples among ``example_ids`` whose weights have the largest cosine with those of one example.

    Raises:
        IndexError, MissingWorkError, ConfigError: as ``coar_dist.result.result.Result.nearest``.
    """
    from pandas import DataFrame, Index

    if index(num) < 1:
        raise ConfigError(f"num={num}: must be at least 1.")
    one = reader.weights([example], method)[0].astype(np.float64)
    cosines = np.empty(len(example_ids))
    for rows, weights, _ in reader.attributions_by_block(example_ids, method):
        exact = weights.astype(np.float64)
        lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(one)
        cosines[rows] = np.divide(exact @ one, lengths, out=np.full(len(rows), np.nan), where=lengths > 0)
    others = np.flatnonzero(example_ids != example)
    best = others[np.argsort(-cosines[others], kind="stable")][:num]  # NaN comes last
    ids = example_ids[best]
    examples = reader.examples(ids.tolist())
    classes = with_class_names({name: examples[name] for name in ("label", "prediction")}, reader.class_names)
    return DataFrame({"similarity": cosines[best], **classes}, index=Index(ids, name="example_id"))


def example_frame(examples: Mapping[str, NDArray[Any]], class_names: Mapping[int, str]) -> DataFrame:
    """The columns of examples by ``example_id``, with what classes are called, and tokens as lists."""
    from pandas import DataFrame, Index

    columns: dict[str, Any] = with_class_names(examples, class_names)
    index = Index(columns.pop("example_id"), name="example_id")
    tokens = columns.get(TOKENS)
    if tokens is not None and tokens.dtype.kind == "U":
        columns[TOKENS] = [text.split(TOKEN_END) for text in tokens.tolist()]
    return DataFrame(columns, index=index)


def with_class_names(columns: Mapping[str, NDArray[Any]], names: Mapping[int, str]) -> dict[str, NDArray[Any]]:
    """The columns; where classes have names, ``label_name`` and ``prediction_name`` stand behind the numbers, empty for
    a class without one."""
    found: dict[str, NDArray[Any]] = {}
    for name, values in columns.items():
        found[name] = values
        if names and name in ("label", "prediction"):
            of_each = [names.get(int(value), "") if np.isfinite(value) else "" for value in values.tolist()]
            found[f"{name}_name"] = np.array(of_each, dtype=np.str_)
    return found


def value_frame(values: NDArray[np.float32], example_ids: NDArray[np.int64], names: Sequence[str]) -> DataFrame:
    """Weights (num_examples, num_components) by example id and component name."""
    from pandas import DataFrame, Index

    return DataFrame(values, index=Index(example_ids, name="example_id"), columns=Index(names, name="component"))


def has_standard_errors(reader: RunReader, example_ids: NDArray[np.int64], method: str) -> bool:
    """Whether all blocks of these examples were fitted with standard errors."""
    table, store = AttributionTable(reader.directory, method), reader.directory.margins(TRAIN_DESIGN)
    return all(
        table.has_standard_errors(block)
        for block in store.blocks
        if ((example_ids >= block[0]) & (example_ids < block[1])).any()
    )


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
        "next": "run.top(example=0), run.plot.components(), run.evaluate()",
    }
    cells = "".join(
        f"<tr><th style='text-align:left'>{name}</th><td style='text-align:left'>{html.escape(text)}</td></tr>"
        for name, text in rows.items()
    )
    return f"<table><caption>{html.escape(str(directory.storage))}</caption>{cells}</table>"


def _mean_and_error(reader: RunReader, ids: list[int], method: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean weights (num_components,) over examples, and the mean's standard error by their spread."""
    found = _statistics(reader, np.array(ids), method)
    return found.mean, found.spread / np.sqrt(len(ids))


def _statistics(reader: RunReader, ids: NDArray[np.int64], method: str) -> ComponentStatistics:
    """Of all examples as the evaluate stage has kept them; else from the attributions."""
    if np.array_equal(np.sort(ids), np.arange(reader.directory.num_examples)):
        with contextlib.suppress(MissingWorkError):
            return StatisticsTable(reader.directory, method).read()
    sums: ComponentSums | None = None
    for rows, weights, _ in reader.attributions_by_block(ids, method):
        part = ComponentSums.of(ids[rows], weights)
        if sums is None:
            sums = part
        else:
            sums.add(part)
    assert sums is not None
    return sums.statistics()
