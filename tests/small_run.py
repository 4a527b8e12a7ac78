"""A small run of all stages, with Ray or without, and as slow as wanted.

``python -m tests.small_run <run_dir> <max_actors> <seconds>`` runs it in a process of its own, that can be killed.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from rich.console import Console
from torch import Tensor, nn

import coar_dist
from coar_dist.ablation.plan import EnginePlan
from coar_dist.config.schema import AblationConfig, ClusterConfig, EvaluationConfig
from coar_dist.store.reader import RunReader
from tests.models import small_task

PLAN = EnginePlan("weights", 7, compiled=False)


class Slow(nn.Module):
    """A model whose forward pass takes a while, so that there is time to kill it."""

    def __init__(self, inner: nn.Module, seconds: float) -> None:
        super().__init__()
        self.inner = inner
        self._seconds = seconds

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(self._seconds)
        output: Tensor = self.inner(images)
        return output


def run_small(
    run_dir: str | Path,
    max_actors: int = 1,
    seconds: float = 0.0,
    address: str | None = None,
    seed: int = 0,
    where: str = "process",
) -> RunReader:
    """All stages of a small run: 65 shards of train, held-out and leave-one-out masks and of gradients."""
    task = small_task(seed=seed)
    return coar_dist.attribute(
        Slow(task.model, seconds),
        task.examples.inputs,
        task.examples.targets,
        run_dir=run_dir,
        num_masks=200,
        num_gradient_masks=15,
        ablation_fraction=0.2,
        stages=("ablate", "fit", "evaluate"),
        baselines=["leave_one_out"],
        evaluation=EvaluationConfig(num_masks=40, ablation_fractions=[0.2], seed=7, curve_shares=[0.5]),
        ablation=AblationConfig(
            masks_per_shard=4,
            mode=PLAN.mode,
            rows_per_forward=PLAN.rows_per_forward,
            compile=False,
            examples_per_block=4,
        ),
        cluster=ClusterConfig(address, where, max_actors=max_actors),
        console=Console(file=io.StringIO()),
    )


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """All is computed in this process, even where an option or another test's cluster asks for Ray."""
    with (
        mock.patch("coar_dist.cluster.place.asked_of_ray", return_value={}),
        mock.patch("coar_dist.cluster.place._ray_is_up", return_value=False),
    ):
        yield


def files_of(root: Path) -> dict[str, bytes]:
    """The files that must be the same in every run, by name, with their bytes."""
    folders = ("margins", "gradients", "baselines", "attributions", "evaluation")
    paths = [*root.glob("*.parquet"), *(path for folder in folders for path in (root / folder).rglob("*"))]
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(paths)
        if path.is_file() and not path.name.endswith((".damaged", ".tmp"))
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_small(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:], where="ray")
