"""What only shows when settings are seen together, and the numbers that follow from them.

Owns the rules between keys; a broken one is a sentence that names the keys and their values and says what would do.
What is wrong with one key's type is conf.loading's business. Must not know Ray, torch or the engines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from conf.data_checks import data_rules
from conf.loading import ConfigError
from conf.ranges import INFINITY, range_rules
from conf.replay_checks import replay_rules
from conf.resources import resources_needed
from conf.rethinking_checks import rethinking_rules
from conf.schema import BehaviorWeight, Config, Device, ProximalKind, ReplayMode
from conf.sizes import batch_size, trajectories_per_step
from conf.stages import plan_stages
from conf.supervision_checks import needs_actors, supervision_rules
from conf.wording import Speaker, speaker


def check(config: Config, *, paths: bool = True) -> None:
    """Refuse settings that cannot work together.

    Args:
        config: as load_config returns it.
        paths: also look whether the files that it names exist.

    Raises:
        ConfigError: with the sentence of the first broken rule.
    """
    sampling = (_sampling, _algorithm, replay_rules, _tokens, _rollout, rethinking_rules)
    training = (*sampling, _learner, supervision_rules, data_rules, _model)
    rules = (range_rules, _run, *training, _cluster, _evaluation)
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
    rules = (range_rules, _run, needs_actors, _evaluation)
    _refuse(config, (*rules, _evaluation_paths) if paths else rules)
    _refuse(dataclasses.replace(config, learner=dataclasses.replace(config.learner, num_ranks=0)), (_cluster,))  # it has no learner


def check_scoring(config: Config) -> None:
    """Refuse settings that answers cannot be scored with.

    Args:
        config: as load_config returns it.

    Raises:
        ConfigError: with the sentence of the first broken rule.
    """
    _refuse(config, (range_rules, _evaluation))


def token_limits(config: Config) -> list[int]:
    """The numbers of new tokens at which an evaluation counts.

    Args:
        config: of the evaluation.

    Returns:
        Increasing, at least one.
    """
    evaluation = config.evaluation
    return sorted(set(evaluation.token_limits)) or [evaluation.max_response_tokens or config.model.max_response_tokens]


def _refuse(config: Config, rules: Sequence[Callable[[Config, Speaker], Iterator[str]]]) -> None:
    for rule in rules:
        for sentence in rule(config, speaker(config)):
            raise ConfigError(sentence)


def _run(config: Config, at: Speaker) -> Iterator[str]:
    if not config.run.dir.strip():
        yield f"{at('run.dir')} names no folder; a run needs one for its results."
    for key, goes_on in (("run.resume", config.run.resume), ("run.auto_resume", config.run.auto_resume)):
        if goes_on and config.run.overwrite:
            yield f"{at(key)} and {at('run.overwrite')} exclude each other: go on with the run in the folder, or replace it."


def _sampling(config: Config, at: Speaker) -> Iterator[str]:
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


def _algorithm(config: Config, at: Speaker) -> Iterator[str]:
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


def _tokens(config: Config, at: Speaker) -> Iterator[str]:
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


def _rollout(config: Config, at: Speaker) -> Iterator[str]:
    rollout, algorithm = config.rollout, config.algorithm
    if rollout.prompts_per_call > algorithm.prompts_per_step:
        yield f"{at('rollout.prompts_per_call')} is above {at('algorithm.prompts_per_step')}: a call would never be full."
    if rollout.lockstep and algorithm.max_staleness > 0:
        yield f"{at('rollout.lockstep')} needs algorithm.max_staleness = 0: with {at('algorithm.max_staleness')} steps overlap."
    if rollout.max_concurrent_sequences < algorithm.samples_per_prompt:
        yield (
            f"{at('rollout.max_concurrent_sequences')} is below {at('algorithm.samples_per_prompt')}: the samples of one prompt could not"
            " run together."
        )


def _learner(config: Config, at: Speaker) -> Iterator[str]:
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


def _model(config: Config, at: Speaker) -> Iterator[str]:
    if 0 < config.coldstart.steps < config.coldstart.direct_steps:
        yield f"{at('coldstart.direct_steps')} are the last of all steps, but {at('coldstart.steps')}."
    if not config.model.path and config.coldstart.steps == 0:
        yield f"{at('model.path')} and {at('coldstart.steps')} leave no model; name a Hugging Face folder, or let the cold start make one."


def _cluster(config: Config, at: Speaker) -> Iterator[str]:
    cluster, needed = config.cluster, resources_needed(config)["CPU"]
    if cluster.address and cluster.num_cpus is not None:
        yield f"{at('cluster.num_cpus')} sizes a local cluster, but {at('cluster.address')} names a running one."
    if cluster.num_cpus is not None and needed > cluster.num_cpus:
        yield f"{at('cluster.num_cpus')} is too few for {at('rollout.num_actors')} and {at('learner.num_ranks')}, which need {needed:g}."


def _evaluation(config: Config, at: Speaker) -> Iterator[str]:
    evaluation = config.evaluation
    if any(limit < 1 for limit in evaluation.token_limits):
        yield f"{at('evaluation.token_limits')} holds a number below 1."
    if evaluation.token_limits and evaluation.max_response_tokens is not None:
        yield f"{at('evaluation.token_limits')} and {at('evaluation.max_response_tokens')} both limit the answers; leave one of them out."
    if len(set(evaluation.benchmarks)) < len(evaluation.benchmarks):
        yield f"{at('evaluation.benchmarks')} names a benchmark twice."


def _evaluation_paths(config: Config, at: Speaker) -> Iterator[str]:
    if config.evaluation.benchmarks:
        if not Path(config.evaluation.benchmarks_dir).is_dir():
            yield f"{at('evaluation.benchmarks_dir')} does not exist; expected a folder for each of {at('evaluation.benchmarks')}."
    elif not config.data.test_path:
        yield f"{at('data.test_path')} names no held-out questions to evaluate on, and {at('evaluation.benchmarks')} no benchmark."
    elif not config.data.generate and not config.data.reader and not Path(config.data.test_path).exists():
        yield f"{at('data.test_path')} does not exist."


def _paths(config: Config, at: Speaker) -> Iterator[str]:
    data = config.data
    if config.model.path and not Path(config.model.path, "config.json").is_file():
        yield f"{at('model.path')} is no Hugging Face model folder: there is no config.json in it."
    elif config.model.path and not any(Path(config.model.path).glob("*.safetensors")):
        yield f"{at('model.path')} holds no *.safetensors; weights in other formats are pickles, which run code, and are not loaded."
    for key, path in (("data.path", data.path), ("data.test_path", data.test_path)):
        if path and not data.generate and not data.reader and not Path(path).exists():
            yield f"{at(key)} does not exist; expected a data folder or file (docs/data.md)."
