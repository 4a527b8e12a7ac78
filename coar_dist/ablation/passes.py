"""How a pass is run: eagerly, compiled, or as a CUDA graph; what cannot be done is said and left out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from coar_dist.ablation.graphs import RecordedFunction
from coar_dist.ablation.prepared import PreparedModel
from coar_dist.errors import in_one_line
from coar_dist.tasks.example_set import ExampleSet

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def unless_it_fails(attempt: Callable[[], _T], complaint: str) -> _T | None:
    """What ``attempt`` gives; where it fails, None and a line in the log that opens with ``complaint``.

    Compilers and recordings fail in their own ways: without a C++ compiler, on code that they do not know, where a
    model waits for the device or runs on the host in part.

    Raises:
        torch.OutOfMemoryError: fewer rows may do.
    """
    try:
        return attempt()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        _log.warning("%s: %s", complaint, in_one_line(error))
        return None


def recorded(function: Callable[..., Any], arguments: tuple[Any, ...], complaint: str) -> RecordedFunction | None:
    """``function`` as a CUDA graph; None as in ``unless_it_fails``."""
    return unless_it_fails(lambda: RecordedFunction(function, arguments), complaint)


class ForwardPass:
    """Forward passes of a whole prepared model, all of the same number of rows; eager until told otherwise.

    Args:
        model: whoever ablates it does so in place.
        num_rows: rows of every pass.

    Attributes:
        num_rows: the same.
        is_compiled: whether the model is compiled.
    """

    def __init__(self, model: PreparedModel, num_rows: int) -> None:
        self.num_rows = num_rows
        self.is_compiled = False
        self._model = model
        self._call: Callable[..., Any] = model.module
        self._recorded: RecordedFunction | None = None

    @property
    def is_recorded(self) -> bool:
        """Whether passes are replays of a CUDA graph."""
        return self._recorded is not None

    @property
    def has_fixed_shape(self) -> bool:
        """Whether a batch with fewer rows must be filled up."""
        return self.is_compiled or self.is_recorded

    def __call__(self, batch: ExampleSet) -> Tensor:
        """Margins (num_rows,) float32 on the device; the next call may overwrite them."""
        if self._recorded is None:
            return self._model.margins(self._call, batch)
        margins: Tensor = self._recorded(batch.inputs, batch.targets)
        return margins

    def trial_batch(self) -> ExampleSet:
        """The first examples, as many as a pass has rows."""
        return self._model.filled(self._model.examples, self.num_rows)

    def compile(self) -> None:
        """Compile the model, or say in the log why it stays eager.

        Raises:
            torch.OutOfMemoryError: fewer rows may do.
        """
        torch._dynamo.reset()
        compiled = torch.compile(self._model.module, dynamic=False)
        batch = self.trial_batch()
        complaint = "torch.compile failed, the model runs eagerly (ablation.compile=false avoids the attempt)"
        self.is_compiled = unless_it_fails(lambda: self._model.margins(compiled, batch), complaint) is not None
        if self.is_compiled:
            self._call = compiled

    def forget_compiled(self) -> None:
        """Run the model eagerly again."""
        self._call, self.is_compiled = self._model.module, False

    def record(self) -> None:
        """Record the passes as a CUDA graph, or say in the log why they are launched one kernel at a time.

        Raises:
            torch.OutOfMemoryError: fewer rows may do.
        """
        complaint = "forward passes are not recorded (ablation.cuda_graphs=false avoids the attempt)"
        if self._model.why_not_recorded is not None:
            _log.warning("%s: %s", complaint, self._model.why_not_recorded)
            return
        batch = self.trial_batch()
        self._recorded = recorded(
            lambda inputs, targets: self._model.margins(self._call, ExampleSet(inputs, targets)),
            (batch.inputs, batch.targets),
            complaint,
        )

    def forget_recording(self) -> None:
        """Launch kernels one at a time again, and free the recording's memory."""
        self._recorded = None
