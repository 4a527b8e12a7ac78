"""Small random models of timm's families; they need ``pip install '.[vision]'``."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from coar_dist.components.discovery import by_rules
from coar_dist.components.index import ComponentIndex
from coar_dist.config.schema import ComponentRule
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task
from tests.hub_models import import_torchvision
from tests.zoo.exactness import Animal
from tests.zoo.habits import logits

_NUM_EXAMPLES = 4
_MOST_GROUPS, _MOST_GROUPS_OF_MANY = 24, 10
"""Groups of a model; of one with more than a million parameters, which is slow to run."""
_FOUR_STAGES: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)}
_COLUMN: dict[str, Any] = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3}
_WINDOWS: dict[str, Any] = {
    "img_size": 32,
    "window_size": 4,
    "depths": (2, 1),
    "embed_dim": 8,
    "num_heads": (2, 4),
}
_MIXED: dict[str, Any] = {
    "img_size": 64,
    "depths": (1, 1, 1, 1),
    "embed_dim": (16, 32, 32, 32),
    "stem_width": 8,
    "transformer_dim_head": 8,
}
NAMES: dict[str, tuple[int, dict[str, Any]]] = {
    # Convolutional nets
    "resnet18": (32, {"layers": (1, 1, 1, 1), "channels": (8, 12, 16, 24)}),
    "resnet50d": (32, {"layers": (1, 1, 1, 1), "channels": (8, 12, 16, 24)}),
    "seresnet18": (32, {"layers": (1, 1, 1, 1), "channels": (8, 16, 16, 32)}),
    "skresnet18": (32, {"layers": (1, 1, 1, 1), "channels": (8, 16, 16, 32)}),
    "res2net50_26w_4s": (32, {"layers": (1, 1, 1, 1)}),
    "test_resnet": (32, {}),
    "convnext_tiny": (32, _FOUR_STAGES),
    "convnext_atto": (32, _FOUR_STAGES),  # conv_mlp
    "convnextv2_atto": (32, _FOUR_STAGES),
    "inception_next_atto": (32, _FOUR_STAGES),
    "mambaout_femto": (32, _FOUR_STAGES),
    "tf_efficientnet_b0": (32, {}),  # Conv2dSame
    "test_efficientnet": (32, {}),
    "mobilenetv3_small_050": (32, {}),
    "tf_mobilenetv3_small_minimal_100": (32, {}),
    "ghostnet_050": (32, {}),
    "test_nfnet": (32, {}),  # ScaledStdConv2dSame
    "regnety_002": (32, {}),
    "densenet121": (32, {"growth_rate": 4, "block_config": (1, 1, 2, 1)}),
    "inception_v3": (80, {"aux_logits": False}),
    "ese_vovnet19b_slim_dw": (32, {}),
    "hrnet_w18_small": (32, {}),
    "starnet_s1": (32, {}),
    # Transformers and the like
    "vit_tiny_patch16_224": (32, _COLUMN),
    "vit_base_patch16_siglip_224": (32, _COLUMN),
    "vit_relpos_small_patch16_224": (32, _COLUMN),
    "deit_tiny_distilled_patch16_224": (32, _COLUMN),
    "beit_base_patch16_224": (32, _COLUMN),
    "eva02_tiny_patch14_224": (32, _COLUMN),
    "eva02_base_patch14_448": (32, _COLUMN),
    "cait_xxs24_224": (32, _COLUMN),
    "xcit_nano_12_p16_224": (32, _COLUMN),
    "convit_tiny": (32, {**_COLUMN, "local_up_to_layer": 1}),
    "swin_tiny_patch4_window7_224": (32, _WINDOWS),
    "swinv2_tiny_window8_256": (32, _WINDOWS),
    "maxvit_pico_rw_256": (64, _MIXED),
    "coatnet_nano_rw_224": (64, _MIXED),
    "pvt_v2_b0": (32, {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 3, 4)}),
    "mobilevit_xxs": (64, {}),
    "mobilevitv2_050": (64, {}),
    "edgenext_xx_small": (64, {}),
    "levit_128": (64, {"img_size": 64, "embed_dim": (16, 24, 32), "depth": (1, 1, 1), "num_heads": 2, "key_dim": 4}),
    "visformer_tiny": (
        64,
        {"img_size": 64, "init_channels": 8, "embed_dim": 32, "depth": (1, 1, 1), "num_heads": 2},
    ),
    "davit_tiny": (64, {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 24, 32), "num_heads": (2, 2, 3, 4)}),
    "efficientformerv2_s0": (32, {"img_size": 32}),
    "tiny_vit_5m_224": (64, {}),
}
"""Side of the images and settings of ``timm.create_model``, by name."""


BUILT: dict[str, int] = {
    "ResNetV2 with StdConv2d": 32,
    "VGG": 32,
    "MViTv2": 64,
    "MLP-Mixer": 32,
    "ResMLP": 32,
    "gMLP": 32,
    "PoolFormer": 32,
    "CAFormer": 32,
    "ConvMixer": 32,
}
"""Side of the images of models that are built from their classes: ``create_model`` does not take their widths."""


def _built(name: str) -> nn.Module:
    from timm.layers import StdConv2d
    from timm.models import convmixer, metaformer, mlp_mixer, mvitv2, resnetv2, vgg

    stages: dict[str, Any] = {"num_classes": 3, **_FOUR_STAGES}
    tokens: dict[str, Any] = {"num_classes": 3, "img_size": 32, "patch_size": 8, "num_blocks": 2, "embed_dim": 24}
    multiscale = mvitv2.MultiScaleVitCfg(depths=(1, 1, 1, 1), embed_dim=(8, 16, 32, 64), num_heads=(1, 2, 4, 8))
    gated: dict[str, Any] = {"block_layer": mlp_mixer.SpatialGatingBlock, "mlp_layer": mlp_mixer.GatedMlp}
    with_attention: dict[str, Any] = {
        "dims": (8, 12, 32, 64),
        "token_mixers": [metaformer.SepConv] * 2 + [metaformer.Attention] * 2,
        "norm_layers": [metaformer.LayerNorm2dNoBias] * 2 + [metaformer.LayerNormNoBias] * 2,
    }
    standardised: dict[str, Any] = {"stem_chs": 32, "conv_layer": partial(StdConv2d, eps=1e-8)}
    constructors: dict[str, Callable[[], nn.Module]] = {
        "ResNetV2 with StdConv2d": lambda: resnetv2.ResNetV2([1, 1], (128, 128), 3, **standardised),
        "VGG": lambda: vgg.VGG([8, "M", 12, "M", 16], num_classes=3, norm_layer=nn.BatchNorm2d, mlp_ratio=0.01),
        "MViTv2": lambda: mvitv2.MultiScaleVit(multiscale, (64, 64), num_classes=3),
        "MLP-Mixer": lambda: mlp_mixer.MlpMixer(**tokens),
        "ResMLP": lambda: mlp_mixer.MlpMixer(**tokens, mlp_ratio=4, block_layer=mlp_mixer.ResBlock),
        "gMLP": lambda: mlp_mixer.MlpMixer(**tokens, mlp_ratio=6, **gated),
        "PoolFormer": lambda: metaformer.MetaFormer(**stages, use_mlp_head=False),
        "CAFormer": lambda: metaformer.MetaFormer(**{**stages, **with_attention}),
        "ConvMixer": lambda: convmixer.ConvMixer(dim=12, depth=2, num_classes=3),
    }
    return constructors[name]()


def _created(name: str) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=3, **NAMES[name][1])
    return model


def _randomised(model: nn.Module, gain: float) -> nn.Module:
    """Random weights, biases and statistics; nothing that starts at one, zero or 1e-6 stays there."""
    generator = torch.Generator().manual_seed(8)
    layers = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if id(parameter) in layers:
                parameter.copy_(noise * gain / parameter[0].numel() ** 0.5)
            elif name.endswith("gain"):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim > 1:
                parameter.copy_(0.2 * noise)
            elif re.search(r"bias|beta", name):
                parameter.copy_(0.1 * noise)
            else:
                parameter.copy_(1 + 0.2 * noise)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                assert module.running_var is not None
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.3)
                module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.4)
    return model.eval()


def _task(make: Callable[[], nn.Module], side: int) -> Task:
    import_torchvision()  # first: timm cannot import it beside a build of torch that its operators do not fit
    torch.manual_seed(0)
    model = make()
    images = torch.randn(_NUM_EXAMPLES, 3, side, side, generator=torch.Generator().manual_seed(9)) + 0.2
    for gain in (1.6, 1.3, 1.0, 0.7):  # large activations make every rounding count
        _randomised(model, gain)
        with torch.no_grad():
            if model(images[:1]).abs().max() < 30:
                break
    return Task(model, ExampleSet(images, torch.arange(_NUM_EXAMPLES) % 3), output_function(logits))


def _of_each_kind(model: nn.Module, axis: int) -> list[str]:
    """Parameters with the axis: the first and the last of those whose names differ in numbers alone."""
    kinds: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim > max(1, axis):
            kinds.setdefault(re.sub(r"\d+(?=.*\.)", "#", name.rpartition(".")[0]) + name[-4:], []).append(name)
    firsts = [names[0] for names in kinds.values()]
    lasts = [names[-1] for names in kinds.values() if len(names) > 1]
    few = sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    return _spread(firsts, lasts, _MOST_GROUPS if few else _MOST_GROUPS_OF_MANY)


def _spread(firsts: list[str], lasts: list[str], most: int) -> list[str]:
    """All of the firsts where they are fewer than ``most``, then lasts; else every so many of the firsts."""
    step = max(1, -(-len(firsts) // most))
    return (firsts[::step] + lasts)[:most]


def _single(model: nn.Module) -> ComponentIndex:
    """Single filters, rows and tokens of weights of every kind."""
    return ComponentIndex(tuple(by_rules(model, [ComponentRule(name, 0, 1) for name in _of_each_kind(model, 0)])))


def _columns(model: nn.Module) -> ComponentIndex:
    """Blocks of input columns or channels; where an attention's output projection reads its heads, the heads."""
    rules = []
    for name in _of_each_kind(model, 1):
        width = model.get_parameter(name).shape[1]
        module = model.get_submodule(name.rpartition(".")[0].rpartition(".")[0])
        heads = getattr(module, "num_heads", 2)
        blocks = heads if width % heads == 0 else 1
        rules.append(ComponentRule(name, 1, width // blocks))
    return ComponentIndex(tuple(by_rules(model, rules)))


def animals() -> list[Animal]:
    """Every family with single slices along the outputs, and blocks along the inputs; none where timm is missing."""
    if find_spec("timm") is None:
        return []
    makers = {name: (partial(_created, name), side) for name, (side, _) in NAMES.items()}
    makers |= {name: (partial(_built, name), side) for name, side in BUILT.items()}
    return [
        Animal(f"timm {name}: {kind}", partial(_task, make, side), components)
        for name, (make, side) in makers.items()
        for kind, components in (("rows", _single), ("inputs", _columns))
    ]
