"""Interfaces of network namespaces: bridges and veth pairs show a packet several times; processes share by fanout."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from capture.assembler import Assembler
from capture.bpf import Selection
from capture.rings import Rings
from capture.settings import CaptureSettings
from capture.source import Source
from capture.source_ring import RingSource, open_error
from livefire.recording import Recording

DEADLINE_S = 30.0
SERVER = """
import http.server, sys
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = self.path.encode() * 30
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
s = http.server.ThreadingHTTPServer(("10.213.0.2", 8000), H)
print("ready", flush=True)
s.serve_forever()
"""


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, timeout=DEADLINE_S)


def why_not() -> str:
    if open_error() is not None or os.geteuid() != 0:
        return "needs root"
    if shutil.which("ip") is None:
        return "needs the command ip"
    name = f"lfprobe{os.getpid() % 10000}"
    made = ip("netns", "add", name)
    ip("netns", "del", name)
    return "" if made.returncode == 0 else f"network namespaces cannot be made: {made.stderr.strip()}"


_why_not = why_not()
pytestmark = pytest.mark.skipif(bool(_why_not), reason=_why_not)


class Net:
    """client - br - server: each in a namespace of its own, so that a packet passes two veths and the bridge."""

    def __init__(self) -> None:
        mark = f"{os.getpid() % 100000}"
        self.client, self.middle, self.server = (f"lf{part}{mark}" for part in ("c", "m", "s"))
        self.processes: list[subprocess.Popen[str]] = []
        for name in (self.client, self.middle, self.server):
            self.must("netns", "add", name)
        self.must("-n", self.middle, "link", "add", "br0", "type", "bridge")
        for number, name in enumerate((self.client, self.server), 1):
            self.must(
                "-n", self.middle, "link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0", "netns", name
            )
            self.must("-n", self.middle, "link", "set", f"v{number}", "master", "br0", "up")
            self.must("-n", name, "addr", "add", f"10.213.0.{number}/24", "dev", "eth0")
            self.must("-n", name, "link", "set", "eth0", "up")
        self.must("-n", self.middle, "link", "set", "br0", "up")
        served = self.run(self.server, SERVER)
        assert served.stdout is not None and served.stdout.readline() == "ready\n"

    def must(self, *words: str) -> None:
        done = ip(*words)
        assert done.returncode == 0, (words, done.stderr)

    def run(self, where: str, text: str, *words: str) -> subprocess.Popen[str]:
        command = ["ip", "netns", "exec", where, sys.executable, "-c", text, *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.processes.append(process)
        return process

    def get(self, count: int, connections: int = 1) -> None:
        client = """
import http.client, sys
for c in range(int(sys.argv[2])):
    h = http.client.HTTPConnection("10.213.0.2", 8000, timeout=10)
    for n in range(int(sys.argv[1])):
        h.request("GET", f"/{c}/{n}")
        assert h.getresponse().read()
    h.close()
"""
        process = self.run(self.client, client, str(count), str(connections))
        assert process.wait(DEADLINE_S) == 0

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        for name in (self.client, self.middle, self.server):
            ip("netns", "del", name)


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    made = Net()
    yield made
    made.close()


def opened(namespace: str, names: list[str], fanout: int | None = None) -> Source:
    """Rings on interfaces of another namespace: a socket stays where it was made, the thread comes back."""
    found: list[Source] = []
    failed: list[BaseException] = []

    def make() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            with open(f"/var/run/netns/{namespace}") as there:  # only this thread, which ends
                assert libc.setns(there.fileno(), 0x40000000) == 0, ctypes.get_errno()
            group = None if fanout is None else fanout
            rings = [
                RingSource(name, Selection(ports=(8000,)), ring_bytes=16 << 20, retire_ms=60, fanout=group)
                for name in names
            ]
            found.append(rings[0] if len(rings) == 1 else Rings(rings))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


def ended(source: Source) -> Assembler:
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    source.finish(assembler)
    source.close()
    assembler.close()
    assert assembler.account.balanced, assembler.account.as_json()
    return assembler


@pytest.mark.parametrize("names", [["v1", "v2", "br0"], ["any"]])
def test_each_exchange_is_there_once_and_the_copies_are_counted(net: Net, names: list[str]) -> None:
    source = opened(net.middle, names)
    net.get(20)
    assembler = ended(source)
    found = assembler.take()
    assert [e.request.head.split(b" ")[1].decode() for e in found] == [f"/0/{n}" for n in range(20)]
    assert all(e.response is not None and not e.faults for e in found)
    if names != ["any"]:  # its names are looked up where this test runs
        assert {e.interface for e in found} <= {"v1", "v2"}
    ledger = assembler.account.ledger("packets")
    assert ledger.drops["other_interface"] >= ledger.emitted >= 40  # each packet passes two veths at least


@pytest.mark.patches
def test_without_deduplication_it_would_show(net: Net) -> None:
    """The negative control: the same packets, said to be of one interface, are not taken once each."""
    source = opened(net.middle, ["v1", "v2"])
    net.get(5)
    seen: list[bytes] = []

    class Sink(Assembler):
        def packet(self, ts_ns: int, data: bytes, wire_len: int, linktype: int = 1, interface: str = "") -> None:
            seen.append(data)
            super().packet(ts_ns, data, wire_len, linktype, interface)

    assembler = Sink("r", CaptureSettings(), None, b"k", general=True)
    source.finish(assembler)
    source.close()
    assert len(seen) == 2 * len(set(seen)) and len(assembler.finish()) == 5


def test_processes_share_by_connection(net: Net) -> None:
    group = os.getpid() & 0xFFFF
    shares = [opened(net.middle, ["v1"], group) for _ in range(3)]
    net.get(2, 20)
    assemblers = [ended(share) for share in shares]
    parts = [assembler.take() for assembler in assemblers]
    assert sum(map(len, parts)) == 40 and sum(1 for part in parts if part) >= 2
    assert all(e.response is not None and not e.faults for part in parts for e in part)
    owners: dict[str, set[int]] = {}
    for number, part in enumerate(parts):
        for exchange in part:
            owners.setdefault(exchange.client, set()).add(number)
    assert len(owners) == 20 and all(len(who) == 1 for who in owners.values())


def test_the_command_with_several_processes_makes_one_recording(net: Net, tmp_path: Path) -> None:
    to = tmp_path / "r"
    options = ["--interface", "v1", "--interface", "v2", "--port", "8000", "--processes", "2", "--unmasked", "--json"]
    command = [sys.executable, "-m", "livefire", "--keys", str(tmp_path / "keys"), "record", "--to", str(to), *options]
    recorder = subprocess.Popen(
        ["ip", "netns", "exec", net.middle, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert recorder.stderr is not None
    assert any("2 processes, each rings on v1, v2" in line for line in recorder.stderr)
    net.get(3, 20)
    recorder.send_signal(signal.SIGTERM)
    out, err = recorder.communicate(timeout=60)
    assert recorder.returncode == 0, err
    recording = Recording(to)
    assert not recording.warnings and recording.account.balanced
    assert json.loads(out)["ledgers"] == recording.account.as_json()["ledgers"]
    found = list(recording.exchanges())
    targets = sorted(e.request.head.split(b" ")[1].decode() for e in found)
    assert targets == sorted(f"/{c}/{n}" for c in range(20) for n in range(3))
    assert not any(e.faults for e in found)
    assert recording.account.ledger("packets").drops["other_interface"] > 0
    assert len({part.name.split(".")[0] for part in to.iterdir()}) == 2


@pytest.fixture
def idle(net: Net) -> Iterator[list[str]]:
    """Interfaces as of containers on which nothing happens."""
    names = ["lfd1", "lfd2"]
    for name in names:
        net.must("-n", net.middle, "link", "add", name, "type", "veth", "peer", "name", f"{name}p")
        net.must("-n", net.middle, "link", "set", name, "up")
        net.must("-n", net.middle, "link", "set", f"{name}p", "up")
    yield names
    for name in names:
        ip("-n", net.middle, "link", "del", name)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interface_that_is_gone_ends_nothing_and_the_last_one_ends_it_whole(
    net: Net, idle: list[str], tmp_path: Path, processes: int
) -> None:
    to = tmp_path / "r.lf"
    options = ["--interface", "v1", *(word for name in idle for word in ("--interface", name))]
    if processes > 1:
        options += ["--processes", str(processes)]
    command = [sys.executable, "-m", "livefire", "--keys", str(tmp_path / "keys"), "record", "--to", str(to)]
    recorder = subprocess.Popen(
        ["ip", "netns", "exec", net.middle, *command, *options, "--port", "8000", "--unmasked"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert recorder.stderr is not None
    assert any("rings on v1, lfd1, lfd2" in line for line in recorder.stderr)
    net.get(3, 5)
    net.must("-n", net.middle, "link", "del", "lfd1")
    assert any("goes on with" in line and "v1, lfd2" in line for line in recorder.stderr)
    net.get(3, 5)
    recorder.send_signal(signal.SIGTERM)
    _, err = recorder.communicate(timeout=60)
    assert recorder.returncode == 0, err
    recording = Recording(to)
    assert not recording.warnings and recording.account.balanced and recording.count == 30
    assert recording.account.notes["gone.lfd1"] == processes

    to = tmp_path / "last.lf"
    command[command.index("--to") + 1] = str(to)
    recorder = subprocess.Popen(
        ["ip", "netns", "exec", net.middle, *command, "--interface", "lfd2", *options[6:]],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert recorder.stderr is not None
    assert any("on lfd2" in line for line in recorder.stderr)
    net.must("-n", net.middle, "link", "set", "lfd2", "down")  # of which alone the kernel tells
    net.must("-n", net.middle, "link", "del", "lfd2")
    net.must("-n", net.middle, "link", "add", "lfd2", "type", "veth", "peer", "name", "lfd2p")  # another one
    _, err = recorder.communicate(timeout=60)
    assert recorder.returncode == 2
    assert "0 exchanges in" in err and err.splitlines()[-1] == "livefire: lfd2: capture stopped: the interface is gone"
    recording = Recording(to)
    assert recording.account.balanced and (recording.end is None or recording.end.reason == "failed")
