"""Passwords and tokens: what is kept of them. The cost of one guess at a password is here, and nowhere else."""

from __future__ import annotations

import hashlib
import secrets

from raftd.limits import DIGEST_BYTES, SALT_BYTES

#: scrypt (RFC 7914): 128 MiB and some 0.4 s for one password.
_N = 1 << 17
_R = 8
_P = 1
_MEMORY_BYTES = 192 << 20
#: The longest password, in bytes: nobody may make scrypt read more.
PASSWORD_BYTES = 1_024

#: Tools that search for secrets that were published by mistake find tokens by this.
TOKEN_PREFIX = "raftd-"
_TOKEN_BYTES = 32


def new_salt() -> bytes:
    return secrets.token_bytes(SALT_BYTES)


def digest_of_password(password: str, salt: bytes) -> bytes:
    """What is kept of a password. Takes its time: not in the thread of a node."""
    return hashlib.scrypt(password.encode(), salt=salt, n=_N, r=_R, p=_P, maxmem=_MEMORY_BYTES, dklen=DIGEST_BYTES)


def new_token() -> str:
    """The text of a token: visible ASCII, short enough for a line of the line protocol."""
    return TOKEN_PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)


def digest_of_token(token: str) -> bytes:
    """What is kept of a token. It is random, so a fast hash will do: nobody can try them all."""
    return hashlib.sha256(token.encode()).digest()
