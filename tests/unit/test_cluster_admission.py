"""The admission rule: its bound, and what unblocks it."""

import asyncio

import pytest

from cluster.admission import Admission


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


def test_staleness_never_passes_the_bound_under_any_order_of_arrival():
    # groups are consumed in order of arrival; the last one admitted under version v is consumed by step v + k at the latest
    for k in range(4):
        produced: list[int] = []

        async def scenario(k=k, produced=produced):
            admission = Admission(prompts_per_step=3, max_staleness=k, num_steps=50)
            for version in range(50):
                produced += [version] * await started(admission)
                admission.finish(accepted=admission.running, dropped=0)
                consumed, produced[:] = produced[:3], produced[3:]
                assert max(version - stamp for stamp in consumed) <= k
                admission.publish(version + 1)

        asyncio.run(scenario())


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
