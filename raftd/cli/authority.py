"""Makes certificates: an authority of one cluster, its nodes, clients, and the list of those that are revoked.

Keys are of the curve P-256, without a passphrase, and only their owner may read them.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from raftd.config import node_uri, user_uri
from raftd.errors import RaftdError

#: Clocks of machines differ: a certificate is good from this time before it was made.
_EARLIER = timedelta(hours=1)
#: How long a list of revoked certificates is good. An expired list is not used, and then nobody is trusted.
_CRL_YEARS = timedelta(days=10 * 365)
_CURVE = ec.SECP256R1()


class Signed(NamedTuple):
    """A certificate, and its key in PEM."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def new_authority(cluster: str, days: int) -> Signed:
    """It signs for this cluster, and makes no further authorities."""
    key = ec.generate_private_key(_CURVE)
    # two authorities of one cluster must be told apart, while one takes the other's place
    name = _name(f"raftd {cluster[:40]} {os.urandom(4).hex()}")
    built = _begun(name, key.public_key(), days).issuer_name(name)
    built = built.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    built = built.add_extension(_usage(signs_others=True), critical=True)
    return Signed(built.sign(key, hashes.SHA256()), key)


def new_node(
    authority: Signed, cluster: str, node: int, hosts: Iterable[str], days: int, key: ec.EllipticCurvePrivateKey | None = None
) -> Signed:
    """For node `node`, which others and clients find at `hosts`. `key`: one that it has already."""
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(node_uri(cluster, node))]
    for host in dict.fromkeys([*hosts, "localhost", "127.0.0.1", "::1"]):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(_ascii(host)))
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return _signed(authority, f"raftd {cluster} node {node}", names, uses, days, key)


def new_client(authority: Signed, cluster: str, user: str, days: int, key: ec.EllipticCurvePrivateKey | None = None) -> Signed:
    """For a client that is called `user`. `key`: one that it has already."""
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(user_uri(cluster, user))]
    return _signed(authority, f"raftd {cluster} user {user}", names, [ExtendedKeyUsageOID.CLIENT_AUTH], days, key)


def revoked(authority: Signed, certificates: Iterable[x509.Certificate], before: x509.CertificateRevocationList | None) -> bytes:
    """The list, in PEM: `certificates`, and what is in the list `before`."""
    now = datetime.now(UTC)
    built = x509.CertificateRevocationListBuilder().issuer_name(authority.certificate.subject)
    built = built.last_update(now - _EARLIER).next_update(now + _CRL_YEARS)
    built = built.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    built = built.add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
    serials = {entry.serial_number: entry.revocation_date_utc for entry in before or ()}
    serials |= {one.serial_number: now for one in certificates if one.serial_number not in serials}
    for serial, date in serials.items():
        built = built.add_revoked_certificate(x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(date).build())
    return built.sign(authority.key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _signed(
    authority: Signed,
    subject: str,
    names: list[x509.GeneralName],
    uses: list[x509.ObjectIdentifier],
    days: int,
    key: ec.EllipticCurvePrivateKey | None,
) -> Signed:
    key = key or ec.generate_private_key(_CURVE)
    built = _begun(_name(subject), key.public_key(), days).issuer_name(authority.certificate.subject)
    built = built.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    built = built.add_extension(_usage(signs_others=False), critical=True)
    built = built.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
    built = built.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    return Signed(built.sign(authority.key, hashes.SHA256()), key)


def _ascii(host: str) -> str:
    """As it stands in DNS. Raises RaftdError."""
    try:
        return host.encode("idna").decode()
    except UnicodeError:
        raise RaftdError(f"{host!r} cannot be the name of a host") from None


def _begun(subject: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    built = x509.CertificateBuilder().subject_name(subject).public_key(key).serial_number(x509.random_serial_number())
    built = built.not_valid_before(now - _EARLIER).not_valid_after(now + timedelta(days=days))
    return built.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _usage(signs_others: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_others,
        key_cert_sign=signs_others,
        crl_sign=signs_others,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


# -- files ------------------------------------------------------------------------------------


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Raises RaftdError."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise RaftdError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise RaftdError(f"{path}: expected certificates in PEM") from None


def read_crl(path: Path) -> x509.CertificateRevocationList | None:
    """None if it is not there. Raises RaftdError."""
    try:
        return x509.load_pem_x509_crl(path.read_bytes()) if path.exists() else None
    except OSError as error:
        raise RaftdError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise RaftdError(f"{path}: expected a list of revoked certificates in PEM. Nothing was changed") from None


def has_signed(authority: Signed, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority.certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Raises RaftdError."""
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise RaftdError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError):
        raise RaftdError(f"{path}: expected a private key in PEM, without a passphrase") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise RaftdError(f"{path}: expected a key of an elliptic curve, as `raftd tls init` makes them")
    return key


def write(path: Path, data: bytes, is_secret: bool = False) -> None:
    """Whole or not at all; a secret can be read by its owner alone, from the first byte on. Raises RaftdError."""
    new = path.with_name(path.name + ".new")
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if is_secret else 0o644), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise RaftdError(f"{path}: {error.strerror}") from None


def save(directory: Path, name: str, signed: Signed) -> None:
    """As `name.pem` and `name.key`. Raises RaftdError."""
    write(directory / f"{name}.key", signed.key_pem, is_secret=True)
    write(directory / f"{name}.pem", signed.pem)
