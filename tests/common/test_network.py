"""The network of this machine."""

import socket

from fastarat.common.network import give_up_after


def test_connections_to_one_place_are_given_up_in_time_and_others_are_left_alone():
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        port = one.getsockname()[1]
        with (
            socket.create_connection(("127.0.0.1", port)) as ours,
            socket.create_connection(other.getsockname()) as its,
        ):
            give_up_after(60, "127.0.0.1", port)
            timeouts = [each.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) for each in (ours, its)]
            assert timeouts == [60_000, 0] and ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            ours.sendall(b"still there")
            assert one.accept()[0].recv(11) == b"still there"
