from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from torch import nn

from coar_dist.config.schema import Config, RunConfig
from coar_dist.console.saying import Terminal
from coar_dist.errors import DamagedFileError
from coar_dist.stages.session import Session
from coar_dist.stages.train import _is_trained
from coar_dist.tasks.trained_checkpoint import CHECKPOINT, read_checkpoint, write_checkpoint
from tests.models import local_storage


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
