"""Which attributions are read where no method is named, and what is said of those that are not there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.config.methods import BASELINES, METHODS, by_preference, label_of
from coar_dist.config.schema import RegressionConfig
from coar_dist.designs.given import LeaveOneOut
from coar_dist.designs.independent import Bernoulli
from coar_dist.errors import MissingWorkError
from coar_dist.evaluation.correlation import evaluate
from coar_dist.regression.fit import attribution_name
from coar_dist.report.notebook import component_frame, report_frame
from coar_dist.store.methods import fitted_methods, methods_of
from coar_dist.store.reader import RunReader
from coar_dist.store.run_directory import RunDesign, RunDirectory
from coar_dist.store.tables import Attributions, AttributionTable
from tests.models import local_storage

COMPONENTS, EXAMPLES, HELD_OUT = 6, 5, "evaluation_0.2"


def run_with(root: Path, *methods: str, baselines: Sequence[str] = ()) -> RunReader:
    """A run with attributions of these methods, which differ, and margins on held-out masks."""
    identity = {"ablation.examples_per_block": 3, "ablation.margins_dtype": "float32"}
    components = ComponentIndex((ComponentGroup.of("a.weight", 0, COMPONENTS),))
    run = RunDirectory.create(local_storage(root), identity, components, EXAMPLES)
    designs = {
        "train": RunDesign("train", Bernoulli(COMPONENTS, 30, 0.2, 0)),
        HELD_OUT: RunDesign("evaluation", Bernoulli(COMPONENTS, 20, 0.2, 1)),
    }
    if "gradient_ridge" in methods:
        designs["gradients"] = RunDesign("gradients", Bernoulli(COMPONENTS, 10, 0.2, 2))
    designs |= {name: RunDesign("baseline", LeaveOneOut.of(COMPONENTS)) for name in baselines}
    run.set_designs(designs)
    held_out = designs[HELD_OUT].design
    margins = np.random.default_rng(0).normal(size=(held_out.num_masks, EXAMPLES)).astype(np.float32)
    run.margins(HELD_OUT).write(0, held_out.masks(0, held_out.num_masks), margins, {})
    for method in methods:
        for block in run.margins("train").blocks:
            write(run, method, block)
    return RunReader(run)


def weights_of(method: str) -> np.ndarray:
    return np.random.default_rng(list(method.encode())).normal(size=(EXAMPLES, COMPONENTS)).astype(np.float32)


def write(run: RunDirectory, method: str, block: tuple[int, int]) -> None:
    weights = weights_of(method)[slice(*block)]
    table = AttributionTable(run, method)
    table.write(block, {}, Attributions.of_weights(weights, weights[:, 0].astype(np.float64)))


@pytest.mark.parametrize(
    ("methods", "best"),
    [
        (["coar_lasso"], "coar_lasso"),
        (["coar_elastic_net"], "coar_elastic_net"),
        (["leave_one_out"], "leave_one_out"),
        (["coar", "gradient_ridge", "leave_one_out"], "gradient_ridge"),
        (["coar_elastic_net", "coar_lasso", "coar"], "coar"),
        (["leave_one_out", "research_b", "research_a"], "research_a"),
    ],
)
def test_everything_works_on_what_is_fitted(methods: list[str], best: str, tmp_path: Path) -> None:
    reader = run_with(tmp_path, *methods, baselines=[name for name in methods if name in BASELINES])
    run, weights = reader.directory, weights_of(best)
    assert reader.best_method == best
    np.testing.assert_array_equal(reader.weights(), weights)
    masks = np.eye(COMPONENTS, dtype=bool)
    np.testing.assert_allclose(reader.predict(masks), (weights + weights[:, :1]).T, rtol=1e-6)
    assert set(reader.quality()) == {"regularisation", "r2", "r2_new", "duality_gap"}
    strongest = component_frame(reader, 2, 1, reader.best_method)
    assert strongest.component_id.tolist() == [np.abs(weights[2]).argmax()]
    evaluate(run, methods_of(run), lambda _: None)
    masks, margins = reader.margins(HELD_OUT)
    expected = [np.corrcoef(*pair)[0, 1] for pair in zip(reader.predict(masks).T, margins.T, strict=True)]
    np.testing.assert_allclose(reader.evaluation()["correlation"], expected, atol=1e-5)
    shown = report_frame(run)
    assert shown.method.tolist() == sorted(methods, key=lambda name: (name != best, methods_of(run).index(name)))
    assert shown.label.tolist() == [label_of(name) for name in shown.method]


def test_what_is_half_done_is_no_method_to_read_but_no_result_without_it_either(tmp_path: Path) -> None:
    reader = run_with(tmp_path, "coar_lasso")
    run = reader.directory
    write(run, "coar", run.margins("train").blocks[0])
    assert fitted_methods(run) == ["coar_lasso"]
    np.testing.assert_array_equal(reader.weights(), weights_of("coar_lasso"))
    assert methods_of(run) == ["coar", "coar_lasso"]
    with pytest.raises(MissingWorkError, match=r"'coar' lack attributions/coar\.00000003-00000005.*run the fit stage"):
        evaluate(run, methods_of(run), lambda _: None)


def test_what_the_run_no_longer_asks_for_is_read_by_its_name_alone(tmp_path: Path) -> None:
    run = run_with(tmp_path, "gradient_ridge", "coar_lasso", "leave_one_out", baselines=["leave_one_out"]).directory
    asked = run.designs
    run.set_designs({name: asked[name] for name in ("train", HELD_OUT)})
    reader = RunReader(RunDirectory.open(run.storage))
    assert methods_of(reader.directory) == ["coar_lasso"]
    np.testing.assert_array_equal(reader.weights(), weights_of("coar_lasso"))
    for method in ("gradient_ridge", "leave_one_out"):
        np.testing.assert_array_equal(reader.weights(method=method), weights_of(method))
    alone = run_with(tmp_path / "alone", "leave_one_out")
    np.testing.assert_array_equal(alone.weights(), weights_of("leave_one_out"))


def test_what_is_not_fitted_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    reader = run_with(tmp_path / "some", "coar_lasso", "coar_elastic_net")
    there = r"There are attributions of coar_lasso, coar_elastic_net: .*run the fit stage for 'coar'"
    for read in (reader.weights, reader.quality, reader.standard_errors):
        with pytest.raises(MissingWorkError, match=there):
            read(method="coar")
    nothing = run_with(tmp_path / "none")
    for read in (nothing.weights, nothing.quality, nothing.evaluation, lambda: methods_of(nothing.directory)):
        with pytest.raises(MissingWorkError, match=r"no attributions yet: run the fit stage, .*run\.dir=.*none"):
            read()
    baseline = run_with(tmp_path / "baseline", baselines=["leave_one_out"])
    with pytest.raises(MissingWorkError, match=r"'leave_one_out' lack .*run the fit stage"):
        evaluate(baseline.directory, methods_of(baseline.directory), lambda _: None)


def test_looking_for_methods_changes_nothing(tmp_path: Path) -> None:
    run = run_with(tmp_path, "coar", "leave_one_out").directory
    (tmp_path / "attributions" / "coar.00000000-00000003.parquet").write_bytes(b"no Parquet file")
    (tmp_path / "attributions" / "notes.parquet").write_bytes(b"of no method")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert fitted_methods(run) == ["coar", "leave_one_out"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_every_regression_has_its_name() -> None:
    names = [
        attribution_name(RegressionConfig(method, l1_ratio=ratio))
        for method, ratio in [("ridge", 1.0), ("lasso", 1.0), ("lasso", 0.5)]
    ]
    assert names == ["coar", "coar_lasso", "coar_elastic_net"]
    assert by_preference(reversed(METHODS)) == list(METHODS)
    assert [label_of(name) for name in ("research", "research_x", "greedy")] == [
        "Research code",
        "research_x",
        "greedy",
    ]
