from pathlib import Path

import pytest

from conf.checks import check, check_evaluation, token_limits
from conf.loading import CONF_DIR, ConfigError, load_config
from conf.schema import Config
from conf.sizes import batch_size, total_updates, trajectories_per_step

GPU = "cluster.device=gpu"


def load(*overrides: str) -> Config:
    return load_config("quickstart", overrides)


def test_derived_numbers() -> None:
    config = load("algorithm.prompts_per_step=6", "algorithm.samples_per_prompt=4", "algorithm.updates_per_step=3", "run.num_steps=10")
    assert trajectories_per_step(config) == 24
    assert batch_size(config) == 8
    assert total_updates(config) == 30
    assert batch_size(load("algorithm.batch_size=5")) == 5


@pytest.mark.parametrize("path", sorted(CONF_DIR.glob("experiment/*.yaml")), ids=lambda path: path.name)
def test_every_shipped_experiment_passes(path: Path) -> None:
    config = load_config(str(path))
    (check_evaluation if config.evaluation.benchmarks else check)(config, paths=False)


@pytest.mark.parametrize(
    "overrides",
    [
        ["replay.mode=none"],
        ["replay.mode=none", "algorithm.updates_per_step=2", "algorithm.batch_size=256"],
        ["replay.mode=episode", "algorithm.batch_size=100"],
        ["replay.mode=fresh", "algorithm.loss_weight=corrected", "replay.importance_exponent=0.5"],
        ["replay.mode=fresh", "replay.max_times_sampled=4", "replay.priority_refresh=true", "replay.remover=stalest"],
        ["replay.mode=prioritized", "replay.min_size=512", "replay.samples_per_insert=1", "replay.samples_per_insert_error=512"],
        ["algorithm.max_staleness=3", "rollout.num_actors=2", "learner.num_ranks=2", "learner.zero_stage=3"],
        ["algorithm.behavior_weight=tapered", "algorithm.proximal=interpolate", "algorithm.updates_per_step=2"],
        ["algorithm.proximal=behavior", "algorithm.sequence_ratio_low=null", "algorithm.sequence_ratio_high=null"],
        ["model.dtype=bfloat16"],
        [GPU, "rollout.tensor_parallel_size=2"],
        ["rollout.tensor_parallel_size=2"],  # two processes of vLLM's CPU build
        ["data.test_path=", "data.generate=", "data.path=elsewhere"],
        ["cluster.address=10.0.0.1:6379"],
        ["rethinking.enabled=true", "rethinking.placement=append", "rethinking.fraction=1"],
        ["rethinking.enabled=true", "rethinking.variant=paper_code", "replay.mode=none"],
        ["rethinking.self_correction=[]", "rethinking.category_weights=[1,0,1]", "evaluation.mode=bound"],
    ],
    ids=" ".join,
)
def test_possible_combinations(overrides: list[str]) -> None:
    check(load(*overrides), paths=False)


BROKEN = [
    (["rethinking.fraction=1.5"], ["rethinking.fraction = 1.5", "0.0 to 1.0"]),
    (["rethinking.nll_weight=-1"], ["rethinking.nll_weight = -1.0", "at least 0"]),
    (["rethinking.temperature=0"], ["rethinking.temperature = 0.0"]),
    (["rethinking.category_weights=[0,0,0]"], ["rethinking.category_weights = [0.0, 0.0, 0.0]", "no trigger"]),
    (["rethinking.self_correction=[]"], ["rethinking.self_correction = []", "rethinking.category_weights = [1.0, 1.0, 1.0]"]),
    (["rethinking.words=['']"], ["rethinking", "is empty"]),
    (
        ["rethinking.enabled=true", "rethinking.placement=append", "replay.mode=none"],
        ["replay.mode = none", "rethinking.placement = append"],
    ),
    (
        ["rethinking.enabled=true", "rethinking.placement=append", "rethinking.variant=paper_code"],
        ["rethinking.variant = paper_code", "rethinking.placement = append"],
    ),
    (
        ["rethinking.enabled=true", "rethinking.placement=append", "replay.max_trajectories=600"],
        ["replay.max_trajectories = 600", "1024"],
    ),
    (["evaluation.mode=forced", "data.test_path=", "data.generate="], ["evaluation.mode = forced", "data.test_path = ''"]),
    (["run.seed=-1"], ["run.seed = -1", "at least 0"]),
    (["coldstart.steps=20", "coldstart.direct_steps=30"], ["coldstart.direct_steps = 30", "coldstart.steps = 20"]),
    (["run.num_steps=0"], ["run.num_steps = 0", "at least 1"]),
    (["run.resume=true", "run.overwrite=true"], ["run.resume = true", "run.overwrite = true"]),
    (["run.dir=' '"], ["run.dir = ' '"]),
    (["learner.learning_rate=0"], ["learner.learning_rate = 0.0", "more than 0"]),
    (["learner.learning_rate=.nan"], ["learner.learning_rate = nan"]),
    (["learner.timeout_s=.inf"], ["learner.timeout_s = inf"]),
    (["rollout.timeout_s=0"], ["rollout.timeout_s = 0.0"]),
    (["weights.timeout_s=-1"], ["weights.timeout_s = -1.0"]),
    (["algorithm.samples_per_prompt=1"], ["algorithm.samples_per_prompt = 1", "algorithm.advantage = mean", "at least 2"]),
    (
        ["algorithm.samples_per_prompt=1", "algorithm.advantage=leave_one_out"],
        ["algorithm.samples_per_prompt = 1", "algorithm.advantage = leave_one_out"],
    ),
    (["algorithm.max_staleness=-1"], ["algorithm.max_staleness = -1", "at least 0"]),
    (["algorithm.clip_low=1.5"], ["algorithm.clip_low = 1.5"]),
    (["algorithm.clip_low=0"], ["algorithm.clip_low = 0.0"]),
    (["algorithm.clip_high=0"], ["algorithm.clip_high = 0.0"]),
    (["algorithm.behavior_ratio_cap=0.5"], ["algorithm.behavior_ratio_cap = 0.5"]),
    (["algorithm.sequence_ratio_low=1.5"], ["algorithm.sequence_ratio_low = 1.5", "below"]),
    (["algorithm.sequence_ratio_high=0.9"], ["algorithm.sequence_ratio_high = 0.9", "above 1"]),
    (
        ["algorithm.proximal=behavior", "algorithm.behavior_weight=tapered"],
        ["algorithm.behavior_weight = tapered", "algorithm.proximal = behavior"],
    ),
    (["guard.max_ratio=0.5"], ["guard.max_ratio = 0.5", "at least 1"]),
    (["guard.window_steps=0"], ["guard.window_steps = 0", "at least 1"]),
    (["guard.min_ess=1.5"], ["guard.min_ess = 1.5", "0.0 to 1.0"]),
    (["supervision.dead_after=2"], ["supervision.dead_after = 2", "supervision.suspect_after = 3"]),
    (["supervision.max_restarts=-1"], ["supervision.max_restarts = -1", "at least 0"]),
    (["supervision.heartbeat_s=0"], ["supervision.heartbeat_s = 0.0"]),
    (["rollout.num_actors=-1"], ["rollout.num_actors = -1", "at least 0"]),
    (["rollout.max_actors=4"], ["rollout.min_actors = null", "rollout.max_actors = 4"]),
    (["rollout.min_actors=2", "rollout.max_actors=4"], ["rollout.num_actors = 1", "rollout.min_actors = 2", "rollout.max_actors = 4"]),
    (["rollout.temperature=0"], ["rollout.temperature = 0.0", "more than 0"]),
    (["rollout.top_p=0.9"], ["rollout.top_p = 0.9", "biased"]),
    (["rollout.top_k=50"], ["rollout.top_k = 50", "biased"]),
    (["algorithm.updates_per_step=3"], ["algorithm.updates_per_step = 3", "algorithm.prompts_per_step = 64", "512"]),
    (["replay.mode=none", "algorithm.batch_size=100"], ["replay.mode = none", "algorithm.batch_size = 100", "100", "512"]),
    (["algorithm.loss_weight=corrected"], ["algorithm.loss_weight = corrected", "replay.importance_exponent = 0.0"]),
    (["replay.importance_exponent=0.5"], ["replay.importance_exponent = 0.5", "algorithm.loss_weight = advantage"]),
    (
        ["algorithm.loss_weight=corrected", "replay.importance_exponent=1", "replay.mode=filter"],
        ["algorithm.loss_weight = corrected", "replay.mode = filter"],
    ),
    (
        ["replay.max_trajectories=600", "algorithm.max_staleness=1"],
        ["replay.max_trajectories = 600", "algorithm.max_staleness = 1", "1024"],
    ),
    (["replay.mode=fresh", "replay.max_age=0"], ["replay.max_age = 0", "replay.mode = fresh"]),
    (["replay.mode=fresh", "replay.max_age=1", "algorithm.max_staleness=2"], ["replay.max_age = 1", "algorithm.max_staleness = 2"]),
    (["replay.mode=episode", "replay.max_times_sampled=3"], ["replay.max_times_sampled = 3", "replay.mode = episode"]),
    (["replay.mode=filter", "replay.priority_refresh=true"], ["replay.priority_refresh = true", "replay.mode = filter"]),
    (
        ["replay.mode=fresh", "replay.priority_refresh=true", "algorithm.advantage=std"],
        ["replay.priority_refresh = true", "algorithm.advantage = std"],
    ),
    (["replay.mode=fresh", "replay.min_size=9"], ["replay.min_size = 9", "replay.mode = fresh"]),
    (["replay.mode=fresh", "replay.samples_per_insert=2"], ["replay.samples_per_insert = 2.0", "replay.mode = fresh"]),
    (
        ["replay.mode=prioritized", "replay.min_size=99999", "replay.max_trajectories=5000"],
        ["replay.min_size = 99999", "replay.max_trajectories = 5000"],
    ),
    (
        ["replay.mode=prioritized", "replay.samples_per_insert=2"],
        ["replay.samples_per_insert = 2.0", "replay.samples_per_insert_error = null"],
    ),
    (
        ["replay.mode=prioritized", "replay.samples_per_insert=2", "replay.samples_per_insert_error=100"],
        ["replay.samples_per_insert_error = 100.0", "replay.samples_per_insert = 2.0", "768"],
    ),
    (["replay.max_times_sampled=0"], ["replay.max_times_sampled = 0"]),
    (["replay.mode=fresh", "replay.age_decay_steps=0"], ["replay.age_decay_steps = 0.0", "replay.mode = fresh"]),
    (["model.min_pixels=20000"], ["model.min_pixels = 20000", "model.max_pixels = 12544"]),
    (["learner.microbatch_tokens=300"], ["learner.microbatch_tokens = 300", "model.max_prompt_tokens = 256", "304"]),
    (["rollout.max_batched_tokens=255"], ["rollout.max_batched_tokens = 255", "model.max_prompt_tokens = 256"]),
    (
        ["rollout.max_batched_tokens=304"],
        ["rollout.max_batched_tokens = 304", "model.max_prompt_tokens = 256", "model.max_response_tokens = 48"],
    ),
    (
        ["rollout.max_concurrent_sequences=5000"],
        ["rollout.max_batched_tokens = 4096", "rollout.max_concurrent_sequences = 5000"],
    ),
    (["rollout.prompts_per_call=65"], ["rollout.prompts_per_call = 65", "algorithm.prompts_per_step = 64"]),
    (["rollout.max_concurrent_sequences=4"], ["rollout.max_concurrent_sequences = 4", "algorithm.samples_per_prompt = 8"]),
    ([GPU, "rollout.tensor_parallel_size=0"], ["rollout.tensor_parallel_size = 0"]),
    (["learner.zero_stage=4"], ["learner.zero_stage = 4", "0 to 3"]),
    (["learner.num_ranks=600"], ["learner.num_ranks = 600", "512", "algorithm.batch_size = null"]),
    (["learner.betas=[0.9,1.0]"], ["learner.betas = [0.9, 1.0]"]),
    (["learner.max_grad_norm=0"], ["learner.max_grad_norm = 0.0"]),
    (["data.generate=imagenet"], ["data.generate = 'imagenet'"]),
    (["data.generate=", "data.path="], ["data.path = ''"]),
    (["data.categories=[a,b]", "data.exclude_categories=[b]"], ["data.categories = ['a', 'b']", "data.exclude_categories = ['b']"]),
    (["data.generate=", "data.test_path=", "evaluation.every_steps=5"], ["evaluation.every_steps = 5", "data.test_path = ''"]),
    (["data.generate=", "data.path=one", "data.test_path=one"], ["data.path = 'one'", "data.test_path = 'one'"]),
    (["data.path=elsewhere/train"], ["data.generate = 'quickstart'", "data.path = 'elsewhere/train'"]),
    (["coldstart.steps=0"], ["model.path = ''", "coldstart.steps = 0"]),
    (["cluster.num_cpus=1"], ["cluster.num_cpus = 1", "rollout.num_actors = 1", "learner.num_ranks = 1"]),
    (["cluster.num_cpus=0"], ["cluster.num_cpus = 0"]),
    (["cluster.num_cpus=4", "cluster.address=auto"], ["cluster.num_cpus = 4", "cluster.address = 'auto'"]),
    (["cluster.object_store_bytes=1000"], ["cluster.object_store_bytes = 1000"]),
]


@pytest.mark.parametrize(("overrides", "named"), BROKEN, ids=[" ".join(overrides) for overrides, _ in BROKEN])
def test_an_impossible_combination_is_one_sentence_that_names_keys_and_values(overrides: list[str], named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check(load(*overrides), paths=False)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in named), message


def test_paths_that_do_not_exist(tmp_path: Path) -> None:
    data, model = tmp_path / "data", tmp_path / "model"
    words = ["data.generate=", f"data.path={data}", "data.test_path=", f"model.path={model}", "coldstart.steps=0"]
    with pytest.raises(ConfigError, match=r"model\.path = .*config\.json"):
        check(load(*words))
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "pytorch_model.bin").touch()
    with pytest.raises(ConfigError, match=r"model\.path = .*no \*\.safetensors"):
        check(load(*words))
    (model / "model.safetensors").touch()
    with pytest.raises(ConfigError, match=r"data\.path = .*does not exist"):
        check(load(*words))
    data.mkdir()
    check(load(*words))


def test_an_evaluation_needs_no_training_settings_but_something_to_ask(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.test_path = '' names no held-out questions .* evaluation.benchmarks = \[\] no benchmark"):
        check_evaluation(load_config("default"))
    check_evaluation(load_config("default", ["evaluation.benchmarks=[mmmu]", f"evaluation.benchmarks_dir={tmp_path}"]))
    both = ["evaluation.benchmarks=[mmmu]", "evaluation.token_limits=[64]", "evaluation.max_response_tokens=64"]
    with pytest.raises(ConfigError, match=r"evaluation.token_limits = \[64\] and evaluation.max_response_tokens = 64"):
        check_evaluation(load_config("default", both), paths=False)


def test_token_limits_are_the_list_or_the_one_limit() -> None:
    assert token_limits(load_config("default", ["evaluation.token_limits=[8192,2048,2048]"])) == [2048, 8192]
    assert token_limits(load_config("default", ["evaluation.max_response_tokens=64"])) == [64]
    assert token_limits(load_config("default")) == [2048]


def test_an_evaluation_needs_no_cpus_for_a_learner(tmp_path: Path) -> None:
    words = ["evaluation.benchmarks=[mmmu]", f"evaluation.benchmarks_dir={tmp_path}", "rollout.num_actors=2"]
    check_evaluation(load_config("default", [*words, "cluster.num_cpus=2"]))
    with pytest.raises(ConfigError, match=r"cluster.num_cpus = 1 is too few for rollout.num_actors = 2"):
        check_evaluation(load_config("default", [*words, "cluster.num_cpus=1"]))
