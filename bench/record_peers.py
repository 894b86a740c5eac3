"""Who records in the recorder's bench: Livefire as its users start it, and its peers. How each is started, when it is
ready, how it is ended, what it wrote, and what it admits to have lost.

What is in a peer's file is found by looking for the first lines of requests and of answers.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from record_bed import ASKED, ROOT, pinned

_STATUS_LINE = b"HTTP/1.1 200 OK"
_PATIENCE_S = 20.0
_DROPPED = re.compile(r"(\d+) packets? dropped by (?:kernel|interface)")


class Written(NamedTuple):
    """What a recorder's file holds, and what the recorder says that it lacks."""

    requests: set[int]  # the numbers in their targets
    answers: int  # whole ones
    admitted: int  # packets or messages that the recorder says it lost
    balanced: bool | None = None  # Livefire's account
    said: str = ""  # what was lost, in its words


class Recorder:
    """One process beside the traffic. Raises SystemExit where it does not begin."""

    def __init__(self, name: str, file: Path, where: set[int], port: int, gor: str = "") -> None:
        self.name, self.file, self.port = name, file, port
        self.target = port  # where clients are to go
        self._said = file.with_name("said.txt")
        self._told = file.with_name("told.txt")
        command, sign = self._command(gor)
        environment = os.environ | {"LIVEFIRE_KEYS": str(file.with_name("keys.json")), "PYTHONPATH": str(ROOT)}
        with self._said.open("w") as said, self._told.open("w") as told:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=told, stderr=said,
                preexec_fn=pinned(where),
            )  # fmt: skip
        until = time.monotonic() + _PATIENCE_S
        while not re.search(sign, self.text):
            if self.process.poll() is not None or time.monotonic() > until:
                self.end()
                raise SystemExit(f"{name} does not begin: {self.text.strip()}")
            time.sleep(0.05)
        time.sleep(0.3)

    @property
    def text(self) -> str:
        return self._said.read_text(errors="replace") + self._told.read_text(errors="replace")

    def _command(self, gor: str) -> tuple[list[str], str]:
        """And what it says when it has begun."""
        if self.name == "tcpdump":
            selected = ["-i", "lo", "-w", str(self.file), "-B", "32768", "-s", "0", "port", str(self.port)]
            return ["tcpdump", *selected], "listening on"
        if self.name == "goreplay":
            how = ["--input-raw-track-response", "--input-raw-buffer-size", "64mb", "--output-file-append"]
            return [gor, "--input-raw", f"127.0.0.1:{self.port}", *how, "--output-file", str(self.file)], "Interface:"
        if self.name == "floor":
            return [sys.executable, str(Path(__file__)), str(self.port)], "reads"
        command = [sys.executable, "-m", "livefire", "record"]
        if self.name == "proxy":
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.target = free.getsockname()[1]
            command += ["--proxy", f"127.0.0.1:{self.target}=127.0.0.1:{self.port}"]
        else:
            command += ["--interface", "lo", "--port", str(self.port)]
        command += ["--to", str(self.file), "--json", "--stdin-guard"]
        return command + (["--unmasked"] if self.name == "unmasked" else []), "until Ctrl-C"

    def end(self) -> None:
        if self.process.poll() is None:
            assert self.process.stdin is not None
            if self.name in ("tcpdump", "goreplay"):
                self.process.send_signal(signal.SIGINT)
            else:
                self.process.stdin.close()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()

    def written(self) -> Written | None:
        """After `end`. None for a recorder that writes nothing."""
        if self.name == "floor":
            return None
        if self.name in ("tcpdump", "goreplay"):
            return found_in(self.file, self.text)
        if self.process.returncode:
            raise SystemExit(f"{self.name} failed: {self.text.strip()}")
        account = json.loads(self._told.read_text())
        return _livefire(self.file, account)


def found_in(file: Path, said: str) -> Written:
    """Of a peer's file, and of what it said when it ended."""
    admitted = sum(map(int, _DROPPED.findall(said)))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        answers = sum(1 for _ in re.finditer(_STATUS_LINE, data))
        return Written({int(number) for number in ASKED.findall(data)}, answers, admitted)


def _livefire(file: Path, account: dict[str, Any]) -> Written:
    from bus.logreader import LogReader
    from wire import codec
    from wire.codec import RecordType

    requests: set[int] = set()
    answers = 0
    with LogReader(file) as reader:
        while messages := reader.read():
            for message in messages:
                batch = codec.decode(message.data)
                if batch.header.type != RecordType.EXCHANGE:
                    continue
                for one in batch.records:
                    if found := ASKED.match(one.request.head):
                        requests.add(int(found.group(1)))
                        answers += one.response is not None and not one.response.missing_bytes
    ledgers = account["ledgers"]
    lost = {f"packets.{name}": count for name, count in ledgers["packets"]["drops"].items() if name == "kernel"}
    lost |= {f"messages.{name}": count for name, count in ledgers["messages"]["drops"].items()}
    if unanswered := account["notes"].get("unanswered"):
        lost["unanswered"] = unanswered
    said = ", ".join(f"{name} {count}" for name, count in lost.items())
    return Written(requests, answers, sum(lost.values()), account["balanced"], said)


def missing(gor: str) -> dict[str, str]:
    """Of each peer that is not here, how to get it."""
    lines = {}
    if shutil.which("tcpdump") is None:
        lines["tcpdump"] = "tcpdump is not installed: no comparison with it (apt install tcpdump)"
    if not gor:
        lines["goreplay"] = "no comparison with GoReplay: build it, and name it with --goreplay PATH; see docs/speed.md"
    return lines


def floor(port: int) -> None:
    """The ring, read and thrown away, until stdin ends: what no recorder in this language can undercut."""
    import select

    from capture.bpf import Selection
    from capture.source_ring import RingSource
    from wire.account import Account

    class Sink:
        account = Account()
        lane = None
        packets = 0

        def packet(self, ts_ns: int, data: bytes, wire_len: int, linktype: int = 1, interface: str = "") -> None:
            self.packets += 1

        def kernel_dropped(self, count: int) -> None: ...

    sink, ring = Sink(), RingSource("lo", Selection(ports=(port,)))
    print("reads", flush=True)
    while not select.select([0], [], [], 0)[0]:
        ring.feed(sink, 0.05)
    ring.finish(sink)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "sdk" / "src")]
    floor(int(sys.argv[1]))
