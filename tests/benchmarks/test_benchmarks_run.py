"""The benchmarks start and end; what they measure is for a quiet machine. Those that take long are run by -m slow."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import ablation, alternatives, calibration, chaos, circuits, estimators, regression, report, scale


def test_ablation_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["ablation", "--examples", "3", "--rounds", "1", "--precision", "float32"]
    monkeypatch.setattr("sys.argv", [*arguments, "--exact", "3", "2", "--sections", "exact"])
    ablation.main()
    assert "Exactness: margins of standard deviation" in capsys.readouterr().out


@pytest.mark.slow
def test_alternatives_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It ends if margins are not the truth: of hooks on convolutions and on GPT-2, and of Captum."""
    sizes = ["--many", "3", "2", "--few", "2", "4", "--single", "2", "--layers", "1", "--rows", "4", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", ["alternatives", *sizes, "--eager", "--tiny", "--threads", "1"])
    alternatives.main()
    printed = capsys.readouterr().out
    for name in (
        "resnet20: 3 examples, 688",
        "gpt2: 2 examples, 516",
        "leave-one-out of 2 comp",
        "hooks, 2 masks at a time",
    ):
        assert name in printed


def test_regression_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--masks", "300", "--components", "20", "--examples", "9", "--penalties", "4", "--sample", "3"]
    monkeypatch.setattr("sys.argv", ["regression", *sizes, "--setup-a", "200", "30", "110"])
    regression.main()
    printed = capsys.readouterr().out
    for part in ("RidgeCV(alpha_per_target=True)", "lasso_path", "Parts of a ridge fit", "Setup A: 200 masks"):
        assert part in printed


def test_circuits_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["circuits", "--cases", "backup", "--scale", "0.3"])
    circuits.main()
    printed = capsys.readouterr().out
    assert re.search(r"backup  zero_weights  COAR +1\.000 +\.\d{3}", printed)
    assert re.search(r"backup  zero_weights  Leave-one-out +\.\d{3}", printed)


def test_scale_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["scale", "--actors", "20", "--ranges", "5000", "--shards", "30"])
    scale.main()
    printed = capsys.readouterr().out
    assert "Schedule: 20 actors, 5,000 ranges" in printed
    assert "Resume from 29 shards" in printed


def test_report_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["report", "--sizes", "20x32", "--no-browser"])
    report.main()
    assert re.search(r"│ +20 │ +32 │ +0\.\d+ │ +\d", capsys.readouterr().out)


@pytest.mark.slow
def test_chaos_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["chaos", "--kills", "0", "--cases", "3"])
    chaos.main()
    assert "3 damaged files" in capsys.readouterr().out


def test_estimators_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--examples", "4", "--epochs", "1", "--held-out", "20", "--rounds", "1", "--seeds", "1", "--eager"]
    masks = ["--gradient-masks", "20", "--train-masks", "0", "40", "--plain-masks", "40", "80", "--leave-one-out"]
    monkeypatch.setattr("sys.argv", ["estimators", "--models", "digits", "resnet20", *sizes, *masks])
    estimators.main()
    printed = capsys.readouterr().out
    for part in ("4 examples, 240 components", "Plain COAR", "gradient_ridge", "resnet20 is left out: --checkpoint"):
        assert part in printed


def test_calibration_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--components", "20", "--shares", "0.9", "--examples-at-once", "3", "--seeds", "1", "--held-out", "40"]
    monkeypatch.setattr("sys.argv", ["calibration", "--sections", "simulated", *sizes, "--gradient-masks", "20"])
    calibration.main()
    printed = capsys.readouterr().out
    for part in ("linear share 0.9, gates exact, 3 examples", "gates tanh", "20 + 500", "coverage"):
        assert part in printed


def test_calibration_of_intervals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--components", "20", "--shares", "0.99", "--seeds", "1", "--masks-per-component", "20", "--repeats", "40"]
    sections = ["--sections", "lasso", "intervals", "forecasts", "--numbers-of-examples", "10", "20"]
    monkeypatch.setattr("sys.argv", ["calibration", *sections, *sizes, "--curve-examples", "2"])
    calibration.main()
    printed = capsys.readouterr().out
    for part in ("R2 on new masks of the lasso", "1/1", "1 - exponential / 50", "none", "four times", "1.00 (1)"):
        assert part in printed


@pytest.mark.cluster
@pytest.mark.slow
def test_cluster_benchmark(repository: Path) -> None:
    """In a process of its own: it starts clusters."""
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.cluster",
        "--sections",
        "actors",
        "object_store",
        "--ranges",
        "3",
        "--actors",
        "2",
    ]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Paced actors" in done.stdout
    assert "computes nothing for" in done.stdout
    assert len([line for line in done.stdout.splitlines() if "of a core" in line]) == 1


@pytest.mark.cluster
@pytest.mark.slow
def test_rehearsal_benchmark(repository: Path) -> None:
    """Plan, driver, actors, store, fit, evaluation and report of both shapes, tiny; in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.rehearsal", "--smoke", "--actors", "1"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    printed = done.stdout
    found = [float(value) for value in re.findall(r"found and true weights correlate by (0\.\d+)", printed)]
    assert len(found) == 3  # one to load the libraries, and two shapes
    assert min(found) > 0.9
    for part in ("without gradients", "with gradients", "all together", "planned / measured"):
        assert part in printed
