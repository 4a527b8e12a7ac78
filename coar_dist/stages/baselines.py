"""The gradient baselines' part of the ablate stage: weights of every example that the run lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from coar_dist.baselines.actor import BaselineActor, BaselineJob
from coar_dist.baselines.gradient_baselines import check_gradient_baselines, passes_per_example
from coar_dist.cluster import dispatch
from coar_dist.cluster.ranges import RangesToDo
from coar_dist.cluster.work import DriverCallbacks, Work
from coar_dist.components.index import ComponentIndex
from coar_dist.config.methods import GRADIENT_BASELINES, PATH_BASELINES
from coar_dist.errors import counted
from coar_dist.stages.inputs import with_weights
from coar_dist.stages.prediction import seconds_per_pass
from coar_dist.stages.session import Session
from coar_dist.store.baselines import BaselineStore
from coar_dist.store.run_directory import RunDirectory
from coar_dist.tasks.task import Task

_EXAMPLES_PER_SHARD = 512
_FEWEST_ON_PATH, _MOST_ON_PATH, _SHARDS_ON_PATH = 8, 64, 64
"""Shard sizes of path baselines. A path costs some hundred forward passes, so few examples keep an actor busy."""


@dataclass(frozen=True)
class MissingBaselines:
    """What the run lacks of the gradient baselines that are asked for.

    Attributes:
        stores: where the weights go, by the methods that are not complete.
        ranges: examples whose weights are missing.
    """

    stores: Mapping[str, BaselineStore]
    ranges: RangesToDo

    @classmethod
    def of(cls, run: RunDirectory, session: Session) -> MissingBaselines:
        """Make the baselines that are asked for those of the run, and look what is there; wrong shards are set
        aside."""
        config = session.config
        wanted = [method for method in GRADIENT_BASELINES if method in config.baselines]
        steps = {"num_steps": config.baseline_settings.num_steps}
        run.set_baselines({method: steps if method in PATH_BASELINES else {} for method in wanted})
        stores = {method: run.baseline(method) for method in wanted}
        for store in stores.values():
            for reason in store.set_aside_wrong(run.is_new):
                session.terminal.warn(reason)
        gaps = {method: store.missing() for method, store in stores.items()}
        stores = {method: store for method, store in stores.items() if gaps[method]}
        # A function of the run alone, so that the same shards, of the same bits, arise whoever computes them.
        on_path = min(max(run.num_examples // _SHARDS_ON_PATH, _FEWEST_ON_PATH), _MOST_ON_PATH)
        sizes = {method: on_path if method in PATH_BASELINES else _EXAMPLES_PER_SHARD for method in wanted}
        return cls(stores, RangesToDo(gaps, sizes, "examples"))

    def check(self, task: Task, components: ComponentIndex, session: Session) -> None:
        """Check that what is missing can be computed, and say what will be slow.

        Raises:
            ConfigError: it cannot; the message says why.
        """
        if self.stores:
            check = partial(check_gradient_baselines, task, components, list(self.stores))
            why_slow = with_weights(session, task.model, check)
            if why_slow is not None:
                session.terminal.warn(
                    f"gradient_x_parameter is computed one example at a time, which is slow: {why_slow}."
                )


def compute_baselines(
    session: Session, run: RunDirectory, task: Task, components: ComponentIndex, missing: MissingBaselines
) -> None:
    """Compute what is missing on the cluster's actors; each writes a shard per range of examples."""
    if not run.baselines:
        return
    config, terminal = session.config, session.terminal
    num_examples = counted(run.num_examples, "example")
    if not missing.stores:
        terminal.say(f"{', '.join(run.baselines)} of {num_examples}: all there already.")
        return
    job = BaselineJob(
        components=components,
        stores=missing.stores,
        num_steps=config.baseline_settings.num_steps,
        rows_per_pass=config.baseline_settings.rows_per_pass,
        device_map=config.ablation.device_map,
    )
    passes = sum(
        passes_per_example(examples.store_name, job.num_steps) * examples.num_units for examples in missing.ranges
    )
    with session.progress(missing.ranges.num_units, "examples") as progress:
        callbacks = DriverCallbacks(
            on_progress=lambda counts: progress.update(counts.num_units, counted(counts.num_actors, "actor")),
            on_start=lambda _: None,
            on_log=terminal.relay,
            on_wait=session.take().check,
            on_join=lambda cluster: terminal.say(f"on {cluster}."),
        )
        work = Work(
            run=run.storage.label,
            actor=BaselineActor,
            task=task,
            job=job,
            ranges=missing.ranges,
            plan=None,
            memory_key="baseline_settings.rows_per_pass",
            predict=lambda: passes * seconds_per_pass(config, task.model, task.examples),
        )
        dispatch.run_ranges(config.cluster, work, callbacks)
        for store in missing.stores.values():  # of actors that were killed while they wrote
            run.storage.sweep(store.folder)
        seconds = progress.seconds
    terminal.say(f"{', '.join(missing.stores)} of {num_examples} in {seconds:.1f} s.")
