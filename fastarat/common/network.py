"""By which address and interface this machine reaches another one."""

import fcntl
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

_SIOCGIFADDR = 0x8915
"""the ioctl for an interface's address: netdevice(7)"""
_ANY_PORT = 9


def own_address(there: str) -> str:
    """This machine's IPv4 address on the way to the machine `there`. Raises `OSError` where no way leads to it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((there, _ANY_PORT))  # sends nothing
        return probe.getsockname()[0]


def interface_of(address: str) -> str | None:
    """The name of the network interface that has this IPv4 address; None if none has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    return None


def give_up_after(seconds: int, host: str, port: int) -> None:
    """Let this process's connections to `host` (an IPv4 address) fail when nothing was heard from there for so long, in
    seconds: a library that has opened one would wait for a machine that is gone for a quarter of an hour."""
    options = {
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): max(seconds // 4, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): max(seconds // 4, 1),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): 1000 * seconds,
    }
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError), socket.socket(fileno=os.dup(int(entry.name))) as connection:  # most are no sockets
            there = connection.getpeername()
            if there[:2] in ((host, port), (f"::ffff:{host}", port)):
                for (level, name), value in options.items():
                    connection.setsockopt(level, name, value)
