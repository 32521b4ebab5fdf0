"""Two things about sockets that Twisted leaves to its users."""

from __future__ import annotations

import os
import socket
import stat
from typing import Any

from twisted.internet import tcp

from raftd.limits import PEER_TCP_TIMEOUT_MS


def is_secure(transport: Any) -> bool:
    """Whether it has TLS (`tls.SecureTransport`, which is not imported here: who has no TLS needs no OpenSSL)."""
    return getattr(transport, "is_secure", False) is True


def speaks_tls(data: bytes) -> bool:
    """Whether the first bytes of a connection begin a TLS handshake."""
    return data[:1] == b"\x16"


def write_at_once(transport: Any, data: bytes) -> None:
    """Write as much as the socket takes now, and queue only the rest.

    `transport.write` waits for another poll of the reactor; measured, not waiting for it is worth 30-50 %
    in closed loops. Whatever is not a plain TCP connection with an empty queue falls back to `write`.
    """
    if is_secure(transport):
        transport.write(data)
        inner = transport.transport
        if isinstance(inner, tcp.Connection) and inner.connected and not inner.disconnecting and unsent(inner):
            inner.doWrite()  # an error is found again by the reactor
        return
    if (
        isinstance(transport, tcp.Connection)
        and not transport.TLS
        and transport.connected
        and not transport.disconnecting
        and not transport.dataBuffer
        and not transport._tempDataBuffer
    ):
        written = transport.writeSomeData(data)
        if isinstance(written, int):  # anything else is an error, which the reactor will find again
            if written == len(data):
                return
            data = data[written:]
    transport.write(data)


def unsent(transport: Any) -> int:
    """Bytes that were written to a transport and that its socket has not taken yet."""
    if is_secure(transport):
        return sum(map(len, transport._appSendBuffer)) + unsent(transport.transport)
    if not isinstance(transport, tcp.Connection):
        return 0
    return len(transport.dataBuffer) - transport.offset + transport._tempDataLen


def remove_stale_socket(path: str) -> str | None:
    """Remove a Unix socket that a process left behind; why not, if anything else is there."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return f"{path} is there already, and is no socket"
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{path}: {error.strerror}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return None
        except OSError as error:
            return f"{path}: {error.strerror}"
    return f"{path}: another process listens there; stop it first"


def tune(transport: Any) -> None:
    """No waiting to fill packets; and who vanishes without a word is noticed one day."""
    if hasattr(transport, "setTcpNoDelay"):
        transport.setTcpNoDelay(True)
    if hasattr(transport, "setTcpKeepAlive"):
        transport.setTcpKeepAlive(True)


def tune_peer(transport: Any) -> None:
    """A peer that vanished without a word is noticed, whether or not anything is on its way to it."""
    tune(transport)
    if hasattr(transport, "setTcpKeepAlive") and hasattr(socket, "TCP_USER_TIMEOUT"):
        (transport.transport if is_secure(transport) else transport).getHandle().setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PEER_TCP_TIMEOUT_MS
        )
