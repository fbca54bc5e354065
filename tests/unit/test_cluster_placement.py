"""Placing bundles on nodes: hand-made clusters, and that a bundle is never spread over two nodes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.placement import Node, assign, check_placement, demand_against_supply
from conf.loading import ConfigError
from conf.resources import PlacementRequest


def gpus(*counts: int, cpus: float = 64.0) -> list[Node]:
    return [Node(name=f"10.0.0.{i}", resources={"CPU": cpus, "GPU": float(count), "memory": 1e9}) for i, count in enumerate(counts)]


def request(role: str, count: int, num_gpus: int) -> PlacementRequest:
    return PlacementRequest(role=role, bundles=({"CPU": 1.0, "GPU": float(num_gpus)},) * count)


def test_one_node_of_eight_holds_four_ranks_and_four_engines() -> None:
    requests = [request("learner group", 4, 1), *(request(f"rollout actor {i}", 1, 1) for i in range(4))]
    found = check_placement(requests, gpus(8))
    assert found.placed["learner group"] == ["10.0.0.0"] * 4
    assert found.free["10.0.0.0"]["GPU"] == 0


def test_large_engines_get_whole_nodes_before_small_ranks_break_them() -> None:
    requests = [request("learner group", 8, 1), request("rollout actor 0", 1, 8), request("rollout actor 1", 1, 4)]
    found = check_placement(requests, gpus(8, 4, 8))
    assert sorted([found.placed["rollout actor 0"][0], found.placed["rollout actor 1"][0]]) != ["10.0.0.1", "10.0.0.1"]
    assert found.placed["rollout actor 1"] == ["10.0.0.1"]
    assert set(found.placed["learner group"]) == {"10.0.0.0", "10.0.0.2"} - set(found.placed["rollout actor 0"])


def test_enough_in_all_is_not_enough_when_no_node_holds_an_engine() -> None:
    with pytest.raises(ConfigError) as caught:
        check_placement([request("rollout actor 0", 1, 8)], gpus(4, 4))
    message = str(caught.value)
    assert "\n" not in message
    for part in ("rollout actor 0 (1 x 1 CPU and 8 GPUs)", "rollout.tensor_parallel_size", "10.0.0.1 has 64 CPUs and 4 GPUs"):
        assert part in message


def test_a_group_that_only_half_fits_says_how_many_are_missing() -> None:
    with pytest.raises(ConfigError, match=r"learner group \(3 x 1 CPU and 1 GPU\).*ask for 11 CPUs and 11 GPUs in all"):
        check_placement([request("learner group", 11, 1)], gpus(8))


def test_an_empty_cluster_is_told() -> None:
    with pytest.raises(ConfigError, match=r"10\.0\.0\.0 has nothing"):
        check_placement([request("rollout actor 0", 1, 0)], [Node(name="10.0.0.0", resources={})])


@given(
    demands=st.lists(st.tuples(st.integers(1, 4), st.sampled_from([1, 2, 4, 8])), min_size=1, max_size=6),
    nodes=st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=6),
)
def test_no_node_holds_more_than_it_has_and_nothing_is_left_out_while_there_is_room(demands, nodes) -> None:
    requests = [request(f"role {i}", count, size) for i, (count, size) in enumerate(demands)]
    found = assign(requests, gpus(*nodes))
    for node, count in zip(gpus(*nodes), nodes, strict=True):
        used = sum(size * found.placed[f"role {i}"].count(node.name) for i, (_, size) in enumerate(demands))
        assert used == count - found.free[node.name]["GPU"] <= count
    for bundles in found.missing.values():
        assert all(free["GPU"] < bundles[0]["GPU"] for free in found.free.values())


def test_a_role_stays_on_nodes_that_declare_its_resource() -> None:
    nodes = [
        Node(name=name, resources={"CPU": 4.0, "GPU": 8.0, own: 8.0, "memory": 1e9}) for name, own in (("a", "learner"), ("b", "rollout"))
    ]
    requests = [PlacementRequest(role=f"rollout actor {i}", bundles=({"CPU": 1.0, "rollout": 1.0},)) for i in range(5)]
    assert check_placement(requests[:4], nodes).placed == {f"rollout actor {i}": ["b"] for i in range(4)}
    with pytest.raises(ConfigError, match=r"1 x 1 CPU and 1 rollout.*a has 4 CPUs, 8 GPUs and 8 learner; b has"):
        check_placement(requests, nodes)


def test_demand_is_told_beside_what_is_free_on_each_node():
    nodes = [Node(name=f"n{i}", resources={"CPU": 3.0, "memory": 1e9} if i else {"GPU": 2.0}) for i in range(10)]
    told = demand_against_supply([{"CPU": 1.0, "GPU": 4.0}] * 2, nodes)
    assert told.startswith("2 x 1 CPU and 4 GPUs wanted; free are n0: 2 GPUs; n1: 3 CPUs; ") and told.endswith("; and 2 more nodes")
    assert demand_against_supply([{"CPU": 1.0}], [Node(name="n", resources={})]) == "1 x 1 CPU wanted; free are n: nothing"
