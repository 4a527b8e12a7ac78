"""A finished edit as ``edit.json`` has it, and from there again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from coar_dist.components.index import ComponentIndex
from coar_dist.components.sites import Values
from coar_dist.config.python_words import OF_ATTRIBUTE, in_python_words
from coar_dist.editing.edit import Edit, Measured, Selected, values_of
from coar_dist.errors import MissingWorkError, RunNotFoundError, listed
from coar_dist.store.edits import EDIT_FILE, EDITS, EditStore, edit_names
from coar_dist.store.locations import storage_at
from coar_dist.store.run_directory import RunDirectory

_AS_IT_IS = ("name", "run", "model_weights", "selection", "direction", "max_components", "metric", "criterion")


@in_python_words(OF_ATTRIBUTE)
def load_edit(folder: str | Path) -> Edit:
    """Load an edit from its folder, ``<run.dir>/edits/<name>``.

    Raises:
        RunNotFoundError, MissingWorkError: there is no edit.
        DamagedFileError: it is damaged.
    """
    try:
        sweep = RunDirectory.open(storage_at(folder))
    except RunNotFoundError as error:
        raise RunNotFoundError(f"{folder} is no edit, which lies in the folder {EDITS}/<name> of its run.") from error
    if sweep.storage.size(EDIT_FILE) is None and (names := edit_names(sweep.storage)):
        raise MissingWorkError(f"{folder} is a run, not an edit. Its edits are {listed(names)}, in {folder}/{EDITS}.")
    return edit_from(EditStore(sweep).read()[0], sweep.components, str(folder), values_of(sweep))


def record_of(edit: Edit) -> dict[str, Any]:
    """What ``edit.json`` says; ``components`` is spelt out for people and other programs."""
    spelt = []
    for i, component_id in enumerate(edit.component_ids):
        component = edit.components[component_id]
        slices = [dict(zip(("parameter", "axis", "start", "size"), each, strict=True)) for each in component.slices]
        score = None if edit.scores is None else edit.scores[i]
        spelt.append({"component_id": component_id, "name": component.name, "score": score, "slices": slices})
    left_out = ("components", "component_ids", "scores", "storage", "values")
    values = {entry.name: _plain(getattr(edit, entry.name)) for entry in fields(edit) if entry.name not in left_out}
    return {**values, "components": spelt}


def edit_from(
    record: Mapping[str, Any], components: ComponentIndex, storage: str, values: Values | None = None
) -> Edit:
    """The inverse of ``record_of``, whose types ``EditStore.read`` has checked."""
    spelt, pair, each = record["components"], record["paired_correlation"], record["each"]
    scores = [entry["score"] for entry in spelt]
    selected, measured = record["selected"].items(), record["measured"].items()
    return Edit(
        **{name: record[name] for name in _AS_IT_IS},
        read=tuple(record.get("read", ())),
        targets=tuple(record["targets"]),
        references=tuple(record["references"]),
        component_ids=tuple(entry["component_id"] for entry in spelt),
        scores=None if None in scores else tuple(scores),
        unablated=_numbers(record["unablated"]),
        selected={name: Selected(of["num_components"], _numbers(of["values"])) for name, of in selected},
        measured={
            name: Measured(of["num_examples"], _numbers(of["before"]), _numbers(of["after"])) for name, of in measured
        },
        paired_correlation=None if pair is None else (_nan(pair[0]), _nan(pair[1])),
        each=None if each is None else _numbers(each),
        components=components,
        storage=storage,
        values=values,
    )


def _plain(value: Any) -> Any:
    """As JSON has it; NaN is null."""
    if isinstance(value, Measured | Selected):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: _nan(value) for name, value in values.items()}


def _nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)
