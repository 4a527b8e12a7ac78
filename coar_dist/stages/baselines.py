"""The gradient baselines' part of the ablate stage: weights of every example that the run lacks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console

from coar_dist.baselines.actor import BaselineActor, BaselineJob
from coar_dist.baselines.gradient_baselines import check_gradient_baselines
from coar_dist.cluster import driver
from coar_dist.cluster.ranges import RangesToDo
from coar_dist.cluster.work import DriverCallbacks, Work
from coar_dist.components.index import ComponentIndex
from coar_dist.config.methods import GRADIENT_BASELINES, PATH_BASELINES
from coar_dist.config.schema import Config
from coar_dist.console.progress import stage_progress
from coar_dist.console.saying import say, say_log
from coar_dist.store.baselines import BaselineStore
from coar_dist.store.lock import Hold
from coar_dist.store.run_directory import RunDirectory
from coar_dist.tasks.task import Task

_EXAMPLES_PER_SHARD = 512
_FEWEST_ON_PATH, _MOST_ON_PATH, _SHARDS_ON_PATH = 8, 64, 64
"""Of an example, a path costs some hundred forward passes: few of them are work enough for an actor."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MissingBaselines:
    """What the run lacks of the gradient baselines that are asked for.

    Attributes:
        stores: of the methods that are not complete.
        ranges: of examples.
    """

    stores: Mapping[str, BaselineStore]
    ranges: RangesToDo

    @classmethod
    def of(cls, run: RunDirectory, config: Config, console: Console) -> MissingBaselines:
        """Make these the baselines of the run, and look what of them is there; wrong shards are set aside."""
        wanted = [method for method in GRADIENT_BASELINES if method in config.baselines]
        steps = {"num_steps": config.baseline_settings.num_steps}
        run.set_baselines({method: steps if method in PATH_BASELINES else {} for method in wanted})
        stores = {method: run.baseline(method) for method in wanted}
        for store in stores.values():
            for reason in store.set_aside_wrong(run.is_new):
                say(console, "ablate", f"[yellow]{reason}[/yellow]")
        gaps = {method: store.missing() for method, store in stores.items()}
        stores = {method: store for method, store in stores.items() if gaps[method]}
        # A function of the run alone, so that the same shards, of the same bits, arise whoever computes them.
        on_path = min(max(run.num_examples // _SHARDS_ON_PATH, _FEWEST_ON_PATH), _MOST_ON_PATH)
        sizes = {method: on_path if method in PATH_BASELINES else _EXAMPLES_PER_SHARD for method in wanted}
        return cls(stores, RangesToDo(gaps, sizes, "examples"))

    def check(self, task: Task, components: ComponentIndex, console: Console) -> None:
        """Check that what is missing can be computed, and say what will be slow.

        Raises:
            ConfigError: it cannot; the message says why.
        """
        if self.stores:
            why_slow = check_gradient_baselines(task, components, list(self.stores))
            if why_slow is not None:
                text = f"gradient_x_parameter is computed one example at a time, which is slow: {why_slow}."
                say(console, "ablate", f"[yellow]{text}[/yellow]")


def compute_baselines(
    config: Config,
    run: RunDirectory,
    console: Console,
    task: Task,
    components: ComponentIndex,
    hold: Hold,
    missing: MissingBaselines,
) -> None:
    """Compute what is missing on the cluster's actors; each writes a shard per range of examples."""
    if not run.baselines:
        return
    names = ", ".join(run.baselines)
    if not missing.stores:
        say(console, "ablate", f"{names} of {run.num_examples:,} examples are there already.")
        return
    job = BaselineJob(
        components=components,
        stores=missing.stores,
        num_steps=config.baseline_settings.num_steps,
        rows_per_pass=config.baseline_settings.rows_per_pass,
        device_map=config.ablation.device_map,
    )
    num_missing = missing.ranges.num_units
    with stage_progress(console, "ablate", num_missing, "examples") as progress:
        callbacks = DriverCallbacks(
            on_progress=lambda counts: progress.update(counts.num_units, f"{counts.num_actors} actors"),
            on_start=lambda _: None,
            on_log=lambda lines, origin: say_log(console, "ablate", lines, origin),
            on_wait=hold.check,
            on_join=lambda cluster: say(console, "ablate", f"on {cluster}."),
        )
        work = Work(
            run=run.storage.label,
            actor=BaselineActor,
            task=task,
            job=job,
            ranges=missing.ranges,
            plan=None,
            memory_key="baseline_settings.rows_per_pass",
        )
        driver.run_ranges(config.cluster, work, callbacks)
        for store in missing.stores.values():  # of actors that were killed while they wrote
            run.storage.sweep(store.folder)
        seconds = progress.seconds
    say(
        console,
        "ablate",
        f"{', '.join(missing.stores)} of {run.num_examples:,} examples in {seconds:.1f} s.",
    )
