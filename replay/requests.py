"""What replay is asked for in one call: the arguments of a draw, and how much a call should carry.

Owns what is wrong with arguments on their own. Must not know rows, modes or Ray.
"""

from __future__ import annotations

from dataclasses import dataclass

from conf.schema import ReplayConfig

CALLS_PER_TABLE = 8  # rows that are inserted together wait for room together, while a step may be waiting for some of them


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """Groups to consume and rows to draw.

    Raises:
        ValueError: when a count is out of range.
    """

    batch_size: int  # trajectories per update, >= 1
    num_updates: int = 1  # optimizer updates of the step, >= 1
    num_shards: int = 1  # D, ranks of the learner, >= 1
    policy_version: int | None = None  # of the learner; ages count from it. None: the newest of the table's rows
    num_groups: int = 0  # waiting groups to consume, uniform ones included; 0: none, the draws are from older rows alone
    max_staleness: int | None = None  # consumed groups with an older token, in versions, are counted and never drawn; None: no bound

    def __post_init__(self) -> None:
        for name, value in tuple(vars(self).items()):
            object.__setattr__(self, name, None if value is None else int(value))  # NumPy's integers would not fit into JSON
        if min(self.num_updates, self.batch_size, self.num_shards) < 1 or self.num_groups < 0:
            raise ValueError(
                f"num_updates, batch_size and num_shards must be at least 1 and num_groups not negative, "
                f"got {self.num_updates}, {self.batch_size}, {self.num_shards}, {self.num_groups}"
            )

    @property
    def num_rows(self) -> int:
        """Draws of the step."""
        return self.num_updates * self.batch_size


@dataclass(frozen=True, kw_only=True)
class CallSizes:
    """How much a caller should put into one call who could make it larger or smaller."""

    inserts: int  # rows, >= 1
    samples: int  # draws, >= 1

    @classmethod
    def largest(cls, config: ReplayConfig) -> CallSizes:
        """Find the sizes up to which calls never wait for each other.

        Args:
            config: of the replay. Its error budget is shared out: k rows and n draws can shut both doors only if
                k * samples_per_insert + n > 2 * samples_per_insert_error.

        Returns:
            They.
        """
        inserts, samples = config.max_trajectories / CALLS_PER_TABLE, float(2**31)
        if config.samples_per_insert is not None and config.samples_per_insert_error is not None:
            samples = config.samples_per_insert_error
            inserts = min(inserts, samples / config.samples_per_insert)
        return cls(inserts=max(int(inserts), 1), samples=max(int(samples), 1))
