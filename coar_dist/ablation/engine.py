"""The ablation engine: margins of one task under given masks, in one process, on one device.

Two ways that give the same margins:

- ``weights``: one mask at a time; its slices of the weights are zeroed in place, all examples go through.
- ``rows``: every row of a forward pass is one (mask, example) pair and carries its own gates, so that few examples
  still fill the device, and nothing is written to the weights.

Both run on a prepared model: BatchNorm folded, channels last, optionally compiled, optionally as a CUDA graph.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coar_dist.ablation.folding import fold_batch_norms
from coar_dist.ablation.gradients import WITHOUT_GRADIENTS, GradientPasses, sharing_tensors
from coar_dist.ablation.graphs import RecordedFunction, why_not_recorded
from coar_dist.ablation.placement import fits_on, layout_of, on_host, repeat_exactly, select_rows, with_layout
from coar_dist.ablation.plan import EnginePlan
from coar_dist.ablation.prefix import Cut, PrefixCuts
from coar_dist.ablation.probe import Probe
from coar_dist.components.discovery import check_components
from coar_dist.components.gates import GatedModel, why_not_gated
from coar_dist.components.index import ComponentIndex
from coar_dist.components.masking import WeightMasker
from coar_dist.components.masks import check_masks
from coar_dist.errors import ConfigError, NonFiniteMarginError, in_one_line
from coar_dist.store.gradients import GateGradients
from coar_dist.tasks.outputs import predicted_classes
from coar_dist.tasks.task import ExampleSet, Inputs, Task, call_model

_log = logging.getLogger(__name__)
_EAGER_COST = 1.5
"""What an eager forward pass costs in compiled ones, about: the parts of a model cut in two are not compiled."""


@dataclass(frozen=True)
class Unablated:
    """The unablated model's outputs.

    Attributes:
        margins: (num_examples,) float32.
        predictions: (num_examples,) int64 predicted classes; None where outputs are not (num_rows, num_classes) logits.
    """

    margins: NDArray[np.float32]
    predictions: NDArray[np.int64] | None


class AblationEngine:
    """Runs a task's model under masks.

    It owns the task's model, which it prepares in place. In mode ``weights``, weights are changed only within a call
    of ``margins``, and have their exact bits again after it, whatever happened.

    Args:
        task: model, examples, output function.
        components: the component index.
        device: a torch device.
        precision: ``float32``, or ``bfloat16`` for autocast.
        plan: how to run; ``use`` changes it.

    Attributes:
        device: where the model takes its inputs.
        reuse_activations: whether masks that leave the first layers untouched reuse their activations.
    """

    def __init__(
        self,
        task: Task,
        components: ComponentIndex,
        device: str,
        precision: str,
        plan: EnginePlan | None = None,
    ) -> None:
        self.components = components
        self._output_function = task.output_function
        self.device = torch.device(device)
        self._precision = precision
        repeat_exactly(self.device, precision)
        check_components(task.model, components)
        model = task.model.eval().requires_grad_(False)
        if hasattr(model, "hf_device_map"):  # spread over several devices: inputs go to the first
            self.device = next(model.parameters()).device
        else:
            model = model.to(self.device)
        self._probe = Probe(task, components, self.device)
        self._model = self._fold(model)
        self._layout = layout_of(self._model)
        if self._layout != torch.preserve_format:
            self._model = self._model.to(memory_format=self._layout)  # type: ignore[call-overload]
        self._examples = task.examples.without_columns().map(lambda tensor: with_layout(tensor, self._layout))
        if fits_on(self.device, self._examples):
            self._examples = self._on_device(self._examples)
        elif self.device.type == "cuda":
            _log.info("the examples do not fit on %s: they are streamed from pinned memory", self.device)
            self._examples = self._examples.map(lambda tensor: tensor.pin_memory())
        self._cuts = PrefixCuts(self._model, components, self._filled(self._examples, 2).inputs)
        self.reuse_activations = self._probe.parts_are_the_whole(self._model, self._cuts)
        self._masker: WeightMasker | None = None
        self._gated: GatedModel | None = None
        self._forward: Callable[..., Any] = self._model
        self._recorded: RecordedFunction | None = None
        self.why_not_recorded = why_not_recorded(self._model, self.device)
        self.why_not_gated = why_not_gated(self._model, components) or self._probe.why_gates_fail(self._model)
        self.plan = EnginePlan("weights", min(512, self.num_examples), compiled=False)
        self._twin = sharing_tensors(self._model)
        self._gradients: GradientPasses | None = None
        self.use(plan or self.plan)

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return len(self._examples)

    def use(self, plan: EnginePlan) -> None:
        """Change how the forward passes are run.

        Raises:
            ConfigError: mode ``rows`` is asked for and the model has components without a gated form.
            torch.OutOfMemoryError: a single row needs more memory than there is.
        """
        while True:
            try:
                self._take_up(plan)
                return
            except torch.OutOfMemoryError:  # what is compiled or recorded has run once
                if plan.rows_per_forward == 1:
                    raise
            plan = self._halved(plan)  # outside of the handler: its traceback holds on to tensors

    def _halved(self, plan: EnginePlan) -> EnginePlan:
        """The plan with half the rows, and the memory to try it."""
        fewer = replace(plan, rows_per_forward=plan.rows_per_forward // 2)
        _log.warning("out of memory with %s: going on with %d rows", plan, fewer.rows_per_forward)
        self.close()
        torch.cuda.empty_cache()
        return fewer

    def _take_up(self, plan: EnginePlan) -> None:
        is_ready = (self._masker or self._gated) is not None
        if is_ready and plan.margins_as(self.plan):
            self.plan = plan
            return
        try:
            if is_ready and plan.margins_as(replace(self.plan, recorded=plan.recorded)):
                self.plan, self._recorded = plan, None
            else:
                self.close()
                self._prepare(plan)
            if plan.recorded:
                self._record()
        except BaseException:
            self.close()
            raise

    def _prepare(self, plan: EnginePlan) -> None:
        self.plan = plan
        if plan.mode == "weights":
            self._masker = WeightMasker(self._model, self.components)
        else:
            if self.why_not_gated is not None:
                raise ConfigError(
                    f"ablation.mode='rows' cannot be used: {self.why_not_gated}. Use ablation.mode=weights."
                )
            self._gated = GatedModel(self._model, self.components, plan.rows_per_forward, self.device)
        self._forward = self._compiled() if plan.compiled else self._model

    def close(self) -> None:
        """Take gates and masks off the model; ``use`` starts again."""
        if self._gated is not None:
            self._gated.remove()
        self._gated = self._masker = self._recorded = None
        self._forward = self._model

    def _fold(self, model: nn.Module) -> nn.Module:
        """A folded copy of ``model`` if it gives the margins of the untouched one, else ``model``."""
        if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
            return model
        folded = copy.deepcopy(model)
        if fold_batch_norms(folded, self.components) == 0:
            return model
        if self._probe.holds_for(folded):
            return folded
        _log.warning("BatchNorm is not folded: the folded model does not give the margins of the original one")
        return model

    def _compiled(self) -> Callable[..., Any]:
        torch._dynamo.reset()
        compiled = torch.compile(self._model, dynamic=False)
        try:
            self._margins_of(compiled, self._trial_batch())
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the compiler fails in its own ways: no C++ compiler, unsupported code
            reason = in_one_line(error)
            _log.warning("torch.compile failed, the model runs eagerly (ablation.compile=false says so): %s", reason)
            self.plan = replace(self.plan, compiled=False)
            return self._model
        return compiled

    def _record(self) -> None:
        batch, reason = self._trial_batch(), self.why_not_recorded
        if reason is None:
            try:
                self._recorded = RecordedFunction(
                    lambda inputs, targets: self._margins_of(self._forward, ExampleSet(inputs, targets)),
                    (batch.inputs, batch.targets),
                )
                return
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a model may wait for the device, or run on the host in part
                reason = in_one_line(error)
        _log.warning("forward passes are not recorded (ablation.cuda_graphs=false says so): %s", reason)
        self.plan = replace(self.plan, recorded=False)

    def _whole_margins(self, batch: ExampleSet) -> Tensor:
        """Margins of a batch of ``_row_count()`` rows, by the whole model in the plan's form."""
        if self._recorded is None:
            return self._margins_of(self._forward, batch)
        recorded: Tensor = self._recorded(batch.inputs, batch.targets)
        return recorded

    def _row_count(self) -> int:
        """Rows of every forward pass: fixed in mode ``rows``; in mode ``weights`` the examples are split evenly."""
        if self.plan.mode == "rows":
            return self.plan.rows_per_forward
        num_batches = math.ceil(self.num_examples / self.plan.rows_per_forward)
        return math.ceil(self.num_examples / num_batches)

    def margins(self, masks: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Margins of all examples under every mask.

        Args:
            masks: (num_masks, num_components) bool, True = kept.

        Returns:
            (num_masks, num_examples) float32; not checked for NaN, which the store refuses.
        """
        check_masks(masks, self.components.num_components)
        while True:
            try:
                compute = self._margins_by_rows if self._gated is not None else self._margins_by_weights
                return on_host(compute(masks))
            except torch.OutOfMemoryError:
                if self.plan.rows_per_forward == 1:
                    raise
            self.use(self._halved(self.plan))

    def gate_gradients(self, masks: NDArray[np.bool_], block: tuple[int, int]) -> GateGradients:
        """Margins and sums of gate gradients under every mask, of the examples ``block[0] .. block[1] - 1``.

        Args:
            masks: (num_masks, num_components) bool, True = kept.
            block: the first example, and the one after the last.

        Raises:
            ConfigError: the model has components without a gated form, or its margins have no gradient.
        """
        check_masks(masks, self.components.num_components)
        assert 0 <= block[0] < block[1] <= self.num_examples
        if self._gradients is None:
            if self.why_not_gated is not None:
                raise ConfigError(f"gate gradients cannot be had: {self.why_not_gated}. {WITHOUT_GRADIENTS}.")
            self._gradients = GradientPasses(
                self._twin, self.components, self._output_function, self._layout, self._autocast, self._probe
            )
        gradients, self.plan = self._gradients.compute(masks, self._examples.rows(*block), self.plan)
        return gradients

    def trial(self) -> float:
        """Seconds per margin with the current plan: the smallest of a few short measurements after a warm-up."""
        batch = self._trial_batch()
        mask = np.arange(self.components.num_components) % 20 != 0
        times = []
        for _ in range(4):
            self._synchronise()
            started = time.perf_counter()
            if self._masker is not None:
                with self._masker.ablated(mask):
                    masked = time.perf_counter()
                    self._whole_margins(batch)
                    self._synchronise()
                    forward = time.perf_counter() - masked
                masking = time.perf_counter() - started - forward
                times.append(forward / len(batch.targets) + masking / self.num_examples)
            else:
                self._whole_margins(batch)
                self._synchronise()
                times.append((time.perf_counter() - started) / len(batch.targets))
        return min(times[1:])

    def _trial_batch(self) -> ExampleSet:
        return self._filled(self._examples, self._row_count())

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _margins_by_weights(self, masks: NDArray[np.bool_]) -> Tensor:
        assert self._masker is not None
        margins = torch.empty(len(masks), self.num_examples, device=self.device)
        alone, by_cut = self._split_by_cut(masks)
        with self._masker.ablating() as zero:
            for row in alone:
                zero(masks[row])
                for start, batch in self._batches():
                    margins[row, start : start + len(batch)] = self._padded_margins(batch)
        for cut, rows in by_cut:
            for start, batch in self._batches():
                activations = self._outputs(cut.before, batch.inputs)
                with self._masker.ablating() as zero:
                    for row in rows:
                        zero(masks[row])
                        values = self._margins_of(cut.after, ExampleSet(activations, batch.targets))
                        margins[row, start : start + len(batch)] = values
        return margins

    def _padded_margins(self, batch: ExampleSet) -> Tensor:
        """Margins of a batch; what has a fixed shape gets a shorter last batch filled up."""
        num_rows = self._row_count()
        if len(batch) == num_rows or not (self.plan.compiled or self.plan.recorded):
            return self._whole_margins(batch)
        return self._whole_margins(self._filled(batch, num_rows))[: len(batch)]

    def _margins_by_rows(self, masks: NDArray[np.bool_]) -> Tensor:
        assert self._gated is not None
        kept = torch.from_numpy(np.ascontiguousarray(masks)).to(self.device).to(self._gated.gates.dtype)
        margins = torch.empty(len(masks), self.num_examples, device=self.device)
        alone, by_cut = self._split_by_cut(masks)
        if alone:
            margins[alone] = self._pairs(kept[alone], self._examples, self._whole_margins)
        for cut, rows in by_cut:
            for start, batch in self._batches():
                self._gated.gates.fill_(1.0)
                activations = self._outputs(cut.before, self._filled(batch, self._row_count()).inputs)[: len(batch)]
                behind = ExampleSet(activations, batch.targets)
                values = self._pairs(kept[rows], behind, partial(self._margins_of, cut.after))
                margins[rows, start : start + len(batch)] = values
        self._gated.gates.fill_(1.0)
        return margins

    def _pairs(self, kept: Tensor, examples: ExampleSet, margins_of: Callable[[ExampleSet], Tensor]) -> Tensor:
        """Margins (num_masks, num_examples) of all pairs of a mask and an example, one pair a row."""
        assert self._gated is not None
        num_rows, num_examples = self.plan.rows_per_forward, len(examples)
        margins = torch.empty(len(kept) * num_examples, device=self.device)
        num_passes = math.ceil(len(margins) / num_rows)
        # The last forward pass is filled up with pairs that are computed twice: its shape stays the same. Indices are
        # made where they are used: a copy from the host would wait for all that the device still has to do.
        pairs = [
            torch.arange(num_passes * num_rows, device=device).clamp(max=len(margins) - 1)
            for device in (self.device, examples.targets.device)
        ]
        masks, rows = pairs[0] // num_examples, pairs[1] % num_examples
        for start in range(0, len(margins), num_rows):
            torch.index_select(kept, 0, masks[start : start + num_rows], out=self._gated.gates)
            batch = self._on_device(self._selected(examples, rows[start : start + num_rows]))
            margins[start : start + num_rows] = margins_of(batch)[: len(margins) - start]
        return margins.reshape(len(kept), num_examples)

    def _split_by_cut(self, masks: NDArray[np.bool_]) -> tuple[list[int], list[tuple[Cut, list[int]]]]:
        """Rows of ``masks`` that run the whole model, and per cut those that reuse what comes before it."""
        alone: list[int] = []
        by_cut: dict[int, list[int]] = {}
        positions = self._cuts.of_masks(masks) if self.reuse_activations else [None] * len(masks)
        for row, position in enumerate(positions):
            if position is None:
                alone.append(row)
            else:
                by_cut.setdefault(position, []).append(row)
        worth = []
        for position, rows in by_cut.items():
            cut = self._cuts.part(position)
            if self._reuse_pays(cut.saved, len(rows)):
                worth.append((cut, rows))
            else:
                alone += rows
        return sorted(alone), worth

    def _reuse_pays(self, saved: float, num_masks: int) -> bool:
        """Whether so many masks are cheaper behind a cut, in forward passes of the whole model."""
        num_batches = math.ceil(self.num_examples / self._row_count())
        if self.plan.mode == "weights":
            plain = after = float(num_masks * num_batches)
        else:  # alone, the masks fill up forward passes with others; behind a cut they are on their own
            plain = num_masks * self.num_examples / self._row_count()
            after = num_batches * math.ceil(num_masks * min(self.num_examples, self._row_count()) / self._row_count())
        reused = saved * num_batches + (1 - saved) * after
        return reused * (_EAGER_COST if self.plan.compiled else 1.0) < plain

    def unablated(self) -> Unablated:
        """Margins and predictions of the model as it is, in mode ``weights``.

        Raises:
            NonFiniteMarginError: a margin is NaN or infinite; the message names examples.
        """
        margins, predictions = [], []
        for _, batch in self._batches():
            outputs = self._outputs(self._model, batch.inputs)
            margins.append(self._output_function(outputs, batch.targets).float())
            predicted = predicted_classes(outputs, batch.targets)
            if predicted is not None:
                predictions.append(predicted)
        values = torch.cat(margins).cpu().numpy()
        wrong = np.flatnonzero(~np.isfinite(values))
        if wrong.size:
            raise NonFiniteMarginError(
                f"the unablated model's margins of {wrong.size} examples are not finite: example {wrong[0]} has "
                f"{values[wrong[0]]} (examples {wrong[:10].tolist()}). Correct the inputs or the checkpoint, or leave "
                f"these examples out."
            )
        return Unablated(values, torch.cat(predictions).cpu().numpy() if predictions else None)

    def _batches(self) -> Iterator[tuple[int, ExampleSet]]:
        step = self._row_count()
        for start in range(0, self.num_examples, step):
            yield start, self._on_device(self._examples.rows(start, start + step))

    def _selected(self, examples: ExampleSet, rows: Tensor) -> ExampleSet:
        return examples.map(lambda tensor: select_rows(tensor, rows, self._layout))

    def _filled(self, examples: ExampleSet, num_rows: int) -> ExampleSet:
        """The first ``num_rows`` examples, repeated from the start where there are fewer."""
        rows = torch.arange(num_rows, device=examples.targets.device) % len(examples)
        return self._on_device(self._selected(examples, rows))

    def _on_device(self, examples: ExampleSet) -> ExampleSet:
        return examples.map(lambda tensor: tensor.to(self.device, non_blocking=True))

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self._precision))

    def _outputs(self, model: Callable[..., Any], inputs: Inputs) -> Any:
        with torch.no_grad(), self._autocast():
            return call_model(model, inputs)

    def _margins_of(self, model: Callable[..., Any], batch: ExampleSet) -> Tensor:
        with torch.no_grad():
            return self._output_function(self._outputs(model, batch.inputs), batch.targets).float()
