from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from coar_dist.errors import RunInUseError, StorageError
from coar_dist.store.local_storage import LocalStorage
from coar_dist.store.lock import only_writer

HOLD = """
import sys, time
from coar_dist.store.lock import only_writer
from coar_dist.store.locations import storage_at
with only_writer(storage_at(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    root = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    said = rf"in use by process {process.pid} on .* since 20.*Wait until it ends"
    with pytest.raises(RunInUseError, match=said), only_writer(LocalStorage(str(root))):
        raise AssertionError
    process.kill()
    process.wait()
    with only_writer(LocalStorage(str(root))):
        assert f'"process": {process.pid}' not in (root / "driver.lock").read_text()
    with only_writer(LocalStorage(str(root))):
        pass


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file cannot be made"), only_writer(LocalStorage(str(tmp_path / "file"))):
        raise AssertionError


def test_a_holder_whose_lock_file_was_replaced_is_told(tmp_path: Path) -> None:
    """Whoever removes and makes the run directory again has a lock of their own."""
    with only_writer(LocalStorage(str(tmp_path / "run"))) as hold:
        hold.check()
        (tmp_path / "run" / "driver.lock").rename(tmp_path / "old")
        with pytest.raises(StorageError, match=r"driver\.lock is gone: .*removed or unmounted"):
            hold.check()
        (tmp_path / "run" / "driver.lock").write_bytes((tmp_path / "old").read_bytes())
        with pytest.raises(StorageError, match=r"driver\.lock is another file now\. Was the run directory removed"):
            hold.check()
