"""No text of a figure is cut off, however long names are and however little there is to show."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from coar_dist.config.methods import METHODS
from coar_dist.designs.independent import Bernoulli
from coar_dist.evaluation.intervals import means_of
from coar_dist.report.attribution_figures import draw_components, draw_waterfall
from coar_dist.report.drawing import LOWERS, RAISES, look_of, looks_of
from coar_dist.report.figures import draw_correlations, draw_distributions, draw_layers
from coar_dist.report.numbers import signed
from coar_dist.report.page.groupings import CLASS, Grouping
from coar_dist.report.page.layers import LayerShares
from coar_dist.report.predictions import PredictedExample, draw_predictions
from coar_dist.report.summary import MethodSummary, Summary

NAMES = [f"encoder.backbone.stage{i}.block1.conv2[31]" for i in range(3)]
WEIGHTS = np.array([123.456, -0.00123, 0.5])


def summary() -> Summary:
    """Two methods at one held-out ablation fraction, one of them as good as can be."""
    correlations = np.clip(np.random.default_rng(0).normal([0.5, 1.0], [0.1, 1e-4], (20, 2)), -1, 1)
    held_out = {"evaluation_0.05": Bernoulli(8, 60, 0.05, 1)}
    methods = []
    for name, column in zip(("coar", "gradient_ridge"), correlations.T, strict=True):
        means = means_of(column[:, None])
        methods.append(MethodSummary(name, "60", column[:, None], means, means, {}, {}))
    return Summary(held_out, 0.05, methods, {"evaluation_0.05": None}, [])


def shown(example_id: int, kind: str = "") -> PredictedExample:
    values, content = np.linspace(-0.00123, 0.00456, 9), io.BytesIO()
    if kind:
        Image.new("RGB", (8, 8)).save(content, kind)
    return PredictedExample(example_id, 3, 0.9, values, values, content.getvalue() or None, "a text " * 30)


def layers(*names: str) -> LayerShares:
    shares = np.array([0.2, 0.3, 0.5])
    grouping = Grouping(CLASS, list(names), np.arange(4), list(range(4)))
    return LayerShares(NAMES, np.array([1, 1, 2]), shares, [grouping], [np.tile(shares, (4, 1))])


FIGURES = {
    "layers": lambda: draw_layers(layers("0", "1", "2", "3")),
    "layers of named classes": lambda: draw_layers(layers("0", "1", "2", "three, by a very long name")),
    "components": lambda: draw_components(NAMES, WEIGHTS, None, "margin", "example 3, label 5"),
    "waterfall": lambda: draw_waterfall(NAMES, WEIGHTS, 100.0, -1234.5, "margin", "example 3, label 5"),
    "correlations": lambda: draw_correlations(summary()),
    "distributions": lambda: draw_distributions(summary()),
    "one prediction": lambda: draw_predictions([shown(3)], "COAR + gradients", "log-odds", {}),
    "predictions": lambda: draw_predictions([shown(i) for i in range(4)], "COAR + gradients", "log-odds", {3: "three"}),
    "pictures": lambda: draw_predictions([shown(3, "PNG"), shown(4, "JPEG")], "COAR", "margin", {}),
}


@pytest.mark.parametrize("name", FIGURES)
def test_all_that_is_drawn_lies_within_the_figure(name: str) -> None:
    figure = FIGURES[name]()
    figure.savefig(io.BytesIO(), format="png")  # which lays it out
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(drawn.x0, drawn.y0) > -0.02
    assert drawn.x1 < width + 0.02
    assert drawn.y1 < height + 0.02


def test_every_method_has_a_look_of_its_own_and_none_that_of_a_sign() -> None:
    looks = [look_of(method) for method in METHODS]
    assert len(set(looks)) == len(looks)
    assert not {colour for colour, _ in looks} & {RAISES, LOWERS}
    assert look_of("research_2024") == look_of("research")
    for methods in (("coar", "leave_one_out"), ("internal_influence", "neuron_conductance")):
        shown = looks_of([*methods, "greedy", "magnitude", "random"])
        assert len({colour for colour, _ in shown.values()}) == 5
        assert {method: shown[method] for method in methods} == {method: look_of(method) for method in methods}


def test_a_number_is_written_with_its_sign() -> None:
    written = [signed(value) for value in (2.5, -0.00123, 123.456, -1234.5, 345.0)]
    assert written == ["+2.50", "\N{MINUS SIGN}0.00123", "+123", "\N{MINUS SIGN}1,234", "+345"]
    assert [signed(2.5, "-"), signed(-1.0, "-")] == ["2.50", "\N{MINUS SIGN}1.00"]
