"""``attribute`` and ``Run.edit``: the pipeline on a model in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.config.python_words import OF_ATTRIBUTE, OF_EDIT, in_python_words
from coar_dist.config.schema import (
    CONSTANTS,
    PILOT_GRADIENT_MASKS,
    PILOT_MASKS,
    PLAN,
    AblationConfig,
    BaselineConfig,
    Config,
    DesignConfig,
    EditConfig,
    EvaluationConfig,
    GradientsConfig,
    RegressionConfig,
    RunConfig,
)
from coar_dist.config.settings import ClusterSettings, cluster_of
from coar_dist.errors import ConfigError
from coar_dist.store.locations import storage_at
from coar_dist.store.reader import RunReader
from coar_dist.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from rich.console import Console
    from torch import Tensor, nn

    from coar_dist.components.discovery import Components
    from coar_dist.designs.design import MaskDesign
    from coar_dist.editing.edit import Edit
    from coar_dist.editing.groups import Examples
    from coar_dist.tasks.task import ExampleSet, Inputs, Task


class Run(RunReader):
    """A run directory opened for reading, for notebooks, and for edits of its model."""

    _task: Task | None = None

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

        Example:
            >>> run.report().pivot(index="label", columns="ablation_fraction", values="correlation")  # doctest: +SKIP
        """
        from coar_dist.report.notebook import report_frame

        return report_frame(self.directory)

    def plot_correlation(self, methods: Sequence[str] | None = None) -> Figure:
        """Figure 1 of Shah et al. (2024) for this run: mean correlation by ablation fraction, a line per method.

        Args:
            methods: which lines; None for all.

        Returns:
            A figure of its own, unknown to pyplot: a notebook shows it once, ``figure.savefig`` writes it.

        Raises:
            ConfigError: the run has no such method.
            MissingWorkError, DamagedFileError: as ``report``.
        """
        from coar_dist.report.notebook import correlation_figure

        return correlation_figure(self.directory, methods)

    def top_components(
        self, example_ids: int | Sequence[int] | NDArray[Any], num: int = 10, method: str | None = None
    ) -> DataFrame:
        """The components that matter most to one example, or to several in the mean.

        Args:
            example_ids: one example, or several, whose mean weights are taken.
            num: components, those with the largest absolute weights.
            method: as in ``weights``.

        Returns:
            A data frame by ``rank`` from 1 on: ``component_id``, ``parameter``, ``module``, ``index`` within the
            parameter along its ``axis``, and ``weight``: how much the margin is higher with the component kept. For
            one example ``standard_error`` is the fit's, where it was asked for (``regression.standard_errors``); for
            several it is that of their mean, by their spread.

        Raises:
            IndexError: an example id is out of range.
            MissingWorkError: there are no attributions of this method; the message names those that there are.
            ConfigError: there is no example, or ``num`` is below 1.

        Example:
            >>> run.top_components(3, num=5)  # doctest: +SKIP
            >>> run.top_components(np.flatnonzero(run.examples()["label"] == 3))  # doctest: +SKIP
        """
        from coar_dist.report.notebook import component_frame

        return component_frame(self, example_ids, num, method or self.best_method)

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


def open_run(run_dir: str | Path) -> Run:
    """Open a run directory, a path or an ``s3://`` or ``gs://`` URL, for reading and for edits.

    Raises:
        RunNotFoundError: there is no run in it.

    Example:
        >>> run = open_run("runs/digits")  # doctest: +SKIP
        >>> run.weights(example_ids=[3, 5]).shape  # doctest: +SKIP
        (2, 240)
    """
    return Run(RunDirectory.open(storage_at(run_dir)))


@in_python_words(OF_ATTRIBUTE)
def attribute(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    *,
    run_dir: str | Path,
    components: Components = "auto",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    num_masks: int | None = None,
    num_gradient_masks: int | None = None,
    budget: float | None = None,
    ablation_fraction: float | None = None,
    seed: int = 0,
    design: str | Callable[[MaskDesign, int], NDArray[np.bool_]] = "bernoulli",
    ablation_value: str | Mapping[str, Tensor] | None = None,
    reference: Inputs | None = None,
    counterfactual: Inputs | None = None,
    output_function: str | Callable[[Any, Tensor], Tensor] = "margin",
    columns: Mapping[str, Any] | None = None,
    stages: Sequence[str] = ("ablate", "fit"),
    baselines: Sequence[str] = (),
    baseline_settings: BaselineConfig | None = None,
    evaluation: EvaluationConfig | None = None,
    ablation: AblationConfig | None = None,
    regression: RegressionConfig | None = None,
    cluster: ClusterSettings | None = None,
    tracking: Sequence[str] = (),
    previews: bool = True,
    console: Console | None = None,
) -> Run:
    """Attribute the outputs of any model to its components: the same pipeline as the command line.

    Calling it again with the same arguments continues an interrupted run, or finds all done.

    Args:
        model: any module; it is not changed.
        inputs: (num_examples, ...) tensor given to ``model`` as its first argument, or a dict of tensors given by
            keyword.
        targets: (num_examples, ...) what the output function compares with; int64 class labels for ``margin``.
        run_dir: the run directory, a path or an ``s3://`` or ``gs://`` URL; created if it is not there.
        components: a selector (``coar_dist.find_components`` lists what each finds), a ``ComponentRule``, a list of
            these, a ``ComponentIndex``, or a function of the model that gives one.
        include, exclude: shell patterns of names of components, or of parameters, that are taken and that are left out.
        num_masks: ablation masks; a later call with more extends the run. None is the configuration's default.
        num_gradient_masks: masks that are run with gradients, for the attributions ``gradient_ridge``: 100 of them and
            500 others are worth thousands. ``num_masks`` may then be 0. None is none.
        budget: passes to spend, in units of one without gradients. The two numbers above are then a pilot (None: a
            small one), from which their best values within the budget follow.
        ablation_fraction: alpha, the share of components that a mask ablates. None is 5%, or one component of few.
        seed: of the masks.
        design: ``bernoulli``, ``fixed_size``, ``balanced``, ``module:function`` of your own, or a function
            ``(design, mask_id) -> (num_components,)`` bool, True = kept, of ``design.seed``, ``design.num_components``,
            ``design.ablation_fraction`` and the mask's id alone.
        ablation_value: what ablated components are replaced by: ``zero_weights`` (the paper's), ``zero``, ``mean``,
            ``resample``, ``counterfactual``, or tensors (num_channels,) by site, e.g. ``{"layer1.conv.output": ...}``.
            None is what ``ablation`` says.
        reference: of ``mean`` and ``resample``: the inputs whose mean it is, or that are drawn; None is ``inputs``.
        counterfactual: of ``counterfactual``: inputs like ``inputs``, row by row.
        output_function: a registered name, ``module:function``, or ``(outputs, targets) -> (num_rows,)``.
        columns: further values of the examples by name, (num_examples,) each, e.g. group labels; ``Run.examples`` reads
            them.
        stages: add ``"evaluate"`` and ``"report"`` for correlations on held-out masks.
        baselines: of ``"leave_one_out"``, ``"gradient_x_parameter"``, ``"neuron_conductance"``,
            ``"internal_influence"``.
        baseline_settings: steps and batches of the last three; None is the default.
        evaluation: held-out masks; None is the default around ``ablation_fraction`` for the stage ``"evaluate"``.
        ablation: forward passes; None is the default.
        regression: fit; None is the default.
        cluster: ``"process"``: in this process; ``"ray"``; or a ``ClusterConfig`` or its options, e.g.
            ``{"max_actors": 2}``. None: in this process if that takes less than a minute, else on Ray on this machine.
        tracking: of ``"tensorboard"``, ``"wandb"``, ``"mlflow"``.
        previews: whether the run keeps small pictures of the examples and their column ``excerpt``.
        console: where progress is printed; None is standard output.

    Returns:
        The run, opened for reading.

    Raises:
        CoarDistError: naming what is wrong and the way out.
    """
    from coar_dist.ablation.direct import check_given
    from coar_dist.components.discovery import asked_components
    from coar_dist.stages.pipeline import run_stages
    from coar_dist.tasks.build import task_in_memory
    from coar_dist.tasks.task import by_keyword, inputs_alone

    for key, names in (("stages", stages), ("baselines", baselines), ("tracking", tracking)):
        if isinstance(names, str):
            raise ConfigError(f"{key}={names!r}: must be a list, e.g. [{names!r}].")
    if PLAN in stages:
        raise ConfigError(f"stages={list(stages)}: {PLAN} works on the command line only: coar-dist 'stages=[{PLAN}]'.")
    if evaluation is None:
        evaluation = EvaluationConfig(ablation_fractions=None if "evaluate" in stages else [], seed=index(seed) + 1)
    masks, gradients = DesignConfig(design, ablation_fraction=ablation_fraction, seed=seed), GradientsConfig()
    if budget is not None:
        masks.num_masks, gradients.num_masks = PILOT_MASKS, PILOT_GRADIENT_MASKS
    if num_masks is not None:
        masks.num_masks = num_masks
    if num_gradient_masks is not None:
        gradients.num_masks = num_gradient_masks
    gradients.seed = index(seed) + 2_000_000
    ablation, values = ablation or AblationConfig(), None
    if isinstance(ablation_value, Mapping):
        ablation, values = replace(ablation, value=CONSTANTS), dict(ablation_value)
    elif ablation_value is not None:
        ablation = replace(ablation, value=ablation_value)
    check_given(ablation.value, reference, counterfactual)
    given, asked = asked_components(model, components, include, exclude)
    config = Config(
        stages=list(stages),
        run=RunConfig(str(run_dir), previews),
        components=asked,
        design=masks,
        gradients=gradients,
        budget=budget,
        baselines=list(baselines),
        baseline_settings=baseline_settings or BaselineConfig(),
        evaluation=evaluation,
        ablation=ablation,
        regression=regression or RegressionConfig(),
        cluster=cluster_of(cluster),
        tracking=list(tracking),
    )
    task = task_in_memory(model, inputs, targets, columns, output_function, counterfactual)
    means_of = None if reference is None else inputs_alone(by_keyword(model, reference))
    run_stages(config, console, task, given, reference=means_of, values=values)
    run = open_run(run_dir)
    run._task = task
    return run
