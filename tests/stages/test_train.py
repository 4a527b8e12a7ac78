from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from torch import nn

from coar_dist.config.schema import Config, ModelConfig, RunConfig, TrainConfig
from coar_dist.console.saying import Terminal
from coar_dist.errors import DamagedFileError, RunMismatchError
from coar_dist.stages.inputs import trained_in
from coar_dist.stages.session import Session
from coar_dist.stages.train import TRAIN, _is_trained
from coar_dist.tasks.trained_checkpoint import CHECKPOINT, model_settings, read_checkpoint, write_checkpoint
from tests.models import local_storage
from tests.regression.problems import problem
from tests.regression.test_fit import run_of


def test_a_damaged_checkpoint_is_named_by_readers_and_set_aside_by_the_train_stage(tmp_path: Path) -> None:
    storage, settings = local_storage(tmp_path), {"train.seed": 5}
    write_checkpoint(storage, nn.Linear(3, 2), settings)
    printed = io.StringIO()
    session = Session(Config(run=RunConfig(str(tmp_path))), Terminal(Console(file=printed, width=1000)))
    assert _is_trained(session, settings)
    path = tmp_path / CHECKPOINT
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=rf"{path} is damaged.*Run the train stage: it sets the file aside"):
        read_checkpoint(storage)
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]
    assert not _is_trained(session, settings)
    assert f"Set aside as {CHECKPOINT}.damaged; the model is trained again." in printed.getvalue()
    assert [file.name for file in tmp_path.iterdir()] == [f"{CHECKPOINT}.damaged"]
    assert not _is_trained(session, settings)


def test_a_run_of_a_model_that_was_not_trained_there_is_left_alone(tmp_path: Path) -> None:
    run_of(tmp_path, *problem(20, 6))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    config = Config(["train"], run=RunConfig(str(tmp_path)), train=TrainConfig())
    with (
        Session(config, Terminal(Console(file=io.StringIO()))) as session,
        pytest.raises(RunMismatchError, match=r"holds a run of a model that was not trained there \(it has no model"),
    ):
        TRAIN.run(session)
    assert not (tmp_path / CHECKPOINT).exists()
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}


def test_weights_of_another_model_are_refused_before_they_are_loaded(tmp_path: Path) -> None:
    storage, model = local_storage(tmp_path), ModelConfig("attention_only", {"depth": 2})
    write_checkpoint(storage, nn.Linear(3, 2), model_settings(model))
    session = Session(Config(run=RunConfig(str(tmp_path)), train=TrainConfig()), Terminal(Console(file=io.StringIO())))
    session.config.task.model = model
    assert trained_in(session) is session.storage
    for other, key in (
        (ModelConfig("digits_resnet"), "source"),
        (ModelConfig("attention_only", {"depth": 3}), "depth"),
    ):
        session.config.task.model = other
        with pytest.raises(RunMismatchError, match=rf"^task\.model\..*{key} is .*was trained with .*experiment="):
            trained_in(session)
