"""TLS of a client: what it trusts, and what it shows. OpenSSL is imported only where TLS is used."""

from __future__ import annotations

import os
import select
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from raftd.client.url import SECURE_SCHEME, parameters_of

if TYPE_CHECKING:
    import ssl

_CARRIED_BYTES = 64 << 10


class TlsFiles(NamedTuple):
    """Files in PEM. `ca`: the authorities that sign for the cluster; without it, those that the system trusts. `certificate`: what the
    client shows, with its `key`, which may be in the same file."""

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None

    def context(self) -> ssl.SSLContext:
        """Raises ValueError for files that cannot be used."""
        import ssl

        context = ssl.create_default_context()
        try:
            if self.ca is not None:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.load_verify_locations(self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key, password="")
        except (OSError, ValueError) as error:
            names = ", ".join(name for name in self if name is not None)
            raise ValueError(f"{names}: {why(error)}: expected certificates and a key in PEM") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


def files_of(url: str) -> TlsFiles | None:
    """The files that a URL names (`raftds://HOST:PORT?ca=FILE&certificate=FILE&key=FILE`), None for one without TLS. Raises ValueError.

    >>> files_of("raftds://queue.example?ca=ca.pem")
    TlsFiles(ca='ca.pem', certificate=None, key=None)
    """
    files = {name: os.path.expanduser(value) for name, value in parameters_of(url).items() if name in TlsFiles._fields}
    if not url.startswith(SECURE_SCHEME):
        return None
    if "key" in files and "certificate" not in files:
        raise ValueError(f"{url!r}: a key needs its certificate")
    return TlsFiles(**files)


def connected(address: tuple[str, int], timeout_s: float, files: TlsFiles | None) -> socket.socket:
    """Raises OSError, and ValueError for `files` that cannot be used."""
    context = files.context() if files is not None else None
    plain = socket.create_connection(address, timeout=timeout_s)
    if context is None:
        return plain
    try:
        return context.wrap_socket(plain, server_hostname=address[0])
    except BaseException:
        plain.close()
        raise


def tunnel(address: tuple[str, int], timeout_s: float, files: TlsFiles | None) -> socket.socket:
    """As `connected`, but for any number of threads, which one connection of OpenSSL is not: with TLS a thread of its own speaks it."""
    there = connected(address, timeout_s, files)
    if files is None:
        return there
    near, far = socket.socketpair()
    there.setblocking(False)
    threading.Thread(target=_carry, args=(far, there), name="raftd TLS", daemon=True).start()
    return near


def _carry(near: socket.socket, there: socket.socket) -> None:
    """Until either side ends."""
    poll = select.poll()
    poll.register(near, select.POLLIN)
    poll.register(there, select.POLLIN)
    out = b""
    with near, there, suppress(OSError):
        while True:
            ready = dict(poll.poll())
            if near.fileno() in ready and not out:
                out = near.recv(_CARRIED_BYTES)
                if not out:
                    return
            with suppress(BlockingIOError):
                out = out[_without_waiting(there.send, out) :] if out else out
            poll.modify(there, select.POLLIN | (select.POLLOUT if out else 0))
            poll.modify(near, 0 if out else select.POLLIN)
            with suppress(BlockingIOError):
                while True:
                    data = _without_waiting(there.recv, _CARRIED_BYTES)  # an end without TLS's own is an OSError
                    if not data:
                        return
                    near.sendall(data)


def _without_waiting(call: Any, argument: Any) -> Any:
    """Raises BlockingIOError instead of OpenSSL's own."""
    import ssl

    try:
        return call(argument)
    except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
        raise BlockingIOError from None


class SecureSocket:
    """A socket with TLS that does not block: like one without, but for `shake_hands`."""

    def __init__(self, plain: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self._socket = context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
        #: Whether the handshake waits to be sent on, or for the other side.
        self.wants_to_write = False
        #: Whether the other side has said its last word: no poll shows that, if data came before it.
        self.is_at_end = False

    def shake_hands(self) -> bool:
        """Whether it is done. Raises OSError."""
        import ssl

        try:
            self._socket.do_handshake()
        except ssl.SSLWantReadError:
            self.wants_to_write = False
            return False
        except ssl.SSLWantWriteError:
            self.wants_to_write = True
            return False
        return True

    def send(self, data: bytes) -> int:
        return int(_without_waiting(self._socket.send, data))

    def recv(self, size: int) -> bytes:
        """What has arrived, all of it; b"" at the end. Raises BlockingIOError if nothing has."""
        parts: list[bytes] = []
        while not self.is_at_end:
            try:
                part = _without_waiting(self._socket.recv, size)
            except BlockingIOError:
                if not parts:
                    raise
                break
            self.is_at_end = not part
            parts.append(part)
        return b"".join(parts)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()


def why(error: BaseException) -> str:
    """Why TLS failed, without OpenSSL's numbers.

    >>> why(OSError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired (_ssl.c:1000)"))
    'certificate verify failed: certificate has expired'
    """
    text = str(getattr(error, "strerror", None) or error)
    if not isinstance(error, OSError):
        return text
    text = text.partition("] ")[2] or text
    return text.rpartition(" (_ssl")[0] or text
