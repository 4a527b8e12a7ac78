"""A vision transformer small enough to be trained on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from coar_dist.errors import TaskError


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, width // num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(num_rows, num_patches, width) to the same."""
        heads = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and a perceptron, each behind a LayerNorm and around a shortcut."""

    def __init__(self, width: int, num_heads: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_width), nn.GELU(), nn.Linear(mlp_width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(num_rows, num_patches, width) to the same."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class SmallViT(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021) that averages its patches where that has a class token."""

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        channels: int,
        width: int,
        depth: int,
        num_heads: int,
        mlp_width: int,
        num_classes: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (image_size // patch_size) ** 2, width))
        self.blocks = nn.Sequential(*[Block(width, num_heads, mlp_width, dropout) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(num_rows, channels, image_size, image_size) float32 to logits (num_rows, num_classes)."""
        x = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(x)).mean(dim=1))  # type: ignore[no-any-return]


def small_vit(
    image_size: int = 8,
    patch_size: int = 2,
    channels: int = 1,
    width: int = 64,
    depth: int = 4,
    num_heads: int = 4,
    mlp_width: int = 128,
    num_classes: int = 10,
    dropout: float = 0.1,
) -> nn.Module:
    """``SmallViT`` with random weights; by default for 8x8 grey digits, of 1,802 rows of its linear layers.

    Raises:
        TaskError: patches do not fill the image, or heads the width.
    """
    if image_size % patch_size or width % num_heads:
        raise TaskError(
            f"image_size={image_size} must be a multiple of patch_size={patch_size}, and width={width} of "
            f"num_heads={num_heads}."
        )
    return SmallViT(image_size, patch_size, channels, width, depth, num_heads, mlp_width, num_classes, dropout)
