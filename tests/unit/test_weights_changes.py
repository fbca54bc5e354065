"""Changes bring the receiver to the sender's bits exactly, whatever they are, and a payload that does not fit is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weights.changes import BLOCK, apply_changes, changed_positions, pack_changes, payload_bytes
from weights.manifest import WeightUpdateError


def difference(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    positions = changed_positions(old, new)
    assert np.array_equal(positions, np.flatnonzero(old != new))
    return pack_changes(len(old), positions, new[positions])


@settings(deadline=None, max_examples=60)
@given(
    length=st.sampled_from([1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5]),
    share=st.one_of(st.floats(0, 1), st.floats(0, 0.05)),
    word=st.sampled_from([np.uint16, np.uint32]),
    seed=st.integers(0, 99),
)
def test_applying_gives_the_new_bits(length: int, share: float, word: type, seed: int) -> None:
    random = np.random.default_rng(seed)
    old = random.integers(0, np.iinfo(word).max, length, dtype=word, endpoint=True)
    new = np.where(random.random(length) < share, random.integers(0, np.iinfo(word).max, length, dtype=word, endpoint=True), old)
    payload = difference(old, new)
    assert payload.nbytes == payload_bytes(length, int(np.count_nonzero(old != new)), np.dtype(word).itemsize)
    held = old.copy()
    apply_changes(held, payload, where="here")
    assert np.array_equal(held, new)
    apply_changes(held, payload, where="here")
    assert np.array_equal(held, new), "a retry changes nothing"


def test_applying_tells_how_far_it_has_come() -> None:
    old, new = np.zeros(3 * BLOCK + 5, dtype=np.uint32), np.zeros(3 * BLOCK + 5, dtype=np.uint32)
    new[[0, BLOCK, 3 * BLOCK + 4]] = 1
    reached: list[int] = []
    apply_changes(old, difference(old, new), where="here", reached=reached.append)
    assert reached == [BLOCK, 2 * BLOCK, 3 * BLOCK + 5]


def test_the_layout_by_hand() -> None:
    # Two blocks; numbers 1 and 65537 (the second of the second block) become 7 and 9.
    payload = pack_changes(BLOCK + 2, np.array([1, BLOCK + 1]), np.array([7, 9], dtype=np.uint16))
    assert payload[:8].view(np.uint32).tolist() == [1, 1]
    assert payload[8:12].view(np.uint16).tolist() == [7, 9]
    assert payload[12:].view(np.uint16).tolist() == [1, 1]


def test_two_percent_of_float32_take_three_percent_of_the_bytes_and_of_bfloat16_four() -> None:
    assert payload_bytes(10**6, 20_000, 4) / 4e6 == pytest.approx(0.03, abs=1e-4)
    assert payload_bytes(10**6, 20_000, 2) / 2e6 == pytest.approx(0.04, abs=1e-4)


def test_payload_of_another_size_is_refused() -> None:
    payload = pack_changes(10, np.array([3]), np.array([5], dtype=np.uint32))
    held = np.zeros(10, dtype=np.uint32)
    for wrong in (payload[:-1], np.append(payload, payload[:2]), payload[:3], payload[:0]):
        with pytest.raises(WeightUpdateError, match=r"here: .*arrived"):
            apply_changes(held, wrong, where="here")
    with pytest.raises(WeightUpdateError, match=r"here: .*arrived"):
        apply_changes(np.zeros(BLOCK + 1, dtype=np.uint32), payload, where="here")


def test_change_beyond_the_end_is_refused() -> None:
    payload = pack_changes(10, np.array([9]), np.array([5], dtype=np.uint32))
    with pytest.raises(WeightUpdateError, match="here: a change lies beyond the bucket's 9 numbers"):
        apply_changes(np.zeros(9, dtype=np.uint32), payload, where="here")
