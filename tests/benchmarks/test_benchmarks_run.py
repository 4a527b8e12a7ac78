"""The benchmarks start and end; what they measure is for a quiet machine."""

from __future__ import annotations

import pytest

from tests.benchmarks import ablation


def test_ablation_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["ablation", "--examples", "3", "--rounds", "1", "--precision", "float32"]
    monkeypatch.setattr("sys.argv", [*arguments, "--sections", "exact"])
    ablation.main()
    assert "Exactness: margins of standard deviation" in capsys.readouterr().out
