"""The same promises on a local folder and in an object store, its failures included."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from coar_dist.errors import ConfigError, RunInUseError, StorageError
from coar_dist.store import lock
from coar_dist.store.locations import storage_at
from coar_dist.store.lock import holder_of, only_writer
from coar_dist.store.object_storage import ObjectStorage
from coar_dist.store.storage import Storage
from tests.models import local_storage
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
    storage.move("margins/train/a", "margins/train/a.damaged")
    storage.sweep("margins/train")
    assert storage.files("margins/train") == {"a.damaged": 3, "b": 0}
    with pytest.raises(StorageError, match=r"margins/train/a cannot be read"):
        storage.read("margins/train/a")


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


def test_half_written_files_of_killed_writers_are_swept_away(tmp_path: Path) -> None:
    storage = local_storage(tmp_path / "run")
    storage.write("a/file", b"whole")
    (tmp_path / "run" / "a" / ".file.0123.tmp").write_bytes(b"ha")
    storage.sweep("a")
    assert [path.name for path in (tmp_path / "run" / "a").iterdir()] == ["file"]


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


@pytest.fixture
def quick_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_RENEW_EVERY_S", 0.1)
    monkeypatch.setattr(lock, "_LEASE_S", 3.0)
    monkeypatch.setattr(lock, "_is_dead", lambda found: False)  # as if it were another machine


@pytest.mark.usefixtures("quick_leases")
def test_a_lease_keeps_others_out_and_is_free_after_its_end(in_bucket: ObjectStorage) -> None:
    with only_writer(in_bucket) as hold:
        assert f"process {os.getpid()} on" in str(holder_of(in_bucket))
        with pytest.raises(RunInUseError, match=rf"in use by process {os.getpid()} on "), only_writer(in_bucket):
            raise AssertionError
        hold.check()
    assert holder_of(in_bucket) is None
    with only_writer(in_bucket):
        pass
    assert list(in_bucket.files()) == ["driver.lock.00000001"]


@pytest.mark.usefixtures("quick_leases")
def test_a_stale_lease_is_taken_over_and_its_holder_is_told(
    in_bucket: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_RENEW_EVERY_S", 5.0)  # a holder that sleeps for longer than its lease
    with only_writer(in_bucket) as sleeper:
        with only_writer(in_bucket):
            with pytest.raises(StorageError, match=r"could not be reached for 3 s, so another"):
                sleeper.check()
            threading.Event().wait(3.0)
            with pytest.raises(RunInUseError, match=r"has been taken over by process \d+"):
                sleeper.check()
        assert holder_of(in_bucket) is None


def test_a_lease_of_a_process_that_is_known_to_be_dead_is_taken_at_once(in_bucket: ObjectStorage) -> None:
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
