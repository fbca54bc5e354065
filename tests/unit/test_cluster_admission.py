"""The admission rule: its bound, and what unblocks it."""

import asyncio
import random

import pytest

from cluster.admission import Admission
from cluster.ledger import PromptLedger
from tests.fakes import FakePrompts


async def started(admission: Admission, at_most: int = 1000) -> int:
    """How many prompts are admitted before it would wait."""
    total = 0
    while True:
        try:
            total += await asyncio.wait_for(admission.admit(at_most), 0.001)
        except TimeoutError:
            return total


def test_synchronous_mode_admits_one_step_a_version():
    async def scenario():
        admission = Admission(prompts_per_step=4, max_staleness=0, num_steps=10)
        assert await started(admission) == 4
        admission.finish(accepted=4, dropped=0)
        assert await started(admission) == 0
        admission.publish(1)
        assert await started(admission) == 4

    asyncio.run(scenario())


@pytest.mark.parametrize("k", [1, 4])
def test_asynchronous_mode_runs_ahead_by_k_versions_and_no_more(k):
    async def scenario():
        admission = Admission(prompts_per_step=4, max_staleness=k, num_steps=100)
        assert await started(admission, at_most=3) == 4 * (k + 1)
        admission.finish(accepted=4 * (k + 1), dropped=0)
        admission.publish(1)
        assert await started(admission) == 4

    asyncio.run(scenario())


@pytest.mark.parametrize("k", range(4))
def test_staleness_reaches_the_bound_and_never_passes_it_whatever_finishes_first(k):
    """Admission, ledger and turns together; groups finish in random order, some fail and are issued again, some prompts are bad."""
    per_step, num_steps, rng = 3, 60, random.Random(k)

    async def scenario():
        admission = Admission(prompts_per_step=per_step, max_staleness=k, num_steps=num_steps)
        ledger, running, arrived, seen = PromptLedger(FakePrompts(500), seed=1), [], {}, set()
        for step in range(num_steps):
            while not all(turn in arrived for turn in range(step * per_step, (step + 1) * per_step)):
                running += [(ledger.issue(), step) for _ in range(await started(admission))]
                request, version = running.pop(rng.randrange(len(running)))
                fate = rng.random()
                if fate < 0.1:
                    ledger.discard([request.group_id])
                elif fate < 0.2:
                    ledger.take_back([request.group_id])
                else:
                    ledger.settle([request.group_id])
                    arrived[request.turn] = version
                admission.finish(accepted=int(fate >= 0.2), dropped=int(fate < 0.2))
            seen |= {step - arrived.pop(turn) for turn in range(step * per_step, (step + 1) * per_step)}
            admission.publish(step + 1)
        return seen

    seen = asyncio.run(scenario())
    assert min(seen) >= 0 and max(seen) == k


def test_bad_prompts_free_their_place():
    async def scenario():
        admission = Admission(prompts_per_step=4, max_staleness=0, num_steps=10)
        await started(admission)
        waiting = asyncio.ensure_future(admission.admit(4))
        await asyncio.sleep(0)
        admission.finish(accepted=3, dropped=1)
        assert await asyncio.wait_for(waiting, 1) == 1

    asyncio.run(scenario())


def test_nothing_is_admitted_that_no_step_would_take():
    async def scenario():
        admission = Admission(prompts_per_step=4, max_staleness=8, num_steps=2)
        assert await started(admission) == 8

    asyncio.run(scenario())


def test_a_version_never_goes_backwards():
    admission = Admission(prompts_per_step=4, max_staleness=0, num_steps=10, version=3)
    with pytest.raises(ValueError, match="backwards: 2 after 3"):
        admission.publish(2)
