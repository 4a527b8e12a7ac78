"""What an index would serve: source distribution and wheel, checked, installed and used away from the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import coar_dist

REPOSITORY = Path(__file__).parents[1]
FOLDERS = (".ci", ".readme", "coar_dist", "conf", "deploy", "docker", "tests")
FILES = ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml")
FILES += (".dockerignore", ".gitignore", ".pre-commit-config.yaml", ".rayignore")
STRAYS = ("runs/x/run.json", "coar_dist/__pycache__/x.cpython-311.pyc", "tests/__pycache__/x.pyc", "conf/x.pyc", "x.pt")


def run(*command: object, cwd: Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Distributions:
    """What was built of a copy of the checkout that has strays in it."""

    tree: Path
    sdist: Path
    wheel: Path
    tree_wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    root = tmp_path_factory.mktemp("packaging")
    tree = root / "tree"
    for folder in FOLDERS:
        shutil.copytree(REPOSITORY / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        shutil.copy(REPOSITORY / file, tree)
    for stray in STRAYS:
        (tree / stray).parent.mkdir(parents=True, exist_ok=True)
        (tree / stray).touch()
    build = (sys.executable, "-m", "build", "--no-isolation")
    run(*build, "--outdir", root / "both", cwd=tree)  # the wheel of the source distribution
    run(*build, "--wheel", "--outdir", root / "tree_wheel", cwd=tree)
    (sdist,), (wheel,) = (root / "both").glob("*.tar.gz"), (root / "both").glob("*.whl")
    (tree_wheel,) = (root / "tree_wheel").glob("*.whl")
    return Distributions(tree, sdist, wheel, tree_wheel)


def names_in(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_an_index_would_take_them(built: Distributions) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", built.sdist, built.wheel, cwd=built.tree)


def test_files_that_the_pages_link_to_are_in_a_source_distribution(built: Distributions) -> None:
    with tarfile.open(built.sdist) as archive:
        pages = [name for name in archive.getnames() if name.endswith(".md")]
        archive.extractall(built.tree.parent / "unpacked", filter="data")
    assert len(pages) > 15
    for page in pages:
        path = built.tree.parent / "unpacked" / page
        for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", path.read_text()):
            assert (path.parent / link).exists(), f"{page}: {link}"


def test_source_distribution_holds_the_repository(built: Distributions) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    made = {"PKG-INFO", "setup.cfg", "coar_dist.egg-info/SOURCES.txt"}
    expected = {f"{folder}/{name}" for folder in FOLDERS for name in files_below(built.tree / folder)} | {*FILES}
    assert names == expected - {*STRAYS} | made


def test_wheel_holds_every_file_of_the_package(built: Distributions) -> None:
    installed = {name for name in names_in(built.wheel) if ".dist-info/" not in name}
    expected = {f"coar_dist/{name}" for name in files_below(built.tree / "coar_dist")}
    expected |= {f"coar_dist/conf/{name}" for name in files_below(built.tree / "conf")}
    assert installed == {name for name in expected if not name.endswith(".pyc")}
    assert {"coar_dist/py.typed", "coar_dist/conf/experiment/digits.yaml"} <= installed


def test_wheel_of_the_tree_is_the_same(built: Distributions) -> None:
    assert names_in(built.tree_wheel) == names_in(built.wheel)


USE = """
import coar_dist
from importlib import metadata
print(coar_dist.__file__)
print(metadata.version("coar-dist") == coar_dist.__version__)
for name in coar_dist.__all__:
    getattr(coar_dist, name)
"""


def test_installed_wheel_works_elsewhere(built: Distributions, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "site-packages", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target)
    run(*install, built.wheel, cwd=elsewhere)
    used = run(sys.executable, "-c", USE, cwd=elsewhere, PYTHONPATH=str(target))
    assert used.splitlines() == [str(target / "coar_dist" / "__init__.py"), "True"]
    module = (sys.executable, "-m", "coar_dist")
    assert "Ablate random subsets of a model's components" in run(
        *module, "--help", cwd=elsewhere, PYTHONPATH=str(target)
    )
    job = yaml.safe_load(
        run(
            target / "bin" / "coar-dist", "--cfg", "job", "experiment=digits_vit", cwd=elsewhere, PYTHONPATH=str(target)
        )
    )
    assert job["components"]["selector"] == "linear_rows"


def test_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == coar_dist.__version__
