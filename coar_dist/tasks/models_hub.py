"""Models of torchvision, timm and Hugging Face transformers: by name with published weights, or small and random.

Each library is imported where a model of it is asked for; ``pip install 'coar-dist[hf]'`` and ``[vision]`` have them.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from coar_dist.errors import ConfigError, TaskError, listed

_log = logging.getLogger(__name__)
_DTYPES = ("float32", "bfloat16", "float16")


def torchvision_model(
    name: str,
    weights: str | None = None,
    num_classes: int | None = None,
    settings: dict[str, Any] | None = None,
) -> nn.Module:
    """A model of ``torchvision.models``.

    Args:
        name: e.g. ``resnet50``, ``vit_b_16``.
        weights: their name, e.g. ``IMAGENET1K_V1``, ``DEFAULT``; downloaded at first use. None: random.
        num_classes: of the last layer; None: the weights' own, or torchvision's default. With weights of another number
            everything but the last layer is taken from them: a model to be trained.
        settings: further arguments of the model's constructor.

    Raises:
        TaskError: torchvision has no such model or weights.
    """
    models = optional("torchvision.models", "vision")
    options = dict(settings or {})
    if num_classes is not None:
        options["num_classes"] = num_classes
    try:
        if weights is None:
            return models.get_model(name, weights=None, **options)  # type: ignore[no-any-return]
        known = models.get_model_weights(name)[weights]
        if num_classes is None or num_classes == len(known.meta["categories"]):
            return models.get_model(name, weights=known, **options)  # type: ignore[no-any-return]
        model = models.get_model(name, weights=None, **options)
    except (KeyError, ValueError, TypeError) as error:
        raise TaskError(
            f"torchvision.models has no {name!r} with weights={weights!r} and {options}: {error}"
        ) from error
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    state = {
        key: tensor
        for key, tensor in known.get_state_dict(progress=False, check_hash=True).items()
        if shapes.get(key) == tensor.shape
    }
    missing = model.load_state_dict(state, strict=False).missing_keys
    _log.info("%s: new and random are %s", name, ", ".join(missing))
    return model  # type: ignore[no-any-return]


def timm_model(
    name: str, pretrained: bool = False, num_classes: int | None = None, settings: dict[str, Any] | None = None
) -> nn.Module:
    """A model of ``timm.create_model``.

    Args:
        name: e.g. ``vit_small_patch16_224.augreg_in1k``.
        pretrained: whether the published weights are loaded; downloaded at first use.
        num_classes: of the last layer; None: timm's own. Another number than the weights' gives a new last layer.
        settings: further arguments, e.g. ``{img_size: 32, in_chans: 1}``.

    Raises:
        TaskError: by timm, if it has no such model.
    """
    timm = optional("timm", "vision")
    options = dict(settings or {})
    if num_classes is not None:
        options["num_classes"] = num_classes
    return timm.create_model(name, pretrained=pretrained, **options)  # type: ignore[no-any-return]


def transformers_model(
    name: str,
    kind: str = "AutoModelForImageClassification",
    dtype: str = "float32",
    revision: str | None = None,
    attention: str | None = None,
    new_layers: bool = False,
    settings: dict[str, Any] | None = None,
) -> nn.Module:
    """A Hugging Face model with its weights, without running code that comes with them.

    Args:
        name: on the hub, or a local folder of ``save_pretrained``.
        kind: class of the transformers library, e.g. ``AutoModelForCausalLM``.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: as the weights were saved.
        revision: branch, tag or commit on the hub; None: the newest.
        attention: how attention is computed, e.g. ``sdpa`` or ``eager``; None: the library's choice.
        new_layers: whether layers without weights in the checkpoint may stay random, to be trained.
        settings: further settings of the model's config, e.g. ``{num_labels: 2}``.

    Raises:
        ConfigError: the library has no such class.
        TaskError: the weights do not fill the model and ``new_layers`` is off.
    """
    require_dtype(dtype, ("auto",))
    options = {
        "torch_dtype": dtype if dtype == "auto" else getattr(torch, dtype),
        "revision": revision or "main",
        "attn_implementation": attention,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # told below, with what to do about it
        **(settings or {}),
    }
    model, loaded = class_of(kind).from_pretrained(name, **{k: v for k, v in options.items() if v is not None})
    mismatched = [entry if isinstance(entry, str) else entry[0] for entry in loaded["mismatched_keys"]]
    random = sorted({*loaded["missing_keys"], *mismatched})
    if random and not new_layers:
        raise TaskError(
            f"{name} has no weights for {listed(random, most=5)} of "
            f"{type(model).__name__}, so they would be random. Use another kind than {kind!r}, or new_layers=true and "
            f"train the model."
        )
    return without_cache(model)


def transformers_config(
    model_type: str,
    kind: str = "AutoModelForCausalLM",
    settings: dict[str, Any] | None = None,
    dtype: str = "float32",
    attention: str | None = None,
    seed: int | None = None,
) -> nn.Module:
    """A Hugging Face architecture with random weights, of any size.

    Args:
        model_type: e.g. ``gpt2``, ``vit``, ``clip``, ``resnet``.
        kind: class of the transformers library.
        settings: what differs from the architecture's default config, e.g. ``{n_layer: 3, n_embd: 96}``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        attention: as in ``transformers_model``.
        seed: of the weights, which are then meant to stay random; None: torch's current generator, as the train stage
            seeds it.

    Raises:
        ConfigError: the library has no such class, the architecture no such setting.
    """
    require_dtype(dtype)
    auto = class_of("AutoConfig")
    try:
        default = auto.for_model(model_type)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"model_type={model_type!r}: transformers has no such architecture.") from error
    _check_settings(settings or {}, default, "settings")
    config = auto.for_model(model_type, **(settings or {}))
    config._attn_implementation = attention
    chosen = class_of(kind)
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = chosen.from_config(config) if hasattr(chosen, "from_config") else chosen(config)
    return without_cache(model.to(getattr(torch, dtype)))


def without_cache(model: nn.Module) -> nn.Module:
    """A language model that returns no keys and values of the past, which nothing here reads."""
    config: Any = model.config
    if getattr(config, "use_cache", False):
        config.use_cache = False
    return model


def class_of(name: str) -> Any:
    """A class of the transformers library.

    Raises:
        ConfigError: there is none, or the library is missing.
    """
    library = optional("transformers", "hf")
    if not name.isidentifier() or not hasattr(library, name):
        raise ConfigError(f"kind={name!r}: transformers has no such class, e.g. AutoModelForCausalLM.")
    return getattr(library, name)


def optional(module: str, extra: str) -> Any:
    """An optional library.

    Raises:
        ConfigError: it cannot be imported; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # torchvision beside another build of torch raises a RuntimeError
        library = module.partition(".")[0]
        raise ConfigError(
            f"{library} cannot be imported: {error}. Install it with pip install 'coar-dist[{extra}]', of a version "
            f"and build that fit torch {torch.__version__}."
        ) from error


def require_dtype(dtype: str, also: tuple[str, ...] = ()) -> None:
    """Check the name of a floating-point dtype.

    Raises:
        ConfigError: it is neither one of a model's dtypes nor in ``also``.
    """
    choices = (*_DTYPES, *also)
    if dtype not in choices:
        raise ConfigError(f"dtype={dtype!r}: must be one of {', '.join(choices)}.")


def _check_settings(settings: Mapping[str, Any], default: Any, key: str) -> None:
    """Transformers takes any setting, and ignores those that it does not know."""
    for name, value in settings.items():
        if not hasattr(default, name):
            raise ConfigError(f"{key}.{name}: {type(default).__name__} has no such setting.")
        inner = getattr(default, name)
        if isinstance(value, Mapping) and hasattr(inner, "to_dict"):
            _check_settings(value, inner, f"{key}.{name}")
