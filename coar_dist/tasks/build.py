"""From the config of a task to the task itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coar_dist.components.plain_model import plain_model
from coar_dist.config.functions import call, resolve
from coar_dist.config.schema import ExamplesConfig, ModelConfig, TaskConfig
from coar_dist.errors import CoarDistError, ConfigError, TaskError
from coar_dist.store.storage import Storage
from coar_dist.tasks.checkpoints import load_checkpoint
from coar_dist.tasks.elsewhere import AsHere, ModelOrigin, is_without_weights, weights_of, with_origin, without_weights
from coar_dist.tasks.example_set import ExampleSet, Inputs, inputs_alone
from coar_dist.tasks.examples import EXAMPLES
from coar_dist.tasks.examples.source import IndexedSource, StreamedSource, load_subset
from coar_dist.tasks.given import gathered, targets_or_none
from coar_dist.tasks.mapped_examples import built_by
from coar_dist.tasks.models import MODELS, has_weights
from coar_dist.tasks.normalisation import normalise_inputs
from coar_dist.tasks.outputs import OutputFunction, output_function
from coar_dist.tasks.precision import in_precision_of
from coar_dist.tasks.task import Task, by_keyword
from coar_dist.tasks.trained_checkpoint import read_checkpoint


def build_model(config: ModelConfig) -> nn.Module:
    """The model with the weights that its constructor gives; it normalises its inputs where the config says so."""
    model = call("task.model.arguments", resolve("task.model.source", config.source, MODELS), config.arguments)
    if not isinstance(model, nn.Module):
        raise TaskError(f"task.model.source={config.source!r} gave a {type(model).__name__}, not a torch.nn.Module.")
    if config.input_mean is not None and config.input_std is not None:
        return normalise_inputs(model, config.input_mean, config.input_std)
    return model


def build_examples(config: ExamplesConfig, key: str) -> ExampleSet:
    """The example set, or the subset of it that ``config`` asks for.

    Args:
        config: the source, its arguments and the subset.
        key: the config key of ``config``, for messages.

    Raises:
        ConfigError, TaskError: naming the key, or the file, that is wrong.
    """
    source = call(f"{key}.arguments", resolve(f"{key}.source", config.source, EXAMPLES), config.arguments)
    if not isinstance(source, ExampleSet | IndexedSource | StreamedSource):
        raise TaskError(f"{key}.source={config.source!r} gave a {type(source).__name__}, not an ExampleSet.")
    try:
        examples = load_subset(source, config.subset, config.source, f"{key}.subset")
        return built_by(examples, AsHere.of(partial(build_examples, config, key)))
    except CoarDistError:
        raise
    except Exception as error:  # a user's own data may raise anything
        raise TaskError(f"{key}.source={config.source!r} raises {type(error).__name__}: {error}") from error


def untrained_model(config: ModelConfig) -> nn.Module:
    """The model in eval mode with the weights that its constructor gives; random ones are the same in every run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(config).eval()


def model_with_weights(config: ModelConfig, trained: Storage | None) -> nn.Module:
    """The model in eval mode with the checkpoint's weights.

    Args:
        config: of the model.
        trained: where the train stage left weights; used where ``config.checkpoint`` is None.

    Raises:
        ConfigError, TaskError: naming the key that is wrong.
        DamagedFileError: what the train stage left is damaged.
    """
    comes_with_weights = has_weights(config.source, config.arguments)
    if config.checkpoint is None and trained is None and not comes_with_weights:
        raise ConfigError(
            f"task.model.checkpoint must be set: {config.source!r} alone has random weights. (Or let the train "
            f"stage make one: train=...)"
        )
    model = untrained_model(config)
    if config.checkpoint is not None:
        load_checkpoint(model, Path(config.checkpoint))
    elif trained is not None:
        left = read_checkpoint(trained)
        assert left is not None
        model.load_state_dict(left[0])
    return plain_model(model)


def build_task(config: TaskConfig, trained: Storage | None, load_examples: Callable[[], ExampleSet]) -> Task:
    """The whole task, its model in eval mode with the checkpoint's weights.

    Args:
        config: of the model and the output function.
        trained: as of ``model_with_weights``.
        load_examples: gives those whose outputs are explained; it is called last, since it may take long.

    Raises:
        ConfigError, TaskError, DamagedFileError: as of ``model_with_weights``.
    """
    build = AsHere.of(partial(model_with_weights, config.model, trained))
    model = build()
    outputs = output_function(config.output_function)
    task = Task(model, load_examples(), outputs)
    with_origin(task.model, ModelOrigin(build, weights_of(task.model)))
    return task


def built_away(
    build: Callable[[], nn.Module], examples: ExampleSet, function: OutputFunction
) -> tuple[nn.Module, ModelOrigin]:
    """In a worker: build and check a model for a process that has no room for its weights.

    Returns:
        The model without weights, and what built it.

    Raises:
        TaskError, ConfigError, DamagedFileError: as of ``build`` and ``Task.check``.
    """
    task = Task(build(), examples, function)
    margins = task.check()
    return without_weights(task.model), ModelOrigin(build, weights_of(task.model), tuple(margins))


def given_task(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    columns: Mapping[str, Any] | None,
    function: str | Callable[[Any, Tensor], Tensor],
    counterfactual: Any = None,
) -> Task:
    """What a Python caller explains, in any of the forms that inputs and targets may have.

    Raises:
        TaskError, ConfigError: as of ``gathered`` and ``task_in_memory``.
    """
    inputs, targets = gathered(inputs, targets)
    if not isinstance(inputs, ExampleSet):
        inputs = in_precision_of(model, by_keyword(model, inputs))
        targets = targets_or_none(inputs, targets, function)
    return task_in_memory(model, inputs, targets, columns, function, counterfactual)


def as_example_set(model: nn.Module, given: Any) -> ExampleSet | None:
    """Examples with their targets: an ``ExampleSet``, a Dataset or a DataLoader; None where there are none.

    Raises:
        TaskError: as of ``gathered`` and ``ExampleSet.of``.
    """
    inputs, targets = gathered(given, None)
    if inputs is None or isinstance(inputs, ExampleSet):
        return inputs
    return ExampleSet.of(in_precision_of(model, by_keyword(model, inputs)), targets)


def given_reference(model: nn.Module, reference: Any) -> ExampleSet | None:
    """Inputs that serve others, in any of the forms that inputs may have; None where there are none.

    Raises:
        TaskError: as of ``gathered`` and ``ExampleSet.of``.
    """
    inputs, _ = gathered(reference, None)
    if inputs is None or isinstance(inputs, ExampleSet):
        return inputs
    return inputs_alone(in_precision_of(model, by_keyword(model, inputs)))


def task_in_memory(
    model: nn.Module,
    inputs: Inputs | ExampleSet,
    targets: Tensor | None,
    columns: Mapping[str, Any] | None,
    function: str | Callable[[Any, Tensor], Tensor],
    counterfactual: Inputs | None = None,
) -> Task:
    """What a Python caller explains.

    Raises:
        TaskError, ConfigError: inputs, targets and counterfactuals do not fit each other, or there is no such output
            function.
    """
    if not isinstance(model, nn.Module) or is_without_weights(model):
        plain_model(model)  # which says what is no model
        raise TaskError("the model is on the meta device, where parameters have no values. Load its weights first.")
    if isinstance(inputs, ExampleSet):
        for key, given in (("targets", targets), ("columns", columns), ("counterfactual", counterfactual)):
            if given is not None:
                raise ConfigError(f"{key} is given beside an ExampleSet, which has its own. Leave it out.")
        return Task(model, inputs, output_function(function))
    pairs = None if counterfactual is None else in_precision_of(model, by_keyword(model, counterfactual))
    examples = ExampleSet.of(by_keyword(model, inputs), targets, columns, pairs)
    return Task(model, examples, output_function(function))
