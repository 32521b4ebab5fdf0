"""Who a client is: attempts are slowed down, passwords are looked at one by one."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from raftd.jobs.rights import Login
from raftd.limits import LOGIN_FAILURES, LOGIN_SLOWEST_S
from raftd.passwords import TOKEN_PREFIX, digest_of_password, digest_of_token, new_token
from raftd.server.authentication import Attempts, Authentication


def attempt(attempts: Attempts, *who: str) -> float | None:
    waits_s = attempts.wait_s(*who)
    if waits_s is not None:
        attempts.failed(*who)
    return waits_s


def test_some_failures_cost_nothing_then_each_costs_more():
    clock = Clock()
    attempts = Attempts(clock)
    waits = []
    for _ in range(LOGIN_FAILURES + 6):
        wait_s = attempt(attempts, "there")
        assert wait_s is not None
        waits.append(round(wait_s, 1))
        clock.advance(wait_s)
    assert waits == [0] * (LOGIN_FAILURES + 1) + [0.1, 0.2, 0.4, 0.8, 1.6]


def test_attempts_at_the_same_time_stand_in_a_row_and_too_many_are_refused():
    attempts = Attempts(Clock())
    waits = [attempt(attempts, "there") for _ in range(200)]
    let_in = [wait_s for wait_s in waits if wait_s is not None]
    assert let_in == sorted(let_in)
    assert let_in[-1] <= LOGIN_SLOWEST_S
    assert len(let_in) < 20
    assert waits[-1] is None


def test_nobody_else_waits():
    attempts = Attempts(Clock())
    for _ in range(50):
        attempt(attempts, "there")
    assert attempts.wait_s("elsewhere") == 0


def test_after_one_that_was_good_all_is_forgotten():
    clock = Clock()
    attempts = Attempts(clock)
    for _ in range(LOGIN_FAILURES + 2):
        attempt(attempts, "there")
    attempts.succeeded("there")
    assert attempts.wait_s("there") == 0


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


class FakeMachine:
    """As far as it is asked: nobody is known."""

    now_ms = 0

    @property
    def access(self) -> FakeMachine:
        return self

    def user_of(self, login: Login, now_ms: int) -> None:
        return None


def test_a_token_that_is_not_known_here_is_the_states_to_decide():
    clock = Clock()
    authentication = Authentication(clock)
    machine: Any = FakeMachine()
    told: list[Login | None] = []
    for _ in range(LOGIN_FAILURES + 3):
        authentication.by_token(machine, "ann", "raftd-x", "10.0.0.1", told.append)
        authentication.decided(False, "10.0.0.1", "ann")
    assert [login.proof for login in told if login is not None] == [digest_of_token("raftd-x")] * (LOGIN_FAILURES + 1)
    clock.advance(1)
    assert len(told) == LOGIN_FAILURES + 3
