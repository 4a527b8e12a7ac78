"""Tracing a model without a trace left in it."""

from __future__ import annotations

import copy

from torch import fx, nn

from coar_dist.components.stale_values import OF_MODULES


def traced(tracer: fx.Tracer, model: nn.Module) -> fx.Graph:
    """The graph of ``model``, whose modules are as before: a forward may keep what it computes, which are proxies here.

    Raises:
        Exception: tracing runs the user's own forward, which may raise anything on a proxy.
    """
    kept = [
        (module, {name: (value, _content(value)) for name, value in vars(module).items() if name not in OF_MODULES})
        for module in model.modules()
    ]
    try:
        return tracer.trace(model)
    finally:
        for module, attributes in kept:
            for name in vars(module).keys() - OF_MODULES - attributes.keys():
                del vars(module)[name]
            for name, (value, content) in attributes.items():
                vars(module)[name] = value
                if isinstance(value, dict) and isinstance(content, dict):
                    value.clear()
                    value.update(content)
                elif isinstance(value, list) and isinstance(content, list):
                    value[:] = content


def _content(value: object) -> object:
    return copy.copy(value) if type(value) in (dict, list) else None
