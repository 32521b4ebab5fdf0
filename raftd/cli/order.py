"""Ask something of the cluster, over the client door of any node, in a bounded time."""

from __future__ import annotations

import socket
import time

from raftd.cli.ask import NoAnswer
from raftd.errors import FrameError
from raftd.wire import client as w
from raftd.wire.frames import FrameDecoder

_RECV_BYTES = 64 << 10


def order(address: tuple[str, int], request: w.Request, timeout_s: float) -> w.Answer:
    """The node's answer to one request. Raises NoAnswer: then it may have been done all the same."""
    deadline_s = time.monotonic() + timeout_s
    decoder = FrameDecoder()
    try:
        with socket.create_connection(address, timeout=timeout_s) as connection:
            connection.sendall(w.encode_hello(w.ClientHello()))
            w.decode_node_hello(_next_frame(connection, decoder, deadline_s))
            decoder.greeted()
            connection.sendall(w.encode_request(request))
            return w.decode_answer(_next_frame(connection, decoder, deadline_s))
    except OSError as error:
        raise NoAnswer(getattr(error, "strerror", None) or str(error)) from None
    except FrameError as error:
        raise NoAnswer(f"what listens there is no client door of raftd ({error})") from None


def _next_frame(connection: socket.socket, decoder: FrameDecoder, deadline_s: float) -> bytes:
    while True:
        frame = decoder.next_frame()
        if frame is not None:
            return frame
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        connection.settimeout(left_s)
        data = connection.recv(_RECV_BYTES)
        if not data:
            raise NoAnswer("it closes the connection without an answer")
        decoder.feed(data)


def order_of_any(addresses: list[tuple[str, int]], request: w.Request, timeout_s: float) -> w.Answer:
    """The answer of the first that gives one. The next is asked only if the one before could not be reached: what may have been
    done is not asked for twice. Raises NoAnswer."""
    why: list[str] = []
    for host, port in addresses:
        try:
            socket.create_connection((host, port), timeout=timeout_s).close()
        except OSError as error:
            why.append(f"{host}:{port}: {error.strerror or error}")
            continue
        return order((host, port), request, timeout_s)
    raise NoAnswer("; ".join(why))
