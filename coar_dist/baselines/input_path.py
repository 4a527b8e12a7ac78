"""What lies on the path from nothing to an example: neuron conductance and internal influence look along it.

Floating-point inputs are scaled from zeros. Tokens cannot be: in their place the outputs of every embedding that reads
an integer input are scaled from zeros, which is ``LayerConductance`` with zero embeddings as its baseline. Bytes of
images (uint8, read by no embedding) become floats first, as they are or divided by 255, whichever the model takes as
the same image. Masks and other integers stay what they are at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from coar_dist.errors import ConfigError, TaskError
from coar_dist.tasks.example_set import Inputs
from coar_dist.tasks.task import call_model

_SINGLE = ""
"""The key of an input that is no dict."""
_SCALES = (1.0, 1 / 255)
Margins = Callable[[Any], Tensor]
"""From outputs to the margins of the rows that were given."""


class InputPath:
    """Calls a model with tensors on the path in place of what they stand for.

    Args:
        model: in eval mode; it is not changed, but within ``attached``.
        inputs: of at least two rows, on the model's device.
        margins: of the outputs for ``inputs``.

    Raises:
        ConfigError: nothing in the inputs can be scaled.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, margins: Margins) -> None:
        self._model = model
        self._is_single = isinstance(inputs, Tensor)
        self._replacements: dict[str, Tensor] | None = None  # by embedding
        tensors = _by_key(inputs)
        self._keys = sorted(tensors)
        self._scales = {key: 1.0 for key, tensor in tensors.items() if tensor.is_floating_point()}
        integers = {k: t for k, t in tensors.items() if not t.is_floating_point() and t.dtype != torch.bool}
        seen: dict[str, list[Tensor]] = {}
        with torch.no_grad(), self._watching(lambda name, tokens, _: seen.setdefault(name, []).append(tokens)):
            expected = margins(call_model(model, inputs))
        readers = {
            name: {key for key, tensor in integers.items() if any(_is_same(tokens, tensor) for tokens in of_calls)}
            for name, of_calls in seen.items()
        }
        self._embeddings = sorted(name for name, keys in readers.items() if keys)
        for name in self._embeddings:
            if len(seen[name]) > 1:
                raise ConfigError(
                    f"the embedding {name} is called {len(seen[name])} times in a forward pass: its outputs cannot "
                    f"be put on one path."
                )
        for key in integers.keys() - set().union(*readers.values()):
            if integers[key].dtype == torch.uint8:
                self._scales[key] = self._scale_of(key, inputs, margins, expected)
        if not self._scales and not self._embeddings:
            found = {key or "inputs": str(tensor.dtype) for key, tensor in tensors.items()}
            raise ConfigError(
                f"inputs of {found} that no nn.Embedding reads as they are cannot be scaled from zeros. Give the "
                f"model floating-point inputs."
            )

    def _scale_of(self, key: str, inputs: Inputs, margins: Margins, expected: Tensor) -> float:
        for scale in _SCALES:
            tensors = _by_key(inputs)
            tensors[key] = _as_float(tensors[key], scale)
            with torch.no_grad():
                found = margins(call_model(self._model, self._inputs(tensors)))
            if torch.allclose(found, expected, rtol=1e-3, atol=1e-3):
                return scale
        raise ConfigError(
            f"the uint8 tensor {key or 'inputs'!r} gives other margins as floats, in 0..255 or in 0..1, and bytes "
            f"cannot be scaled from zeros. Give the model floating-point inputs."
        )

    def split(self, inputs: Inputs) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The ends of the path, and the inputs that stay as they are.

        Args:
            inputs: of n rows, on the model's device.

        Returns:
            Floating-point tensors (n, ...): scaled inputs, then outputs of embeddings; and the other inputs.
        """
        tensors = _by_key(inputs)
        ends = [_as_float(tensors[key], scale) for key, scale in sorted(self._scales.items())]
        if self._embeddings:
            outputs: dict[str, Tensor] = {}
            with torch.no_grad(), self._watching(lambda name, _, output: outputs.__setitem__(name, output)):
                call_model(self._model, inputs)
            ends += [outputs[name].detach() for name in self._embeddings]
        return tuple(ends), tuple(tensor for key, tensor in sorted(tensors.items()) if key not in self._scales)

    @property
    def num_ends(self) -> int:
        """Tensors on the path."""
        return len(self._scales) + len(self._embeddings)

    def call(self, ends: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> Any:
        """The model's outputs at a point of the path; only within ``attached``.

        Args:
            ends: tensors in the order of ``split``; no gradient flows to them.
            others: the tensors that are not on the path, in the order of ``split``.
        """
        stopped = [end.detach() for end in ends]
        tensors = dict(zip(sorted(self._scales), stopped, strict=False))
        tensors |= zip([key for key in self._keys if key not in self._scales], others, strict=True)
        self._replacements = dict(zip(self._embeddings, stopped[len(self._scales) :], strict=True))
        try:
            return call_model(self._model, self._inputs(tensors))
        finally:
            self._replacements = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let embeddings give what stands on the path, for the length of a ``with`` block."""
        modules = dict(self._model.named_modules())
        with ExitStack() as stack:
            for name in self._embeddings:
                stack.callback(modules[name].register_forward_hook(partial(self._replace, name)).remove)
            yield

    def _replace(self, name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        if self._replacements is None:  # ``split`` asks for the true output
            return output
        replacement = self._replacements[name]
        if replacement.shape != output.shape:
            raise TaskError(
                f"the embedding {name} gives {tuple(output.shape)} for some examples, and {tuple(replacement.shape)} "
                f"for others."
            )
        return replacement

    @contextmanager
    def _watching(self, tell: Callable[[str, Tensor, Tensor], Any]) -> Iterator[None]:
        """``tell(name, tokens, output)`` of every call of an embedding."""
        with ExitStack() as stack:
            for name, module in self._model.named_modules():
                if isinstance(module, nn.Embedding):

                    def hook(_module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
                        if inputs:
                            tell(name, inputs[0], output)

                    stack.callback(module.register_forward_hook(hook).remove)
            yield

    def _inputs(self, tensors: Mapping[str, Tensor]) -> Inputs:
        return tensors[_SINGLE] if self._is_single else dict(tensors)


def _by_key(inputs: Inputs) -> dict[str, Tensor]:
    return dict(inputs) if isinstance(inputs, dict) else {_SINGLE: inputs}


def _as_float(tensor: Tensor, scale: float) -> Tensor:
    return tensor if tensor.is_floating_point() else tensor.float() * scale


def _is_same(tokens: Tensor, tensor: Tensor) -> bool:
    """Whether an embedding reads this input: the same memory, or the same values in the same shape."""
    if tokens.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr():
        return True
    return tokens.shape == tensor.shape and torch.equal(tokens.to(tensor), tensor)
