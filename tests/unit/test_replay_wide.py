"""Wide columns: rows read by joining bytes are, value by value, those that Arrow takes."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from replay import wide
from replay.storage import Storage

SCHEMA = pa.schema(
    [
        pa.field("ids", pa.list_(pa.int32())),
        pa.field("text", pa.string()),
        pa.field("mask", pa.list_(pa.bool_())),
        pa.field("spans", pa.list_(pa.struct([("start", pa.int32())]))),
        pa.field("n", pa.int64()),
    ]
)
MISSING = st.fixed_dictionaries(
    {
        "ids": st.none() | st.lists(st.none() | st.integers(0, 9), max_size=5),
        "text": st.none() | st.text(max_size=5),
        "mask": st.none() | st.lists(st.none() | st.booleans(), max_size=19),
        "spans": st.lists(st.fixed_dictionaries({"start": st.none() | st.integers(0, 9)}), max_size=2),
        "n": st.none() | st.integers(0, 9),
    }
)
WHOLE = st.fixed_dictionaries(
    {
        "ids": st.lists(st.integers(0, 9), max_size=5),
        "text": st.text(max_size=5),
        "mask": st.integers(0, 19).map(lambda n: [True] * n),
        "spans": st.just([]),
        "n": st.integers(0, 9),
    }
)
BATCHES = st.lists(
    st.tuples(st.one_of(st.lists(WHOLE, min_size=4, max_size=12), st.lists(MISSING, min_size=4, max_size=12)), st.integers(0, 3)),
    min_size=1,
)


@given(BATCHES, st.lists(st.integers(0, 10**6), min_size=1, max_size=30))
@settings(deadline=None)
def test_rows_in_any_order_are_those_that_arrow_takes(parts, asked):
    storage, batches = Storage(SCHEMA), []
    for rows, first in parts:
        batches.append(pa.RecordBatch.from_pylist(rows, schema=SCHEMA).slice(first))  # its offsets begin anywhere
        storage.append(batches[-1], {"version": np.zeros(len(rows) - first, int), "priority": np.ones(len(rows) - first)})
    everything = pa.concat_batches(batches)
    places = np.array(asked) % everything.num_rows
    found = storage.gather(places)
    found.validate(full=True)
    assert found.to_pylist() == everything.take(pa.array(places)).to_pylist()
    assert storage.gather(storage.places).to_pylist() == everything.to_pylist()


def columns_that_arrow_copies(monkeypatch, rows):
    copied = []
    copy = wide.WideSelection._copied
    monkeypatch.setattr(wide.WideSelection, "_copied", lambda self, c, lengths: copied.append(SCHEMA.names[c]) or copy(self, c, lengths))
    storage = Storage(SCHEMA)
    for row in rows:
        storage.append(pa.RecordBatch.from_pylist([row] * 3, schema=SCHEMA), {"version": np.zeros(3, int), "priority": np.ones(3)})
    places = np.array([4, 0, 1, 5, 3])
    assert storage.gather(places).to_pylist() == [rows[place // 3] for place in places.tolist()]
    return copied


def test_arrow_copies_only_what_is_no_whole_bytes(monkeypatch):
    row = {"ids": [1, 2], "text": "abc", "mask": [True] * 11, "spans": [{"start": 3}], "n": 7}
    assert columns_that_arrow_copies(monkeypatch, [row, row]) == ["spans", "n"]
    assert columns_that_arrow_copies(monkeypatch, [row, {**row, "mask": [True, False]}]) == ["mask", "spans", "n"]
    assert columns_that_arrow_copies(monkeypatch, [row, {**row, "ids": [None, 2]}]) == ["ids", "spans", "n"]


def test_more_values_than_an_offset_can_count_are_left_to_arrow(monkeypatch):
    row = {"ids": [1, 2], "text": "abc", "mask": [True] * 11, "spans": [], "n": 7}
    monkeypatch.setattr(wide, "MAX_VALUES", 14)
    assert columns_that_arrow_copies(monkeypatch, [row, row]) == ["text", "mask", "spans", "n"]
