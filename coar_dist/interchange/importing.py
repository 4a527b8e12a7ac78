"""From the research code's files into a run directory: margins as a design's shards, attributions as a table."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.config.methods import RESEARCH
from coar_dist.console.run_log import RunLog
from coar_dist.designs.given import Imported
from coar_dist.errors import (
    ComponentMismatchError,
    ConfigError,
    DamagedFileError,
    RunMismatchError,
    RunNotFoundError,
    counted,
)
from coar_dist.interchange.attribution_files import ResearchAttributions
from coar_dist.interchange.margin_stores import BLOCK_BYTES, MarginContent, ResearchStore
from coar_dist.store.aside import damaged_set_aside
from coar_dist.store.examples import ExampleTable
from coar_dist.store.identity import IMPORTED_FROM
from coar_dist.store.lock import only_writer
from coar_dist.store.run_directory import TRAIN_DESIGN, RunDesign, RunDirectory
from coar_dist.store.storage import Storage
from coar_dist.store.tables import Attributions, AttributionTable

EXAMPLES_PER_BLOCK = 1024
_MOST_ROWS = 8192
_METHOD = re.compile(rf"{RESEARCH}[A-Za-z0-9_-]*")
_EVALUATION = re.compile(r"evaluation_[A-Za-z0-9._-]+")
_log = logging.getLogger(__name__)
Progress = Callable[[int], None]


@dataclass(frozen=True)
class ImportedMargins:
    """What an import of margins did.

    Attributes:
        design: the imported design.
        num_written: masks written now; the others were there.
        num_left_out: rows of the store that are not complete.
    """

    design: Imported
    num_written: int
    num_left_out: int


def import_margins(
    store: ResearchStore,
    content: MarginContent,
    storage: Storage,
    design_name: str = TRAIN_DESIGN,
    components: ComponentIndex | None = None,
    ablation_fraction: float | None = None,
    on_progress: Progress = lambda _: None,
    block_bytes: int = BLOCK_BYTES,
) -> ImportedMargins:
    """Write a store's margins as shards. Called again after an interruption, it writes what is missing.

    Args:
        store: the store.
        content: what ``store.examine`` found.
        storage: of the run directory: a new one, one made by an earlier import, or, for an ``evaluation_...`` design,
            any with as many components and examples.
        design_name: ``train``, or ``evaluation_...`` for held-out masks.
        components: what the components are; None calls them one group without a name. Only for a new run directory.
        ablation_fraction: of the masks; None is their share of ablated components, to three digits.
        on_progress: called with the number of masks done.
        block_bytes: of masks and margins in memory at a time.

    Raises:
        RunMismatchError: the run directory or the design is of something else.
        ComponentMismatchError: numbers of components or examples differ.
        ConfigError: the name of the design, or an option that has no effect.
    """
    if design_name != TRAIN_DESIGN and _EVALUATION.fullmatch(design_name) is None:
        raise ConfigError(f"design={design_name!r}: must be train, or begin with evaluation_.")
    share = content.ablated_share
    if ablation_fraction is None:
        ablation_fraction = float(f"{share:.3g}")
    elif not 0.5 < share / ablation_fraction < 2.0:
        raise ConfigError(f"ablation_fraction={ablation_fraction}: the masks ablate {share:.3g} of the components.")
    num_masks, fingerprint = len(content.rows), content.fingerprint
    design = Imported(store.num_components, num_masks, ablation_fraction, seed=0, fingerprint=fingerprint)
    with only_writer(storage) as hold, RunLog(storage, "import-research"), damaged_set_aside(storage, hold):
        _log.info("import of %s from %s as design %s", store.name, store.folder, design_name)
        run = _run_for(store, content, storage, design_name, components)
        role = "train" if design_name == TRAIN_DESIGN else "evaluation"
        run.set_designs({**run.designs, design_name: RunDesign(role, design)})
        shards = run.margins(design_name)
        shards.set_aside_wrong(run.is_new)
        step = min(store.rows_at_once(block_bytes), _MOST_ROWS)
        missing = shards.missing()
        num_written = sum(stop - start for start, stop in missing)
        num_done = design.num_masks - num_written
        made_by = {"imported_from": str(store.folder), "margins": store.name}
        for first, end in missing:
            for start in range(first, end, step):
                hold.check()
                rows = content.rows[start : min(start + step, end)]
                masks, margins = store.read(rows, content.examples)
                shards.write(start, masks, margins, made_by)
                num_done += len(rows)
                on_progress(num_done)
    return ImportedMargins(design, num_written, len(content.left_out))


def _run_for(
    store: ResearchStore,
    content: MarginContent,
    storage: Storage,
    design_name: str,
    components: ComponentIndex | None,
) -> RunDirectory:
    run: RunDirectory | None
    try:
        run = RunDirectory.open(storage)
    except (RunNotFoundError, DamagedFileError):
        run = None
    num_components, num_examples = store.num_components, len(content.examples)
    if run is not None and design_name == TRAIN_DESIGN and IMPORTED_FROM not in run.identity:
        raise RunMismatchError(
            f"{storage} was not made by an import: its train design is its own. Use another run.dir, or "
            f"design=evaluation_... for held-out masks."
        )
    if run is not None and design_name != TRAIN_DESIGN:
        _check_fits(run, num_components, num_examples, store.folder)
        if components is not None:
            raise ConfigError(f"components have no effect: {storage} has its own. Leave them out.")
        if store.margins.dtype == np.float32 and run.identity["ablation.margins_dtype"] == "float16":
            raise RunMismatchError(f"{store.name} are float32, but {storage} keeps float16. Use another run.dir.")
        return run
    if design_name != TRAIN_DESIGN:
        raise RunNotFoundError(f"{storage} is not a run directory yet: import the masks of design=train first.")
    if components is None:
        components = ComponentIndex((ComponentGroup.of("unnamed", 0, num_components),))
        if run is not None:
            with contextlib.suppress(DamagedFileError):  # then it is written again
                components = run.components
    if components.num_components != num_components:
        raise ComponentMismatchError(
            f"the components given are {components.num_components}, but the masks of {store.folder} have "
            f"{num_components}."
        )
    left_out = np.setdiff1d(np.arange(store.num_examples), content.examples)
    identity: dict[str, Any] = {
        IMPORTED_FROM: "the COAR research code",
        "imported_without_examples": left_out.tolist(),
        "ablation.examples_per_block": EXAMPLES_PER_BLOCK,
        "ablation.margins_dtype": store.margins.dtype.name,
    }
    run = RunDirectory.create(storage, identity, components, num_examples)
    examples = ExampleTable(run)
    examples.set_aside_wrong()
    if not examples.is_complete():
        examples.write(None, None, np.full(num_examples, np.nan, dtype=np.float32))
    return run


def _check_fits(run: RunDirectory, num_components: int, num_examples: int, where: object) -> None:
    expected = run.components.num_components, run.num_examples
    if (num_components, num_examples) != expected:
        raise ComponentMismatchError(
            f"{where} has {counted(num_components, 'component')} and {counted(num_examples, 'example')} (without "
            f"those left out), but {run.storage} has {expected[0]:,} and {expected[1]:,}."
        )


def import_attributions(
    attributions: ResearchAttributions,
    storage: Storage,
    method: str = RESEARCH,
    on_progress: Progress = lambda _: None,
) -> bool:
    """Write a file's attributions as the table of a method of an existing run.

    Evaluation and report then treat them like any other. The file's ``lam`` become ``regularisation``, in the research
    code's units.

    Args:
        attributions: the file, opened.
        storage: of the run directory, whose components and examples must be those of the file, in the same order.
        method: the attributions' name: ``research``, or beginning with it.
        on_progress: called with the number of examples done.

    Returns:
        Whether anything had to be written.

    Raises:
        ComponentMismatchError: numbers of components or examples differ, or the file says that it is of others.
        ConfigError: the name.
        RunNotFoundError: there is no run.
    """
    if _METHOD.fullmatch(method) is None:
        raise ConfigError(f"method={method!r}: names of imported attributions begin with {RESEARCH}, e.g. research_a.")
    file = attributions.file
    run = RunDirectory.open(storage)
    _check_fits(run, file.num_components, attributions.num_examples, file.path)
    own_components = file.own.get("components", run.components.fingerprint)
    if own_components != run.components.fingerprint:
        raise ComponentMismatchError(
            f"{file.path} belongs to components {own_components}, but {storage} has {run.components.fingerprint}: "
            f"as many, but other ones, or in another order."
        )
    settings = {
        "imported": file.fingerprint,
        "units": attributions.units.fingerprint,
        "examples": "" if attributions.num_examples == file.num_examples else attributions.example_ids.tolist(),
        "nan_is_zero": attributions.nan_is_zero,
    }
    with only_writer(storage) as hold, RunLog(storage, "import-research"), damaged_set_aside(storage, hold):
        _log.info("import of %s as %s", file.path, method)
        table = AttributionTable(run, method)
        blocks = run.margins(TRAIN_DESIGN).blocks
        if table.is_complete(settings, blocks):
            return False
        table.set_aside_wrong(blocks)
        for first, end in blocks:
            hold.check()
            weights, intercepts = attributions.read(first, end)
            nothing = np.full(end - first, np.nan)
            lam = attributions.lam(first, end)
            table.write((first, end), settings, Attributions(weights, intercepts, lam, nothing, nothing, nothing))
            on_progress(end)
    return True


def read_components(path: str | Path) -> ComponentIndex:
    """The components from a JSON file: ``{"conv1.weight": 64, ...}``, the research code's ``get_model_components``.

    Their order is that of the ids; each component is one index along axis 0.

    Raises:
        ConfigError: the file is not there, or holds something else.
    """
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"components={str(path)!r} cannot be read: {error}") from error
    sizes: Sequence[object] = list(found.values()) if isinstance(found, dict) else []
    if not sizes or not all(type(size) is int and size > 0 for size in sizes):
        raise ConfigError(f"components={str(path)!r}: must be JSON such as {{'conv1.weight': 64}}, names and numbers.")
    return ComponentIndex(tuple(ComponentGroup.of(name, 0, size) for name, size in found.items()))
