"""An open run: everything that can be read from it, and the steps that go on with it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from coar_dist.components.masks import Off, mask_without
from coar_dist.config.methods import GRADIENT_RIDGE
from coar_dist.config.python_arguments import part_of, takes
from coar_dist.config.python_words import OF_ATTRIBUTE, OF_EDIT, in_python_words
from coar_dist.config.schema import (
    Config,
    EditConfig,
    EvaluationConfig,
    RegressionConfig,
    RunConfig,
)
from coar_dist.config.settings import ClusterSettings, cluster_of, settings_of
from coar_dist.console.cell import console_of
from coar_dist.errors import ConfigError, MissingWorkError
from coar_dist.result.example_columns import ExampleColumns
from coar_dist.result.former_names import FormerNames
from coar_dist.result.of_model import MARGIN, OfModel
from coar_dist.result.result import Result
from coar_dist.store.methods import fitted_methods
from coar_dist.store.reader import RunReader
from coar_dist.store.run_directory import GRADIENT_DESIGN, TRAIN_DESIGN, RunDirectory

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import Console
    from torch import Tensor, nn

    from coar_dist.editing.edit import Edit
    from coar_dist.editing.groups import Examples


class Run(RunReader, OfModel, FormerNames):
    """A run: the result of all its examples, by its best method, and what can be done with it.

    ``run.values`` and the other parts of a ``Result`` are read when they are first used. Where they are not of the best
    method, ``run.by_method(...)`` has those of another.

    Example:
        >>> run = coar_dist.open_run(run.path)
        >>> run.values.shape, run.names[:2]
        ((7, 12), ['conv1[0]', 'conv1[1]'])
    """

    def __init__(self, directory: RunDirectory) -> None:
        RunReader.__init__(self, directory)
        Result.__init__(self, self, np.arange(directory.num_examples), None)

    @property
    def path(self) -> str:
        """Where the run lies: a folder, or an ``s3://`` or ``gs://`` URL."""
        return self.directory.storage.location

    @property
    def methods(self) -> list[str]:
        """The methods that have attributions of every example, the best first."""
        return fitted_methods(self.directory)

    @override
    def examples(self, example_ids: Sequence[int] | None = None) -> ExampleColumns:
        return ExampleColumns(RunReader.examples(self, example_ids), self.class_names)

    @override
    def predict(
        self,
        masks: NDArray[np.bool_] | None = None,
        example_ids: Sequence[int] | None = None,
        method: str | None = None,
        *,
        off: Off | None = None,
    ) -> NDArray[np.float64]:
        """What the attributions predict with some components ablated (Shah et al. 2024, equation 2).

        Args:
            masks: (num_masks, num_components) bool, True = kept; or
            off: the ablated components of one mask: ids, names, or shell patterns of names.
            example_ids: which examples; None for all.
            method: one of ``methods``; None is the best.

        Returns:
            (num_examples,) float64 with ``off``, (num_masks, num_examples) float64 with ``masks``.

        Raises:
            ConfigError: there is no such component, or neither or both of ``masks`` and ``off`` are given.

        Example:
            >>> run.predict(off=["conv1[0]", "conv2*"]).shape, run.predict(np.ones((5, 12), bool)).shape
            ((7,), (5, 7))
        """
        if (masks is None) == (off is None):
            raise ConfigError("predict: give off=..., the ablated components, or masks.")
        if off is not None:
            mask = mask_without(self.components, off)
            return RunReader.predict(self, mask[None], example_ids, method).reshape(-1)
        assert masks is not None
        return RunReader.predict(self, masks, example_ids, method)

    @in_python_words(OF_ATTRIBUTE)
    def ablate(
        self,
        model: nn.Module | None = None,
        inputs: Any = None,
        targets: Any = None,
        *,
        off: Off,
        output_function: str | Callable[[Any, Tensor], Tensor] = MARGIN,
    ) -> NDArray[np.float32]:
        """The true outputs with some components ablated as in the run: what ``predict(off=...)`` predicts.

        Args:
            model: what the run explains; it is not changed. None: what ``attribute`` was given in this process.
            inputs: its examples, in any form that ``attribute`` takes; None as ``model``.
            targets: what the examples' outputs are compared with; None as in ``attribute``.
            off: the ablated components: ids, names, or shell patterns of names.
            output_function: of ``model``'s outputs; given with ``inputs``.

        Returns:
            (num_examples,) float32, computed in this process, on the device of the model.

        Raises:
            RunMismatchError: model, examples or output function are not those of the run.
            ConfigError: there is no such component, or what takes the place of ablated components differs from example
                to example.

        Example:
            >>> true, predicted = run.ablate(model, images, labels, off=["conv1*"]), run.predict(off=["conv1*"])
            >>> true.shape, predicted.shape
            ((7,), (7,))
        """
        from coar_dist.result.made import true_outputs

        task = self._task_of("ablate", model, inputs, targets, None, output_function)
        return true_outputs(self.directory, task, mask_without(self.components, off))

    @in_python_words(OF_ATTRIBUTE)
    def evaluate(self, console: Console | None = None, *, progress: bool = True) -> DataFrame:
        """How well every method predicts, on held-out masks of every ablation fraction.

        Where the run has no held-out masks, those that ``attribute`` collects by default are collected first.

        Args:
            progress, console: whether and where progress is printed; None is standard output.

        Returns:
            A data frame with one row per ``method`` (for people: ``label``) and ``ablation_fraction``: ``masks``, how
            many the attributions are of; ``correlation``, the mean over examples, with its 95% interval over examples
            ``correlation_low`` to ``correlation_high``, null for fewer than 20; ``spearman``, the mean; ``r2``,
            ``slope`` and ``intercept``, medians; ``num_undefined``, examples without a correlation. The rows of the
            method ``ceiling`` are the best that a linear model can reach, their interval is over masks.

        Raises:
            MissingWorkError: there are no held-out masks, and the run was opened from its files, without a model.
            DamagedFileError: a table is damaged.

        Example:
            >>> table = run.evaluate().pivot(index="label", columns="ablation_fraction", values="correlation")
            >>> table.shape  # COAR, leave-one-out and the ceiling
            (3, 2)
        """
        from coar_dist.report.notebook import report_frame
        from coar_dist.stages.pipeline import run_stages

        with contextlib.suppress(MissingWorkError):
            return report_frame(self.directory)
        config = Config(["evaluate"], run=RunConfig(self.path), evaluation=EvaluationConfig(curve_shares=[]))
        if self.directory.held_out:
            run_stages(config, console_of(console, progress))
        elif self._made is None:
            raise MissingWorkError(
                f"{self.path} has no held-out masks to evaluate on, and a run that was opened from its files has no "
                f"model to collect them with. Call attribute once more with the run's arguments: it collects them."
            )
        else:
            trained = self.directory.design(TRAIN_DESIGN).ablation_fraction
            self._made.collect_held_out(trained, console_of(console, progress))
        self.directory = RunDirectory.open(self.directory.storage)
        return report_frame(self.directory)

    @in_python_words(OF_ATTRIBUTE)
    def refit(
        self,
        regression: RegressionConfig | Mapping[str, Any] | str = "ridge",
        *,
        progress: bool = True,
        console: Console | None = None,
    ) -> Result:
        """Fit attributions once more from what is collected; those of other methods stay beside them.

        Args:
            regression: ``"ridge"``, ``"lasso"``, or a ``RegressionConfig`` or its options, e.g.
                ``{"method": "lasso", "l1_ratio": 0.5}``.
            progress, console: whether and where progress is printed; None is standard output.

        Returns:
            The attributions of all examples by the method that was fitted.

        Raises:
            MissingWorkError: margins are missing, or the run has only masks with gradients, which lasso does not use.
            ConfigError: an option is unknown, or has no effect.

        Example:
            >>> run.refit("lasso").top(3)  # doctest: +SKIP
        """
        from coar_dist.regression.fit import attribution_name
        from coar_dist.stages.pipeline import run_stages

        chosen = settings_of(RegressionConfig, regression, "regression", "method")
        if chosen.method != "ridge" and not self.directory.design(TRAIN_DESIGN).num_masks:
            raise MissingWorkError(
                f"regression.method={chosen.method}: the run has masks with gradients alone, which it does not use."
            )
        run_stages(Config(["fit"], run=RunConfig(self.path), regression=chosen), console_of(console, progress))
        self._read.clear()
        has_gradients = chosen.method == "ridge" and GRADIENT_DESIGN in self.directory.designs
        return self.by_method(GRADIENT_RIDGE if has_gradients else attribution_name(chosen))

    def write_report(self, console: Console | None = None, *, progress: bool = True) -> str:
        """Write the page ``report/index.html``, and its figures beside it; what is not evaluated yet is, as by
        ``evaluate``.

        Args:
            progress, console: whether and where progress is printed; None is standard output.

        Returns:
            Where the page lies.

        Raises:
            MissingWorkError: as ``evaluate``.
            StorageError: it cannot be written.

        Example:
            >>> webbrowser.open(run.write_report())  # doctest: +SKIP
        """
        from coar_dist.report.page import PAGE
        from coar_dist.report.page.render import write_page
        from coar_dist.report.summary import summarise

        self.evaluate(console, progress=progress)
        write_page(self.directory, summarise(self.directory))
        return self.directory.storage.where(PAGE)

    def _repr_html_(self) -> str:
        from coar_dist.report.notebook import html_of

        return html_of(self)

    @in_python_words(OF_EDIT)
    @takes(settings=part_of(EditConfig))
    def edit(
        self,
        target: Examples,
        reference: Examples | None = None,
        direction: str = "raise",
        max_components: int | None = None,
        *,
        model: nn.Module | None = None,
        inputs: Any = None,
        targets: Any = None,
        columns: Mapping[str, Any] | None = None,
        output_function: str | Callable[[Any, Tensor], Tensor] = MARGIN,
        held_out: Any = None,
        settings: EditConfig | None = None,
        cluster: ClusterSettings | None = None,
        progress: bool = True,
        console: Console | None = None,
        **options: Any,
    ) -> Edit:
        """COAR-Edit (Shah et al. 2024, section 5): ablate the components that lower (or raise) the outputs of targets
        and not those of references, as many as a criterion on held-out examples says.

        Calling it again with the same arguments continues, or finds all done.

        Args:
            target: the examples whose outputs are to change: example ids, conditions as of ``ExampleGroup``, e.g.
                ``{"classes": [3], "sample": 20}``, ``{"where": {"group": 2}}``, ``{"correct": False}``, or a function
                of ``run.examples()`` that gives (num_examples,) bool.
            reference: those whose outputs are to stay; None: those that do not meet the conditions of ``target``, half
                of them without ``held_out``, so that the others measure the edit.
            direction: ``raise`` or ``lower``.
            max_components: ablated at most; None: a twentieth of all.
            model: what the run explains; None: what ``attribute`` was given in this process.
            inputs, targets: its examples, as of ``attribute``; given with ``model``.
            columns: further values of the examples; given with ``model``.
            output_function: of ``model``'s outputs; given with ``model``.
            held_out: an ``ExampleSet``, Dataset or DataLoader on which the number of components is chosen and the edit
                is measured; None: the run's own examples that are neither targets nor references.
            settings: everything else, as an ``EditConfig``; what is named here replaces its values.
            cluster: as of ``attribute``.
            progress, console: whether and where progress is printed; None is standard output.
            options: fields of ``EditConfig``: ``name``, ``method``, ``compare``, ``groups``, ``improve``, ``keep``, ...

        Returns:
            The edit: ``edit.applied(model)``, ``edit.measured``.

        Raises:
            CoarDistError: naming what is wrong and the way out.

        Example:
            >>> edit = run.edit({"classes": [3], "sample": 20}, direction="lower", max_components=10)  # doctest: +SKIP
            >>> edit.measured["targets"].after["accuracy"]  # doctest: +SKIP
            0.25
        """
        from coar_dist.editing.edit_record import load_edit
        from coar_dist.editing.groups import edit_of
        from coar_dist.stages.pipeline import run_stages
        from coar_dist.store.edits import EDITS
        from coar_dist.tasks.build import as_example_set

        task = self._task_of("edit", model, inputs, targets, columns, output_function)
        options |= {"direction": direction, "target": target}
        options |= {} if reference is None else {"reference": reference}
        options |= {} if max_components is None else {"max_components": max_components}
        edit = edit_of(EditConfig() if settings is None else settings, options)
        location = self.directory.storage.location
        config = Config(stages=["edit"], run=RunConfig(location), edit=edit, cluster=cluster_of(cluster))
        run_stages(config, console_of(console, progress), task, held_out=as_example_set(task.model, held_out))
        return load_edit(f"{location.rstrip('/')}/{EDITS}/{edit.name}")
