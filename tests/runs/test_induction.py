"""The preset ``induction`` as it is: trained here, and the heads that it breaks without are found."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

import coar_dist
from coar_dist.stages.pipeline import run_stages
from coar_dist.store.circuits import CircuitTable
from tests.config.test_presets import _hydra, preset  # noqa: F401, the fixture that composes presets


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_heads_that_induction_breaks_without_are_found(tmp_path: Path, seed: int) -> None:
    config = preset("induction", f"train.seed={seed}", f"run.dir={tmp_path}", "cluster=process")
    run_stages(config, Console(file=io.StringIO()))
    run = coar_dist.open_run(tmp_path)
    found = CircuitTable(run.directory).read()
    assert found.known is not None
    assert 2 <= len(found.known) <= 8
    layers = {run.names[component_id][:2] for component_id in found.known}
    assert layers == {"L0", "L1"}  # one that looks back, and one that copies
    assert found.scores["gradient_ridge"]["auroc"] == 1.0
    assert found.scores["coar"]["auroc"] == 1.0
    assert found.scores["gradient_ridge"]["cpr"] > found.scores["random"]["cpr"] + 0.2
    assert (tmp_path / "report/index.html").exists()
