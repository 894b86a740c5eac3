"""What other tools' files give: every line, entry and record ends in the account; what a file does not hold is not made up."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from pcap_build import Conversation, pcap

from bus.logfile import LogReader, account_of
from capture import access_log, alb, goreplay, har
from capture.combined import combined, is_combined
from capture.entry import Entry, Reject
from capture.importing import Choice, check, detect, entries_of
from capture.lines import MAX_LINE, Input
from capture.log_format import LogFormat
from livefire.cli import cli
from livefire.errors import USER_ERRORS
from tests.capture_corpus import corpus
from wire import codec
from wire.account import Account
from wire.codec import RecordType
from wire.config import ConfigError
from wire.records import Exchange, Fault

AGENT = '"Mozilla/5.0 (\\"x\\") \\\\ y"'
LINE = f'10.0.0.7 - - [07/Dec/2016:10:43:18 +0100] "GET /a?b=1 HTTP/1.1" 200 571 "-" {AGENT}\n'
POST = '10.0.0.7 - bob [07/Dec/2016:10:43:19 +0100] "POST /orders HTTP/1.1" 201 20 "-" "curl/8"\n'
MONKEYS = goreplay.SEPARATOR


def run(tmp_path: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(cli, ["--keys", str(tmp_path / "keys.yaml"), *arguments])
    if isinstance(result.exception, USER_ERRORS):  # as `livefire.cli.main` tells them
        result.exit_code = 2
    return result


def told(result: Result) -> str:
    return f"{result.stderr}{result.exception if isinstance(result.exception, USER_ERRORS) else ''}"


def imported(tmp_path: Path, data: bytes | str, *options: str, name: str = "input") -> tuple[list[Exchange], Account]:
    source, to = tmp_path / name, tmp_path / "out.lf"
    source.write_bytes(data if isinstance(data, bytes) else data.encode())
    to.unlink(missing_ok=True)
    result = run(tmp_path, "import", "--unmasked", str(source), "--to", str(to), *options)
    assert result.exit_code == 0, result.output
    account = account_of(to)
    assert account.balanced, account.as_json()
    return list(exchanges(to)), account


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (LINE, "1 exchange of 1 line;"),
        (LINE + POST, "2 exchanges of 2 lines;"),
        (b"1 aa 1000000000\nGET / HTTP/1.1\r\nHost: a\r\n\r\n" + MONKEYS, "1 exchange of 1 message;"),
    ],
)
def test_what_is_said_of_it_is_what_is_in_it(tmp_path: Path, data: bytes | str, says: str) -> None:
    (tmp_path / "input").write_bytes(data if isinstance(data, bytes) else data.encode())
    done = run(tmp_path, "import", str(tmp_path / "input"), "--to", str(tmp_path / "out.lf"))
    assert says in done.stderr
    assert len(list(exchanges(tmp_path / "out.lf"))) == int(says[0])


def test_a_damaged_gzip_is_not_called_empty(tmp_path: Path) -> None:
    whole = gzip.compress(LINE.encode())
    for data, says in ((whole[:30], "cannot be unpacked"), (gzip.compress(b""), "is empty"), (b"", "is empty")):
        (tmp_path / "log.gz").write_bytes(data)
        done = run(tmp_path, "import", str(tmp_path / "log.gz"), "--to", str(tmp_path / "out.lf"))
        assert done.exit_code == 2 and says in told(done), told(done)


def exchanges(path: Path) -> list[Exchange]:
    found: list[Exchange] = []
    with LogReader(path) as reader:
        while messages := reader.read():
            for message in messages:
                if codec.decode_header(message.data).type is RecordType.EXCHANGE:
                    found += codec.decode(message.data).records
    return found


# -- logs


def test_a_line_of_the_combined_format_is_an_exchange_without_bodies(tmp_path: Path) -> None:
    (get, post), account = imported(tmp_path, LINE + POST)
    assert get.request.head == b'GET /a?b=1 HTTP/1.1\r\nUser-Agent: Mozilla/5.0 ("x") \\ y\r\n\r\n'
    assert get.request_start_ns == 1481103798 * 10**9 and get.client == "10.0.0.7:0"
    assert get.response is not None and (get.response.status, get.response.body_bytes) == (200, 571)
    assert get.response.truncated_bytes == 571 and get.response.body == b""
    assert get.request.truncated_bytes == 0 and post.request.truncated_bytes == -1 and Fault.TRUNCATED in post.faults
    assert account.notes["request_bodies_not_in_file"] == 1 and account.notes["no_host"] == 2
    assert get.session_id != post.session_id  # another agent


def test_lines_of_one_second_stay_in_their_order(tmp_path: Path) -> None:
    """Whatever sorts by time later breaks ties by ids, which are hashes."""
    lines = "".join(LINE.replace("/a?b=1", f"/{letter}") for letter in "abcdefghijklmnop")
    found, _ = imported(tmp_path, lines)
    found.sort(key=lambda e: (e.request_start_ns, e.exchange_id))
    assert [e.request.head.split(b" ")[1].decode() for e in found] == [f"/{letter}" for letter in "abcdefghijklmnop"]
    assert found[-1].request_start_ns - found[0].request_start_ns == 15
    assert all(e.request_start_ns <= e.request_end_ns <= e.response_start_ns <= e.response_end_ns for e in found)


def test_a_post_of_a_log_is_not_cleansed_into_an_empty_one(tmp_path: Path) -> None:
    imported(tmp_path, LINE + POST, "--host-header", "shop.test")
    result = run(tmp_path, "cleanse", str(tmp_path / "out.lf"), "--to", str(tmp_path / "clean.lf"), "--json")
    assert result.exit_code == 0, result.output
    shown = run(tmp_path, "show", str(tmp_path / "clean.lf"), "--json")
    assert [json.loads(line)["method"] for line in shown.stdout.splitlines()] == ["GET"]
    drops = [ledger.drops for ledger in account_of(tmp_path / "clean.lf").ledgers.values()]
    assert {"no_body": 1} in drops


def test_bad_lines_are_counted_by_reason_and_told_with_their_number(tmp_path: Path) -> None:
    text = LINE + "xxxx\n\n" + '1.1.1.1 - - [07/Dec/2016:10:43:18 +0100] "-" 408 0 "-" "-"\n'
    text += LINE.replace("Dec", "Dez") + "x" * (MAX_LINE + 5) + "\n" + LINE.replace("GET /a?b=1", "CONNECT a:1") + LINE
    found, account = imported(tmp_path, text)
    ledger = account.ledger("entries")
    assert len(found) == 2 and ledger.seen == 8
    assert ledger.drops == {"bad_line": 1, "bad_request": 1, "bad_time": 1, "too_long": 1}
    assert ledger.intentional == {"blank": 1, "connect": 1}
    to = tmp_path / "two.lf"
    said = told(run(tmp_path, "import", str(tmp_path / "input"), "--to", str(to)))
    assert "line 2: bad_line" in said and "line 4: bad_request" in said


INGRESS = (
    '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" "$http_user_agent" '
    "$request_length $request_time [$proxy_upstream_name] [$proxy_alternative_upstream_name] $upstream_addr "
    "$upstream_response_length $upstream_response_time $upstream_status $req_id"
)


@pytest.mark.parametrize("form", ["", INGRESS])
@pytest.mark.parametrize(
    "upstreams",
    [
        "10.1.2.3:80 12 0.003 200",
        "10.1.2.3:80, 10.1.2.4:80 0, 12 0.100, 0.003 502, 200",
        "10.1.2.3:80 : 10.1.2.4:80 0 : 12 0.100 : 0.003 502 : 200",
        "a:1, b:2 : c:3, d:4 0, 0 : 0, 1 0.1, 0.1 : 0.1, 0.1 502, 502 : 502, 200",
        "a:1, b:2, c:3 0, 0, 1 0.1, 0.1, 0.1 502, 502, 200",
        "- - - -",
    ],
)
def test_the_default_format_of_ingress_nginx(tmp_path: Path, form: str, upstreams: str) -> None:
    line = LINE.rstrip("\n") + f" 87 0.250 [default-web-80] [] {upstreams} 0d1f2e3c4b5a69788796a5b4c3d2e1f0\n"
    (found,), _ = imported(tmp_path, line, *(["--log-format", form] if form else []))
    assert found.request.head == b'GET /a?b=1 HTTP/1.1\r\nUser-Agent: Mozilla/5.0 ("x") \\ y\r\n\r\n'
    assert found.response_end_ns - found.request_start_ns == 250_000_000
    assert found.response is not None and found.response.body_bytes == 571


@pytest.mark.parametrize(
    ("url", "target", "host"),
    [
        ("http://a.b/x?", "/x?", "a.b"),
        ("http://a.b/x?y=1&z", "/x?y=1&z", "a.b"),
        ("http://a.b", "/", "a.b"),
        ("http://u:p@a.b:81?", "/?", "a.b:81"),
        ("https://a.b//c//d?e=http://f/?#g", "//c//d?e=http://f/?", "a.b"),
        ("http://[2001:db8::1]/x;p?", "/x;p?", "[2001:db8::1]"),
    ],
)
def test_a_target_in_absolute_form_keeps_what_it_holds(tmp_path: Path, url: str, target: str, host: str) -> None:
    for text in (LINE.replace("/a?b=1", url), ALB.format(status=200, request=f"GET {url}")):
        (found,), _ = imported(tmp_path, text)
        assert found.request.head.startswith(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n".encode()), text


def test_what_a_balancer_escapes_is_undone_alike() -> None:
    for escaped in (r"\"c\"", r"\x22c\x22"):
        text = ALB.replace(r"\"x\"", escaped).format(status=200, request=f"GET http://a:80/b={escaped}")

        class Text(Input):
            def __init__(self, text: str) -> None:
                self.name, self.cut, self.said, self._left = "x", False, [], text.encode()

            def read(self, wanted: int) -> bytes:
                piece, self._left = self._left[:wanted], self._left[wanted:]
                return piece

        (found,) = alb.entries(Text(text))
        assert isinstance(found, Entry)
        assert found.request.head == b'GET /b="c" HTTP/1.1\r\nHost: a\r\nUser-Agent: curl "c"\r\n\r\n'


def test_a_mark_of_utf_8_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    (one, two), _ = imported(tmp_path, mark + (LINE + LINE).encode())
    assert one.client == two.client == "10.0.0.7:0"
    (found,), _ = imported(tmp_path, gzip.compress(mark + ALB.format(status=200, request="GET http://a:80/").encode()))
    assert found.client == "1.2.3.4:46"


def test_times_of_the_combined_format_may_have_a_fraction(tmp_path: Path) -> None:
    (found,), account = imported(tmp_path, LINE.replace(":18 +", ":18.250 +"))
    assert found.request_start_ns == 1481103798_250_000_000 and "times_of_seconds" not in account.notes


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ('escape=json {"t":"$msec","m":"$request_method","u":"$request_uri","p":"$server_protocol","s":$status}',
         '{"t":"1481103798.0","m":"GET","u":"/a","p":"%s","s":200}'),
        ('$msec $request_method $request_uri "$server_protocol" $status', '1481103798.0 GET /a "%s" 200'),
        ("$msec $request_method $request_uri $server_protocol $status", "1481103798.0 GET /a %s 200"),
        ("%{sec}t %m %U %H %s", "1481103798 GET /a %s 200"),
    ],
)  # fmt: skip
def test_a_request_of_no_version_is_none_of_http_1(tmp_path: Path, form: str, line: str) -> None:
    text = "".join(line % version + "\n" for version in ("HTTP/1.1", "", "-", "HTTP/0.9", "HTTP/1.0"))
    found, account = imported(tmp_path, text, "--log-format", form)
    assert [one.request.head.split()[2] for one in found] == [b"HTTP/1.1", b"HTTP/1.0"]
    assert account.ledger("entries").drops == {"bad_version": 3}


def test_a_line_that_lost_its_end_is_not_taken_for_fields_of_the_one_before(tmp_path: Path) -> None:
    found, account = imported(tmp_path, LINE.replace("\n", " ") + LINE + LINE)
    assert len(found) == 1 and account.ledger("entries").drops == {"bad_line": 1}


PIECES = [
    "a",
    " ",
    '"',
    "\\",
    "[",
    "]",
    '] "',
    '[12/Mar/2024:10:00:01 +0000] "GET / HTTP/1.1" 200 5',
    "\t",
    "1.2.3.4",
    ", ",
    '""',
]
SAID = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join)


@settings(max_examples=300, deadline=None)
@given(SAID, SAID, SAID, SAID, st.booleans())
def test_what_clients_say_ends_where_it_ends(user: str, path: str, referer: str, agent: str, apache: bool) -> None:
    """Both servers escape quotes and backslashes, each in its way; spaces and brackets are as they came."""

    def logged(text: str) -> str:
        if apache:
            return text.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t")
        return text.replace("\\", "\\x5C").replace('"', "\\x22").replace("\t", "\\x09")

    line = f'9.8.7.6 - {logged(user)} [12/Mar/2024:10:00:02 +0000] "GET /{logged(path)} HTTP/1.1" 200 77 '
    line += f'"{logged(referer)}" "{logged(agent)}"'
    assert is_combined(line.encode())
    for values in (
        combined(line.encode()),
        LogFormat('%h %l %u %t "%r" %s %b "%{Referer}i" "%{User-Agent}i"').read(line.encode()),
    ):
        assert values is not None
        assert values["request"] == f"GET /{path} HTTP/1.1" and values["remote_addr"] == "9.8.7.6"
        assert (values["http_referer"], values["http_user_agent"]) == (referer, agent)
        assert values.get("time_local", values.get("time_begun")) == "12/Mar/2024:10:00:02 +0000"


@pytest.mark.parametrize("form", ["", '%h %l %u %t "%r" %>s %b "%{Referer}i" "%{User-Agent}i"'])
@pytest.mark.parametrize(
    "user", ['""', r"jo hn [x] \"q\"", "[x]", "[", "] [", " ", "a\\x22b", "x [07/Dec/2016:10:43:17 +0100]", "D\\\\m"]
)
def test_a_user_is_called_what_the_client_liked(tmp_path: Path, form: str, user: str) -> None:
    """Also on the first line, by which a file is known."""
    (found,), _ = imported(tmp_path, LINE.replace(" - - ", f" - {user} "), *(["--log-format", form] if form else []))
    assert found.request.head.startswith(b"GET /a?b=1 HTTP/1.1\r\n") and found.client == "10.0.0.7:0"
    assert found.request_start_ns == 1481103798 * 10**9


def test_a_cut_gzip_is_told_and_what_was_before_it_is_there(tmp_path: Path) -> None:
    packed = gzip.compress((LINE * 3000).encode())
    found, account = imported(tmp_path, packed[:-40], name="access.log.gz")
    assert 0 < len(found) <= 3000 and account.notes["input_cut"] == 1


@pytest.mark.parametrize("cut", ["short", "damaged", "sum", "second", "padded", "more"])
def test_of_a_damaged_gzip_all_comes_that_is_whole(tmp_path: Path, cut: str) -> None:
    """Also of one that is shorter than what is read at once."""
    lines = [LINE.replace("b=1", f"b={hashlib.md5(b'%d' % n).hexdigest()}") for n in range(100)]
    half = gzip.compress("".join(lines[:50]).encode()), gzip.compress("".join(lines[50:]).encode())
    whole = gzip.compress("".join(lines).encode())
    damaged = whole[: len(whole) // 2] + bytes(50) + whole[len(whole) // 2 + 50 :]
    data = {"short": whole[:-900], "damaged": damaged, "sum": whole[:-8] + b"sumssums", "second": half[0] + half[1][:-400],
            "padded": half[0] + half[1] + bytes(600), "more": half[0] + b"what is no gzip"}[cut]  # fmt: skip
    assert len(data) < 1 << 16
    found, account = imported(tmp_path, data, name="access.log.gz")
    least, most = {"short": (50, 80), "damaged": (20, 60), "sum": (100, 100), "second": (60, 99), "padded": (100, 100),
                   "more": (50, 50)}[cut]  # fmt: skip
    assert least <= len(found) <= most
    assert account.notes.get("input_cut", 0) == (cut != "padded")
    for number in range(len(found) - 2):
        assert found[number].request.head.split()[1].decode() in lines[number]
    said = told(run(tmp_path, "import", str(tmp_path / "access.log.gz"), "--to", str(tmp_path / "again.lf")))
    assert ("cannot be read on: at byte" in said) == (cut != "padded")


@pytest.mark.parametrize(
    ("form", "line"),
    [
        (
            '$remote_addr [$time_iso8601] $host "$request" $status $request_time ${body_bytes_sent}b "$http_x_user_id"',
            '1.2.3.4 [2026-11-21T10:00:01+00:00] shop "PUT /a HTTP/2.0" 204 0.250 0b "\\x22q\\x22"',
        ),
        (
            'log_format x escape=json \'{"t": "$time_iso8601",\'\n \'"m":"$request_method","u":"$request_uri",\'\n'
            ' \'"h":"$host","s":$status,"d":$request_time,"x":"$http_x_user_id","p":"$server_protocol","a":"$remote_addr"}\';',
            '{"a":"1.2.3.4","m":"PUT","u":"/a","h":"shop","s":204,"d":0.250,"x":"\\"q\\"","p":"HTTP/2.0",'
            '"t":"2026-11-21T10:00:01+00:00"}',
        ),
    ],
)
def test_a_log_format_of_nginx(tmp_path: Path, form: str, line: str) -> None:
    (found,), _ = imported(tmp_path, line + "\n", "--log-format", form)
    assert found.request.head == b'PUT /a HTTP/1.1\r\nHost: shop\r\nX-User-Id: "q"\r\n\r\n'
    assert found.request_start_ns == 1795255200_750_000_000 and found.response_end_ns == 1795255201 * 10**9
    assert found.protocol == "http/2" and found.client == "1.2.3.4:0"


@pytest.mark.parametrize(
    "form", ['escape=json {"t":"$time_iso8601","r":"$request","s":"$status","u":"$http_user_agent"}']
)
@pytest.mark.parametrize("raw", [b"caf\xe9", "caf\u00e9".encode(), b"\xc3", b"\xed\xb3\xa9"])
def test_bytes_in_a_log_of_json_stay_what_they_are(tmp_path: Path, form: str, raw: bytes) -> None:
    """escape=json leaves those of 0x80 and more alone, and what a client sends need not be UTF-8."""
    line = b'{"t":"2026-11-21T10:00:01+00:00","r":"GET /%s?q=1 HTTP/1.1","s":"200","u":"\\"%s\\u0009"}\n' % (raw, raw)
    (found,), _ = imported(tmp_path, line, "--log-format", form)
    assert found.request.head == b'GET /%s?q=1 HTTP/1.1\r\nUser-Agent: "%s\t\r\n\r\n' % (raw, raw)


def test_json_whose_values_are_escaped_as_in_text(tmp_path: Path) -> None:
    """As it comes when escape=json was forgotten."""
    form = '{"t":"$time_iso8601","r":"$request","s":"$status","u":"$http_user_agent"}'
    line = '{"t":"2026-11-21T10:00:01+00:00","r":"GET /\\xC3\\xa9 HTTP/1.1","s":"200","u":"\\x22\\x5Cx41\\x22 \\xE9"}\n'
    (found,), _ = imported(tmp_path, line, "--log-format", form)
    assert found.request.head == b'GET /\xc3\xa9 HTTP/1.1\r\nUser-Agent: "\\x41" \xe9\r\n\r\n'


def test_a_log_format_as_it_was_copied() -> None:
    """With its quotes, in one piece or two; quotes of the line itself stay."""
    line = b'1.2.3.4 [21/Nov/2026:10:00:00 +0000] "GET /a HTTP/1.1" 200'
    for form in (
        """'$remote_addr [$time_local] "$request" $status'""",
        """'$remote_addr [$time_local] ' '"$request" $status';""",
        """$remote_addr [$time_local] "$request" $status""",
        """log_format main '$remote_addr [$time_local] ' # 'x' and y\n    '"$request" $status';""",
    ):
        assert LogFormat(form).read(line) is not None, form
    assert LogFormat('"$msec" "$request"').read(b'"1795255200.000" "GET /a HTTP/1.1"') is not None


def test_a_log_format_of_apache() -> None:
    form = LogFormat('%h %l %u %t \\"%r\\" %>s %b %D \\"%{X-Id}i\\"')
    values = form.read(b'1.1.1.1 - - [07/Dec/2016:10:43:18 +0100] "GET / HTTP/1.1" 200 - 1500 "a\\"b"')
    assert values is not None and (values["http_x_id"], values["body_bytes_sent"]) == ('a"b', "0")
    entry = access_log.entry(1, values, "")
    assert entry.request_start_ns == 1481103798 * 10**9 and entry.response_end_ns - entry.request_start_ns == 1_500_000


def test_a_body_of_no_bytes_is_one_in_json_as_in_text() -> None:
    form = LogFormat('{"t":"%t","r":"%r","s":"%>s","b":"%b"}')
    values = form.read(b'{"t":"[07/Dec/2016:10:43:18 +0100]","r":"GET / HTTP/1.1","s":"200","b":"-"}')
    assert values is not None and values["body_bytes_sent"] == "0"


@pytest.mark.parametrize("sent", [b"1.1.1.1 - ", b"a, ", b"a : ", b"1.1.1.1, "])
def test_no_line_of_a_client_takes_long(sent: bytes) -> None:
    """Work grows with the length of a line, not with its square: a steep one would not come to an end."""
    line = sent * (20_000 // len(sent)) + b'a 1.1.1.1 - - [12/Mar/2024:10:00:01 +0000] "GET / HTTP/1.1" 2000 5'
    for headers in ("%{X-Forwarded-For}i %h %{X-Real-IP}i %A", "%{Via}i %h %{X-A}i %{X-B}i %{X-C}i %{X-D}i %A"):
        assert LogFormat(headers + ' %l %u %t "%r" %>s %b').read(line) is None
    begin = b'1.1.1.1 - - [12/Mar/2024:10:00:01 +0000] "GET / HTTP/1.1" 200 5 "-" "-"'
    assert combined(begin + b" [01/Jan/2020:x" * 20_000) is not None


LOGGED = 1710237601 * 10**9  # 2024-03-12 10:00:01 UTC


@pytest.mark.parametrize(
    "form",
    [
        r'LogFormat "%h %l %u %t \"%r\" %>s %b \"%{Referer}i\"" combined',
        r"""LogFormat '%h %l %u %t "%r" %>s %b "%{Referer}i"' combined""",
        r'CustomLog "|/usr/bin/rotatelogs \"x\" 5" "%h %l %u %t \"%r\" %>s %b \"%{Referer}i\""',
        r'CustomLog "logs/access_log" "%h %l %u %t \"%r\" %>s %b \"%{Referer}i\"" env=!dontlog',
        r'"%h %l %u %t \"%r\" %>s %b \"%{Referer}i\""',
        r'%h\t%l %u %t "%r" %>s %b "%{Referer}i"',
        r'"$remote_addr - $remote_user [$time_local] \"$request\" $status $body_bytes_sent \"$http_referer\""',
    ],
)
def test_a_format_as_the_manuals_write_it(form: str) -> None:
    between = b"\t" if r"\t" in form else b" "
    values = LogFormat(form).read(
        b'1.1.1.1%s- - [12/Mar/2024:10:00:01 +0000] "GET / HTTP/1.1" 200 5 "http://x/"' % between
    )
    assert values is not None and (values["remote_addr"], values["http_referer"]) == ("1.1.1.1", "http://x/")
    assert access_log.entry(1, values, "").request_start_ns == LOGGED


def test_a_tab_of_a_configuration_is_one() -> None:
    """As in LTSV; of a format without quotes it is what it is."""
    line = b"time:2024-03-12T10:00:01+00:00\treq:GET /a HTTP/1.1\tstatus:200"
    pieces = r"'time:$time_iso8601\treq:$request\t' 'status:$status'"
    for form in (f"log_format ltsv {pieces};", pieces):
        assert (LogFormat(form).read(line) or {})["request"] == "GET /a HTTP/1.1"
    bare = LogFormat(r"time:$time_iso8601\treq:$request\tstatus:$status")
    assert bare.read(line) is None and bare.read(line.replace(b"\t", b"\\t")) is not None


@pytest.mark.parametrize(
    ("form", "line", "zone"),
    [
        ("%{sec}t", "1710237601", True),
        ("%{msec}t", "1710237601250", True),
        ("%{begin:usec}t", "1710237601250000", True),
        ("%{sec}t.%{msec_frac}t", "1710237601.250", True),
        ("%{%s}t %{usec_frac}t", "1710237601 250000", True),
        ("[%{%d/%b/%Y:%H:%M:%S %z}t]", "[12/Mar/2024:11:00:01 +0100]", True),
        ("%{%d/%b/%Y %T}t.%{msec_frac}t %{%z}t", "12/Mar/2024 05:00:01.250 -0500", True),
        ("%{%FT%T%z}t", "2024-03-12T10:00:01+0000", True),
        ("%{%F %T}t", "2024-03-12 10:00:01", False),
        # Told several times: the finest holds.
        ("%{sec}t %{msec}t", "1710237601 1710237601250", True),
        ("%{sec}t %{%F %T}t", "1710237601 2024-03-12 10:00:01", True),
        ("%{sec}t %{msec_frac}t %{usec_frac}t", "1710237601 250 250000", True),
    ],
)
def test_times_of_apache(form: str, line: str, zone: bool) -> None:
    """Also beside %t, which has seconds; a directive may hold spaces, as what is behind it may."""
    for log_format, text in ((form, line), (f"%t {form}", f"[12/Mar/2024:10:00:01 +0000] {line}")):
        read = LogFormat(f'{log_format} %u "%r" %>s %D').read(f'{text} jo hn "GET / HTTP/1.1" 200 1000'.encode())
        assert read is not None
        entry = access_log.entry(1, read, "")
        assert entry.request_start_ns - LOGGED == (250_000_000 if "25" in line else 0)
        assert entry.response_end_ns - entry.request_start_ns == 1_000_000
        assert ("times_without_zone" in entry.notes) is not zone


def test_a_time_of_apache_may_be_of_the_end() -> None:
    read = LogFormat('%{end:msec}t "%r" %>s %D').read(b'1710237601250 "GET / HTTP/1.1" 200 1000')
    assert read is not None and access_log.entry(1, read, "").response_end_ns == LOGGED + 250_000_000
    with pytest.raises(access_log.Missing):
        read = LogFormat('%{%F %T}t "%r" %>s').read(b'2024-13-12 10:00:01 "GET / HTTP/1.1" 200')
        access_log.entry(1, read or {}, "")


@pytest.mark.parametrize(
    "proxies", ["9.9.9.9, 8.8.8.8", "9.9.9.9", "-", "a b, 9.9.9.9", "x 9.9.9.9", "::1, unknown, 9.9.9.9:80"]
)
def test_an_address_is_one_where_a_header_without_quotes_holds_spaces(proxies: str) -> None:
    form = LogFormat('%{X-Forwarded-For}i %h %l %u %t "%r" %>s %b')
    for client in ("1.2.3.4", "2001:db8::1"):
        values = form.read(f'{proxies} {client} - jo hn [12/Mar/2024:10:00:01 +0000] "GET / HTTP/1.1" 200 5'.encode())
        assert values is not None and values["remote_addr"] == client
        assert values.get("http_x_forwarded_for", "-") == proxies
    named = form.read(b'9.9.9.9, 8.8.8.8 host.test - - [12/Mar/2024:10:00:01 +0000] "GET / HTTP/1.1" 200 5')
    assert named is not None and named["remote_addr"] == "host.test"


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("no variables", "has no variable"),
        ("$remote_addr $status $time_local", "tells no request"),
        ('"$requset" $time_local', "did you mean 'request'"),
        ('"$request" $status', r"tells no time: it needs \$time_local, \$time_iso8601 or \$msec$"),
        ('"$request" $time_loacl', r"\$time_loacl \(did you mean 'time_local'"),
        ('%h "%r"', "tells no time: it needs %t$"),
        ("%h %t %s", "tells no request: it needs %r, or %m and %U$"),
        ('%t.%{msec_frac}T "%{msec_frac}t"', "needs %r"),
        ('%h "%r" %{msec_frac}t', "tells no time: it needs %t$"),
        ('%h "%r" %{%F %T %Q}t', "cannot be read, %{%F %T %Q}t: %Q in it is not known"),
        ('%h "%r" %{mesc}t', "cannot be read, %{mesc}t: did you mean %{sec}t"),
        ('%h "%r" %{%T}t %{%T}t', "a part of it is there twice"),
        ("CustomLog logs/access_log combined", "give the LogFormat of that name"),
    ],
)
def test_a_log_format_that_cannot_be_meant(form: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        LogFormat(form)


ALB = (
    "https 2026-11-21T10:00:01.000000Z app/x/1 1.2.3.4:46 10.0.0.1:80 0.001 0.010 0.002 {status} {status} 34 366 "
    '"{request} HTTP/2.0" "curl \\"x\\"" - - arn "Root=1" "shop" "arn" 0 2026-11-21T10:00:00.900000Z "forward"\n'
)


def test_lines_of_load_balancers_are_paced_by_their_creation(tmp_path: Path) -> None:
    text = ALB.format(status=200, request="GET https://shop.test:443/a?b") + ALB.format(
        status="-", request="POST https://shop.test:8443/b"
    )
    text += "https 2026 nonsense\n" + ALB.format(status=200, request="- http://x:80- -").replace(" HTTP/2.0", "")
    text += '2015-11-07T18:45:33.5Z elb1 1.1.1.1:1 - -1 -1 -1 503 0 0 0 "GET http://e.com:80/ HTTP/1.1" "-" - -\n'
    text += ALB.format(status=200, request="GET http://a:80/late").replace(" 200 200 ", " 504 200 ")
    text += ALB.format(status=200, request="CONNECT https://shop.test:443/")
    found, account = imported(tmp_path, gzip.compress(text.encode()))
    assert account.ledger("entries").intentional == {"connect": 1}
    classic, first, second, late = found
    assert late.response is not None and late.response.status == 200  # the target's own
    assert first.request.head == b'GET /a?b HTTP/1.1\r\nHost: shop.test\r\nUser-Agent: curl "x"\r\n\r\n'
    assert first.request_start_ns == 1795255200_900_000_000 and first.server == "10.0.0.1:80"
    assert first.response is not None and first.response.truncated_bytes == -1
    assert second.response is None and b"Host: shop.test:8443" in second.request.head
    assert classic.response is not None and classic.response.status == 503
    assert account.ledger("entries").drops == {"bad_line": 1, "bad_request": 1}


# -- HAR


def har_of(*entries: dict[str, Any]) -> bytes:
    return b"\xef\xbb\xbf" + json.dumps({"log": {"version": "1.2", "entries": entries}}).encode()


def har_entry(url: str = "https://shop.test/a?b=1#c", **more: Any) -> dict[str, Any]:
    request = {
        "method": "GET",
        "url": url,
        "httpVersion": "h3",
        "headers": [{"name": ":authority", "value": "shop.test"}],
    }
    response = {
        "status": 200,
        "statusText": "OK",
        "headers": [{"name": "Content-Encoding", "value": "br"}, {"name": "Set-Cookie", "value": "a=1\nb=2"}],
        "content": {"size": 4, "text": base64.b64encode(b"\x00\xffab").decode(), "encoding": "base64"},
        "bodySize": -1,
    }
    entry = {"startedDateTime": "2026-11-21T10:00:00.000Z", "time": 30, "request": request | more.pop("request", {})}
    entry["response"] = response | more.pop("response", {})
    entry["timings"] = {"blocked": 5, "dns": -1, "connect": -1, "send": 1, "wait": 20, "receive": 4}
    return entry | more


@pytest.mark.parametrize("more", [{"status": 304}, {"status": 204}, {"status": 101}])
def test_an_answer_that_has_no_body_gets_none_from_the_browsers_cache(tmp_path: Path, more: dict[str, int]) -> None:
    entries = har_entry(response=more), har_entry(request={"method": "HEAD"})
    found, account = imported(tmp_path, har_of(*entries))
    assert [(e.response.body, e.response.body_bytes) for e in found if e.response] == [(b"", 0)] * 2
    assert account.notes["bodies_from_cache"] == 2


def test_an_entry_of_a_har_is_an_exchange_as_http_1(tmp_path: Path) -> None:
    (found,), account = imported(tmp_path, har_of(har_entry()))
    assert found.request.head == b"GET /a?b=1 HTTP/1.1\r\nHost: shop.test\r\n\r\n"
    assert found.response is not None and found.response.body == b"\x00\xffab"
    assert found.response.head == (
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 4\r\n\r\n"
    )  # the text is decoded, so nothing says that it is encoded
    start = 1795255200_000_000_000
    assert (found.request_start_ns, found.response_start_ns) == (start + 5_000_000, start + 26_000_000)
    assert found.protocol == "http/3" and account.notes["bodies_decoded"] == 1


def test_entries_that_give_no_exchange_are_counted_by_reason(tmp_path: Path) -> None:
    data = har_of(
        har_entry(), har_entry("data:text/css,x"), har_entry(""), har_entry(startedDateTime="soon"), har_entry(time={}),
        har_entry(_fromCache="disk"), {}, har_entry(response={"status": 0}),
    )  # fmt: skip
    found, account = imported(tmp_path, data)
    assert len(found) == 2 and sum(e.response is None for e in found) == 1
    ledger = account.ledger("entries")
    assert ledger.drops == {"no_request": 2, "bad_time": 1, "bad_entry": 1}
    assert ledger.intentional == {"not_http": 1, "from_cache": 1} and ledger.seen == 8


@pytest.mark.parametrize(
    ("post", "more", "body", "truncated"),
    [
        ({"mimeType": "text/plain", "text": "\u00e9"}, {}, "\u00e9".encode(), 0),
        ({"mimeType": "text/plain", "text": "\u00e9\u00ff"}, {"bodySize": 2}, b"\xe9\xff", 0),
        ({"params": [{"name": "a b", "value": "c&d"}, {"name": "e", "value": "%20"}]}, {}, b"a+b=c%26d&e=%20", 0),
        (
            {"mimeType": "multipart/form-data; boundary=X", "params": [{"name": "a", "value": "1"}]},
            {},
            b'--X\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--X--\r\n',
            0,
        ),
        ({"mimeType": "multipart/form-data; boundary=X", "params": [{"name": "a", "fileName": "f"}]}, {}, b"", -1),
        (None, {"bodySize": 7}, b"", 7),
        (None, {"bodySize": 0}, b"", 0),
        (None, {"bodySize": -1}, b"", -1),
    ],
)
def test_bodies_of_requests(
    tmp_path: Path, post: dict[str, Any] | None, more: dict[str, Any], body: bytes, truncated: int
) -> None:
    request = {"method": "POST", "postData": post} | more
    (found,), _ = imported(tmp_path, har_of(har_entry(request=request)))
    assert (found.request.body, found.request.truncated_bytes) == (body, truncated)


# -- GoReplay


def record(kind: int, name: str, at: int, payload: bytes) -> bytes:
    return f"{kind} {name} {at} 0\n".encode() + payload


def gor(*records: bytes) -> bytes:
    return MONKEYS.join(records) + MONKEYS


AT = 1_700_000_000_000_000_000
GET = record(1, "aa", AT, b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n")
GOT = record(2, "aa", AT + 5, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")


def test_files_of_goreplay_in_chunks_halves_in_any_order(tmp_path: Path) -> None:
    chunks = {
        "x_10.gor": gor(GOT),
        "x_2.gor": gzip.compress(gor(GET, record(3, "aa", AT + 9, b"HTTP/1.1 200 OK\r\n\r\n"))),
    }
    for name, data in chunks.items():
        (tmp_path / name).write_bytes(data)
    names = [str(tmp_path / name) for name in chunks]
    assert goreplay.in_order(names) == names[::-1]
    result = run(tmp_path, "import", *names, "--to", str(tmp_path / "x.lf"))
    assert result.exit_code == 0, result.output
    (found,) = exchanges(tmp_path / "x.lf")
    assert found.response is not None and found.response.body == b"hi" and not found.faults
    ledger = account_of(tmp_path / "x.lf").ledger("goreplay")
    assert (ledger.seen, ledger.emitted, ledger.intentional) == (3, 2, {"replayed": 1})
    missing = run(tmp_path, "import", str(tmp_path / "x.gor"), "--to", str(tmp_path / "y.lf"))
    assert missing.exit_code == 2 and "there is x_10.gor" in told(missing)


def test_a_last_record_that_is_cut_is_kept_as_unfinished_and_what_is_none_is_counted(tmp_path: Path) -> None:
    found, account = imported(
        tmp_path, gor(GET, GOT) + record(1, "bb", AT + 10, b"POST /2 HTTP/1.1\r\nContent-Length: 9\r\n\r\nab")
    )
    assert [Fault.UNFINISHED in e.faults for e in found] == [False, True]
    found, account = imported(tmp_path, gor(GET, GOT) + b"1 cc 17")
    assert account.ledger("goreplay").drops == {"unreadable": 1} and len(found) == 1


def test_old_versions_of_the_header_line() -> None:
    assert goreplay.decode(b"1 aa 1700000000000000000\nGET").ts_ns == AT
    assert goreplay.decode(b"2 aa 5000 1700000000000000000\nHTTP").ts_ns == AT  # the two swapped


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(st.binary(max_size=40), st.sampled_from([MONKEYS, b"x" + MONKEYS + b"1 aa", GET[:12]])), max_size=5
    ),
    st.integers(1, 70),
)
def test_records_come_out_as_they_went_in_whatever_the_bodies_hold(bodies: list[bytes], size: int) -> None:
    """Also bodies with separators in them, when their length is told; read in pieces of any size."""
    values = [
        record(1, "ab", AT + n, b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        for n, body in enumerate(bodies)
    ]

    class Pieces(Input):
        def __init__(self) -> None:
            self._left = gor(*values) if values else b""

        def read(self, wanted: int) -> bytes:
            piece, self._left = self._left[:size], self._left[size:]
            return piece

    assert list(goreplay.records(Pieces())) == values


# -- which is which


@pytest.mark.parametrize(
    ("data", "form"),
    [
        (LINE.encode(), "nginx"),
        (b"junk\n" + LINE.encode(), "nginx"),
        (ALB.format(status=200, request="GET http://a:80/").encode(), "alb"),
        (har_of(), "har"),
        (gor(GET), "goreplay"),
        (gzip.compress(gor(GET)), "goreplay"),
        (b"\xd4\xc3\xb2\xa1" + bytes(20), "capture"),
    ],
)
def test_a_format_is_known_by_its_content(tmp_path: Path, data: bytes, form: str) -> None:
    (tmp_path / "x").write_bytes(data)
    assert detect(tmp_path / "x") == form


@pytest.mark.parametrize(
    ("data", "options", "says"),
    [
        (b"", (), "is empty"),
        (b"hello\nworld\n", (), "none of the formats"),
        (b'{"a": 1}\n', (), "--log-format"),
        (b'call({"log": {"entries": []}})', (), "a call of a function (JSONP)"),
        (b'{"log": {"entries": 1}}', (), "is no HAR: expected `array`"),
        (LINE.encode(), ("--format", "alb"), "did you mean --format nginx?"),
        (LINE.encode(), ("--format", "goreplay"), "not: type id time"),
        (LINE.encode(), ("--log-format", "$msec $request;"), "of this log format"),
        (gor(GET), ("--host-header", "x"), "--host-header is for logs"),
        (gor(GET), ("--format", "har"), "is no HAR"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(
    tmp_path: Path, data: bytes, options: tuple[str, ...], says: str
) -> None:
    (tmp_path / "x").write_bytes(data)
    run(tmp_path, "keys", "list")
    result = run(tmp_path, "import", str(tmp_path / "x"), "--to", str(tmp_path / "o.lf"), *options)
    assert result.exit_code == 2 and says in told(result), told(result)
    assert not (tmp_path / "o.lf").exists()


SECRET = "hunter2S3CR3T"
HOLDING: dict[str, tuple[str, str]] = {
    "nginx": (f'10.0.0.7 - {SECRET} [07/Dec/2016:10:43:18 +0100] "GET /{SECRET} HTTP/1.1" 200 5 "{SECRET}" "{SECRET}"', ""),
    "format": (f'1.2.3.4 1795255200.5 "GET http://[{SECRET}/ HTTP/1.1" 200', '$remote_addr $msec "$request" $status'),
    "alb": (
        f'http 2018-07-02T22:23:00.186641Z app/x 192.168.131.39:2817 10.0.0.1:80 0.000 0.001 0.000 200 200 34 366 "GET '
        f'http://{SECRET}:80/{SECRET} HTTP/1.1" "{SECRET}" - - {SECRET}',
        "",
    ),
    "har": (
        json.dumps({"startedDateTime": SECRET, "request": {"method": f"GET {SECRET}", "url": f"data:{SECRET}"},
                    "response": {"status": SECRET, "content": {"text": SECRET, "size": SECRET}}}),
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOLDING)
def test_what_is_said_of_what_cannot_be_read_shows_nothing_of_it(tmp_path: Path, kind: str) -> None:
    """Lines with a secret, damaged anywhere: a file, a number, a reason. As they are they can be read, or nearly."""
    rng, (line, form) = random.Random(7), HOLDING[kind]
    rows = [line]
    for _ in range(150):
        row = list(line)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(row))
            row[at : at + rng.randrange(3)] = rng.choice(
                ['"', "[", "]", " ", "\\", "\x00", "é", "%", "{", ":", "-", ""]
            )
        rows.append("".join(row))
    if kind == "har":
        whole = [json.loads(line)]
        for name in ("method", "url"):
            whole.append(
                {**whole[0], "request": {"method": "GET", "url": f"http://h/{SECRET}", name: f"http://[{SECRET}"}}
            )
        whole += [
            {**whole[1], "startedDateTime": "2026-11-21T10:00:00Z", "request": text} for text in (SECRET, [SECRET])
        ]
        whole.append({"request": {"method": "GET", "url": "http://h/"}, "startedDateTime": SECRET, "response": SECRET})
        files = [json.dumps({"log": {"entries": whole}}), *(f'{{"log": {{"entries": [{row}]}}}}' for row in rows)]
        files.append(f'{SECRET}({{"log": {{"entries": []}}}})')
    else:
        files = ["\n".join(rows) + "\n", *(f"{row}\n" for row in rows[:40])]
    said: list[str] = []
    for text in files:
        path = tmp_path / "input"
        path.write_text(text)
        choice = Choice({"format": "nginx"}.get(kind, kind), form)
        try:
            check(path, choice)
            file = Input(path)
            said += [found.why for found in entries_of(file, choice) if isinstance(found, Reject)]
            file.close()
        except ConfigError as error:
            said.append(str(error))
        with contextlib.suppress(ConfigError):
            detect(path)
    assert len(said) > 30 and len(set(said)) >= 3
    parts = {SECRET[at : at + 6] for at in range(len(SECRET) - 5)}
    assert not [line for line in said if any(part in line for part in parts)]


def test_of_a_gor_that_is_no_gor_nothing_is_shown(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(f"{SECRET}\n")
    result = run(tmp_path, "import", "--format", "goreplay", str(tmp_path / "x"), "--to", str(tmp_path / "o.lf"))
    assert result.exit_code == 2 and "line 1 is not: type id time" in told(result) and "hunter" not in told(result)


def test_a_gor_that_is_cut_off_says_where_and_gives_what_is_whole(tmp_path: Path) -> None:
    body = b"Host: a\r\nContent-Length: 20\r\n\r\n" + b"x" * 20
    rows = [gor(record(1, f"a{n}", AT + n, b"POST /%d HTTP/1.1\r\n" % n + body)) for n in range(5)]
    whole, one = b"".join(rows), rows[0]
    assert imported(tmp_path, whole)[1].notes.get("input_cut") is None
    assert imported(tmp_path, whole.removesuffix(MONKEYS))[1].notes.get("input_cut") is None, "the last may lack it"
    header = one.index(b"\n") + 1
    for keep, why in ((header - 3, "its first line is not whole"), (header + 9, "its head is not whole"),
                      (len(one) - len(MONKEYS) - 7, "its body lacks 7 bytes")):  # fmt: skip
        for packed in (False, True):
            data = whole + one[:keep]
            path = tmp_path / "cut.gor"
            path.write_bytes(gzip.compress(data) if packed else data)
            (tmp_path / "o.lf").unlink(missing_ok=True)
            result = run(tmp_path, "import", "--unmasked", str(path), "--to", str(tmp_path / "o.lf"))
            assert result.exit_code == 0
            assert f"{path}: is cut off in record 6, which begins at byte {len(whole)}: {why}" in told(result)
            assert account_of(tmp_path / "o.lf").notes["input_cut"] == 1
            heads = [e.request.head.split()[1] for e in exchanges(tmp_path / "o.lf") if len(e.request.body) == 20]
            assert heads == [b"/0", b"/1", b"/2", b"/3", b"/4"]


def test_secrets_of_logs_are_masked_before_the_first_write(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(LINE.replace("b=1", "password=hunter2"))
    assert run(tmp_path, "import", str(tmp_path / "x"), "--to", str(tmp_path / "o.lf")).exit_code == 0
    assert b"hunter2" not in exchanges(tmp_path / "o.lf")[0].request.head


_FORM = '$remote_addr [$time_local] "$request" $status $body_bytes_sent "$content_length" "$connection"'
_GOOD = '1.1.1.1 [01/Jan/2024:00:00:00 +0000] "POST /x HTTP/1.1" 200 5 "5" "1"\n'


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("POST /x", "POST http://[::1"),
        ("POST /x", r"POST /\ud800"),
        (' 5 "', f' {"9" * 30} "'),
        ('"5"', f'"{"9" * 30}"'),
        ('"5"', f'"{"9" * 5000}"'),
        ('"5"', '"\u00b2"'),
        ("01/Jan/2024:00:00:00 +0000", "31/Dec/9999:23:59:59 -2359"),
        ("1.1.1.1", r"\xff"),
        ('"1"', r'"\xff"'),
    ],
)
def test_a_line_that_no_record_can_hold_does_not_end_the_import(tmp_path: Path, old: str, new: str) -> None:
    found, account = imported(tmp_path, _GOOD + _GOOD.replace(old, new, 1) + _GOOD, "--log-format", _FORM)
    assert len(found) == 2 and account.ledger("entries").drops == {"bad_value": 1}


@pytest.mark.parametrize(
    "more",
    [
        {"headers": [{"name": "Content-Length", "value": "\u00b2"}]},
        {"headers": [{"name": "Content-Length", "value": "9" * 5000}]},
        {"headers": [{"name": "Content-Length", "value": "9" * 30}]},
        {"bodySize": 1e300},
    ],
)
def test_an_entry_that_no_record_can_hold_does_not_end_the_import(tmp_path: Path, more: dict[str, Any]) -> None:
    bad = har_entry()
    bad["request"].update(more)
    found, account = imported(tmp_path, har_of(har_entry(), bad, har_entry()))
    assert len(found) == 2 and sum(account.ledger("entries").drops.values()) == 1


def test_a_time_of_goreplay_that_is_none_is_unreadable(tmp_path: Path) -> None:
    get = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    found, account = imported(tmp_path, gor(record(1, "a", 1, get), record(1, "b", 10**30, get)))
    assert len(found) == 1 and account.ledger("goreplay").drops == {"unreadable": 1}


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=300),
    st.sampled_from([LINE.encode(), ALB.encode(), har_of(har_entry()), gor(GET, GOT)]),
    st.data(),
)
def test_any_bytes_are_an_entry_a_reject_or_one_line(noise: bytes, good: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(good)))
    damaged = good[:at] + noise + good[at + data.draw(st.integers(0, 9)) :]

    class Bytes(Input):
        def __init__(self) -> None:
            self.name, self.cut, self._left, self.said = "x", False, damaged, []

        def read(self, wanted: int) -> bytes:
            piece, self._left = self._left[:wanted], self._left[wanted:]
            return piece

    for read in (har.entries, alb.entries, access_log.entries):
        try:
            assert all(isinstance(found, Entry | Reject) for found in read(Bytes()))
        except ConfigError:
            assert read is har.entries
    for value in goreplay.records(Bytes()):
        try:
            goreplay.decode(value)
        except goreplay.Unreadable:
            pass


# -- the corpus


@pytest.mark.parametrize("part", ["har", "log"])
def test_the_corpus_gives_what_independent_readers_found(part: str) -> None:
    checked = 0
    for expect in sorted(corpus(part).glob("*.expect.json")):
        want = json.loads(expect.read_text())
        path = expect.with_name(want["file"])
        if part == "log" or want["valid"]:
            checked += 1
            try:
                form = detect(path)
            except ConfigError:
                assert not want["parsed"], path
                continue
            readers: dict[str, Any] = {"har": har.entries, "alb": alb.entries, "nginx": access_log.entries}
            found = list(readers[form](Input(path)))
            good = [entry for entry in found if isinstance(entry, Entry)]
            assert len(found) == want["entries" if part == "har" else "lines"], path
            bad = {reject.place for reject in found if isinstance(reject, Reject)}
            if part == "har":
                missing = sum(want["methods"].get(name, 0) for name in ("None", ""))
                assert len(good) == want["entries"] - missing, path
            else:
                assert len(good) == want["with_request"] and bad == {row["line"] for row in want["malformed"]}, path
            statuses: dict[str, int] = {}
            for entry in good:
                status = str(entry.response.status if entry.response else 0)
                statuses[status] = statuses.get(status, 0) + 1
            if not bad:
                assert statuses == want["statuses"], path
        else:
            with pytest.raises(ConfigError):
                detect(path)
                list(har.entries(Input(path)))
    assert checked > 10


def test_a_pipe_is_read_from_stdin_alone(tmp_path: Path) -> None:
    """Each input is read more than once; a pipe would never end, or be empty the second time."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    result = run(tmp_path, "import", str(pipe), "--to", str(tmp_path / "out.lf"))
    assert result.exit_code == 2
    assert f"{pipe}: is a pipe or a device; a capture is read from stdin: livefire import - < {pipe}" in told(result)
    assert not (tmp_path / "out.lf").exists()


@pytest.mark.skipif(
    not Path("/proc/self/mem").exists(), reason="a file whose first byte cannot be read: /proc of Linux"
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    result = run(tmp_path, "import", "/proc/self/mem", "--to", str(tmp_path / "out.lf"))
    assert result.exit_code == 2
    assert told(result) == "/proc/self/mem: cannot be read: input/output error"


def test_packets_of_a_link_that_is_not_read_are_told_as_that(tmp_path: Path) -> None:
    capture = tmp_path / "other.pcap"
    capture.write_bytes(pcap(Conversation().open().client(b"GET / HTTP/1.1\r\n\r\n").close().packets, linktype=258))
    result = run(tmp_path, "import", str(capture), "--to", str(tmp_path / "out.lf"))
    assert result.exit_code == 0
    assert "7 packets of a kind of link that is not read" in told(result)
    assert "no HTTP was in it" not in told(result)
