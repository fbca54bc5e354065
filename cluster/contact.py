"""Where a running run can be reached: a file in its folder that the driver writes, and how a command connects by it.

Owns cluster.json, the connection's deadline and the sentences that say why there is none. Must not know what is asked.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray.actor import ActorHandle
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.exceptions import AuthenticationError

from cluster.desk import desk_name
from cluster.run_folder import RunFolder, RunUnreachable, write_json
from cluster.session import NAMESPACE

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 30.0  # joining a cluster takes a second or two
PROBE_TIMEOUT_S = 5.0
AUTH_MODE = "RAY_AUTH_MODE"
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@dataclass(frozen=True, kw_only=True)
class Contact:
    """A run and the cluster that it is on."""

    run: str
    address: str
    folder: Path | None = None  # None: only the name is known
    auth_mode: str | None = None  # of the run's own connection; None: not known


def announce(folder: RunFolder, run: str) -> None:
    """Write down how this run can be reached; called by its driver, connected to Ray.

    Args:
        folder: of the run.
        run: its name.
    """
    contact = {
        "run": run,
        "address": ray.get_runtime_context().gcs_address,
        "auth_mode": os.environ.get(AUTH_MODE),  # a command has to speak as the run does
        "namespace": NAMESPACE,
        "desk": desk_name(run),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": time.time(),
        "ended": None,
    }
    write_json(folder.contact, contact)


def sign_off(folder: RunFolder, outcome: str) -> None:
    """Say that the run cannot be reached any more.

    Args:
        folder: of the run.
        outcome: how it ended, such as "finished".
    """
    if folder.contact.exists():
        write_json(folder.contact, json.loads(folder.contact.read_text()) | {"ended": time.time(), "outcome": outcome})


def find(run: str, address: str | None) -> Contact:
    """Work out which run is meant.

    Args:
        run: a run folder, or with an address also a run's name.
        address: of the cluster; None: what the run folder says, else RAY_ADDRESS.

    Returns:
        The run and its cluster.

    Raises:
        RunUnreachable: when there is no such run, or it is over.
    """
    folder = RunFolder(run)
    if folder.contact.is_file():
        contact = json.loads(folder.contact.read_text())
        _refuse_ended(folder, contact)
        return Contact(run=contact["run"], address=address or contact["address"], folder=folder.path, auth_mode=contact.get("auth_mode"))
    if folder.config.is_file():
        raise RunUnreachable(f"{run} holds a run that is not running: it has no {folder.contact.name}; run.resume=true goes on with it")
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        raise RunUnreachable(f"{run} is no run folder; name one, or give a run's name together with --address of its cluster")
    return Contact(run=run, address=address)


def _refuse_ended(folder: RunFolder, contact: dict[str, Any]) -> None:
    if contact["ended"] is not None:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(contact["ended"]))
        raise RunUnreachable(f"the run in {folder.path} is over ({contact['outcome']}, {when}); run.resume=true goes on where it can")
    if contact["host"] == socket.gethostname() and not psutil.pid_exists(contact["pid"]):
        raise RunUnreachable(f"the run in {folder.path} was killed: its driver, pid {contact['pid']}, is gone; run.resume=true goes on")


@contextmanager
def connected_to(contact: Contact) -> Iterator[ActorHandle]:
    """Join a run's cluster for the length of a command.

    Args:
        contact: of the run.

    Yields:
        Its desk.

    Raises:
        RunUnreachable: when the cluster does not answer, refuses us, or has no such run.
    """
    _probe(contact.address)
    _authenticate(contact)
    _refuse_a_wrong_token(contact.address)
    _join(contact.address)
    try:
        try:
            desk = ray.get_actor(desk_name(contact.run), namespace=NAMESPACE)
        except ValueError:
            raise RunUnreachable(f"no run named {contact.run!r} is running on the cluster at {contact.address}") from None
        yield desk
    finally:
        ray.shutdown()


def _probe(address: str) -> None:
    """Ray itself tries for minutes when nobody listens."""
    if address == "auto" or address.startswith("ray://"):
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise RunUnreachable(f"the cluster at {address} is not reachable: {error}") from None


def _authenticate(contact: Contact) -> None:
    """Use a token where the run does, or where one is given: with an address Ray doesn't look for one by itself."""
    given = any(os.environ.get(name) for name in TOKEN_VARIABLES)
    if AUTH_MODE not in os.environ and (contact.auth_mode == "token" or given):
        from ray._private.authentication.authentication_token_setup import _enable_token_auth  # the variable alone is read too early

        _enable_token_auth()


def _refuse_a_wrong_token(address: str) -> None:
    """Ask the control store whether it talks to us: Ray tries for 20 s with a token that is not taken, and then says nothing of it."""
    if address == "auto" or address.startswith("ray://"):
        return
    with init_grpc_channel(address) as channel:
        store = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            store.CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=PROBE_TIMEOUT_S)
        except (grpc.RpcError, AuthenticationError) as error:
            if isinstance(error, AuthenticationError) or error.code() is grpc.StatusCode.UNAUTHENTICATED:
                raise RunUnreachable(
                    f"the cluster at {address} refuses this client: it asks for a token; set RAY_AUTH_MODE=token, and the cluster's token"
                    " as RAY_AUTH_TOKEN or in a file that RAY_AUTH_TOKEN_PATH names (docs/security.md)"
                ) from None
            logger.info("the control store at %s does not say whether it is alive: %s", address, error.code())


def _join(address: str) -> None:
    """Connect in a thread, since a cluster that accepts connections and does not answer would hold us for minutes."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    failure: list[BaseException] = []

    def connect() -> None:
        try:
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
        except BaseException as error:  # told by the thread that waits
            failure.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_TIMEOUT_S)
    if thread.is_alive():
        raise RunUnreachable(f"the cluster at {address} accepted a connection and did not answer within {CONNECT_TIMEOUT_S:g} s")
    if failure:
        (error,) = failure
        reason = (str(error).splitlines() or [repr(error)])[0]
        if isinstance(error, AuthenticationError) or "token" in str(error).lower() or AUTH_MODE not in os.environ:
            reason += "; where it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH as on its head"
        raise RunUnreachable(f"the cluster at {address} can't be joined: {reason}") from error
