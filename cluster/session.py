"""The Ray session of a command: join a cluster or start a local one, check that it is large enough, leave nothing behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from actors.engine.launch import remove_abandoned_folders
from cluster.ending import end_side_daemons, interruptible, local_processes
from cluster.placement import Node, check_placement
from conf.resources import placement_requests
from conf.schema import Config

NAMESPACE = "rethinker"


@contextmanager
def ray_session(config: Config) -> Iterator[None]:
    """Connect to Ray for the length of a command.

    The address is cluster.address, else the environment's RAY_ADDRESS (which a submitted job has), else a local cluster
    that ends with the command.

    Args:
        config: of the run.

    Yields:
        Nothing.

    Raises:
        ConfigError: when the cluster has no room for the roles, before any actor is started.
    """
    with connected(config):
        if not config.cluster.autoscaling:
            check_placement(placement_requests(config), cluster_nodes())
        yield


def cluster_nodes() -> list[Node]:
    """List the living nodes of the connected cluster with all that they have.

    Returns:
        Head first, then by address.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    alive.sort(key=lambda node: ("node:__internal_head__" not in node["Resources"], node["NodeManagerAddress"]))
    return [Node(name=node["NodeManagerAddress"], resources=node["Resources"]) for node in alive]


def free_nodes() -> list[Node]:
    """List the living nodes of the connected cluster with what nobody has reserved.

    Returns:
        Head first, then by address.
    """
    from ray._private.state import available_resources_per_node  # public only with Ray's dashboard running

    free = available_resources_per_node()
    alive = [node for node in ray.nodes() if node["Alive"]]
    alive.sort(key=lambda node: ("node:__internal_head__" not in node["Resources"], node["NodeManagerAddress"]))
    return [Node(name=node["NodeManagerAddress"], resources=free.get(node["NodeID"], {})) for node in alive]


@contextmanager
def connected(config: Config) -> Iterator[None]:
    """Connect to Ray without asking whether a run fits. An interruption ends the block within seconds, whatever it is doing.

    Args:
        config: of the run.

    Yields:
        Nothing.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would otherwise set the number of threads for each worker by its CPUs; threads are settings of the roles
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    with interruptible(), _local_cluster(config) if address is None else _existing_cluster(config, address):
        yield


@contextmanager
def _local_cluster(config: Config) -> Iterator[None]:
    """A cluster of this run's own, of which nothing is left."""
    try:
        with local_processes():
            try:
                ray.init(
                    address="local",
                    namespace=NAMESPACE,
                    num_cpus=config.cluster.num_cpus,
                    object_store_memory=config.cluster.object_store_bytes,
                    include_dashboard=config.cluster.dashboard,
                    dashboard_host=config.cluster.dashboard_host,
                    log_to_driver=config.cluster.log_to_driver,
                )
                yield
            finally:
                end_side_daemons()
                ray.shutdown()
    finally:
        remove_abandoned_folders()  # of rollout actors that were killed


@contextmanager
def _existing_cluster(config: Config, address: str) -> Iterator[None]:
    """Somebody's cluster, which goes on."""
    ray.init(address=address, namespace=NAMESPACE, log_to_driver=config.cluster.log_to_driver)
    try:
        yield
    finally:
        ray.shutdown()
