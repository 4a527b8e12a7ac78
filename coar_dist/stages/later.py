"""The stages after the ablate stage in a plan: their needs beside what there is, and what would not fit."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch

from coar_dist.cluster.ranges import WorkRange
from coar_dist.config.schema import Config
from coar_dist.console.saying import Terminal
from coar_dist.console.tables import new_table
from coar_dist.editing.criterion import sizes as tried_sizes
from coar_dist.errors import counted
from coar_dist.stages.collect import Missing
from coar_dist.stages.edit_inputs import most_components
from coar_dist.stages.needs import Need, Sizes, Speed, evaluate_need, fit_need, report_need
from coar_dist.stages.print_estimate import as_bytes, as_duration
from coar_dist.store.gradients import GradientStore
from coar_dist.store.local_storage import LocalStorage
from coar_dist.store.run_directory import TRAIN_DESIGN, RunDirectory
from coar_dist.store.storage import Storage

_TRIED = 1024
_REQUEST_S = {True: 7e-4, False: 0.03}
"""Of a local folder, with what is parsed; and of an object store, of which many are under way. About."""


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
    """How fast this process multiplies and verifies."""
    rates = []
    for dtype in (torch.float32, torch.float64):
        matrix = torch.ones(_TRIED, _TRIED, dtype=dtype)
        matrix @ matrix
        started = time.perf_counter()
        matrix @ matrix
        rates.append(2.0 * _TRIED**3 / (time.perf_counter() - started))
    content = bytes(2**24)
    started = time.perf_counter()
    hashlib.sha256(content)
    hashed = len(content) / (time.perf_counter() - started)
    return Speed(rates[0], rates[1], hashed / 2, _REQUEST_S[isinstance(storage, LocalStorage)])


def needs_of(storage: Storage, config: Config, sizes: Sizes) -> list[Need]:
    """What fit, evaluation and report take once all masks are there."""
    speed = measured_speed(storage)
    return [
        fit_need(sizes, config.regression, speed),
        evaluate_need(sizes, config.evaluation.curve_shares, config.regression, speed),
        report_need(sizes, speed),
    ]


def print_later(
    storage: Storage,
    config: Config,
    run: RunDirectory,
    missing: Missing,
    parts: Collection[WorkRange],
    terminal: Terminal,
) -> None:
    """Print what the stages after the ablate stage take, and warn of what would not fit."""
    sizes = sizes_of(run, missing, parts)
    needs = needs_of(storage, config, sizes)
    table = new_table("stage", "time here", "memory", "read", "written", "requests")
    for need in needs:
        numbers = as_duration(need.seconds), as_bytes(need.memory), as_bytes(need.read), as_bytes(need.written)
        table.add_row(need.stage, *numbers, f"{need.num_reads + need.num_writes:,}")
    terminal.print_table(table)
    if config.edit is not None:
        edit = config.edit
        num_tried = len(tried_sizes(most_components(edit, sizes.num_components)))
        num_selections = 1 + len(edit.compare)
        each = " for every target" if edit.each else ""
        terminal.print(
            f"Edit {edit.name!r}: {counted(num_tried * num_selections, 'mask')} of the held-out examples{each}, at "
            f"most, and a checkpoint of the model."
        )
    num_bytes = sum(missing.stores[masks.store_name][1].bytes_of(masks.num_units) for masks in parts)
    for text in what_does_not_fit(needs, num_bytes, storage):
        terminal.warn(text)


def what_does_not_fit(needs: list[Need], num_bytes: float, storage: Storage) -> list[str]:
    """Sentences about what the stages would run out of, with the way out.

    Args:
        needs: of the stages after the ablate stage.
        num_bytes: of the missing shards.
        storage: the run directory.
    """
    texts = [f"{need.stage}: {need.note}. Raise it, or use fewer masks." for need in needs if need.note]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for need in needs:
        if need.memory > memory:
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
