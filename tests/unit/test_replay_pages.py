"""Memory in whole pages: what was used is used again, nothing is used twice at once, and rows in it are the rows."""

import gc
import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.schema import TRAJECTORY_SCHEMA, to_record_batch
from replay.pages import PAGE, WINDOW, WORTHWHILE_BYTES, PagePool, encoded_in_pages, whole_pages
from tests.fakes import make_group


@given(st.integers(0, 3 * 2**20))
@settings(deadline=None)
def test_memory_is_whole_pages_and_no_more_than_an_eighth_too_large(num_bytes):
    pool = PagePool()
    array = pool.take(num_bytes)
    assert array.ctypes.data % PAGE == 0 and len(array) == whole_pages(num_bytes)
    array[:] = 7
    del array
    assert pool.free_bytes <= max(PAGE, whole_pages(num_bytes) * 9 / 8)


def test_what_was_given_back_is_used_again_and_views_keep_it():
    pool = PagePool()
    first = pool.take(10 * PAGE)
    address, view = first.ctypes.data, pa.py_buffer(first).slice(PAGE)
    del first
    assert pool.free_bytes == 0 and pool.take(10 * PAGE).ctypes.data != address  # the view still looks at it
    del view
    gc.collect()
    assert pool.take(10 * PAGE - 1).ctypes.data == address


def test_what_is_kept_is_what_was_in_use_a_while_ago():
    pool = PagePool()
    held = [pool.take(30 * PAGE) for _ in range(10)]
    del held[3:]
    assert (pool.used_bytes, pool.free_bytes) == (90 * PAGE, 210 * PAGE)
    for _ in range(3 * WINDOW):
        pool.take(60 * PAGE)  # in use at once from now on: these, and the three
    assert (pool.used_bytes, pool.free_bytes) == (90 * PAGE, 60 * PAGE)
    assert len({pool.take(60 * PAGE).ctypes.data for _ in range(5)}) == 1  # sizes that nobody asks for went first
    held.clear()
    assert pool.used_bytes == 0 and pool.free_bytes == 150 * PAGE


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 60)), max_size=60))
@settings(deadline=None)
def test_the_count_of_bytes_is_that_of_the_blocks(steps):
    pool, held, peak = PagePool(), [], 0
    for takes, num in steps:
        if takes:
            held.append(pool.take(num * PAGE))
        elif held:
            del held[num % len(held)]
        peak = max(peak, pool.used_bytes)
        assert pool.free_bytes == sum(size * len(blocks) for size, blocks in pool._free.items())
        assert pool.used_bytes + pool.free_bytes <= peak and all(pool._free.values())
        assert sum(map(len, held)) <= pool.used_bytes <= sum(map(len, held)) * 9 / 8 + PAGE
    held.clear()
    assert pool.used_bytes == 0


def test_threads_never_get_the_same_memory():
    pool, mistakes = PagePool(), []

    def work(number):
        rng = np.random.default_rng(number)
        held = []
        for _ in range(300):
            array = pool.take(int(rng.integers(1, 40)) * PAGE)
            array[:] = number
            held.append(array)
            if len(held) > 5:
                mistakes.extend(np.flatnonzero(held.pop(int(rng.integers(0, 6))) != number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mistakes == []


@pytest.mark.parametrize("tokens", [3, 5000])
def test_rows_in_pages_are_the_rows(tokens):
    pool = PagePool()
    pool.take(3 * 2**20)[:] = 255  # what was there before isn't seen
    rows = to_record_batch(make_group("p0", rewards=[1, 0, 1, 0, 0, 1], response_tokens=tokens).trajectories)
    message = encoded_in_pages(rows, pool)
    found = pa.ipc.read_record_batch(message, TRAJECTORY_SCHEMA)
    found.validate(full=True)
    assert found.equals(rows)
    if tokens == 5000:
        assert rows.nbytes > WORTHWHILE_BYTES and message.address % PAGE == 0 == message.size % PAGE
        assert not any(memoryview(message)[pa.ipc.get_record_batch_size(rows) :])
    sliced = encoded_in_pages(rows.slice(2, 3), pool)
    assert pa.ipc.read_record_batch(sliced, TRAJECTORY_SCHEMA).equals(rows.slice(2, 3))
