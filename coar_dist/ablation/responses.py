"""What components look at: the examples on which each is strongest and its activations there, in one streamed pass.

Activations are those of the unablated model at the components' sites: what a filter gives with its bias, before any
normalisation and before what follows it (a ReLU, say); what a projection reads of a neuron, after its nonlinearity, and
of a head, whose activation is the norm of its slice; of an expert its routing weight. Which examples are shown follows
Neuronpedia: those with the largest activation at any position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coar_dist.ablation.attention_patterns import LONGEST_SIDE as PATTERN_SIDE
from coar_dist.ablation.attention_patterns import heads_of, scaled_down, watch_attention
from coar_dist.ablation.response_sources import NUM_KEPT, Source, counted_range
from coar_dist.ablation.site_means import padding_of
from coar_dist.ablation.site_taps import Tap, find_layouts, taps_of, watch
from coar_dist.components.gate_places import weights_read
from coar_dist.components.index import ComponentIndex
from coar_dist.components.sites import tapped_sites_of
from coar_dist.store.responses import Response, Responses
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.task import call_model

_NUM_ROWS, _NUM_ROWS_ON_GPU = 32, 128
_MOST_TOKENS, _MOST_TOKENS_ON_GPU = 2**12, 2**15
"""Of a pass, whose logits may be of a large vocabulary."""
_ROWS_WITH_PATTERNS, _MOST_PAIRS = 16, 2**22
"""Examples, and pairs of query and key, of a pass that looks at attention, for each head."""
_FEW, _MORE = 2, 3


@dataclass(frozen=True)
class FoundResponses:
    """What a pass found.

    Attributes:
        responses: by component id; empty where they would take too much.
        num_bytes: that they take in files, about.
        without: by component id of those without an activation, why.
    """

    responses: dict[int, Responses]
    num_bytes: float
    without: dict[int, str]


def responses_of(
    model: nn.Module, components: ComponentIndex, examples: ExampleSet, device: torch.device, most_bytes: float
) -> FoundResponses:
    """What the components look at among the examples.

    Args:
        model: in eval mode, on ``device``; it is as before on every exit.
        components: the component index.
        examples: their targets are not read. Positions that an ``attention_mask`` leaves out do not count.
        device: where the model takes its inputs.
        most_bytes: nothing is looked for where it would take more.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> hidden = ComponentIndex((ComponentGroup.of("2.weight", 1, 4),))
        >>> examples = ExampleSet(torch.eye(3), torch.zeros(3))
        >>> found = responses_of(model.eval(), hidden, examples, torch.device("cpu"), 1e6)
        >>> all(0 <= each.example_id < 3 for of_one in found.responses.values() for each in of_one.examples)
        True
    """

    def run(rows: Iterable[int]) -> None:
        batch = examples.select(list(rows)).map(lambda tensor: tensor.to(device))  # the model may change its inputs
        with torch.no_grad():
            call_model(model, batch.inputs)

    def few(num_rows: int) -> Callable[[], None]:
        return lambda: run(i % len(examples) for i in range(num_rows))

    sources, without = _sources(model, components, few)
    heads = heads_of(model, components)
    kernels = _kernels(model, components, examples)
    num_bytes = sum(source.num_bytes for source in sources) + 2.0 * sum(kernel.size for kernel in kernels.values())
    num_bytes += float(len(heads)) * NUM_KEPT * PATTERN_SIDE**2
    if num_bytes > most_bytes:
        return FoundResponses({}, num_bytes, {})
    _stream(model, sources, examples, device, run)
    found: dict[int, list[Response]] = {i: [] for i in kernels}
    lengths = padding_of(examples.inputs, False), padding_of(examples.inputs, True)
    for source in sources:
        if source.why is None:
            found |= source.responses(lengths[source.is_in_decoder])
        else:
            without |= dict.fromkeys(source.component_ids.tolist(), source.why)
    of_heads = (source for source in sources if not heads.keys().isdisjoint(source.component_ids.tolist()))
    longest = max((math.prod(source.positions) for source in of_heads), default=1)
    num_rows = min(max(_MOST_PAIRS // max(longest, 1) ** 2, 1), _ROWS_WITH_PATTERNS)
    found = _with_patterns(model, heads, found, lengths[False], num_rows, run)
    return FoundResponses({i: Responses(kernels.get(i), tuple(each)) for i, each in found.items()}, num_bytes, without)


def _sources(
    model: nn.Module, components: ComponentIndex, few: Callable[[int], Callable[[], None]]
) -> tuple[list[Source], dict[int, str]]:
    """Where activations come from; and by component of those without any, why."""
    found, no_site = tapped_sites_of(model, components, weights_read(model, components, few(1)))
    without: dict[int, str] = {}
    sources: list[Source] = []
    for number, places in enumerate(found):
        ids = np.arange(components.offsets[number], components.offsets[number + 1])
        if number in no_site:
            without |= dict.fromkeys(ids.tolist(), no_site[number])
            continue
        taps = [taps_of(place) for place in places]
        if len(taps) == 1:
            sources += [Source(ids[tap.places], [tap], False) for tap in taps[0]]
        elif all(len(of_place) == 1 and len(of_place[0].places) == len(ids) for of_place in taps):
            is_norm = len({place.slices for place in places}) > 1
            sources.append(Source(ids, [of_place[0] for of_place in taps], is_norm))
        else:
            without |= dict.fromkeys(ids.tolist(), "parts of it are in q, k or v of one matrix, and elsewhere")
    all_taps = [tap for source in sources for tap in source.taps]
    why = find_layouts(model, all_taps, (_FEW, few(_FEW)), (_MORE, few(_MORE)))
    why_of_tap = {id(all_taps[number]): reason for number, reason in why.items()}
    kept = []
    for source in sources:
        reason = next((why_of_tap[id(tap)] for tap in source.taps if id(tap) in why_of_tap), None)
        if reason is None:
            kept.append(source)
        else:
            without |= dict.fromkeys(source.component_ids.tolist(), reason)
    return kept, without


def _stream(
    model: nn.Module,
    sources: Sequence[Source],
    examples: ExampleSet,
    device: torch.device,
    run: Callable[[Iterable[int]], None],
) -> None:
    """Look at all examples, in as many passes as memory asks for."""
    source_of = {id(tap): source for source in sources for tap in source.taps}

    def see(tap: Tap, activation: Tensor, channel_axis: int) -> None:
        source_of[id(tap)].see(tap, activation, channel_axis)

    start, num_rows = 0, _rows_of_a_pass(examples, device)
    while start < len(examples) and sources:
        rows = range(start, min(start + num_rows, len(examples)))
        inputs = examples.rows(rows.start, rows.stop).inputs
        paddings = padding_of(inputs, False), padding_of(inputs, True)
        for source in sources:
            source.begin(torch.arange(rows.start, rows.stop), paddings[source.is_in_decoder])
        try:
            watch(
                model,
                list({id(tap): tap for source in sources for tap in source.taps}.values()),
                see,
                partial(run, rows),
            )
            for source in sources:
                source.end()
        except torch.OutOfMemoryError:
            if num_rows == 1:
                raise
            num_rows //= 2
            continue  # what is kept already of these examples is not kept twice
        start = rows.stop


def _rows_of_a_pass(examples: ExampleSet, device: torch.device) -> int:
    is_gpu = device.type == "cuda"
    num_rows, most_tokens = (_NUM_ROWS_ON_GPU, _MOST_TOKENS_ON_GPU) if is_gpu else (_NUM_ROWS, _MOST_TOKENS)
    lengths = [len(t[0]) for _, t in examples.tensors() if t.ndim == 2 and not t.is_floating_point()]
    return max(min(num_rows, most_tokens // max(lengths, default=1)), 1)


def _kernels(model: nn.Module, components: ComponentIndex, examples: ExampleSet) -> dict[int, NDArray[np.float16]]:
    """By component the weights of filters that read images of as many channels as the examples have."""
    inputs = examples.inputs.get("pixel_values") if isinstance(examples.inputs, dict) else examples.inputs
    if inputs is None or inputs.ndim != 4 or inputs.shape[1] not in (1, 3):
        return {}
    found: dict[int, NDArray[np.float16]] = {}
    for first, group in zip(components.offsets.tolist(), components.groups, strict=False):
        part, module = group.slices[0], model.get_submodule(group.slices[0].module)
        if (
            isinstance(module, nn.Conv2d)
            and module.groups == 1
            and (module.in_channels, part.axis, part.size) == (inputs.shape[1], 0, 1)
            and group.parameter.endswith("weight")
        ):
            weights = module.weight.detach().float().cpu().numpy().astype(np.float16)
            found |= {first + place: weights[start] for place, start in enumerate(part.starts)}
    return found


def _with_patterns(
    model: nn.Module,
    heads: dict[int, tuple[str, range]],
    found: dict[int, list[Response]],
    padding: Tensor | None,
    num_rows: int,
    run: Callable[[Iterable[int]], None],
) -> dict[int, list[Response]]:
    """The responses of heads with what they attend to, from other passes of their examples, ``num_rows`` at a time."""
    wanted: dict[tuple[str, int], list[int]] = {}
    for component_id, (module, _) in heads.items():
        for each in found.get(component_id, []):
            wanted.setdefault((module, each.example_id), []).append(component_id)
    patterns: dict[tuple[int, int], NDArray[np.float32]] = {}
    ids, modules = sorted({example_id for _, example_id in wanted}), {module for module, _ in heads.values()}
    for start in range(0, len(ids), num_rows):
        if not modules:
            break
        rows = ids[start : start + num_rows]

        def see(module: str, pattern: Tensor, rows: Sequence[int] = rows) -> None:
            for row, example_id in enumerate(rows):
                for component_id in wanted.get((module, example_id), []):
                    of_component = pattern[row, list(heads[component_id][1])].mean(dim=0)
                    counted = None if padding is None else padding[example_id]
                    patterns[component_id, example_id] = _counted_pattern(of_component, counted)

        modules &= watch_attention(model, modules, len(rows), see, partial(run, rows))
    for component_id, (module, _) in heads.items():
        if module in modules and component_id in found:
            found[component_id] = [
                replace(each, pattern=patterns.get((component_id, each.example_id))) for each in found[component_id]
            ]
    return found


def _counted_pattern(pattern: Tensor, counted: Tensor | None) -> NDArray[np.float32]:
    """Without padding, scaled down."""
    if counted is not None:
        begin, end = counted_range(counted)
        for axis in (0, 1):
            if pattern.shape[axis] == len(counted):
                pattern = pattern.narrow(axis, begin, end - begin)
    return scaled_down(pattern).cpu().numpy()
