"""TLS of clients: URLs, files, and a socket that does not wait."""

from __future__ import annotations

import select
import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from raftd.bench.local import wait_for
from raftd.cli.authority import new_authority, new_client, new_node, save
from raftd.client.address import addresses_of
from raftd.client.deferred import secure
from raftd.client.tls import SecureSocket, TlsFiles, files_of, tunnel


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tls")
    authority = new_authority("t", 9)
    save(place, "ca", authority)
    save(place, "node", new_node(authority, "t", 1, ["127.0.0.1"], 9))
    save(place, "me", new_client(authority, "t", "me", 9))
    return place


@pytest.mark.parametrize(
    "url",
    [
        *("raftds://a?ca", "raftds://a?ca=", "raftds://a?cert=x", "raftds://a?key=x", "raftds://a?ca=x&ca=y", "raftds://?ca=x"),
        *("raftd://a?ca=x", "raftds://a/b?ca=x"),
    ],
)
def test_urls_that_mean_nothing_are_refused(url):
    def parse() -> None:
        addresses_of(url)
        files_of(url)

    with pytest.raises(ValueError, match=r"raftds?://"):
        parse()


def test_a_url_names_nodes_and_files():
    url = "raftds://[::1]:7,b?ca=a%20b.pem&certificate=c.pem&key=c.key"
    assert addresses_of(url) == [("::1", 7), ("b", 11301)]
    assert files_of(url) == TlsFiles("a b.pem", "c.pem", "c.key")


@pytest.mark.parametrize("use", [lambda files: files.context(), secure], ids=["ssl", "Twisted"])
@pytest.mark.parametrize("files", [("no.pem",), ("ca.pem", "me.pem", "node.key"), ("me.key",), ("ca.pem", "me.pem", "no.key")])
def test_files_that_cannot_be_used_are_one_kind_of_error(place, use, files):
    with pytest.raises(ValueError, match=r"\.pem|\.key"):
        use(TlsFiles(*(str(place / name) for name in files)))


class Server:
    """Shakes hands with one client, and does what it is told."""

    def __init__(self, place: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(place / "node.pem", place / "node.key")
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self.there: ssl.SSLSocket
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        self.there = self._context.wrap_socket(self._listener.accept()[0], server_side=True)

    def connected(self) -> ssl.SSLSocket:
        self._thread.join(10)
        return self.there


def client_of(server: Server, place: Path) -> SecureSocket:
    plain = socket.create_connection(server.address, timeout=10)
    plain.setblocking(False)
    client = SecureSocket(plain, TlsFiles(str(place / "ca.pem")).context(), "127.0.0.1")
    while not client.shake_hands():
        select.select([client], [], [], 10)
    server.connected()
    return client


def arrived(client: SecureSocket) -> bytes:
    """What is not only TLS's own, such as tickets."""
    while True:
        select.select([client], [], [], 10)
        with suppress(BlockingIOError):
            return client.recv(1 << 16)


def test_an_end_behind_data_is_seen_though_no_poll_shows_it(place):
    server = Server(place)
    client = client_of(server, place)
    there = server.connected()
    there.sendall(b"the last answer")
    there.setblocking(False)
    with pytest.raises(ssl.SSLError):  # it has said its last word, and would wait for the other's
        there.unwrap()
    got = arrived(client)
    if not client.is_at_end:  # the two came apart
        got += arrived(client)
    assert (got, client.is_at_end, client.recv(10)) == (b"the last answer", True, b"")


def test_what_is_sent_to_a_side_that_has_gone_is_an_error_of_sockets(place):
    server = Server(place)
    client = client_of(server, place)
    server.connected().close()

    def send() -> bool:
        try:
            client.send(b"x" * 1_000)
        except OSError:
            return True
        return False

    wait_for(send, what="an error")


def test_a_tunnel_carries_much_both_ways_and_ends_with_either_side(place):
    server = Server(place)
    near = tunnel(server.address, 10, TlsFiles(str(place / "ca.pem")))
    there = server.connected()
    data = bytes(range(256)) * 4_000

    def echo() -> None:
        got = 0
        while got < len(data):
            part = there.recv(1 << 16)
            there.sendall(part)
            got += len(part)
        there.close()

    threading.Thread(target=echo, daemon=True).start()
    threading.Thread(target=near.sendall, args=(data,), daemon=True).start()
    back = bytearray()
    while part := near.recv(1 << 16):
        back += part
    assert bytes(back) == data
