"""Everything that the page shows of a run's attributions, from one reading, two blocks in memory at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.config.methods import LEAVE_ONE_OUT
from coar_dist.report.page.components import MAX_COMPARED, ComponentDetails, ShownComponents
from coar_dist.report.page.examples import ExampleDetails, ShownExamples, choose
from coar_dist.report.page.groupings import Grouping, groupings_of
from coar_dist.report.page.layers import LayerShares
from coar_dist.report.page.looks import looks_of
from coar_dist.report.predictions import PredictedExample
from coar_dist.report.summary import MethodSummary, Summary
from coar_dist.store.ahead import read_ahead
from coar_dist.store.class_names import read_class_names
from coar_dist.store.component_statistics import ComponentStatistics, StatisticsTable
from coar_dist.store.examples import TOKEN_END, ExampleTable
from coar_dist.store.previews import PreviewTable
from coar_dist.store.responses import Responses
from coar_dist.store.run_directory import TRAIN_DESIGN, RunDirectory
from coar_dist.store.tables import AttributionTable

_FEW_WEIGHTS = 32
"""Of an example, however little room there is."""


@dataclass(frozen=True)
class Gathered:
    """What the page shows of the attributions.

    Attributes:
        run: whose they are.
        method: whose weights are shown.
        correlations: (num_examples,) of predicted and true outputs at the training fraction; NaN where undefined.
        table: the columns of ``examples.parquet``.
        class_names: by label.
        groupings: of the examples.
        statistics: of all components.
        layers: shares of the weight by layer.
        components: the strongest ones.
        examples: those that are shown.
        looks: by component id what it looks at, of the strongest ones.
        images: by example id PNG or JPEG files, of shown examples and of those that a shown component matters most for.
        damaged: what is wrong with the files whose pictures are not shown.
    """

    run: RunDirectory
    method: MethodSummary
    correlations: NDArray[np.float64]
    table: dict[str, NDArray[Any]]
    class_names: dict[int, str]
    groupings: list[Grouping]
    statistics: ComponentStatistics
    layers: LayerShares
    components: ShownComponents
    examples: ShownExamples
    looks: dict[int, Responses]
    images: dict[int, bytes]
    damaged: list[str]

    @property
    def in_galleries(self) -> NDArray[np.int64]:
        """Ids of the examples that components look at, of those that they matter most for, those of the strongest
        component first, and of those that are nearest to a shown one."""
        shown = self.components
        ids = np.concatenate([shown.raised, shown.lowered], axis=1)
        are_there = np.concatenate([shown.raised_by, shown.lowered_by], axis=1) != 0
        looked_at = [example.example_id for looks in self.looks.values() for example in looks.examples]
        nearest = self.examples.nearest.T.reshape(-1).tolist()
        return np.array(list(dict.fromkeys([*looked_at, *ids[are_there].tolist(), *nearest])), dtype=np.int64)

    def excerpt_of(self, example_id: int) -> str | None:
        """The beginning of an example's text, where the run has it."""
        excerpts = self.table.get("excerpt")
        return None if excerpts is None or excerpts.dtype.kind != "U" else str(excerpts[example_id])

    def smaller(self) -> Gathered | None:
        """The same with fewer components, of which less is known, and fewer weights of each example; None where there
        are few already."""
        num_weights, num_components = self.examples.weights.shape[1], len(self.components.ids)
        if num_weights <= _FEW_WEIGHTS and num_components <= MAX_COMPARED and not self.looks:
            return None
        return replace(
            self,
            components=self.components.first(max(num_components // 2, MAX_COMPARED)),
            examples=self.examples.strongest(max(num_weights // 2, _FEW_WEIGHTS)),
            looks=dict(list(self.looks.items())[: len(self.looks) // 2]),
        )

    def tokens_of(self, example_id: int) -> list[str] | None:
        """The texts of an example's first tokens, where the run has them."""
        tokens = self.table.get("tokens")
        return None if tokens is None or tokens.dtype.kind != "U" else str(tokens[example_id]).split(TOKEN_END)

    def predictions(self) -> list[PredictedExample]:
        """The shown examples as a figure takes them."""
        shown = self.examples
        return [
            PredictedExample(
                example_id=example_id,
                label=_class(self.table["label"][example_id]),
                correlation=float(self.correlations[example_id]),
                predicted=shown.predicted[row],
                true=shown.true[row],
                image=self.images.get(example_id),
                excerpt=self.excerpt_of(example_id),
            )
            for row, example_id in enumerate(shown.ids.tolist())
        ]


def gather(run: RunDirectory, summary: Summary) -> Gathered:
    """Read what the page shows.

    Args:
        run: evaluated.
        summary: of the run; the first method's attributions are shown.

    Raises:
        MissingWorkError: attributions or held-out margins are missing.
        DamagedFileError: a file is damaged.
    """
    method = summary.methods[0]
    column = summary.trained_column or 0
    correlations = method.correlations[:, column]
    table, names = ExampleTable(run).read(), read_class_names(run)
    groupings = groupings_of(table, names)
    attributions, of_method = AttributionTable(run, method.method), StatisticsTable(run, method.method)
    statistics, shares = of_method.read(), of_method.read_shares()
    components = ComponentDetails(statistics, groupings)
    chosen = choose(table, correlations, statistics)
    examples = ExampleDetails(run, chosen, column, len(components.ids))
    blocks = run.margins(TRAIN_DESIGN).blocks
    for block, parts in zip(blocks, read_ahead(attributions.read_in_parts, blocks), strict=True):
        first = block[0]
        for weights, intercepts in parts:
            example_ids = np.arange(first, first := first + len(weights))
            examples.add(example_ids, weights, intercepts, components.add(example_ids, weights))
    if all(attributions.has_standard_errors(block) for block in blocks):
        read_errors = read_ahead(attributions.read_standard_errors, blocks)
        for block, errors in zip(blocks, read_errors, strict=True):
            examples.add_errors(np.arange(*block), errors)
            components.add_errors(errors)
    looks, damaged_looks = looks_of(run, components.ids)
    found = Gathered(
        run=run,
        method=method,
        correlations=correlations,
        table=table,
        class_names=names,
        groupings=groupings,
        statistics=statistics,
        layers=LayerShares.of(run.components, shares, groupings),
        components=components.result(),
        examples=examples.result(
            table["margin"][chosen].astype(np.float64), any(each.method == LEAVE_ONE_OUT for each in summary.methods)
        ),
        looks=looks,
        images={},
        damaged=damaged_looks,
    )
    images, damaged = PreviewTable(run).read(np.union1d(chosen, found.in_galleries).tolist())
    found.images.update(images)
    found.damaged.extend(damaged)
    return found


def _class(value: Any) -> int | None:
    return int(value) if np.isfinite(value) else None
