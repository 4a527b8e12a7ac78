"""Transformers of attention alone: small enough that the circuit of a behaviour is all that they have."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from coar_dist.errors import ConfigError


class SelfAttention(nn.Module):
    """Causal attention of several heads (Vaswani et al. 2017, section 3.2), without biases."""

    def __init__(self, width: int, num_heads: int, head_width: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, num_heads * head_width, bias=False)
        self.k_proj = nn.Linear(width, num_heads * head_width, bias=False)
        self.v_proj = nn.Linear(width, num_heads * head_width, bias=False)
        self.o_proj = nn.Linear(num_heads * head_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(num_rows, length, width) to the same shape."""
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class AttentionOnly(nn.Module):
    """Embeddings of tokens and positions, layers of attention on a residual stream, logits of the next token: the
    attention-only transformers of Elhage et al. 2021, with learned positions."""

    def __init__(
        self, vocabulary: int, length: int, width: int, num_layers: int, num_heads: int, head_width: int
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.layers = nn.ModuleList(SelfAttention(width, num_heads, head_width) for _ in range(num_layers))
        self.unembed = nn.Linear(width, vocabulary, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(num_rows, length) int64 to logits (num_rows, length, vocabulary)."""
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1], device=input_ids.device))
        for layer in self.layers:
            x = x + layer(x)
        return self.unembed(x)  # type: ignore[no-any-return]


def attention_only(
    vocabulary: int = 32,
    length: int = 32,
    width: int = 64,
    num_layers: int = 2,
    num_heads: int = 8,
    head_width: int | None = None,
) -> nn.Module:
    """``AttentionOnly`` with random weights from torch's current generator.

    Args:
        vocabulary: number of tokens.
        length: of the longest sequence.
        width: of the residual stream.
        num_layers: of attention.
        num_heads: of each layer.
        head_width: of queries, keys and values; None: ``width / num_heads``.

    Raises:
        ConfigError: heads do not divide the width.
    """
    if head_width is None and width % num_heads:
        raise ConfigError(f"width={width} is no multiple of num_heads={num_heads}. Set head_width.")
    model = AttentionOnly(vocabulary, length, width, num_layers, num_heads, head_width or width // num_heads)
    for embedding in (model.tokens, model.positions):
        nn.init.normal_(embedding.weight, std=width**-0.5)
    return model
