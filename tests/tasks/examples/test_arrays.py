"""Arrays and tables: what is stored is what the tensors hold, for the chosen rows alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.datasets import load_digits

from coar_dist.errors import ConfigError, TaskError
from tests.tasks.examples.making import built

RANDOM = np.random.default_rng(0)
ARRAYS: dict[str, Any] = {
    "images": RANDOM.integers(0, 256, (9, 3, 4, 5), dtype=np.uint8),
    "scores": RANDOM.normal(3.0, 2.0, (9, 2)).astype(np.float32),
    "labels": np.array([0, 1, 2, 0, 1, 2, 0, 1, 2], dtype=np.int32),
    "place": np.array(list("abcabcabc")),
}


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, str]:
    np.savez(tmp_path / "arrays.npz", **ARRAYS)
    (tmp_path / "folder").mkdir()
    for name, array in ARRAYS.items():
        np.save(tmp_path / "folder" / f"{name}.npy", array)
    return {"npz": str(tmp_path / "arrays.npz"), "folder": str(tmp_path / "folder")}


@pytest.mark.parametrize("form", ["npz", "folder"])
def test_numpy_arrays(stored: dict[str, str], form: str) -> None:
    arguments = {"path": stored[form], "targets": "labels", "columns": ["place"]}
    examples = built("numpy_arrays", inputs="images", **arguments)
    assert examples.inputs.dtype == torch.uint8
    np.testing.assert_array_equal(examples.inputs.numpy(), ARRAYS["images"])
    assert examples.columns["place"].tolist() == list("abcabcabc")
    by_keyword = built("numpy_arrays", {"classes": [1], "first": 2}, inputs={"x": "scores", "y": "images"}, **arguments)
    np.testing.assert_array_equal(by_keyword.inputs["x"].numpy(), ARRAYS["scores"][[1, 4]])
    np.testing.assert_array_equal(by_keyword.inputs["y"].numpy(), ARRAYS["images"][[1, 4]])
    assert by_keyword.columns["source_id"].tolist() == [1, 4]
    by_keyword.inputs["x"] += 1  # tensors are the example set's own, not the file's
    np.testing.assert_array_equal(built("numpy_arrays", inputs="scores", **arguments).inputs.numpy(), ARRAYS["scores"])


def test_numpy_arrays_that_do_not_fit(stored: dict[str, str], tmp_path: Path) -> None:
    np.save(tmp_path / "folder" / "short.npy", np.zeros(3))
    np.save(tmp_path / "folder" / "object.npy", np.array([None] * 9), allow_pickle=True)
    (tmp_path / "folder" / "broken.npy").write_bytes(b"broken")
    for path, changes, message in [
        ("npz", {"inputs": "pixels"}, "has no array 'pixels'; it has images, scores, labels, place"),
        ("folder", {"inputs": "pixels"}, "the array 'pixels' cannot be read: .*No such file"),
        ("folder", {"inputs": "broken"}, "the array 'broken' cannot be read"),
        ("folder", {"inputs": "object"}, "the array 'object' cannot be read"),
        ("folder", {"inputs": "short"}, r"same number of rows, but have \{'short': 3, 'labels': 9\}"),
        ("folder", {"inputs": "place"}, "'place' holds <U1, of which no tensor can be made"),
        ("npz", {"columns": ["scores"]}, r"the column 'scores' is float32 of shape \(9, 2\)"),
    ]:
        with pytest.raises(TaskError, match=message):
            built("numpy_arrays", **{"path": stored[path], "inputs": "images", "targets": "labels", **changes})
    with pytest.raises(ConfigError, match="no class labels"):
        built("numpy_arrays", {"classes": [1]}, path=stored["npz"], inputs="images", targets="scores")


def table(ids: slice) -> pa.Table:
    images = ARRAYS["images"][ids]
    flat = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), 60)
    nested = pa.array(ARRAYS["scores"][ids, :, None].repeat(3, axis=2).tolist(), pa.list_(pa.list_(pa.float32())))
    return pa.table(
        {
            "image": flat,
            "nested": nested,
            "a": ARRAYS["scores"][ids, 0],
            "b": ARRAYS["scores"][ids, 1],
            "label": ARRAYS["labels"][ids],
            "place": pa.array(ARRAYS["place"][ids].tolist()).dictionary_encode(),
            "kept": ARRAYS["labels"][ids] > 0,
        }
    )


@pytest.fixture
def parquet(tmp_path: Path) -> str:
    folder = tmp_path / "tables"
    folder.mkdir()
    pq.write_table(table(slice(5, 9)), folder / "b.parquet", row_group_size=3)
    pq.write_table(table(slice(0, 5)), folder / "a.parquet", row_group_size=2)
    return str(folder)


def test_parquet_tables(parquet: str) -> None:
    arguments = {"path": parquet, "targets": "label"}
    images = built("parquet_table", inputs="image", shape=[3, 4, 5], columns=["place", "kept"], **arguments)
    np.testing.assert_array_equal(images.inputs.numpy(), ARRAYS["images"])
    assert images.inputs.dtype == torch.uint8
    assert images.targets.tolist() == ARRAYS["labels"].tolist()
    assert images.columns["place"].tolist() == list("abcabcabc")
    assert images.columns["kept"].tolist() == (ARRAYS["labels"] > 0).tolist()
    some = [1, 4, 5, 8]
    side_by_side = built("parquet_table", {"ids": some}, inputs=["a", "b"], **arguments)
    np.testing.assert_array_equal(side_by_side.inputs.numpy(), ARRAYS["scores"][some])
    assert side_by_side.columns["source_id"].tolist() == some
    nested = built("parquet_table", {"classes": [2]}, inputs={"x": "nested", "y": "image"}, **arguments)
    np.testing.assert_array_equal(nested.inputs["x"].numpy(), ARRAYS["scores"][[2, 5, 8], :, None].repeat(3, axis=2))
    one_file = built("parquet_table", path=f"{parquet}/b.parquet", inputs="a", targets="label")
    np.testing.assert_array_equal(one_file.inputs.numpy(), ARRAYS["scores"][5:, 0])


def test_parquet_tables_that_do_not_fit(parquet: str, tmp_path: Path) -> None:
    odd = pa.table({"x": [[1, 2], [3], [4]], "y": [1, None, 3], "z": [b"a", b"b", b"c"], "t": [0, 1, 2]})
    pq.write_table(odd, tmp_path / "odd.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"broken")
    path = str(tmp_path / "odd.parquet")
    for arguments, message in [
        ({"path": str(tmp_path / "none")}, "no such file, and no folder with .parquet files"),
        ({"path": str(tmp_path / "broken.parquet")}, "cannot be read as Parquet"),
        ({"inputs": "image"}, "has no column 'image'; it has x, y, z, t"),
        ({"inputs": "x"}, r"the lists in column 'x' have different lengths: \[1 2\]"),
        ({"inputs": "y"}, "column 'y' has 1 empty values"),
        ({"inputs": "z"}, "column 'z' holds binary"),
        ({"path": parquet, "inputs": ["a", "nested"], "targets": "label"}, "'nested' holds lists"),
        (
            {"path": parquet, "inputs": "image", "targets": "label", "shape": [3, 5]},
            r"60 values per row; shape=\[3, 5\]",
        ),
    ]:
        with pytest.raises(TaskError, match=message):
            built("parquet_table", **{"path": path, "targets": "t", "inputs": "t", **arguments})
    assert built("parquet_table", {"ids": [0, 2]}, path=path, inputs="y", targets="t").inputs.tolist() == [1, 3]
    with pytest.raises(TaskError, match=r"'a' is float32 \(9,\), which are no class labels"):
        built("parquet_table", {"classes": [1]}, path=parquet, inputs="image", targets="a")
    with pytest.raises(ConfigError, match=r"shape=\[2\] is the shape of one input column"):
        built("parquet_table", path=parquet, inputs=["a", "b"], targets="label", shape=[2])


def test_pixels_of_npz_images_may_stay_integers(tmp_path: Path) -> None:
    images = RANDOM.integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", test_images=images, test_labels=np.arange(6))
    path = str(tmp_path / "data.npz")
    as_bytes = built("npz_images", {"every": 4}, path=path, dtype="uint8")
    np.testing.assert_array_equal(as_bytes.inputs.numpy(), images[[0, 4]].transpose(0, 3, 1, 2))
    assert as_bytes.inputs.dtype == torch.uint8
    assert as_bytes.columns["source_id"].tolist() == [0, 4]
    scaled = built("npz_images", path=path).inputs
    np.testing.assert_allclose(scaled.numpy(), images.transpose(0, 3, 1, 2) / 255, rtol=1e-6)
    for arguments, message in [
        ({"dtype": "uint8", "mean": [0.1, 0.2, 0.3]}, r"mean=\[0.1, 0.2, 0.3\].*no effect on dtype=uint8"),
        ({"dtype": "float64"}, "dtype='float64': must be float32 or uint8"),
    ]:
        with pytest.raises(ConfigError, match=message):
            built("npz_images", path=path, **arguments)


def test_digits_say_which_of_scikit_learns_they_are() -> None:
    images, labels = load_digits(return_X_y=True)
    examples = built("digits", {"classes": [3, 7], "sample": 20, "seed": 5}, split="train")
    ids = examples.columns["source_id"]
    assert set(examples.targets.tolist()) == {3, 7}
    assert examples.targets.tolist() == labels[ids].tolist()
    np.testing.assert_allclose(examples.inputs.reshape(20, 64).numpy(), images[ids] / 16)
