"""Models of the shapes that the field runs, with random weights, in plain torch; and the bare forward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from coar_dist.ablation.folding import fold_batch_norms
from coar_dist.ablation.graphs import RecordedFunction
from coar_dist.ablation.placement import lay_out, layout_of, with_layout
from coar_dist.components.discovery import discover
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.models_vit import SmallViT
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task

MODELS = ("resnet50", "vit_b16", "gpt2")


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut (He et al. 2016, figure 5)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width_in, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        same = stride == 1 and width_in == 4 * width
        self.shortcut = nn.Identity() if same else nn.Conv2d(width_in, 4 * width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return functional.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet-50 for ``width`` 64 and ``depths`` 3, 4, 6, 3."""

    def __init__(self, width: int, depths: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(width)
        blocks, width_in = [], width
        for stage, depth in enumerate(depths):
            for number in range(depth):
                blocks.append(Bottleneck(width_in, width << stage, 2 if stage and not number else 1))
                width_in = 4 * (width << stage)
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(width_in, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.bn(self.stem(images))), 3, stride=2, padding=1)
        return self.head(self.blocks(x).mean(dim=(2, 3)))


class CausalBlock(nn.Module):
    """A block of GPT-2 (Radford et al. 2019)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.attn_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.mlp_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.c_attn(self.ln_1(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x = x + self.attn_proj(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp_proj(functional.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class CausalLM(nn.Module):
    """GPT-2 small for ``width`` 768, ``depth`` 12, ``num_heads`` 12, ``vocabulary`` 50,257."""

    def __init__(self, width: int, depth: int, num_heads: int, vocabulary: int, length: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*[CausalBlock(width, num_heads) for _ in range(depth)])
        self.ln_f, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(self.ln_f(self.blocks(x)))


class GatedBlock(nn.Module):
    """A block of Llama 3 (Dubey et al. 2024): grouped queries, rotary positions, a gated MLP."""

    def __init__(self, width: int, num_heads: int, num_groups: int, hidden: int) -> None:
        super().__init__()
        self.size, self.ratio = width // num_heads, num_heads // num_groups
        self.norm, self.mlp_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(width, num_groups * self.size, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(width, width, bias=False)
        self.gate_proj, self.up_proj = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (project(normed).unflatten(-1, (-1, self.size)).transpose(1, 2) for project in projections)
        q, k = rotated(q), rotated(k)
        k, v = (part.repeat_interleave(self.ratio, dim=1) for part in (k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o_proj(mixed.transpose(1, 2).flatten(2))
        normed = self.mlp_norm(x)
        return x + self.down_proj(functional.silu(self.gate_proj(normed)) * self.up_proj(normed))


def rotated(heads: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021) of (batch, heads, positions, size)."""
    half = heads.shape[-1] // 2
    speeds = 5e5 ** -(torch.arange(half, device=heads.device) / half)
    angles = torch.arange(heads.shape[-2], device=heads.device).unsqueeze(1) * speeds
    cos, sin = angles.cos().to(heads.dtype), angles.sin().to(heads.dtype)
    a, b = heads[..., :half], heads[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class GatedLM(nn.Module):
    """Llama 3.2 1B for ``width`` 2048, ``depth`` 16, 32 heads in 8 groups, ``hidden`` 8,192, ``vocabulary`` 128,256.

    Half of its depth, and a quarter of its vocabulary, is what is measured: the host is half done copying the rest.
    """

    def __init__(self, width: int, depth: int, heads: tuple[int, int], hidden: int, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.Sequential(*[GatedBlock(width, *heads, hidden) for _ in range(depth)])
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(tokens))))


def build(
    name: str, num_examples: int, is_tiny: bool, device: str = "cpu", length: int = 128
) -> tuple[Task, ComponentIndex]:
    """A task with random weights, on the CPU.

    Args:
        name: of ``MODELS``, or ``llama``.
        num_examples: in random pixels or tokens.
        is_tiny: a model of the same kind that a CPU runs in milliseconds.
        device: where random numbers are made: a billion take a CPU many seconds.
        length: tokens of an example of a language model.
    """
    torch.manual_seed(0)
    with torch.device(device):
        model, inputs, targets, output = _random(name, num_examples, is_tiny, length)
    model = model.cpu().eval()
    if name in ("gpt2", "llama"):
        # Input features of every map of the blocks: 64,512 in GPT-2 small, as in the paper's setup.
        groups = [
            ComponentGroup.of(f"{path}.weight", 1, module.in_features)
            for path, module in model.named_modules()
            if isinstance(module, nn.Linear) and path != "head"
        ]
        components = ComponentIndex(tuple(groups))
    else:
        components = discover(model, "conv_filters" if name == "resnet50" else "linear_rows")
    return Task(model, ExampleSet(inputs.cpu(), targets.cpu()), output_function(output)), components


def _random(name: str, num_examples: int, is_tiny: bool, length: int) -> tuple[nn.Module, Tensor, Tensor, str]:
    """A model, its inputs and targets, and the output function, on the default device."""
    if name in ("gpt2", "llama"):
        vocabulary = 101 if is_tiny else (50257 if name == "gpt2" else 32000)
        length = min(length, 12) if is_tiny else length
        if name == "gpt2":
            model: nn.Module = CausalLM(*((16, 2, 2) if is_tiny else (768, 12, 12)), vocabulary, length)
        else:
            model = GatedLM(*((16, 2, (4, 2), 24) if is_tiny else (2048, 8, (32, 8), 8192)), vocabulary)
        inputs = targets = torch.randint(0, vocabulary, (num_examples, length))
        output = "next_token_margin"
    else:
        side, classes = (32, 10) if is_tiny else (224, 1000)
        if name == "resnet50":
            model = ResNet(4, (1, 1, 1, 1), classes) if is_tiny else ResNet(64, (3, 4, 6, 3), classes)
        else:
            sizes = (
                (side, 8, 3, 16, 2, 2, 32, classes, 0.0) if is_tiny else (224, 16, 3, 768, 12, 12, 3072, classes, 0.0)
            )
            model = SmallViT(*sizes)
        inputs = torch.randn(num_examples, 3, side, side).add_(0.3)
        targets, output = torch.randint(0, classes, (num_examples,)), "margin"
    with torch.no_grad():  # statistics as a trained net's: activations keep their size through the depth
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
            if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
                module.bias.normal_(0, 0.1)
    return model, inputs, targets, output


class BareForward:
    """The unablated model over all examples: folded, channels last, its weights in the precision that it computes in.

    Args:
        task: model and examples; copied.
        device: where.
        precision: ``bfloat16`` or ``float32``.
    """

    def __init__(self, task: Task, device: str, precision: str) -> None:
        model = copy.deepcopy(task.model).to(device).eval().requires_grad_(False)
        fold_batch_norms(model, ComponentIndex(()))
        dtype = getattr(torch, precision)
        self._model = model.to(dtype)
        layout = layout_of(self._model)
        lay_out(self._model, layout)
        inputs = task.examples.inputs
        assert isinstance(inputs, Tensor)
        inputs = with_layout(inputs.to(device), layout)
        self._inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
        self._forward: Callable[[Tensor], Any] = self._model

    def compile(self) -> None:
        torch._dynamo.reset()
        self._forward = torch.compile(self._model, dynamic=False)

    def record(self) -> None:
        with torch.no_grad():
            self._forward = RecordedFunction(self._forward, (self._inputs,))

    def __call__(self) -> None:
        with torch.no_grad():
            self._forward(self._inputs)
