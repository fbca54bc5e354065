"""A network link of one's own to a second node, which can be cut: a network namespace and a pair of virtual interfaces.

It takes root and Debian's iproute2.
"""

from __future__ import annotations

import os
import shutil
import subprocess


class Link:
    """A namespace whose only way out is a cable to this machine.

    Args:
        name: of the namespace; with a letter behind it, of its interfaces (15 characters in all).
    """

    def __init__(self, name: str) -> None:
        self.name = name
        subnet = f"10.231.{os.getpid() % 256}"  # a private one, used between the two ends only
        self.address, self._gateway = f"{subnet}.2", f"{subnet}.1"  # the first is of whoever lives in the namespace
        here, self._there = f"{name}h", f"{name}t"
        try:
            for command in (
                f"ip netns add {name}",
                f"ip link add {here} type veth peer name {self._there}",
                f"ip link set {self._there} netns {name}",
                f"ip addr add {self._gateway}/30 dev {here}",
                f"ip link set {here} up",
            ):
                _run(command)
            self._within("ip link set lo up", f"ip addr add {self.address}/30 dev {self._there}")
            self.join()
        except subprocess.CalledProcessError:
            self.close()
            raise

    @property
    def prefix(self) -> list[str]:
        """In front of a command that is to live in the namespace."""
        return ["ip", "netns", "exec", self.name]

    def cut(self) -> None:
        """Nothing goes through any more, in either direction, and nobody is told."""
        self._within(f"ip link set {self._there} down")

    def join(self) -> None:
        """Let it through again."""
        self._within(f"ip link set {self._there} up", f"ip route replace default via {self._gateway}")

    def close(self) -> None:
        """Remove it; its end of the pair takes the other one with it."""
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)

    def _within(self, *commands: str) -> None:
        for command in commands:
            _run(" ".join([*self.prefix, command]))


def can_link() -> bool:
    """Whether this user may make such a link: root with iproute2, and not in every container."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        return False
    try:
        Link(f"try{os.getpid()}").close()
    except subprocess.CalledProcessError:
        return False
    return True


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True)
