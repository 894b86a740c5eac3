"""The firer by itself, before a server that says exactly what the test wants: answers, backlogs, the order of shots."""

from __future__ import annotations

import os
import random
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay import app, pipes
from replay.clock import clock_of
from replay.firerlink import FirerLink
from replay.firing import BURST, Firer
from replay.pool import EpollPoller
from replay.waiting import Waiting, WaitingShots
from wire.records import Failure

SECOND, MS = 1_000_000_000, 1_000_000


class Result(NamedTuple):
    status: int
    failure: Failure
    body_bytes: int
    sent_ns: int
    first_ns: int
    done_ns: int


class Server:
    """Answers request /<n> with the pieces of script[n], a little apart; an empty piece closes."""

    def __init__(self, script: dict[int, list[bytes]]) -> None:
        self.script = script
        self.accepted = 0
        self._server = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.port: int = self._server.getsockname()[1]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        poller = select.poll()
        poller.register(self._server, select.POLLIN)
        clients: dict[int, socket.socket] = {}
        while not self._ended.is_set():
            for fd, _ in poller.poll(20):
                if fd == self._server.fileno():
                    client, _ = self._server.accept()
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    clients[client.fileno()] = client
                    poller.register(client, select.POLLIN)
                    self.accepted += 1
                    continue
                client = clients[fd]
                try:
                    data = client.recv(1 << 16)
                    closes = not data or not self._answer(client, int(data.split(b" ")[1][1:]))
                except OSError:
                    closes = True
                if closes:
                    poller.unregister(fd)
                    clients.pop(fd).close()

    def _answer(self, client: socket.socket, number: int) -> bool:
        for place, piece in enumerate(self.script.get(number) or self.script[0]):
            if not piece:
                return False
            if place:
                time.sleep(0.02)  # so that the pieces come apart
            client.sendall(piece)
        return True

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._server.close()


def settings_for(port: int, anchor_ns: int) -> pipes.FirerSettings:
    return pipes.FirerSettings(
        anchor_ns=anchor_ns, address="127.0.0.1", port=port, refused_sources=(), named_sources=(), run_id="r1",
        key_id="k1", key_hex="01" * 32, marker_lifetime_s=60, max_rate=100_000.0, max_open=5_000, timeout_ns=SECOND,
        late_ns=5 * SECOND, grace_ns=SECOND // 2,
    )  # fmt: skip


class Alone:
    """A firer that hears the test in the place of a feeder."""

    def __init__(self, port: int) -> None:
        anchor = app.anchor_ns()
        self.now = clock_of(anchor)
        self.results: dict[int, Result] = {}
        self.link = FirerLink(settings_for(port, anchor))
        self.until(lambda: self.link.ready)
        self.link.lease(self.now() + 60 * SECOND)

    def fire(self, numbers: list[int], ready_ns: int = 0, *, method: bytes = b"GET", flags: int = 0) -> None:
        for number in numbers:
            self.link.shot(
                number, ready_ns or self.now(), flags, b"%b /%d HTTP/1.1\r\nHost: t\r\n" % (method, number), b"\r\n"
            )
        self.link.send_shots()

    def until(self, check: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not check():
            assert time.monotonic() < deadline, "it never happened"
            self.link.read(self._results, lambda serial, head, body: None)
            self.link.writer.flush()
            time.sleep(0.001)

    def _results(self, payload: bytes) -> None:
        for serial, sent, first, done, _, status, number, _, body in pipes.RESULT.iter_unpack(payload):
            assert serial not in self.results, "one result a shot"
            self.results[serial] = Result(status, pipes.FAILURES[number], body, sent, first, done)


@pytest.fixture
def alone() -> Iterator[Callable[[int], Alone]]:
    made: list[Alone] = []

    def make(port: int) -> Alone:
        made.append(Alone(port))
        return made[-1]

    yield make
    for one in made:
        one.link.close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_a_head_that_was_read_before_hides_nothing_that_is_different(alone: Callable[[int], Alone]) -> None:
    """Heads are remembered word for word; what comes behind them is looked at all the same."""
    script = {
        0: [HEAD + b"hello"],
        3: [HEAD + b"he", b"llo"],
        4: [HEAD, b"hello"],
        5: [HEAD[:20], HEAD[20:] + b"hello"],
        6: [HEAD + b"hello" + HEAD + b"again"],
        7: [HEAD + b"he", b""],
        8: [HEAD],  # an answer to HEAD
        10: [b"HTTP/1.1 103 Early Hints\r\n\r\n" + HEAD + b"hello"],
        11: [CHUNKED + b"2\r\nhi\r\n0\r\n\r\n"],
        12: [CHUNKED + b"3\r\nhey\r\n0\r\n\r\n"],
        13: [HEAD.replace(b"200", b"404") + b"hello"],
        14: [HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + b"hello", b""],
    }
    with Server(script) as server:
        firer = alone(server.port)
        for number in range(1, 17):  # one after another, so that the head is known when the next one comes
            is_head = number == 8
            firer.fire([number], method=b"HEAD" if is_head else b"GET", flags=pipes.HEAD_ONLY if is_head else 0)
            firer.until(lambda number=number: number in firer.results)  # type: ignore[misc]
        accepted = server.accepted
    results = {number: (r.status, r.failure, r.body_bytes) for number, r in firer.results.items()}
    whole = (200, Failure.NONE, 5)
    assert results == {
        **{number: whole for number in (1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16)},
        7: (200, Failure.RESET, 2), 8: (200, Failure.NONE, 0), 11: (200, Failure.NONE, 2), 12: (200, Failure.NONE, 3),
        13: (404, Failure.NONE, 5),
    }  # fmt: skip
    assert all(0 < r.sent_ns <= r.first_ns <= r.done_ns for r in firer.results.values())
    for number in (3, 4, 5):
        assert firer.results[number].done_ns - firer.results[number].first_ns > 10 * MS, "first and last piece"
    assert firer.results[2].done_ns == firer.results[2].first_ns
    assert accepted == 4, "used again, but for what said too much (6), was cut (7), or closes (14)"


class ServingPoller(EpollPoller):
    """Before each look at the answers the server has answered all that was sent: no race, one thread."""

    def __init__(self) -> None:
        super().__init__()
        self.server = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.server.setblocking(False)
        self.clients: list[socket.socket] = []

    def poll(self, timeout_s: float) -> list[tuple[int, int]]:
        try:
            while True:
                self.clients.append(self.server.accept()[0])
        except BlockingIOError:
            pass
        for client in self.clients:
            try:
                if client.recv(1 << 16, socket.MSG_DONTWAIT):
                    client.sendall(HEAD + b"hello")
            except BlockingIOError:
                pass
        return super().poll(timeout_s)


def test_a_backlog_does_not_open_a_connection_a_shot() -> None:
    """After a stall everything is due at once. Who opens 2000 connections then is later still when they stand."""
    count = 2_000
    poller = ServingPoller()
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()
    clock = clock_of(app.anchor_ns())
    settings = settings_for(poller.server.getsockname()[1], app.anchor_ns())
    due = clock()
    shots = [pipes.SHOT.pack(serial, due, 0, 16, 2) + b"GET / HTTP/1.1\r\n\r\n" for serial in range(1, count + 1)]
    firer = Firer(settings, pipes.PipeReader(to_read, 1 << 20), pipes.PipeWriter(from_write), poller, clock)
    firer.take_frames([
        (pipes.FrameType.LEASE, pipes.TIME.pack(due + 60 * SECOND)), (pipes.FrameType.SHOTS, b"".join(shots)),
        (pipes.FrameType.END, b""),
    ])  # fmt: skip
    firer.run()
    results = pipes.PipeReader(from_read).read(100)
    failures = Counter(
        pipes.FAILURES[row[6]]
        for kind, payload in results
        if kind == pipes.FrameType.RESULTS
        for row in pipes.RESULT.iter_unpack(payload)
    )
    assert failures == {Failure.NONE: count}
    assert len(poller.clients) <= 256
    for client in (*poller.clients, poller.server):
        client.close()
    for fd in (to_read, to_write, from_read, from_write):
        os.close(fd)


def test_a_server_that_does_not_answer_gets_them_all_the_same(alone: Callable[[int], Alone]) -> None:
    """The control of the test above: open loop is open loop, a shot does not wait for another one's answer."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as server:
        firer = alone(server.getsockname()[1])
        count = 4 * BURST
        firer.fire(list(range(1, count + 1)))
        firer.until(lambda: firer.link.gauge is not None and firer.link.gauge.open_shots == count)
        firer.until(lambda: len(firer.results) == count)
    assert {r.failure for r in firer.results.values()} == {Failure.TIMEOUT}
    assert all(r.sent_ns for r in firer.results.values())


@given(st.lists(st.lists(st.integers(0, 50), max_size=8), max_size=8), st.integers(1, 5), st.randoms())
def test_shots_leave_in_order_of_their_times(frames: list[list[int]], most: int, chance: random.Random) -> None:
    """Whatever order they came in: slices are in order, what waited for a value is not."""
    waiting = WaitingShots()
    number, now, taken = 0, 0, []
    sent: list[tuple[int, int]] = []
    for frame in frames:
        payload = b""
        for ready in frame:
            number += 1
            sent.append((ready, number))
            payload += pipes.SHOT.pack(number, ready, 0, 2, 1) + b"ab" + b"c"
        waiting.add(payload)
        now += chance.randrange(10)
        due = waiting.due(now, most)
        assert len(due) <= most and all(shot[0] <= now for shot in due)
        assert [shot[0] for shot in due] == sorted(shot[0] for shot in due)
        if len(due) < most:
            assert waiting.next_ns(1 << 62) > now
        if due and chance.random() < 0.3:
            waiting.put_back(due)
        else:
            taken += due
    rest = waiting.due(1 << 61, 1_000)
    assert [shot[0] for shot in rest] == sorted(shot[0] for shot in rest) and not waiting
    everything: list[Waiting] = taken + rest
    assert sorted((ready, serial) for ready, serial, *_ in everything) == sorted(sent)
    assert {tuple(shot[2:]) for shot in everything} <= {(0, b"ab", b"c")}
