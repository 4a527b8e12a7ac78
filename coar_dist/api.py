"""``attribute`` and ``open_run``: the pipeline on a model in memory, and what it left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from coar_dist.config.class_names import names_of
from coar_dist.config.fields import checked
from coar_dist.config.python_arguments import NAMES, check
from coar_dist.config.python_words import OF_ATTRIBUTE, in_python_words
from coar_dist.config.schema import (
    CONSTANTS,
    GRADIENT_MASKS,
    MASKS_BESIDE_GRADIENTS,
    PILOT_GRADIENT_MASKS,
    PILOT_MASKS,
    PLAN,
    AblationConfig,
    BaselineConfig,
    Config,
    DesignConfig,
    EvaluationConfig,
    GradientsConfig,
    RegressionConfig,
    RunConfig,
    TaskConfig,
    light_evaluation,
)
from coar_dist.config.schema import ablation_fraction as ablation_fraction_of
from coar_dist.config.settings import ClusterSettings, cluster_of, settings_of
from coar_dist.errors import ConfigError, NoGradientsError
from coar_dist.result.run import Run
from coar_dist.store.locations import storage_at
from coar_dist.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from torch import Tensor, nn

    from coar_dist.components.discovery import Components
    from coar_dist.designs.design import MaskDesign
    from coar_dist.tasks.example_set import Inputs


@in_python_words(OF_ATTRIBUTE)
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


def _whole(key: str, given: Any) -> int:
    try:
        return index(given)
    except TypeError:
        raise ConfigError(f"{key}={given!r}: must be a whole number.") from None


@in_python_words(OF_ATTRIBUTE)
def attribute(
    model: nn.Module,
    inputs: Any,
    targets: Any = None,
    *,
    run_dir: str | Path | None = None,
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
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    stages: Sequence[str] = ("ablate", "fit", "evaluate"),
    baselines: Sequence[str] = (),
    baseline_settings: BaselineConfig | Mapping[str, Any] | None = None,
    evaluation: EvaluationConfig | Mapping[str, Any] | None = None,
    ablation: AblationConfig | Mapping[str, Any] | str | None = None,
    regression: RegressionConfig | Mapping[str, Any] | str | None = None,
    cluster: ClusterSettings | None = None,
    tracking: Sequence[str] = (),
    previews: bool = True,
    responses_mb: float = RunConfig.responses_mb,
    progress: bool = True,
    console: Console | None = None,
) -> Run:
    """Attribute the outputs of any model to its components: the same pipeline as the command line.

    Calling it again with the same arguments continues an interrupted run, or finds all done.

    Args:
        model: any module; it is not changed.
        inputs: (num_examples, ...) tensor or array given to ``model`` as its first argument, or a dict of them given by
            keyword; a Dataset or DataLoader of ``(input, target)``, of dicts with ``labels``, or of inputs alone; or an
            ``ExampleSet``, as from ``prompts``.
        targets: (num_examples, ...) what the output function compares with; int64 class labels for ``margin``. None:
            those that ``inputs`` holds, or none, for ``value`` and ``logit:3``, which read none.
        run_dir: the run directory, a path or an ``s3://`` or ``gs://`` URL; created if it is not there. None: a folder
            of the platform's cache (or of ``COAR_DIST_CACHE``), named by what is explained; ``run.path`` says which.
        components: a selector (``coar_dist.find_components`` lists what each finds), a ``ComponentRule``, a list of
            these, a ``ComponentIndex``, or a function of the model that gives one.
        include, exclude: shell patterns of names of components, or of parameters, that are taken and that are left out.
        num_masks: ablation masks; a later call with more extends the run. None: 500 beside masks with gradients, 4,000
            without.
        num_gradient_masks: masks that are run with gradients, for the attributions ``gradient_ridge``: 100 of them and
            500 others are worth thousands. ``num_masks`` may then be 0. None: 100 where ``num_masks`` is None too, the
            regression is ridge and gradients can be had; else none.
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
            them. ``excerpt``, texts, and ``tokens``, lists of strings, are what the page shows of texts.
        class_names: what classes are called on the page and in figures: names, the first of class 0, or names by class,
            e.g. ``{0: "cat", 5: "dog"}``. No result depends on them; a later call may give others.
        stages: of ``"ablate"``, ``"fit"``, ``"evaluate"`` and ``"report"``, which writes the page.
        baselines: of ``"leave_one_out"``, ``"gradient_x_parameter"``, ``"neuron_conductance"``,
            ``"internal_influence"``.
        baseline_settings: steps and batches of the last three; None is the default.
        evaluation: held-out masks. None: those that the run has, or else, for the stage ``"evaluate"``, 100 of the
            training masks' ablation fraction. A dict of options changes some of this, e.g. ``{"num_masks": 20}``. An
            ``EvaluationConfig()``: 200 of each of four fractions around it, and a curve of fewer masks.
        ablation: forward passes, an ``AblationConfig`` or its options; None is the default.
        regression: the fit: ``"ridge"``, ``"lasso"``, or a ``RegressionConfig`` or its options; None is the default.
        cluster: ``"process"``: in this process; ``"ray"``; or a ``ClusterConfig`` or its options, e.g.
            ``{"max_actors": 2}``. None: in this process if that takes less than a minute, else on Ray on this machine.
        tracking: of ``"tensorboard"``, ``"wandb"``, ``"mlflow"``.
        previews: whether the run keeps small pictures of the examples and their column ``excerpt``.
        responses_mb: megabytes up to which the run keeps what each component looks at, for the page; 0: nothing.
        progress: whether progress and results are printed.
        console: where they are printed; None is standard output, or the cell of a notebook.

    Returns:
        The run.

    Raises:
        CoarDistError: naming what is wrong and the way out.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
        >>> run = attribute(model, torch.randn(20, 1, 6, 6), torch.arange(20) % 3, progress=False)
        >>> run.values.shape, run.evaluate().method.tolist()
        ((20, 8), ['gradient_ridge', 'coar', 'ceiling'])
    """
    from coar_dist.ablation.direct import check_given
    from coar_dist.components.discovery import asked_components, chosen_components
    from coar_dist.console.cell import console_of
    from coar_dist.console.saying import Terminal
    from coar_dist.result.cache import cache_location
    from coar_dist.result.made import Made, held_out_of
    from coar_dist.stages.pipeline import run_stages
    from coar_dist.tasks.build import given_reference, given_task

    for key, names in (("stages", stages), ("baselines", baselines), ("tracking", tracking)):
        if isinstance(names, str):
            raise ConfigError(f"{key}={names!r}: must be a list, e.g. [{names!r}].")
        check(key, names, NAMES)
    if run_dir is not None:
        storage_at(run_dir)
    first_seed = _whole("seed", seed)
    held_out_seed = first_seed + EvaluationConfig.seed  # far from the training masks of any other run
    for key, number in (("num_masks", num_masks), ("num_gradient_masks", num_gradient_masks)):
        if number is not None:
            _whole(key, number)
    if PLAN in stages:
        raise ConfigError(f"stages={list(stages)}: {PLAN} works on the command line only: coar-dist 'stages=[{PLAN}]'.")
    if class_names is not None and not {"ablate", "report"} & set(stages):
        raise ConfigError(f"class_names has no effect with stages={list(stages)}: ablate and report keep them.")
    fit = settings_of(RegressionConfig, regression, "regression", "method")
    try_gradients = num_masks is None and num_gradient_masks is None and budget is None and fit.method == "ridge"
    masks = DesignConfig(design, ablation_fraction=ablation_fraction, seed=seed)
    gradients = GradientsConfig(seed=first_seed + GradientsConfig.seed)
    if budget is not None:
        masks.num_masks, gradients.num_masks = PILOT_MASKS, PILOT_GRADIENT_MASKS
    elif try_gradients or num_gradient_masks:
        masks.num_masks, gradients.num_masks = MASKS_BESIDE_GRADIENTS, GRADIENT_MASKS
    if num_masks is not None:
        masks.num_masks = num_masks
    if num_gradient_masks is not None:
        gradients.num_masks = num_gradient_masks
    masks = checked(masks, "design.")  # before other options follow from it
    ablation, values = settings_of(AblationConfig, ablation, "ablation", "value"), None
    if isinstance(ablation_value, Mapping):
        ablation, values = replace(ablation, value=CONSTANTS), dict(ablation_value)
    elif ablation_value is not None:
        ablation = replace(ablation, value=ablation_value)
    check_given(ablation.value, inputs, reference, counterfactual)
    given, asked = asked_components(model, components, include, exclude)
    task = given_task(model, inputs, targets, columns, output_function, counterfactual)
    means_of = given_reference(model, reference)
    console = console_of(console, progress)
    config = Config(
        stages=list(stages),
        run=RunConfig("" if run_dir is None else str(run_dir), previews, responses_mb),
        task=TaskConfig(class_names=names_of(class_names)),
        components=asked,
        design=masks,
        gradients=gradients,
        budget=budget,
        baselines=list(baselines),
        baseline_settings=settings_of(BaselineConfig, baseline_settings, "baseline_settings", "num_steps"),
        ablation=ablation,
        regression=fit,
        cluster=cluster_of(cluster),
        tracking=list(tracking),
    )
    if run_dir is None or evaluation is None or isinstance(evaluation, Mapping):
        index_of_model = given or chosen_components(model, components, include, exclude)
    if evaluation is not None and not isinstance(evaluation, Mapping):
        config.evaluation = settings_of(EvaluationConfig, evaluation, "evaluation", "kind")
    elif evaluation is not None:
        light = light_evaluation(ablation_fraction_of(config, len(index_of_model)), held_out_seed)
        config.evaluation = settings_of(EvaluationConfig, {**vars(light), **evaluation}, "evaluation", "kind")
    elif "evaluate" in stages and (there := held_out_of(config.run.dir, first_seed)) is not None:
        config.evaluation = there
    elif "evaluate" in stages:
        config.evaluation = light_evaluation(ablation_fraction_of(config, len(index_of_model)), held_out_seed)
    else:
        config.evaluation = EvaluationConfig(ablation_fractions=[], seed=held_out_seed)
    if run_dir is None:
        run_dir = config.run.dir = cache_location(config, task, index_of_model, means_of, values)
        Terminal(console).print(f"The run is kept in {run_dir}.")
    try:
        run_stages(config, console, task, given, reference=means_of, values=values)
    except NoGradientsError as error:
        if not try_gradients:
            raise
        Terminal(console, "ablate").warn(f"{DesignConfig().num_masks:,} masks without gradients are run: {error}")
        config.design.num_masks, config.gradients.num_masks = DesignConfig().num_masks, 0
        run_stages(config, console, task, given, reference=means_of, values=values)
    run = open_run(run_dir)
    run._made = Made(config, task, run.components, means_of, values, held_out_seed)
    return run
