"""What changes save where the network is the slow part: whole versions and changes over a link of limited bandwidth.

    python -m benchmarks.weights_link --gbit 1 10

The link is a pair of virtual network interfaces between two network namespaces, limited by the kernel's token bucket; it takes root and
Debian's iproute2. Sender and receiver do what a learner rank and a rollout actor do with weights before vLLM loads them: publish, send,
apply to the receiver's copy, verify every byte, answer the checksum. A bucket that has changed is on its way while the next is compared;
a whole version, as a new actor gets it, is sent when it is published. Between them is a TCP connection, served by a thread of each end, and
no Ray, which would add the same two copies to both ways. Rounds are interleaved. Read the ratios.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pickle
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.report import Series, conditions, table
from benchmarks.weights import BUCKET_BYTES, CHANGED, MEGABYTE, Tensors
from weights.buckets import as_bytes
from weights.manifest import EarlyPart, Part, Shipment
from weights.mirror import WeightMirror
from weights.publisher import WeightPublisher
from weights.staging import StagingArea
from weights.verifier import FileVerifier

SPACE, HERE, THERE = "rethinker-link", "rethinker-a", "rethinker-b"
SENDER, RECEIVER = "10.231.77.1", "10.231.77.2"
BURST = "4mb"
TIMEOUT_S = 120.0


def main() -> None:
    """Measure each bandwidth and print Markdown, or be the receiver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gbit", nargs="*", type=float, default=[1.0, 10.0])
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--receive", type=int, metavar="PORT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.receive is not None:
        receive(arguments.receive)
        return
    print(conditions("python -m benchmarks.weights_link"))
    for gbit in arguments.gbit:
        with link(gbit):
            for dtype in arguments.dtypes:
                print(compare(gbit, dtype, arguments.megabytes * MEGABYTE, arguments.rounds), flush=True)


@contextmanager
def link(gbit: float) -> Iterator[None]:
    """Two ends with so many gigabits a second from the sender to the receiver."""
    commands = (
        f"ip netns add {SPACE}",
        f"ip link add {HERE} type veth peer name {THERE}",
        f"ip link set {THERE} netns {SPACE}",
        f"ip addr add {SENDER}/24 dev {HERE}",
        f"ip link set {HERE} up",
        f"ip netns exec {SPACE} ip addr add {RECEIVER}/24 dev {THERE}",
        f"ip netns exec {SPACE} ip link set {THERE} up",
        f"tc qdisc add dev {HERE} root tbf rate {gbit * 1000:.0f}mbit burst {BURST} latency 100ms",
    )
    try:
        for command in commands:
            subprocess.run(command.split(), check=True)
        yield
    finally:
        subprocess.run(["ip", "netns", "del", SPACE], check=False)  # its end of the pair takes the other one with it


def compare(gbit: float, dtype: str, nbytes: int, rounds: int) -> str:
    """Whole versions and changes in turns over one link."""
    weights, random = Tensors(nbytes, getattr(torch, dtype)), np.random.default_rng(0)
    sender = WeightPublisher(weights, bucket_bytes=BUCKET_BYTES, sends=True)
    with socket.create_server((SENDER, 0)) as server:
        server.settimeout(TIMEOUT_S)
        command = ["ip", "netns", "exec", SPACE, sys.executable, "-m", __spec__.name, "--receive", str(server.getsockname()[1])]
        process = subprocess.Popen(command, env=os.environ)
        try:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(TIMEOUT_S)
                series: dict[str, list[float]] = {"whole": [], "changes": [], "everything": []}
                sent: dict[str, int] = {}
                for number in range(len(series) * (rounds + 1)):
                    kind = list(series)[number % len(series)]
                    weights.step(1.0 if kind == "everything" else CHANGED, random)
                    begin = time.perf_counter()
                    with ThreadPoolExecutor(1) as wire:
                        checksum, sent[kind] = publish_to(connection, wire, sender, kind, version=number + 1)
                    answer = bytes(take(connection, 16)).decode()
                    seconds = time.perf_counter() - begin
                    assert answer == checksum
                    if number >= len(series):  # the first ones make the files
                        series[kind].append(1000 * seconds)
        finally:
            sender.close()
            process.wait(TIMEOUT_S)
    changes, whole = Series("changes", series["changes"], "ms"), Series("whole", series["whole"], "ms")
    rows = table(f"{gbit:g} Gbit/s: {CHANGED:.0%} changed numbers of {nbytes / MEGABYTE:.0f} MB {dtype}", changes, whole)
    rows += Series("everything changed, bucket by bucket", series["everything"], "ms").row(whole) + "\n"
    return rows + f"\nBytes sent: {sent['changes'] / sent['whole']:.2%} of a whole version's; bit-identical (checksum of every byte).\n"


def publish_to(connection: socket.socket, wire: Executor, sender: WeightPublisher, kind: str, *, version: int) -> tuple[str, int]:
    """As a learner rank publishes for an actor on another node; the checksum of the version and the bytes of its payloads."""
    sending = []
    for item in sender.publish(version, compare=kind != "whole"):
        if isinstance(item, EarlyPart):
            sending.append(wire.submit(send, connection, dataclasses.replace(item, payload=None), [item.payload]))
            continue
        manifest, buckets = sender.whole()
        if kind == "whole":
            parts, payloads = (Part.whole,) * len(buckets), list(buckets)
        else:
            parts, payloads = item.parts, [None] * len(buckets)  # they are on their way
        sending.append(wire.submit(send, connection, Shipment(manifest=manifest, base=item.base, parts=parts), payloads))
    return manifest.checksum, sum(done.result() for done in sending)


def send(connection: socket.socket, item: EarlyPart | Shipment, payloads: Sequence[NDArray[np.uint8] | None]) -> int:
    """Lengths first, then everything; the bytes of the payloads."""
    sizes = [-1 if payload is None else payload.nbytes for payload in payloads]
    head = pickle.dumps((item, sizes))
    connection.sendall(struct.pack("<q", len(head)) + head)
    for payload in payloads:
        if payload is not None:
            connection.sendall(as_bytes(payload))
    return sum(max(size, 0) for size in sizes)


def receive(port: int) -> None:
    """As a rollout actor and its engine, until the sender hangs up."""
    with socket.create_connection((SENDER, port), TIMEOUT_S) as connection, StagingArea() as area, ThreadPoolExecutor(1) as thread:
        mirror, verifier = WeightMirror(area), FileVerifier()
        memory: dict[tuple[int, int], Any] = {}  # receiving into new memory would cost page faults that Ray's store has not
        applying: list[Future[None]] = []
        while True:
            length = take(connection, 8)
            if not length:
                return
            item, sizes = pickle.loads(bytes(take(connection, struct.unpack("<q", length)[0])))
            payloads = []
            for index, size in enumerate(sizes):
                where = (item.index if isinstance(item, EarlyPart) else index, size)
                payloads.append(None if size < 0 else take(connection, size, memory.setdefault(where, bytearray(max(size, 0)))))
            if mirror.paths and not applying:
                version = item.version if isinstance(item, EarlyPart) else item.manifest.version
                verifier.expect(mirror.paths, version, timeout_s=TIMEOUT_S)
            if isinstance(item, EarlyPart):
                applying.append(thread.submit(mirror.take_early, item, payloads[0]))
                continue
            for done in applying:
                done.result()
            applying.clear()
            staged = mirror.take(item, payloads)
            connection.sendall(verifier.verify(staged.paths, staged.manifest).encode())


def take(connection: socket.socket, size: int, into: bytearray | None = None) -> bytearray:
    """So many bytes; none when the other end has hung up."""
    data = bytearray(size) if into is None else into
    view = memoryview(data)
    while len(view):
        count = connection.recv_into(view)
        if not count:
            return bytearray()
        view = view[count:]
    return data


if __name__ == "__main__":
    main()
