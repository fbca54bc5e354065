"""Rounds: what the engine is given, and in which order, doesn't depend on who was faster."""

from __future__ import annotations

import asyncio
import random

import pytest

from actors.lockstep import Lockstep


class RecordingEngine:
    """Answers after a random number of turns of the event loop, and remembers its rounds."""

    def __init__(self, rng: random.Random, refused: str = "") -> None:
        self.rounds: list[tuple[bool, list[str]]] = []
        self.alone: list[str] = []
        self._rng, self._refused = rng, refused

    async def generate(self, *prompt, **settings):
        self.alone.append(settings["request_id"])
        return [settings["request_id"]]

    async def generate_together(self, requests, *, forget):
        self.rounds.append((forget, [request["request_id"] for request in requests]))
        await asyncio.sleep(0)
        return [self._answer(request["request_id"]) for request in requests]

    async def _answer(self, name):
        for _ in range(self._rng.randrange(5)):
            await asyncio.sleep(0)
        if name == self._refused:
            raise ValueError(name)
        return [f"answer to {name}"]


async def member(lockstep: Lockstep, rng: random.Random, index: int, seconds: int):
    """A prompt's life: read it, first responses, grade them, go on from some of them side by side."""
    for _ in range(rng.randrange(8)):
        await asyncio.sleep(0)
    first = await lockstep.generate([index], [], [], n=4, request_id=f"p{index}")
    for _ in range(rng.randrange(8)):
        await asyncio.sleep(0)
    calls = (lockstep.generate([index], [], [], n=1, request_id=f"p{index}/{j}/y2") for j in range(seconds))
    return first, await asyncio.gather(*calls)


def company(seed: int, *, seconds=lambda index: index % 3, size: int = 7, refused: str = ""):
    rng = random.Random(seed)
    engine = RecordingEngine(rng, refused)
    lockstep = Lockstep(engine)

    async def go():
        results = []
        for _ in range(2):
            results.append(await lockstep.together([member(lockstep, rng, index, seconds(index)) for index in range(size)]))
        return results

    return engine, asyncio.run(go())


def test_rounds_are_the_same_whoever_is_faster():
    expected = company(0)[0].rounds
    assert [len(names) for _, names in expected] == [7, 6, 7, 6]
    assert expected[0] == (True, [f"p{index}" for index in range(7)])
    assert expected[1] == (False, ["p1/0/y2", "p2/0/y2", "p2/1/y2", "p4/0/y2", "p5/0/y2", "p5/1/y2"])
    assert expected[2][0], "a company does not begin with what another one has left in the cache"
    assert all(company(seed)[0].rounds == expected for seed in range(1, 40))


def test_everybody_gets_their_own_answers():
    _, results = company(3)
    for answers in results:
        for index, (first, seconds) in enumerate(answers):
            assert first == [f"answer to p{index}"]
            assert seconds == [[f"answer to p{index}/{j}/y2"] for j in range(index % 3)]


def test_a_refused_prompt_costs_itself_and_holds_up_nobody():
    engine, results = company(1, refused="p4")
    for answers in results:
        assert [isinstance(answer, ValueError) for answer in answers] == [index == 4 for index in range(7)]
    assert not any("p4/0/y2" in names for _, names in engine.rounds)


def test_a_member_without_a_request_is_not_waited_for():
    engine = RecordingEngine(random.Random(0))
    lockstep = Lockstep(engine)

    async def bad():
        raise OSError("its picture can't be read")

    async def go():
        return await lockstep.together([bad(), member(lockstep, random.Random(0), 1, 0)])

    failed, fine = asyncio.run(go())
    assert isinstance(failed, OSError) and fine[0] == ["answer to p1"] and engine.rounds == [(True, ["p1"])]


def test_an_engine_that_fails_fails_everybody():
    class Dead(RecordingEngine):
        async def generate_together(self, requests, *, forget):
            raise RuntimeError("the engine died")

    lockstep = Lockstep(Dead(random.Random(0)))
    answers = asyncio.run(lockstep.together([member(lockstep, random.Random(0), index, 0) for index in range(3)]))
    assert [str(answer) for answer in answers] == ["the engine died"] * 3


def test_requests_of_nobody_in_a_company_go_straight_to_the_engine():
    engine = RecordingEngine(random.Random(0))
    lockstep = Lockstep(engine)
    assert asyncio.run(lockstep.generate([1], [], [], n=1, request_id="probe")) == ["probe"]
    assert engine.alone == ["probe"] and not engine.rounds


@pytest.mark.parametrize("moment", [1, 3, 6])
def test_a_call_that_is_cancelled_leaves_nothing_for_the_next(moment):
    engine = RecordingEngine(random.Random(0))
    lockstep = Lockstep(engine)

    async def go():
        first = asyncio.ensure_future(lockstep.together([member(lockstep, random.Random(1), index, 1) for index in range(3)]))
        for _ in range(moment):
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return await asyncio.wait_for(lockstep.together([member(lockstep, random.Random(2), index, 1) for index in range(2)]), 5)

    answers = asyncio.run(go())
    assert [first for first, _ in answers] == [["answer to p0"], ["answer to p1"]]
