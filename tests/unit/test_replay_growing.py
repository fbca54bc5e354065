"""Growing columns: what was added is there as Arrow's own concatenation has it, and what was handed out stays as it was."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.growing import FIRST_ROOM, GrowingRows

SCHEMA = pa.schema(
    [
        pa.field("number", pa.float32()),
        pa.field("flag", pa.bool_()),
        pa.field("name", pa.string()),
        pa.field("numbers", pa.list_(pa.int64())),
        pa.field("flags", pa.list_(pa.bool_())),
        pa.field("spans", pa.list_(pa.struct([("kind", pa.string()), ("start", pa.int32()), ("flag", pa.bool_())]))),
    ]
)


def maybe(values):
    return st.none() | values


FLAGS, NAMES = maybe(st.booleans()), maybe(st.text(max_size=5))
SPANS = maybe(st.fixed_dictionaries({"kind": NAMES, "start": maybe(st.integers(0, 9)), "flag": FLAGS}))
ROWS = st.fixed_dictionaries(
    {
        "number": maybe(st.floats(width=32, allow_nan=False)),
        "flag": FLAGS,
        "name": NAMES,
        "numbers": maybe(st.lists(maybe(st.integers(0, 9)), max_size=3)),
        "flags": maybe(st.lists(FLAGS, max_size=11)),
        "spans": maybe(st.lists(SPANS, max_size=3)),
    }
)


def batch_of(rows):
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


@given(st.lists(st.tuples(st.lists(ROWS, max_size=12), st.integers(0, 3), st.integers(0, 12)), max_size=8))
@settings(deadline=None)
def test_added_rows_are_those_of_a_concatenation(parts):
    growing, added, seen = GrowingRows(SCHEMA), [batch_of([])], []
    for rows, first, length in parts:
        added.append(batch_of(rows).slice(first, length))  # a part of a larger batch: its offsets begin anywhere
        growing.extend(added[-1])
        seen.append((growing.select(SCHEMA.names), pa.concat_batches(added)))
    for found, expected in seen:
        found.validate(full=True)
        assert found.to_pylist() == expected.to_pylist()


@pytest.mark.parametrize("missing", [False, True])
def test_a_column_outgrows_its_room_many_times(missing):
    row = {"number": 1.5, "flag": True, "name": "abc", "numbers": [1, 2], "flags": [True, False, True], "spans": []}
    growing, batch = GrowingRows(SCHEMA), batch_of([row] * 301 + [dict.fromkeys(row)] * missing)
    growing.extend(batch)
    first = growing.select(["name", "flags"])
    for _ in range(4 * FIRST_ROOM // 301):
        growing.extend(batch)
    assert growing.select(SCHEMA.names).to_pylist() == batch.to_pylist() * (1 + 4 * FIRST_ROOM // 301)
    assert first.to_pylist() == batch.select(["name", "flags"]).to_pylist()
