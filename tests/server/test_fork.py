"""The copy of the process that writes snapshots, on real processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from raftd.server.fork import ForkCopier


def write(copier: ForkCopier, path: str, parts) -> Deferred[object]:
    done: Deferred[object] = Deferred()
    copier.write(path, parts, done.callback)
    return done.addTimeout(20, reactor)


@pytest_twisted.inlineCallbacks
def test_a_copy_writes_what_it_is_given(tmp_path):
    path = str(tmp_path / "file")
    assert (yield write(ForkCopier(reactor), path, lambda: iter([b"one ", b"two"]))) is None
    with open(path, "rb") as file:
        assert file.read() == b"one two"


@pytest_twisted.inlineCallbacks
def test_a_copy_that_fails_says_why(tmp_path):
    def parts() -> Iterator[bytes]:
        yield b"one"
        raise OSError("no more of it")

    error = yield write(ForkCopier(reactor), str(tmp_path / "file"), parts)
    assert isinstance(error, OSError)
    assert "no more of it" in str(error)


@pytest_twisted.inlineCallbacks
def test_a_copy_that_hangs_is_given_up_and_the_next_one_works(tmp_path):
    pids = tmp_path / "pid"

    def parts() -> Iterator[bytes]:
        pids.write_text(str(os.getpid()))
        yield b"one"
        time.sleep(600)  # a disk that never answers

    copier = ForkCopier(reactor, stall_s=0.3)
    error = yield write(copier, str(tmp_path / "file"), parts)
    assert isinstance(error, OSError)
    assert "its file has not grown for 0.3 s" in str(error)
    assert (yield write(copier, str(tmp_path / "file"), lambda: iter([b"again"]))) is None
    waited = Deferred()
    reactor.callLater(0.2, waited.callback, None)
    yield waited
    assert not os.path.exists(f"/proc/{pids.read_text()}"), "the copy that hung is gone, and was waited for"
