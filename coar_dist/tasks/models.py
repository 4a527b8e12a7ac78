"""Model constructors: small residual nets of this package, and the registry of all sources.

A user's own model is ``task.model.source=my_module:build_model`` with ``task.model.checkpoint=weights.safetensors``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from coar_dist.errors import TaskError
from coar_dist.tasks.models_attention import attention_only
from coar_dist.tasks.models_clip import clip_zero_shot
from coar_dist.tasks.models_hub import timm_model, torchvision_model, transformers_config, transformers_model
from coar_dist.tasks.models_vit import small_vit


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a shortcut (He et al. 2015, figure 2).

    Args:
        projection: where the shape changes, True puts a 1x1 convolution on the shortcut (option B), False subsamples
            and pads with zero channels (option A, no parameters).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.num_padded = 0
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            if projection:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                    nn.BatchNorm2d(out_channels),
                )
            else:
                self.num_padded = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """(num_rows, in_channels, height, width) to (num_rows, out_channels, height / stride, width / stride)."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.num_padded:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.num_padded, self.num_padded))
        return functional.relu(out + x)


class DigitsResNet(nn.Module):
    """A residual net for 8x8 grey images, of two stages; width 16 with 2 blocks each has 240 convolution filters."""

    def __init__(self, width: int, num_blocks: int, num_classes: int, stem_stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, stride=stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(*[ResidualBlock(width, width, 1, projection=True) for _ in range(num_blocks)])
        self.layer2 = nn.Sequential(
            ResidualBlock(width, 2 * width, 2, projection=True),
            *[ResidualBlock(2 * width, 2 * width, 1, projection=True) for _ in range(num_blocks - 1)],
        )
        self.linear = nn.Linear(2 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(num_rows, 1, height, width) float32, 8x8 or larger, to logits (num_rows, num_classes)."""
        x = functional.relu(self.bn1(self.conv1(images)))
        x = self.layer2(self.layer1(x))
        return self.linear(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


class CifarResNet(nn.Module):
    """The CIFAR ResNet of He et al. 2015, section 4.2: three stages of 16, 32 and 64 channels, option-A shortcuts."""

    def __init__(self, num_blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, num_blocks, stride=1)
        self.layer2 = self._stage(16, 32, num_blocks, stride=2)
        self.layer3 = self._stage(32, 64, num_blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, num_blocks: int, stride: int) -> nn.Sequential:
        blocks = [ResidualBlock(in_channels, out_channels, stride, projection=False)]
        blocks += [ResidualBlock(out_channels, out_channels, 1, projection=False) for _ in range(num_blocks - 1)]
        return nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        """(num_rows, 3, 32, 32) float32, normalised, to logits (num_rows, num_classes)."""
        x = functional.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def digits_resnet(width: int = 16, num_blocks: int = 2, num_classes: int = 10, stem_stride: int = 1) -> nn.Module:
    """``DigitsResNet`` with random weights from torch's current generator; ``stem_stride=2`` is for larger images."""
    return DigitsResNet(width, num_blocks, num_classes, stem_stride)


class MiniResNet(nn.Module):
    """The CIFAR-10 net of the COAR research code, with its parameter names: a stem and basic blocks of one width, all
    at stride 1, then 8x8 average pooling and a linear layer on the 4x4 positions that are left."""

    def __init__(self, width: int, num_blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer = nn.Sequential(*[ResidualBlock(width, width, 1, projection=True) for _ in range(num_blocks)])
        self.linear = nn.Linear(width * 4 * 4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(num_rows, 3, 32, 32) float32, normalised, to logits (num_rows, num_classes)."""
        x = self.layer(functional.relu(self.bn1(self.conv1(images))))
        return self.linear(functional.avg_pool2d(x, 8).flatten(1))  # type: ignore[no-any-return]


def cifar_resnet(depth: int = 20, num_classes: int = 10) -> nn.Module:
    """``CifarResNet`` of 20, 32, 44, 56, 110, ... layers (``6 n + 2``).

    Raises:
        TaskError: there is none of that depth.
    """
    if depth < 8 or depth % 6 != 2:
        raise TaskError(f"depth={depth}: a CIFAR ResNet has 6 n + 2 layers, e.g. 20, 32, 44, 56 or 110.")
    return CifarResNet((depth - 2) // 6, num_classes)


def cifar_resnet20(num_classes: int = 10) -> nn.Module:
    """ResNet-20: 688 convolution filters."""
    return cifar_resnet(20, num_classes)


def mini_resnet(width: int = 256, num_blocks: int = 4, num_classes: int = 10) -> nn.Module:
    """``MiniResNet``; by default that of the paper's CIFAR-10 setup, of 2,304 convolution filters."""
    return MiniResNet(width, num_blocks, num_classes)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "digits_resnet": digits_resnet,
    "cifar_resnet20": cifar_resnet20,
    "cifar_resnet": cifar_resnet,
    "mini_resnet": mini_resnet,
    "small_vit": small_vit,
    "attention_only": attention_only,
    "torchvision": torchvision_model,
    "timm": timm_model,
    "transformers": transformers_model,
    "transformers_config": transformers_config,
    "clip_zero_shot": clip_zero_shot,
}

_WITH_WEIGHTS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    # Other numbers of classes than the weights' give a new head, which has to be trained.
    "torchvision": lambda arguments: arguments.get("weights") is not None and arguments.get("num_classes") is None,
    "timm": lambda arguments: bool(arguments.get("pretrained")) and arguments.get("num_classes") is None,
    "transformers": lambda arguments: not arguments.get("new_layers"),
    "transformers_config": lambda arguments: arguments.get("seed") is not None,  # asked for as they are
    "clip_zero_shot": lambda _: True,
}


def has_weights(source: str, arguments: Mapping[str, Any]) -> bool:
    """Whether the model of a source comes with weights worth explaining; a user's own constructor is taken to."""
    if source not in MODELS:
        return True
    return source in _WITH_WEIGHTS and _WITH_WEIGHTS[source](arguments)
