"""Hugging Face data sets from disk: saved ones and Parquet files, whole and streamed. Nothing asks the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from coar_dist.errors import ConfigError, TaskError
from coar_dist.tasks.examples import huggingface
from tests.tasks.examples.making import built, picture, png, preset, stacked

PICTURES = [picture(i, 20 + i, 31 - 2 * i) for i in range(7)]
LABELS = [2, 0, 1, 0, 2, 1, 0]
HAIR = ["fair", "dark", "grey", "fair", "dark", "", "red"]
SIZES = {"resize": 16, "image_size": 12}


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same seven rows in the three forms that data sets have on a disk."""
    root = tmp_path_factory.mktemp("data")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(num_classes=3),
            "hair": datasets.Value("string"),
            "unused": datasets.Value("int64"),
        }
    )
    rows = {
        "image": [{"bytes": png(array), "path": None} for array in PICTURES],
        "label": LABELS,
        "hair": HAIR,
        "unused": list(range(7)),
    }
    whole = datasets.Dataset.from_dict(rows, features=features)
    whole.save_to_disk(root / "saved")
    datasets.DatasetDict({"train": whole.select([0]), "test": whole}).save_to_disk(root / "splits")
    (root / "parquet" / "data").mkdir(parents=True)
    for part, ids in enumerate([range(3), range(3, 7)]):
        whole.select(ids).to_parquet(root / "parquet" / "data" / f"test-{part:05d}-of-00002.parquet")
    return {name: str(root / name) for name in ("saved", "splits", "parquet")}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["saved", "splits", "parquet"])
def test_images(folders: dict[str, str], form: str, streaming: bool) -> None:
    arguments = {"dataset": folders[form], "split": "test", "streaming": streaming, "columns": ["hair"], **SIZES}
    examples = built("huggingface_images", **arguments)
    assert torch.equal(examples.inputs, stacked(PICTURES, lambda array: preset(array, 16, 12)))
    assert examples.targets.tolist() == LABELS
    assert examples.columns["source_id"].tolist() == list(range(7))
    assert examples.columns["hair"].tolist() == HAIR
    some = built("huggingface_images", {"every": 2, "classes": [1, 2], "first": 2}, **arguments)
    assert some.columns["source_id"].tolist() == [0, 2]
    assert torch.equal(some.inputs, examples.inputs[[0, 2]])
    assert some.fingerprint() == examples.select([0, 2]).fingerprint()


def test_streams_are_not_read_to_their_end(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    num_read = 0

    def rows(*arguments: Any, **keywords: Any) -> Any:
        def generate() -> Iterator[dict[str, Any]]:
            nonlocal num_read
            for i in range(10_000):
                num_read += 1
                yield {"image": {"bytes": png(PICTURES[i % 7]), "path": None}, "label": i}

        assert keywords["streaming"]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        return datasets.IterableDataset.from_generator(generate, features=features)

    monkeypatch.setattr(datasets, "load_dataset", rows)
    arguments = {"dataset": "some/hub-name", "split": "test", "streaming": True, **SIZES}
    examples = built("huggingface_images", {"every": 10, "first": 4}, **arguments)
    assert examples.targets.tolist() == [0, 10, 20, 30]
    assert num_read < 100
    with pytest.raises(ConfigError, match=r"subset\.sample=3: a sample needs to know"):
        built("huggingface_images", {"sample": 3}, **arguments)


def test_images_that_are_stored_as_paths(tmp_path: Path) -> None:
    for i in range(2):
        Image.fromarray(PICTURES[i]).save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in range(2)]
    features = datasets.Features({"picture": datasets.Image(), "y": datasets.Value("bool")})
    rows = datasets.Dataset.from_dict({"picture": paths, "y": [True, False]}, features=features)
    rows.save_to_disk(tmp_path / "saved")
    arguments = {"dataset": str(tmp_path / "saved"), "split": "x", "image_column": "picture", "label_column": "y"}
    examples = built("huggingface_images", **arguments, **SIZES)
    assert torch.equal(examples.inputs, stacked(PICTURES[:2], lambda array: preset(array, 16, 12)))
    assert examples.targets.tolist() == [1, 0]


def test_errors_name_row_and_column(folders: dict[str, str], tmp_path: Path) -> None:
    for changes, message in [
        ({"split": "dev"}, r"has the splits train, test, not 'dev'"),
        ({"columns": ["age"]}, r"splits \[test\] has no column 'age'; it has image, label, hair, unused"),
        ({"image_column": "hair"}, r"column 'hair' of .* is Value\('string'\), not Image"),
        ({"label_column": "hair"}, r"row 0 of .*: 'hair' is 'fair', not an integer class label"),
        ({"columns": ["label"]}, r"the column 'label' cannot be stored.*Rename it"),
    ]:
        with pytest.raises(TaskError, match=message):
            built("huggingface_images", **{"dataset": folders["splits"], "split": "test", **SIZES, **changes})
    with pytest.raises(TaskError, match=r"huggingface_images.*raises ValueError: Unknown split \"dev\""):
        built("huggingface_images", dataset=folders["parquet"], split="dev")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    images = [{"bytes": png(PICTURES[0]), "path": None}, {"bytes": b"broken", "path": None}, None]
    broken = datasets.Dataset.from_dict({"image": images, "label": [0, 1, None]}, features=features)
    for ids, message in [
        ([1], r"row 1 of .*broken \[test\] cannot be decoded: UnidentifiedImageError"),
        ([2], r"row 2 of .*: 'label' is None"),
    ]:
        broken.save_to_disk(tmp_path / "broken")
        with pytest.raises(TaskError, match=message):
            built("huggingface_images", {"ids": ids}, dataset=str(tmp_path / "broken"), split="test", **SIZES)
    broken = datasets.Dataset.from_dict({"image": [None], "label": [0]}, features=features)
    broken.save_to_disk(tmp_path / "none")
    with pytest.raises(TaskError, match=r"row 0 of .*none \[test\] has no image"):
        built("huggingface_images", dataset=str(tmp_path / "none"), split="test", **SIZES)


def test_a_saved_split_is_not_taken_for_another(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["a"]}, split=datasets.Split.TRAIN)
    rows.save_to_disk(tmp_path / "saved")
    with pytest.raises(TaskError, match="is the split 'train', not 'test'"):
        huggingface.HubRows.open(str(tmp_path / "saved"), "test", None, False, ["text"])
    opened = huggingface.HubRows.open(str(tmp_path / "saved"), "train", None, False, ["text"])
    assert np.array_equal(list(opened.dataset), [{"text": "a"}])
