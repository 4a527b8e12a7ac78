from __future__ import annotations

import os
from pathlib import Path

import pytest

from coar_dist.cluster.ray_folders import check_folders
from coar_dist.errors import ClusterError


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A home that can be written, Ray in /tmp, and no token."""
    for name in ("RAY_TMPDIR", "TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


def test_folders_that_can_be_written_stay_as_they_are(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setenv("HOME", str(tmp_path / "made later"))
    check_folders()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_long_path_is_refused_where_ray_refuses_it(environment: pytest.MonkeyPatch, variable: str) -> None:
    from ray._private.utils import validate_socket_filepath

    session = f"ray/session_2026-11-29_12-39-51_637474_{os.getpid()}/sockets/plasma_store"
    num_left = 107 - len(f"/{session}")
    longest = "/tmp/" + "x" * (num_left - len("/tmp/"))
    environment.setenv(variable, longest)
    check_folders()
    validate_socket_filepath(f"{longest}/{session}")
    environment.setenv(variable, longest + "x")
    with pytest.raises(OSError, match="path length"):
        validate_socket_filepath(f"{longest}x/{session}")
    with pytest.raises(
        ClusterError, match=rf"{variable}={longest}x is too long.* leaves {num_left} for .*Set RAY_TMPDIR"
    ):
        check_folders()


def test_a_temporary_folder_that_cannot_be_written_is_named(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("RAY_TMPDIR", "/proc/there")  # where root cannot write either
    with pytest.raises(
        ClusterError, match=r"cannot write to RAY_TMPDIR=/proc/there \(.+\)\. Set RAY_TMPDIR to a folder"
    ):
        check_folders()


def test_a_token_that_cannot_be_kept_is_said(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HOME", "/proc/there")
    with pytest.raises(ClusterError, match=r"keeps its token .*\(HOME=/proc/there: .+\)\. Set HOME .*RAY_AUTH_TOKEN"):
        check_folders()
    environment.setenv("RAY_AUTH_MODE", "disabled")
    check_folders()
    environment.setenv("RAY_AUTH_MODE", "token")
    environment.setenv("RAY_AUTH_TOKEN", "a secret")
    check_folders()


def test_a_user_without_a_home_is_told(environment: pytest.MonkeyPatch) -> None:
    def unknown_user(number: int) -> None:
        raise KeyError(number)

    environment.delenv("HOME")
    environment.setattr("pwd.getpwuid", unknown_user)  # one that has a number only
    with pytest.raises(ClusterError, match=r"keeps its token .*\(this user has none\)\. Set HOME"):
        check_folders()


def test_a_token_that_is_there_need_not_be_written(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("a secret")
    environment.setattr("coar_dist.cluster.ray_folders._try_to_write", lambda folder: _refuse_home(folder, tmp_path))
    check_folders()


def _refuse_home(folder: Path, home: Path) -> None:
    assert home not in folder.parents
