"""How often a fit reads each byte of its shards."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coar_dist.config.schema import RegressionConfig
from coar_dist.regression import sizes
from coar_dist.regression.fit import fit
from coar_dist.regression.trials import Sample
from coar_dist.store import encoding
from tests.regression.problems import problem
from tests.regression.test_fit import run_of
from tests.regression.test_gradient_ridge import World
from tests.regression.test_gradient_ridge import run_of as gradient_run_of

Reads = Counter[tuple[str, str]]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """How often each column of each file was read; columns are verified whenever they are read."""
    counts: Reads = Counter()
    read = encoding.read_columns

    def counted(file: Any, tail: bytes, metadata: Any, columns: Any) -> Any:
        for column in metadata["sha256"] if columns is None else columns:
            counts[file._name, column] += 1
        return read(file, tail, metadata, columns)

    monkeypatch.setattr("coar_dist.store.parquet.read_columns", counted)
    monkeypatch.setattr("coar_dist.store.encoding._READ_ACROSS", 0)  # the files are tiny
    return counts


def most(reads: Reads, folder: str, column: str = "") -> int:
    return max(times for (name, of), times in reads.items() if name.startswith(folder) and of.startswith(column))


@pytest.mark.parametrize(
    ("options", "times"),
    [
        ({"shared_penalty": False}, 1),
        ({"shared_penalty": False, "selection": "leave_one_out"}, 1),
        ({"shared_penalty": True}, 2),
        ({"shared_penalty": True, "selection": "leave_one_out"}, 2),
        ({"memory_gb": 1e-6, "shared_penalty": True}, 2),
        ({"method": "lasso"}, 2),  # of the shard in which the held-out masks begin
    ],
    ids=str,
)
@pytest.mark.parametrize("num_components", [30, 300])  # primal, dual
def test_margins_are_read_once_and_twice_where_examples_decide_together(
    num_components: int, options: dict[str, Any], times: int, reads: Reads, tmp_path: Path
) -> None:
    masks, margins = problem(200, num_components, 11)
    run = run_of(tmp_path, masks, margins, [0, 70, 200])
    fit(run, RegressionConfig(**options), lambda _: None)
    assert most(reads, "margins/", "margins_") == times
    assert most(reads, "margins/", "mask") == 1
    assert len([key for key in reads if key[1].startswith("margins_")]) == 2 * 3


@pytest.mark.filterwarnings("ignore:nothing can be said")
@pytest.mark.parametrize("plain", [5, 40])  # dual, primal
@pytest.mark.parametrize("selection", ["gcv", "leave_one_out"])
def test_gradients_are_read_twice_at_most(selection: str, plain: int, reads: Reads, tmp_path: Path) -> None:
    run = gradient_run_of(tmp_path, World(), plain)
    config = RegressionConfig(selection=selection)
    fit(run, config, lambda _: None)
    for column in ("margins", "kept", "ablated"):
        assert most(reads, "gradients/", column) == 2
    # The fit without gradients, which comes first, reads them once more.
    assert most(reads, "margins/", "margins_") == 2 + 2
    assert most(reads, "margins/", "mask") == 1 + 1
    reads.clear()
    for file in (tmp_path / "attributions").glob("gradient_ridge.*"):
        file.unlink()
    fit(run, config, lambda _: None)
    assert most(reads, "margins/", "margins_") == 2


def test_of_many_blocks_few_decide_and_the_others_are_read_once(
    reads: Reads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "_FEWEST_BLOCKS", 2)
    monkeypatch.setattr(sizes, "MOST_EXAMPLES", 8)
    run = gradient_run_of(tmp_path, World())
    fit(run, RegressionConfig(), lambda _: None)
    times = {
        folder: most(reads, f"gradients/gradients/{folder}", "kept") for folder in ("00000000-00000004", "00000004")
    }
    assert times == {"00000000-00000004": 2, "00000004": 1}


def test_examples_that_decide_are_spread_over_blocks_and_in_them() -> None:
    def of(num_examples: int, per_block: int, num_masks: int = 1000) -> tuple[list[tuple[int, int]], int]:
        blocks = [(at, min(at + per_block, num_examples)) for at in range(0, num_examples, per_block)]
        sample = Sample.of(blocks, num_masks)
        return sample.blocks, sum(len(sample.rows(end - first)) for first, end in sample.blocks)

    assert of(11, 4) == ([(0, 4), (4, 8), (8, 11)], 11)
    blocks, size = of(50_000, 1024)
    assert (len(blocks), size) == (8, 1024)
    assert (blocks[0][0], blocks[-1][1]) == (0, 50_000)
    assert np.ptp(np.diff([first for first, _ in blocks])) <= 1024
    assert Sample(blocks, 5).rows(1024).tolist() == [0, 256, 512, 767, 1023]
    blocks, size = of(50_000, 16)
    assert (len(blocks), size) == (64, 1024)
    assert of(50_000, 1024, 100_000)[1] == 8 * 84  # fewer where the masks are many
    assert of(50_000, 1024, 10_000_000)[1] == 64
