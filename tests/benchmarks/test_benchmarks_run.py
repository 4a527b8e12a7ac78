"""The benchmarks start and end; what they measure is for a quiet machine."""

from __future__ import annotations

import pytest

from tests.benchmarks import ablation, chaos, estimators, regression, scale


def test_ablation_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["ablation", "--examples", "3", "--rounds", "1", "--precision", "float32"]
    monkeypatch.setattr("sys.argv", [*arguments, "--sections", "exact"])
    ablation.main()
    assert "Exactness: margins of standard deviation" in capsys.readouterr().out


def test_regression_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--masks", "300", "--components", "20", "--examples", "9", "--penalties", "4", "--sample", "3"]
    monkeypatch.setattr("sys.argv", ["regression", *sizes, "--setup-a", "200", "30", "110"])
    regression.main()
    printed = capsys.readouterr().out
    for part in ("RidgeCV(alpha_per_target=True)", "lasso_path", "Parts of a ridge fit", "Setup A: 200 masks"):
        assert part in printed


def test_scale_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["scale", "--actors", "20", "--ranges", "5000", "--shards", "30"])
    scale.main()
    printed = capsys.readouterr().out
    assert "Schedule: 20 actors, 5,000 ranges" in printed
    assert "Resume from 29 shards" in printed


def test_chaos_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["chaos", "--kills", "0", "--cases", "3"])
    chaos.main()
    assert "3 damaged files" in capsys.readouterr().out


def test_estimators_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--examples", "9", "--epochs", "1", "--held-out", "20", "--rounds", "1", "--seeds", "1", "--eager"]
    masks = ["--gradient-masks", "20", "--train-masks", "0", "40", "--plain-masks", "40", "80", "--leave-one-out"]
    monkeypatch.setattr("sys.argv", ["estimators", "--models", "digits", "resnet20", *sizes, *masks])
    estimators.main()
    printed = capsys.readouterr().out
    for part in ("9 examples, 240 components", "Plain COAR", "gradient_ridge", "resnet20 is left out: --checkpoint"):
        assert part in printed
