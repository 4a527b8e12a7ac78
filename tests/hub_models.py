"""Tiny models of Hugging Face transformers and of torchvision, with the sources that build real ones; no downloads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from coar_dist.config.schema import ModelConfig
from coar_dist.tasks.build import build_model
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task
from tests.models import randomise

_TINY_VIT = {
    "image_size": 8,
    "patch_size": 4,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}
_TINY_TEXT = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 20,
}
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "gpt2": (
        {
            "model_type": "gpt2",
            "kind": "AutoModelForCausalLM",
            "settings": {
                "vocab_size": 23,
                "n_positions": 12,
                "n_embd": 8,
                "n_layer": 2,
                "n_head": 2,
                "bos_token_id": 0,
                "eos_token_id": 0,
            },
        },
        "transposed_linear_inputs",
    ),
    "phi": (
        {
            "model_type": "phi",
            "kind": "AutoModelForCausalLM",
            "settings": {
                "vocab_size": 23,
                "hidden_size": 8,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 12,
                "max_position_embeddings": 16,
                "bos_token_id": 0,
                "eos_token_id": 0,
            },
        },
        "linear_rows",
    ),
    "vit": (
        {
            "model_type": "vit",
            "kind": "AutoModelForImageClassification",
            "settings": {**_TINY_VIT, "num_labels": 3},
        },
        "linear_rows",
    ),
    "resnet": (
        {
            "model_type": "resnet",
            "kind": "AutoModelForImageClassification",
            "settings": {"embedding_size": 6, "hidden_sizes": [6, 8], "depths": [1, 1], "num_labels": 3},
        },
        "conv_filters",
    ),
}
"""By name: arguments of ``transformers_config``, and the selector of the components that the paper ablates."""


def tiny_task(name: str) -> tuple[Task, str]:
    """A task of a tiny model with random weights, its pixels in uint8 where there are any, and its selector."""
    arguments, selector = MODELS[name]
    is_language = name in ("gpt2", "phi")
    normalisation = {} if is_language else {"input_mean": [0.5, 0.4, 0.3], "input_std": [0.2, 0.3, 0.4]}
    model = randomise(build_model(ModelConfig("transformers_config", arguments, **normalisation)))
    generator = torch.Generator().manual_seed(1)
    if not is_language:
        return Task(model, pixels(generator), output_function("margin")), selector
    tokens = torch.randint(0, 23, (4, 9), generator=generator)
    attention = torch.ones(4, 9, dtype=torch.long)
    attention[1, 5:] = 0
    inputs = {"input_ids": tokens, "attention_mask": attention}
    if name == "gpt2":
        labels = tokens.masked_fill(attention == 0, -100)
        return Task(model, ExampleSet(inputs, labels), output_function("next_token_margin")), selector
    answers = torch.tensor([[3, 4], [4, 3], [4, 3], [3, 4]])
    targets = torch.cat([attention.sum(dim=1, keepdim=True) - 1, answers], dim=1)
    return Task(model, ExampleSet(inputs, targets), output_function("answer_token_margin")), selector


def pixels(generator: torch.Generator, side: int = 8) -> ExampleSet:
    images = torch.randint(0, 256, (5, 3, side, side), generator=generator, dtype=torch.uint8)
    return ExampleSet(images, torch.arange(5) % 3)


def save_tiny_clip(folder: Path) -> None:
    """A CLIP model with random weights, and a tokenizer that knows letters, as ``save_pretrained`` writes them."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + ["."]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    text = {**_TINY_TEXT, "vocab_size": len(words), **ends}
    torch.manual_seed(2)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=_TINY_VIT, projection_dim=6))
    randomise(model).save_pretrained(folder)


def torchvision_or_skip() -> Any:
    """``import_torchvision``, where it can be."""
    try:
        return import_torchvision()
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision cannot be imported: {error}")


def import_torchvision() -> Any:
    """torchvision, also beside a build of torch that its compiled operators do not fit: no test needs them."""
    try:
        import torchvision
    except RuntimeError:
        return _with_declared_operators()
    return torchvision


def _with_declared_operators() -> Any:
    """Operators that torchvision's own Python code refers to, declared without an implementation."""
    import importlib
    import importlib.util

    specification = importlib.util.find_spec("torchvision")
    assert specification is not None
    assert specification.origin is not None
    source = (Path(specification.origin).parent / "_meta_registrations.py").read_text()
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in re.findall(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"', source):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
    _KEPT.append(library)  # a library's declarations live as long as it does
    return importlib.import_module("torchvision")


_KEPT: list[Any] = []
