"""Predicted against true outputs of single examples, as a figure."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from coar_dist.report.drawing import FAINT, METHOD_COLOURS, STYLE, ShownFigure
from coar_dist.report.numbers import number

PNG = b"\x89PNG"
"""How a PNG begins."""
_EXCERPT = 90
CLASS_NAME = 24
"""Letters of a class's name in a figure."""


@dataclass(frozen=True)
class PredictedExample:
    """One panel.

    Attributes:
        example_id: its id in the run.
        label: its class; None where targets are not classes.
        correlation: between predicted and true outputs; NaN where undefined.
        predicted: (num_masks,) outputs.
        true: (num_masks,) outputs under the same masks.
        image: PNG or JPEG, where the run has it.
        excerpt: the beginning of its text, where the run has it.
    """

    example_id: int
    label: int | None
    correlation: float
    predicted: NDArray[np.float64]
    true: NDArray[np.float64]
    image: bytes | None
    excerpt: str | None


def draw_predictions(
    shown: Sequence[PredictedExample], method: str, output: str, class_names: Mapping[int, str]
) -> Figure:
    """Predicted against true outputs on held-out masks, one panel per example, with the example itself.

    Args:
        shown: at least one.
        method: whose predictions, for people.
        output: what is predicted, for people.
        class_names: by class, where classes have names.
    """
    with matplotlib.rc_context(STYLE):
        num_rows, num_columns = -(-len(shown) // 3), min(len(shown), 3)
        figure = ShownFigure(figsize=(max(2.8 * num_columns, 3.6), 2.7 * num_rows), layout="constrained")
        panels = figure.subplots(num_rows, num_columns, squeeze=False).reshape(-1)
        for axes in panels[len(shown) :]:
            axes.set_axis_off()
        for axes, example in zip(panels, shown, strict=False):
            axes.plot(example.predicted, example.true, ".", color=METHOD_COLOURS[0], markersize=3.5, alpha=0.6)
            ends = np.array([*example.predicted, *example.true])
            axes.axline((ends.min(), ends.min()), slope=1.0, color=FAINT, linewidth=0.8)
            name = name_of_example(example.example_id, example.label, class_names)
            axes.set_title(f"{name}: r = {number(example.correlation)}", fontsize=9)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            if example.image is not None:
                inset = axes.inset_axes((0.03, 0.64, 0.33, 0.33))
                kind = "png" if example.image.startswith(PNG) else "jpeg"
                inset.imshow(imread(io.BytesIO(example.image), format=kind), cmap="gray")
                inset.set_axis_off()
            elif example.excerpt is not None:
                axes.set_xlabel(textwrap.fill(example.excerpt[:_EXCERPT], 45), fontsize=6.5)
        figure.supxlabel(f"{output} as {method} predicts it", fontsize=9)
        figure.supylabel(f"true {output}", fontsize=9)
    return figure


def few_of(shown: Sequence[PredictedExample], num: int = 6) -> list[PredictedExample]:
    """Evenly spread over the order of correlations, the best one first; those with undefined ones only for want of
    others."""
    order = sorted(shown, key=lambda example: -np.inf if np.isnan(example.correlation) else example.correlation)
    defined = [example for example in order if np.isfinite(example.correlation)] or order
    places = np.unique(np.linspace(0, len(defined) - 1, num).round().astype(int))
    return [defined[i] for i in places[::-1]]


def name_of_example(example_id: int, label: int | None, class_names: Mapping[int, str]) -> str:
    """What a title calls an example: its id and its class, where it has one."""
    if label is None:
        return f"example {example_id}"
    return f"example {example_id}, {class_names[label][:CLASS_NAME] if label in class_names else f'label {label}'}"
