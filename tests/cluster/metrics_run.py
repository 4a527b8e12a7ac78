"""Runs on a Ray cluster whose metrics are scraped; in a process of its own, for a cluster with a short interval."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import ray

from coar_dist.store.locations import storage_at
from tests.cluster.driving import drive, only_once
from tests.cluster.scraping import scraped_until


def main(folder: Path) -> None:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _system_config={"metrics_report_interval_ms": 300},
    )

    def act(start: int) -> None:
        if start == 8 and only_once(folder / "failed"):
            raise OSError("a disk was away for a moment")
        if start == 16 and only_once(folder / "died"):
            os.kill(os.getpid(), signal.SIGKILL)

    label = storage_at(folder / "run").label
    driven = drive(folder, act, num_masks=30, max_actors=1)
    counts = driven.counts[-1]
    series, types = scraped_until(
        lambda found: (
            found.get(("ray_coar_masks_left", label, "", "")) == 0
            and sum(value for key, value in found.items() if key[:2] == ("ray_coar_masks_done_total", label)) == 30
        ),
        seconds=20,
    )
    found = [[*key, value] for key, value in series.items() if key[1] == label]
    print(json.dumps({"series": found, "types": types, "counts": vars(counts)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
