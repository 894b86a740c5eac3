"""Every command end to end, on a tiny real system: a server of this process, recorded, cleansed, fired at, drilled."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pcap_build import Conversation, write

from bus.logfile import LogReader, account_of
from livefire import cli
from livefire.recording import Recording
from livefire.story import Story
from livefire_shadow.marker import HEADER

EXCHANGE = {
    "session", "client", "server", "method", "target", "host", "request_start_ns", "request_body_bytes",
    "request_body_sha256", "status", "response_start_ns", "response_body_bytes", "response_body_sha256",
    "missing_bytes", "mode",
}  # fmt: skip
PERCENTILES = {"p50", "p90", "p95", "p99", "p999", "max"}
SECRET = "tr0ub4dor-and-3"  # of the traffic; no file may hold it
CLI_PAGE = (Path(__file__).resolve().parent.parent / "docs" / "cli.md").read_text()


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


class Shop(ThreadingHTTPServer):
    """Answers everything with a token of its own, and counts what is marked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.marked = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def at(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Shop

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get(HEADER):
            with self.server.lock:
                self.server.marked += 1
        body = b'{"ok": true, "token": "fixed"}'
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.wfile.write(head.encode() + body)

    do_GET = do_POST = _answer

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Stage:
    """The working folder, and what is in it: raw.lf, clean.lf, a capture."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shop = Shop()
        self.raw, self.clean, self.capture = folder / "raw.lf", folder / "clean.lf", folder / "talk.pcap"
        self.options = ["--runs", str(folder / "runs"), "--keys", str(folder / "keys.json")]

    def argv(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "livefire", *self.options, *map(str, arguments)]

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(*arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell's background job ignores Ctrl-C, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def until(what: Callable[[], Any], seconds: float = 10.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("stage"))
    talk = Conversation().open()
    for number in range(3):
        talk.client(b"GET /things/%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
        talk.server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    write(stage.capture, talk.close().packets)
    _record(stage)
    yield stage
    stage.shop.shutdown()
    stage.shop.server_close()


def _record(stage: Stage) -> None:
    port = free_port()
    proxy = f"127.0.0.1:{port}={stage.shop.at}"
    recorder = stage.start("record", "--proxy", proxy, "--to", stage.raw, "--stdin-guard", "--json")
    until(lambda: listening(port))
    for user in range(6):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for number in range(20):
            connection.request("GET", f"/things/{number}?password={SECRET}", headers={"Cookie": f"user={user}"})
            connection.getresponse().read()
            time.sleep(0.002)
        if user == 0:
            connection.request(
                "POST", "/things", json.dumps({"password": SECRET}), {"Content-Type": "application/json"}
            )
            connection.getresponse().read()
        connection.close()
    out, err = recorder.communicate(timeout=20)  # closes its stdin
    stage.recorded = Said(recorder.returncode, out, err)  # type: ignore[attr-defined]
    done = subprocess.run(
        stage.argv("cleanse", stage.raw, "--to", stage.clean, "--json"), capture_output=True, text=True
    )
    stage.cleansed = Said(done.returncode, done.stdout, done.stderr)  # type: ignore[attr-defined]
    assert done.returncode == 0, done.stderr


@pytest.fixture
def livefire(stage: Stage, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs the command line in this process: an import of all of it a command would take most of the time."""
    monkeypatch.chdir(stage.folder)

    def run(*arguments: object) -> Said:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["livefire", *stage.options, *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        signal.signal(signal.SIGTERM, before)
        said = capfd.readouterr()
        assert "Traceback" not in said.err
        if "--json" in arguments:
            words = [str(word) for word in arguments]
            assert undocumented(next(word for word in words if word in cli.COMMANDS), said.out) == []
        return Said(int(ended.value.code or 0), said.out, said.err)

    return run


def undocumented(command: str, out: str) -> list[str]:
    """Fields of what a command printed that its section of docs/cli.md does not name."""
    sections = re.split(r"^## ", CLI_PAGE, flags=re.MULTILINE)
    text = "".join(s for s in sections if s.startswith((f"`livefire {command}`", "`livefire show`")))
    fields = {field for line in out.splitlines() for field in json.loads(line)}
    named = set(re.findall(r"`(\w+)`", text))
    return [] if command == "config" else sorted(fields - named)  # of config they are the settings' names


def test_a_field_that_is_not_in_the_documentation_is_found() -> None:
    assert undocumented("replay", '{"planned": 1, "surprise": 2}') == ["surprise"]
    assert undocumented("outcomes", '{"due_ns": 1}\n{"due_s": 1}') == ["due_s"]


# -- recording


def test_record_says_which_source_and_why_and_counts_exchanges(stage: Stage) -> None:
    code, out, err = stage.recorded  # type: ignore[attr-defined]
    assert code == 0, err
    assert json.loads(out)["balanced"] is True
    assert any(line.startswith("recording by proxy: ") for line in err.splitlines())
    assert "121 exchanges" in err  # not messages, of which there are twice as many
    assert "masked before writing: " in err
    assert SECRET.encode() not in stage.raw.read_bytes() + stage.clean.read_bytes()


def test_show_has_every_field_in_the_order_of_time(stage: Stage, livefire: Callable[..., Said]) -> None:
    lines = livefire("show", stage.raw, "--json").lines
    assert len(lines) == 121
    assert all(set(line) == EXCHANGE for line in lines)
    assert [line["request_start_ns"] for line in lines] == sorted(line["request_start_ns"] for line in lines)
    assert {line["server"] for line in lines} == {stage.shop.at}
    assert SECRET not in json.dumps(lines)


def test_show_for_people(stage: Stage, livefire: Callable[..., Said]) -> None:
    raw = livefire("show", stage.raw).out
    assert "121 exchanges in " in raw and f"{stage.shop.at} (121)" in raw and "account balanced" in raw
    clean = livefire("show", stage.clean).out
    assert "GET /things/{id}" in clean and "1 of them may change state" in clean
    account = livefire("show", "--account", stage.raw)
    assert "balanced" in account.out and "packets" not in account.out  # a proxy sees none
    ledgers = livefire("show", "--account", stage.raw, "--json").json
    assert ledgers["balanced"] is True
    assert ledgers["ledgers"]["messages"]["seen"] == 242
    assert ledgers["notes"]["masked.json"] >= 1


@pytest.mark.parametrize("way", ["file", "stdin"])
def test_import(stage: Stage, livefire: Callable[..., Said], tmp_path: Path, way: str) -> None:
    out = tmp_path / "out.lf"
    if way == "file":
        said = livefire("import", stage.capture, "--to", out, "--json")
    else:
        with stage.capture.open("rb") as file:
            done = subprocess.run(
                stage.argv("import", "-", "--to", out, "--json"), stdin=file, capture_output=True, text=True
            )
        said = Said(done.returncode, done.stdout, done.stderr)
    assert said.code == 0, said.err
    assert said.json["balanced"] is True
    assert f"{out}: 3 exchanges of " in said.err
    assert len(livefire("show", out, "--json").lines) == 3


def test_import_says_what_was_cut_off_and_what_is_no_http(
    stage: Stage, livefire: Callable[..., Said], tmp_path: Path
) -> None:
    (tmp_path / "cut.pcap").write_bytes(stage.capture.read_bytes()[:-7])
    assert "was cut off" in livefire("import", tmp_path / "cut.pcap", "--to", tmp_path / "cut.lf").err
    write(tmp_path / "other.pcap", Conversation().open().client(b"\x00\x01\x02" * 50).close().packets)
    assert "no HTTP was in it" in livefire("import", tmp_path / "other.pcap", "--to", tmp_path / "other.lf").err


# -- cleansing


def test_cleanse_tells_routes_and_flows(stage: Stage) -> None:
    found = stage.cleansed.json  # type: ignore[attr-defined]
    assert found["account"]["balanced"] is True
    assert {route["name"]: route["count"] for route in found["routes"]} == {"GET /things/{id}": 120, "POST /things": 1}
    assert isinstance(found["flows"], list)


def test_a_cleanse_that_keeps_nothing_says_where_to_look(
    stage: Stage, livefire: Callable[..., Said], tmp_path: Path
) -> None:
    said = livefire("cleanse", stage.raw, "--to", tmp_path / "none.lf", "--server", ":1")
    assert "121 other" in said.out and "nothing was kept" in said.err
    assert livefire("replay", tmp_path / "none.lf", "--target", f"http://{stage.shop.at}").code == 2


# -- firing


def test_replay_and_what_can_be_asked_of_it(stage: Stage, livefire: Callable[..., Said], tmp_path: Path) -> None:
    target = f"http://{stage.shop.at}"
    before = stage.shop.marked
    said = livefire(
        "replay", stage.clean, "--target", target, "--copies", 2, "--spread", "200ms", "--skip-unsafe", "--json"
    )
    assert said.code == 0, said.err
    got = said.json
    assert got["planned"] == got["sent"] + got["shed"] + got["unknown"] == 240
    assert got["sent"] == got["answered"] + got["failed"] == stage.shop.marked - before
    for name in ("latency_ms", "service_ms", "send_error_ms"):
        assert set(got[name]) == PERCENTILES
    assert got["latency_ms"]["p99"] is None, "240 samples are too few for p99"
    assert got["cpu_s"] > 0
    run = got["run_id"]
    assert f"run {run}: 1 x 1 x 2 = 2x = " in said.err

    outcomes = livefire("outcomes", run, "--json").lines
    assert len(outcomes) == 240 and {o["run_id"] for o in outcomes} == {run}
    assert f"run {run}: 240 shots" in livefire("outcomes").out  # the latest
    assert livefire("outcomes", run[-6:], "--failed", "--json").out == ""
    for arguments in ([], ["--over", "1s"], ["--every", "1s"]):  # one of them alone: they tumble
        windows = [w for w in livefire("windows", run, "--json", *arguments).lines if w["route"] == "*"]
        assert sum(w["offered"] for w in windows) == 240, arguments
    slid = [w for w in livefire("windows", "--over", "3s", "--every", "1s", "--json").lines if w["route"] == "*"]
    assert slid and {w["end_ns"] - w["start_ns"] for w in slid} == {3_000_000_000}
    assert f"run {run}: windows of 3s, a new one every 1s" in livefire("windows", "--over", "3s", "--every", "1s").out
    assert "GET /things/{id}" in livefire("windows", "--route", "GET /things/{id}").out
    of_run = livefire("windows", run, "--json", "--every", "2s").lines
    panes = str(stage.folder / "runs" / run / "panes.db")
    assert livefire("windows", run, "--json", "--every", "2s", "--store", panes).lines == of_run
    page = tmp_path / "page.html"
    assert str(page) in livefire("report", "--to", page).out
    assert run in page.read_text()
    assert livefire("stop").out == f"run {run} has ended already\n"


def test_a_replay_that_is_stopped_says_so_and_is_not_fine(stage: Stage, livefire: Callable[..., Said]) -> None:
    before = stage.shop.marked
    slow = stage.start("replay", stage.clean, "--target", stage.shop.at, "--speed", "0.02", "--skip-unsafe", "--json")
    until(lambda: stage.shop.marked > before, 15)
    assert "told to stop" in livefire("stop", "--all", "--reason", "lunch").out
    out, err = slow.communicate(timeout=15)
    assert slow.returncode == 96, err
    got = json.loads(out)
    assert "lunch" in got["reason"]
    assert got["balanced"] and got["planned"] == got["sent"] + got["shed"] + got["unknown"] < 120
    assert livefire("stop", "--all").out == "no run is going on\n"


def test_ctrl_c_ends_a_replay_with_130_and_its_account(stage: Stage) -> None:
    before = stage.shop.marked
    slow = stage.start("replay", stage.clean, "--target", stage.shop.at, "--speed", "0.02", "--skip-unsafe", "--json")
    until(lambda: stage.shop.marked > before, 15)
    slow.send_signal(signal.SIGINT)
    out, err = slow.communicate(timeout=15)
    assert slow.returncode == 130, err
    assert json.loads(out)["balanced"]
    assert err.splitlines()[-1] == "livefire: stopped"


def test_a_target_that_never_answers_is_inconclusive(stage: Stage, livefire: Callable[..., Said]) -> None:
    said = livefire("replay", stage.clean, "--target", f"127.0.0.1:{free_port()}", "--skip-unsafe", "--speed", "5")
    assert said.code == 96
    assert "nothing was answered" in said.err and "failed: no connection" in said.out


def test_drill(stage: Stage, livefire: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "recording: ${recording}\ntarget: ${target}\nspread: 100ms\nsteps: [{load: 1x, for: 3s}]\n"
        "thresholds: [p50 < 1us]\n"
    )
    fill = ["--set", f"recording={stage.clean}", "--set", f"target=http://{stage.shop.at}"]
    page = tmp_path / "drill.html"
    monkeypatch.setenv("LIVEFIRE_KIBANA", "https://kibana.example:5601/s/ops")
    said = livefire("drill", plan, *fill, "--disposable-target", "--json", "--report", page)
    assert said.code == said.json["exit_code"] == 99, said.err
    assert said.json["account"]["balanced"] and said.json["account"]["answered"] > 0
    assert page.exists()
    addresses = [line for line in said.err.splitlines() if line.startswith("Kibana: ")]
    dashboard = "Kibana: https://kibana.example:5601/s/ops/app/dashboards#/view/livefire-dashboard-drill?"
    assert [line.startswith(dashboard) and said.json["run_id"] in line for line in addresses] == [True, True]
    assert ["to:'now'" in line for line in addresses] == [True, False]  # as it begins, and of what it was
    monkeypatch.setenv("LIVEFIRE_KIBANA", "kibana:5601")
    refused = livefire("drill", plan, *fill, "--disposable-target")
    assert (refused.code, len(refused.err.splitlines()), refused.out) == (2, 1, "")
    monkeypatch.delenv("LIVEFIRE_KIBANA")
    refused = livefire("drill", plan, *fill[:2], "--set", "target=http://169.254.169.254", "--disposable-target")
    assert (refused.code, len(refused.err.splitlines()), refused.out) == (2, 1, "")
    assert "link-local" in refused.err


def test_a_drill_whose_target_refuses_connections_tells_so(
    stage: Stage, livefire: Callable[..., Said], tmp_path: Path
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        f"recording: {stage.clean}\ntarget: http://127.0.0.1:{free_port()}\nspread: 100ms\n"
        "steps: [{load: 1x, for: 2s}]\nthresholds: [p50 < 1s]\n"
    )
    said = livefire("drill", plan, "--disposable-target", "--json")
    assert said.code == 96
    [why] = [reason for reason in said.json["reasons"] if reason.startswith("nothing was answered")]
    count = said.json["account"]["failures"]["connect"]
    assert count == said.json["account"]["failed"] > 0
    assert why == f"nothing was answered at the lowest load; of all shots {count:,} failed: no connection"
    assert f"  {count:,} failed: no connection" in said.err.splitlines()


@pytest.mark.parametrize("what", ["replay", "drill"])
def test_who_reads_what_is_told_does_not_end_what_acts(stage: Stage, tmp_path: Path, what: str) -> None:
    """As in `livefire drill plan.yaml | head -1`: the verdict is the same, with all that was to be fired."""
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        f"recording: {stage.clean}\ntarget: http://{stage.shop.at}\nspread: 100ms\nsteps: [{{load: 1x, for: 2s}}]\n"
        "thresholds: [p50 < 1us]\n"
    )
    asked = {
        "replay": ("replay", stage.clean, "--target", f"127.0.0.1:{free_port()}", "--skip-unsafe", "--speed", "5"),
        "drill": ("drill", plan, "--disposable-target"),
    }
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(stage.argv(*asked[what]), stdout=writer, stderr=writer)
    os.close(writer)
    assert process.wait(timeout=60) == {"replay": 96, "drill": 99}[what]


@pytest.mark.parametrize("nohup", [False, True])
def test_a_terminal_that_is_closed_ends_a_recorder_whole_or_is_outlived(
    stage: Stage, tmp_path: Path, nohup: bool
) -> None:
    to, port = tmp_path / "closed.lf", free_port()
    command = stage.argv("record", "--proxy", f"127.0.0.1:{port}={stage.shop.at}", "--to", to)
    outlive = ["nohup"] if nohup else []
    process = subprocess.Popen(
        [*outlive, *command], stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # whoever runs the tests may outlive it
    )  # fmt: skip
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith("recording by proxy"):
        assert line, process.wait()
    os.killpg(process.pid, signal.SIGHUP)  # as a terminal does: to all that it started
    if nohup:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as client:
            client.request("GET", "/")
            assert client.getresponse().read()
        process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0 and f"{to}: {int(nohup)} exchange" in err
    assert not Recording(to).warnings and Recording(to).end is not None


def test_what_found_no_room_is_counted_and_told(stage: Stage, tmp_path: Path) -> None:
    """A file may have no more than 400 KB: a disk that is full to the end. What it holds is what is said to be in it."""
    to, port = tmp_path / "small.lf", free_port()
    command = stage.argv("record", "--proxy", f"127.0.0.1:{port}={stage.shop.at}", "--unmasked", "--to", to, "--json")
    process = subprocess.Popen(
        ["bash", "-c", 'ulimit -f 400; exec "$@"', "bash", *map(str, command)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None and process.stdout is not None
    while not (line := process.stderr.readline()).startswith("recording by proxy"):
        assert line, process.wait()
    sent = 0
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as client:
        said = []
        deadline = time.monotonic() + 60
        reader = threading.Thread(target=lambda: said.extend(process.stderr), daemon=True)  # type: ignore[arg-type]
        reader.start()
        while not any("no room on the disk" in line for line in said) and time.monotonic() < deadline:
            client.request("POST", f"/none/{sent}", os.urandom(5000).hex().encode())
            client.getresponse().read()
            sent += 1
        for _ in range(20):  # these find no room either
            client.request("POST", f"/none/{sent}", os.urandom(5000).hex().encode())
            client.getresponse().read()
            sent += 1
    process.send_signal(signal.SIGTERM)
    out = process.stdout.read()
    assert process.wait(timeout=60) == 2
    reader.join(timeout=10)
    held = len(list(Recording(to).exchanges()))
    messages = json.loads(out)["ledgers"]["messages"]
    assert messages["difference"] == 0
    assert messages["emitted"] == 2 * held > 0
    assert messages["drops"]["no_room"] == messages["seen"] - 2 * held > 0
    assert any(f"{to}: {held} exchanges in" in line for line in said)
    assert any("no room on the disk: what comes is given up" in line for line in said)
    assert "what came last is not in the file" in said[-1]
    ledger = account_of(to).ledger("messages")
    told = (ledger.seen, ledger.emitted, ledger.drops, ledger.difference)
    assert told == (messages["seen"], 2 * held, messages["drops"], 0) or to.stat().st_size > 396 << 10


def test_clients_of_an_upstream_that_is_not_there_are_told_of(stage: Stage, tmp_path: Path) -> None:
    to, port, nobody = tmp_path / "reset.lf", free_port(), free_port()
    command = stage.argv("record", "--proxy", f"127.0.0.1:{port}=127.0.0.1:{nobody}", "--for", "30s", "--to", to)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said: list[str] = []
    while not (line := process.stderr.readline()).startswith("recording by proxy"):
        assert line, process.wait()
    for _ in range(3):
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        with contextlib.closing(client), pytest.raises((OSError, http.client.HTTPException)):
            client.request("GET", "/")
            client.getresponse()
    while not (line := process.stderr.readline()).endswith("could not be reached\n"):
        assert line, process.wait()
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[1].splitlines()
    assert f"3 connections of clients reset: 127.0.0.1:{nobody} could not be reached" in said
    assert not any("did clients come to it" in line for line in said)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full: of Linux")
@pytest.mark.parametrize("words", ["2>/dev/full", ">/dev/full 2>&1", "2>&-", ">&-", "<&- >&- 2>&-"])
def test_a_recorder_whose_words_cannot_be_written_records_on(stage: Stage, tmp_path: Path, words: str) -> None:
    """A log on a full disk, a terminal that is gone, or none to begin with."""
    to, port = tmp_path / "mute.lf", free_port()
    command = stage.argv("record", "--proxy", f"127.0.0.1:{port}={stage.shop.at}", "--to", to, "--json")
    process = subprocess.Popen(["sh", "-c", f'exec "$@" {words}', "sh", *map(str, command)])
    deadline = time.monotonic() + 60
    answered = 0
    while answered < 3 and time.monotonic() < deadline and process.poll() is None:
        with (
            contextlib.suppress(OSError),
            contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as client,
        ):
            client.request("GET", "/")
            assert client.getresponse().read()
            answered += 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    recording = Recording(to)
    assert not recording.warnings and recording.end is not None and recording.end.count == 3


def test_a_recorder_whose_words_nobody_reads_records_on(stage: Stage, tmp_path: Path) -> None:
    """As when its terminal is gone."""
    recorded, port = tmp_path / "on.lf", free_port()
    reader, writer = os.pipe()
    arguments = ("record", "--proxy", f"127.0.0.1:{port}={stage.shop.at}", "--to", recorded)
    process = subprocess.Popen(stage.argv(*arguments), stdout=writer, stderr=writer)
    os.close(writer)
    with open(reader) as words:
        assert words.readline().startswith("recording by proxy")
    for number in range(12):  # it says something every five seconds
        with contextlib.closing(
            http.client.HTTPConnection(stage.shop.at.partition(":")[0], port, timeout=20)
        ) as client:
            client.request("GET", f"/on/{number}")
            assert client.getresponse().read()
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise AssertionError(f"it ended with {process.wait(0.6)}")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
    with LogReader(recorded) as log:
        while log.read():
            pass
        assert log.ended
    found = subprocess.run(stage.argv("show", recorded, "--json"), capture_output=True, text=True, check=True).stdout
    assert [json.loads(line)["target"] for line in found.splitlines()] == [f"/on/{number}" for number in range(12)]


def test_what_is_wrong_with_a_recording_is_told_by_all_who_use_it(
    stage: Stage, livefire: Callable[..., Said], tmp_path: Path
) -> None:
    raw, clean = tmp_path / "cut.lf", tmp_path / "cut-clean.lf"
    raw.write_bytes(stage.raw.read_bytes()[:-50])
    clean.write_bytes(stage.clean.read_bytes()[:-50])
    target = ("--target", f"http://{stage.shop.at}", "--speed", "5", "--skip-unsafe")
    for path, said in (
        (raw, livefire("cleanse", raw, "--to", tmp_path / "c.lf")),
        (raw, livefire("learn", raw, "--to", tmp_path / "l.lf")),
        (clean, livefire("replay", clean, *target)),
    ):
        assert said.code == 0 and f"livefire: {path}: has no end mark" in said.err, said
    for whole in (livefire("cleanse", stage.raw, "--to", tmp_path / "w.lf"), livefire("replay", stage.clean, *target)):
        assert whole.code == 0 and "end mark" not in whole.err, whole
    plan = tmp_path / "plan.yaml"
    plan.write_text(f"recording: {clean}\ntarget: http://{stage.shop.at}\nsteps: [{{load: 1x, for: 1s}}]\n")
    assert f"{clean}: has no end mark" in livefire("drill", plan, "--disposable-target").out
    data = bytearray(stage.clean.read_bytes())
    data[2000:-200] = bytes(len(data) - 2200)
    clean.write_bytes(data)
    said = livefire("replay", clean, *target)
    assert (said.code, len(said.err.splitlines())) == (2, 1), said
    assert "holds no exchange to fire" in said.err and "damaged place" in said.err


def test_mock(stage: Stage) -> None:
    port = free_port()
    mock = stage.start("mock", stage.raw, "--listen", f"127.0.0.1:{port}", "--server", stage.shop.at)
    assert mock.stderr is not None
    assert mock.stderr.readline() == f"121 recorded answers, at http://127.0.0.1:{port}\n"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/things/1")
    assert connection.getresponse().status == 403, "unmarked"
    mock.send_signal(signal.SIGINT)
    _, err = mock.communicate(timeout=10)
    assert err == "0 served, 0 unmatched, 1 refused\n"
    assert mock.returncode == 0


# -- the rest


def test_keys_config_and_doctor(stage: Stage, livefire: Callable[..., Said], tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    assert livefire("--keys", file, "keys", "new").code == 0
    shown = livefire("--keys", file, "keys", "show", "--json").json
    exported = livefire("--keys", file, "keys", "export").out.strip()
    assert exported.partition(":")[0] == shown["markers"][0]["id"]
    assert exported.partition(":")[2] not in json.dumps(shown)
    shown = livefire("config", "show", "--json").json
    assert shown["runs"] == {"value": str(stage.folder / "runs"), "origin": "option --runs"}
    findings = {finding["name"]: finding for finding in livefire("doctor", "--json").lines}
    assert findings["keys"]["fine"] and {"packet ring", "capabilities", "open files", "timer"} <= set(findings)
    assert all(finding["fine"] or finding["mend"] for finding in findings.values()) and "bus" not in findings
    bus = {finding["name"]: finding for finding in livefire("--bus", "kafka://127.0.0.1:1", "doctor", "--json").lines}
    assert not bus["bus"]["fine"] and "no broker answers" in bus["bus"]["detail"]


@pytest.mark.parametrize("alone", [[], ["keys"], ["config"]], ids=["livefire", "keys", "config"])
def test_alone_it_prints_its_help(alone: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "livefire", *alone], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: livefire" in done.stdout


WRONG: list[tuple[str, str]] = [
    ("show", "FILE is missing"),
    ("show absent.lf", "no such file"),
    ("show .", "is a folder"),
    ("show /dev/null", "/dev/null: is empty"),
    ("show runs", "runs: is a folder without a recording in it (no raw-*.lf)"),
    ("show talk.pcap", "livefire import"),
    ("show --acount raw.lf", "did you mean '--account'"),
    ("show raw.lf --runs x", "stands before the command: livefire --runs"),
    ("import absent.pcap --to x.lf", "no such file"),
    ("import raw.lf --to x.lf", "Livefire file already"),
    ("import talk.pcap --to raw.lf", "is there already"),
    ("import talk.pcap --to absent/x.lf", "no folder absent"),
    ("import talk.pcap --to .", "is a directory"),
    ("import talk.pcap --to x.lf --mask absent.yaml", "no such file"),
    ("record --to x.lf --for 5", "'--for': '5' is not a duration: did you mean 5s?"),
    ("record --to x.lf --engine proxy", "--proxy LISTEN=UPSTREAM"),
    ("record --to x.lf --proxy nonsense", "write it as LISTEN=UPSTREAM"),
    (
        "record --to x.lf --proxy 127.0.0.1:{port}=nosuch.invalid:80",
        "proxy to nosuch.invalid:80: there is no such host",
    ),
    ("record --to - --proxy 127.0.0.1:{port}=127.0.0.1:2 --for 1s", "--to -: a recording is a file"),
    ("record --to x.lf --vxlan 4789", "--vxlan 4789: write it as :4789"),
    ("record --to x.lf --proxy 127.0.0.1:{port}=127.0.0.1:2 --not-host 127.0.0.1 --for 1s", "--not-host with --proxy"),
    ("record --to x.lf --proxy 127.0.0.1:{port}=127.0.0.1:2 --max-cpu 2500 --for 1s", "this machine has"),
    ("record --to raw.lf --proxy 127.0.0.1:{port}=127.0.0.1:2 --for 1s", "raw.lf"),
    ("cleanse clean.lf --to x.lf", "is clean already"),
    ("cleanse raw.lf --to clean.lf", "exists already"),
    ("cleanse raw.lf --to x.lf --until noon", "2026-11-20T12:00:00Z"),
    ("cleanse raw.lf --to x.lf --server nonsense", "write ip:port"),
    ("cleanse raw.lf --to x.lf --from 2026-11-20T12:00 --until 2026-11-20T11:00", "is not before"),
    ("report --to raw.lf", "raw.lf: exists, and is no report page"),
    ("replay clean.lf", "target is missing"),
    ("replay raw.lf --target {shop} --skip-unsafe", "livefire cleanse raw.lf"),
    ("replay clean.lf --target {shop}", "--disposable-target"),
    ("replay clean.lf --target https://a --skip-unsafe", "https is not supported"),
    ("replay clean.lf --target http://169.254.169.254 --skip-unsafe", "is refused"),
    ("replay clean.lf --target http://[fe80::1] --skip-unsafe", "is refused"),
    ("replay clean.lf --target {shop}/path --skip-unsafe", "paths come from the recording"),
    ("replay clean.lf --target {shop} --skip-unsafe --speed 0", "'--speed': '0' is not a number above 0"),
    ("replay clean.lf --target {shop} --skip-unsafe --copies nan", "'--copies'"),
    ("replay clean.lf --target {shop} --skip-unsafe --max-rate fast", "'--max-rate': 'fast' is not a rate"),
    ("replay clean.lf --target {shop} --skip-unsafe --spread 10", "did you mean 10s?"),
    ("replay clean.lf --target {shop} --skip-unsafe --timeout 0s", "above 0"),
    ("replay clean.lf --target {shop} --skip-unsafe --workers 0", "'--workers'"),
    ("replay clean.lf --target {shop} --skip-unsafe --accounts absent.csv", "absent.csv: no such file"),
    ("drill absent.yaml", "no such plan"),
    ("drill raw.lf --set x", "write it as NAME=VALUE"),
    ("windows NOPE", "no run 'NOPE'"),
    ("windows --over 1s --every 2s", "--over 1s is less than --every 2s"),
    ("windows --over 5", "did you mean 5s?"),
    ("windows --over 0s", "--over 0s: a window has a length above 0"),
    ("stop NOPE", "no run 'NOPE'"),
    ("mock raw.lf --listen nonsense", "write host:port"),
    ("mock raw.lf --listen {at} --server {at}", "already in use"),
    ("mock raw.lf --listen 127.0.0.1:1 --server 10.0.0.1:1", "121 other_server"),
    ("keys new", "exists already"),
    ("keys shwo", "did you mean 'show'"),
    ("--keys talk.pcap/keys.json keys new", "a file where a folder should be"),
    ("--keys talk.pcap keys show", "talk.pcap"),
    ("--runs talk.pcap/runs replay clean.lf --target {shop} --skip-unsafe", "a file where a folder should be"),
    ("--log-level loud doctor", "not one of debug"),
    ("demo --system absent.yaml", "no such file"),
    ("demo --dir .", "no earlier demo made it"),
    ("demo --dir talk.pcap/demo", "a file where a folder should be"),
    ("--nonsense", "no option --nonsense"),
]


@pytest.mark.parametrize(("line", "told"), WRONG, ids=[line.replace("/", ":") for line, _ in WRONG])
def test_wrong_input_is_one_line_and_exit_code_2(
    stage: Stage, livefire: Callable[..., Said], line: str, told: str
) -> None:
    (stage.folder / "runs" / "01M7XRZHKHYSPJRTCTGBVB0H5R").mkdir(parents=True, exist_ok=True)
    arguments = line.format(shop=f"http://{stage.shop.at}", at=stage.shop.at, port=free_port()).split()
    before = {path: path.read_bytes() for path in stage.folder.glob("*.*") if path.is_file()}
    said = livefire(*arguments)
    lines = [part for part in said.err.splitlines() if not part.startswith("run ")]
    assert (said.code, len(lines)) == (2, 1), said
    assert told in lines[0]
    assert said.out == ""
    assert all(path.read_bytes() == data for path, data in before.items()), "something was changed"


def test_ctrl_c_while_it_loads_is_no_traceback() -> None:
    program = """
import os, signal, sys
class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
import livefire.__main__
livefire.__main__.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_progress_is_one_line_on_a_terminal_and_lines_elsewhere() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen, pipe = Terminal(), io.StringIO()
    for stream in (screen, pipe):
        story = Story(stream, every_s=0.0)
        story.progress("1 of 2")
        story.progress("2 of 2")
        story.line("done")
        story.chapter("next")
        story.line("indented")
    assert screen.getvalue() == "\r\x1b[2K1 of 2\r\x1b[2K2 of 2\r\x1b[2Kdone\n\n1. next\n   indented\n"
    assert pipe.getvalue() == "1 of 2\n2 of 2\ndone\n\n1. next\n   indented\n"


def test_a_closed_pipe_is_no_error(stage: Stage) -> None:
    reader, writer = os.pipe()
    process = subprocess.Popen(
        stage.argv("show", stage.raw, "--json"), stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    os.close(reader)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, "")
