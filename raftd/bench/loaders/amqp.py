"""A client of RabbitMQ: AMQP 0-9-1, https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf.

A put is a publish that the broker confirms. A take is a delivery and its acknowledgement, which AMQP does not confirm: it counts
as done when it is sent.
"""

from __future__ import annotations

import struct

from raftd.bench.loaders.connection import Connection, LoadError, unexpected

_METHOD, _HEADER, _BODY, _HEARTBEAT, _END = 1, 2, 3, 8, b"\xce"
_CHANNEL = 1
_FRAME_BYTES = 131_072
# class and method
_START, _START_OK, _TUNE, _TUNE_OK = (10, 10), (10, 11), (10, 30), (10, 31)
_OPEN, _OPEN_OK, _CLOSE, _CHANNEL_OPEN, _CHANNEL_OPEN_OK, _CHANNEL_CLOSE = (10, 40), (10, 41), (10, 50), (20, 10), (20, 11), (20, 40)
_DECLARE, _DECLARE_OK, _DELETE, _DELETE_OK = (50, 10), (50, 11), (50, 40), (50, 41)
_QOS, _QOS_OK, _CONSUME, _CONSUME_OK = (60, 10), (60, 11), (60, 20), (60, 21)
_PUBLISH, _DELIVER, _ACK, _SELECT, _SELECT_OK = (60, 40), (60, 60), (60, 80), (85, 10), (85, 11)
_PERSISTENT = 2


def _short(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def _long(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + _END


def _method(method: tuple[int, int], arguments: bytes, channel: int = _CHANNEL) -> bytes:
    return _frame(_METHOD, channel, struct.pack(">HH", *method) + arguments)


class AmqpConnection(Connection):
    """`tube` is the name of a queue. Deliveries begin with the first take, as many unacknowledged as takes were asked for at once."""

    def __init__(self, address: tuple[str, int], tube: str, body: bytes) -> None:
        super().__init__(address, tube, body)
        self._tube = tube
        self._buffer = b""
        self._methods: list[tuple[tuple[int, int], bytes]] = []  # that are no answers to puts and takes
        self._confirmed = 0  # all puts up to this one
        self._confirmed_above: set[int] = set()
        self._wanted = 0
        self._delivered: list[bytes] = []  # tags
        self._consumes = False
        header = struct.pack(">HHQHB", 60, 0, len(body), 0x1000, _PERSISTENT)
        publish = _method(_PUBLISH, b"\0\0" + _short("") + _short(tube) + b"\0")
        self._put = publish + _frame(_HEADER, _CHANNEL, header) + _frame(_BODY, _CHANNEL, body)
        self.socket.sendall(b"AMQP\0\0\x09\x01")
        self._await(_START)
        self._send(_START_OK, _long(b"") + _short("PLAIN") + _long(b"\0guest\0guest") + _short("en_US"), channel=0)
        self._await(_TUNE)
        self._send(_TUNE_OK, struct.pack(">HIH", 1, _FRAME_BYTES, 0), channel=0)  # without heartbeats
        self._send(_OPEN, _short("/") + b"\0\0", channel=0)
        self._await(_OPEN_OK)
        self._send(_CHANNEL_OPEN, _short(""))
        self._await(_CHANNEL_OPEN_OK)
        self._send(_SELECT, b"\0")
        self._await(_SELECT_OK)

    def declare(self) -> None:
        """Make the queue, a quorum queue whose leader is the node asked. Raises LoadError."""
        kind = _short("x-queue-type") + b"S" + _long(b"quorum")
        self._send(_DECLARE, b"\0\0" + _short(self._tube) + b"\x02" + _long(kind))  # durable
        self._await(_DECLARE_OK)

    def delete(self) -> None:
        """Drop the queue with all that is in it."""
        self._send(_DELETE, b"\0\0" + _short(self._tube) + b"\0")
        self._await(_DELETE_OK)

    def _send(self, method: tuple[int, int], arguments: bytes, channel: int = _CHANNEL) -> None:
        self.socket.sendall(_method(method, arguments, channel))

    def _await(self, method: tuple[int, int]) -> None:
        while not self._methods:
            self.receive()
        came, arguments = self._methods.pop(0)
        if came != method:
            raise unexpected(b"%d.%d: " % came + arguments)

    def put(self, count: int) -> None:
        self.socket.sendall(self._put * count)

    def take(self, count: int) -> None:
        if not self._consumes:
            self._consumes = True
            self._send(_QOS, struct.pack(">IHB", 0, count, 0))
            self._send(_CONSUME, b"\0\0" + _short(self._tube) + _short("") + b"\0" + _long(b""))
        self._wanted += count
        self._acknowledge()

    def _acknowledge(self) -> None:
        count = min(self._wanted, len(self._delivered))
        if count:
            self.socket.sendall(b"".join(_method(_ACK, tag + b"\0") for tag in self._delivered[:count]))
            del self._delivered[:count]
            self._wanted -= count
            self.takes_done += count

    def receive(self) -> None:
        buffer = self._buffer + self._read()
        start = 0
        while len(buffer) - start >= 8:
            kind, _, size = struct.unpack_from(">BHI", buffer, start)
            end = start + 7 + size + 1
            if end > len(buffer):
                break
            if kind == _METHOD:
                self._called(buffer[start + 7 : end - 1])
            elif kind not in (_HEADER, _BODY, _HEARTBEAT):
                raise unexpected(buffer[start:])
            start = end
        self._buffer = buffer[start:]
        self._acknowledge()

    def _called(self, payload: bytes) -> None:
        method = struct.unpack_from(">HH", payload)
        arguments = payload[4:]
        if method == _ACK:  # up to this one, or this one alone
            tag, is_multiple = struct.unpack(">QB", arguments)
            self._confirm(tag, is_multiple=bool(is_multiple & 1))
        elif method == _DELIVER:
            behind = 1 + arguments[0]  # the consumer's name
            self._delivered.append(arguments[behind : behind + 8])
        elif method in (_CLOSE, _CHANNEL_CLOSE):
            raise LoadError(f"the broker refused: {arguments[3 : 3 + arguments[2]].decode(errors='replace')}")
        elif method not in (_QOS_OK, _CONSUME_OK):
            self._methods.append((method, arguments))

    def _confirm(self, tag: int, is_multiple: bool) -> None:
        before = self._confirmed + len(self._confirmed_above)
        if is_multiple:
            self._confirmed = max(self._confirmed, tag)
            self._confirmed_above = {other for other in self._confirmed_above if other > tag}
        else:
            self._confirmed_above.add(tag)
        while self._confirmed + 1 in self._confirmed_above:
            self._confirmed += 1
            self._confirmed_above.remove(self._confirmed)
        self.puts_done += self._confirmed + len(self._confirmed_above) - before
