"""The Grafana dashboard shows the metrics that there are, all of them."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import ray

from coar_dist.cluster.metrics import METRICS

_NAME = re.compile(r"\bray_coar_\w+")


@pytest.fixture
def dashboard(repository: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((repository / "deploy" / "grafana" / "coar_dist.json").read_text())
    return loaded


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_every_expression_is_of_a_metric_and_every_metric_is_shown(dashboard: dict[str, Any]) -> None:
    shown = {name for expression in expressions(dashboard) for name in _NAME.findall(expression)}
    assert shown == {f"ray_{name}" for name in METRICS}
    variable = next(entry for entry in dashboard["templating"]["list"] if entry["name"] == "run")
    assert set(_NAME.findall(variable["definition"])) <= shown


def test_counters_are_shown_as_rates_and_every_series_is_of_the_chosen_runs(dashboard: dict[str, Any]) -> None:
    for expression in expressions(dashboard):
        assert expression.count("(") == expression.count(")"), expression
        for name in _NAME.findall(expression):
            assert f'{name}{{run=~"$run"}}' in expression
            of_counter = METRICS[name.removeprefix("ray_")].kind is ray.util.metrics.Counter
            is_rate = re.search(rf"(rate|increase)\({name}\{{", expression) is not None
            assert is_rate == (of_counter and not expression.startswith("sum by (run) (ray_coar_shards")), expression


def test_labels_are_those_that_the_metrics_have(dashboard: dict[str, Any]) -> None:
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            kept = {label for by in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in by.split(", ")}
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept, panel["title"]
            for name in _NAME.findall(target["expr"]):
                assert kept <= set(METRICS[name.removeprefix("ray_")].tags), panel["title"]


def test_it_is_a_dashboard_that_grafana_imports(dashboard: dict[str, Any]) -> None:
    assert isinstance(dashboard["schemaVersion"], int)
    assert dashboard["uid"]
    assert "id" not in dashboard  # given by the Grafana that imports it
    kinds = {entry["name"]: entry["type"] for entry in dashboard["templating"]["list"]}
    assert kinds == {"datasource": "datasource", "run": "query"}
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        assert panel["description"].endswith(".")
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    for one, other in combinations((panel["gridPos"] for panel in panels), 2):
        apart = [one[k] + one[s] <= other[k] or other[k] + other[s] <= one[k] for k, s in (("x", "w"), ("y", "h"))]
        assert any(apart), (one, other)
