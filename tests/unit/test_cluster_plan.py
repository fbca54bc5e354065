"""The plan's figures by hand, and what a person reads."""

import json

import pytest
from rich.console import Console

from cluster.memory import KNOWN_MODELS, ModelGeometry, engine_memory, geometry_of, learner_memory
from cluster.placement import Node
from cluster.plan import GIB, print_plan
from conf.checks import check
from conf.loading import ConfigError, load_config, shipped_names
from conf.schema import Device

MODEL = ModelGeometry(
    parameters=1000, vision_parameters=200, num_layers=2, hidden_size=8, intermediate_size=16, kv_heads=4, head_dim=2, vocab_size=10
)
GPU = ["cluster.device=gpu", "model.dtype=bfloat16", "coldstart.steps=0"]


def config(*words):
    return load_config("quickstart", words)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [(0, (2000, 2000, 12000)), (1, (2000, 2000, 3000)), (2, (2000, 500, 3000)), (3, (500, 500, 3000))],
)
def test_zero_shares_out_stage_by_stage(stage, expected):
    parts = learner_memory(MODEL, config(*GPU, "learner.num_ranks=4", f"learner.zero_stage={stage}"))
    assert (parts["weights"], parts["gradients"], parts["optimizer"]) == expected


def test_float32_needs_no_second_copy_and_a_frozen_tower_no_gradients():
    parts = learner_memory(MODEL, config("learner.num_ranks=1", "model.freeze_vision=true"))
    assert (parts["weights"], parts["gradients"], parts["optimizer"]) == (4000, 3200, 6400)


def test_checkpointing_keeps_one_layer():
    words = [*GPU, "learner.microbatch_tokens=1000"]
    layer = 1000 * 2 * (8 * 8 + 4 * 16)
    assert learner_memory(MODEL, config(*words))["activations"] == 2 * layer
    assert learner_memory(MODEL, config(*words, "learner.gradient_checkpointing=true"))["activations"] == layer + 1000 * 2 * 8 * 2


def test_an_engine_s_cache_is_what_its_share_of_the_gpu_leaves():
    parts = engine_memory(MODEL, config(*GPU, "rollout.tensor_parallel_size=2", "cluster.gpu_memory_bytes=10000"))
    assert parts["weights"] == 1000
    assert parts["kv_cache"] == pytest.approx(0.9 * 10000 - 1000)
    assert parts["kv_cache_tokens"] == 8000 // (2 * 2 * 2 * 2 * 2)  # keys and values, layers, heads a GPU, head_dim, bytes


def test_more_gpus_than_heads_double_the_heads():
    one, many = (engine_memory(MODEL, config(*GPU, f"rollout.tensor_parallel_size={n}")) for n in (4, 8))
    assert many["kv_cache"] / many["kv_cache_tokens"] == pytest.approx(one["kv_cache"] / one["kv_cache_tokens"], rel=1e-3)


@pytest.mark.parametrize(("name", "billions"), [("3B", 3.75), ("7B", 8.29), ("32B", 33.45), ("72B", 73.41)])
def test_known_models_have_their_published_size(name, billions):
    assert geometry_of(f"anywhere/Qwen2.5-VL-{name}-Instruct").parameters / 1e9 == pytest.approx(billions, abs=0.01)


def test_a_folder_s_own_configuration_comes_first(tmp_path):
    folder = tmp_path / "Qwen2.5-VL-7B-Instruct"
    folder.mkdir()
    settings = json.loads(json.dumps(KNOWN_MODELS["Qwen2.5-VL-3B-Instruct"]))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", **settings}))
    assert geometry_of(str(folder)).num_layers == 36


def printed(nodes, *words):
    console = Console(record=True, width=120)
    try:
        print_plan(config(*GPU, "model.path=models/Qwen2.5-VL-7B-Instruct", *words), nodes, console)
    except ConfigError as error:
        return console.export_text() + str(error)
    return console.export_text()


def test_a_plan_says_what_fits_and_what_is_missing():
    nodes = [Node(name="10.0.0.1", resources={"CPU": 64.0, "GPU": 8.0})]
    assert "Everything fits." in printed(nodes, "learner.num_ranks=4", "rollout.num_actors=4")
    refused = printed(nodes, "learner.num_ranks=8", "rollout.num_actors=4")
    assert "no room for rollout actor 0 (1 x 1 CPU and 1 GPU)" in refused and "10.0.0.1 has 64 CPUs and 8 GPUs" in refused
    assert "No cluster is connected" in printed(None)


def test_a_plan_warns_of_what_can_not_be_held():
    words = ["learner.zero_stage=0", "model.max_response_tokens=8192", f"cluster.gpu_memory_bytes={24 * GIB}"]
    text = " ".join(printed(None, *words, "learner.microbatch_tokens=16384").split())
    assert "A learner rank is estimated at" in text and "above cluster.gpu_memory_bytes = 24 GiB" in text
    assert "can't hold one sequence" in " ".join(
        printed(None, f"cluster.gpu_memory_bytes={16 * GIB}", "model.max_response_tokens=8192").split()
    )


RECIPES = [name for name in shipped_names() if load_config(name).cluster.device is Device.gpu]


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_fits_on_the_nodes_it_is_written_for(name):
    recipe = load_config(name)
    check(recipe, paths=False)
    num_nodes = 8 if "72b" in name else 1
    nodes = [Node(name=f"10.0.0.{i}", resources={"CPU": 96.0, "GPU": 8.0}) for i in range(num_nodes)]
    console = Console(record=True, width=160)
    print_plan(recipe, nodes, console)
    text = console.export_text()
    assert "Everything fits." in text and "above cluster.gpu_memory_bytes" not in text and "can't hold" not in text


def test_the_five_ablation_arms_and_both_sizes_are_there():
    assert {
        "vl_rethinker_7b",
        "vl_rethinker_72b",
        "virl39k_16k",
        "virl39k_16k_filter",
        "virl39k_16k_grpo",
        "virl39k_13k",
        "virl39k_11k",
    } <= set(RECIPES)
