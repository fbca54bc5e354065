"""What hangs in a collective is aborted when it is given up, when its sender is gone and when the time is over, and not otherwise."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from weights.way_out import WayOut, abandon_broadcast, broadcast_abandoned

WAIT_S = 20.0


class Collective:
    """Waits for ever, until it is aborted."""

    def __init__(self) -> None:
        self.aborted = threading.Event()

    def wait(self) -> None:
        assert self.aborted.wait(WAIT_S)


def test_a_block_that_ends_by_itself_is_left_alone() -> None:
    collective = Collective()
    with WayOut(lambda: False, collective.aborted.set, timeout_s=WAIT_S) as way_out:
        pass
    time.sleep(0.3)
    assert way_out.reason is None and not collective.aborted.is_set()


@pytest.mark.parametrize("case", ["given up", "sender gone", "deadline"])
def test_a_block_that_hangs_is_aborted_and_says_why(case: str) -> None:
    def abandoned() -> bool:
        if case == "sender gone":
            raise ConnectionError("store closed")
        return case == "given up"

    collective, begin = Collective(), time.monotonic()
    with WayOut(abandoned, collective.aborted.set, timeout_s=0.5 if case == "deadline" else WAIT_S) as way_out:
        collective.wait()
    assert time.monotonic() - begin < 5
    assert way_out.reason == {
        "given up": "its sender gave it up",
        "sender gone": "its sender is gone: store closed",
        "deadline": "it was not over within 0.5 s",
    }[case]


def test_the_sender_tells_through_the_store_that_all_have_met_in() -> None:
    class Member:
        """As PyNcclCommunicator: its group has the store."""

        def __init__(self, store: torch.distributed.Store) -> None:
            self.group = self
            self.store = store

    store = torch.distributed.HashStore()
    sender, receiver = Member(store), Member(store)
    assert not broadcast_abandoned(receiver)
    abandon_broadcast(sender)
    assert broadcast_abandoned(receiver)
