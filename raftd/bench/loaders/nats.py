"""A client of NATS JetStream: https://docs.nats.io/reference/reference-protocols/nats-protocol.

A put is a publish that the stream acknowledges. A take is a pull of one message, and an acknowledgement of it that the server
confirms: without the confirmation a message may come again, as a job whose delete was not answered may.
"""

from __future__ import annotations

import json
from typing import Any

from raftd.bench.loaders.connection import Connection, unexpected

#: What a subscription is for, by its id.
_PUT, _MESSAGE, _ACK, _REPLY = b"1", b"2", b"3", b"4"
#: The name of the stream's one consumer.
CONSUMER = "workers"
#: How long the server keeps a pull open, in nanoseconds.
_PULL_NS = 600 * 10**9


class NatsConnection(Connection):
    """`tube` is the name of a stream, and its only subject."""

    def __init__(self, address: tuple[str, int], tube: str, body: bytes) -> None:
        super().__init__(address, tube, body)
        self._buffer = b""
        self._inbox = inbox = b"_INBOX.%d.%d" % (address[1], self.socket.getsockname()[1])
        self._replies: list[bytes] = []
        self._put = b"PUB %b %b.put %d\r\n%b\r\n" % (tube.encode(), inbox, len(body), body)
        pull = b'{"batch":1,"expires":%d}' % _PULL_NS
        next_message = b"$JS.API.CONSUMER.MSG.NEXT.%b.%b" % (tube.encode(), CONSUMER.encode())
        self._pull = b"PUB %b %b.message %d\r\n%b\r\n" % (next_message, inbox, len(pull), pull)
        subscriptions = ((b"put", _PUT), (b"message", _MESSAGE), (b"ack", _ACK), (b"reply", _REPLY))
        self.socket.sendall(
            b'CONNECT {"verbose":false,"pedantic":false,"headers":true}\r\n'
            + b"".join(b"SUB %b.%b %b\r\n" % (inbox, what, number) for what, number in subscriptions)
            + b"PING\r\n"
        )
        greeting = b""
        while not greeting.endswith(b"PONG\r\n"):  # INFO comes first
            greeting += self._read()
        if b"-ERR" in greeting:
            raise unexpected(greeting)

    def put(self, count: int) -> None:
        self.socket.sendall(self._put * count)

    def take(self, count: int) -> None:
        self.socket.sendall(self._pull * count)

    def ask(self, subject: str, question: object) -> dict[str, Any]:
        """Return the answer to a request of JetStream's own interface. Raises OSError: TimeoutError if nobody is there to answer yet."""
        answer = json.loads(self._request(f"$JS.API.{subject}", json.dumps(question).encode()))
        assert isinstance(answer, dict)
        return answer

    def reach(self, tube: str) -> None:
        """Return once the stream and its consumer have answered through this server, which changes nothing. Raises OSError:
        TimeoutError if one of them is not there yet: what is published or pulled then is lost without a word."""
        self._request(tube, b"", b"NATS/1.0\r\nNats-Expected-Stream: another than this\r\n\r\n")  # refused
        self._request(f"$JS.API.CONSUMER.MSG.NEXT.{tube}.{CONSUMER}", b'{"batch":1,"no_wait":true}')  # there is no message

    def _request(self, subject: str, text: bytes, headers: bytes = b"") -> bytes:
        to = b"%b %b.reply" % (subject.encode(), self._inbox)
        if headers:
            self.socket.sendall(b"HPUB %b %d %d\r\n%b%b\r\n" % (to, len(headers), len(headers) + len(text), headers, text))
        else:
            self.socket.sendall(b"PUB %b %d\r\n%b\r\n" % (to, len(text), text))
        while not self._replies:
            self.receive()
        return self._replies.pop()

    def receive(self) -> None:
        buffer = self._buffer + self._read()
        out: list[bytes] = []
        start = 0
        while (end := buffer.find(b"\r\n", start)) >= 0:
            line = buffer[start:end]
            following = end + 2
            word, *fields = line.split(b" ")
            if word in (b"MSG", b"HMSG"):  # subject, subscription, where to answer if anywhere, (size of the headers,) size
                following += int(fields[-1]) + 2
                if following > len(buffer):
                    break
                payload = buffer[end + 2 : following - 2]
                if word == b"HMSG" and fields[1] != _REPLY:  # a put or a pull that came to nothing
                    raise unexpected(payload)
                self._message(fields, payload, out)
            elif word == b"PING":
                out.append(b"PONG\r\n")
            elif word != b"PONG" and word != b"INFO":  # INFO comes again when the cluster changes
                raise unexpected(buffer[start:])
            start = following
        self._buffer = buffer[start:]
        if out:
            self.socket.sendall(b"".join(out))

    def _message(self, fields: list[bytes], payload: bytes, out: list[bytes]) -> None:
        if fields[1] == _PUT:
            if b'"seq"' not in payload:
                raise unexpected(payload)
            self.puts_done += 1
        elif fields[1] == _MESSAGE:
            if len(fields) != 4:
                raise unexpected(payload)
            out.append(b"PUB %b %b.ack 4\r\n+ACK\r\n" % (fields[2], self._inbox))
        elif fields[1] == _ACK:
            self.takes_done += 1
        else:
            self._replies.append(payload)
