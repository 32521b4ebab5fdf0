"""What a node shows of itself over TLS, and whom it trusts: files in PEM, which are read again when they change.

A node's certificate names it and its cluster (`URI:raftd://CLUSTER/node/ID`), whatever its host is called.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto
from twisted.internet import ssl
from twisted.logger import Logger

from raftd.config import Tls, node_uri
from raftd.errors import ConfigError
from raftd.limits import CERTIFICATE_WARNING_DAYS

_HTTP = b"http/1.1"
#: For TLS 1.2: forward secrecy, and encryption that authenticates; Twisted's own list has CBC too. TLS 1.3 has nothing else.
_CIPHERS = ssl.AcceptableCiphers.fromOpenSSLCipherString("ECDHE+AESGCM:ECDHE+CHACHA20")
#: OpenSSL's reasons why a certificate is not trusted, and what a user calls them.
_REASONS = {
    3: "there is no list of revoked certificates of its authority",
    8: "the list of revoked certificates is not one of its authority",
    9: "it is not valid yet",
    10: "it has expired",
    12: "the list of revoked certificates has expired",
    18: "it is signed by itself",
    19: "none of the authorities in `ca` has signed it",
    20: "none of the authorities in `ca` has signed it",
    21: "none of the authorities in `ca` has signed it",
    23: "it is revoked",
    26: "it is not made for this use",
}


class Certificates:
    """What node `node` of `cluster` shows, and whom it trusts, from `files`. Raises ConfigError if they cannot be used."""

    _log = Logger("raftd")

    def __init__(self, files: Tls, cluster: str, node: int) -> None:
        self._files = files
        self._node_uri = node_uri(cluster, node)
        self._looks = self._look()
        self._loaded = self._load()
        self._next_warning = datetime.now(UTC)

    def check(self) -> None:
        """To be called every `CERTIFICATE_CHECK_S`: look for a change, and warn in time, once a day."""
        self.reload()
        now = datetime.now(UTC)
        if self.expires - now < timedelta(days=CERTIFICATE_WARNING_DAYS) and now >= self._next_warning:
            self._next_warning = now + timedelta(days=1)
            self._log.warn(
                "the certificates of this node are good until {expires}: renew them (docs/security.md)",
                expires=f"{self.expires:%Y-%m-%d %H:%M} UTC",
            )

    @property
    def expires(self) -> datetime:
        """When the first of this node's certificate, those behind it, those of the authorities and the lists of revoked ones expires."""
        return self._loaded.expires

    @property
    def left_s(self) -> float:
        """For how many seconds they are good."""
        return (self.expires - datetime.now(UTC)).total_seconds()

    def reload(self, is_asked: bool = False) -> None:
        """Use the files as they are now, if they have changed or it `is_asked` for. Files that cannot be used change nothing."""
        looks = self._look()
        if looks == self._looks and not is_asked:
            return
        self._looks = looks
        try:
            self._loaded = self._load()
        except ConfigError as error:
            self._log.error("the certificates have changed, and cannot be used; the old ones are still in use: {error}", error=error)
            return
        self._log.info("new certificates are in use, until {expires}", expires=f"{self.expires:%Y-%m-%d}")

    def peer_context(self) -> SSL.Context:
        """For both sides of a connection between nodes."""
        return self._loaded.peers

    def client_context(self) -> SSL.Context:
        """For clients of this node."""
        return self._loaded.clients

    def _names(self) -> list[str]:
        files = self._files
        return [name for name in (files.ca, files.certificate, files.key, files.crl) if name is not None]

    def _look(self) -> list[tuple[int, ...]]:
        """What tells whether files have changed."""
        looks: list[tuple[int, ...]] = []
        for name in self._names():
            try:
                found = os.stat(name)
                looks.append((found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino))
            except OSError:
                looks.append(())
        return looks

    def _load(self) -> _Loaded:
        try:
            return self._read_all()
        except ConfigError:
            raise
        except Exception as error:  # OpenSSL and cryptography have many
            raise ConfigError(f"{self._files.certificate}: it cannot be used: {error}") from None

    def _read_all(self) -> _Loaded:
        files = self._files
        authorities = _certificates(files.ca)
        own, *between = _certificates(files.certificate)
        key = _key(files.key)
        revoked = _crls(files.crl) if files.crl is not None else []
        if self._node_uri not in uris_in(own.to_cryptography()):
            raise ConfigError(f"{files.certificate}: it is no certificate of this node: expected URI:{self._node_uri} among its names")
        if not _belongs(key, own):
            raise ConfigError(f"{files.key}: it is not the key of {files.certificate}")

        def context(wants_certificates: bool) -> SSL.Context:
            options = ssl.CertificateOptions(key, own, extraCertChain=between, acceptableCiphers=_CIPHERS)
            made = options.getContext()
            made.set_options(SSL.OP_NO_RENEGOTIATION)
            made.set_alpn_select_callback(_protocol)  # Twisted's refuses who offers one that is not wanted, as curl does
            store = made.get_cert_store()
            assert store is not None
            for authority in authorities:
                store.add_cert(authority)
            for crl in revoked:
                store.add_crl(crl)
            if revoked:
                store.set_flags(crypto.X509StoreFlags.CRL_CHECK)
            made.set_verify(SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if wants_certificates else 0), _verified)
            return made

        expires = min(one.to_cryptography().not_valid_after_utc for one in (own, *between, *authorities))
        expires = min([expires, *(crl.next_update_utc for crl in revoked if crl.next_update_utc is not None)])
        return _Loaded(context(True), context(files.verify_clients), expires)


class _Loaded(NamedTuple):
    peers: SSL.Context
    clients: SSL.Context
    expires: datetime


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def _certificates(path: str) -> list[crypto.X509]:
    try:
        return [crypto.X509.from_cryptography(one) for one in x509.load_pem_x509_certificates(_read(path))]
    except ValueError as error:
        raise ConfigError(f"{path}: expected certificates in PEM: {error}") from None


def _belongs(key: crypto.PKey, certificate: crypto.X509) -> bool:
    context = SSL.Context(SSL.TLS_METHOD)
    context.use_certificate(certificate)
    try:
        context.use_privatekey(key)
        context.check_privatekey()
    except SSL.Error:
        return False
    return True


def _crls(path: str) -> list[x509.CertificateRevocationList]:
    data, mark = _read(path), b"-----BEGIN X509 CRL-----"
    try:
        found = [x509.load_pem_x509_crl(mark + part) for part in data.split(mark)[1:]]
    except ValueError as error:
        raise ConfigError(f"{path}: expected lists of revoked certificates in PEM: {error}") from None
    if not found:
        raise ConfigError(f"{path}: expected lists of revoked certificates in PEM")
    return found


def _key(path: str) -> crypto.PKey:
    try:
        with open(path, "rb") as file:
            data, mode = file.read(), os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigError(f"{path}: others than its owner may read or write this key: chmod 600 {path}")
    try:
        return crypto.PKey.from_cryptography_key(load_pem_private_key(data, None))  # type: ignore[arg-type]  # others raise TypeError
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{path}: expected a private key in PEM, without a passphrase") from None


def uris_in(certificate: x509.Certificate) -> list[str]:
    """The URIs among its names."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def name_in(certificate: x509.Certificate) -> str:
    """Its common name, "" if it has none."""
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _protocol(connection: SSL.Connection, offered: list[bytes]) -> Any:
    return _HTTP if _HTTP in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def _verified(connection: SSL.Connection, certificate: crypto.X509, number: int, depth: int, is_good: int) -> bool:
    transport = connection.get_app_data()  # a `tls.SecureTransport`
    if not is_good and not transport.distrust:
        transport.distrust = _REASONS.get(number, f"X.509 error {number}")
    return bool(is_good)
