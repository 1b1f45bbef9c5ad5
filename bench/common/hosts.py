"""Machines for tests and benchmarks: network namespaces of this one, each with a network interface of its own."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from fastarat.common.errors import UserError


def ip(*args: str) -> bool:
    """Whether the command `ip ARGS` succeeded."""
    return subprocess.run(["ip", *args], capture_output=True, check=False).returncode == 0


@dataclass(frozen=True)
class Host:
    """A machine."""

    name: str
    address: str
    cable: str
    """the end of its cable that is not in it"""

    @property
    def within(self) -> tuple[str, ...]:
        """What a command begins with to run there."""
        return ("ip", "netns", "exec", self.name)

    def pids(self) -> list[int]:
        """Of the processes that run there."""
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def kill(self) -> None:
        """SIGKILL to all that runs there."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def plug(self, is_in: bool) -> None:
        """Put its cable in, or pull it."""
        ip("link", "set", self.cable, "up" if is_in else "down")


@contextmanager
def hosts(number: int, prefix: str, net: str = "10.77.0") -> Iterator[list[Host]]:
    """`number` machines at NET.1, NET.2, …, which one bridge joins; `prefix` (10 letters at most) begins all names.

    Raises `UserError` where that is not allowed.
    """
    bridge = f"{prefix}-br"
    made = [Host(f"{prefix}-{i}", f"{net}.{i}", f"{prefix}-v{i}") for i in range(1, number + 1)]
    if os.geteuid() or not shutil.which("ip") or not ip("netns", "add", made[0].name):
        raise UserError("hosts in network namespaces need root, and the command ip (Debian: iproute2)")
    try:
        assert ip("link", "add", bridge, "type", "bridge") and ip("link", "set", bridge, "up")
        for i, host in enumerate(made):
            assert i == 0 or ip("netns", "add", host.name)
            assert ip("link", "add", host.cable, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            assert ip("link", "set", host.cable, "master", bridge, "up")
            assert ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            assert all(ip("-n", host.name, "link", "set", device, "up") for device in ("eth0", "lo"))
        yield made
    finally:
        for host in made:
            host.kill()
            ip("link", "del", host.cable)  # a namespace takes a moment to go
            ip("netns", "del", host.name)
        ip("link", "del", bridge)
