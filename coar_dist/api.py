"""``attribute``: the pipeline on a model in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from coar_dist.config import (
    PILOT_GRADIENT_MASKS,
    PILOT_MASKS,
    AblationConfig,
    BaselineConfig,
    ClusterConfig,
    ComponentsConfig,
    Config,
    DesignConfig,
    EvaluationConfig,
    GradientsConfig,
    RegressionConfig,
    RunConfig,
)
from coar_dist.errors import ConfigError
from coar_dist.pipeline import run_stages
from coar_dist.store.run import Run, open_run

if TYPE_CHECKING:
    from torch import Tensor, nn

    from coar_dist.components.index import ComponentIndex
    from coar_dist.tasks.task import Inputs


def attribute(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    *,
    run_dir: str | Path,
    components: str | ComponentIndex = "conv_filters",
    num_masks: int | None = None,
    num_gradient_masks: int | None = None,
    budget: float | None = None,
    ablation_fraction: float = 0.05,
    seed: int = 0,
    output_function: str | Callable[[Any, Tensor], Tensor] = "margin",
    columns: Mapping[str, Any] | None = None,
    stages: Sequence[str] = ("ablate", "fit"),
    baselines: Sequence[str] = (),
    baseline_settings: BaselineConfig | None = None,
    evaluation: EvaluationConfig | None = None,
    ablation: AblationConfig | None = None,
    regression: RegressionConfig | None = None,
    cluster: ClusterConfig | None = None,
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
        components: a selector name (``coar_dist.components.discovery.SELECTORS``), or a ``ComponentIndex``.
        num_masks: ablation masks; a later call with more extends the run. None is the configuration's default.
        num_gradient_masks: masks that are run with gradients, for the attributions ``gradient_ridge``: 100 of them and
            500 others are worth thousands. ``num_masks`` may then be 0. None is none.
        budget: passes to spend, in units of one without gradients. The two numbers above are then a pilot (None: a
            small one), from which their best values within the budget follow.
        ablation_fraction: alpha, the share of components that a mask ablates.
        seed: of the masks.
        output_function: a registered name, ``module:function``, or ``(outputs, targets) -> (num_rows,)``.
        columns: further values of the examples by name, (num_examples,) each, e.g. group labels; ``Run.examples`` reads
            them.
        stages: add ``"evaluate"`` and ``"report"`` for correlations on held-out masks.
        baselines: of ``"leave_one_out"``, ``"gradient_x_parameter"``, ``"neuron_conductance"``,
            ``"internal_influence"``.
        baseline_settings: steps and batches of the last three; None is the default.
        evaluation: held-out masks; None is the default, around ``ablation_fraction``, where ``stages`` has
            ``"evaluate"``, and none otherwise.
        ablation: forward passes; None is the default.
        regression: fit; None is the default.
        cluster: Ray; None starts it on this machine.
        console: where progress is printed; None is standard output.

    Returns:
        The run, opened for reading.

    Raises:
        CoarDistError: naming what is wrong and the way out.
    """
    from coar_dist.components.index import ComponentIndex
    from coar_dist.tasks.outputs import output_function as named_output_function
    from coar_dist.tasks.task import ExampleSet, Task

    for key, names in (("stages", stages), ("baselines", baselines)):
        if isinstance(names, str):
            raise ConfigError(f"{key}={names!r}: must be a list, e.g. [{names!r}].")
    if evaluation is None:
        evaluation = EvaluationConfig(ablation_fractions=None if "evaluate" in stages else [], seed=index(seed) + 1)
    design, gradients = DesignConfig(ablation_fraction=ablation_fraction, seed=seed), GradientsConfig()
    if budget is not None:
        design.num_masks, gradients.num_masks = PILOT_MASKS, PILOT_GRADIENT_MASKS
    if num_masks is not None:
        design.num_masks = num_masks
    if num_gradient_masks is not None:
        gradients.num_masks = num_gradient_masks
    gradients.seed = index(seed) + 2_000_000
    is_index = isinstance(components, ComponentIndex)
    config = Config(
        stages=list(stages),
        run=RunConfig(str(run_dir)),
        components=ComponentsConfig() if is_index else ComponentsConfig(str(components)),
        design=design,
        gradients=gradients,
        budget=budget,
        baselines=list(baselines),
        baseline_settings=baseline_settings or BaselineConfig(),
        evaluation=evaluation,
        ablation=ablation or AblationConfig(),
        regression=regression or RegressionConfig(),
        cluster=cluster or ClusterConfig(),
    )
    task = Task(model, ExampleSet.of(inputs, targets, columns), named_output_function(output_function))
    run_stages(config, console or Console(), task, components if isinstance(components, ComponentIndex) else None)
    return open_run(run_dir)
