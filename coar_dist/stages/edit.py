"""The edit stage: which components to ablate for what is wanted, how many, and what that changes.

Targets and references are explained examples: their attributions select components. How many is chosen on one part of
the held-out examples and measured on the other; both look at the same sweep of margins, which the fast engine runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import safetensors.torch
from numpy.typing import NDArray
from rich.console import Console

from coar_dist.config.schema import ALL, Config, EditConfig, ExampleGroup, kept_groups
from coar_dist.console.saying import say
from coar_dist.editing.criterion import describe, sizes
from coar_dist.editing.edit import Edit, Measured, weights_fingerprint
from coar_dist.editing.edit_each import check_wrong, fix_each, sweep_name
from coar_dist.editing.groups import check_disjoint, members, without_draws
from coar_dist.editing.held_out import HeldOut, Ids, measured_task
from coar_dist.editing.one_edit import choose_sizes
from coar_dist.editing.plain import plain_outputs
from coar_dist.editing.selections import Selector
from coar_dist.editing.sweep import Sweep
from coar_dist.errors import ConfigError, DamagedFileError, MissingWorkError, RunMismatchError, RunNotFoundError
from coar_dist.report.edits import draw_edit_curves, print_edit
from coar_dist.report.figures import save_figure
from coar_dist.stages.ablate import collect, identity_of, trained_weights
from coar_dist.store.edits import EDITS, MEASURE, EditStore
from coar_dist.store.examples import ExampleTable
from coar_dist.store.lock import Hold
from coar_dist.store.margins import MarginStore
from coar_dist.store.reader import RunReader
from coar_dist.store.record import fingerprint_of
from coar_dist.store.run_directory import RunDesign, RunDirectory
from coar_dist.store.storage import LocalStorage, Storage, storage_at
from coar_dist.tasks.build import build_examples, build_task
from coar_dist.tasks.checkpoints import state_to_save
from coar_dist.tasks.examples.source import SOURCE_ID
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import EXCERPT, ExampleSet, Task


def edit_stage(
    config: Config,
    edit: EditConfig,
    run: RunDirectory,
    console: Console,
    task: Task | None,
    held_out: ExampleSet | None,
    hold: Hold,
) -> None:
    """Make the edit that ``config.edit`` asks for, where it is not there yet.

    Args:
        config: the whole configuration.
        edit: its ``edit``.
        run: with attributions.
        console: where progress and results are printed.
        task: what the run explains; None builds it from ``config.task``.
        held_out: examples to choose and to measure on, in the place of ``edit.examples``.
        hold: of the run directory.

    Raises:
        ConfigError: a group is empty, groups overlap, more components than there are, ...
        RunMismatchError: the model is not the one that the run explains.
        MissingWorkError: there are no attributions.
    """
    stored = {key: run.identity[f"ablation.{key}"] for key in ("precision", "margins_dtype", "examples_per_block")}
    config = replace(config, ablation=replace(config.ablation, **stored))  # as the run was collected
    if held_out is not None and (edit.each or edit.examples is not None):
        other = "edit.each, which looks at the run's own examples" if edit.each else "edit.examples, which names others"
        raise ConfigError(f"held_out has no effect beside {other}. Leave one of them out.")
    selector = Selector.of(RunReader(run), edit)
    columns = ExampleTable(run).read()
    targets = members(edit.target, columns, "edit.target")
    is_own = edit.examples is None and held_out is None
    references = _references(edit, columns, targets, is_own)
    there = run.components.num_components
    max_components = edit.max_components or max(there // 20, 1)
    if max_components > there:
        raise ConfigError(f"edit.max_components={max_components}: the model has {there} components. Ask for fewer.")
    edit = replace(edit, max_components=max_components)
    measured = measured_task(_task(config, edit, run, task, held_out), edit)
    measured.check()
    storage = storage_at(f"{run.storage.location.rstrip('/')}/{EDITS}/{edit.name}")
    settings = fingerprint_of(
        {
            "edit": _named(asdict(edit)),
            "run": run.fingerprint,
            "attributions": selector.fingerprint,
            "held_out": measured.identity(),
            "columns": [_digest(columns), _digest(measured.examples.columns)],
        }
    )
    found = _made_with(storage, settings, console)
    if found is not None:
        say(console, "edit", f"{storage} is there already.")
        print_edit(found, console)
        return
    used = _used(config, edit, columns, references if edit.each else np.union1d(targets, references), is_own, measured)
    examples = HeldOut.of(measured, edit, used)
    if edit.each:
        check_wrong(examples, targets)
    made = _Making(config, edit, run, console, hold, selector, targets, references, examples, storage).make()
    EditStore(RunDirectory.open(storage)).write(made.record(), settings)
    print_edit(made, console)
    names = [name for name in storage.files() if name.startswith(("edit", "curve", "each"))]
    say(console, "edit", f"{storage}: {', '.join(sorted(names))}.")


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


def _task(config: Config, edit: EditConfig, run: RunDirectory, task: Task | None, held_out: ExampleSet | None) -> Task:
    """The run's model with the held-out examples."""
    if task is None:
        wanted = config.task if edit.examples is None else replace(config.task, examples=edit.examples)
        key = "task.examples" if edit.examples is None else "edit.examples"
        task = build_task(wanted, trained_weights(config, run.storage), key)
    elif held_out is not None:
        task = replace(task, examples=held_out)
    elif edit.examples is not None:
        task = replace(task, examples=build_examples(edit.examples, "edit.examples"))
    identity = task.identity()
    own_examples = ("examples",) if edit.examples is None and held_out is None else ()
    for key in ("model.weights", "model.architecture", *own_examples):
        if identity[key] != run.identity.get(key):
            raise RunMismatchError(
                f"{key} is {identity[key]!r}, but {run.storage} explains {run.identity.get(key)!r}. An edit is of the "
                f"model that its attributions are of: undo the change, or use another run.dir."
            )
    return task


def _used(
    config: Config, edit: EditConfig, columns: Mapping[str, NDArray[Any]], ids: Ids, is_own: bool, measured: Task
) -> Ids:
    """The held-out examples that are targets or references, or another form of one."""
    if is_own:
        return ids
    explained, held_out = config.task.examples, edit.examples
    same = held_out is not None and (held_out.source, held_out.arguments) == (explained.source, explained.arguments)
    there = measured.examples.columns
    if same and SOURCE_ID in columns and SOURCE_ID in there:
        return np.asarray(np.flatnonzero(np.isin(there[SOURCE_ID], columns[SOURCE_ID][ids])))
    return np.array([], dtype=np.int64)


def _made_with(storage: Storage, settings: str, console: Console) -> Edit | None:
    """The edit that is there, if it is of these settings."""
    try:
        run = RunDirectory.open(storage)
        record, made_with = EditStore(run).read()
    except (RunNotFoundError, MissingWorkError):
        return None
    except DamagedFileError as error:
        say(console, "edit", f"[yellow]{error}[/yellow]")
        return None
    if made_with == settings:
        return Edit.of_record(record, run.components, str(storage))
    text = f"{storage} holds an edit of other settings or attributions, which this one replaces (edit.name keeps both)."
    say(console, "edit", f"[yellow]{text}[/yellow]")
    return None


class _Making:
    """What it takes to make an edit, once all input is checked."""

    def __init__(
        self,
        config: Config,
        edit: EditConfig,
        run: RunDirectory,
        console: Console,
        hold: Hold,
        selector: Selector,
        targets: Ids,
        references: Ids,
        held_out: HeldOut,
        storage: Storage,
    ) -> None:
        self._config = replace(config, budget=None, baselines=[])
        self._edit, self._run, self._console, self._hold = edit, run, console, hold
        self._selector, self._targets, self._references = selector, targets, references
        self._held_out = held_out
        assert edit.max_components is not None
        self._max_components = edit.max_components
        if isinstance(storage, LocalStorage):
            storage.create()
        identity = identity_of(held_out.task, config, run.storage)
        try:
            self._sweep_run = RunDirectory.create(storage, identity, run.components, len(held_out.outputs))
        except RunMismatchError as error:
            raise RunMismatchError(f"{error} (Or another edit.name.)") from error

    def make(self) -> Edit:
        """The edit, with all its files but ``edit.json``."""
        return self._each() if self._edit.each else self._one()

    def _one(self) -> Edit:
        held_out, edit, model = self._held_out, self._edit, self._held_out.task.model
        orders = self._selector.orders(model, self._targets, self._references, self._max_components)
        sweep = Sweep.of({name: found.order for name, found in orders.items()}, sizes(self._max_components))
        chosen = choose_sizes(held_out, edit, sweep, self._margins(sweep))
        store = EditStore(self._sweep_run)
        store.write_curve(chosen.curve)
        main = orders[self._selector.main]
        component_ids = main.order[: chosen.selected[self._selector.main].num_components]
        criterion = describe(edit.improve, kept_groups(edit), held_out.metric, edit.direction)
        made = self._edit_of(criterion, unablated=chosen.unablated, selected=chosen.selected)
        made = replace(
            made,
            component_ids=tuple(component_ids.tolist()),
            scores=None if main.scores is None else tuple(main.scores[component_ids].tolist()),
        )
        before = after = held_out.outputs
        if component_ids.size:
            edited = made.edited(model)
            content = safetensors.torch.save(state_to_save(edited), {"edit": edit.name, "run": self._run.fingerprint})
            store.write_weights(content)
            edited.load_state_dict(safetensors.torch.load(content))  # what is measured is what is exported
            after, _ = plain_outputs(replace(held_out.task, model=edited))
        parts = {group: held_out.part(group, MEASURE) for group in held_out.groups}
        measured = {
            group: Measured(len(ids), held_out.metrics(before[ids]), held_out.metrics(after[ids]))
            for group, ids in parts.items()
            if ids.size
        }
        if edit.pairs is not None:
            forms = edit.pairs, edit.improve[0]
            pair = held_out.paired_correlation(*forms, before), held_out.paired_correlation(*forms, after)
            made = replace(made, paired_correlation=pair)
        made = replace(made, measured=measured)
        save_figure(self._sweep_run.storage, "curve", draw_edit_curves(made, chosen.curve))
        return made

    def _each(self) -> Edit:
        held_out, selections, targets = self._held_out, self._selector.names, self._targets
        orders = {
            sweep_name(selection, int(target)): found.order[: self._max_components]
            for target in targets
            for selection, found in self._selector.orders(
                held_out.task.model, np.array([target]), self._references, self._max_components
            ).items()
        }
        sweep = Sweep.of(orders, sizes(self._max_components))
        limit = kept_groups(self._edit)[ALL]
        fixes = fix_each(held_out, targets, selections, sweep, self._margins(sweep), limit)
        main = self._selector.main
        found = fixes[main].columns
        component_ids = [
            orders[sweep_name(main, int(target))][:size].tolist()
            for target, size in zip(targets, found["num_components"], strict=True)
        ]
        examples = {name: held_out.columns[name][targets] for name in ("label", "prediction")}
        EditStore(self._sweep_run).write_each({"example_id": targets, **examples, **found}, component_ids)
        selected = {selection: fixes[selection].summary() for selection in selections}
        criterion = f"the target right at the least loss of accuracy, at most {limit:g}"
        made = self._edit_of(criterion, unablated={}, selected=selected)
        return replace(made, each={"num_targets": float(len(targets)), **selected[main].values})

    def _margins(self, sweep: Sweep) -> MarginStore:
        """The margins of a sweep, computed where they are missing."""
        components, run = self._run.components, self._sweep_run
        run.set_designs({sweep.name: RunDesign("edit", sweep.design(components.num_components))})
        collect(self._config, run, self._console, self._held_out.task, components, self._hold, stage="edit")
        return run.margins(sweep.name)

    def _edit_of(self, criterion: str, **results: Any) -> Edit:
        """An edit without components and measurements yet."""
        return Edit(
            name=self._edit.name,
            run=self._run.fingerprint,
            model_weights=weights_fingerprint(self._held_out.task.model),
            selection=self._selector.main,
            direction=self._edit.direction,
            targets=tuple(self._targets.tolist()),
            references=tuple(self._references.tolist()),
            component_ids=(),
            scores=None,
            max_components=self._max_components,
            metric=self._held_out.metric,
            criterion=criterion,
            measured={},
            paired_correlation=None,
            each=None,
            components=self._run.components,
            storage=str(self._sweep_run.storage),
            **results,
        )


def _named(value: Any) -> Any:
    """A configuration as JSON has it: a function of the user's own is its name and source."""
    if isinstance(value, dict):
        return {name: _named(item) for name, item in value.items()}
    return output_function(value).identity() if callable(value) else value


def _digest(columns: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over columns of examples; runs from before there were excerpts keep their edits."""
    digest = hashlib.sha256()
    for name, values in sorted((name, values) for name, values in columns.items() if name != EXCERPT):
        digest.update(f"{name} {values.dtype} {values.shape};".encode() + np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
