"""Whether a run fits on a cluster, and where: an assignment of its placement groups to nodes, computed without starting anything.

Owns the packing rule and the sentence that says what is missing. Must not know Ray: nodes are plain numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from conf.loading import ConfigError
from conf.resources import Bundle, PlacementRequest

RAYS_OWN = ("CPU", "GPU", "memory", "object_store_memory", "node:", "accelerator_type:")
"""Resources that Ray counts on every node by itself."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """What a node offers."""

    name: str
    resources: Mapping[str, float]  # by Ray's names


@dataclass(kw_only=True)
class Assignment:
    """Where each bundle would lie."""

    placed: dict[str, list[str]] = field(default_factory=dict)  # role -> node of each bundle
    missing: dict[str, list[Bundle]] = field(default_factory=dict)  # role -> bundles that no node has room for
    free: dict[str, dict[str, float]] = field(default_factory=dict)  # node -> what is left


def assign(requests: Sequence[PlacementRequest], nodes: Sequence[Node]) -> Assignment:
    """Place the largest bundles first, and the bundles of a group side by side.

    Args:
        requests: of a run.
        nodes: of a cluster.

    Returns:
        Where everything fits, and what doesn't fit.
    """
    result = Assignment(free={node.name: dict(node.resources) for node in nodes})
    for request in sorted(requests, key=lambda request: max(_size(bundle) for bundle in request.bundles), reverse=True):
        own: list[str] = []
        for bundle in request.bundles:
            fitting = [name for name, free in result.free.items() if all(free.get(k, 0.0) >= v for k, v in bundle.items())]
            if not fitting:
                result.missing.setdefault(request.role, []).append(bundle)
                continue
            # beside its own group; else the tightest node, which leaves whole nodes to large engines
            node = min(fitting, key=lambda name: (name not in own, result.free[name].get("GPU", 0.0), result.free[name].get("CPU", 0.0)))
            own.append(node)
            for resource, amount in bundle.items():
                result.free[node][resource] -= amount
        result.placed[request.role] = own
    return result


def check_placement(requests: Sequence[PlacementRequest], nodes: Sequence[Node]) -> Assignment:
    """Refuse a run that its cluster could never place, instead of waiting for a placement group for ever.

    Args:
        requests: of the run.
        nodes: of the cluster, with what they have in all.

    Returns:
        The assignment.

    Raises:
        ConfigError: what finds no room, what was asked for and what each node has.
    """
    result = assign(requests, nodes)
    if result.missing:
        names = {name: None for request in requests for bundle in request.bundles for name in bundle}
        wanted = {name: sum(bundle.get(name, 0.0) for request in requests for bundle in request.bundles) for name in names}
        roles = ", ".join(f"{role} ({len(bundles)} x {shown(bundles[0])})" for role, bundles in list(result.missing.items())[:3])
        more = f" and {len(result.missing) - 3} more" if len(result.missing) > 3 else ""
        supply = "; ".join(f"{node.name} has {shown(node.resources)}" for node in nodes[:8])
        raise ConfigError(
            f"the cluster has no room for {roles}{more}: rollout.num_actors, rollout.tensor_parallel_size and learner.num_ranks"
            f" ask for {shown(wanted)} in all; {supply}{'; ...' if len(nodes) > 8 else ''}."
        )
    return result


def demand_against_supply(bundles: Sequence[Bundle], nodes: Sequence[Node]) -> str:
    """Say why bundles find no place now.

    Args:
        bundles: waited for, each for one node.
        nodes: with what is free.

    Returns:
        Such as "2 x 1 CPU and 4 GPUs are wanted; free are 10.0.0.1: 3 CPUs; 10.0.0.2: nothing".
    """
    names = {name for bundle in bundles for name in bundle}
    free = "; ".join(f"{node.name}: {shown({k: v for k, v in node.resources.items() if k in names})}" for node in nodes[:8])
    more = f"; and {len(nodes) - 8} more nodes" if len(nodes) > 8 else ""
    return f"{len(bundles)} x {shown(bundles[0])} wanted; free are {free or 'no nodes'}{more}"


def shown(resources: Mapping[str, float]) -> str:
    """Write resources for people.

    Args:
        resources: by Ray's names; those that Ray itself gives to nodes are left out, but for CPU and GPU.

    Returns:
        Such as "2 CPUs, 1 GPU and 1 rollout".
    """
    words = [f"{resources[k]:g} {k}{'' if resources[k] == 1 else 's'}" for k in ("CPU", "GPU") if resources.get(k)]
    words += [f"{amount:g} {name}" for name, amount in sorted(resources.items()) if amount and not name.startswith(RAYS_OWN)]
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]])) or "nothing"


def _size(bundle: Bundle) -> tuple[float, float]:
    return bundle.get("GPU", 0.0), bundle.get("CPU", 0.0)
