from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from coar_dist.cluster import ray_watch
from coar_dist.cluster.interruption import Interruption
from coar_dist.cluster.ray_watch import RayWatch, died
from coar_dist.errors import ClusterError


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """What stands for Ray's control service."""
    monkeypatch.setattr(ray_watch, "_POLL_S", 0.02)
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield started
    started.kill()
    started.wait()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_loss_is_logged_at_once_and_ends_the_work(
    process: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    interruption = Interruption()
    with RayWatch({"gcs_server": process}, "/tmp/ray/logs", interruption):
        time.sleep(0.1)
        interruption.raise_if_set()
        process.kill()
        wait_for(lambda: bool(caplog.records))
        time.sleep(0.1)
        with pytest.raises(ClusterError, match=r"gcs_server, was killed by signal 9.*dmesg.*/tmp/ray/logs/gcs_server"):
            interruption.raise_if_set()
    (record,) = caplog.records
    assert (record.levelno, record.name) == (logging.ERROR, "coar_dist.cluster.ray_watch")
    assert "was killed by signal 9" in record.getMessage()


def test_a_process_that_waits_for_ever_is_ended_with_the_cause(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    is_ended = threading.Event()

    def end(code: int) -> None:
        codes.append(code)
        is_ended.set()

    monkeypatch.setattr(ray_watch, "_GRACE_S", 0.1)
    monkeypatch.setattr("os._exit", end)
    with RayWatch({"raylet": process}, "logs", Interruption()):
        process.kill()
        assert is_ended.wait(10)
    assert codes == [1]
    assert capsys.readouterr().err.startswith("ClusterError: Ray's node manager, the raylet, was killed by signal 9")


def test_ray_that_is_stopped_after_the_work_is_no_loss(
    process: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    interruption = Interruption()
    with RayWatch({"raylet": process}, "logs", interruption):
        pass
    process.kill()
    process.wait()
    time.sleep(0.2)
    interruption.raise_if_set()
    assert not caplog.records


def test_a_cluster_of_others_that_does_not_answer_is_logged_once_and_may_come_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray_watch, "_SERVICE_POLL_S", 0.02)
    interruption = Interruption()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with RayWatch({}, "", interruption, address):
            time.sleep(0.3)
            assert not caplog.records
            server.close()
            wait_for(lambda: bool(caplog.records))
            time.sleep(0.3)
    (record,) = caplog.records
    assert f"control service at {address} does not answer" in record.getMessage()
    assert record.levelno == logging.ERROR
    interruption.raise_if_set()


def test_only_a_kill_is_put_down_to_memory() -> None:
    assert "ended with exit code 1" in str(died("raylet", 1, "logs"))
    assert "was killed by signal 15" in str(died("raylet", -15, "logs"))
    assert ["dmesg" in str(died("raylet", code, "logs")) for code in (1, -15, -9)] == [False, False, True]
