"""An open run: everything that can be read from it, and the steps that go on with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from coar_dist.components.masks import Off, mask_without
from coar_dist.config.python_words import OF_EDIT, in_python_words
from coar_dist.config.schema import Config, EditConfig, RunConfig
from coar_dist.config.settings import ClusterSettings, cluster_of
from coar_dist.errors import ConfigError
from coar_dist.result.former_names import FormerNames
from coar_dist.result.result import Result
from coar_dist.store.methods import fitted_methods
from coar_dist.store.reader import RunReader
from coar_dist.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import Console
    from torch import Tensor, nn

    from coar_dist.editing.edit import Edit
    from coar_dist.editing.groups import Examples
    from coar_dist.tasks.task import ExampleSet, Inputs, Task


class Run(RunReader, FormerNames):
    """A run: the result of all its examples, by its best method, and what can be done with it.

    ``run.values`` and the other parts of a ``Result`` are read when they are first used. Where they are not of the best
    method, ``run.by_method(...)`` has those of another.

    Example:
        >>> run = coar_dist.open_run("runs/digits")  # doctest: +SKIP
        >>> run.values.shape, run.names[:2]  # doctest: +SKIP
        ((360, 240), ['conv1[0]', 'conv1[1]'])
    """

    _task: Task | None = None

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
            >>> run.predict(off=["L3H5", "L4*"])  # doctest: +SKIP
        """
        if (masks is None) == (off is None):
            raise ConfigError("predict: give off=..., the ablated components, or masks.")
        if off is not None:
            mask = mask_without(self.components, off)
            return RunReader.predict(self, mask[None], example_ids, method).reshape(-1)
        assert masks is not None
        return RunReader.predict(self, masks, example_ids, method)

    def report(self) -> DataFrame:
        """How well every method predicts, on held-out masks of every ablation fraction.

        Returns:
            A data frame with one row per ``method`` (for people: ``label``) and ``ablation_fraction``: ``masks``, how
            many the attributions are of; ``correlation``, the mean over examples, with its 95% bootstrap interval over
            examples ``correlation_low`` to ``correlation_high``; ``spearman``, the mean; ``r2``, ``slope`` and
            ``intercept``, medians; ``num_undefined``, examples without a correlation. The rows of the method
            ``ceiling`` are the best that a linear model can reach, their interval is over masks.

        Raises:
            MissingWorkError: the run has not been evaluated.
            DamagedFileError: a table is damaged.
        """
        from coar_dist.report.notebook import report_frame

        return report_frame(self.directory)

    def _repr_html_(self) -> str:
        from coar_dist.report.notebook import html_of

        return html_of(self)

    @in_python_words(OF_EDIT)
    def edit(
        self,
        target: Examples,
        reference: Examples | None = None,
        direction: str = "raise",
        max_components: int | None = None,
        *,
        model: nn.Module | None = None,
        inputs: Inputs | None = None,
        targets: Tensor | None = None,
        columns: Mapping[str, Any] | None = None,
        output_function: str | Callable[[Any, Tensor], Tensor] = "margin",
        held_out: ExampleSet | None = None,
        settings: EditConfig | None = None,
        cluster: ClusterSettings | None = None,
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
            inputs: its examples; given with ``model``.
            targets: what the examples' outputs are compared with; given with ``model``.
            columns: further values of the examples; given with ``model``.
            output_function: of ``model``'s outputs; given with ``model``.
            held_out: examples on which the number of components is chosen and the edit is measured; None: the run's own
                that are neither targets nor references.
            settings: everything else, as an ``EditConfig``; what is named here replaces its values.
            cluster: as of ``attribute``.
            console: where progress is printed; None is standard output.
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
        from coar_dist.editing.edit import load_edit
        from coar_dist.editing.groups import edit_of
        from coar_dist.stages.pipeline import run_stages
        from coar_dist.store.edits import EDITS
        from coar_dist.tasks.build import task_in_memory

        if model is not None and inputs is not None and targets is not None:
            task = task_in_memory(model, inputs, targets, columns, output_function)
        elif self._task is not None and model is None and inputs is None and targets is None:
            task = self._task
        else:
            raise ConfigError(
                "a run that was opened from its files has no model: give model, inputs and targets, the ones that it "
                "explains, to edit. (A run that attribute returned has them.)"
            )
        options |= {"direction": direction, "target": target}
        options |= {} if reference is None else {"reference": reference}
        options |= {} if max_components is None else {"max_components": max_components}
        edit = edit_of(settings or EditConfig(), options)
        location = self.directory.storage.location
        config = Config(stages=["edit"], run=RunConfig(location), edit=edit, cluster=cluster_of(cluster))
        run_stages(config, console, task, held_out=held_out)
        return load_edit(f"{location.rstrip('/')}/{EDITS}/{edit.name}")
