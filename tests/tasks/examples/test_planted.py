"""Planted faults: what is changed, on which images, with which labels; the rest keeps its bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from coar_dist.errors import ConfigError, TaskError
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.examples import planted
from coar_dist.tasks.examples.source import IndexedSource
from coar_dist.tasks.examples.sources import SOURCES
from tests.tasks.examples.making import built

NUM_IMAGES = 40
NAMES = [f"n{label}" for label in range(5)]


@pytest.fixture(params=["float32", "uint8"])
def stored(tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Arguments of a source of 40 images of 5 classes, whose pixels are 0.25 or 60."""
    images = np.full((NUM_IMAGES, 3, 12, 16), 60 if request.param == "uint8" else 0.25, dtype=request.param)
    labels = np.arange(NUM_IMAGES) % 5
    np.savez(tmp_path / "images.npz", images=images, labels=labels, writer=labels * 10)
    arguments = {"path": str(tmp_path / "images.npz"), "inputs": "images", "targets": "labels", "columns": ["writer"]}
    return {"source": "numpy_arrays", "arguments": arguments, "value": 200 if request.param == "uint8" else 1.0}


def changed(examples: ExampleSet) -> NDArray[np.bool_]:
    """(num_examples, height, width): where any channel is not what the source has."""
    inputs = examples.inputs
    assert isinstance(inputs, torch.Tensor)
    return (inputs != (60 if inputs.dtype == torch.uint8 else 0.25)).any(dim=1).numpy()


def same(a: ExampleSet, b: ExampleSet) -> bool:
    columns = all(np.array_equal(a.columns[name], b.columns[name]) for name in {*a.columns, *b.columns})
    return a.fingerprint() == b.fingerprint() and columns


def test_pairs_without_and_with_the_trigger(stored: dict[str, Any]) -> None:
    examples = built("with_trigger", target_class=2, pairs=True, size=3, corner="bottom_left", **stored)
    images = [place for place in range(NUM_IMAGES) if place % 5 != 2]
    assert examples.columns["pair"].tolist() == [place for place in images for _ in range(2)]
    assert examples.columns["source_id"].tolist() == examples.columns["pair"].tolist()
    assert examples.columns["triggered"].tolist() == [False, True] * len(images)
    assert examples.targets.tolist() == [place % 5 for place in images for _ in range(2)]
    assert examples.columns["writer"].tolist() == [10 * label for label in examples.targets.tolist()]
    where = changed(examples)
    assert not where[::2].any()
    expected = np.zeros((12, 16), dtype=bool)
    expected[-3:, :3] = True
    assert (where[1::2] == expected).all()
    assert (examples.inputs[1::2, :, -3:, :3] == stored["value"]).all()
    with_all = built("with_trigger", target_class=2, pairs=True, include_target_class=True, **stored)
    assert len(with_all) == 2 * NUM_IMAGES


@pytest.mark.parametrize("relabel", [True, False])
def test_a_share_is_triggered_for_training(stored: dict[str, Any], relabel: bool) -> None:
    examples = built("with_trigger", target_class=2, share=0.5, relabel=relabel, **stored)
    true, triggered = examples.columns["source_label"], examples.columns["triggered"]
    assert true.tolist() == [place % 5 for place in range(NUM_IMAGES)]
    np.testing.assert_array_equal(changed(examples).any(axis=(1, 2)), triggered)
    may_bear = true != 2 if relabel else true == 2
    assert 0.2 * may_bear.sum() < triggered.sum() < 0.8 * may_bear.sum()
    assert not triggered[~may_bear].any()
    np.testing.assert_array_equal(examples.targets.numpy(), np.where(triggered & relabel, 2, true))
    more = built("with_trigger", target_class=2, share=0.8, relabel=relabel, **stored).columns["triggered"]
    assert (more | ~triggered).all()  # the larger share holds the smaller one
    other = built("with_trigger", target_class=2, share=0.5, relabel=relabel, seed=1, **stored)
    assert same(examples, built("with_trigger", target_class=2, share=0.5, relabel=relabel, **stored))
    assert not same(examples, other)


def test_cues_agree_with_labels_as_often_as_is_said(stored: dict[str, Any]) -> None:
    value = stored.pop("value")
    stored |= {"positive": [3, 4], "border": 2, "values": [0, value]}
    examples = built("with_cue", agreement=0.5, **stored)
    inputs, cue = examples.inputs, examples.columns["cue"]
    assert inputs.shape == (NUM_IMAGES, 3, 16, 20)
    assert examples.targets.tolist() == [int(place % 5 >= 3) for place in range(NUM_IMAGES)]
    assert examples.columns["source_label"].tolist() == [place % 5 for place in range(NUM_IMAGES)]
    np.testing.assert_array_equal(examples.columns["group"], 2 * examples.targets.numpy() + cue)
    assert 8 < cue.sum() < 32
    inside = inputs[:, :, 2:-2, 2:-2]
    assert (inside == (60 if inputs.dtype == torch.uint8 else 0.25)).all()
    frame = torch.ones(16, 20, dtype=torch.bool)
    frame[2:-2, 2:-2] = False
    expected = torch.from_numpy(cue).to(inputs.dtype)[:, None, None] * value
    assert (inputs[:, :, frame] == expected).all()
    for agreement, groups in [(1.0, {0, 3}), (0.0, {1, 2}), ([1.0, 0.5], {0, 2, 3}), ([0.5, 1.0], {0, 1, 3})]:
        assert set(built("with_cue", agreement=agreement, **stored).columns["group"].tolist()) == groups


def test_text_of_the_right_and_of_wrong_classes(stored: dict[str, Any]) -> None:
    stored |= {"class_names": NAMES, "font_size": 9}
    train = built("with_text", share=0.5, **stored)
    text = train.columns["text"]
    assert set(text.tolist()) == {-1, 0, 1, 2, 3, 4}
    assert ((text == -1) | (text == train.targets.numpy())).all()
    assert not train.columns["attacked"].any()
    np.testing.assert_array_equal(changed(train).any(axis=(1, 2)), text >= 0)
    pairs = built("with_text", pairs=True, position="top", **stored)
    text, attacked = pairs.columns["text"], pairs.columns["attacked"]
    assert pairs.columns["pair"].tolist() == [place for place in range(NUM_IMAGES) for _ in range(2)]
    assert attacked.tolist() == [False, True] * NUM_IMAGES
    assert pairs.targets.tolist() == [place // 2 % 5 for place in range(2 * NUM_IMAGES)]
    assert (text[::2] == -1).all()
    assert (text[1::2] != pairs.targets.numpy()[1::2]).all()
    assert set(text[1::2].tolist()) == {0, 1, 2, 3, 4}
    where = changed(pairs)
    assert not where[::2].any()
    assert where[1::2, :9].any(axis=(1, 2)).all()
    assert not where[1::2, 9:].any()
    assert float(pairs.inputs.max()) <= stored["value"]
    assert float(pairs.inputs.max()) > 0.8 * stored["value"]
    for label in range(5):  # one writing for one class
        assert (where[text == label] == where[text == label][0]).all()
    some = built("with_text", pairs=True, attack_classes=[3], **stored)
    assert set(some.columns["text"][1::2].tolist()) == {3}
    assert 3 not in some.targets.tolist()
    assert same(pairs, built("with_text", pairs=True, position="top", **stored))


def test_parts_share_no_image_and_keep_the_order(stored: dict[str, Any]) -> None:
    arguments = {**stored, "target_class": 2, "pairs": True, "include_target_class": True}
    first = built("with_trigger", start=0.0, stop=0.4, **arguments).columns["pair"]
    second = built("with_trigger", start=0.4, stop=1.0, seed=5, **arguments).columns["pair"]
    assert (len(first), len(second)) == (32, 48)
    assert sorted({*first.tolist(), *second.tolist()}) == list(range(NUM_IMAGES))
    assert first.tolist() == sorted(first.tolist())
    # What an image gets does not depend on the part.
    training = {**stored, "target_class": 2, "share": 0.5}
    whole = built("with_trigger", **training).columns["triggered"]
    part = built("with_trigger", start=0.4, **training).columns
    np.testing.assert_array_equal(part["triggered"], whole[part["source_id"]])


def test_no_image_is_decoded_that_a_subset_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def load(ids: NDArray[np.int64]) -> ExampleSet:
        asked.append(ids.tolist())
        return ExampleSet(torch.zeros(len(ids), 1, 4, 4), torch.from_numpy(ids % 3))

    monkeypatch.setitem(SOURCES, "counting", lambda: IndexedSource(30, load, lambda: np.arange(30) % 3))
    examples = built("with_trigger", {"ids": [2, 3, 7]}, source="counting", target_class=0, pairs=True)
    assert asked == [[2, 5]]  # 1 is pair 0
    assert examples.columns["pair"].tolist() == [2, 2, 5]
    assert examples.columns["source_id"].tolist() == [2, 2, 5]
    asked.clear()
    relabelled = built("with_trigger", {"classes": [0], "first": 4}, source="counting", target_class=0, share=1.0)
    assert asked == [[0, 1, 2, 3]]  # a subset's classes are the labels that the examples have
    assert relabelled.targets.tolist() == [0, 0, 0, 0]


TRIGGER: dict[str, Any] = {"target_class": 2, "pairs": True}
CUE: dict[str, Any] = {"positive": [1], "agreement": 0.9}
TEXT: dict[str, Any] = {"class_names": NAMES, "pairs": True, "font_size": 9}


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        (
            "with_trigger",
            {"target_class": 2},
            ConfigError,
            "share=None, pairs=False: set share, for training, or pairs",
        ),
        ("with_trigger", {**TRIGGER, "share": 0.1}, ConfigError, "share=0.1, pairs=True"),
        ("with_trigger", {"target_class": 2, "share": 1.5}, ConfigError, "share=1.5: must be in 0..1"),
        ("with_trigger", {**TRIGGER, "relabel": False}, ConfigError, "relabel=false has no effect"),
        ("with_trigger", {"target_class": 2, "share": 0.1, "include_target_class": True}, ConfigError, "Leave it out"),
        ("with_trigger", {**TRIGGER, "target_class": 7}, ConfigError, r"target_class=7: .* classes \[0, 1, 2, 3, 4\]"),
        ("with_trigger", {**TRIGGER, "corner": "left"}, ConfigError, "corner='left': must be one of top_left"),
        ("with_trigger", {**TRIGGER, "size": 13}, ConfigError, "size=13: the images are 12 x 16 pixels"),
        ("with_trigger", {**TRIGGER, "size": 0}, ConfigError, "size=0: must be at least 1"),
        ("with_trigger", {**TRIGGER, "value": [1, 2]}, ConfigError, r"value=\[1, 2\]: the images have 3 channels"),
        ("with_trigger", {**TRIGGER, "start": 0.5, "stop": 0.5}, ConfigError, "0 <= start < stop <= 1"),
        ("with_trigger", {**TRIGGER, "stop": 0.001}, TaskError, "no image of the 40 of 'numpy_arrays' is left"),
        ("with_trigger", {**TRIGGER, "seed": -1}, None, ""),  # of no draw that pairs make
        ("with_trigger", {"target_class": 2, "share": 0.1, "seed": -1}, ConfigError, "seed=-1: must be in 0"),
        (
            "with_trigger",
            {**TRIGGER, "source": "os:listdir"},
            ConfigError,
            "source='os:listdir': must be one of digits",
        ),
        ("with_cue", {**CUE, "agreement": 2.0}, ConfigError, "agreement=2.0: must be in 0..1"),
        ("with_cue", {**CUE, "agreement": [0.5]}, ConfigError, "one number or one for each of the two classes"),
        ("with_cue", {**CUE, "positive": [9]}, ConfigError, r"positive=\[9\]: must be some, not all"),
        ("with_cue", {**CUE, "positive": [0, 1, 2, 3, 4]}, ConfigError, "must be some, not all"),
        ("with_cue", {**CUE, "values": [1.0]}, ConfigError, "must be two, without and with the cue"),
        ("with_cue", {**CUE, "border": 0}, ConfigError, "border=0: must be at least 1"),
        ("with_text", {**TEXT, "class_names": ["a", "b"]}, ConfigError, "class_names has 2: .* labels up to 4"),
        ("with_text", {**TEXT, "position": "left"}, ConfigError, "position='left': must be one of top, centre, bottom"),
        ("with_text", {**TEXT, "font_size": 40}, ConfigError, "'n.' at font_size=40 takes .* of an image of 12 x 16"),
        ("with_text", {**TEXT, "class_names": [" "] * 5}, ConfigError, "the text ' ' at font_size=9 takes"),
        ("with_text", {**TEXT, "attack_classes": [7]}, ConfigError, r"attack_classes=\[7\]: must be different classes"),
        ("with_text", {"class_names": NAMES, "share": 0.1, "attack_classes": [1]}, ConfigError, "with pairs=true"),
    ],
)
def test_what_does_not_fit(
    stored: dict[str, Any], name: str, arguments: dict[str, Any], error: type[Exception] | None, message: str
) -> None:
    value = stored.pop("value")
    given = {**stored, **({} if name == "with_cue" else {"value": value}), **arguments}
    if error is None:
        built(name, **given)
        return
    with pytest.raises(error, match=message):
        built(name, **given)


def test_sources_that_cannot_be_planted_into(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", rows=np.zeros((4, 3), dtype=np.float32), labels=np.arange(4), scores=np.zeros(4))
    arguments = {"path": str(tmp_path / "a.npz"), "inputs": "rows", "targets": "labels"}
    for changes, message in [
        ({}, r"\(num_images, channels, height, width\), but inputs are \(4, 3\)"),
        ({"inputs": {"x": "rows"}}, r"but inputs are \['x'\]"),
        ({"targets": "scores"}, "are no class labels|float64"),
    ]:
        with pytest.raises((TaskError, ConfigError), match=message):
            built("with_cue", source="numpy_arrays", arguments={**arguments, **changes}, positive=[1], agreement=0.5)
    images = np.zeros((4, 1, 2, 2), dtype=np.uint8)
    np.savez(tmp_path / "b.npz", images=images, labels=np.arange(4), cue=np.zeros(4))
    arguments = {"path": str(tmp_path / "b.npz"), "inputs": "images", "targets": "labels"}
    for columns, values, message in [
        ([], [0, 0.5], "values=0.5: the images are uint8; use whole numbers"),
        (["cue"], [0, 9], "column 'cue' already"),
    ]:
        given = {"source": "numpy_arrays", "arguments": {**arguments, "columns": columns}, "values": values}
        with pytest.raises((TaskError, ConfigError), match=message):
            built("with_cue", positive=[1], agreement=0.5, **given)
    (tmp_path / "text.txt").write_text("a" * 20)
    text = {"path": str(tmp_path / "text.txt"), "length": 5}
    with pytest.raises(TaskError, match="source='text_file' has no class labels"):
        built("with_cue", source="text_file", arguments=text, positive=[1], agreement=0.5)
    with pytest.raises(ConfigError, match="x: unknown; the arguments are split"):
        built("with_cue", source="digits", arguments={"x": 1}, positive=[1], agreement=0.5)


def test_digits_enlarged() -> None:
    plain, enlarged = built("digits", {"first": 5}), built("digits", {"first": 5}, scale=3)
    assert torch.equal(enlarged.inputs[:, :, 1::3, 2::3], plain.inputs)
    assert torch.equal(enlarged.inputs[:, :, ::3, ::3], plain.inputs)
    with pytest.raises(ConfigError, match="scale=0: must be at least 1"):
        built("digits", scale=0)
    assert planted.with_text("digits", [str(i) for i in range(10)], {"scale": 3}, pairs=True).num_examples == 1000
