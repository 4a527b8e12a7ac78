"""`ray job submit` on a Ray cluster of two nodes with a token: run, stop, go on; from a checkout, and installed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

SMALL = [
    "stages=[train,ablate,fit]",
    "train.epochs=1",
    "train.minimum_accuracy=0",
    "task.examples.arguments.num_examples=40",
    "design.num_masks=20000",
    "gradients.num_masks=0",
    "baselines=[]",
    "evaluation.num_masks=16",
    "evaluation.ablation_fractions=[0.05]",
    "ablation.masks_per_shard=8",
    "ablation.mode=weights",
    "ablation.compile=false",
    "ablation.rows_per_forward=40",
]
HOST = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((HOST, 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster with a token.

    Attributes:
        address: of its control service.
        dashboard: where jobs are submitted.
        environment: of whoever knows the token; no PYTHONPATH, so that code comes from the job alone.
    """

    address: str
    dashboard: str
    environment: dict[str, str]

    def job(self, *arguments: str, check: bool = True) -> str:
        """What `ray job ...` prints."""
        verb, *others = arguments
        done = subprocess.run(
            ["ray", "job", verb, "--address", self.dashboard, *others],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0 or not check, done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def head() -> Iterator[Cluster]:
    """A node on ports of its own, with processes that end with it."""
    home = Path(tempfile.mkdtemp(dir="/tmp", prefix="cj"))  # Ray's sockets need a short path
    token = home / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    dropped = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {
        **{name: text for name, text in os.environ.items() if not name.startswith("RAY_") and name not in dropped},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",
        "COLUMNS": "120",
    }
    port, dashboard, agent, client = free_ports(4)
    with started(
        home,
        environment,
        *("--head", f"--port={port}", f"--dashboard-host={HOST}", f"--dashboard-port={dashboard}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
    ) as node:
        wait_for(port, node)
        yield Cluster(f"{HOST}:{port}", f"http://{HOST}:{dashboard}", environment)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def cluster(head: Cluster) -> Iterator[Cluster]:
    """The same with a second node, and ready for jobs."""
    (agent,) = free_ports(1)
    home = Path(head.environment["HOME"])
    port = f"--dashboard-agent-listen-port={agent}"
    with started(home, head.environment, f"--address={head.address}", port) as node:
        wait_for(int(head.dashboard.rpartition(":")[2]), node)
        yield head


@contextlib.contextmanager
def started(home: Path, environment: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A node of one CPU."""
    common = ["--block", "--num-cpus=1", f"--temp-dir={home}", "--disable-usage-stats", f"--node-ip-address={HOST}"]
    with (home / "nodes.log").open("a") as log:
        command = ["ray", "start", *arguments, *common]
        node = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield node
    finally:
        os.killpg(node.pid, signal.SIGKILL)  # Ray's own way to end takes 20 s
        node.wait()


def wait_for(port: int, node: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while socket.socket().connect_ex((HOST, port)):
        assert node.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow  # tests/deploy and the others here have its parts
@pytest.mark.cluster
def test_job_is_stopped_and_another_goes_on(cluster: Cluster, repository: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["python", "-m", "coar_dist", "experiment=digits", f"run.dir={run}", *SMALL]
    started = time.monotonic()
    submit = ["submit", "--no-wait", "--submission-id", "first", "--working-dir", str(repository)]
    cluster.job(*submit, "--", *command)
    while not list((run / "margins" / "train").glob("*.parquet")):
        assert time.monotonic() < started + 120, cluster.job("logs", "first")
        time.sleep(0.1)
    cluster.job("stop", "first")
    assert "Job 'first' was stopped" in cluster.job("status", "first")
    printed = cluster.job("logs", "first")
    assert "  ablate  on the Ray cluster at " in printed
    assert "What is finished is kept; the same command continues." in printed  # so it was not killed
    assert "\r" not in printed
    assert not [line for line in printed.splitlines() if "\x1b" in line and "cli.py" not in line]

    installed = tmp_path / "site-packages"  # as `pip install` lays it out
    shutil.copytree(repository / "coar_dist", installed / "coar_dist", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(repository / "conf", installed / "coar_dist" / "conf")
    variables = json.dumps({"env_vars": {"PYTHONPATH": str(installed)}})
    printed = cluster.job(
        *("submit", "--submission-id", "second", "--runtime-env-json", variables, "--"),
        *(*command, "design.num_masks=400", "cluster=existing"),
    )
    there = re.search(r"; ([\d,]+) masks? there already\.", printed)
    assert there is not None, printed
    assert int(there[1].replace(",", "")) >= 8
    assert re.search(r"on the Ray cluster at \S+, 2 nodes with 2 CPU and 0 GPU\.", printed)
    assert "fit  attributions of 40 examples" in printed
    assert "Job 'second' succeeded" in printed


JOIN = """
from coar_dist.cluster.connection import connect
from coar_dist.config.schema import ClusterConfig
from coar_dist.errors import ClusterError
from coar_dist.config.secrets import without_secrets
try:
    with connect(ClusterConfig()):
        print("joined")
except ClusterError as error:
    print(without_secrets(str(error)))
"""


@pytest.mark.cluster
def test_without_its_token_nobody_joins(head: Cluster, repository: Path, tmp_path: Path) -> None:
    nobody = {
        **{name: text for name, text in head.environment.items() if not name.startswith("RAY_")},
        "HOME": str(tmp_path),
        "PYTHONPATH": str(repository),
        "RAY_ADDRESS": head.address,
        "RAY_NUM_REDIS_GET_RETRIES": "2",  # 20 by default, one each second
    }
    mode = {"RAY_AUTH_MODE": "token"}
    tries = {
        "without RAY_AUTH_MODE.": {},
        "in ~/.ray/auth_token, if any.": mode,
        "in RAY_AUTH_TOKEN.": mode | {"RAY_AUTH_TOKEN": "0" * 64},
    }
    processes = {
        given: subprocess.Popen(
            [sys.executable, "-c", JOIN], env=nobody | environment, stdout=subprocess.PIPE, text=True
        )
        for given, environment in tries.items()
    }
    for given, process in processes.items():
        printed, _ = process.communicate(timeout=100)
        assert process.returncode == 0
        assert printed.startswith(f"cluster.address='{head.address}' cannot be ")
        for text in (
            "export RAY_AUTH_MODE=token and the token of its head",
            "in RAY_AUTH_TOKEN or, as a file, in RAY_AUTH_TOKEN_PATH",
        ):
            assert text in printed
        assert printed.endswith(f"{given}\n")
        assert "0" * 64 not in printed


def test_what_is_uploaded(repository: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in (".gitignore", ".rayignore", "pyproject.toml"):
        shutil.copy(repository / name, checkout)
    kept = ["coar_dist/app.py", "conf/config.yaml", "my_module.py", "weights.safetensors"]
    left = [".git/config", ".venv/bin/python", "venv/bin/python", "runs/digits/run.json", "outputs/x", "multirun/y"]
    for name in (*kept, *left, "coar_dist/__pycache__/app.pyc"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("x")
    package = tmp_path / "package.zip"
    create_package(str(checkout), package, include_gitignore=False)  # .rayignore on its own
    names = {name for name in zipfile.ZipFile(package).namelist() if not name.endswith("/")}
    assert set(kept) <= names
    assert not names & set(left)
    package.unlink()
    create_package(str(checkout), package, include_gitignore=True)
    assert {name for name in zipfile.ZipFile(package).namelist() if not name.endswith("/")} == {
        *kept,
        ".gitignore",
        ".rayignore",
        "pyproject.toml",
    }
