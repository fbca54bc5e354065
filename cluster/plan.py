"""`rethinker plan`: what a run would take, told before anything starts.

Owns the words and tables. The figures are those of cluster.memory and cluster.placement.
"""

from __future__ import annotations

import dataclasses
import os

from rich.console import Console
from rich.table import Table

from cluster.memory import engine_memory, geometry_of, learner_memory
from cluster.placement import Assignment, Node, assign, check_placement, shown
from cluster.session import cluster_nodes, connected
from conf.resources import PlacementRequest, learner_bundle, placement_requests, resources_needed, rollout_bundle
from conf.schema import Config, Device

GIB = 2**30


def plan(config: Config, address: str | None) -> None:
    """Print the plan of a run.

    Args:
        config: of the run; paths are not looked at.
        address: of a running cluster; None: cluster.address or RAY_ADDRESS, and without those no cluster.

    Raises:
        ConfigError: when a cluster is connected and has no room.
    """
    address = address or config.cluster.address or os.environ.get("RAY_ADDRESS")
    if address is None:
        print_plan(config, None, Console())
        return
    with connected(dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, address=address))):
        print_plan(config, cluster_nodes(), Console())


def print_plan(config: Config, nodes: list[Node] | None, console: Console) -> None:
    """Print roles, memory and, where a cluster is connected, the node of each.

    Args:
        config: of the run.
        nodes: of the connected cluster; None: there is none.
        console: to print on.

    Raises:
        ConfigError: when the connected cluster has no room; after the tables.
    """
    requests = placement_requests(config)
    console.print(_roles(config))
    if config.model.path:
        _print_memory(config, console)
    else:
        console.print("model.path is empty: the cold start makes the model; its memory is not worth a plan.")
    if nodes is None:
        console.print(
            f"In all {shown(resources_needed(config))}. No cluster is connected (--address, or RAY_ADDRESS), so nothing was compared."
        )
        return
    console.print(_nodes(requests, nodes))
    check_placement(requests, nodes)
    console.print("Everything fits.")


def _roles(config: Config) -> Table:
    table = Table("role", "placement groups", "bundles of each", "each bundle", title="Roles")
    if config.learner.num_ranks:
        table.add_row("learner group", "1", str(config.learner.num_ranks), shown(learner_bundle(config)))
    table.add_row("rollout actors", str(config.rollout.num_actors), "1", shown(rollout_bundle(config)))
    table.add_row("replay, controller", "-", "-", "nothing reserved")
    return table


def _print_memory(config: Config, console: Console) -> None:
    model = geometry_of(config.model.path)
    on_gpu = config.cluster.device is Device.gpu
    what = "GPU" if on_gpu else "process"
    learner, engine = learner_memory(model, config), engine_memory(model, config)
    tokens = int(engine.pop("kv_cache_tokens"))
    console.print(
        f"{config.model.path}: {model.parameters / 1e9:.2f} billion parameters, {model.vision_parameters / 1e9:.2f} of them vision"
    )
    for role, parts in (
        (f"learner rank, ZeRO-{config.learner.zero_stage} over {config.learner.num_ranks}", learner),
        (f"rollout engine, over {config.rollout.tensor_parallel_size}", engine),
    ):
        table = Table(*parts, "in all", title=f"GiB per {what}: {role}")
        table.add_row(*(f"{value / GIB:.1f}" for value in parts.values()), f"{sum(parts.values()) / GIB:.1f}")
        console.print(table)
    longest = config.model.max_prompt_tokens + config.model.max_response_tokens
    console.print(f"The KV cache of an engine holds {tokens:,} tokens: {tokens // longest} sequences of the full {longest} tokens.")
    console.print("Activations and logits are estimates; temporary buffers and fragmentation come on top.")
    if on_gpu and sum(learner.values()) > config.cluster.gpu_memory_bytes:
        console.print(
            f"A learner rank is estimated at {sum(learner.values()) / GIB:.0f} GiB, above cluster.gpu_memory_bytes ="
            f" {config.cluster.gpu_memory_bytes / GIB:.0f} GiB: raise learner.zero_stage or learner.num_ranks, lower"
            " learner.microbatch_tokens, or set learner.gradient_checkpointing=true.",
            style="bold",
        )
    if on_gpu and tokens < longest:
        console.print(
            f"An engine's KV cache can't hold one sequence of {longest} tokens: raise rollout.tensor_parallel_size.", style="bold"
        )


def _nodes(requests: list[PlacementRequest], nodes: list[Node]) -> Table:
    found: Assignment = assign(requests, nodes)
    table = Table("node", "has", "would hold", "stays free", title="Nodes")
    for node in nodes:
        held = {role: places.count(node.name) for role, places in found.placed.items() if node.name in places}
        words = [role if count == 1 else f"{role} ({count} bundles)" for role, count in held.items()]
        table.add_row(node.name, shown(node.resources), ", ".join(words) or "-", shown(found.free[node.name]))
    return table
