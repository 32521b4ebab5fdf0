"""Backups behind a passphrase: what was sealed comes back, and nothing that was changed does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftd.cli import sealed
from raftd.cli.sealed import SealedFiles, is_sealed, read_passphrase, seal
from raftd.errors import CommandRefused

PIECE = 64 << 10


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """A key is expensive on purpose."""
    monkeypatch.setattr(sealed, "_SCRYPT_N", 2)


def written(path, parts, passphrase=b"secret"):
    path.write_bytes(b"".join(seal(parts, passphrase)))
    return str(path)


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 7])
def test_what_was_sealed_comes_back(tmp_path, size):
    data = bytes(number % 251 for number in range(size))
    path = written(tmp_path / "b", [data[:10], data[10:]])
    files = SealedFiles(path, b"secret")
    assert is_sealed(path)
    assert (files.size(path), files.read(path)) == (size, data)
    assert files.read_at(path, PIECE - 5, 10) == data[PIECE - 5 : PIECE + 5]
    assert files.read_at(path, size, 10) == b""
    assert size < 16 or data[:1_000] not in (tmp_path / "b").read_bytes()  # a byte or two may well be there


@settings(max_examples=50)
@given(st.data())
def test_any_place_can_be_read(tmp_path_factory, data):
    whole = bytes(number * 7 % 256 for number in range(2 * PIECE + 100))
    path = written(tmp_path_factory.mktemp("b") / "b", [whole])
    files = SealedFiles(path, b"secret")
    offset, size = data.draw(st.integers(0, len(whole) + 10)), data.draw(st.integers(0, len(whole)))
    assert files.read_at(path, offset, size) == whole[offset : offset + size]


def test_another_passphrase_opens_nothing(tmp_path):
    path = written(tmp_path / "b", [b"x"])
    with pytest.raises(CommandRefused, match="another passphrase has sealed it, or it is damaged"):
        SealedFiles(path, b"Secret")


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[:-1],  # cut
        lambda data: data[: -(100 + 16)],  # without its last piece
        lambda data: data + b"x",
        lambda data: data[:13] + bytes([data[13] ^ 1]) + data[14:],  # the salt
        lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
        lambda data: data[:29] + data[29 + PIECE + 16 :],  # the first piece left out
        lambda data: data[:29] + data[29 + PIECE + 16 : 29 + 2 * (PIECE + 16)] + data[29 : 29 + PIECE + 16] + data[29 + 2 * (PIECE + 16) :],
    ],
    ids=["cut", "last piece", "longer", "salt", "a bit", "first piece", "swapped"],
)
def test_what_was_changed_is_refused(tmp_path, harm):
    path = written(tmp_path / "b", [bytes(2 * PIECE + 100)])
    (tmp_path / "b").write_bytes(harm((tmp_path / "b").read_bytes()))

    def read_all() -> bytes:
        return SealedFiles(path, b"secret").read(path)

    with pytest.raises(CommandRefused):
        read_all()


def test_two_files_of_one_passphrase_have_nothing_in_common(tmp_path):
    one, two = (written(tmp_path / name, [bytes(1_000)]) for name in "ab")
    assert (tmp_path / "a").read_bytes()[13:45] != (tmp_path / "b").read_bytes()[13:45]
    assert SealedFiles(one, b"secret").read(one) == SealedFiles(two, b"secret").read(two)


def test_a_passphrase_is_the_first_line_of_a_file(tmp_path):
    (tmp_path / "p").write_bytes(b"two words \r\nmore\n")
    assert read_passphrase(str(tmp_path / "p")) == b"two words "
    (tmp_path / "p").write_bytes(b"\n")
    with pytest.raises(CommandRefused, match="its first line is empty"):
        read_passphrase(str(tmp_path / "p"))
