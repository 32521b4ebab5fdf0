"""Backups behind a passphrase: a file of pieces, each encrypted and authenticated (AES-256-GCM), with a key from scrypt.

    magic, 13 bytes "raftd-sealed\\n"; salt, 16 bytes; then pieces of 64 KiB and 16 bytes more, the last of them shorter, perhaps empty

The nonce of a piece is its number and whether it is the last, and the beginning of the file is authenticated with each: pieces cannot be
left out, reordered, or taken from another file, and the file cannot be cut.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from raftd.errors import CommandRefused
from raftd.storage.filesystem import RealFileSystem

_MAGIC = b"raftd-sealed\n"
_SALT_BYTES = 16
_HEAD_BYTES = len(_MAGIC) + _SALT_BYTES
_PIECE_BYTES = 64 << 10
_TAG_BYTES = 16
#: scrypt's cost: 128 MiB and about half a second for each guess.
_SCRYPT_N, _SCRYPT_R = 1 << 17, 8


def is_sealed(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read_passphrase(path: str) -> bytes:
    """The first line of a file. Raises CommandRefused."""
    try:
        with open(path, "rb") as file:
            passphrase = file.readline().rstrip(b"\r\n")
    except OSError as error:
        raise CommandRefused(f"{path}: {error.strerror}") from None
    if not passphrase:
        raise CommandRefused(f"{path}: its first line is empty, and the passphrase is expected there")
    return passphrase


def seal(parts: Iterable[bytes], passphrase: bytes) -> Iterator[bytes]:
    """What to write for the bytes in `parts`."""
    head = _MAGIC + os.urandom(_SALT_BYTES)
    cipher = _cipher(head, passphrase)
    yield head
    number, waiting = 0, bytearray()
    for part in parts:
        waiting += part
        while len(waiting) > _PIECE_BYTES:  # what is left, a whole piece at most, may be the last
            yield cipher.encrypt(_nonce(number, False), bytes(waiting[:_PIECE_BYTES]), head)
            del waiting[:_PIECE_BYTES]
            number += 1
    yield cipher.encrypt(_nonce(number, True), bytes(waiting), head)


class SealedFiles(RealFileSystem):
    """Reads the sealed file `path` as what is in it. Every method raises CommandRefused if the passphrase is another, or a byte is."""

    def __init__(self, path: str, passphrase: bytes) -> None:
        self._path = path
        with open(path, "rb") as file:
            self._head = file.read(_HEAD_BYTES)
        self._cipher = _cipher(self._head, passphrase)
        sealed = max(0, super().size(path) - _HEAD_BYTES)
        self._pieces = max(1, -(-sealed // (_PIECE_BYTES + _TAG_BYTES)))
        self._size = sealed - self._pieces * _TAG_BYTES
        self._number, self._piece = -1, b""
        self._open_piece(self._pieces - 1)  # a passphrase that is another is found at once, and so is a file that was cut

    def size(self, path: str) -> int:
        return self._size

    def read_at(self, path: str, offset: int, size: int) -> bytes:
        end = min(offset + size, self._size)
        found = bytearray()
        while offset < end:
            self._open_piece(offset // _PIECE_BYTES)
            begin = offset % _PIECE_BYTES
            found += self._piece[begin : begin + end - offset]
            offset = min(end, offset - begin + _PIECE_BYTES)
        return bytes(found)

    def read(self, path: str) -> bytes:
        return self.read_at(path, 0, self._size)

    def _open_piece(self, number: int) -> None:
        if number == self._number:
            return
        place = _HEAD_BYTES + number * (_PIECE_BYTES + _TAG_BYTES)
        sealed = super().read_at(self._path, place, _PIECE_BYTES + _TAG_BYTES)
        try:
            self._piece = self._cipher.decrypt(_nonce(number, number == self._pieces - 1), sealed, self._head)
        except (InvalidTag, ValueError):
            raise CommandRefused(f"{self._path}: another passphrase has sealed it, or it is damaged. Nothing was changed") from None
        self._number = number


def _cipher(head: bytes, passphrase: bytes) -> AESGCM:
    salt = head[len(_MAGIC) :]
    return AESGCM(hashlib.scrypt(passphrase, salt=salt, n=_SCRYPT_N, r=_SCRYPT_R, p=1, maxmem=256 << 20, dklen=32))


def _nonce(number: int, is_last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([is_last])
