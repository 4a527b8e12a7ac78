"""What an edit is made from: whose outputs are to change and whose to stay, what selects components, what measures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.config.schema import MAGNITUDE, EditConfig, ExampleGroup, ExamplesConfig
from coar_dist.editing.edit import values_of
from coar_dist.editing.edit_each import check_wrong
from coar_dist.editing.groups import check_disjoint, members, without_draws
from coar_dist.editing.held_out import HeldOut, Ids, measured_task
from coar_dist.editing.model_work import Unedited
from coar_dist.editing.selections import Selector
from coar_dist.errors import ConfigError, RunMismatchError, shortened
from coar_dist.stages.inputs import examples_of, task_on, with_weights
from coar_dist.stages.session import Session
from coar_dist.store.examples import ExampleTable
from coar_dist.store.reader import RunReader
from coar_dist.store.record import fingerprint_of
from coar_dist.store.run_directory import RunDirectory
from coar_dist.tasks.example_set import FOR_THE_EYE
from coar_dist.tasks.examples.source import SOURCE_ID
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task

_LEAST_SHARE = 20
"""Without ``edit.max_components`` one component in so many may be ablated."""


@dataclass(frozen=True)
class EditInputs:
    """The inputs of an edit, checked.

    Attributes:
        edit: the settings, with a number for ``max_components``.
        max_components: that number.
        run: with attributions.
        columns: of the run's examples, (num_examples,) each.
        selector: what selects components.
        targets: ids of the explained examples whose outputs are to change, ascending.
        references: ids of those whose outputs are to stay, ascending.
        measured: the model, the held-out examples, and the output function that is measured.
        explained: where the run's own examples come from.
        is_own: whether the held-out examples are the run's own.
    """

    edit: EditConfig
    max_components: int
    run: RunDirectory
    columns: Mapping[str, NDArray[Any]]
    selector: Selector
    targets: Ids
    references: Ids
    measured: Task
    explained: ExamplesConfig
    is_own: bool

    @classmethod
    def of(cls, session: Session, edit: EditConfig, run: RunDirectory) -> EditInputs:
        """Find them.

        Raises:
            ConfigError: a group is empty, groups overlap, more components than there are, ...
            RunMismatchError: the model is not the one that the run explains.
            MissingWorkError: there are no attributions.
        """
        if session.held_out is not None and (edit.each or edit.examples is not None):
            other = "edit.each, which looks at the run's own examples" if edit.each else "edit.examples"
            raise ConfigError(f"held_out has no effect beside {other}. Leave one of them out.")
        selector = Selector.of(RunReader(run), edit)
        columns = ExampleTable(run).read()
        targets = members(edit.target, columns, "edit.target")
        is_own = edit.examples is None and session.held_out is None
        references = _references(edit, columns, targets, is_own)
        there = run.components.num_components
        max_components = most_components(edit, there)
        if max_components > there:
            raise ConfigError(f"edit.max_components={max_components}: the model has {there} components. Ask for fewer.")
        edit = replace(edit, max_components=max_components)
        measured = measured_task(_task(session, edit, run), edit)
        explained = session.config.task.examples
        return cls(edit, max_components, run, columns, selector, targets, references, measured, explained, is_own)

    def fingerprint(self) -> str:
        """What the edit depends on: an edit of the same fingerprint need not be made again."""
        return fingerprint_of(
            {
                "edit": _named(asdict(self.edit)),
                "run": self.run.fingerprint,
                "attributions": self.selector.fingerprint,
                "held_out": self.measured.identity(),
                "columns": [_digest(self.columns), _digest(self.measured.examples.columns)],
            }
        )

    def unedited(self, session: Session) -> Unedited:
        """Run the unedited model on the held-out examples, where its weights are.

        Raises:
            TaskError, NonFiniteMarginError: it fails on them.
        """
        by_magnitude, has_values = MAGNITUDE in self.selector.names, values_of(self.run) is not None
        ask = partial(Unedited.of, self.measured, self.run.components, by_magnitude, has_values)
        return with_weights(session, self.measured.model, ask)

    def held_out(self, unedited: Unedited) -> HeldOut:
        """Find the groups of the held-out examples.

        Raises:
            ConfigError: nothing is left to choose or to measure on, or nothing is wrong that could be made right.
        """
        known_by_ids = self.is_own and not self.edit.each and not _has_conditions(self.edit.target)
        outputs, predictions = unedited.outputs, unedited.predictions
        targets = self.targets if known_by_ids else None
        held_out = HeldOut.of(self.measured, outputs, predictions, self.edit, self._used(), targets)
        if self.edit.each:
            check_wrong(held_out, self.targets)
        return held_out

    def _used(self) -> Ids:
        """The held-out examples that are targets or references, or another form of one."""
        ids = self.references if self.edit.each else np.union1d(self.targets, self.references)
        if self.is_own:
            return ids
        explained, held_out = self.explained, self.edit.examples
        same = held_out is not None and (held_out.source, held_out.arguments) == (explained.source, explained.arguments)
        there = self.measured.examples.columns
        if same and SOURCE_ID in self.columns and SOURCE_ID in there:
            return np.asarray(np.flatnonzero(np.isin(there[SOURCE_ID], self.columns[SOURCE_ID][ids])))
        return np.array([], dtype=np.int64)


def most_components(edit: EditConfig, num_components: int) -> int:
    """How many components the edit may ablate of a model's."""
    return edit.max_components or max(num_components // _LEAST_SHARE, 1)


def _references(edit: EditConfig, columns: Mapping[str, NDArray[Any]], targets: Ids, is_own: bool) -> Ids:
    """The references; without conditions of their own, those that do not meet the conditions of the targets: half of
    them where the others are to measure the edit."""
    among, reference = None, edit.reference
    if not _has_conditions(reference) and reference.ids is None and reference.matching is None:
        alike = members(without_draws(edit.target), columns, "edit.target") if _has_conditions(edit.target) else targets
        among = np.setdiff1d(columns["example_id"], np.union1d(targets, alike))
        if reference.sample is None and is_own and len(among) > 1:
            reference = replace(reference, sample=len(among) // 2)
    references = members(reference, columns, "edit.reference", targets, among)
    check_disjoint(targets, references)
    return references


def _has_conditions(group: ExampleGroup) -> bool:
    return bool(without_draws(group) != ExampleGroup())


def _task(session: Session, edit: EditConfig, run: RunDirectory) -> Task:
    """The run's model with the held-out examples."""
    task, held_out = session.task, session.held_out
    if task is None:
        task = task_on(session, "task.examples" if edit.examples is None else "edit.examples")
    elif held_out is not None:
        task = replace(task, examples=held_out)
    elif edit.examples is not None:
        task = replace(task, examples=examples_of(session, "edit.examples"))
    identity = task.identity()
    own_examples = ("examples",) if edit.examples is None and held_out is None else ()
    for key in ("model.weights", "model.architecture", *own_examples):
        if identity[key] != run.identity.get(key):
            raise RunMismatchError(
                shortened(f"{key} is {identity[key]!r}, but {run.storage} explains {run.identity.get(key)!r}. ")
                + "An edit is made for the model that its attributions explain: undo the change, or use another "
                "run.dir."
            )
    return task


def _named(value: Any) -> Any:
    """A configuration as JSON has it: a function of the user's own is its name and source."""
    if isinstance(value, dict):
        return {name: _named(item) for name, item in value.items()}
    return output_function(value).identity() if callable(value) else value


def _digest(columns: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over columns of examples, without their excerpts, which only the report shows."""
    digest = hashlib.sha256()
    for name, values in sorted((name, values) for name, values in columns.items() if name not in FOR_THE_EYE):
        digest.update(f"{name} {values.dtype} {values.shape};".encode() + np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
