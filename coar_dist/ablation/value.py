"""What an ablated component is replaced by. Whatever runs ablated models gets its masks and gates here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from coar_dist.components.gates import GatedModel, GateOutput, plain_gate_output, why_not_gated
from coar_dist.components.index import ComponentIndex
from coar_dist.components.masking import WeightMasker


@dataclass(frozen=True)
class ZeroWeights:
    """The paper's ablation value: a component's slices of the weights are zero, its bias stays.

    ``masker`` and ``gated`` give the same margins, by two means: one mask for all rows, or a mask for each row.

    Attributes:
        components: what can be ablated.
    """

    components: ComponentIndex

    def masker(self, model: nn.Module) -> WeightMasker:
        """Applies one mask at a time to the weights of ``model``, in place."""
        return WeightMasker(model, self.components)

    def why_not_gated(self, model: nn.Module) -> str | None:
        """Why ``gated`` cannot be had; None where it can, as far as the kinds of the layers tell."""
        return why_not_gated(model, self.components)

    def gated(
        self, model: nn.Module, num_rows: int, device: torch.device, gate_output: GateOutput = plain_gate_output
    ) -> GatedModel:
        """Gates on ``model``, which stay until they are removed.

        Args:
            model: ``why_not_gated`` must have given None for it.
            num_rows: of every forward pass.
            device: where the gates lie.
            gate_output: how a linear map's output, its gate and its bias are put together.
        """
        return GatedModel(model, self.components, num_rows, device, gate_output)
