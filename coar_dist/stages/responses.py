"""What components look at, for reports that are made without the model."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from dataclasses import replace

import torch
from torch import nn

from coar_dist.ablation.device_map import spread_over_devices
from coar_dist.ablation.placement import placed
from coar_dist.ablation.responses import FoundResponses, responses_of
from coar_dist.cluster.dispatch import executing
from coar_dist.cluster.place import joins_a_cluster
from coar_dist.components.index import ComponentIndex
from coar_dist.config.schema import PROCESS
from coar_dist.errors import counted, listed
from coar_dist.stages.session import Session
from coar_dist.store.responses import ResponseTable
from coar_dist.store.run_directory import RunDirectory
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.task import Task

_MB = 1e6
_log = logging.getLogger(__name__)


def write_responses(session: Session, run: RunDirectory, task: Task, components: ComponentIndex) -> None:
    """Write what the components look at, where the run lacks it and it fits ``run.responses_mb``.

    It takes about a forward pass over the examples, on a joined cluster by one of its workers, else here.
    """
    config = session.config
    table = ResponseTable(run)
    table.set_aside_wrong()
    missing = table.missing()
    if not missing:
        return
    session.take().check()
    shared = (
        task.model,
        components,
        task.examples.without_columns(),
        config.run.responses_mb,
        config.ablation.device_map,
    )
    # Of workers the weights may be known to them alone; else starting them would take longer than the pass.
    cluster = config.cluster if joins_a_cluster(config.cluster) else replace(config.cluster, where=PROCESS)
    started = time.perf_counter()
    with executing(cluster, lambda: math.inf, "Use run.responses_mb=0.") as execute:
        (found,) = execute(_on_an_actor, shared, [None])
    if found.num_bytes > config.run.responses_mb * _MB:
        _log.info(
            "what the components look at is not kept: it would take %.3g MB, and run.responses_mb is %g",
            found.num_bytes / _MB,
            config.run.responses_mb,
        )
        return
    _log.info("%s, in %.1f s", _described(found, components), time.perf_counter() - started)
    for each in missing:
        table.write(each, found.responses)


def _described(found: FoundResponses, components: ComponentIndex) -> str:
    """How many components have something, and why the others have not."""
    num = components.num_components
    of_all = f"{num - len(found.without):,} of {counted(num, 'component')}"
    text = f"what {of_all} look at, at most {found.num_bytes / _MB:.3g} MB"
    reasons = Counter(found.without.values()).most_common()
    why = [f"{of_reason:,}: {reason}" for reason, of_reason in reasons]
    return f"{text} (without {listed(why, 3)})" if why else text


def _on_an_actor(
    shared: tuple[nn.Module, ComponentIndex, ExampleSet, float, str | None], _item: None
) -> FoundResponses:
    model, components, examples, most_mb, device_map = shared
    if device_map is not None:
        spread_over_devices(model, device_map)
    module, device = placed(model, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return responses_of(module, components, examples, device, most_mb * _MB)
