"""Gradient passes: one forward and one backward pass give every component's gate gradient, for every row.

A row is one (mask, example) pair, as in the engine's mode ``rows``. Its gate gradient estimates, for each component at
once, what its margin with the component kept has over its margin without it, the others as in the mask. No weight
needs a gradient, and sums over masks stay on the device: memory follows the rows, never masks x examples x components.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from coar_dist.ablation.graphs import RecordedFunction, why_not_recorded
from coar_dist.ablation.placement import on_host, select_rows
from coar_dist.ablation.plan import EnginePlan
from coar_dist.ablation.probe import Probe
from coar_dist.components.gates import GatedModel
from coar_dist.components.index import ComponentIndex
from coar_dist.components.secants import LocalSecants
from coar_dist.errors import ConfigError, in_one_line
from coar_dist.store.gradients import GateGradients
from coar_dist.tasks.outputs import OutputFunction
from coar_dist.tasks.task import ExampleSet, Inputs, call_model

_log = logging.getLogger(__name__)
DEFAULT_ROWS = 64
"""Rows of a gradient pass where the plan says nothing."""
WITHOUT_GRADIENTS = "Use gradients.num_masks=0 (estimator=coar), which needs none"
Autocast = Callable[[], AbstractContextManager[Any]]
"""Makes the context in which the model is called."""
_Pass = Callable[[Tensor, Tensor, Inputs, Tensor], tuple[Tensor, Tensor, Tensor]]


def sharing_tensors(model: nn.Module) -> nn.Module | None:
    """A copy of ``model`` on the same parameters and buffers, for other gates; None where it cannot be copied."""
    try:
        return copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})
    except Exception as error:  # a model may hold anything: locks, open files, tensors with a history
        _log.info("%s cannot be copied: %s: %s", type(model).__name__, type(error).__name__, error)
        return None


class GradientPasses:
    """Runs gradient passes on a model of its own.

    Args:
        model: from ``sharing_tensors``; it gets gates, and keeps them. ``why_not_gated`` must have given None for it.
        components: the component index.
        output_function: from outputs and targets to margins.
        layout: memory layout of image batches.
        autocast: around every call of the model.
        probe: of the untouched model.

    Raises:
        ConfigError: margins have no gradient, or are not those of zeroed weights, or there is no model.
    """

    def __init__(
        self,
        model: nn.Module | None,
        components: ComponentIndex,
        output_function: OutputFunction,
        layout: torch.memory_format,
        autocast: Autocast,
        probe: Probe,
    ) -> None:
        if model is None:
            raise ConfigError(f"gate gradients cannot be had: the model cannot be copied. {WITHOUT_GRADIENTS}.")
        self._model, self._output_function, self._layout, self._autocast = model, output_function, layout, autocast
        self._device = device = probe.device
        self._compiled: dict[tuple[int, int], _Pass] = {}
        self._recorded: dict[tuple[int, int, bool], _Pass] = {}
        self._can_compile, self._why_not_recorded = True, why_not_recorded(model, device)
        self._secants: LocalSecants | None = LocalSecants()
        self._gated = GatedModel(model, components, 1, device, self._secants.gate_output)
        try:
            reason = probe.why_wrong(self._probed, "a gradient pass with local secants")
            if reason is None:
                return
            _log.warning("gate gradients are plain derivatives, which say less: %s", reason)
            self._gated.remove()
            self._secants, self._gated = None, GatedModel(model, components, 1, device)
            reason = probe.why_wrong(self._probed, "a gradient pass")
            if reason is not None:
                raise ConfigError(f"gate gradients cannot be had: {reason}. {WITHOUT_GRADIENTS}.")
        except ConfigError:
            self._gated.remove()
            raise

    def compute(
        self, masks: NDArray[np.bool_], examples: ExampleSet, plan: EnginePlan
    ) -> tuple[GateGradients, EnginePlan]:
        """Margins and sums of gate gradients of all pairs of a mask and an example.

        Args:
            masks: (num_masks, num_components) bool, True = kept.
            examples: on any device.
            plan: rows of a pass at most, and whether it is compiled.

        Returns:
            The gradients, and the plan that they took: fewer rows where memory ran out, eager where compiling failed.
        """
        while True:
            num_rows = plan.gradient_rows or DEFAULT_ROWS
            try:
                gradients = self._sums(masks, examples, num_rows, plan)
                compiled = plan.gradients_compiled and self._can_compile
                recorded = plan.gradients_recorded and self._why_not_recorded is None
                return gradients, replace(plan, gradients_compiled=compiled, gradients_recorded=recorded)
            except torch.OutOfMemoryError:
                if num_rows == 1:
                    raise
                _log.warning("out of memory with %d rows per gradient pass: going on with %d", num_rows, num_rows // 2)
            self._recorded = {}
            torch.cuda.empty_cache()
            plan = replace(plan, gradient_rows=num_rows // 2)

    def _sums(self, masks: NDArray[np.bool_], examples: ExampleSet, num_rows: int, plan: EnginePlan) -> GateGradients:
        num_examples = math.ceil(len(examples) / math.ceil(len(examples) / num_rows))
        num_masks = math.ceil(len(masks) / math.ceil(len(masks) / (num_rows // num_examples)))
        kept = torch.from_numpy(np.ascontiguousarray(masks)).to(self._device).to(torch.float32)
        margins = torch.empty(len(masks), len(examples), device=self._device)
        sums = torch.zeros(2, len(examples), masks.shape[1], device=self._device)
        squares = torch.zeros(2, masks.shape[1], device=self._device, dtype=torch.float64)
        pairs = torch.arange(num_masks * num_examples, device=self._device)
        of_mask, of_example = pairs // num_examples, pairs % num_examples
        for start in range(0, len(examples), num_examples):
            own = examples.rows(start, start + num_examples).map(lambda tensor: tensor.to(self._device))
            # Fewer examples or masks than a pass holds are repeated and not counted: its shape stays the same.
            rows = of_example.clamp(max=len(own) - 1)
            batch = own.map(partial(select_rows, rows=rows, layout=self._layout))
            for first in range(0, len(masks), num_masks):
                chosen = torch.arange(first, first + num_masks, device=self._device).clamp(max=len(masks) - 1)
                counted = ((first + of_mask < len(masks)) & (of_example < len(own))).float()
                values, added, added_squares = self._run(kept[chosen], counted, batch, plan)
                values = values.reshape(num_masks, num_examples)[: len(masks) - first, : len(own)]
                margins[first : first + num_masks, start : start + len(own)] = values
                sums[:, start : start + len(own)] += added[:, : len(own)]
                squares += added_squares
        return GateGradients(on_host(margins), *on_host(sums), *on_host(squares))

    def _run(self, kept: Tensor, counted: Tensor, batch: ExampleSet, plan: EnginePlan) -> tuple[Tensor, Tensor, Tensor]:
        compiled = plan.gradients_compiled and self._can_compile
        run = self._compiled_pass(kept, counted, batch) if compiled else self._pass
        if plan.gradients_recorded and self._why_not_recorded is None:
            run = self._recorded_pass(run, compiled and self._can_compile, kept, counted, batch)
        with torch.no_grad():  # the backward half is within the pass
            return run(kept, counted, batch.inputs, batch.targets)

    def _pass(
        self, kept: Tensor, counted: Tensor, inputs: Inputs, targets: Tensor, autocast: Autocast | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One forward and backward pass.

        Args:
            kept: (num_masks, num_components) float32.
            counted: (num_masks * num_examples,) float32, 0 for a row that does not count in the sums.
            inputs: of num_masks * num_examples rows, all examples of the first mask first.
            targets: of the same rows.
            autocast: None is the one of the constructor.

        Returns:
            Float32 margins (num_masks * num_examples,), sums (2, num_examples, num_components) of gate gradients at
            kept and ablated gates, and sums (2, num_components) of their squares.
        """
        num_examples = len(targets) // len(kept)
        buffers = self._gated.buffers(kept.repeat_interleave(num_examples, dim=0))
        # Each group's gates are a leaf: gradients of slices of one would be padded to all components and added up.
        leaves = {name: gate.detach().requires_grad_() for name, gate in buffers.items()}
        with torch.enable_grad():
            with self._secants or nullcontext():
                with (autocast or self._autocast)():
                    outputs = call_model(lambda *a, **k: functional_call(self._model, leaves, a, k), inputs)
                margins = self._output_function(outputs, targets).float()
            if not margins.requires_grad:
                raise ConfigError(
                    f"task.output_function={self._output_function.name!r} gives margins without a gradient: it, or "
                    f"the model, is not differentiable. {WITHOUT_GRADIENTS}."
                )
            gradients = torch.autograd.grad(margins.sum(), list(leaves.values()), materialize_grads=True)
        gradient = torch.cat(gradients, dim=1).reshape(len(kept), num_examples, -1)
        gradient = gradient * counted.reshape(len(kept), num_examples, 1)
        chosen = [gradient * gates[:, None] for gates in (kept, 1 - kept)]
        sums = torch.stack([part.sum(dim=0) for part in chosen])
        squares = torch.stack([part.square().sum(dim=(0, 1)) for part in chosen])
        return margins.detach(), sums, squares

    def _probed(self, gates: Tensor, examples: ExampleSet) -> Tensor:
        return self._pass(gates, torch.ones_like(gates[:, 0]), examples.inputs, examples.targets, nullcontext)[0]

    def _compiled_pass(self, kept: Tensor, counted: Tensor, batch: ExampleSet) -> _Pass:
        """The pass for batches of this shape, traced with its backward half and compiled as one graph."""
        shape = (len(kept), len(batch))
        if shape not in self._compiled:
            try:
                # Tracing sees the backward pass only in its own thread. Its tensors have no values: Hugging Face's
                # masks then take the general way, instead of one that depends on what a tensor holds.
                trace = make_fx(
                    lambda *arguments: self._pass(*arguments), tracing_mode="fake", _allow_non_fake_inputs=True
                )
                with torch.autograd.set_multithreading_enabled(False):
                    graph = trace(kept, counted, batch.inputs, batch.targets)
                compiled: _Pass = torch.compile(graph, dynamic=False)
                with torch.no_grad():
                    compiled(kept, counted, batch.inputs, batch.targets)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # tracing and the compiler fail in their own ways
                reason = in_one_line(error)
                _log.warning("compiling gradient passes failed, they run eagerly: %s", reason)
                self._can_compile = False
                return self._pass
            self._compiled[shape] = compiled
        return self._compiled[shape]

    def _recorded_pass(self, run: _Pass, compiled: bool, kept: Tensor, counted: Tensor, batch: ExampleSet) -> _Pass:
        """The pass for batches of this shape as a CUDA graph."""
        key = (len(kept), len(batch), compiled)
        if key not in self._recorded:
            try:
                with torch.no_grad():
                    self._recorded[key] = RecordedFunction(run, (kept, counted, batch.inputs, batch.targets))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a model may wait for the device, or run on the host in part
                self._why_not_recorded = in_one_line(error)
                _log.warning("gradient passes are not recorded: %s", self._why_not_recorded)
                return run
        return self._recorded[key]
