"""Stand-ins for tests: trajectories and rollout groups with chosen rewards, a data set, gauges without Ray."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from algorithms.advantages import group_advantages
from algorithms.types import ImageRef, Prompt, RolloutGroup, Segment, Trajectory, VersionSpan


def make_trajectory(
    *,
    prompt_id: str = "p0",
    visit: int = 0,
    index: int = 0,
    reward: float = 1.0,
    advantage: float = 0.5,
    correct: bool = True,
    version: int = 0,
    prompt_tokens: int = 4,
    response_tokens: int = 3,
    **others: object,
) -> Trajectory:
    """A trajectory of one segment whose token ids and log-probs differ by prompt and index, so that mix-ups show.

    Args:
        prompt_id: of its prompt.
        visit: how often the prompt had been rolled out before.
        index: in its group.
        reward: of the response.
        advantage: of the response.
        correct: by every extraction mode.
        version: of the policy that sampled it.
        prompt_tokens: P.
        response_tokens: R.
        **others: further fields, as they are to be.

    Returns:
        The trajectory.
    """
    group_id = f"{prompt_id}@{visit}"
    start = sum(group_id.encode()) + 17 * index
    fields: dict[str, object] = {
        "trajectory_id": f"{group_id}/{index}",
        "group_id": group_id,
        "prompt_id": prompt_id,
        "category": "counting",
        "source": "fake",
        "answer": "yes",
        "prompt_token_ids": np.arange(start, start + prompt_tokens, dtype=np.int32),
        "images": (ImageRef(path=f"/images/{prompt_id}.png", sha256=f"{start:064x}"),),
        "response_token_ids": np.arange(start + 1000, start + 1000 + response_tokens, dtype=np.int32),
        "response_text": f"response {index} to {group_id}",
        "behavior_logprobs": -np.linspace(0.1, 0.9, response_tokens, dtype=np.float32) - np.float32(index),
        "loss_mask": np.ones(response_tokens, dtype=np.bool_),
        "version_spans": (VersionSpan(start=0, end=response_tokens, version=version),),
        "segments": (Segment(kind="y1", start=0, end=response_tokens),),
        "reward": reward,
        "advantage": advantage,
        "correct": correct,
        "correct_strict": correct,
        "correct_lenient": correct,
        "finish_reason": "stop",
    }
    return Trajectory(**{**fields, **others})  # type: ignore[arg-type]


def make_group(
    prompt_id: str = "p0",
    *,
    rewards: Sequence[float] = (1.0, 0.0),
    correct: Sequence[bool] | None = None,
    visit: int = 0,
    **others: object,
) -> RolloutGroup:
    """A rollout group with mean-baseline advantages.

    Args:
        prompt_id: of its prompt.
        rewards: [G] of its trajectories.
        correct: [G]; None: those with a reward above 0.5.
        visit: how often the prompt had been rolled out before.
        **others: passed on to make_trajectory for every trajectory.

    Returns:
        The group.
    """
    advantages = group_advantages(np.asarray(rewards, dtype=np.float32), kind="mean")
    right = [reward > 0.5 for reward in rewards] if correct is None else list(correct)
    trajectories = tuple(
        make_trajectory(
            prompt_id=prompt_id,
            visit=visit,
            index=i,
            reward=reward,
            advantage=float(advantage),
            correct=is_right,
            **others,  # type: ignore[arg-type]
        )
        for i, (reward, advantage, is_right) in enumerate(zip(rewards, advantages, right, strict=True))
    )
    return RolloutGroup(group_id=f"{prompt_id}@{visit}", prompt_id=prompt_id, trajectories=trajectories)


class FakePrompts(Sequence[Prompt]):
    """A data set of the prompts p0, p1, ...

    Args:
        count: of prompts.
    """

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Prompt:  # type: ignore[override]
        if index >= self._count:
            raise IndexError(index)
        return Prompt(prompt_id=f"p{index}", question="1+1=?", image_paths=(), answer="2", category="", source="")


class FakeGauges:
    """ray.util.metrics.Gauge without Ray; ``values`` holds the last value by name."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def make(self, name: str, description: str, tag_keys: tuple[str, ...]) -> FakeGauge:
        """In place of the constructor.

        Args:
            name: of the metric.
            description: for people.
            tag_keys: that the default tags must have.

        Returns:
            A gauge that writes into ``values``.
        """
        assert description
        return FakeGauge(self.values, name, tag_keys)


class FakeGauge:
    """One gauge of FakeGauges."""

    def __init__(self, values: dict[str, float], name: str, tag_keys: tuple[str, ...]) -> None:
        self._values, self._name, self._tag_keys = values, name, tag_keys

    def set_default_tags(self, tags: dict[str, str]) -> None:
        """As Ray's."""
        assert set(tags) == set(self._tag_keys)

    def set(self, value: float) -> None:
        """As Ray's."""
        self._values[self._name] = value
