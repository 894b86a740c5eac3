"""Part of the traffic, another user, and ways to end: what a recorder does besides recording."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pcap_build import Conversation
from test_capture_record import (
    BOTH,
    Counting,
    exchanges,
    free_port,
    get,
    needs_ring,
    recording,
    server,
    settings_for,
    target,
    until,
)

from bus.logfile import FileBus, LogReader, LogWriter, account_of
from bus.ports import BusError
from capture.assembler import Assembler
from capture.message import REQUEST, Message, frame, message_of
from capture.privileges import give, user_of
from capture.record import OURS, record
from capture.sample import NOT_SAMPLED, SessionSample, described, filter_of, path_pattern, sampled
from capture.settings import CaptureSettings, RecordSettings, SampleSettings
from capture.shed import Shedder
from capture.source_socket import SocketSource
from capture.watch import KillFile, Links, is_up
from cleanse.app import cleanse as cleanse_file
from cleanse.settings import CleanseSettings
from drill.pressure import arithmetic
from livefire.cli import cli
from replay.recording import Recording
from wire.account import Account, Ledger, kept_and_shed, kept_share
from wire.config import ConfigError
from wire.records import Manifest

ROOT = Path(__file__).resolve().parent.parent
__all__ = ["server"]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def request(text: bytes) -> Message:
    message = message_of(REQUEST, text, 0, 0, -1)
    assert message is not None
    frame(message)
    return message


# ---------------------------------------------------------------------------- which part


def test_a_sample_is_of_sessions_the_same_ones_for_all_and_a_smaller_one_is_part_of_it() -> None:
    ids = [os.urandom(16) for _ in range(20_000)]
    tenth, half = SessionSample(0.1), SessionSample(0.5)
    kept = {session for session in ids if tenth.holds(session)}
    assert 0.08 < len(kept) / len(ids) < 0.12
    assert all(half.holds(session) for session in kept)
    assert all(SessionSample(1.0).holds(session) for session in ids)
    shedder = Shedder()
    shedder.costs(1, "max_cpu")
    shed = sum(bool(shedder.sheds(session)) for session in kept) / len(kept)
    assert 0.4 < shed < 0.6, "who is sampled is shed as often as anybody"
    both = sampled(0.1, shedder.sheds)
    assert both is not None
    assert Counter(both(session) for session in ids)[NOT_SAMPLED] == len(ids) - len(kept)
    assert sampled(1.0, None) is None


@pytest.mark.parametrize(
    ("pattern", "path", "holds"),
    [
        ("/orders/{id}", b"/orders/7", True), ("/orders/{id}", b"/orders/7/lines", False),
        ("/orders/{id}", b"/orders/", False), ("/static/**", b"/static/a/b.css", True), ("/*.css", b"/a.css", True),
        ("/*.css", b"/a/b.css", False), ("/a.b", b"/aXb", False), ("/", b"/", True), ("/(x", b"/(x", True),
    ],
)  # fmt: skip
def test_a_path_pattern(pattern: str, path: bytes, holds: bool) -> None:
    assert bool(path_pattern(pattern).fullmatch(path)) is holds


def test_of_one_kind_any_may_hold_of_each_kind_one_must() -> None:
    why = filter_of(
        SampleSettings(
            methods=("get", "POST"), paths=("/orders/{id}", "/cart"), headers=(("x-user", "42"),),
            cookies=(("sid", "a=b"), ("theme", "dark")),
        )
    )  # fmt: skip
    assert why is not None
    whole = b"GET /orders/7?q=1 HTTP/1.1\r\nHost: h\r\nX-User: 42\r\nCookie: a=1; sid=a=b\r\n\r\n"
    assert why(request(whole)) == ""
    assert why(request(whole.replace(b"sid=a=b", b'theme="dark"'))) == ""
    assert why(request(whole.replace(b"GET", b"PUT"))) == "not_method"
    assert why(request(whole.replace(b"/orders/7", b"/orders"))) == "not_path"
    assert why(request(whole.replace(b"X-User: 42", b"X-User: 421"))) == "not_header"
    assert why(request(whole.replace(b"X-User: 42", b"X-User-Id: 42"))) == "not_header"
    assert why(request(whole.replace(b"sid=a=b", b"sid=a=B"))) == "not_cookie", "values are as they were sent"
    assert why(request(whole.replace(b"X-User: 42", b"X-User: 7\r\nx-user:42"))) == "", "of several fields, each"
    assert filter_of(SampleSettings(share=0.5)) is None
    for wrong in (SampleSettings(methods=("GE T",)), SampleSettings(paths=("orders",))):
        with pytest.raises(ConfigError, match="only "):
            filter_of(wrong)


@examples(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["/a", "/b"]), max_size=8), st.sampled_from([0.1, 0.5, 1.0]), st.booleans())
def test_what_is_left_out_is_counted_by_reason_and_the_account_balances(
    paths: list[str], share: float, only: bool
) -> None:
    assembler = Assembler("r", CaptureSettings(sessions=("connection",)), None, b"k" * 32)
    assembler.sheds = sampled(share, None)
    assembler.leave_out = filter_of(SampleSettings(paths=("/a",))) if only else None
    for number, path in enumerate(paths):
        talk = Conversation(("10.0.0.1", 40_000 + number))
        talk.open().client(b"GET %s HTTP/1.1\r\nHost: h\r\n\r\n" % path.encode())
        talk.server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").close()
        for ts_ns, data in talk.packets:
            assembler.packet(ts_ns, data, len(data))
    taken = assembler.finish()
    messages = assembler.account.ledger("messages")
    assert assembler.account.balanced and not messages.drops and messages.emitted == 2 * len(taken)
    assert messages.intentional.get("not_path", 0) == (2 * paths.count("/b") if only else 0)
    assert sum(messages.intentional.values()) + messages.emitted == messages.seen == 2 * len(paths)
    if share == 1:
        assert NOT_SAMPLED not in messages.intentional


def test_a_recording_says_what_part_it_is_and_no_value_that_was_looked_for(server: Counting, tmp_path: Path) -> None:
    file = tmp_path / "live.lf"
    sample = SampleSettings(0.5, cookies=(("sid", "the-secret"),))
    capture = CaptureSettings(sessions=("header:x-session",))
    settings, port = settings_for("proxy", server, file, scale=0.3, sample=sample, capture=capture)
    with recording(settings) as recorder:
        for session in range(24):
            get(port, [f"/{session}"], {"X-Session": str(session), "Cookie": "sid=the-secret"})
            get(port, [f"/other/{session}"], {"X-Session": str(session)})
        account = recorder.stop()
    with LogReader(file) as reader:
        while reader.read():
            pass
        manifest = reader.manifest
    assert manifest is not None and manifest.scale == pytest.approx(0.15), "the filter is no part of it"
    assert manifest.settings["sample"]["cookies"] == [["sid", ""]]
    assert b"the-secret" not in str(manifest).encode()
    found = {target(exchange) for exchange in exchanges(file)}
    assert 0 < len(found) < 24 and not any(path.startswith("/other") for path in found)
    messages = account["ledgers"]["messages"]
    assert messages["intentional"] == {"not_cookie": 48, NOT_SAMPLED: 2 * (24 - len(found))}
    assert "only" not in described(SampleSettings()) and "the-secret" not in described(sample)


def test_a_file_is_not_gone_on_with_as_another_part_of_production(tmp_path: Path) -> None:
    class Nothing:
        described, inputs, kernel_times = "nothing", (), False

        def feed(self, *_: object) -> int:
            return 0

        def count(self, *_: object) -> None: ...

        def finish(self, *_: object) -> None: ...

        def close(self) -> None: ...

    def run(stopped: bool = True, **more: object) -> Account:
        settings = msgspec.structs.replace(RecordSettings(to=str(tmp_path / "x.lf")), **more)
        stop = (lambda: stopped) if stopped else lambda: (_ for _ in ()).throw(BusError("cut off"))
        return record(settings, None, b"k" * 32, stop, anchor_ns=1, source=Nothing())  # type: ignore[arg-type]

    with pytest.raises(BusError, match="cut off"):
        run(stopped=False, sample=SampleSettings(0.5))
    for more in ({}, {"scale": 0.5}, {"sample": SampleSettings(0.5, methods=("GET",))}):
        with pytest.raises(BusError, match=r"begun with 50.000% of production.*write "):
            run(**more)
    run(sample=SampleSettings(0.5))
    assert account_of(tmp_path / "x.lf").notes["blind"] == 1


# ---------------------------------------------------------------------------- ways to end


@pytest.mark.parametrize("kind", BOTH)
def test_the_kill_file_ends_it_cleanly(kind: str, server: Counting, tmp_path: Path) -> None:
    file, kill = tmp_path / "live.lf", tmp_path / "kill"
    settings, port = settings_for(kind, server, file, kill_file=str(kill))
    with recording(settings) as recorder:
        get(port, ["/a", "/b"])
        assert recorder.process.poll() is None
        kill.touch()
        until(lambda: recorder.process.poll() is not None)
        account = recorder.stop()
    assert account["notes"]["stopped.kill_file"] == 1 and account["balanced"]
    assert sorted(target(e) for e in exchanges(file)) == ["/a", "/b"]
    with LogReader(file) as reader:
        while reader.read():
            pass
        assert reader.ended
    with pytest.raises(ConfigError, match="the kill file is there, so nothing is recorded"):
        KillFile(str(kill))
    assert not KillFile("").there()


@pytest.fixture
def bus_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("told", "ends"),
    [(["--recording", "monday"], True), (["--all"], True), (["--recording", "tuesday"], False)],
)
def test_livefire_stop_reaches_recorders_on_the_bus(
    told: list[str], ends: bool, server: Counting, tmp_path: Path, bus_folder: Path
) -> None:
    port = server.server_address[1]
    bus = str(bus_folder)
    listen = free_port()
    settings = RecordSettings(
        to="", bus=bus, recording="monday", agent="a", agents=("a",), spool=str(tmp_path / "spool"),
        proxies=((f"127.0.0.1:{listen}", f"127.0.0.1:{port}"),),
    )  # fmt: skip
    with recording(settings) as recorder:
        get(listen, ["/a"])
        said = CliRunner().invoke(cli, ["stop", *told, "--bus", bus])
        assert said.exit_code == 0 and "told to stop" in said.output
        if ends:
            until(lambda: recorder.process.poll() is not None)
        else:
            get(listen, ["/b"])
            assert recorder.process.poll() is None
        account = recorder.stop()
    assert account["balanced"] and account["ledgers"]["messages"]["emitted"] == (2 if ends else 4)
    streams, on_bus, held = FileBus(bus_folder / "monday"), Account(), 0
    for name in streams.partitions("raw"):
        assert streams.whole("raw", name), "it ended as it does by itself"
        on_bus.merge(account_of(streams.path("raw", name)))
        held += len(exchanges(streams.path("raw", name)))
    assert held == (1 if ends else 2) and on_bus.as_json()["ledgers"] == account["ledgers"]


def test_what_stop_cannot_mean_is_told() -> None:
    for told, why in (
        (["--recording", "monday"], "--kill-file"),
        (["--recording", "monday", "--all", "--bus", "x"], "leave the run and --all out"),
    ):
        said = CliRunner().invoke(cli, ["stop", *told])
        assert said.exit_code == 2 and why in said.output


# ---------------------------------------------------------------------------- another user


@as_root
@pytest.mark.parametrize("kind", BOTH)
def test_it_goes_on_as_nobody_when_its_sockets_are_open(kind: str, server: Counting, tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    theirs = set(os.getgrouplist(nobody.pw_name, nobody.pw_gid))
    file = tmp_path / "live.lf"  # in a folder that nobody may not write to, nor even enter
    settings, port = settings_for(kind, server, file, user="nobody")
    with recording(settings) as recorder:
        pids = [recorder.process.pid]
        pids += [int(p) for p in Path(f"/proc/{pids[0]}/task/{pids[0]}/children").read_text().split()]
        for pid in pids:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            uids = next(line for line in lines if line.startswith("Uid:")).split()[1:]
            caps = next(line for line in lines if line.startswith("CapEff:")).split()[1]
            assert set(uids) == {str(nobody.pw_uid)} and int(caps, 16) == 0, "no right is left"
            groups = next(line for line in lines if line.startswith("Groups:")).split()[1:]
            assert set(map(int, groups)) == theirs, "none of root's groups"
            for task in Path(f"/proc/{pid}/task").iterdir():
                assert f"Uid:\t{nobody.pw_uid}\t{nobody.pw_uid}" in (task / "status").read_text(), "all its threads"
        get(port, ["/a", "/b"])
        account = recorder.stop()
    assert sorted(target(e) for e in exchanges(file)) == ["/a", "/b"]
    assert account["balanced"] and account == account_of(file).as_json()
    assert (file.stat().st_uid, file.stat().st_gid) == (nobody.pw_uid, nobody.pw_gid)
    assert file.stat().st_mode & 0o777 == 0o600


@as_root
def test_who_starts_several_recorders_goes_on_as_nobody_too(bus_folder: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    bus_folder.chmod(0o755)
    command = [sys.executable, "-m", "livefire", "record", "--processes", "2", "--interface", "lo", "--port", "9"]
    command += ["--user", "nobody", "--unmasked", "--stdin-guard", "--json", "--to", str(bus_folder / "ring")]
    place = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **place) as recorder:  # type: ignore[call-overload]
        try:
            begun = next((line for line in recorder.stderr if b"2 processes" in line), b"")
            assert begun and b"as root" not in begun
            pids = [recorder.pid]
            pids += [int(p) for p in Path(f"/proc/{pids[0]}/task/{pids[0]}/children").read_text().split()]
            assert len(pids) == 3
            for pid in pids:
                status = Path(f"/proc/{pid}/status").read_text()
                assert f"Uid:\t{nobody.pw_uid}\t{nobody.pw_uid}" in status and "CapEff:\t0000000000000000" in status
        finally:
            out, said = recorder.communicate(timeout=60)
    assert recorder.returncode == 0, said
    assert json.loads(out)["balanced"] and b"0 exchanges" in said
    assert {path.stat().st_uid for path in (bus_folder / "ring").iterdir()} == {nobody.pw_uid}


@needs_ring
def test_one_of_several_recorders_that_is_killed_is_told_as_killed(tmp_path: Path) -> None:
    """As the kernel does it where memory is short. The others end whole."""
    command = [sys.executable, "-m", "livefire", "record", "--processes", "2", "--interface", "lo", "--port", "9"]
    command += ["--unmasked", "--stdin-guard", "--to", str(tmp_path / "ring")]
    place = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **place) as recorder:  # type: ignore[call-overload]
        try:
            assert any(b"2 processes" in line for line in recorder.stderr)
            one, *_ = Path(f"/proc/{recorder.pid}/task/{recorder.pid}/children").read_text().split()
            os.kill(int(one), signal.SIGKILL)
        finally:
            said = recorder.communicate(timeout=60)[1]
    assert recorder.returncode == 2
    assert said.splitlines()[-1] == b"livefire: recorder-0 was killed by signal 9"


@as_root
def test_of_a_folder_only_what_is_ours_is_given_away(tmp_path: Path) -> None:
    nobody = user_of("nobody")
    assert nobody is not None
    for name in ("raw-0.000001.lf", "raw-web-1.mark"):
        (tmp_path / name).touch()
    (tmp_path / "raw-1.000001.lf").symlink_to("/etc/hostname")
    give(tmp_path, nobody, OURS)
    assert {path.lstat().st_uid for path in (tmp_path, *tmp_path.iterdir())} == {nobody.uid}
    os.chown(tmp_path, 0, 0)
    others = [tmp_path / "secrets.txt", tmp_path / "below" / "raw-0.000001.lf"]
    others[1].parent.mkdir()
    for path in others:
        path.touch()
    give(tmp_path, nobody, OURS)
    kept = [path for path in (tmp_path, *tmp_path.rglob("*")) if path.lstat().st_uid == 0]
    assert sorted(kept) == sorted([tmp_path, others[1].parent, *others])
    assert os.stat("/etc/hostname").st_uid == 0


@as_root
def test_a_socket_in_a_folder_of_root_ends_without_an_error(bus_folder: Path) -> None:
    bus_folder.chmod(0o755)  # as /run
    path = bus_folder / "tap"
    code = (
        "from capture.privileges import become, user_of; from capture.source_socket import SocketSource\n"
        f"source = SocketSource({str(path)!r}, 0, monotonic_ns=lambda: 0)\n"
        "become(user_of('nobody')); source.close()"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
    assert path.is_socket()
    SocketSource(str(path), 0, monotonic_ns=lambda: 0).close()  # the next one takes it over
    assert not path.exists()


@as_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv (apt install util-linux)")
@pytest.mark.parametrize("rights", ["", ",+chown", ",+chown,+setgid"])
def test_a_root_without_the_rights_of_root_is_told_so(rights: str, tmp_path: Path) -> None:
    """As in a container that was given NET_RAW alone."""
    (tmp_path / "file").touch()
    code = (
        "from pathlib import Path; from capture.privileges import become, give, user_of; from wire.config import ConfigError\n"
        "user = user_of('nobody')\n"
        f"try: give(Path({str(tmp_path / 'file')!r}), user); become(user)\n"
        "except ConfigError as error: print(error)"
    )
    command = ["setpriv", f"--bounding-set=-all,+net_raw{rights}", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    assert "this root may not become another user (CAP_CHOWN" in done.stdout and not done.stderr


def test_users_that_cannot_be_become() -> None:
    with pytest.raises(ConfigError, match="there is none of that name"):
        user_of("no-such-user")
    me = pwd.getpwuid(os.geteuid()).pw_name
    assert user_of(me) is None and user_of(str(os.geteuid())) is None, "who it is already"
    if os.geteuid() != 0:
        with pytest.raises(ConfigError, match="only root can become another user"):
            user_of("root")


# ---------------------------------------------------------------------------- interfaces


def test_the_time_that_an_interface_was_down_is_told() -> None:
    state: dict[str, bool | None] = {"eth0": True, "eth1": None}
    links, account = Links(("eth0", "eth1"), state.__getitem__), Account()
    for now, up in ((0, True), (1, False), (2, False), (5, True), (9, False)):
        state["eth0"] = up
        links.look(now, account.note)
    links.end(20, account.note)
    assert account.notes == {"down.eth0": 2, "down_ns.eth0": 4 + 11}
    assert is_up("no-such-link") is None
    assert is_up("lo") in (True, None)


# ---------------------------------------------------------------------------- 1x is production's rate


def test_what_was_sampled_and_shed_is_in_the_scale_all_the_way_to_the_replay(server: Counting, tmp_path: Path) -> None:
    raw, clean = tmp_path / "raw.lf", tmp_path / "clean.lf"
    manifest = Manifest("raw", "0", "rec-1", 1, "test", scale=0.3 * 0.5, masked=False)
    conversation = Conversation()
    assembler = Assembler("rec-1", CaptureSettings(), None, b"k" * 32)
    conversation.open()
    for number in range(30):
        conversation.client(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number)
        conversation.server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    for ts_ns, data in conversation.packets:
        assembler.packet(ts_ns, data, len(data))
    taken = assembler.finish()
    ledger = assembler.account.ledger("messages")
    for reason, count in (("max_cpu", 12), ("no_room", 8), ("gap", 40)):  # a gap is a loss, not a part left out
        ledger.seen += count
        ledger.drop(reason, count)
    ledger.seen += 60
    ledger.drop("not_path", 60, intentional=True)
    assert ledger.emitted == 60 and kept_share(kept_and_shed({"messages": ledger}, {})) == 0.75
    packets = assembler.account.ledger("packets")
    packets.seen += packets.emitted
    packets.drop("max_cpu", packets.emitted)  # as many as were read, and thrown away unread
    with LogWriter(raw, manifest) as writer:
        writer.write_records(taken, increment=assembler.account.take())
        writer.end()
    cleanse_file(raw, clean, CleanseSettings())
    for file in (raw, clean):  # what was shed is told of both, and once
        assert "; 5.6% of production" in CliRunner().invoke(cli, ["show", str(file)]).output
    survey = Recording(clean).survey()
    assert survey.exchanges == 30 and survey.scale == pytest.approx(0.3 * 0.5 * 0.75 / 2)
    told = arithmetic(scale=survey.scale, speed=1, load=1, recorded_rate=10)
    assert told.recording_load == pytest.approx(1 / 0.05625), "1x fires 17.8 copies of what was recorded"
    assert told.line().startswith("17.78 x 1 x 1")
    assert [kept_share(kept_and_shed({"messages": one}, {})) for one in (Ledger(emitted=5), Ledger())] == [1.0, 1.0]
