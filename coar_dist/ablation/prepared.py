"""The prepared model: what every form of ablation runs on, and the examples where it reads them."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coar_dist.ablation.effects import Effects, MarginsOf
from coar_dist.ablation.folding import fold_batch_norms
from coar_dist.ablation.gate_probe import ungated_groups
from coar_dist.ablation.graphs import why_not_recorded
from coar_dist.ablation.heads_check import check_heads
from coar_dist.ablation.placement import (
    fits_on,
    lay_out,
    layout_of,
    modules_called,
    moved,
    placed,
    repeat_exactly,
    select_rows,
    with_layout,
)
from coar_dist.ablation.row_value import RowValues
from coar_dist.ablation.unread import with_logits_read_alone
from coar_dist.ablation.value import AblationValue
from coar_dist.components.discovery import check_components
from coar_dist.errors import in_one_line
from coar_dist.tasks.example_set import ExampleSet, Inputs
from coar_dist.tasks.task import Task, call_model
from coar_dist.tasks.tensor_files import file_of

_CHANCE = 2.0
"""How many times its measured rounding a 16-bit pass with gates is granted."""
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
        examples: on the device if they fit there, else pinned, or on the node's disk.
        output_function: from outputs and targets to margins.
        effects: the truth from the untouched model, which every form is held to.
        ungated: the groups that gates cannot stand in for, by their place among the groups, with the reason.
        precision: as given.
        rounding: error of a margin by the precision that the module runs in, root mean square.
        has_one_pass: whether a pass runs the model once, and not its donors before it.
        why_not_recorded: why passes of the module cannot be CUDA graphs; None where they may be.

    Raises:
        ComponentMismatchError: the components are not the model's, or its heads are others.
        TaskError: the model is random in eval mode, keeps a state, or mixes the rows of a batch.
    """

    def __init__(self, task: Task, value: AblationValue, device: torch.device, precision: str) -> None:
        repeat_exactly(device)
        check_components(task.model, value.components)
        module, self.device = placed(task.model, device)
        self.output_function = task.output_function
        self.precision = precision
        examples = value.told(module, task.examples)
        self.effects = Effects(module, value, examples, task.output_function, self.device)
        few = self.effects.examples.rows(0, 1)
        check_heads(module, value.components, lambda: self.effects.margins(module, few))
        self.value = self.effects.value
        examples = self._read_alone(module, examples)
        self.module, self._layout, self.value = _made_fast(module, self.value, self.effects)
        self.examples = self._placed_examples(examples)
        if isinstance(self.value, RowValues):
            self.value.make_fast(self.module, self.device, self._placed_inputs, self._why_wrong)
        self.has_one_pass = not self.value.runs_donors(self.module)
        self.rounding = self._rounding()
        self.ungated = self._ungated()
        self.why_not_recorded = why_not_recorded(self.module, self.device)

    def _read_alone(self, module: nn.Module, examples: ExampleSet) -> ExampleSet:
        """The examples, asking for no logits but those that are read, where that has the effects of all logits."""
        whole = self.effects.examples
        try:
            asking = with_logits_read_alone(module, examples, self.output_function, self.device)
            if asking is None:
                return examples
            self.effects.take_from(asking)
            if self.effects.same(_margins_of(module, torch.preserve_format, self.value, self.effects)):
                return asking
            why_wrong = "other outputs than those of all logits"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # what an output function of the user's own says it reads may not be there
            why_wrong = in_one_line(error)
        self.effects.examples = whole
        _log.info("all logits are made, not only those that are read: %s", why_wrong)
        return examples

    def _why_wrong(self) -> str | None:
        return _why_wrong(self.module, self._layout, self.value, self.effects)

    def _placed_inputs(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        num_rows = next(len(each) for each in inputs.values() if isinstance(each, Tensor))
        placed = self._placed_examples(ExampleSet(dict(inputs), torch.zeros(num_rows))).inputs
        assert isinstance(placed, dict)
        return placed

    def _placed_examples(self, examples: ExampleSet) -> ExampleSet:
        if self.device.type == "cuda" and fits_on(self.device, examples):
            return examples.map(lambda tensor: moved(tensor, self.device, self._layout))
        if self.device.type == "cuda":
            _log.info("the examples do not fit on %s: they are streamed from pinned memory", self.device)
        return examples.map(self._kept)

    def _kept(self, tensor: Tensor) -> Tensor:
        """Where a tensor lies that is not on a GPU as a whole; one of a file is not copied, but shared by the node's
        processes, and each batch of it is laid out for itself."""
        if file_of(tensor) is not None:
            return tensor
        laid_out = with_layout(tensor, self._layout)
        return laid_out.pin_memory() if self.device.type == "cuda" else laid_out.to(self.device)

    def _ungated(self) -> dict[int, str]:
        """Groups without gates: in float32, where any error shows, and in the precision that passes run in."""
        ungated = ungated_groups(self.effects, self.value, self.module, self.device)
        if self.precision == "float32":
            return ungated
        return ungated_groups(
            self.effects,
            self.value,
            self.module,
            self.device,
            known=ungated,
            autocast=self.autocast,
            rounding=self.gated_rounding,
        )

    @property
    def gated_rounding(self) -> float:
        """What a 16-bit pass with gates is granted: some difference among thousands is larger than usual."""
        return _CHANCE * self.rounding

    def _rounding(self) -> float:
        if self.precision == "float32":
            return self.effects.rounding
        masker = self.value.masker(self.module)

        def autocast(mask: NDArray[np.bool_], batch: ExampleSet) -> Tensor:
            with masker.ablated(mask), self.autocast():
                return self.effects.margins(self.module, batch)

        return self.effects.error(autocast)

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
            yield start, self.on_device(self.laid_out(examples.rows(start, start + num_rows)))

    def filled(self, examples: ExampleSet, num_rows: int) -> ExampleSet:
        """The first ``num_rows`` examples on the device, repeated from the start where there are fewer."""
        rows = torch.arange(num_rows, device=examples.targets.device) % len(examples)
        return self.on_device(self.selected(examples, rows))

    def selected(self, examples: ExampleSet, rows: Tensor) -> ExampleSet:
        """``examples[rows]`` where they lie, in the module's layout."""
        return examples.map(lambda tensor: select_rows(tensor, rows, self._layout))

    def laid_out(self, examples: ExampleSet) -> ExampleSet:
        """Examples of anybody's in the module's layout; those that have it are not copied."""
        return examples.map(lambda tensor: with_layout(tensor, self._layout))

    def on_device(self, examples: ExampleSet) -> ExampleSet:
        """The examples where the module takes its inputs; from pinned memory the host does not wait for the copy."""
        return examples.map(lambda tensor: tensor.to(self.device, non_blocking=True))

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the module runs in the precision asked for."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.precision))

    def outputs(self, model: Callable[..., Any], inputs: Inputs) -> Any:
        """Raw outputs of the module, or of a compiled form or a part of it, without gradients."""
        if self.effects.changes_inputs:
            inputs = _cloned(inputs)
        with torch.no_grad(), self.autocast(), modules_called():
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


def _made_fast(
    module: nn.Module, value: AblationValue, effects: Effects
) -> tuple[nn.Module, torch.memory_format, AblationValue]:
    """The fastest of the module's forms that has the effects of the untouched one, its layout, and the value in it.

    BatchNorm folded and convolutions channels last, or one of the two, or the module as it is; values are written into
    biases, or put in place of activations.
    """
    forms = [(module, value)]
    if any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in module.modules()):
        folded = copy.deepcopy(module)
        changes = fold_batch_norms(folded, value.components)
        if changes:
            forms.insert(0, (folded, value.folded(changes)))
    for form, in_form in forms:
        written = in_form.prepared(form)
        for layout in dict.fromkeys([layout_of(form), torch.preserve_format]):
            for each in [written] if written is in_form else [written, in_form]:
                if form is module and layout == torch.preserve_format and each is in_form:
                    break
                lay_out(form, layout)
                why_wrong = _why_wrong(form, layout, each, effects)
                if why_wrong is None:
                    return form, layout, each
                lay_out(form, torch.contiguous_format)
                what = ["BatchNorm folded"] * (form is not module) + ["channels last"] * (layout == torch.channels_last)
                what += ["values in biases"] * (each is not in_form)
                _log.info("not used: %s: %s", " and ".join(what), why_wrong)
    return module, torch.preserve_format, value


def _why_wrong(form: nn.Module, layout: torch.memory_format, value: AblationValue, effects: Effects) -> str | None:
    margins_of = _margins_of(form, layout, value, effects)
    try:
        failures = effects.failures(effects.run(margins_of))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a view of another layout, say
        return in_one_line(error)
    if not failures:
        return None
    names = ", ".join(value.components.groups[failure.group].parameter for failure in failures[:3])
    return f"other effects than zeroed weights: {names}{', ...' if len(failures) > 3 else ''}"


def _margins_of(form: nn.Module, layout: torch.memory_format, value: AblationValue, effects: Effects) -> MarginsOf:
    """Margins of a form under one mask after the other."""
    masker = value.masker(form)

    def margins_of(mask: NDArray[np.bool_], batch: ExampleSet) -> Tensor:
        with masker.ablated(mask):
            return effects.margins(form, batch.map(lambda tensor: with_layout(tensor, layout)))

    return margins_of


def _cloned(inputs: Inputs) -> Inputs:
    if isinstance(inputs, Tensor):
        return inputs.clone()
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
