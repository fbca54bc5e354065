"""Stand-ins for tests: trajectories and rollout groups with chosen rewards, a data set, gauges, an engine, the controller's roles."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.actor import RolloutReceipt
from actors.engine.requests import Completion
from actors.worker import RolloutRequest
from algorithms.advantages import group_advantages
from algorithms.rethinking import RethinkingCounts
from algorithms.schema import from_arrow, to_record_batch
from algorithms.types import ImageRef, Prompt, RolloutGroup, Segment, Trajectory, VersionSpan
from cluster.replica import BusyClock, ReplicaLostError
from cluster.transport import SyncReport
from conf.schema import ReplayConfig
from replay.buffer import ReplayBuffer
from replay.limiter import FreshGroupLimiter


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
    response_tokens = len(others.get("response_token_ids", range(response_tokens)))  # type: ignore[arg-type]
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


class LocalReplay:
    """ReplayActor without Ray: the real buffer and limiter, called as a handle is called.

    Args:
        config: of the replay.
        seed: of the draws.
    """

    def __init__(self, config: ReplayConfig, *, seed: int) -> None:
        self.buffer = ReplayBuffer(config, seed=seed)
        self.limiter = FreshGroupLimiter(self.buffer)
        self.consumed: list[tuple[int, Trajectory]] = []  # policy version of the step, and what it consumed
        self._timeout_s = config.timeout_s

    async def insert(self, group: RolloutGroup, turn: int) -> None:
        """Put a group into the buffer, as an actor's outbox does."""
        async with self.limiter.change():
            self.buffer.insert(to_record_batch(group.trajectories), {group.group_id: turn})

    @property
    def sample(self) -> LocalReplay:
        """The method whose handle is asked for options."""
        return self

    def options(self, *, num_returns: int) -> LocalReplay:
        """As Ray's; one reference per rank is all that the callers ask for."""
        assert num_returns == 2
        return self

    def remote(self, **request: int) -> tuple[Coroutine, str]:
        """The draw, and the rank's rows, which nobody reads."""
        return self._sample(**request), "rows"

    async def _sample(self, *, request_id: str, **request: int) -> dict[str, float]:
        async with self.limiter.fresh_groups(request["num_groups"], timeout_s=self._timeout_s):
            drawn = self.buffer.sample(**request)
        for rows in drawn.consumed:
            self.consumed += [(request["policy_version"], trajectory) for trajectory in from_arrow(rows)]
        return drawn.stats


class TickingFleet:
    """Rollout replicas whose groups take a number of turns of the event loop, one token each, under the version in service by then.

    Args:
        replay: where finished groups go.
        ticks: how long a group takes, by its turn.
        bad: turns whose first prompt can't be used.
        lost: turns whose first call costs the replica that it runs on, after the call's first group was delivered.
    """

    def __init__(self, replay: LocalReplay, *, ticks: Callable[[int], int], bad: Container[int] = (), lost: Container[int] = ()) -> None:
        self.version = 0
        self.busy = BusyClock()
        self.absences = 0
        self.replicas = [object(), object()]
        self._there = asyncio.Event()
        self._there.set()
        self.replay = replay
        self._replay, self._ticks, self._bad, self._lost = replay, ticks, bad, lost
        self.handed_out: list[str] = []
        self._refused: set[int] = set()

    async def rollout(self, requests: list[RolloutRequest]) -> RolloutReceipt:
        """As RolloutFleet's."""
        await self.someone()
        refused = {r.group_id for r in requests if r.turn in self._bad and r.turn not in self._refused}
        self._refused |= {r.turn for r in requests if r.group_id in refused}
        before = set(self.handed_out)
        self.handed_out += [request.group_id for request in requests]
        if any(r.turn in self._lost and r.group_id not in before for r in requests):
            await self._roll_out(requests[0])
            raise ReplicaLostError("rollout actor 7 is out of service: it died")
        done = [r for r in requests if r.group_id not in refused]
        await asyncio.gather(*(self._roll_out(request) for request in done))
        bad = tuple((group_id, "bad") for group_id in refused)
        delivered = tuple(r.group_id for r in done)
        return RolloutReceipt(delivered=delivered, bad=bad, generated_tokens=0, rethinking=RethinkingCounts(), busy_s=0.0)

    async def someone(self) -> None:
        """As RolloutFleet's."""
        await self._there.wait()

    def all_die(self) -> None:
        """At once, with the groups that are under way."""
        self.replicas, self.absences = [], self.absences + 1
        self._there.clear()

    def come_back(self) -> None:
        """Successors are in service."""
        self.replicas = [object(), object()]
        self._there.set()

    async def _roll_out(self, request: RolloutRequest) -> None:
        versions = []
        for _ in range(self._ticks(request.turn)):
            await asyncio.sleep(0)
            if not self.replicas:
                raise ReplicaLostError("rollout actor 7 is out of service: it died with all others")
            versions.append(self.version)
        spans = tuple(VersionSpan(start=i, end=i + 1, version=version) for i, version in enumerate(versions))
        prompt_id, visit = request.group_id.rsplit("@", 1)
        await self._replay.insert(make_group(prompt_id, visit=int(visit), response_tokens=len(spans), version_spans=spans), request.turn)


class TickingLearner:
    """A learner group and a transport in one: an update and a delivery take turns of the event loop.

    Args:
        fleet: that takes the versions.
        ticks: of an update.
    """

    def __init__(self, fleet: TickingFleet, *, ticks: int) -> None:
        self._fleet, self._ticks = fleet, ticks

    async def update(self, shards: list[str], *, step: int) -> dict[str, float]:
        """As LearnerGroup's."""
        assert shards == ["rows"]
        for _ in range(self._ticks):
            await asyncio.sleep(0)
        return {}

    async def survive(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """As LastingLearner's; nothing fails here."""
        return await call()

    async def deliver(self, version: int) -> SyncReport:
        """As a WeightTransport's."""
        await asyncio.sleep(0)
        self._fleet.version = version
        return SyncReport(paused_s=0.0, sent_bytes=0, num_replicas=1)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One response of a ScriptedEngine: a text, ended by itself or by the limit."""

    text: str
    finished: bool = True
    version: int = 0


class ScriptedEngine:
    """The engine's side of a worker's requests: it says what it was told to, in the tokens of a real tokenizer.

    Args:
        tokenizer: of the policy.
        firsts: what requests without a prefix get, one a sample.
        second: what requests for y2 get, made from the number of such requests before.
    """

    def __init__(self, tokenizer: Any, firsts: Sequence[Line], second: Callable[[int], Line] = lambda number: Line(text="")) -> None:
        self._tokenizer, self._firsts, self._second = tokenizer, firsts, second
        self.requests: list[dict[str, Any]] = []

    async def generate(self, prompt_token_ids: Any, images: list, image_hashes: list[str], **settings: Any) -> list[Completion]:
        """As RolloutEngine's."""
        again = settings["request_id"].endswith("/y2")
        number = sum(request["request_id"].endswith("/y2") for request in self.requests)
        self.requests.append({"prompt_token_ids": list(prompt_token_ids), "images": images, "image_hashes": image_hashes, **settings})
        lines = [self._second(number)] if again else self._firsts
        assert len(lines) == settings["n"]
        return [self._completion(line, settings["max_tokens"]) for line in lines]

    def _completion(self, line: Line, max_tokens: int) -> Completion:
        ids = self._tokenizer.encode(line.text, add_special_tokens=False) + [self._tokenizer.eos_token_id] * line.finished
        finished = line.finished and len(ids) <= max_tokens
        token_ids = np.array(ids[:max_tokens], dtype=np.int32)
        return Completion(
            token_ids=token_ids,
            logprobs=-0.1 * np.arange(1, len(token_ids) + 1, dtype=np.float32),
            version_spans=(VersionSpan(start=0, end=len(token_ids), version=line.version),),
            finish_reason="stop" if finished else "length",
            text=self._tokenizer.decode(token_ids, skip_special_tokens=True),
        )
