"""The command for a GPU, on a CPU: its sections, tiny; and nothing is lost with a process that is broken or slow."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.benchmarks.gpu import __main__ as gpu
from tests.benchmarks.gpu import schedule
from tests.benchmarks.gpu.pack import pieces, thinned
from tests.benchmarks.gpu.results import Results
from tests.benchmarks.gpu.schedule import SECONDS, allowance

_FAKE = """
import json, os, sys, time
out, sections = sys.argv[sys.argv.index("--out") + 1], sys.argv[sys.argv.index("--sections") + 1 :]
def say(**event):
    with open(f"{out}/gpu.jsonl", "a") as file:
        file.write(json.dumps(event) + "\\n")
for name in sections:
    say(allowed={name: 0.2})
    say(row={"section": name, "what": "number", "value": 1.0, "unit": "s"})
    if name == "lasso":
        os.kill(os.getpid(), 11)
    if name == "run":
        time.sleep(60)
    say(ended=name, seconds=0.1)
    if name == "fit":
        sys.exit(3)
"""
_ABSENT = """
import importlib.util, sys
names = {absent!r}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in names:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name in names else real(name, *more)
"""


def test_every_section_s_numbers_outlive_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One crashes, one takes too long, one leaves a device that no longer answers: the others are run all the same."""
    monkeypatch.setattr(gpu, "WORKER", (sys.executable, "-c", _FAKE))
    monkeypatch.setattr(schedule, "GRACE_S", 0.3)
    names = ["ridge", "lasso", "run", "fit", "statistics"]
    monkeypatch.setattr("sys.argv", ["gpu", "--out", str(tmp_path), "--sections", *names])
    started = time.monotonic()
    assert gpu.main() == 1
    assert time.monotonic() - started < 30
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["section"] for row in found["rows"]] == names
    assert list(found["seconds"]) == ["ridge", "fit", "statistics"]
    assert found["failed"]["lasso"] == "its process ended: SIGSEGV"
    assert found["failed"]["run"].startswith("killed after ")
    assert set(found["failed"]) == {"lasso", "run"}
    assert "**lasso failed**: its process ended: SIGSEGV" in capfd.readouterr().out


def test_all_of_it_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "WORKER", (sys.executable, "-c", _FAKE))
    monkeypatch.setattr("sys.argv", ["gpu", "--out", str(tmp_path), "--minutes", "0.02", "--sections", "run", "fit"])
    started = time.monotonic()
    assert gpu.main() == 1
    assert time.monotonic() - started < 20
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["rows"][-1]["note"] == "skipped: the 0.02 minutes are over"


def test_numbers_are_there_when_all_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--out", str(tmp_path), "--smoke", "--sections", "ridge"]
    with subprocess.Popen([*command, "identical", "few"], stdout=subprocess.DEVNULL, start_new_session=True) as process:
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and not any(row.section == "ridge" for row in Results(tmp_path).rows):
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)
    assert any(row.what.startswith("torch eigh") for row in Results(tmp_path).rows)
    assert (tmp_path / "gpu.md").read_text().startswith("# GPU paths")


def test_a_worker_that_does_not_start_is_not_tried_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "WORKER", (sys.executable, "-c", "import sys; sys.exit(9)"))
    monkeypatch.setattr("sys.argv", ["gpu", "--out", str(tmp_path), "--sections", "ridge"])
    assert gpu.main() == 1
    assert json.loads((tmp_path / "gpu.json").read_text())["failed"] == {"start": "its process ended with status 9"}


def test_time_that_a_section_leaves_goes_to_the_others() -> None:
    names = list(SECONDS)
    assert sum(SECONDS.values()) / 60 <= 13.5  # the default of --minutes
    assert allowance(names, sum(SECONDS.values())) == pytest.approx(SECONDS[names[0]])
    assert allowance(names[-2:], 600) > SECONDS[names[-2]]
    assert allowance(names[:1], -5.0) == 0.0


@pytest.mark.filterwarnings("ignore:nothing can be said about components")  # of few masks
def test_gpu_command_runs_whole_runs_and_bare_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Some sections, tiny, here; the slow test below has the others."""
    sections = ["ridge", "run", "fit", "setup_b", "language"]
    monkeypatch.setattr("sys.argv", ["gpu", "--out", str(tmp_path), "--smoke", "--sections", *sections])
    assert gpu.main() == 0, capfd.readouterr().out
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["failed"] == {}
    assert not any(row["fails"] for row in found["rows"])
    assert any(row["what"] == "all of setup B, at these rates" for row in found["rows"])
    (same,) = (row for row in found["rows"] if row["what"] == "files of two runs")
    assert same["value"] == 0.0


@pytest.mark.slow
def test_gpu_command_smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every section, tiny, on the CPU, in processes without what the command does not need: Ray runs elsewhere."""
    absent = ["ray", "hydra", "omegaconf", "cuml", "cupy", "transformers", "sklearn", "matplotlib", "PIL"]
    (tmp_path / "sitecustomize.py").write_text(_ABSENT.format(absent=absent))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--out", str(tmp_path), "--smoke"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["failed"] == {}
    assert [name for name in SECONDS if not any(row["section"] == name for row in found["rows"])] == []
    assert not any(row["fails"] for row in found["rows"])
    skipped = [row["section"] for row in found["rows"] if row["note"].startswith("skipped")]
    assert sorted(skipped) == ["fit", "lasso", "ray", "ridge", "run", "setup_b"]
    halved = [row for row in found["rows"] if row["section"] == "memory" and "halvings" in row["note"]]
    assert halved
    assert not halved[0]["note"].startswith("0 ")
    table = (tmp_path / "gpu.md").read_text()
    assert "Largest gap of the best forms: " in table
    assert "| lasso | cuML, 30 components, 8 examples |  |  |  | skipped: no CUDA device |" in table


def test_gpu_command_says_what_fails(tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert results.is_sound
    results.add("a", "slow form", 2.0, "s", limit=1.0, limit_name="product", kind="cost", group="a")
    results.add("a", "fast form", 1.25, "s", limit=1.0, limit_name="product", kind="cost", group="a")
    results.add("b", "short", 0.01, "s", limit=0.001, limit_name="product", kind="cost")
    results.add("c", "rate", 9.0, "masks/s", limit=10.0, limit_name="bare forward")
    assert "a, fast form: 80% of its limit" in results.largest_gap()
    assert results.is_sound
    results.add("d", "wrong", float("nan"), "of the effects", limit=1e-3, limit_name="allowed", kind="error")
    assert not results.is_sound
    results.write()
    assert "| d | wrong | nan of the effects | 0.001 allowed | FAILS |" in (tmp_path / "gpu.md").read_text()
    (tmp_path / "gpu.jsonl").open("a").write('{"ended": "d", "sec')  # killed while it was written
    assert [row.what for row in Results(tmp_path).rows] == [row.what for row in results.rows]


def container(codes: list[tuple[int, bytes]]) -> bytes:
    """Device code by architecture, as a compiler lays it out."""
    entries = b"".join(
        struct.pack("<HHIQ", 2, 257, 64, len(code)) + bytes(12) + struct.pack("<I", of) + bytes(32) + code
        for of, code in codes
    )
    whole = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries
    return whole + bytes(-len(whole) % 8)


def test_a_library_keeps_the_device_code_of_one_architecture() -> None:
    codes = [(80, b"a" * 16), (90, b"b" * 24), (120, b"c" * 8)], [(90, b"d" * 8), (75, b"e" * 8)]
    body = b"".join(container(part) for part in codes)
    names = b"\0.nv_fatbin\0"
    header = bytearray(64)
    table = 64 + len(body) + len(names)
    struct.pack_into("<Q", header, 0x28, table)
    struct.pack_into("<HH", header, 0x3C, 2, 1)
    sections = struct.pack("<IIQQQQIIQQ", 1, 0, 0, 0, 64, len(body), 0, 0, 0, 0)
    sections += struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 64 + len(body), len(names), 0, 0, 0, 0)
    found = thinned(bytearray(header) + body + names + sections, 90)
    assert len(found) == table + 128
    at = 64
    for part in codes:
        (length,) = struct.unpack_from("<Q", found, at + 8)
        left = list(pieces(found, at + 16, at + 16 + length))
        assert [architecture for _, _, architecture in left] == [90]
        (kept,) = (code for architecture, code in part if architecture == 90)
        assert bytes(found[left[0][0] + 64 : left[0][1]]) == kept
        at += len(container(part))
    assert b"a" * 16 not in found
    with pytest.raises(AssertionError, match="no code for architecture 70"):
        thinned(bytearray(header) + body + names + sections, 70)
