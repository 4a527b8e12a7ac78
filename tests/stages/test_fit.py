"""What the fit stage says of numbers that it does not tell."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from coar_dist.config.schema import Config, RegressionConfig, RunConfig
from coar_dist.stages.pipeline import run_stages
from tests.regression.problems import problem
from tests.regression.test_fit import run_of


@pytest.mark.filterwarnings("ignore:nothing can be said about components")
@pytest.mark.parametrize(
    ("num_masks", "reasons"),
    [
        (
            20,
            ["R2 of coar on new masks: not known, it takes 32", "standard errors: not known, they take 64"],
        ),
        (63, ["R2 of coar on new masks: too uncertain", "standard errors: not known, they take 64"]),
        (64, ["R2 of coar on new masks: too uncertain"]),
        (3000, []),
    ],
)
def test_why_a_number_is_not_told_is_said(num_masks: int, reasons: list[str], tmp_path: Path) -> None:
    run_of(tmp_path, *problem(num_masks, 12))
    said = io.StringIO()
    config = Config(["fit"], run=RunConfig(str(tmp_path)), regression=RegressionConfig(standard_errors=True))
    run_stages(config, Console(file=said, width=200))
    printed = said.getvalue()
    for reason in reasons:
        assert reason in printed
    assert printed.count("on new masks: ") + printed.count("standard errors: ") == len(reasons), printed
