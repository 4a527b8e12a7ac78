"""An evaluated run of any size, of random numbers and no model."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coar_dist.baselines.leave_one_out import fit_leave_one_out
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.config.methods import LEAVE_ONE_OUT
from coar_dist.config.schema.ablation import AblationConfig, block_size
from coar_dist.designs.given import LeaveOneOut
from coar_dist.designs.independent import Bernoulli
from coar_dist.evaluation.correlation import evaluate
from coar_dist.evaluation.measure_ceilings import measure_ceilings
from coar_dist.store.examples import TOKEN_END, ExampleTable
from coar_dist.store.previews import PreviewTable
from coar_dist.store.run_directory import TRAIN_DESIGN, RunDesign, RunDirectory
from coar_dist.store.tables import Attributions, AttributionTable
from tests.models import local_storage

_ALPHA = 0.1
_NUM_MASKS = 60
_DRAWN = 2**22
_PICTURES = 2000


def synthetic_run(
    root: Path,
    num_examples: int,
    num_layers: int = 3,
    per_layer: int = 8,
    kind: str = "images",
    num_constant: int = 0,
    hostile: str = "",
    num_classes: int = 4,
    columns: Mapping[str, NDArray[Any]] | None = None,
    has_errors: bool = False,
    side: int = 8,
    output_function: str = "margin",
    has_alone: bool = False,
) -> RunDirectory:
    """A run whose margins are linear in the masks but for noise, and whose attributions are the truth but for noise.

    Args:
        root: of the run directory.
        num_examples: of the run.
        num_layers: parameters.
        per_layer: components of each.
        kind: of the examples: ``images``, ``texts`` or ``numbers`` (no classes and nothing to show).
        num_constant: examples whose margins never change.
        hostile: put into every name and text.
        num_classes: of the examples.
        columns: of the examples, besides.
        side: pixels of the images.
        output_function: what the margins are called.
        has_errors: whether the weights have standard errors, of a tenth of their sizes.
        has_alone: whether there are leave-one-out masks, and attributions from them.
    """
    components = ComponentIndex(
        tuple(ComponentGroup.of(f"block{i}.{hostile}conv.weight", 0, per_layer) for i in range(num_layers))
    )
    identity = {
        "model.weights": f"sha256:{hostile}",
        "output_function": output_function,
        "ablation.precision": "float32",
        "ablation.margins_dtype": "float32",
        "ablation.examples_per_block": block_size(AblationConfig(), num_layers * per_layer),
    }
    run = RunDirectory.create(local_storage(root), identity, components, num_examples)
    d = components.num_components
    designs = {
        TRAIN_DESIGN: RunDesign("train", Bernoulli(d, 100, _ALPHA, 0)),
        **{
            f"evaluation_{alpha!r}": RunDesign("evaluation", Bernoulli(d, _NUM_MASKS, alpha, 1))
            for alpha in (_ALPHA, 2 * _ALPHA)
        },
    }
    if has_alone:
        designs[LEAVE_ONE_OUT] = RunDesign("baseline", LeaveOneOut.of(d))
    run.set_designs(designs)
    random = np.random.default_rng(0)
    table = AttributionTable(run, "coar")
    scale = np.repeat(np.linspace(1.0, 3.0, num_layers), per_layer)
    measured = [*run.held_out, *([LEAVE_ONE_OUT] if has_alone else [])]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in measured}
    masks = {name: run.design(name).masks(0, run.design(name).num_masks).astype(np.float32) for name in measured}
    for first, end in run.margins(TRAIN_DESIGN).blocks:
        n = end - first
        weights = _normal(random, n, d)
        weights *= (scale / np.sqrt(d)).astype(np.float32)
        weights += np.float32(0.05)
        weights[: max(num_constant - first, 0)] = 0.0
        for name, of_design in masks.items():
            noise = 0.3 * random.standard_normal((len(of_design), n)) * (np.abs(weights).sum(axis=1) > 0)
            parts[name].append((of_design @ weights.T + 2.0 + noise).astype(np.float32))
        guessed = _normal(random, n, d)
        guessed[: max(num_constant - first, 0)] = 0.0
        guessed *= np.float32(0.1 * weights.std())
        guessed += weights
        quality = np.where(np.abs(weights).sum(axis=1) > 0, 0.9, np.nan)
        nothing = np.full(n, np.nan)
        errors = np.abs(guessed) / 10 if has_errors else None
        found = Attributions(guessed, np.full(n, 2.0), np.ones(n), quality, quality, nothing, errors)
        table.write((first, end), {}, found)
    for name, margins in parts.items():
        store = run.margins(name)
        store.write(0, masks[name].astype(bool), np.concatenate(margins, axis=1), {})
    classes = kind != "numbers"
    labels = random.integers(0, num_classes, num_examples) if classes else None
    is_wrong = random.random(num_examples) < 0.1
    predictions = None if labels is None else np.where(is_wrong, (labels + 1) % num_classes, labels)
    excerpts = [f"{hostile}text {i}\nof a play" for i in range(num_examples)]
    tokens = [TOKEN_END.join(text.partition(" ")) for text in excerpts]
    texts = {"excerpt": np.array(excerpts), "tokens": np.array(tokens)}
    margins = random.standard_normal(num_examples).astype(np.float32)
    ExampleTable(run).write(labels, predictions, margins, {**(texts if kind == "texts" else {}), **(columns or {})})
    if kind == "images":
        previews, pictures = PreviewTable(run), [_picture(i, side) for i in range(min(num_examples, _PICTURES))]
        for first, end in previews.missing():
            previews.write((first, end), [pictures[i % len(pictures)] for i in range(first, end)], side, side)
    if has_alone:
        fit_leave_one_out(run)
    evaluate(run, ["coar", *([LEAVE_ONE_OUT] if has_alone else [])], lambda done: None)
    measure_ceilings(run, "coar", lambda done: None)
    return run


def _normal(random: np.random.Generator, num_rows: int, width: int) -> np.ndarray:
    """Normal float32; of many each row is cut out of the same ones somewhere else, as drawing them takes longest."""
    if num_rows * width <= _DRAWN:
        return random.standard_normal((num_rows, width), np.float32)
    pool = random.standard_normal(_DRAWN + width, np.float32)
    return np.stack([pool[start : start + width] for start in random.integers(0, _DRAWN, num_rows)])


def _picture(example_id: int, side: int) -> bytes:
    """A PNG of one colour if small, else a JPEG of noise."""
    content, colour = io.BytesIO(), [example_id % 251, example_id // 251 % 251, 128]
    pixels = np.full((side, side, 3), colour, np.uint8)
    if side > 8:
        grey = np.random.default_rng(example_id).normal(128, 40, (side // 4, side // 4)).clip(0, 255).astype(np.uint8)
        pixels = np.stack([np.kron(grey, np.ones((4, 4), np.uint8))] * 3, axis=-1)
    Image.fromarray(pixels).save(content, "JPEG" if side > 8 else "PNG")
    return content.getvalue()
