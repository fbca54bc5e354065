"""Packed columns: a row is found by its key whatever was merged, batches stay few, and rows that left hold little."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay import packed as packed_module
from replay.packed import PackedRows

SCHEMA = pa.schema([pa.field("n", pa.int64()), pa.field("name", pa.string())])


def batch_of(keys):
    return pa.RecordBatch.from_arrays([pa.array(keys * 10, type=pa.int64()), pa.array([f"row {key}" for key in keys])], schema=SCHEMA)


def append(packed, first, num):
    keys = np.arange(first, first + num)
    packed.append(batch_of(keys), keys)


@given(
    st.lists(st.tuples(st.sampled_from(["append", "remove", "reclaim"]), st.integers(1, 60)), max_size=30),
    st.integers(0, 99),
    st.sampled_from([64, packed_module.MAX_ROWS]),
)
@settings(deadline=None)
def test_rows_are_found_by_key_whatever_happened(events, seed, max_rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_module, "MAX_ROWS", max_rows)
        check_events(events, seed)


def check_events(events, seed):
    packed, present, end, rng = PackedRows(SCHEMA), np.empty(0, int), 0, np.random.default_rng(seed)
    for kind, number in events:
        if kind == "append":
            append(packed, end, number)
            present, end = np.concatenate([present, np.arange(end, end + number)]), end + number + int(rng.integers(0, 3))
        elif kind == "remove" and len(present):
            leaving = rng.choice(present, min(number, len(present)), replace=False)
            packed.remove(leaving)
            present = np.setdiff1d(present, leaving)
        else:
            packed.reclaim(0.05)
            assert packed.dead_bytes <= 0.05 * packed.held_bytes
        if len(present):
            asked = rng.choice(present, 20)
            assert packed.find(asked).read().to_pylist() == batch_of(asked).to_pylist()
            assert packed.find(asked, ["name"]).read().column("name").to_pylist() == [f"row {key}" for key in asked]
        else:
            assert (packed.num_batches, packed.held_bytes, packed.dead_bytes) == (0, 0, 0)


def test_batches_are_few_however_many_small_ones_came():
    packed = PackedRows(SCHEMA)
    for i in range(1000):
        append(packed, 8 * i, 8)
        assert packed.num_batches == 1


def test_what_was_looked_up_stays_readable():
    packed = PackedRows(SCHEMA)
    append(packed, 0, 50)
    asked = np.array([3, 40, 3])
    selection, copy = packed.find(asked), packed.frozen_copy()
    packed.remove(np.arange(50))
    append(packed, 50, 50)
    assert selection.read().to_pylist() == copy.find(asked).read().to_pylist() == batch_of(asked).to_pylist()


def test_batches_stay_few_though_rows_leave_everywhere(monkeypatch):
    monkeypatch.setattr(packed_module, "MAX_ROWS", 64)
    packed, present, rng = PackedRows(SCHEMA), np.empty(0, int), np.random.default_rng(0)
    for i in range(300):
        append(packed, 16 * i, 16)
        present = np.concatenate([present, np.arange(16 * i, 16 * i + 16)])
        leaving = rng.choice(present, max(0, len(present) - 100), replace=False)
        if len(leaving):
            packed.remove(leaving)
            present = np.setdiff1d(present, leaving)
        assert packed.num_batches <= 2 * len(present) // 32 + 4  # two neighbours hold more than 32, but for those since the last copying
    assert packed.find(present).read().to_pylist() == batch_of(present).to_pylist()


def test_a_copy_and_its_original_go_their_own_ways():
    packed = PackedRows(SCHEMA)
    append(packed, 0, 10)
    copy = packed.frozen_copy()
    append(packed, 10, 10)
    append(copy, 30, 10)
    for rows, keys in ((packed, np.arange(20)), (copy, np.concatenate([np.arange(10), np.arange(30, 40)]))):
        assert rows.find(keys).read().to_pylist() == batch_of(keys).to_pylist()


def test_batches_end_before_their_offsets_do(monkeypatch):
    monkeypatch.setattr(packed_module, "MAX_BYTES", 1000)
    packed = PackedRows(SCHEMA)
    for i in range(20):
        append(packed, 8 * i, 8)
    assert packed.num_batches > 2
    keys = np.arange(160)
    assert packed.find(keys).read().to_pylist() == batch_of(keys).to_pylist()
