"""By which address and interface this machine reaches another one."""

import fcntl
import socket
import struct

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
