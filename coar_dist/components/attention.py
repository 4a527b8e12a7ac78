"""``nn.MultiheadAttention`` with gates: its forward reads packed weights directly, so hooks cannot reach inside.

``gated_attention`` is the same mathematics (Vaswani et al. 2017, section 3.2) in eval mode, with a gate on every row of
the packed projection and on rows or columns of the output projection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

Gate = Callable[[Tensor], Tensor]
"""Multiplies the last axis of (num_rows, length, features) by the rows' gates."""
PLACEMENTS = ("projections", "attention_output", "attention_input")
"""Where gates stand within an attention module."""


def _no_gate(features: Tensor) -> Tensor:
    return features


@dataclass
class AttentionGates:
    """The gates of one attention module.

    Attributes:
        projections: q, k and v, before their biases.
        output_inputs: what the output projection reads.
        output: what it gives, before its bias.
    """

    projections: list[Gate] = field(default_factory=lambda: [_no_gate, _no_gate, _no_gate])
    output_inputs: Gate = _no_gate
    output: Gate = _no_gate

    def put(self, placement: str, gates: list[Gate]) -> None:
        """Put gates where ``placement`` says, one of ``PLACEMENTS``: three for the projections, else one."""
        if placement == "projections":
            self.projections = gates
        elif placement == "attention_output":
            (self.output,) = gates
        else:
            (self.output_inputs,) = gates


def can_be_gated(module: nn.MultiheadAttention) -> bool:
    """Whether ``gated_attention`` covers the module's options."""
    return module.in_proj_weight is not None and module.bias_k is None and not module.add_zero_attn


def gated_attention(
    module: nn.MultiheadAttention, gates: AttentionGates
) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """A replacement of ``module.forward`` that applies ``gates``; arguments and results as those of the original."""

    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        del is_causal  # only a hint about attn_mask, which has to be given with it
        if query.ndim != 3:
            raise RuntimeError("a gated MultiheadAttention needs a batch axis. Use ablation.mode=weights.")
        inputs = [query, key, value] if module.batch_first else [x.transpose(0, 1) for x in (query, key, value)]
        weights = module.in_proj_weight.chunk(3)
        biases = module.in_proj_bias.chunk(3) if module.in_proj_bias is not None else (None, None, None)
        heads = []
        for x, weight, bias, gate in zip(inputs, weights, biases, gates.projections, strict=True):
            projected = gate(functional.linear(x, weight))
            projected = projected if bias is None else projected + bias.to(projected.dtype)
            heads.append(projected.reshape(*projected.shape[:2], module.num_heads, module.head_dim).transpose(1, 2))
        q, k, v = heads
        scores = (q @ k.transpose(-2, -1)) * module.head_dim**-0.5
        if attn_mask is not None:
            mask = (
                attn_mask if attn_mask.ndim == 2 else attn_mask.reshape(len(q), module.num_heads, *attn_mask.shape[1:])
            )
            scores = scores + _additive(mask, scores.dtype)
        if key_padding_mask is not None:
            scores = scores + _additive(key_padding_mask[:, None, None, :], scores.dtype)
        attention = scores.softmax(dim=-1)
        mixed = gates.output_inputs((attention @ v).transpose(1, 2).flatten(2))
        output = gates.output(functional.linear(mixed, module.out_proj.weight))
        if module.out_proj.bias is not None:
            output = output + module.out_proj.bias.to(output.dtype)
        output = output if module.batch_first else output.transpose(0, 1)
        if not need_weights:
            return output, None
        return output, attention.mean(dim=1) if average_attn_weights else attention

    return forward


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))
    return mask.to(dtype)
