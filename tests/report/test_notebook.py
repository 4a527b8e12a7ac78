"""What a notebook shows of a run, held to the arrays that it is made of."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

import coar_dist
from coar_dist.api import Run, open_run
from coar_dist.errors import ConfigError, MissingWorkError
from coar_dist.evaluation.intervals import means_of
from coar_dist.report.figures import draw_correlations
from coar_dist.report.summary import summarise
from coar_dist.store.ceilings import CEILING_LABEL
from coar_dist.store.class_names import write_class_names
from coar_dist.store.component_statistics import StatisticsTable
from coar_dist.store.evaluations import EvaluationTable
from coar_dist.store.tables import Attributions, AttributionTable
from tests.report.synthetic import synthetic_run


def opened(run: Run) -> coar_dist.Run:
    return open_run(run.directory.storage.location)


def test_report_is_one_row_per_method_and_fraction(small_run: Run) -> None:
    run = opened(small_run)
    assert run.evaluate().columns.tolist()[-3:] == ["correlation_low", "correlation_high", "correlation"]  # those seen
    frame = run.evaluate().set_index(["method", "ablation_fraction"])
    assert frame.index.tolist() == [(m, f) for m in ("coar", "leave_one_out", "ceiling") for f in (0.2, 0.1)]
    for method, fraction in (("coar", 0.2), ("leave_one_out", 0.1)):
        values = run.evaluation(method, f"evaluation_{fraction}")
        row = frame.loc[(method, fraction)]
        means = means_of(values["correlation"][:, None])
        ends = [row.correlation, row.correlation_low, row.correlation_high]
        np.testing.assert_allclose(ends, [means.mean[0], means.low[0], means.high[0]])
        assert row.spearman == pytest.approx(values["spearman"].mean())
        for name in ("r2", "slope", "intercept"):
            assert row[name] == pytest.approx(np.median(values[name]))
    assert frame.masks["coar"].unique().tolist() == ["150"]
    assert frame.label["leave_one_out"].unique().tolist() == ["Leave-one-out"]
    ceiling, row = run.ceiling(), frame.loc[("ceiling", 0.2)]
    assert row.correlation == ceiling.mean
    assert row.correlation_high - row.correlation_low == pytest.approx(2 * 1.96 * ceiling.standard_error)
    assert np.isnan(row.slope)
    assert frame.num_undefined.tolist() == [0, 0, 0, 0, *np.isnan([run.ceiling().correlations] * 2).sum(axis=1)]


def test_undefined_correlations_are_counted_per_fraction(small_run: Run, tmp_path: Path) -> None:
    shutil.copytree(small_run.directory.storage.location, tmp_path / "run")
    run = open_run(tmp_path / "run")
    table = EvaluationTable(run.directory, "coar", "evaluation_0.1")
    table.write({name: np.where(np.arange(7) < 2, np.nan, values) for name, values in table.read().items()})
    frame = run.evaluate().set_index(["method", "ablation_fraction"])
    assert frame.num_undefined.loc["coar"].tolist() == [0, 2]


def test_the_figure_is_its_own_and_shown_once(small_run: Run) -> None:
    run = opened(small_run)
    figure = run.plot.correlation()
    (axes,) = figure.axes
    lines = {container.get_label(): container.lines[0].get_ydata() for container in axes.containers}
    by_fraction = [run.evaluation("coar", name)["correlation"].mean() for name in run.directory.held_out]
    np.testing.assert_allclose(lines["COAR"], by_fraction)
    assert set(lines) == {"COAR", "Leave-one-out", "Ceiling, linear"}
    assert not axes.spines["top"].get_visible()
    assert not plt.get_fignums()  # which a notebook would show besides
    assert figure._repr_png_().startswith(b"\x89PNG")
    only, _ = run.plot.correlation(methods=["leave_one_out"]).axes[0].containers
    assert only.get_label() == "Leave-one-out"
    for methods in (["coar", "lasso"], "coar", []):
        with pytest.raises(ConfigError, match="must be a list of some of coar, leave_one_out"):
            run.plot.correlation(methods=methods)


def test_top_components_of_one_example_and_of_several(small_run: Run) -> None:
    run = opened(small_run)
    top = run.top(3, num=4)
    weights = run.weights([3])[0]
    assert top.index.tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(top.component_id, np.argsort(-np.abs(weights))[:4])
    np.testing.assert_array_equal(top.weight, weights[top.component_id])
    assert "standard_error" not in top
    for _, row in top.iterrows():
        assert run.components[row["name"]].id == row.component_id
        assert (row.kind, row.layer) == ("filter", None)
    ids = np.flatnonzero(run.examples()["label"] == run.examples()["label"][0])
    several = run.by_method("leave_one_out").top(ids, num=99)
    assert len(several) == run.components.num_components
    of_ids = run.weights(ids, "leave_one_out")[:, several.component_id]
    np.testing.assert_allclose(several.weight, of_ids.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(several.standard_error, of_ids.std(axis=0, ddof=1) / len(ids) ** 0.5, rtol=1e-4)


def test_standard_errors_of_the_fit_where_it_has_them(small_run: Run, tmp_path: Path) -> None:
    shutil.copytree(small_run.directory.storage.location, tmp_path / "run")
    run = open_run(tmp_path / "run")
    table, block = AttributionTable(run.directory, "coar"), (0, 7)
    weights, intercepts = table.read(block)
    errors = np.arange(7 * 12, dtype=np.float32).reshape(7, 12)
    table.write(block, {}, replace(Attributions.of_weights(weights, intercepts), standard_errors=errors))
    top = run.top(5)
    np.testing.assert_array_equal(top.standard_error, errors[5][top.component_id])


def test_what_is_not_there_is_named(small_run: Run, tmp_path: Path) -> None:
    run = opened(small_run)
    with pytest.raises(IndexError, match=r"example ids \[7\] are outside 0\.\.6"):
        run.top(7)
    with pytest.raises(IndexError, match="must be integers"):
        run.top("three")  # type: ignore[arg-type]
    with pytest.raises(MissingWorkError, match="There are attributions of coar, leave_one_out"):
        run.by_method("coar_lasso").top(0)
    with pytest.raises(ConfigError, match="method='lasso': must be one that the run has: coar, leave_one_out"):
        run.by_method("lasso").top(0)
    with pytest.raises(ConfigError, match="num=0: must be a whole number, at least 1"):
        run.top(0, num=0)
    with pytest.raises(ConfigError, match="there is no example"):
        run.top([])
    shutil.copytree(small_run.directory.storage.location, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "evaluation")
    unevaluated = open_run(tmp_path / "run")
    with pytest.raises(MissingWorkError, match="run the evaluate stage"):
        unevaluated.plot.correlation()


def test_html_says_what_there_is(small_run: Run) -> None:
    text = opened(small_run)._repr_html_()
    for part in ("7<", "12 in 3 parameters", "train 150 (bernoulli, 0.2)", "coar, leave_one_out", "run.top(example=0)"):
        assert part in text


def test_the_command_line_does_not_wait_for_pandas() -> None:
    program = "import sys, coar_dist.stages.pipeline, coar_dist.report.notebook; assert 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_figure_of_one_fraction_has_a_row_per_method(tmp_path: Path) -> None:
    whole = summarise(synthetic_run(tmp_path, 30))
    methods = [
        replace(method, correlation=means_of(method.correlations[:, :1]), correlations=method.correlations[:, :1])
        for method in whole.methods
    ]
    (first, design), *_ = whole.held_out.items()
    ceiling = whole.ceilings[first]
    assert ceiling is not None
    summary = replace(whole, held_out={first: design}, methods=methods, ceilings={first: ceiling})
    (axes,) = draw_correlations(summary).axes
    expected = {method.label: method.correlation.mean[0] for method in methods} | {CEILING_LABEL: ceiling.mean}
    rows = [label.get_text() for label in axes.get_yticklabels()]
    points = {rows[int(line.get_ydata()[0])]: line.get_xdata()[0] for line in axes.lines if line.get_marker() in "oD"}
    assert points == expected
    assert axes.get_xlim()[1] < 1.05


def test_examples_are_arrays_by_name_that_show_as_a_table(tmp_path: Path) -> None:
    made = synthetic_run(tmp_path / "run", 30, kind="texts", columns={"site": np.arange(30)})
    write_class_names(made, {0: "cat", 2: "dog & wolf"})
    run, found = open_run(tmp_path / "run"), open_run(tmp_path / "run").examples()
    assert isinstance(found, dict)
    assert [*found] == ["example_id", "label", "prediction", "margin", "excerpt", "tokens", "site"]
    assert isinstance(found["label"], np.ndarray)
    np.testing.assert_array_equal(run[4:6].examples()["site"], [4, 5])
    np.testing.assert_array_equal(run.examples([7, 3])["site"], [7, 3])
    frame = found.to_pandas()
    assert frame.index.name == "example_id"
    assert frame.columns.tolist()[:5] == ["label", "label_name", "prediction", "prediction_name", "margin"]
    names = {0: "cat", 2: "dog & wolf"}
    assert frame.label_name.tolist() == [names.get(label, "") for label in found["label"]]
    assert frame.tokens[3] == ["text", " ", "3\nof a play"]
    assert repr(found).splitlines()[-1] == "A dict of these columns as arrays; .to_pandas() is the table."
    assert "dog &amp; wolf" in found._repr_html_()
    assert run.nearest(3, num=2).columns.tolist()[:3] == ["similarity", "label", "label_name"]
    plain = open_run(synthetic_run(tmp_path / "plain", 10, kind="numbers").storage.location).examples()
    assert plain.to_pandas().columns.tolist() == ["label", "prediction", "margin"]


def test_means_of_all_examples_are_those_that_the_evaluation_has_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(synthetic_run(tmp_path / "run", 1100))
    weights = run.weights().astype(np.float64)
    read: list[tuple[int, int]] = []
    plain = AttributionTable.read

    def counted(self: AttributionTable, block: tuple[int, int]) -> Any:
        read.append(block)
        return plain(self, block)

    monkeypatch.setattr(AttributionTable, "read", counted)
    kept = run.top(num=24)
    assert read == []
    ids = kept.component_id.to_numpy()
    np.testing.assert_allclose(kept.weight, weights.mean(axis=0)[ids], rtol=1e-6)
    np.testing.assert_allclose(kept.standard_error, weights.std(axis=0, ddof=1)[ids] / 1100**0.5, rtol=1e-5)
    for file in StatisticsTable(run.directory, "coar").files:
        Path(f"{run.path}/{file}").unlink()
    assert kept.equals(run.top(num=24))
    assert read == run.directory.margins("train").blocks
    assert run.top(range(1099), num=24).weight.iloc[0] != kept.weight.iloc[0]
