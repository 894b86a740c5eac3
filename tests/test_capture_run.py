"""Segments of a large body that are taken many at a time: as if each had been read by itself."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pcap_build import Conversation, Packet, pcap

from capture import alike
from capture.alike import ACK, DATA, OTHER, Alike
from capture.assembler import Assembler
from capture.chunks import cut
from capture.frames import PARTS
from capture.settings import CaptureSettings
from capture.source_pcap import PcapSource
from wire.account import Account
from wire.records import Exchange

MSS = 1448


def chunked(rng: random.Random, body: bytes) -> bytes:
    """As any server may write it, and now and then as none should."""
    size = rng.choice([len(body) or 1, 8000, 8192, MSS, MSS - 7, 2 * MSS - 14, 700, 40])
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    odd = rng.choice([0.0, 0.0, 0.05])
    lines = (b"%X\r\n%s\r\n", b"000%x\r\n%s\r\n", b"%x;name=value\r\n%s\r\n", b"%x \n%s\n", b"%xz\r\n%s\r\n")
    written = [(rng.choice(lines) if rng.random() < odd else b"%x\r\n%s\r\n") % (len(part), part) for part in parts]
    return b"".join(written) + rng.choice([b"0\r\n\r\n", b"0\r\nX-Sum: 1\r\n\r\n", b"00\r\n\r\n", b""])


def large(rng: random.Random, number: int) -> list[Packet]:
    """A connection with bodies of many segments, either way."""
    talk = Conversation(
        (f"10.0.0.{number + 1}", 40000 + number),
        client_isn=rng.choice([1000, 0xFFFFFF00]),
        server_isn=rng.choice([5000, (1 << 32) - 9000]),
        start_ns=1_700_000_000_000_000_000 + number * 300_000,
        step_ns=rng.choice([20_000, 1_000_000, 500_000_000]),
    ).open()
    for index in range(rng.randrange(1, 4)):
        body = rng.randbytes(rng.choice([0, 100, MSS * 7, MSS * 12 + 5, 30_000]))
        upload = rng.random() < 0.3
        head = b"Host: x\r\nContent-Length: %d\r\n\r\n" % (len(body) if upload else 0)
        asked = b"POST /%d HTTP/1.1\r\n" % index + head + (body if upload else b"")
        answered = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        if rng.random() < 0.6:
            answered = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(rng, body)
        for who, data in ((0, asked), (1, answered)):
            step, often = MSS * rng.choice([1, 2, 4]), rng.choice([0.1, 0.5, 1.0])
            for at in range(0, len(data), step):
                talk.send(who, data[at : at + step], mss=MSS)
                if rng.random() < often:
                    acked(talk, 1 - who, rng)
    if rng.random() < 0.7:
        talk.close()
    return talk.packets


def acked(talk: Conversation, who: int, rng: random.Random) -> None:
    """Mostly as it should be; now and then late, of what nobody sent, of nothing, with options, or with a window only."""
    if rng.random() < 0.8:
        talk.ack(who)
        return
    mine, theirs = talk.seq[who], talk.seq[1 - who]
    odd = rng.choice([theirs - MSS, theirs - 3, theirs + 1, theirs + (1 << 31), 0])
    ts_ns, data = talk.raw(who, mine - rng.choice([0, 0, 1, 7]), odd, 0x10)
    if rng.random() < 0.5:
        options = data[:16] + struct.pack(">H", 52) + data[18:46] + b"\x80" + data[47:] + b"\1\1\x08\x0a" + bytes(8)
        talk.packets[-1] = (ts_ns, options)


def traffic(rng: random.Random) -> list[Packet]:
    """Connections beside each other; some packets lost, twice, late, damaged, cut, or stamped with an earlier time."""
    packets = [packet for number in range(rng.randrange(1, 4)) for packet in large(rng, number)]
    if rng.random() < 0.6:
        packets.sort(key=lambda packet: packet[0])
    rate = rng.choice([0.0, 0.02, 0.1])
    mangled: list[Packet] = []
    for ts_ns, data in packets:
        chance = rng.random()
        if chance < rate:
            continue
        if chance < 2 * rate:
            mangled.append((ts_ns, data))
        elif chance < 3 * rate:
            mangled.insert(len(mangled) - rng.randrange(min(4, len(mangled)) + 1), (ts_ns, data))
            continue
        elif chance < 4 * rate:
            broken = bytearray(data)
            broken[rng.randrange(12, min(60, len(broken)))] ^= 1 << rng.randrange(8)
            data = bytes(broken[: rng.choice([len(data), len(data), len(data) - 3])])
        elif chance < 5 * rate:
            ts_ns -= rng.randrange(2_000_000_000)
        mangled.append((ts_ns, data))
    return mangled


def state(assembler: Assembler) -> list[object]:
    """Of each open connection what the segments that come are read by."""
    found: list[object] = []
    for connection in assembler._open:
        found.append((connection.id, connection.last_ns))
        for side in connection.sides:
            stream, reader, message = side.stream, side.reader, side.reader.message
            found.append((stream.next, stream.acked, stream.end, stream.history_bytes, stream.waiting_bytes))
            found.append((side.ended, reader.state, reader.next, reader.left))
            if message is not None:
                found.append((message.body_bytes, message.kept_bytes, message.wire_bytes, message.end_ns))
    return found


def read(
    file: bytes, how: CaptureSettings, most: int, *, general: bool
) -> tuple[list[Exchange], list[tuple[int, object]], Account, int]:
    """Exchanges, the account after each portion, the account, and how many records were taken with others."""
    assembler, exchanges, between, taken = Assembler("r", how, None, b"k", general=general), [], [], 0
    run = assembler.run

    def counted(*arguments: object) -> tuple[int, int]:
        nonlocal taken
        count, at = run(*arguments)  # type: ignore[arg-type]
        taken += count
        return count, at

    assembler.run = counted
    for count in PcapSource("x", stream=io.BytesIO(file)).read_into(assembler, most):
        exchanges += assembler.take()
        assert assembler.account.balanced
        between.append((count, (assembler.account.as_json(), assembler.kept, state(assembler))))
    exchanges += assembler.finish()
    assert assembler.kept == 0
    return exchanges, between, assembler.account, taken


@contextmanager
def looking(*, by_bytes: bool) -> Iterator[None]:
    """Headers are looked at this way, whether compiled or not; of what is compiled it changes nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alike, "BY_BYTES", by_bytes)
        yield


def assert_same(file: bytes, how: CaptureSettings, most: int) -> int:
    general = read(file, how, most, general=True)
    assert not general[3]
    taken = set()
    for by_bytes in (False, True):
        with looking(by_bytes=by_bytes):
            fast = read(file, how, most, general=False)
        assert fast[0] == general[0]
        assert fast[1] == general[1], "the same portions, and the same account after each"
        assert fast[2].as_json() == general[2].as_json()
        taken.add(fast[3])
    (count,) = taken
    return count


@given(st.integers(0, 1 << 40), st.integers(1, 200))
@settings(max_examples=120, deadline=None)
def test_taken_together_or_one_by_one_is_the_same(seed: int, most: int) -> None:
    rng = random.Random(seed)
    how = CaptureSettings() if rng.random() < 0.5 else CaptureSettings(
        max_body_bytes=rng.choice([MSS, 5000, 1 << 20]),
        max_total_bytes=rng.choice([9000, 1 << 20]),
        max_connection_bytes=rng.choice([5000, 1 << 20]),
        history_bytes=rng.choice([10, 4000, 1 << 20]),
        idle_ns=rng.choice([2_000_000_000, 300_000_000_000]),
    )  # fmt: skip
    snaplen = rng.choice([1 << 18] * 4 + [1200])
    file = pcap(traffic(rng), order=rng.choice("<>"), nanoseconds=rng.random() < 0.5, snaplen=snaplen)
    assert_same(file, how, most)


def healthy(size: int = 20 * MSS, step_ns: int = 1_000_000) -> list[Packet]:
    talk = Conversation(step_ns=step_ns).open().client(b"GET / HTTP/1.1\r\n\r\n")
    body = random.Random(1).randbytes(size)
    return talk.send(1, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body, mss=MSS).close().packets


def test_most_of_a_large_body_is_taken_together() -> None:
    assert (
        assert_same(pcap(healthy()), CaptureSettings(), 3000) == 18
    )  # of 21: two to see that they are alike, and the last


@pytest.mark.parametrize(("size", "together"), [(8192, 20), (1000, 20), (50, 17)])
def test_chunks_are_taken_together_with_their_lines(size: int, together: int) -> None:
    """All but the first two, the last, and where segments end inside of a line: that one and the one behind it."""
    body = random.Random(1).randbytes(32 << 10)
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    talk = Conversation().open().client(b"GET / HTTP/1.1\r\n\r\n").send(1, answer, mss=MSS).close()
    assert assert_same(pcap(talk.packets), CaptureSettings(), 3000) == together


@pytest.mark.parametrize(
    ("data", "left", "parts", "to_come"),
    [
        (b"ab\r\n5\r\ncde", 2, [b"ab", b"cde"], 2),
        (b"\r\n5\r\ncde", 0, [b"", b"cde"], 2),
        (b"ab\r\n5\r\n", 2, [b"ab"], 5),
        (b"ab\r\n1\r\nc\r\nfF\r\nde", 2, [b"ab", b"c", b"de"], 253),
        (b"abc", 4, [b"abc"], 1),
    ],
)
def test_a_segment_is_cut_where_its_chunks_end(data: bytes, left: int, parts: list[bytes], to_come: int) -> None:
    lines = len(data) - sum(map(len, parts))
    assert cut(data, left) == (parts, to_come, lines)


@pytest.mark.parametrize(
    "data",
    [b"ab", b"ab\r", b"ab\r\n5\r", b"ab\r\n1\r\nc", b"ab\r\n1\r\nc\r\n", b"ab\r\n0\r\n\r\n", b"abc\r\n5\r\nd",
     b"ab\n5\nc", b"ab\r\n5;x\r\nc", b"ab\r\n5 \r\nc", b"ab\r\n000000005\r\nc", b"ab\r\ng\r\nc"],
)  # fmt: skip
def test_a_segment_with_any_other_line_is_not_cut(data: bytes) -> None:
    assert cut(data, 2) is None


@pytest.mark.parametrize("at", range(12, 66))
def test_a_difference_in_any_byte_is_seen(at: int) -> None:
    """Of one packet in the midst: what differs decides what becomes of it, together or one by one."""
    packets = healthy()
    for bit in (0, 3, 7):
        ts_ns, data = packets[14]
        changed = bytearray(data)
        changed[at] ^= 1 << bit
        file = pcap([*packets[:14], (ts_ns, bytes(changed)), *packets[15:]])
        taken = assert_same(file, CaptureSettings(), 3000)
        says_nothing = at in (18, 19, 24, 25) or at >= 48  # id, checksum; window and on
        assert taken == 18 if says_nothing else taken < 18


def acknowledged(every: int, segments: int = 24, isn: int = 5000) -> list[Packet]:
    """An answer of so many segments; after `every` of them an ACK."""
    talk = Conversation(server_isn=isn).open().client(b"GET / HTTP/1.1\r\n\r\n")
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
    body = random.Random(1).randbytes(segments * MSS - len(head % 10_000))
    answer = head % len(body) + body
    for at in range(0, len(answer), every * MSS):
        talk.send(1, answer[at : at + every * MSS], mss=MSS).ack(0)
    return talk.close().packets


@pytest.mark.parametrize(("every", "together"), [(1, 43), (2, 32), (3, 28), (8, 23)])
def test_acks_between_are_taken_too(every: int, together: int) -> None:
    """All but the first two segments with what comes between them, and the last one with what comes behind it."""
    assert assert_same(pcap(acknowledged(every)), CaptureSettings(), 3000) == together


@pytest.mark.parametrize("at", range(12, 54))
def test_a_difference_in_any_byte_of_an_ack_is_seen(at: int) -> None:
    packets = acknowledged(2)
    which = next(index for index in range(20, len(packets)) if len(packets[index][1]) == 54)
    for bit in range(8):
        ts_ns, data = packets[which]
        changed = bytearray(data)
        changed[at] ^= 1 << bit
        file = pcap([*packets[:which], (ts_ns, bytes(changed)), *packets[which + 1 :]])
        for most in (7, 3000):
            assert_same(file, CaptureSettings(), most)


def record(ts_ns: int, data: bytes, caught: int, wire_len: int) -> bytes:
    return struct.pack("<IIII", ts_ns // 10**9, ts_ns % 10**9 // 1000, caught, wire_len) + data


def test_an_ack_that_is_none_of_the_kind() -> None:
    """Of no byte at all, with a header too short, cut off inside of its options, or of a record that is cut off."""
    packets = acknowledged(2, isn=(1 << 32) - 9 * MSS)
    which = next(index for index in range(20, len(packets)) if len(packets[index][1]) == 54)
    ts_ns, data = packets[which]
    optional = data[:16] + struct.pack(">H", 52) + data[18:46] + b"\x80" + data[47:]
    short = data[:16] + struct.pack(">H", 36) + data[18:46] + b"\x40" + data[47:]
    before, behind = pcap(packets[:which]), pcap(packets[which + 1 :])[24:]
    for odd in (
        record(ts_ns, data[:42] + bytes(4) + data[46:], 54, 54),
        record(ts_ns, short, 54, 54),
        record(ts_ns, optional + bytes(6), 60, 66),
        record(ts_ns, data, 54, 50),
        record(ts_ns, data + bytes(2946), 3000, 3000),
    ):
        assert_same(before + odd + behind, CaptureSettings(), 3000)
        assert_same(before + odd + behind, CaptureSettings(), 7)
    assert_same(before + record(ts_ns, data + bytes(1600), 3000, 3000), CaptureSettings(), 3000)


def test_an_ack_that_is_lost_held_back_or_ahead_of_what_was_seen() -> None:
    """A segment that no capture holds was acknowledged: that is a hole, also inside of what is taken together."""
    packets = acknowledged(2)
    for left_out in range(6, len(packets)):
        assert_same(pcap(packets[:left_out] + packets[left_out + 1 :]), CaptureSettings(), 3000)
        moved = packets[:left_out] + packets[left_out + 1 :]
        moved.insert(min(left_out + 4, len(moved)), packets[left_out])
        for most in (7, 3000):
            assert_same(pcap(moved), CaptureSettings(), most)


@pytest.mark.parametrize("seconds", [0.001, 0.02, 0.4])
def test_time_passes_in_a_run_for_all_connections(seconds: float) -> None:
    """One that has a hole, and one that goes idle, beside a body that takes its time, up to where the capture ends."""
    step_ns = round(seconds * 1e9)
    other = Conversation(("10.0.0.9", 50000), step_ns=step_ns // 2).open().client(b"GET /a HTTP/1.1\r\n\r\n")
    other.seq[1] += 7  # never seen
    other.server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    packets = healthy(60 * MSS, step_ns)
    how = CaptureSettings(idle_ns=5_000_000_000)
    both = sorted([*packets[:40], *other.packets], key=lambda packet: packet[0])
    later = (both[-1][0] + 2_000_000_000, Conversation(("10.0.0.8", 50001)).raw(0, 1, 0, 2)[1])
    for file in (pcap(both), pcap([*both, later]), pcap(packets[:40])):
        assert assert_same(file, how, 3000) or seconds == 0.4


@pytest.mark.parametrize("rest", [-1, 0, 1])
def test_the_last_segment_is_read_by_itself(rest: int) -> None:
    head = len(b"HTTP/1.1 200 OK\r\nContent-Length: 28913\r\n\r\n")
    assert assert_same(pcap(healthy(20 * MSS - head + rest)), CaptureSettings(), 3000) in (17, 18)


@pytest.mark.parametrize("bound", [{"max_total_bytes": 9 * MSS}, {"max_body_bytes": 9 * MSS}])
def test_no_more_is_kept_than_may_be(bound: dict[str, int]) -> None:
    assert 3 < assert_same(pcap(healthy()), CaptureSettings(**bound), 3000) < 9


@pytest.mark.parametrize("extra", [-1, 4, 1448])
def test_a_record_of_another_length_ends_a_run(extra: int) -> None:
    """A frame check sequence, or a byte that was not captured: what the packets themselves say is the same."""
    packets = healthy()
    ts_ns, data = packets[14]
    changed = data[:extra] if extra < 0 else data + bytes(extra)
    one = (
        struct.pack("<IIII", ts_ns // 10**9, ts_ns % 10**9 // 1000, len(changed), max(len(changed), len(data)))
        + changed
    )
    assert 0 < assert_same(pcap(packets[:14]) + one + pcap(packets[15:])[24:], CaptureSettings(), 3000) < 18
    lies = bytearray(pcap(packets))
    struct.pack_into("<I", lies, 24 + sum(16 + len(data) for _, data in packets[:14]) + 12, len(data) + 9)
    assert 0 < assert_same(bytes(lies), CaptureSettings(), 3000) < 18


def test_what_says_no_length_or_holds_nothing_ends_a_run() -> None:
    """A card that joined frames says 0; an ACK may be padded to any length."""
    packets = healthy()
    joined = [(ts_ns, data[:16] + b"\0\0" + data[18:]) for ts_ns, data in packets[10:13]]
    assert_same(pcap([*packets[:10], *joined, *packets[13:]]), CaptureSettings(), 3000)
    talk = Conversation().open().client(b"GET / HTTP/1.1\r\n\r\n")
    body = random.Random(1).randbytes(20 * MSS)
    talk.send(1, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body[: 9 * MSS], mss=MSS)
    for _ in range(3):
        talk.ack(1)
        ts_ns, data = talk.packets[-1]
        talk.packets[-1] = (ts_ns, data + bytes(1200))
    talk.send(1, body[9 * MSS :], mss=MSS).close()
    assert_same(pcap(talk.packets), CaptureSettings(), 3000)


@pytest.mark.parametrize("begins", [b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"])
def test_the_first_bytes_of_a_body_are_read_by_themselves(begins: bytes) -> None:
    """Behind a head that fills two packets."""
    body = begins + random.Random(1).randbytes(8 * MSS)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX: " % len(body)
    talk = Conversation().open().client(b"GET / HTTP/1.1\r\n\r\n")
    talk.send(1, head + b"y" * (2 * MSS - len(head) - 4) + b"\r\n\r\n" + body, mss=MSS).close()
    assert assert_same(pcap(talk.packets), CaptureSettings(), 3000) == 7  # of 9: the first, and the last


def test_of_a_connection_that_was_unsettled_nothing_is_taken_together() -> None:
    """Which sequence number is next is not known then; each segment is looked at from all sides again."""
    file = pcap(healthy())
    assembler, exchanges, asked = Assembler("r", CaptureSettings(), None, b"k"), [], 0
    run = assembler.run

    def unsettled(*arguments: object) -> tuple[int, int]:
        nonlocal asked
        asked += 1
        for connection in assembler._open:
            connection.unsettle()
        found = run(*arguments)  # type: ignore[arg-type]
        assert found[0] == 0
        return found

    assembler.run = unsettled  # type: ignore[assignment]
    for _ in PcapSource("x", stream=io.BytesIO(file)).read_into(assembler, 3000):
        exchanges += assembler.take()
    exchanges += assembler.finish()
    assert asked > 10
    assert exchanges == read(file, CaptureSettings(), 3000, general=True)[0]


#: Of a record: its time; of the frame in it: the addresses of Ethernet, the id, the checksum of IP; window, checksum and
#: pointer of TCP.
SAYS_NOTHING = {*range(8), *range(16, 28), *range(34, 36), *range(40, 42), *range(64, 70)}


@pytest.mark.parametrize("by_bytes", [False, True])
@pytest.mark.parametrize("order", "<>")
def test_what_is_alike_differs_only_in_what_says_nothing(by_bytes: bool, order: str) -> None:
    """Each byte of a segment's headers, and of an ACK's, is changed, one after the other."""
    talk = Conversation().open().client(b"GET / HTTP/1.1\r\n\r\n").send(1, bytes(3 * MSS), mss=MSS).ack(0).ack(0)
    file = pcap(talk.packets, order=order)
    record, ack = 16 + 54 + MSS, 16 + 54
    at = len(file) - 2 * record - 2 * ack  # the second of three segments
    before, data, end = file[at - record : at], file[at : at + record], file[-2 * ack :]
    first, second = end[:ack] + bytes(record), end[ack:] + bytes(record)
    key, sequence = data[42:54], int.from_bytes(data[54:58], "big")
    back, told = key[4:8] + key[:4] + key[10:] + key[8:10], first[54:58]

    def look(*records: bytes) -> tuple[int, int]:
        """At these, one after the other: what the last one is, and when it came."""
        one = Alike(struct.Struct(f"{order}IIII{PARTS}"), 1000, 16, before[:70], back, told)
        found = [one.look(raw, 0, sequence) for raw in records]
        return found[-1], one.ts_ns

    with looking(by_bytes=by_bytes):
        assert look(data)[0] == DATA and look(first)[0] == ACK
        assert look(data)[1] == talk.packets[-4][0]
        assert look(first, second) == (ACK, talk.packets[-1][0])
        for index in range(70):
            changed = bytearray(data)
            changed[index] ^= 0x40
            assert look(bytes(changed))[0] == (DATA if index in SAYS_NOTHING else OTHER), index
            other = bytearray(second)
            other[index] ^= 0x40
            # It may acknowledge anything, and be of any type of service.
            fine = index in SAYS_NOTHING or index in range(58, 62)
            assert (look(first, bytes(other))[0] == ACK) == (fine or look(bytes(other))[0] == ACK), index
        assert look(data[:54] + b"\0\0\0\1" + data[58:])[0] == OTHER, "not the next one"


@pytest.mark.parametrize("by_bytes", [False, True])
def test_acks_are_read_only_where_the_other_direction_is_known(by_bytes: bool) -> None:
    talk = Conversation().open().client(b"GET / HTTP/1.1\r\n\r\n").send(1, bytes(MSS), mss=MSS).ack(0)
    file = pcap(talk.packets)
    ack = file[-70:] + bytes(MSS)
    data = file[-70 - 70 - MSS : -70 - MSS]
    with looking(by_bytes=by_bytes):
        assert Alike(struct.Struct(f"<IIII{PARTS}"), 1000, 16, data, b"", ack[54:58]).look(ack, 0, 0) == OTHER
