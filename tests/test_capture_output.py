"""From files of packets to a recording, and what is in it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pcap_build import Conversation, pcap, write
from test_capture_pair import answer, get

from bus.logfile import account_of
from bus.logreader import LogReader
from bus.ports import BusError, BusFull
from capture.app import import_files
from capture.assembler import Assembler
from capture.output import Output
from capture.settings import CaptureSettings
from capture.show import exchange_json, in_order
from capture.writer import QueuedWriter
from wire import codec
from wire.account import Account
from wire.codec import RecordType
from wire.config import ConfigError
from wire.records import Exchange


def exchanges_of(path: Path) -> list[Exchange]:
    found: list[Exchange] = []
    with LogReader(path) as reader:
        while messages := reader.read():
            for message in messages:
                batch = codec.decode(message.data)
                if batch.header.type is RecordType.EXCHANGE:
                    found.extend(batch.records)
        assert reader.ended
    return found


def traffic(count: int) -> Conversation:
    talk = Conversation().open()
    for number in range(count):
        talk.client(get(f"/{number}")).server(answer(b"%d" % number * 100))
    return talk.close()


def test_import(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pcap", traffic(50).packets)
    account = import_files([path], tmp_path / "x.lf", CaptureSettings(batch_bytes=4096))
    found = exchanges_of(tmp_path / "x.lf")
    assert [e.request.head.split(b" ")[1] for e in found] == [b"/%d" % n for n in range(50)]
    assert account.balanced
    stored = account_of(tmp_path / "x.lf")
    assert stored.as_json() == account.as_json()
    assert stored.ledger("messages").emitted == 100
    assert stored.ledger("packets").seen == len(traffic(50).packets)
    assert (tmp_path / "x.lf").stat().st_mode & 0o777 == 0o600


def test_the_same_file_gives_the_same_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pcap", traffic(3).packets)
    for name in ("a.lf", "b.lf"):
        import_files([path], tmp_path / name)
    one, two = exchanges_of(tmp_path / "a.lf"), exchanges_of(tmp_path / "b.lf")
    assert one == two
    with LogReader(tmp_path / "a.lf") as reader:
        manifest = reader.manifest
    assert manifest is not None
    assert manifest.inputs == ("x.pcap",)
    assert manifest.masked is False


def test_every_prefix_of_the_file_balances(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pcap", traffic(400).packets)
    import_files([path], tmp_path / "x.lf", CaptureSettings(batch_bytes=1 << 14))
    account, messages, batches = Account(), 0, 0
    with LogReader(tmp_path / "x.lf") as reader:
        while read := reader.read():
            for message in read:
                batch = codec.decode(message.data)
                account.add(batch.header.increment)
                if batch.header.type is RecordType.EXCHANGE:
                    messages += 2 * len(batch.records)
                    batches += 1
                assert account.balanced
                assert account.ledger("messages").emitted == messages
    assert batches > 3


def test_masking_comes_before_writing_and_after_the_session(tmp_path: Path) -> None:
    class Masker:
        def __init__(self) -> None:
            self.counts: dict[str, int] = {}

        def exchange(self, exchange: Exchange, *_: bytes) -> Exchange:
            import msgspec

            self.counts["target"] = self.counts.get("target", 0) + 1
            request = msgspec.structs.replace(exchange.request, head=b"GET /masked HTTP/1.1\r\n\r\n")
            return msgspec.structs.replace(exchange, request=request)

        def message(self, head: bytes, block: bytes, body: bytes) -> tuple[bytes, bytes]:
            if not head.startswith(b"GET "):
                return head, body
            self.counts["target"] = self.counts.get("target", 0) + 1
            return b"GET /masked HTTP/1.1\r\n\r\n", body

    talk = Conversation().open()
    for agent in ("a", "b"):
        talk.client(get("/secret", extra=f"User-Agent: {agent}\r\n")).server(answer(b"x"))
    path = write(tmp_path / "x.pcap", talk.close().packets)
    import_files([path], tmp_path / "x.lf", None, Masker(), b"key")
    found = exchanges_of(tmp_path / "x.lf")
    assert b"secret" not in (tmp_path / "x.lf").read_bytes()
    assert {e.request.head for e in found} == {b"GET /masked HTTP/1.1\r\n\r\n"}
    assert len({e.session_id for e in found}) == 2
    assert account_of(tmp_path / "x.lf").notes["masked.target"] == 2  # what was masked is in the file, too


def test_a_cut_file_is_taken_as_far_as_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(pcap(traffic(3).packets)[:-300])
    lines: list[str] = []
    account = import_files([path], tmp_path / "x.lf", say=lines.append)
    assert len(lines) == 1
    assert "cut off" in lines[0]
    assert account.notes["input_cut"] == 1
    assert account.balanced
    assert len(exchanges_of(tmp_path / "x.lf")) >= 2


def test_nothing_is_written_over(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pcap", traffic(3).packets)
    import_files([path], tmp_path / "x.lf")
    before = (tmp_path / "x.lf").read_bytes()
    with pytest.raises(BusError, match="is there already"):
        import_files([path], tmp_path / "x.lf")
    assert (tmp_path / "x.lf").read_bytes() == before
    # What a killed import of the same files left is made again.
    (tmp_path / "x.lf").write_bytes(before[: len(before) // 2])
    import_files([path], tmp_path / "x.lf")
    assert len(exchanges_of(tmp_path / "x.lf")) == 3


def test_bad_input_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        import_files([tmp_path / "absent.pcap"], tmp_path / "x.lf")
    assert not (tmp_path / "x.lf").exists()


class Full:
    """A writer whose disk is full now and then."""

    next_offset = 0

    def __init__(self) -> None:
        self.full = False
        self.account = Account()
        self.exchanges: list[Exchange] = []

    def write_records(self, records: Sequence[Any], type: Any = None, **more: Any) -> int:
        if self.full:
            raise BusFull("no room")
        self.exchanges.extend(records)
        self.account.add(more["increment"])
        return 0

    def end(self, end: Any = None, *, reason: str = "done", stopped_ns: int = 0) -> None: ...

    def close(self) -> None: ...


def test_no_room_is_shed_exactly() -> None:
    writer = Full()
    settings = CaptureSettings(batch_bytes=1, batch_ns=0)
    output, assembler = Output(writer, settings), Assembler("r", settings, None, b"k")
    for index, (ts_ns, data) in enumerate(traffic(9).packets):
        assembler.packet(ts_ns, data, len(data))
        writer.full = 8 <= index < 14
        try:
            output.pump(assembler, ts_ns)
        except BusFull:
            assert assembler.account.balanced
            if index == 11:
                assert output.shed() > 0
    output.end(assembler)
    assert writer.account.balanced
    assert writer.account.as_json() == assembler.account.as_json()
    messages = writer.account.ledger("messages")
    assert messages.emitted == 2 * len(writer.exchanges)
    assert messages.drops["no_room"] == 18 - messages.emitted > 0


def test_show(tmp_path: Path) -> None:
    talk = Conversation(("fd00::1", 5), ("fd00::2", 80)).open()
    talk.client(b"POST /p?q=1 HTTP/1.1\r\nHost: h.example\r\nContent-Length: 2\r\n\r\nab").server(answer(b"")).client(
        get("/2")
    )
    path = write(tmp_path / "x.pcap", talk.packets)
    import_files([path], tmp_path / "x.lf")
    first, second = [exchange_json(e) for e in in_order(reversed(exchanges_of(tmp_path / "x.lf")))]
    assert list(first) == [
        "session",
        "client",
        "server",
        "method",
        "target",
        "host",
        "request_start_ns",
        "request_body_bytes",
        "request_body_sha256",
        "status",
        "response_start_ns",
        "response_body_bytes",
        "response_body_sha256",
        "missing_bytes",
        "mode",
    ]
    assert (first["client"], first["server"]) == ("[fd00::1]:5", "[fd00::2]:80")
    assert (first["method"], first["target"], first["host"]) == ("POST", "/p?q=1", "h.example")
    assert first["request_body_sha256"] == hashlib.sha256(b"ab").hexdigest()
    assert (first["status"], first["response_body_bytes"], first["response_body_sha256"]) == (200, 0, None)
    assert (second["target"], second["status"], second["response_start_ns"]) == ("/2", None, None)


def test_stdin_is_read_as_it_comes(tmp_path: Path) -> None:
    """A batch is in the file while the pipe is still open and silent: `ssh host tcpdump -U -w - | livefire import -`."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]);"
        "from capture.app import import_files; import_files(['-'], sys.argv[1])"
    )
    to = tmp_path / "x.lf"
    root = str(Path(__file__).resolve().parent.parent)
    with subprocess.Popen([sys.executable, "-c", code, str(to), root], stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.write(pcap(traffic(3).packets[:-3])[:-20])
        child.stdin.flush()
        until = time.monotonic() + 15
        while time.monotonic() < until and not (to.exists() and account_of(to).ledger("messages").emitted >= 4):
            time.sleep(0.05)
        assert account_of(to).ledger("messages").emitted >= 4
        child.stdin.close()
        assert child.wait(15) == 0
    assert len(exchanges_of(to)) == 3
    with LogReader(to) as reader:
        assert reader.manifest is not None
        assert len(reader.manifest.owner_id) == 26


def test_what_a_full_disk_never_took_leaves_no_end_mark() -> None:
    """The writer waits for room until the recording ends; then it says so, and the file is not called whole."""

    class Full:
        path = Path("full.lf")
        next_offset = 0
        room = ended = closed = False

        def write(self, data: bytes) -> int:
            if not self.room:
                raise BusFull("no room")
            return 0

        def end(self, *_: object, **__: object) -> None:
            self.ended = True

        def close(self) -> None:
            self.closed = True

    for room in (False, True):
        log = Full()
        log.room = room
        writer = QueuedWriter(log, buffer_ns=50_000_000, monotonic_ns=time.monotonic_ns)
        writer.write_records((), RecordType.ACCOUNT, increment=Account().take())
        if room:
            writer.end()
        else:
            with pytest.raises(BusFull, match="what came last is not in the file"):
                writer.end()
            assert not log.closed, "what is to be said of that may find room"
            writer.close()
        assert (log.ended, log.closed) == (room, True)
