from __future__ import annotations

import torch
from torch import nn

from coar_dist.ablation.memory import allowed_bytes, peak_bytes

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


def test_what_is_allowed_is_a_share_of_what_is_free() -> None:
    assert 10**6 < allowed_bytes(CPU, 1) <= allowed_bytes(CPU, 10**6) < 10**13
