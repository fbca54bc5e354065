"""The numbers that follow from the settings of a step. Must not know Ray, torch or the engines."""

from __future__ import annotations

from conf.loading import ConfigError
from conf.schema import Config
from conf.wording import speaker


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
        at = speaker(config)
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


def in_lockstep(config: Config) -> bool:
    """Tell whether a step's prompts go to the engines together and in order, in rounds.

    Args:
        config: of a run.

    Returns:
        rollout.lockstep; unless it is set, whether the run is synchronous.
    """
    lockstep = config.rollout.lockstep
    return config.algorithm.max_staleness == 0 if lockstep is None else lockstep
