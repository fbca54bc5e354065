"""The order of visits: once an epoch, the same after a resume, and mixed as the weights ask."""

from collections import Counter

import pytest

from algorithms.types import Prompt
from tasks.errors import DataError
from tasks.order import PromptOrder
from tests.fakes import FakePrompts


def test_order_visits_every_prompt_once_per_epoch():
    order = PromptOrder(FakePrompts(50), seed=3)
    epochs = [[order.next() for _ in range(50)] for _ in range(3)]
    for number, epoch in enumerate(epochs):
        assert sorted(index for index, _ in epoch) == list(range(50))
        assert {visit for _, visit in epoch} == {number}
    assert epochs[0] != epochs[1]


def test_order_depends_on_the_seed_only():
    def first(seed):
        order = PromptOrder(FakePrompts(50), seed=seed)
        return [order.next() for _ in range(50)]

    assert first(1) == first(1)
    assert first(1) != first(2)


@pytest.mark.parametrize("taken", [0, 1, 49, 50, 51, 120])
def test_order_resumes_where_it_was(taken):
    order = PromptOrder(FakePrompts(50), seed=3)
    for _ in range(taken):
        order.next()
    state = order.state()
    expected = [order.next() for _ in range(120)]
    resumed = PromptOrder(FakePrompts(50), seed=3)
    resumed.restore(state)
    assert [resumed.next() for _ in range(120)] == expected


def test_order_refuses_a_state_of_other_data():
    state = PromptOrder(FakePrompts(50), seed=3).state()
    with pytest.raises(ValueError, match="num_prompts=51, the saved one num_prompts=50"):
        PromptOrder(FakePrompts(51), seed=3).restore(state)
    with pytest.raises(ValueError, match="seed=4, the saved one seed=3"):
        PromptOrder(FakePrompts(50), seed=4).restore(state)
    with pytest.raises(ValueError, match="taken="):
        PromptOrder(FakePrompts(50), seed=3).restore({**state, "taken": {"": -1}})
    with pytest.raises(ValueError, match="at least one prompt"):
        PromptOrder(FakePrompts(0), seed=1)


def prompts(**counts):
    return [
        Prompt(prompt_id=f"{category}{number}", question="?", image_paths=(), answer="1", category=category, source="")
        for category, count in counts.items()
        for number in range(count)
    ]


def test_order_refuses_other_prompts_of_the_same_number():
    state = PromptOrder(prompts(a=5), seed=1).state()
    with pytest.raises(ValueError, match="fingerprint"):
        PromptOrder(prompts(b=5), seed=1).restore(state)


def test_weights_give_every_stretch_its_shares():
    data = prompts(math=30, science=20, text=5)
    weights = {"math": 5, "science": 3, "text": 2}
    order = PromptOrder(data, seed=1, weights=weights)
    taken = [data[order.next()[0]].category for _ in range(400)]
    for end in range(10, 401, 10):
        assert all(abs(count - end * weights[name] / 10) <= 1 for name, count in Counter(taken[:end]).items())


def test_with_weights_no_prompt_repeats_before_its_category_was_seen_once():
    data = prompts(math=30, science=20, text=5)
    order = PromptOrder(data, seed=1, weights={"math": 1, "science": 1, "text": 1})
    visits = Counter()
    rounds = Counter()
    for _ in range(600):
        index, visit = order.next()
        assert visits[index] == visit == min(visits[i] for i, prompt in enumerate(data) if prompt.category == data[index].category)
        visits[index] += 1
        rounds[data[index].category] += 1
    assert len({visits[i] for i, prompt in enumerate(data) if prompt.category == "text"}) == 1  # 200 visits of 5 prompts
    assert rounds == {"math": 200, "science": 200, "text": 200}


def test_a_weighted_order_resumes_where_it_was():
    data, weights = prompts(math=30, science=20, text=5), {"math": 0.7, "science": 0.2, "text": 0.1}
    order = PromptOrder(data, seed=1, weights=weights)
    for _ in range(77):
        order.next()
    resumed = PromptOrder(data, seed=1, weights=weights)
    resumed.restore(order.state())
    assert [order.next() for _ in range(100)] == [resumed.next() for _ in range(100)]
    with pytest.raises(ValueError, match="shares"):
        PromptOrder(data, seed=1, weights={**weights, "text": 0.2}).restore(order.state())


def test_weights_and_categories_must_agree():
    with pytest.raises(DataError, match="no weight for 'text'"):
        PromptOrder(prompts(math=1, text=1), seed=1, weights={"math": 1})
    with pytest.raises(DataError, match="names 'txt', but the data has math, text"):
        PromptOrder(prompts(math=1, text=1), seed=1, weights={"math": 1, "text": 1, "txt": 1})
