"""What Prometheus would find on a Ray node."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable

import ray

_LINE = re.compile(r"(ray_coar_\w+)\{(.*)\} (\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')

Series = dict[tuple[str, str, str, str], float]
"""Metric, run, node, actor."""


def scrape() -> tuple[Series, dict[str, str]]:
    """The values of all nodes, and the metrics' types."""
    series: Series = {}
    types: dict[str, str] = {}
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        types |= dict(re.findall(r"# TYPE (ray_coar_\w+) (\w+)", text))
        for name, labels, value in _LINE.findall(text):
            tags = dict(_LABEL.findall(labels))
            series[name, tags["run"], tags.get("node", ""), tags.get("actor", "")] = float(value)
    return series, types


def scraped_until(is_there: Callable[[Series], bool], seconds: float) -> tuple[Series, dict[str, str]]:
    """As ``scrape``, again until the values are there, which are sent now and then, or the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        series, types = scrape()
        if is_there(series) or time.monotonic() > deadline:
            return series, types
        time.sleep(0.5)
