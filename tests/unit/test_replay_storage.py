"""Storage: keys, places, gathering, removal by whole batches, and memory."""

import gc

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from algorithms.schema import NARROW_COLUMNS, TRAJECTORY_SCHEMA, to_record_batch
from replay import wide_batches
from replay.pages import PAGES, encoded_in_pages
from replay.storage import DEAD_SHARE, KNOWN_FIELDS, OLDEST_DEAD_SHARE, Storage
from tests.fakes import make_group

NUMBERS = pa.schema([pa.field("n", pa.int64())])


def batch_of(*numbers):
    return pa.RecordBatch.from_arrays([pa.array(numbers, type=pa.int64())], schema=NUMBERS)


def append(storage, *numbers):
    return storage.append(batch_of(*numbers), {"version": np.array(numbers, int), "priority": np.array(numbers, float)})


def values(storage, places=None):
    return storage.gather(storage.places if places is None else np.array(places)).column("n").to_pylist()


def known(storage, name):
    return storage.column(name)[storage.places].tolist()


def test_keys_rise_and_are_never_given_again():
    storage = Storage(NUMBERS)
    assert (append(storage, 10, 11).tolist(), known(storage, "key")) == ([0, 1], [0, 1])
    storage.remove(storage.places)
    append(storage, 12)
    assert known(storage, "key") == [2]
    assert storage.next_key == 3


@given(st.lists(st.tuples(st.integers(0, 40), st.sets(st.integers(0, 60)), st.booleans()), max_size=6), st.lists(st.integers(-3, 200)))
@settings(max_examples=150, deadline=None)
def test_rows_are_found_by_their_keys_however_many_left_between_them(events, asked):
    storage, there = Storage(NUMBERS), {}
    for num_rows, leaving, save in events:
        first = storage.next_key
        append(storage, *range(first, first + num_rows))  # a row's number is its key
        storage.remove(np.array([place for i, place in enumerate(storage.places.tolist()) if i in leaving], int))
        if save:
            part = {name: storage.column(name)[storage.places] for name in KNOWN_FIELDS}
            storage = Storage.rebuild(NUMBERS, [(storage.gather(storage.places), part)], storage.layout)
        there = dict(zip(known(storage, "key"), storage.places.tolist(), strict=True))
    for keys in (asked, list(there)[::-1], list(there)[1:3]):
        places, found = storage.find(np.array(keys, np.int64))
        assert found.tolist() == [key in there for key in keys]
        assert places[found].tolist() == [there[key] for key in keys if key in there]


def test_gather_in_any_order_across_batches_and_gaps():
    storage = Storage(NUMBERS)
    for start in (0, 100, 200):
        append(storage, *range(start, start + 50))
    places = np.array([149, 0, 1, 30, 49, 50, 1, 120])
    assert values(storage, places) == [249, 0, 1, 30, 49, 100, 1, 220]
    assert values(storage, []) == []
    assert storage.gather(np.empty(0, int)).schema.equals(NUMBERS)


def test_a_batch_goes_with_its_last_row():
    storage = Storage(NUMBERS)
    append(storage, *range(20))
    append(storage, 30)
    full = storage.held_bytes
    storage.remove(storage.places[:1])
    assert (storage.num_batches, storage.held_bytes, len(storage)) == (2, full, 20)
    storage.remove(storage.places[:19])
    assert (storage.num_batches, values(storage)) == (1, [30])
    storage.remove(storage.places)
    assert (storage.num_batches, storage.held_bytes, storage.num_bytes, len(storage)) == (0, 0, 0, 0)


def test_rows_move_when_others_leave_here_and_there_but_not_when_the_oldest_leave():
    storage = Storage(NUMBERS)
    for i in range(10):
        append(storage, *range(100 * i, 100 * i + 100))
    held = storage.held_bytes
    storage.remove(storage.places[:60])
    assert storage.held_bytes == held
    storage.remove(storage.places[np.arange(40, 940, 15)])  # 60 of the others, each row of 8 bytes
    assert storage.held_bytes < (1 + DEAD_SHARE) * storage.num_bytes + 60 * 8
    assert values(storage) == sorted(set(range(60, 1000)) - set(range(100, 1000, 15)))


def test_find_by_key():
    storage = Storage(NUMBERS)
    append(storage, 5, 6, 7, 8)
    storage.remove(np.array([1]))
    places, found = storage.find(np.array([3, 0, 1, 99]))
    assert found.tolist() == [True, True, False, False]
    assert places[found].tolist() == [3, 0]


def test_the_first_open_rows_are_those_with_the_smallest_keys():
    storage = Storage(NUMBERS)
    append(storage, *range(100))
    storage.column("open")[30:] = True
    storage.remove(np.array([31, 33]))
    assert storage.first_open(4).tolist() == [30, 32, 34, 35]
    assert len(storage.first_open(500)) == 68


def test_another_schema_is_refused():
    with pytest.raises(ValueError, match="replay stores"):
        Storage(TRAJECTORY_SCHEMA).append(batch_of(1), {"version": np.zeros(1, int), "priority": np.zeros(1)})


def test_a_frozen_copy_keeps_what_was():
    storage = Storage(NUMBERS)
    append(storage, 1, 2, 3)
    copy = storage.frozen_copy()
    storage.column("priority")[:] = 9
    storage.remove(storage.places)
    append(storage, 4)
    assert (values(copy), known(copy, "priority"), copy.next_key) == ([1, 2, 3], [1.0, 2.0, 3.0], 3)


def test_whoever_keeps_numbers_by_place_is_told_of_moves():
    moves = []
    storage = Storage(NUMBERS, moved=lambda old, num_places: moves.append((old.tolist(), num_places)))
    append(storage, *range(60))
    storage.remove(np.arange(58))
    append(storage, *range(100, 110))  # 64 places are full, nearly all of them left: the rows move to the front
    assert moves == [([58, 59], 2)]
    assert values(storage) == [58, 59, *range(100, 110)]
    assert known(storage, "place") == list(range(12))


def test_rebuild_gives_the_same_places_and_checks_them():
    storage = Storage(NUMBERS)
    append(storage, *range(50))
    storage.remove(np.array([0, 3, 4, 49]))
    parts = [(storage.gather(storage.places), {name: storage.column(name)[storage.places] for name in KNOWN_FIELDS})]
    again = Storage.rebuild(NUMBERS, parts, storage.layout)
    assert (values(again), again.places.tolist(), again.layout) == (values(storage), storage.places.tolist(), storage.layout)
    places, found = again.find(np.array([0, 1, 3, 5, 49]))
    assert (found.tolist(), places[found].tolist()) == ([False, True, False, True, False], [1, 5])
    assert append(again, 77).tolist() == append(storage, 77).tolist()
    batch, columns = parts[0]
    with pytest.raises(ValueError, match="keys must rise"):
        Storage.rebuild(NUMBERS, [(batch, {**columns, "key": columns["key"] // 2})], storage.layout)
    with pytest.raises(ValueError, match="stay below 4"):
        Storage.rebuild(NUMBERS, parts, {**storage.layout, "next_key": 4})
    with pytest.raises(ValueError, match="places must rise"):
        Storage.rebuild(NUMBERS, [(batch, {**columns, "place": columns["place"][::-1]})], storage.layout)


def test_trajectories_come_out_as_they_went_in():
    storage = Storage(TRAJECTORY_SCHEMA)
    batches = [to_record_batch(make_group(f"p{i}", rewards=[1, 0, 0], response_tokens=i + 1).trajectories) for i in range(4)]
    for batch in batches:
        storage.append(batch, {"version": np.zeros(3, int), "priority": np.ones(3)})
    rows = pa.Table.from_batches(batches).to_pylist()
    assert storage.gather(np.array([11, 1, 4, 5, 1])).to_pylist() == [rows[i] for i in (11, 1, 4, 5, 1)]
    assert storage.gather(np.array([2]), ["reward", "group_id"]).to_pylist() == [{k: rows[2][k] for k in ("reward", "group_id")}]


@pytest.mark.parametrize("small", [0, 100])  # bytes of a batch: none, or nearly all are put together with others
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(0, 40)),
            st.tuples(st.sampled_from(["some", "oldest", "copy"]), st.integers(0, 99)),
        )
    )
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_storage_behaves_like_a_list(monkeypatch, small, events):
    monkeypatch.setattr(wide_batches, "SMALL_BYTES", small)
    monkeypatch.setattr(wide_batches, "TOGETHER_BYTES", 400)
    storage, model, count, copies = Storage(NUMBERS), [], 0, []
    moved = []
    storage.moved = lambda old, num_places: moved.append(num_places)
    for kind, number in events:
        if kind == "append":
            append(storage, *range(count, count + number))
            model += range(count, count + number)
            count += number
        elif kind == "copy":
            copies.append((storage.frozen_copy(), list(model)))
        elif kind == "oldest":
            leaving = storage.places[:number]
            storage.remove(leaving)
            model = model[len(leaving) :]
        else:
            leaving = np.random.default_rng(number).random(len(model)) < number / 99
            storage.remove(storage.places[leaving])
            model = [value for value, leaves in zip(model, leaving, strict=True) if not leaves]
        assert values(storage) == model == known(storage, "key") == known(storage, "version")
        assert len(storage) == len(model)
        assert (storage.num_batches == 0) == (len(model) == 0) == (storage.num_bytes == 0)
        # what rows that left still hold is bounded, in whatever order rows leave
        assert storage.held_bytes <= (1 + DEAD_SHARE + OLDEST_DEAD_SHARE) * 8 * len(model) + 8 * max(storage.num_batches, 1)
    for copy, rows in copies:
        assert values(copy) == rows


def test_batches_of_a_few_rows_are_put_together():
    storage = Storage(TRAJECTORY_SCHEMA, NARROW_COLUMNS)
    groups = [to_record_batch(make_group(f"p{i}", rewards=[1, 0], response_tokens=500).trajectories) for i in range(700)]
    for i, group in enumerate(groups):
        storage.append(group, {"version": np.full(2, i), "priority": np.ones(2)})
        storage.remove(storage.places[: max(0, len(storage) - 1000)])
    assert storage.num_batches < wide_batches.TOGETHER_BATCHES + 5
    rows = pa.Table.from_batches(groups[200:]).to_pylist()
    assert storage.gather(storage.places).to_pylist() == rows
    assert known(storage, "version") == [i for i in range(200, 700) for _ in range(2)]


def test_memory_of_rows_that_came_and_went_is_the_rows_and_little_more():
    gc.collect()
    before = PAGES.used_bytes + PAGES.free_bytes
    storage = Storage(TRAJECTORY_SCHEMA, NARROW_COLUMNS)
    group = to_record_batch(make_group("p", rewards=[1, 0] * 16, response_tokens=2000).trajectories)
    for i in range(120):
        message = encoded_in_pages(group, PAGES)
        batch = pa.ipc.read_record_batch(message, TRAJECTORY_SCHEMA)
        storage.append(batch, {"version": np.full(32, i), "priority": np.ones(32)})
        storage.remove(storage.places[: max(0, len(storage) - 1280)])
    del message, batch
    gc.collect()
    assert storage.num_bytes > 2 * 10**7
    assert PAGES.used_bytes - before < 1.15 * storage.num_bytes
    # what is kept for the next rows to be moved, and for the next that come, isn't much of a table that is larger than this one
    assert PAGES.used_bytes + PAGES.free_bytes - before < 1.15 * storage.num_bytes + 2 * wide_batches.TOGETHER_BYTES


def test_what_is_known_stays_of_rows_that_cannot_be_read_any_more():
    storage = Storage(NUMBERS)
    for first in range(0, 40, 10):
        append(storage, *range(first, first + 10))
    copy = storage.frozen_copy()
    copy.keep_only(np.array([12, 31]))
    assert known(copy, "version") == list(range(40)) and copy.num_batches == 2
    assert values(copy, [12, 31, 19]) == [12, 31, 19] and values(storage) == list(range(40))
