"""About how long work takes in this process, before there is an engine: by a pass of a few examples as the model is."""

from __future__ import annotations

import copy
import logging
import math
import time

import torch
from torch import nn

from coar_dist.ablation.work import ExpectedMasks
from coar_dist.cluster.own_process import as_an_actor
from coar_dist.config.schema import Config
from coar_dist.errors import in_one_line
from coar_dist.stages.budget import ASSUMED_COST
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.task import Task, call_model

_log = logging.getLogger(__name__)
_FEW, _ROWS = 2, 32
_FEW_S = 0.1
"""More rows are timed where few take less than this: of a small model most is the cost of any pass."""


def seconds_of_masks(config: Config, task: Task, masks: ExpectedMasks) -> float:
    """Seconds, or more, that masks take; infinitely many where the model is compiled or spread over devices.

    Args:
        config: of the passes.
        task: what is explained.
        masks: without and with gradients.
    """
    if config.ablation.compile or config.ablation.device_map is not None:
        return math.inf
    passes = (masks.plain + ASSUMED_COST * masks.with_gradients) * len(task.examples)
    return passes * seconds_per_pass(config, task.model, task.examples)


def seconds_per_pass(config: Config, model: nn.Module, examples: ExampleSet) -> float:
    """Seconds of a forward pass of one example, in a pass of a few, on an actor's device and threads.

    Args:
        config: of the actors.
        model: as it is; it is not changed.
        examples: whose first ones are run.

    Returns:
        The seconds; infinitely many where the pass fails, which is for the actor to say.
    """
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    home = next((parameter.device for parameter in model.parameters()), device)
    seconds = math.inf
    was_training = [module for module in model.modules() if module.training]
    try:
        if home.type != device.type:
            model = copy.deepcopy(model).to(device)
        model.eval()
        with as_an_actor(config.cluster.cpus_per_actor), torch.no_grad():
            seconds = _timed(model, examples.rows(0, _FEW), device)
            if seconds * _FEW < _FEW_S:
                seconds = _timed(model, examples.rows(0, _ROWS), device)
    except Exception as error:  # the user's code may raise anything, the larger pass for want of memory
        _log.info("a pass cannot be timed: %s", in_one_line(error))
    finally:
        for module in was_training:
            module.training = True
    return seconds


def _timed(model: nn.Module, examples: ExampleSet, device: torch.device) -> float:
    """Seconds of one example in the second pass of all these."""
    for _ in range(2):
        batch = examples.map(lambda tensor: tensor.to(device, copy=True))  # a model may change its input
        _synchronise(device)
        started = time.perf_counter()
        call_model(model, batch.inputs)
        _synchronise(device)
        seconds = time.perf_counter() - started
    return seconds / len(examples)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
