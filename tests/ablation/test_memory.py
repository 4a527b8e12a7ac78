from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from coar_dist.ablation import memory
from coar_dist.ablation.memory import allowed_bytes, peak_bytes, rows_that_fit

CPU = torch.device("cpu")


def test_peak_counts_what_is_alive_at_a_time() -> None:
    def run() -> None:
        kept = torch.zeros(1000)
        for _ in range(5):
            torch.ones(500)  # freed at once
        kept += torch.ones(250)[:1]

    assert peak_bytes(run, CPU) == 4 * 1500


def test_peak_grows_with_the_rows_of_a_language_models_logits() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5000))
    with torch.no_grad():
        peaks = [peak_bytes(lambda rows=rows: model(torch.ones(rows, 8)), CPU) for rows in (3, 30)]  # type: ignore[misc]
    assert peaks[0] >= 4 * 3 * 5000
    assert 9.5 < peaks[1] / peaks[0] < 10.5


@pytest.mark.parametrize(
    ("limit", "current", "free"),
    [("max", "5", 6e9), ("", "", 6e9), ("9000000000", "5000000000", 4e9), ("1e12", "0", 6e9)],
)
def test_what_is_allowed_is_a_share_of_what_is_free(
    limit: str, current: str, free: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it, divided among the actors of the machine; of a container, what it may still take."""
    files = {
        "/proc/meminfo": "MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable: 5859375 kB\n",
        "/sys/fs/cgroup/memory.max": limit,
        "/sys/fs/cgroup/memory.current": current,
    }
    monkeypatch.setattr(memory, "open", lambda name: io.StringIO(files[name]), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    for num_threads, num_actors in ((1, 8), (3, 2), (8, 1), (64, 1)):
        assert allowed_bytes(CPU, num_threads) == free / 2 / num_actors
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    assert rows_that_fit(free / 8 / 10.5, CPU) == 10
    assert rows_that_fit(free, CPU) == 1
