"""The report page in Chromium: every kind of link, what can be ticked, sorted and downloaded, at three widths and in
both themes, without a word on the console."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from coar_dist.api import Run
from coar_dist.report.page.encoding import unpacked
from coar_dist.report.page.gather import gather
from coar_dist.report.summary import summarise
from coar_dist.store.circuits import MAGNITUDE, SCORES, SIGNED, CircuitScores, CircuitTable
from coar_dist.store.class_names import write_class_names
from coar_dist.store.examples import TOKEN_END
from coar_dist.store.responses import Response, Responses, ResponseTable
from tests.report.browser import chromium, show
from tests.report.synthetic import synthetic_run
from tests.report.test_page import HOSTILE, content_of, page_of, report

N = 40
_values = np.random.default_rng(0).standard_normal
RESPONSES = {
    3: Responses(_values((3, 3, 3)).astype(np.float16), (Response(7, 2.5, _values((4, 5)).astype(np.float32)),)),
    4: Responses(
        None,
        (
            Response(8, 2.5, _values(6).astype(np.float32), 2, np.full((4, 4), 0.25, np.float32)),
            Response(9, 1.5, np.array(1.5, np.float32)),
        ),
    ),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Images of 4 classes and 2 sites; names have markup, quotes and a slash in them."""
    root, columns = tmp_path_factory.mktemp("browser") / "run", {"site": 7 + np.arange(N) % 2}
    run = Run(synthetic_run(root, N, hostile=f"{HOSTILE}'\"/% é", columns=columns, has_errors=True))
    ResponseTable(run.directory).write((0, 24), RESPONSES)
    write_class_names(run.directory, {0: "tabby cat", 2: "wolf"})
    circuits = {"coar": dict.fromkeys(SCORES, 0.75), "random": dict.fromkeys(SCORES, 0.25)}
    sizes, faithful = np.array([0.0, 0.25, 1.0]), np.array([0.0, 0.95, 1.0])
    curves = {(method, ranking): faithful for method in circuits for ranking in (SIGNED, MAGNITUDE)}
    found = CircuitScores(sizes, np.array([0, 6, 24]), 1.0, 0.0, None, (3, 4), circuits, curves, curves)
    CircuitTable(run.directory).write(found, {}, ["coar"])
    report(run.directory)
    return run


def find(browser: webdriver.Chrome, selector: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, selector)


def click(browser: webdriver.Chrome, selector: str) -> str:
    """Clicks an element as a script does, wherever it is; returns the address without the file."""
    browser.execute_script(
        "const at = document.querySelector(arguments[0]);"
        "at.dispatchEvent(new MouseEvent('click', {bubbles: true, cancelable: true, view: window}))",
        selector,
    )
    time.sleep(0.05)
    return browser.current_url.partition("#")[2]


def title(browser: webdriver.Chrome) -> str:
    return find(browser, "#view h1").text


def is_at(browser: webdriver.Chrome, name: str) -> bool:
    """Whether a part of the page is shown with its beginning in sight, below the bar."""
    top, bar, height, left = browser.execute_script(
        "return [document.getElementById(arguments[0]).getBoundingClientRect().top,"
        "document.querySelector('header nav').getBoundingClientRect().bottom, innerHeight,"
        "document.documentElement.scrollHeight - innerHeight - scrollY]",
        name,
    )
    return bool(bar - 2 <= top < height / 2 or (left < 2 and top < height))


@pytest.mark.parametrize("width", [390, 900, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_fits_at_any_width_in_both_themes(
    browser: webdriver.Chrome, run: Run, width: int, scheme: str
) -> None:
    show(browser, page_of(run), width, scheme)
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[scheme]
    for place in ("quality", "run", "example-3", f"component-{quote(run.components.name_of(3))}"):
        browser.execute_script("location.hash = arguments[0]", place)
        time.sleep(0.05)
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width, place
        sizes = "svg => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width"
        scales = browser.execute_script(f"return [...document.querySelectorAll('figure svg')].map({sizes})")
        assert [scale for scale in scales if 0 < scale < 0.999] == []  # where there is no room they scroll
    assert browser.get_log("browser") == []


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (900, "light"), (1400, "dark")])
def test_every_kind_of_link_lands_where_it_points(browser: webdriver.Chrome, run: Run, width: int, scheme: str) -> None:
    show(browser, page_of(run), width, scheme)
    names = run.components.names()

    def fits() -> None:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width

    for name in ("components", "examples", "maps", "circuits", "quality", "run", "result"):
        assert click(browser, f"header nav a[href='#{name}']") == name
        assert is_at(browser, name), name
        fits()
    assert click(browser, ".judgement a") == "quality"
    assert find(browser, "#quality details").get_attribute("open") is not None
    for link in (
        "#strongest td a",
        "#strongest .thumb",
        "#component-table tbody a",
        "#list a.card",
        "#grids svg a",
        "#by-group svg a",
    ):
        browser.get(f"file://{page_of(run)}#maps")
        place = click(browser, link)
        kind, _, name = place.partition("-")
        if kind == "component":
            assert unquote(name) in names
            assert place == f"component-{quote(unquote(name), safe='!~*()' + chr(39))}"
            assert title(browser) == unquote(name)
        else:
            assert title(browser) == f"Example {name}"
        fits()
        assert browser.execute_script("return scrollY") == 0
        browser.back()
        assert is_at(browser, "maps")
    assert click(browser, "#confusion svg a").startswith("examples:label=")
    assert is_at(browser, "examples")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#list .card")) >= 1
    assert all(card.text.count("taken for") == 1 for card in browser.find_elements(By.CSS_SELECTOR, "#list .card"))

    first = title_after(browser, run, f"component-{quote(names[5])}")
    assert first == names[5]
    for link in (".steps a:last-child", "td a", ".cards a.card", ".waterfall a", ".cards a.card", ".cards a.card"):
        before = title(browser)
        assert click(browser, f"#view {link}")
        after = title(browser)
        assert after != before
        browser.back()
        time.sleep(0.05)
        assert title(browser) == before
        browser.forward()
        time.sleep(0.05)
        assert title(browser) == after
        fits()
    assert click(browser, ".steps a") == "examples"
    assert is_at(browser, "examples")
    assert title_after(browser, run, "component-nothing") == "nothing"
    assert "The run has no component of this name." in find(browser, "#view").text
    assert title_after(browser, run, "component-block1.conv[3") == "block1.conv[3"
    near = [link.text for link in browser.find_elements(By.CSS_SELECTOR, "#view .names a")]
    assert near[0] == names[11]
    assert set(near) <= set(names)
    assert title_after(browser, run, "component-17") == names[17]
    assert title_after(browser, run, "component-50%25 of%20all %") == "50% of all %"
    assert title_after(browser, run, "example-4000") == "Example 4000"
    assert "from 0 to 39" in find(browser, "#view").text
    assert title_after(browser, run, "example-abc") == "Example abc"
    assert "The run has no such example" in find(browser, "#view").text
    assert title_after(browser, run, "component-%E0%A4%A") == "%E0%A4%A"
    assert browser.get_log("browser") == []


def title_after(browser: webdriver.Chrome, run: Run, place: str) -> str:
    """Opens an address again."""
    browser.get("about:blank")
    browser.get(f"file://{page_of(run)}#{place}")
    return title(browser)


def enter(browser: webdriver.Chrome, selector: str, value: str, *events: str) -> None:
    """Writes into a field, with the events that typing has."""
    browser.execute_script(
        "const field = document.querySelector(arguments[0]); field.value = arguments[1];"
        "for (const name of arguments[2]) field.dispatchEvent(new Event(name, {bubbles: true}))",
        *(selector, value, ["input", *events]),
    )


def error_of(run: Run, example_id: int, size: float) -> float:
    """What the page says of a prediction that ablates weights of that sum."""
    found = gather(run.directory, summarise(run.directory)).examples.by_size
    error = float(found.scales[example_id] * np.interp(size, found.sizes, found.errors))
    assert 0.1 < error < 2
    return error


def test_what_is_ticked_off_is_predicted_with_its_measured_error(browser: webdriver.Chrome, run: Run) -> None:
    show(browser, page_of(run), 1400)
    title_after(browser, run, "example-7")
    weights, names = run.weights([7])[0].astype(float), run.components.names()
    two = np.argsort(-np.abs(weights))[:2]
    for component in two:
        click(browser, f".waterfall input[data-component='{component}']")
    said = find(browser, ".whatif .lead").text
    value = run.intercepts([7])[0] + weights.sum() - weights[two].sum()
    error = error_of(run, 7, np.abs(weights[two]).sum())
    assert said.startswith(f"Prediction: margin {value:.2f} ± {error:.2f}, ".replace("-", "−"))
    assert "Not measured" in find(browser, ".explain").text
    enter(browser, ".whatif input", names[int(np.argsort(-np.abs(weights))[15])])
    assert len(browser.find_elements(By.CSS_SELECTOR, ".chips button")) == 3
    click(browser, ".chips button")
    click(browser, ".steps a:last-child")  # what is off stays off on the next example
    assert len(browser.find_elements(By.CSS_SELECTOR, ".chips button")) == 2
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [390, 900, 1400])
def test_bars_show_what_is_ablated_and_the_prediction_stays_in_sight(
    browser: webdriver.Chrome, run: Run, width: int
) -> None:
    show(browser, page_of(run), width)
    title_after(browser, run, "example-7")
    weights = run.weights([7])[0].astype(float)
    strongest = np.argsort(-np.abs(weights))[:10]

    def shown() -> list[tuple[float, float, bool, str]]:
        """Of every bar where it begins and how long it is, in parts of the axis, whether it is marked, and the text."""
        rows = browser.execute_script(
            "return [...document.querySelectorAll('.waterfall > div:not([hidden], .base)')].map(row => {"
            "const bar = row.querySelectorAll('.track i')[1].style;"
            "return [parseFloat(bar.left), parseFloat(bar.width), row.classList.contains('off'), row.textContent]})"
        )
        return [tuple(row) for row in rows]

    before = shown()
    assert [row[2] for row in before] == [False] * 13
    tick = f".waterfall input[data-component='{strongest[0]}']"
    browser.execute_script("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", tick)
    click(browser, tick)
    after = shown()
    assert [row[2] for row in after] == [False, True, *[False] * 12]
    assert after[11][3].startswith("with 1 component ablated, predicted")
    base = [
        row.text.replace("−", "-").splitlines() for row in browser.find_elements(By.CSS_SELECTOR, ".waterfall .base")
    ]
    others = weights.sum() - weights[strongest].sum()
    assert [name for name, _ in base] == ["the linear model's intercept", "the other 14 components"]
    np.testing.assert_allclose([float(said) for _, said in base], [run.intercepts([7])[0], others], rtol=0.01)
    value = run.intercepts([7])[0] + weights.sum() - weights[strongest[0]]
    assert float(after[11][3].partition("predicted")[2].replace("−", "-")) == pytest.approx(value, abs=0.01)
    scale = after[2][1] / abs(weights[strongest[1]])
    for row, weight in zip(after[1:11], weights[strongest], strict=True):
        assert row[1] == pytest.approx(scale * abs(weight), rel=0.01)  # one scale for all
    second = min(0.0, weights[strongest[1]])
    assert after[2][0] - after[0][0] == pytest.approx(
        scale * second, abs=0.05
    )  # where the first began: it adds nothing
    top, bottom, height = browser.execute_script(
        "const box = document.querySelector('.whatif .lead').getBoundingClientRect();"
        "return [box.top, box.bottom, innerHeight]"
    )
    assert 0 <= top < bottom <= height
    assert browser.get_log("browser") == []


def test_what_is_typed_to_be_ablated_is_answered(browser: webdriver.Chrome, run: Run) -> None:
    show(browser, page_of(run), 1400)
    title_after(browser, run, "example-7")
    enter(browser, ".whatif input", "L99H7")
    assert find(browser, ".answer").text == "No component is called “L99H7”, and none is like it."
    enter(browser, ".whatif input", "block1.*")
    assert find(browser, ".answer").text.startswith("8 components: block1.")
    assert find(browser, ".answer").text.endswith("; Enter ablates them.")
    browser.execute_script("document.querySelector('form.ablate').requestSubmit()")
    assert len(browser.find_elements(By.CSS_SELECTOR, ".chips button")) == 8
    weights = run.weights([7])[0].astype(float)
    value = run.intercepts([7])[0] + weights.sum() - weights[8:16].sum()
    assert f"margin {value:.1f}".replace("-", "−") in find(browser, ".whatif .lead").text
    click(browser, ".ablate button:last-of-type")
    assert browser.find_elements(By.CSS_SELECTOR, ".chips button") == []
    assert browser.get_log("browser") == []


def test_names_win_over_patterns_and_nothing_is_ablated_by_chance(browser: webdriver.Chrome, tmp_path: Path) -> None:
    run = Run(synthetic_run(tmp_path / "run", 10, num_layers=2, per_layer=12, has_alone=True))
    report(run.directory)
    show(browser, page_of(run), 1400)
    title_after(browser, run, "example-3")
    one, other = (run.components.name_of(i) for i in (1, 10))

    def typed(text: str) -> str:
        browser.execute_script(
            "const field = document.querySelector('.whatif input'); field.value = arguments[0];"
            "field.dispatchEvent(new InputEvent('input', {bubbles: true, inputType: 'insertText'}))",
            text,
        )
        return find(browser, ".answer").text

    def ablated() -> int:
        return len(browser.find_elements(By.CSS_SELECTOR, ".chips button"))

    assert typed("conv") == "No component is called “conv”, and 24 names have it inside: *conv* is those."
    browser.execute_script("document.querySelector('form.ablate').requestSubmit()")
    assert ablated() == 0
    assert typed(f"{one}, {other}").startswith(f"2 components: {one}, {other}; Enter")
    assert ablated() == 0  # not before Enter: one may be the beginning of a longer name
    assert typed("*conv*").startswith("24 components: ")
    assert find(browser, ".ablate button").text == "Ablate 24"
    click(browser, ".ablate button")
    assert ablated() == 12
    assert "unknown error" in find(browser, ".whatif .lead").text
    assert "was not measured" in find(browser, ".explain aside").text
    last = browser.find_elements(By.CSS_SELECTOR, ".waterfall .base .n")[-1]
    assert last.text == "0"  # nothing is left of the others
    click(browser, ".ablate button:last-of-type")
    assert typed(one.upper()).startswith(f"1 component: {one};")
    browser.execute_script("document.querySelector('form.ablate').requestSubmit()")
    _, margins = run.margins("leave_one_out")
    assert margins.shape[0] == 24
    said = find(browser, ".whatif .lead.measured").text.replace("−", "-")
    assert float(said.split()[1].rstrip(",")) == pytest.approx(margins[1, 3], abs=0.06)
    assert "Not measured" not in find(browser, ".explain aside").text
    assert browser.get_log("browser") == []


def test_of_many_components_one_without_a_weight_here_is_named(
    browser: webdriver.Chrome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coar_dist.report.page.examples._WEIGHT_BYTES", 30 * 4 * 6)
    run = Run(synthetic_run(tmp_path / "run", 30))
    report(run.directory)
    show(browser, page_of(run), 900)
    title_after(browser, run, "example-4")
    weakest = run.components.name_of(int(np.argmin(np.abs(run.weights([4])[0]))))
    enter(browser, ".whatif input", weakest)
    said = f"The page holds no weight of this example for {weakest}: not among its 6 strongest."
    assert find(browser, ".answer").text == said
    assert browser.find_elements(By.CSS_SELECTOR, ".chips button") == []


def test_what_a_component_looks_at_is_drawn(browser: webdriver.Chrome, run: Run) -> None:
    looks = content_of(run)["looks"]
    assert set(looks) == {"3", "4"}
    for component_id, of in RESPONSES.items():
        for shown, response in zip(looks[str(component_id)]["examples"], of.examples, strict=True):
            assert (shown["id"], shown["strength"]) == (response.example_id, response.strength)
            found = unpacked(shown["activation"]).reshape(shown["activation"]["shape"])
            np.testing.assert_allclose(found, response.activation, atol=0.02 * np.abs(response.activation).max())
    show(browser, page_of(run), 900)
    title_after(browser, run, f"component-{quote(run.components.name_of(3))}")
    drawn = [
        len(of.find_elements(By.TAG_NAME, "svg")) for of in browser.find_elements(By.CSS_SELECTOR, ".looks figure")
    ]
    assert drawn == [1, 1, 1, 1]  # a kernel of three channels, and one example
    assert browser.find_elements(By.CSS_SELECTOR, ".looks .over img")
    title_after(browser, run, f"component-{quote(run.components.name_of(4))}")
    positions = [span.text.strip() for span in browser.find_elements(By.CSS_SELECTOR, ".looks .tokens span")]
    assert positions == ["2", "3", "4", "5", "6", "7"]
    assert len(browser.find_elements(By.CSS_SELECTOR, ".looks svg.cells")) == 1  # attention
    assert click(browser, ".looks figcaption a") == "example-8"
    assert browser.get_log("browser") == []


def test_components_are_found_sorted_and_grouped(browser: webdriver.Chrome, run: Run) -> None:
    show(browser, page_of(run), 1400)

    def set_to(form: str, name: str, value: str) -> None:
        enter(browser, f"#{form} [name={name}]", value)

    def column(number: int) -> list[str]:
        cells = browser.find_elements(By.CSS_SELECTOR, f"#component-table tbody td:nth-child({number})")
        return [cell.text for cell in cells]

    names = set(run.components.names())
    for asked, found in (
        ("block2.*", {name for name in names if name.startswith("block2.")}),
        ("*[?] conv block0", {name for name in names if name.startswith("block0.")}),  # words in any order
        ("*CONV[3]", {name for name in names if name.endswith("[3]")}),
        ("block1.*[1?]", set()),
        ("2 ÉCONV", {name for name in names if "block2" in name or name.endswith("[2]")}),  # a number is a whole one
        ("BLOCK1.", {name for name in names if name.startswith("block1.")}),
    ):
        set_to("component-filter", "text", asked)
        assert set(column(2)) == found, asked
        said = f"{len(found)} of 24" if found else "none of 24 is like that"
        assert find(browser, "#component-filter output").text == said
    assert "any order" in find(browser, "#component-find").text
    assert find(browser, "#component-filter input").get_attribute("placeholder").endswith("*")
    set_to("component-filter", "by", "0")
    heads = [head.text for head in browser.find_elements(By.CSS_SELECTOR, "#component-table thead th")]
    assert heads[7:11] == ["tabby cat", "class 1", "wolf", "class 3"]
    for sign in (-1, 1):
        click(browser, "#component-table thead th:nth-child(8) button")
        values = [float(text.replace("−", "-")) for text in column(8)]
        assert (sign * np.diff(values) >= 0).all()
    click(browser, "#components .tools .small:last-child")
    assert browser.get_log("browser") == []

    examples = run.examples()
    set_to("filter", "right", "wrong")
    wrong = np.flatnonzero(examples["label"] != examples["prediction"])
    shown = [
        card.get_attribute("href").rpartition("-")[2] for card in browser.find_elements(By.CSS_SELECTOR, "#list a")
    ]
    assert [int(i) for i in shown] == wrong.tolist()
    set_to("filter", "right", "")

    def listed() -> list[int]:
        cards = browser.find_elements(By.CSS_SELECTOR, "#list a.card")
        return [int(str(card.get_attribute("href")).rpartition("-")[2]) for card in cards]

    is_cat, is_wolf = ((examples["label"] == label) | (examples["prediction"] == label) for label in (0, 2))
    for asked, expected in (
        ("cat TABBY", np.flatnonzero(is_cat)),
        ('"tabby cat"', np.flatnonzero(is_cat)),
        ('"cat tabby"', np.empty(0)),
        (
            "wolf 8",
            np.flatnonzero(is_wolf & (examples["site"] == 8)),
        ),
        ("8", np.array([8, *np.setdiff1d(np.flatnonzero(examples["site"] == 8), [8])])),  # the id comes first
    ):
        set_to("filter", "text", asked)
        assert listed() == expected.tolist(), asked
    assert not find(browser, "#list").text.startswith("No example")
    set_to("filter", "text", "nothing like that")
    assert find(browser, "#list").text.startswith("No example is like that.")
    set_to("filter", "text", "Class 3")  # that class, and nothing else with a 3
    assert listed() == np.flatnonzero((examples["label"] == 3) | (examples["prediction"] == 3)).tolist()
    set_to("filter", "text", "")
    set_to("filter", "group2", "1")
    assert find(browser, "#filter output").text == f"{(examples['site'] == 8).sum()} of {N}"
    set_to("filter", "order", "best")
    best = int(find(browser, "#list a").get_attribute("href").rpartition("-")[2])
    correlations = np.where(examples["site"] == 8, run.evaluation()["correlation"], -2)
    assert best == int(np.argmax(correlations))


def test_tables_and_figures_are_downloaded(browser: webdriver.Chrome, run: Run, tmp_path: Path) -> None:
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    show(browser, page_of(run), 1400)
    tables = {table.get_attribute("data-name") for table in browser.find_elements(By.CSS_SELECTOR, "table")}
    titles = {button.get_attribute("title") for button in browser.find_elements(By.TAG_NAME, "button")}
    assert tables >= {"components", "strongest components", "correlations", "masks", "facts", "identity"}
    assert {f"Download this table: {name}" for name in tables} <= titles

    def downloaded(name: str) -> bytes:
        for _ in range(100):
            if (tmp_path / name).is_file():
                return (tmp_path / name).read_bytes()
            time.sleep(0.05)
        raise AssertionError(f"no {name} among {[path.name for path in tmp_path.iterdir()]}")

    click(browser, "button[title='Download this table: components']")
    rows = list(csv.reader(io.StringIO(downloaded("run-components.csv").decode())))
    weights = run.weights().astype(np.float64)
    assert rows[0][:3] == ["rank", "component", "mean effect"]
    order = [run.components.names().index(row[1]) for row in rows[1:]]
    np.testing.assert_allclose([float(row[2]) for row in rows[1:]], weights.mean(axis=0)[order], rtol=1e-4)
    click(browser, "button[title='Download this table: examples']")
    rows = list(csv.reader(io.StringIO(downloaded("run-examples.csv").decode())))
    assert rows[0][:6] == ["example", "class", "class name", "prediction", "prediction name", "margin"]
    examples, names = run.examples(), {0: "tabby cat", 2: "wolf"}
    assert [row[1:5] for row in rows[1:]] == [
        [str(label), names.get(label, ""), str(taken), names.get(taken, "")]
        for label, taken in zip(examples["label"].tolist(), examples["prediction"].tolist(), strict=True)
    ]
    click(browser, "button[title='Download this table: correlations']")
    rows = list(csv.reader(io.StringIO(downloaded("run-correlations.csv").decode())))
    assert float(rows[1][4]) == pytest.approx(run.evaluation("coar", "evaluation_0.1")["correlation"].mean())
    click(browser, "figure[data-name='figure1'] button[title^='Download']")
    svg = downloaded("run-figure1.svg").decode()
    assert svg.startswith("<svg")
    assert "var(" not in svg
    click(browser, "figure[data-name='figure1'] button:last-of-type")
    assert Image.open(io.BytesIO(downloaded("run-figure1.png"))).size[0] > 500
    assert browser.get_log("browser") == []


def test_a_run_without_classes_of_one_example_has_a_page(browser: webdriver.Chrome, tmp_path: Path) -> None:
    run = Run(synthetic_run(tmp_path / "run", 1, num_layers=1, per_layer=1, kind="numbers"))
    report(run.directory)
    show(browser, page_of(run), 390)
    for place in ("example-0", f"component-{quote(run.components.name_of(0))}", "maps"):
        browser.get(f"file://{page_of(run)}#{place}")
        time.sleep(0.05)
    assert content_of(run)["maps"]["confusion"] is None
    assert browser.get_log("browser") == []


def test_cards_of_a_regression_hold_what_the_model_says_against_the_target(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    targets = np.random.default_rng(1).standard_normal(12).astype(np.float32)
    made = synthetic_run(tmp_path / "run", 12, kind="numbers", columns={"target": targets}, output_function="value")
    run = Run(made)
    report(run.directory)
    show(browser, page_of(run), 900)
    error = run.examples()["margin"] - targets
    card = find(browser, "#list a.card[href='#example-3']").text.replace("−", "-").splitlines()
    assert [line.rpartition(" ")[0] for line in card] == ["example", "target", "the model says", "error", "r"]
    shown = [float(line.rpartition(" ")[2]) for line in card[1:4]]
    np.testing.assert_allclose(shown, [targets[3], run.examples()["margin"][3], error[3]], rtol=0.01)
    enter(browser, "#filter [name=order]", "error")
    first = find(browser, "#list a.card").get_attribute("href")
    assert str(first).endswith(f"-{np.argmax(np.abs(error))}")
    plain = Run(synthetic_run(tmp_path / "plain", 12, kind="numbers", output_function="mine:score"))
    report(plain.directory)
    show(browser, page_of(plain), 900)
    lines = find(browser, "#list a.card").text.splitlines()
    assert [line.split()[0] for line in lines] == ["example", "score", "predicted", "r"]
    assert "±" in lines[2]


def test_tokens_without_spaces_of_their_own_are_set_apart(browser: webdriver.Chrome, tmp_path: Path) -> None:
    texts = {"words": ["to", "be", "or", "not"], "pieces": ["to", " be", " or", " not"]}
    gaps = {}
    for name, tokens in texts.items():
        columns = {"tokens": np.array([TOKEN_END.join(tokens)] * 10)}
        run = Run(synthetic_run(tmp_path / name, 10, kind="texts", columns=columns))
        report(run.directory)
        show(browser, page_of(run), 900)
        title_after(browser, run, "example-4")
        browser.execute_script("document.querySelector('#view details').open = true")
        gaps[name] = browser.execute_script(
            "const [one, other] = document.querySelectorAll('#view .tokens span');"
            "return other.getBoundingClientRect().left - one.getBoundingClientRect().right"
        )
    assert gaps["words"] > 4
    assert gaps["pieces"] == pytest.approx(0, abs=0.5)


def test_circuits_are_on_the_first_screen(browser: webdriver.Chrome, run: Run) -> None:
    show(browser, page_of(run), 1400)
    said = "The 6 strongest components by COAR (25% of all) alone have a faithfulness of .950 (CPR .750; of random"
    first = find(browser, "#result").text
    assert said in first
    assert find(browser, "#result a[href='#circuits']").rect["y"] < 900
    rows = [row.text for row in browser.find_elements(By.CSS_SELECTOR, "#circuits tbody tr")]
    assert rows[0].split() == ["COAR", *[".750"] * 4]
    assert browser.find_elements(By.CSS_SELECTOR, "#circuits figure svg")
    assert f"{run.components.name_of(3)}, {run.components.name_of(4)}" in find(browser, "#circuits").text
