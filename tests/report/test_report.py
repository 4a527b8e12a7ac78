"""The report of a run: tables, figures, and what cannot be averaged."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from coar_dist.api import Run, open_run
from coar_dist.config.schema import Config, RunConfig
from coar_dist.errors import MissingWorkError, StorageError
from coar_dist.evaluation.extrapolation import extrapolate
from coar_dist.evaluation.intervals import means_of
from coar_dist.report.numbers import mean_of
from coar_dist.report.summary import CurveSummary, forecast_in_words, summarise
from coar_dist.stages.pipeline import run_stages
from coar_dist.store.agreement import METRICS
from coar_dist.store.budget_curve import BudgetCurve
from coar_dist.store.evaluations import EvaluationTable
from coar_dist.store.local_storage import LocalStorage


@pytest.fixture
def root(small_run: Run, tmp_path: Path) -> Path:
    root = tmp_path / "run"
    shutil.copytree(small_run.directory.storage.location, root)
    return root


def printed(root: Path, width: int = 80) -> str:
    output = io.StringIO()
    run_stages(Config(stages=["report"], run=RunConfig(str(root))), Console(file=output, width=width))
    return output.getvalue()


def test_tables_show_means_in_80_columns_and_why_few_examples_have_no_intervals(root: Path) -> None:
    run = open_run(root)
    lines = printed(root).splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("method"))
    assert lines[header].split() == ["method", "masks", "(trained)", "at", "0.1"]
    coar = lines[header + 2]
    assert coar.split()[:2] == ["COAR", "150"]
    for design_name in ("evaluation_0.2", "evaluation_0.1"):
        mean = run.evaluation("coar", design_name)["correlation"].mean()
        assert f"{mean:.3f}"[1:] in coar.split()
    assert "No 95% intervals over fewer than 20 examples: they would cover too little." in lines
    values = run.evaluation("coar")["correlation"]
    agreement = next(line for line in lines if "Spearman" in line and line.startswith("method"))
    assert agreement.split() == ["method", "Spearman", "R2", "slope", "intercept"]
    row = lines[lines.index(agreement) + 2].split()
    assert row[0] == "COAR"
    assert row[1] == f"{run.evaluation('coar')['spearman'].mean():.3f}"[1:]
    assert row[2] == f"{np.median(run.evaluation('coar')['r2']):.3f}"[1:]
    assert f"COAR, 150 masks: {values.mean():.3f}; twice the masks about .".replace(" 0.", " .") in printed(root, 200)
    assert "…" not in printed(root)


def test_intervals_are_shown_where_there_are_examples(root: Path) -> None:
    """Their longer half: correlations near 1 have a long tail."""
    values = (1 - np.random.default_rng(0).exponential(0.1, size=(20, 1))) * 0.9
    means = means_of(values)
    longer = float(means.mean[0] - means.low[0])
    assert mean_of(means, 0) == f"{values.mean():.3f}±{longer:.3f}".replace("0.", ".")
    assert mean_of(means_of(values[:19]), 0) == f"{values[:19].mean():.3f}"[1:]
    summary = summarise(open_run(root).directory)
    many = [replace(method, correlation=means, spearman=means) for method in summary.methods]
    assert not any("intervals" in note for note in replace(summary, methods=many).notes)


def test_a_forecast_goes_on_from_the_mean_that_the_table_has() -> None:
    """Two of 12 examples have no correlation of few masks, and lower ones of many."""
    masks = np.array([50, 100, 200, 400, 800])
    whole = np.outer(np.linspace(0.9, 1.1, 10), (0.8**-2 + 0.2 * (masks / 800) ** -1.0) ** -0.5)
    correlations = np.concatenate([whole, [[np.nan, 0.1, 0.1, 0.1, 0.1]] * 2])
    curve = BudgetCurve(np.arange(12), masks, correlations)
    found = CurveSummary("coar", curve, means_of(correlations), extrapolate(masks, correlations, 50))
    mean, gain = np.nanmean(correlations[:, -1]), (0.8**-2 + 0.1) ** -0.5 - whole[:, -1].mean()
    expected = (
        f"COAR, 800 masks: {mean:.3f}; with the gain of the 10 that have all points defined, twice the masks about "
        f"{mean + gain:.3f} ±{gain:.3f}, four times"
    )
    assert forecast_in_words(found, 12).startswith(expected.replace("0.", "."))


def test_figures_are_of_the_tables_alone_and_the_same_again(root: Path) -> None:
    printed(root)
    figures = ["budget_curve", "distribution", "figure1", "parameters", "predictions"]
    names = sorted(["index.html", *(f"{name}.{kind}" for name in figures for kind in ("png", "svg"))])
    assert sorted(path.name for path in (root / "report").iterdir()) == names
    contents = {name: (root / "report" / name).read_bytes() for name in names}
    for name, content in contents.items():
        if name.endswith(".png"):
            assert content.startswith(b"\x89PNG\r\n\x1a\n")
        elif name.endswith(".svg"):
            assert ElementTree.fromstring(content).tag.endswith("svg")
    shutil.rmtree(root / "report")
    printed(root)
    assert {name: (root / "report" / name).read_bytes() for name in names} == contents


def test_the_report_needs_neither_torch_nor_ray(root: Path) -> None:
    program = (
        "import sys; from coar_dist.config.schema import Config, RunConfig; "
        "from coar_dist.stages.pipeline import run_stages; "
        "from rich.console import Console; "
        f"run_stages(Config(stages=['report'], run=RunConfig({str(root)!r})), Console()); "
        "print(sorted({'torch', 'ray', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "At 0.2:" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_undefined_values_are_counted_and_left_out(root: Path) -> None:
    run = open_run(root).directory
    table = EvaluationTable(run, "coar", "evaluation_0.2")
    metrics = table.read()
    for name in ("correlation", "spearman", "r2"):
        metrics[name] = np.where(np.arange(7) < 2, np.nan, metrics[name])
    table.write(metrics)
    summary = summarise(run)
    np.testing.assert_allclose(summary.methods[0].correlation.mean[0], metrics["correlation"][2:].mean())
    text = printed(root, 200)
    assert "COAR: undefined and not averaged, as outputs or predictions are constant: 2 of correlation, " in text
    assert "2 of spearman, 2 of r2." in text
    table.write({name: np.full(7, np.nan) for name in METRICS})
    assert "undefined" in next(line for line in printed(root).splitlines() if line.startswith("COAR"))


def test_without_a_curve_or_a_writable_folder_the_rest_is_shown(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(root / "evaluation" / "budget_curve")

    def refuse(self: LocalStorage, name: str, content: bytes) -> None:
        raise StorageError(f"{name} cannot be written: read-only")

    monkeypatch.setattr(LocalStorage, "write", refuse)
    text = printed(root, 200)
    assert "No report page: report/figure1.png cannot be written: read-only" in text
    assert "x 4" not in text
    assert "Next, in Python" in text


def test_evaluation_of_a_run(root: Path) -> None:
    run = open_run(root)
    trained = run.evaluation()
    assert set(trained) == set(METRICS)
    assert trained["slope"].shape == (7,)
    np.testing.assert_array_equal(run.evaluation(example_ids=[4, 1])["r2"], trained["r2"][[4, 1]])
    for name, design_name in (("evaluation_0.9", "evaluation_0.9"), ("train", "train")):
        with pytest.raises(MissingWorkError, match=rf"no held-out masks {name}, there are: evaluation_0\.2, eval"):
            run.evaluation(design_name=design_name)
    shutil.rmtree(root / "evaluation")
    with pytest.raises(MissingWorkError, match="run the evaluate stage"):
        run.evaluation()
