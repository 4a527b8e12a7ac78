"""The image's files: linted, locked to versions that pyproject.toml allows, nothing private in the build context."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import coar_dist

REPOSITORY = Path(__file__).parents[2]
DOCKER = REPOSITORY / "docker"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
SCRIPTS = sorted([*DOCKER.glob("*.sh"), REPOSITORY / ".ci" / "image"])
CPU_EXTRAS = ("s3", "gcs", "baselines", "vision", "hf", "tensorboard")
LEFT_OUT = {"mutation", "test", "wandb", "mlflow"}
"""For developers, and trackers with a service behind them: `FROM coar-dist` and pip add them."""
EXTRAS = {"cpu": CPU_EXTRAS, "cuda": (*CPU_EXTRAS, "gpu")}
UNHASHED = {"cpu": {"torch", "torchvision"}, "cuda": set(), "head": set(), "build": set()}


def run_linter(name: str, *arguments: object) -> None:
    linter = Path(sysconfig.get_path("scripts")) / name
    result = subprocess.run([linter, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_dockerfile_lints() -> None:
    run_linter("hadolint", DOCKER / "Dockerfile")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script_lints(script: Path) -> None:
    run_linter("shellcheck", script)
    assert script.stat().st_mode & 0o111, f"{script} cannot be executed"


# --- lock files


def locked(variant: str) -> dict[str, tuple[str, int]]:
    """Version and number of hashes by package."""
    text = (DOCKER / f"requirements-{variant}.txt").read_text()
    packages = re.findall(r"^([\w.-]+)==(\S+)((?:[ \\\n]+--hash=sha256:[0-9a-f]{64})*)$", text, re.MULTILINE)
    assert len(packages) == text.count("=="), "a line that is no pinned package"
    return {canonicalize_name(name): (version, hashes.count("--hash")) for name, version, hashes in packages}


def outdated(requirements: list[str], versions: dict[str, tuple[str, int]]) -> list[str]:
    """The requirements that no locked version satisfies."""
    parsed = [Requirement(requirement) for requirement in requirements]
    return [
        str(requirement)
        for requirement in parsed
        if not requirement.specifier.contains(versions.get(canonicalize_name(requirement.name), ("0",))[0])
    ]


@pytest.mark.parametrize("variant", EXTRAS)
def test_locked_versions_satisfy_the_project(variant: str) -> None:
    requirements = list(PROJECT["dependencies"])
    for extra in EXTRAS[variant]:
        requirements += PROJECT["optional-dependencies"][extra]
    assert outdated(requirements, locked(variant)) == [], "run docker/lock.sh"


def test_every_extra_is_in_an_image() -> None:
    """A new one must be locked, or said to be left out."""
    assert set(PROJECT["optional-dependencies"]) == {*EXTRAS["cuda"], *LEFT_OUT}
    lock = (DOCKER / "lock.sh").read_text()
    assert set(re.findall(r"--extra (\w+)", lock)) == set(EXTRAS["cuda"])


def test_a_version_out_of_range_is_seen() -> None:
    assert outdated(["a>=2,<3", "b_c>=1", "d"], {"a": ("2.1+cpu", 1), "b-c": ("0.9", 1), "d": ("5", 1)}) == ["b_c>=1"]
    assert outdated(["e>=1"], {}) == ["e>=1"]


@pytest.mark.parametrize("variant", UNHASHED)
def test_locked_packages_carry_hashes(variant: str) -> None:
    assert {name for name, (_, num_hashes) in locked(variant).items() if num_hashes == 0} == UNHASHED[variant]


def test_variants_differ_in_the_build_of_torch() -> None:
    cpu, cuda = locked("cpu"), locked("cuda")
    assert cpu["torch"][0] == cuda["torch"][0] + "+cpu"
    assert not [name for name in cpu if name.startswith(("nvidia", "cuda", "triton"))]
    assert {"cuml-cu13", "nvidia-cublas", "triton"} <= set(cuda)


def test_packages_of_a_cloud_head_leave_those_of_the_image_as_they_are() -> None:
    head, image = locked("head"), locked("cuda")
    assert {"boto3", "google-api-python-client"} <= set(head)
    assert {name: head[name][0] for name in set(head) & set(image)} == {
        name: image[name][0] for name in set(head) & set(image)
    }


def test_containers_of_a_cluster_run_as_their_user() -> None:
    """Else a folder that its owner alone may write to is closed to them."""
    page = (DOCKER / "README.md").read_text()
    (recipe,) = re.findall(r"^node=.*?\)$", page, re.MULTILINE | re.DOTALL)
    for option in ('--user "$(id -u):0"', "--network host", "--gpus all", "-e RAY_AUTH_MODE=token"):
        assert option in recipe
    assert "RAY_AUTH_TOKEN_PATH" in recipe
    assert "-e RAY_AUTH_TOKEN " not in recipe, "whoever may list containers would read it"


# --- the build context

IGNORED = [".git/config", ".venv/bin/python", "venv/x", "runs/digits/run.json", "outputs/x", ".env", "tests/x.py"]
IGNORED += ["build/lib/x.py", "coar_dist/__pycache__/app.cpython-311.pyc", "conf/task/__pycache__/x", "dist/x.whl"]


def is_ignored(path: str) -> bool:
    """As Docker reads .dockerignore: the last pattern that matches the path or a folder above it."""
    ignored = False
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = re.escape(line.lstrip("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
            if re.fullmatch(f"{pattern}(/.*)?", path):
                ignored = not line.startswith("!")
    return ignored


@pytest.mark.parametrize("path", IGNORED)
def test_context_leaves_out(path: str) -> None:
    assert is_ignored(path)


def test_context_holds_what_is_copied() -> None:
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    sources = [source for line in copied for source in line.replace("${VARIANT}", "cpu").split()]
    assert {"coar_dist", "conf", "pyproject.toml", "docker/entrypoint.sh"} <= set(sources)
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert not is_ignored(source), source
    assert not is_ignored("coar_dist/app.py")


def test_image_is_of_this_version() -> None:
    dockerfile = (DOCKER / "Dockerfile").read_text()
    assert f'image.version="{coar_dist.__version__}"' in dockerfile
    assert re.search(r"^USER [1-9]\d*$", dockerfile, re.MULTILINE), "Kubernetes knows a user who is not root by number"


# --- entry point and health


def commands(folder: Path, **scripts: str) -> Path:
    """A folder that is the whole PATH: the named commands, a line of shell each."""
    folder.mkdir()
    for name, line in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    return folder


def run_script(name: str, path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["/bin/sh", DOCKER / name, *arguments]
    return subprocess.run(command, env={"PATH": str(path)}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "ran"),
    [
        ([], ["coar-dist"]),
        (["--help"], ["coar-dist", "--help"]),
        (["experiment=digits", "run.dir=runs/a b"], ["coar-dist", "experiment=digits", "run.dir=runs/a b"]),
        (["+x=1"], ["coar-dist", "+x=1"]),
        (["~edit"], ["coar-dist", "~edit"]),
        (["inspect", "run.dir=x"], ["coar-dist", "inspect", "run.dir=x"]),
        (["export-research"], ["coar-dist", "export-research"]),
        (["coar-dist", "--help"], ["coar-dist", "--help"]),
        (["ray", "start", "--head"], ["ray", "start", "--head"]),
        (["python", "-c", "a = 1"], ["python", "-c", "a = 1"]),
    ],
)
def test_entry_point_dispatches(tmp_path: Path, arguments: list[str], ran: list[str]) -> None:
    say = 'printf "%s\\n" "${0##*/}" "$@"'
    path = commands(tmp_path / "bin", **dict.fromkeys(("coar-dist", "ray", "python"), say))
    result = run_script("entrypoint.sh", path, *arguments)
    assert result.stdout.splitlines() == ran
    assert result.returncode == 0


def test_entry_point_hands_on_failures(tmp_path: Path) -> None:
    path = commands(tmp_path / "bin", **{"coar-dist": "exit 7"})
    assert run_script("entrypoint.sh", path).returncode == 7
    unknown = run_script("entrypoint.sh", path, "digits")
    assert unknown.returncode == 127
    assert "digits" in unknown.stderr


def test_entry_point_knows_every_subcommand() -> None:
    app = (REPOSITORY / "coar_dist" / "app.py").read_text()
    subcommands = re.findall(r'"([a-z-]+)"\]', "\n".join(line for line in app.splitlines() if "sys.argv[1:2]" in line))
    assert len(subcommands) >= 3
    entry = (DOCKER / "entrypoint.sh").read_text()
    for subcommand in subcommands:
        assert f" {subcommand} " in entry.replace(")", " ")


@pytest.mark.parametrize(
    ("processes", "agent", "code"),
    [("/bin/sh", "exit 4", 0), ("/x/ray/raylet/raylet", "exit 0", 0), ("/x/ray/raylet/raylet", "exit 8", 1)],
    ids=["no Ray", "well", "ill"],
)
def test_health_is_that_of_the_ray_node(tmp_path: Path, processes: str, agent: str, code: int) -> None:
    path = commands(tmp_path / "bin", readlink=f"echo {processes}", wget=agent)
    grep = shutil.which("grep")
    assert grep is not None
    (path / "grep").symlink_to(grep)
    assert run_script("healthcheck.sh", path).returncode == code
