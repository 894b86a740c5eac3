"""Connections to the target: one request at a time on each, kept alive and used again, the latest first."""

from __future__ import annotations

import errno
import select
import selectors
import socket
import struct
import sys
from collections import deque
from typing import Any, Final, Protocol

import httptools

from replay.pipes import HEAD_ONLY, WANTS_ANSWER
from wire import head as heads

READABLE: Final = 1
WRITABLE: Final = 4
#: Many servers close an idle connection after 5 s; a request that crosses the close is lost: ours are given up before.
IDLE_NS: Final = 4_000_000_000
#: An answer larger than this hands out no values.
MAX_ANSWER_BYTES: Final = 1 << 20

#: Answers' heads that are remembered. A date makes them new every second, so there are many, none for long.
MAX_KNOWN: Final = 1_000
_MAX_KNOWN_HEAD: Final = 4_096
CHUNK: Final = 1 << 15
_TIMESPEC: Final = struct.Struct("@qq")
#: SO_TIMESTAMPNS of asm-generic/socket.h; Python has no name for it.
_SO_TIMESTAMPNS: Final = 35
_KERNEL_TIMES: Final = sys.platform == "linux" and struct.calcsize("@l") == 8
_BODILESS: Final = (204, 304)


class Poller(Protocol):
    """Readiness of descriptors, level-triggered."""

    def add(self, fd: int, *, writing: bool = False) -> None: ...
    def change(self, fd: int, *, writing: bool) -> None: ...
    def remove(self, fd: int) -> None: ...
    def poll(self, timeout_s: float) -> list[tuple[int, int]]:
        """(fd, READABLE | WRITABLE); errors and hang-ups count as both."""


class EpollPoller:
    def __init__(self) -> None:
        self._epoll = select.epoll()

    def add(self, fd: int, *, writing: bool = False) -> None:
        self._epoll.register(fd, READABLE | WRITABLE if writing else READABLE)

    def change(self, fd: int, *, writing: bool) -> None:
        self._epoll.modify(fd, READABLE | WRITABLE if writing else READABLE)

    def remove(self, fd: int) -> None:
        """Closing a descriptor takes it out of epoll."""

    def poll(self, timeout_s: float) -> list[tuple[int, int]]:
        # EPOLLIN is 1 and EPOLLOUT 4; EPOLLERR (8) and EPOLLHUP (16) come without being asked for.
        return self._epoll.poll(timeout_s, 1024)


class SelectorsPoller:
    """Where there is no epoll. Works; its timing is not promised."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def add(self, fd: int, *, writing: bool = False) -> None:
        self._selector.register(fd, selectors.EVENT_READ | (selectors.EVENT_WRITE if writing else 0))

    def change(self, fd: int, *, writing: bool) -> None:
        self._selector.modify(fd, selectors.EVENT_READ | (selectors.EVENT_WRITE if writing else 0))

    def remove(self, fd: int) -> None:
        self._selector.unregister(fd)

    def poll(self, timeout_s: float) -> list[tuple[int, int]]:
        return [
            (key.fd, (READABLE if events & selectors.EVENT_READ else 0) | (WRITABLE if events & 2 else 0))
            for key, events in self._selector.select(timeout_s)
        ]


def make_poller() -> Poller:
    return EpollPoller() if hasattr(select, "epoll") else SelectorsPoller()


class Connection:
    """One connection and the request that is open on it. The callbacks are httptools'."""

    __slots__ = (
        "answer", "answer_bytes", "asked_ns", "body_bytes", "complete", "connecting", "fd", "first_ns", "flags",
        "headers_done", "idle_since", "keep", "last_ns", "out", "out_bytes", "parser", "plain", "raw", "sent_ns",
        "serial", "sock", "status",
    )  # fmt: skip

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.connecting = True
        self.parser: Any = None
        self.idle_since = self.asked_ns = self.sent_ns = self.flags = 0
        self.out: bytes | memoryview = b""
        self.out_bytes = 0
        self.release()

    def begin(self, serial: int, flags: int, asked_ns: int, data: bytes) -> None:
        """A request is going to be sent here. `asked_ns` is when the connection was asked for."""
        self.serial, self.flags, self.asked_ns, self.sent_ns = serial, flags, asked_ns, 0
        self.out = data
        self.out_bytes = len(data)
        self.plain = not flags
        self.answer: list[bytes] | None = [] if flags & WANTS_ANSWER else None

    def release(self) -> None:
        """Nothing is open here, and nothing has come of the next answer."""
        self.serial = 0  # of the open shot; 0 = idle
        self.plain = False  # the whole request is sent, nothing has come, and nothing special is wanted
        self.first_ns = self.last_ns = 0
        self.status = self.body_bytes = self.answer_bytes = 0
        self.headers_done = self.complete = self.keep = False
        self.raw = b""
        self.answer = None

    # -- sending

    def send(self, now_ns: int) -> bool:
        """Send what is left. True when all has gone. Raises OSError."""
        if not self.sent_ns:
            self.sent_ns = now_ns
        out = self.out
        try:
            count = self.sock.send(out)
        except BlockingIOError:
            count = 0
        if count == len(out):
            self.out = b""
            return True
        self.out = memoryview(out)[count:]
        self.plain = False
        return False

    # -- receiving

    def receive(self, now_ns: int, skew_ns: int) -> bytes | None:
        """Bytes that came; b"" at the end of the stream, None when there is nothing. Raises OSError.

        The time is the kernel's where it gives one: `skew_ns` is its wall clock minus ours.
        """
        try:
            if not _KERNEL_TIMES:
                data, at = self.sock.recv(CHUNK), now_ns
            else:
                data, extra, _, _ = self.sock.recvmsg(CHUNK, 64)
                at = now_ns
                if extra:
                    _, kind, value = extra[0]
                    if kind == _SO_TIMESTAMPNS and len(value) >= 16:
                        seconds, nanoseconds = _TIMESPEC.unpack_from(value)
                        # Never after we saw it nor before it was asked for, whatever the clocks do.
                        at = max(min(seconds * 1_000_000_000 + nanoseconds - skew_ns, now_ns), self.sent_ns)
        except BlockingIOError:
            return None
        if data:
            if not self.first_ns:
                self.first_ns = at
            self.last_ns = at
        return data

    def feed(self, data: bytes) -> None:
        """Parse; `complete` says whether the answer is whole. Raises httptools.HttpParserError."""
        if not self.headers_done:
            self.raw = self.raw + data if self.raw else data
        if self.parser is None:
            self.parser = httptools.HttpResponseParser(self)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.complete, self.keep = True, False

    def end_of_stream(self) -> bool:
        """The server closed. True when that is how this answer ends (RFC 9112 section 6.3, rule 8)."""
        if not self.headers_done or self.complete:
            return self.complete
        head = self.answer_head()
        if heads.field(head, b"content-length") is not None or heads.field(head, b"transfer-encoding") is not None:
            return False
        self.complete, self.keep = True, False
        return True

    def answer_head(self) -> bytes:
        """The raw head of the final answer: those of 1xx answers before it are passed over."""
        raw = self.raw
        while True:
            end = raw.find(b"\r\n\r\n")
            head = raw[: end + 4] if end >= 0 else raw
            if end < 0 or not 100 <= heads.response_head(head[: head.find(b"\n") + 1]).status < 200:
                return head
            raw = raw[end + 4 :]

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        if status < 200 and status != 101:
            return
        self.status = status
        self.headers_done = True
        if self.flags & HEAD_ONLY:
            # The parser waits for the body that Content-Length announces and HEAD does not send: it is not used again.
            self.keep = self.parser.should_keep_alive()
            self.complete = True

    def on_body(self, body: bytes) -> None:
        if self.complete:
            return  # of a second answer
        self.body_bytes += len(body)
        if self.answer is not None and self.answer_bytes <= MAX_ANSWER_BYTES:
            self.answer_bytes += len(body)
            self.answer.append(body)

    def on_message_complete(self) -> None:
        if not self.headers_done:
            return
        if self.complete and not self.flags & HEAD_ONLY:
            self.keep = False  # a second answer to one request
            return
        self.complete = True
        if not self.flags & HEAD_ONLY:
            self.keep = self.parser.should_keep_alive()


class Pool:
    def __init__(self, address: str, port: int, poller: Poller) -> None:
        self.end = (address, port)
        self._family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._poller = poller
        self.idle: deque[Connection] = deque()  # the one used last is last
        #: Heads of answers as they were parsed: length of the whole answer, status, length of its body.
        self.known: dict[bytes, tuple[int, int, int]] = {}
        self.by_fd: dict[int, Connection] = {}

    def connect(self) -> Connection:
        """A new connection; `connecting` until it is writable. Raises OSError."""
        sock = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if _KERNEL_TIMES:
                sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            code = sock.connect_ex(self.end)
            if code not in (0, errno.EINPROGRESS, errno.EAGAIN):
                raise OSError(code, "connect")
        except OSError:
            sock.close()
            raise
        connection = Connection(sock)
        connection.connecting = code != 0
        self._poller.add(connection.fd, writing=connection.connecting)
        self.by_fd[connection.fd] = connection
        return connection

    def put_back(self, connection: Connection, now_ns: int) -> None:
        if connection.flags & HEAD_ONLY:
            connection.parser = None
        connection.release()
        connection.idle_since = now_ns
        self.idle.append(connection)

    def remember(self, connection: Connection, data: bytes) -> None:
        """The next answer with this head is framed as this one was, if that one ends where its Content-Length says.

        `data` is what completed the answer. Only an answer that came in one piece and is a head and a body, octet for
        octet, is remembered: one in chunks is longer than both, and one after a 1xx begins with another head.
        """
        if data is not connection.raw or connection.flags or not connection.keep:
            return
        end = data.find(b"\r\n\r\n") + 4
        if end + connection.body_bytes == len(data) and end <= _MAX_KNOWN_HEAD:
            if len(self.known) >= MAX_KNOWN:
                self.known.clear()
            self.known[data[:end]] = (len(data), connection.status, connection.body_bytes)

    def close(self, connection: Connection) -> None:
        if self.by_fd.pop(connection.fd, None) is None:
            return
        if not connection.serial:
            try:
                self.idle.remove(connection)
            except ValueError:
                pass
        self._poller.remove(connection.fd)
        connection.sock.close()
        connection.parser = None  # the parser holds the connection: without this the pair is never freed (gc is off)
        connection.serial = 0

    def close_idle(self, now_ns: int) -> None:
        while self.idle and now_ns - self.idle[0].idle_since > IDLE_NS:
            self.close(self.idle[0])

    def close_all(self) -> None:
        for connection in list(self.by_fd.values()):
            self.close(connection)
