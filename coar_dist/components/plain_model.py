"""The model that is ablated: without wrappers, and with the weights that it runs with as its parameters.

A wrapper (``torch.compile``, ``DataParallel``) changes the names of parameters. A parametrised weight (weight norm,
spectral norm, pruning, a LoRA adapter) is no parameter of its layer, but computed from others at every call: what is
ablated is the effective weight, so a copy of the model holds it instead.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from coar_dist.errors import TaskError, in_one_line

_OLD_HOOKS = ("WeightNorm", "SpectralNorm")
"""Classes of the forward pre-hooks by which torch.nn.utils computed weights before there were parametrisations."""


def plain_model(model: nn.Module) -> nn.Module:
    """``model`` without wrappers, or a copy of it where weights are computed from other parameters.

    Args:
        model: any module; it is not changed.

    Returns:
        The module inside ``torch.compile``, ``DataParallel`` or ``DistributedDataParallel``. Where weights are
        parametrised, pruned or adapted by LoRA, a copy with the effective weights as parameters under their own names.

    Raises:
        TaskError: it is no model, is TorchScript, has lazy parameters, or has adapters that cannot be merged.

    Example:
        >>> layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
        >>> [name for name, _ in plain_model(layer).named_parameters()]
        ['bias', 'weight']
    """
    _check_is_one(model)
    model = _unwrapped(model)
    _check(model)
    if not any(_computes_weights(module) or _is_wrapper(module) for module in model.modules()):
        return model
    model = copy.deepcopy(model, _computed_tensors(model))
    for name, module in list(model.named_modules()):
        if _is_wrapper(module):
            model.set_submodule(name, _unwrapped(module))
    for name, module in list(model.named_modules()):
        if _is_adapted(module):
            model.set_submodule(name, _merged(name, module))
    if hasattr(model, "get_base_model"):  # PEFT's own wrapper, whose adapters are merged now
        model = cast(Any, model).get_base_model()
    for module in model.modules():
        _write_out(module)
    return model


def _computed_tensors(model: nn.Module) -> dict[int, Any]:
    """What ``deepcopy`` is to take for tensors with a history, which it cannot copy: old hooks leave some behind."""
    held = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    return {id(tensor): tensor.detach().clone() for tensor in held if not tensor.is_leaf}


def is_plain(model: nn.Module) -> bool:
    """Whether ``plain_model`` gives the parameters of ``model`` itself, not of a copy.

    Raises:
        TaskError: it is no model.
    """
    _check_is_one(model)
    return not any(_computes_weights(module) for module in _unwrapped(model).modules())


def _is_wrapper(module: nn.Module) -> bool:
    return isinstance(module, DataParallel | DistributedDataParallel) or hasattr(module, "_orig_mod")


def _check_is_one(model: object) -> None:
    if isinstance(model, nn.Module):
        return
    if isinstance(model, type):
        raise TaskError(f"model is the class {model.__name__}, not a model. Call it: {model.__name__}(...).")
    raise TaskError(f"model is a {type(model).__name__}, not a torch.nn.Module. Give the module with the weights.")


def _unwrapped(module: nn.Module) -> nn.Module:
    while _is_wrapper(module):
        inner = module.module if isinstance(module, DataParallel | DistributedDataParallel) else module._orig_mod
        module = cast(nn.Module, inner)
    return module


def _check(model: nn.Module) -> None:
    name = type(model).__name__
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise TaskError(
            f"{name} is TorchScript, whose layers cannot be seen or gated. Give the module that it was made from."
        )
    for parameter_name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise TaskError(
                f"{parameter_name} of {name} is lazy: it has no shape until the model has run. Call the model once on "
                f"a batch, then give it."
            )


def _computes_weights(module: nn.Module) -> bool:
    return parametrize.is_parametrized(module) or bool(_old_hooks(module)) or _is_pruned(module) or _is_adapted(module)


def _is_adapted(module: nn.Module) -> bool:
    """Whether the module is a layer of PEFT's around a ``base_layer``."""
    return isinstance(getattr(module, "base_layer", None), nn.Module) and callable(getattr(module, "merge", None))


def _is_pruned(module: nn.Module) -> bool:
    return any(name.endswith("_mask") and f"{name[:-5]}_orig" in module._parameters for name in module._buffers)


def _old_hooks(module: nn.Module) -> list[int]:
    return [key for key, hook in module._forward_pre_hooks.items() if type(hook).__name__ in _OLD_HOOKS]


def _merged(name: str, module: nn.Module) -> nn.Module:
    try:
        cast(Any, module).merge(safe_merge=True)
    except Exception as error:  # PEFT's layers raise in many ways: quantised base layers, adapters without a merge
        raise TaskError(
            f"{name} ({type(module).__name__}) has an adapter that cannot be merged into its weight: "
            f"{in_one_line(error)}. Merge it yourself (merge_and_unload), or load the base layer unquantised."
        ) from error
    return cast(nn.Module, module.base_layer)


def _write_out(module: nn.Module) -> None:
    """Make the effective weights of one module its parameters."""
    module._compiled_call_impl = None  # what module.compile() left calls the module that was copied
    if parametrize.is_parametrized(module):
        # torch's own remove_parametrizations changes the class, which the original shares with its copy.
        weights = {name: getattr(module, name).detach() for name in cast(Any, module).parametrizations}
        module.__class__ = type(module).__bases__[0]
        del module._modules["parametrizations"]
        for name, weight in weights.items():
            module.register_parameter(name, nn.Parameter(weight.clone()))
    for key in _old_hooks(module):
        hook: Any = module._forward_pre_hooks.pop(key)
        hook.remove(module)
    for name in [name[:-5] for name in module._buffers if name.endswith("_mask")]:
        if f"{name}_orig" in module._parameters:
            original, mask = module._parameters.pop(f"{name}_orig"), module._buffers.pop(f"{name}_mask")
            assert original is not None
            assert mask is not None
            for key, hook in list(module._forward_pre_hooks.items()):
                if getattr(hook, "_tensor_name", None) == name:
                    del module._forward_pre_hooks[key]
            module.__dict__.pop(name, None)
            module.register_parameter(name, nn.Parameter((original * mask).detach()))
