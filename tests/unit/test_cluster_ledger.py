"""The prompt ledger: every prompt once an epoch, and nothing lost or doubled when a process ends in between."""

import json
from collections import Counter
from random import Random

import pytest

from algorithms.types import Prompt
from cluster.ledger import PromptLedger
from tests.fakes import FakePrompts


def issue(ledger, count):
    return [ledger.issue() for _ in range(count)]


def test_an_epoch_has_every_prompt_once_and_visits_have_names_of_their_own():
    ledger = PromptLedger(FakePrompts(7), seed=1)
    requests = issue(ledger, 21)
    for epoch in range(3):
        assert {request.prompt.prompt_id for request in requests[7 * epoch : 7 * epoch + 7]} == {f"p{i}" for i in range(7)}
    assert len({request.group_id for request in requests}) == len({request.seed for request in requests}) == 21
    assert ledger.owed == 21


def test_the_order_depends_on_the_seed_only():
    orders = [[request.group_id for request in issue(PromptLedger(FakePrompts(50), seed=seed), 50)] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_what_was_owed_is_issued_again_first_and_with_the_same_seed():
    ledger = PromptLedger(FakePrompts(20), seed=1)
    first = issue(ledger, 8)
    ledger.settle(request.group_id for request in first[:5])
    state = ledger.state()
    rest = issue(ledger, 12)

    resumed = PromptLedger(FakePrompts(20), seed=1)
    resumed.restore(state)
    again = issue(resumed, 15)
    assert again == first[5:] + rest
    assert resumed.owed == 15


def test_turns_follow_the_order_of_issue_and_a_visit_keeps_its_turn():
    ledger = PromptLedger(FakePrompts(20), seed=1)
    first = issue(ledger, 8)
    assert [request.turn for request in first] == list(range(8))
    ledger.settle(request.group_id for request in (first[0], first[5]))
    ledger.take_back(request.group_id for request in (first[6], first[2], first[3]))
    assert (ledger.owed, ledger.settled) == (3, 2)
    assert issue(ledger, 3) == [first[2], first[3], first[6]]
    assert issue(ledger, 1)[0].turn == 8

    resumed = PromptLedger(FakePrompts(20), seed=1)
    resumed.restore(ledger.state())
    assert resumed.settled == 2
    assert [request.turn for request in issue(resumed, 8)] == [1, 2, 3, 4, 6, 7, 8, 9]


def test_the_turn_of_a_bad_prompt_goes_to_another_one():
    ledger = PromptLedger(FakePrompts(9), seed=1)
    first = issue(ledger, 4)
    ledger.discard([first[2].group_id, first[1].group_id])
    resumed = PromptLedger(FakePrompts(9), seed=1)
    resumed.restore(ledger.state())
    resumed.settle([])
    for one in (ledger, resumed):
        again = {request.group_id for request in (first[0], first[3])} if one is resumed else set()
        new = [request for request in issue(one, 3 + len(again)) if request.group_id not in again]
        assert [request.turn for request in new] == [1, 2, 4]


def test_a_second_restore_still_owes_what_the_first_did():
    ledger = PromptLedger(FakePrompts(20), seed=1)
    owed = issue(ledger, 4)
    middle = PromptLedger(FakePrompts(20), seed=1)
    middle.restore(ledger.state())
    assert middle.issue() == owed[0]
    last = PromptLedger(FakePrompts(20), seed=1)
    last.restore(middle.state())
    assert sorted(request.group_id for request in issue(last, 4)) == sorted(request.group_id for request in owed)


def test_a_bad_prompt_is_not_issued_again_not_even_after_a_restore():
    ledger = PromptLedger(FakePrompts(3), seed=1)
    bad = ledger.issue()
    ledger.discard([bad.group_id])
    resumed = PromptLedger(FakePrompts(3), seed=1)
    resumed.restore(ledger.state())
    for one in (ledger, resumed):
        assert bad.prompt.prompt_id not in {request.prompt.prompt_id for request in issue(one, 8)}


def test_no_usable_prompt_is_an_error():
    ledger = PromptLedger(FakePrompts(2), seed=1)
    with pytest.raises(ValueError, match="none of the 2 prompts"):
        ledger.discard([request.group_id for request in issue(ledger, 2)])


@pytest.mark.parametrize("weights", [None, {"a": 3, "b": 1}], ids=["one stream", "weighted"])
@pytest.mark.parametrize("seed", range(5))
def test_no_prompt_repeats_within_an_epoch_whatever_fails_in_between(seed, weights):
    """Workers die (take_back), groups arrive in any order (settle), the process ends (restore) at random moments."""
    random = Random(seed)
    data = [
        Prompt(prompt_id=f"{category}{i}", question="?", image_paths=(), answer="1", category=category, source="")
        for category, count in (("a", 11), ("b", 4))
        for i in range(count)
    ]
    ledger, running, trained = PromptLedger(data, seed=seed, weights=weights), [], []
    saved = (ledger.state(), [])
    for _ in range(600):
        event = random.random()
        if event < 0.5:
            running.append(ledger.issue())
        elif event < 0.85 and running:
            request = running.pop(random.randrange(len(running)))
            ledger.settle([request.group_id])
            trained.append(request.group_id)
        elif event < 0.93 and running:
            lost = [running.pop() for _ in range(random.randint(1, len(running)))]
            ledger.take_back(request.group_id for request in lost)
        elif event < 0.97:
            saved = (json.loads(json.dumps(ledger.state())), list(trained))
        else:
            ledger, running = PromptLedger(data, seed=seed, weights=weights), []
            ledger.restore(saved[0])
            trained = list(saved[1])
    assert len(set(trained)) == len(trained) > 30  # no visit twice
    # Finish what is owed: then every epoch that was begun is whole but for its last part, and nothing is in it twice
    while ledger.state()["owed"]:
        running = running or [ledger.issue()]
        request = running.pop()
        ledger.settle([request.group_id])
        trained.append(request.group_id)
    visits = Counter(group_id.rpartition("@")[0] for group_id in trained)
    for stream in ("a", "b") if weights else ("",):
        counts = [visits[prompt.prompt_id] for prompt in data if prompt.prompt_id.startswith(stream)]
        assert max(counts) - min(counts) <= 1
    assert set(trained) == {f"{prompt_id}@{visit}" for prompt_id, count in visits.items() for visit in range(count)}
