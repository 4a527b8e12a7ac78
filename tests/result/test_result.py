"""A result's arrays, tables and pictures, held to what is read one example and one component at a time."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

import coar_dist
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.components.masks import mask_without
from coar_dist.errors import ConfigError
from coar_dist.report.attribution_figures import draw_heads


@pytest.fixture
def run(small_run: coar_dist.Run) -> coar_dist.Run:
    return coar_dist.open_run(small_run.directory.storage.location)


def test_values_and_base_values_add_up_to_the_prediction_with_nothing_ablated(run: coar_dist.Run) -> None:
    assert run.values.dtype == np.float32
    np.testing.assert_array_equal(run.values, run.weights())
    whole = run.predict(np.ones((1, 12), np.bool_))[0]
    np.testing.assert_allclose(run.base_values + run.values.sum(axis=1), whole, rtol=1e-6)
    assert run.names == [component.name for component in run.components]
    assert (len(run), run.methods, run.errors) == (7, ["coar", "leave_one_out"], None)
    assert Path(run.path) == Path(run.directory.storage.location)
    others = run.by_method("leave_one_out")
    np.testing.assert_array_equal(others.values, run.weights(method="leave_one_out"))
    assert "7 of 7 examples, 12 components, leave_one_out" in repr(others)


def test_examples_are_taken_as_rows_of_an_array(run: coar_dist.Run) -> None:
    labels = run.examples()["label"]
    for key in (2, -1, slice(1, 6, 2), [4, 0], labels == labels[0], np.array([3])):
        some = run[key]
        ids = np.arange(7)[key].reshape(-1)
        np.testing.assert_array_equal(some.example_ids, ids)
        np.testing.assert_array_equal(some.values, run.weights()[ids])
        np.testing.assert_array_equal(some.base_values, run.intercepts()[ids])
        np.testing.assert_array_equal(some.examples()["label"], labels[ids])
    np.testing.assert_array_equal(run[[5, 3, 1]][[True, False, True]].example_ids, [5, 1])
    assert run[[]].values.shape == (0, 12)
    for key, words in (
        ("three", "by <U5"),
        (np.ones(3, np.bool_), "not over 7 examples"),
        (7, "0 to 6, not 7"),
    ):
        with pytest.raises(IndexError, match=words):
            run[key]


def test_sums_by_layer_and_kind(run: coar_dist.Run) -> None:
    weights, modules = run.weights(), [component.name.partition("[")[0] for component in run.components]
    by_module = run[[5, 2]].by("module")
    assert by_module.index.tolist() == [5, 2]
    assert by_module.columns.tolist() == ["conv1", "conv2", "grouped"]
    for example, module in ((5, "conv2"), (2, "grouped")):
        expected = sum(float(weights[example, i]) for i in range(12) if modules[i] == module)
        assert by_module.loc[example, module] == pytest.approx(expected, rel=1e-6)
    both = run.by()
    assert both.columns.names == ["layer", "kind"]
    assert both.columns.tolist() == [
        (name, "filter") for name in ("conv1", "conv2", "grouped")
    ]  # no layer has a number
    np.testing.assert_allclose(both.sum(axis=1), weights.sum(axis=1, dtype=float), rtol=1e-6)
    with pytest.raises(ConfigError, match="must be some of layer, kind, module, parameter"):
        run.by("colour")


def test_nearest_by_cosine(run: coar_dist.Run) -> None:
    weights = run.weights().astype(np.float64)
    lengths = [sum(weight**2 for weight in row) ** 0.5 for row in weights]
    similar = {i: weights[i] @ weights[4] / (lengths[i] * lengths[4]) for i in range(7)}
    order = sorted(set(similar) - {4}, key=lambda i: -similar[i])
    found = run.nearest(4, num=3)
    assert found.index.tolist() == order[:3]
    np.testing.assert_allclose(found.similarity, [similar[i] for i in order[:3]], rtol=1e-9)
    np.testing.assert_array_equal(found.label, run.examples(order[:3])["label"])
    assert run[[0, 1, 4]].nearest(4).index.tolist() == [i for i in order if i < 2]
    with pytest.raises(ConfigError, match="num=0"):
        run.nearest(4, num=0)


def test_predicted_with_components_off_by_id_name_and_pattern(run: coar_dist.Run) -> None:
    off = [run.names[3], 9, "conv2*"]
    mask = np.array([i not in (3, 9) and not name.startswith("conv2") for i, name in enumerate(run.names)])
    expected = run.intercepts() + run.weights()[:, mask].sum(axis=1)
    np.testing.assert_allclose(run.predict(off=off), expected, rtol=1e-5)
    np.testing.assert_allclose(run[[6, 1]].predict(off=off), expected[[6, 1]], rtol=1e-5)
    some = mask_without(run.components, run.components.where(name="conv2*"))
    assert some.tolist() == [not name.startswith("conv2") for name in run.names]
    for wrong in ("conv7*", 12, -1):
        with pytest.raises(ConfigError, match=r"no component .* Their names are conv1\[0\] to grouped\[3\], their ids"):
            run.predict(off=wrong)
    with pytest.raises(ConfigError, match="give off="):
        run.predict()


def test_top_shows_its_module_however_narrow_the_screen(run: coar_dist.Run) -> None:
    top = run.top(3)
    for _, row in top.iterrows():
        assert row.module == row["name"].partition("[")[0]
    with pandas.option_context("display.width", 60, "display.max_columns", 4):
        assert "module" in repr(top)
    mean = run[[2, 5]].top(num=12)
    np.testing.assert_allclose(mean.weight, run.weights([2, 5]).mean(axis=0)[mean.component_id], rtol=1e-6)


def test_frames_and_explanations(run: coar_dist.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = run[[5, 2]].to_pandas()
    assert frame.loc[2, run.names[7]] == run.weights([2])[0, 7]
    monkeypatch.setitem(sys.modules, "shap", None)
    with pytest.raises(ConfigError, match="pip install shap"):
        run.to_shap()

    def explanation(values: Any, **rest: Any) -> dict[str, Any]:
        return {"values": values, **rest}

    monkeypatch.setitem(sys.modules, "shap", types.SimpleNamespace(Explanation=explanation))
    given = run.to_shap()
    np.testing.assert_array_equal(given["values"], run.weights())
    np.testing.assert_array_equal(given["base_values"], run.intercepts())
    assert given["feature_names"] == run.names


def test_pictures_have_the_numbers(run: coar_dist.Run) -> None:
    (axes,) = run.plot.waterfall(3, num=4).axes
    weights, base = run.weights([3])[0].astype(float), run.intercepts([3])[0]
    strongest = np.argsort(-np.abs(weights))[:4]
    bars = axes.patches
    assert [label.get_text() for label in axes.get_yticklabels()][1:] == [run.names[i] for i in strongest[::-1]]
    np.testing.assert_allclose([bar.get_width() for bar in bars[1:]], weights[strongest[::-1]], rtol=1e-6)
    assert bars[0].get_x() == pytest.approx(base, abs=1e-6)
    assert bars[-1].get_x() + bars[-1].get_width() == pytest.approx(base + weights.sum(), rel=1e-6)
    assert axes.get_title() == f"example 3, label {int(run.examples()['label'][3])}"
    assert axes.get_xlim()[0] < min(bar.get_x() for bar in bars)  # no bar is cut off
    (axes,) = run[[0, 4]].plot.components(num=5).axes
    assert axes.get_title() == "mean of 2 examples, ± standard error"
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], run[[0, 4]].top(num=5).weight)
    first, second, *_ = run.plot.predictions([6, 2]).axes
    masks, true = run.margins(run.directory.held_out_as_trained() or "")
    for axes, example in ((first, 6), (second, 2)):
        line = axes.lines[0]
        np.testing.assert_allclose(line.get_xdata(), run.predict(masks, [example])[:, 0], rtol=1e-5)
        np.testing.assert_allclose(line.get_ydata(), true[:, example])
    with pytest.raises(ConfigError, match="of kind filter, none is a head"):
        run.plot.heads()


def test_heads_stand_in_their_layers() -> None:
    groups = [
        ComponentGroup.of("0.o.weight", 1, 2, 4, "head"),
        ComponentGroup.of("fc.weight", 0, 3),
        ComponentGroup.of("1.o.weight", 1, 3, 4, "head"),
    ]
    weights = np.random.default_rng(0).standard_normal(8)
    order = np.random.default_rng(1).permutation(8)
    top = pandas.DataFrame({"component_id": order, "weight": weights[order]})
    shown = draw_heads(top, ComponentIndex(tuple(groups)), "example 0").axes[0].images[0].get_array()
    np.testing.assert_array_equal(shown[0, :2], weights[:2])
    np.testing.assert_array_equal(shown[1], weights[5:])
    assert shown.mask[0, 2]


def test_former_names_warn_at_the_line_that_calls_them(run: coar_dist.Run) -> None:
    with pytest.warns(FutureWarning, match=r"run.top now") as caught:
        old = run.top_components([3], num=4)
    pandas.testing.assert_frame_equal(old, run.top(3, num=4))
    with pytest.warns(FutureWarning, match=r"run.plot.correlation now") as others:
        run.plot_correlation()
    assert {entry.filename for entry in (*caught, *others)} == {__file__}


def test_an_evaluated_run_is_not_evaluated_again(run: coar_dist.Run) -> None:
    with pytest.warns(FutureWarning, match="run.evaluate now"):
        report = run.report()
    pandas.testing.assert_frame_equal(run.evaluate(), report)
