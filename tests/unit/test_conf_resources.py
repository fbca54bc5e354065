from conf.loading import load_config
from conf.resources import placement_requests, resources_needed


def test_what_the_roles_reserve_on_cpus() -> None:
    config = load_config("quickstart", ["rollout.num_actors=2", "rollout.cpus_per_actor=1.5", "learner.num_ranks=3"])
    assert resources_needed(config) == {"CPU": 6.0, "GPU": 0.0}
    learner, *rollouts = placement_requests(config)
    assert learner.bundles == ({"CPU": 1.0},) * 3
    assert [request.bundles for request in rollouts] == [({"CPU": 1.5},)] * 2


def test_what_the_roles_reserve_on_gpus() -> None:
    words = ["cluster.device=gpu", "rollout.num_actors=2", "rollout.tensor_parallel_size=4", "learner.num_ranks=8"]
    config = load_config("quickstart", words)
    assert resources_needed(config) == {"CPU": 10.0, "GPU": 16.0}
    learner, *rollouts = placement_requests(config)
    assert learner.bundles == ({"CPU": 1.0, "GPU": 1.0},) * 8
    assert rollouts[1].bundles == ({"CPU": 1.0, "GPU": 4.0},)  # one bundle: the engine's GPUs lie on one node


def test_an_evaluation_reserves_no_learner() -> None:
    assert [request.role for request in placement_requests(load_config("quickstart", ["learner.num_ranks=0"]))] == ["rollout actor 0"]


def test_roles_may_be_kept_to_nodes_of_their_own() -> None:
    config = load_config("quickstart", ["rollout.node_resource=rollout", "learner.node_resource=learner", "rollout.num_actors=2"])
    learner, rollout, _ = placement_requests(config)
    assert (learner.bundles, rollout.bundles) == (({"CPU": 1.0, "learner": 1.0},), ({"CPU": 1.0, "rollout": 1.0},))
    assert resources_needed(config) == {"CPU": 3.0, "GPU": 0.0, "learner": 1.0, "rollout": 2.0}
