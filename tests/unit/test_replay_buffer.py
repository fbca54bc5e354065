"""The buffer end to end: what goes in, what the learner's ranks get, what is counted."""

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import chisquare

from algorithms.schema import SAMPLE_SCHEMA, TRAJECTORY_SCHEMA, sampled_from_arrow, to_record_batch
from algorithms.types import VersionSpan
from conf.schema import ReplayConfig, ReplayMode
from replay.buffer import ReplayBuffer, ReplayFullError
from replay.plans import SelectionPlan
from tests.fakes import make_group, make_trajectory

SIGNAL_MODES = [mode for mode in ReplayMode if mode not in (ReplayMode.none, ReplayMode.prioritized)]


def make_buffer(mode="episode", *, seed=0, **settings):
    return ReplayBuffer(ReplayConfig(mode=ReplayMode(mode), **settings), seed=seed)


def batch_of(*groups):
    return to_record_batch([trajectory for group in groups for trajectory in group.trajectories])


def insert(buffer, *groups):
    return buffer.insert(batch_of(*groups))


def sample(buffer, *, num_groups, num_updates=1, batch_size=8, num_shards=1, policy_version=0, max_staleness=None):
    return buffer.sample(
        num_updates=num_updates,
        batch_size=batch_size,
        num_shards=num_shards,
        policy_version=policy_version,
        num_groups=num_groups,
        max_staleness=max_staleness,
    )


def rows(drawn):
    return [row for shard in drawn.shards for row in sampled_from_arrow(shard)]


def effective(name, **others):
    return make_group(name, **{"rewards": [1, 0, 0, 1], **others})


def uniform(name, **others):
    return make_group(name, **{"rewards": [1, 1, 1, 1], **others})


# -- what is too stale --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [mode for mode in ReplayMode if mode is not ReplayMode.prioritized])
def test_groups_past_the_staleness_bound_are_counted_and_never_drawn(mode):
    buffer = make_buffer(mode, max_age=99)
    for name, version, tokens in [("p0", 3, 2), ("p1", 2, 8), ("p2", 5, 2), ("p3", 5, 4)]:
        insert(buffer, effective(name, version=version, response_tokens=tokens))
    drawn = sample(buffer, num_groups=4, batch_size=64, policy_version=5, max_staleness=2)
    assert {row.trajectory.prompt_id for row in rows(drawn)} == {"p0", "p2", "p3"}
    assert drawn.stats["admission/dropped_groups"] == drawn.stats["replay/dropped_groups"] == 1
    assert drawn.stats["staleness/max"] == 3  # of what was consumed: it doesn't hide what was dropped
    # the mean response had (2 + 8 + 2 + 4) / 4 = 4 tokens, what was kept has 8 / 3
    assert drawn.stats["admission/length_bias"] == pytest.approx(8 / 3 / 4 - 1)
    assert drawn.stats["admission/difficulty_bias"] == 0  # all groups were right half of the time


def test_the_bias_of_dropped_groups_tells_easier_from_harder():
    buffer = make_buffer("none")
    insert(buffer, make_group("hard", rewards=[0, 0, 0, 1], version=0), make_group("easy", rewards=[1, 1, 1, 0], version=1))
    stats = sample(buffer, num_groups=2, policy_version=1, max_staleness=0).stats
    assert stats["admission/difficulty_bias"] == 0.25  # 0.75 is left of a mean of 0.5


def test_a_step_that_is_dropped_whole_has_nothing_to_train_on_and_no_bias_to_tell():
    buffer = make_buffer("none")
    insert(buffer, effective("p0", version=0))
    drawn = sample(buffer, num_groups=1, policy_version=9, max_staleness=8)
    assert rows(drawn) == [] and drawn.stats["replay/empty"] == 1
    assert "admission/length_bias" not in drawn.stats


def test_nothing_dropped_is_no_bias_at_all():
    buffer = make_buffer()
    insert(buffer, effective("p0", response_tokens=3), effective("p1", response_tokens=7))
    stats = sample(buffer, num_groups=2, max_staleness=0).stats
    assert [stats[f"admission/{name}"] for name in ("dropped_groups", "length_bias", "difficulty_bias")] == [0, 0, 0]


@pytest.mark.parametrize("mode", ReplayMode)
def test_groups_of_several_sizes_and_trajectories_that_went_on(mode):
    """rethinking.placement=append makes a group larger; y1_reward is there for its forced members only."""
    buffer = make_buffer(mode)
    forced = make_group("p1", rewards=[1, 0, 0, 1, 1, 1], y1_reward=0.25)
    insert(buffer, effective("p0"), forced, make_group("p2", rewards=[1, 0]))
    drawn = sample(buffer, num_groups=3, num_updates=2, batch_size=48, num_shards=2)
    assert drawn.stats["rollout/trajectories"] == 12
    rewards = {row.trajectory.trajectory_id: row.trajectory.y1_reward for row in rows(drawn)}
    assert len(rewards) > 8 and {name.split("@")[0] for name in rewards} == {"p0", "p1", "p2"}
    assert all(reward == (0.25 if name.startswith("p1") else None) for name, reward in rewards.items())


# -- what is admitted ------------------------------------------------------------------------------------------------


def learner_got_all_effective_groups(mode):
    """Whether the learner gets rows of every effective group of a batch of many; the batch goes the whole way."""
    buffer = make_buffer(mode)
    insert(buffer, *(effective(f"p{i}") if i % 2 else uniform(f"p{i}") for i in range(8)))
    got = {row.trajectory.group_id for row in rows(sample(buffer, num_groups=8, num_updates=2, batch_size=64, num_shards=2))}
    return got >= {"p1@0", "p3@0", "p5@0", "p7@0"} and (mode is ReplayMode.none or len(got) == 4)


@pytest.mark.parametrize("mode", ReplayMode)
def test_every_effective_group_of_a_batch_reaches_the_learner(mode):
    assert learner_got_all_effective_groups(mode)


@pytest.mark.parametrize("mode", ReplayMode)
def test_that_check_notices_when_only_one_group_is_ever_buffered(mode, monkeypatch):
    right = SelectionPlan.admits

    def only_the_first_effective_group(plan, effective, advantages):  # the bug of TRL's replay trainer, issue 6804 there
        admitted = right(plan, effective, advantages)
        return admitted & (np.cumsum(admitted) <= 4)

    monkeypatch.setattr(SelectionPlan, "admits", only_the_first_effective_group)
    assert not learner_got_all_effective_groups(mode)


@pytest.mark.parametrize("mode", SIGNAL_MODES)
def test_shaped_rewards_do_not_make_a_uniform_group_effective(mode):
    buffer = make_buffer(mode)
    receipt = insert(
        buffer,
        make_group("p0", rewards=[1.0, 0.9, 1.0, 1.0], correct=[True] * 4),  # all correct, one with a penalty: advantages aren't 0
        make_group("p1", rewards=[0.0, -0.1, 0.0, 0.0]),  # all wrong, one cut off
        make_group("p2", rewards=[1.0, -0.1, 0.0, 0.0]),
    )
    assert (receipt.groups, receipt.effective_groups, receipt.trajectories, receipt.admitted) == (3, 1, 12, 4)
    drawn = sample(buffer, num_groups=3, batch_size=32)
    assert {row.trajectory.prompt_id for row in rows(drawn)} == {"p2"}
    assert drawn.stats["effective_query_ratio"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("mode", SIGNAL_MODES)
def test_zero_advantages_in_an_effective_group_are_not_drawn(mode):
    buffer = make_buffer(mode)
    group = make_group("p0", rewards=[1.0, 0.5, 0.5, 0.0], correct=[True, True, False, False])  # mean 0.5
    assert insert(buffer, group).admitted == 2
    assert {row.trajectory.advantage for row in rows(sample(buffer, num_groups=1, batch_size=64))} == {0.5, -0.5}


def test_mode_none_trains_everything_once():
    buffer = make_buffer("none")
    insert(buffer, effective("p0"), uniform("p1"))
    drawn = sample(buffer, num_groups=2, num_updates=2, batch_size=4, num_shards=2)
    assert sorted(row.trajectory.trajectory_id for row in rows(drawn)) == [f"p{p}@0/{i}" for p in range(2) for i in range(4)]


def test_groups_may_be_interleaved_in_a_batch():
    buffer = make_buffer("none")
    mixed = batch_of(effective("p0"), uniform("p1"), effective("p2")).take(pa.array([0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]))
    assert buffer.insert(mixed).groups == 3
    first = sample(buffer, num_groups=1, batch_size=4)
    assert {row.trajectory.group_id for row in rows(first)} == {"p0@0"}
    assert {row.trajectory.group_id for row in rows(sample(buffer, num_groups=2, batch_size=8))} == {"p1@0", "p2@0"}


def test_an_insert_may_be_retried():
    buffer = make_buffer("none")
    group, other = effective("p0"), effective("p1")
    insert(buffer, group)
    again = insert(buffer, group, other)
    assert (again.groups, again.duplicate_groups, again.trajectories, again.admitted) == (1, 1, 4, 4)
    assert (buffer.ready_groups, len(buffer)) == (2, 8)
    sample(buffer, num_groups=2, batch_size=8)
    assert insert(buffer, group).groups == 0  # also after it was consumed
    assert (buffer.ready_groups, buffer.stats()["inserted"], buffer.stats()["duplicate_groups"]) == (0, 8, 2)


def test_a_trajectory_twice_in_a_batch_counts_once():
    buffer = make_buffer("none")
    group = effective("p0")
    assert insert(buffer, group, group).trajectories == 4
    assert len(buffer) == 4


def test_another_visit_of_a_prompt_is_another_group():
    buffer = make_buffer()
    assert insert(buffer, effective("p0"), effective("p0", visit=1)).groups == 2


def test_an_empty_batch_is_no_group():
    assert insert(make_buffer()).groups == 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"advantage": float("nan")}, "p0@0/0 has advantage nan"),
        ({"reward": float("inf")}, "p0@0/0 has reward inf"),
        ({"version_spans": ()}, "p0@0/0 has no version span"),
        ({"response_text": None}, r"missing values in \['response_text'\]"),
    ],
)
def test_impossible_rows_are_refused_and_nothing_is_inserted(fault, message):
    buffer = make_buffer()
    with pytest.raises(ValueError, match=message):
        buffer.insert(to_record_batch([make_trajectory(**fault), make_trajectory(index=1, correct=False)]))
    assert buffer.ready_groups == len(buffer) == 0


def test_other_schemas_are_refused():
    buffer = make_buffer()
    with pytest.raises(ValueError, match="not a trajectory schema"):
        buffer.insert(pa.RecordBatch.from_pydict({"a": [1]}))
    with pytest.raises(ValueError, match="replay takes columns"):
        buffer.insert(batch_of(effective("p0")).drop_columns(["answer"]))


def test_inserted_batches_are_copied():
    # Ray hands over batches that lie in the object store; a row that stays must not hold a whole one there
    buffer, before = make_buffer(), pa.total_allocated_bytes()
    batch = batch_of(effective("p0", response_tokens=100_000))
    buffer.insert(batch)
    size = pa.total_allocated_bytes() - before
    del batch
    assert pa.total_allocated_bytes() - before < 0.6 * size


# -- what is drawn ---------------------------------------------------------------------------------------------------


def test_rows_arrive_whole_with_the_fields_of_the_draw():
    buffer = make_buffer()
    groups = [effective(f"p{i}", response_tokens=i + 1, version=3) for i in range(3)]
    insert(buffer, *groups)
    drawn = sample(buffer, num_groups=3, num_updates=2, batch_size=8, num_shards=2, policy_version=5)
    sent = {trajectory.trajectory_id: trajectory for group in groups for trajectory in group.trajectories}
    assert all(shard.schema.equals(SAMPLE_SCHEMA, check_metadata=True) for shard in drawn.shards)
    for row in rows(drawn):
        assert to_record_batch([row.trajectory]).equals(to_record_batch([sent[row.trajectory.trajectory_id]]))
        assert (row.probability, row.table_size, row.age, row.fresh) == (pytest.approx(1 / 12), 12, 2, True)


def test_frequencies_of_the_whole_way_follow_the_probabilities_it_states():
    buffer = make_buffer("episode", priority_exponent=0.6)
    insert(buffer, make_group("p0", rewards=[1.0, 0.0, 0.0, 0.0, -0.1, 0.2]), make_group("p1", rewards=[1.0, 1.0, 0.0, 1.0]))
    drawn = pa.concat_tables(sample(buffer, num_groups=2, batch_size=100_000, num_shards=2).shards)
    keys, first, counts = np.unique(drawn["key"].to_numpy(), return_index=True, return_counts=True)
    probabilities = drawn["probability"].to_numpy()[first]
    magnitude = np.abs(drawn["advantage"].to_numpy()[first].astype(float)) ** 0.6
    assert len(keys) == 10
    np.testing.assert_allclose(probabilities, magnitude / magnitude.sum(), rtol=1e-6)
    assert chisquare(counts, 100_000 * probabilities / probabilities.sum()).pvalue > 1e-4


def test_use_counts_include_each_draw():
    buffer = make_buffer("fresh")
    insert(buffer, effective("p0"), effective("p1"))
    first = sample(buffer, num_groups=1, num_updates=2, batch_size=10)  # 4 rows fill 20 places
    counts = sorted((row.key, row.times_sampled) for row in rows(first))
    assert counts == [(key, use) for key in range(4) for use in range(1, 6)]
    second = sample(buffer, num_groups=1, batch_size=8)
    older = sorted((row.key, row.times_sampled) for row in rows(second) if not row.fresh)
    assert len(older) == 4
    assert all(use >= 6 for _, use in older)


def test_use_counts_rise_from_update_to_update():
    buffer = make_buffer("episode")
    insert(buffer, effective("p0"))
    uses = {key: [] for key in range(4)}
    for row in sorted(rows(sample(buffer, num_groups=1, num_updates=40, batch_size=1)), key=lambda row: row.update):
        uses[row.key].append(row.times_sampled)
    assert all(counts == list(range(1, len(counts) + 1)) for counts in uses.values())


@pytest.mark.parametrize("mode", ReplayMode)
def test_every_update_has_its_rows_and_prompts_stay_together(mode):
    buffer = make_buffer(mode)
    insert(buffer, *(effective(f"p{i}", response_tokens=5 + i) for i in range(12)))
    drawn = sample(buffer, num_groups=12, num_updates=3, batch_size=16, num_shards=3)
    assert drawn.stats["replay/rows_per_update"] == 16
    for update in range(3):
        ranks = [[row for row in sampled_from_arrow(shard) if row.update == update] for shard in drawn.shards]
        assert sum(map(len, ranks)) == 16
        prompts = [{row.trajectory.prompt_id for row in rank} for rank in ranks]
        assert sum(map(len, prompts)) == len(set().union(*prompts))
        tokens = [sum(4 + row.trajectory.num_response_tokens for row in rank) for rank in ranks]
        # longest-first dealing: no rank is further from another than the biggest prompt
        assert max(tokens) - min(tokens) <= max(
            sum(4 + row.trajectory.num_response_tokens for row in rank if row.trajectory.prompt_id == prompt)
            for rank, names in zip(ranks, prompts, strict=True)
            for prompt in names
        )
    for shard in drawn.shards:
        assert shard["update"].to_pylist() == sorted(shard["update"].to_pylist())


def test_more_ranks_than_prompts_leave_ranks_without_rows():
    buffer = make_buffer()
    insert(buffer, effective("p0"))
    drawn = sample(buffer, num_groups=1, num_shards=3)
    assert sorted(shard.num_rows for shard in drawn.shards) == [0, 0, 8]
    assert all(shard.schema.equals(SAMPLE_SCHEMA, check_metadata=True) for shard in drawn.shards)


def test_groups_are_consumed_in_the_order_of_arrival():
    buffer = make_buffer("none")
    for i in range(4):
        insert(buffer, effective(f"p{i}"))
    names = [{row.trajectory.prompt_id for row in rows(sample(buffer, num_groups=n, batch_size=4 * n))} for n in (1, 2, 1)]
    assert names == [{"p0"}, {"p1", "p2"}, {"p3"}]


def test_a_group_waits_for_its_turn():
    buffer = make_buffer("none")
    turns = {f"p{i}@0": i for i in range(4)}
    for i in (2, 1, 3):
        buffer.insert(batch_of(effective(f"p{i}")), turns)
    assert (buffer.ready_groups, buffer.waiting_groups, buffer.next_missing_turn) == (0, 3, 0)
    with pytest.raises(ValueError, match="1 fresh groups were asked for, 0 are there"):
        sample(buffer, num_groups=1)
    buffer.insert(batch_of(effective("p0")), turns)
    names = [{row.trajectory.prompt_id for row in rows(sample(buffer, num_groups=2, batch_size=8))} for _ in range(2)]
    assert names == [{"p0", "p1"}, {"p2", "p3"}]


def test_a_turn_is_given_once_and_every_group_needs_one():
    buffer = make_buffer("none")
    buffer.insert(batch_of(effective("p0")), {"p0@0": 0})
    for turns, message in [
        ({"p1@0": 0}, "group p1@0 comes for turn 0, which is taken by p0@0"),
        ({"p0@0": 0}, r"groups without a turn: \['p1@0'\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            buffer.insert(batch_of(effective("p1")), turns)
    sample(buffer, num_groups=1)
    with pytest.raises(ValueError, match="turn 0, which is over"):
        buffer.insert(batch_of(effective("p1")), {"p1@0": 0})
    assert buffer.insert(batch_of(effective("p0")), {"p0@0": 0}).duplicate_groups == 1  # a retry, not a fault
    with pytest.raises(ValueError, match="given twice"):
        buffer.insert(batch_of(effective("p1"), effective("p2")), {"p1@0": 1, "p2@0": 1})
    assert len(buffer) == 0


@pytest.mark.parametrize("mode", SIGNAL_MODES)
def test_a_step_without_an_effective_group_is_empty_and_says_so(mode):
    buffer = make_buffer(mode)
    insert(buffer, uniform("p0"), uniform("p1"))
    drawn = sample(buffer, num_groups=2, num_updates=2, num_shards=2)
    assert [shard.num_rows for shard in drawn.shards] == [0, 0]
    assert all(shard.schema.equals(SAMPLE_SCHEMA, check_metadata=True) for shard in drawn.shards)
    assert (drawn.stats["replay/empty"], drawn.stats["replay/drawn"], drawn.stats["replay/rows_per_update"]) == (1.0, 0, 0)
    assert (drawn.stats["effective_query_ratio"], drawn.stats["reward/mean"]) == (0.0, 1.0)
    assert buffer.ready_groups == 0


@pytest.mark.parametrize("mode", ["fifo", "fresh"])
def test_older_rows_serve_a_step_without_an_effective_group(mode):
    buffer = make_buffer(mode)
    insert(buffer, effective("p0"), effective("p1"), uniform("p2"), uniform("p3"))
    sample(buffer, num_groups=2)
    drawn = sample(buffer, num_groups=2, policy_version=1)
    assert drawn.stats["replay/drawn"] == 8 and not any(row.fresh for row in rows(drawn))
    assert drawn.stats["replay/fresh_fraction"] == 0.0 and drawn.stats["replay/age_mean"] == 1.0


# -- who leaves ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["none", "filter", "episode"])
def test_one_step_modes_keep_nothing(mode):
    buffer = make_buffer(mode)
    insert(buffer, effective("p0"), effective("p1"))
    sample(buffer, num_groups=1)
    assert len(buffer) == 4  # the group that waits
    assert {row.trajectory.prompt_id for row in rows(sample(buffer, num_groups=1))} == {"p1"}
    assert (len(buffer), buffer.stats()["bytes"]) == (0, 0)


def test_fifo_keeps_half_a_step_and_lets_the_oldest_go():
    buffer = make_buffer("fifo")
    for step in range(4):
        insert(buffer, *(effective(f"p{i}", visit=step) for i in range(3)), uniform("p3", visit=step))
        drawn = sample(buffer, num_groups=4, batch_size=64)
        older = {row.trajectory.group_id for row in rows(drawn) if not row.fresh}
        assert older == (set() if step == 0 else {f"p1@{step - 1}", f"p2@{step - 1}"})  # 8 of 16, the newest
        assert len(buffer) == 8


def test_fresh_draws_nothing_older_than_max_age():
    buffer = make_buffer("fresh", max_age=2)
    for version in range(6):
        insert(buffer, effective("p0", visit=version, version=version))
        drawn = sample(buffer, num_groups=1, batch_size=200, policy_version=version)
        assert max(row.age for row in rows(drawn)) == min(version, 2)
    assert len(buffer) == 12


def test_age_counts_from_the_oldest_version_of_a_row():
    buffer = make_buffer("none")
    spans = (VersionSpan(start=0, end=1, version=4), VersionSpan(start=1, end=3, version=6))
    insert(buffer, effective("p0", version_spans=spans))
    drawn = sample(buffer, num_groups=1, policy_version=7)
    assert {row.age for row in rows(drawn)} == {3}
    assert (drawn.stats["staleness/mean"], drawn.stats["staleness/max"]) == (3.0, 3)


def test_capacity_lets_the_oldest_consumed_rows_go():
    buffer = make_buffer("fresh", max_trajectories=10)
    insert(buffer, effective("p0"), effective("p1"))
    sample(buffer, num_groups=2)
    insert(buffer, effective("p2"))
    assert (len(buffer), buffer.stats()["evicted"]) == (10, 2)
    drawn = sample(buffer, num_groups=1, batch_size=400)
    assert {row.trajectory.trajectory_id for row in rows(drawn) if not row.fresh} == {"p0@0/2", "p0@0/3", *(f"p1@0/{i}" for i in range(4))}


def test_capacity_never_takes_rows_that_wait():
    buffer = make_buffer("fresh", max_trajectories=10)
    insert(buffer, effective("p0"), effective("p1"))
    with pytest.raises(ReplayFullError, match=r"max_trajectories=10 can't hold 4 more trajectories beside 8 of 2 groups"):
        insert(buffer, effective("p2"))
    assert (len(buffer), buffer.ready_groups) == (8, 2)
    sample(buffer, num_groups=2)
    assert insert(buffer, effective("p2")).groups == 1  # the refused insert left no trace


# -- figures, priorities, arguments ----------------------------------------------------------------------------------


def test_figures_are_over_all_consumed_trajectories():
    buffer = make_buffer("episode")
    mask = np.array([True, True, False])
    insert(
        buffer,
        make_group("p0", rewards=[1.0, 0.0], version=1, response_tokens=3, loss_mask=mask),
        make_group("p1", rewards=[0.0, 0.0], version=2, response_tokens=9, finish_reason="length"),
        make_group("p2", rewards=[1.0, 1.0], version=2, response_tokens=6, correct_strict=False),
    )
    stats = sample(buffer, num_groups=3, batch_size=16, policy_version=3).stats
    assert stats["effective_query_ratio"] == pytest.approx(1 / 3)
    assert stats["reward/mean"] == stats["accuracy/lenient"] == stats["accuracy/mean"] == pytest.approx(3 / 6)
    assert stats["accuracy/strict"] == pytest.approx(1 / 6)
    assert stats["response/length_mean"] == 6.0
    assert stats["response/truncated_fraction"] == pytest.approx(2 / 6)
    assert stats["staleness/mean"] == pytest.approx(4 / 3)  # 2, 2, 1, 1, 1, 1
    assert stats["staleness/max"] == 2
    assert stats["rollout/tokens_generated"] == 2 * 2 + 2 * 9 + 2 * 6  # triggers weren't sampled
    assert (stats["rollout/groups"], stats["rollout/trajectories"]) == (3, 6)
    assert (stats["replay/inserted"], stats["replay/admitted"], stats["replay/sampled"], stats["replay/size"]) == (6, 2, 16, 2)
    assert all(isinstance(value, int | float) for value in stats.values())


def test_updated_priorities_steer_the_draws():
    buffer = make_buffer("fresh")
    insert(buffer, effective("p0"), uniform("p1"))
    keys = sorted(row.key for row in rows(sample(buffer, num_groups=1, batch_size=4)))
    assert buffer.update_priorities(np.array([keys[0], keys[1], keys[2], 999]), np.array([0.0, 0.0, 0.3, 1.0])) == 3
    drawn = rows(sample(buffer, num_groups=1, batch_size=64))
    assert {row.key for row in drawn} == set(keys[2:])
    assert {row.table_size for row in drawn} == {2}
    assert next(row.probability for row in drawn if row.key == keys[2]) == pytest.approx(0.3 / 0.8)


def test_impossible_priorities_are_refused():
    buffer = make_buffer()
    for keys, priorities in (([1], [-0.1]), ([1], [float("nan")]), ([1, 2], [0.1])):
        with pytest.raises(ValueError, match="priorit"):
            buffer.update_priorities(np.array(keys), np.array(priorities))


@pytest.mark.parametrize("argument", ["num_updates", "batch_size", "num_shards", "num_groups"])
def test_counts_must_be_positive(argument):
    buffer = make_buffer()
    insert(buffer, effective("p0"))
    with pytest.raises(ValueError, match="at least 1"):
        sample(buffer, **{"num_groups": 1, argument: 0})


def test_too_few_groups_and_versions_of_the_future_consume_nothing():
    buffer = make_buffer()
    insert(buffer, effective("p0", version=4))
    with pytest.raises(ValueError, match="2 fresh groups were asked for, 1 are there"):
        sample(buffer, num_groups=2)
    with pytest.raises(ValueError, match="policy version 4, the learner is at 3"):
        sample(buffer, num_groups=1, policy_version=3)
    assert (buffer.ready_groups, len(buffer)) == (1, 4)


def test_the_seed_decides_the_draws():
    def keys(seed):
        buffer = make_buffer(seed=seed)
        insert(buffer, *(effective(f"p{i}") for i in range(8)))
        return [row.key for row in rows(sample(buffer, num_groups=8, batch_size=32))]

    assert keys(1) == keys(1) != keys(2)


def test_capacity_must_be_positive():
    with pytest.raises(ValueError, match="max_trajectories"):
        make_buffer(max_trajectories=0)


def test_schemas_agree():
    assert SAMPLE_SCHEMA.names[: len(TRAJECTORY_SCHEMA)] == TRAJECTORY_SCHEMA.names
