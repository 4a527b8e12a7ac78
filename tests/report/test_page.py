"""The report page: what it says, against the API, and that it needs nothing else."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from coar_dist.api import Run
from coar_dist.config.schema import Config, RunConfig
from coar_dist.console.run_log import RunLog
from coar_dist.evaluation.component_statistics import ComponentSums
from coar_dist.evaluation.intervals import means_of
from coar_dist.report.page import examples
from coar_dist.report.page.components import clustered
from coar_dist.report.page.content import with_images
from coar_dist.report.page.encoding import unpacked
from coar_dist.report.page.examples import MAX_SHOWN, choose, nearest_to
from coar_dist.report.page.gather import gather
from coar_dist.report.page.history import history_of
from coar_dist.report.page.maps import confusion
from coar_dist.report.page.render import _coded
from coar_dist.report.page.verdict import verdict_of
from coar_dist.report.summary import summarise
from coar_dist.stages.pipeline import run_stages
from coar_dist.store.ceilings import Ceiling
from coar_dist.store.class_names import write_class_names
from coar_dist.store.run_directory import RunDirectory
from coar_dist.store.tables import AttributionTable
from tests.models import local_storage
from tests.report.synthetic import synthetic_run

HOSTILE = "</script><img src=x onerror=alert(1)>$\\x$"


def reported(root: Path, *arguments: Any, **options: Any) -> Run:
    run = Run(synthetic_run(root, *arguments, **options))
    report(run.directory)
    return run


def report(run: RunDirectory) -> None:
    run_stages(Config(stages=["report"], run=RunConfig(run.storage.location)), Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """1,100 examples, so that not all are shown; two of them never change."""
    root = tmp_path_factory.mktemp("page") / "images"
    run = Run(synthetic_run(root, 1100, num_constant=2, columns={"site": 7 + np.arange(1100) % 3}, has_errors=True))
    write_class_names(run.directory, {0: "cat"})
    report(run.directory)
    return run


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """10 texts, with markup in every name."""
    return reported(tmp_path_factory.mktemp("page") / "texts", 10, kind="texts", hostile=HOSTILE)


def page_of(run: Run) -> Path:
    return Path(run.directory.storage.location) / "report" / "index.html"


def content_of(run: Run) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', page_of(run).read_text(), re.S)
    assert found is not None
    content: dict[str, Any] = json.loads(found[1])
    return content


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]


@pytest.mark.parametrize("name", ["images", "texts"])
def test_the_page_needs_nothing_but_itself(name: str, request: pytest.FixtureRequest) -> None:
    text = page_of(request.getfixturevalue(name)).read_text()
    links = Links()
    links.feed(text)
    assert [link for link in links.found if not link.startswith(("#", "data:image/"))] == []
    assert not {"link", "iframe", "object"} & set(links.tags)
    assert "@import" not in text
    assert "{{" not in text.partition("<script")[0]
    assert "url(http" not in text


def test_a_page_of_a_large_run_is_a_summary(images: Run, texts: Run) -> None:
    assert len(content_of(images)["examples"]["ids"]) == MAX_SHOWN < 1100
    assert content_of(texts)["examples"]["ids"] == list(range(10))
    assert "500 of 1,100 examples" in page_of(images).read_text()


def test_components_are_ranked_and_summed_over_all_examples(images: Run) -> None:
    shown, weights = content_of(images)["components"], images.weights().astype(np.float64)
    ids = unpacked(shown["ids"]).astype(int)
    np.testing.assert_array_equal(ids, np.argsort(-np.abs(weights).mean(axis=0), kind="stable"))
    weights = weights[:, ids]
    expected = {
        "mean": weights.mean(axis=0),
        "strength": np.abs(weights).mean(axis=0),
        "spread": weights.std(axis=0, ddof=1),
        "errors": np.sqrt(np.square(images.standard_errors().astype(np.float64)[:, ids]).mean(axis=0)),
        "edges": np.stack([weights.min(axis=0), weights.max(axis=0)], axis=1).reshape(-1),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(unpacked(shown[name]), values, rtol=2e-4, err_msg=name)
    lengths = np.linalg.norm(weights, axis=0)
    cosines = weights.T @ weights / lengths / lengths[:, None]
    counts = unpacked(shown["histogram"]).reshape(len(ids), -1)
    raised, lowered, similar = (
        unpacked(shown[name]).reshape(len(ids), -1) for name in ("raised", "lowered", "similar")
    )
    for row, column in enumerate(weights.T):
        order = np.argsort(-column, kind="stable")
        np.testing.assert_array_equal(raised[row], order[:5])
        np.testing.assert_array_equal(lowered[row], np.argsort(column, kind="stable")[:5])
        assert np.abs(counts[row] - np.histogram(column, 24)[0]).sum() <= 4  # at the edges of bins
        assert counts[row].sum() == len(column)
        others = np.argsort(-np.abs(np.delete(cosines[row], row)), kind="stable")[:6]
        np.testing.assert_array_equal(similar[row], np.delete(np.arange(len(ids)), row)[others])
    by = unpacked(shown["raised_by"]).reshape(len(ids), -1)
    np.testing.assert_allclose(by, np.take_along_axis(weights.T, raised.astype(int), axis=1), rtol=1e-3)


def test_components_have_means_by_class_and_by_the_columns_of_the_examples(images: Run) -> None:
    content, weights, examples = content_of(images), images.weights().astype(np.float64), images.examples()
    ids = unpacked(content["components"]["ids"]).astype(int)
    assert [grouping["name"] for grouping in content["groupings"]] == ["class", "right or wrong", "site"]
    assert content["groupings"][0]["values"] == ["cat", "1", "2", "3"]
    codes = [examples["label"], (examples["label"] != examples["prediction"]).astype(int), examples["site"] - 7]
    for part, code in zip(content["components"]["by_group"], codes, strict=True):
        means = [weights[code == group][:, ids].mean(axis=0) for group in range(int(code.max()) + 1)]
        found = unpacked(part["means"]).reshape(len(ids), -1)
        np.testing.assert_allclose(found, np.stack(means, axis=1), atol=1e-4 * np.abs(found).max())
        groups = [weights[code == group][:, ids] for group in range(int(code.max()) + 1)]
        halves = np.stack([1.96 * of.std(axis=0, ddof=1) / np.sqrt(len(of)) for of in groups], axis=1)
        shown = unpacked(part["halves"]).reshape(len(ids), -1)
        np.testing.assert_allclose(shown, halves, atol=0.005 * halves.max())
    assert content["examples"]["columns"] == {"site": [str(site) for site in examples["site"][_ids(content)]]}


def test_texts_of_the_terminal_become_html() -> None:
    shown = _coded("accuracy of `targets` < -0.5 -> of `<b>`, at 2026-11-30")
    assert shown == (
        "accuracy of <code>targets</code> &lt; \N{MINUS SIGN}0.5 → of <code>&lt;b&gt;</code>, at 2026-11-30"
    )


def test_examples_have_their_weights_predictions_and_errors(images: Run) -> None:
    content, shown = content_of(images), content_of(images)["examples"]
    ids, weights = _ids(content), images.weights()
    n, largest = len(ids), np.abs(weights).max(axis=1)[_ids(content)]
    assert shown["components"] is None
    np.testing.assert_allclose(unpacked(shown["weights"]).reshape(n, -1), weights[ids], atol=1e-4 * largest.max())
    errors = unpacked(shown["standard_errors"]).reshape(n, -1)
    np.testing.assert_allclose(errors, images.standard_errors(ids.tolist()), atol=5e-4 * largest.max())
    np.testing.assert_allclose(unpacked(shown["base"]), images.intercepts()[ids], rtol=1e-6)
    for number, design in enumerate(images.directory.held_out):
        masks, margins = images.margins(design)
        predicted, true = images.predict(masks)[:, ids], margins[:, ids]
        rms = np.sqrt(np.square(predicted - true).mean(axis=0))
        np.testing.assert_allclose(unpacked(shown["errors"]).reshape(n, -1)[:, number], rms, rtol=1e-3)
        if number == shown["column"]:
            np.testing.assert_allclose(unpacked(shown["predicted"]).reshape(n, -1), predicted.T, atol=1e-3)
            np.testing.assert_allclose(unpacked(shown["true"]).reshape(n, -1), true.T, atol=1e-3)
    correlations = images.evaluation()["correlation"][ids]
    np.testing.assert_allclose(unpacked(shown["correlation"]), correlations, rtol=1e-5)
    unit = weights / np.maximum(np.linalg.norm(weights, axis=1, keepdims=True), 1e-30)
    cosines = unit[ids] @ unit.T
    cosines[np.arange(n), ids] = -np.inf
    nearest = unpacked(shown["nearest"]).reshape(n, -1).astype(int)
    expected = -np.sort(-cosines, axis=1)[2:, :6]
    np.testing.assert_allclose(np.take_along_axis(cosines, nearest, axis=1)[2:], expected, atol=1e-5)


def _ids(content: dict[str, Any]) -> np.ndarray:
    return np.array(content["examples"]["ids"])


def test_of_many_components_an_example_keeps_its_strongest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coar_dist.report.page.examples._WEIGHT_BYTES", 30 * 4 * 6)
    monkeypatch.setattr("coar_dist.report.page.components.MAX_COMPONENTS", 10)
    run = reported(tmp_path / "run", 30)
    content, weights = content_of(run), run.weights()
    shown = content["examples"]
    ids = unpacked(shown["components"]).reshape(30, -1).astype(int)
    np.testing.assert_array_equal(ids, np.argsort(-np.abs(weights), axis=1, kind="stable")[:, :6])
    kept = unpacked(shown["weights"]).reshape(30, -1)
    np.testing.assert_allclose(kept, np.take_along_axis(weights, ids, axis=1), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(unpacked(shown["whole"]), run.intercepts() + weights.sum(axis=1), rtol=1e-5)
    assert "The 10 strongest of 24 components" in page_of(run).read_text()


def test_attributions_are_read_once(images: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, int]] = []
    plain = AttributionTable.read_in_parts

    def count(self: AttributionTable, block: tuple[int, int]) -> Any:
        read.append(block)
        return plain(self, block)

    monkeypatch.setattr(AttributionTable, "read_in_parts", count)
    gather(images.directory, summarise(images.directory))
    assert read == images.directory.margins("train").blocks


@pytest.mark.parametrize("at_once", [64, 2**22])
def test_nearest_examples_are_among_all_of_them(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "_VALUES_AT_ONCE", at_once)
    random = np.random.default_rng(0)
    weights = random.normal(0.5, 1.0, (300, 8)).astype(np.float32)
    weights[299], weights[250], weights[77] = 3 * weights[4], weights[4], 0.0
    ids = np.array([4, 77, 120, 299])
    nearest, cosines = nearest_to(ids, weights)
    exact = weights.astype(np.float64)
    with np.errstate(invalid="ignore"):
        unit = np.nan_to_num(exact / np.linalg.norm(exact, axis=1, keepdims=True))
    of_all = unit[ids] @ unit.T
    of_all[np.arange(4), ids] = -np.inf
    np.testing.assert_allclose(cosines, -np.sort(-of_all, axis=1)[:, :6], atol=1e-12)
    np.testing.assert_allclose(np.take_along_axis(of_all, nearest, axis=1), cosines, atol=1e-12)
    assert set(nearest[0, :2].tolist()) == {250, 299}
    assert nearest[1].tolist() == [0, 1, 2, 3, 4, 5]
    assert set(nearest[3, :2].tolist()) == {4, 250}


def test_pictures_fill_what_the_rest_of_the_page_leaves(images: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    content = content_of(images)
    assert set(content["images"]) >= {str(i) for i in content["examples"]["ids"]}
    assert content["num_images"] == len(content["images"])
    found = gather(images.directory, summarise(images.directory))
    few = with_images(found, {}, 2000)
    assert 0 < len(few["images"]) < 30 < few["num_images"]
    assert list(few["images"]) == [str(i) for i in content["examples"]["ids"][: len(few["images"])]]


def test_a_page_without_room_says_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = synthetic_run(tmp_path / "run", 40, num_layers=5, per_layer=10)
    report(run)
    whole = len(page_of(Run(run)).read_bytes())
    monkeypatch.setattr("coar_dist.report.page.gather._FEW_WEIGHTS", 3)
    monkeypatch.setattr("coar_dist.report.page.gather.MAX_COMPARED", 7)
    monkeypatch.setattr("coar_dist.report.page.components.MAX_COMPARED", 7)
    monkeypatch.setattr("coar_dist.report.page.render._PAGE_BYTES", whole - 8_000)
    report(run)
    assert len(page_of(Run(run)).read_bytes()) < whole - 8_000
    content, weights = content_of(Run(run)), Run(run).weights()
    shown = content["components"]
    assert 7 <= shown["num"] < 50
    ids = unpacked(content["examples"]["components"]).reshape(40, -1).astype(int)
    assert 3 <= ids.shape[1] < 50
    np.testing.assert_array_equal(ids, np.argsort(-np.abs(weights), axis=1, kind="stable")[:, : ids.shape[1]])
    assert unpacked(shown["similar"]).max() < 7
    assert f"The {shown['num']} strongest of 50 components" in page_of(Run(run)).read_text()


def test_errors_of_the_model_are_counted() -> None:
    table = {"label": np.array([0, 0, 1, 2, np.nan]), "prediction": np.array([0, 1, 1, 0, 1])}
    found = confusion(table, {1: "one"})
    assert found is not None
    assert found["counts"] == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert (found["num"], found["wrong"], found["names"]) == (4, 2, ["0", "one", "2"])
    many = np.arange(60.0)
    pairs = confusion({"label": np.repeat(many, 2), "prediction": np.repeat(many, 2) + np.arange(120) % 2}, {})
    assert pairs is not None
    assert "counts" not in pairs
    assert pairs["wrong"] == 60
    assert pairs["pairs"][0] == (0, 1, 1)
    assert confusion({"label": np.full(3, np.nan), "prediction": np.zeros(3)}, {}) is None


def test_a_clustered_map_brings_together_what_is_alike() -> None:
    kinds = np.random.default_rng(0).standard_normal((3, 8))
    rows = np.array([0, 1, 2, 0, 1, 2, 0])
    order, columns = clustered(kinds[rows] + 0.01 * np.random.default_rng(1).standard_normal((7, 8)))
    assert np.count_nonzero(np.diff(rows[order])) == 2
    assert sorted(columns) == list(range(8))


def test_layers_and_numbers_are_mapped(images: Run) -> None:
    (grid,) = content_of(images)["maps"]["grids"]
    assert grid["ids"] == list(range(24))
    np.testing.assert_allclose(unpacked(grid["mean"]), images.weights().mean(axis=0, dtype=float), rtol=1e-4)


def test_shares_of_layers_are_means_over_examples(images: Run) -> None:
    weights = np.abs(images.weights()[2:].astype(np.float64))
    shares = weights.reshape(len(weights), 3, 8).sum(axis=2) / weights.sum(axis=1, keepdims=True)
    page = page_of(images).read_text()
    found = re.findall(r'class="n share" data-value="([^"]+)"', page)
    np.testing.assert_allclose(np.array(found, dtype=float), shares.mean(axis=0), rtol=1e-6)
    part = content_of(images)["maps"]["parameters"]["groupings"][0]
    labels = images.examples()["label"][2:]
    by_class = np.stack([shares[labels == label].mean(axis=0) for label in range(4)], axis=1)
    np.testing.assert_allclose(unpacked(part["shares"]).reshape(3, 4), by_class, rtol=1e-6)


@pytest.mark.parametrize(
    ("mean", "ceiling", "grade", "sentence", "judgement"),
    [
        (0.906, 0.909, "good", "correlation .91 of at most .91.", "more masks would add little"),
        (0.80, 0.90, "good", "correlation .80 of at most .90.", "more masks would add some"),
        (0.60, 0.90, "fair", "correlation .60 of at most .90.", "and not the order of weak ones"),
        (0.30, 0.60, "weak", "correlation .30 of at most .60.", "explains more than 36% of what ablations do"),
        (0.90, (0.85, 0.03), "good", "correlation .90 of at most .90.", "more masks would add little"),
        (
            0.79,
            (0.62, 0.6),
            "unknown",
            "correlation .79.",
            "by 60 held-out masks a linear model reaches between .79 and",
        ),
        (0.30, (0.60, 0.05), "weak", "correlation .30 of at most .60.", "explains more than 36% of what ablations do"),
        (0.50, (0.60, 0.2), "unknown", "correlation .50.", "between .50 and .99 at best"),
        (0.90, None, "unknown", "correlation .90.", "no ceiling of linear models: it is undefined on these masks"),
        (np.nan, 0.9, "unknown", "is undefined.", "design.ablation_fraction"),
    ],
)
def test_the_first_sentence_is_the_result(
    texts: Run, mean: float, ceiling: float | tuple[float, float] | None, grade: str, sentence: str, judgement: str
) -> None:
    summary = summarise(texts.directory)
    means = means_of(np.full((30, 2), mean))
    nothing = np.empty(0)
    of = None
    if ceiling is not None:
        known, error = ceiling if isinstance(ceiling, tuple) else (ceiling, np.nan)
        of = Ceiling(known, error, *[np.nan] * 4, nothing, 60, 0, "coar")
    method = replace(summary.methods[0], correlation=means)
    found = verdict_of(
        texts.directory, replace(summary, methods=[method], ceilings=dict.fromkeys(summary.held_out, of)), ""
    )
    assert found.grade == grade
    assert found.sentence.endswith(sentence)
    assert judgement in found.judgement


def test_findings_name_examples_that_never_change(images: Run, texts: Run) -> None:
    text = page_of(images).read_text()
    assert "the margins of 2 examples (0, 1) never change" in text
    assert "COAR: 4 correlations are undefined." in text
    assert "No file was damaged." in text
    assert "every example&#39;s margin changes" in page_of(texts).read_text()
    shown = content_of(images)["examples"]
    assert np.isnan(unpacked(shown["correlation"])[:2]).all()
    assert (unpacked(shown["weights"])[:48] == 0).all()


def test_a_run_in_which_nothing_ever_changes_has_a_page(tmp_path: Path) -> None:
    text = page_of(reported(tmp_path / "run", 6, num_constant=6)).read_text()
    assert "All weights are 0." in text
    assert "the margins of 6 examples (0, 1, 2, 3, 4, 5) never change" in text
    assert "How well COAR predicts new ablations is undefined." in text


def test_damaged_files_of_earlier_are_counted(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run", 10)
    run.storage.write("margins/train/0000000000-0000000010.parquet.damaged", b"x")
    report(run)
    text = page_of(Run(run)).read_text()
    assert "1 damaged or foreign files were set aside" in text
    assert "margins/train/0000000000-0000000010.parquet.damaged" in text


def test_names_and_texts_are_no_markup(texts: Run) -> None:
    text = page_of(texts).read_text()
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert content_of(texts)["tokens"]["3"] == list(f"{HOSTILE}text 3\nof a play".partition(" "))
    assert content_of(texts)["examples"]["excerpts"][3] == f"{HOSTILE}text 3\nof a play"


def test_the_worst_the_best_the_wrong_and_the_extreme_are_shown() -> None:
    random = np.random.default_rng(0)
    correlations = random.random(2000)
    correlations[7] = np.nan
    label = np.zeros(2000)
    prediction = np.where(np.arange(2000) % 400 == 399, 1.0, 0.0)
    weights = random.random((2000, 3), np.float32)
    weights[1001, 2], weights[1003, 0] = 5.0, -5.0
    statistics = ComponentSums.of(np.arange(2000), weights).statistics()
    chosen = choose({"label": label, "prediction": prediction}, correlations, statistics)
    assert len(chosen) == len(np.unique(chosen)) == MAX_SHOWN
    order = np.argsort(np.nan_to_num(correlations, nan=0.5))
    assert {*order[:80], *order[-80:], 7, 399, 799, 1001, 1003, 1199, 1599, 1999} <= set(chosen.tolist())
    np.testing.assert_array_equal(choose({"label": label, "prediction": prediction}, correlations, statistics), chosen)


def test_history_adds_up_stages_and_lists_warnings(tmp_path: Path) -> None:
    import logging

    run = synthetic_run(tmp_path / "run", 10)
    log = logging.getLogger("coar_dist.console.saying")
    with RunLog(local_storage(tmp_path / "run"), "ablate"):
        logging.getLogger("coar_dist").info("configuration: %s", json.dumps({"stages": ["ablate"], "task": None}))
        log.info("10 masks", extra={"stage": "ablate"})
        log.warning("a shard is [damaged]", extra={"stage": "ablate"})
        log.warning("an actor has died", extra={"stage": "fit", "actor": "actor-0"})
    run.storage.write("logs/1999.log", b"no json\n{}\n")
    entry = {"time": "2026-11-29T12:00:00.000+00:00", "level": "INFO", "logger": "x", "message": "m", "stage": "ablate"}
    messages = ({"message": f"configuration: {text}"} for text in ("{", '{"a": 1}'))
    entries = [{"time": "yesterday"}, {"time": 7}, *messages]
    foreign = "".join(json.dumps({**entry, **changes}) + "\n" for changes in entries)
    run.storage.write("logs/1998.log", foreign.encode())
    history = history_of(run)
    assert history.num_commands == 3
    assert history.num_unreadable == 2 + len(entries)
    assert history.stages["ablate"].said == ["10 masks"]
    assert [(stage, text) for _, stage, text in history.warnings] == [
        ("ablate", "a shard is [damaged]"),
        ("fit", "an actor has died"),
    ]
    assert history.configuration == {"stages": ["ablate"], "task": None}
    lines = [json.loads(line) for name in run.storage.files("logs") if "199" not in name for line in _lines(run, name)]
    times = [np.datetime64(line["time"][:-6]).astype("datetime64[ms]").astype(int) for line in lines]
    seconds = np.diff(np.maximum.accumulate(times)) / 1000
    np.testing.assert_allclose(history.stages["ablate"].seconds, seconds[:2].sum(), atol=1e-6)
    np.testing.assert_allclose(history.stages["fit"].seconds, seconds[2], atol=1e-6)


def log(run: RunDirectory, name: str, lines: Sequence[tuple[float, str, str]]) -> None:
    """Write a log of (seconds after noon, stage, text); the configuration stands before it."""
    entries = [
        {"time": f"2026-11-29T12:{at // 60:02.0f}:{at % 60:06.3f}+00:00", "message": said, "stage": stage}
        | {"level": "INFO", "logger": "coar_dist.console.saying"}
        for at, stage, said in [(0, "", 'configuration: {"stages": ["ablate"]}'), *lines]
    ]
    run.storage.write(f"logs/{name}.log", "".join(json.dumps(entry) + "\n" for entry in entries).encode())


def test_after_a_rerun_the_page_says_what_the_masks_have_cost(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run", 10)
    texts = {
        "1": "10 masks in 60.0 s (0.2 masks/s); 0 masks there already.",
        "2": "15 masks in 30.0 s (0.2 masks/s); 10 masks there already.",
        "3": "15 masks: all there already.",
    }
    for name, text in texts.items():
        log(run, name, [(60 // int(name), "ablate", text)])
    ablated = history_of(run).stages["ablate"]
    assert ablated.seconds == 90.0
    assert ablated.said == [texts["1"], texts["2"]]


def test_lines_out_of_order_cost_no_time_twice(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run", 10)
    log(run, "1", [(5.002, "ablate", "a"), (5.0, "fit", "b"), (4.9, "ablate", "c"), (7.5, "fit", "d")])
    stages = history_of(run).stages
    assert {name: round(of.seconds, 6) for name, of in stages.items()} == {"ablate": 5.002, "fit": 2.498}
    assert sum(of.seconds for of in stages.values()) == pytest.approx(7.5)


def test_what_a_stage_did_is_not_the_remark_that_follows(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run", 10)
    remark = "R2 of coar on new masks: not known. Held-out masks tell (evaluate stage)."
    curve = "budget curve of coar in 1,200.5 s."
    fitted = [(1, "fit", "attributions of 10 examples in 0.8 s:"), (2, "fit", remark)]
    log(
        run,
        "1",
        [
            *fitted,
            (3, "evaluate", "1 method in 2.0 s."),
            (4, "evaluate", curve),
            (5, "edit", "run/edits/a: edit.json."),
        ],
    )
    stages = history_of(run).stages
    assert stages["fit"].said == ["attributions of 10 examples in 0.8 s."]
    assert stages["evaluate"].said == ["1 method in 2.0 s; budget curve of coar in 1,200.5 s."]
    assert stages["edit"].said == ["run/edits/a: edit.json."]
    log(run, "3", [(9, "fit", "attributions of 10 examples:"), (10, "fit", remark)])
    again = history_of(run).stages["fit"]
    assert (again.said, again.seconds) == (["attributions of 10 examples in 0.8 s."], 2.0)  # nothing was fitted


def _lines(run: Any, name: str) -> list[bytes]:
    lines: list[bytes] = run.storage.read(f"logs/{name}").splitlines()
    return [line for line in lines if b"time" in line]
