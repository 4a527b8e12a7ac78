"""Figures arrive in the real trackers' own files, and a tracker that fails does not end a run."""

from __future__ import annotations

import importlib
import io
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import coar_dist
from coar_dist.config.schema import AblationConfig, Config, EvaluationConfig, RunConfig
from coar_dist.console import tracking
from coar_dist.console.tracking import TRACKERS, TrackerKind, Tracking, check_tracking
from coar_dist.errors import ConfigError
from coar_dist.stages.pipeline import run_stages
from coar_dist.store.locations import storage_at
from coar_dist.store.reader import RunReader
from tests.models import local_storage, small_task
from tests.small_run import without_ray

NUM_MASKS, NUM_HELD_OUT = 60, 40
TOTAL = NUM_MASKS + NUM_HELD_OUT
ABLATE = {"masks_per_s", "shards_done", "shards_failed", "shards_retried", "actors_lost", "actors_alive"}


def tracked_run(run_dir: Path, tracker: str, num_masks: int = NUM_MASKS) -> RunReader:
    task = small_task()
    with without_ray():
        return coar_dist.attribute(
            task.model,
            task.examples.inputs,
            task.examples.targets,
            run_dir=run_dir,
            num_masks=num_masks,
            ablation_fraction=0.2,
            stages=("ablate", "fit", "evaluate"),
            evaluation=EvaluationConfig(num_masks=NUM_HELD_OUT, ablation_fractions=[0.2], seed=7, curve_shares=[]),
            ablation=AblationConfig(masks_per_shard=20, mode="weights", rows_per_forward=7, compile=False),
            tracking=[tracker],
            console=Console(file=io.StringIO()),
        )


def check_figures(found: Mapping[str, list[tuple[int, float]]], run: RunReader) -> None:
    """Of a run of 5 shards: (step, value) by name."""
    assert set(found) == {*(f"ablate/{name}" for name in ABLATE), "correlation/coar/0.2"}
    for name, values in {"shards_done": 5, "shards_failed": 0, "shards_retried": 0, "actors_lost": 0}.items():
        assert found[f"ablate/{name}"][-1] == (TOTAL, values), name
    assert found["ablate/masks_per_s"][-1][1] > 0
    assert found["ablate/actors_alive"][-1][1] >= 1
    ((step, correlation),) = found["correlation/coar/0.2"]
    assert step == TOTAL
    assert correlation == pytest.approx(float(np.nanmean(run.evaluation("coar")["correlation"])), abs=1e-6)


def test_tensorboard_reads_the_figures_and_a_longer_run_continues_them(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def scalars() -> dict[str, list[tuple[int, float]]]:
        events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
        events.Reload()
        tags = events.Tags()
        assert tags["tensors"] == ["configuration/text_summary"]
        return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]}

    run = tracked_run(tmp_path / "run", "tensorboard")
    check_figures(scalars(), run)
    tracked_run(tmp_path / "run", "tensorboard", num_masks=NUM_MASKS + 40)
    steps = [step for step, _ in scalars()["ablate/shards_done"]]
    assert steps == sorted(steps)
    assert steps[-1] == TOTAL + 40
    assert scalars()["ablate/shards_done"][-1][1] == 2  # of the second command


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of an offline run's file: LevelDB's log format behind a header of 7 bytes."""
    content, position, record = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        length, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


def test_wandb_keeps_the_figures_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tracked_run(tmp_path / "run", "wandb")
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    found: dict[str, list[tuple[int, float]]] = {}
    records = [Record.FromString(content) for content in wandb_records(path)]
    for record in records:
        if record.WhichOneof("record_type") == "history":
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                if not name.startswith("_"):
                    found.setdefault(name, []).append((record.history.step.num, float(item.value_json)))
    check_figures(found, run)
    (described,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (described.project, described.display_name) == ("coar_dist", run.directory.storage.label)
    (ended,) = (record.exit for record in records if record.WhichOneof("record_type") == "exit")
    assert ended.exit_code == 0


def test_mlflow_stores_the_figures_and_how_the_run_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    run = tracked_run(tmp_path / "run", "mlflow")
    client = MlflowClient()
    experiment = client.get_experiment_by_name("coar_dist")
    (stored,) = client.search_runs([experiment.experiment_id])
    assert stored.info.run_name == run.directory.storage.label
    assert stored.info.status == "FINISHED"
    assert stored.data.params["design.num_masks"] == str(NUM_MASKS)
    found = {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(stored.info.run_id, name)]
        for name in stored.data.metrics
    }
    check_figures(found, run)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("coar_dist.stages.evaluate.evaluate", fail)
    with pytest.raises(KeyboardInterrupt):
        tracked_run(tmp_path / "run", "mlflow")
    statuses = {entry.info.status for entry in client.search_runs([experiment.experiment_id])}
    assert statuses == {"FINISHED", "FAILED"}


class Recorder:
    """A tracker in memory, which may fail."""

    def __init__(self, fails: bool = False) -> None:
        self.figures: list[tuple[dict[str, float], int]] = []
        self.ended: bool | None = None
        self._fails = fails

    def log(self, figures: Mapping[str, float], step: int) -> None:
        if self._fails:
            raise ConnectionError("the server is away")
        self.figures.append((dict(figures), step))

    def close(self, has_failed: bool) -> None:
        self.ended = has_failed


def test_figures_that_change_often_are_recorded_now_and_then_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setitem(TRACKERS, "wandb", TrackerKind(lambda storage, configuration: recorder, "wandb"))
    tracker = Tracking(["wandb"])
    with tracker.opened(local_storage(tmp_path), {}):
        for step in range(5):
            tracker.offer({"a": float(step)}, step)
        tracker.log({"b": 1.0}, 9)
    assert recorder.figures == [({"a": 0.0}, 0), ({"b": 1.0}, 9), ({"a": 4.0}, 4)]
    assert recorder.ended is False
    tracker.log({"a": 0.0}, 10)  # when all is over
    assert len(recorder.figures) == 3


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken, sound = Recorder(fails=True), Recorder()
    monkeypatch.setitem(TRACKERS, "wandb", TrackerKind(lambda storage, configuration: broken, "wandb"))
    monkeypatch.setitem(TRACKERS, "mlflow", TrackerKind(lambda storage, configuration: sound, "mlflow"))
    tracker = Tracking(["wandb", "mlflow"])

    def work() -> None:
        with tracker.opened(local_storage(tmp_path), {}):
            tracker.log({"a": 1.0}, 1)
            tracker.log({"a": 2.0}, 2)
            raise ValueError("the run's own")

    with caplog.at_level(logging.WARNING, "coar_dist"), pytest.raises(ValueError, match="the run's own"):
        work()
    assert sound.figures == [({"a": 1.0}, 1), ({"a": 2.0}, 2)]
    assert sound.ended is True
    (record,) = caplog.records
    assert "tracking by wandb fails, and is left out from now on: ConnectionError: the server is" in record.message


def test_mistakes_are_told_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*names: str, stages: tuple[str, ...] = ("ablate",)) -> None:
        config = Config(stages=list(stages), run=RunConfig(str(tmp_path / "run")), tracking=list(names))
        run_stages(config, Console(file=io.StringIO()), small_task())

    with pytest.raises(ConfigError, match="tracking='neptune': must be one of tensorboard, wandb, mlflow"):
        start("neptune")
    with pytest.raises(ConfigError, match="must be a list without repetitions"):
        start("wandb", "wandb")
    with pytest.raises(ConfigError, match=r"has no effect with stages=.'fit'.: ablate and evaluate alone have figures"):
        start("wandb", stages=("fit",))
    find = importlib.import_module

    def without(name: str) -> Any:
        if name in ("wandb", "mlflow", "torch.utils.tensorboard"):
            raise ImportError(f"No module named {name!r}")
        return find(name)

    monkeypatch.setattr(tracking.importlib, "import_module", without)
    for name in TRACKERS:
        with pytest.raises(ConfigError, match=rf"tracking=\[{name}\] needs .* pip install 'coar-dist\[{name}\]'"):
            start(name)
    monkeypatch.setattr(tracking.importlib, "import_module", lambda name: None)
    with pytest.raises(ConfigError, match="s3://bucket/run is in an object store"):
        check_tracking(["tensorboard"], storage_at("s3://bucket/run"))
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_cannot_start_ends_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("nobody has logged in")

    monkeypatch.setitem(TRACKERS, "mlflow", TrackerKind(refuse, "mlflow"))
    with (
        pytest.raises(ConfigError, match=r"tracking=\[mlflow\] cannot start: PermissionError: nobody has logged in"),
        Tracking(["mlflow"]).opened(local_storage(tmp_path), {}),
    ):
        raise AssertionError("unreachable")
