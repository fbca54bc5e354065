"""Storage: keys, gathering, removal by whole batches, and memory."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.schema import TRAJECTORY_SCHEMA, to_record_batch
from replay.storage import Storage
from tests.fakes import make_group

NUMBERS = pa.schema([pa.field("n", pa.int64())])


def batch_of(*numbers):
    return pa.RecordBatch.from_arrays([pa.array(numbers, type=pa.int64())], schema=NUMBERS)


def append(storage, *numbers):
    return storage.append(batch_of(*numbers), versions=np.array(numbers, int), priorities=np.array(numbers, float))


def values(storage, positions=None):
    return storage.gather(np.arange(len(storage)) if positions is None else np.array(positions)).column("n").to_pylist()


def test_keys_rise_and_are_never_given_again():
    storage = Storage(NUMBERS)
    assert append(storage, 10, 11).tolist() == [0, 1]
    storage.remove(np.array([True, True]))
    assert append(storage, 12).tolist() == [2]
    assert storage.column("key").tolist() == [2]
    assert storage.next_key == 3


def test_gather_across_batches_and_gaps():
    storage = Storage(NUMBERS)
    for start in (0, 100, 200):
        append(storage, *range(start, start + 50))
    assert values(storage, [0, 1, 30, 49, 50, 120, 149]) == [0, 1, 30, 49, 100, 220, 249]
    assert values(storage, []) == []
    assert storage.gather(np.empty(0, int)).schema.equals(NUMBERS)


def test_a_batch_goes_with_its_last_row():
    storage = Storage(NUMBERS)
    append(storage, 1, 2)
    append(storage, 3)
    full = storage.num_bytes
    storage.remove(np.array([True, False, False]))
    assert (storage.num_batches, storage.num_bytes, values(storage)) == (2, full, [2, 3])
    storage.remove_oldest(1)
    assert (storage.num_batches, values(storage)) == (1, [3])
    storage.remove_oldest(1)
    assert (storage.num_batches, storage.num_bytes, len(storage)) == (0, 0, 0)


def test_positions_by_key():
    storage = Storage(NUMBERS)
    append(storage, 5, 6, 7, 8)
    storage.remove(np.array([False, True, False, False]))
    positions, found = storage.positions(np.array([3, 0, 1, 99]))
    assert found.tolist() == [True, True, False, False]
    assert positions[found].tolist() == [2, 0]


def test_another_schema_is_refused():
    with pytest.raises(ValueError, match="replay stores"):
        Storage(TRAJECTORY_SCHEMA).append(batch_of(1), versions=np.zeros(1, int), priorities=np.zeros(1))


def test_a_frozen_copy_keeps_what_was():
    storage = Storage(NUMBERS)
    append(storage, 1, 2, 3)
    copy = storage.frozen_copy()
    storage.column("priority")[:] = 9
    storage.remove_oldest(3)
    append(storage, 4)
    assert (values(copy), copy.column("priority").tolist(), copy.next_key) == ([1, 2, 3], [1.0, 2.0, 3.0], 3)


def test_rebuild_checks_the_keys():
    known = {"key": np.array([3, 3]), "version": np.zeros(2, int), "priority": np.zeros(2), "times_sampled": np.zeros(2, int)}
    with pytest.raises(ValueError, match="keys must rise"):
        Storage.rebuild(NUMBERS, [(batch_of(1, 2), known)], next_key=9)
    with pytest.raises(ValueError, match="stay below 4"):
        Storage.rebuild(NUMBERS, [(batch_of(1, 2), {**known, "key": np.array([3, 4])})], next_key=4)


def test_trajectories_come_out_as_they_went_in():
    storage = Storage(TRAJECTORY_SCHEMA)
    batches = [to_record_batch(make_group(f"p{i}", rewards=[1, 0, 0], response_tokens=i + 1).trajectories) for i in range(4)]
    for batch in batches:
        storage.append(batch, versions=np.zeros(3, int), priorities=np.ones(3))
    rows = pa.Table.from_batches(batches).to_pylist()
    assert storage.gather(np.array([1, 4, 5, 11])).to_pylist() == [rows[i] for i in (1, 4, 5, 11)]


@given(
    st.lists(
        st.one_of(st.tuples(st.just("append"), st.integers(0, 40)), st.tuples(st.sampled_from(["some", "oldest"]), st.integers(0, 99)))
    )
)
def test_storage_behaves_like_a_list(events):
    storage, model, count = Storage(NUMBERS), [], 0
    for kind, number in events:
        if kind == "append":
            append(storage, *range(count, count + number))
            model += range(count, count + number)
            count += number
        elif kind == "oldest":
            gone = storage.remove_oldest(min(number, len(model)))
            model = model[gone:]
        else:
            leaving = np.random.default_rng(number).random(len(model)) < number / 99
            storage.remove(leaving)
            model = [value for value, leaves in zip(model, leaving, strict=True) if not leaves]
        assert values(storage) == model == storage.column("key").tolist() == storage.column("version").tolist()
        assert (storage.num_batches == 0) == (len(model) == 0) == (storage.num_bytes == 0)
