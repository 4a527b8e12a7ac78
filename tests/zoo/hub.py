"""Tiny random models of transformers' families, built from their configurations alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from coar_dist.components.discovery import by_rules
from coar_dist.components.index import ComponentIndex
from coar_dist.config.schema import ComponentRule
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task
from tests.hub_models import import_torchvision
from tests.zoo.exactness import Animal
from tests.zoo.hub_decoders import DECODERS, VOCABULARY
from tests.zoo.hub_settings import (
    ENCODERS,
    IMAGE_TO_TEXT,
    IMAGE_TOKEN,
    PAIRS,
    SEQ2SEQ,
    SOUNDS,
    SPEECH,
    VISION,
)
from tests.zoo.sets import random_sets

LENGTH = 7
_LARGER_IMAGES = ["convnext", "convnextv2", "resnet", "regnet", "bit", "mobilenet_v2", "segformer", "pvt", "poolformer"]
_WITHOUT_MASK = ("mamba", "mamba2", "rwkv", "fnet")


def _built(kind: str, model_type: str, settings: dict[str, Any]) -> nn.Module:
    if find_spec("torchvision"):  # transformers imports it, and cannot beside a build of torch of another kind
        import_torchvision()
    import transformers

    configuration = transformers.AutoConfig.for_model(model_type.partition(":")[0], **settings)
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


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7)) + 0.2


def last_token(outputs: Any, targets: Tensor) -> Tensor:
    return outputs.logits[:, -1].gather(1, targets[:, None]).squeeze(1).float()


def class_logit(outputs: Any, targets: Tensor) -> Tensor:
    return outputs.logits.gather(1, targets[:, None]).squeeze(1).float()


def similarity(outputs: Any, targets: Tensor) -> Tensor:
    del targets
    return (outputs.image_embeds * outputs.text_embeds).sum(1).float()


def _decoder(model_type: str, settings: dict[str, Any]) -> Task:
    inputs = {"input_ids": _ids(), "attention_mask": torch.ones(5, LENGTH, dtype=torch.int64), "use_cache": False}
    if model_type in _WITHOUT_MASK:
        del inputs["attention_mask"]
    model = _built("AutoModelForCausalLM", model_type, settings)
    return Task(model, ExampleSet.of(inputs, torch.arange(5) + 3), output_function(last_token))


def _encoder(model_type: str, settings: dict[str, Any]) -> Task:
    attention = torch.ones(5, LENGTH, dtype=torch.int64)
    attention[1, 4:] = 0
    model = _built("AutoModelForSequenceClassification", model_type, settings)
    inputs = {"input_ids": _ids(), "attention_mask": attention}
    if model_type in _WITHOUT_MASK:
        del inputs["attention_mask"]
    return Task(model, ExampleSet.of(inputs, torch.arange(5) % 3), output_function(class_logit))


def _seq2seq(model_type: str, settings: dict[str, Any]) -> Task:
    inputs = {"input_ids": _ids(), "attention_mask": torch.ones(5, LENGTH, dtype=torch.int64)}
    inputs |= {"decoder_input_ids": _ids().flip(0)[:, :4], "use_cache": False}
    model = _built("AutoModelForSeq2SeqLM", model_type, settings)
    return Task(model, ExampleSet.of(inputs, torch.arange(5) + 3), output_function(last_token))


def _speech(model_type: str, settings: dict[str, Any]) -> Task:
    inputs = {"input_features": _noise(5, 8, 20), "decoder_input_ids": _ids()[:, :4], "use_cache": False}
    model = _built("AutoModelForSpeechSeq2Seq", model_type, settings)
    return Task(model, ExampleSet.of(inputs, torch.arange(5) + 3), output_function(last_token))


def _sounds(model_type: str, settings: dict[str, Any]) -> Task:
    model = _built("AutoModelForAudioClassification", model_type, settings)
    examples = ExampleSet.of({"input_values": _noise(5, 80)}, torch.arange(5) % 3)
    return Task(model, examples, output_function(class_logit))


def _pairs(model_type: str, settings: dict[str, Any]) -> Task:
    inputs = {"input_ids": _ids(), "attention_mask": torch.ones(5, LENGTH, dtype=torch.int64)}
    inputs |= {"pixel_values": _noise(5, 3, 16, 16)}
    model = _built("AutoModel", model_type, settings)
    return Task(model, ExampleSet.of(inputs, torch.arange(5) % 3), output_function(similarity))


def _image_to_text(model_type: str, settings: dict[str, Any]) -> Task:
    ids = torch.cat([torch.full((5, 4), IMAGE_TOKEN), _ids().clamp(max=IMAGE_TOKEN - 1)], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": _noise(5, 3, 16, 16)}
    model = _built("AutoModelForImageTextToText", model_type, settings)
    return Task(model, ExampleSet.of(inputs, torch.arange(5) + 3), output_function(last_token))


def _classifier(model_type: str, settings: dict[str, Any]) -> Task:
    side = 32 if model_type in _LARGER_IMAGES else 16
    images = _noise(5, 3, side, side)
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
    for tasks, settings in (
        (_decoder, DECODERS),
        (_encoder, ENCODERS),
        (_classifier, VISION),
        (_seq2seq, SEQ2SEQ),
        (_speech, SPEECH),
        (_sounds, SOUNDS),
        (_pairs, PAIRS),
        (_image_to_text, IMAGE_TO_TEXT),
    ):
        for model_type, values in settings.items():
            if kinds(model_type):
                found.append(Animal(f"{model_type}: all weights", partial(tasks, model_type, values), _halves))
                found.append(Animal(f"{model_type}: inputs", partial(tasks, model_type, values), _columns))
                found.append(Animal(f"{model_type}: sets", partial(tasks, model_type, values), random_sets))
    return found


def _columns(model: nn.Module) -> ComponentIndex:
    """Blocks of input columns of every matrix that has an even number of them."""
    rules = [
        ComponentRule(name, 1, parameter.shape[1] // 2)
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and parameter.shape[1] % 2 == 0
    ]
    return ComponentIndex(tuple(by_rules(model, rules)))
