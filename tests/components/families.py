"""What heads and neurons every family of the zoo has: written by hand from their settings, not from the searches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from coar_dist.tasks.task import Task
from tests.zoo import hub, timm_models


@dataclass(frozen=True)
class Family:
    """Attention modules by (heads, head size, key-value heads), and layers of neurons by their number.

    ``unknown`` lists the letters of q, k, v whose slices are in no known layout.
    """

    heads: dict[tuple[int, int, int], int] = field(default_factory=dict)
    neurons: dict[int, int] = field(default_factory=dict)
    unknown: str = ""


_SAME, _SHARED = {(4, 4, 4): 2}, {(4, 4, 2): 2}
_ONE_SHARED = {(4, 4, 2): 1}
_STAGES = {(2, 4, 2): 2, (4, 4, 4): 1}
_TIMM = {(3, 8, 3): 2}
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        [
            *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "cohere", "granite", "glm", "glm4", "phi3"),
            *("smollm3", "apertus", "nemotron", "helium", "seed_oss", "ernie4_5", "hunyuan_v1_dense"),
            *("gemma3_text", "cohere2", "exaone4", "stablelm", "bitnet", "starcoder2", "llama4_text"),
        ],
        Family(_SHARED, {24: 2}),
    ),
    **dict.fromkeys(
        [
            *("persimmon", "biogpt", "phi", "gpt_neox", "gpt_neo", "xglm", "opt"),
            *("bert", "roberta", "electra", "deberta", "deberta-v2", "mpnet", "funnel", "nystromformer", "modernbert"),
            *("distilbert", "vit", "beit", "vit_msn", "deit", "wav2vec2", "hubert"),
        ],
        Family(_SAME, {24: 2}),
    ),
    **dict.fromkeys(["bloom", "falcon:rw", "gpt2", "gptj", "mpt", "dinov2"], Family(_SAME, {64: 2})),
    **dict.fromkeys(["mixtral", "qwen3_moe", "phimoe", "gpt_oss", "dbrx"], Family(_SHARED)),
    **dict.fromkeys(["deepseek_v2", "deepseek_v3"], Family(_SAME, {24: 1, 12: 1}, "k")),
    **dict.fromkeys(["bart", "whisper"], Family({(4, 4, 4): 5}, {24: 3})),
    **dict.fromkeys(["swin", "swinv2"], Family(_STAGES, {32: 2, 64: 1})),
    **dict.fromkeys(["convnext", "convnextv2"], Family({}, {32: 1, 48: 1})),
    **dict.fromkeys(["xlnet", "fnet", "rwkv"], Family({}, {24: 2})),
    **dict.fromkeys(["mamba", "mamba2", "squeezebert", "resnet", "regnet", "bit", "mobilenet_v2"], Family()),
    "olmo2": Family(_SHARED, {24: 2}, "qk"),
    "olmoe": Family(_SHARED, {}, "qk"),
    "diffllama": Family({(2, 8, 1): 2}, {24: 2}, "qkv"),
    "falcon": Family(_SHARED, {64: 2}),
    "falcon:7b": Family({(4, 4, 1): 2}, {64: 2}),
    "codegen": Family(_SAME, {64: 2}, "qkv"),
    "gpt_bigcode": Family({(4, 4, 1): 2}, {64: 2}),
    "qwen2_moe": Family(_SHARED, {12: 2}),
    "glm4_moe": Family(_SHARED, {24: 1, 12: 1}),
    "minimax": Family({(4, 4, 4): 1, (4, 4, 2): 1}, {}, "qkv"),
    "jamba": Family(_ONE_SHARED, {24: 1}),
    "bamba": Family(_ONE_SHARED, {24: 2}),
    "granitemoehybrid": Family(_ONE_SHARED, {12: 2}),
    "falcon_h1": Family(_SHARED, {24: 2}),
    "nemotron_h": Family(_ONE_SHARED, {24: 1}),
    "recurrent_gemma": Family({(4, 4, 1): 1}, {12: 3}),
    "qwen3_next": Family(_ONE_SHARED, {12: 2}),
    "lfm2": Family(_ONE_SHARED, {24: 2}),
    "albert": Family({(4, 4, 4): 1}, {24: 1}),
    "longformer": Family(_SAME, {24: 2}, "qkv"),
    "poolformer": Family({}, {32: 2, 64: 2}),
    "pvt": Family({(1, 8, 1): 1, (2, 4, 2): 1, (2, 8, 2): 1, (4, 4, 4): 1}, {64: 4}),
    "segformer": Family({(2, 4, 2): 1, (2, 6, 2): 1}, {16: 1, 24: 1}),
    "t5": Family({(4, 4, 4): 6}, {24: 4}),
    "clip": Family({(4, 4, 4): 4}, {24: 4}),
    "siglip": Family({(4, 4, 4): 5}, {24: 5}),
    "llava": Family({(4, 4, 4): 2, (4, 4, 2): 2}, {24: 4}),
    "paligemma": Family({(4, 4, 4): 3, (4, 4, 2): 2}, {24: 5}),
    "blip-2": Family({(4, 4, 4): 7}, {24: 6}),
    **dict.fromkeys(
        [
            *("timm resnet18", "timm resnet50d", "timm seresnet18", "timm skresnet18", "timm res2net50_26w_4s"),
            *("timm test_resnet", "timm tf_efficientnet_b0", "timm test_efficientnet", "timm mobilenetv3_small_050"),
            *("timm tf_mobilenetv3_small_minimal_100", "timm ghostnet_050", "timm test_nfnet", "timm regnety_002"),
            *("timm densenet121", "timm inception_v3", "timm ese_vovnet19b_slim_dw", "timm hrnet_w18_small"),
            *("timm starnet_s1", "timm ResNetV2 with StdConv2d", "timm VGG", "timm ConvMixer"),
        ],
        Family(),
    ),
    **dict.fromkeys(
        ["timm convnext_tiny", "timm convnext_atto", "timm convnextv2_atto"], Family({}, {32: 1, 48: 1, 64: 1, 96: 1})
    ),
    "timm inception_next_atto": Family({}, {32: 1, 48: 1, 64: 1, 72: 1}),
    "timm mambaout_femto": Family({}, {21: 1, 32: 1, 42: 1, 64: 1}),
    **dict.fromkeys(
        [
            *("timm vit_tiny_patch16_224", "timm vit_relpos_small_patch16_224", "timm beit_base_patch16_224"),
            "timm deit_tiny_distilled_patch16_224",
        ],
        Family(_TIMM, {96: 2}),
    ),
    "timm vit_base_patch16_siglip_224": Family({(3, 8, 3): 3}, {96: 3}),
    **dict.fromkeys(["timm eva02_tiny_patch14_224", "timm eva02_base_patch14_448"], Family(_TIMM, {64: 2})),
    **dict.fromkeys(["timm cait_xxs24_224", "timm xcit_nano_12_p16_224"], Family({(3, 8, 3): 4}, {96: 4})),
    "timm convit_tiny": Family({(3, 24, 3): 2}, {288: 2}),
    **dict.fromkeys(
        ["timm swin_tiny_patch4_window7_224", "timm swinv2_tiny_window8_256"], Family(_STAGES, {32: 2, 64: 1})
    ),
    "timm maxvit_pico_rw_256": Family({(2, 8, 2): 2, (4, 8, 4): 6}, {64: 2, 128: 6}),
    "timm coatnet_nano_rw_224": Family({(4, 8, 4): 2}, {128: 2}),
    "timm pvt_v2_b0": Family({(heads, 8, heads): 1 for heads in (1, 2, 3, 4)}, {64: 1, 96: 1, 128: 2}),
    "timm mobilevit_xxs": Family({(4, 16, 4): 2, (4, 20, 4): 4, (4, 24, 4): 3}, {128: 2, 160: 4, 192: 3}),
    "timm mobilevitv2_050": Family({}, {128: 2, 192: 4, 256: 3}),
    "timm edgenext_xx_small": Family({(4, 12, 4): 1, (4, 22, 4): 1, (4, 42, 4): 1}, {96: 2, 192: 2, 352: 6, 672: 2}),
    "timm levit_128": Family({(2, 8, 2): 3, (4, 16, 4): 1, (6, 16, 6): 1}, {32: 1, 48: 2, 64: 2}, "qkv"),
    "timm visformer_tiny": Family({(2, 16, 2): 1, (2, 32, 2): 1}, {32: 1, 128: 1, 256: 1}),
    "timm davit_tiny": Family({(2, 4, 2): 2, (2, 8, 2): 2, (3, 8, 3): 2, (4, 8, 4): 2}, {32: 2, 64: 2, 96: 2, 128: 2}),
    "timm efficientformerv2_s0": Family(
        {(8, 128, 8): 4, (8, 64, 8): 1}, {128: 2, 192: 2, 384: 3, 288: 3, 704: 2, 528: 2}, "qkv"
    ),
    "timm tiny_vit_5m_224": Family({(4, 32, 4): 2, (5, 32, 5): 6, (10, 32, 10): 2}, {512: 2, 640: 6, 1280: 2}),
    "timm MViTv2": Family({(heads, 8, heads): 1 for heads in (1, 2, 4, 8)}, {32: 1, 64: 1, 128: 1, 256: 1}),
    "timm MLP-Mixer": Family({}, {12: 2, 96: 2}),
    "timm ResMLP": Family({}, {96: 2}),
    "timm gMLP": Family({}, {72: 2}),
    "timm PoolFormer": Family({}, {32: 1, 48: 1, 64: 1, 96: 1}),
    "timm CAFormer": Family({(1, 32, 1): 1, (2, 32, 2): 1}, {32: 1, 48: 1, 128: 1, 256: 1}),
}

FEW = ["llama", "falcon", "deepseek_v3", "gpt2", "bert", "t5", "siglip", "qwen3_next"]
"""Families of every kind of layout, for the fast tests; the others are slow ones."""


def tasks() -> dict[str, Callable[[], Task]]:
    """Tiny tasks of all families that are installed, fresh at every call, by the family's name."""
    return {animal.name.rpartition(":")[0]: animal.task for animal in (*hub.animals(), *timm_models.animals())}


def counted(values: list[object]) -> dict[object, int]:
    """How often each value is in the list."""
    return dict(Counter(values))
