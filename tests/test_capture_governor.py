"""What recording may cost: whole sessions are shed to keep to it, and what it took is told."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pcap_build import Conversation
from test_capture_record import BOTH, Counting, exchanges, get, recording, server, settings_for

from bus.logfile import account_of
from capture.assembler import Assembler
from capture.connection import Connection
from capture.governor import CALM, CPU, LOOK_NS, MEMORY, RATE, Deaf, Governor, Use, queue_bytes, use_now, within
from capture.settings import CaptureSettings, RecordSettings
from capture.shed import NOTHING, STAGES, Shedder
from wire.account import Account

__all__ = ["server"]
NS = 1_000_000_000


class Machine:
    """Traffic that costs so much when all of it is kept, and a clock."""

    def __init__(self, reading: float = 0.0, keeping: float = 0.0, deaf: float = 0.0, **bounds: float) -> None:
        self.reading, self.keeping, self.deaf = reading, keeping, deaf  # seconds of a core a second
        self.memory, self.bytes_per_s = 100 << 20, 0.0
        self.now_ns, self.use, self.trimmed = NS, Use(0, self.memory, 0), 0
        self.shedder = Shedder()
        self.governor = Governor(
            RecordSettings(to="x", **bounds), self.shedder, lambda: self.use, self._trim  # type: ignore[arg-type]
        )  # fmt: skip
        self.governor.look(self.now_ns)

    def _trim(self) -> None:
        self.trimmed += 1

    @property
    def kept(self) -> float:
        return 0.0 if self.shedder.stage > STAGES else 0.5**self.shedder.stage

    def run(self, seconds: float, step_s: float = LOOK_NS / 1e9) -> list[int]:
        """The stages, one a step."""
        stages = []
        for _ in range(round(seconds / step_s)):
            share = self.deaf if self.governor.deaf else self.reading + self.keeping * self.kept
            self.use = Use(
                self.use.cpu_ns + round(share * step_s * NS),
                self.memory,
                self.use.written_bytes + round(self.bytes_per_s * self.kept * step_s),
            )
            self.now_ns += round(step_s * NS)
            self.governor.look(self.now_ns)
            stages.append(self.shedder.stage)
        return stages


def test_nothing_is_shed_below_the_bounds_or_without_any() -> None:
    machine = Machine(0.05, 0.15, max_cpu=0.25, max_rate=1e6, max_memory_bytes=256 << 20)
    machine.bytes_per_s = 0.9e6
    assert set(machine.run(20)) == {0} and not machine.governor.raised
    free = Machine(0.5, 0.5)
    assert set(free.run(20)) == {0} and not free.governor.deaf


def test_above_the_bound_half_of_the_sessions_go_then_half_of_the_rest() -> None:
    machine = Machine(0.05, 0.6, max_cpu=0.25)
    assert machine.run(3)[:3] == [2, 2, 2], "2.6 times the bound: two halvings at once, 0.05 + 0.15"
    assert machine.shedder.sheds(bytes(16)) == CPU and not machine.shedder.sheds(b"\xff" * 16)
    machine.keeping = 0.01  # the load is gone
    assert machine.run(20)[-1] == 0
    assert not machine.shedder.sheds(bytes(16))


def test_more_is_kept_only_when_what_was_used_too_much_is_made_good() -> None:
    machine = Machine(0.0, 1.0, max_cpu=0.1)
    machine.run(LOOK_NS / NS)  # 0.5 s at ten times the bound: 0.45 s too much
    machine.keeping = 0.0
    stages = machine.run(30)
    waited = next(k for k, stage in enumerate(stages) if stage < stages[0])
    assert waited * LOOK_NS / NS >= 0.45 / 0.1, "4.5 s at the bound's rate"
    assert stages[-1] == 0


def test_not_even_reading_is_affordable_then_packets_are_thrown_away_unread() -> None:
    machine = Machine(0.5, 0.2, deaf=0.1, max_cpu=0.25)
    machine.run(8)
    assert machine.governor.deaf and machine.shedder.stage == NOTHING
    assert machine.shedder.sheds(b"\xff" * 16) == CPU
    began = machine.use.cpu_ns
    machine.run(600)
    assert (machine.use.cpu_ns - began) / (600 * NS) < 0.25, "also when it tries again now and then"
    assert machine.governor.raised[CPU] > 1, "and it does"


def test_the_rate_of_what_is_written() -> None:
    machine = Machine(max_rate=1e6)
    machine.bytes_per_s = 9e6
    began = machine.use.written_bytes
    stages = machine.run(300)
    assert stages[0] == 4 and machine.governor.raised.keys() == {RATE}
    assert (machine.use.written_bytes - began) / 300 < 1.02e6
    assert (machine.use.written_bytes - began) / 300 > 0.3e6, "and not much less than it may"


def test_more_that_was_too_much_is_tried_ever_more_seldom() -> None:
    """Half of the sessions would be affordable and all are not: they are not to come and go."""
    machine = Machine(0.1, 0.2, max_cpu=0.25)
    first, later = machine.run(120), machine.run(1200)[-1200:]
    tries = [sum(b < a for a, b in itertools.pairwise(stages)) for stages in (first, later)]
    assert set(first[4:]) == {0, 1} and tries[0] >= 2
    assert 1 <= tries[1] <= 12, "at most once in two minutes, or nearly so"


def test_memory_sheds_and_gives_back_until_it_is_below_again() -> None:
    machine = Machine(max_memory_bytes=256 << 20)
    machine.memory = 300 << 20
    assert machine.run(1) == [1, 2] and machine.trimmed == 2
    assert machine.shedder.reason == MEMORY
    machine.memory = 250 << 20  # below, not by much: stays as it is
    assert set(machine.run(5)) == {2}
    machine.memory = 200 << 20
    assert machine.run(CALM * LOOK_NS / NS * 2)[-1] == 0
    assert machine.governor.peak_bytes == 300 << 20


@examples(max_examples=25, deadline=None)
@given(
    st.floats(0.02, 2.0),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 3), st.floats(0.5, 20)), min_size=1, max_size=12),
)
def test_over_any_long_time_the_mean_is_below_the_bound(
    bound: float, weather: list[tuple[float, float, float]]
) -> None:
    """Whatever traffic comes: the use is at most the bound's, and what one spell of getting there costs."""
    machine = Machine(deaf=bound / 2, max_cpu=bound)
    for reading, keeping, seconds in weather:
        machine.reading, machine.keeping = reading, keeping
        before, at = machine.use.cpu_ns, machine.now_ns
        machine.run(seconds)
        spent, took = machine.use.cpu_ns - before, machine.now_ns - at
        # At worst every stage up to the last is passed at full cost, one look each.
        assert spent <= bound * took + NOTHING * (reading + keeping) * LOOK_NS
    machine.reading = machine.keeping = 0.0
    machine.run(1500)
    assert machine.shedder.stage == 0, "and in the end all is kept again"


def test_the_higher_of_both_stages_holds_and_gives_the_reason() -> None:
    shedder = Shedder()
    shedder.filled(0.6)
    shedder.costs(3, RATE)
    assert (shedder.stage, shedder.reason) == (3, RATE)
    shedder.filled(0.97)
    assert shedder.stage == 5 and shedder.sheds(bytes(16)) == "no_room"
    shedder.costs(0, RATE)
    shedder.filled(0.0)
    assert shedder.stage == 0 and not shedder.sheds(bytes(16))


def test_the_bound_of_memory_bounds_what_is_held() -> None:
    capture = CaptureSettings()
    assert within(capture, 0) == capture and queue_bytes(0) == 128 << 20
    small = within(capture, 256 << 20)
    held = small.max_total_bytes + queue_bytes(256 << 20) + small.max_connections * (2 << 10)
    assert held + (96 << 20) <= 256 << 20
    assert small.max_connections >= 20_000, "20,000 open connections fit in 256 MB"
    with pytest.raises(ValueError, match="at least 134217728"):
        RecordSettings(to="x", max_memory_bytes=100 << 20)


def conversations(count: int) -> list[tuple[int, bytes, int]]:
    packets = []
    for number in range(count):
        talk = Conversation((f"10.0.0.{number}", 40_000))
        talk.open().client(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number)
        talk.server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").close()
        packets += [(ts_ns, data, len(data)) for ts_ns, data, *_ in talk.packets]
    return packets


def test_what_is_shed_or_thrown_away_is_counted_and_the_account_balances() -> None:
    assembler = Assembler("r", CaptureSettings(), None, b"k" * 32)
    shedder = Shedder()
    shedder.costs(1, CPU)
    assembler.sheds = shedder.sheds
    for packet in conversations(64):
        assembler.packet(*packet)
    taken = assembler.finish()
    account = assembler.account
    assert account.balanced and 0 < len(taken) < 64
    assert account.ledger("messages").drops == {CPU: 2 * (64 - len(taken))}
    assert all(not shedder.sheds(exchange.session_id) for exchange in taken)
    # Thrown away unread: the same holds, and no byte of it is looked at.
    assembler = Assembler("r", CaptureSettings(), None, b"k" * 32)
    deaf = Deaf(assembler)  # type: ignore[arg-type]
    packets = conversations(3)
    for packet in packets:
        deaf.packet(*packet)
    assert assembler.finish() == [] and assembler.account.balanced
    assert assembler.account.ledger("packets").drops == {CPU: len(packets)}
    assert assembler.account.ledger("bytes").seen == 0
    assembler.account.ledger("packets").drops[CPU] -= 1  # one that was forgotten
    assert not assembler.account.balanced


def test_what_it_cost_is_in_the_account() -> None:
    machine = Machine(0.05, 0.1, max_cpu=0.05)
    machine.bytes_per_s = 1000
    machine.run(10)
    account = Account()
    machine.governor.account(account)
    assert account.notes["cost.cpu_ns"] == machine.use.cpu_ns > 0
    assert account.notes["cost.memory_bytes"] == 100 << 20
    assert account.notes["cost.written_bytes"] == machine.use.written_bytes > 0
    assert account.notes["exceeded.max_cpu"] >= 1 and account.notes["cost.recorders"] == 1
    now = use_now(7)
    assert now.cpu_ns > 0 and now.memory_bytes > 1 << 20 and now.written_bytes == 7


@pytest.mark.parametrize("kind", BOTH)
def test_a_recorder_keeps_to_its_bound_and_the_servers_log_says_what_is_missing(
    kind: str, server: Counting, tmp_path: Path
) -> None:
    """Generously: what may be used on a busy machine is not timed, but less than a recorder without a bound."""
    file = tmp_path / "live.lf"
    capture = CaptureSettings(sessions=("header:x-session",))
    settings, port = settings_for(kind, server, file, max_rate=1.0, capture=capture)  # a byte a second: all but none
    with recording(settings) as recorder:
        deadline = time.monotonic() + 15
        lap = 0
        assert recorder.process.stdout is not None
        while not json.loads(recorder.process.stdout.readline())["shed"]:  # a line a second
            assert time.monotonic() < deadline
            for session in range(16):
                get(port, [f"/{session}/{lap}"], {"X-Session": str(session)})
            lap += 1
        account = recorder.stop()
    assert account["balanced"] and account_of(file).balanced
    messages = account["ledgers"]["messages"]
    recorded = exchanges(file)
    assert len(recorded) + messages["drops"][RATE] // 2 == len(server.seen)
    assert messages["emitted"] == 2 * len(recorded)
    assert account["notes"]["cost.cpu_ns"] > 0 and account["notes"]["exceeded.max_rate"] >= 1


@pytest.mark.patches
def test_connections_on_which_nothing_comes_cost_the_account_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Connection] = []
    plain = Connection.in_flight
    monkeypatch.setattr(Connection, "in_flight", lambda self: asked.append(self) or plain(self))  # type: ignore[func-returns-value]
    assembler = Assembler("r", CaptureSettings(), None, b"k" * 32)
    talks = []
    for number in range(20):
        talk = Conversation((f"10.0.1.{number}", 40_000))
        talk.open().client(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        talk.server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        talks.append(talk)
        for ts_ns, data in talk.packets:
            assembler.packet(ts_ns, data, len(data))
    assert assembler.account.balanced and len(asked) == 20
    asked.clear()
    assert assembler.account.balanced and not asked, "all are idle"
    talk, before = talks[7], len(talks[7].packets)
    talk.client(b"GET /more HTTP/1.1\r\nHo")  # a part of a message, at the time of the packet before
    for _, data in talk.packets[before:]:
        assembler.packet(talk.packets[before - 1][0], data, len(data))
    for count in (1, 0):  # it is asked once for what came, and what waits stays counted
        asked.clear()
        assert assembler.account.ledger("bytes").in_flight >= 22 and assembler.account.balanced
        assert len(asked) == count


def test_what_is_remembered_for_speed_is_forgotten_of_idle_connections_a_moment_later() -> None:
    assembler = Assembler("r", CaptureSettings(), None, b"k" * 32)
    talks = [Conversation((f"10.0.1.{number}", 40_000)).open() for number in range(3)]

    def exchange(talk: Conversation, at_ns: int) -> None:
        talk.now_ns, before = at_ns, len(talk.packets)
        talk.client(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        for ts_ns, data in talk.packets[before:]:
            assembler.packet(ts_ns, data, len(data))

    def remembered() -> list[bool]:
        assert assembler.account.balanced
        return [connection.exchange_ids is not None for connection in assembler._open]

    start_ns = max(talk.now_ns for talk in talks)
    for talk in talks:
        for ts_ns, data in talk.packets:
            assembler.packet(ts_ns, data, len(data))
    for number, talk in enumerate(talks):
        exchange(talk, start_ns + number * 1000)
    assert remembered() == [True, True, True], "they may go on at once"
    exchange(talks[1], start_ns + 300_000_000)
    assert remembered() == [False, True, False]
    exchange(talks[1], start_ns + 600_000_000)
    exchange(talks[0], start_ns + 600_000_000)
    assert remembered() == [True, True, False], "those that go on are known again"
    ids = [e.exchange_id for e in assembler.take()]
    assert len(set(ids)) == len(ids) == 6
