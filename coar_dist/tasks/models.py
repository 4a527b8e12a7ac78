"""Model constructors and the loading of checkpoints.

A user's own model is ``task.model.source=my_module:build_model`` with ``task.model.checkpoint=weights.safetensors``.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from coar_dist.errors import TaskError


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

    def __init__(self, width: int, num_blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(*[ResidualBlock(width, width, 1, projection=True) for _ in range(num_blocks)])
        self.layer2 = nn.Sequential(
            ResidualBlock(width, 2 * width, 2, projection=True),
            *[ResidualBlock(2 * width, 2 * width, 1, projection=True) for _ in range(num_blocks - 1)],
        )
        self.linear = nn.Linear(2 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(num_rows, 1, 8, 8) float32 to logits (num_rows, num_classes)."""
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


def digits_resnet(width: int = 16, num_blocks: int = 2, num_classes: int = 10) -> nn.Module:
    """``DigitsResNet`` with random weights from torch's current generator."""
    return DigitsResNet(width, num_blocks, num_classes)


def cifar_resnet20(num_classes: int = 10) -> nn.Module:
    """ResNet-20: 688 convolution filters."""
    return CifarResNet(num_blocks=3, num_classes=num_classes)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "digits_resnet": digits_resnet,
    "cifar_resnet20": cifar_resnet20,
}


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Load weights into ``model``: a .safetensors file, or a state dict saved by ``torch.save`` (read without pickle).

    Raises:
        TaskError: no such file, not a checkpoint, or names and shapes do not fit the model.
    """
    if not path.is_file():
        raise TaskError(f"task.model.checkpoint={str(path)!r}: there is no such file.")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except pickle.UnpicklingError as error:
        raise TaskError(
            f"task.model.checkpoint={str(path)!r} is not a plain state dict, and a pickled object could run any code. "
            f"Save it anew with torch.save(model.state_dict(), path) or as .safetensors."
        ) from error
    except (SafetensorError, RuntimeError, OSError, ValueError, TypeError, EOFError) as error:
        raise TaskError(f"task.model.checkpoint={str(path)!r} does not fit {type(model).__name__}: {error}") from error
