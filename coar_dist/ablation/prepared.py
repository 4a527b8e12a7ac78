"""The prepared model: what every form of ablation runs on, and the examples where it reads them."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from coar_dist.ablation.folding import fold_batch_norms
from coar_dist.ablation.graphs import why_not_recorded
from coar_dist.ablation.placement import fits_on, lay_out, placed, repeat_exactly, select_rows, with_layout
from coar_dist.ablation.probe import Probe
from coar_dist.ablation.value import ZeroWeights
from coar_dist.components.discovery import check_components
from coar_dist.tasks.task import ExampleSet, Inputs, Task, call_model

_log = logging.getLogger(__name__)


class PreparedModel:
    """A task's model, made ready in place: in eval mode on its device, BatchNorm folded, channels last.

    Args:
        task: model, examples, output function; the model is taken over, the examples are not changed.
        value: what an ablated component is replaced by.
        device: where to run; a model that is spread over several devices stays there.
        precision: ``float32``, or ``bfloat16`` for autocast.

    Attributes:
        module: the model.
        value: as given.
        device: where the module takes its inputs.
        examples: on the device if they fit there, else pinned.
        output_function: from outputs and targets to margins.
        probe: the truth from the untouched model, which every form is held to.
        why_not_recorded: why passes of the module cannot be CUDA graphs; None where they may be.

    Raises:
        ComponentMismatchError: the components are not the model's.
        TaskError: the model is random in eval mode.
    """

    def __init__(self, task: Task, value: ZeroWeights, device: torch.device, precision: str) -> None:
        repeat_exactly(device, precision)
        check_components(task.model, value.components)
        module, self.device = placed(task.model, device)
        self.value = value
        self.output_function = task.output_function
        self._precision = precision
        self.probe = Probe(task, value, self.device)
        self.module = _folded(module, value, self.probe)
        self._layout = lay_out(self.module)
        self.examples = self._placed_examples(task.examples)
        self.why_not_recorded = why_not_recorded(self.module, self.device)

    def _placed_examples(self, examples: ExampleSet) -> ExampleSet:
        examples = examples.without_columns().map(lambda tensor: with_layout(tensor, self._layout))
        if fits_on(self.device, examples):
            return self.on_device(examples)
        if self.device.type == "cuda":
            _log.info("the examples do not fit on %s: they are streamed from pinned memory", self.device)
            return examples.map(lambda tensor: tensor.pin_memory())
        return examples

    def twin(self) -> PreparedModel | None:
        """A copy on the same parameters, buffers and examples, for other gates; None where it cannot be made."""
        tensors = chain(self.module.parameters(), self.module.buffers())
        twin = copy.copy(self)
        try:
            twin.module = copy.deepcopy(self.module, {id(tensor): tensor for tensor in tensors})
        except Exception as error:  # a model may hold anything: locks, open files, tensors with a history
            _log.info("%s cannot be copied: %s: %s", type(self.module).__name__, type(error).__name__, error)
            return None
        return twin

    def batches(self, examples: ExampleSet, num_rows: int) -> Iterator[tuple[int, ExampleSet]]:
        """Consecutive batches of ``examples`` on the device, each with the position of its first one.

        The last batch may have fewer than ``num_rows`` rows.
        """
        for start in range(0, len(examples), num_rows):
            yield start, self.on_device(examples.rows(start, start + num_rows))

    def filled(self, examples: ExampleSet, num_rows: int) -> ExampleSet:
        """The first ``num_rows`` examples on the device, repeated from the start where there are fewer."""
        rows = torch.arange(num_rows, device=examples.targets.device) % len(examples)
        return self.on_device(self.selected(examples, rows))

    def selected(self, examples: ExampleSet, rows: Tensor) -> ExampleSet:
        """``examples[rows]`` where they lie, in the module's layout."""
        return examples.map(lambda tensor: select_rows(tensor, rows, self._layout))

    def on_device(self, examples: ExampleSet) -> ExampleSet:
        """The examples where the module takes its inputs; from pinned memory the host does not wait for the copy."""
        return examples.map(lambda tensor: tensor.to(self.device, non_blocking=True))

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the module runs in the precision asked for."""
        if self._precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self._precision))

    def outputs(self, model: Callable[..., Any], inputs: Inputs) -> Any:
        """Raw outputs of the module, or of a compiled form or a part of it, without gradients."""
        with torch.no_grad(), self.autocast():
            return call_model(model, inputs)

    def margins(self, model: Callable[..., Any], batch: ExampleSet) -> Tensor:
        """Margins (num_rows,) float32 by the module, or by a compiled form or a part of it, without gradients."""
        with torch.no_grad():
            return self.output_function(self.outputs(model, batch.inputs), batch.targets).float()

    def synchronise(self) -> None:
        """Wait until the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def even_size(total: int, most: int) -> int:
    """The size of as few parts of ``total`` as there can be with at most ``most`` each, as equal as they can be."""
    return math.ceil(total / math.ceil(total / most))


def _folded(module: nn.Module, value: ZeroWeights, probe: Probe) -> nn.Module:
    """A folded copy of ``module`` if it gives the margins of the untouched one, else ``module``."""
    if not any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in module.modules()):
        return module
    folded = copy.deepcopy(module)
    if fold_batch_norms(folded, value.components) == 0:
        return module
    if probe.holds_for(folded):
        return folded
    _log.warning("BatchNorm is not folded: the folded model does not give the margins of the original one")
    return module
