"""`raftd work`, against a real node, with functions of every kind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from raftd.bench.local import LocalCluster, wait_for
from raftd.client import Client
from tests.client.test_clients import url

TASKS = """
import asyncio, functools, multiprocessing, os, signal, subprocess, sys, time
from pathlib import Path
from raftd.work import Dead, Retry, Snooze

# Jobs that wait look into the file again and again: nothing tells of what the test writes. Those of 600 s are to be interrupted.
def note(text):
    with open("notes", "a") as notes:
        notes.write(text + "\\n")

def notes():
    return Path("notes").read_text() if Path("notes").exists() else ""

def work(job):
    note("begun " + job.text)
    odd(job.text)
    decide(job)
    note("done " + job.text)

def decide(job):
    verb, _, argument = job.text.partition(" ")
    if verb == "raise":
        raise ValueError(argument)
    if verb == "exit":
        sys.exit(3)
    if verb == "snooze" and job.attempts == 0 and "snoozed" not in notes():
        note("snoozed")
        raise Snooze(0.01)
    if verb == "retry" and job.attempts < 2:
        raise Retry(0.01, "not yet")
    if verb == "dead":
        raise Dead("no such address")
    if verb == "delete":
        job.delete()
    if verb == "kill":
        if job.attempts == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    if verb == "wait":
        while f"go {argument}" not in notes():
            time.sleep(0.02)  # what a task does while it works; the file of another process gives no event
    if verb == "lost":
        while not job.lost:
            time.sleep(0.02)  # what a task does while it works
        note("it is lost")

def decorated(function):
    @functools.wraps(function)
    def wrapper(job):
        return function(job)
    return wrapper

@decorated
async def wrapped(job):
    note("it ran")

def generator(job):
    note("it ran")
    yield

class Odd(Exception):
    def __str__(self):
        raise ZeroDivisionError

class OddEnd(BaseException):
    pass

def odd(verb):
    if verb == "past":
        raise Snooze(-0.5)
    if verb == "past-retry":
        raise Retry(-1, "it is past")
    if verb == "surrogate":
        raise ValueError("no file " + os.fsdecode(b"\\xff.txt"))
    if verb == "odd":
        raise Odd
    if verb == "odd-end":
        raise OddEnd
    if verb == "pool":
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(abs, [-1, -2]) == [1, 2]

async def work_async(job):
    note("begun " + job.text)
    odd(job.text)
    if job.text == "thread":
        await asyncio.to_thread(time.sleep, 600)
    if job.text == "convert":
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            raise RuntimeError("aborted")
    verb, _, argument = job.text.partition(" ")
    if verb == "stubborn":
        while True:
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                note("not cancelled")
    if verb == "block":
        time.sleep(600)
    if verb in ("wait", "lost"):
        try:
            while f"go {argument}" not in notes():
                await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            note("cancelled " + job.text)
            raise
    elif verb == "cancel":
        raise asyncio.CancelledError
    elif verb == "delete":
        await job.delete()
    else:
        decide(job)
    note("done " + job.text)

no_function = 3
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("work"), 1) as cluster:
        cluster.leader()
        yield cluster


@pytest.fixture
def queue(cluster: LocalCluster) -> Iterator[Client]:
    with Client(url(cluster), timeout=20) as queue:
        yield queue


class Workers:
    """Processes of `raftd work` in a directory with the functions above."""

    def __init__(self, directory: Path, url: str, tube: str) -> None:
        self.directory = directory
        self.tube = tube
        self._url = url
        self.processes: list[subprocess.Popen[str]] = []
        (directory / "tasks.py").write_text(TASKS)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        # A session of its own, as a terminal gives it: what is sent to its group is what Ctrl-C sends.
        process = subprocess.Popen(
            [sys.executable, "-m", "raftd", "work", "--tube", self.tube, "--url", self._url, "--retry-delay", "0.05", *arguments],
            cwd=self.directory,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def note(self, text: str) -> None:
        with (self.directory / "notes").open("a") as notes:
            notes.write(text + "\n")

    def notes(self) -> str:
        path = self.directory / "notes"
        return path.read_text() if path.exists() else ""

    def wait_for(self, text: str, times: int = 1) -> None:
        wait_for(lambda: self.notes().count(f"{text}\n") >= times, 20, f"{text!r} is noted")

    def end(self, process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, str]:
        """Its status, and what it has logged."""
        process.send_signal(number)
        return self.ended(process)

    def ended(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        said = process.communicate(timeout=30)[1]
        return process.returncode, said


@pytest.fixture
def workers(cluster: LocalCluster, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Workers]:
    workers = Workers(tmp_path, url(cluster), f"w{abs(hash(request.node.nodeid)):x}")
    yield workers
    for process in workers.processes:
        with suppress(ProcessLookupError):  # what it has left behind would hold its output open
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(params=["work", "work_async"])
def function(request: pytest.FixtureRequest) -> str:
    return f"tasks:{request.param}"


def is_gone(queue: Client, *jobs: int) -> bool:
    return all(queue.peek(job) is None for job in jobs)


def watching(queue: Client, workers: Workers) -> int:
    """How many take jobs."""
    stats = queue.stats(workers.tube)
    return stats.watching if stats is not None else 0


def test_what_becomes_of_a_job(function, queue, workers):
    texts = ["fine", "delete", "snooze", "retry", "raise it broke", "exit", "dead"]
    jobs = dict(zip(texts, queue.put_many(workers.tube, texts), strict=True))
    process = workers.start(function, "--threads", "4")
    wait_for(lambda: is_gone(queue, *(jobs[text] for text in texts[:4])), 20, "four are done")
    wait_for(lambda: queue.peek(jobs["dead"]).state == "buried", 20, "one is buried")
    wait_for(lambda: queue.peek(jobs["exit"]).attempts > 1, 20, "one fails")
    wait_for(lambda: queue.peek(jobs["raise it broke"]).attempts > 1, 20, "one fails")
    status, said = workers.end(process)
    assert status == 0, said
    assert queue.peek(jobs["dead"]).error == "no such address"
    assert queue.peek(jobs["raise it broke"]).error == "ValueError: it broke"
    assert "SystemExit" in queue.peek(jobs["exit"]).error
    assert workers.notes().count("begun snooze\n") == 2
    assert workers.notes().count("begun retry\n") == 3
    lines = [line.partition("]: ")[2] for line in said.splitlines()]
    assert any(line.startswith(f"job {jobs['fine']} of {workers.tube}: done, 0.") for line in lines)
    assert any(f"job {jobs['retry']} of {workers.tube}: failed" in line and line.endswith("attempt 2: not yet") for line in lines)
    assert len([line for line in lines if line.startswith(f"job {jobs['retry']} ")]) == 3  # one for each attempt
    assert "Traceback" not in said


def test_a_traceback_on_request(queue, workers):
    job = queue.put(workers.tube, "raise it broke")
    process = workers.start("tasks:work", "--traceback")
    wait_for(lambda: queue.peek(job).attempts > 0, 20, "it fails")
    assert "raise ValueError(argument)\nValueError: it broke\n" in workers.end(process)[1]


def test_as_many_jobs_at_the_same_time_as_there_are_threads(function, queue, workers):
    queue.put_many(workers.tube, [f"wait {number}" for number in range(5)])
    process = workers.start(function, "--threads", "3")
    for number in range(3):
        workers.wait_for(f"begun wait {number}")
    assert queue.stats(workers.tube).reserved == 3
    workers.note("go 0")  # one that is done makes place for the next, though the others take long
    workers.wait_for("begun wait 3")
    for number in range(1, 5):
        workers.note(f"go {number}")
    wait_for(lambda: queue.peek_next(workers.tube) is None and workers.notes().count("done wait") == 5, 20, "all are done")
    assert workers.end(process)[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_jobs_end_and_takes_no_more(number, function, queue, workers):
    """Other workers' heartbeat ends before the drain does: here it goes on for longer than the time to run."""
    slow = queue.put(workers.tube, "wait slow", ttr=1)
    process = workers.start(function, "--threads", "2")
    workers.wait_for("begun wait slow")
    process.send_signal(number)
    wait_for(lambda: watching(queue, workers) == 0, 20, "it takes no more")
    late = queue.put(workers.tube, "late")
    wait_for(lambda: queue.peek(slow).age > 2.6, 20, "time passes")
    assert (queue.peek(slow).state, queue.peek(slow).timeouts) == ("reserved", 0)
    workers.note("go slow")
    status, said = workers.ended(process)
    assert status == 0, said
    assert is_gone(queue, slow)
    assert queue.peek(late).state == "ready"
    assert "stopping: 1 jobs have 25 s to end" in said


def test_a_shutdown_is_no_failed_attempt(function, queue, workers):
    job = queue.put(workers.tube, "wait for ever")
    process = workers.start(function, "--grace", "0.2")
    workers.wait_for("begun wait for ever")
    status, said = workers.end(process)
    assert (status, queue.peek(job).state, queue.peek(job).attempts) == (1, "ready", 0), said
    assert f"job {job} of {workers.tube}: released, for the worker stops, " in said
    if function.endswith("async"):
        assert "cancelled wait for ever" in workers.notes()


def test_a_second_signal_ends_it_at_once(function, queue, workers):
    job = queue.put(workers.tube, "wait for ever")
    process = workers.start(function, "--grace", "600")
    workers.wait_for("begun wait for ever")
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: watching(queue, workers) == 0, 20, "it takes no more")
    status, said = workers.end(process)
    assert (status, queue.peek(job).state, queue.peek(job).attempts) == (128 + signal.SIGTERM, "ready", 0), said


@pytest.mark.parametrize(
    ("verb", "error"),
    [("past", ""), ("past-retry", "it is past"), ("surrogate", "ValueError: no file \\udcff.txt"), ("odd", "Odd"), ("odd-end", "OddEnd")],
)
def test_no_end_of_a_function_stops_its_worker(verb, error, function, queue, workers):
    """Such a job stayed held for ever, and the one after it was never worked."""
    job = queue.put(workers.tube, verb, priority=1)
    process = workers.start(function)
    workers.wait_for(f"begun {verb}", times=2)
    last = queue.put(workers.tube, "last", priority=0)
    wait_for(lambda: is_gone(queue, last), 20, "it is done")
    assert workers.end(process)[0] == 0
    assert (queue.peek(job).state in ("ready", "delayed"), queue.peek(job).error) == (True, error)


@pytest.mark.parametrize("name", ["wrapped", "generator"])
def test_a_function_that_gives_what_nobody_runs_has_not_done_its_job(name, queue, workers):
    job = queue.put(workers.tube, "a")
    process = workers.start(f"tasks:{name}")
    wait_for(lambda: queue.peek(job).attempts > 0, 20, "it fails")
    workers.end(process)
    assert "which nobody runs" in queue.peek(job).error
    assert "it ran" not in workers.notes()


def test_a_function_may_fork(queue, workers):
    """Its processes had the worker's handlers, and could not be terminated."""
    job = queue.put(workers.tube, "pool")
    process = workers.start("tasks:work")
    wait_for(lambda: is_gone(queue, job), 30, "it is done")
    assert workers.end(process)[0] == 0


ENDED_AT_ONCE = """
import os, signal, time
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))  # before any handler is changed there
from raftd.work import signals
signals.on_stop(lambda number: None)
child = os.fork()
if not child:
    time.sleep(20)  # the signal ends it before; if that is lost, it ends by itself, and the test fails
    os._exit(0)
print(os.WTERMSIG(os.waitpid(child, 0)[1]), signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""


def test_a_process_of_a_function_that_is_ended_at_once_ends():
    """It had the worker's handlers for a moment, which took the signal and did nothing: whoever waited for its end waited for ever."""
    said = subprocess.run([sys.executable, "-c", ENDED_AT_ONCE], capture_output=True, text=True, timeout=30, check=True).stdout
    assert said == f"{int(signal.SIGTERM)} set()\n"


@pytest.mark.parametrize("verb", ["thread", "convert"])
def test_a_task_is_released_whatever_it_makes_of_its_end(verb, queue, workers):
    job = queue.put(workers.tube, verb)
    process = workers.start("tasks:work_async", "--grace", "0.1")
    workers.wait_for(f"begun {verb}")
    status, said = workers.end(process)
    assert (status, queue.peek(job).state, queue.peek(job).attempts) == (1, "ready", 0), said


def test_a_task_that_does_not_let_itself_be_cancelled_is_left(queue, workers):
    job = queue.put(workers.tube, "stubborn")
    process = workers.start("tasks:work_async", "--grace", "0.1")
    workers.wait_for("begun stubborn")
    status, said = workers.end(process)
    assert (status, queue.peek(job).state, queue.peek(job).attempts) == (1, "ready", 0), said
    assert "not cancelled" in workers.notes()


def test_a_loop_that_is_blocked_is_ended_by_a_second_signal(queue, workers):
    queue.put(workers.tube, "block")
    process = workers.start("tasks:work_async")
    workers.wait_for("begun block")
    process.send_signal(signal.SIGINT)
    assert workers.end(process)[0] == 128 + signal.SIGTERM


def take_away(queue: Client, tube: str) -> None:
    """End the reservation of the tube's one job, as the end of its time to run would."""
    (job,) = [
        queue.peek(id) for id in range(1, queue.put(f"{tube}x", "") + 1) if queue.peek(id) is not None and queue.peek(id).tube == tube
    ]
    queue.release(job.id, job.token, delay=60)


def test_a_lost_job_is_told_to_its_function(queue, workers):
    queue.put(workers.tube, "lost", ttr=1)
    process = workers.start("tasks:work")
    workers.wait_for("begun lost")
    take_away(queue, workers.tube)
    workers.wait_for("it is lost")
    workers.wait_for("done lost")
    status, said = workers.end(process)
    assert status == 0
    assert "done, but that is not known to the cluster" in said
    assert queue.stats(workers.tube).delayed == 1


def test_a_lost_job_cancels_its_task(queue, workers):
    queue.put(workers.tube, "lost", ttr=1)
    process = workers.start("tasks:work_async")
    workers.wait_for("begun lost")
    take_away(queue, workers.tube)
    workers.wait_for("cancelled lost")
    status, said = workers.end(process)
    assert status == 0
    assert "cancelled, for it is held no more" in said


def test_a_cancellation_from_elsewhere_is_a_failure(queue, workers):
    job = queue.put(workers.tube, "cancel")
    process = workers.start("tasks:work_async")
    wait_for(lambda: queue.peek(job).attempts > 1, 20, "it fails")
    assert workers.end(process)[0] == 0
    assert queue.peek(job).error == "CancelledError"


def test_a_process_that_dies_is_started_again(queue, workers):
    """A poison job kills its worker; the others, and those that come after it, are done all the same."""
    poison = queue.put(workers.tube, "kill")
    process = workers.start("tasks:work", "--processes", "2")
    others = queue.put_many(workers.tube, ["a", "b", "c"])
    wait_for(lambda: is_gone(queue, poison, *others), 30, "all are done")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    status, said = workers.ended(process)
    assert status == 0, said
    assert "has ended with SIGKILL: another is started" in said


def test_a_signal_that_all_processes_get_is_one(queue, workers):
    """As systemd sends it, to the parent and to its children."""
    job = queue.put(workers.tube, "wait a")
    process = workers.start("tasks:work", "--processes", "2")
    workers.wait_for("begun wait a")
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: watching(queue, workers) == 0, 20, "they take no more")
    assert queue.peek(job).state == "reserved"
    workers.note("go a")
    status, said = workers.ended(process)
    assert status == 0, said
    assert is_gone(queue, job)


def test_processes_say_why_they_cannot_begin(workers):
    (workers.directory / "broken.py").write_text("print(undefined)")
    process = workers.start("broken:work", "--processes", "2")
    said = ""
    while "another is started" not in said:
        said += process.stderr.readline()
    assert "NameError: name 'undefined' is not defined" in said + workers.end(process)[1]


def test_a_second_signal_to_the_parent_ends_all_at_once(queue, workers):
    job = queue.put(workers.tube, "wait for ever")
    process = workers.start("tasks:work", "--processes", "2", "--grace", "600")
    workers.wait_for("begun wait for ever")
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: watching(queue, workers) == 0, 20, "they take no more")
    assert workers.end(process, signal.SIGINT)[0] == 128 + signal.SIGINT
    wait_for(lambda: queue.peek(job).state == "ready", 20, "it is given back")


def test_processes_let_their_jobs_end_and_do_not_outlive_their_parent(queue, workers):
    jobs = queue.put_many(workers.tube, ["wait a", "wait b"])
    process = workers.start("tasks:work", "--processes", "2")
    workers.wait_for("begun wait a")
    workers.wait_for("begun wait b")
    os.killpg(process.pid, signal.SIGINT)
    wait_for(lambda: watching(queue, workers) == 0, 20, "they take no more")
    workers.note("go a")
    workers.note("go b")
    assert workers.ended(process)[0] == 0
    assert is_gone(queue, *jobs)
    process = workers.start("tasks:work", "--processes", "2")
    wait_for(lambda: watching(queue, workers) == 2, 20, "they work")
    process.kill()
    wait_for(lambda: watching(queue, workers) == 0, 20, "they end")


def command(*code: str) -> str:
    return f"{sys.executable} -c '{'; '.join(code)}'"


def test_a_command_has_the_body_as_its_input_and_is_done_with_status_0(queue, workers):
    job = queue.put(workers.tube, "the body")
    show = 'print(sys.stdin.read(), *[os.environ["RAFTD_" + n] for n in ("JOB", "TUBE", "ATTEMPTS")], file=open("notes", "a"))'
    process = workers.start("--exec", command("import os, sys", show))
    workers.wait_for(f"the body {job} {workers.tube} 0")
    wait_for(lambda: is_gone(queue, job), 20, "it is done")
    assert workers.end(process)[0] == 0


@pytest.mark.parametrize(("code", "error"), [("sys.exit(3)", "ended with status 3"), ("os.abort()", "ended by SIGABRT")])
def test_a_command_that_fails(code, error, queue, workers):
    job = queue.put(workers.tube, "x" * 60_000)  # which it does not read
    process = workers.start("--exec", command("import os, sys", code))
    wait_for(lambda: queue.peek(job).attempts > 0, 20, "it fails")
    workers.end(process)
    assert queue.peek(job).error.endswith(error)


def test_a_command_that_ignores_sigterm_is_killed_at_a_second_signal(queue, workers):
    note = 'open("notes", "a").write("pid %d\\n" % os.getpid())'
    job = queue.put(workers.tube, "")
    code = ("import os, signal, time", "signal.signal(15, signal.SIG_IGN)", note, "time.sleep(600)")
    process = workers.start("--exec", command(*code), "--grace", "600")
    wait_for(lambda: "pid " in workers.notes(), 20, "it runs")
    pid = int(workers.notes().split()[1])
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: watching(queue, workers) == 0, 20, "it takes no more")
    assert workers.end(process)[0] == 128 + signal.SIGTERM
    assert not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text()
    assert queue.peek(job).state == "ready"


def test_a_command_survives_ctrl_c_and_is_ended_when_its_job_is_lost(queue, workers):
    note = 'open("notes", "a").write("{}\\n")'
    code = ("import time", note.format("begun"), "time.sleep(2)", note.format("done"))
    job = queue.put(workers.tube, "")
    process = workers.start("--exec", command(*code))
    workers.wait_for("begun")
    os.killpg(process.pid, signal.SIGINT)
    assert workers.ended(process)[0] == 0
    assert workers.notes() == "begun\ndone\n"
    assert is_gone(queue, job)
    queue.put(workers.tube, "lost", ttr=1)
    process = workers.start("--exec", command("import os, time", note.format("begun again"), "time.sleep(600)"))
    workers.wait_for("begun again")
    take_away(queue, workers.tube)
    status, said = workers.end(process)
    assert status == 0
    assert "cancelled, for it is held no more" in said


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "give MODULE:FUNCTION, or --exec COMMAND"),
        (["tasks:work", "--exec", "cat"], "MODULE:FUNCTION and --exec: give one of them"),
        (["tasks"], "expected MODULE:FUNCTION"),
        (["no_module:work"], "there is no module 'no_module'"),
        (["tasks:nothing"], "has no attribute 'nothing'"),
        (["tasks:no_function"], "it cannot be called"),
        (["tasks:nothing", "--processes", "2"], "has no attribute 'nothing'"),
        (["--exec", "no-such-command x"], "there is no such command"),
        (["--exec", "'"], "No closing quotation"),
        (["tasks:work", "--threads", "4", "--prefetch", "2"], "at least as many as --threads"),
        (["tasks:work", "--tube", "-bad"], "tube"),
        (["tasks:work", "--url", "raftd://a:0"], "expected a port from 1 to 65535"),
    ],
)
def test_a_wrong_command_line_is_told(arguments: list[str], error: str, workers: Any) -> None:
    status, said = workers.ended(workers.start(*arguments))
    assert status == 2
    assert error in said
    assert "Traceback" not in said


def test_a_worker_says_when_nobody_answers_and_goes_on(tmp_path, workers):
    with LocalCluster(tmp_path, 1) as cluster:
        cluster.leader()
        workers._url = url(cluster)
        with Client(url(cluster)) as queue:
            process = workers.start("tasks:work")
            wait_for(lambda: queue.stats(workers.tube) is not None, 20, "it works")
        cluster.kill(1)
        said = ""
        while "no node can be asked" not in said:
            said = process.stderr.readline()
        cluster.start(1)
        while "connected again" not in said:
            said = process.stderr.readline()
        with Client(url(cluster)) as queue:
            job = queue.put(workers.tube, "a")
            wait_for(lambda: is_gone(queue, job), 20, "it is done")
        assert workers.end(process)[0] == 0
