"""Joining a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator

import ray
from ray.exceptions import AuthenticationError

from coar_dist.cluster.interruption import Interruption
from coar_dist.cluster.ray_folders import check_folders
from coar_dist.cluster.ray_watch import watched_by
from coar_dist.cluster.resources import Cluster, check_room, gpus_per_actor, own_resources, total_resources
from coar_dist.config.schema import ClusterConfig
from coar_dist.errors import ClusterError, in_one_line

_LOCAL = "local"
_START_ONE = "Start it with 'ray start --head', or use cluster=local."


def check_cluster(config: ClusterConfig) -> None:
    """Find what would keep ``connect`` from working, in well under a second; starts nothing and joins nothing.

    Raises:
        ClusterError: nothing answers at the address, Ray cannot write to the folders that it
            needs, or this machine has no room for ``config.min_actors`` actors.
    """
    if ray.is_initialized():
        return
    address = _address(config)
    if address == _LOCAL:
        check_room(config, own_resources())
    _check_address(address)


@contextlib.contextmanager
def connect(config: ClusterConfig) -> Iterator[Cluster]:
    """Join the cluster that the config or RAY_ADDRESS names, or start one on this machine for the ``with`` block.

    A connection that the calling process already has is used, and left open.

    Raises:
        ClusterError: the cluster cannot be reached, or one started here lacks the resources.
    """
    was_connected = ray.is_initialized()
    address = _address(config)
    is_fixed = address == _LOCAL and not was_connected
    interruption = Interruption()
    interruption.install()
    try:
        if not was_connected:
            _check_address(address)
            _init(address)
            interruption.install()
        interruption.raise_if_set()
        resources = total_resources()
        if is_fixed:
            check_room(config, resources)
        with watched_by(interruption):
            yield Cluster(config, gpus_per_actor(config, resources), is_fixed, interruption)
    finally:
        interruption.remove()
        if not was_connected:
            ray.shutdown()


def _init(address: str, num_tries: int = 2) -> None:
    try:
        ray.init(
            address=address,
            include_dashboard=False if address == _LOCAL else None,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except SystemExit as error:  # what Ray's own handler of SIGTERM raises
        raise KeyboardInterrupt from error
    except AuthenticationError as error:
        raise ClusterError(
            f"cluster.address={address!r} cannot be joined without its token. {_token_help()}"
        ) from error
    except Exception as error:  # Ray also raises plain ones
        if address == _LOCAL and num_tries > 1:  # on a busy machine its processes may be too late for each other
            ray.shutdown()
            return _init(address, num_tries - 1)
        if address == _LOCAL:
            raise ClusterError(
                f"no Ray cluster could be started on this machine ({in_one_line(error)}). Try again when it is less "
                f"busy, or join a cluster with cluster.address=..."
            ) from error
        raise ClusterError(
            f"cluster.address={address!r} cannot be reached: {error}. {_START_ONE} {_token_help()}"
        ) from error


def _address(config: ClusterConfig) -> str:
    return config.address or os.environ.get("RAY_ADDRESS") or _LOCAL


def _check_address(address: str) -> None:
    if address == _LOCAL:
        check_folders()
    else:
        _check_reachable(address)


def _check_reachable(address: str) -> None:
    """Check that something answers at a ``host:port``: Ray itself tries for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10.0).close()
    except OSError as error:
        raise ClusterError(f"cluster.address={address!r} cannot be reached: {error}. {_START_ONE}") from error


def _token_help() -> str:
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode != "token":
        given = f"with RAY_AUTH_MODE={mode}" if mode else "without RAY_AUTH_MODE"
    elif os.environ.get("RAY_AUTH_TOKEN"):
        given = "with the token in RAY_AUTH_TOKEN"
    else:
        given = f"with the token in {os.environ.get('RAY_AUTH_TOKEN_PATH') or '~/.ray/auth_token'}, if any"
    return (
        f"If the cluster has token authentication, export RAY_AUTH_MODE=token and the token of its head, in "
        f"RAY_AUTH_TOKEN or, as a file, in RAY_AUTH_TOKEN_PATH. This process tried {given}."
    )
