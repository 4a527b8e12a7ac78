"""A model that is spread over all devices that this process sees, by Hugging Face's accelerate."""

from __future__ import annotations

from torch import nn

from coar_dist.errors import ConfigError, TaskError


def check_device_map(device_map: str | None, model: nn.Module) -> None:
    """Check that a model can be spread over several devices.

    Args:
        device_map: as of ``spread_over_devices``; None where the model lies on one device.
        model: which is not changed.

    Raises:
        ConfigError: it is no model of transformers.
    """
    if device_map is not None and not hasattr(model, "_no_split_modules"):
        raise ConfigError(
            f"ablation.device_map={device_map!r} has no effect on {type(model).__name__}: only models of transformers "
            f"say how they can be spread over devices. Leave it out."
        )


def spread_over_devices(model: nn.Module, device_map: str) -> None:
    """Spread a Hugging Face model over all devices that this process sees, in place.

    Args:
        model: the model.
        device_map: a name that accelerate knows, e.g. ``balanced`` or ``sequential``.

    Raises:
        TaskError: the model does not fit.
    """
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    unsplit = list(getattr(model, "_no_split_modules", None) or [])
    memory = None
    if device_map != "sequential":
        low_zero = device_map == "balanced_low_0"
        memory = get_balanced_memory(model, no_split_module_classes=unsplit, low_zero=low_zero)
    places = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=unsplit)
    if "disk" in places.values():
        raise TaskError(
            f"ablation.device_map={device_map!r}: the model does not fit on this actor's devices. Raise "
            f"cluster.gpus_per_actor."
        )
    dispatch_model(model, places)
