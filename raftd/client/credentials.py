"""What a client shows to be a user: a token, or a name and a password, both from files. A certificate is TLS's (`tls.py`)."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import NamedTuple

from raftd.client.url import parameters_of


class Credentials(NamedTuple):
    """All empty: none."""

    token: str = ""
    user: str = ""
    password: str = ""


NO_CREDENTIALS = Credentials()


class CredentialFiles:
    """Where they are, and what was in the files. `token`: the text of one that is in no file."""

    def __init__(self, token_file: str = "", user: str = "", password_file: str = "", token: str = "") -> None:
        """Raises ValueError if a file cannot be read."""
        self._token_file = token_file
        self._user = user
        self._password_file = password_file
        self._shown = Credentials(token, user)
        self._read()

    def _read(self) -> None:
        token = _first_line(self._token_file) if self._token_file else self._shown.token
        self._shown = Credentials(token, self._user, _first_line(self._password_file) if self._password_file else "")

    def read(self) -> Credentials:
        """The first line of each file as it is now, or as it was if it cannot be read any more."""
        with suppress(ValueError):
            self._read()
        return self._shown


def credentials_of(url: str) -> CredentialFiles:
    """Those that a URL names (`raftds://HOST:PORT?token=FILE`, or `?user=NAME&password=FILE`); else the token in $RAFTD_TOKEN. Raises
    ValueError.

    >>> credentials_of("raftds://queue.example?token=/dev/null").read()
    Credentials(token='', user='', password='')
    """
    given = parameters_of(url)
    token, user, password = (given.get(name, "") for name in ("token", "user", "password"))
    if bool(user) != bool(password) or (token and user):
        raise ValueError(f"{url!r}: expected token=FILE, or user=NAME and password=FILE")
    own = "" if token or user else os.environ.get("RAFTD_TOKEN", "").strip()
    return CredentialFiles(os.path.expanduser(token), user, os.path.expanduser(password), own)


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}: expected a token or a password in its first line") from None
