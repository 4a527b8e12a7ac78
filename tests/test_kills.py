"""Kill anything, lose nothing: the run again ends in the bytes of an unbroken one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos import files_of, kill_until_done


@pytest.mark.parametrize(("victims", "max_actors", "num_kills"), [("driver", 3, 2), ("actor", 2, 3), ("node", 2, 1)])
def test_killed_at_random_moments_and_run_again(
    whole: dict[str, bytes], tmp_path: Path, victims: str, max_actors: int, num_kills: int
) -> None:
    root = tmp_path / "run"
    done = kill_until_done(root, max_actors, num_kills, random.Random(max_actors), 0.01 * max_actors, victims)
    assert done["kills"] == num_kills
    assert files_of(root) == whole
