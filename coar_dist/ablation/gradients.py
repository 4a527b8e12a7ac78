"""Gradient passes: one forward and one backward pass give every component's gate gradient, for every row.

A row is one (mask, example) pair, as in the engine's mode ``rows``. For each component, its gate gradient estimates the
margin with the component kept minus the margin without it, the others being as in the mask. No weight needs a gradient,
and sums over masks stay on the device: memory follows the rows, never masks x examples x components.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from coar_dist.ablation.effects import allowed_error
from coar_dist.ablation.gate_probe import failing_groups
from coar_dist.ablation.passes import recorded, unless_it_fails
from coar_dist.ablation.placement import modules_called, on_host
from coar_dist.ablation.plan import EnginePlan
from coar_dist.ablation.prepared import PreparedModel, even_size
from coar_dist.ablation.secants import LocalSecants
from coar_dist.components.gates import GatedModel, plain_gate_output
from coar_dist.errors import NoGradientsError
from coar_dist.store.gradients import GateGradients
from coar_dist.tasks.example_set import ExampleSet, Inputs
from coar_dist.tasks.task import call_model

_log = logging.getLogger(__name__)
_DEFAULT_ROWS = 64
"""Rows of a gradient pass where the plan says nothing."""
_PROBE_ROWS = 8
"""Rows of a pass of the probe, each with a mask of its own."""
WITHOUT_GRADIENTS = "Use estimator=coar, which needs none"
_Pass = Callable[[Tensor, Tensor, Inputs, Tensor], tuple[Tensor, Tensor, Tensor]]


class GradientPasses:
    """Runs gradient passes on a prepared model of its own.

    Args:
        model: gets gates, and keeps them. Groups that cannot be gated are ablated in its weights, a mask at a time.

    Attributes:
        model: as given.
        ungated: these groups, by their place among the groups, with the reason.

    Raises:
        NoGradientsError: margins have no gradient, or no group can be gated.
    """

    def __init__(self, model: PreparedModel) -> None:
        self.model = model
        self._compiled: dict[tuple[int, int], _Pass] = {}
        self._recorded: dict[tuple[int, int, bool], _Pass] = {}
        self._can_compile, self._can_record = True, model.why_not_recorded is None
        self._secants: LocalSecants | None = LocalSecants()
        self.ungated = self._failing_groups()
        if set(self.ungated) - set(model.ungated):
            self._without_secants_if_more_have_gradients()
        if len(self.ungated) == len(model.value.components.groups):
            number, reason = next(iter(self.ungated.items()))
            name = model.value.components.groups[number].parameter
            raise NoGradientsError(f"gate gradients cannot be had of {name}: {reason}. {WITHOUT_GRADIENTS}.")
        self._in_weights = model.value.held_by(self.ungated)
        self._masker = model.value.masker(model.module) if self.ungated else None
        self._gated = self._new_gates(self.ungated)

    def _without_secants_if_more_have_gradients(self) -> None:
        with_secants, self._secants = self._secants, None
        ungated = self._failing_groups()
        if len(ungated) < len(self.ungated):
            reason = next(why for number, why in self.ungated.items() if number not in ungated)
            _log.warning("gate gradients are plain derivatives, which say less than local secants: %s", reason)
            self.ungated = ungated
        else:
            self._secants = with_secants

    def _new_gates(self, without: Collection[int]) -> GatedModel:
        gate_output = plain_gate_output if self._secants is None else self._secants.gate_output
        return self.model.value.gated(self.model.module, 1, self.model.device, gate_output, without)

    def _failing_groups(self) -> dict[int, str]:
        """The groups without gate gradients, with the reason.

        Their gates have other effects than zeroed weights in a gradient pass, in float32 or in the precision that
        passes run in, or their gradients are not finite, as behind a square root of zero, or they are all zero although
        the effects are not, as in a part that the model runs without gradients.
        """
        model, groups = self.model, self.model.value.components.groups
        finite = np.ones(model.value.components.num_components, np.bool_)
        seen = np.zeros_like(finite)

        def failing(known: Mapping[int, str], in_float32: bool, rounding: float) -> dict[int, str]:
            def probed(masks: NDArray[np.bool_], examples: ExampleSet) -> Tensor:
                margins, sums = self._probed(masks, examples, in_float32)
                finite[~sums.isfinite().all(dim=0).cpu().numpy()] = False
                seen[(sums != 0).any(dim=0).cpu().numpy()] = True
                return margins

            def gated_margins(without: Collection[int]) -> NDArray[np.float64]:
                finite[:], seen[:] = True, False
                self._gated = self._new_gates(without)
                try:
                    return model.effects.run_rows(probed, _PROBE_ROWS)
                finally:
                    self._gated.remove()

            reasons = failing_groups(model.effects, len(groups), gated_margins, known, rounding)
            has_effects = model.effects.sizes() > allowed_error(0.0, rounding)
            for number in sorted(set(range(len(groups))) - set(reasons)):
                held = model.value.held_by([number])
                if not finite[held].all():
                    reasons[number] = "its gradients are not finite on the examples of the probe"
                elif has_effects[number] and not seen[held].any():
                    reasons[number] = "its gradients are zero on the examples of the probe, and its effects are not"
            return reasons

        reasons = failing(model.ungated, True, model.effects.rounding)
        return reasons if model.precision == "float32" else failing(reasons, False, model.gated_rounding)

    def compute(
        self, masks: NDArray[np.bool_], examples: ExampleSet, plan: EnginePlan
    ) -> tuple[GateGradients, EnginePlan]:
        """Margins and sums of gate gradients of all pairs of a mask and an example.

        Args:
            masks: (num_masks, num_components) bool, True = kept.
            examples: on any device.
            plan: rows of a pass at most, and whether it is compiled.

        Returns:
            The gradients, and the plan that was possible: fewer rows if memory ran out, eager if compiling failed.
        """
        while True:
            num_rows = plan.gradient_rows or _DEFAULT_ROWS
            try:
                gradients = self._sums(masks, examples, num_rows, plan)
                compiled = plan.gradients_compiled and self._can_compile
                is_recorded = plan.gradients_recorded and self._can_record
                return gradients, replace(plan, gradients_compiled=compiled, gradients_recorded=is_recorded)
            except torch.OutOfMemoryError:
                if num_rows == 1:
                    raise
                _log.warning("out of memory with %d rows per gradient pass: going on with %d", num_rows, num_rows // 2)
            self._recorded = {}
            torch.cuda.empty_cache()
            plan = replace(plan, gradient_rows=num_rows // 2)

    def _sums(self, masks: NDArray[np.bool_], examples: ExampleSet, num_rows: int, plan: EnginePlan) -> GateGradients:
        device = self.model.device
        num_examples = even_size(len(examples), num_rows)
        alone = self._masker is not None and not masks[:, self._in_weights].all()
        num_masks = 1 if alone else even_size(len(masks), num_rows // num_examples)
        kept = torch.from_numpy(np.ascontiguousarray(masks)).to(device).to(torch.float32)
        margins = torch.empty(len(masks), len(examples), device=device)
        sums = torch.zeros(2, len(examples), masks.shape[1], device=device)
        squares = torch.zeros(2, masks.shape[1], device=device, dtype=torch.float64)
        pairs = torch.arange(num_masks * num_examples, device=device)
        of_mask, of_example = pairs // num_examples, pairs % num_examples
        for start, own in self.model.batches(examples, num_examples):
            # Fewer examples or masks than a pass holds are repeated and not counted: its shape stays the same.
            batch = self.model.selected(own, of_example.clamp(max=len(own) - 1))
            for first in range(0, len(masks), num_masks):
                chosen = torch.arange(first, first + num_masks, device=device).clamp(max=len(masks) - 1)
                counted = ((first + of_mask < len(masks)) & (of_example < len(own))).float()
                with (
                    self._masker.ablated(masks[first] | ~self._in_weights) if alone and self._masker else nullcontext()
                ):
                    values, added, added_squares = self._run(kept[chosen], counted, batch, plan)
                values = values.reshape(num_masks, num_examples)[: len(masks) - first, : len(own)]
                margins[first : first + num_masks, start : start + len(own)] = values
                sums[:, start : start + len(own)] += added[:, : len(own)]
                squares += added_squares
        (kept_sums, ablated_sums), (kept_squares, ablated_squares) = on_host(sums), on_host(squares)
        known = ~self._in_weights
        return GateGradients(on_host(margins), kept_sums, ablated_sums, kept_squares, ablated_squares, known)

    def _run(self, kept: Tensor, counted: Tensor, batch: ExampleSet, plan: EnginePlan) -> tuple[Tensor, Tensor, Tensor]:
        run: _Pass = self._pass
        if plan.gradients_compiled and self._can_compile and self._masker is None:
            run = self._compiled_pass(kept, counted, batch)
        if plan.gradients_recorded and self._can_record:
            run = self._recorded_pass(run, kept, counted, batch)
        if self.model.effects.changes_inputs:
            batch = batch.map(torch.clone)
        with torch.no_grad(), modules_called():  # the backward half is within the pass
            return run(kept, counted, batch.inputs, batch.targets)

    def _pass(
        self, kept: Tensor, counted: Tensor, inputs: Inputs, targets: Tensor, in_float32: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One forward and backward pass.

        Args:
            kept: (num_masks, num_components) float32.
            counted: (num_masks * num_examples,) float32, 0 for a row that does not count in the sums.
            inputs: of num_masks * num_examples rows, all examples of the first mask first.
            targets: of the same rows.
            in_float32: without the model's autocast.

        Returns:
            Float32 margins (num_masks * num_examples,), sums (2, num_examples, num_components) of gate gradients at
            kept and ablated gates, and sums (2, num_components) of their squares.
        """
        num_examples = len(targets) // len(kept)
        leaves = self._gated.leaves(kept.repeat_interleave(num_examples, dim=0))
        buffers = self._gated.buffers(leaves)
        with torch.enable_grad():
            with self._secants or nullcontext():
                with nullcontext() if in_float32 else self.model.autocast():
                    outputs = call_model(lambda *a, **k: functional_call(self.model.module, buffers, a, k), inputs)
                margins = self.model.output_function(outputs, targets).float()
            if not margins.requires_grad:
                raise NoGradientsError(
                    f"task.output_function={self.model.output_function.name!r} gives margins without a gradient: "
                    f"it, or the model, is not differentiable. {WITHOUT_GRADIENTS}."
                )
            gradients = torch.autograd.grad(margins.sum(), leaves, materialize_grads=True)
        gradient = self._gated.gathered(gradients).reshape(len(kept), num_examples, -1)
        gradient = gradient * counted.reshape(len(kept), num_examples, 1)
        chosen = [gradient * gates[:, None] for gates in (kept, 1 - kept)]
        sums = torch.stack([part.sum(dim=0) for part in chosen])
        squares = torch.stack([part.square().sum(dim=(0, 1)) for part in chosen])
        return margins.detach(), sums, squares

    def _probed(self, masks: NDArray[np.bool_], examples: ExampleSet, in_float32: bool) -> tuple[Tensor, Tensor]:
        """Margins (num_rows,) of rows with a mask each, and the sums (2, num_components) of their gate gradients."""
        gates = torch.from_numpy(masks).to(self.model.device, torch.float32)
        own = examples.map(torch.clone)
        with modules_called():
            margins, sums, _ = self._pass(gates, torch.ones_like(gates[:, 0]), own.inputs, own.targets, in_float32)
        return margins, sums[:, 0]

    def _compiled_pass(self, kept: Tensor, counted: Tensor, batch: ExampleSet) -> _Pass:
        """The pass for batches of this shape, traced with its backward half and compiled as one graph."""
        shape = (len(kept), len(batch))
        if shape not in self._compiled:
            arguments = (kept, counted, batch.inputs, batch.targets)
            compiled = unless_it_fails(
                lambda: self._compile(*arguments), "compiling gradient passes failed, they run eagerly"
            )
            if compiled is None:
                self._can_compile = False
                return self._pass
            self._compiled[shape] = compiled
        return self._compiled[shape]

    def _compile(self, *arguments: Any) -> _Pass:
        # Tracing sees the backward pass only in its own thread. Its tensors have no values: Hugging Face's masks then
        # take the general way, instead of one that depends on what a tensor holds.
        trace = make_fx(lambda *given: self._pass(*given), tracing_mode="fake", _allow_non_fake_inputs=True)
        with torch.autograd.set_multithreading_enabled(False):
            graph = trace(*arguments)
        compiled: _Pass = torch.compile(graph, dynamic=False)
        with torch.no_grad():
            compiled(*arguments)
        return compiled

    def _recorded_pass(self, run: _Pass, kept: Tensor, counted: Tensor, batch: ExampleSet) -> _Pass:
        """``run`` for batches of this shape as a CUDA graph."""
        key = (len(kept), len(batch), run == self._pass)
        if key not in self._recorded:
            arguments = (kept, counted, batch.inputs, batch.targets)
            with torch.no_grad():
                replay = recorded(run, arguments, "gradient passes are not recorded")
            if replay is None:
                self._can_record = False
                return run
            self._recorded[key] = replay
        return self._recorded[key]
