"""The examples in the docstrings of the Python face say what is so."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import coar_dist
import coar_dist.api
import coar_dist.components.masks
import coar_dist.report.comparison.compared
import coar_dist.result.comparing
import coar_dist.result.example_columns
import coar_dist.result.plots
import coar_dist.result.result
import coar_dist.result.run
import coar_dist.tasks.given
from tests.models import small_task
from tests.small_run import without_ray

FACE = {
    coar_dist.api: {"attribute"},
    coar_dist.components.masks: {"mask_without"},
    coar_dist.report.comparison.compared: {"Comparison"},
    coar_dist.result.comparing: {"compare"},
    coar_dist.result.example_columns: {"ExampleColumns"},
    coar_dist.result.plots: {"waterfall", "components", "predictions", "correlation"},
    coar_dist.result.result: {"Result", "by_method", "top", "by", "nearest", "predict"},
    coar_dist.result.run: {"Run", "predict", "ablate", "evaluate"},
    coar_dist.tasks.given: {"gathered"},
}
"""The functions of each module whose examples run."""


@pytest.mark.parametrize("module", FACE, ids=lambda module: module.__name__)
def test_examples_run(
    module: object, small_run: coar_dist.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COAR_DIST_CACHE", str(tmp_path))
    task = small_task()
    names = {"model": task.model, "images": task.examples.inputs, "labels": task.examples.targets}
    modules = {"coar_dist": coar_dist, "np": np, "nn": nn, "torch": torch}
    found = doctest.DocTestFinder().find(module)  # type: ignore[arg-type]
    runner, ran = doctest.DocTestRunner(), set()
    for test in found:
        test.globs |= {"run": coar_dist.open_run(small_run.directory.storage.location), **names, **modules}
        with without_ray():
            done = runner.run(test)
        assert not done.failed
        if done.attempted:
            ran.add(test.name.rpartition(".")[2])
    assert ran >= FACE[module]  # type: ignore[index]
