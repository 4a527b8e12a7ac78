"""Two runs side by side, against SciPy on all weights at once; and the page in a browser."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

import coar_dist
from coar_dist.api import Run
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.console.saying import Terminal
from coar_dist.designs.independent import Bernoulli
from coar_dist.errors import ConfigError, MissingWorkError, RunMismatchError, RunNotFoundError, StorageError, UsageError
from coar_dist.report.comparison import measure as measuring
from coar_dist.report.comparison.command import run_compare
from coar_dist.report.page import PAGE
from coar_dist.store.class_names import write_class_names
from coar_dist.store.examples import ExampleTable
from coar_dist.store.run_directory import TRAIN_DESIGN, RunDesign, RunDirectory
from coar_dist.store.tables import Attributions, AttributionTable
from tests.models import local_storage
from tests.report.browser import chromium, show

GROUPS = {"conv1": 7, "conv2": 11, "fc": 5}


def run_of(
    root: Path,
    weights: np.ndarray[Any, Any],
    groups: dict[str, int] = GROUPS,
    errors: np.ndarray[Any, Any] | None = None,
    block: int = 1024,
    method: str = "coar",
    seed: int = 0,
    labels: np.ndarray[Any, Any] | None = None,
    alpha: float = 0.1,
    **identity: Any,
) -> Run:
    """A run with these attributions, (num_examples, num_components)."""
    components = ComponentIndex(tuple(ComponentGroup.of(f"{name}.weight", 0, num) for name, num in groups.items()))
    whole = {
        "model.weights": "sha256:0123456789abcdef",
        "examples": "sha256:fedcba9876543210",
        "ablation.precision": "float32",
        "ablation.margins_dtype": "float32",
        "ablation.examples_per_block": block,
        **identity,
    }
    run = RunDirectory.create(local_storage(root), whole, components, len(weights))
    run.set_designs({TRAIN_DESIGN: RunDesign("train", Bernoulli(components.num_components, 50, alpha, seed))})
    for first, end in run.margins(TRAIN_DESIGN).blocks:
        nothing = np.full(end - first, np.nan)
        of_block = None if errors is None else errors[first:end].astype(np.float32)
        found = Attributions(
            weights[first:end].astype(np.float32), np.zeros(end - first), *[nothing] * 4, standard_errors=of_block
        )
        AttributionTable(run, method).write((first, end), {}, found)
    classes = np.arange(len(weights)) % 3 if labels is None else labels
    ExampleTable(run).write(classes, classes, np.zeros(len(weights), np.float32))
    return Run(run)


def random_weights(num_examples: int, seed: int = 0, offset: float = 0.0) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(seed)
    return (random.normal(size=(num_examples, 23)) + offset).astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_all_that_scipy_says_of_all_weights_at_once(
    tmp_path: Path, offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_MOST_VALUES", 23 * 10)
    first = random_weights(61, 0, offset)
    second = (0.6 * first + 0.5 * random_weights(61, 1)).astype(np.float32).astype(np.float64)
    second[:, 3] = np.round(second[:, 3])  # ties
    errors = np.random.default_rng(2).uniform(0.1, 0.4, (2, 61, 23)).astype(np.float32)
    one = run_of(tmp_path / "one", first, errors=errors[0], block=16)
    other = run_of(tmp_path / "other", second, errors=errors[1], block=25, seed=5)
    found = coar_dist.compare(one, other)
    examples, components = found.examples, found.components
    difference, z = first - second, (first - second) / np.hypot(*errors.astype(np.float64))
    for i in range(61):
        row = examples.loc[i]
        assert row.pearson == pytest.approx(stats.pearsonr(first[i], second[i]).statistic, abs=1e-9)
        assert row.spearman == pytest.approx(stats.spearmanr(first[i], second[i]).statistic, abs=1e-9)
        strongest = [set(np.argsort(-np.abs(each[i]))[:10]) for each in (first, second)]
        assert row.top_10 == len(strongest[0] & strongest[1])
        assert row.size_one == pytest.approx(np.sqrt((first[i] ** 2).mean()))
        assert row.difference == pytest.approx(np.sqrt((difference[i] ** 2).mean()))
        assert row.beyond == pytest.approx((np.abs(z[i]) > 1.96).mean())
    for j, name in enumerate(one.names):
        row = components.loc[name]
        assert row.mean_one == pytest.approx(first[:, j].mean())
        assert row.mean_difference == pytest.approx(difference[:, j].mean(), rel=1e-9, abs=1e-12)
        assert row.spread == pytest.approx(difference[:, j].std(ddof=1), rel=1e-9)
        assert row.standard_error == pytest.approx(np.hypot(*errors.astype(np.float64))[:, j].mean(), rel=1e-6)
        assert row.pearson == pytest.approx(stats.pearsonr(first[:, j], second[:, j]).statistic, abs=1e-9)
    order = np.argsort(-np.abs(z), axis=None)[:100]
    rows, columns = np.unravel_index(order, z.shape)
    assert found.largest.example_id.tolist() == rows.tolist()
    assert found.largest.name.tolist() == [one.names[j] for j in columns]
    np.testing.assert_allclose(found.largest.z, z[rows, columns], rtol=1e-6)
    np.testing.assert_allclose(found.largest.difference, difference[rows, columns], rtol=1e-6)
    shown = f"{examples.spearman.mean():.3f}".replace("0.", ".", 1)
    assert f"Weights of one and other have a mean rank correlation of {shown} per example (" in found.summary
    assert "over 61 examples and 23 components" in found.summary
    assert (found.notes, found.warnings) == ([], [])
    assert repr(found).splitlines()[1:] == ["Columns: one is one; other is other."]
    assert {"ablation.examples_per_block", "train.seed", "run"} == set(found.differences.index)


def test_components_are_matched_by_name_whatever_their_order(tmp_path: Path) -> None:
    first = random_weights(30)
    order = [*range(18, 23), *range(7)]  # fc, then conv1; no conv2
    second = np.concatenate([first[:, order] * 2, random_weights(30, 7)[:, :2]], axis=1)
    one = run_of(tmp_path / "one", first)
    other = run_of(tmp_path / "other", second, {"fc": 5, "conv1": 7, "late": 2})
    found = coar_dist.compare(one, other)
    assert found.components.index.tolist() == [name for name in one.names if not name.startswith("conv2")]
    np.testing.assert_allclose(found.examples.pearson, 1.0)
    np.testing.assert_allclose(found.components.mean_other, 2 * found.components.mean_one, rtol=1e-5)
    assert found.only_one == [f"conv2[{i}]" for i in range(11)]
    assert found.only_other == ["late[0]", "late[1]"]
    assert "only one has them: 11 components, conv2[0], conv2[1]" in found.notes[0]
    assert "only other has them: 2 components, late[0], late[1]." in found.notes[1]
    back = coar_dist.compare(other, one)
    np.testing.assert_allclose(
        back.components.mean_difference[found.components.index], -found.components.mean_difference
    )
    assert "z" not in found.largest.columns
    assert "standard_error" not in found.components.columns


def test_what_is_constant_or_not_finite_never_passes_for_a_correlation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = random_weights(30), random_weights(30, 1)
    first[3] = 0.25
    second[:, 5] = 2.0
    second[4] = 0.0
    one, other = run_of(tmp_path / "one", first), run_of(tmp_path / "other", second)
    weights = Run.weights

    def with_nan(self: Run, example_ids: Any = None, method: Any = None) -> Any:
        found = weights(self, example_ids, method)
        if self.path.endswith("other"):
            found[np.asarray(example_ids) == 6, 2] = np.nan
            found[np.asarray(example_ids) == 7, 0] = np.inf
        return found

    monkeypatch.setattr(Run, "weights", with_nan)
    found = coar_dist.compare(one, other)
    assert np.flatnonzero(found.examples.spearman.isna()).tolist() == [3, 4, 6, 7]
    assert np.flatnonzero(found.examples.pearson.isna()).tolist() == [3, 4, 6, 7]
    assert not found.components.pearson.isna().any()
    others = np.setdiff1d(np.arange(30), 4)
    of_others = coar_dist.compare(one, other, examples=others).components.pearson
    assert of_others.index[of_others.isna()].tolist() == ["conv1[5]"]
    known = np.setdiff1d(np.arange(30), [6, 7])
    np.testing.assert_allclose(found.components.mean_one, first[known].mean(axis=0), rtol=1e-5, atol=1e-7)
    assert np.isfinite(found.largest.difference).all()
    assert found.notes[-1].startswith("4 examples without a correlation")
    mean = found.examples.spearman.mean()
    assert f"{mean:.3f}".replace("0.", ".", 1).replace("-.", "-.") in found.summary
    constant = run_of(tmp_path / "constant", np.zeros((30, 23)))
    assert "the rank correlation of no example is defined" in coar_dist.compare(one, constant).summary


def test_examples_are_matched_by_id(tmp_path: Path) -> None:
    first, second = random_weights(40), random_weights(40, 1)
    one, other = run_of(tmp_path / "one", first), run_of(tmp_path / "other", second[:30], examples="sha256:abc")
    with pytest.raises(
        RunMismatchError, match=r"one has 40 examples, and .*other has 30, 30 .* same ids.*examples=0-29"
    ):
        coar_dist.compare(one, other)
    for found in (
        coar_dist.compare(one, other, examples="0-29"),
        coar_dist.compare(one[:30], other),
        coar_dist.compare(one[np.arange(30)[::-1]], tmp_path / "other"),
    ):
        assert found.examples.index.tolist() == list(range(30))
        assert found.examples.pearson[7] == pytest.approx(stats.pearsonr(first[7], second[7]).statistic, abs=1e-6)
        assert "are not the same data" in found.warnings[0]
    with pytest.raises(RunMismatchError, match="none of them with the same id"):
        coar_dist.compare(one[35:], other)
    with pytest.raises(ConfigError, match=r"examples names example 40, but .*one has examples 0\.\.39"):
        coar_dist.compare(one, other, examples=[3, 40])
    labels = np.arange(40) % 3
    labels[11] += 1
    relabelled = run_of(tmp_path / "relabelled", second, labels=labels, examples="sha256:abc")
    with pytest.raises(RunMismatchError, match="the labels of 1 of 40 examples differ, the first of them 11"):
        coar_dist.compare(one, relabelled)


def test_what_makes_weights_those_of_other_questions_is_warned_of(tmp_path: Path) -> None:
    weights, terms = random_weights(30), {"output_function": "margin", "ablation.value": "mean"}
    one = run_of(tmp_path / "one", weights, **terms)
    assert coar_dist.compare(one, run_of(tmp_path / "same", weights, seed=3, **terms)).warnings == []
    for changed, said in (
        ({"output_function": "logit:3"}, "The output functions differ: margin of one, logit:3 of other"),
        ({"ablation.value": "zero"}, "replaced by differs: mean activations in one, activations zero in other."),
        ({"ablation.reference": "sha256:1"}, "mean activations in other, but not the same ones: ablation.reference."),
        ({"examples": "sha256:1"}, "The examples are not the same data"),
        ({"alpha": 0.25}, "Masks ablate 0.1 of the components in one and 0.25 in other"),
    ):
        root = tmp_path / said[:20] / "other"
        found = coar_dist.compare(one, run_of(root, weights + 1, **{**terms, **changed}))
        assert len(found.warnings) == 1
        assert said in found.warnings[0]
        assert f"Warning: {found.warnings[0]}" in repr(found)
        printed = io.StringIO()
        arguments = [f"run.dir={one.path}", f"other={root}", f"page={tmp_path / 'page.html'}"]
        run_compare(arguments, Terminal(Console(file=printed, width=300)))
        assert found.warnings[0] in printed.getvalue()
        page = (tmp_path / "page.html").read_text()
        assert page.index('<div class="warning"') < page.index('<p class="sentence">')


def test_components_are_held_against_each_other_before_examples(tmp_path: Path) -> None:
    one = run_of(tmp_path / "one", random_weights(30))
    other = run_of(tmp_path / "other", random_weights(20), {"a": 20, "b": 3})
    with pytest.raises(ConfigError, match="matched by name"):
        coar_dist.compare(one, other)


def test_two_methods_of_a_run_share_their_masks(tmp_path: Path) -> None:
    first, errors = random_weights(30), np.full((30, 23), 0.1)
    run = run_of(tmp_path / "run", first, errors=errors)
    run_of(tmp_path / "run", 8 * first, errors=errors, method="coar_lasso")
    found = coar_dist.compare(run, run, methods=("coar", "coar_lasso"))
    assert found.names == ("COAR", "COAR, lasso")
    assert found.differences.index.tolist() == ["method"]
    assert [note.split(",")[0] for note in found.notes] == [
        "Both are of the same masks",
        "Weights of COAR are 0.125 times the size of the other's (median over examples)",
    ]
    assert coar_dist.compare(run, run.by_method("coar_lasso")).names == found.names
    assert coar_dist.compare(tmp_path / "run", methods=("coar", "coar_lasso")).names == found.names
    for methods in (None, "coar", ("coar", "coar")):
        with pytest.raises(ConfigError, match="b is missing: another run, or two methods"):
            coar_dist.compare(run, methods=methods)
    with pytest.raises(ConfigError, match=r"b=array\(.*\.\.\.: must be a run") as raised:
        coar_dist.compare(run, first)
    assert len(str(raised.value)) < 200
    with pytest.raises(MissingWorkError, match=r"no attributions of 'gradient_ridge'.*coar, coar_lasso"):
        run.by_method("gradient_ridge")
    with pytest.raises(ConfigError, match=r"both sides are coar of .*Name two methods"):
        coar_dist.compare(run, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"methods=nothing: .*run has coar, coar_lasso\."):
        coar_dist.compare(run, run, methods=("coar", "nothing"))
    with pytest.raises(ConfigError, match="name one of both sides, or one of each"):
        coar_dist.compare(run, run, methods=("coar", "coar_lasso", "coar"))


def test_what_cannot_be_compared_is_one_message(tmp_path: Path) -> None:
    one = run_of(tmp_path / "one", random_weights(5))
    other = run_of(tmp_path / "other", random_weights(5), {"a": 20, "b": 3})
    with pytest.raises(ConfigError, match=r"no component of .*conv1\[0\].*a\[0\].*matched by name"):
        coar_dist.compare(one, other)
    with pytest.raises(RunNotFoundError):
        coar_dist.compare(one, tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    two = run_of(tmp_path / "two", random_weights(5, 1))
    with pytest.raises(StorageError, match="cannot be written"):
        coar_dist.compare(one, two).write_report(tmp_path / "file" / "page.html")
    with pytest.raises(StorageError, match="one cannot be written: it is a folder"):
        run_compare(["run.dir=nothing", "other=nothing", f"page={tmp_path / 'one'}"], Terminal(Console(quiet=True)))
    comparison = coar_dist.compare(one, two)
    (tmp_path / "page.largest.csv").write_text("mine")
    (tmp_path / "mine.html").write_text("<!doctype html>")
    inside = Path(one.path)
    before = {file: file.read_bytes() for file in inside.rglob("*") if file.is_file()}
    for path, message in (
        (inside / "run.json", "run.json is no name of a page: let it end in .html"),
        (inside / "attributions" / "page.html", "among the files of a run: name one in .*one/report, or elsewhere"),
        (tmp_path / "mine.html", "mine.html is there already, and of no comparison"),
        (tmp_path / "page.html", "page.largest.csv is there already, and of no comparison"),
    ):
        with pytest.raises(StorageError, match=message):
            comparison.write_report(path)
    assert {file: file.read_bytes() for file in inside.rglob("*") if file.is_file()} == before
    assert (tmp_path / "page.largest.csv").read_text() == "mine"
    for _ in range(2):  # its own page is written again
        assert comparison.write_report(inside / "report" / "other.html").exists()


HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("comparison")
    first, errors = random_weights(2100), np.full((2100, 23), 0.3)
    first[5] = 0.0
    groups = {f"conv{HOSTILE}": 7, "conv2": 11, "fc": 5}
    named = run_of(root / f"one {HOSTILE[9:]}", first, groups, errors)
    write_class_names(named.directory, {0: "cat", 1: HOSTILE})
    run_of(root / "other", 0.5 * first + random_weights(2100, 1), groups, errors, seed=3)
    one = next(each for each in root.iterdir() if each.name.startswith("one"))
    (one / PAGE).parent.mkdir(exist_ok=True)
    (one / PAGE).write_text("the report")
    printed = io.StringIO()
    terminal = Terminal(Console(file=printed, width=200))
    code = run_compare([f"run.dir={one}", f"other={root / 'other'}", f"page={root / 'a' / 'page.html'}"], terminal)
    assert code == 0
    assert "  compare  Weights of one <img" in printed.getvalue()
    assert "the largest of 100 differences on the page:" in printed.getvalue()
    return root / "a" / "page.html"


def test_the_command_writes_the_page_and_whole_tables(page: Path) -> None:
    examples = pd.read_csv(page.with_suffix(".examples.csv"), index_col="example_id")
    assert len(examples) == 2100
    assert examples.spearman.isna().sum() == 1
    assert examples.columns.tolist()[:4] == ["label", "label_name", "prediction", "prediction_name"]
    assert examples.label_name.tolist()[:2] == ["cat", HOSTILE]
    components = pd.read_csv(page.with_suffix(".components.csv"), index_col="name")
    assert components.index[0] == f"conv{HOSTILE}[0]"
    assert len(pd.read_csv(page.with_suffix(".largest.csv"))) == 100
    text = page.read_text()
    assert len(text.encode()) < 1e6
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    content = json.loads(text.partition('id="content">')[2].partition("</script>")[0])
    assert len(content["examples"]["id"]) == 2000
    assert content["examples"]["id"][0] == 5  # without a correlation
    assert sum(content["histogram"]["counts"]) == 2099


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"^run\.dir=\.\.\. is missing"),
        (["run.dir=a"], r"^other=\.\.\. or methods=\[\.\.\.\] is missing: what to compare a with"),
        (["run.dir=a", "other=b", "method=coar"], r"^method=coar: no argument is called method\. Did you mean methods"),
    ],
)
def test_a_wrong_argument_of_the_command_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        run_compare(arguments, Terminal(Console(quiet=True)))
    assert "usage: coar-dist compare run.dir=... other=..." in str(raised.value)


def test_wrong_ids_of_the_command_are_named(tmp_path: Path) -> None:
    run_of(tmp_path / "run", random_weights(5))
    with pytest.raises(ConfigError, match="examples='x'"):
        run_compare([f"run.dir={tmp_path / 'run'}", "methods=[coar]", "examples=x"], Terminal(Console(quiet=True)))


def test_the_page_in_a_browser(page: Path) -> None:
    with chromium() as browser:
        for width in (1280, 768, 390):
            for scheme in ("light", "dark"):
                show(browser, page, width, scheme)
                wide = browser.execute_script("return document.documentElement.scrollWidth")
                assert wide <= width
                assert [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]] == []
        assert browser.execute_script("return document.querySelectorAll('#figures svg circle').length") == 23
        heads = browser.execute_script(
            "return [...document.querySelectorAll('#example-table th')].map(h => h.textContent)"
        )
        links = browser.execute_script("return [...document.querySelectorAll('a[href*=report]')].map(a => a.href)")
        reports = {unquote(urlsplit(link).path) for link in links}
        assert [Path(report).read_text() for report in reports] == ["the report"]  # the other run has none
        fragments = [unquote(urlsplit(link).fragment) for link in links]
        assert {"", f"component-conv{HOSTILE}[0]"} <= set(fragments)
        least = pd.read_csv(page.with_suffix(".examples.csv"), index_col="example_id").spearman.idxmin()
        assert f"example-{least}" in fragments
        assert heads[:5] == ["example", "class", "predicted", "rank r", "r"]
        assert heads[-1] == "beyond 1.96"

        def first(table: str) -> str:
            return str(browser.execute_script(f"return document.querySelector('#{table} tbody tr').textContent"))

        sizes = browser.execute_script(
            "return [...document.querySelectorAll('#component-table td.barred')].map(c => Math.abs(c.dataset.value))"
        )
        assert len(sizes) == 15
        assert sizes == sorted(sizes, reverse=True)
        components = pd.read_csv(page.with_suffix(".components.csv"))
        assert sizes[0] == pytest.approx(components.mean_difference.abs().max(), rel=1e-5)
        browser.execute_script("document.querySelector('#component-table th button').click()")
        assert first("component-table").startswith(f"conv{HOSTILE}[0]")
        browser.execute_script("document.querySelector('#component-table th button').click()")
        assert first("component-table").startswith("fc[4]")
        texts = browser.execute_script(
            """
            const texts = [];
            const make = URL.createObjectURL;
            URL.createObjectURL = blob => { texts.push(blob.text()); return make(blob); };
            HTMLAnchorElement.prototype.click = () => {};
            const buttons = [...document.querySelectorAll('.tools button.small')];
            for (const button of buttons) if (button.textContent === 'CSV') button.click();
            return Promise.all(texts);
            """
        )
        assert [len(text.splitlines()) for text in texts] == [2001, 24, 101, 3]
        for section in ("examples", "components", "largest", "runs"):
            browser.execute_script(f"location.hash = '#{section}'")
            top = browser.execute_script(f"return document.getElementById('{section}').getBoundingClientRect().top")
            assert -2 <= top < 900
