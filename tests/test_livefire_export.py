"""A recording as a .gor and as lines of curl: what is in them is what is stored, and what cannot be is counted."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from capture import export
from capture.goreplay import SEPARATOR
from livefire.cli import cli
from livefire.errors import USER_ERRORS
from livefire.recording import Recording
from tests.raw_recordings import write_raw
from wire.records import Exchange, Fault, Framing, Mode, Request, Response

AT = 1_700_000_000_000_000_000
POST = Request(b"POST /a?b=%20 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n", b"a'b", 3, Framing.LENGTH)
OK = Response(200, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"hi", 2, Framing.LENGTH)
CHUNKED = Response(
    200, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n", b"chunk", 5, Framing.CHUNKED,
    trailers=b"X: 1\r\n",
)  # fmt: skip


def exchange(number: int, request: Request = POST, response: Response | None = OK, **more: object) -> Exchange:
    start = AT + number * 1000
    return Exchange(
        number.to_bytes(16, "big"), b"s" * 16, b"c" * 16, "1.2.3.4:5", "5.6.7.8:80", request, response,
        start, start, start + 500 if response else 0, start + 500 if response else 0, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def run(tmp_path: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(cli, ["--keys", str(tmp_path / "keys.yaml"), *arguments])
    if isinstance(result.exception, USER_ERRORS):
        result.exit_code = 2
    return result


def test_what_goreplay_reads_comes_back_byte_for_byte(tmp_path: Path) -> None:
    found = [
        exchange(1),
        exchange(2, response=CHUNKED),
        exchange(3, Request(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), None),
        exchange(4, Request(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"), Response(200, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")),
        exchange(5, response=Response(200, b"HTTP/1.1 200 OK\r\n\r\n", b"until close", 11, Framing.CLOSE)),
        exchange(6, Request(b"GET /6 HTTP/1.1\nHost: x\n\n"), mode=Mode.LENIENT),
        exchange(7),
    ]  # fmt: skip
    write_raw(tmp_path / "a.lf", found)
    result = run(tmp_path, "export", str(tmp_path / "a.lf"), "--to", str(tmp_path / "a.gor"), "--json")
    assert json.loads(result.stdout) == {"exchanges": 7, "written": 7, "left_out": {}, "answers_left_out": {}}
    assert os.stat(tmp_path / "a.gor").st_mode & 0o077 == 0
    assert run(tmp_path, "import", "--unmasked", str(tmp_path / "a.gor"), "--to", str(tmp_path / "b.lf")).exit_code == 0
    again = list(Recording(tmp_path / "b.lf").exchanges())
    assert [(e.request, e.request_start_ns, e.response) for e in again] == [
        (e.request, e.request_start_ns, e.response) for e in found
    ]


def test_what_cannot_be_exported_is_counted_and_nothing_is_written_over(tmp_path: Path) -> None:
    request = Request(b"POST / HTTP/1.1\r\n\r\n", b"a", 9, Framing.LENGTH, truncated_bytes=8)
    found = [
        exchange(1, mode=Mode.OPAQUE),
        exchange(2, faults=(Fault.AMBIGUOUS,)),
        exchange(3, request),
        exchange(4, Request(b"POST / HTTP/1.1\r\n\r\n", truncated_bytes=-1)),
        exchange(5, Request(POST.head, b"a", 3, Framing.LENGTH, 2)),
        exchange(6, Request(b"CONNECT a:1 HTTP/1.1\r\n\r\n")),
        exchange(7, Request(b"")),
        exchange(8, Request(POST.head, b"a" + SEPARATOR, 12, Framing.LENGTH)),
        exchange(9, response=Response(200, b"HTTP/1.1 200 OK\r\n\r\n", b"", 7, truncated_bytes=7)),
        exchange(10, Request(POST.head, b"a", 1, Framing.LENGTH), faults=(Fault.UNFINISHED,)),
    ]
    write_raw(tmp_path / "a.lf", found)
    result = run(tmp_path, "export", str(tmp_path / "a.lf"), "--to", str(tmp_path / "a.gor"), "--json")
    told = json.loads(result.stdout)
    assert told["left_out"] == dict.fromkeys(
        ("opaque", "ambiguous", "truncated", "no_body", "gap", "tunnel", "no_request", "separator", "unfinished"), 1
    )
    assert told["written"] == 1 and told["answers_left_out"] == {"answer_not_whole": 1}
    assert "left out: 1 ambiguous" in result.stderr
    assert run(tmp_path, "export", str(tmp_path / "a.lf"), "--to", str(tmp_path / "a.gor")).exit_code == 2
    assert run(tmp_path, "export", str(tmp_path / "a.lf"), "--to", str(tmp_path / "a.txt")).exit_code == 2


@pytest.fixture(scope="module")
def fake_curl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A curl that prints its arguments and stdin, each behind a NUL."""
    folder = tmp_path_factory.mktemp("bin")
    script = '#!/bin/sh\nfor a in "$@"; do printf \'%s\\000\' "$a"; done\ncase "$*" in *@-*) cat;; esac\n'
    (folder / "curl").write_text(script)
    (folder / "curl").chmod(0o755)
    return folder


WILD = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f"), max_size=20)
NASTY = st.sampled_from(
    ["'", "$(touch x)", "`id`", '"; rm -rf /', "@/etc/passwd", "\\", "a'b\"c$HOME", "-o x", "!x", "%s"]
)


@settings(max_examples=60, deadline=None)
@given(
    target=st.one_of(WILD, NASTY),
    value=st.one_of(WILD, NASTY),
    body=st.one_of(st.binary(max_size=60), NASTY.map(str.encode), st.just(b"@/etc/passwd"), st.just(b"\x00'\\")),
)
def test_a_line_of_curl_is_what_the_shell_makes_of_it(fake_curl: Path, target: str, value: str, body: bytes) -> None:
    wanted = b"/" + target.encode().replace(b" ", b"%20")
    value_bytes = value.strip().encode()
    head = b"POST " + wanted + b" HTTP/1.1\r\nX-A: " + value_bytes + b"\r\nContent-Length: %d\r\n\r\n" % len(body)
    line, why = export.curl(exchange(1, Request(head, body, len(body), Framing.LENGTH)))
    if why:
        assert why in ("opaque", "field")
        return
    env = {"PATH": f"{fake_curl}:{os.environ['PATH']}", "TARGET": "http://t:1"}
    done = subprocess.run(["sh", "-c", line], capture_output=True, env=env, timeout=20, check=True)
    assert done.stderr == b""
    *arguments, stdin = done.stdout.split(b"\0") if b"@-" not in line else _split(done.stdout)
    assert arguments[-1] == b"http://t:1" + wanted
    field = arguments[arguments.index(b"-X") + 3]
    assert field == (b"X-A: " + value_bytes if value_bytes else b"X-A;")
    sent = stdin if b"@-" in arguments else arguments[arguments.index(b"--data-raw") + 1]
    assert sent == body


def _split(out: bytes) -> list[bytes]:
    """Arguments, and what came by stdin; the last argument is the URL."""
    at = out.index(b"\0", out.index(b"http://t:1"))
    return [*out[:at].split(b"\0"), out[at + 1 :]]


def test_a_script_without_a_target_sends_nothing(fake_curl: Path, tmp_path: Path) -> None:
    write_raw(tmp_path / "a.lf", [exchange(1), exchange(2, Request(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n"))])
    assert run(tmp_path, "export", str(tmp_path / "a.lf"), "--to", str(tmp_path / "a.sh")).exit_code == 0
    env = {"PATH": f"{fake_curl}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", str(tmp_path / "a.sh")], capture_output=True, env=env, timeout=20)
    assert done.returncode != 0 and done.stdout == b"" and b"TARGET" in done.stderr
    done = subprocess.run(
        ["sh", str(tmp_path / "a.sh")], capture_output=True, env=env | {"TARGET": "http://t"}, timeout=20
    )
    assert done.stdout.count(b"http://t/") == 2 and b"--request-target\0*\0" in done.stdout


def test_curl_sends_the_host_and_the_version_that_were_recorded() -> None:
    """With the curl that is here, to a socket that keeps what comes."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl")
    heads = [
        b"GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"GET /2 HTTP/1.1\r\nHost:\r\n\r\n",
        b"GET /3 HTTP/1.1\r\nX-A: 1\r\n\r\n",
        b"GET /4 HTTP/1.0\r\n\r\n",
        b"GET /5 HTTP/1.0\r\nHost: a.test\r\nX-A: 1\r\n\r\n",
    ]
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        env = os.environ | {"TARGET": f"http://127.0.0.1:{server.getsockname()[1]}", "NO_PROXY": "*"}
        for head in heads:
            line, why = export.curl(exchange(1, Request(head)))
            assert not why
            with subprocess.Popen(["sh", "-c", line], env=env) as sent:
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(20)
                    found = b""
                    while not found.endswith(b"\r\n\r\n"):
                        found += connection.recv(4096)
                    connection.sendall(b"HTTP/1.0 204 No Content\r\n\r\n")
            assert found == head and sent.returncode == 0


@pytest.mark.parametrize("second", [b"Host: b.test", b"host: a.test", b"HOST:"])
def test_a_request_with_two_hosts_is_no_line_of_curl_which_would_send_one(tmp_path: Path, second: bytes) -> None:
    request = Request(b"GET / HTTP/1.1\r\nHost: a.test\r\n" + second + b"\r\n\r\n")
    assert export.curl(exchange(1, request)) == (b"", "hosts")
    write_raw(tmp_path / "a.lf", [exchange(1, request), exchange(2)])
    result = run(tmp_path, "export", str(tmp_path / "a.lf"), "--to", str(tmp_path / "a.sh"), "--json")
    assert json.loads(result.stdout)["left_out"] == {"hosts": 1} and json.loads(result.stdout)["written"] == 1
