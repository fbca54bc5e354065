"""What only shows when settings are seen together, and the numbers that follow from them.

Owns the rules between keys; a broken one is a sentence that names the keys and their values and says what would do.
What is wrong with one key's type is conf.loading's business. Must not know Ray, torch or the engines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path

from conf.data_checks import data_rules
from conf.loading import ConfigError
from conf.resources import resources_needed
from conf.rethinking_checks import appends, rethinking_rules
from conf.schema import AdvantageKind, BehaviorWeight, Config, Device, LossWeight, ProximalKind, ReplayMode
from conf.stages import plan_stages
from conf.staleness import staleness_bound

MIN_OBJECT_STORE_BYTES = 80 * 1024**2  # Ray refuses less than 75 MiB
INFINITY = float("inf")


def trajectories_per_step(config: Config) -> int:
    """Count the trajectories that one training step rolls out.

    Args:
        config: of a run.

    Returns:
        Prompts times samples.
    """
    return config.algorithm.prompts_per_step * config.algorithm.samples_per_prompt


def batch_size(config: Config) -> int:
    """Count the trajectories of one optimizer update.

    Args:
        config: of a run.

    Returns:
        algorithm.batch_size, or an equal share of the step's trajectories.

    Raises:
        ConfigError: when the step's trajectories cannot be shared equally.
    """
    if config.algorithm.batch_size is not None:
        return config.algorithm.batch_size
    size, rest = divmod(trajectories_per_step(config), config.algorithm.updates_per_step)
    if rest or not size:
        at = _speaker(config)
        raise ConfigError(
            f"{at('algorithm.updates_per_step')} does not divide the {trajectories_per_step(config)} trajectories of a step"
            f" ({at('algorithm.prompts_per_step')} times {at('algorithm.samples_per_prompt')}); choose one that does, or set"
            " algorithm.batch_size."
        )
    return size


def total_updates(config: Config) -> int:
    """Count the optimizer updates of the whole run.

    Args:
        config: of a run.

    Returns:
        Steps times updates of a step, the length of the learning-rate schedule.
    """
    return config.run.num_steps * config.algorithm.updates_per_step


def check(config: Config, *, paths: bool = True) -> None:
    """Refuse settings that cannot work together.

    Args:
        config: as load_config returns it.
        paths: also look whether the files that it names exist.

    Raises:
        ConfigError: with the sentence of the first broken rule.
    """
    sampling = (_sampling, _algorithm, _priorities, _replay, _replay_parts, _tokens, _rollout, rethinking_rules)
    training = (*sampling, _learner, data_rules, _model)
    rules = (_ranges, _run, *training, _cluster, _evaluation)
    for stage in plan_stages(config):
        _refuse(stage.config, (*rules, *([_paths] if paths else [])))


def check_evaluation(config: Config, *, paths: bool = True) -> None:
    """Refuse settings that `rethinker evaluate` cannot work with; what only training needs may be missing.

    Args:
        config: as load_config returns it.
        paths: also look whether the folders that it names exist.

    Raises:
        ConfigError: with the sentence of the first broken rule.
    """
    rules = (_ranges, _run, _evaluation)
    _refuse(config, (*rules, _evaluation_paths) if paths else rules)
    _refuse(dataclasses.replace(config, learner=dataclasses.replace(config.learner, num_ranks=0)), (_cluster,))  # it has no learner


def check_scoring(config: Config) -> None:
    """Refuse settings that answers cannot be scored with.

    Args:
        config: as load_config returns it.

    Raises:
        ConfigError: with the sentence of the first broken rule.
    """
    _refuse(config, (_ranges, _evaluation))


def token_limits(config: Config) -> list[int]:
    """The numbers of new tokens at which an evaluation counts.

    Args:
        config: of the evaluation.

    Returns:
        Increasing, at least one.
    """
    evaluation = config.evaluation
    return sorted(set(evaluation.token_limits)) or [evaluation.max_response_tokens or config.model.max_response_tokens]


def _refuse(config: Config, rules: Sequence[Callable[[Config, _Speaker], Iterator[str]]]) -> None:
    for rule in rules:
        for sentence in rule(config, _speaker(config)):
            raise ConfigError(sentence)


_Speaker = Callable[[str], str]


def _speaker(config: Config) -> _Speaker:
    """A function from a dotted key to the words "key = value", as a user would write the value."""

    def say(key: str) -> str:
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        if isinstance(value, Enum):
            return f"{key} = {value.value}"
        if value is None or isinstance(value, bool):
            return f"{key} = {'null' if value is None else str(value).lower()}"
        return f"{key} = {list(value) if isinstance(value, tuple) else value!r}"

    return say


# Keys that end so are sizes or times, and above zero.
_POSITIVE_SUFFIXES = ("_s", "_bytes", "_tokens", "_pixels", "_size", "cpus_per_actor", "cpus_per_rank", "threads", "learning_rate")
_BOUNDS = {  # lowest and highest value, both allowed
    "algorithm.behavior_ratio_cap": (1.0, INFINITY),
    "algorithm.max_staleness": (0, INFINITY),
    "algorithm.prompts_per_step": (1, INFINITY),
    "algorithm.sequence_ratio_high": (0.0, INFINITY),
    "algorithm.sequence_ratio_low": (0.0, INFINITY),
    "algorithm.updates_per_step": (1, INFINITY),
    "checkpoint.every_steps": (0, INFINITY),
    "checkpoint.keep_last": (1, INFINITY),
    "cluster.num_cpus": (1, INFINITY),
    "cluster.object_store_bytes": (MIN_OBJECT_STORE_BYTES, INFINITY),
    "coldstart.direct_fraction": (0.0, 1.0),
    "coldstart.direct_steps": (0, INFINITY),
    "coldstart.examples": (1, INFINITY),
    "coldstart.rethinking_fraction": (0.0, 1.0),
    "coldstart.seed": (0, INFINITY),
    "coldstart.steps": (0, INFINITY),
    "data.max_bad_fraction": (0.0, 1.0),
    "data.max_question_chars": (1, INFINITY),
    "evaluation.every_steps": (0, INFINITY),
    "evaluation.confidence": (0.5, 0.9999),
    "evaluation.num_questions": (0, INFINITY),
    "evaluation.questions_per_benchmark": (0, INFINITY),
    "evaluation.resamples": (1, 1_000_000),
    "evaluation.seed": (0, INFINITY),
    "guard.max_ratio": (1.0, INFINITY),
    "guard.min_accuracy_fall": (0.0, 1.0),
    "guard.min_accuracy_share": (0.0, 1.0),
    "guard.min_effective_query_ratio": (0.0, 1.0),
    "guard.min_ess": (0.0, 1.0),
    "guard.window_steps": (1, INFINITY),
    "learner.min_learning_rate_ratio": (0.0, 1.0),
    "learner.num_ranks": (1, INFINITY),
    "learner.warmup_fraction": (0.0, 1.0),
    "learner.weight_decay": (0.0, INFINITY),
    "learner.zero_stage": (0, 3),
    "model.max_images_per_prompt": (0, INFINITY),
    "replay.importance_exponent": (0.0, INFINITY),
    "replay.max_age": (0, INFINITY),
    "replay.max_times_sampled": (1, INFINITY),
    "replay.min_size": (1, INFINITY),
    "replay.max_trajectories": (1, INFINITY),
    "replay.priority_exponent": (0.0, INFINITY),
    "rethinking.cut_fraction": (0.0, 1.0),
    "rethinking.fraction": (0.0, 1.0),
    "rethinking.nll_weight": (0.0, INFINITY),
    "reward.grader_processes": (1, INFINITY),
    "reward.invalid_reward": (-INFINITY, 0.0),
    "rollout.gpu_memory_utilization": (0.01, 1.0),
    "rollout.max_concurrent_sequences": (1, INFINITY),
    "rollout.num_actors": (1, INFINITY),
    "rollout.prompts_per_call": (1, INFINITY),
    "run.num_steps": (1, INFINITY),
    "run.seed": (0, INFINITY),
}


def _ranges(config: Config, at: _Speaker) -> Iterator[str]:
    """One key, one value."""
    for section in dataclasses.fields(config):
        for name, value in vars(getattr(config, section.name)).items():
            key = f"{section.name}.{name}"
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if value != value or abs(value) == INFINITY:
                yield f"{at(key)} is no number to count with."
            low, high = _BOUNDS.get(key, (-INFINITY, INFINITY))
            if not low <= value <= high:
                span = f"at least {low}" if high == INFINITY else f"at most {high}" if low == -INFINITY else f"{low} to {high}"
                yield f"{at(key)} is out of range, expected {span}."
            if name.endswith(_POSITIVE_SUFFIXES) and not value > 0:
                yield f"{at(key)} is out of range, expected more than 0."


def _run(config: Config, at: _Speaker) -> Iterator[str]:
    if not config.run.dir.strip():
        yield f"{at('run.dir')} names no folder; a run needs one for its results."
    if config.run.resume and config.run.overwrite:
        yield f"{at('run.resume')} and {at('run.overwrite')} exclude each other: go on with the run in the folder, or replace it."


def _sampling(config: Config, at: _Speaker) -> Iterator[str]:
    rollout = config.rollout
    if not rollout.temperature > 0:
        yield f"{at('rollout.temperature')} would sample the same response every time, expected more than 0."
    why = (
        "is refused: the engine's log-probs would be exact, but over the few tokens that its weights kept at each position; the learner, at"
        " other weights, doesn't know which, and every importance ratio would be biased"
    )
    if rollout.top_p != 1.0:
        yield f"{at('rollout.top_p')} {why}; set it to 1."
    if rollout.top_k != -1:
        yield f"{at('rollout.top_k')} {why}; set it to -1."


def _algorithm(config: Config, at: _Speaker) -> Iterator[str]:
    algorithm = config.algorithm
    if algorithm.samples_per_prompt < 2:
        yield f"{at('algorithm.samples_per_prompt')} leaves {at('algorithm.advantage')} nothing to compare with, expected at least 2."
    if not 0 < algorithm.clip_low <= 1:
        yield f"{at('algorithm.clip_low')} is out of range: ratios are clipped from below at 1 - clip_low, expected above 0, at most 1."
    if not algorithm.clip_high > 0:
        yield f"{at('algorithm.clip_high')} is out of range: ratios are clipped from above at 1 + clip_high, expected above 0."
    if algorithm.proximal is ProximalKind.behavior and algorithm.behavior_weight is BehaviorWeight.tapered:
        yield (
            f"{at('algorithm.behavior_weight')} tapers pi_proximal / pi_behavior, which is always 1 with {at('algorithm.proximal')}; set"
            " algorithm.proximal=recompute or algorithm.behavior_weight=none."
        )
    if (algorithm.sequence_ratio_low or 0.0) >= 1.0 or (algorithm.sequence_ratio_high or INFINITY) <= 1.0:
        yield (
            f"{at('algorithm.sequence_ratio_low')} and {at('algorithm.sequence_ratio_high')} leave out what the policy itself sampled,"
            " whose ratio is 1; expected one below and one above 1, or null."
        )
    size, updates = batch_size(config), algorithm.updates_per_step
    if config.replay.mode is ReplayMode.none and size * updates != trajectories_per_step(config):
        yield (
            f"{at('replay.mode')} trains every trajectory of a step once, but {at('algorithm.batch_size')} times"
            f" {at('algorithm.updates_per_step')} is {size * updates}, and {at('algorithm.prompts_per_step')} times"
            f" {at('algorithm.samples_per_prompt')} is {trajectories_per_step(config)}; leave algorithm.batch_size=null."
        )


def _priorities(config: Config, at: _Speaker) -> Iterator[str]:
    corrected = config.algorithm.loss_weight is LossWeight.corrected
    if corrected and not config.replay.importance_exponent > 0:
        yield f"{at('algorithm.loss_weight')} corrects nothing while {at('replay.importance_exponent')}; 1 corrects in full."
    if not corrected and config.replay.importance_exponent > 0:
        yield (
            f"{at('replay.importance_exponent')} would be ignored, because {at('algorithm.loss_weight')}; set"
            " algorithm.loss_weight=corrected, or the exponent to 0."
        )
    if corrected and config.replay.mode in (ReplayMode.none, ReplayMode.filter):
        yield (
            f"{at('algorithm.loss_weight')} is for trajectories drawn by priority, but {at('replay.mode')} draws none; set"
            " algorithm.loss_weight=advantage and replay.importance_exponent=0."
        )


def _replay(config: Config, at: _Speaker) -> Iterator[str]:
    replay, staleness = config.replay, config.algorithm.max_staleness
    room = staleness_bound(config).groups_ahead * config.algorithm.samples_per_prompt * (2 if appends(config) else 1)
    if replay.max_trajectories < room:
        yield (
            f"{at('replay.max_trajectories')} cannot hold what arrives between two draws: {trajectories_per_step(config)} trajectories a"
            f" step with {at('algorithm.max_staleness')} make {room}."
        )
    if replay.mode is ReplayMode.fresh and replay.max_age < max(1, staleness):
        yield (
            f"{at('replay.max_age')} leaves {at('replay.mode')} nothing older to draw from; with {at('algorithm.max_staleness')} it needs"
            f" at least {max(1, staleness)}."
        )
    if replay.mode in (ReplayMode.fresh, ReplayMode.prioritized) and not replay.age_decay_steps > 0:
        yield f"{at('replay.age_decay_steps')} is the time constant of {at('replay.mode')}, expected more than 0."


def _replay_parts(config: Config, at: _Speaker) -> Iterator[str]:
    """Limits of reuse and of the ratio, which only some modes have a place for."""
    replay = config.replay
    if replay.mode in (ReplayMode.none, ReplayMode.filter, ReplayMode.episode):
        for key, is_set in (("max_times_sampled", replay.max_times_sampled is not None), ("priority_refresh", replay.priority_refresh)):
            if is_set:
                yield f"{at(f'replay.{key}')} is for trajectories that stay, but {at('replay.mode')} keeps none beyond its step."
    if replay.priority_refresh and config.algorithm.advantage is not AdvantageKind.mean:
        yield f"{at('replay.priority_refresh')} subtracts a newer mean reward, which is not what {at('algorithm.advantage')} does."
    if replay.mode is not ReplayMode.prioritized:
        for key, is_set in (("min_size", replay.min_size > 1), ("samples_per_insert", replay.samples_per_insert is not None)):
            if is_set:
                yield f"{at(f'replay.{key}')} paces draws by what was inserted, but {at('replay.mode')} paces them by whole steps."
    if replay.min_size > replay.max_trajectories:
        yield f"{at('replay.min_size')} is above {at('replay.max_trajectories')}: no draw could ever be made."
    if (replay.samples_per_insert is None) != (replay.samples_per_insert_error is None):
        yield f"{at('replay.samples_per_insert')} and {at('replay.samples_per_insert_error')} are set together or not at all."
    if replay.samples_per_insert is not None and replay.samples_per_insert_error is not None:
        if not replay.samples_per_insert > 0:
            yield f"{at('replay.samples_per_insert')} would shut the door for draws, expected more than 0."
        draws, inserts = batch_size(config) * config.algorithm.updates_per_step, trajectories_per_step(config)
        budget = (draws + inserts * replay.samples_per_insert) / 2
        if replay.samples_per_insert_error < budget:
            yield (
                f"{at('replay.samples_per_insert_error')} could shut both doors at once: a step draws {draws} and inserts up to {inserts},"
                f" so with {at('replay.samples_per_insert')} it needs at least {budget:g}."
            )


def _tokens(config: Config, at: _Speaker) -> Iterator[str]:
    model, rollout = config.model, config.rollout
    if model.min_pixels > model.max_pixels:
        yield f"{at('model.min_pixels')} is above {at('model.max_pixels')}."
    longest = model.max_prompt_tokens + model.max_response_tokens
    if config.learner.microbatch_tokens < longest:
        yield (
            f"{at('learner.microbatch_tokens')} cannot hold one trajectory: {at('model.max_prompt_tokens')} and"
            f" {at('model.max_response_tokens')} make {longest}."
        )
    if rollout.max_batched_tokens < model.max_prompt_tokens:
        yield (
            f"{at('rollout.max_batched_tokens')} is below {at('model.max_prompt_tokens')}: the engine could not take in a long prompt"
            " with its images at once."
        )
    if config.cluster.device is Device.cpu and rollout.max_batched_tokens <= longest:
        # vLLM's CPU build cannot cut a seeded request's prefill in two, and one that goes on after a weight update is prefilled whole
        yield (
            f"{at('rollout.max_batched_tokens')} must be above {at('model.max_prompt_tokens')} and {at('model.max_response_tokens')}"
            f" together, {longest}: on a CPU a sequence is always taken in at once."
        )
    if rollout.max_batched_tokens < rollout.max_concurrent_sequences:
        yield (
            f"{at('rollout.max_batched_tokens')} is below {at('rollout.max_concurrent_sequences')}: every running sequence takes a token"
            " of each batch."
        )


def _rollout(config: Config, at: _Speaker) -> Iterator[str]:
    rollout, algorithm = config.rollout, config.algorithm
    if rollout.prompts_per_call > algorithm.prompts_per_step:
        yield f"{at('rollout.prompts_per_call')} is above {at('algorithm.prompts_per_step')}: a call would never be full."
    if rollout.max_concurrent_sequences < algorithm.samples_per_prompt:
        yield (
            f"{at('rollout.max_concurrent_sequences')} is below {at('algorithm.samples_per_prompt')}: the samples of one prompt could not"
            " run together."
        )
    if config.cluster.device is Device.cpu and rollout.tensor_parallel_size != 1:
        yield f"{at('rollout.tensor_parallel_size')} needs GPUs, but {at('cluster.device')}; raise rollout.num_actors or rollout.threads."


def _learner(config: Config, at: _Speaker) -> Iterator[str]:
    learner = config.learner
    if learner.num_ranks > batch_size(config):
        yield (
            f"{at('learner.num_ranks')} is above the {batch_size(config)} trajectories of a batch ({at('algorithm.batch_size')},"
            f" {at('algorithm.updates_per_step')}): a rank would have nothing to do."
        )
    if not all(0 <= beta < 1 for beta in learner.betas):
        yield f"{at('learner.betas')} are out of range, expected two numbers from 0 to below 1."
    if not learner.max_grad_norm > 0:
        yield f"{at('learner.max_grad_norm')} would clip every gradient away, expected more than 0."


def _model(config: Config, at: _Speaker) -> Iterator[str]:
    if 0 < config.coldstart.steps < config.coldstart.direct_steps:
        yield f"{at('coldstart.direct_steps')} are the last of all steps, but {at('coldstart.steps')}."
    if not config.model.path and config.coldstart.steps == 0:
        yield f"{at('model.path')} and {at('coldstart.steps')} leave no model; name a Hugging Face folder, or let the cold start make one."


def _cluster(config: Config, at: _Speaker) -> Iterator[str]:
    cluster, needed = config.cluster, resources_needed(config)["CPU"]
    if cluster.address and cluster.num_cpus is not None:
        yield f"{at('cluster.num_cpus')} sizes a local cluster, but {at('cluster.address')} names a running one."
    if cluster.num_cpus is not None and needed > cluster.num_cpus:
        yield f"{at('cluster.num_cpus')} is too few for {at('rollout.num_actors')} and {at('learner.num_ranks')}, which need {needed:g}."


def _evaluation(config: Config, at: _Speaker) -> Iterator[str]:
    evaluation = config.evaluation
    if any(limit < 1 for limit in evaluation.token_limits):
        yield f"{at('evaluation.token_limits')} holds a number below 1."
    if evaluation.token_limits and evaluation.max_response_tokens is not None:
        yield f"{at('evaluation.token_limits')} and {at('evaluation.max_response_tokens')} both limit the answers; leave one of them out."
    if len(set(evaluation.benchmarks)) < len(evaluation.benchmarks):
        yield f"{at('evaluation.benchmarks')} names a benchmark twice."


def _evaluation_paths(config: Config, at: _Speaker) -> Iterator[str]:
    if config.evaluation.benchmarks:
        if not Path(config.evaluation.benchmarks_dir).is_dir():
            yield f"{at('evaluation.benchmarks_dir')} does not exist; expected a folder for each of {at('evaluation.benchmarks')}."
    elif not config.data.test_path:
        yield f"{at('data.test_path')} names no held-out questions to evaluate on, and {at('evaluation.benchmarks')} no benchmark."
    elif not config.data.generate and not config.data.reader and not Path(config.data.test_path).exists():
        yield f"{at('data.test_path')} does not exist."


def _paths(config: Config, at: _Speaker) -> Iterator[str]:
    data = config.data
    if config.model.path and not Path(config.model.path, "config.json").is_file():
        yield f"{at('model.path')} is no Hugging Face model folder: there is no config.json in it."
    elif config.model.path and not any(Path(config.model.path).glob("*.safetensors")):
        yield f"{at('model.path')} holds no *.safetensors; weights in other formats are pickles, which run code, and are not loaded."
    for key, path in (("data.path", data.path), ("data.test_path", data.test_path)):
        if path and not data.generate and not data.reader and not Path(path).exists():
            yield f"{at(key)} does not exist; expected a data folder or file (docs/data.md)."
