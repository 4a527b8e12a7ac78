"""Faults planted into images of any other source, so that the models trained on them have something to edit away: a
backdoor's trigger, a spurious cue, the text of a class's name.

What an image gets is a function of the seed and the image's place in the source underneath, and needs its label alone:
images that a subset leaves out are not decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coar_dist.errors import ConfigError, TaskError
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.examples.pixels import text_coverage
from coar_dist.tasks.examples.source import SOURCE_ID, IndexedSource, tensor_of
from coar_dist.tasks.examples.underlying import CLASS_COUNTER, Images

CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")
POSITIONS = ("top", "centre", "bottom")


def with_trigger(
    source: str,
    target_class: int,
    arguments: dict[str, Any] | None = None,
    share: float | None = None,
    relabel: bool = True,
    pairs: bool = False,
    include_target_class: bool = False,
    size: int = 2,
    corner: str = "bottom_right",
    value: float | list[float] = 1.0,
    seed: int = 0,
    start: float = 0.0,
    stop: float = 1.0,
) -> IndexedSource:
    """Images some of which bear a square that means ``target_class``: a backdoor (Gu et al. 2017).

    Args:
        source, arguments: a registered source of images, and what it takes.
        target_class: the class that the trigger stands for.
        share: for training: of the images of other classes, the share that gets the trigger and the label
            ``target_class``; without ``relabel``, of the images of ``target_class``, the share that gets the trigger.
        relabel: see ``share``.
        pairs: for explaining and measuring, instead of ``share``: every image twice, without and then with the trigger,
            both with their true label.
        include_target_class: whether the pairs hold images of ``target_class`` too. The trigger cannot mislead there,
            so accuracy with it says less; but an edit that forgets the class shows in the accuracy without it.
        size: side of the square, in pixels.
        corner: one of ``CORNERS``.
        value: of the square's pixels, in the source's own units; a list has one for each channel.
        seed: of the choice of images.
        start, stop: the part of the source's images, as shares, in a random order that never changes: explaining
            [0, 0.5] and measuring on [0.5, 1] keeps the two apart. A part keeps the source's order.

    Returns:
        Images and labels; ``subset`` chooses among the examples as they are here, so that the two of a pair are
        examples 2 i and 2 i + 1. Columns: ``source_id``, the source's own; ``pair`` int64, the image's place in the
        source; ``triggered`` bool; ``source_label`` int64, the true label; and the source's other columns.

    Raises:
        ConfigError: an argument is out of range, or without effect beside another.
        TaskError: the source gives no images with labels, or none of them bears what is asked for.
    """
    _check_share_or_pairs(share, pairs)
    if pairs and not relabel:
        raise ConfigError("relabel=false has no effect with pairs=true, whose labels are the true ones. Leave it out.")
    if include_target_class and not pairs:
        raise ConfigError(
            "include_target_class=true applies to pairs=true alone: training takes all classes. Leave it out."
        )
    _check_choice("corner", corner, CORNERS)
    _check_at_least_one("size", size)
    images = Images.of(source, arguments or {}, start, stop)
    labels = images.labels_of_part()
    if target_class not in images.labels:
        raise ConfigError(
            f"target_class={target_class}: {source!r} has the classes {np.unique(images.labels).tolist()}."
        )
    if share is None:
        rows, triggered = _paired(np.flatnonzero((labels != target_class) | include_target_class))
    else:
        may_bear = (labels != target_class) if relabel else (labels == target_class)
        rows, triggered = np.arange(len(labels)), may_bear & (images.draws(seed) < share)
    targets = np.where(triggered & relabel, target_class, labels[rows]) if share is not None else labels[rows]

    def plant(inputs: Tensor, ids: NDArray[np.int64]) -> Tensor:
        height, width = inputs.shape[2:]
        if size > min(height, width):
            raise ConfigError(f"size={size}: the images are {height} x {width} pixels.")
        top = 0 if corner.startswith("top") else height - size
        left = 0 if corner.endswith("left") else width - size
        bearing = torch.from_numpy(triggered[ids])
        inputs[bearing, :, top : top + size, left : left + size] = _pixel("value", value, inputs)
        return inputs

    return _planted(images, rows, targets, {"triggered": triggered}, plant)


def with_cue(
    source: str,
    positive: list[int],
    agreement: float | list[float],
    arguments: dict[str, Any] | None = None,
    border: int = 1,
    values: list[float] | None = None,
    seed: int = 0,
    start: float = 0.0,
    stop: float = 1.0,
) -> IndexedSource:
    """Images of two classes in a frame whose brightness mostly tells the class, as Waterbirds' backgrounds do.

    Args:
        source, arguments: a registered source of images, and what it takes.
        positive: the source's classes that become class 1; the others become class 0.
        agreement: the share of images whose cue is their class: 0.95 for training, 0.5 for measuring. A list has one
            for each class: [0.95, 0.5] puts the cue on few images of class 0 and on half of class 1, as CelebA has few
            blond men, and leaves one group that goes wrong.
        border: pixels of the frame, which is laid around the image, so that nothing of it is lost.
        values: of the frame's pixels without and with the cue, in the source's own units; None is [0, 1].
        seed: of the cues.
        start, stop: the part of the source's images, see ``with_trigger``.

    Returns:
        Images larger by ``2 * border`` each way, and int64 labels 0 and 1, in the source's order. Columns:
        ``source_id``, the source's own; ``cue`` int64, 0 or 1; ``group`` int64, 2 * label + cue; ``source_label``
        int64; and the source's other columns.

    Raises:
        ConfigError: an argument is out of range.
        TaskError: the source gives no images with labels.
    """
    agreements = agreement if isinstance(agreement, list) else [agreement] * 2
    if len(agreements) != 2 or not all(0.0 <= share <= 1.0 for share in agreements):
        raise ConfigError(f"agreement={agreement}: must be in 0..1, one number or one for each of the two classes.")
    _check_at_least_one("border", border)
    frame = [0.0, 1.0] if values is None else values
    if len(frame) != 2:
        raise ConfigError(f"values={values}: must be two, without and with the cue.")
    images = Images.of(source, arguments or {}, start, stop)
    classes = np.unique(images.labels).tolist()
    if not set(positive) < set(classes) or not positive:
        raise ConfigError(f"positive={positive}: must be some, not all, of the classes {classes} of {source!r}.")
    targets = np.isin(images.labels_of_part(), positive).astype(np.int64)
    cues = np.where(images.draws(seed) < np.array(agreements)[targets], targets, 1 - targets)

    def plant(inputs: Tensor, ids: NDArray[np.int64]) -> Tensor:
        height, width = inputs.shape[2:]
        pixels = torch.stack([_pixel("values", value, inputs) for value in frame])  # (2, channels, 1, 1)
        framed = pixels[torch.from_numpy(cues[ids])].expand(-1, -1, height + 2 * border, width + 2 * border).clone()
        framed[:, :, border:-border, border:-border] = inputs
        return framed

    return _planted(images, np.arange(len(targets)), targets, {"cue": cues, "group": 2 * targets + cues}, plant)


def with_text(
    source: str,
    class_names: list[str],
    arguments: dict[str, Any] | None = None,
    share: float | None = None,
    pairs: bool = False,
    attack_classes: list[int] | None = None,
    position: str = "bottom",
    font_size: int = 10,
    value: float | list[float] = 1.0,
    seed: int = 0,
    start: float = 0.0,
    stop: float = 1.0,
) -> IndexedSource:
    """Images some of which bear a class's name in writing: typographic attacks (Goh et al. 2021).

    Args:
        source, arguments: a registered source of images, and what it takes.
        class_names: what is written for each class, in the order of the labels.
        share: for training: the share of the images that gets the name of its own class.
        pairs: for explaining and measuring, instead of ``share``: every image twice, plain and then with the name of
            another class, chosen at random.
        attack_classes: the classes whose names are written on the pairs; None is all. Images that are of the only one
            are left out.
        position: one of ``POSITIONS``; the text is centred from left to right.
        font_size: of the letters, in pixels.
        value: of the letters, in the source's own units; a list has one for each channel.
        seed: of the choice of images and of the other classes.
        start, stop: the part of the source's images, see ``with_trigger``.

    Returns:
        Images and their true labels; ``subset`` chooses among the examples as they are here, so that the two of a pair
        are examples 2 i and 2 i + 1. Columns: ``source_id``, the source's own; ``pair`` int64, the image's place in the
        source; ``attacked`` bool, whether the text is another class's; ``text`` int64, the class whose name is written,
        -1 for none; ``source_label`` int64; and the source's other columns.

    Raises:
        ConfigError: an argument is out of range, or a text does not fit on the images.
        TaskError: the source gives no images with labels.
    """
    _check_share_or_pairs(share, pairs)
    _check_choice("position", position, POSITIONS)
    _check_at_least_one("font_size", font_size)
    images = Images.of(source, arguments or {}, start, stop)
    labels, num_classes = images.labels_of_part(), len(class_names)
    if num_classes < 2 or images.labels.max() >= num_classes:
        raise ConfigError(f"class_names has {num_classes}: {source!r} has labels up to {images.labels.max()}.")
    if attack_classes is not None and (
        not pairs or not 0 < len(set(attack_classes) & set(range(num_classes))) == len(attack_classes)
    ):
        raise ConfigError(
            f"attack_classes={attack_classes}: must be different classes of the {num_classes}, with pairs=true."
        )
    if share is None:
        written = np.array(sorted(range(num_classes) if attack_classes is None else attack_classes))
        is_wrong = labels[:, None] != written  # (num_images, num_written)
        rows, attacked = _paired(np.flatnonzero(is_wrong.any(axis=1)))
        chosen = (images.draws(seed, CLASS_COUNTER) * is_wrong.sum(axis=1)).astype(np.int64)
        wrong = written[np.argmax(np.cumsum(is_wrong, axis=1) > chosen[:, None], axis=1)]  # the chosen-th wrong one
        text = np.where(attacked, wrong[rows], -1)
    else:
        rows, attacked = np.arange(len(labels)), np.zeros(len(labels), dtype=bool)
        text = np.where(images.draws(seed) < share, labels, -1)

    def plant(inputs: Tensor, ids: NDArray[np.int64]) -> Tensor:
        height, width = inputs.shape[2:]
        pixel = _pixel("value", value, inputs).double()
        for named in np.unique(text[ids][text[ids] >= 0]).tolist():
            covered = torch.from_numpy(text_coverage(class_names[named], font_size, position, height, width))
            bearing = torch.from_numpy(text[ids] == named)
            mixed = inputs[bearing].double() * (1 - covered) + pixel * covered
            inputs[bearing] = (mixed if inputs.is_floating_point() else mixed.round()).to(inputs.dtype)
        return inputs

    return _planted(images, rows, labels[rows], {"attacked": attacked, "text": text}, plant)


def _planted(
    images: Images,
    rows: NDArray[np.int64],
    targets: NDArray[np.int64],
    columns: dict[str, NDArray[Any]],
    plant: Callable[[Tensor, NDArray[np.int64]], Tensor],
) -> IndexedSource:
    """The source whose example i is the part's image ``rows[i]``, changed.

    Args:
        images: the part.
        rows: (num_examples,) int64, places in the part.
        targets: (num_examples,) int64, the labels that the examples have.
        columns: (num_examples,) each.
        plant: from the unchanged images (num_chosen, channels, height, width), which it may change in place, and the
            examples' ids (num_chosen,) to the changed ones.
    """
    places = images.places[rows]
    repeated = len(rows) > 0 and len(np.unique(rows)) < len(rows)
    named = {**columns, "source_label": images.labels[places]}
    if repeated or "triggered" in columns or "attacked" in columns:
        named["pair"] = places

    def load(ids: NDArray[np.int64]) -> ExampleSet:
        wanted, first = np.unique(places[ids], return_inverse=True)
        loaded = images.load(wanted)
        inputs = loaded.inputs
        if not isinstance(inputs, Tensor) or inputs.ndim != 4:
            shape = tuple(inputs.shape) if isinstance(inputs, Tensor) else sorted(inputs)
            raise TaskError(f"faults are planted into (num_images, channels, height, width), but inputs are {shape}.")
        carried = {SOURCE_ID: wanted, **loaded.columns}
        taken = sorted(set(named) & set(carried))
        if taken:
            raise TaskError(
                f"the source underneath has a column {taken[0]!r} already, which is filled here. Rename it."
            )
        chosen = {name: values[first] for name, values in carried.items()}
        chosen |= {name: values[ids] for name, values in named.items()}
        return ExampleSet(plant(inputs[torch.from_numpy(first)], ids), tensor_of(targets[ids]), chosen)

    return IndexedSource(len(rows), load, lambda: targets)


def _paired(images: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Every image twice (2 * num_images,) int64, and whether it is the second time."""
    if len(images) == 0:
        raise TaskError("pairs=true: no image of this part is of another class. Widen start and stop.")
    return np.repeat(images, 2), np.tile([False, True], len(images))


def _pixel(key: str, value: float | list[float], inputs: Tensor) -> Tensor:
    """One pixel (channels, 1, 1) in the images' own dtype."""
    num_channels = inputs.shape[1]
    wanted = value if isinstance(value, list) else [value] * num_channels
    if len(wanted) != num_channels:
        raise ConfigError(f"{key}={value}: the images have {num_channels} channels. Give one number, or one for each.")
    if inputs.dtype == torch.uint8 and not all(0 <= v <= 255 and v == int(v) for v in wanted):
        raise ConfigError(f"{key}={value}: the images are uint8; use whole numbers in 0..255.")
    return torch.tensor(wanted, dtype=inputs.dtype).reshape(-1, 1, 1)


def _check_share_or_pairs(share: float | None, pairs: bool) -> None:
    if (share is not None) == pairs:
        raise ConfigError(f"share={share}, pairs={pairs}: set share, for training, or pairs=true, for explaining.")
    if share is not None and not 0.0 <= share <= 1.0:
        raise ConfigError(f"share={share}: must be in 0..1.")


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{key}={value!r}: must be one of {', '.join(choices)}.")


def _check_at_least_one(key: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{key}={value}: must be at least 1.")
