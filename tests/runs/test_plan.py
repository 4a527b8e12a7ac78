"""``stages=[plan]``: what is missing, what it takes, and that nothing is written."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from torch import Tensor, nn

import coar_dist
from coar_dist.ablation import trial
from coar_dist.ablation.actor import AblationJob
from coar_dist.ablation.plan import EnginePlan, PlanPins
from coar_dist.ablation.value import ZeroWeights
from coar_dist.ablation.work import ExpectedMasks
from coar_dist.cluster.interruption import Interruption
from coar_dist.cluster.resources import Cluster
from coar_dist.components.discovery import discover
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
    RunConfig,
)
from coar_dist.console.saying import Terminal
from coar_dist.errors import ConfigError, RunMismatchError
from coar_dist.stages import print_estimate
from coar_dist.stages.estimate import Estimate
from coar_dist.stages.pipeline import run_stages
from coar_dist.tasks.task import Task
from tests.commands import run_forked
from tests.models import small_task
from tests.small_run import Slow
from tests.test_app import TINY

NUM_EXAMPLES, NUM_COMPONENTS = 7, 12


def config_of(folder: Path, stages: tuple[str, ...] = ("plan",), **changes: object) -> Config:
    settings: dict[str, object] = {
        "stages": list(stages),
        "run": RunConfig(str(folder)),
        "components": ComponentsConfig("conv_filters"),
        "design": DesignConfig(num_masks=40, ablation_fraction=0.2),
        "gradients": GradientsConfig(num_masks=10, masks_per_shard=5),
        "baselines": ["leave_one_out", "gradient_x_parameter"],
        "evaluation": EvaluationConfig(num_masks=20, ablation_fractions=[0.2, 0.1], seed=7),
        "ablation": AblationConfig(
            masks_per_shard=8, mode="weights", rows_per_forward=7, compile=False, examples_per_block=4
        ),
        "cluster": ClusterConfig(max_actors=3, price_per_hour=2.0 if stages == ("plan",) else None),
    }
    return Config(**{**settings, **changes})  # type: ignore[arg-type]


class Counting(nn.Module):
    """Counts the examples of all forward passes, of copies too."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.counts = inner, Counts()

    @property
    def num_rows(self) -> int:
        return sum(self.counts)

    def forward(self, images: Tensor) -> Tensor:
        self.counts.append(len(images))  # which no tracer passes through
        output: Tensor = self.inner(images)
        return output


class Counts(list[int]):
    """A list that a copied model shares."""

    def __deepcopy__(self, memo: object) -> Counts:
        return self


def files_in(folder: Path) -> dict[str, tuple[int, int]]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


@pytest.fixture(autouse=True)
def _folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan looks at the folders that Ray would need; those of the tests are where none can start."""
    monkeypatch.setattr("coar_dist.cluster.connection.check_folders", lambda: None)


@pytest.fixture
def _planned_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster with room for four actors that nobody starts: the trial runs in this process."""

    @contextlib.contextmanager
    def connected(config: ClusterConfig) -> Iterator[Cluster]:
        yield Cluster(config, 0.0, False, Interruption())

    monkeypatch.setattr("coar_dist.cluster.connection.connect", connected)
    monkeypatch.setattr("coar_dist.cluster.resources.alive_nodes", lambda: {"node": {"CPU": 4.0}})
    monkeypatch.setattr("coar_dist.cluster.dispatch.is_here", lambda *_: True)


def planned(config: Config, monkeypatch: pytest.MonkeyPatch, task: Task | None = None) -> tuple[Estimate, str]:
    found: list[Estimate] = []
    shown = print_estimate.print_estimate

    def note(estimate: Estimate, config: Config, chosen: EnginePlan, terminal: Terminal) -> None:
        found.append(estimate)
        shown(estimate, config, chosen, terminal)

    monkeypatch.setattr(print_estimate, "print_estimate", note)
    output = io.StringIO()
    run_stages(config, Console(file=output, width=200), task or small_task())
    return found[0], output.getvalue()


def test_what_is_missing_is_counted_and_timed(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimate, text = planned(config_of(tmp_path / "run"), monkeypatch)
    assert list(tmp_path.iterdir()) == []
    found = {load.name: (load.num_total, load.num_missing, load.passes) for load in estimate.loads}
    assert found == {
        "with gradients": (10, 10, 10 * NUM_EXAMPLES),
        "without gradients": (40, 40, 40 * NUM_EXAMPLES),
        "leave-one-out": (NUM_COMPONENTS, NUM_COMPONENTS, NUM_COMPONENTS * NUM_EXAMPLES),
        "held out": (40, 40, 40 * NUM_EXAMPLES),
        "gradient_x_parameter": (NUM_EXAMPLES, NUM_EXAMPLES, 3 * NUM_EXAMPLES),
        "outputs of the model as it is": (NUM_EXAMPLES,) * 3,
        "what components look at": (NUM_EXAMPLES,) * 3,
    }
    ranges = {load.name: sorted(load.range_passes) for load in estimate.loads}
    assert ranges["with gradients"] == [5 * 3, 5 * 3, 5 * 4, 5 * 4]  # blocks of 4 and 3 examples, shards of 5 masks
    assert ranges["held out"] == sorted([8 * 7, 8 * 7, 4 * 7] * 2)
    assert estimate.num_actors == 3
    assert estimate.gradient_cost is not None
    assert estimate.gradient_cost > 1
    assert 0 < estimate.seconds_per_pass < 0.1
    assert estimate.start_s > 0
    assert f"{estimate.price:,.2f} USD at 2 an hour" in text
    assert re.search(r"stage .* requests +USD\n", text)
    assert "3 actors with 1 CPU each" in text
    assert re.search(r"without gradients +40 +40 masks +280 ", text)


@pytest.mark.usefixtures("_planned_here")
def test_what_has_no_price_is_told_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, object] = {
        "cluster": ClusterConfig(max_actors=1),
        "edit": EditConfig(target=ExampleGroup(ids=[1])),
    }
    unpriced, text = planned(config_of(tmp_path / "run", **changes), monkeypatch)
    assert unpriced.num_actors == 1
    assert "USD" not in text
    assert re.findall(r"^(\w.*?) +\d+ s ", text, re.MULTILINE) == [
        "fit",
        "evaluate",
        "report",
        "circuit, if asked for",
        "edit",
    ]


@pytest.mark.usefixtures("_planned_here")
def test_the_speed_is_the_model_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward pass that takes 0.05 s, and one of them per mask."""
    task = small_task()
    task = replace(task, model=Slow(task.model, 0.05))
    config = config_of(tmp_path / "run", gradients=GradientsConfig(), baselines=[])
    estimate, _ = planned(config, monkeypatch, task)
    assert 0.05 < estimate.seconds_per_pass * NUM_EXAMPLES < 0.1
    # Shards of 8 masks: 5 of the train design, then 2 and 4 masks of each held-out one, over 3 actors; then the model
    # as it is.
    assert estimate.work_s / (estimate.seconds_per_pass * NUM_EXAMPLES) == pytest.approx(29)
    assert estimate.start_s > 4 * 0.05


@pytest.mark.usefixtures("_planned_here")
def test_slow_actors_get_parts_of_shards_which_more_of_them_can_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = EvaluationConfig(num_masks=2, ablation_fractions=[0.2])
    settings = {"gradients": GradientsConfig(), "baselines": [], "evaluation": evaluation}
    cluster = ClusterConfig(max_actors=3, min_actors=1)
    for shard_seconds, num_actors, ranges in ((1e3, 2, [40 * 7]), (1e-9, 3, [7] * 40)):
        ablation = AblationConfig(mode="weights", rows_per_forward=7, compile=False, shard_seconds=shard_seconds)
        config = config_of(tmp_path / "run", ablation=ablation, cluster=cluster, **settings)
        estimate, _ = planned(config, monkeypatch)
        load = next(load for load in estimate.loads if load.name == "without gradients")
        assert load.range_passes == ranges
        assert estimate.num_actors == num_actors


@pytest.mark.usefixtures("_planned_here")
def test_the_bytes_are_those_of_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    larger = AblationConfig(masks_per_shard=300, mode="weights", rows_per_forward=7, compile=False)
    changes: dict[str, object] = {"ablation": larger, "design": DesignConfig(num_masks=1200, ablation_fraction=0.2)}
    estimate, _ = planned(config_of(tmp_path / "run", **changes), monkeypatch)
    run_stages(config_of(tmp_path / "run", ("ablate",), **changes), Console(file=io.StringIO()), small_task())
    shards = list((tmp_path / "run").glob("*/**/0*.parquet"))
    written = {
        folder: sum(path.stat().st_size for path in shards if folder in str(path))
        for folder in ("margins/train", "margins/evaluation", "margins/leave", "gradients/", "baselines/")
    }
    expected = {load.name: load.num_bytes for load in estimate.loads}
    for folder, name in zip(
        written,
        ("without gradients", "held out", "leave-one-out", "with gradients", "gradient_x_parameter"),
        strict=True,
    ):
        assert expected[name] == pytest.approx(written[folder], rel=0.15), name


@pytest.mark.usefixtures("_planned_here")
def test_only_what_is_missing_counts_and_nothing_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = Console(file=io.StringIO())
    folder = tmp_path / "run"
    run_stages(config_of(folder, ("ablate",)), quiet, small_task())
    output = io.StringIO()
    run_stages(config_of(folder), Console(file=output, width=200), small_task())
    assert f"nothing is missing in {folder}" in output.getvalue()
    (folder / "margins" / "train" / "0000000008-0000000016.parquet").unlink()
    damaged = folder / "margins" / "evaluation_0.1" / "0000000000-0000000008.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    before = files_in(folder)
    more = config_of(folder, design=DesignConfig(num_masks=50, ablation_fraction=0.2))
    estimate, text = planned(more, monkeypatch)
    assert files_in(folder) == before
    assert {load.name: load.num_missing for load in estimate.loads} == {
        "with gradients": 0,
        "without gradients": 8 + 10,
        "leave-one-out": 0,
        "held out": 8,
        "gradient_x_parameter": 0,
        "outputs of the model as it is": 0,
        "what components look at": 0,
    }
    assert "evaluation_0.1/0000000000-0000000008.parquet" in text
    with pytest.raises(RunMismatchError, match=r"belongs to another run: model\.weights"):
        run_stages(config_of(folder), quiet, small_task(seed=1))
    assert files_in(folder) == before


@pytest.mark.usefixtures("_planned_here")
@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize(("known", "value"), [(None, "zero_weights"), ("necessary", "mean")])
def test_stages_take_the_passes_that_are_planned(
    known: str | None, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = small_task(40, seed=1)
    counting = Counting(task.model)
    task = replace(task, model=counting)
    config = config_of(
        tmp_path / "run",
        cluster=ClusterConfig(where="process"),
        ablation=AblationConfig(value, mode="weights", rows_per_forward=40, compile=False),
        gradients=GradientsConfig(),
        baselines=["leave_one_out"],
        circuit=CircuitConfig([0.1, 0.3, 0.5, 1.0], known=known, random_draws=2),
        edit=EditConfig(target=ExampleGroup(ids=[1, 2]), max_components=2, keep={"all": 1.0}),
    )
    estimate, text = planned(config, monkeypatch, task)
    later = {name: int(num.replace(",", "")) for name, num in re.findall(r"^(\w+).* s +([\d,]+) +\d+ MB", text, re.M)}
    later["ablate"] = int(sum(load.passes for load in estimate.loads))
    counted = {}
    for stages in (["ablate"], ["fit"], ["evaluate"], ["circuit"], ["edit"]):
        before = counting.num_rows
        run_stages(replace(config, stages=stages), Console(file=io.StringIO()), task)
        counted[stages[0]] = counting.num_rows - before
    assert counted["fit"] == counted["evaluate"] == 0
    assert later.keys() == {"ablate", "circuit", "edit"}
    # Beside checks and trials when an actor starts, on 2 to 40 rows each; activations that masks share are counted once
    # more.
    for stage, num in later.items():
        num_starts = {"ablate": 1, "circuit": 2, "edit": 1}[stage]
        assert 0.9 * num < counted[stage] < 1.1 * num + num_starts * 10 * 40, stage


@pytest.mark.usefixtures("_planned_here")
def test_a_budget_counts_beyond_its_pilot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    estimate, text = planned(config_of(tmp_path / "run", budget=1000.0), monkeypatch)
    cost = estimate.gradient_cost
    assert cost is not None
    assert estimate.budget_passes == pytest.approx((1000 - 40 - 10 * cost) * NUM_EXAMPLES)
    assert "by the budget, after the pilot" in text


@pytest.mark.usefixtures("_planned_here")
def test_a_budget_that_is_spent_leaves_nothing(tmp_path: Path) -> None:
    changes: dict[str, object] = {"budget": 150.0, "baselines": []}
    quiet, output = Console(file=io.StringIO()), io.StringIO()
    run_stages(config_of(tmp_path / "run", ("ablate",), **changes), quiet, small_task())
    run_stages(config_of(tmp_path / "run", **changes), Console(file=output, width=200), small_task())
    assert "nothing is missing" in output.getvalue()
    assert re.findall(r"^(\w+) +\d+ s ", output.getvalue(), re.MULTILINE) == ["fit", "evaluate", "report"]


def test_the_trial_takes_over_a_run_s_own_engine_plan() -> None:
    plan_of_run = EnginePlan("weights", 3, compiled=False)
    actor = trial.TrialActor()
    task = small_task()
    actor.setup(
        task,
        AblationJob(ZeroWeights(discover(task.model, "conv_filters")), {}, "float32", None, PlanPins()),
        num_threads=1,
    )
    found = actor.start(ExpectedMasks(10, 0), 1, plan_of_run)
    assert found.plan == plan_of_run
    assert found.gradient_cost is None
    assert 0 < found.seconds_per_margin < 0.1


@pytest.mark.slow
def test_an_untrained_preset_is_planned_and_leaves_no_files(tmp_path: Path) -> None:
    result = run_forked(tmp_path, "stages=[plan]", *TINY, "regression.memory_gb=8")
    assert result.returncode == 0, result.stderr
    assert "the model is not trained yet" in result.stdout
    assert re.search(r"without gradients +120 +120 masks +2,400 ", result.stdout)
    assert list(tmp_path.iterdir()) == []
    together = run_forked(tmp_path, "stages=[plan,ablate]")
    assert together.returncode == 1
    assert "plan estimates a run and starts none. Use it alone" in together.stderr


def test_attribute_does_not_plan(tmp_path: Path) -> None:
    task = small_task()
    with pytest.raises(ConfigError, match="plan works on the command line only"):
        coar_dist.attribute(
            task.model, task.examples.inputs, task.examples.targets, run_dir=tmp_path / "run", stages=["plan"]
        )


def test_a_price_is_no_negative_number(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.price_per_hour=-1\.0: must be a finite number, at least 0"):
        run_stages(
            config_of(tmp_path, cluster=ClusterConfig(price_per_hour=-1.0)), Console(file=io.StringIO()), small_task()
        )
