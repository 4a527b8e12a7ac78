"""What is known to be wrong is found before any training or ablation, and leaves nothing behind."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from rich.console import Console

from coar_dist.config.schema import (
    STAGES,
    AblationConfig,
    ClusterConfig,
    ComponentsConfig,
    Config,
    DesignConfig,
    EditConfig,
    EvaluationConfig,
    ExampleGroup,
    ExamplesConfig,
    GradientsConfig,
    ModelConfig,
    RegressionConfig,
    RunConfig,
    SubsetConfig,
    TaskConfig,
    TrainConfig,
)
from coar_dist.console.saying import Terminal
from coar_dist.errors import ClusterError, CoarDistError, ConfigError, NoComponentsError
from coar_dist.stages.checks import check_ablate_stage, check_train_stage
from coar_dist.stages.pipeline import run_stages
from coar_dist.stages.session import Session
from coar_dist.tasks.build import untrained_model


def task(**changes: Any) -> TaskConfig:
    settings = {"model": ModelConfig("digits_resnet", {"width": 4, "num_blocks": 1}), "examples": examples()}
    return TaskConfig(**{**settings, **changes})


def examples(**subset: Any) -> ExamplesConfig:
    return ExamplesConfig("digits", {"split": "test", "num_examples": 20}, SubsetConfig(**subset))


def edit(**changes: Any) -> EditConfig:
    return EditConfig(**{"target": ExampleGroup(ids=[3]), "improve": ["all"], **changes})


def config_of(folder: Path, **changes: Any) -> Config:
    settings: dict[str, Any] = {
        "stages": list(STAGES),
        "run": RunConfig(str(folder)),
        "task": task(),
        "train": TrainConfig(examples(), epochs=1),
        "design": DesignConfig(num_masks=60, ablation_fraction=0.2),
        "baselines": [],
        "cluster": ClusterConfig(max_actors=1),
        "edit": edit(),
    }
    return Config(**{**settings, **changes})


CASES: list[tuple[dict[str, Any], type[CoarDistError], str]] = [
    ({"task": task(model=ModelConfig("digits_resnt"))}, ConfigError, "task.model.source='digits_resnt': must be one"),
    (
        {"task": task(model=ModelConfig("digits_resnet", {"widht": 3}))},
        ConfigError,
        "task.model.arguments.widht: unknown",
    ),
    ({"task": task(examples=ExamplesConfig("digts"))}, ConfigError, "task.examples.source='digts': must be one of"),
    ({"train": TrainConfig(ExamplesConfig("digts"))}, ConfigError, "train.examples.source='digts': must be one of"),
    ({"task": task(examples=examples(classes=[77]))}, ConfigError, "task.examples.subset.classes=[77]: no example"),
    ({"train": TrainConfig(examples(classes=[77]))}, ConfigError, "train.examples.subset.classes=[77]: no example"),
    ({"task": task(output_function="marginn")}, ConfigError, "task.output_function='marginn': must be one of margin"),
    ({"train": TrainConfig(examples(), loss="cross")}, ConfigError, "train.loss='cross': must be one of cross_entropy"),
    ({"train": TrainConfig(examples(), optimizer="adam")}, ConfigError, "train.optimizer='adam': must be one of sgd"),
    ({"components": ComponentsConfig("filters")}, ConfigError, "components.selector='filters': must be one of auto"),
    ({"components": ComponentsConfig("heads")}, NoComponentsError, "'heads' matches nothing in"),
    ({"components": ComponentsConfig(include=["x.*"])}, NoComponentsError, "components.include=['x.*'] and"),
    ({"design": DesignConfig("halves")}, ConfigError, "design.kind='halves': must be one of bernoulli"),
    ({"gradients": GradientsConfig(20, "halves")}, ConfigError, "gradients.kind='halves': must be one of bernoulli"),
    ({"evaluation": EvaluationConfig("nowhere:f")}, ConfigError, "evaluation.kind='nowhere:f' cannot be imported"),
    ({"design": DesignConfig("fixed_size", ablation_fraction=1e-6)}, ConfigError, "rounds to 0 ablated"),
    ({"regression": RegressionConfig(backend="tprch")}, ConfigError, "regression.backend='tprch': must be one of auto"),
    ({"tracking": ["neptune"]}, ConfigError, "tracking='neptune': must be one of tensorboard"),
    ({"ablation": AblationConfig(device_map="auto")}, ConfigError, "ablation.device_map='auto' has no effect on"),
    ({"cluster": ClusterConfig(cpus_per_actor=999)}, ClusterError, "with 999 CPU each"),
    ({"cluster": ClusterConfig("127.0.0.1:1")}, ClusterError, "cluster.address='127.0.0.1:1' cannot be reached"),
    ({"cluster": ClusterConfig(gpus_per_actor=1.5)}, ConfigError, r"cluster.gpus_per_actor=1.5: must be a share of"),
    ({"edit": edit(target=ExampleGroup(classes=[77]))}, ConfigError, "edit.target.classes=[77] leaves no example"),
    ({"edit": edit(target=ExampleGroup(ids=[20]))}, ConfigError, "edit.target.ids: [20] are no examples"),
    ({"edit": edit(reference=ExampleGroup(where={"x": 1}))}, ConfigError, "edit.reference.where.x: there is no column"),
    ({"edit": edit(groups={"few": ExampleGroup(classes=[77])})}, ConfigError, "edit.groups.few.classes=[77] leaves"),
    ({"edit": edit(target=ExampleGroup(predicate="no:f"))}, ConfigError, "edit.target.predicate='no:f' cannot be im"),
    ({"edit": edit(examples=ExamplesConfig("digts"))}, ConfigError, "edit.examples.source='digts': must be one of"),
    (
        {"edit": edit(examples=examples(classes=[1]), groups={"twos": ExampleGroup(classes=[2])})},
        ConfigError,
        "edit.groups.twos.classes=[2] leaves no example",
    ),
    ({"edit": edit(metric="acc")}, ConfigError, "edit.metric='acc': must be one of accuracy, output"),
    ({"edit": edit(method="coarse")}, ConfigError, "edit.method='coarse': must be one of gradient_ridge, coar"),
    ({"edit": edit(compare=["shapley"])}, ConfigError, "edit.compare='shapley': must be one of"),
    ({"edit": edit(max_components=999)}, ConfigError, "edit.max_components=999: the model has "),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "message"), CASES, ids=[message for _, _, message in CASES])
def test_it_is_found_before_the_model_is_trained(
    tmp_path: Path, changes: dict[str, Any], error: type[CoarDistError], message: str
) -> None:
    folder = tmp_path / "run"
    with (
        mock.patch("coar_dist.tasks.training.train_model", side_effect=AssertionError("trained")),
        mock.patch("ray.is_initialized", return_value=False),  # by another test
        pytest.raises(error) as caught,
    ):
        run_stages(config_of(folder, **changes), Console(file=io.StringIO()))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 6
    assert not folder.exists()


def test_examples_are_loaded_once(tmp_path: Path) -> None:
    from coar_dist.tasks.examples import EXAMPLES

    loaded: list[Any] = []

    def counting(**arguments: Any) -> Any:
        loaded.append(arguments)
        return EXAMPLES["digits"](**arguments)

    config = config_of(tmp_path / "run", stages=["train"], train=TrainConfig(examples(), epochs=1, device="cpu"))
    with mock.patch.dict("coar_dist.tasks.build.EXAMPLES", {"counted": counting}):
        config.task.examples.source = config.train.examples.source = "counted"  # type: ignore[union-attr]
        run_stages(config, Console(file=io.StringIO()))
    assert len(loaded) == 2
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_the_untrained_model_is_built_once(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run", baselines=["gradient_x_parameter"])
    with (
        Session(config, Terminal(Console(file=io.StringIO()))) as session,
        mock.patch("coar_dist.stages.inputs.untrained_model", side_effect=untrained_model) as build,
    ):
        check_train_stage(session)
        check_ablate_stage(session)
    build.assert_called_once_with(config.task.model)


def test_an_edit_of_a_run_that_is_there_is_checked_by_its_columns(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run", stages=["edit"], edit=edit(target=ExampleGroup(classes=[77])))
    with pytest.raises(CoarDistError, match="is not a run directory"):
        run_stages(config, Console(file=io.StringIO()))
    assert not (tmp_path / "run").exists()
