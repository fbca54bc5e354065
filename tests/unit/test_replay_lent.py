"""Lent memory: a value is read as it was written, a place is used by one call at a time, and nothing is left behind."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from algorithms.schema import to_record_batch
from algorithms.wire import Parcel
from replay.lent import WORTHWHILE_BYTES, Borrower, Lender, LentMemoryError, Letter, Place, Room, get
from tests.fakes import make_trajectory


def rows(seed: int = 0, tokens: int = 900) -> pa.RecordBatch:
    return to_record_batch([make_trajectory(prompt_id=f"p{seed}", index=i, response_tokens=tokens + i + seed) for i in range(32)])


def lender(tmp_path: Path, places: int = 2) -> Lender:
    return Lender(places, root=tmp_path)


def exchanged(lending: Lender, borrower: Borrower, batch: pa.RecordBatch) -> pa.RecordBatch | None:
    """A batch that the actor answers with, as the caller reads it."""
    loan = lending.lend(batch.nbytes)
    if loan is None:
        return None
    letter = Room(loan.place, borrower.memory(loan.place)).put(Parcel(batch))
    assert letter is not None and len(letter.head) < 4096  # the rows themselves went through the place
    return loan.read(letter)


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    batch, borrower = rows(), Borrower()
    lending = lender(tmp_path)
    loan = lending.lend(batch.nbytes)
    assert loan is not None
    letter = Room(loan.place, loan.memory).put(Parcel(batch))
    assert letter is not None and get(letter, borrower.memory(letter.place)).equals(batch)  # as an insert comes in
    loan.give_back()
    answer = exchanged(lending, borrower, batch)  # as a draw goes out
    assert answer is not None and answer.equals(batch)
    answer.validate(full=True)


def test_a_place_is_given_back_with_the_last_reference_to_what_was_read(tmp_path: Path) -> None:
    lending, borrower = lender(tmp_path), Borrower()
    held = [exchanged(lending, borrower, rows(seed)) for seed in (0, 1)]
    assert lending.lend(WORTHWHILE_BYTES) is None  # both are held
    column = held[0].column("response_token_ids")
    del held[0]
    gc.collect()
    assert lending.lend(WORTHWHILE_BYTES) is None, "a column still shares the place's memory"
    del column
    gc.collect()
    again = exchanged(lending, borrower, rows(2))
    assert again is not None and again.equals(rows(2)) and held[0].equals(rows(1))


def test_a_place_whose_call_was_not_answered_is_never_lent_again(tmp_path: Path) -> None:
    lending = lender(tmp_path)
    assert lending.lend(WORTHWHILE_BYTES) is not None  # and let go of, as after a time-out
    gc.collect()
    second = lending.lend(WORTHWHILE_BYTES)
    assert second is not None and lending.lend(WORTHWHILE_BYTES) is None
    second.give_back()
    assert lending.lend(WORTHWHILE_BYTES).place == second.place


def test_larger_values_get_larger_places_and_what_is_held_stays(tmp_path: Path) -> None:
    lending, borrower = lender(tmp_path), Borrower()
    small, large = rows(), rows(3, tokens=9000)
    held = exchanged(lending, borrower, small)
    assert len(list(tmp_path.glob("*/*.places"))) == 1
    answer = exchanged(lending, borrower, large)
    assert answer.equals(large) and held.equals(small)
    assert len(list(tmp_path.glob("*/*.places"))) == 2
    del held
    gc.collect()
    assert len(list(tmp_path.glob("*/*.places"))) == 1  # the small places went with the last of them


def test_what_does_not_fit_is_left_to_the_object_store(tmp_path: Path) -> None:
    loan = lender(tmp_path).lend(WORTHWHILE_BYTES)
    before = bytes(loan.memory)
    assert Room(loan.place, loan.memory).put(np.zeros(len(before), np.uint8)) is not None
    assert Room(loan.place, loan.memory).put(np.ones(len(before) + 1, np.uint8)) is None
    assert lender(tmp_path).lend(WORTHWHILE_BYTES - 1) is None


def test_without_room_nothing_is_lent_and_nothing_is_left(tmp_path: Path) -> None:
    assert Lender(2, root=tmp_path / "nowhere").lend(WORTHWHILE_BYTES) is None
    assert lender(tmp_path).lend(2**50) is None
    assert not list(tmp_path.glob("*/*.places"))


def test_files_go_with_their_lender_and_what_was_read_stays(tmp_path: Path) -> None:
    lending, batch = lender(tmp_path), rows()
    held = exchanged(lending, Borrower(), batch)
    lending.close()
    assert not list(tmp_path.iterdir()) and held.equals(batch) and lending.lend(batch.nbytes) is None
    forgotten = lender(tmp_path)
    forgotten.lend(WORTHWHILE_BYTES)
    del forgotten
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_a_borrower_maps_lent_files_only(tmp_path: Path) -> None:
    borrower, loan = Borrower(), lender(tmp_path).lend(WORTHWHILE_BYTES)
    place = loan.place
    (tmp_path / "secret").write_bytes(b"x" * 4096)
    link = Path(place.path).with_name("link.places")
    link.symlink_to(tmp_path / "secret")
    for wrong in (str(tmp_path / "secret"), str(link), str(Path(place.path).with_name("none.places"))):
        with pytest.raises(LentMemoryError, match=Path(wrong).name):
            borrower.memory(Place(wrong, 0, 16))
    for start, nbytes in ((-1, 16), (0, -1), (0, 2**40), (2**40, 16)):
        with pytest.raises(LentMemoryError, match="outside of its file"):
            borrower.memory(Place(place.path, start, nbytes))


def test_a_letter_that_claims_more_than_its_place_is_refused(tmp_path: Path) -> None:
    loan = lender(tmp_path).lend(WORTHWHILE_BYTES)
    letter = Room(loan.place, loan.memory).put(np.ones(1000, np.uint8))
    for span in ((0, 2**40), (2**40, 1), (-8, 8), (8, -8)):
        with pytest.raises(LentMemoryError, match="in a place of"):
            get(Letter(letter.head, letter.place, (span,)), loan.memory)


def test_what_lies_in_the_place_already_is_not_copied(tmp_path: Path) -> None:
    loan = lender(tmp_path).lend(WORTHWHILE_BYTES)
    room = Room(loan.place, loan.memory)
    taken = [np.frombuffer(room.take(size), np.uint8) for size in (1000, 50)]
    for number, part in enumerate(taken):
        part[:] = number + 1
    elsewhere = np.full(70, 3, np.uint8)
    letter = room.put([*taken, elsewhere, taken[0][10:20]])
    assert [start for start, _ in letter.spans] == [0, 1024, 1088, 10]
    assert [part.tolist() for part in get(letter, loan.memory)] == [[1] * 1000, [2] * 50, [3] * 70, [1] * 10]
    assert room.take(len(loan.memory)) is None


def test_a_borrower_lets_go_of_files_whose_lender_has_ended(tmp_path: Path) -> None:
    borrower, former, other = Borrower(), lender(tmp_path), lender(tmp_path)
    borrower.memory(former.lend(WORTHWHILE_BYTES).place)
    former.close()
    borrower.memory(other.lend(WORTHWHILE_BYTES).place)
    assert len(borrower._mapped) == 1
