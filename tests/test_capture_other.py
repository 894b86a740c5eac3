"""Other protocols: told by their first bytes, counted by name and the server's port; HTTP is never taken for one."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pcap_build import Conversation
from test_capture_pair import answer, get, shown

from capture.assembler import Assembler
from capture.other import recognise, server_name
from capture.settings import CaptureSettings
from wire.account import Account


def client_hello(name: bytes | None = b"api.example.com", *, padding: int = 0, records: int = 1) -> bytes:
    """A ClientHello whose server name stands behind `padding` bytes of other extensions, in so many records."""
    extensions = struct.pack(">HH", 21, padding) + b"\0" * padding if padding else b""
    if name is not None:
        extensions += struct.pack(">HHHBH", 0, len(name) + 5, len(name) + 3, 0, len(name)) + name
    body = (
        b"\3\3"
        + b"R" * 32
        + b"\x20"
        + b"S" * 32
        + b"\0\2\x13\1"
        + b"\1\0"
        + struct.pack(">H", len(extensions))
        + extensions
    )
    hello = b"\1" + len(body).to_bytes(3, "big") + body
    size = -(-len(hello) // records)
    parts = [hello[at : at + size] for at in range(0, len(hello), size)]
    return b"".join(b"\x16\3\1" + struct.pack(">H", len(part)) + part for part in parts)


SERVER_HELLO = b"\x16\3\3\0\x31\2\0\0\x2d\3\3" + b"R" * 32 + b"\0\x13\1\0\0\5\0\x2b\0\2\3\4"
GREETING = b"\x4a\0\0\0\n8.0.36\0" + b"\7\0\0\0" + b"s" * 60
THRIFT = b"\x80\1\0\1\0\0\0\4ping\0\0\0\1\0"
STARTUP = struct.pack(">II", 30, 196608) + b"user\0x\0database\0y\0\0\0"

#: (note, drop reason, what the client says, what the server says, who speaks first)
PROTOCOLS = {
    "tls": ("other.tls.443", "tls", client_hello(), SERVER_HELLO, 0),
    "h2c": ("other.h2c.443", "http2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 9, b"\0\0\0\4\0\0\0\0\0", 0),
    "thrift, framed": ("other.thrift.443", "thrift", struct.pack(">I", len(THRIFT)) + THRIFT, struct.pack(">I", len(THRIFT)) + b"\x80\1\0\2" + THRIFT[4:], 0),
    "thrift": ("other.thrift.443", "thrift", THRIFT, b"\x80\1\0\2" + THRIFT[4:], 0),
    "thrift, compact": ("other.thrift.443", "thrift", struct.pack(">I", 20) + b"\x82\x21\1\4ping" + b"\0" * 12, struct.pack(">I", 20) + b"\x82\x41\1\4ping" + b"\0" * 12, 0),
    "dubbo": ("other.dubbo.443", "dubbo", b"\xda\xbb\xc2\0" + b"\0" * 12, b"\xda\xbb\2\x14" + b"\0" * 12, 0),
    "redis": ("other.redis.443", "redis", b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n", 0),
    "mysql": ("other.mysql.443", "mysql", b"\x20\0\0\1" + b"\x85" * 32, GREETING, 1),
    "postgresql": ("other.postgresql.443", "postgresql", STARTUP, b"R\0\0\0\x08\0\0\0\0", 0),
    "mongodb": ("other.mongodb.443", "mongodb", struct.pack("<IIII", 58, 1, 0, 2013) + b"\0" * 42, struct.pack("<IIII", 58, 2, 1, 2013) + b"\0" * 42, 0),
    "ssh": ("other.ssh.443", "ssh", b"SSH-2.0-OpenSSH_9.6\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", 1),
    "amqp": ("other.amqp.443", "amqp", b"AMQP\0\0\x09\1", b"\1\0\0\0\0\1\xf4\0\x0a\0\x0a\0", 0),
    "mqtt": ("other.mqtt.443", "mqtt", b"\x10\x20\0\4MQTT\4\2\0\x3c" + b"\0" * 20, b"\x20\2\0\0", 0),
    "smtp": ("other.unknown.443", "not_http", b"EHLO here.example\r\nMAIL FROM:<a>\r\n", b"220 mail ready\r\n250 OK\r\n", 1),
}  # fmt: skip


def run(client: bytes, server: bytes, first: int, *, mss: int = 1460, midstream: bool = False) -> tuple[Account, int]:
    talk = Conversation(server=("10.0.0.2", 443)).open()
    for side in (first, 1 - first):
        talk.send(side, server if side else client, mss=mss)
    talk.close()
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    for ts_ns, frame in talk.packets[3 if midstream else 0 :]:
        assembler.packet(ts_ns, frame, len(frame))
        assert assembler.account.balanced
    assert not assembler.finish()
    assert assembler.account.balanced
    return assembler.account, len(client) + len(server)


def others(account: Account) -> dict[str, int]:
    return {name: count for name, count in account.notes.items() if name.startswith(("other.", "sni."))}


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("mss", [1460, 3, 1])
def test_each_is_counted_by_name_and_port(name: str, mss: int) -> None:
    note, reason, client, server, first = PROTOCOLS[name]
    account, total = run(client, server, first, mss=mss)
    want = {note: 1, "sni.api.example.com": 1} if name == "tls" else {note: 1}
    assert others(account) == want
    dropped = account.ledger("bytes").intentional
    assert sum(dropped.values()) + sum(account.ledger("bytes").drops.values()) == total
    if mss == 1460:
        left = {"not_http"} if name in ("h2c", "smtp", "tls") else set()
        assert reason in dropped and set(dropped) <= {reason, "blank", *left}


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name != "smtp"])
def test_each_is_told_where_the_beginning_of_the_connection_was_missed(name: str) -> None:
    note, _, client, server, first = PROTOCOLS[name]
    account, _ = run(client, server, first, midstream=True)
    assert note in others(account)


def test_what_goes_on_in_the_middle_is_not_given_a_name() -> None:
    account, _ = run(b"\x99" * 500, b"\x77" * 500, 0, midstream=True)
    assert others(account) == {}
    assert set(account.ledger("bytes").drops) == {"midstream"}


@pytest.mark.parametrize("records", [1, 3])
@pytest.mark.parametrize("padding", [0, 3000])
@pytest.mark.parametrize("mss", [1460, 100, 7])
def test_the_server_name_of_a_hello_in_pieces(records: int, padding: int, mss: int) -> None:
    account, _ = run(client_hello(padding=padding, records=records), SERVER_HELLO, 0, mss=mss)
    assert others(account) == {"other.tls.443": 1, "sni.api.example.com": 1}


@pytest.mark.parametrize(
    "hello", [client_hello(None), client_hello(b"bad name\n"), client_hello(b"x" * 300), client_hello()[:30]]
)
def test_tls_without_a_name_that_can_be_told(hello: bytes) -> None:
    account, _ = run(hello, SERVER_HELLO, 0)
    assert others(account) == {"other.tls.443": 1}


def test_names_and_ports_are_bounded() -> None:
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    for index in range(200):
        talk = Conversation(("10.0.0.1", 1000 + index), ("10.0.0.2", 2000 + index)).open()
        talk.client(client_hello(b"h%d.example" % index)).close()
        for ts_ns, frame in talk.packets:
            assembler.packet(ts_ns, frame, len(frame))
    assembler.finish()
    notes = others(assembler.account)
    assert len(notes) < 110
    assert notes["sni.more"] == 200 - 64
    assert notes["other.tls.more"] == 200 - 32
    assert sum(count for name, count in notes.items() if name.startswith("other.")) == 200


@pytest.mark.parametrize(
    ("token", "note"), [("h2c", "other.h2c.80"), ("websocket", "other.websocket.80"), ("TLS/1.2, x", "other.tls.80")]
)
@pytest.mark.parametrize("after", [b"", b"\0\0\0\4\0\0\0\0\0"])
def test_an_upgrade_names_what_follows(token: str, note: str, after: bytes) -> None:
    talk = Conversation().open().client(get("/up", extra=f"Upgrade: {token}\r\nConnection: upgrade\r\n"))
    talk.server(f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: {token}\r\n\r\n".encode())
    if after:
        talk.server(after).client(after)
    talk.close()
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    for ts_ns, frame in talk.packets:
        assembler.packet(ts_ns, frame, len(frame))
    assert [target for target, _, _ in shown(assembler.finish())] == [b"/up"]
    assert others(assembler.account) == {note: 1}
    assert assembler.account.ledger("bytes").intentional.get("tunnel", 0) == 2 * len(after)


def test_tls_inside_of_a_connect() -> None:
    talk = (
        Conversation(server=("10.0.0.2", 3128))
        .open()
        .client(b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n")
    )
    talk.server(b"HTTP/1.1 200 OK\r\n\r\n").client(client_hello(b"a.example")).server(SERVER_HELLO).close()
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    for ts_ns, frame in talk.packets:
        assembler.packet(ts_ns, frame, len(frame))
    assembler.finish()
    assert others(assembler.account) == {"other.tls.3128": 1, "sni.a.example": 1}


@pytest.mark.parametrize(
    "before", [b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + b"\1" * 12]
)
def test_http_behind_a_proxys_line_is_recorded(before: bytes) -> None:
    talk = Conversation().open().client(before + get("/1")).server(answer(b"one")).close()
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    for ts_ns, frame in talk.packets:
        assembler.packet(ts_ns, frame, len(frame))
    assert shown(assembler.finish()) == [(b"/1", 200, b"one")]
    assert others(assembler.account) == {"other.proxy_protocol.80": 1}


def test_http_is_none_of_them() -> None:
    talk = Conversation().open()
    for _ in range(3):
        talk.client(get("/1")).server(answer(b"\x16\3\1" + b"*1\r\n$4\r\n" + b"x" * 90))
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    for ts_ns, frame in talk.close().packets:
        assembler.packet(ts_ns, frame, len(frame))
    assert len(assembler.finish()) == 3
    assert others(assembler.account) == {}


def test_noise_is_hardly_ever_taken_for_one() -> None:
    rng = random.Random(5)
    assert sum(bool(recognise(rng.randbytes(64))[0]) for _ in range(20_000)) < 10


@given(st.binary(max_size=80), st.sampled_from([b"", b"\x16\3\1", client_hello()[:60], b"*1\r\n", GREETING[:9]]))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_some_or_none(data: bytes, start: bytes) -> None:
    name, _ = recognise(start + data)
    assert isinstance(name, str)
    assert decided_once(start + data)


def decided_once(data: bytes) -> bool:
    """None: more is needed. Once it is decided, more changes nothing."""
    decided = server_name(data)
    return decided is None or server_name(data + b"more") == decided


@given(st.integers(0, 120), st.lists(st.tuples(st.integers(0, 119), st.integers(0, 255)), max_size=4))
@settings(max_examples=300, deadline=None)
@example(104, [(8, 0x2B)])  # the hello's own length ends before its name
def test_a_damaged_hello_has_a_name_that_is_in_it_or_none(cut: int, changes: list[tuple[int, int]]) -> None:
    data = bytearray(client_hello()[:cut])
    for at, value in changes:
        data[at : at + 1] = [value] if at < len(data) else []
    assert decided_once(bytes(data))
