"""The same promises on a local folder and in an object store, its failures included."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coar_dist.errors import ConfigError, RunInUseError, StorageError
from coar_dist.store import lock
from coar_dist.store.locations import storage_at
from coar_dist.store.lock import holder_of, only_writer
from coar_dist.store.margins import MarginStore
from coar_dist.store.object_storage import ObjectStorage
from coar_dist.store.rehearsal import Rehearsal
from coar_dist.store.storage import Storage
from tests.models import local_storage, random_masks
from tests.object_store import BUCKET, ObjectStore


@pytest.fixture
def in_bucket(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> ObjectStorage:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    storage = storage_at(f"s3://{BUCKET}/{request.node.name}")
    assert isinstance(storage, ObjectStorage)
    return storage


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return local_storage(tmp_path / "run")
    found: Storage = request.getfixturevalue("in_bucket")
    return found


def test_files_are_written_whole_listed_read_in_parts_and_renamed(storage: Storage) -> None:
    assert storage.files("margins/train") == {}
    assert storage.size("margins/train/a") is None
    storage.write("margins/train/a", b"0123456789")
    storage.write("margins/train/b", b"")
    storage.write("margins/other", b"x")
    assert storage.files("margins/train") == {"a": 10, "b": 0}
    assert storage.folders("margins") == ["train"]
    assert storage.folders("margins/train") == storage.folders("nowhere") == []
    assert storage.size("margins/train/a") == 10
    assert storage.read("margins/train/a") == b"0123456789"
    assert storage.open("margins/train/c") is None
    file = storage.open("margins/train/a")
    assert file is not None
    with file:
        assert file.size == 10
        assert file.read(3, 7) == b"3456"
        assert file.read(8, 20) == b"89"
        assert file.read(5, 5) == b""
        assert not file.was_replaced()
        storage.write("margins/train/a", b"new")
        assert file.was_replaced()
    listed = storage.open("margins/train/a", 3)  # as long as a listing has said
    assert listed is not None
    with listed:
        assert (listed.size, listed.read(1, 3)) == (3, b"ew")
    storage.move("margins/train/a", "margins/train/a.damaged")
    storage.sweep("margins/train")
    assert storage.files("margins/train") == {"a.damaged": 3, "b": 0}
    with pytest.raises(StorageError, match=r"margins/train/a cannot be read"):
        storage.read("margins/train/a")


@pytest.mark.parametrize(
    ("name", "done", "operation"),
    [
        ("file/folder", "listed", lambda storage: storage.files("file/folder")),
        ("file/folder", "listed", lambda storage: storage.folders("file/folder")),
        ("folder", "read", lambda storage: storage.read("folder")),
        ("folder", "read", lambda storage: storage.open("folder")),
        ("x" * 300, "read", lambda storage: storage.size("x" * 300)),
        ("folder", "written", lambda storage: storage.write("folder", b"")),
        ("nothing", "renamed", lambda storage: storage.move("nothing", "something")),
        ("folder/.a.tmp", "removed", lambda storage: storage.sweep("folder")),
    ],
    ids=lambda value: str(value)[:14],
)
def test_an_error_of_the_disk_names_the_file_and_what_was_to_be_done(
    name: str, done: str, operation: Callable[[Storage], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = local_storage(tmp_path / "run")
    storage.write("file", b"")
    storage.write("folder/.a.tmp", b"")

    def fail(path: Path, missing_ok: bool) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pathlib.Path.unlink", fail)
    with pytest.raises(StorageError) as raised:
        operation(storage)
    assert str(raised.value).startswith(f"{tmp_path / 'run' / name} cannot be {done}: ")
    assert "what is finished is kept" in str(raised.value)


def test_a_run_directory_and_its_files_have_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    places = [tmp_path / "a" / "run", tmp_path / "b" / "run", "s3://bucket/a/run", "s3://bucket/b/run"]
    labels = [storage_at(place).label for place in places]
    assert len(set(labels)) == len(labels)
    assert all(re.fullmatch(r"run-[0-9a-f]{6}", label) for label in labels)
    assert storage_at("a/run").label == storage_at("a/run/").label == labels[0]
    assert storage_at("s3://bucket/a/run/").label == labels[2]
    for place in ("runs/X", "runs/X/"):
        assert storage_at(place).where("a/b") == "runs/X/a/b"


def test_an_error_of_an_object_store_names_the_object_and_what_was_to_be_done(in_bucket: ObjectStorage) -> None:
    """Its bucket is not there."""
    storage = ObjectStorage("s3://no-such-bucket-of-ours/run")
    for name, done, operation in (
        ("a", "written", lambda: storage.write("a", b"")),
        ("a", "written", lambda: storage.write_new("a", b"")),
        ("a", "read", lambda: storage.read("a")),
    ):
        with pytest.raises(StorageError, match=rf"^s3://no-such-bucket-of-ours/run/{name} cannot be {done}: "):
            operation()


def test_a_failing_object_store_is_asked_again(in_bucket: ObjectStorage, object_store: ObjectStore) -> None:
    object_store.fail_every = 3
    before = object_store.num_failures
    try:
        for i in range(10):
            in_bucket.write(f"a/{i}", b"x" * i)
            assert in_bucket.read(f"a/{i}") == b"x" * i
            assert in_bucket.write_new(f"b/{i}", b"x")
        assert in_bucket.files("a") == {str(i): i for i in range(10)}
    finally:
        object_store.fail_every = 0
    assert object_store.num_failures > before + 5


def test_shards_of_an_object_store_are_read_at_once(in_bucket: ObjectStorage) -> None:
    store = MarginStore(in_bucket, "margins/train", "x", 9, 6, 2, 2, "float32")
    masks = random_masks(6, 9)
    for start in (0, 2, 4):
        store.write(start, masks[start : start + 2], masks[start : start + 2, :2].astype(np.float32), {})
    ((found, margins),) = store.read((0, 2), 6)
    np.testing.assert_array_equal(found, masks)
    np.testing.assert_array_equal(margins, masks[:, :2])


def test_half_written_files_of_killed_writers_are_swept_away(tmp_path: Path) -> None:
    storage = local_storage(tmp_path / "run")
    storage.write("a/file", b"whole")
    (tmp_path / "run" / "a" / ".file.0123.tmp").write_bytes(b"ha")
    storage.sweep("a")
    assert [path.name for path in (tmp_path / "run" / "a").iterdir()] == ["file"]


def test_writers_of_one_name_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One begins and ends while another is at it: an actor that computes a copy of a slow range, say."""
    storage = local_storage(tmp_path / "run")
    fsync, is_first = os.fsync, iter([True])

    def write_meanwhile(descriptor: int) -> None:
        if next(is_first, False):
            storage.write("a/file", b"the other's")
            assert storage.read("a/file") == b"the other's"
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", write_meanwhile)
    storage.write("a/file", b"the one's")
    assert storage.read("a/file") == b"the one's"
    assert storage.files("a") == {"file": 9}


def test_another_process_finds_the_folder_from_its_own_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = storage_at("runs/mine")
    storage.create()
    storage.write("a.json", b"{}")
    sent = pickle.dumps(storage)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(sent).read("a.json") == b"{}"
    assert storage.location == "runs/mine"  # as the user wrote it


def test_a_run_directory_that_has_gone_is_not_made_again(tmp_path: Path) -> None:
    """A mount that vanished must not be filled underneath."""
    storage = local_storage(tmp_path / "run")
    (tmp_path / "run").rmdir()
    with pytest.raises(StorageError, match=r"run' is not there.*unmounted.*what is finished is kept"):
        storage.write("margins/train/a", b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("az://bucket/run", r"object stores are s3://, gs://"),
        ("s3://bucket", r"run\.dir='s3://bucket': must be s3://bucket/prefix"),
        (Path("s3://bucket/run"), r"has lost a slash"),
        ("s3:///run", r"must be s3://bucket/prefix"),
        ("s3://key:secret@bucket/run", r"run\.dir='s3://\*\*\*@bucket/run' holds credentials"),
    ],
)
def test_urls_that_cannot_be(url: str | Path, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        storage_at(url)


def test_a_bucket_that_is_not_there_and_missing_credentials_are_named(
    in_bucket: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError, match=r"s3://nowhere/run/a cannot be written: .*bucket.*does not exist"):
        storage_at("s3://nowhere/run").write("a", b"")
    code = "from coar_dist.store.locations import storage_at; storage_at('s3://bucket/run').write('a', b'')"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"AWS_EC2_METADATA_DISABLED": "true", "HOME": "/nonexistent"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "StorageError: s3://bucket/run/a cannot be written: NoCredentialsError" in result.stderr


class Clock:
    """Stands for the module ``time`` in ``lock``: who sleeps wakes at once, ``seconds`` later, after ``meanwhile``."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.num_sleeps = 0
        self.meanwhile: Callable[[], object] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds * 1.01
        self.num_sleeps += 1
        self.meanwhile()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Of leases, which their threads do not renew by themselves."""
    clock = Clock()
    monkeypatch.setattr(lock, "time", clock)
    monkeypatch.setattr(lock, "_RENEW_EVERY_S", 3600.0)
    return clock


@pytest.fixture
def other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call is from a machine of its own."""
    numbers = itertools.count()
    monkeypatch.setattr(lock, "_process_namespace", lambda: f"machine {next(numbers)}")


def lease_of(process: int, **changes: object) -> bytes:
    since = "2026-01-02T03:04:05+00:00"
    return json.dumps(
        {"process": process, "host": "elsewhere", "since": since, "namespace": "its boot", "held": True, **changes}
    ).encode()


NOBODY = 2**22 + 1
"""No process of this machine: beyond Linux's largest number."""


def test_a_lease_of_another_machine_keeps_others_out_while_it_is_renewed(
    in_bucket: ObjectStorage, clock: Clock
) -> None:
    """Its process is none of this machine, which says nothing."""
    in_bucket.write("driver.lock.00000004", lease_of(NOBODY))

    def renew_at_the_fifth() -> None:
        if clock.num_sleeps == 5:
            in_bucket.write("driver.lock.00000004", lease_of(NOBODY, renewals=1))

    clock.meanwhile = renew_at_the_fifth
    expected = rf"in use by process {NOBODY} on elsewhere since 2026-01-02T03:04:05\+00:00\. Wait until"
    with pytest.raises(RunInUseError, match=expected), only_writer(in_bucket):
        raise AssertionError
    assert clock.num_sleeps == 5
    clock.meanwhile = lambda: None  # it has died
    with only_writer(in_bucket):
        assert list(in_bucket.files()) == ["driver.lock.00000005"]
    assert clock.num_sleeps == 5 + 30  # seconds


@pytest.mark.usefixtures("other_machines")
def test_a_lease_keeps_others_out_and_is_free_after_its_end(
    in_bucket: ObjectStorage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_RENEW_EVERY_S", 0.01)
    with only_writer(in_bucket) as hold:
        assert f"process {os.getpid()} on" in str(holder_of(in_bucket))

        def until_renewed() -> None:
            before = in_bucket.read("driver.lock.00000000")
            while in_bucket.read("driver.lock.00000000") == before:
                pass

        clock.meanwhile = until_renewed
        with pytest.raises(RunInUseError, match=rf"in use by process {os.getpid()} on "), only_writer(in_bucket):
            raise AssertionError
        hold.check()
    assert holder_of(in_bucket) is None
    with only_writer(in_bucket):
        pass
    assert list(in_bucket.files()) == ["driver.lock.00000001"]


@pytest.mark.usefixtures("other_machines")
def test_a_stale_lease_is_taken_over_and_its_holder_is_told(
    in_bucket: ObjectStorage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with only_writer(in_bucket) as sleeper:
        with only_writer(in_bucket):
            with pytest.raises(StorageError, match=r"could not be reached for 30 s, so another"):
                sleeper.check()
            monkeypatch.setattr(lock, "_RENEW_EVERY_S", 0.0)
            sleeper._renew()  # type: ignore[attr-defined]  # what its thread does when it wakes
            with pytest.raises(RunInUseError, match=r"has been taken over by process \d+"):
                sleeper.check()
        assert holder_of(in_bucket) is None


def test_a_lease_of_a_process_that_is_known_to_be_dead_is_taken_at_once(in_bucket: ObjectStorage, clock: Clock) -> None:
    code = f"""
import os
from coar_dist.store.lock import only_writer
from coar_dist.store.locations import storage_at
with only_writer(storage_at({in_bucket.location!r})):
    os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert holder_of(in_bucket) is not None
    with only_writer(in_bucket):
        assert list(in_bucket.files()) == ["driver.lock.00000001"]
    assert clock.num_sleeps == 0


def test_a_listing_does_not_mind_files_that_vanish_meanwhile(tmp_path: Path) -> None:
    """Every write makes and renames a temporary file."""
    storage = local_storage(tmp_path / "run")
    names = {str(i) for i in range(50)}
    for name in names:
        storage.write(f"a/{name}", b"x")
    stop = threading.Event()

    def keep_writing() -> None:
        while not stop.is_set():
            storage.write("a/0", b"x")

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        for _ in range(300):
            assert names <= storage.files("a").keys()
    finally:
        stop.set()
        writer.join()


def test_a_rehearsal_keeps_what_is_written_to_itself(tmp_path: Path) -> None:
    storage = local_storage(tmp_path / "run")
    storage.write("a/one", b"1")
    storage.write("a/two", b"22")
    rehearsal = Rehearsal(storage)
    rehearsal.write("a/three", b"333")
    rehearsal.write("a/b/four", b"4444")
    rehearsal.move("a/two", "a/gone")
    rehearsal.sweep("a")
    assert rehearsal.files("a") == {"one": 1, "three": 3, "gone": 2}
    assert rehearsal.files("a/b") == {"four": 4}
    storage.write("a/c/five", b"5")
    assert (rehearsal.folders("a"), rehearsal.folders(), rehearsal.folders("a/b")) == (["b", "c"], ["a"], [])
    for name, content in (("a/one", b"1"), ("a/three", b"333")):
        file = rehearsal.open(name, len(content))
        assert file is not None
        assert (file.size, file.read(0, 9), file.was_replaced()) == (len(content), content, False)
    assert rehearsal.open("a/two") is None
    assert (rehearsal.size("a/two"), rehearsal.size("a/gone"), rehearsal.read("a/gone")) == (None, 2, b"22")
    assert rehearsal.read("a/three") == b"333"
    assert storage.files("a") == {"one": 1, "two": 2}
