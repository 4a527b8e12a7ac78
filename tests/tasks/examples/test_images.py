"""Image sources against pixels written beforehand, through a user's configuration."""

from __future__ import annotations

import builtins
import itertools
import os
import threading
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from coar_dist.errors import ConfigError, TaskError
from coar_dist.tasks.examples import pixels as pixels_module
from coar_dist.tasks.examples.pixels import INTERPOLATIONS, Geometry, decode
from tests.hub_models import import_torchvision
from tests.tasks.examples.making import built, picture, png, preset, stacked, write_png

SIZES = {"resize": 16, "image_size": 12}


def resized(array: np.ndarray) -> torch.Tensor:
    return preset(array, 16, 12)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_pixels_are_those_of_torchvisions_preset(interpolation: str) -> None:
    torchvision = pytest.importorskip("torchvision") if not has_torchvision() else import_torchvision()
    transforms = torchvision.transforms
    geometry = Geometry(12, 17, interpolation, "RGB")
    mode = transforms.InterpolationMode(interpolation)
    steps = [transforms.Resize(17, mode, antialias=True), transforms.CenterCrop(12), transforms.PILToTensor()]
    for seed, (height, width) in enumerate(itertools.product((17, 20, 33, 40), (17, 23, 51))):
        image = Image.fromarray(picture(seed, height, width))
        expected = transforms.Compose(steps)(image)
        np.testing.assert_array_equal(geometry.pixels(image), expected.numpy())
        literal = preset(np.asarray(image), 17, 12, interpolation.upper())
        np.testing.assert_array_equal(geometry.pixels(image), literal.numpy())
    square = transforms.Compose([transforms.Resize([14, 13], mode, antialias=True), transforms.PILToTensor()])
    exact = Geometry(None, [14, 13], interpolation, "RGB").pixels(image)
    np.testing.assert_array_equal(exact, square(image).numpy())


def has_torchvision() -> bool:
    try:
        import_torchvision()
    except ImportError:
        return False
    return True


def test_modes_and_sizes_without_change(tmp_path: Path) -> None:
    array = picture(0, 9, 7)
    write_png(tmp_path / "a" / "x.png", array)
    Image.fromarray(array[..., 0]).save(tmp_path / "a" / "y.png")
    as_they_are = built("image_folder", path=str(tmp_path), resize=None, image_size=None)
    assert torch.equal(as_they_are.inputs[0], torch.from_numpy(array).permute(2, 0, 1))
    assert torch.equal(as_they_are.inputs[1], torch.from_numpy(array[..., 0]).expand(3, 9, 7))
    grey = built("image_folder", path=str(tmp_path), resize=None, image_size=5, mode="L")
    assert grey.inputs.shape == (2, 1, 5, 5)
    assert torch.equal(grey.inputs[1, 0], torch.from_numpy(array[2:7, 1:6, 0]))


def test_image_folder_has_the_order_and_labels_of_torchvision(tmp_path: Path) -> None:
    names = ["cat/b.png", "cat/a/z.png", "cat/B.PNG", "dog/10.png", "dog/9.png", "ant/0.png"]
    random = {name: picture(i, 20 + i, 31 - i) for i, name in enumerate(names)}
    for name, array in random.items():
        write_png(tmp_path / name, array)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    examples = built("image_folder", path=str(tmp_path), **SIZES)
    order = ["ant/0.png", "cat/B.PNG", "cat/b.png", "cat/a/z.png", "dog/10.png", "dog/9.png"]
    assert examples.columns["source_id"].tolist() == order
    assert examples.targets.tolist() == [0, 1, 1, 1, 2, 2]
    assert examples.inputs.dtype == torch.uint8
    assert torch.equal(examples.inputs, stacked([random[name] for name in order], resized))
    if has_torchvision():
        folder = import_torchvision().datasets.ImageFolder(str(tmp_path))
        assert [(str(tmp_path / n), t) for n, t in zip(order, examples.targets, strict=True)] == folder.samples
        same = built("torchvision_dataset", name="ImageFolder", root=str(tmp_path), **SIZES)
        assert torch.equal(same.inputs, examples.inputs)
        assert same.columns["source_id"].tolist() == order
    by_list = built("image_folder", path=str(tmp_path), classes=["dog", "cat"], **SIZES)
    assert by_list.targets.tolist() == [1, 1, 1, 0, 0]
    by_label = built("image_folder", {"classes": [207]}, path=str(tmp_path), classes={"dog": 207, "ant": 7}, **SIZES)
    assert by_label.targets.tolist() == [207, 207]
    assert by_label.columns["source_id"].tolist() == order[4:]


def test_what_a_subset_leaves_out_is_not_decoded(tmp_path: Path) -> None:
    for i in range(6):
        write_png(tmp_path / "a" / f"{i}.png", picture(i))
    (tmp_path / "a" / "3.png").write_bytes(b"broken")
    examples = built("image_folder", {"every": 2}, path=str(tmp_path), **SIZES)
    assert examples.columns["source_id"].tolist() == ["a/0.png", "a/2.png", "a/4.png"]
    with pytest.raises(TaskError, match=r"a/3\.png cannot be decoded: UnidentifiedImageError"):
        built("image_folder", path=str(tmp_path), **SIZES)
    (tmp_path / "a" / "3.png").write_bytes(png(picture(3))[:900])
    with pytest.raises(TaskError, match=r"a/3\.png cannot be decoded: OSError: .*truncated"):
        built("image_folder", path=str(tmp_path), **SIZES)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"path": "nowhere"}, TaskError, r"path='nowhere': there is no such folder"),
        ({"classes": ["a", "c"]}, TaskError, r"no class folders \['c'\]; it has \['a', 'b'\]"),
        ({"classes": ["a", "a"]}, TaskError, "names a folder twice"),
        ({"classes": ["b"]}, TaskError, r"b has no images"),
        (
            {"classes": ["a"], "resize": None},
            TaskError,
            r"x\.png cannot be decoded: .*26 x 20 pixels, fewer than image",
        ),
        (
            {"classes": ["a"], "resize": None, "image_size": None},
            TaskError,
            r"y\.png has .*\(3, 21, 26\).*\(3, 20, 26\)",
        ),
        ({"resize": 100}, ConfigError, r"image_size=224 is larger than resize=100"),
        ({"resize": [300, 200]}, ConfigError, r"larger than resize=\[300, 200\]"),
        ({"resize": [300]}, ConfigError, r"resize=\[300\]: must be null, a length >= 1, or \[height, width\]"),
        ({"image_size": 0}, ConfigError, r"image_size=0"),
        ({"interpolation": "cubic"}, ConfigError, r"interpolation='cubic': must be one of nearest, bilinear"),
        ({"mode": "CMYK"}, ConfigError, r"mode='CMYK': must be one of RGB, L"),
        ({"resize": "big"}, ConfigError, r"arguments\.resize='big': must be int or list"),
    ],
)
def test_image_folders_that_do_not_fit(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    write_png(tmp_path / "a" / "x.png", picture(0))
    write_png(tmp_path / "a" / "y.png", picture(1, 21))
    (tmp_path / "b").mkdir()
    with pytest.raises(error, match=message):
        built("image_folder", **{"path": str(tmp_path), **arguments})


def test_interpolations_are_pillows() -> None:
    assert {name.upper() for name in INTERPOLATIONS} <= set(Image.Resampling.__members__)


def test_decoding_keeps_order_and_has_few_images_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later images are ready earlier; a stream of unknown length grows its array."""
    monkeypatch.setattr(pixels_module, "_FIRST_GUESS", 3)
    num_threads, given, done = min(32, len(os.sched_getaffinity(0))), itertools.count(), itertools.count()
    largest_gap, lock = 0, threading.Lock()
    slow = threading.Event()
    original = Geometry.pixels

    def slowly(self: Geometry, image: Any) -> Any:
        result = original(self, image)
        if result[0, 0, 0] % 7 == 0:
            slow.wait(0.01)
        with lock:
            next(done)
        return result

    def images() -> Any:
        nonlocal largest_gap
        for i in range(100):
            with lock:
                largest_gap = max(largest_gap, next(given) - int(repr(done)[6:-1]))
            yield f"image {i}", png(np.full((4, 5, 3), i, dtype=np.uint8))

    monkeypatch.setattr(Geometry, "pixels", slowly)
    result = decode(images(), Geometry(None, None, "bilinear", "RGB"), None)
    assert result.shape == (100, 3, 4, 5)
    assert (result == np.arange(100, dtype=np.uint8)[:, None, None, None]).all()
    assert largest_gap <= 4 * num_threads
    with pytest.raises(TaskError, match="there are no images"):
        decode(iter([]), Geometry(None, None, "bilinear", "RGB"), None)


def test_without_an_extra_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.partition(".")[0] in ("torchvision", "datasets", "transformers"):
            raise ImportError(f"No module named {name!r}")
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    text = tmp_path / "text"
    text.write_text("a" * 100)
    for source, arguments, extra in [
        ("torchvision_dataset", {"name": "CIFAR10"}, "vision"),
        ("huggingface_images", {"dataset": "x", "split": "test"}, "hf"),
        ("text_file", {"path": str(text), "tokenizer": "gpt2"}, "hf"),
    ]:
        with pytest.raises(TaskError, match=rf"cannot be imported.*pip install 'coar-dist\[{extra}\]'"):
            built(source, **arguments)


def test_torchvision_data_sets(tmp_path: Path) -> None:
    if not has_torchvision():
        pytest.skip("torchvision is not installed")
    arguments = {"size": 9, "image_size": [3, 10, 12], "num_classes": 4}
    examples = built("torchvision_dataset", name="FakeData", arguments=arguments, resize=8, image_size=7)
    items = [import_torchvision().datasets.FakeData(**arguments)[i] for i in range(9)]
    assert examples.targets.tolist() == [int(label) for _, label in items]
    assert torch.equal(examples.inputs, stacked([np.array(image) for image, _ in items], lambda a: preset(a, 8, 7)))
    label = int(examples.targets[3])
    of_class = built("torchvision_dataset", {"classes": [label]}, name="FakeData", arguments=arguments)
    expected = [i for i in range(9) if examples.targets[i] == label]
    assert of_class.columns["source_id"].tolist() == expected
    assert of_class.inputs.shape == (len(expected), 3, 10, 12)
    with pytest.raises(ConfigError, match=r"name='Cifar10': torchvision\.datasets has .*CIFAR10"):
        built("torchvision_dataset", name="Cifar10")
    with pytest.raises(TaskError, match=r"FakeData.*unexpected keyword argument 'sizes'"):
        built("torchvision_dataset", name="FakeData", arguments={"sizes": 3})
    for i in range(2):
        write_png(tmp_path / "left" / f"{i}.png", picture(i))
    with pytest.raises(TaskError, match="Dataset not found"):
        built("torchvision_dataset", name="CIFAR10", root=str(tmp_path))


def waterbirds_folder(root: Path) -> list[np.ndarray]:
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for i, (y, split, place) in enumerate([(0, 0, 0), (1, 2, 0), (0, 2, 1), (1, 2, 1), (0, 1, 0), (0, 2, 0)]):
        lines.append(f'{i},"{i}.Bird, common/b{i}.png",{y},{split},{place},/p/{i}.jpg')
        write_png(root / f"{i}.Bird, common" / f"b{i}.png", picture(i, 300 + i, 270))
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return [picture(i, 300 + i, 270) for i in range(6)]


def test_waterbirds(tmp_path: Path) -> None:
    pictures = waterbirds_folder(tmp_path)
    examples = built("waterbirds", path=str(tmp_path))
    assert examples.targets.tolist() == [1, 0, 1, 0]
    assert examples.columns["place"].tolist() == [0, 1, 1, 0]
    assert examples.columns["group"].tolist() == [2, 1, 3, 0]
    assert examples.columns["source_id"][0] == "1.Bird, common/b1.png"

    def as_wilds(array: np.ndarray) -> torch.Tensor:
        image = np.array(Image.fromarray(array).resize((256, 256), Image.BILINEAR))
        return torch.from_numpy(image)[16:240, 16:240].permute(2, 0, 1)

    assert torch.equal(examples.inputs, stacked([pictures[i] for i in (1, 2, 3, 5)], as_wilds))
    assert built("waterbirds", {"classes": [0]}, path=str(tmp_path), split="train").columns["group"].tolist() == [0]
    with pytest.raises(TaskError, match="split='dev': must be one of train, val, test"):
        built("waterbirds", path=str(tmp_path), split="dev")
    text = (tmp_path / "metadata.csv").read_text()
    for wrong, message in [
        (text.replace(",place,", ",where,"), r"metadata\.csv has no column 'place'; it has img_id"),
        (text.replace('b1.png",1', 'b1.png",7'), r"column 'y' must be 0 or 1, but holds \['7'\]"),
        (text.replace("b2.png", "b9.png"), r"b9\.png cannot be decoded: FileNotFoundError"),
        (text + "6,short\n", r"metadata\.csv: row 7 has 2 values, the header 6 names"),
    ]:
        (tmp_path / "metadata.csv").write_text(wrong)
        with pytest.raises(TaskError, match=message):
            built("waterbirds", path=str(tmp_path))
    with pytest.raises(TaskError, match=r"metadata\.csv is missing"):
        built("waterbirds", path=str(tmp_path / "none"))


@pytest.mark.parametrize("kind", ["txt", "csv"])
def test_celeba(tmp_path: Path, kind: str) -> None:
    names = [f"{i:06d}.png" for i in range(1, 7)]
    blond, male, split = [1, -1, 1, -1, 1, -1], [-1, 1, 1, -1, 1, -1], [0, 2, 2, 2, 2, 1]
    rows = list(zip(names, blond, male, split, strict=True))
    if kind == "txt":
        attributes = f"6\nBlond_Hair Bangs Male \n{''.join(f'{n} {b:2d}  1 {m:2d}' + chr(10) for n, b, m, _ in rows)}"
        partition = "".join(f"{n} {s}\n" for n, _, _, s in rows)
        folder = tmp_path / "img_align_celeba"
    else:
        attributes = "image_id,Blond_Hair,Bangs,Male\n" + "".join(f"{n},{b},1,{m}\n" for n, b, m, _ in rows)
        partition = "image_id,partition\n" + "".join(f"{n},{s}\n" for n, _, _, s in reversed(rows))
        folder = tmp_path / "img_align_celeba" / "img_align_celeba"
    (tmp_path / f"list_attr_celeba.{kind}").write_text(attributes)
    (tmp_path / f"list_eval_partition.{kind}").write_text(partition)
    for i, name in enumerate(names):
        write_png(folder / name, picture(i, 26, 20))
    examples = built("celeba", path=str(tmp_path), resize=16, image_size=12)
    assert examples.columns["source_id"].tolist() == names[1:5]
    assert examples.targets.tolist() == [0, 1, 0, 1]
    assert examples.columns["Male"].tolist() == [1, 1, 0, 1]
    assert examples.columns["group"].tolist() == [1, 3, 0, 3]
    assert torch.equal(examples.inputs, stacked([picture(i, 26, 20) for i in range(1, 5)], resized))
    swapped = built("celeba", path=str(tmp_path), split="val", label="Male", group_by="Bangs", **SIZES)
    assert (swapped.targets.tolist(), swapped.columns["group"].tolist()) == ([0], [1])
    with pytest.raises(TaskError, match=rf"list_attr_celeba\.{kind} has no column 'Hat'; it has image_id, Blond_Hair"):
        built("celeba", path=str(tmp_path), label="Hat")
    (tmp_path / f"list_eval_partition.{kind}").write_text(partition.replace(f"{names[3]}", "x.png"))
    with pytest.raises(TaskError, match=rf"list_eval_partition of .* lacks \['{names[3]}'\]"):
        built("celeba", path=str(tmp_path))
    with pytest.raises(TaskError, match=r"neither list_attr_celeba\.csv nor list_attr_celeba\.txt"):
        built("celeba", path=str(tmp_path / "img_align_celeba"))


@pytest.mark.parametrize(
    ("limit", "size"), [(99, "10 x 10 pixels, and 99 is"), (49, r"Image size \(100 pixels\) exceeds")]
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_beyond_pillow_s_limit_is_named(limit: int, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    images = [("small.png", png_of(9, 5)), ("large.png", png_of(10, 10))]
    with pytest.raises(TaskError, match=rf"large\.png is too large to decode: {size}.*raise PIL\.Image\.MAX_IMAGE"):
        decode(images, Geometry(None, [4, 4], "bilinear", "RGB"), 2)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode(images, Geometry(None, [4, 4], "bilinear", "RGB"), 2).shape == (2, 3, 4, 4)


def png_of(width: int, height: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def test_what_is_decoded_at_once_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By 8 threads images of 60 pixels, of which two find room, and one of more than all of it, which is alone."""
    lock, now, most = threading.Lock(), [0], [0]

    def pixels(self: Geometry, image: Image.Image) -> Any:
        with lock:
            now[0] += image.width * image.height
            most[0] = max(most[0], now[0])
        time.sleep(0.01)
        with lock:
            now[0] -= image.width * image.height
        return np.zeros((3, 1, 1), np.uint8)

    monkeypatch.setattr(pixels_module, "_PIXELS_AT_ONCE", 130)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.setattr(Geometry, "pixels", pixels)
    small = [("small.png", png_of(10, 6))] * 16
    assert len(decode(small, Geometry(None, None, "bilinear", "RGB"), None)) == 16
    assert most == [120]
    decode([*small, ("large.png", png_of(20, 10)), *small], Geometry(None, None, "bilinear", "RGB"), None)
    assert most == [200]
