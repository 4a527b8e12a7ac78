"""Memory of every process of a run whose examples or model are large: ``python -m tests.benchmarks.transport``.

A Ray cluster on this machine stands for a head and a node; the command joins it, as it joins one of many machines.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch import nn

GB = 1e9
_SHAPE = (3, 224, 224)
_WIDTH = 4096
_SHAPES = ("images", "model", "edit")


def large_model(gigabytes: float) -> nn.Module:
    """A convolution and a deep perceptron, whose weights take so much room and are the same in each process."""
    num_layers = max(round(gigabytes * GB / (_WIDTH * _WIDTH * 4)), 1)
    values = torch.randn(_WIDTH, _WIDTH, generator=torch.Generator().manual_seed(0)) / _WIDTH**0.5
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, _WIDTH)]
    for shift in range(num_layers):
        layer = nn.Linear(_WIDTH, _WIDTH, bias=False, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            layer.weight.copy_(values.roll(shift, 0))
        layers += [nn.ReLU(), layer]
    torch.manual_seed(1)
    return nn.Sequential(Scaled(), *layers, nn.ReLU(), nn.Linear(_WIDTH, 10))


class Scaled(nn.Module):
    """Some of the pixels, as floats: the passes are not what is measured."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, 224, 224) uint8 to (n, 3, 28, 28) floats in [-1, 1]."""
        return pixels[:, :, ::8, ::8].float() / 127.5 - 1.0


def small_model() -> nn.Module:
    """A convolution with a large stride, and a linear layer."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    return nn.Sequential(Scaled(), *layers)


def write_images(folder: Path, gigabytes: float) -> int:
    """Random images of so many bytes in .npy files; their number."""
    num_images = max(round(gigabytes * GB / np.prod(_SHAPE)), 8)
    pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, (num_images, *_SHAPE))
    generator = np.random.default_rng(0)
    for start in range(0, num_images, 256):
        part = pixels[start : start + 256]
        part[:] = generator.integers(0, 256, part.shape, dtype=np.uint8)
    np.save(folder / "labels.npy", np.arange(num_images) % 10)
    return num_images


class Sampler:
    """The most memory that each process has had, by what it is."""

    def __init__(self, driver: int) -> None:
        self.peaks: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._driver, self._is_over = driver, threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._is_over.wait(0.1):
            for entry in Path("/proc").iterdir():
                if not entry.name.isdigit():
                    continue
                try:
                    name = (entry / "cmdline").read_bytes().decode(errors="replace")
                    is_driver = int(entry.name) == self._driver
                    if not is_driver and not (name.startswith("ray::") and _parent(_parent(entry.name)) == os.getpid()):
                        continue
                    if "Agent" in name:
                        continue
                    who = "driver" if is_driver else f"{name.split(chr(0))[0].partition('.')[0]} {entry.name}"
                    rows = (line.split() for line in (entry / "smaps_rollup").read_text().splitlines()[1:])
                    sizes = {row[0].rstrip(":"): int(row[1]) * 1024 / GB for row in rows}
                except (OSError, ProcessLookupError):
                    continue
                for key, value in (("RSS", sizes["Rss"]), ("PSS", sizes["Pss"]), ("anonymous", sizes["Anonymous"])):
                    self.peaks[who][key] = max(self.peaks[who][key], value)


def _parent(process: str | int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def measure(name: str, experiment: dict[str, Any], folder: Path) -> None:
    """Run an experiment on the cluster, and print the peaks."""
    (folder / "experiment").mkdir(exist_ok=True)
    (folder / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{json.dumps(experiment)}\n")
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "coar_dist", "--config-dir", str(folder), f"experiment={name}"]
    command += ["allow_code=[tests.benchmarks.transport]", f"run.dir={folder / 'run of'}-{name}"]
    begun = time.perf_counter()
    process = subprocess.Popen(
        [*command, f"cluster.address={address}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with Sampler(process.pid) as sampler:
        output, _ = process.communicate()
    print(f"{name}: {time.perf_counter() - begun:.0f} s, exit {process.returncode}", flush=True)
    if process.returncode:
        print(output[-3000:])
    for who, sizes in sorted(sampler.peaks.items(), key=lambda item: (item[0] != "driver", -item[1]["RSS"]))[:7]:
        print(f"{who:32}" + "  ".join(f"{key} {value:5.2f} GB" for key, value in sizes.items()), flush=True)


def experiment_of(shape: str, data: Path, gigabytes: float) -> dict[str, Any]:
    """Few masks of a model that is small beside its examples, or large; then with a gradient baseline and an edit."""
    here = "tests.benchmarks.transport"
    large = {"source": f"{here}:large_model", "arguments": {"gigabytes": gigabytes}}
    arrays = {"path": str(data), "inputs": "pixels", "targets": "labels"}
    edit = {"target": {"classes": [0, 1, 2, 3, 4], "sample": 4}, "metric": "output", "keep": {"others": 9.0}}
    with_edit = {"stages": ["ablate", "fit", "edit"], "baselines": ["gradient_x_parameter"], "edit": edit}
    return {
        "task": {
            "model": {"source": f"{here}:small_model"} if shape == "images" else large,
            "examples": {"source": "numpy_arrays", "arguments": arrays},
            "output_function": "margin",
        },
        "components": {"selector": "conv_filters"},
        "design": {"num_masks": 4},
        "gradients": {"num_masks": 0},
        **(with_edit if shape == "edit" else {"stages": ["ablate"], "baselines": []}),
        "evaluation": {"num_masks": 2},
        "ablation": {"compile": False},
        "run": {"previews": False},
        "cluster": {"max_actors": 2 if shape == "images" else 1},
    }


def main() -> None:
    """All shapes, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=float, default=3.0, help="gigabytes of images")
    parser.add_argument("--model", type=float, default=6.0, help="gigabytes of weights, three times those of the edit")
    parser.add_argument("--only", choices=_SHAPES)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["PYTHONPATH"] = os.getcwd()
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        for shape in _SHAPES:
            if arguments.only not in (None, shape):
                continue
            data = folder / f"data of {shape}"
            data.mkdir()
            num_images = write_images(data, arguments.images if shape == "images" else 0.01)
            print(f"{num_images:,} images")
            gigabytes = arguments.model / 3 if shape == "edit" else arguments.model  # it takes four times the memory
            measure(shape, experiment_of(shape, data, gigabytes), folder)
        ray.shutdown()


if __name__ == "__main__":
    main()
