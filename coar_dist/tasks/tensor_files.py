"""Tensors in files of this node, mapped into memory: a page is read when it is touched, all processes of the node share
it, and one that writes to it has a copy of that page to itself."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_CHUNK_BYTES = 16 * 2**20
_LOCK = ".lock"
_held: dict[str, int] = {}  # names of folders that this process uses, and the descriptors of their locks
_files: MutableMapping[Tensor, TensorFile] = WeakIdKeyDictionary()  # of the tensors that ``TensorFile.mapped`` gave


@dataclass(frozen=True)
class TensorFile:
    """A tensor's values in a file, without a header, row after row.

    Attributes:
        path: the file.
        dtype, shape: of the tensor.
    """

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """The size of the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @property
    def is_there(self) -> bool:
        """Whether this node has the file, whole."""
        try:
            return self.path.stat().st_size == self.num_bytes
        except OSError:
            return False

    def mapped(self) -> Tensor:
        """The tensor; it may be written to, and the file stays as it is."""
        if self.num_bytes == 0:
            tensor = torch.empty(self.shape, dtype=self.dtype)
        else:
            flat = torch.from_file(str(self.path), shared=False, size=self.num_bytes, dtype=torch.uint8)
            tensor = flat.view(self.dtype).reshape(self.shape)
        _files[tensor] = self
        return tensor

    def chunks(self) -> Iterator[bytes]:
        """The file's bytes, read without mapping: nothing of it stays in this process."""
        with self.path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk


def file_of(tensor: Tensor) -> TensorFile | None:
    """The file of a tensor that ``TensorFile.mapped`` gave; None for every other, views of such a one included."""
    return _files.get(tensor)


def root() -> Path:
    """This user's folder in the node's temporary one (``TMPDIR``), where files of tensors lie.

    Raises:
        OSError: it cannot be made, or somebody else has made it.
    """
    folder = Path(tempfile.gettempdir()) / f"coar_dist-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    made = folder.lstat()
    if folder.is_symlink() or made.st_uid != os.getuid():
        raise OSError(f"{folder} belongs to somebody else")
    return folder


def new_folder() -> Path:
    """An empty folder below ``root`` that this process holds; what no process holds any more is removed first."""
    remove_unused()
    folder = root() / f"new-{uuid.uuid4().hex}"
    hold(folder.name)
    folder.mkdir(mode=0o700)
    return folder


def hold(name: str) -> None:
    """Keep the folder ``name`` below ``root`` from being removed for as long as this process lives."""
    if name in _held:
        return
    path = root() / f"{name}{_LOCK}"
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if _is_at(descriptor, path):  # else it was removed just before
            _held[name] = descriptor
            return
        os.close(descriptor)


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """Be the one process of this node in a block for ``name``; the others wait."""
    with (root() / f"{name}.busy").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def release(name: str) -> None:
    """This process uses the folder no more."""
    descriptor = _held.pop(name, None)
    if descriptor is not None:
        os.close(descriptor)


def adopt(folder: Path, name: str) -> Path:
    """Give a folder from ``new_folder`` its name; one of that name that is there already is used instead."""
    hold(name)
    place = root() / name
    try:
        folder.rename(place)
    except OSError:
        if not place.is_dir():
            raise
    release(folder.name)
    return place


def remove_unused() -> None:
    """Remove the folders that no process holds: their processes may have been killed."""
    for path in root().glob(f"*{_LOCK}"):
        if path.name.removesuffix(_LOCK) in _held:
            continue
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            if _is_at(descriptor, path):
                shutil.rmtree(root() / path.name.removesuffix(_LOCK), ignore_errors=True)
                path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def release_all() -> None:
    """At the end of a process: what it alone used goes."""
    for name in list(_held):
        release(name)
    remove_unused()


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
