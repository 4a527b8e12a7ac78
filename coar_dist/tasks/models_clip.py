"""CLIP as a zero-shot classifier: the classes' texts are encoded once, what is explained is the image tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from coar_dist.errors import TaskError
from coar_dist.tasks.models_hub import class_of, require_dtype, transformers_model

LOGIT_SCALE = 100.0
"""The temperature of the published CLIP models, and of the COAR research code's margins."""


class ClipZeroShot(nn.Module):
    """Images to 100 x the cosines of their embeddings and those of the classes' texts (Radford et al. 2021, section 3).

    Args:
        clip: a Hugging Face CLIP model; its image tower is taken, under its own names.
        text_features: (num_classes, projection size), of norm 1: a buffer.
    """

    text_features: Tensor

    def __init__(self, clip: Any, text_features: Tensor) -> None:
        super().__init__()
        self.vision_model: nn.Module = clip.vision_model
        self.visual_projection: nn.Module = clip.visual_projection
        self.register_buffer("text_features", text_features)

    def forward(self, images: Tensor) -> Tensor:
        """(num_rows, 3, height, width) float32, normalised, to logits (num_rows, num_classes)."""
        pooled = self.vision_model(pixel_values=images).pooler_output
        embeddings = functional.normalize(self.visual_projection(pooled), dim=-1)
        return LOGIT_SCALE * embeddings @ self.text_features.to(embeddings.dtype).T


def clip_zero_shot(
    name: str,
    class_names: list[str],
    templates: list[str] | None = None,
    dtype: str = "float32",
    revision: str | None = None,
) -> nn.Module:
    """``ClipZeroShot`` of a published CLIP model.

    Args:
        name: on the hub, e.g. ``openai/clip-vit-base-patch16``, or a local folder with model and tokenizer.
        class_names: in the order of the class labels.
        templates: one ``{}`` each, e.g. ``a photo of a {}.`` (the default); the classes' embeddings are averaged over
            them.
        dtype: of the image tower.
        revision: on the hub; None: the newest.

    Raises:
        TaskError: there are fewer than two different classes, or a template has no place for the name.
    """
    templates = ["a photo of a {}."] if templates is None else templates
    if len(class_names) < 2 or len(set(class_names)) < len(class_names):
        raise TaskError(f"class_names={class_names}: must be at least two different names.")
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise TaskError(f"templates={templates}: every template must have one {{}}, the place of the class name.")
    require_dtype(dtype)
    clip = transformers_model(name, "CLIPModel", revision=revision).eval()
    tokenizer = class_of("AutoTokenizer").from_pretrained(name, **({"revision": revision} if revision else {}))
    text_features = zero_shot_text_features(clip, tokenizer, class_names, templates)
    return ClipZeroShot(clip, text_features).to(getattr(torch, dtype))


@torch.no_grad()
def zero_shot_text_features(clip: Any, tokenizer: Any, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Embeddings (num_classes, projection size) of norm 1: of every class the mean over its texts' of norm 1."""
    features = []
    for class_name in class_names:
        texts = [template.replace("{}", class_name) for template in templates]
        tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        pooled = clip.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
        embeddings = functional.normalize(clip.text_projection(pooled), dim=-1)
        features.append(functional.normalize(embeddings.mean(dim=0), dim=-1))
    return torch.stack(features)
