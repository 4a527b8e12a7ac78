"""Neuron conductance and internal influence of components, by Captum, for all layers in one pass.

- Neuron conductance (Dhamdhere et al. 2018, section 3; Captum's ``LayerConductance``): of an activation h of the layer,
  the integral of df/dh dh along the straight path from a zero input to the example.
- Internal influence (Leino et al. 2018, section 2; Captum's ``InternalInfluence``): the mean of df/dh along that path.

Neither paper says what a filter's or a head's is. Here a component's is the sum over its activations: over all
positions of a filter's map or of a neuron's sequence, over the block of a head, over the places of a token.
Conductances are additive, so that their sum is the conductance of the component as one unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from coar_dist.baselines.gradient_x_parameter import without_gradient
from coar_dist.baselines.input_path import InputPath
from coar_dist.baselines.taps import Taps
from coar_dist.components.index import ComponentIndex
from coar_dist.errors import ConfigError
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import OutputFunction


def captum_layers() -> Any:
    """The module ``captum.attr``.

    Raises:
        ConfigError: captum is not installed.
    """
    try:
        import captum.attr
    except ImportError as error:
        raise ConfigError(
            f"baselines=[neuron_conductance, internal_influence] need captum, which cannot be imported ({error}): "
            f"pip install 'coar-dist[baselines]', or leave them out."
        ) from error
    return captum.attr


class PathAttribution:
    """Attributes margins to components along the path from zeros to each example.

    Args:
        model: in eval mode; gates must be right for all of its components. It is not changed, but within ``attached``.
        components: the component index.
        output_function: from outputs and targets to margins.
        probe: two examples, on the model's device.

    Raises:
        ConfigError: captum is missing, the inputs cannot be scaled, a layer is called twice in a pass, or margins have
            no gradient.
    """

    def __init__(
        self, model: nn.Module, components: ComponentIndex, output_function: OutputFunction, probe: ExampleSet
    ) -> None:
        self._captum = captum_layers()
        self._output_function = output_function
        self._path = InputPath(model, probe.inputs, lambda outputs: output_function(outputs, probe.targets).float())
        self._taps = Taps(model, components)
        with self.attached(), torch.enable_grad():
            margins = self._margins(*self._arguments(probe))
            if not margins.requires_grad or not self._taps.find_used(margins):
                raise without_gradient(output_function)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on the model for the length of a ``with`` block; it is as before on every exit."""
        with self._path.attached(), self._taps.attached():
            yield

    def weights(self, method: str, examples: ExampleSet, num_steps: int, rows_per_pass: int) -> Tensor:
        """Weights of some examples; only within ``attached``.

        Args:
            method: ``neuron_conductance`` or ``internal_influence``.
            examples: n of them, on the model's device.
            num_steps: Captum's ``n_steps``, at the nodes of Gauss-Legendre quadrature.
            rows_per_pass: Captum's ``internal_batch_size``: rows (step and example) of one pass at most.

        Returns:
            (n, num_components) float32 on the CPU.
        """
        is_conductance = method == "neuron_conductance"
        kind = self._captum.LayerConductance if is_conductance else self._captum.InternalInfluence
        arguments = self._arguments(examples)
        ends, others = arguments[: self._path.num_ends], arguments[self._path.num_ends :]
        num_points = num_steps + 1 if is_conductance else num_steps
        needs_parts = num_points * len(examples) > rows_per_pass
        with torch.no_grad():  # Captum turns gradients on where it takes them; its sums need none
            found = kind(self._margins, self._taps).attribute(
                ends,
                additional_forward_args=others,
                n_steps=num_steps,
                internal_batch_size=max(rows_per_pass, (1 + is_conductance) * len(examples)) if needs_parts else None,
            )
        return self._taps.summed(found if isinstance(found, tuple) else (found,))

    def _arguments(self, examples: ExampleSet) -> tuple[Tensor, ...]:
        self._taps.start()
        ends, others = self._path.split(examples.inputs)
        return (*ends, *others, examples.targets)

    def _margins(self, *arguments: Tensor) -> Tensor:
        """Margins at points of the path: what Captum calls, with its hook on the taps."""
        num_ends = self._path.num_ends
        self._taps.start()
        outputs = self._path.call(arguments[:num_ends], arguments[num_ends:-1])
        self._taps()
        return self._output_function(outputs, arguments[-1]).float()
