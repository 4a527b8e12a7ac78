"""The attention of heads: how much each query attends to each key, as the unablated model computes it.

Every softmax over keys, and every call of PyTorch's fused attention, is seen within the pass of the attention module
that it belongs to. What the fused one does not give is computed from its queries and keys (Vaswani et al. 2017, section
3.2.1).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from coar_dist.ablation.placement import modules_called
from coar_dist.components.attention import AttentionGates, can_be_gated, gated_attention
from coar_dist.components.attention_sites import AttentionSite, attention_sites
from coar_dist.components.index import ComponentIndex

LONGEST_SIDE = 32
_SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax)
_SUM_TOLERANCE = 0.05
"""Of a softmax over keys in bfloat16, by which its sum may differ from 1."""


def heads_of(model: nn.Module, components: ComponentIndex) -> dict[int, tuple[str, range]]:
    """The attention module of each component that is one or several of its heads, and which ones.

    Args:
        model: on any device.
        components: their slices are those of what reads the heads, or of the heads' queries.
    """
    sites = attention_sites(model)
    by_output = {(site.parameter, site.axis): site for site in sites}
    by_query = {
        rule.at(head)[:3]: (site.module, range(head, head + 1))
        for site in sites
        for rule in (site.query or ())[:1]
        for head in range(site.num_heads)
    }
    found: dict[int, tuple[str, range]] = {}
    for first, group in zip(components.offsets.tolist(), components.groups, strict=False):
        part = group.slices[0]
        site = by_output.get((part.parameter, part.axis))
        for place, start in enumerate(part.starts):
            if site is not None and start % site.head_size == 0 and part.size % site.head_size == 0:
                head = start // site.head_size
                found[first + place] = site.module, range(head, head + part.size // site.head_size)
            elif site is None and (part.parameter, part.axis, start) in by_query:
                found[first + place] = by_query[part.parameter, part.axis, start]
    return found


def watch_attention(
    model: nn.Module,
    modules: Collection[str],
    num_rows: int,
    see: Callable[[str, Tensor], None],
    run: Callable[[], object],
) -> set[str]:
    """Look at what heads attend to in one pass.

    Args:
        model: in eval mode; it is as before on every exit.
        modules: names of attention modules.
        num_rows: examples of the pass.
        see: given a module's name and (num_rows, num_heads, queries, keys), of which it keeps what it needs. Attention
            that is neither PyTorch's softmax nor its fused function, and that of windows, is not seen.
        run: the pass.

    Returns:
        The modules that were seen once; of those seen several times nobody can say which is meant.
    """
    sites = {site.module: site for site in attention_sites(model) if site.module in modules}
    watcher = _Watcher(sites, num_rows, see)
    with contextlib.ExitStack() as stack:
        for name in sites:
            module = model.get_submodule(name)
            if isinstance(module, nn.MultiheadAttention) and can_be_gated(module) and "forward" not in vars(module):
                stack.enter_context(_computed_openly(module))
            stack.callback(module.register_forward_pre_hook(partial(watcher.enter, name)).remove)
            stack.callback(module.register_forward_hook(watcher.leave, always_call=True).remove)
        with torch.no_grad(), modules_called(), watcher:
            run()
    return {name for name, num in watcher.seen.items() if num == 1}


@contextlib.contextmanager
def _computed_openly(module: nn.MultiheadAttention) -> Iterator[None]:
    """Its own forward is one function, within which nothing is seen."""
    module.forward = gated_attention(module, AttentionGates())  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward


class _Watcher(TorchFunctionMode):
    """Notes the softmaxes over keys within attention modules that are being called."""

    def __init__(self, sites: Mapping[str, AttentionSite], num_rows: int, see: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self._sites, self._num_rows, self._see = sites, num_rows, see
        self._running: list[str] = []
        self.seen = Counter[str]()

    def enter(self, name: str, _module: nn.Module, _inputs: Any) -> None:
        """A module is called."""
        self._running.append(name)

    def leave(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        """Its call has ended."""
        self._running.pop()

    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._running:
            if func is functional.scaled_dot_product_attention:
                self._note(_pattern(*args, **kwargs))
            elif func in _SOFTMAX:
                self._note(result)
        return result

    def _note(self, pattern: Tensor) -> None:
        site = self._sites[self._running[-1]]
        if pattern.ndim == 3 and len(pattern) == self._num_rows * site.num_heads:
            pattern = pattern.reshape(self._num_rows, site.num_heads, *pattern.shape[1:])
        if pattern.ndim != 4 or pattern.shape[:2] != (self._num_rows, site.num_heads):
            return
        pattern = pattern.detach().float().nan_to_num()
        sums = pattern.sum(dim=-1)
        if bool(((sums - 1).abs() < _SUM_TOLERANCE).logical_or(sums == 0).all()):
            self.seen[site.module] += 1
            self._see(site.module, pattern)


def _pattern(
    query: Tensor,
    key: Tensor,
    _value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What PyTorch's fused attention weighs values by, from its arguments."""
    del dropout_p
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    scores = query.float() @ key.float().transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~visible, -torch.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(dim=-1)


def scaled_down(pattern: Tensor) -> Tensor:
    """(queries, keys) in at most ``LONGEST_SIDE`` parts each: means over queries, sums over keys, rows sum to 1."""
    shape = min(pattern.shape[0], LONGEST_SIDE), min(pattern.shape[1], LONGEST_SIDE)
    if pattern.shape == shape:
        return pattern
    parts = functional.adaptive_avg_pool2d(pattern[None], shape)[0]
    return parts / parts.sum(dim=1, keepdim=True).clamp(min=torch.finfo(parts.dtype).tiny)
