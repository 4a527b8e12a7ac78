"""Kill anything, lose nothing: the run again ends in the bytes of an unbroken one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos import kill_until_done
from tests.small_run import files_of


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("victims", "max_actors", "num_kills"),
    [
        pytest.param("actor", 1, 1, marks=pytest.mark.slow),  # one is killed in cluster/test_driver.py, too
        pytest.param("actor", 2, 2, marks=pytest.mark.slow),
        pytest.param("driver", 3, 2, marks=pytest.mark.slow),  # one is killed in test_object_store_run.py, too
        pytest.param("node", 2, 1, marks=pytest.mark.slow),  # and a node in ablation/test_driver.py
    ],
)
def test_killed_at_random_moments_and_run_again(
    whole: dict[str, bytes], tmp_path: Path, victims: str, max_actors: int, num_kills: int
) -> None:
    root = tmp_path / "run"
    done = kill_until_done(root, max_actors, num_kills, random.Random(max_actors), 0.01 * max_actors, victims)
    assert done["kills"] == num_kills
    assert files_of(root) == whole
