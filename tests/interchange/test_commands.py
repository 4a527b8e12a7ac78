"""``coar-dist import-research`` and ``export-research`` as a user types them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from coar_dist.api import open_run
from coar_dist.console.saying import Terminal
from coar_dist.errors import ConfigError, MissingWorkError, UsageError
from coar_dist.interchange.command import run_command
from coar_dist.interchange.ids import in_ranges, parse_ids
from tests.commands import run_forked
from tests.interchange.research import predict, regress, save, write_store
from tests.models import random_masks


def command(*arguments: str) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    return run_command(arguments[0], list(arguments[1:]), Terminal(console)), console.file.getvalue()  # type: ignore[attr-defined]


def problem(folder: Path, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    masks = random_masks(100, 8, alpha=0.1, seed=seed)
    margins = masks @ np.linspace(-1, 1, 8 * 5).reshape(8, 5) + 0.2 * random.normal(size=(100, 5)) + 3.0
    write_store(folder, masks, margins, "float32")
    return masks, margins.astype(np.float32)


def test_from_a_store_to_a_report_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    masks, margins = problem(tmp_path / "store", 0)
    problem(tmp_path / "held_out", 1)
    (tmp_path / "components.json").write_text(json.dumps({"conv1.weight": 3, "conv2.weight": 5}))
    code, text = command("import-research", "margins=store", "run.dir=run", "components=components.json")
    assert code == 0
    assert "100 masks of 8 components x 5 examples as design train; they ablate 0.0875 of the components." in text
    assert "Next: coar-dist 'stages=[fit]' run.dir=run" in text
    assert "all there already" in command("import-research", "margins=store", "run.dir=run")[1]
    held_out = ("import-research", "margins=held_out", "run.dir=run", "design=evaluation_0.1", "ablation_fraction=0.1")
    assert command(*held_out)[0] == 0

    weight, bias = regress(masks, margins)
    save(tmp_path / "theirs.pt", weight, bias)
    for units in ("store", "train"):
        name = f"method=research_{units}"
        assert command(
            "import-research", "attributions=theirs.pt", "run.dir=run", f"standardised_by={units}", name
        ) == (0, f"   import  research_{units} of 5 examples.\n")
    fitted = run_forked(tmp_path, "stages=[fit,evaluate,report]", "run.dir=run")
    assert fitted.returncode == 0, fitted.stderr
    for words in ("COAR", "research_store", "research_train", "imported", "8 components in 2 parameters"):
        assert words in fitted.stdout
    run = open_run("run")
    theirs = predict(weight, bias, masks, of=masks)
    for method in ("research_store", "research_train"):
        np.testing.assert_allclose(run.predict(masks, method=method), theirs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run.predict(masks), theirs, atol=0.2)

    code, text = command("export-research", "attributions=ours.pt", "run.dir=run", "dtype=float16")
    assert (code, text) == (0, "   export  coar of 5 examples in ours.pt.\n")
    assert torch.load("ours.pt")["weight"].dtype == torch.float16
    assert command("export-research", "margins=back", "run.dir=run", "name=val_margins", "dtype=float16")[0] == 0
    np.testing.assert_array_equal(np.load("back/val_margins.npy"), margins.astype(np.float16))
    np.testing.assert_array_equal(np.load("back/masks.npy"), masks)


def test_standardised_by_some_of_the_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The research code's ResNet-50 regression sees the first 50,000 of 100,000 masks."""
    monkeypatch.chdir(tmp_path)
    masks, margins = problem(tmp_path / "store", 0)
    weight, bias = regress(masks[:60], margins[:60])
    save(tmp_path / "theirs.pt", weight, bias)
    command("import-research", "margins=store", "run.dir=run")
    for units in ("store", "train"):
        arguments = ("attributions=theirs.pt", "run.dir=run", f"standardised_by={units}", f"method=research_{units}")
        command("import-research", *arguments, "num_masks=60")
        predicted = open_run("run").predict(masks, method=f"research_{units}")
        np.testing.assert_allclose(predicted, predict(weight, bias, masks, of=masks[:60]), rtol=1e-5, atol=1e-5)
        with pytest.raises((ConfigError, MissingWorkError), match="num_masks=101"):
            command("import-research", *arguments, "num_masks=101")


def test_standardised_by_a_fraction_or_by_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    masks, margins = problem(tmp_path / "store", 0)
    weight, bias = regress(masks, margins)
    save(tmp_path / "theirs.pt", weight, bias)
    command("import-research", "margins=store", "run.dir=run")
    arguments = ("import-research", "attributions=theirs.pt", "run.dir=run")
    assert command(*arguments, "standardised_by=0.1", "method=research_a")[0] == 0
    assert command(*arguments, "standardised_by=nothing", "method=research_b")[0] == 0
    run = open_run("run")
    by_fraction = (masks - 0.9) / 0.3 @ weight + bias
    np.testing.assert_allclose(run.predict(masks, method="research_a"), by_fraction, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run.predict(masks, method="research_b"), masks @ weight + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import-research", "margins=store", "run.dir=run", "rows=some"], "rows='some': must be one of all, complete"),
        (["import-research", "margins=store", "run.dir=run", "leave_out=a"], "leave_out='a': must be ids and ranges"),
        (["import-research", "margins=store", "run.dir=run", "ablation_fraction=x"], "must be a number"),
        (["import-research", "margins=store", "run.dir=run", "components=store"], "components='store' cannot be read"),
        (["import-research", "attributions=a.pt", "run.dir=run"], "does not say what its weights are standardised by"),
        (
            ["import-research", "attributions=a.pt", "run.dir=run", "standardised_by=x"],
            "must be a folder with masks.npy",
        ),
        (
            ["import-research", "attributions=a.pt", "run.dir=run", "standardised_by=0.1", "num_masks=5"],
            "num_masks=5 has no effect",
        ),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    masks, margins = problem(tmp_path / "store", 0)
    save(tmp_path / "a.pt", *regress(masks, margins))
    with pytest.raises(ConfigError, match=message):
        command(*arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import-research"], "margins=... or attributions=... is missing"),
        (["import-research", "margins=store"], "run.dir=... is missing"),
        (["import-research", "margins=store", "attributions=a.pt", "run.dir=run"], "are given: one of them says"),
        (["import-research", "margins=store", "run.dir=run", "metod=research"], "no argument is called metod"),
        (["import-research", "margins=store", "run.dir=run", "row=all"], "called row. Did you mean rows?"),
        (["export-research", "attributions=a.pt", "run.dir=run", "leave_out=1"], "no argument is called leave_out"),
    ],
)
def test_wrong_arguments_are_named_before_the_usage_of_what_is_asked_for(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        command(*arguments)
    first, _, usage = str(raised.value).partition("\n")
    assert message in first
    assert usage.startswith(f"usage: coar-dist {arguments[0]}")
    assert str(raised.value).count("\n") < 6


def test_the_command_line_shows_an_error_in_one_message(tmp_path: Path) -> None:
    result = run_forked(tmp_path, "import-research", "margins=nothing", "run.dir=run")
    assert result.returncode == 1
    assert "ForeignFileError: nothing is no margin store of the research code" in result.stderr
    assert "Traceback" not in result.stderr


def test_ids_as_text() -> None:
    assert parse_ids("leave_out", "3, 17-20") == [3, 17, 18, 19, 20]
    assert in_ranges(np.array([3, 17, 18, 19, 20, 22])) == "3, 17..20, 22"
    assert in_ranges(np.arange(0, 40, 2)) == "0, 2, 4, 6, 8, 10, 12, 14, 16, 18 and 10 more"
    with pytest.raises(ConfigError, match="leave_out='5-3'"):
        parse_ids("leave_out", "5-3")
