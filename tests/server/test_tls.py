"""What a listener with TLS does before a handshake is done: bounded, in time, and whatever comes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from raftd.cli.authority import new_authority, new_client, new_node, save
from raftd.config import Tls, TlsMode
from raftd.limits import HANDSHAKES, HELLO_TIMEOUT_S, PEER_HANDSHAKES
from raftd.server.certificates import Certificates
from raftd.server.limiter import ConnectionLimiter
from raftd.server.tls import SecureListener, uris_of
from tests.server.harness import MemoryTransport

ADDRESS = IPv4Address("TCP", "10.0.0.1", 4711)


class Echo(Protocol):
    """Says what it hears, and notes it."""

    transport: Any

    def __init__(self, heard: list[Any]) -> None:
        self.heard = heard

    def connectionMade(self) -> None:
        self.heard.append(uris_of(self.transport))

    def dataReceived(self, data: bytes) -> None:
        self.heard.append(data)
        self.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.heard.append("lost")


class EchoFactory(Factory):
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def buildProtocol(self, addr: object) -> Echo:
        return Echo(self.heard)


class Transport(MemoryTransport):
    """Goes on with whichever protocol the connection has."""

    protocol: Any

    def arrives(self, data: bytes) -> None:
        if not self.disconnecting:
            self.protocol.dataReceived(data)

    def gone(self) -> None:
        self.protocol.connectionLost(connectionDone)


class TlsListenerTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        place = Path(directory.name)
        authority = new_authority("t", 9)
        save(place, "ca", authority)
        save(place, "node", new_node(authority, "t", 1, ["here"], 9))
        save(place, "client", new_client(authority, "t", "me", 9))
        self.place = place
        files = Tls(str(place / "ca.pem"), str(place / "node.pem"), str(place / "node.key"))
        self.certificates = Certificates(files, "t", 1)
        self.clock = Clock()
        self.factory = EchoFactory()

    def listener(self, mode: TlsMode = TlsMode.REQUIRED) -> SecureListener:
        limiter = ConnectionLimiter(self.clock, 2_000)
        return SecureListener("line", self.factory, self.certificates.client_context, mode, self.clock, limiter)

    def connect(self, listener: SecureListener) -> Transport:
        transport = Transport()
        transport.protocol = listener.buildProtocol(ADDRESS)
        transport.protocol.makeConnection(transport)
        return transport

    def client(self) -> SSL.Connection:
        context = SSL.Context(SSL.TLS_METHOD)
        context.use_certificate_file(str(self.place / "client.pem"))
        context.use_privatekey_file(str(self.place / "client.key"))
        connection = SSL.Connection(context, None)
        connection.set_connect_state()
        return connection

    def exchange(self, client: SSL.Connection, transport: Transport) -> None:
        """Until neither has more to say."""
        for _ in range(10):
            try:
                client.do_handshake()
            except SSL.WantReadError:
                pass
            try:
                transport.arrives(client.bio_read(1 << 16))
            except SSL.WantReadError:
                pass
            if said := transport.value():
                transport.clear()
                client.bio_write(said)

    def test_nothing_of_raftd_hears_a_byte_before_the_handshake_is_done(self) -> None:
        listener, client = self.listener(), self.client()
        transport = self.connect(listener)
        try:
            client.do_handshake()
        except SSL.WantReadError:
            transport.arrives(client.bio_read(1 << 16))
        self.assertEqual(self.factory.heard, [])
        client.bio_write(transport.value())
        transport.clear()
        self.exchange(client, transport)
        self.assertEqual(self.factory.heard, [frozenset({"raftd://t/user/me"})])
        client.send(b"hello")
        transport.arrives(client.bio_read(1 << 16))
        self.assertEqual(self.factory.heard[1:], [b"hello"])
        transport.gone()
        self.assertEqual(self.factory.heard[2:], ["lost"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_who_says_nothing_or_half_of_it_is_given_up(self) -> None:
        listener = self.listener()
        silent, half = self.connect(listener), self.connect(listener)
        half.arrives(b"\x16\x03\x01\x02\x00\x01")
        self.clock.advance(HELLO_TIMEOUT_S + 0.1)
        self.assertEqual((silent.disconnecting, half.disconnecting), (True, True))
        silent.gone()
        half.gone()
        self.assertEqual((self.factory.heard, self.clock.getDelayedCalls()), ([], []))

    def test_a_handshake_has_a_clients_place_until_its_client_has_one(self) -> None:
        """Half handshakes that nobody counted took the descriptors that the log needs."""
        limiter = ConnectionLimiter(self.clock, 4)
        context = self.certificates.client_context
        listener = SecureListener("line", self.factory, context, TlsMode.REQUIRED, self.clock, limiter)
        peers = SecureListener("peer", self.factory, context, TlsMode.REQUIRED, self.clock, limiter)
        here = IPv4Address("TCP", "127.0.0.1", 1)
        admitted = [listener.buildProtocol(here) for _ in range(5)]
        self.assertIsNone(admitted[4])
        transports = []
        for protocol in admitted[:4]:
            transports.append(Transport())
            transports[-1].protocol = protocol
            protocol.makeConnection(transports[-1])
        self.exchange(self.client(), transports[0])
        transports[1].gone()
        transports[2].arrives(b"\x16\x03\x01\x00\x01\x00")  # nonsense
        transports[2].gone()
        self.assertEqual([listener.buildProtocol(here) is not None for _ in range(4)], [True, True, True, False])
        held = [self.connect(peers) for _ in range(2 * PEER_HANDSHAKES)]
        self.assertIsNone(peers.buildProtocol(here))
        held[0].gone()
        self.assertIsNotNone(peers.buildProtocol(here))

    def test_those_that_wait_longest_make_room(self) -> None:
        listener = self.listener()
        connections = [self.connect(listener) for _ in range(HANDSHAKES + 3)]
        self.assertEqual([connection.disconnecting for connection in connections[:4]], [True, True, True, False])
        for connection in connections:
            connection.gone()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_plain_text_is_refused_or_taken_as_the_mode_says(self) -> None:
        refused = self.connect(self.listener())
        refused.arrives(b"stats\r\n")
        self.assertEqual((refused.disconnecting, self.factory.heard), (True, []))
        taken = self.connect(self.listener(TlsMode.ACCEPT))
        taken.arrives(b"stats\r\n")
        self.assertEqual(self.factory.heard, [None, b"stats\r\n"])

    def test_while_plain_text_is_accepted_a_client_may_have_nothing_to_say_yet(self) -> None:
        transport = self.connect(self.listener(TlsMode.ACCEPT))
        self.clock.advance(HELLO_TIMEOUT_S + 0.1)
        transport.arrives(b"stats\r\n")
        self.assertEqual((transport.disconnecting, self.factory.heard), (False, [None, b"stats\r\n"]))

    def test_whatever_comes_nothing_escapes_and_nothing_stays(self) -> None:
        """A handshake with bytes changed, cut and doubled, thousands of times."""
        random, listener = Random(7), self.listener()
        client = self.client()
        try:
            client.do_handshake()
        except SSL.WantReadError:
            hello = client.bio_read(1 << 16)
        for _ in range(3_000):
            data = bytearray(hello)
            for _ in range(random.randrange(4)):
                data[random.randrange(1, len(data))] = random.randrange(256)
            cut = random.randrange(1, len(data) + 1)
            transport = self.connect(listener)
            for piece in (data[:cut], random.choice((data[cut:], data, random.randbytes(50)))):
                if piece:
                    transport.arrives(bytes(piece))
            transport.gone()
        self.assertEqual((self.factory.heard, self.clock.getDelayedCalls()), ([], []))


class CertificateFileTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.place = Path(directory.name)
        self.authority = new_authority("t", 9)
        save(self.place, "ca", self.authority)
        save(self.place, "node", new_node(self.authority, "t", 1, ["here"], 9))
        self.files = Tls(*(str(self.place / name) for name in ("ca.pem", "node.pem", "node.key")))

    def test_whatever_cannot_be_used_is_one_kind_of_error(self) -> None:
        """An exception of OpenSSL's own ended the timer that looks for new files."""
        certificates = Certificates(self.files, "t", 1)
        before = certificates.client_context()
        small = rsa.generate_private_key(65537, 1024)
        for harm in (
            lambda: (self.place / "node.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            lambda: (self.place / "node.pem").write_bytes(b""),
            lambda: (self.place / "ca.pem").unlink(),
            lambda: save(self.place, "ca", self.authority),
            lambda: (self.place / "node.pem").write_bytes(self._with_key(small)),
            lambda: (self.place / "node.key").unlink(),
        ):
            harm()
            certificates.check()
            self.assertIs(certificates.client_context(), before)
        save(self.place, "node", new_node(self.authority, "t", 1, ["here"], 9))
        certificates.check()
        self.assertIsNot(certificates.client_context(), before)

    def _with_key(self, key: rsa.RSAPrivateKey) -> bytes:
        """A certificate of this node with a key that OpenSSL finds too small."""
        names = [x509.UniformResourceIdentifier("raftd://t/node/1")]
        now = datetime.now(UTC)
        built = x509.CertificateBuilder().subject_name(self.authority.certificate.subject).issuer_name(self.authority.certificate.subject)
        built = built.public_key(key.public_key()).serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
        built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return built.sign(self.authority.key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def test_rights_of_a_file_that_change_are_seen(self) -> None:
        certificates = Certificates(self.files, "t", 1)
        (self.place / "node.key").chmod(0o644)
        before = certificates.client_context()
        certificates.check()
        self.assertIs(certificates.client_context(), before)
        (self.place / "node.key").chmod(0o600)
        certificates.check()
        self.assertIsNot(certificates.client_context(), before)

    def test_a_list_of_revoked_certificates_expires_too(self) -> None:
        now = datetime.now(UTC)
        built = x509.CertificateRevocationListBuilder().issuer_name(self.authority.certificate.subject)
        soon = built.last_update(now - timedelta(days=1)).next_update(now + timedelta(hours=2)).sign(self.authority.key, hashes.SHA256())
        (self.place / "crl.pem").write_bytes(soon.public_bytes(Encoding.PEM))
        certificates = Certificates(msgspec.structs.replace(self.files, crl=str(self.place / "crl.pem")), "t", 1)
        self.assertLess(certificates.left_s, 7_201)

    def test_two_authorities_of_one_cluster_have_two_names(self) -> None:
        """With one name for both, the list of either was taken for the other's."""
        self.assertNotEqual(self.authority.certificate.subject, new_authority("t", 9).certificate.subject)
