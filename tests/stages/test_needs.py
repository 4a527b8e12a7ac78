"""What a plan says of the stages after the ablate stage, beside what they then take."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from coar_dist.config.schema import (
    AblationConfig,
    CircuitConfig,
    ClusterConfig,
    ComponentsConfig,
    Config,
    DesignConfig,
    EditConfig,
    EvaluationConfig,
    ExampleGroup,
    GradientsConfig,
    RegressionConfig,
    RunConfig,
)
from coar_dist.console.saying import Terminal
from coar_dist.editing.criterion import sizes as tried_sizes
from coar_dist.editing.sweep import Sweep
from coar_dist.stages.collect import Missing
from coar_dist.stages.later import sizes_of, what_does_not_fit
from coar_dist.stages.needs import Need, Sizes, Speed, report_need
from coar_dist.stages.needs_of_fits import evaluate_need, fit_need
from coar_dist.stages.needs_of_passes import EDIT_OF_ONE, PassesOfModel, circuit_need, edit_need
from coar_dist.stages.pipeline import run_stages
from coar_dist.stages.session import Session
from coar_dist.store.local_storage import LocalStorage
from coar_dist.store.object_storage import ObjectStorage
from coar_dist.store.run_directory import RunDirectory
from tests.models import small_task

SPEED = Speed(1e11, 5e10, 1e9, 1e-3)
SETUP_B = Sizes(22_720, 50_000, 1024, 100_000, 0, (200,) * 4, 1563, 0, 16, 2, 0)


def test_the_sizes_of_a_run_are_those_of_its_files(tmp_path: Path) -> None:
    config = Config(
        stages=["ablate", "fit", "evaluate"],
        run=RunConfig(str(tmp_path / "run"), previews=False),
        components=ComponentsConfig("conv_filters"),
        design=DesignConfig(num_masks=40, ablation_fraction=0.2),
        gradients=GradientsConfig(num_masks=10, masks_per_shard=5),
        baselines=["leave_one_out"],
        evaluation=EvaluationConfig(num_masks=40, ablation_fractions=[0.2, 0.1], curve_shares=[]),
        ablation=AblationConfig(
            masks_per_shard=8, mode="weights", rows_per_forward=7, compile=False, examples_per_block=4
        ),
        cluster=ClusterConfig(where="process"),
    )
    run_stages(config, Console(quiet=True), small_task())
    storage = LocalStorage(str(tmp_path / "run"))
    run = RunDirectory.open(storage)
    with Session(config, Terminal(Console(quiet=True))) as session:
        sizes = sizes_of(run, Missing.of(run, session), [])
    assert sizes == Sizes(12, 7, 4, 40, 10, (40, 40), 5, 2, 10, 4, 1)
    assert sizes.num_blocks == len(list((tmp_path / "run" / "gradients" / "gradients").iterdir()))
    assert sizes.num_shards == len(storage.files("margins/train"))
    need = fit_need(sizes, config.regression, SPEED)
    files = storage.files("attributions")
    assert need.num_writes == len(files) == 2 * 3
    assert need.written == 7 * 3 * (4 * 12 + 45)  # of few components the files' own footers are larger
    tables = evaluate_need(sizes, [], config.regression, SPEED)
    assert tables.num_writes == len([name for name in storage.files("evaluation") if name.endswith(".parquet")])


@pytest.mark.parametrize(
    ("change", "more"),
    [
        ({"num_examples": 100_000}, 1.5),
        ({"num_masks": 200_000, "num_shards": 3126}, 1.5),
        ({"num_components": 45_440}, 3),
    ],
)
def test_more_takes_more(change: dict[str, int], more: float) -> None:
    config = RegressionConfig(memory_gb=100.0)
    before, after = (fit_need(sizes, config, SPEED) for sizes in (SETUP_B, replace(SETUP_B, **change)))
    assert after.seconds > more * before.seconds
    assert after.read >= before.read
    assert (after.memory > 3 * before.memory) == ("num_components" in change)
    assert (
        evaluate_need(replace(SETUP_B, **change), [], config, SPEED).seconds
        >= evaluate_need(SETUP_B, [], config, SPEED).seconds
    )


def test_a_curve_is_fitted_from_fewer_masks_of_some_examples() -> None:
    config = RegressionConfig(memory_gb=100.0)
    without = evaluate_need(SETUP_B, [], config, SPEED)
    with_curve = evaluate_need(SETUP_B, [0.25, 0.5], config, SPEED)
    assert without.seconds < with_curve.seconds < without.seconds + fit_need(SETUP_B, config, SPEED).seconds
    assert with_curve.memory > 5 * without.memory
    assert report_need(SETUP_B, SPEED).read > SETUP_B.attribution_bytes


def test_an_edit_takes_the_passes_of_its_sweep() -> None:
    edit = EditConfig(max_components=20, compare=["magnitude"], target=ExampleGroup(ids=[1, 2, 3]))
    orders = {name: np.random.default_rng(seed).permutation(1000) for seed, name in enumerate("abcdef")}
    of_one = Sweep.of(dict(list(orders.items())[:2]), tried_sizes(20), 1000).design.num_masks
    of_each = Sweep.of(orders, tried_sizes(20), 1000).design.num_masks  # 3 targets, 2 selections
    free = Speed(1e11, 5e10, float("inf"), 0.0)
    passes = PassesOfModel(num_examples=500, start_s=7.0, seconds_per_pass=0.01, model_bytes=2e9)
    need = edit_need(SETUP_B, edit, passes, free)
    assert need.passes == (of_one + 3) * 500  # and the model as it was, twice, and as it is
    assert need.seconds == pytest.approx(7 + need.passes * 0.01)
    assert edit_need(SETUP_B, edit, replace(passes, has_values=True), free).passes == (of_one + 4) * 500
    assert need.written == pytest.approx(2e9 + of_one * (2 * 500 + 22_720 / 8))
    assert need.memory > 4 * 2e9
    apart = edit_need(SETUP_B, replace(edit, each=True), passes, free)
    assert apart.seconds == pytest.approx(7 + (of_each + 2) * 500 * 0.01)
    assert apart.written == pytest.approx(of_each * (2 * 500 + 22_720 / 8))  # no weights
    unknown = replace(edit, each=True, target=ExampleGroup(correct=False))
    assert edit_need(SETUP_B, unknown, passes, free).stage == EDIT_OF_ONE


def test_circuits_take_the_passes_of_all_rankings_and_pairs() -> None:
    passes = PassesOfModel(num_examples=50, start_s=7.0, seconds_per_pass=0.01, model_bytes=2e9)
    free = Speed(1e11, 5e10, float("inf"), 0.0)
    run = replace(SETUP_B, num_components=40, num_baselines=1)  # COAR and a baseline
    circuit = CircuitConfig(sizes=[0.001, 0.1, 0.11, 0.5, 1.0], random_draws=3)  # 0, 4, 4, 20 and all
    need = circuit_need(run, circuit, passes, free)
    assert need.passes == (2 + (2 * 2 + 3) * 2 + 1) * 50
    assert need.seconds == pytest.approx(2 * 7.0 + need.passes * 0.01)
    assert need.memory > 2e9
    of_pairs = circuit_need(run, replace(circuit, known="necessary", methods=["coar"]), passes, free)
    assert of_pairs.passes == (2 + (2 + 3) * 2 + 40 * 41 // 2 + 1) * 50


def test_what_would_not_fit_is_said_with_the_way_out(tmp_path: Path) -> None:
    memory, free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), shutil.disk_usage(tmp_path).free
    small, large = Need("fit", 1.0, 1e6, 1e6, 1e6, 1, 1), Need("fit", 1.0, 2.0 * memory, 1e6, 1e6, 1, 1)
    storage = LocalStorage(str(tmp_path / "not" / "there"))
    assert what_does_not_fit([small], 1e6, storage, ["fit"]) == []
    assert what_does_not_fit([large], 1e6, storage, ["report"]) == []  # workers fit, which have their own memory
    (text,) = what_does_not_fit([small, large], 1e6, storage, ["fit"])
    assert text.startswith("the fit stage takes")
    assert "Lower regression.memory_gb" in text
    (text,) = what_does_not_fit([small], 2.0 * free, storage, [])
    assert "would grow by" in text
    assert "Use another run.dir" in text
    assert what_does_not_fit([small], 2.0 * free, ObjectStorage("s3://bucket/run"), []) == []
    gradients = replace(SETUP_B, num_gradient_masks=500, num_gradient_shards=25)
    need = fit_need(gradients, RegressionConfig(memory_gb=4.0), SPEED)
    (text,) = what_does_not_fit([need], 0.0, ObjectStorage("s3://bucket/run"), [])
    assert "gradient_ridge cannot be fitted: a factorisation takes 14.7 GB, and regression.memory_gb is 4" in text
