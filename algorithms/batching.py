"""How trajectories are dealt to ranks and cut into micro-batches, by token count. Pure functions over lengths."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence


def split_microbatches(lengths: Sequence[int], *, max_tokens: int) -> list[list[int]]:
    """Cut rows into padded micro-batches that hold at most max_tokens, padding included.

    Rows are taken longest first, so that neighbours are of like length and padding stays small.

    Args:
        lengths: [N] tokens of each row.
        max_tokens: bound on rows * longest row; a single longer row makes a micro-batch of its own.

    Returns:
        Row indices, each exactly once.

    Raises:
        ValueError: when max_tokens is not positive.
    """
    if max_tokens <= 0:
        raise ValueError(f"max_tokens must be positive, got {max_tokens}")
    batches: list[list[int]] = []
    longest = 0
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * longest <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
            longest = lengths[row]
    return batches


def balanced_shards(lengths: Sequence[int], groups: Sequence[str], *, num_shards: int) -> list[list[int]]:
    """Deal rows to ranks with near-equal token sums, the rows of a prompt together.

    Longest-processing-time-first: the biggest group goes to the emptiest rank. A prompt's rows stay together, so that its
    images are encoded on one rank only. A rank may end up without rows when there are fewer prompts than ranks.

    Args:
        lengths: [N] tokens of each row.
        groups: [N] the prompt of each row.
        num_shards: D >= 1.

    Returns:
        D lists of row indices in rising order, each row in exactly one.

    Raises:
        ValueError: when the lengths of the arguments disagree or num_shards is not positive.
    """
    if len(lengths) != len(groups) or num_shards < 1:
        raise ValueError(f"got {len(lengths)} lengths for {len(groups)} groups and {num_shards} shards")
    members: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    tokens = {group: sum(lengths[row] for row in rows) for group, rows in members.items()}
    shards: list[list[int]] = [[] for _ in range(num_shards)]
    load = [0] * num_shards
    for group in sorted(members, key=lambda name: (-tokens[name], members[name][0])):
        emptiest = load.index(min(load))
        shards[emptiest] += members[group]
        load[emptiest] += tokens[group]
    return [sorted(shard) for shard in shards]
