"""Large example sets on a node's disk: the same values, whoever loads them and in whatever pieces."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from coar_dist.config.schema import SubsetConfig
from coar_dist.errors import NotOnThisNodeError, TaskError
from coar_dist.tasks import mapped_examples, tensor_files
from coar_dist.tasks.elsewhere import AsHere, ModelOrigin, origin_of, weights_of, with_origin, without_weights
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.examples.source import StreamedSource, load_subset
from coar_dist.tasks.mapped_examples import MappedExamples, built_by, from_pieces, in_pieces, is_mapped, mapped
from tests.models import randomise

generator = torch.Generator().manual_seed(3)
PIXELS = torch.randint(0, 256, (150, 3, 7, 5), dtype=torch.uint8, generator=generator)
LABELS = torch.arange(150) % 7


@pytest.fixture(autouse=True)
def _disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A node's own folder, and small sets that count as large."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(mapped_examples, "LARGE_BYTES", 1000)
    monkeypatch.setattr(mapped_examples, "_PIECE_BYTES", 2000)
    yield
    tensor_files.release_all()
    assert not [path for path in tensor_files.root().iterdir() if path.is_dir()]


def example_set() -> ExampleSet:
    inputs = {
        "pixels": PIXELS,
        "scale": torch.linspace(-2.0, 3.0, 150).bfloat16(),
        "is_first": torch.arange(150) < 1,
        "empty": torch.zeros(150, 0),
        "use_cache": False,
    }
    pairs = {**inputs, "pixels": PIXELS.flip(0)}
    return ExampleSet(inputs, LABELS, {"name": np.array([f"image {i}" for i in range(150)])}, pairs)


def same(one: ExampleSet, other: ExampleSet) -> bool:
    tensors = [[*each.tensors(), *each.counterfactual_tensors()] for each in (one, other)]
    values = all(a == b and torch.equal(x, y) for (a, x), (b, y) in zip(*tensors, strict=True))
    fingerprints = [(each.fingerprint(), each.counterfactual_fingerprint()) for each in (one, other)]
    columns = all(np.array_equal(values, other.columns[name]) for name, values in one.columns.items())
    return values and columns and fingerprints[0] == fingerprints[1] and one.constants() == other.constants()


def test_mapped_examples_are_the_same_and_no_write_reaches_the_file() -> None:
    examples = example_set()
    there = mapped(examples)
    assert is_mapped(there)
    assert not is_mapped(examples)
    assert same(there, examples)
    assert mapped(there) is there
    assert isinstance(there.inputs, dict)
    there.inputs["pixels"][3] = 0  # as a model may do
    assert same(mapped(example_set()), examples)
    assert not is_mapped(there.rows(0, 150))  # views may be anything


def test_small_examples_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_examples, "LARGE_BYTES", 10**6)
    assert not is_mapped(mapped(example_set()))
    assert list(tensor_files.root().iterdir()) == []


class Rows:
    """Rows whose examples are those of ``example_set``; it counts what is asked for."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows, self.num_passes, self.asked = num_rows, 0, list[int]()

    def __call__(self) -> Iterator[int]:
        self.num_passes += 1
        yield from range(self.num_rows)

    def load(self, rows: Iterable[int]) -> ExampleSet:
        ids = np.fromiter(rows, np.int64)
        self.asked.append(len(ids))
        warnings.warn(f"{len(ids)} examples from {ids[0]}", stacklevel=1)
        return example_set().select(ids)


def test_a_source_is_asked_for_pieces_and_gives_what_it_gives_at_once() -> None:
    rows = Rows(150)
    with pytest.warns(UserWarning, match="examples from") as said:
        there = in_pieces(rows.load, rows)
    assert is_mapped(there)
    assert same(there, example_set())
    assert (sum(rows.asked), rows.asked[0], rows.num_passes) == (150, 64, 1)
    assert max(rows.asked[1:]) * 222 <= 2000  # bytes of an example: twice 105 + 1 + ..., and of a piece
    assert [str(each.message).partition(" ")[0] for each in said] == [str(number) for number in rows.asked]


@pytest.mark.parametrize(("num_rows", "asked"), [(20, [20]), (64, [64]), (65, [64, 65])])
def test_small_sets_stay_in_memory_and_warn_once(
    monkeypatch: pytest.MonkeyPatch, num_rows: int, asked: list[int]
) -> None:
    monkeypatch.setattr(mapped_examples, "LARGE_BYTES", 10**6)
    rows = Rows(num_rows)
    with pytest.warns(UserWarning, match=f"{num_rows} examples from 0") as said:
        there = in_pieces(rows.load, rows)
    assert same(there, example_set().select(np.arange(num_rows)))
    assert (rows.asked, rows.num_passes, len(said), is_mapped(there)) == (asked, 1, 1, False)


def test_a_large_stream_is_passed_once_in_pieces() -> None:
    rows = Rows(150)
    source = StreamedSource(lambda: ({"i": i} for i in rows()), lambda pairs: rows.load(i for i, _ in pairs))
    with pytest.warns(UserWarning, match="examples from"):
        there = load_subset(source, SubsetConfig(every=2), "numbers", "task.examples.subset")
    assert is_mapped(there)
    assert same(there, example_set().select(np.arange(0, 150, 2)))
    assert (rows.asked[0], sum(rows.asked), rows.num_passes) == (64, 75, 1)


def test_texts_that_are_padded_to_the_longest_are_loaded_at_once() -> None:
    def load(ids: Iterable[int]) -> ExampleSet:
        found = list(ids)
        return ExampleSet(torch.zeros(len(found), max(found) + 1), torch.zeros(len(found)))

    there = in_pieces(load, lambda: iter(range(150)))
    assert not is_mapped(there)
    assert isinstance(there.inputs, torch.Tensor)
    assert there.inputs.shape == (150, 150)


@pytest.mark.parametrize(
    "other",
    [
        ExampleSet(torch.zeros(5, 3), torch.zeros(5)),
        ExampleSet(torch.zeros(5, 2, dtype=torch.float64), torch.zeros(5)),
        ExampleSet(torch.zeros(5, 2), torch.zeros(5), {"more": np.zeros(5)}),
        ExampleSet({"inputs": torch.zeros(5, 2), "flag": True}, torch.zeros(5)),
    ],
    ids=["shape", "dtype", "columns", "constant"],
)
def test_pieces_that_do_not_fit_are_refused(other: ExampleSet) -> None:
    first = ExampleSet(torch.zeros(5, 2), torch.zeros(5))
    assert from_pieces(iter([first, first])) is not None
    assert from_pieces(iter([first, other])) is None


def test_what_a_source_raises_is_raised() -> None:
    def pieces() -> Iterator[ExampleSet]:
        yield example_set()
        raise TaskError("image 7 is damaged")

    with pytest.raises(TaskError, match="image 7 is damaged"):
        from_pieces(pieces())


def test_a_full_disk_leaves_examples_in_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full() -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_files, "new_folder", full)
    assert not is_mapped(mapped(example_set()))
    assert "large examples stay in memory: [Errno 28] No space left on device. Set TMPDIR" in caplog.text


def test_another_node_loads_them_from_where_they_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = built_by(mapped(example_set()), lambda: mapped(example_set()))
    sent = MappedExamples.of(examples)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "other"))
    (tmp_path / "other").mkdir()
    for file in sent.files:  # the other node has no such files
        file.path.unlink()
    there = sent.make()
    assert is_mapped(there)
    assert same(there, example_set())
    tensor_files.release_all()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.mark.parametrize(
    ("rebuild", "why"),
    [
        (None, "the examples were given in memory"),
        (lambda: mapped(example_set().rows(1, 150)), "the examples that are found there are others"),
        (lambda: ExampleSet(torch.zeros(3), torch.zeros(3)), "the examples that are found there are others"),
        (partial(open, "/nowhere/images"), "the examples cannot be loaded there: .*No such file"),
    ],
)
def test_a_node_that_cannot_is_sent_the_values(rebuild: Any, why: str) -> None:
    examples = mapped(example_set())
    if rebuild is not None:
        built_by(examples, rebuild)
    sent = MappedExamples.of(examples)
    values = sent.with_values()
    whole = MappedExamples(values.files, values.form, values.rebuild, [np.array(each) for each in values.values])
    for file in sent.files:
        file.path.unlink()
    sent.files[0].path.parent.rmdir()
    with pytest.raises(NotOnThisNodeError, match=why):
        sent.make()
    there = whole.make()
    assert is_mapped(there)
    assert same(there, example_set())


def test_a_file_that_was_cut_short_is_not_used() -> None:
    examples = mapped(example_set())
    sent = MappedExamples.of(examples)
    with sent.files[1].path.open("r+b") as file:
        file.truncate(sent.files[1].num_bytes - 1)
    with pytest.raises(NotOnThisNodeError):
        sent.make()


def test_folders_go_with_the_last_process_that_uses_them(tmp_path: Path) -> None:
    code = (
        "import os, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from coar_dist.tasks import tensor_files\n"
        "folder = tensor_files.new_folder(); (folder / '0').write_bytes(b'x')\n"
        "print(folder.name, flush=True); sys.stdin.readline(); os._exit(1)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    name = other.stdout.readline().strip()
    tensor_files.remove_unused()
    assert (tensor_files.root() / name / "0").is_file()
    other.communicate("\n")  # killed: it removes nothing itself
    assert (tensor_files.root() / name / "0").is_file()
    tensor_files.remove_unused()
    assert not (tensor_files.root() / name).exists()


def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    tensor_files.root().rmdir()
    (tmp_path / f"coar_dist-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="belongs to somebody else"):
        tensor_files.root()
    (tmp_path / f"coar_dist-{os.getuid()}").unlink()


def tied() -> nn.Module:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.norm = nn.BatchNorm1d(4)
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.norm(self.embed(x)))
            return out

    return randomise(Tied())


def test_a_model_without_weights_keeps_its_names_shapes_and_ties() -> None:
    model = tied()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    twin = without_weights(model)
    assert all(tensor.is_meta for tensor in [*twin.parameters(), *twin.buffers()])
    assert twin.head.weight is twin.embed.weight
    assert isinstance(twin.head.weight, nn.Parameter)
    shapes = [{name: (t.shape, t.dtype) for name, t in each.state_dict().items()} for each in (model, twin)]
    assert shapes[0] == shapes[1]
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_an_origin_is_of_one_model_and_refuses_other_weights() -> None:
    model = with_origin(tied(), ModelOrigin(tied, weights_of(tied())))
    origin = origin_of(model)
    assert origin is not None
    assert origin_of(tied()) is None
    assert origin_of(copy.deepcopy(model)) is None
    assert weights_of(origin.make()) == weights_of(model)
    with pytest.raises(NotOnThisNodeError, match="has other weights"):
        ModelOrigin(lambda: randomise(tied(), seed=1), origin.weights).make()

    def broken() -> nn.Module:
        raise FileNotFoundError("weights.safetensors")

    with pytest.raises(NotOnThisNodeError, match=r"cannot be built there: FileNotFoundError: weights\.safetensors"):
        ModelOrigin(broken, "").make()


def test_what_runs_elsewhere_runs_in_this_folder_if_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    here: AsHere[Path] = AsHere.of(Path.cwd)
    monkeypatch.chdir(tmp_path)
    assert here() == tmp_path / "mine"
    assert Path.cwd() == tmp_path
    (tmp_path / "mine").rmdir()
    assert here() == tmp_path
