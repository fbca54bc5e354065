"""The range of each number, one key at a time; what only shows between keys is conf.checks' business.

Must not know Ray, torch or the engines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from conf.schema import Config
from conf.wording import Speaker

MIN_OBJECT_STORE_BYTES = 80 * 1024**2  # Ray refuses less than 75 MiB
INFINITY = float("inf")

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
    "checkpoint.keep_best": (0, INFINITY),
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
    "rollout.max_actors": (1, INFINITY),
    "rollout.min_actors": (0, INFINITY),
    "rollout.num_actors": (0, INFINITY),
    "rollout.prompts_per_call": (1, INFINITY),
    "run.num_steps": (1, INFINITY),
    "run.seed": (0, INFINITY),
    "supervision.dead_after": (1, INFINITY),
    "supervision.log_lines": (0, INFINITY),
    "supervision.max_restarts": (0, INFINITY),
    "supervision.scale_window_steps": (1, INFINITY),
    "supervision.suspect_after": (1, INFINITY),
}


def range_rules(config: Config, at: Speaker) -> Iterator[str]:
    """Say which numbers are out of their range.

    Args:
        config: of a run.
        at: from a dotted key to "key = value".

    Yields:
        A sentence for each.
    """
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
