"""Who a client is: attempts are slowed down, passwords are looked at one by one."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from raftd.jobs.rights import Login
from raftd.limits import LOGIN_FAILURES, LOGIN_FORGOTTEN_S, LOGIN_SLOWEST_S, PASSWORDS_OF_ADDRESS
from raftd.passwords import TOKEN_PREFIX, digest_of_password, digest_of_token, new_token
from raftd.server.authentication import Authentication, Failures


def test_some_failures_cost_nothing_then_each_costs_more():
    failures = Failures(Clock())
    waits = [round(failures.failed("there"), 1) for _ in range(LOGIN_FAILURES + 9)]
    assert waits == [0] * LOGIN_FAILURES + [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, LOGIN_SLOWEST_S, LOGIN_SLOWEST_S, LOGIN_SLOWEST_S]


def test_nobody_else_waits_and_after_a_while_it_is_forgotten():
    clock = Clock()
    failures = Failures(clock)
    for _ in range(50):
        failures.failed("there")
    assert failures.failed("elsewhere") == 0
    clock.advance(LOGIN_FORGOTTEN_S)
    assert failures.failed("there") == 0


def test_after_one_that_was_good_all_is_forgotten():
    authentication = Authentication(Clock())
    waits = [authentication.decided(False, "10.0.0.1", "ann") for _ in range(LOGIN_FAILURES + 2)]
    assert waits[-1] > 0
    assert authentication.decided(True, "10.0.0.1", "ann") == 0
    assert authentication.decided(False, "10.0.0.1", "ann") == 0


def test_a_network_of_ipv6_is_one_address():
    authentication = Authentication(Clock())
    waits = [authentication.decided(False, f"2001:db8::{number}", "") for number in range(LOGIN_FAILURES + 2)]
    assert waits[-1] > 0
    assert authentication.decided(False, "2001:db8:0:1::1", "") == 0


def test_a_token_is_random_and_fits_a_line_of_the_line_protocol():
    first, second = new_token(), new_token()
    assert first != second
    assert first.startswith(TOKEN_PREFIX)
    assert len(f"auth {'u' * 64} {first}\r\n") < 224
    assert digest_of_token(first) != digest_of_token(second)


@pytest.mark.parametrize(
    ("host", "user"), [(None, "app"), ("127.0.0.1", "app"), ("::1", "app"), ("10.1.2.3", None), ("queue.example", None)]
)
def test_the_local_user_is_on_this_machine(host, user):
    found = Authentication(Clock(), "c", "app").by_place(host)
    assert (found.user if found is not None else None) == user
    assert Authentication(Clock(), "c").by_place(host) is None


def test_a_password_digest_depends_on_its_salt():
    assert digest_of_password("secret", b"a" * 16) != digest_of_password("secret", b"b" * 16)


def test_a_login_says_nothing_of_what_it_was_made_of():
    login = Login("token", "", digest_of_token("raftd-secret"))
    assert "secret" not in repr(login)


class Passwords(Authentication):
    """Looks at one when it is told to."""

    def __init__(self) -> None:
        super().__init__(Clock())
        self.under_way: list[Any] = []
        self.told: list[tuple[str, Login | None]] = []

    def _look_at(self, asked: Any) -> None:
        self._is_busy = True
        self.under_way.append(asked)

    def ask(self, user: str, host: str, is_wanted: bool = True) -> None:
        machine: Any = None
        self.by_password(machine, user, "secret", host, lambda: is_wanted, lambda login: self.told.append((user, login)))

    def finish(self) -> str:
        (asked,) = self.under_way
        self.under_way.clear()
        self._over(asked.done, Login("password", asked.user, b"digest"))
        return str(asked.user)


def test_addresses_take_turns_and_one_has_few_places():
    """One address had all of them: nobody else could show a password."""
    passwords = Passwords()
    for number in range(20):
        passwords.ask(f"flood{number}", "10.0.0.1")
    assert [login for _, login in passwords.told] == [None] * (20 - 1 - PASSWORDS_OF_ADDRESS)
    passwords.ask("ann", "10.0.0.2")
    order = [passwords.finish() for _ in range(3)]
    assert order.index("ann") <= 2


def test_a_client_who_has_gone_costs_nothing():
    passwords = Passwords()
    passwords.ask("first", "10.0.0.1")
    for _ in range(PASSWORDS_OF_ADDRESS):
        passwords.ask("gone", "10.0.0.1", is_wanted=False)
    passwords.ask("ann", "10.0.0.2")
    assert [passwords.finish() for _ in range(2)] == ["first", "ann"]


def test_a_bug_in_one_client_stops_no_password():
    passwords = Passwords()
    machine: Any = None
    passwords.by_password(machine, "bug", "secret", "10.0.0.1", lambda: True, lambda login: 1 / 0)
    passwords.ask("ann", "10.0.0.2")
    assert [passwords.finish() for _ in range(2)] == ["bug", "ann"]


@pytest.mark.parametrize(("user", "token"), [("no name", "raftd-x"), ("ann", "x" * 1_000), ("x" * 65, "raftd-x")])
def test_what_cannot_be_a_login_is_none(user, token):
    assert Authentication(Clock()).by_token(user, token) is None
