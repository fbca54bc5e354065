"""What a training step asks replay for.

Owns the arguments of a draw and what is wrong with them on their own. Must not know rows, modes or Ray.
"""

from __future__ import annotations

from dataclasses import dataclass


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
