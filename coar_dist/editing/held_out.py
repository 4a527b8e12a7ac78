"""The held-out examples of an edit: which groups there are, and which part chooses and which measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.config.schema import ALL, OTHERS, TARGETS, EditConfig, ExampleGroup, kept_groups
from coar_dist.editing.criterion import paired_correlation, per_example, split
from coar_dist.editing.groups import members, without_draws
from coar_dist.errors import ConfigError
from coar_dist.store.edits import CHOICE, MEASURE
from coar_dist.tasks.outputs import OUTPUT_FUNCTIONS
from coar_dist.tasks.task import Task

Ids = NDArray[np.int64]
_CLASS_OUTPUTS = ("margin", "logsumexp_margin", "logit", "loss")
"""Output functions of class labels: the margin says whether a prediction is right."""
_RIGHT_IF_POSITIVE = (*_CLASS_OUTPUTS, "answer_token_margin", "answer_probability_difference")


@dataclass(frozen=True)
class HeldOut:
    """Held-out examples, with the unedited model.

    Attributes:
        task: model, these examples, and the output function that is measured.
        metric: ``accuracy`` or ``output``, what the criterion looks at.
        outputs: (num_examples,) float32 of the unedited model as it is.
        columns: as in ``examples.parquet``, (num_examples,) each.
        groups: example ids, ascending, by name; none of targets or references, but with ``on_targets``.
        is_choice: (num_examples,) bool, True where the number of components is chosen, False where it is measured.
        on_targets: whether ``targets`` are the targets themselves, on which the number is chosen and measured alike.
    """

    task: Task
    metric: str
    outputs: NDArray[np.float32]
    columns: Mapping[str, NDArray[Any]]
    groups: Mapping[str, Ids]
    is_choice: NDArray[np.bool_]
    on_targets: bool = False

    @classmethod
    def of(
        cls,
        task: Task,
        outputs: NDArray[np.float32],
        predictions: Ids | None,
        edit: EditConfig,
        used: Ids,
        targets: Ids | None = None,
    ) -> HeldOut:
        """Find the groups.

        Args:
            task: of ``measured_task``.
            outputs, predictions: of the unedited model, as of ``plain_outputs``.
            edit: the settings.
            used: ids of those examples that are targets or references, which are neither chosen nor measured on.
            targets: ids of the targets where nothing but their ids says what they are, so that no held-out example is
                like them: they are their own group.

        Raises:
            ConfigError: nothing is left, or a group that the criterion looks at has no example in one of the parts.
        """
        columns = _columns(task, outputs, predictions)
        candidates = np.setdiff1d(np.arange(len(outputs)), used)
        if not candidates.size:
            raise ConfigError(
                "edit.reference: targets and references are all examples of the run, so none are left to choose and to "
                "measure on. Set edit.examples, or edit.reference.sample."
            )
        groups = {ALL: candidates, **_groups(edit, columns, candidates)}
        on_targets = targets is not None and TARGETS not in groups
        if targets is not None and on_targets:
            groups = {ALL: groups.pop(ALL), TARGETS: targets, **groups}
        pairs = None
        if edit.pairs is not None:
            if edit.pairs not in columns:
                raise ConfigError(
                    f"edit.pairs={edit.pairs!r}: the held-out examples have no such column, but {', '.join(columns)}."
                )
            pairs = columns[edit.pairs]
        is_choice = split(len(outputs), edit.choice_fraction, edit.seed, pairs)
        metric = metric_of(edit, task.output_function.name)
        held_out = cls(task, metric, outputs, columns, groups, is_choice, on_targets)
        for key, names in (("improve", [] if edit.each else edit.improve), ("keep", list(kept_groups(edit)))):
            for name in names:
                held_out._check(key, name)
        return held_out

    def part(self, group: str, part: str) -> Ids:
        """The ids of a group in ``choice`` or ``measure``."""
        ids = self.groups[group]
        if group == TARGETS and self.on_targets:
            return ids
        return np.asarray(ids[self.is_choice[ids] == (part == CHOICE)])

    @property
    def note(self) -> str:
        """What the criterion has to say of its targets."""
        return " (chosen and measured on the targets themselves)" if self.on_targets else ""

    def metrics(self, outputs: NDArray[np.float32]) -> dict[str, float]:
        """``accuracy``, where outputs tell it, and ``output``, means over some examples."""
        has_accuracy = self.task.output_function.name in _RIGHT_IF_POSITIVE
        names = ("accuracy", "output") if has_accuracy else ("output",)
        return {name: float(per_example(outputs, name).mean()) for name in names}

    def paired_correlation(self, pairs: str, group: str, outputs: NDArray[np.float32]) -> float:
        """Correlation of the outputs of both forms, of which ``group`` holds one, where the edit is measured."""
        ids = self.part(ALL, MEASURE)
        return paired_correlation(outputs[ids], self.columns[pairs][ids], np.isin(ids, self.groups[group]))

    def _check(self, key: str, name: str) -> None:
        if name not in self.groups:
            raise ConfigError(
                f"edit.{key}: there is no group {name!r} among the held-out examples, as edit.target has no condition "
                f"but ids and sample, which are of the run's. Leave out what is held out, and the edit is chosen and "
                f"measured on the targets themselves; or name a group of edit.groups."
            )
        num_choice, num_measure = (len(self.part(name, part)) for part in (CHOICE, MEASURE))
        if not num_choice or not num_measure:
            raise ConfigError(
                f"edit.{key}: of the group {name!r} there are {num_choice} held-out examples to choose on and "
                f"{num_measure} to measure on: targets and references are not among them. Take fewer "
                f"(edit.target.sample, edit.reference.sample), more held-out examples (edit.examples), or another "
                f"edit.choice_fraction."
            )


def measured_task(task: Task, edit: EditConfig) -> Task:
    """``task`` with an output function that says what the edit's metric needs.

    Raises:
        ConfigError: the metric is accuracy, and outputs do not say whether a prediction is right.
    """
    name = task.output_function.name
    if metric_of(edit, name) == "output":
        return task
    if name not in _RIGHT_IF_POSITIVE:
        raise ConfigError(
            f"edit.metric=accuracy: values of task.output_function={name!r} do not say whether a prediction is right. "
            f"Use edit.metric=output."
        )
    return replace(task, output_function=OUTPUT_FUNCTIONS["margin"]) if name in _CLASS_OUTPUTS else task


def metric_of(edit: EditConfig, output_function: str) -> str:
    """What the criterion looks at, for outputs of a function of that name."""
    return edit.metric or ("accuracy" if output_function in _RIGHT_IF_POSITIVE else "output")


def _groups(edit: EditConfig, columns: Mapping[str, NDArray[Any]], candidates: Ids) -> dict[str, Ids]:
    groups: dict[str, Ids] = {OTHERS: candidates}
    conditions = without_draws(edit.target)
    if conditions != ExampleGroup():
        groups[TARGETS] = np.intersect1d(members(conditions, columns, "edit.target of held-out examples"), candidates)
        groups[OTHERS] = np.setdiff1d(candidates, groups[TARGETS])
    for name, group in edit.groups.items():
        groups[name] = np.intersect1d(members(group, columns, f"edit.groups.{name}"), candidates)
    return {name: groups[name] for name in dict.fromkeys([TARGETS, OTHERS, *edit.groups]) if name in groups}


def _columns(task: Task, outputs: NDArray[np.float32], predictions: Ids | None) -> dict[str, NDArray[Any]]:
    """As ``examples.parquet`` has them."""
    unknown = np.full(len(outputs), np.nan)
    labels = unknown if predictions is None else task.examples.targets.cpu().numpy().astype(np.int64)
    return {
        "example_id": np.arange(len(outputs)),
        "label": labels,
        "prediction": unknown if predictions is None else predictions,
        "margin": outputs,
        **task.examples.columns,
    }
