"""What an ablated component is replaced by. Whatever runs ablated models gets its masks and gates here."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coar_dist.components.gate_hooks import GateOutput
from coar_dist.components.gates import GatedModel, plain_gate_output
from coar_dist.components.index import ComponentIndex
from coar_dist.components.masking import WeightMasker


@dataclass(frozen=True)
class ZeroWeights:
    """The paper's ablation value: a component's slices of the weights are zero, its bias stays.

    ``masker`` and ``gated`` give the same margins, by two means: one mask for all rows, or a mask for each row.

    Attributes:
        components: what can be ablated.
        read: parameters that a forward method reads itself: they are gated there.
    """

    components: ComponentIndex
    read: frozenset[str] = frozenset()

    def masker(self, model: nn.Module) -> WeightMasker:
        """Applies one mask at a time to the weights of ``model``, in place."""
        return WeightMasker(model, self.components)

    def gated(
        self,
        model: nn.Module,
        num_rows: int,
        device: torch.device,
        gate_output: GateOutput = plain_gate_output,
        without: Collection[int] = (),
        called: set[int] | None = None,
    ) -> GatedModel:
        """Gates on ``model``, which stay until they are removed.

        Args:
            model: the prepared model.
            num_rows: rows of every forward pass.
            device: where the gates lie.
            gate_output: how a linear map's output, its gate and its bias are put together.
            without: groups that get no gates.
            called: takes the groups whose gates are passed.
        """
        return GatedModel(model, self.components, num_rows, device, gate_output, without, called, self.read)

    def held_by(self, groups: Collection[int]) -> NDArray[np.bool_]:
        """(num_components,) the components of some groups."""
        held = np.zeros(self.components.num_components, np.bool_)
        for number in groups:
            held[self.components.offsets[number] : self.components.offsets[number + 1]] = True
        return held
