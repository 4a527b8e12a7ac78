"""The pages: their Python runs, their commands and configurations compose, what they name and link is there."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib.util
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
import transformers
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from rich.console import Console
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

import coar_dist
from coar_dist.api import open_run
from coar_dist.app import checked_config, main
from coar_dist.config.combinations import validate
from coar_dist.config.schema import Config
from coar_dist.console.saying import Terminal
from coar_dist.errors import CoarDistError, UsageError
from coar_dist.interchange.command import run_command
from coar_dist.stages.pipeline import run_stages
from tests.models import randomise, small_task
from tests.pages import (
    FENCE,
    FRONT,
    OURS,
    PAGES,
    REPOSITORY,
    TEXT,
    anchors,
    blocks,
    commands,
    inline_code,
    without_blocks,
)
from tests.small_run import without_ray
from tests.test_structure import FLOORS

OWN_CONFIGURATION = "# @package _global_\n"
OWN_FUNCTION = re.compile(r"=mine:(\w+)")


@dataclass
class Ran:
    """What is left of the pages' Python.

    Attributes:
        names: the namespace of each page.
        values: of every expression that stands alone, by its source.
        printed: by each block that printed anything.
        folder: in which all ran.
    """

    names: dict[str, dict[str, Any]]
    values: dict[str, Any]
    printed: dict[str, str]
    folder: Path


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """All Python blocks, each page's in a namespace that begins with what the front page defines.

    ``runs/digits`` is the run that the front page makes.
    """
    folder, before = tmp_path_factory.mktemp("readme"), Path.cwd()
    result = Ran({}, {}, {}, folder)
    os.chdir(folder)
    with without_ray(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.AutoTokenizer, "from_pretrained", small_tokenizer)
        patch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", small_language_model)
        task = small_task(num_examples=8)
        columns = {"triggered": np.arange(8) % 2 == 1, "pair": np.arange(8) // 2}
        sizes: dict[str, Any] = {"num_masks": 60, "num_gradient_masks": 10, "ablation_fraction": 0.2}
        console, inputs = Console(file=io.StringIO()), (task.model, task.examples.inputs, task.examples.targets)
        coar_dist.attribute(*inputs, columns=columns, run_dir="runs/digits_backdoor", console=console, **sizes)
        Path("runs/digits").symlink_to("mine")
        for page in sorted(PAGES, key=lambda page: page != FRONT):
            names = result.names[page] = {"__name__": "__main__", **result.names.get(FRONT, {})}
            for block in blocks("python", PAGES[page]):
                with contextlib.redirect_stdout(io.StringIO()) as printed:
                    run_block(block, names, result.values)
                result.printed[block] = printed.getvalue()
    yield result
    os.chdir(before)


def small_tokenizer(name: str) -> transformers.PreTrainedTokenizerFast:
    """In the place of one that is downloaded: a token for each word of the page, with the blank before it."""
    words = [blank + word for word in sorted(set(re.findall(r"\w+|\S", PAGES[FRONT]))) for blank in ("", " ")]
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", *words])}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+|\S"), behavior="isolated")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="<unk>", pad_token="<unk>")


def small_language_model(name: str) -> transformers.LlamaForCausalLM:
    """In the place of one that is downloaded."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=len(small_tokenizer(name)), **sizes))
    randomise(model)
    return model


def run_block(block: str, names: dict[str, Any], values: dict[str, Any]) -> None:
    for node in ast.parse(block).body:
        source = ast.get_source_segment(block, node)
        assert source is not None
        if isinstance(node, ast.Expr):
            values[source] = eval(source, names)
        else:
            exec(source, names)


def test_what_the_comments_say_of_values_is_so(ran: Ran) -> None:
    said = re.findall(r"^([\w.]+\(.*\)(?:\[.*\])?)  # (\([\w, ]+\)|'.*')", "\n".join(blocks("python")), re.MULTILINE)
    assert len(said) >= 7
    for source, value in said:
        expected = ast.literal_eval(value.replace("num_components", "48"))
        found = ran.values[source]
        assert (found.shape if isinstance(expected, tuple) else found) == expected, source


def test_python_prints_what_the_page_shows(ran: Ran) -> None:
    shown = [
        (fence[2], output[2])
        for fence, output in pairwise(FENCE.finditer(TEXT))
        if (fence[1], output[1]) == ("python", "") and not TEXT[fence.end() : output.start()].strip()
    ]
    assert shown
    for block, expected in shown:
        if "from_pretrained" in block:  # other numbers, of a model that is not downloaded
            assert [len(line.split()) for line in ran.printed[block].splitlines()[-len(expected.splitlines()) :]] == [
                len(line.split()) for line in expected.splitlines()
            ]
            continue
        lines = ran.printed[block].splitlines()[-len(expected.splitlines()) :]
        found, words = " ".join(lines).split(), expected.split()
        assert len(found) == len(words)
        for word, other in zip(words, found, strict=True):
            is_float = re.fullmatch(r"-?\d*\.\d+", word)
            assert float(other) == pytest.approx(float(word), rel=1e-2) if is_float else other == word


def result_of(ran: Ran, part: str) -> Any:
    (value,) = (value for source, value in ran.values.items() if part in source)
    return value


def test_query_which_components_matter_for_a_class(ran: Ran) -> None:
    run = open_run(ran.folder / "runs/digits")
    weights = run.weights(np.flatnonzero(run.examples()["label"] == 3), "coar").astype(np.float64).mean(axis=0)
    rows = result_of(ran, "where label = 3").fetchall()
    expected = np.argsort(-np.abs(weights))[:10]
    assert [row[:2] for row in rows] == [(i, run.components.name_of(i)) for i in expected]
    np.testing.assert_allclose([row[2] for row in rows], weights[expected], rtol=1e-6)


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


def test_design_of_ones_own_takes_part_as_a_function(ran: Ran) -> None:
    run = open_run(ran.folder / "runs/neighbours")
    design = run.directory.design("train")
    rule = ran.names["coar_dist/designs/README.md"]["neighbours"]
    assert design.kind == "__main__:neighbours"
    np.testing.assert_array_equal(run.margins()[0], [rule(design, i) for i in range(100)])


def test_selector_finds_what_it_says(ran: Ran) -> None:
    selector = ran.names["coar_dist/components/README.md"]["pointwise_filters"]
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 1), torch.nn.Conv2d(5, 7, 3), torch.nn.Linear(7, 2))
    assert selector(model) == [coar_dist.ComponentGroup.of("0.weight", 0, 5)]


@pytest.fixture
def composing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Hydra as the command has it, and a ``my_conf`` with the pages' configurations as its experiments."""
    monkeypatch.chdir(tmp_path)
    for i, block in enumerate(blocks("yaml")):
        named = re.search(r"^# (my_conf/\S+\.yaml)$", block, re.MULTILINE)
        path = tmp_path / (named[1] if named else f"my_conf/experiment/page_{i}.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block if OWN_CONFIGURATION in block else OWN_CONFIGURATION + block)
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


@pytest.mark.parametrize("line", OURS, ids=list(OURS))
def test_a_command_is_one_that_the_program_takes(line: str, composing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = [argument.replace("s3://", "").replace("/shared", "shared") for argument in OURS[line]]
    if here[:1] in (["inspect"], ["compare"]):
        monkeypatch.setattr("sys.argv", ["coar-dist", *here])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1  # there is no such run; 2 would be the usage
    elif here[:1] in (["import-research"], ["export-research"]):
        with pytest.raises(CoarDistError) as raised:  # there is no such file
            run_command(here[0], here[1:], Terminal(Console(file=io.StringIO())))
        assert not isinstance(raised.value, UsageError)
    elif here[:1] not in (
        ["--help"],
        ["--help=all"],
        ["--version"],
        ["--cfg"],
    ):  # Hydra's and ours, which print and end
        if "experiment=imagenet_resnet50" in here and "..." in line:
            here.append("task.examples.arguments.path=x")
        if "-m" in here:  # the first job of the sweep
            here = [word.split(",")[0] for word in here if word != "-m"]
        composed(here)


def test_configurations_compose(composing: Path) -> None:
    files = sorted((composing / "my_conf" / "experiment").iterdir())
    assert len(files) == len(blocks("yaml")) >= 2
    for file in files:
        config = composed(["--config-dir", "my_conf", f"experiment={file.stem}", "allow_code=[my_module]"])
        assert f"source: {config.task.model.source}" in file.read_text()


def test_functions_of_ones_own_take_part_by_their_names(composing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [block for block in blocks("python") if OWN_FUNCTION.search(block)]
    (composing / "mine.py").write_text("\n\n".join(sources))
    monkeypatch.syspath_prepend(str(composing))
    own = [
        argument for arguments in OURS.values() if OWN_FUNCTION.search(" ".join(arguments)) for argument in arguments
    ]
    assert set(OWN_FUNCTION.findall(" ".join(own))) == set(re.findall(r"^def (\w+)", "\n".join(sources), re.M))
    small = ["task.examples.arguments.num_examples=20", "train.epochs=1", "train.examples.subset.first=64"]
    masks = ["design.num_masks=250", "gradients.num_masks=10", "evaluation.ablation_fractions=[]", "baselines=[]"]
    given = [word for word in own if not word.startswith(("stages=", "run.dir="))]
    config = composed([*given, *small, *masks, "stages=[train,ablate,fit]", "run.dir=runs/own"])
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
    assert run.examples()["is_symmetric"].tolist() == [label in (0, 3, 8) for label in run.examples()["label"]]
    assert "ridge, primal, mine:normal_equations" in console.file.getvalue()  # type: ignore[attr-defined]
    weights = run.weights()
    config.regression.backend, config.stages = "torch", ["fit"]
    run_stages(config, console)
    np.testing.assert_allclose(weights, open_run(config.run.dir).weights(), atol=1e-6 * np.abs(weights).max())


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", without_blocks(PAGES[page])):
        file, _, anchor = link.partition("#")
        target = (REPOSITORY / page).parent.joinpath(file).resolve() if file else REPOSITORY / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_links_lead_from_the_front_page_to_every_page() -> None:
    found, new = {FRONT}, [FRONT]
    while new:
        page = new.pop()
        links = re.findall(r"\]\((?!https?:)([^)#\s]+\.md)", PAGES[page])
        linked = {os.path.normpath(Path(page).parent / link) for link in links}
        new += linked - found
        found |= linked
    assert found == set(PAGES)


def test_what_the_pages_name_is_there() -> None:
    paths = re.findall(r"(?<![\w/.:])((?:deploy|docker|conf|coar_dist|tests)/[\w./*-]*\w)", TEXT)
    assert len(paths) > 15
    missing = [path for path in paths if not list(REPOSITORY.glob(path))]
    assert not missing
    modules = re.findall(r"python -m (tests[\w.]*)", TEXT)
    assert len(modules) > 4
    assert not [name for name in modules if importlib.util.find_spec(name) is None]
    for words in commands():
        if words[:2] == ["python", "-m"] and words[2].startswith("tests"):
            path = REPOSITORY / words[2].replace(".", "/")
            code = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
            assert all(f'"{word}"' in code for word in words if word.startswith("--"))
    extras = {name for names in re.findall(r"'\.\[([\w,]+)\]'", TEXT) for name in names.split(",")}
    declared = (REPOSITORY / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    assert extras
    assert all(re.search(rf"^{name} = \[", declared, re.M) for name in extras)


def test_floors_are_those_that_the_structure_test_holds() -> None:
    (drawn,) = (block for block in blocks("") if block.startswith("errors"))
    floors = [re.split(r"\s{2,}", line)[0] for line in drawn.splitlines()]
    assert floors == [floor for floor in FLOORS if not floor.startswith("__")]


def is_option(key: str) -> bool:
    """Whether the configuration has the dotted key; a mapping has any."""
    kind: Any = Config
    for name in key.split("."):
        kinds = [part for part in (kind, *get_args(kind)) if dataclasses.is_dataclass(part)]
        if not kinds:
            return "dict" in str(kind)
        kind = get_type_hints(kinds[0]).get(name)
        if kind is None:
            return False
    return True


def test_options_that_the_prose_names_exist() -> None:
    groups = {path.name for path in (REPOSITORY / "conf").iterdir() if path.is_dir()}
    options = choices = 0
    for word in (word for code in inline_code() for word in code.replace("'", "").split()):
        match = re.fullmatch(r"[+~]?(\w+)((?:\.\w+)*)(?:=(.*))?", word)
        if match is None or word.endswith((".json", ".py", ".yaml", ".parquet")):
            continue
        if match[1] == "run" and hasattr(coar_dist.Run, match[2].split(".")[-1]):  # of a run in Python
            continue
        part, rest, value = match.groups()
        if part in groups and not rest and value:
            assert all((REPOSITORY / f"conf/{part}/{one}.yaml").is_file() for one in value.strip("[]").split(",")), word
            choices += 1
        elif is_option(part) and rest:
            assert is_option(part + rest), word
            options += 1
    assert options > 50
    assert choices > 15


def test_no_language_of_the_pages_is_left_untested() -> None:
    assert {fence[1] for fence in FENCE.finditer(TEXT)} == {"", "bash", "python", "yaml"}
