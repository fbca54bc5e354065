"""Rows on the wire: they arrive as they were, in few buffers, without more bytes than they have and without a copy at the receiver."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms import wire
from algorithms.schema import SAMPLE_SCHEMA, TRAJECTORY_SCHEMA, attach_images, attached_images, to_record_batch
from algorithms.wire import Parcel, concat_rows
from tests.fakes import make_trajectory

ROWS = to_record_batch(
    [make_trajectory(prompt_id=f"p{i}", response_tokens=1 + 7 * i % 40, loss_mask=np.arange(1 + 7 * i % 40) % 3 > 0) for i in range(12)]
)


def sent(rows):
    """What goes over the wire, and what comes out of it."""
    buffers: list[pickle.PickleBuffer] = []
    message = pickle.dumps(Parcel(rows), protocol=5, buffer_callback=buffers.append)
    return message, buffers, pickle.loads(message, buffers=[bytes(buffer) for buffer in buffers])


@given(st.integers(0, 12), st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_any_slice_arrives_as_it_was(start, length):
    for rows in (ROWS.slice(start, length), pa.Table.from_batches([ROWS.slice(start, length), ROWS.slice(0, start)])):
        arrived = sent(rows)[2]
        arrived.validate(full=True)
        assert type(arrived) is type(rows) and arrived.equals(rows, check_metadata=True)


def test_few_buffers_travel_and_no_more_bytes_than_the_rows_have():
    long = to_record_batch([make_trajectory(prompt_id=f"p{i}", response_tokens=2000) for i in range(64)])
    message, buffers, _ = sent(long)
    assert len(buffers) <= 11 and len(message) < 1000  # Arrow's own pickling: 45 buffers and 3.6 KB
    assert sum(buffer.raw().nbytes for buffer in buffers) < 1.05 * long.nbytes
    assert sum(buffer.raw().nbytes for buffer in sent(long.slice(32, 4))[1]) < 1.3 * long.nbytes / 16


def test_the_receiver_maps_what_the_sender_wrote():
    message, buffers, _ = sent(ROWS)
    memory = [pa.py_buffer(bytes(buffer)) for buffer in buffers]
    arrived = pickle.loads(message, buffers=memory)
    ranges = [(buffer.address, buffer.address + buffer.size) for buffer in memory]
    for column in arrived.columns:
        for buffer in column.buffers():
            assert buffer is None or any(start <= buffer.address <= end for start, end in ranges)


def test_images_and_other_schemas_travel_too():
    table = attach_images(pa.Table.from_batches([ROWS]), {"ab": b"bytes of an image"})
    assert attached_images(sent(table)[2]) == {"ab": b"bytes of an image"}
    for foreign in (pa.RecordBatch.from_pydict({"a": [1, None, 3]}), SAMPLE_SCHEMA.empty_table(), TRAJECTORY_SCHEMA.empty_table()):
        assert sent(foreign)[2].equals(foreign, check_metadata=True)


def test_rows_of_another_version_of_the_schema_are_refused(monkeypatch):
    message, buffers, _ = sent(ROWS)
    monkeypatch.setattr(wire, "SCHEMA_VERSION", 99)
    with pytest.raises(ValueError, match="this one has version 99"):
        pickle.loads(message, buffers=buffers)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=4), st.integers(0, 5000))
@settings(max_examples=60, deadline=None)
def test_batches_that_are_put_together_in_given_memory_are_their_rows(slices, room):
    batches, taken = [ROWS.slice(*one) for one in slices], []

    def take(num_bytes):
        if sum(map(len, taken)) + num_bytes > room:
            return None
        taken.append(memoryview(bytearray(num_bytes)))
        return taken[-1]

    found = concat_rows(batches, take)
    found.validate(full=True)
    assert found.equals(pa.concat_batches(batches), check_metadata=True)


def test_the_long_columns_lie_in_the_given_memory():
    taken = []

    def take(num_bytes):
        taken.append(pa.allocate_buffer(num_bytes, resizable=False))
        return memoryview(taken[-1])

    found = concat_rows([ROWS.slice(0, 5), ROWS.slice(3, 4)], take)
    for name in ("prompt_token_ids", "response_token_ids", "behavior_logprobs"):
        address = found.column(name).buffers()[-1].address
        assert address in [buffer.address for buffer in taken]


def test_batches_of_several_schemas_are_not_put_together(monkeypatch):
    with pytest.raises(pa.ArrowInvalid, match="several schemas"):
        concat_rows([ROWS, ROWS.select(["reward"])], lambda _: None)
    monkeypatch.setattr(wire, "MAX_VALUES", 10)
    assert concat_rows([ROWS, ROWS], lambda num_bytes: memoryview(bytearray(num_bytes))).num_rows == 24
