"""The drawn figures of the page: each stands inside it, and beside it as ``.png`` and ``.svg``.

A figure that another part of the product has measured is one more entry of ``figures_of``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from coar_dist.report.circuit_figures import circuit_figures
from coar_dist.report.drawing import inline_svg, save_figure
from coar_dist.report.figures import draw_budgets, draw_correlations, draw_distributions, draw_layers
from coar_dist.report.output_names import OutputName
from coar_dist.report.page.gather import Gathered
from coar_dist.report.predictions import draw_predictions, few_of
from coar_dist.report.summary import Summary
from coar_dist.store.storage import Storage


@dataclass(frozen=True)
class PageFigure:
    """One figure.

    Attributes:
        name: of its files.
        section: of the page that shows it: ``quality``, ``maps`` or ``circuits``.
        figure: as drawn.
        title: what a screen reader says of it.
        caption: below it.
    """

    name: str
    section: str
    figure: Figure
    title: str
    caption: str


@dataclass(frozen=True)
class InlineFigure:
    """A figure as the page holds it: ``svg`` is an element; the others as of ``PageFigure``."""

    name: str
    section: str
    svg: str
    caption: str


def figures_of(found: Gathered, summary: Summary, output: OutputName) -> list[PageFigure]:
    """The figures in the order of the page."""
    figures = [
        PageFigure(
            "figure1",
            "quality",
            draw_correlations(summary),
            "mean correlation by ablation fraction and method",
            "Mean correlation by ablation fraction (Figure 1 of the paper for this run).",
        )
    ]
    if summary.curves:
        figures.append(
            PageFigure(
                "budget_curve",
                "quality",
                draw_budgets(summary.curves),
                "mean correlation by number of masks",
                "Mean correlation by number of masks, and the forecast for more.",
            )
        )
    figures += [
        PageFigure(
            "distribution",
            "quality",
            draw_distributions(summary),
            "distribution of correlations over examples",
            "Correlations of single examples.",
        ),
        PageFigure(
            "predictions",
            "quality",
            draw_predictions(few_of(found.predictions()), found.method.label, output.one, found.class_names),
            f"true against predicted {output.many} of a few examples",
            f"Predicted and true {output.many} of a few examples on held-out masks, from the best predicted one down.",
        ),
    ]
    if np.isfinite(found.layers.shares).all():
        figures.append(
            PageFigure(
                "parameters",
                "maps",
                draw_layers(found.layers),
                "share of absolute weight by parameter and class",
                "Share of the absolute weight by parameter, and by class where there are classes.",
            )
        )
    figures += [
        PageFigure(
            name,
            "circuits",
            figure,
            title,
            "The strongest components alone, by their share of all: 1 is the whole model, 0 what is left without any.",
        )
        for name, (figure, title) in circuit_figures(found.run).items()
    ]
    return figures


def saved(storage: Storage, folder: str, figures: list[PageFigure]) -> list[InlineFigure]:
    """Write the files of the figures; returns them as parts of the page.

    Raises:
        StorageError: they cannot be written.
    """
    return [
        InlineFigure(
            each.name,
            each.section,
            inline_svg(save_figure(storage, f"{folder}/{each.name}", each.figure), each.title),
            each.caption,
        )
        for each in figures
    ]
