"""The ablation engine: margins of one task under given masks, in one process, on one device.

It owns a prepared model and runs it in the form that the plan names:

- ``weights``: one mask at a time is written into the weights, and all examples go through.
- ``rows``: every row of a forward pass is one (mask, example) pair and carries its own gates.

Both give the same margins. Gradient passes run on a twin of the model, which shares its weights.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.ablation.cut_probe import hold_cuts
from coar_dist.ablation.effects import allowed_error
from coar_dist.ablation.form import Form, smallest_of_trials, trial_mask
from coar_dist.ablation.gradients import WITHOUT_GRADIENTS, GradientPasses
from coar_dist.ablation.memory import peak_bytes, rows_that_fit
from coar_dist.ablation.non_finite import refuse_gradients_not_finite, refuse_not_finite
from coar_dist.ablation.plan import EnginePlan
from coar_dist.ablation.prefix import CutError, find_cuts
from coar_dist.ablation.prepared import PreparedModel
from coar_dist.ablation.rows_form import RowsForm
from coar_dist.ablation.unablated import Unablated, run_unablated
from coar_dist.ablation.value import AblationValue, ZeroWeights
from coar_dist.ablation.weights_form import WeightsForm
from coar_dist.components.gate_hooks import GateError
from coar_dist.components.index import ComponentIndex
from coar_dist.components.masks import check_masks
from coar_dist.errors import NoGradientsError
from coar_dist.store.gradients import GateGradients
from coar_dist.tasks.task import Task

_log = logging.getLogger(__name__)
_FORMS: dict[str, type[WeightsForm] | type[RowsForm]] = {"weights": WeightsForm, "rows": RowsForm}
_DEFAULT_ROWS, _DEFAULT_BYTES = 512, {"cpu": 2**30, "cuda": 2**33}
"""Rows of a forward pass where no plan is given, and what they take of memory at most."""
_MEASURED_ROWS = 4
"""Rows of the passes whose memory is measured."""
_NUM_HALVES = 6
"""Random halves of the components by which a compiled form is held to the eager one."""
_T = TypeVar("_T")


class AblationEngine:
    """Runs a task's model under masks.

    It takes over the task's model and changes it; hand in a copy if you need the original.

    Args:
        task: model, examples, output function.
        components: the component index.
        device: a torch device.
        precision: ``float32``, or ``bfloat16`` for autocast.
        plan: how to run; ``use`` changes it.
        value: what ablated components are replaced by; None is zeroed weights.

    Attributes:
        components: the component index.
        model: the prepared model.
        plan: how passes are run; what could not be compiled or recorded is not so in it.
        reuse_activations: whether masks that leave the first layers untouched reuse their activations.

    Raises:
        ComponentMismatchError: the components are not the model's.
        TaskError: the model is random in eval mode.
        ConfigError: as ``use``.
    """

    def __init__(
        self,
        task: Task,
        components: ComponentIndex,
        device: str,
        precision: str,
        plan: EnginePlan | None = None,
        value: AblationValue | None = None,
    ) -> None:
        self.components = components
        self.model = model = PreparedModel(task, value or ZeroWeights(components), torch.device(device), precision)
        self._cuts = find_cuts(model) if model.has_one_pass else None
        self.reuse_activations = self._cuts is not None
        self._say_ungated()
        self._twin = model.twin()  # before the model has gates
        self._form: Form | None = None
        batch = model.filled(model.examples, _MEASURED_ROWS)
        peak = peak_bytes(lambda: model.margins(model.module, batch), self.device)
        self._bytes_per_row = max(peak / _MEASURED_ROWS, 1.0)
        most = int(_DEFAULT_BYTES.get(self.device.type, 2**30) / self._bytes_per_row)
        self.plan = EnginePlan("weights", max(min(_DEFAULT_ROWS, self.num_examples, most), 1), compiled=False)
        self.use(plan or self.plan)

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return len(self.model.examples)

    @property
    def num_layers(self) -> int:
        """Modules of the model that have no others within."""
        return sum(next(module.children(), None) is None for module in self.model.module.modules())

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs."""
        return self.model.device

    @property
    def ungated(self) -> dict[int, str]:
        """Groups that gates cannot stand in for, by their place among the groups, with the reason.

        In mode ``rows`` and in gradient passes they are zeroed in the weights, a mask at a time.
        """
        return self.model.ungated

    @property
    def why_not_recorded(self) -> str | None:
        """Why passes cannot be CUDA graphs; None where they may be."""
        return self.model.why_not_recorded

    def use(self, plan: EnginePlan) -> None:
        """Change how the forward passes are run. Where a CPU has too little memory for so many rows, fewer are run.

        Raises:
            ConfigError: mode ``rows`` is asked for and the model has components without a gated form.
            torch.OutOfMemoryError: a single row needs more memory than there is.
        """
        rows = plan.rows_per_forward if plan.mode == "rows" else min(plan.rows_per_forward, self.num_examples)
        if self.device.type == "cpu" and rows > self.most_rows():  # it kills a process instead of raising an error
            plan = replace(plan, rows_per_forward=self.most_rows())
            taken = rows * self._bytes_per_row / 1e9
            _log.warning("%d rows take %.1f GB, more than may be taken: going on with %s", rows, taken, plan)
        self._with_rows_that_fit(plan, lambda _: None)

    def _with_rows_that_fit(self, plan: EnginePlan, work: Callable[[Form], _T]) -> _T:
        """Do the work in the plan's form, with half as many rows for as long as memory runs out."""
        while True:
            try:
                return work(self._take_up(plan))
            except torch.OutOfMemoryError:
                if plan.rows_per_forward == 1:
                    raise
            # Outside of the handler: its traceback holds on to tensors.
            fewer = replace(plan, rows_per_forward=plan.rows_per_forward // 2)
            _log.warning("out of memory with %s: going on with %d rows", plan, fewer.rows_per_forward)
            plan = fewer
            self.close()
            torch.cuda.empty_cache()

    def _take_up(self, plan: EnginePlan) -> Form:
        form = self._form
        try:
            if form is None or not plan.has_form_of(self.plan):
                form = self._new_form(plan)
            if not plan.recorded:
                form.forward.forget_recording()
            elif not form.forward.is_recorded:
                form.forward.record()
        except BaseException:
            self.close()
            raise
        self.plan = replace(plan, compiled=form.forward.is_compiled, recorded=form.forward.is_recorded)
        return form

    def _new_form(self, plan: EnginePlan) -> Form:
        self.close()
        self._form = form = _FORMS[plan.mode](self.model, plan.rows_per_forward)
        if plan.compiled:
            self._compile(form)
        return form

    def _compile(self, form: Form) -> None:
        """Compile a form, and keep it so only if it has the effects that it had before."""
        masks, examples = self._random_masks(), self.model.examples.rows(0, form.forward.num_rows)
        eager = form.whole(masks, examples).double()
        form.forward.compile()
        if not form.forward.is_compiled:
            return
        compiled = form.whole(masks, examples).double()
        effects, found = eager - eager[:1], compiled - compiled[:1]
        allowed = allowed_error(effects.square().mean().sqrt(), self.model.rounding)
        if not bool(((found - effects).abs() <= allowed).all()):
            _log.warning("the compiled model has other effects than the eager one, which runs instead")
            form.forward.forget_compiled()

    def _random_masks(self) -> NDArray[np.bool_]:
        """All components, and random halves of them, so that each is ablated and kept."""
        halves = np.random.default_rng(11).random((_NUM_HALVES // 2, self.components.num_components)) < 0.5
        return np.concatenate([np.ones_like(halves[:1]), halves, ~halves])

    def _say_ungated(self) -> None:
        """One line in the log that names the groups, and the way out."""
        if self.ungated:
            names = [self.components.groups[number].parameter for number in self.ungated]
            _log.info(
                "no gates for %d of %d parameters, which are zeroed in the weights instead, a mask at a time "
                "(components.exclude leaves them out): %s: %s",
                len(names),
                len(self.components.groups),
                ", ".join(names[:3]) + ", ..." * (len(names) > 3),
                next(iter(self.ungated.values())),
            )

    def close(self) -> None:
        """Take gates and masks off the model; the next call starts again."""
        if self._form is not None:
            self._form.close()
        self._form = None

    def margins(self, masks: NDArray[np.bool_], among: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """Margins of all examples under every mask.

        Args:
            masks: (num_masks, num_components) bool, True = kept.
            among: masks that these are a part of; what is reused follows from them, so that the part changes no bit.

        Returns:
            (num_masks, num_examples) float32; ``check_finite`` refuses NaN.
        """
        check_masks(masks, self.components.num_components)
        try:
            return self._with_rows_that_fit(self.plan, lambda form: self._margins(form, masks, among))
        except CutError as error:
            _log.warning("activations are not reused from now on: %s", error)
            self.reuse_activations = False
            return self.margins(masks, among)
        except GateError as error:
            if self.plan.mode != "rows":
                raise
            reason = str(error)
        _log.warning("gates do not fit all examples, falling back to mode weights: %s", reason)
        self.model.ungated = dict.fromkeys(range(len(self.components.groups)), reason)
        self.use(EnginePlan("weights", min(self.plan.rows_per_forward, self.num_examples), compiled=False))
        return self.margins(masks, among)

    def _margins(self, form: Form, masks: NDArray[np.bool_], among: NDArray[np.bool_] | None) -> NDArray[np.float32]:
        """Margins in a form, behind cuts where that is cheaper; a cut is held to the truth when it is first needed."""
        cuts = self._cuts if self.reuse_activations else None
        parts = form.split(masks, self.num_examples, cuts, among)
        while cuts is not None and (new := [cut for cut, _ in parts[1] if not cut.held]):
            plan = self.plan
            self.close()  # gates come off the model
            # Compiled again for every mask, it would cost more than all cuts.
            hold_cuts(cuts, self.model, [cut for cut in cuts.all if not cut.held] if plan.compiled else new)
            form = self._take_up(plan)
            parts = form.split(masks, self.num_examples, cuts, among)
        return form.margins(masks, self.model.examples, parts)

    def check_finite(
        self, margins: NDArray[np.float32], masks: NDArray[np.bool_], first_mask: int, first_example: int = 0
    ) -> None:
        """Refuse margins that are not finite.

        Args:
            margins: (num_masks, n) float32, of masks from ``first_mask`` and examples from ``first_example`` on.
            masks: (num_masks, num_components) bool, True = kept.
            first_mask: a mask id.
            first_example: an example id.

        Raises:
            NonFiniteMarginError: the message names the mask, the example and the layer.
        """
        if not np.isfinite(margins).all():
            self.close()
            refuse_not_finite(margins, masks, first_mask, first_example, self.model)

    def check_finite_gradients(
        self, gradients: GateGradients, masks: NDArray[np.bool_], first_mask: int, first_example: int
    ) -> None:
        """Refuse margins or gradients that are not finite, as ``check_finite``."""
        self.check_finite(gradients.margins, masks, first_mask, first_example)
        wrong = np.flatnonzero(~np.isfinite(gradients.kept + gradients.ablated).all(axis=1))
        if wrong.size:
            self.close()
            example = first_example + int(wrong[0])
            passes, own = self._gradients, self.model.examples.rows(example, example + 1)
            eager = replace(self.plan, gradients_compiled=False, gradients_recorded=False)
            refuse_gradients_not_finite(
                lambda rows: passes.compute(rows, own, eager)[0], masks, first_mask, example, passes.model
            )

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
        gradients, self.plan = self._gradients.compute(masks, self.model.examples.rows(*block), self.plan)
        return gradients

    @cached_property
    def _gradients(self) -> GradientPasses:
        if self._twin is None:
            raise NoGradientsError(f"gate gradients cannot be had: the model cannot be copied. {WITHOUT_GRADIENTS}.")
        return GradientPasses(self._twin)

    def most_rows(self) -> int:
        """Rows of a forward pass that fit in this actor's share of the memory that is free now."""
        return rows_that_fit(self._bytes_per_row, self.device)

    def most_gradient_rows(self) -> int:
        """The same of a gradient pass, which is measured once more: it keeps activations of all layers."""
        mask, num_rows = trial_mask(self.components.num_components)[None], min(_MEASURED_ROWS, self.num_examples)
        passes, examples = self._gradients, self.model.examples.rows(0, num_rows)
        peak = peak_bytes(lambda: passes.compute(mask, examples, self.plan), self.device)
        return rows_that_fit(peak / num_rows, self.device)

    def trial(self) -> float:
        """Seconds per margin with the current plan: the smallest of a few short measurements after a warm-up."""
        return smallest_of_trials(self._take_up(self.plan).seconds_per_margin)

    def gradient_trial(self) -> float:
        """Seconds per margin of gradient passes, as ``trial``; the plan has fewer rows after it if memory ran out."""
        assert self.plan.gradient_rows is not None
        num_examples = min(self.plan.gradient_rows, self.num_examples)
        masks = np.tile(trial_mask(self.components.num_components), (self.plan.gradient_rows // num_examples, 1))

        def measure() -> float:
            started = time.perf_counter()
            self.gate_gradients(masks, (0, num_examples))
            return (time.perf_counter() - started) / (len(masks) * num_examples)

        return smallest_of_trials(measure)

    def unablated(self) -> Unablated:
        """Margins and predictions of the model as it is; the plan's mode must be ``weights``.

        Raises:
            NonFiniteMarginError: a margin is NaN or infinite; the message names examples.
        """
        form = self._take_up(self.plan)
        assert isinstance(form, WeightsForm), "gates ask for a fixed number of rows"
        return run_unablated(self.model, form.forward.num_rows)
