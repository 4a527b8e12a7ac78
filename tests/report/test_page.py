"""The report page: what it says, against the API; that it needs nothing else; and what it does in a browser."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from selenium import webdriver
from selenium.webdriver.common.by import By

from coar_dist.api import Run
from coar_dist.config.schema import Config, RunConfig
from coar_dist.console.run_log import RunLog
from coar_dist.report.page.examples import MAX_SHOWN, choose
from coar_dist.report.page.history import history_of
from coar_dist.stages.pipeline import run_stages
from coar_dist.store.run_directory import RunDirectory
from tests.models import local_storage
from tests.report.browser import chromium, show
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
    return reported(tmp_path_factory.mktemp("page") / "images", 1100, num_constant=2)


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
    page = page_of(request.getfixturevalue(name))
    links = Links()
    links.feed(page.read_text())
    for link in links.found:
        assert link.startswith(("#", "data:image/")) or (page.parent / link).is_file(), link
    assert not {"link", "iframe", "object"} & set(links.tags)
    assert "@import" not in page.read_text()
    assert "{{" not in page.read_text().partition("<script")[0]
    assert "url(http" not in page.read_text()


def test_a_page_of_a_large_run_is_a_summary(images: Run, texts: Run) -> None:
    assert len(content_of(images)["examples"]) == MAX_SHOWN < 1100
    assert [example["id"] for example in content_of(texts)["examples"]] == list(range(10))
    assert "500 of 1,100 examples" in page_of(images).read_text()


def test_weights_predictions_and_galleries_are_those_of_the_run(images: Run) -> None:
    content = content_of(images)
    weights = images.weights()
    masks, margins = images.margins("evaluation_0.1")
    predicted = images.predict(masks)
    correlations = images.evaluation()["correlation"]
    for example in content["examples"][2:40]:
        i = example["id"]
        ids, values = np.array(example["weights"]).T
        order = np.argsort(-weights[i])
        np.testing.assert_array_equal(ids, [*order[:6], *order[-6:]])
        np.testing.assert_allclose(values, weights[i][ids.astype(int)], rtol=1e-3)
        np.testing.assert_allclose(example["predicted"], predicted[:, i], rtol=1e-3)
        np.testing.assert_allclose(example["true"], margins[:, i], rtol=1e-3)
        np.testing.assert_allclose(example["correlation"], correlations[i], rtol=1e-3)
        assert example["image"].startswith("data:image/png;base64,")
    pictured = {other["id"] for other in content["others"] if other["image"]} | {e["id"] for e in content["examples"]}
    assert len(content["galleries"]) == images.components.num_components
    for gallery in content["galleries"]:
        column = weights[:, gallery["component"]]
        order = np.argsort(-column, kind="stable")
        assert [i for i, _ in gallery["raised"]] == order[:5].tolist()
        assert [i for i, _ in gallery["lowered"]] == order[::-1][:5].tolist()
        assert {i for i, _ in (*gallery["raised"], *gallery["lowered"])} <= pictured


def test_shares_of_layers_are_means_over_examples(images: Run) -> None:
    weights = np.abs(images.weights()[2:].astype(np.float64))
    shares = weights.reshape(len(weights), 3, 8).sum(axis=2) / weights.sum(axis=1, keepdims=True)
    page = page_of(images).read_text()
    found = re.findall(r'class="n bar" data-value="([^"]+)"', page)
    np.testing.assert_allclose(np.array(found, dtype=float), shares.mean(axis=0), rtol=1e-6)


def test_findings_name_examples_that_never_change(images: Run, texts: Run) -> None:
    text = page_of(images).read_text()
    assert "the margins of 2 examples (0, 1) never change" in text
    assert "COAR: 4 correlations are undefined." in text
    assert "No file was damaged." in text
    assert "every example&#39;s margin changes" in page_of(texts).read_text()
    first = content_of(images)["examples"][0]
    assert first["correlation"] is None
    assert first["weights"] == []


def test_a_run_in_which_nothing_ever_changes_has_a_page(tmp_path: Path) -> None:
    text = page_of(reported(tmp_path / "run", 6, num_constant=6)).read_text()
    assert "All weights are 0." in text
    assert "the margins of 6 examples (0, 1, 2, 3, 4, 5) never change" in text
    assert ">undefined<" in text


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
    assert content_of(texts)["examples"][3]["excerpt"] == f"{HOSTILE}text 3\nof a play"


def test_the_worst_the_best_and_the_wrong_are_shown() -> None:
    random = np.random.default_rng(0)
    correlations = random.random(2000)
    correlations[7] = np.nan
    label = np.zeros(2000)
    prediction = np.where(np.arange(2000) % 400 == 399, 1.0, 0.0)
    chosen = choose({"label": label, "prediction": prediction}, correlations)
    assert len(chosen) == len(np.unique(chosen)) == MAX_SHOWN
    order = np.argsort(np.nan_to_num(correlations, nan=0.5))
    assert {*order[:80], *order[-80:], 7, 399, 799, 1199, 1599, 1999} <= set(chosen.tolist())
    np.testing.assert_array_equal(choose({"label": label, "prediction": prediction}, correlations), chosen)


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
    assert history.stages["ablate"].said == "10 masks"
    assert [(stage, text) for _, stage, text in history.warnings] == [
        ("ablate", "a shard is [damaged]"),
        ("fit", "an actor has died"),
    ]
    assert history.configuration == {"stages": ["ablate"], "task": None}
    lines = [json.loads(line) for name in run.storage.files("logs") if "199" not in name for line in _lines(run, name)]
    seconds = np.diff([np.datetime64(line["time"][:-6]).astype("datetime64[ms]").astype(int) for line in lines]) / 1000
    np.testing.assert_allclose(history.stages["ablate"].seconds, seconds[:2].sum(), atol=1e-6)
    np.testing.assert_allclose(history.stages["fit"].seconds, seconds[2], atol=1e-6)


def _lines(run: Any, name: str) -> list[bytes]:
    lines: list[bytes] = run.storage.read(f"logs/{name}").splitlines()
    return [line for line in lines if b"time" in line]


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with chromium() as opened:
        yield opened


def test_in_a_browser_nothing_goes_wrong_at_any_size(
    browser: webdriver.Chrome, images: Run, texts: Run, tmp_path: Path
) -> None:
    numbers = reported(tmp_path / "numbers", 12, kind="numbers")
    for run, width, scheme in (
        (images, 1200, "light"),
        (images, 390, "dark"),
        (texts, 390, "light"),
        (numbers, 800, "dark"),
    ):
        show(browser, page_of(run), width, scheme)
        browser.find_elements(By.CSS_SELECTOR, "button.example")[-1].click()
        assert browser.find_element(By.CSS_SELECTOR, "#detail h3").text.startswith("Example ")
        browser.find_element(By.CSS_SELECTOR, ".weights button").click()
        assert browser.find_elements(By.CSS_SELECTOR, "#gallery figure")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[scheme]
        assert browser.get_log("browser") == []


def test_tables_are_sorted_by_their_numbers(browser: webdriver.Chrome, images: Run) -> None:
    show(browser, page_of(images), 1200)
    head = "#layers thead th:nth-child(3)"
    column = "return [...document.querySelectorAll('#layers tbody td:nth-child(3)')].map(cell => +cell.dataset.value)"
    for direction, sign in (("ascending", 1), ("descending", -1)):
        browser.find_element(By.CSS_SELECTOR, f"{head} button").click()
        assert browser.find_element(By.CSS_SELECTOR, head).get_attribute("aria-sort") == direction
        values = np.array(browser.execute_script(column)) * sign
        assert (np.diff(values) > 0).all()


def test_examples_are_filtered_ordered_and_linked_to(browser: webdriver.Chrome, images: Run, texts: Run) -> None:
    examples = content_of(images)["examples"]
    show(browser, page_of(images), 1200)

    def set_to(name: str, value: str) -> list[int]:
        browser.execute_script(
            "const field = document.forms.filter.elements[arguments[0]]; field.value = arguments[1];"
            "field.dispatchEvent(new Event('input', {bubbles: true}))",
            name,
            value,
        )
        return [int(card.get_attribute("data-id")) for card in browser.find_elements(By.CSS_SELECTOR, "button.example")]

    wrong = [example for example in examples if example["label"] != example["prediction"]]
    assert set_to("right", "wrong") == [example["id"] for example in wrong][:36]
    assert f"{len(wrong)} of 500" in browser.find_element(By.NAME, "count").text
    of_class = [example["id"] for example in wrong if example["label"] == 2]
    assert set_to("label", "2") == of_class[:36]
    set_to("label", "")
    set_to("right", "")
    defined = [example for example in examples if example["correlation"] is not None]
    best = sorted(defined, key=lambda example: -example["correlation"])
    assert set_to("order", "best")[:20] == [example["id"] for example in best][:20]
    browser.find_element(By.CSS_SELECTOR, ".more").click()
    assert len(browser.find_elements(By.CSS_SELECTOR, "button.example")) == 72
    chosen = examples[100]["id"]
    assert set_to("text", str(chosen)) == [chosen]
    browser.find_element(By.CSS_SELECTOR, "button.example").click()
    link = browser.current_url
    assert link.endswith(f"#example-{chosen}")
    browser.get("about:blank")
    browser.get(link)
    assert browser.find_element(By.CSS_SELECTOR, "#detail h3").text == f"Example {chosen}"
    show(browser, page_of(texts), 1200)
    assert set_to("text", "TEXT 7") == [7]
    assert browser.get_log("browser") == []
