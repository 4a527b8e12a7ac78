"""The stages after the ablate stage in a plan: their needs beside what there is, and what would not fit."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import numpy as np
import torch

from coar_dist.cluster.place import joins_a_cluster
from coar_dist.cluster.ranges import WorkRange
from coar_dist.config.schema import ZERO_WEIGHTS, Config
from coar_dist.console.tables import new_table
from coar_dist.stages.collect import Missing
from coar_dist.stages.executing import are_distributed
from coar_dist.stages.inputs import examples_of
from coar_dist.stages.needs import Need, Sizes, Speed, report_need
from coar_dist.stages.needs_of_fits import evaluate_need, fit_need
from coar_dist.stages.needs_of_passes import (
    CIRCUIT_IF_ASKED,
    EDIT,
    EDIT_OF_ONE,
    PassesOfModel,
    circuit_need,
    edit_need,
)
from coar_dist.stages.print_estimate import as_bytes, as_duration
from coar_dist.stages.session import Session
from coar_dist.store.gradients import GradientStore
from coar_dist.store.local_storage import LocalStorage
from coar_dist.store.run_directory import TRAIN_DESIGN, RunDirectory
from coar_dist.store.storage import Storage
from coar_dist.tasks.task import Task

_HOUR_S = 3600.0
_TRIED, _TRIES = 1024, 4
_REQUEST_S = {True: 7e-4, False: 0.03}
"""Of a local folder, with what is parsed; and of an object store, of which many are under way. About."""
_DECODED_S = 2e-9
"""Seconds to read, copy and decode a byte, beside its hash."""


def sizes_of(run: RunDirectory, missing: Missing, parts: Collection[WorkRange]) -> Sizes:
    """The run as it will be.

    Args:
        run: whose shards stay as they are cut.
        missing: what it lacks.
        parts: the same in ranges, as actors will get them.
    """
    num_shards = dict.fromkeys(missing.stores, 0)
    for name, (_, store) in missing.stores.items():
        num_shards[name] = len(store.ranges())
    for masks in parts:
        num_shards[masks.store_name] += 1
    gradients = [name for name, (_, store) in missing.stores.items() if isinstance(store, GradientStore)]
    passes = missing.stores[gradients[0]][0].num_masks if gradients else 0
    store = run.margins(TRAIN_DESIGN)
    return Sizes(
        num_components=store.num_components,
        num_examples=run.num_examples,
        block_size=store.examples_per_block,
        num_masks=store.num_masks,
        num_gradient_masks=passes,
        held_out=tuple(design.num_masks for design in run.held_out.values()),
        num_shards=num_shards[TRAIN_DESIGN],
        num_gradient_shards=max((num_shards[name] for name in gradients), default=0),
        num_held_out_shards=sum(num_shards[name] for name in run.held_out),
        margin_bytes=np.dtype(store.dtype).itemsize,
        num_baselines=len(run.baselines) + sum(entry.role == "baseline" for entry in run.designs.values()),
    )


def measured_speed(storage: Storage) -> Speed:
    """How fast this process multiplies and verifies: the best of a few tries, which others may disturb."""
    rates = []
    for dtype in (torch.float32, torch.float64):
        matrix = torch.ones(_TRIED, _TRIED, dtype=dtype)
        rates.append(2.0 * _TRIED**3 / _shortest(partial(torch.matmul, matrix, matrix)))
    content = bytes(2**24)
    verified = 1.0 / (_shortest(partial(hashlib.sha256, content)) / len(content) + _DECODED_S)
    return Speed(rates[0], rates[1], verified, _REQUEST_S[isinstance(storage, LocalStorage)])


def _shortest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of a few calls."""
    seconds = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def needs_of(
    storage: Storage, config: Config, sizes: Sizes, of_circuit: PassesOfModel, of_edit: PassesOfModel | None
) -> list[Need]:
    """What the stages after the ablate stage take once all masks are there.

    Args:
        storage: the run directory.
        config: with the numbers of passes that the run asks for.
        sizes: of the run.
        of_circuit: passes over its examples.
        of_edit: passes over the examples of the edit; None without one.
    """
    speed = measured_speed(storage)
    needs = [
        fit_need(sizes, config.regression, speed),
        evaluate_need(sizes, config.evaluation.curve_shares, config.regression, speed),
        report_need(sizes, speed),
        circuit_need(sizes, config.circuit, of_circuit, speed),
    ]
    if config.edit is not None and of_edit is not None:
        needs.append(edit_need(sizes, config.edit, of_edit, speed))
    return needs


def print_later(
    session: Session,
    config: Config,
    run: RunDirectory,
    missing: Missing,
    parts: Collection[WorkRange],
    task: Task,
    timed: tuple[float, float],
) -> None:
    """Print what the stages after the ablate stage take, and warn of what would not fit.

    Args:
        session: of the plan stage.
        config: with the numbers of passes that the run asks for.
        run: as it will be.
        missing: what it lacks.
        parts: the same in ranges, as actors will get them.
        task: what is explained.
        timed: seconds until an actor can begin, and of one example under one mask; NaN where nothing was timed.
    """
    storage, terminal = session.storage, session.terminal
    sizes = sizes_of(run, missing, parts)
    of_circuit = _passes_of(task, config, len(task.examples), *timed)
    of_edit = None if config.edit is None else _passes_of(task, config, _num_edited(session, task), *timed)
    needs = needs_of(storage, config, sizes, of_circuit, of_edit)
    price = config.cluster.price_per_hour
    columns = "stage", "time here", "forward passes", "memory", "read", "written", "requests"
    table = new_table(*columns, *(["USD"] * (price is not None)))
    for need in needs:
        is_timed = math.isfinite(need.seconds)
        duration = as_duration(need.seconds) if is_timed else "-"
        passes = f"{need.passes:,}" if need.passes else ""
        numbers = duration, passes, as_bytes(need.memory), as_bytes(need.read), as_bytes(need.written)
        costs = [] if price is None else [f"{need.seconds / _HOUR_S * price:,.2f}" if is_timed else "-"]
        table.add_row(need.stage, *numbers, f"{need.num_reads + need.num_writes:,}", *costs)
    terminal.print_table(table)
    num_bytes = sum(missing.stores[masks.store_name][1].bytes_of(masks.num_units) for masks in parts)
    for text in what_does_not_fit(needs, num_bytes, storage, _stages_here(config)):
        terminal.warn(text)


def _passes_of(task: Task, config: Config, num_examples: int, start_s: float, seconds_per_pass: float) -> PassesOfModel:
    weights = task.model.state_dict().values()
    model_bytes = sum(weight.numel() * weight.element_size() for weight in weights)
    has_values = config.ablation.value != ZERO_WEIGHTS
    return PassesOfModel(num_examples, start_s, seconds_per_pass, model_bytes, has_values)


def _num_edited(session: Session, task: Task) -> int:
    """The examples of the edit: of its own, which are loaded here, or the run's."""
    edit, held_out = session.config.edit, session.held_out or task.examples
    if session.held_out is None and edit is not None and edit.examples is not None:
        held_out = examples_of(session, "edit.examples")
    return len(held_out)


def _stages_here(config: Config) -> tuple[str, ...]:
    """Those that take this machine's memory: with a cluster, workers fit, evaluate and hold the model."""
    fits = () if are_distributed(config) else ("fit", "evaluate")
    return *fits, "report", *(() if joins_a_cluster(config.cluster) else (CIRCUIT_IF_ASKED, EDIT, EDIT_OF_ONE))


def what_does_not_fit(needs: list[Need], num_bytes: float, storage: Storage, stages_here: Collection[str]) -> list[str]:
    """Sentences about what the stages would run out of, with the way out.

    Args:
        needs: of the stages after the ablate stage.
        num_bytes: of the missing shards.
        storage: the run directory.
        stages_here: those that take this machine's memory.
    """
    texts = [f"{need.stage}: {need.note}. Raise it, or use fewer masks." for need in needs if need.note]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for need in needs:
        if need.stage in stages_here and need.memory > memory:
            texts.append(
                f"the {need.stage} stage takes {as_bytes(need.memory)} of memory, this machine has {as_bytes(memory)}. "
                f"Lower regression.memory_gb or ablation.examples_per_block, or run the stage elsewhere."
            )
    total = num_bytes + sum(need.written for need in needs)
    if isinstance(storage, LocalStorage):
        folder = Path(storage.location).absolute()
        there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
        free = shutil.disk_usage(there).free
        if total > free:
            texts.append(
                f"{storage} would grow by {as_bytes(total)}, and {as_bytes(free)} are free. Use another run.dir, "
                f"ablation.margins_dtype=float16, or fewer masks."
            )
    return texts
