"""What the roles of a run reserve on a cluster, as placement groups.

Owns the shape of each role's reservation. Must not know Ray, nodes or the engines.
"""

from __future__ import annotations

from dataclasses import dataclass

from conf.schema import Config, Device

Bundle = dict[str, float]
"""Resources that must lie on one node, by Ray's names: CPU, GPU, and those that an operator gave to nodes."""


@dataclass(frozen=True, kw_only=True)
class PlacementRequest:
    """One placement group: its bundles are reserved together or not at all."""

    role: str  # as errors and plans call it
    bundles: tuple[Bundle, ...]  # near each other where possible, each on one node


def learner_bundle(config: Config) -> Bundle:
    """What one learner rank reserves.

    Args:
        config: of a run.

    Returns:
        CPUs, one GPU on GPUs, and a unit of learner.node_resource.
    """
    return _bundle(config, cpus=config.learner.cpus_per_rank, gpus=1, node_resource=config.learner.node_resource)


def rollout_bundle(config: Config) -> Bundle:
    """What one rollout actor reserves; a tensor-parallel engine's GPUs lie on one node.

    Args:
        config: of a run.

    Returns:
        CPUs, on GPUs as many as its engine spans, and a unit of rollout.node_resource.
    """
    rollout = config.rollout
    return _bundle(config, cpus=rollout.cpus_per_actor, gpus=rollout.tensor_parallel_size, node_resource=rollout.node_resource)


def placement_requests(config: Config) -> list[PlacementRequest]:
    """List the placement groups of a run: one for the learner group, one for each rollout actor, since a placement group can't grow.

    Args:
        config: of a run.

    Returns:
        In the order in which they are asked for. The replay actor and the controller reserve nothing: they wait most of the time.
    """
    learner = PlacementRequest(role="learner group", bundles=(learner_bundle(config),) * config.learner.num_ranks)
    rollouts = [PlacementRequest(role=f"rollout actor {i}", bundles=(rollout_bundle(config),)) for i in range(config.rollout.num_actors)]
    return [learner, *rollouts] if learner.bundles else rollouts


def resources_needed(config: Config) -> Bundle:
    """Add up what the actors of a run reserve.

    Args:
        config: of a run.

    Returns:
        CPUs and GPUs; other resources where a role asks for them.
    """
    bundles = [bundle for request in placement_requests(config) for bundle in request.bundles]
    names = ["CPU", "GPU", *sorted({name for bundle in bundles for name in bundle} - {"CPU", "GPU"})]
    return {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in names}


def _bundle(config: Config, *, cpus: float, gpus: int, node_resource: str) -> Bundle:
    bundle = {"CPU": cpus, "GPU": float(gpus)} if config.cluster.device is Device.gpu else {"CPU": cpus}
    return {**bundle, node_resource: 1.0} if node_resource else bundle
