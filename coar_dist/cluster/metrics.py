"""What a run tells Prometheus, through the exporter that Ray runs on every node; it puts ``ray_`` before each name.

The driver records everything: an actor answers every range with where its time went, so that nothing is lost when it
is killed. Ray passes the figures on every 10 s (``metrics_report_interval_ms``) and when the driver ends. A record
takes about 4 us; a range has a dozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ray.util.metrics import Counter, Gauge
from typing_extensions import override

from coar_dist.cluster.actors import Metrics
from coar_dist.cluster.ranges import WorkRange
from coar_dist.cluster.writing import RangeReport

_RUN, _ACTOR = ("run",), ("run", "node", "actor")


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        kind: the class of Ray that it is.
        tags: the names of its labels.
        description: what it counts or measures, with the unit if the name has none.
    """

    kind: type[Counter] | type[Gauge]
    tags: tuple[str, ...]
    description: str


METRICS: Mapping[str, Metric] = {
    "coar_shards_done_total": Metric(Counter, _ACTOR, "Shards written."),
    "coar_shards_failed_total": Metric(Counter, _ACTOR, "Attempts at a shard that raised."),
    "coar_shards_retried_total": Metric(Counter, _ACTOR, "Shards handed out again after a failure or a loss."),
    "coar_actors_lost_total": Metric(Counter, _ACTOR, "Actors that died."),
    "coar_masks_done_total": Metric(Counter, _ACTOR, "Masks run; with gradients, once per block of examples."),
    "coar_margins_done_total": Metric(Counter, _ACTOR, "Margins computed: masks times examples."),
    "coar_examples_done_total": Metric(Counter, _ACTOR, "Examples whose weights of a gradient baseline are written."),
    "coar_forward_seconds_total": Metric(Counter, _ACTOR, "Time in forward and backward passes."),
    "coar_write_seconds_total": Metric(Counter, _ACTOR, "Time in writing shards, while others are computed."),
    "coar_wait_seconds_total": Metric(Counter, _ACTOR, "Time in which nothing is computed."),
    "coar_gpu_memory_peak_bytes": Metric(Gauge, _ACTOR, "Most GPU memory that the actor's tensors have had."),
    "coar_actors_alive": Metric(Gauge, _RUN, "Actors at work."),
    "coar_masks_left": Metric(Gauge, _RUN, "Masks that are not done."),
    "coar_examples_left": Metric(Gauge, _RUN, "Examples whose weights of a gradient baseline are not done."),
}


class RunMetrics(Metrics):
    """The metrics of one run.

    Args:
        run: the run's label.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._metrics = {name: metric.kind(name, metric.description, metric.tags) for name, metric in METRICS.items()}

    @override
    def count_range(
        self, work_range: WorkRange, num_margins: int, report: RangeReport, is_first: bool, actor: str, node: str
    ) -> None:
        figures: dict[str, float] = {
            "coar_forward_seconds_total": report.forward_s,
            "coar_write_seconds_total": report.write_s,
            "coar_wait_seconds_total": report.wait_s,
        }
        if is_first:
            figures |= {
                "coar_shards_done_total": 1,
                f"coar_{work_range.unit}_done_total": work_range.num_units,
                "coar_margins_done_total": num_margins,
            }
        for name, value in figures.items():
            self.add(name, value, actor, node)
        if report.gpu_memory_bytes is not None:
            self.set_of_actor("coar_gpu_memory_peak_bytes", report.gpu_memory_bytes, actor, node)

    @override
    def add(self, name: str, value: float, actor: str, node: str) -> None:
        metric = self._metrics[name]
        assert isinstance(metric, Counter)
        if value > 0:
            metric.inc(value, {"run": self._run, "node": node, "actor": actor})

    def set_of_actor(self, name: str, value: float, actor: str, node: str) -> None:
        """Set an actor's gauge."""
        metric = self._metrics[name]
        assert isinstance(metric, Gauge)
        metric.set(value, {"run": self._run, "node": node, "actor": actor})

    @override
    def set_of_run(self, name: str, value: float) -> None:
        metric = self._metrics[name]
        assert isinstance(metric, Gauge)
        metric.set(value, {"run": self._run})
