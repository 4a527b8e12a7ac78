"""The READMEs' own text: its Python runs, its commands and configurations compose, what it names is there."""

from __future__ import annotations

import ast
import importlib.util
import io
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from rich.console import Console

import coar_dist
from coar_dist.api import open_run
from coar_dist.app import checked_config, main
from coar_dist.config.checks import validate
from coar_dist.config.schema import Config
from coar_dist.errors import CoarDistError
from coar_dist.interchange.command import run_command
from coar_dist.stages.pipeline import run_stages
from tests.chaos import without_ray
from tests.models import small_task

REPOSITORY = Path(__file__).resolve().parent.parent
README = "\n".join(
    (REPOSITORY / folder / "README.md").read_text() for folder in ("", "deploy", "docker", "tests/benchmarks")
)
OWN_CONFIGURATION = "# @package _global_\n"


def blocks(language: str, section: str = "") -> list[str]:
    """The fenced blocks of a language, of the whole README or of one section."""
    text = README.partition(f"\n## {section}\n")[2].partition("\n## ")[0] if section else README
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Every simple command of the bash blocks, and of the prose where it is ``coar-dist ...``, in words."""
    inline = [text for text in re.findall(r"(?<!`)`([^`]+)`(?!`)", README) if re.match(r"coar-dist\s+\S", text)]
    found: list[list[str]] = []
    for text in [*blocks("bash"), *inline]:
        for line in text.replace("\\\n", " ").splitlines() if text not in inline else [" ".join(text.split())]:
            lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
            lexer.whitespace_split = True
            found.append([])
            for word in lexer:
                if set(word) <= set(";&|"):
                    found.append([])
                else:
                    found[-1].append(word)
    return [words for words in found if words]


def arguments_of(words: list[str]) -> list[str] | None:
    """What a command gives to ``coar-dist``; None if it runs something else."""
    if words[:2] == ["docker", "build"]:
        return None
    for i, word in enumerate(words):
        name = "coar-dist" if words[i - 2 : i + 1] == ["python", "-m", "coar_dist"] else word
        if name in ("coar-dist", "deploy/slurm.sh") or re.fullmatch("coar-dist:(cpu|cuda)", name):
            return [argument for argument in words[i + 1 :] if argument != "..."]
    return None


OURS = [(" ".join(words), arguments) for words in commands() if (arguments := arguments_of(words)) is not None]


@dataclass
class Ran:
    """What is left of the README's Python.

    Attributes:
        names: the namespace in which all blocks ran.
        values: of every expression that stands alone, by its source.
        folder: in which they ran.
    """

    names: dict[str, Any]
    values: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """All Python blocks, in order, in one namespace. ``runs/digits`` is the run that the first block makes."""
    folder, before = tmp_path_factory.mktemp("readme"), Path.cwd()
    names: dict[str, Any] = {"__name__": "__main__"}
    values: dict[str, Any] = {}
    os.chdir(folder)
    with without_ray():
        task = small_task(num_examples=8)
        columns = {"triggered": np.arange(8) % 2 == 1, "pair": np.arange(8) // 2}
        sizes: dict[str, Any] = {"num_masks": 60, "num_gradient_masks": 10, "ablation_fraction": 0.2}
        console, inputs = Console(file=io.StringIO()), (task.model, task.examples.inputs, task.examples.targets)
        coar_dist.attribute(*inputs, columns=columns, run_dir="runs/digits_backdoor", console=console, **sizes)
        Path("runs/digits").symlink_to("mine")
        for block in blocks("python"):
            for node in ast.parse(block).body:
                source = ast.get_source_segment(block, node)
                assert source is not None
                if isinstance(node, ast.Expr):
                    values[source] = eval(source, names)
                else:
                    exec(source, names)
    yield Ran(names, values, folder)
    os.chdir(before)


def test_what_the_comments_say_of_shapes_is_so(ran: Ran) -> None:
    said = re.findall(r"^(run\.\w+\(.*\)(?:\[.*\])?)  # \(([\w, ]+)\)", "\n".join(blocks("python")), re.MULTILINE)
    assert len(said) >= 5
    for source, shape in said:
        expected = tuple(int(size) for size in shape.replace("num_components", "48").strip(", ").split(","))
        assert ran.values[source].shape == expected, source


def result_of(ran: Ran, part: str) -> Any:
    (value,) = (value for source, value in ran.values.items() if part in source)
    return value


def test_query_which_components_matter_for_a_class(ran: Ran) -> None:
    run = open_run(ran.folder / "runs/digits")
    weights = run.weights(np.flatnonzero(run.examples()["label"] == 3), "coar").astype(np.float64).mean(axis=0)
    rows = result_of(ran, "where label = 3").fetchall()
    expected = np.argsort(-np.abs(weights))[:10]
    table = run.components.table()
    assert [row[:3] for row in rows] == [(i, table["parameter"][i], table["index"][i]) for i in expected]
    np.testing.assert_allclose([row[3] for row in rows], weights[expected], rtol=1e-6)


def test_query_which_examples_a_filter_helps(ran: Ran) -> None:
    run = open_run(ran.folder / "runs/digits")
    weights, examples = run.weights(method="coar")[:, 17], run.examples()
    found = result_of(ran, ".arr.get(17)")
    expected = np.argsort(-weights)[:10]
    for name, values in {**examples, "weight": weights}.items():
        if name in found.columns:
            np.testing.assert_array_equal(found[name].to_numpy(), values[expected], err_msg=name)
    assert found.columns == ["example_id", "label", "prediction", "weight"]


def test_query_which_layer_carries_the_backdoor(ran: Ran) -> None:
    run = open_run(ran.folder / "runs/digits_backdoor")
    triggered = run.examples()["triggered"]
    weights = run.weights(method="gradient_ridge").astype(np.float64)
    difference = weights[triggered].mean(axis=0) - weights[~triggered].mean(axis=0)
    of_layers = {group.module: difference[run.components.ids(group.parameter)].sum() for group in run.components.groups}
    rows = result_of(ran, "change_of_margin").fetchall()
    assert [module for module, _ in rows] == sorted(of_layers, key=of_layers.__getitem__)
    np.testing.assert_allclose([change for _, change in rows], sorted(of_layers.values()), rtol=1e-5)


@pytest.fixture
def composing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Hydra as the command has it, and a ``my_conf`` with the README's configurations as its experiments."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my_conf" / "experiment"
    folder.mkdir(parents=True)
    for i, block in enumerate(blocks("yaml")):
        text = block if block.startswith(OWN_CONFIGURATION) else OWN_CONFIGURATION + block
        (folder / ("mine.yaml" if i == 0 else f"mine_{i}.yaml")).write_text(text)
    GlobalHydra.instance().clear()
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        yield tmp_path


def composed(overrides: list[str]) -> Config:
    """The configuration of a command line, checked as the command does before any work."""
    if overrides[:1] == ["--config-dir"]:
        overrides = [f"hydra.searchpath=[file://{Path(overrides[1]).resolve()}]", *overrides[2:]]
    given = overrides if any(o.startswith("run.dir=") for o in overrides) else [*overrides, "run.dir=x"]
    own = [override for override in overrides if not override.startswith("hydra.")]
    config = checked_config(compose("config", given), own)
    validate(config)
    return config


@pytest.mark.parametrize(("line", "arguments"), OURS, ids=[line for line, _ in OURS])
def test_a_command_is_one_that_the_program_takes(
    line: str, arguments: list[str], composing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = [argument.replace("s3://", "").replace("/shared", "shared") for argument in arguments]
    if here[:1] == ["inspect"]:
        monkeypatch.setattr("sys.argv", ["coar-dist", *here])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1  # there is no such run; 2 would be the usage
    elif here[:1] in (["import-research"], ["export-research"]):
        with pytest.raises(CoarDistError):  # there is no such file; without an error it would be the usage
            run_command(here[0], here[1:], Console(file=io.StringIO()))
    elif here != ["--help"]:
        if "experiment=imagenet_resnet50" in here and "..." in line:
            here.append("task.examples.arguments.path=x")
        composed(here)


@pytest.mark.parametrize("number", range(len(blocks("yaml"))))
def test_a_configuration_composes(number: int, composing: Path) -> None:
    name = "mine" if number == 0 else f"mine_{number}"
    config = composed(["--config-dir", "my_conf", f"experiment={name}", "allow_code=[my_module]"])
    assert config.task.model.source in blocks("yaml")[number]


def test_functions_of_ones_own_take_part_by_their_names(composing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = "How to extend"
    *functions, _ = blocks("python", section)
    assert len(functions) == 4
    (composing / "mine.py").write_text("\n\n".join(functions))
    monkeypatch.syspath_prepend(str(composing))
    (line,) = (arguments for text, arguments in OURS if "=mine:" in text)
    assert all(f"mine:{name}" in " ".join(line) for name in re.findall(r"^def (\w+)", "\n".join(functions), re.M))
    small = ["task.examples.arguments.num_examples=20", "train.epochs=1", "train.minimum_accuracy=0"]
    small.append("train.examples.subset.first=64")
    masks = ["design.num_masks=250", "gradients.num_masks=10", "evaluation.ablation_fractions=[]", "baselines=[]"]
    config = composed([*line, *small, *masks, "stages=[train,ablate,fit]"])
    console = Console(file=io.StringIO(), width=200)
    with without_ray():
        run_stages(config, console)
    mine = importlib.import_module("mine")
    run = open_run(config.run.dir)
    design = run.directory.design("train")
    kept, margins = run.margins()
    np.testing.assert_array_equal(kept, [mine.neighbours(design, i) for i in range(250)])
    assert design.kind == "mine:neighbours"
    assert run.directory.identity["output_function"].startswith("mine:log_probability sha256:")
    assert (margins < 0).all()
    assert [group.parameter for group in run.components.groups] == ["0.weight", "2.weight"]
    assert "ridge, primal, mine:normal_equations" in console.file.getvalue()  # type: ignore[attr-defined]
    own = run.weights()
    config.regression.backend, config.stages = "torch", ["fit"]
    run_stages(config, console)
    np.testing.assert_allclose(own, open_run(config.run.dir).weights(), atol=1e-6 * np.abs(own).max())


def test_functions_of_ones_own_take_part_as_they_are(ran: Ran) -> None:
    run = open_run(ran.folder / "runs/extended_in_python")
    design = run.directory.design("train")
    assert design.kind == "__main__:neighbours"
    kept, margins = run.margins()
    np.testing.assert_array_equal(kept, [ran.names["neighbours"](design, i) for i in range(100)])
    assert (margins < 0).all()
    assert np.isfinite(run.weights()).all()


def test_what_the_readme_names_is_there() -> None:
    paths = re.findall(r"(?<![\w/.:])((?:deploy|docker|conf|coar_dist|tests)/[\w./*-]*\w)", README)
    assert len(paths) > 15
    missing = [path for path in paths if not list(REPOSITORY.glob(path))]
    assert not missing
    modules = re.findall(r"python -m (tests[\w.]*)", README)
    assert len(modules) > 4
    assert not [name for name in modules if importlib.util.find_spec(name) is None]
    for words in commands():
        if words[:2] == ["python", "-m"] and words[2].startswith("tests"):
            source = importlib.util.find_spec(words[2])
            path = REPOSITORY / words[2].replace(".", "/")
            code = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
            assert source is not None
            assert all(f'"{word}"' in code for word in words if word.startswith("--"))
    extras = {name for names in re.findall(r"'\.\[([\w,]+)\]'", README) for name in names.split(",")}
    declared = (REPOSITORY / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    assert extras
    assert all(re.search(rf"^{name} = \[", declared, re.M) for name in extras)


def test_no_language_of_the_readme_is_left_untested() -> None:
    assert set(re.findall(r"^```(\w+)$", README, re.M)) == {"bash", "python", "yaml"}
