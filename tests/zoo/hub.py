"""Tiny random models of transformers' families, built from their configurations alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from coar_dist.components.discovery import by_rules
from coar_dist.components.index import ComponentIndex
from coar_dist.config.schema import ComponentRule
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import ExampleSet, Task
from tests.zoo.exactness import Animal

VOCABULARY, LENGTH = 29, 7
_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {**_TEXT, "num_key_value_heads": 2, "head_dim": 4}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
_IMAGES = {
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 3,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_labels": 3,
}
DECODERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "olmo2", "cohere", "granite", "glm"], _GROUPED
    ),
    "phi": _TEXT,
    "phi3": _GROUPED,
    "gpt_neox": _TEXT,
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 4},
    "falcon": {**_TEXT, "alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2},
    "gpt2": {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 4},
    "gpt_bigcode": {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 4},
    "gptj": {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 4, "rotary_dim": 2},
    "opt": {**_TEXT, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "mpt": {"vocab_size": VOCABULARY, "d_model": 16, "n_layers": 2, "n_heads": 4, "max_seq_len": 32},
    "starcoder2": {**_TEXT, "num_key_value_heads": 2},
    "mixtral": {**_GROUPED, **_EXPERTS},
    "qwen3_moe": {**_GROUPED, **_EXPERTS},
    "olmoe": {**_GROUPED, **_EXPERTS},
    "mamba": {"vocab_size": VOCABULARY, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2},
}
"""Settings of causal language models, by ``model_type``."""
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {**_TEXT, "num_labels": 3},
    "roberta": {**_TEXT, "num_labels": 3, "max_position_embeddings": 40},
    "electra": {**_TEXT, "embedding_size": 16, "num_labels": 3},
    "albert": {**_TEXT, "embedding_size": 8, "num_labels": 3},
    "deberta-v2": {**_TEXT, "num_labels": 3},
    "modernbert": {**_TEXT, "num_labels": 3, "global_attn_every_n_layers": 2, "local_attention": 4},
    "distilbert": {"vocab_size": VOCABULARY, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 4, "num_labels": 3},
}
"""Settings of classifiers of texts."""
VISION: dict[str, dict[str, Any]] = {
    "vit": _IMAGES,
    "beit": _IMAGES,
    "dinov2": _IMAGES,
    "swin": {
        "image_size": 16,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [2, 1],
        "num_heads": [2, 4],
        "window_size": 4,
        "num_labels": 3,
    },
    "convnext": {"num_channels": 3, "hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2, "num_labels": 3},
    "resnet": {"embedding_size": 6, "hidden_sizes": [6, 8], "depths": [1, 1], "num_labels": 3},
    "mobilenet_v2": {"image_size": 32, "depth_multiplier": 0.25, "min_depth": 4, "num_labels": 3},
    "segformer": {
        "num_encoder_blocks": 2,
        "depths": [1, 1],
        "sr_ratios": [2, 1],
        "hidden_sizes": [8, 12],
        "patch_sizes": [3, 3],
        "strides": [2, 2],
        "num_attention_heads": [2, 2],
        "mlp_ratios": [2, 2],
        "num_labels": 3,
    },
}
"""Settings of classifiers of images."""


def _built(kind: str, model_type: str, settings: dict[str, Any]) -> nn.Module:
    import transformers

    configuration = transformers.AutoConfig.for_model(model_type, **settings)
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, kind).from_config(configuration)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # default initialisation leaves biases and most effects at nothing
        for parameter in model.parameters():
            size = 0.1 if parameter.ndim < 2 else 0.25
            parameter += torch.randn(parameter.shape, generator=generator) * size
    return model.eval()


def _ids() -> Tensor:
    return torch.randint(3, VOCABULARY, (5, LENGTH), generator=torch.Generator().manual_seed(6))


def last_token(outputs: Any, targets: Tensor) -> Tensor:
    return outputs.logits[:, -1].gather(1, targets[:, None]).squeeze(1).float()


def class_logit(outputs: Any, targets: Tensor) -> Tensor:
    return outputs.logits.gather(1, targets[:, None]).squeeze(1).float()


def _decoder(model_type: str, settings: dict[str, Any]) -> Task:
    inputs = {"input_ids": _ids(), "attention_mask": torch.ones(5, LENGTH, dtype=torch.int64), "use_cache": False}
    if model_type == "mamba":
        del inputs["attention_mask"]
    model = _built("AutoModelForCausalLM", model_type, settings)
    return Task(model, ExampleSet.of(inputs, torch.arange(5) + 3), output_function(last_token))


def _encoder(model_type: str, settings: dict[str, Any]) -> Task:
    attention = torch.ones(5, LENGTH, dtype=torch.int64)
    attention[1, 4:] = 0
    model = _built("AutoModelForSequenceClassification", model_type, settings)
    examples = ExampleSet.of({"input_ids": _ids(), "attention_mask": attention}, torch.arange(5) % 3)
    return Task(model, examples, output_function(class_logit))


def _classifier(model_type: str, settings: dict[str, Any]) -> Task:
    side = 32 if model_type in ("convnext", "resnet", "mobilenet_v2", "segformer") else 16
    images = torch.randn(5, 3, side, side, generator=torch.Generator().manual_seed(7)) + 0.2
    model = _built("AutoModelForImageClassification", model_type, settings)
    return Task(model, ExampleSet(images, torch.arange(5) % 3), output_function(class_logit))


def _halves(model: nn.Module) -> ComponentIndex:
    """A few large blocks of every weight with two axes: fast to run, and nothing left out."""
    rules = []
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            blocks = next(count for count in (4, 3, 5, 7, 2, 1) if len(parameter) % count == 0)
            rules.append(ComponentRule(name, 0, len(parameter) // blocks))
    return ComponentIndex(tuple(by_rules(model, rules)))


def animals(kinds: Callable[[str], bool] = lambda name: True) -> list[Animal]:
    """Every family with blocks of all its weights, its input columns and, where they are found, its heads."""
    found = []
    for tasks, settings in ((_decoder, DECODERS), (_encoder, ENCODERS), (_classifier, VISION)):
        for model_type, values in settings.items():
            if kinds(model_type):
                found.append(Animal(f"{model_type}: all weights", partial(tasks, model_type, values), _halves))
                found.append(Animal(f"{model_type}: inputs", partial(tasks, model_type, values), _columns))
    return found


def _columns(model: nn.Module) -> ComponentIndex:
    """Blocks of input columns of every matrix that has an even number of them."""
    rules = [
        ComponentRule(name, 1, parameter.shape[1] // 2)
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and parameter.shape[1] % 2 == 0
    ]
    return ComponentIndex(tuple(by_rules(model, rules)))
