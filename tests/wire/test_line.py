"""The line protocol's framing and arguments, as the protocol document has them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftd.jobs import replies as r
from raftd.wire.line import LineParser, Request, encode_reply, encode_stats, is_tube_name

BAD = Request("error", (b"BAD_FORMAT\r\n",))
UNKNOWN = Request("error", (b"UNKNOWN_COMMAND\r\n",))


def parse(*chunks: bytes, max_job_size: int = 100) -> list[Request]:
    parser = LineParser(max_job_size)
    requests = []
    for chunk in chunks:
        parser.feed(chunk)
        while (request := parser.next_request()) is not None:
            requests.append(request)
    return requests


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        (b"use tube", Request("use", ("tube",))),
        (b"watch a-b+c/d;e.f$g_h(i)", Request("watch", ("a-b+c/d;e.f$g_h(i)",))),
        (b"ignore t", Request("ignore", ("t",))),
        (b"delete 17", Request("delete", (17,))),
        (b"delete   0017", Request("delete", (17,))),
        (b"delete 18446744073709551615", Request("delete", (2**64 - 1,))),
        (b"reserve", Request("reserve")),
        (b"reserve-with-timeout 0", Request("reserve-with-timeout", (0,))),
        (b"reserve-with-timeout 2147483647", Request("reserve-with-timeout", (2**31 - 1,))),
        (b"stats", Request("stats")),
        (b"quit", Request("quit")),
        (b"quitting", Request("quit")),
        (b"", UNKNOWN),
        (b" use t", UNKNOWN),
        (b"USE t", UNKNOWN),
        (b"use", UNKNOWN),
        (b"put", UNKNOWN),
        (b"delete", UNKNOWN),
        (b"use  t", BAD),
        (b"use t ", BAD),
        (b"use -t", BAD),
        (b"use " + b"t" * 201, BAD),
        (b"use \xc3\xbc", BAD),
        (b"use a\0b", BAD),
        (b"delete -1", BAD),
        (b"delete +1", BAD),
        (b"delete 1 ", BAD),
        (b"delete 1x", BAD),
        (b"delete \t1", BAD),
        (b"delete 18446744073709551616", BAD),
        (b"reserve ", BAD),
        (b"reserved", BAD),
        (b"statsX", BAD),
        (b"reserve-with-timeout", BAD),
        (b"reserve-with-timeout 2147483648", BAD),
        (b"put 1 2 3", BAD),
        (b"put 1 2 3 4 ", BAD),
        (b"put 1 2 3 4x", BAD),
        (b"put -1 2 3 4", BAD),
        (b"put 1 2 3 4294967296", BAD),
        (b"put 4294967296 2 3 4", BAD),
    ],
)
def test_one_line(line, request_):
    assert parse(line + b"\r\n") == [request_]


def test_a_put_with_its_body():
    assert parse(b"put 1 2 3 5\r\nhello\r\n") == [Request("put", (1, 2, 3, b"hello"))]
    assert parse(b"put  01  002 3 0\r\n\r\n") == [Request("put", (1, 2, 3, b""))]
    assert parse(b"put 1 2 3 4\r\n\r\n\r\n\r\n") == [Request("put", (1, 2, 3, b"\r\n\r\n"))]


def test_a_bare_line_feed_ends_nothing():
    assert parse(b"use a\nuse b\r\n") == [BAD]


def test_a_body_without_its_crlf_and_what_is_left_over_is_read_as_commands():
    assert parse(b"put 0 0 0 3\r\nabcdequit\r\n") == [Request("open-put", (b"EXPECTED_CRLF\r\n",)), Request("quit")]


def test_a_body_that_is_too_big_is_swallowed_as_it_streams():
    parser = LineParser(10)
    parser.feed(b"put 0 0 0 4000000000\r\n")
    for _ in range(100):
        parser.feed(bytes(60_000))
        assert parser.next_request() is None
        assert len(parser._buffer) == 0
    assert parse(b"put 0 0 0 11\r\n", b"hello world\r\nquit\r\n", max_job_size=10) == [
        Request("big-put", (b"JOB_TOO_BIG\r\n",)),
        Request("quit"),
    ]
    # also with garbage behind the numbers, for the size is checked before it
    assert parse(b"put 0 0 0 11 x\r\nhello world\r\nquit\r\n", max_job_size=10)[0] == Request("big-put", (b"JOB_TOO_BIG\r\n",))


def test_bad_numbers_do_not_consume_the_body():
    assert parse(b"put a 0 0 4\r\nquit\r\n") == [BAD, Request("quit")]


def test_a_line_of_224_bytes_is_read_and_a_longer_one_is_one_bad_format():
    assert parse(b"use " + b"t" * 200 + b"\r\n") == [Request("use", ("t" * 200,))]
    longest = b"delete " + b"0" * 214 + b"1\r\n"
    assert len(longest) == 224
    assert parse(longest) == [Request("delete", (1,))]
    for extra in (1, 2, 3, 500, 70_000):
        line = b"delete " + b"0" * (214 + extra) + b"1\r\n"
        assert parse(line + b"quit\r\n") == [BAD, Request("quit")]
        assert parse(*[line[place : place + 1] for place in range(len(line))], b"quit\r\n") == [BAD, Request("quit")]


def test_a_crlf_split_at_byte_224_and_a_lone_cr_do_not_stall():
    line = b"x" * 223 + b"\r"
    assert parse(line, b"\nquit\r\n") == [BAD, Request("quit")]
    assert parse(b"x" * 223 + b"\ry", b"\r\nquit\r\n") == [BAD, Request("quit")]


STREAM = (
    b"use t\r\nput 1 0 60 5\r\nhello\r\n\r\nreserve\r\n" + b"z" * 300 + b"\r\nput 0 0 0 101\r\n" + b"b" * 101 + b"\r\ndelete 1\r\nquit\r\n"
)


def test_every_split_gives_the_same_requests():
    whole = parse(STREAM)
    assert [request.verb for request in whole] == ["use", "put", "error", "reserve", "error", "big-put", "delete", "quit"]
    for place in range(len(STREAM)):
        assert parse(STREAM[:place], STREAM[place:]) == whole
    assert parse(*[STREAM[place : place + 1] for place in range(len(STREAM))]) == whole


@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([b"put 1 1 1 3\r\n", b"\r\n", b"use a", b"reserve\r\n"])), max_size=30))
def test_no_bytes_make_the_parser_raise_and_chunks_do_not_matter(chunks):
    assert parse(*chunks) == parse(b"".join(chunks))


def test_tube_names():
    assert is_tube_name("a-b")
    for name in ("", "-a", "a b", "ü", "x" * 201, "a\n"):
        assert not is_tube_name(name)


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        (r.Inserted(7), b"INSERTED 7\r\n"),
        (r.Reserved(7, b"a\r\nb", 3), b"RESERVED 7 4\r\na\r\nb\r\n"),
        (r.Using("t"), b"USING t\r\n"),
        (r.Watching(2), b"WATCHING 2\r\n"),
        (r.NotIgnored(), b"NOT_IGNORED\r\n"),
        (r.TimedOut(), b"TIMED_OUT\r\n"),
        (r.DeadlineSoon(), b"DEADLINE_SOON\r\n"),
        (r.Deleted(), b"DELETED\r\n"),
        (r.NotFound(), b"NOT_FOUND\r\n"),
        (r.Released(), b"RELEASED\r\n"),
        (r.Buried(), b"BURIED\r\n"),
        (r.Touched(), b"TOUCHED\r\n"),
        (r.Kicked(3), b"KICKED 3\r\n"),
        (r.Kicked(None), b"KICKED\r\n"),
        (r.Paused(), b"PAUSED\r\n"),
        (r.JobTooBig(), b"JOB_TOO_BIG\r\n"),
        (r.OutOfMemory(), b"OUT_OF_MEMORY\r\n"),
    ],
)
def test_replies_are_beanstalkds(reply, line):
    assert encode_reply(reply) == line


def test_stats_are_a_yaml_dictionary_with_its_length():
    assert encode_stats([("a", 1), ("b", '"x"')]) == b'OK 16\r\n---\na: 1\nb: "x"\n\r\n'
